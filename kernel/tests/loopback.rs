//! Our drivers on devices made of our own device side.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

mod common;

use alloc::vec::Vec;
use core::time::Duration;

use common::{address, assert_sound, count, counts, physical, random};
use ringfence_drivers::block::{Block, Done, Request, RequestError, SECTOR_SIZE};
use ringfence_drivers::net::{MAX_FRAME_LEN, Net};
use ringfence_drivers::virtio::{
    Buffers, Device, DeviceType, Error, Part, Queue, QueueSetup, Transport, status,
};
use ringfence_kernel::loopback::{Echo, Loopback, RamDisk};
use ringfence_kernel::memory::space;
use ringfence_kernel::platform::KERNEL;
use ringfence_kernel::testing::On;
use ringfence_kernel::time;
use ringfence_memory::{
    Bytes, DeviceId, Direction, DmaBuf, DmaPool, DmaRegion, DmaWindows, Owner, PAGE_SIZE, Protection,
};

ringfence_kernel::test_image!();

/// Of no PCI function: there is no segment 0xffff.
const DISK: DeviceId = DeviceId(0xffff_0000);
const CARD: DeviceId = DeviceId(0xffff_0001);

const SECTORS: usize = 8192;
/// Sectors in the longest request.
const MOST: usize = 8;
const NAME: [u8; 20] = *b"ringfence loopback\0\0";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Requests with data need three descriptors.
const DEPTH: usize = 256 / 3;

type RamBlock = Block<Loopback<RamDisk>>;

fn disk() -> (Loopback<RamDisk>, DmaWindows) {
    let windows = DmaWindows::new(&KERNEL, DISK);
    (Loopback::new(RamDisk::new(SECTORS, NAME), windows.clone()), windows)
}

fn start(device: &Loopback<RamDisk>, windows: &DmaWindows) -> RamBlock {
    Block::new(device.clone(), &device.grant(), windows.clone()).expect("the disk starts")
}

/// What the test knows of a disk, and what it has in flight there.
struct Exerciser {
    block: RamBlock,
    pool: DmaPool,
    /// How often each sector was written. What it holds follows from that.
    generations: Vec<u32>,
    /// Whether a request for the sector is in flight.
    busy: Vec<bool>,
    /// By ticket: first sector, number of sectors, whether it is a write, and the how-manieth request of its batch.
    flights: Vec<Option<(usize, usize, bool, usize)>>,
    state: u64,
    /// Completions that came before one of an earlier request.
    overtaken: usize,
}

impl Exerciser {
    fn new(block: RamBlock, windows: &DmaWindows) -> Self {
        let flights = alloc::vec![None; block.depth()];
        Self {
            block,
            pool: DmaPool::new(windows, DEPTH, MOST * SECTOR_SIZE).expect("there is memory"),
            generations: alloc::vec![0; SECTORS],
            busy: alloc::vec![false; SECTORS],
            flights,
            state: 0x2545_f491_4f6c_dd1d,
            overtaken: 0,
        }
    }

    /// The bytes of a sector: zeros at first, then others for each sector and generation.
    fn contents(sector: usize, generation: u32, bytes: &mut [u8]) {
        let seed = (u64::from(generation) << 32 | sector as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let step = if generation == 0 { 0 } else { seed | 1 };
        for (index, word) in (1..).zip(bytes.as_chunks_mut::<8>().0) {
            *word = step.wrapping_mul(index).to_le_bytes();
        }
    }

    fn all_contents(&self, first: usize, bytes: &mut [u8]) {
        for (sector, bytes) in (first..).zip(bytes.chunks_exact_mut(SECTOR_SIZE)) {
            Self::contents(sector, self.generations[sector], bytes);
        }
    }

    /// A piece of the disk that no request in flight touches.
    fn piece(&mut self) -> (usize, usize) {
        loop {
            let sectors = 1 + random(&mut self.state, MOST);
            let first = random(&mut self.state, SECTORS + 1 - sectors);
            let busy = &mut self.busy[first..first + sectors];
            if !busy.contains(&true) {
                busy.fill(true);
                return (first, sectors);
            }
        }
    }

    /// Submits `batch` random requests with one notification and checks all answers.
    fn exchange(&mut self, batch: usize) {
        let mut bytes = [0; MOST * SECTOR_SIZE];
        for number in 0..batch {
            let (first, sectors) = self.piece();
            let write = random(&mut self.state, 2) == 0;
            let (sector, len) = (first as u64, sectors * SECTOR_SIZE);
            let mut buffer = self.pool.take().expect("one for each request");
            let request = if write {
                self.generations[first..first + sectors].iter_mut().for_each(|generation| *generation += 1);
                self.all_contents(first, &mut bytes[..len]);
                buffer.write_slice(&bytes[..len], 0).expect("it fits");
                Request::Write { sector, buffer, len }
            } else {
                Request::Read { sector, buffer, len }
            };
            let ticket = self.block.submit(request).expect("there is room");
            assert!(self.flights[ticket.index()].replace((first, sectors, write, number)).is_none());
        }
        self.block.kick();
        let mut answers = Vec::with_capacity(batch);
        let reaped = self.block.reap(|done| answers.push(done)).expect("the ring is sound");
        assert_eq!((reaped, self.block.in_flight()), (batch, 0), "the device is done when it was notified");
        let (mut expected, mut highest) = ([0; MOST * SECTOR_SIZE], 0);
        for Done { ticket, result, buffer } in answers {
            let flight = self.flights[ticket.index()].take().expect("it was in flight");
            let (first, sectors, write, number) = flight;
            assert_eq!(result, Ok(()), "{flight:?}");
            self.busy[first..first + sectors].fill(false);
            self.overtaken += usize::from(number < highest);
            highest = highest.max(number);
            let buffer = buffer.expect("reads and writes have one");
            if !write {
                let len = sectors * SECTOR_SIZE;
                buffer.read_slice(&mut bytes[..len], 0).expect("it fits");
                self.all_contents(first, &mut expected[..len]);
                assert!(bytes[..len] == expected[..len], "{flight:?}");
            }
        }
    }

    /// Exchanges `requests` in batches of up to as many as the queue holds, with an audit now and then.
    fn exercise(&mut self, requests: usize) {
        let (mut left, before) = (requests, self.block.counters());
        while left > 0 {
            let batch = (1 + random(&mut self.state, DEPTH)).min(left);
            self.exchange(batch);
            if left / 50_000 != (left - batch) / 50_000 {
                assert_sound();
            }
            left -= batch;
        }
        let counters = self.block.counters();
        assert_eq!(counters.completions - before.completions, requests as u64);
        assert_eq!((counters.rejected, self.pool.available()), (0, DEPTH));
        assert_sound();
    }
}

/// A frame for experiments (EtherType 0x88b5) with `number` all over it.
fn frame(number: u64, frame: &mut [u8]) {
    frame[..12].copy_from_slice(&[MAC, MAC].concat());
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    let seed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (index, bytes) in (1..).zip(frame[14..].chunks_mut(8)) {
        bytes.copy_from_slice(&seed.wrapping_mul(index).to_le_bytes()[..bytes.len()]);
    }
}

/// Sends `count` frames, in batches of up to as many as the queues hold, and receives each once, in order.
fn echo(card: &mut Net<Loopback<Echo>>, count: u64) {
    let (mut sent, mut received, mut state) = (0, 0, 0x2545_f491_4f6c_dd1d);
    let mut lengths = alloc::collections::VecDeque::new();
    let (mut bytes, mut expected) = ([0; 2048], [0; 2048]);
    while received < count {
        for _ in 0..(1 + random(&mut state, 256) as u64).min(count - sent) {
            let Some(mut packet) = card.take() else { break };
            let len = 14 + random(&mut state, MAX_FRAME_LEN - 13);
            // Most frames are short, as in most networks.
            let len = if sent % 4 == 0 { len } else { 14 + len % 114 };
            frame(sent, &mut bytes[..len]);
            packet.write(&bytes[..len]).expect("it is short enough");
            card.send(packet).expect("it is this card's");
            lengths.push_back(len);
            sent += 1;
        }
        card.kick();
        while let Some(packet) = card.receive().expect("the ring is sound") {
            let len = lengths.pop_front().expect("no more frames come than were sent");
            assert_eq!((packet.len(), packet.read(&mut bytes)), (len, len), "frame {received}");
            frame(received, &mut expected[..len]);
            assert!(bytes[..len] == expected[..len], "frame {received} of {len} bytes was changed");
            card.recycle(packet);
            received += 1;
            if received % 100_000 == 0 {
                assert_sound();
            }
        }
    }
    assert!(lengths.is_empty());
    let [receive, transmit] = card.counters();
    assert_eq!((receive.completions, transmit.submitted), (count, count));
    assert_eq!((receive.rejected, transmit.rejected), (0, 0));
    assert_sound();
}

fn million_requests_are_served() {
    let before = counts();
    let (device, windows) = disk();
    let mut disk = Exerciser::new(start(&device, &windows), &windows);
    assert_eq!((disk.block.queue_size(), disk.block.geometry().sectors), (256, SECTORS as u64));
    let began = time::now();
    disk.exercise(300_000);
    assert_eq!(disk.overtaken, 0, "the device serves in order");
    device.with_model(|model| model.disorder(1));
    disk.exercise(100_000);
    assert!(disk.overtaken > 10_000, "only {} overtaken", disk.overtaken);
    log::info!("400,000 disk requests in {} ms", (time::now() - began).as_millis());

    let card_windows = DmaWindows::new(&KERNEL, CARD);
    let wire = Loopback::new(Echo::new(MAC), card_windows.clone());
    let mut card = Net::new(wire.clone(), &wire.grant(), card_windows.clone()).expect("the card starts");
    assert_eq!((card.mac(), card.link_up(), card.queue_sizes()), (MAC, true, [256, 256]));
    let began = time::now();
    echo(&mut card, 600_000);
    log::info!("600,000 frames in {} ms", (time::now() - began).as_millis());

    drop((disk, card));
    assert_eq!((windows.usage(), card_windows.usage()), ((0, 0), (0, 0)));
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined)), (0, before[Owner::Quarantined as usize]));
    assert_sound();
}

/// A million in all: disk requests in order and out of order, and frames.
#[test_case]
const MILLION: On = On("slow,cpu=max", &million_requests_are_served);

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
    block.submit(Request::Flush).expect("there is room");
    block.kick();
    let mut result = None;
    block.reap(|done| result = Some(done.result)).expect("the ring is sound");
    assert_eq!(result, Some(Ok(())));
    // The three answers of `identify`, and this one.
    assert_eq!(device.interrupts(), 4);
    block.disable_interrupts();
    block.submit(Request::Flush).expect("there is room");
    block.kick();
    assert_eq!((block.reap(drop), device.interrupts()), (Ok(1), 4));
}

/// A request as its bytes are: what a driver with a bug could send.
struct Raw {
    input: DmaBuf,
    input_len: usize,
    output: DmaBuf,
    output_len: usize,
}

impl Buffers for Raw {
    fn part(&self, index: u16) -> Option<Part> {
        let parts = [
            Part::readable(&self.input, 0, self.input_len),
            Part::writable(&self.output, 0, self.output_len).filter(|_| self.output_len > 0),
        ];
        *parts.get(usize::from(index))?
    }

    fn least_written(&self) -> u32 {
        0
    }

    fn abandon(self) {
        self.input.abandon();
        self.output.abandon();
    }
}

/// Requests that make no sense are answered as the specification says, or come back unanswered.
#[test_case]
fn senseless_requests_are_answered() {
    const BLANK: u8 = 0xa5;
    let (device, windows) = disk();
    let mut raw = Device::begin(device.clone(), DeviceType::BLOCK, &device.grant(), windows.clone())
        .expect("the disk starts");
    raw.negotiate(0).expect("nothing is asked for");
    let mut queue: Queue<Raw, _> = raw.queue(0, 8, 2).expect("there is one");
    queue.start(&raw.driver_ok().expect("it is ready"));
    let pool = DmaPool::new(&windows, 2, PAGE_SIZE).expect("there is memory");
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
        let buffer = || pool.take().expect("it came back");
        let (mut input, mut output) = (buffer(), buffer());
        input.write_slice(&[BLANK; PAGE_SIZE], 0).expect("it fits");
        input
            .write_slice(&[u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat(), 0)
            .expect("it fits");
        output.write_slice(&[BLANK; PAGE_SIZE], 0).expect("it fits");
        assert!(queue.submit(Raw { input, input_len, output, output_len }).is_ok(), "{case:?}");
        queue.kick();
        let completion = queue.pop().expect("the ring is sound").expect("every request comes back");
        assert_eq!(completion.written, Some(written), "{case:?}");
        let mut bytes = [0; PAGE_SIZE];
        completion.buffers.output.read_slice(&mut bytes, 0).expect("it fits");
        assert_eq!(written.checked_sub(1).map(|at| bytes[at as usize]), answer, "{case:?}");
        assert!(bytes[written as usize..].iter().all(|byte| *byte == BLANK), "{case:?}");
        assert_eq!(raw.check(), Ok(()));
    }
    let quiet = raw.shut_down().expect("it resets");
    assert_eq!(queue.reclaim(&quiet).count(), 0);
    // A write that begins on the disk and ends beyond it wrote nothing.
    drop((queue, raw));
    let mut disk = start(&device, &windows);
    let buffer = pool.take().expect("it came back");
    disk.submit(Request::Read { sector: last, buffer, len: 512 }).expect("there is room");
    disk.kick();
    let mut bytes = [1; 512];
    let read = |done: Done| done.buffer.expect("a read has one").read_slice(&mut bytes, 0).expect("it fits");
    assert_eq!(disk.reap(read), Ok(1));
    assert_eq!(bytes, [0; 512]);
}

/// A buffer that is not for the device to write is not written, one that is not for it to read not read.
#[test_case]
fn directions_are_kept() {
    let (device, windows) = disk();
    let mut block = start(&device, &windows);
    let pool = |direction| DmaPool::new_for(&windows, 1, 512, direction).expect("there is memory");
    let (to_device, from_device) = (pool(Direction::ToDevice), pool(Direction::FromDevice));
    let mut one = |request| {
        block.submit(request).expect("there is room");
        block.kick();
        let mut answer = None;
        assert_eq!(block.reap(|done| answer = Some((done.result, done.buffer.expect("it has one")))), Ok(1));
        answer.expect("it was reaped")
    };
    for round in 0..3 {
        let mut buffer = to_device.take().expect("it came back");
        buffer.write_slice(&[7; 512], 0).expect("it fits");
        let (result, buffer) = one(Request::Write { sector: 0, buffer, len: 512 });
        assert_eq!(result, Ok(()), "round {round}");
        let (result, buffer) = one(Request::Read { sector: 1, buffer, len: 512 });
        assert_eq!(result, Err(RequestError::BadLength), "round {round}");
        let mut bytes = [0; 512];
        buffer.read_slice(&mut bytes, 0).expect("it fits");
        assert_eq!(bytes, [7; 512]);

        let buffer = from_device.take().expect("it came back");
        let (result, mut buffer) = one(Request::Read { sector: 0, buffer, len: 512 });
        buffer.read_slice(&mut bytes, 0).expect("it fits");
        assert_eq!((result, bytes), (Ok(()), [7; 512]), "round {round}");
        buffer.write_slice(&[8; 512], 0).expect("it fits");
        let (result, buffer) = one(Request::Write { sector: 0, buffer, len: 512 });
        assert_eq!(result, Err(RequestError::BadLength), "round {round}");
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

/// Tells the device, by a ring written by hand, to read sector 0 to `address..address + len`. Returns what it says it
/// wrote, and the status.
fn read_to(device: &Loopback<RamDisk>, windows: &DmaWindows, address: u64, len: u32) -> (u32, u8) {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    let mut transport = device.clone();
    transport.reset(windows, Duration::ZERO).expect("it resets");
    let region = windows.allocate(PAGE_SIZE).expect("there is memory");
    let at = |offset| region.address(offset).expect("it is inside");
    let bytes = region.as_volatile_slice();
    let tail = |len: u32, flags: u16, next: u16, offset| {
        let words = [len, u32::from(next) << 16 | u32::from(flags)];
        bytes.write_obj(words, offset).expect("it fits");
    };
    region.write_dma_addr(0, at(HEADER)).expect("its own");
    tail(16, NEXT, 1, 8);
    bytes.write_obj(address, 16).expect("it fits");
    tail(len, NEXT | WRITE, 2, 24);
    region.write_dma_addr(32, at(STATUS)).expect("its own");
    tail(1, WRITE, 0, 40);
    bytes.write_obj(1_u16, AVAILABLE + 2).expect("it fits");
    bytes.write_obj(0xff_u8, STATUS).expect("it fits");

    let accepted = status::ACKNOWLEDGE | status::DRIVER;
    transport.set_status(accepted);
    transport.start(&device.grant()).expect("it is the device's grant");
    transport.set_driver_features(1 << 32);
    transport.set_status(accepted | status::FEATURES_OK);
    let setup = QueueSetup { index: 0, size: 4, descriptors: at(0), driver: at(AVAILABLE), device: at(USED) };
    transport.set_up_queue(windows, &setup).expect("the rings are in a window");
    transport.set_status(accepted | status::FEATURES_OK | status::DRIVER_OK);
    device.poll();
    assert_eq!(bytes.read_obj::<u16>(USED + 2), Ok(1), "the request came back");
    transport.reset(windows, Duration::ZERO).expect("it resets");
    (bytes.read_obj(USED + 8).expect("it fits"), bytes.read_obj(STATUS).expect("it fits"))
}

/// An address that is in no window, though it is memory, or not all of it, fails the request; nothing is written.
#[test_case]
fn nothing_outside_the_windows_is_written() {
    let (device, windows) = disk();
    let mut private = space().allocate(2, Protection::ReadWrite).expect("there is memory");
    private.as_slice_mut::<u8>(0, 2 * PAGE_SIZE).expect("it is writable").fill(0xa5);
    let own = windows.allocate(PAGE_SIZE).expect("there is memory");
    let foreign = DmaWindows::new(&KERNEL, CARD).allocate(PAGE_SIZE).expect("there is memory");
    let place = |region: &DmaRegion| physical(region.as_volatile_slice().as_ptr().addr().get() as u64);
    let (own_at, foreign_at) = (place(&own).expect("mapped"), place(&foreign).expect("mapped"));

    let read = |address, len| read_to(&device, &windows, address, len);
    assert_eq!(read(own_at, 512), (513, 0), "the test itself can tell");
    let private_at = physical(address(&private)).expect("it is mapped");
    for at in [
        private_at,
        private_at + PAGE_SIZE as u64,
        foreign_at,
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
    assert_eq!(foreign.as_volatile_slice().read_obj::<[u8; PAGE_SIZE]>(0), Ok([0; PAGE_SIZE]));
    assert_sound();
}

/// Rings outside the windows are refused when they are set up, and end the device when they go away.
#[test_case]
fn rings_must_be_in_the_windows() {
    let (device, windows) = disk();
    let mut transport = device.clone();
    let foreign = DmaWindows::new(&KERNEL, CARD).allocate(PAGE_SIZE).expect("there is memory");
    let own = windows.allocate(PAGE_SIZE).expect("there is memory");
    let at = |offset| own.address(offset).expect("it is inside");
    let good = QueueSetup { index: 0, size: 4, descriptors: at(0), driver: at(AVAILABLE), device: at(USED) };
    let bad = [
        QueueSetup { descriptors: foreign.address(0).expect("it is inside"), ..good },
        QueueSetup { device: foreign.address(0).expect("it is inside"), ..good },
        QueueSetup { device: at(PAGE_SIZE - 4), ..good },
        QueueSetup { descriptors: at(8), ..good },
        QueueSetup { size: 3, ..good },
        QueueSetup { size: 0, ..good },
    ];
    for setup in bad {
        assert_eq!(transport.set_up_queue(&windows, &setup).err(), Some(Error::QueueRefused(0)), "{setup:?}");
    }
    let beyond = QueueSetup { index: 1, ..good };
    assert_eq!(transport.set_up_queue(&windows, &beyond).err(), Some(Error::QueueUnavailable(1)));
    assert!(transport.set_up_queue(&windows, &good).is_ok());
    assert_eq!(transport.set_up_queue(&windows, &good).err(), Some(Error::QueueUnavailable(0)));
    transport.start(&device.grant()).expect("it is the device's grant");
    transport.set_driver_features(1 << 32);
    let running = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    transport.set_status(running);
    device.poll();
    assert_eq!(transport.status(), running);
    drop(own);
    assert_eq!(windows.usage(), (0, PAGE_SIZE), "the device was told of it");
    device.poll();
    assert_eq!(transport.status(), running | status::NEEDS_RESET);
    assert_eq!(transport.reset(&windows, Duration::ZERO), Ok(()));
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
            block.submit(Request::Read { sector, buffer, len: SECTOR_SIZE }).expect("there is room");
        }
        block.kick();
        assert_eq!((block.reap(drop), pool.available()), (Ok(0), 0), "the device is held");
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
