//! Our device side behind their producer.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Release};

use hyperlight_common::virtq::{BufferChainBuilder, BufferElement, RingProducer};
use ringfence_device_side::chain::{ReadableChain, WritableChain};
use ringfence_device_side::queue::{DescChain, DriverNotify, PackedMemory, Queue};
use ringfence_drivers::virtio::features::EVENT_IDX;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::{
    Bytes, DeviceId, Direction, DmaRegion, DmaSnapshot, DmaWindows, VolatileError,
    fuchsia::{DeviceRange, DriverMem, DriverRange},
};

use crate::common::noise;
use crate::{Interrupts, Memory, SLOT, Shared, Step, layout, polled};

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

/// Runs `steps` on a ring of `size` descriptors.
pub fn behind_a_producer(size: u16, features: u64, steps: Vec<Step>) {
    let platform: &'static HostPlatform = Box::leak(Box::new(HostPlatform::new()));
    let windows = DmaWindows::for_model(platform, DeviceId(3)).unwrap();
    let n = usize::from(size);
    let ring = Rc::new(Block::new(&windows, 16 * n + 8, Direction::Both));
    let blocks = [Direction::ToDevice, Direction::FromDevice]
        .map(|direction| Rc::new(Block::new(&windows, n * SLOT, direction)));
    let free =
        [0, 1].map(|index: usize| (0..n).map(|slot| blocks[index].base + (slot * SLOT) as u64).collect());
    let theirs = RingProducer::new(layout(ring.base, size), Memory(ring.clone()));
    let mut producer = Producer { theirs, blocks, free, flights: HashMap::new(), seed: 0 };

    let views = [windows.readable().unwrap(), windows.writable().unwrap()];
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
