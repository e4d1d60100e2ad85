//! Both sides of the split ring, as they are, in every interleaving that loom finds: what one side publishes the other
//! sees whole, and neither sleeps while the other has something for it. Runs with `--cfg ringfence_loom` only.
#![cfg(ringfence_loom)]

#[path = "../../drivers/tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use loom::thread;
use ringfence_drivers::virtio::device_side::chain::{ReadableChain, WritableChain};
use ringfence_drivers::virtio::device_side::queue::{Position, Queue as DeviceQueue, QueueMemory};
use ringfence_drivers::virtio::device_side::ring;
use ringfence_drivers::virtio::{Buffers, Device, DeviceType, Part, Queue, features};
use ringfence_memory::shadow::{Cover, cover};
use ringfence_memory::{
    Bytes, DeviceRange, DmaBuf, DmaPool, DmaSnapshot, DmaWindows, DriverMem, DriverRange,
};
use support::{Fake, FakeNotifier, FakeTransport, grant};

/// Bytes of a question and of its answer.
const LEN: usize = 4;

/// Interleavings with up to so many preemptions are tried.
const PREEMPTIONS: usize = 3;

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
        drop((slices, buffers));
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

    /// The device answers what there is: the next expected question, plus 1. `before` comes first.
    fn serve(&self, position: &mut Position, expected: u32, armed: Option<bool>) -> bool {
        let (readable, writable) = (self.windows.readable(), self.windows.writable());
        let interrupt = || {
            self.interrupts.fetch_add(1, Relaxed);
        };
        let queue = DeviceQueue::new(self.memory(&readable, &writable), interrupt).unwrap();
        let queue = queue.resume(*position).unwrap();
        if let Some(on) = armed {
            queue.set_notifications(on);
        }
        let served = match queue.next_chain().unwrap() {
            None => false,
            Some(chain) => {
                let (mut input, mut question) = (ReadableChain::new(chain, &readable), [0; LEN]);
                assert_eq!(input.read(&mut question).unwrap(), LEN);
                assert_eq!(u32::from_le_bytes(question), expected, "the question is there, as a whole");
                let mut output = WritableChain::from_readable(input, &writable).unwrap();
                assert_eq!(output.write(&(expected + 1).to_le_bytes()).unwrap(), LEN);
                output.return_complete().unwrap();
                true
            }
        };
        *position = queue.position();
        served
    }
}

fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(test);
}

#[test]
fn what_is_published_is_seen_whole() {
    model(|| {
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
    model(|| {
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
    model(|| {
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
    model(|| {
        let mut rig = Rig::new(2);
        rig.queue.disable_interrupts();
        rig.ask(7);
        let side = rig.side.clone();
        let device = thread::spawn(move || assert!(side.serve(&mut Position::SPLIT.clone(), 7, None)));
        // The driver goes to sleep.
        let seen = rig.queue.enable_interrupts();
        device.join().unwrap();
        assert!(seen || rig.side.interrupts.load(Relaxed) == 1, "the driver sleeps, and nobody wakes it");
    });
}
