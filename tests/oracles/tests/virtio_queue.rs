//! Our driver side of the split ring, without and with indirect tables and event indexes, with rust-vmm's
//! `virtio-queue` as the device behind an IOMMU that maps only what is shared with it.

#![cfg(not(ringfence_loom))]

mod common;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use common::iommu::{Faults, Memory, memory};
use common::noise;
use proptest::prelude::*;
use ringfence_drivers::virtio::{
    BufferList, Completion, Device, DeviceType, Queue, QueueError, QueueOptions, QueueShape, Ticket, features,
};
use ringfence_memory::{Bytes as _, Direction, DmaPool, DmaWindows};
use ringfence_testkit::bench::no_controls;
use ringfence_testkit::{Fake, FakeNotifier, FakeTransport, grant};
use virtio_queue::{DescriptorChain, Queue as TheirQueue, QueueT, Reader, Writer};
use vm_memory::{Bytes as _, GuestAddress, GuestMemory, Permissions};

const BUFFER_LEN: usize = 512;
/// The most parts of a chain, if the queue is large enough.
const PARTS: u16 = 6;
const MODES: [u64; 4] =
    [0, features::INDIRECT_DESC, features::EVENT_IDX, features::INDIRECT_DESC | features::EVENT_IDX];

/// Where a part lies in its buffer: offset and length.
type Span = (usize, usize);

/// What the device should find in a chain.
struct Sent {
    name: u64,
    readable: Vec<u8>,
    /// Length of each part, and whether it is writable.
    shape: Vec<(u32, bool)>,
    /// Where the writable parts are in their buffers.
    writable: Vec<Span>,
}

/// What the device did with a chain, and the driver should see.
struct Done {
    name: u64,
    written: Vec<u8>,
    writable: Vec<Span>,
}

struct Bench {
    queue: Queue<BufferList, FakeNotifier>,
    pool: DmaPool,
    fake: Fake,
    windows: DmaWindows,
    theirs: TheirQueue,
    memory: Arc<Memory>,
    faults: Faults,
    features: u64,
    /// The most parts of a chain that always fits, and of any.
    segments: u16,
    longest: u16,
    /// With VIRTIO_F_EVENT_IDX, what the driver asked for: an interrupt for the used element of this index.
    used_event: Option<u16>,
    /// How often the device would have interrupted.
    interrupts: usize,
    names: u64,
    /// Submitted and not seen by the device yet.
    sent: VecDeque<Sent>,
    /// Taken by the device.
    held: Vec<(Sent, DescriptorChain<Arc<Memory>>)>,
    /// Completed and not reaped yet.
    done: VecDeque<Done>,
    /// Resets the device when all else is done.
    _device: Device<FakeTransport>,
}

impl Bench {
    fn new(size: u16, features: u64) -> Self {
        Self::with(size, features, PARTS, Direction::Both)
    }

    /// A queue whose slots have up to `segments` descriptors; what it has besides is for longer chains.
    fn with(size: u16, features: u64, segments: u16, direction: Direction) -> Self {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | features, vec![], &[size]);
        let windows = fake.windows();
        let offer = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
        let mut device = offer.negotiate(features::QUEUES).unwrap();
        assert_eq!(device.features(), features::VERSION_1 | features);
        let parts = PARTS.min(size);
        let segments = segments.min(parts);
        let chains = if segments < parts { size / 2 } else { u16::MAX };
        let options = QueueOptions { size: u16::MAX, chains, segments, longest: parts };
        let mut longest = 0;
        let context = |shape: &QueueShape| {
            longest = shape.segments;
            no_controls(shape)
        };
        let mut queue = device.queue(0, &options, segments, context).unwrap();
        queue.start(&device.driver_ok().unwrap());
        assert_eq!(queue.size(), size);
        if segments == parts {
            let depth =
                if features & features::INDIRECT_DESC != 0 && parts > 1 { size } else { size / parts };
            assert_eq!((queue.depth(), longest), (depth, parts));
        } else {
            assert!((1..=chains).contains(&queue.depth()) && longest > segments);
        }
        let depth = queue.depth();
        let buffers = usize::from(depth * parts);
        let pool = DmaPool::new_for(&windows, buffers + 1, BUFFER_LEN, direction).unwrap();

        let registers = fake.model().queues[0];
        let mut theirs = TheirQueue::new(size).unwrap();
        theirs.try_set_desc_table_address(GuestAddress(registers.descriptors)).unwrap();
        theirs.try_set_avail_ring_address(GuestAddress(registers.driver)).unwrap();
        theirs.try_set_used_ring_address(GuestAddress(registers.device)).unwrap();
        theirs.set_event_idx(features & features::EVENT_IDX != 0);
        theirs.set_ready(true);
        let faults = Faults::default();
        let memory = Arc::new(memory(&windows, &faults));
        assert!(theirs.is_valid(&*memory), "{:x?}", faults.take());
        Self {
            queue,
            pool,
            fake,
            windows,
            theirs,
            memory,
            faults,
            features,
            segments,
            longest,
            used_event: Some(0),
            interrupts: 0,
            names: 0,
            sent: VecDeque::new(),
            held: Vec::new(),
            done: VecDeque::new(),
            _device: device,
        }
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// The driver asks for an interrupt for what is used next, or for none.
    fn set_interrupts(&mut self, on: bool) {
        self.used_event = None;
        if on {
            let reaped = self.theirs.next_used().wrapping_sub(self.done.len() as u16);
            assert_eq!(self.queue.enable_interrupts(), !self.done.is_empty());
            self.used_event = Some(reaped);
        } else {
            self.queue.disable_interrupts();
        }
    }

    fn submit(&mut self, readable: &[Span], writable: &[Span]) -> Result<Ticket, QueueError> {
        self.names += 1;
        let name = self.names;
        let (mut buffers, mut spans) = ([Vec::new(), Vec::new()], Vec::new());
        let (mut bytes, mut shape) = (Vec::new(), Vec::new());
        for (index, &span) in readable.iter().chain(writable).enumerate() {
            let (buffer, (offset, len)) = (self.pool.take().ok_or(QueueError::Full)?, span);
            let is_writable = index >= readable.len();
            let data = noise(name << 8 | index as u64, len);
            buffer.as_volatile_slice().write_slice(&data, offset).unwrap();
            if !is_writable {
                bytes.extend(data);
            }
            shape.push((len as u32, is_writable));
            buffers[usize::from(is_writable)].push(buffer);
            spans.push(offset..offset + len);
        }
        let [to_read, to_write] = buffers;
        let item = BufferList::new(name, to_read, to_write, 0).with_segments(spans);
        let ticket = self.queue.submit(item).map_err(|(error, _)| error)?;
        self.sent.push_back(Sent { name, readable: bytes, shape, writable: writable.to_vec() });
        Ok(ticket)
    }

    /// The device takes a chain, and finds in it what was submitted.
    fn take(&mut self) -> bool {
        let Some(chain) = self.theirs.pop_descriptor_chain(self.memory.clone()) else { return false };
        let sent = self.sent.pop_front().expect("a chain that was never submitted");
        let descriptors: Vec<_> = chain.clone().collect();
        let shape: Vec<_> =
            descriptors.iter().map(|descriptor| (descriptor.len(), descriptor.is_write_only())).collect();
        assert_eq!(shape, sent.shape, "the parts of {}", sent.name);
        assert!(!descriptors.last().unwrap().has_next());
        let mut reader = Reader::new(&*self.memory, chain.clone()).unwrap();
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert!(bytes == sent.readable, "the bytes of {}", sent.name);
        self.held.push((sent, chain));
        true
    }

    /// The device writes `written` bytes to a chain that it holds and completes it.
    fn complete(&mut self, which: usize, written: usize) {
        let (sent, chain) = self.held.swap_remove(which);
        let (data, head) = (noise(!sent.name, written), chain.head_index());
        Writer::new(&*self.memory, chain).unwrap().write_all(&data).unwrap();
        let old = self.theirs.next_used();
        self.theirs.add_used(&*self.memory, head, written as u32).unwrap();
        let interrupt = self.theirs.needs_notification(&*self.memory).unwrap();
        // Without event indexes they do not look.
        if self.has(features::EVENT_IDX) {
            assert_eq!(interrupt, self.used_event == Some(old));
        }
        self.interrupts += usize::from(interrupt);
        self.done.push_back(Done { name: sent.name, written: data, writable: sent.writable });
    }

    /// The driver takes one completion, or all.
    fn reap(&mut self, one: bool) -> usize {
        let done = &mut self.done;
        let mut check = |completion: Completion<BufferList>| {
            let Done { name, written, writable } = done.pop_front().expect("a completion out of nothing");
            assert_eq!(completion.buffers.name(), name);
            assert_eq!(completion.written, Some(written.len() as u32));
            let mut data = Vec::new();
            let [_, to_write] = completion.buffers.buffers();
            assert_eq!(to_write.len(), writable.len());
            for (buffer, (offset, len)) in to_write.iter().zip(writable) {
                let mut part = vec![0; len];
                buffer.as_volatile_slice().read_slice(&mut part, offset).unwrap();
                data.extend(part);
            }
            assert!(data[..written.len()] == written[..], "what was written to {name}");
        };
        let count = if one {
            self.queue.pop().unwrap().map(check).iter().count()
        } else {
            self.queue.reap(|completion, _| check(completion)).unwrap()
        };
        assert_eq!(self.faults.take(), []);
        count
    }

    /// All that is left comes back, and nothing more.
    fn finish(mut self) {
        self.queue.kick();
        while self.take() {}
        while let Some((sent, _)) = self.held.last() {
            let most: u32 = sent.shape.iter().filter(|part| part.1).map(|part| part.0).sum();
            self.complete(self.held.len() - 1, most as usize);
        }
        self.reap(false);
        assert_eq!((self.sent.len(), self.done.len(), self.queue.in_flight()), (0, 0, 0));
        let buffers = usize::from(self.queue.depth()) * usize::from(PARTS.min(self.queue.size()));
        assert_eq!(self.pool.available(), buffers + 1);
        assert_eq!(self.faults.take(), []);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Submit(Vec<Span>, Vec<Span>),
    Kick,
    Take,
    /// Completes one of the chains that the device holds, with a part of what it may write.
    Complete(prop::sample::Index, prop::sample::Index),
    /// The driver takes one completion, or all.
    Reap(bool),
    /// The device asks for no notifications, or for them.
    Notifications(bool),
    Interrupts(bool),
}

fn spans() -> impl Strategy<Value = Vec<Span>> {
    let span = (0..BUFFER_LEN).prop_flat_map(|offset| (Just(offset), 1..=BUFFER_LEN - offset));
    prop::collection::vec(span, 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (spans(), spans()).prop_map(|(readable, writable)| Step::Submit(readable, writable)),
        4 => Just(Step::Kick),
        6 => Just(Step::Take),
        6 => any::<(prop::sample::Index, prop::sample::Index)>().prop_map(|(a, b)| Step::Complete(a, b)),
        4 => any::<bool>().prop_map(Step::Reap),
        1 => any::<bool>().prop_map(Step::Notifications),
        2 => any::<bool>().prop_map(Step::Interrupts),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn chains_in_any_order(
        size in (0_u32..8).prop_map(|shift| 1_u16 << shift),
        features in prop::sample::select(&MODES[..]),
        segments in 1..=PARTS,
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let mut bench = Bench::with(size, features, segments, Direction::Both);
        // With event indexes, the available entry to be notified of.
        let (mut wanted, mut event) = (true, 0_u16);
        for step in steps {
            match step {
                Step::Submit(readable, writable) => {
                    let parts = readable.len() + writable.len();
                    match bench.submit(&readable, &writable) {
                        Ok(_) => assert!((1..=bench.longest.into()).contains(&parts)),
                        Err(QueueError::BadChain) => assert!(parts == 0 || parts > bench.longest.into()),
                        Err(error) => {
                            assert_eq!(error, QueueError::Full);
                            let full = bench.queue.in_flight() == bench.queue.depth();
                            assert!(full || parts > bench.segments.into());
                        }
                    }
                }
                Step::Kick => {
                    let before = bench.fake.kicks(0);
                    let seen = bench.theirs.avail_idx(&*bench.memory, Relaxed);
                    bench.queue.kick();
                    let old = seen.unwrap();
                    let new = bench.theirs.avail_idx(&*bench.memory, Relaxed).unwrap();
                    let passed = event.wrapping_sub(old.0) < new.0.wrapping_sub(old.0);
                    let due = if bench.has(features::EVENT_IDX) { passed } else { wanted && old != new };
                    assert_eq!(bench.fake.kicks(0) - before, usize::from(due));
                }
                Step::Take => {
                    bench.take();
                }
                Step::Complete(which, written) if !bench.held.is_empty() => {
                    let which = which.index(bench.held.len());
                    let shape = &bench.held[which].0.shape;
                    let most: u32 = shape.iter().filter(|part| part.1).map(|part| part.0).sum();
                    bench.complete(which, written.index(most as usize + 1));
                }
                Step::Complete(..) => {}
                Step::Reap(one) => {
                    let expected = if one { bench.done.len().min(1) } else { bench.done.len() };
                    assert_eq!(bench.reap(one), expected);
                }
                Step::Notifications(true) => {
                    let pending = bench.theirs.enable_notification(&*bench.memory).unwrap();
                    (wanted, event) = (true, bench.theirs.next_avail());
                    let published = bench.theirs.avail_idx(&*bench.memory, Relaxed).unwrap().0;
                    assert_eq!(pending, published != bench.theirs.next_avail());
                }
                Step::Notifications(false) => {
                    bench.theirs.disable_notification(&*bench.memory).unwrap();
                    wanted = false;
                }
                Step::Interrupts(on) => bench.set_interrupts(on),
            }
        }
        bench.finish();
    }
}

#[test]
fn both_indices_wrap() {
    for features in MODES {
        let mut bench = Bench::new(4, features);
        for round in 0..70_000_usize {
            let part = [(round % 64, 1 + round % 61)];
            // Neither side ever waits for the other, but every thousandth time.
            let sleeps = round % 1000 == 0;
            bench.set_interrupts(sleeps);
            if sleeps {
                bench.theirs.enable_notification(&*bench.memory).unwrap();
            } else {
                bench.theirs.disable_notification(&*bench.memory).unwrap();
            }
            bench.submit(&part, if round % 3 == 0 { &[] } else { &part }).unwrap();
            bench.fake.model().events.clear();
            bench.queue.kick();
            assert_eq!(bench.fake.kicks(0), usize::from(sleeps), "round {round}");
            assert!(bench.take());
            let interrupts = bench.interrupts;
            bench.complete(0, if round % 3 == 0 { 0 } else { round % 61 });
            if bench.has(features::EVENT_IDX) {
                assert_eq!(bench.interrupts - interrupts, usize::from(sleeps));
            }
            assert_eq!(bench.reap(false), 1);
        }
        assert_eq!((bench.theirs.next_avail(), bench.theirs.next_used()), (4464, 4464));
        bench.finish();
    }
}

/// One chain of a readable and a writable part in flight, and what the device sees of it.
fn one_in_flight() -> (Bench, DescriptorChain<Arc<Memory>>) {
    let mut bench = Bench::new(4, 0);
    bench.submit(&[(0, 100)], &[(0, 50)]).unwrap();
    bench.queue.kick();
    let chain = bench.theirs.pop_descriptor_chain(bench.memory.clone()).unwrap();
    assert_eq!(bench.faults.take(), []);
    (bench, chain)
}

#[test]
fn a_wrong_descriptor_is_a_fault() {
    for (field, value) in [(0, 0x1000_u64), (8, 0x0010_0000_0000)] {
        let (bench, chain) = one_in_flight();
        let at = bench.theirs.desc_table() + 16 * u64::from(chain.head_index());
        // Behind the driver's back: an address that is not its, or a length beyond the window.
        let descriptor = bench.fake.ring(0).memory(at, 16);
        let bytes =
            if field == 0 { value.to_le_bytes().to_vec() } else { (1_u32 << 24).to_le_bytes().to_vec() };
        descriptor.slice().write_slice(&bytes, field).unwrap();
        assert!(Reader::new(&*bench.memory, chain).is_err());
        assert_eq!(bench.faults.take().len(), 1);
    }
}

#[test]
fn memory_that_was_taken_back_is_a_fault() {
    let (mut bench, chain) = one_in_flight();
    let parts: Vec<_> = chain.clone().collect();
    bench.theirs.add_used(&*bench.memory, chain.head_index(), 0).unwrap();
    let completion = bench.queue.pop().unwrap().unwrap();
    let read = |memory: &Memory| memory.read_slice(&mut [0; 100], parts[0].addr());
    let write = |memory: &Memory| memory.write_slice(&[0; 50], parts[1].addr());
    assert!(read(&bench.memory).is_ok() && write(&bench.memory).is_ok(), "too early, but possible");
    drop((completion, bench.pool));
    let memory = memory(&bench.windows, &bench.faults);
    assert!(bench.theirs.is_valid(&memory), "the rings are still there");
    assert!(read(&memory).is_err() && write(&memory).is_err());
    let expected = [(parts[0].addr().0, 100, Permissions::Read), (parts[1].addr().0, 50, Permissions::Write)];
    assert_eq!(bench.faults.take(), expected);
}

#[test]
fn beyond_a_window_is_a_fault() {
    let (bench, _) = one_in_flight();
    for (start, access) in
        [(bench.theirs.desc_table(), Permissions::Read), (bench.theirs.used_ring(), Permissions::Write)]
    {
        // Windows are whole pages.
        let last = GuestAddress(start | 4095);
        assert!(bench.memory.check_range(last, 1, access));
        assert!(!bench.memory.check_range(last, 2, access));
        assert!(!bench.memory.check_range(last, 1, Permissions::ReadWrite));
        let expected = [(last.0, 2, access), (last.0, 1, Permissions::ReadWrite)];
        assert_eq!(bench.faults.take(), expected);
    }
}

#[test]
fn the_wrong_direction_is_a_fault() {
    for (direction, refused) in
        [(Direction::ToDevice, Permissions::Write), (Direction::FromDevice, Permissions::Read)]
    {
        let mut bench = Bench::with(4, 0, PARTS, direction);
        // The driver does not even tell of it.
        assert_eq!(bench.submit(&[(0, 100)], &[(0, 50)]), Err(QueueError::BadChain));
        let (allowed, wrong): (&[&[Span]; 2], &[&[Span]; 2]) = match refused {
            Permissions::Write => (&[&[(0, 100)], &[]], &[&[], &[(0, 50)]]),
            _ => (&[&[], &[(0, 50)]], &[&[(0, 100)], &[]]),
        };
        assert_eq!(bench.submit(wrong[0], wrong[1]), Err(QueueError::BadChain));
        bench.submit(allowed[0], allowed[1]).unwrap();
        bench.queue.kick();
        let chain = bench.theirs.pop_descriptor_chain(bench.memory.clone()).unwrap();
        let descriptors: Vec<_> = chain.collect();
        let is_writable = refused == Permissions::Read;
        assert_eq!((descriptors.len(), descriptors[0].is_write_only()), (1, is_writable));
        // A device that does it all the same.
        let (at, len) = (descriptors[0].addr(), descriptors[0].len() as usize);
        let (bytes, mut to) = (vec![1; len], vec![0; len]);
        assert_eq!(bench.memory.read_slice(&mut to, at).is_err(), refused == Permissions::Read);
        assert_eq!(bench.memory.write_slice(&bytes, at).is_err(), refused == Permissions::Write);
        assert_eq!(bench.faults.take(), [(at.0, len, refused)]);
    }
}
