//! Both sides of the split ring, as they are, in every interleaving that loom finds: what one side publishes the other
//! sees whole, and neither sleeps while the other has something for it. Runs with `--cfg ringfence_loom` only.
#![cfg(ringfence_loom)]

#[path = "../../drivers/tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};

use loom::thread;
use ringfence_drivers::virtio::device_side::chain::{ReadableChain, WritableChain};
use ringfence_drivers::virtio::device_side::queue::{
    DriverNotify, PackedMemory, Position, Queue as DeviceQueue, QueueMemory,
};
use ringfence_drivers::virtio::device_side::ring;
use ringfence_drivers::virtio::{Buffers, Device, DeviceType, Part, Queue, features};
use ringfence_memory::shadow::{Cover, cover};
use ringfence_memory::{
    AtomicAccess, Bytes, DeviceRange, DmaBuf, DmaPool, DmaRegion, DmaSnapshot, DmaWindows, DriverMem,
    DriverRange, fence,
};
use support::{Fake, FakeNotifier, FakeTransport, grant};

/// Bytes of a question and of its answer.
const LEN: usize = 4;

struct Item {
    question: DmaBuf,
    answer: DmaBuf,
}

impl Buffers for Item {
    fn part(&self, index: u16) -> Option<Part> {
        match index {
            0 => Part::readable(&self.question, 0, LEN),
            1 => Part::writable(&self.answer, 0, LEN),
            _ => None,
        }
    }

    fn least_written(&self) -> u32 {
        LEN as u32
    }

    fn abandon(self) {
        self.question.abandon();
        self.answer.abandon();
    }
}

struct Rig {
    queue: Queue<Item, FakeNotifier>,
    pool: DmaPool,
    fake: Fake,
    side: Side,
    _device: Device<FakeTransport>,
    _cover: Cover,
}

/// The device's side: all that its thread needs.
#[derive(Clone)]
struct Side {
    windows: DmaWindows,
    size: u16,
    addresses: [u64; 3],
    interrupts: Arc<AtomicUsize>,
}

fn at(view: &DmaSnapshot, address: u64, len: usize) -> DeviceRange<'_> {
    view.translate(DriverRange::try_from((address, len as u32)).unwrap()).unwrap()
}

impl Rig {
    fn new(size: u16) -> Self {
        let fake = Fake::new(DeviceType(42), features::VERSION_1, vec![], &[size]);
        let windows = fake.windows();
        let mut device = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
        device.negotiate(0).unwrap();
        let mut queue = device.queue(0, size, size).unwrap();
        queue.start(&device.driver_ok().unwrap());
        let pool = DmaPool::new(&windows, usize::from(size), LEN).unwrap();
        let registers = fake.model().queues[0];
        let addresses = [registers.descriptors, registers.driver, registers.device];
        let side = Side { windows, size, addresses, interrupts: Arc::default() };

        let (readable, writable) = (side.windows.readable(), side.windows.writable());
        let memory = side.memory(&readable, &writable);
        let buffers: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        let mut slices: Vec<_> =
            [memory.desc, memory.avail, memory.used].iter().map(DeviceRange::as_volatile_slice).collect();
        slices.extend(buffers.iter().map(DmaBuf::as_volatile_slice));
        let cover = cover(&slices);
        drop(slices);
        drop(buffers);
        Self { queue, pool, fake, side, _device: device, _cover: cover }
    }

    /// The driver asks.
    fn ask(&mut self, question: u32) {
        let mut item = Item { question: self.pool.take().unwrap(), answer: self.pool.take().unwrap() };
        item.question.write_slice(&question.to_le_bytes(), 0).unwrap();
        assert!(self.queue.submit(item).is_ok());
        self.queue.kick();
    }

    /// The driver looks for an answer.
    fn answer(&mut self) -> Option<u32> {
        let completion = self.queue.pop().unwrap()?;
        assert_eq!(completion.written, Some(LEN as u32));
        let mut answer = [0; LEN];
        completion.buffers.answer.read_slice(&mut answer, 0).unwrap();
        Some(u32::from_le_bytes(answer))
    }
}

impl Side {
    fn memory<'v>(&self, readable: &'v DmaSnapshot, writable: &'v DmaSnapshot) -> QueueMemory<'v> {
        let [desc, avail, used] = self.addresses;
        QueueMemory {
            desc: at(readable, desc, 16 * usize::from(self.size)),
            avail: at(readable, avail, ring::Driver::avail_len_for_queue_size(self.size)),
            used: at(writable, used, ring::Device::used_len_for_queue_size(self.size)),
        }
    }

    /// The device looks once, and answers what it finds, which must be `expected`, with 1 more. Before that it may ask
    /// for notifications, or for none.
    fn serve(&self, position: &mut Position, expected: u32, notifications: Option<bool>) -> bool {
        let (readable, writable) = (self.windows.readable(), self.windows.writable());
        let interrupt = || {
            self.interrupts.fetch_add(1, Relaxed);
        };
        let queue = DeviceQueue::new(self.memory(&readable, &writable), interrupt).unwrap();
        let queue = queue.resume(*position).unwrap();
        if let Some(on) = notifications {
            queue.set_notifications(on);
        }
        serve(&queue, &readable, &writable, position, expected)
    }
}

fn serve<N: DriverNotify>(
    queue: &DeviceQueue<'_, N>,
    readable: &DmaSnapshot,
    writable: &DmaSnapshot,
    position: &mut Position,
    expected: u32,
) -> bool {
    let chain = queue.next_chain().unwrap();
    let served = chain.is_some();
    if let Some(chain) = chain {
        let (mut input, mut question) = (ReadableChain::new(chain, readable), [0; LEN]);
        assert_eq!(input.read(&mut question).unwrap(), LEN);
        assert_eq!(u32::from_le_bytes(question), expected, "the question is there, as a whole");
        let mut output = WritableChain::from_readable(input, writable).unwrap();
        assert_eq!(output.write(&(expected + 1).to_le_bytes()).unwrap(), LEN);
        output.return_complete().unwrap();
    }
    *position = queue.position();
    served
}

#[test]
fn what_is_published_is_seen_whole() {
    loom::model(|| {
        let mut rig = Rig::new(2);
        let side = rig.side.clone();
        let device = thread::spawn(move || {
            let mut position = Position::SPLIT;
            let served = side.serve(&mut position, 0x1234_5678, None);
            (served, position)
        });
        rig.ask(0x1234_5678);
        let early = rig.answer();
        let (served, mut position) = device.join().unwrap();
        assert!(served || early.is_none());
        if !served {
            assert!(rig.side.serve(&mut position, 0x1234_5678, None), "now it must be there");
        }
        assert_eq!(early.or_else(|| rig.answer()), Some(0x1234_5679));
    });
}

#[test]
fn a_slot_is_not_reused_too_early() {
    loom::model(|| {
        let mut rig = Rig::new(2);
        let side = rig.side.clone();
        let device = thread::spawn(move || {
            let mut position = Position::SPLIT;
            for question in [0x1111_2222, 0x3333_4444] {
                while !side.serve(&mut position, question, None) {
                    thread::yield_now();
                }
            }
        });
        for question in [0x1111_2222, 0x3333_4444] {
            rig.ask(question);
            loop {
                if let Some(answer) = rig.answer() {
                    assert_eq!(answer, question + 1);
                    break;
                }
                thread::yield_now();
            }
        }
        device.join().unwrap();
    });
}

#[test]
fn no_kick_is_lost() {
    loom::model(|| {
        let mut rig = Rig::new(2);
        let mut position = Position::SPLIT;
        assert!(!rig.side.serve(&mut position, 0, Some(false)));
        let side = rig.side.clone();
        // The device goes to sleep: asks for notifications, and looks once more.
        let device = thread::spawn(move || side.serve(&mut position, 7, Some(true)));
        rig.ask(7);
        let seen = device.join().unwrap();
        assert!(seen || rig.fake.kicks(0) == 1, "the device sleeps, and nobody wakes it");
    });
}

#[test]
fn no_interrupt_is_lost() {
    loom::model(|| {
        let mut rig = Rig::new(2);
        rig.queue.disable_interrupts();
        rig.ask(7);
        let side = rig.side.clone();
        let device = thread::spawn(move || assert!(side.serve(&mut { Position::SPLIT }, 7, None)));
        // The driver goes to sleep.
        let seen = rig.queue.enable_interrupts();
        device.join().unwrap();
        assert!(seen || rig.side.interrupts.load(Relaxed) == 1, "the driver sleeps, and nobody wakes it");
    });
}

/// A driver of two descriptors with VIRTIO_F_EVENT_IDX, split or packed, written from the specification for this test.
/// It publishes one chain: a question and room for its answer.
struct Hand {
    region: DmaRegion,
    side: HandSide,
    _cover: Cover,
}

#[derive(Clone)]
struct HandSide {
    windows: DmaWindows,
    packed: bool,
    base: u64,
    interrupts: Arc<AtomicUsize>,
}

const SIZE: usize = 2;
/// Where in the region the driver's area, the device's area and the buffers are.
const DRIVER: usize = 32;
const DEVICE: usize = 48;
const QUESTION: usize = 72;
const ANSWER: usize = 76;
/// Of packed descriptors.
const AVAIL_FLAG: u16 = 1 << 7;
const USED_FLAG: u16 = 1 << 15;
const WRAP: u16 = 1 << 15;

impl Hand {
    fn new(packed: bool) -> Self {
        let windows = DmaWindows::new(support::platform(), support::ID);
        let region = windows.allocate(4096).unwrap();
        let base = windows.publish(region.address(0).unwrap()).unwrap().0;
        let memory = region.as_volatile_slice();
        // The device does not want to be notified yet: at the other slot, if at all.
        let event = if packed { DEVICE } else { DEVICE + 4 + 8 * SIZE };
        memory.write_obj([1_u16.to_le(), 2_u16.to_le()], event).unwrap();
        let cover = cover(&[memory.subslice(0, 80).unwrap()]);
        Self { region, side: HandSide { windows, packed, base, interrupts: Arc::default() }, _cover: cover }
    }

    fn put<T: AtomicAccess>(&self, value: T, at: usize, order: Ordering) {
        self.region.as_volatile_slice().store(value, at, order).unwrap();
    }

    fn get<T: AtomicAccess>(&self, at: usize, order: Ordering) -> T {
        self.region.as_volatile_slice().load(at, order).unwrap()
    }

    /// Publishes the chain, and says whether the device wants to be notified.
    fn ask(&self, question: u32) -> bool {
        self.put(question.to_le(), QUESTION, Relaxed);
        let (next, write) = (1_u16, 2_u16);
        let desc = |index: usize, buffer: usize| {
            self.put((self.side.base + buffer as u64).to_le(), 16 * index, Relaxed);
            self.put((LEN as u32).to_le(), 16 * index + 8, Relaxed);
        };
        desc(0, QUESTION);
        desc(1, ANSWER);
        let event = if self.side.packed {
            self.put(5_u16, 16 + 12, Relaxed);
            self.put(write | AVAIL_FLAG, 16 + 14, Relaxed);
            self.put(5_u16, 12, Relaxed);
            self.put(next | AVAIL_FLAG, 14, Release);
            fence(SeqCst);
            match self.get::<u16>(DEVICE + 2, Acquire) {
                2 => self.get::<u16>(DEVICE, Relaxed) & !WRAP,
                flags => return flags == 0,
            }
        } else {
            self.put(next, 12, Relaxed);
            self.put(1_u16, 14, Relaxed);
            self.put(write, 16 + 12, Relaxed);
            self.put(0_u16, DRIVER + 4, Relaxed);
            self.put(1_u16, DRIVER + 2, Release);
            fence(SeqCst);
            self.get(DEVICE + 4 + 8 * SIZE, Relaxed)
        };
        event == 0
    }

    /// What the device says of interrupts now: none, or one when the chain is used.
    fn want_interrupt(&self, wanted: bool) {
        // An event that has passed is as good as none.
        match (self.side.packed, wanted) {
            (true, true) => {
                self.put(WRAP, DRIVER, Relaxed);
                self.put(2_u16, DRIVER + 2, Release);
            }
            (true, false) => self.put(1_u16, DRIVER + 2, Release),
            (false, _) => self.put(if wanted { 0 } else { 77_u16 }, DRIVER + 4 + 2 * SIZE, Relaxed),
        }
        fence(SeqCst);
    }

    fn answer(&self) -> Option<u32> {
        let (used, len) = if self.side.packed {
            let both = AVAIL_FLAG | USED_FLAG;
            (self.get::<u16>(14, Acquire) & both == both, 8)
        } else {
            (self.get::<u16>(DEVICE + 2, Acquire) == 1, DEVICE + 8)
        };
        used.then(|| {
            assert_eq!(self.get::<u32>(len, Relaxed), LEN as u32);
            self.get(ANSWER, Relaxed)
        })
    }
}

impl HandSide {
    /// As [`Side::serve`].
    fn serve(&self, position: &mut Position, expected: u32) -> bool {
        let (readable, writable) = (self.windows.readable(), self.windows.writable());
        let read = |offset: usize, len| at(&readable, self.base + offset as u64, len);
        let write = |offset: usize, len| at(&writable, self.base + offset as u64, len);
        let interrupt = || {
            self.interrupts.fetch_add(1, Relaxed);
        };
        let queue = if self.packed {
            let (desc, desc_used) = (read(0, 16 * SIZE), write(0, 16 * SIZE));
            let (driver_event, device_event) = (read(DRIVER, 4), write(DEVICE, 4));
            DeviceQueue::new_packed(PackedMemory { desc, desc_used, driver_event, device_event }, interrupt)
        } else {
            let (avail, used) = (read(DRIVER, 6 + 2 * SIZE), write(DEVICE, 6 + 8 * SIZE));
            DeviceQueue::new(QueueMemory { desc: read(0, 16 * SIZE), avail, used }, interrupt)
        };
        let queue = queue.unwrap().with_features(features::EVENT_IDX).resume(*position).unwrap();
        serve(&queue, &readable, &writable, position, expected)
    }

    fn start(&self) -> Position {
        if self.packed { Position::PACKED } else { Position::SPLIT }
    }
}

fn with_events(packed: bool) {
    loom::model(move || {
        let hand = Hand::new(packed);
        let side = hand.side.clone();
        let device = thread::spawn(move || {
            let mut position = side.start();
            (side.serve(&mut position, 7), position)
        });
        let kick = hand.ask(7);
        let early = hand.answer();
        let (seen, mut position) = device.join().unwrap();
        assert!(seen || kick, "the device sleeps, and nobody wakes it");
        if !seen {
            assert!(hand.side.serve(&mut position, 7));
        }
        assert_eq!(early.or_else(|| hand.answer()), Some(8));
    });
    loom::model(move || {
        let hand = Hand::new(packed);
        hand.want_interrupt(false);
        hand.ask(7);
        let side = hand.side.clone();
        let device = thread::spawn(move || assert!(side.serve(&mut side.start(), 7)));
        hand.want_interrupt(true);
        let seen = hand.answer();
        device.join().unwrap();
        let woken = hand.side.interrupts.load(Relaxed) > 0;
        assert!(woken || seen == Some(8), "the driver sleeps, and nobody wakes it");
    });
}

#[test]
fn nothing_is_lost_with_events() {
    with_events(false);
}

#[test]
fn nothing_is_lost_in_a_packed_ring() {
    with_events(true);
}
