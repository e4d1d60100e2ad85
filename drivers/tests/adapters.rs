//! Disks and cards as other crates want to see them.

use std::cell::Cell;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use aligned::{A1, Aligned};
use embassy_net_driver::{Driver, HardwareAddress, LinkState, RxToken, TxToken};
use ringfence_drivers::block::{Block, RequestError, SharedQueue, SharedStorage, Storage};
use ringfence_drivers::net::{EmbassyNet, Phy};
use ringfence_drivers::virtio::{Error, Hybrid};
use ringfence_memory::DmaPool;
use ringfence_testkit::card::{Bench, bench, deliver, frame, sent};
use ringfence_testkit::disk::{Disk, SECTOR, SECTORS, disk};
use ringfence_testkit::{Fake, FakeNotifier, FakeTransport};

/// Where transfers begin and how long they are: within a block, across several, more than a buffer, all.
const PLACES: [(u32, usize); 6] = [(0, 512), (0, 0), (100, 7), (511, 2), (700, 5000), (512, 4096)];
const END: u32 = SECTORS as u32 * SECTOR as u32;

fn parts() -> (Fake, Block<FakeTransport>, DmaPool, Disk) {
    let fake = disk(0);
    let block = Block::new(fake.transport(), &fake.grant(), fake.windows()).unwrap();
    let pool = DmaPool::new(&fake.windows(), 1, 2 * SECTOR).unwrap();
    let device = Disk::new(fake.ring(0));
    (fake, block, pool, device)
}

/// Ends the device's thread, also where the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_disk_by_the_byte() {
    use embedded_storage::{ReadStorage as _, Storage as _};

    let (_fake, block, pool, mut device) = parts();
    let mut expected = device.data.clone();
    let mut storage = Storage::new(block, pool, Duration::from_secs(60));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                device.serve_all();
                thread::yield_now();
            }
        });
        let stop = Stop(&stop);
        assert_eq!(storage.capacity(), END as usize);
        for (round, (offset, len)) in PLACES.into_iter().enumerate() {
            let range = offset as usize..offset as usize + len;
            let mut bytes = vec![0; len];
            storage.read(offset, &mut bytes).unwrap();
            assert_eq!(bytes, expected[range.clone()], "{offset}");
            bytes.fill(0xa0 + round as u8);
            storage.write(offset, &bytes).unwrap();
            expected[range].copy_from_slice(&bytes);
        }
        let beyond = Err(Error::Request(RequestError::OutOfRange));
        assert_eq!(storage.read(END - 1, &mut [0; 2]), beyond);
        assert_eq!(storage.write(END, &[0; 512]), beyond);
        drop(stop);
        server.join().unwrap();
    });
    assert!(device.data == expected, "each write hit its bytes, and nothing else");
}

/// Runs `future` beside the queue's server and the device.
fn run<T>(queue: &SharedQueue<'_, FakeNotifier>, device: &mut Disk, future: impl Future<Output = T>) -> T {
    let (mut future, mut context) = (pin!(future), Context::from_waker(Waker::noop()));
    for _ in 0..1000 {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        assert!(queue.poll_serve(&mut context, Duration::ZERO).is_pending());
        device.serve_all();
    }
    panic!("it never ends");
}

#[test]
fn a_queue_by_the_byte() {
    use embedded_storage_async::{ReadStorage as _, Storage as _};

    let (_fake, mut block, pool, mut device) = parts();
    let queue = SharedQueue::new(&mut block.queue, Hybrid::new(0)).unwrap();
    let mut storage = SharedStorage::new(&queue, pool);
    let mut expected = device.data.clone();
    assert_eq!(storage.capacity(), END as usize);
    for (round, (offset, len)) in PLACES.into_iter().enumerate() {
        let range = offset as usize..offset as usize + len;
        let mut bytes = vec![0; len];
        run(&queue, &mut device, storage.read(offset, &mut bytes)).unwrap();
        assert_eq!(bytes, expected[range.clone()], "{offset}");
        bytes.fill(0xa0 + round as u8);
        run(&queue, &mut device, storage.write(offset, &bytes)).unwrap();
        expected[range].copy_from_slice(&bytes);
    }
    let beyond = run(&queue, &mut device, storage.read(END - 1, &mut [0; 2]));
    assert_eq!(beyond, Err(RequestError::OutOfRange));
    assert!(device.data == expected, "each write hit its bytes, and nothing else");
}

fn in_blocks<const SIZE: usize>() {
    use block_device_driver::BlockDevice;

    let (_fake, mut block, pool, mut device) = parts();
    let queue = SharedQueue::new(&mut block.queue, Hybrid::new(0)).unwrap();
    let mut storage = SharedStorage::new(&queue, pool);
    let size = run(&queue, &mut device, BlockDevice::<SIZE>::size(&mut storage));
    assert_eq!(size, Ok(END.into()));
    let mut blocks: [Aligned<A1, [u8; SIZE]>; 3] = [Aligned([0; SIZE]); 3];
    run(&queue, &mut device, storage.read(2, &mut blocks)).unwrap();
    let bytes: Vec<u8> = blocks.iter().flat_map(|block| block.iter().copied()).collect();
    assert_eq!(bytes, device.data[2 * SIZE..][..3 * SIZE]);
    blocks.iter_mut().for_each(|block| block.fill(0xcc));
    run(&queue, &mut device, storage.write(5, &blocks)).unwrap();
    assert!(device.data[5 * SIZE..][..3 * SIZE].iter().all(|&byte| byte == 0xcc));
    assert!(device.data[..5 * SIZE].iter().chain(&device.data[8 * SIZE..]).any(|&byte| byte != 0xcc));
    assert_eq!(device.data[2 * SIZE..][..3 * SIZE], bytes, "nothing before it was written");
}

#[test]
fn a_queue_in_blocks() {
    in_blocks::<512>();
    in_blocks::<1024>();
    in_blocks::<4096>();
}

#[test]
fn a_card_for_embassy() {
    let Bench { fake, net, mut rx, mut tx } = bench(4);
    let (mac, asked) = (net.control.mac(), Cell::new(0));
    let mut card = EmbassyNet::new(Phy::new(net), |_: &Waker| asked.set(asked.get() + 1));
    let mut context = Context::from_waker(Waker::noop());
    assert_eq!(card.capabilities().max_transmission_unit, 1414);
    assert_eq!(card.hardware_address(), HardwareAddress::Ethernet(mac));
    assert!(card.link_state(&mut context) == LinkState::Up);
    card.phy().disable_interrupts();
    let before = asked.get();
    assert!(card.receive(&mut context).is_none());
    assert!(asked.get() > before && rx.interrupts_wanted(), "an interrupt wakes the stack");
    assert!(deliver(&mut rx, [0; 12], &frame(80, 1)));
    let (received, answer) = card.receive(&mut context).unwrap();
    assert_eq!(received.consume(|bytes| bytes.to_vec()), frame(80, 1));
    let kicks = fake.kicks(1);
    answer.consume(60, |bytes| bytes.copy_from_slice(&frame(60, 2)));
    assert_eq!(fake.kicks(1), kicks + 1, "the device is told at once");
    for seed in 3..6 {
        let room = card.transmit(&mut context).unwrap();
        room.consume(70, |bytes| bytes.copy_from_slice(&frame(70, seed)));
    }
    let before = asked.get();
    assert!(card.transmit(&mut context).is_none(), "the ring is full");
    assert!(asked.get() > before && tx.interrupts_wanted());
    assert_eq!(sent(&mut tx), Some(frame(60, 2)));
    assert!(card.transmit(&mut context).is_some(), "there is room again");
}
