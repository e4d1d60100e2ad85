//! A queue with a device model on its other end.

use std::collections::HashMap;

use ringfence_drivers::virtio::{
    BufferList, Controls, Device, DeviceType, Error, Queue, QueueError, QueueOptions, QueueShape, Ticket,
    features,
};
use ringfence_memory::DmaPool;

use crate::{
    Chain, DeviceRing, EVENT_IDX, Event, Fake, FakeNotifier, FakeTransport, IN_ORDER, INDIRECT_DESC,
    RING_PACKED,
};

pub const BUFFER_LEN: usize = 64;
/// The split and the packed format.
pub const FORMATS: [u64; 2] = [0, RING_PACKED];

/// Each format without and with the other features that a ring's memory depends on.
pub fn rings() -> impl Iterator<Item = u64> {
    let others = [0, EVENT_IDX, INDIRECT_DESC, IN_ORDER, EVENT_IDX | INDIRECT_DESC | IN_ORDER];
    FORMATS.into_iter().flat_map(move |format| others.map(|others| format | others))
}

pub fn no_controls(_: &QueueShape) -> Result<Option<Controls>, Error> {
    Ok(None)
}

/// A ring of `size` descriptors for chains of `segments`, and a few of up to `longest`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub features: u64,
    pub size: u16,
    pub chains: u16,
    pub segments: u16,
    pub longest: u16,
    /// Whether each chain has a header and a status besides its items' segments.
    pub fixed: bool,
}

/// How many chains a queue has room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub depth: usize,
    /// The most segments of a chain.
    pub longest: usize,
    /// Descriptors that each chain has to itself, and those for the longer ones; none if all are in tables.
    own: usize,
    spare: Option<usize>,
}

impl Room {
    /// That of a queue with `options.size` descriptors.
    pub fn of(features: u64, options: &QueueOptions) -> Self {
        let QueueOptions { size, chains, segments, longest } = *options;
        let [size, chains, segments, longest] = [size, chains, segments, longest].map(usize::from);
        let own = segments.min(size);
        let longest = longest.clamp(own, size);
        // For a long chain: what it has more than the others, but no more than half of the ring.
        let kept = (longest - own).min(size / 2);
        let fit = (0..=size).rev().find(|slots| slots * own + kept <= size).unwrap();
        if features & INDIRECT_DESC != 0 && longest > 1 && chains > fit {
            return Self { depth: chains.min(size), longest, own: 1, spare: None };
        }
        let depth = chains.min(fit);
        let spare = Some(size - depth * own);
        Self { depth, longest: longest.min(own + kept), own, spare }
    }

    /// What comes of a chain of `count` segments, while those with so many as in `inside` are in flight.
    pub fn expected(
        &self,
        inside: impl ExactSizeIterator<Item = usize>,
        count: usize,
    ) -> Result<(), QueueError> {
        if inside.len() == self.depth {
            return Err(QueueError::Full);
        }
        if !(1..=self.longest).contains(&count) {
            return Err(QueueError::BadChain);
        }
        let more = |count: usize| count.saturating_sub(self.own);
        match self.spare {
            // Only the longer ones take any.
            Some(spare) if more(count) > 0 && inside.map(more).sum::<usize>() + more(count) > spare => {
                Err(QueueError::Full)
            }
            _ => Ok(()),
        }
    }
}

pub struct Bench {
    pub fake: Fake,
    pub device: Device<FakeTransport>,
    pub queue: Queue<BufferList, FakeNotifier>,
    pub ring: DeviceRing,
    pub pool: DmaPool,
    pub buffers: usize,
    pub names: u64,
    room: Room,
    /// How many segments each chain has besides its item's.
    pub fixed: usize,
    /// Names of items in the queue, and how many buffers each has.
    pub inside: HashMap<u64, usize>,
}

impl Bench {
    /// As many chains of up to `segments` as fit.
    pub fn new(features: u64, size: u16, segments: u16) -> Self {
        Self::with(Shape { features, size, chains: u16::MAX, segments, longest: segments, fixed: false })
    }

    pub fn with(shape: Shape) -> Self {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | shape.features, vec![], &[shape.size]);
        Self::on(fake, shape)
    }

    pub fn on(fake: Fake, shape: Shape) -> Self {
        let Shape { features, size, chains, segments, longest, fixed } = shape;
        let windows = fake.windows();
        let offer = Device::begin(fake.transport(), DeviceType(42), &fake.grant(), windows.clone()).unwrap();
        let mut device = offer.negotiate(features).unwrap();
        let options = QueueOptions { size: u16::MAX, chains, segments, longest };
        let room = Room::of(features, &QueueOptions { size, ..options });
        let context = |shape: &QueueShape| {
            assert_eq!((shape.slots, shape.segments), (room.depth, room.longest as u16));
            if fixed { Controls::new(&windows, shape.slots).map(Some) } else { Ok(None) }
        };
        let mut queue = device.queue(0, &options, 1, context).unwrap();
        assert_eq!(queue.size(), size);
        assert_eq!(usize::from(queue.depth()), room.depth);
        let started = device.driver_ok().unwrap();
        queue.start(&started);
        let ring = fake.ring(0);
        let buffers = usize::from(queue.depth()) * usize::from(longest) + 8;
        let pool = DmaPool::new(&windows, buffers, BUFFER_LEN).unwrap();
        let fixed = if fixed { 2 } else { 0 };
        Self { fake, device, queue, ring, pool, buffers, names: 0, room, fixed, inside: HashMap::new() }
    }

    pub fn item(&mut self, readable: usize, writable: usize) -> Option<BufferList> {
        let take = |count| (0..count).map(|_| self.pool.take()).collect::<Option<Vec<_>>>();
        let (readable, writable) = (take(readable)?, take(writable)?);
        self.names += 1;
        Some(BufferList::new(self.names, readable, writable, 0))
    }

    /// What comes of a chain of `count` buffers.
    fn expected(&self, count: usize) -> Result<(), QueueError> {
        if self.queue.is_broken() {
            return Err(QueueError::Broken);
        }
        let inside = self.inside.values().map(|count| count + self.fixed);
        self.room.expected(inside, count + self.fixed)
    }

    pub fn submit(&mut self, readable: usize, writable: usize) -> Result<Ticket, QueueError> {
        let expected = self.expected(readable + writable);
        let item = self.item(readable, writable).ok_or(QueueError::Full)?;
        let (name, next, in_flight) = (item.name(), self.queue.next_slot(), self.queue.in_flight());
        let result = self.queue.submit(item);
        assert_eq!(result.as_ref().map(drop).map_err(|(error, _)| *error), expected);
        match result {
            Ok(ticket) => {
                assert_eq!(Some(ticket.index()), next.map(usize::from), "the slot that was announced");
                assert!(ticket.index() < self.queue.slots() && self.queue.is_in_flight(ticket));
                assert!(self.inside.insert(name, readable + writable).is_none());
                Ok(ticket)
            }
            Err((error, item)) => {
                let after = (item.name(), self.queue.next_slot(), self.queue.in_flight());
                assert_eq!(after, (name, next, in_flight), "the item comes back, nothing is taken");
                Err(error)
            }
        }
    }

    /// How many chains more can be submitted, if they are short.
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

    /// Puts `count` chains in flight while the device wants no notifications.
    pub fn publish_unseen(&mut self, count: u16) {
        self.ring.suppress_kicks(true);
        let kicks = self.fake.kicks(0);
        for number in 0..count {
            self.submit(1 + usize::from(number % 2), 1).unwrap();
        }
        self.queue.kick();
        assert_eq!(self.fake.kicks(0), kicks);
    }

    /// The device serves all that is in flight, in order.
    pub fn serve(&mut self) {
        while let Some(chain) = self.ring.take() {
            self.ring.complete(chain.head, 7);
        }
        self.reap().unwrap();
        assert_eq!(self.queue.in_flight(), 0);
        self.check();
    }

    /// How many notifications `act` sends.
    #[track_caller]
    pub fn kicks_of(&mut self, act: impl FnOnce(&mut Self)) -> usize {
        let before = self.fake.kicks(0);
        act(self);
        self.fake.kicks(0) - before
    }

    /// `count` chains there and back, each with a kick of its own.
    pub fn run(&mut self, count: usize) {
        for number in 0..count {
            self.submit(1 + number % 2, 1).unwrap();
            self.ring.suppress_kicks(false);
            let kicks = self.fake.kicks(0);
            self.queue.kick();
            assert_eq!(self.fake.kicks(0), kicks + 1);
            let chain = self.ring.take().unwrap();
            self.ring.complete(chain.head, 7);
            assert_eq!(self.reap().unwrap(), [(self.names, Some(7))]);
        }
    }

    /// Why a chain is not taken, for which there would be room.
    pub fn refusal(&mut self) -> QueueError {
        let item = self.item(1, 1).unwrap();
        self.queue.submit(item).unwrap_err().0
    }

    pub fn resets(&self) -> usize {
        self.fake.model().events.iter().filter(|&&event| event == Event::QueueReset(0)).count()
    }
}
