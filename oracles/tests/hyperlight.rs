//! The packed ring with the two ends of `hyperlight-common`: its producer in front of our device side, and its
//! consumer behind our driver side, and behind the fake driver that our own tests of the device side use.
#![cfg(not(ringfence_loom))]

mod common;
#[path = "../../drivers/tests/support/fake_queue.rs"]
mod fake_queue;
#[path = "../../drivers/tests/support/mod.rs"]
mod support;

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
use ringfence_drivers::virtio::features::{EVENT_IDX, RING_PACKED, VERSION_1};
use ringfence_drivers::virtio::{Buffers, Device, DeviceType, Part, QueueError, QueueOptions};
use ringfence_memory::host::HostPlatform;
use ringfence_memory::{
    Bytes, DeviceId, DeviceRange, Direction, DmaBuf, DmaPool, DmaRegion, DmaSnapshot, DmaWindows, DriverMem,
    DriverRange, VolatileError,
};
use support::{Fake, grant};

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

/// A device's view of its driver's memory, in which the three areas of the ring are where `layout` puts them.
#[derive(Clone, Copy)]
struct Behind {
    platform: &'static HostPlatform,
    desc: u64,
    driver: u64,
    device: u64,
    size: u16,
}

impl Behind {
    /// Nobody's device address.
    const BASE: u64 = 0x7f00_0000_0000;

    fn at(&self, address: u64, len: usize) -> Result<ringfence_memory::host::HostBytes, VolatileError> {
        let events = Self::BASE + 16 * u64::from(self.size);
        let place = match address {
            address if address < Self::BASE => address,
            address if address < events => self.desc + (address - Self::BASE),
            address if address < events + 4 => self.driver + (address - events),
            address => self.device + (address - events - 4),
        };
        self.platform.translate(support::ID, place, len).ok_or(VolatileError::OutOfBounds)
    }
}

impl Shared for Behind {
    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), VolatileError> {
        self.at(address, to.len())?.slice().read_slice(to, 0)
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), VolatileError> {
        self.at(address, from.len())?.slice().write_slice(from, 0)
    }

    fn load(&self, address: u64) -> Result<u16, VolatileError> {
        self.at(address, 2)?.slice().load(0, Acquire)
    }

    fn store(&self, address: u64, value: u16) -> Result<(), VolatileError> {
        self.at(address, 2)?.slice().store(value, 0, Release)
    }
}

/// What our driver submits.
struct Item {
    number: u64,
    readable: Vec<(DmaBuf, usize)>,
    writable: Vec<(DmaBuf, usize)>,
}

impl Buffers for Item {
    type Context = ();

    fn only(&self, (): &()) -> Option<Part> {
        if self.count(&()) == 1 { self.part(&(), 0) } else { None }
    }

    fn count(&self, (): &()) -> u16 {
        (self.readable.len() + self.writable.len()) as u16
    }

    fn part(&self, (): &(), index: u16) -> Option<Part> {
        let index = usize::from(index);
        if let Some((buffer, len)) = self.readable.get(index) {
            return Part::readable(buffer, 0, *len);
        }
        let (buffer, len) = self.writable.get(index - self.readable.len())?;
        Part::writable(buffer, 0, *len)
    }

    fn least_written(&self) -> u32 {
        0
    }

    fn abandon(self) {
        self.readable.into_iter().chain(self.writable).for_each(|(buffer, _)| buffer.abandon());
    }
}

/// Our driver in front of their consumer.
fn our_driver_in_front(size: u16, features: u64, steps: Vec<Step>) {
    let offered = VERSION_1 | RING_PACKED | features;
    let fake = Fake::new(DeviceType(42), offered, vec![], &[size]);
    let windows = fake.windows();
    let mut device = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
    assert_eq!(device.negotiate(RING_PACKED | EVENT_IDX), Ok(offered));
    let parts = size.min(6);
    let options = QueueOptions { size, chains: size, parts };
    let mut queue = device.queue::<Item>(0, &options, parts, |_| Ok(())).unwrap();
    queue.start(&device.driver_ok().unwrap());
    let buffers = usize::from(queue.depth() * parts);
    let [to_device, from_device] = [Direction::ToDevice, Direction::FromDevice]
        .map(|direction| DmaPool::new_for(&windows, buffers, SLOT, direction).unwrap());
    let at = fake.model().queues[0];
    let behind = Behind {
        platform: fake.platform,
        desc: at.descriptors,
        driver: at.driver,
        device: at.device,
        size,
    };
    let mut theirs = RingConsumer::new(layout(Behind::BASE, size), Memory(behind));

    let (mut number, mut submitted, mut held) = (0_u64, VecDeque::new(), Vec::new());
    let mut returned: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
    let (mut wanted, mut busy, mut asleep) = (Interrupts::All, false, false);
    let finish = (0..=64).map(|_| Step::Take).chain((0..64).map(|_| Step::Return(0, 7)));
    for step in steps.into_iter().chain(finish).chain([Step::Reap]) {
        match step {
            Step::Submit(readable, writable) => {
                let fits = (1..=usize::from(parts)).contains(&(readable.len() + writable.len()));
                if !fits || queue.in_flight() == queue.depth() {
                    continue;
                }
                number += 1;
                let bytes = noise(number, readable.iter().sum());
                let mut rest = &bytes[..];
                let mut item = Item { number, readable: Vec::new(), writable: Vec::new() };
                for len in readable {
                    let (now, later) = rest.split_at(len);
                    let mut buffer = to_device.take().unwrap();
                    buffer.write_slice(now, 0).unwrap();
                    item.readable.push((buffer, len));
                    rest = later;
                }
                item.writable = writable.iter().map(|&len| (from_device.take().unwrap(), len)).collect();
                let id = queue.submit(item).map_err(|(error, _)| error).unwrap();
                fake.model().events.clear();
                queue.kick();
                let kicks = fake.kicks(0);
                assert!(kicks == 1 || kicks == 0 && !asleep, "the device sleeps, and nobody wakes it");
                assert!(kicks == 0 || !busy, "the device is busy");
                asleep &= kicks == 0;
                submitted.push_back((id, number, bytes, writable));
            }
            Step::Take => match polled(theirs.poll_available()) {
                Some((id, chain)) => {
                    let (expected, number, bytes, writable) = submitted.pop_front().expect("a chain out of nothing");
                    assert_eq!(id, expected);
                    let mut found = Vec::new();
                    for part in chain.readables() {
                        let mut bytes = vec![0; part.len as usize];
                        behind.read(part.addr, &mut bytes).unwrap();
                        found.extend(bytes);
                    }
                    assert!(found == bytes);
                    assert!(chain.writables().iter().map(|part| part.len as usize).eq(writable.iter().copied()));
                    asleep = false;
                    held.push((id, number, chain));
                }
                None => {
                    assert_eq!(submitted.len(), 0);
                    asleep = !busy;
                    if features & EVENT_IDX != 0 && !busy {
                        theirs.enable_avail_notifications_for_next().unwrap();
                    }
                }
            },
            Step::Return(which, part) if !held.is_empty() => {
                let (id, number, chain): (u16, u64, BufferChain) = held.swap_remove(which % held.len());
                let room: usize = chain.writables().iter().map(|part| part.len as usize).sum();
                let data = noise(!number, part % (room + 1));
                let mut rest = &data[..];
                for part in chain.writables() {
                    let (now, later) = rest.split_at(rest.len().min(part.len as usize));
                    behind.write(part.addr, now).unwrap();
                    rest = later;
                }
                let interrupt = theirs.submit_used_with_notify(id, data.len() as u32).unwrap();
                match wanted {
                    Interrupts::All => assert!(interrupt),
                    Interrupts::None => assert!(!interrupt),
                    // The first after the driver asked. If it fills the ring they never think that the event was passed.
                    Interrupts::Next => {
                        assert!(interrupt || !returned.is_empty() || chain.len() == usize::from(size));
                    }
                }
                returned.push_back((number, data));
            }
            Step::Reap => {
                let reaped = queue.reap(|completion, ()| {
                    let (number, data) = returned.pop_front().expect("used out of nothing");
                    assert_eq!(completion.buffers.number, number);
                    assert_eq!(completion.written, Some(data.len() as u32));
                    let mut found = Vec::new();
                    for (buffer, len) in &completion.buffers.writable {
                        let mut part = vec![0; *len];
                        buffer.read_slice(&mut part, 0).unwrap();
                        found.extend(part);
                    }
                    assert!(found[..data.len()] == data);
                });
                assert!(reaped.is_ok() && returned.is_empty());
                if wanted == Interrupts::Next {
                    assert!(!queue.enable_interrupts());
                }
            }
            Step::Interrupts(Interrupts::None) => {
                queue.disable_interrupts();
                wanted = Interrupts::None;
            }
            Step::Interrupts(_) => {
                assert_eq!(queue.enable_interrupts(), !returned.is_empty());
                // What came before is not asked for.
                wanted = if features & EVENT_IDX != 0 { Interrupts::Next } else { Interrupts::All };
            }
            Step::Notifications(on) => {
                (busy, asleep) = (!on, false);
                match (on, features & EVENT_IDX != 0) {
                    (true, true) => theirs.enable_avail_notifications_for_next(),
                    (true, false) => theirs.enable_avail_notifications(),
                    (false, _) => theirs.disable_avail_notifications(),
                }
                .unwrap();
            }
            Step::Return(..) => {}
        }
    }
    assert_eq!((submitted.len(), held.len(), queue.in_flight(), theirs.num_inflight()), (0, 0, 0, 0));
    assert_eq!((to_device.available(), from_device.available()), (buffers, buffers));
    assert!(!queue.is_broken() && queue.counters().rejected == 0);
    assert_eq!(queue.pop().map(|none| none.is_none()), Ok::<_, QueueError>(true));
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
    fn our_driver_before_their_consumer(
        size in sizes(),
        features in prop::sample::select(&[0, EVENT_IDX][..]),
        steps in steps(),
    ) {
        our_driver_in_front(size, features, steps);
    }

    #[test]
    fn our_fake_driver_before_their_consumer(size in sizes(), steps in steps()) {
        before_a_consumer(size, steps);
    }
}
