//! What a device finds that follows descriptors: for every chain its header, its segments and its status, and
//! nothing else, whatever was in the ring before; and it stays so until the chain is used.

use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use ringfence_drivers::virtio::{BufferList, Controls, QueueError, Ticket};
use ringfence_memory::{Bytes, DeviceId, DmaPool, DmaWindows};
use ringfence_testkit::bench::{BUFFER_LEN, Bench, Shape};
use ringfence_testkit::{Chain, EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED, RING_RESET, Segment};

#[derive(Clone, Debug)]
enum Step {
    /// A chain of so many readable and writable segments: parts of buffers, from here on.
    Submit([usize; 2], usize),
    /// The same with something wrong in one segment: no bytes, or another device's memory.
    Spoilt([usize; 2], Index, bool),
    Kick,
    Take,
    /// The device uses what it took; in order, the oldest few at once.
    Use(Index),
    GiveUp(Index),
    Reap,
    Pop,
    /// Once nothing is in flight.
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    // Often none, one, or many.
    let counts = || {
        let one = prop_oneof![Just([1, 0]), Just([0, 1])];
        prop_oneof![2 => Just([0, 0]), 4 => one, 4 => prop::array::uniform2(0_usize..7)]
    };
    prop_oneof![
        12 => (counts(), 0..BUFFER_LEN).prop_map(|(counts, start)| Step::Submit(counts, start)),
        2 => (counts(), any::<Index>(), any::<bool>())
            .prop_map(|(counts, place, foreign)| Step::Spoilt(counts, place, foreign)),
        6 => Just(Step::Kick),
        8 => Just(Step::Take),
        8 => any::<Index>().prop_map(Step::Use),
        2 => any::<Index>().prop_map(Step::GiveUp),
        4 => Just(Step::Reap),
        3 => Just(Step::Pop),
        1 => Just(Step::Reset),
    ]
}

/// Any ring in which slots have several descriptors, and long chains more.
fn shape() -> impl Strategy<Value = Shape> {
    let features = subsequence(vec![RING_PACKED, EVENT_IDX, INDIRECT_DESC, IN_ORDER], 0..=4);
    (features, 2_u16..40, 1_u16..12, 1_u16..7, 0_u16..7, any::<bool>()).prop_map(
        |(features, size, chains, segments, longer, fixed)| {
            let features = features.into_iter().sum::<u64>() | RING_RESET;
            let size = if features & RING_PACKED == 0 { 1 << size.ilog2() } else { size };
            let longest = (segments + longer).max(2);
            Shape { features, size, chains, segments, longest, fixed }
        },
    )
}

/// What was submitted: what its header says, its slot, its segments between the ends.
struct Asked {
    name: u64,
    ticket: Ticket,
    own: Vec<Segment>,
}

struct World {
    bench: Bench,
    split: bool,
    in_order: bool,
    windows: DmaWindows,
    foreign: DmaPool,
    names: u64,
    /// In the order in which they were submitted, until the device takes them.
    asked: VecDeque<Asked>,
    /// What the device has, and its chains as it found them.
    held: Vec<(Asked, Chain)>,
    /// What was not given up and did not come back.
    waiting: Vec<(u64, Ticket)>,
    /// What the device has ever used.
    used: HashSet<u64>,
    /// Where the ends of slot 0 are.
    ends: Option<u64>,
}

impl World {
    fn new(shape: Shape) -> Self {
        let bench = Bench::with(shape);
        let windows = bench.fake.windows();
        let other = DmaWindows::for_model(bench.fake.platform, DeviceId(77)).unwrap();
        let foreign = DmaPool::new(&other, 1, BUFFER_LEN).unwrap();
        Self {
            bench,
            split: shape.features & RING_PACKED == 0,
            in_order: shape.features & IN_ORDER != 0,
            windows,
            foreign,
            names: 0,
            asked: VecDeque::new(),
            held: Vec::new(),
            waiting: Vec::new(),
            used: HashSet::new(),
            ends: None,
        }
    }

    fn submit(&mut self, [readable, writable]: [usize; 2], start: usize, spoilt: Option<(Index, bool)>) {
        let count = readable + writable;
        let spoilt = spoilt.filter(|_| count > 0).map(|(place, foreign)| (place.index(count), foreign));
        let (mut buffers, mut ranges, mut own) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
        for place in 0..count {
            let pool = if spoilt == Some((place, true)) { &self.foreign } else { &self.bench.pool };
            let Some(buffer) = pool.take() else { return };
            let (start, is_empty) = ((start + place) % BUFFER_LEN, spoilt == Some((place, false)));
            let end = if is_empty { start } else { BUFFER_LEN - place % (BUFFER_LEN - start) };
            let address = self.windows.publish(buffer.address()).map_or(0, |address| address.0);
            let (address, len) = (address + start as u64, (end - start) as u32);
            let writable = place >= readable;
            own.push(Segment { address, len, writable });
            ranges.push(start..end);
            buffers[usize::from(writable)].push(buffer);
        }
        let name = self.names;
        self.names += 1;
        let [readable, writable] = buffers;
        let item = BufferList::new(name, readable, writable, 0).with_segments(ranges);
        match self.bench.queue.submit(item) {
            Ok(ticket) => {
                assert_eq!(spoilt, None);
                self.asked.push_back(Asked { name, ticket, own });
                self.waiting.push((name, ticket));
            }
            Err((error, item)) => {
                assert_eq!(item.name(), name);
                assert_ne!(error, QueueError::Broken);
            }
        }
    }

    /// Whether `chain` is what was asked for, and nothing else.
    fn check(&mut self, asked: &Asked, chain: &Chain) {
        let (mut expected, slot) = (asked.own.clone(), asked.ticket.index() as u64);
        if self.bench.fixed > 0 {
            let first = self.ends.get_or_insert_with(|| chain.segments[0].address - 32 * slot);
            let header = *first + 32 * slot;
            expected.insert(0, Segment { address: header, len: 16, writable: false });
            expected.push(Segment { address: header + 16, len: 1, writable: true });
            let words = [asked.name, 0].map(u64::to_le_bytes);
            assert_eq!(self.bench.ring.read(&expected[0]), words.as_flattened());
            let status = self.bench.ring.memory(header + 16, 1).slice().read_obj::<u8>(0);
            assert_eq!(status, Ok(Controls::<16>::NO_STATUS), "an answer to another chain");
        }
        assert_eq!(chain.segments, expected, "chain {} in slot {slot}", asked.name);
    }

    fn take(&mut self) {
        let Some(chain) = self.bench.ring.take() else { return };
        let asked = self.asked.pop_front().expect("a chain that nobody asked for");
        self.check(&asked, &chain);
        self.held.push((asked, chain));
    }

    /// A device may follow a chain as often as it likes, until it has used it.
    fn look_again(&mut self) {
        let held = std::mem::take(&mut self.held);
        if self.split {
            for (asked, chain) in &held {
                self.check(asked, &self.bench.ring.chain_at(chain.head));
            }
        }
        self.held = held;
    }

    /// The device uses one chain that it has, or the oldest up to that.
    fn use_chains(&mut self, which: usize) {
        let chains: Vec<_> = if self.in_order {
            self.held.drain(..=which.min(3)).collect()
        } else {
            vec![self.held.swap_remove(which)]
        };
        if self.bench.fixed > 0 {
            for (asked, chain) in &chains {
                self.bench.ring.write(chain.segments.last().unwrap(), &[asked.name as u8]);
            }
        }
        let heads: Vec<_> = chains.iter().map(|(_, chain)| chain.head).collect();
        self.bench.ring.put_used_batch(&heads, 0);
        self.bench.ring.publish();
        self.used.extend(chains.iter().map(|(asked, _)| asked.name));
    }

    fn reap(&mut self, only_one: bool) {
        let mut back = Vec::new();
        let result = if only_one {
            self.bench.queue.pop().map(|done| back.extend(done))
        } else {
            self.bench.queue.reap(|done, _| back.push(done)).map(drop)
        };
        assert_eq!(result, Ok(()));
        for done in back {
            let one = (done.buffers.name(), done.ticket);
            let status = self.bench.queue.context().as_ref().map(|controls| controls.status(done.ticket));
            assert!(status.is_none_or(|status| status == one.0 as u8), "the answer to another chain");
            let place = self.waiting.iter().position(|&other| other == one);
            self.waiting.remove(place.expect("nobody waits for it"));
            assert!(self.used.contains(&one.0), "the device has not used it");
        }
        let in_flight = usize::from(self.bench.queue.in_flight());
        let left = self.asked.len() + self.held.len();
        assert!(if only_one { in_flight >= left } else { in_flight == left });
    }

    /// Everything comes back from a device that uses all.
    fn finish(&mut self) {
        self.bench.queue.kick();
        while !self.asked.is_empty() {
            self.take();
        }
        while !self.held.is_empty() {
            self.look_again();
            self.use_chains(0);
        }
        self.reap(false);
        assert_eq!((self.waiting.len(), self.bench.queue.lost(), self.bench.queue.in_flight()), (0, 0, 0));
        assert_eq!((self.bench.pool.available(), self.foreign.available()), (self.bench.buffers, 1));
    }

    fn reset(&mut self) {
        self.bench.device.reset_queue(&mut self.bench.queue).unwrap();
        self.bench.ring = self.bench.fake.ring(0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn every_chain_is_what_was_asked_for(
        shape in shape(), steps in prop::collection::vec(step(), 1..250),
    ) {
        let mut world = World::new(shape);
        for step in steps {
            match step {
                Step::Submit(counts, start) => world.submit(counts, start, None),
                Step::Spoilt(counts, place, foreign) => world.submit(counts, 0, Some((place, foreign))),
                Step::Kick => world.bench.queue.kick(),
                Step::Take => world.take(),
                Step::Use(which) if !world.held.is_empty() => world.use_chains(which.index(world.held.len())),
                Step::GiveUp(which) if !world.waiting.is_empty() => {
                    let (_, ticket) = world.waiting.swap_remove(which.index(world.waiting.len()));
                    prop_assert!(world.bench.queue.give_up(ticket) && !world.bench.queue.give_up(ticket));
                }
                Step::Reap => world.reap(false),
                Step::Pop => world.reap(true),
                Step::Reset if world.bench.queue.in_flight() == 0 => world.reset(),
                _ => {}
            }
            world.look_again();
        }
        world.finish();
        // Once more, with what all that has left.
        for count in 0..7 {
            world.submit([count, 1], 0, None);
            world.submit([count, 0], 0, None);
        }
        world.finish();
    }
}
