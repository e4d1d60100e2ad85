//! Drivers that start, end and start again; who has the memory meanwhile.

use alloc::vec::Vec;
use core::time::Duration;

use ringfence_drivers::block::Request;
use ringfence_drivers::virtio::DeviceType;
use ringfence_kernel::devices::Devices;
use ringfence_kernel::memory::space;
use ringfence_kernel::testing::On;
use ringfence_kernel::{interrupts, time};
use ringfence_memory::{DmaBuf, DmaPool, FrameRequest, Owner, PAGE_SIZE};

use crate::support::{assert_audit_clean, functions_for, numbered, start_card, start_disk, tables, until};

fn count(owner: Owner) -> usize {
    space().frames().count(owner)
}

/// Frames lent to devices, and kept for them.
fn arena() -> [usize; 2] {
    [count(Owner::Dma), count(Owner::DmaIdle)]
}

const COMMAND: u16 = 0x04;
const BUS_MASTER: u16 = 1 << 2;

fn drivers_start_again_and_again() {
    let (disks, cards) = (functions_for(DeviceType::BLOCK), functions_for(DeviceType::NET));
    assert_eq!((disks.len(), cards.len()), (1, 1));
    let masters =
        || [disks[0], cards[0]].map(|function| function.config().read_u16(COMMAND) & BUS_MASTER != 0);
    assert_audit_clean();
    let mut after = Vec::new();
    for round in 0..20 {
        let (mut disk, disk_interrupts, windows) = start_disk(256);
        let (card, card_interrupts, card_windows) = start_card(&cards[0]);
        assert_eq!(
            (disk.control.features(), card.control.features()),
            (crate::block::features(), crate::net::features())
        );
        assert_eq!(masters(), [true, true]);
        assert_audit_clean();
        let pool = DmaPool::new(&windows, 1, 512).expect("there is memory");
        let id = disk.identify(pool.take().expect("it is new"), Duration::from_secs(2));
        assert_eq!(id.map(|id| id.map(|id| id[..7] == *b"scratch")), Ok(Ok(true)), "round {round}");
        drop((disk, card, pool));
        drop((disk_interrupts, card_interrupts));
        assert_eq!((windows.usage(), card_windows.usage()), ((0, 0), (0, 0)));
        assert_eq!(masters(), [false, false], "nobody masters the bus without a driver");
        assert_audit_clean();
        after.push(arena());
    }
    assert!(after.iter().all(|now| *now == after[0] && now[0] == 0), "memory was lost: {after:?}");
    assert_eq!(core::iter::from_fn(interrupts::allocate).collect::<Vec<_>>().len(), 0xf0 - 0x30);
}

/// Registers, memory, vectors and the right to master the bus all come back.
#[test_case]
const AGAIN: On = On("blk,net", &drivers_start_again_and_again);

fn busy_driver_ends_cleanly() {
    const REQUESTS: usize = 40;
    let before = arena();
    let (mut disk, interrupts, windows) = start_disk(256);
    let pool = DmaPool::new(&windows, REQUESTS, PAGE_SIZE).expect("there is memory");
    let buffers: Vec<DmaBuf> = core::iter::from_fn(|| pool.take()).collect();
    let addresses: Vec<u64> = buffers.iter().map(physical).collect();
    for (buffer, sector) in buffers.into_iter().zip((0..).step_by(128)) {
        disk.queue.submit(Request::Read { sector, buffer, len: PAGE_SIZE }).expect("there is room");
    }
    disk.queue.kick();
    let start = time::now();
    while time::now() - start < Duration::from_millis(300) {
        disk.queue.reap(|done| assert_eq!(done.result, Ok(()))).expect("the ring is sound");
    }
    assert!(
        disk.queue.in_flight() > REQUESTS / 2,
        "the disk was to be slow: {} in flight",
        disk.queue.in_flight()
    );
    assert_eq!(pool.available(), REQUESTS - disk.queue.in_flight());
    let start = time::now();
    drop(disk);
    drop(interrupts);
    assert!(time::now() - start < Duration::from_secs(2), "the device reset");
    assert_eq!(pool.available(), REQUESTS, "the buffers in flight came back");
    assert_audit_clean();
    // Whatever the device still does to them, it does not do it from here on.
    let buffers: Vec<DmaBuf> = core::iter::from_fn(|| pool.take()).collect();
    for buffer in &buffers {
        let bytes = buffer.as_volatile_slice();
        bytes.fill(0xa5).expect("it may be written");
    }
    until("a second", || (time::now() - start > Duration::from_millis(2500)).then_some(()));
    for buffer in &buffers {
        let mut bytes = alloc::vec![0; PAGE_SIZE];
        buffer.read_slice(&mut bytes, 0).expect("it fits");
        assert!(bytes.iter().all(|&byte| byte == 0xa5), "the device wrote after its reset");
    }
    drop((buffers, pool));
    assert_eq!(windows.usage(), (0, 0));
    assert_eq!((arena()[0], arena().iter().sum::<usize>() >= before.iter().sum()), (before[0], true));

    // No frame that the device knew ever holds anything private.
    let mut private = Vec::with_capacity(space().frames().total());
    while let Ok(frame) = space().frames().allocate(FrameRequest::new(1)) {
        private.push(frame);
    }
    let reused = |address: &&u64| {
        private.iter().any(|frame| frame.start_address().value() == **address & !(PAGE_SIZE as u64 - 1))
    };
    assert_eq!(addresses.iter().find(reused), None);
    assert!(private.len() > 1000);
    drop((private, windows));

    let (mut disk, _interrupts, windows) = start_disk(256);
    let pool = DmaPool::new(&windows, 1, PAGE_SIZE).expect("there is memory");
    let buffer = pool.take().expect("it is new");
    disk.queue.submit(Request::Read { sector: 5, buffer, len: PAGE_SIZE }).expect("there is room");
    disk.queue.kick();
    let mut bytes = alloc::vec![0; PAGE_SIZE];
    until("a read after the reset", || {
        let copy = |done: ringfence_drivers::block::Done| {
            done.buffer.expect("a read has one").read_slice(&mut bytes, 0).expect("it fits");
        };
        (disk.queue.reap(copy).expect("the ring is sound") == 1).then_some(())
    });
    assert_eq!(bytes, numbered(5, PAGE_SIZE));
}

/// The physical address of a buffer, which here is the device's address; for a person's eyes only.
fn physical(buffer: &DmaBuf) -> u64 {
    let text = alloc::format!("{:?}", buffer.address());
    u64::from_str_radix(text.trim_start_matches("d:0x"), 16).expect("it is an address")
}

/// Requests that are in flight when a driver ends are the device's no more, and their memory stays devices'
/// memory.
#[test_case]
const BUSY: On = On("blk-numbered=10", &busy_driver_ends_cleanly);

fn audit_is_clean_with_all_devices() {
    assert_audit_clean();
    let (devices, started) = Devices::start(tables());
    devices.log();
    assert_eq!((started.disks.len(), started.nics.len(), started.entropy.is_some()), (2, 1, true));
    assert_audit_clean();
    assert!(count(Owner::Dma) > 0);
}

/// As the system starts them.
#[test_case]
const ALL: On = On("blk,net,rng,blk-ro", &audit_is_clean_with_all_devices);
