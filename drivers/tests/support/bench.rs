//! A queue with a device model on its other end.

use std::collections::HashMap;

use ringfence_drivers::virtio::{
    BufferFrames, BufferList, Device, DeviceType, Error, Queue, QueueError, QueueOptions, QueueShape,
    features,
};
use ringfence_memory::DmaPool;

use super::{Chain, DeviceRing, Fake, FakeNotifier, FakeTransport, RING_PACKED};

pub const BUFFER_LEN: usize = 64;
/// The split and the packed format.
pub const FORMATS: [u64; 2] = [0, RING_PACKED];

pub fn no_frames(_: &QueueShape) -> Result<BufferFrames, Error> {
    Ok(BufferFrames::default())
}

/// A ring of `size` descriptors for chains of up to `parts`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub features: u64,
    pub size: u16,
    pub chains: u16,
    pub parts: u16,
    /// Whether each chain has a header and a status besides its items' parts.
    pub framed: bool,
}

pub struct Bench {
    pub fake: Fake,
    pub device: Device<FakeTransport>,
    pub queue: Queue<BufferList, FakeNotifier>,
    pub ring: DeviceRing,
    pub pool: DmaPool,
    pub buffers: usize,
    pub names: u64,
    /// Names of items in the queue, and how many buffers each has.
    pub inside: HashMap<u64, usize>,
}

impl Bench {
    /// As many chains of up to `parts` as fit.
    pub fn new(features: u64, size: u16, parts: u16) -> Self {
        Self::with(Shape { features, size, chains: u16::MAX, parts, framed: false })
    }

    pub fn with(shape: Shape) -> Self {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | shape.features, vec![], &[shape.size]);
        Self::on(fake, shape)
    }

    pub fn on(fake: Fake, shape: Shape) -> Self {
        let Shape { features, size, chains, parts, framed } = shape;
        let windows = fake.windows();
        let offer = Device::begin(fake.transport(), DeviceType(42), &fake.grant(), windows.clone()).unwrap();
        let mut device = offer.negotiate(features).unwrap();
        let options = QueueOptions { size: u16::MAX, chains, parts };
        let context = |shape: &QueueShape| {
            assert_eq!(shape.parts, parts.min(size));
            if framed { BufferFrames::new(&windows, shape) } else { Ok(BufferFrames::default()) }
        };
        let mut queue = device.queue(0, &options, 1, context).unwrap();
        assert_eq!(queue.size(), size);
        assert!(queue.depth() <= chains && queue.depth() <= size);
        let started = device.driver_ok().unwrap();
        queue.start(&started);
        let ring = fake.ring(0);
        let buffers = usize::from(queue.depth()) * usize::from(parts) + 8;
        let pool = DmaPool::new(&windows, buffers, BUFFER_LEN).unwrap();
        Self { fake, device, queue, ring, pool, buffers, names: 0, inside: HashMap::new() }
    }

    pub fn item(&mut self, readable: usize, writable: usize) -> Option<BufferList> {
        let take = |count| (0..count).map(|_| self.pool.take()).collect::<Option<Vec<_>>>();
        let (readable, writable) = (take(readable)?, take(writable)?);
        self.names += 1;
        Some(BufferList::new(self.names, readable, writable, 0))
    }

    pub fn submit(&mut self, readable: usize, writable: usize) -> Result<u16, QueueError> {
        let item = self.item(readable, writable).ok_or(QueueError::Full)?;
        let (name, next, in_flight) = (item.name(), self.queue.next_slot(), self.queue.in_flight());
        match self.queue.submit(item) {
            Ok(slot) => {
                assert_eq!(Some(slot), next, "the slot that was announced");
                assert!(usize::from(slot) < self.queue.slots());
                assert!(self.inside.insert(name, readable + writable).is_none());
                Ok(slot)
            }
            Err((error, item)) => {
                let after = (item.name(), self.queue.next_slot(), self.queue.in_flight());
                assert_eq!(after, (name, next, in_flight), "the item comes back, nothing is taken");
                Err(error)
            }
        }
    }

    /// How many chains more can be submitted.
    pub fn room(&self) -> u16 {
        self.queue.depth() - self.queue.in_flight()
    }

    /// Reaps all; what comes back must have been inside.
    pub fn reap(&mut self) -> Result<Vec<(u64, Option<u32>)>, QueueError> {
        let (mut back, inside) = (Vec::new(), &mut self.inside);
        let result = self.queue.reap(|completion, _| {
            assert!(
                inside.remove(&completion.buffers.name()).is_some(),
                "came back without having been inside"
            );
            back.push((completion.buffers.name(), completion.written));
        });
        result.map(|count| {
            assert_eq!(count, back.len());
            back
        })
    }

    /// Nothing is lost and nothing is made up.
    pub fn check(&self) {
        assert_eq!(self.queue.occupied(), self.inside.len());
        assert_eq!(usize::from(self.queue.in_flight()), self.inside.len());
        assert_eq!(self.queue.next_slot().is_some(), self.room() > 0 && !self.queue.is_broken());
        let counters = self.queue.counters();
        assert_eq!(counters.submitted - counters.completions, self.inside.len() as u64);
        let held: usize = self.inside.values().sum();
        assert_eq!(self.pool.available() + held, self.buffers, "the buffers of what is inside");
    }

    pub fn one_in_flight(features: u64, size: u16) -> (Self, Chain) {
        let mut bench = Self::new(features, size, 2);
        bench.submit(1, 1).unwrap();
        bench.queue.kick();
        let chain = bench.ring.take().unwrap();
        (bench, chain)
    }

    /// The queue is of no more use, says so, and holds on to what the device may still write to.
    pub fn assert_broken(mut self) {
        let held = self.buffers - self.pool.available();
        assert!(held > 0, "the test is about buffers in flight");
        assert!(self.queue.is_broken());
        for _ in 0..3 {
            assert_eq!(self.reap().unwrap_err(), QueueError::Broken);
            assert_eq!(self.submit(1, 1).unwrap_err(), QueueError::Broken);
            self.queue.kick();
            assert!(self.queue.enable_interrupts(), "nobody may sleep on a broken queue");
            self.check();
        }
        assert!(self.queue.counters().rejected > 0);
        drop(self.queue);
        assert_eq!(self.pool.available(), self.buffers - held, "buffers in flight must not be lent again");
    }
}
