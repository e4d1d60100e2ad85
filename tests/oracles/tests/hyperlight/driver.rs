//! Our driver side before their consumer.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::{Acquire, Release};

use hyperlight_common::virtq::{BufferChain, RingConsumer};
use ringfence_drivers::virtio::features::{EVENT_IDX, RING_PACKED, VERSION_1};
use ringfence_drivers::virtio::{BufferList, Device, DeviceType, QueueError, QueueOptions};
use ringfence_memory::host::{HostMemory, HostPlatform};
use ringfence_memory::{Bytes, Direction, DmaPool, VolatileError};

use crate::common::noise;
use crate::{Interrupts, Memory, SLOT, Shared, Step, layout, polled};
use ringfence_testkit::bench::no_controls;
use ringfence_testkit::{self, Fake, grant};

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

    fn at(&self, address: u64, len: usize) -> Result<HostMemory, VolatileError> {
        let events = Self::BASE + 16 * u64::from(self.size);
        let place = match address {
            address if address < Self::BASE => address,
            address if address < events => self.desc + (address - Self::BASE),
            address if address < events + 4 => self.driver + (address - events),
            address => self.device + (address - events - 4),
        };
        self.platform.translate(ringfence_testkit::ID, place, len).ok_or(VolatileError::OutOfBounds)
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

/// Runs `steps` on a ring of `size` descriptors.
pub fn before_a_consumer(size: u16, features: u64, steps: Vec<Step>) {
    let offered = VERSION_1 | RING_PACKED | features;
    let fake = Fake::new(DeviceType(42), offered, vec![], &[size]);
    let windows = fake.windows();
    let offer = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
    let mut device = offer.negotiate(RING_PACKED | EVENT_IDX).unwrap();
    assert_eq!(device.features(), offered);
    let parts = size.min(6);
    let options = QueueOptions { size, chains: size, segments: parts, longest: parts };
    let mut queue = device.queue::<BufferList>(0, &options, parts, no_controls).unwrap();
    queue.start(&device.driver_ok().unwrap());
    let buffers = usize::from(queue.depth() * parts);
    let [to_device, from_device] = [Direction::ToDevice, Direction::FromDevice]
        .map(|direction| DmaPool::new_for(&windows, buffers, SLOT, direction).unwrap());
    let at = fake.model().queues[0];
    let behind =
        Behind { platform: fake.platform, desc: at.descriptors, driver: at.driver, device: at.device, size };
    let mut theirs = RingConsumer::new(layout(Behind::BASE, size), Memory(behind));

    let (mut number, mut submitted, mut held) = (0_u64, VecDeque::new(), Vec::new());
    let mut returned: VecDeque<(u64, Vec<u8>, Vec<usize>)> = VecDeque::new();
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
                let mut to_read = Vec::new();
                for &len in &readable {
                    let (now, later) = rest.split_at(len);
                    let mut buffer = to_device.take().unwrap();
                    buffer.write_slice(now, 0).unwrap();
                    to_read.push(buffer);
                    rest = later;
                }
                let to_write = writable.iter().map(|_| from_device.take().unwrap()).collect();
                let lens = readable.iter().chain(&writable).map(|&len| 0..len).collect();
                let item = BufferList::new(number, to_read, to_write, 0).with_segments(lens);
                let ticket = queue.submit(item).map_err(|(error, _)| error).unwrap();
                fake.model().events.clear();
                queue.kick();
                let kicks = fake.kicks(0);
                assert!(kicks == 1 || kicks == 0 && !asleep, "the device sleeps, and nobody wakes it");
                assert!(kicks == 0 || !busy, "the device is busy");
                asleep &= kicks == 0;
                submitted.push_back((ticket, number, bytes, writable));
            }
            Step::Take => match polled(theirs.poll_available()) {
                Some((id, chain)) => {
                    let (expected, number, bytes, writable) =
                        submitted.pop_front().expect("a chain out of nothing");
                    assert_eq!(usize::from(id), expected.index());
                    let mut found = Vec::new();
                    for part in chain.readables() {
                        let mut bytes = vec![0; part.len as usize];
                        behind.read(part.addr, &mut bytes).unwrap();
                        found.extend(bytes);
                    }
                    assert!(found == bytes);
                    assert!(
                        chain.writables().iter().map(|part| part.len as usize).eq(writable.iter().copied())
                    );
                    asleep = false;
                    held.push((id, number, writable, chain));
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
                let (id, number, writable, chain): (u16, u64, Vec<usize>, BufferChain) =
                    held.swap_remove(which % held.len());
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
                    // The first after the driver asked. If it fills the ring they never think that the event
                    // was passed.
                    Interrupts::Next => {
                        assert!(interrupt || !returned.is_empty() || chain.len() == usize::from(size));
                    }
                }
                returned.push_back((number, data, writable));
            }
            Step::Reap => {
                let reaped = queue.reap(|completion, _| {
                    let (number, data, writable) = returned.pop_front().expect("used out of nothing");
                    assert_eq!(completion.buffers.name(), number);
                    assert_eq!(completion.written, Some(data.len() as u32));
                    let mut found = Vec::new();
                    let [_, to_write] = completion.buffers.buffers();
                    assert_eq!(to_write.len(), writable.len());
                    for (buffer, len) in to_write.iter().zip(writable) {
                        let mut part = vec![0; len];
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
