//! The packed ring with the two ends of `hyperlight-common`: its producer in front of our device side, and its
//! consumer behind the fake driver that our own tests of the device side use.
#![cfg(not(ringfence_loom))]

mod common;
#[path = "../../drivers/tests/support/fake_queue.rs"]
mod fake_queue;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Release};

use common::noise;
use fake_queue::{Arena, ChainBuilder, FakeQueue};
use hyperlight_common::virtq::{
    BufferChain, BufferChainBuilder, BufferElement, Layout, MemOps, RingConsumer, RingError, RingProducer,
};
use proptest::prelude::*;
use ringfence_drivers::virtio::device_side::chain::{ReadableChain, WritableChain};
use ringfence_drivers::virtio::device_side::queue::{DescChain, DriverNotify, PackedMemory, Queue};
use ringfence_drivers::virtio::features::EVENT_IDX;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::{
    Bytes, DeviceId, DeviceRange, Direction, DmaRegion, DmaSnapshot, DmaWindows, DriverMem, DriverRange,
    VolatileError,
};

const SLOT: usize = 64;

/// Shared memory, by device address.
trait Shared {
    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), VolatileError>;
    fn write(&self, address: u64, from: &[u8]) -> Result<(), VolatileError>;
    fn load(&self, address: u64) -> Result<u16, VolatileError>;
    fn store(&self, address: u64, value: u16) -> Result<(), VolatileError>;
}

struct Memory<S>(S);

// SAFETY: `Shared` refuses what is not in it, and gives out no slices.
unsafe impl<S: Shared> MemOps for Memory<S> {
    type Error = VolatileError;

    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), VolatileError> {
        self.0.read(address, to)
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), VolatileError> {
        self.0.write(address, from)
    }

    fn load_acquire(&self, address: u64) -> Result<u16, VolatileError> {
        self.0.load(address)
    }

    fn store_release(&self, address: u64, value: u16) -> Result<(), VolatileError> {
        self.0.store(address, value)
    }

    unsafe fn as_slice(&self, _: u64, _: usize) -> Result<&[u8], VolatileError> {
        Err(VolatileError::NotPermitted)
    }

    unsafe fn as_mut_slice(&self, _: u64, _: usize) -> Result<&mut [u8], VolatileError> {
        Err(VolatileError::NotPermitted)
    }
}

/// A region and the address of its first byte.
struct Block {
    region: DmaRegion,
    base: u64,
}

impl Block {
    fn new(windows: &DmaWindows, len: usize, direction: Direction) -> Self {
        let region = windows.allocate_for(len, direction).unwrap();
        let base = windows.publish(region.address(0).unwrap()).unwrap().0;
        Self { region, base }
    }

    fn offset(&self, address: u64) -> Result<usize, VolatileError> {
        address.checked_sub(self.base).map(|offset| offset as usize).ok_or(VolatileError::OutOfBounds)
    }
}

impl Shared for Rc<Block> {
    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), VolatileError> {
        self.region.as_volatile_slice().read_slice(to, self.offset(address)?)
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), VolatileError> {
        self.region.as_volatile_slice().write_slice(from, self.offset(address)?)
    }

    fn load(&self, address: u64) -> Result<u16, VolatileError> {
        self.region.as_volatile_slice().load(self.offset(address)?, Acquire)
    }

    fn store(&self, address: u64, value: u16) -> Result<(), VolatileError> {
        self.region.as_volatile_slice().store(value, self.offset(address)?, Release)
    }
}

impl Shared for &Arena {
    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), VolatileError> {
        to.copy_from_slice(&Arena::read(self, address, to.len()));
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), VolatileError> {
        Arena::write(self, address, from);
        Ok(())
    }

    fn load(&self, address: u64) -> Result<u16, VolatileError> {
        Ok(self.get16(address))
    }

    fn store(&self, address: u64, value: u16) -> Result<(), VolatileError> {
        self.put16(address, value);
        Ok(())
    }
}

/// `None` if there is nothing now.
fn polled<T>(result: Result<T, RingError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(RingError::WouldBlock) => None,
        Err(error) => panic!("{error}"),
    }
}

fn layout(base: u64, size: u16) -> Layout {
    // SAFETY: the memory behind it checks every access.
    unsafe { Layout::from_base(base, NonZeroU16::new(size).unwrap()) }.unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    /// Lengths of the readable and the writable parts.
    Submit(Vec<usize>, Vec<usize>),
    Take,
    /// The device returns one of the chains that it holds, with a part of what it may write.
    Return(usize, usize),
    Reap,
    /// The driver asks for an interrupt for every chain, for none, or for the next one.
    Interrupts(Interrupts),
    /// The device is busy, or sleeps.
    Notifications(bool),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Interrupts {
    All,
    None,
    Next,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lens = || prop::collection::vec(1..=SLOT, 0..4);
    let interrupts = prop::sample::select(&[Interrupts::All, Interrupts::None, Interrupts::Next][..]);
    let step = prop_oneof![
        6 => (lens(), lens()).prop_map(|(readable, writable)| Step::Submit(readable, writable)),
        6 => Just(Step::Take),
        6 => (0..1000_usize, 0..1000_usize).prop_map(|(which, len)| Step::Return(which, len)),
        4 => Just(Step::Reap),
        1 => interrupts.prop_map(Step::Interrupts),
        1 => any::<bool>().prop_map(Step::Notifications),
    ];
    prop::collection::vec(step, 1..300)
}

/// A chain in flight: what to read, and where to write.
struct Flight {
    readable: Vec<u8>,
    slots: Vec<(bool, u64)>,
    writable: Vec<(u64, usize)>,
}

struct Producer {
    theirs: RingProducer<Memory<Rc<Block>>>,
    /// Memory for the device to read, and to write.
    blocks: [Rc<Block>; 2],
    free: [Vec<u64>; 2],
    flights: HashMap<u16, Flight>,
    seed: u64,
}

impl Producer {
    /// `None` if there is no room. Otherwise the id, and whether the device wants to be notified.
    fn submit(&mut self, readable: &[usize], writable: &[usize]) -> Option<(u16, bool)> {
        let count = readable.len() + writable.len();
        let room = self.free[0].len() >= readable.len() && self.free[1].len() >= writable.len();
        if count == 0 || !room || self.theirs.num_free() < count {
            return None;
        }
        let mut flight = Flight { readable: Vec::new(), slots: Vec::new(), writable: Vec::new() };
        let mut elements = [Vec::new(), Vec::new()];
        for (is_writable, &len) in
            readable.iter().map(|len| (false, len)).chain(writable.iter().map(|len| (true, len)))
        {
            let addr = self.free[usize::from(is_writable)].pop().unwrap();
            flight.slots.push((is_writable, addr));
            if is_writable {
                flight.writable.push((addr, len));
            } else {
                self.seed += 1;
                let data = noise(self.seed, len);
                self.blocks[0].write(addr, &data).unwrap();
                flight.readable.extend(data);
            }
            let element = BufferElement { addr, len: len as u32, writable: is_writable };
            elements[usize::from(is_writable)].push(element);
        }
        let [readable, writable] = elements;
        let builder = BufferChainBuilder::new().readables(readable);
        let chain = if writable.is_empty() { builder.build() } else { builder.writables(writable).build() };
        let result = self.theirs.submit_available_with_notify(&chain.unwrap()).unwrap();
        assert!(self.flights.insert(result.id, flight).is_none());
        Some((result.id, result.notify))
    }

    /// Takes what was used, and checks it against `returned`.
    fn reap(&mut self, returned: &mut VecDeque<(u16, Vec<u8>)>) {
        while let Some(used) = polled(self.theirs.poll_used()) {
            let (id, data) = returned.pop_front().expect("used out of nothing");
            assert_eq!((used.id, used.len), (id, data.len() as u32));
            let flight = self.flights.remove(&id).unwrap();
            let mut found = Vec::new();
            for (address, len) in flight.writable {
                let mut part = vec![0; len];
                self.blocks[1].read(address, &mut part).unwrap();
                found.extend(part);
            }
            assert!(found[..data.len()] == data);
            for (is_writable, address) in flight.slots {
                self.free[usize::from(is_writable)].push(address);
            }
        }
        assert_eq!(returned.len(), 0);
    }
}

fn at(view: &DmaSnapshot, address: u64, len: usize) -> DeviceRange<'_> {
    view.translate(DriverRange::try_from((address, len as u32)).unwrap()).unwrap()
}

/// Reads a chain, writes the first `part` of what it may write, and returns it. Gives what was written.
fn handle<N: DriverNotify>(
    chain: DescChain<'_, '_, N>,
    views: &[DmaSnapshot; 2],
    flight: &Flight,
    part: usize,
) -> Vec<u8> {
    let mut input = ReadableChain::new(chain, &views[0]);
    let mut bytes = vec![0; input.remaining().unwrap().bytes];
    assert_eq!(input.read(&mut bytes).unwrap(), bytes.len());
    assert!(bytes == flight.readable);
    let mut output = WritableChain::from_readable(input, &views[1]).unwrap();
    let room = output.remaining().unwrap().bytes;
    assert_eq!(room, flight.writable.iter().map(|(_, len)| len).sum::<usize>());
    let data = noise(room as u64, part % (room + 1));
    assert_eq!(output.write(&data).unwrap(), data.len());
    data
}

/// Our device side behind their producer.
fn behind_a_producer(size: u16, features: u64, steps: Vec<Step>) {
    let platform: &'static HostPlatform = Box::leak(Box::new(HostPlatform::new()));
    let windows = DmaWindows::new(platform, DeviceId(3));
    let n = usize::from(size);
    let ring = Rc::new(Block::new(&windows, 16 * n + 8, Direction::Both));
    let blocks = [Direction::ToDevice, Direction::FromDevice]
        .map(|direction| Rc::new(Block::new(&windows, n * SLOT, direction)));
    let free =
        [0, 1].map(|index: usize| (0..n).map(|slot| blocks[index].base + (slot * SLOT) as u64).collect());
    let theirs = RingProducer::new(layout(ring.base, size), Memory(ring.clone()));
    let mut producer = Producer { theirs, blocks, free, flights: HashMap::new(), seed: 0 };

    let views = [windows.readable(), windows.writable()];
    let memory = PackedMemory {
        desc: at(&views[0], ring.base, 16 * n),
        desc_used: at(&views[1], ring.base, 16 * n),
        driver_event: at(&views[0], ring.base + 16 * n as u64, 4),
        device_event: at(&views[1], ring.base + 16 * n as u64 + 4, 4),
    };
    let interrupts = Cell::new(0);
    let queue = Queue::new_packed(memory, || interrupts.set(interrupts.get() + 1)).unwrap();
    let queue = queue.with_features(features);
    // Submitted, by id; held by the device; returned to the driver.
    let (mut submitted, mut held, mut returned) = (VecDeque::new(), Vec::new(), VecDeque::new());
    let (mut wanted, mut busy, mut asleep) = (Interrupts::All, false, false);
    // From the next slot to use to that of the event, in two rounds of the ring.
    let mut ahead = 0;
    for step in steps {
        match step {
            Step::Submit(readable, writable) => {
                if let Some((id, notify)) = producer.submit(&readable, &writable) {
                    submitted.push_back(id);
                    // For a chain that fills the ring they never think that the event was passed.
                    let fills = features & EVENT_IDX != 0 && readable.len() + writable.len() == n;
                    assert!(notify || fills || !asleep, "the device sleeps, and nobody wakes it");
                    assert!(!notify || !busy, "the device is busy");
                    asleep &= !notify;
                }
            }
            Step::Take => match queue.next_chain().unwrap() {
                Some(chain) => {
                    assert_eq!(Some(chain.id()), submitted.pop_front());
                    asleep = false;
                    held.push(chain);
                }
                None => {
                    assert_eq!(submitted.len(), 0);
                    asleep = !busy;
                }
            },
            Step::Return(which, part) if !held.is_empty() => {
                let chain: DescChain<'_, '_, _> = held.swap_remove(which % held.len());
                let (id, before) = (chain.id(), interrupts.get());
                let flight = &producer.flights[&id];
                let data = handle(chain, &views, flight, part);
                returned.push_back((id, data));
                let expected = match wanted {
                    Interrupts::All => true,
                    Interrupts::None => false,
                    Interrupts::Next => ahead < flight.slots.len(),
                };
                ahead = (ahead + 2 * n - flight.slots.len()) % (2 * n);
                assert_eq!(interrupts.get() - before, i32::from(expected));
            }
            Step::Return(..) => {}
            Step::Reap => producer.reap(&mut returned),
            Step::Interrupts(Interrupts::Next) if features & EVENT_IDX == 0 => {}
            Step::Interrupts(now) => {
                producer.reap(&mut returned);
                (wanted, ahead) = (now, 0);
                match now {
                    Interrupts::All => producer.theirs.enable_used_notifications(),
                    Interrupts::None => producer.theirs.disable_used_notifications(),
                    Interrupts::Next => producer.theirs.enable_used_notifications_for_next(),
                }
                .unwrap();
            }
            Step::Notifications(on) => {
                queue.set_notifications(on);
                (busy, asleep) = (!on, false);
            }
        }
    }
    while let Some(chain) = queue.next_chain().unwrap() {
        held.push(chain);
    }
    for chain in held {
        returned.push_back((chain.id(), Vec::new()));
        drop(chain);
    }
    producer.reap(&mut returned);
    assert_eq!((producer.flights.len(), producer.theirs.num_free()), (0, n));
}

/// What their consumer finds in `chain`.
fn found(arena: &Arena, chain: &BufferChain) -> Vec<u8> {
    let parts = chain.readables().iter();
    parts.flat_map(|part| Arena::read(arena, part.addr, part.len as usize)).collect()
}

/// Our fake driver in front of their consumer.
fn before_a_consumer(size: u16, steps: Vec<Step>) {
    let arena = Arena::new(1 << 20);
    let mut fake = FakeQueue::new(&arena, true, size, 1 << 15);
    let layout = layout(fake.desc, size);
    assert_eq!((layout.drv_evt_addr(), layout.dev_evt_addr()), (fake.driver, fake.device));
    let mut theirs = RingConsumer::new(layout, Memory(&arena));
    let (mut submitted, mut held, mut returned) = (VecDeque::new(), Vec::new(), VecDeque::new());
    let mut seed = 0;
    let finish = (0..2 * usize::from(size)).map(|_| Step::Take);
    let finish = finish.chain((0..size).map(|_| Step::Return(0, 7)));
    for step in steps.into_iter().chain(finish).chain([Step::Reap]) {
        match step {
            Step::Submit(readable, writable) => {
                let mut chain = ChainBuilder::new(&arena);
                let mut bytes = Vec::new();
                for len in readable {
                    seed += 1;
                    bytes.extend(noise(seed, len));
                    chain = chain.readable(&noise(seed, len));
                }
                let room: usize = writable.iter().sum();
                chain = writable.into_iter().fold(chain, ChainBuilder::writable);
                if let Some(id) = fake.publish(chain.build()) {
                    submitted.push_back((id, bytes, room));
                }
            }
            Step::Take => match polled(theirs.poll_available()) {
                Some((id, chain)) => {
                    let (expected, bytes, room) = submitted.pop_front().expect("a chain out of nothing");
                    assert_eq!(id, expected);
                    assert!(found(&arena, &chain) == bytes);
                    let writable = chain.writables().iter().map(|part| part.len as usize);
                    assert_eq!(writable.sum::<usize>(), room);
                    held.push((id, chain, room));
                }
                None => assert_eq!(submitted.len(), 0),
            },
            Step::Return(which, part) if !held.is_empty() => {
                let (id, chain, room): (u16, BufferChain, usize) = held.swap_remove(which % held.len());
                let data = noise(id.into(), part % (room + 1));
                let mut rest = &data[..];
                for part in chain.writables() {
                    let (now, later) = rest.split_at(rest.len().min(part.len as usize));
                    Arena::write(&arena, part.addr, now);
                    rest = later;
                }
                let slot = fake.desc + 16 * u64::from(theirs.used_cursor().head());
                theirs.submit_used(id, data.len() as u32).unwrap();
                if !data.is_empty() {
                    // They leave out what our fake driver insists on (2.8.7).
                    arena.put16(slot + 14, arena.get16(slot + 14) | fake_queue::WRITE);
                }
                returned.push_back((id, data));
            }
            Step::Reap => {
                while let Some(used) = fake.next_used() {
                    let (id, data) = returned.pop_front().expect("used out of nothing");
                    assert_eq!((used.id, used.written as usize), (id, data.len()));
                    assert!(used.chain.writable(&arena)[..data.len()] == data);
                }
                assert_eq!(returned.len(), 0);
            }
            Step::Return(..) | Step::Interrupts(_) | Step::Notifications(_) => {}
        }
    }
    assert_eq!((submitted.len(), held.len(), fake.in_flight()), (0, 0, 0));
    assert_eq!((fake.free(), theirs.num_inflight()), (usize::from(size), 0));
}

fn sizes() -> impl Strategy<Value = u16> {
    (0_u32..7).prop_map(|shift| 1 << shift)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn our_device_behind_their_producer(
        size in sizes(),
        features in prop::sample::select(&[0, EVENT_IDX][..]),
        steps in steps(),
    ) {
        behind_a_producer(size, features, steps);
    }

    #[test]
    fn our_fake_driver_before_their_consumer(size in sizes(), steps in steps()) {
        before_a_consumer(size, steps);
    }
}
