//! Our drivers on devices made of our own device side.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

#[path = "../common/mod.rs"]
mod common;
mod million;
mod modes;

use alloc::vec::Vec;
use core::time::Duration;

use common::{address, assert_sound, physical};
use million::Exerciser;
use ringfence_device_side::loopback::{Loopback, RamDisk};
use ringfence_drivers::block::{Block, Done, Request, RequestError, SECTOR_SIZE};
use ringfence_drivers::virtio::{
    BufferList, Device, DeviceType, Error, Queue, QueueOptions, QueueSetup, Transport, status,
};
use ringfence_kernel::memory::space;
use ringfence_kernel::platform::KERNEL;
use ringfence_memory::{
    Bytes, DescriptorTable, DeviceId, Direction, DmaAddr, DmaArray, DmaBuf, DmaError, DmaPool, DmaRegion,
    DmaWindows, PAGE_SIZE, Protection, ResetError, Split, VolatileError, rust_vmm::GuestAddress,
};

ringfence_kernel::test_image!();

/// Numbers of models, which are their own.
const DISK: DeviceId = DeviceId(0xffff_0000);
const CARD: DeviceId = DeviceId(0xffff_0001);

const SECTORS: usize = 8192;
const NAME: [u8; 20] = *b"ringfence loopback\0\0";

type RamBlock = Block<Loopback<RamDisk>>;

fn disk() -> (Loopback<RamDisk>, DmaWindows) {
    let windows = DmaWindows::for_model(&KERNEL, DISK).expect("nobody else has it");
    (Loopback::new(RamDisk::new(SECTORS, NAME), windows.clone()), windows)
}

fn start(device: &Loopback<RamDisk>, windows: &DmaWindows) -> RamBlock {
    Block::new(device.clone(), &device.grant().expect("it is a model"), windows.clone())
        .expect("the disk starts")
}

/// All that a disk can do besides reading and writing.
#[test_case]
fn disk_has_a_name() {
    let (device, windows) = disk();
    let mut block = start(&device, &windows);
    let pool = DmaPool::new(&windows, 1, 512).expect("there is memory");
    for _ in 0..3 {
        let buffer = pool.take().expect("it came back");
        assert_eq!(block.identify(buffer, Duration::from_secs(1)), Ok(Ok(NAME)));
    }
    // An event index asks for one interrupt: at first for the first answer.
    assert_eq!(device.interrupts(), 1);
    assert!(!block.queue.enable_interrupts());
    for _ in 0..2 {
        block.queue.submit(Request::Flush).expect("there is room");
        block.queue.kick();
        let mut result = None;
        block.queue.reap(|done| result = Some(done.result)).expect("the ring is sound");
        assert_eq!((result, device.interrupts()), (Some(Ok(())), 2));
    }
    // Asked for again, then taken back: without that the next answer would be the third.
    assert!(!block.queue.enable_interrupts());
    block.queue.disable_interrupts();
    block.queue.submit(Request::Flush).expect("there is room");
    block.queue.kick();
    assert_eq!((block.queue.reap(drop), device.interrupts()), (Ok(1), 2));
    assert!(!block.queue.enable_interrupts());
    block.queue.submit(Request::Flush).expect("there is room");
    block.queue.kick();
    assert_eq!((block.queue.reap(drop), device.interrupts()), (Ok(1), 3));
}

/// A request as its bytes are: what a driver with a bug could send. Nothing, if there are no bytes to answer
/// with.
fn raw(input: DmaBuf, output: Option<DmaBuf>) -> BufferList {
    BufferList::new(0, alloc::vec![input], output.into_iter().collect(), 0)
}

/// Buffers of any length, up to a page. Those that are not in use cost nothing but memory.
struct Pools {
    windows: DmaWindows,
    pools: Vec<DmaPool>,
}

impl Pools {
    fn new(windows: &DmaWindows) -> Self {
        Self { windows: windows.clone(), pools: Vec::new() }
    }

    /// A buffer of `len` bytes, all of which are `fill`.
    fn take(&mut self, len: usize, fill: u8) -> DmaBuf {
        let known = self.pools.iter().position(|pool| pool.slot_len() == len);
        let at = known.unwrap_or_else(|| {
            self.pools.push(DmaPool::new(&self.windows, 3, len).expect("there is memory"));
            self.pools.len() - 1
        });
        let buffer = self.pools[at].take().expect("it came back");
        buffer.as_volatile_slice().fill(fill).expect("it may be written");
        buffer
    }
}

/// The bytes of a buffer.
fn bytes(buffer: &DmaBuf) -> Vec<u8> {
    let mut bytes = alloc::vec![0; buffer.len()];
    buffer.read_slice(&mut bytes, 0).expect("it fits");
    bytes
}

/// Requests that make no sense are answered as the specification says, or come back unanswered.
#[test_case]
fn senseless_requests_are_answered() {
    const BLANK: u8 = 0xa5;
    let (device, windows) = disk();
    let begun = Device::begin(
        device.clone(),
        DeviceType::BLOCK,
        &device.grant().expect("it is a model"),
        windows.clone(),
    );
    let mut driver = begun.expect("the disk starts").negotiate(0).expect("nothing is asked for");
    let options = QueueOptions { size: 8, chains: 4, segments: 2, longest: 2 };
    let mut queue: Queue<BufferList, _> = driver.queue(0, &options, 2, |_| Ok(None)).expect("there is one");
    queue.start(&driver.driver_ok().expect("it is ready"));
    let mut pools = Pools::new(&windows);
    let (last, all) = (SECTORS as u64 - 1, u32::MAX);
    // Type, sector, bytes of header and data, bytes of answer and status: bytes written, status.
    let cases = [
        (2, 0, 16, 1, 1, Some(2)),
        (all, 0, 16 + 512, 513, 513, Some(2)),
        (0, last, 16, 513, 513, Some(0)),
        (0, last + 1, 16, 513, 513, Some(1)),
        (0, last, 16, 1025, 1025, Some(1)),
        (0, u64::MAX, 16, 513, 513, Some(1)),
        (0, u64::MAX / 512, 16, 513, 513, Some(1)),
        (0, 0, 16, 512, 512, Some(1)),
        (1, last + 1, 16 + 512, 1, 1, Some(1)),
        (1, last, 16 + 1024, 1, 1, Some(1)),
        (1, 0, 16 + 511, 1, 1, Some(1)),
        (8, 0, 16, 21, 21, Some(0)),
        (8, 0, 16, 8, 8, Some(0)),
        (4, 0, 15, 1, 0, None),
        (1, 0, 16 + 512, 0, 0, None),
    ];
    for case in cases {
        let (kind, sector, input_len, output_len, written, answer): (u32, u64, _, _, u32, _) = case;
        let mut input = pools.take(input_len, BLANK);
        let header = [u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat();
        input.write_slice(&header[..input_len.min(16)], 0).expect("it fits");
        let output = (output_len > 0).then(|| pools.take(output_len, BLANK));
        let neighbours = output.as_ref().map(|output| [(); 2].map(|()| pools.take(output.len(), BLANK)));
        assert!(queue.submit(raw(input, output)).is_ok(), "{case:?}");
        queue.kick();
        let completion = queue.pop().expect("the ring is sound").expect("every request comes back");
        assert_eq!(completion.written, Some(written), "{case:?}");
        let [_, output] = completion.buffers.into_buffers();
        let bytes = output.first().map(bytes).unwrap_or_default();
        assert_eq!(written.checked_sub(1).map(|at| bytes[at as usize]), answer, "{case:?}");
        assert!(bytes[written as usize..].iter().all(|byte| *byte == BLANK), "{case:?}");
        let mut around = neighbours.iter().flatten().flat_map(self::bytes);
        assert!(around.all(|byte| byte == BLANK), "{case:?}");
        assert_eq!(driver.check(), Ok(()));
    }
    let quiet = driver.shut_down().expect("it resets");
    assert_eq!(queue.reclaim(&quiet).count(), 0);
    // A write that begins on the disk and ends beyond it wrote nothing.
    drop((queue, driver));
    let mut disk = start(&device, &windows);
    let buffer = pools.take(512, 1);
    disk.queue.submit(Request::Read { sector: last, buffer, len: 512 }).expect("there is room");
    disk.queue.kick();
    let mut bytes = [1; 512];
    let read = |done: Done| done.buffer.expect("a read has one").read_slice(&mut bytes, 0).expect("it fits");
    assert_eq!(disk.queue.reap(read), Ok(1));
    assert_eq!(bytes, [0; 512]);
}

/// A buffer that is not for the device to write is not given to it for that, nor one that is not for it to
/// read.
#[test_case]
fn directions_are_kept() {
    let (device, windows) = disk();
    let mut block = start(&device, &windows);
    let pool = |direction| DmaPool::new_for(&windows, 1, 512, direction).expect("there is memory");
    let (to_device, from_device) = (pool(Direction::ToDevice), pool(Direction::FromDevice));
    let mut one = |request| {
        if let Err((error, request)) = block.queue.submit(request) {
            assert_eq!((error, block.queue.in_flight()), (RequestError::WrongDirection, 0));
            return (Err(error), request.into_buffer().expect("it comes back"));
        }
        block.queue.kick();
        let mut answer = None;
        assert_eq!(
            block.queue.reap(|done| answer = Some((done.result, done.buffer.expect("it has one")))),
            Ok(1)
        );
        answer.expect("it was reaped")
    };
    for round in 0..3 {
        let mut buffer = to_device.take().expect("it came back");
        buffer.write_slice(&[7; 512], 0).expect("it fits");
        let (result, buffer) = one(Request::Write { sector: 0, buffer, len: 512 });
        assert_eq!(result, Ok(()), "round {round}");
        let (result, buffer) = one(Request::Read { sector: 1, buffer, len: 512 });
        assert_eq!(result, Err(RequestError::WrongDirection), "round {round}");
        let mut bytes = [0; 512];
        buffer.read_slice(&mut bytes, 0).expect("it fits");
        assert_eq!(bytes, [7; 512]);

        let buffer = from_device.take().expect("it came back");
        let (result, mut buffer) = one(Request::Read { sector: 0, buffer, len: 512 });
        buffer.read_slice(&mut bytes, 0).expect("it fits");
        assert_eq!((result, bytes), (Ok(()), [7; 512]), "round {round}");
        buffer.write_slice(&[8; 512], 0).expect("it fits");
        let (result, buffer) = one(Request::Write { sector: 0, buffer, len: 512 });
        assert_eq!(result, Err(RequestError::WrongDirection), "round {round}");
        let (_, buffer) = one(Request::Read { sector: 0, buffer, len: 512 });
        buffer.read_slice(&mut bytes, 0).expect("it fits");
        assert_eq!(bytes, [7; 512], "the disk was not written");
    }
}

/// Places in a split ring of 4 descriptors, and what the test puts behind it.
const AVAILABLE: usize = 64;
const USED: usize = 128;
const HEADER: usize = 256;
const STATUS: usize = 512;

/// The descriptors of a queue of 4, and all that follows them in their page.
struct Rings {
    table: DescriptorTable<Split>,
    rest: DmaArray<u8>,
}

impl Rings {
    fn new(windows: &DmaWindows) -> Self {
        let table = DescriptorTable::new(windows, 4, PAGE_SIZE - AVAILABLE, Direction::Both);
        let table = table.expect("there is memory");
        Self { rest: table.array_after(PAGE_SIZE - AVAILABLE).expect("it is inside"), table }
    }

    /// Where the device finds the byte at `offset` of the page.
    fn at(&self, offset: usize) -> DmaAddr<'_> {
        self.rest.address(offset - AVAILABLE).expect("it is inside")
    }

    fn setup(&self, index: u16) -> QueueSetup<'_> {
        let addresses = self.table.queue(self.at(AVAILABLE), self.at(USED)).expect("there is room");
        QueueSetup { index, addresses }
    }
}

/// Tells the device, by a ring written by hand, to read sector 0 to `address..address + len`. Returns what it
/// says it wrote, and the status.
fn read_to(device: &Loopback<RamDisk>, windows: &DmaWindows, address: u64, len: u32) -> (u32, u8) {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    let mut transport = device.clone();
    transport.reset(windows, Duration::ZERO).expect("it resets");
    let rings = Rings::new(windows);
    let start = windows.publish(rings.table.address()).expect("its own");
    // Addresses are no numbers on the driver's side, so the descriptors are written from the device's.
    let at = |offset: usize| GuestAddress(start.0 + offset as u64);
    let write = |bytes: &[u8], offset| {
        windows.writable().expect("room for the list").write_slice(bytes, at(offset)).expect("a window")
    };
    let descriptor = |index: usize, address: u64, len: u32, flags: u16| {
        let words = [address, u64::from(len) | u64::from(flags) << 32 | (index as u64 + 1) << 48];
        write(&words.map(u64::to_le_bytes).concat(), 16 * index);
    };
    descriptor(0, at(HEADER).0, 16, NEXT);
    descriptor(1, address, len, NEXT | WRITE);
    descriptor(2, at(STATUS).0, 1, WRITE);
    write(&1_u16.to_le_bytes(), AVAILABLE + 2);
    write(&[0xff], STATUS);

    let accepted = status::ACKNOWLEDGE | status::DRIVER;
    transport.set_status(accepted);
    transport.start(&device.grant().expect("it is a model")).expect("it is the device's grant");
    transport.set_driver_features(1 << 32);
    transport.set_status(accepted | status::FEATURES_OK);
    transport.set_up_queue(windows, &rings.setup(0)).expect("the rings are in a window");
    transport.set_status(accepted | status::FEATURES_OK | status::DRIVER_OK);
    device.poll();
    let view = windows.readable().expect("room for the list");
    assert_eq!(view.read_obj::<u16>(at(USED + 2)), Ok(1), "the request came back");
    let answer = (view.read_obj(at(USED + 8)).expect("it fits"), view.read_obj(at(STATUS)).expect("it fits"));
    assert_eq!(transport.reset(windows, Duration::ZERO).err(), Some(ResetError::Timeout), "there is a view");
    drop(view);
    transport.reset(windows, Duration::ZERO).expect("it resets");
    answer
}

/// An address that is in no window, though it is memory, or not all of it, fails the request; nothing is
/// written.
#[test_case]
fn nothing_outside_the_windows_is_written() {
    let (device, windows) = disk();
    let mut private = space().allocate(2, Protection::ReadWrite).expect("there is memory");
    private.as_slice_mut::<u8>(0, 2 * PAGE_SIZE).expect("it is writable").fill(0xa5);
    let own = windows.allocate(PAGE_SIZE).expect("there is memory");
    let foreign = DmaWindows::for_model(&KERNEL, CARD).expect("nobody else has it");
    let foreign = foreign.allocate(PAGE_SIZE).expect("there is memory");
    let to_device = windows.allocate_for(PAGE_SIZE, Direction::ToDevice).expect("there is memory");
    let place = |region: &DmaRegion| physical(region.as_volatile_slice().as_ptr().addr().get() as u64);
    let [own_at, foreign_at, to_device_at] =
        [&own, &foreign, &to_device].map(|it| place(it).expect("mapped"));

    let read = |address, len| read_to(&device, &windows, address, len);
    assert_eq!(read(own_at, 512), (513, 0), "the test itself can tell");
    let private_at = physical(address(&private)).expect("it is mapped");
    for at in [
        private_at,
        private_at + PAGE_SIZE as u64,
        foreign_at,
        to_device_at,
        0,
        own_at - 1,
        own_at + PAGE_SIZE as u64 - 511,
        own_at + PAGE_SIZE as u64,
        u64::MAX - 511,
        u64::MAX,
    ] {
        assert_eq!(read(at, 512), (0, 0xff), "at {at:#x}");
    }
    assert_eq!(read(own_at, 0), (0, 0xff), "an empty buffer");
    assert_eq!(read(own_at, u32::MAX), (0, 0xff), "a buffer beyond its window");
    assert!(
        private.as_slice::<u8>(0, 2 * PAGE_SIZE).expect("it is readable").iter().all(|byte| *byte == 0xa5)
    );
    for region in [&foreign, &to_device] {
        assert_eq!(region.as_volatile_slice().read_obj::<[u8; PAGE_SIZE]>(0), Ok([0; PAGE_SIZE]));
    }
    assert_sound();
}

/// Rings outside the windows are refused when they are set up, and end the device when they go away.
#[test_case]
fn rings_must_be_in_the_windows() {
    let (device, windows) = disk();
    let mut transport = device.clone();
    let foreign = Rings::new(&DmaWindows::for_model(&KERNEL, CARD).expect("nobody else has it"));
    let own = Rings::new(&windows);
    let (driver, used) = (own.at(AVAILABLE), own.at(USED));
    let good = own.setup(0);
    for (driver, used, error) in [
        (driver, own.at(PAGE_SIZE - 4), VolatileError::OutOfBounds),
        (own.at(AVAILABLE + 1), used, VolatileError::Misaligned),
        (driver, own.at(USED + 2), VolatileError::Misaligned),
    ] {
        assert_eq!(own.table.queue(driver, used).err(), Some(DmaError::Access(error)));
    }
    let bad = [
        foreign.table.queue(driver, used),
        own.table.queue(foreign.at(AVAILABLE), used),
        own.table.queue(driver, foreign.at(USED)),
    ];
    for addresses in bad {
        let setup = QueueSetup { addresses: addresses.expect("there is room"), ..good };
        assert_eq!(transport.set_up_queue(&windows, &setup).err(), Some(Error::QueueRefused(0)), "{setup:?}");
    }
    let beyond = QueueSetup { index: 1, ..good };
    assert_eq!(transport.set_up_queue(&windows, &beyond).err(), Some(Error::QueueUnavailable(1)));
    assert!(transport.set_up_queue(&windows, &good).is_ok());
    assert_eq!(transport.set_up_queue(&windows, &good).err(), Some(Error::QueueUnavailable(0)));
    transport.start(&device.grant().expect("it is a model")).expect("it is the device's grant");
    transport.set_driver_features(1 << 32);
    let running = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    transport.set_status(running);
    device.poll();
    assert_eq!(transport.status(), running);
    drop(own);
    assert_eq!(windows.usage(), (0, PAGE_SIZE), "the device was told of it");
    device.poll();
    assert_eq!(transport.status(), running | status::NEEDS_RESET);
    let life = windows.life();
    assert!(transport.reset(&windows, Duration::ZERO).is_ok_and(|quiet| quiet.ends(&life)));
    assert_eq!((transport.status(), windows.usage()), (0, (0, 0)));
    // Features that were not offered are not accepted.
    transport.set_driver_features(1 << 32 | 1 << 5);
    transport.set_status(running);
    assert_eq!(transport.status() & status::FEATURES_OK, 0);
    assert_sound();
}

/// A driver that ends while its requests are in flight: the device forgets them when it is reset.
#[test_case]
fn reset_ends_what_is_in_flight() {
    const BLANK: u8 = 0xa5;
    let (device, windows) = disk();
    for _ in 0..3 {
        let mut block = start(&device, &windows);
        let pool = DmaPool::new(&windows, 40, SECTOR_SIZE).expect("there is memory");
        device.hold(true);
        for sector in 0..40 {
            let buffer = pool.take().expect("one for each");
            buffer.as_volatile_slice().fill(BLANK).expect("it may be written");
            block.queue.submit(Request::Read { sector, buffer, len: SECTOR_SIZE }).expect("there is room");
        }
        block.queue.kick();
        assert_eq!((block.queue.reap(drop), pool.available()), (Ok(0), 0), "the device is held");
        drop(block);
        assert_eq!((pool.available(), device.status()), (40, 0));
        device.poll();
        let buffers: Vec<DmaBuf> = core::iter::from_fn(|| pool.take()).collect();
        for buffer in &buffers {
            let mut bytes = [0; SECTOR_SIZE];
            buffer.read_slice(&mut bytes, 0).expect("it fits");
            assert_eq!(bytes, [BLANK; SECTOR_SIZE], "written after the reset");
        }
        device.hold(false);
        assert_sound();
    }
    let mut disk = Exerciser::new(start(&device, &windows), &windows);
    disk.exercise(1000);
}
