//! Both sides of the rings, split and packed, as they are, in every interleaving that loom finds: what one
//! side publishes the other sees whole, and neither sleeps while the other has something for it. Runs with
//! `--cfg ringfence_loom` only.
#![cfg(ringfence_loom)]

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use loom::model::Builder;
use loom::thread;
use ringfence_device_side::chain::{ReadableChain, WritableChain};
use ringfence_device_side::queue::{Position, RingMemory};
use ringfence_drivers::virtio::features::{EVENT_IDX, IN_ORDER, RING_PACKED, VERSION_1};
use ringfence_drivers::virtio::{BufferList, Device, DeviceType, Queue, QueueOptions};
use ringfence_memory::{DmaBuf, DmaPool, DmaSnapshot, DmaWindows, fuchsia::DeviceRange};
use ringfence_testkit::bench::no_controls;
use ringfence_testkit::shadow::{Cover, cover};
use ringfence_testkit::{Fake, FakeNotifier, FakeTransport, grant};

/// Bytes of a question and of its answer.
const LEN: usize = 4;

struct Rig {
    queue: Queue<BufferList, FakeNotifier>,
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
    features: u64,
    size: u16,
    areas: [u64; 3],
    interrupts: Arc<AtomicUsize>,
}

impl Rig {
    /// A queue for one chain less one descriptor.
    fn new(features: u64) -> Self {
        let size = if features & RING_PACKED != 0 { 3 } else { 2 };
        let fake = Fake::new(DeviceType(42), VERSION_1 | features, vec![], &[size]);
        let windows = fake.windows();
        let offer = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
        let mut device = offer.negotiate(features).unwrap();
        assert_eq!(device.features(), VERSION_1 | features);
        let options = QueueOptions { size, chains: 1, segments: 2, longest: 2 };
        let mut queue = device.queue(0, &options, size, no_controls).unwrap();
        queue.start(&device.driver_ok().unwrap());
        let pool = DmaPool::new(&windows, 2, LEN).unwrap();
        let registers = fake.model().queues[0];
        let areas = [registers.descriptors, registers.driver, registers.device];
        let side = Side { windows, features, size, areas, interrupts: Arc::default() };

        let (readable, writable) = (side.windows.readable().unwrap(), side.windows.writable().unwrap());
        let buffers: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        let rings = match side.memory(&readable, &writable) {
            RingMemory::Split(memory) => vec![memory.desc, memory.avail, memory.used],
            RingMemory::Packed(memory) => vec![memory.desc, memory.driver_event, memory.device_event],
        };
        let slices = rings.iter().map(DeviceRange::as_volatile_slice);
        let slices: Vec<_> = slices.chain(buffers.iter().map(DmaBuf::as_volatile_slice)).collect();
        let cover = cover(&slices);
        drop(slices);
        drop(buffers);
        Self { queue, pool, fake, side, _device: device, _cover: cover }
    }

    /// The driver asks.
    fn ask(&mut self, question: u32) {
        let [mut to_read, to_write] = [(); 2].map(|()| self.pool.take().unwrap());
        to_read.write_slice(&question.to_le_bytes(), 0).unwrap();
        let chain = BufferList::new(0, vec![to_read], vec![to_write], LEN as u32);
        assert!(self.queue.submit(chain).is_ok());
        self.queue.kick();
    }

    /// The driver looks for an answer.
    fn answer(&mut self) -> Option<u32> {
        let completion = self.queue.pop().unwrap()?;
        assert_eq!(completion.written, Some(LEN as u32));
        let mut answer = [0; LEN];
        completion.buffers.buffers()[1][0].read_slice(&mut answer, 0).unwrap();
        Some(u32::from_le_bytes(answer))
    }
}

impl Side {
    fn memory<'v>(&self, readable: &'v DmaSnapshot, writable: &'v DmaSnapshot) -> RingMemory<'v> {
        let packed = self.features & RING_PACKED != 0;
        RingMemory::find([readable, writable], packed, self.size, self.areas).unwrap()
    }

    fn start(&self) -> Position {
        if self.features & RING_PACKED != 0 { Position::PACKED } else { Position::SPLIT }
    }

    /// The device looks once, and answers what it finds, which must be `expected`, with 1 more. Before that
    /// it may ask for notifications, or for none.
    fn serve(&self, position: &mut Position, expected: u32, notifications: Option<bool>) -> bool {
        let (readable, writable) = (self.windows.readable().unwrap(), self.windows.writable().unwrap());
        let interrupt = || {
            self.interrupts.fetch_add(1, Relaxed);
        };
        let queue = self.memory(&readable, &writable).queue(interrupt).unwrap();
        let queue = queue.with_features(self.features).resume(*position).unwrap();
        if let Some(on) = notifications {
            queue.set_notifications(on);
        }
        let chain = if notifications == Some(false) { None } else { queue.next_chain().unwrap() };
        let served = chain.is_some();
        if let Some(chain) = chain {
            let (mut input, mut question) = (ReadableChain::new(chain, &readable), [0; LEN]);
            assert_eq!(input.read(&mut question).unwrap(), LEN);
            assert_eq!(u32::from_le_bytes(question), expected, "the question is there, as a whole");
            let mut output = WritableChain::from_readable(input, &writable).unwrap();
            assert_eq!(output.write(&(expected + 1).to_le_bytes()).unwrap(), LEN);
            output.return_complete().unwrap();
        }
        *position = queue.position();
        served
    }
}

/// Explores `model` with every kind of ring; with `preemptions`, no schedule that takes a thread away more
/// often than that from where it would go on.
fn each(features: &[u64], preemptions: Option<usize>, model: impl Fn(u64) + Copy + Send + Sync + 'static) {
    for &features in features {
        let mut builder = Builder::new();
        builder.preemption_bound = preemptions;
        builder.check(move || model(features));
    }
}

const PLAIN: [u64; 2] = [0, RING_PACKED];
const ORDERED: [u64; 4] = [0, RING_PACKED, IN_ORDER, RING_PACKED | IN_ORDER];
const EVENTS: [u64; 4] = [0, RING_PACKED, EVENT_IDX, RING_PACKED | EVENT_IDX];

#[test]
fn what_is_published_is_seen_whole() {
    each(&ORDERED, None, |features| {
        let mut rig = Rig::new(features);
        let side = rig.side.clone();
        let device = thread::spawn(move || {
            let mut position = side.start();
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
    each(&PLAIN, Some(3), |features| {
        let mut rig = Rig::new(features);
        let side = rig.side.clone();
        let device = thread::spawn(move || {
            let mut position = side.start();
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
    each(&EVENTS, None, |features| {
        let mut rig = Rig::new(features);
        let mut position = rig.side.start();
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
    each(&EVENTS, None, |features| {
        let mut rig = Rig::new(features);
        rig.queue.disable_interrupts();
        rig.ask(7);
        let side = rig.side.clone();
        let device = thread::spawn(move || assert!(side.serve(&mut side.start(), 7, None)));
        // The driver goes to sleep.
        let seen = rig.queue.enable_interrupts();
        device.join().unwrap();
        assert!(seen || rig.side.interrupts.load(Relaxed) == 1, "the driver sleeps, and nobody wakes it");
    });
}
