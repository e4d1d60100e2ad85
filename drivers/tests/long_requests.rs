//! Where the device limits segments, requests have many. They do not cost the short ones their room, and give
//! back what they took of it.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use ringfence_drivers::block::{Block, Options, Request, RequestError};
use ringfence_drivers::virtio::{DeviceType, QueueOptions};
use ringfence_memory::{DmaBuf, DmaPool};
use ringfence_testkit::bench::{FORMATS, Room};
use ringfence_testkit::disk::{ALL, Disk, SECTOR, bytes, config};
use ringfence_testkit::{Chain, Fake, FakeTransport, IN_ORDER, INDIRECT_DESC};

/// The disk's size.
const LEN: usize = 4 << 20;
/// Header and status.
const FIXED: usize = 2;

/// What is to be read from the lower half of the disk, and written to the upper one.
fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|at| (at / SECTOR * 7 + at % 251) as u8).collect()
}

struct Bench {
    block: Block<FakeTransport>,
    disk: Disk,
    /// For a sector, and for requests of any length.
    pools: [DmaPool; 2],
    buffers: usize,
    held: Vec<Chain>,
    /// By ticket: where the request begins on the disk and its length.
    inside: HashMap<usize, (usize, usize)>,
    room: Room,
    size_max: usize,
    submitted: usize,
}

impl Bench {
    fn new(features: u64, size_max: u32, size: u16, depth: u16, long: usize) -> Self {
        let sectors = (LEN / SECTOR) as u64;
        let fake =
            Fake::new(DeviceType::BLOCK, ALL | features, config(sectors, size_max, u32::MAX, 512), &[size]);
        let options = Options { queue_size: size, depth, ..Options::default() };
        let block = Block::with_options(fake.transport(), &fake.grant(), fake.windows(), &options).unwrap();
        let mut disk = Disk::new(fake.ring(0));
        disk.data = pattern(0, LEN / 2);
        disk.data.resize(LEN, 0);
        let wanted = (1_u32 << 20).div_ceil(size_max) as u16 + FIXED as u16;
        let room = Room::of(features, &QueueOptions { size, chains: depth, segments: 3, longest: wanted });
        let longest = block.queue.geometry().segments as usize;
        assert_eq!((block.queue.depth(), longest), (room.depth, room.longest - FIXED));
        let size_max = size_max as usize;
        let short = room.depth + 1;
        let pool = |count, len| DmaPool::new(&fake.windows(), count, len).unwrap();
        let pools = [pool(short, SECTOR), pool(long, longest * size_max + SECTOR)];
        let (buffers, held, inside) = (short + long, vec![], HashMap::new());
        Self { block, disk, pools, buffers, held, inside, room, size_max, submitted: 0 }
    }

    /// The most bytes of a request.
    fn longest(&self) -> usize {
        (self.room.longest - FIXED) * self.size_max
    }

    /// Submits a request of `len` bytes, which begins wherever it fits: to read, or to write.
    fn submit(&mut self, writes: bool, len: usize) -> Result<(), RequestError> {
        let room = LEN / 2 - len;
        let at = self.submitted * 5 * SECTOR % (room + SECTOR) + if writes { LEN / 2 } else { 0 };
        let (at, pool) = (at / SECTOR * SECTOR, &self.pools[usize::from(len > SECTOR)]);
        let mut buffer = pool.take().unwrap();
        self.submitted += 1;
        let sector = (at / SECTOR) as u64;
        let request = if writes {
            buffer.write_slice(&pattern(at, len), 0).unwrap();
            Request::Write { sector, buffer, len }
        } else {
            Request::Read { sector, buffer, len }
        };
        let count = |len: usize| len.div_ceil(self.size_max) + FIXED;
        let expected = self.room.expected(self.inside.values().map(|&(_, len)| count(len)), count(len));
        let result = self.block.queue.submit(request).map_err(|(error, request)| {
            assert_eq!(request.into_buffer().map(|buffer| buffer.len()), Some(pool.slot_len()));
            error
        });
        let in_flight = self.inside.len() + usize::from(result.is_ok());
        assert_eq!(self.block.queue.in_flight(), in_flight);
        assert_eq!(result.as_ref().map(drop).map_err(|error| *error), expected.map_err(RequestError::from));
        let ticket = result?;
        assert_eq!(self.inside.insert(ticket.index(), (at, len)), None);
        Ok(())
    }

    /// The device takes all that is there.
    fn take(&mut self) {
        self.block.queue.kick();
        self.held.extend(std::iter::from_fn(|| self.disk.ring.take()));
    }

    /// The device answers a request that it holds.
    fn answer(&mut self, which: usize) {
        let chain = self.held.remove(which);
        let data = &chain.segments[1..chain.segments.len() - 1];
        let (last, others) = data.split_last().unwrap();
        assert!(others.iter().all(|segment| segment.len as usize == self.size_max));
        assert!(last.len as usize <= self.size_max);
        let written = self.disk.carry_out(&chain);
        self.disk.ring.complete(chain.head, written);
    }

    fn reap(&mut self) {
        let Self { inside, disk, .. } = self;
        let done = self.block.queue.reap(|done| {
            let (at, len) = inside.remove(&done.ticket.index()).unwrap();
            assert_eq!(done.result, Ok(()));
            assert!(disk.data[at..at + len] == pattern(at, len), "{len} bytes at {at}");
            let buffer: Option<DmaBuf> = done.buffer;
            assert!(bytes(&buffer.unwrap(), len) == pattern(at, len), "{len} bytes at {at}");
        });
        assert!(done.is_ok());
        assert_eq!(self.block.queue.in_flight(), inside.len());
        let free: usize = self.pools.iter().map(DmaPool::available).sum();
        assert_eq!(free + inside.len(), self.buffers);
    }

    /// Fills the queue with requests of `len` bytes, and says how many there is room for.
    fn fill(&mut self, len: usize) -> usize {
        let before = self.inside.len();
        while self.submit(self.submitted.is_multiple_of(2), len).is_ok() {}
        self.inside.len() - before
    }

    fn finish(&mut self) {
        self.take();
        while !self.held.is_empty() {
            self.answer(0);
        }
        while !self.inside.is_empty() {
            self.reap();
        }
    }
}

fn formats() -> Vec<u64> {
    FORMATS.into_iter().flat_map(|format| [format, format | IN_ORDER]).collect()
}

/// D9: the depth was what longest requests leave, down to 1.
#[test]
fn the_depth_does_not_depend_on_the_longest_request() {
    for format in formats() {
        for (size_max, indirect, depth, segments) in [
            // No request is longer than a segment.
            (1 << 20, false, 85, 1),
            (1 << 20, true, 128, 1),
            // Half of the ring is for long ones.
            (512, false, 42, 129),
            (4096, false, 42, 129),
            // No more than they need.
            (65536, false, 80, 16),
            (512, true, 128, 254),
            (4096, true, 128, 254),
            (65536, true, 128, 16),
        ] {
            let case = format!("{size_max}, indirect {indirect}, {format:#x}");
            let features = format | if indirect { INDIRECT_DESC } else { 0 };
            let mut bench = Bench::new(features, size_max, 256, 128, 2);
            assert_eq!(
                (bench.block.queue.depth(), bench.block.queue.geometry().segments),
                (depth, segments),
                "{case}"
            );
            let longest = bench.longest();
            for _ in 0..2 {
                for writes in [false, true] {
                    assert_eq!(bench.submit(writes, longest), Ok(()), "{case}");
                    assert_eq!(bench.submit(writes, longest + SECTOR), Err(RequestError::TooLong), "{case}");
                    // Beside it the short ones have all of their room, and beside them it has its own.
                    assert_eq!(bench.fill(SECTOR), depth - 1, "{case}");
                    bench.finish();
                    for _ in 1..depth {
                        assert_eq!(bench.submit(writes, SECTOR), Ok(()), "{case}");
                    }
                    assert_eq!(bench.submit(writes, longest), Ok(()), "{case}");
                    assert_eq!(bench.submit(writes, SECTOR), Err(RequestError::Full), "{case}");
                    bench.finish();
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// As many segments as this says of the most.
    Submit(bool, Index),
    Take,
    Answer(Index),
    Reap,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<(bool, Index)>().prop_map(|(writes, segments)| Step::Submit(writes, segments)),
        2 => Just(Step::Take),
        5 => any::<Index>().prop_map(Step::Answer),
        3 => Just(Step::Reap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Many long requests at once: some are too many, none is lost, and what they take comes back.
    #[test]
    fn long_requests_come_and_go(
        (format, indirect) in (select(formats()), prop::bool::weighted(0.3)),
        (size, depth) in (3_u16..100, 1_u16..30),
        size_max in select(vec![512_u32, 700, 1024]),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let features = format | if indirect { INDIRECT_DESC } else { 0 };
        let size = if features & ringfence_testkit::RING_PACKED == 0 { 1 << size.ilog2() } else { size };
        prop_assume!(size > 2);
        let mut bench = Bench::new(features, size_max, size, depth, 31);
        let longest = bench.longest() / SECTOR;
        let capacity = [1, longest].map(|sectors| {
            let count = bench.fill(sectors * SECTOR);
            bench.finish();
            count
        });
        for step in steps {
            match step {
                Step::Submit(writes, sectors) => {
                    let len = (1 + sectors.index(longest)) * SECTOR;
                    let _ = bench.submit(writes, len);
                }
                Step::Take => bench.take(),
                Step::Answer(which) if !bench.held.is_empty() => {
                    let in_order = features & IN_ORDER != 0;
                    bench.answer(if in_order { 0 } else { which.index(bench.held.len()) });
                }
                Step::Answer(_) => {}
                Step::Reap => bench.reap(),
            }
        }
        bench.finish();
        let after = [1, longest].map(|sectors| {
            let count = bench.fill(sectors * SECTOR);
            bench.finish();
            count
        });
        prop_assert_eq!(after, capacity, "all descriptors came back");
    }
}
