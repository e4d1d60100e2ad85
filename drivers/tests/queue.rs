//! The driver side of the virtqueue against a device model: polite, then not.

mod support;

use std::collections::HashSet;

use proptest::prelude::*;
use ringfence_drivers::virtio::{Buffers, Device, DeviceType, Part, Queue, QueueError, features};
use ringfence_memory::{DmaBuf, DmaPool};
use support::{Chain, DeviceRing, Event, Fake, FakeNotifier, FakeTransport, ID, grant};

const BUFFER_LEN: usize = 64;

/// A value with buffers of its own, and a name to know it by.
#[derive(Debug)]
struct Item {
    name: u64,
    readable: Vec<DmaBuf>,
    writable: Vec<DmaBuf>,
    least: u32,
}

impl Buffers for Item {
    fn part(&self, index: u16) -> Option<Part> {
        let index = usize::from(index);
        match self.readable.get(index) {
            Some(buffer) => Part::readable(buffer, 0, buffer.len()),
            None => self
                .writable
                .get(index - self.readable.len())
                .and_then(|buffer| Part::writable(buffer, 0, buffer.len())),
        }
    }

    fn least_written(&self) -> u32 {
        self.least
    }

    fn abandon(self) {
        self.readable.into_iter().chain(self.writable).for_each(DmaBuf::abandon);
    }
}

struct Bench {
    fake: Fake,
    device: Device<FakeTransport>,
    queue: Queue<Item, FakeNotifier>,
    ring: DeviceRing,
    pool: DmaPool,
    buffers: usize,
    names: u64,
    /// Names of items in the queue.
    inside: HashSet<u64>,
}

impl Bench {
    fn new(size: u16) -> Self {
        let fake = Fake::new(DeviceType(42), features::VERSION_1, vec![], &[size]);
        let windows = fake.windows();
        let mut device = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
        device.negotiate(0).unwrap();
        let mut queue = device.queue(0, u16::MAX, 1).unwrap();
        assert_eq!(queue.size(), size);
        let started = device.driver_ok().unwrap();
        queue.start(&started);
        let ring = fake.ring(0);
        let buffers = 2 * usize::from(size) + 8;
        let pool = DmaPool::new(&windows, buffers, BUFFER_LEN).unwrap();
        Self { fake, device, queue, ring, pool, buffers, names: 0, inside: HashSet::new() }
    }

    fn item(&mut self, readable: usize, writable: usize) -> Option<Item> {
        let take = |count| (0..count).map(|_| self.pool.take()).collect::<Option<Vec<_>>>();
        let (readable, writable) = (take(readable)?, take(writable)?);
        self.names += 1;
        Some(Item { name: self.names, readable, writable, least: 0 })
    }

    fn submit(&mut self, readable: usize, writable: usize) -> Result<u16, QueueError> {
        let item = self.item(readable, writable).ok_or(QueueError::Full)?;
        let (name, free) = (item.name, self.queue.free());
        match self.queue.submit(item) {
            Ok(number) => {
                assert!(number < self.queue.size());
                assert!(self.inside.insert(name));
                Ok(number)
            }
            Err((error, item)) => {
                assert_eq!(
                    (item.name, self.queue.free()),
                    (name, free),
                    "the item comes back, nothing is taken"
                );
                Err(error)
            }
        }
    }

    /// Reaps all; what comes back must have been inside.
    fn reap(&mut self) -> Result<Vec<(u64, Option<u32>)>, QueueError> {
        let (mut back, inside) = (Vec::new(), &mut self.inside);
        let result = self.queue.reap(|completion| {
            assert!(inside.remove(&completion.buffers.name), "came back without having been inside");
            back.push((completion.buffers.name, completion.written));
        });
        result.map(|count| {
            assert_eq!(count, back.len());
            back
        })
    }

    /// Nothing is lost and nothing is made up.
    fn check(&self) {
        assert_eq!(usize::from(self.queue.free()) + self.queue.occupied(), usize::from(self.queue.size()));
        assert_eq!(usize::from(self.queue.in_flight()), self.inside.len());
        let counters = self.queue.counters();
        assert_eq!(counters.submitted - counters.completions, self.inside.len() as u64);
        assert_eq!(self.pool.available() + self.queue.occupied(), self.buffers, "a buffer per descriptor");
    }

    fn one_in_flight(size: u16) -> (Self, Chain) {
        let mut bench = Self::new(size);
        bench.submit(1, 1).unwrap();
        bench.queue.kick();
        let chain = bench.ring.take().unwrap();
        (bench, chain)
    }

    /// The queue is of no more use, says so, and holds on to what the device may still write to.
    fn assert_broken(mut self) {
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

#[test]
fn round_trip_with_data() {
    let (mut bench, chain) = Bench::one_in_flight(8);
    assert_eq!(chain.segments.len(), 2);
    assert_eq!(chain.writable_len(), BUFFER_LEN as u32);
    bench.ring.write(&chain.segments[1], b"answer");
    bench.ring.complete(chain.head, 6);
    let completion = bench.queue.pop().unwrap().unwrap();
    let mut answer = [0; 6];
    completion.buffers.writable[0].read_slice(&mut answer, 0).unwrap();
    assert_eq!((&answer, completion.written), (b"answer", Some(6)));
    // The device writes late: only the copy counts, and the buffer is ours to read any time.
    bench.ring.write(&chain.segments[1], b"laughs");
    assert_eq!(&answer, b"answer");
    assert!(bench.queue.pop().unwrap().is_none());
}

#[test]
fn index_wraps_around() {
    let mut bench = Bench::new(4);
    for round in 0..70_000_u32 {
        bench.submit(1, (round % 2) as usize).unwrap();
        bench.queue.kick();
        let chain = bench.ring.take().unwrap();
        bench.ring.complete(chain.head, 0);
        assert_eq!(bench.reap().unwrap().len(), 1);
    }
    bench.check();
    assert_eq!(bench.queue.counters().kicks, 70_000);
}

#[test]
fn sizes_are_powers_of_two_within_both_limits() {
    for (max, wish, expected) in
        [(1, 9, Ok(1)), (3, 9, Ok(2)), (256, 200, Ok(128)), (65535, 65535, Ok(32768)), (32768, 4, Ok(4))]
            .into_iter()
            .chain([(0, 9, Err(())), (5, 0, Err(()))])
    {
        let fake = Fake::new(DeviceType(42), features::VERSION_1, vec![], &[max]);
        let mut device = Device::begin(fake.transport(), DeviceType(42), &grant(), fake.windows()).unwrap();
        device.negotiate(0).unwrap();
        let queue = device.queue::<Item>(0, wish, 1);
        assert_eq!(queue.map(|queue| queue.size()).map_err(|_| ()), expected, "max {max}, wish {wish}");
        assert!(device.queue::<Item>(1, wish, 1).is_err(), "there is no queue 1");
    }
}

#[test]
fn one_kick_for_a_batch_and_none_if_suppressed() {
    let mut bench = Bench::new(16);
    bench.queue.kick();
    assert_eq!(bench.fake.kicks(0), 0, "nothing to tell");
    for _ in 0..8 {
        bench.submit(1, 1).unwrap();
        assert_eq!(bench.ring.pending(), 0, "not before the kick");
    }
    bench.queue.kick();
    assert_eq!((bench.fake.kicks(0), bench.ring.pending()), (1, 8));
    assert_eq!(bench.submit(1, 0), Err(QueueError::Full));
    let chain = bench.ring.take().unwrap();
    bench.ring.complete(chain.head, 0);
    bench.reap().unwrap();
    bench.ring.suppress_kicks(true);
    bench.submit(2, 0).unwrap();
    bench.queue.kick();
    assert_eq!((bench.fake.kicks(0), bench.ring.pending()), (1, 8));
}

#[test]
fn no_kick_before_driver_ok() {
    let fake = Fake::new(DeviceType(42), features::VERSION_1, vec![], &[8]);
    let windows = fake.windows();
    let mut device = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
    device.negotiate(0).unwrap();
    let mut queue = device.queue::<Item>(0, 8, 1).unwrap();
    let pool = DmaPool::new(&windows, 1, BUFFER_LEN).unwrap();
    let item = Item { name: 1, readable: vec![], writable: vec![pool.take().unwrap()], least: 0 };
    queue.submit(item).unwrap();
    queue.kick();
    assert_eq!((fake.kicks(0), fake.ring(0).pending()), (0, 1), "published, not notified");
    let started = device.driver_ok().unwrap();
    queue.start(&started);
    queue.kick();
    assert_eq!(fake.kicks(0), 1, "the notification was owed");
    assert_eq!(fake.model().events.last(), Some(&Event::Kick(0)));
}

#[test]
fn interrupts_are_asked_for_and_rechecked() {
    let (mut bench, chain) = Bench::one_in_flight(8);
    assert!(bench.ring.interrupts_wanted());
    bench.queue.disable_interrupts();
    assert!(!bench.ring.interrupts_wanted());
    assert!(!bench.queue.enable_interrupts());
    assert!(bench.ring.interrupts_wanted());
    bench.queue.disable_interrupts();
    bench.ring.complete(chain.head, 0);
    assert!(bench.queue.enable_interrupts(), "a completion came while interrupts were off");
    assert_eq!(bench.reap().unwrap().len(), 1);
    assert!(!bench.queue.enable_interrupts());
}

#[test]
fn bad_chains_come_back() {
    let mut bench = Bench::new(4);
    assert_eq!(bench.submit(0, 0), Err(QueueError::BadChain));
    assert_eq!(bench.submit(3, 2), Err(QueueError::Full), "longer than the ring");
    bench.check();
    let other = support::platform();
    let windows = ringfence_memory::DmaWindows::new(other, ringfence_memory::DeviceId(ID.0 + 1));
    let pool = DmaPool::new(&windows, 1, BUFFER_LEN).unwrap();
    let item = Item { name: 0, readable: vec![pool.take().unwrap()], writable: vec![], least: 0 };
    let (error, item) = bench.queue.submit(item).unwrap_err();
    assert_eq!((error, item.readable.len()), (QueueError::WrongDevice, 1));
    bench.check();
    assert_eq!(bench.submit(2, 2).map(drop), Ok(()), "all four are still there");
    assert!(Part::readable(&item.readable[0], 1, BUFFER_LEN).is_none());
    assert!(Part::writable(&item.readable[0], usize::MAX, 2).is_none());
    assert!(Part::writable(&item.readable[0], BUFFER_LEN, 0).is_none());
}

/// Parts in the wrong order, or empty.
struct Odd(DmaBuf, bool);

impl Buffers for Odd {
    fn part(&self, index: u16) -> Option<Part> {
        match (index, self.1) {
            (0, true) => Part::writable(&self.0, 0, 8),
            (1, true) => Part::readable(&self.0, 0, 8),
            (0, false) => Part::readable(&self.0, 0, 0),
            _ => None,
        }
    }

    fn least_written(&self) -> u32 {
        0
    }

    fn abandon(self) {
        self.0.abandon();
    }
}

#[test]
fn odd_chains_come_back() {
    let fake = Fake::new(DeviceType(42), features::VERSION_1, vec![], &[8]);
    let windows = fake.windows();
    let mut device = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
    device.negotiate(0).unwrap();
    let mut queue = device.queue::<Odd>(0, 8, 1).unwrap();
    let pool = DmaPool::new(&windows, 2, BUFFER_LEN).unwrap();
    for order in [true, false] {
        let (error, _) = queue.submit(Odd(pool.take().unwrap(), order)).unwrap_err();
        assert_eq!(error, QueueError::BadChain);
    }
    assert_eq!((queue.free(), pool.available()), (8, 2));
}

#[test]
fn an_id_that_was_never_in_flight() {
    for id in [7, 8, 1000, 65536, 0x8000_0000, u32::MAX] {
        let (mut bench, chain) = Bench::one_in_flight(8);
        assert_ne!(u32::from(chain.head), id);
        bench.ring.put_used(id, 0);
        bench.ring.publish_used(1);
        assert_eq!(bench.reap().unwrap_err(), QueueError::Broken, "id {id:#x}");
        bench.assert_broken();
    }
}

#[test]
fn an_id_that_is_right_only_in_its_low_half() {
    let (mut bench, chain) = Bench::one_in_flight(8);
    bench.ring.put_used(u32::from(chain.head) | 0x1_0000, 0);
    bench.ring.publish_used(1);
    assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
    bench.assert_broken();
}

#[test]
fn an_id_twice() {
    let mut bench = Bench::new(8);
    bench.submit(1, 1).unwrap();
    bench.submit(1, 1).unwrap();
    bench.queue.kick();
    let chain = bench.ring.take().unwrap();
    bench.ring.put_used(chain.head.into(), 0);
    bench.ring.put_used(chain.head.into(), 0);
    bench.ring.publish_used(2);
    assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
    assert_eq!(bench.queue.counters().completions, 1, "the first was true");
    bench.assert_broken();
}

#[test]
fn the_middle_of_a_chain_as_id() {
    let mut bench = Bench::new(8);
    bench.submit(2, 2).unwrap();
    bench.queue.kick();
    let chain = bench.ring.take().unwrap();
    bench.ring.complete(chain.head + 1, 0);
    assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
    bench.assert_broken();
}

#[test]
fn a_chain_that_was_not_published() {
    let mut bench = Bench::new(8);
    let first = bench.submit(1, 1).unwrap();
    bench.queue.kick();
    let second = bench.submit(1, 1).unwrap();
    assert_ne!(first, second);
    bench.ring.complete(second, 0);
    assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
    bench.assert_broken();
}

#[test]
fn a_used_index_that_jumps() {
    for index in [2, 9, 0x7fff, 0x8000, 0xffff] {
        let (mut bench, chain) = Bench::one_in_flight(8);
        bench.ring.put_used(chain.head.into(), 0);
        bench.ring.publish_used(index);
        assert_eq!(bench.reap().unwrap_err(), QueueError::Broken, "index {index:#x}");
        assert_eq!(bench.queue.counters().completions, 0);
        bench.assert_broken();
    }
}

#[test]
fn a_length_that_cannot_be() {
    for (least, len, expected) in [
        (0, 0, Some(0)),
        (0, 64, Some(64)),
        (0, 65, None),
        (0, u32::MAX, None),
        (12, 12, Some(12)),
        (12, 11, None),
        (12, 0, None),
        (65, 64, None),
    ] {
        let mut bench = Bench::new(8);
        let mut item = bench.item(1, 1).unwrap();
        item.least = least;
        bench.inside.insert(item.name);
        bench.queue.submit(item).unwrap();
        bench.queue.kick();
        let chain = bench.ring.take().unwrap();
        bench.ring.complete(chain.head, len);
        assert_eq!(bench.reap().unwrap()[0].1, expected, "least {least}, length {len}");
        assert_eq!(bench.queue.counters().rejected, u64::from(expected.is_none()));
        assert!(!bench.queue.is_broken(), "the buffer came back, the ring is in order");
        bench.check();
    }
}

#[test]
fn a_reset_gives_back_what_was_in_flight() {
    let (mut bench, _) = Bench::one_in_flight(8);
    assert_eq!(bench.pool.available(), bench.buffers - 2);
    let quiet = bench.device.shut_down().unwrap();
    let names: Vec<_> = bench.queue.reclaim(&quiet).map(|item| item.name).collect();
    assert_eq!(names, [1]);
    assert_eq!(bench.pool.available(), bench.buffers);
    assert_eq!(bench.submit(1, 0), Err(QueueError::Broken), "a queue ends with its device");
}

#[derive(Clone, Debug)]
enum Step {
    Submit {
        readable: usize,
        writable: usize,
    },
    Kick,
    Take,
    /// Completes one of the chains that the device holds, without publishing.
    Use {
        which: prop::sample::Index,
        len: u32,
    },
    Publish,
    Reap,
    Pop,
    Interrupts(bool),
    Suppress(bool),
    Scribble(u8),
    // What no device may do.
    BadId(u32),
    Jump(u16),
}

fn polite() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..4, 0_usize..4).prop_map(|(readable, writable)| Step::Submit { readable, writable }),
        3 => Just(Step::Kick),
        6 => Just(Step::Take),
        5 => (any::<prop::sample::Index>(), 0_u32..300).prop_map(|(which, len)| Step::Use { which, len }),
        3 => Just(Step::Publish),
        3 => Just(Step::Reap),
        2 => Just(Step::Pop),
        1 => any::<bool>().prop_map(Step::Interrupts),
        1 => any::<bool>().prop_map(Step::Suppress),
    ]
}

fn hostile() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => polite(),
        2 => any::<u8>().prop_map(Step::Scribble),
        1 => prop_oneof![0_u32..40, any::<u32>()].prop_map(Step::BadId),
        1 => prop_oneof![0_u16..40, any::<u16>()].prop_map(Step::Jump),
    ]
}

/// Runs `steps` against a model of what should come back. The device may lie only if `hostile`.
fn run(size: u16, steps: Vec<Step>, hostile: bool) {
    let mut bench = Bench::new(size);
    let mut held = Vec::<Chain>::new();
    // Chains used but not reaped, in order, with what the driver should say of their length.
    let mut expected = Vec::new();
    let mut published = 0;
    let mut scribbled = false;
    for step in steps {
        match step {
            Step::Submit { readable, writable } => {
                let fits = readable + writable <= usize::from(bench.queue.free());
                match bench.submit(readable, writable) {
                    Ok(_) => assert!(fits && readable + writable > 0),
                    Err(QueueError::Full) => assert!(!fits),
                    Err(QueueError::BadChain) => assert_eq!(readable + writable, 0),
                    Err(error) => assert_eq!((hostile, error), (true, QueueError::Broken)),
                }
            }
            Step::Kick => {
                let before = bench.fake.kicks(0);
                bench.queue.kick();
                assert!(bench.fake.kicks(0) <= before + 1);
            }
            // After a scribble the model cannot read its own chains any more: it only lies from then on.
            Step::Take if !scribbled => held.extend(bench.ring.take()),
            Step::Use { which, len } if !held.is_empty() => {
                let chain = held.swap_remove(which.index(held.len()));
                bench.ring.put_used(chain.head.into(), len);
                expected.push(Some(len).filter(|&len| len <= chain.writable_len()));
            }
            Step::Publish => {
                bench.ring.publish_used(bench.ring.used_index);
                published = expected.len();
            }
            Step::Reap | Step::Pop => {
                let single = matches!(step, Step::Pop);
                let result = if single {
                    let inside = &mut bench.inside;
                    bench.queue.pop().map(|done| {
                        done.into_iter()
                            .map(|done| {
                                assert!(inside.remove(&done.buffers.name));
                                (done.buffers.name, done.written)
                            })
                            .collect()
                    })
                } else {
                    bench.reap()
                };
                match result {
                    Ok(back) if !hostile => {
                        assert!(back.len() <= published);
                        assert!(single || published == 0 || !back.is_empty());
                        for (_, written) in back {
                            assert_eq!(written, expected.remove(0));
                            published -= 1;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => assert_eq!((hostile, error), (true, QueueError::Broken)),
                }
            }
            Step::Interrupts(true) => {
                let more = bench.queue.enable_interrupts();
                assert!(more || published == 0 || hostile);
            }
            Step::Interrupts(false) => bench.queue.disable_interrupts(),
            Step::Suppress(on) => bench.ring.suppress_kicks(on),
            Step::Scribble(with) => {
                bench.ring.scribble(with);
                scribbled = true;
            }
            Step::BadId(id) => bench.ring.put_used(id, 0),
            Step::Jump(index) => bench.ring.publish_used(index),
            Step::Take | Step::Use { .. } => {}
        }
        bench.check();
    }
    if hostile {
        let held = bench.buffers - bench.pool.available();
        drop(bench.queue);
        assert_eq!(bench.pool.available(), bench.buffers - held);
        return;
    }
    // A polite device gives everything back.
    bench.queue.kick();
    held.extend(std::iter::from_fn(|| bench.ring.take()));
    for chain in held {
        bench.ring.complete(chain.head, chain.writable_len());
    }
    bench.ring.publish_used(bench.ring.used_index);
    while !bench.reap().unwrap().is_empty() {}
    bench.check();
    assert!(bench.inside.is_empty());
    assert_eq!(bench.queue.free(), size);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_comes_back_from_a_polite_device(
        size in (0_u32..6).prop_map(|shift| 1_u16 << shift),
        steps in prop::collection::vec(polite(), 1..200),
    ) {
        run(size, steps, false);
    }

    #[test]
    fn a_hostile_device_breaks_the_queue_and_nothing_else(
        size in (0_u32..6).prop_map(|shift| 1_u16 << shift),
        steps in prop::collection::vec(hostile(), 1..200),
    ) {
        run(size, steps, true);
    }
}
