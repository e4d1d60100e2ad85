//! The block driver's options: several queues, depths and sizes of rings, indirect tables, both formats.

use std::{mem, thread};

use ringfence_drivers::block::{self, Block, BlockQueue, Options, Request, RequestError};
use ringfence_drivers::virtio::{DeviceType, Error, QueueError, features};
use ringfence_memory::{DmaBuf, DmaError, DmaPool};
use ringfence_testkit::bench::FORMATS;
use ringfence_testkit::disk::{ALL, Disk, SECTOR, SECTORS, bytes, config};
use ringfence_testkit::{
    Chain, EVENT_IDX, Event, Fake, FakeNotifier, FakeTransport, IN_ORDER, INDIRECT_DESC, RING_PACKED,
    RING_RESET,
};

const MQ: u64 = block::features::MQ;
const BUFFERS: usize = 512;

/// A configuration with `queues` request queues (5.2.4).
fn config_with(queues: u16) -> Vec<u8> {
    let mut config = config(SECTORS, 1 << 20, 4, 512);
    config[34..36].copy_from_slice(&queues.to_le_bytes());
    config
}

struct Bench {
    fake: Fake,
    block: Block<FakeTransport>,
    pool: DmaPool,
}

impl Bench {
    fn new(offered: u64, config: Vec<u8>, sizes: &[u16], options: &Options) -> Result<Self, Error> {
        let fake = Fake::new(DeviceType::BLOCK, ALL | offered, config, sizes);
        let block = Block::with_options(fake.transport(), &fake.grant(), fake.windows(), options);
        if block.is_err() {
            assert_eq!((fake.platform.dma_in_use(), fake.model().status), (0, 128), "all is given back");
        }
        let pool = DmaPool::new(&fake.windows(), BUFFERS, 4096).unwrap();
        Ok(Self { fake, block: block?, pool })
    }

    fn queues(&mut self) -> usize {
        self.block.split().1.count()
    }

    fn read(&self, sector: u64, len: usize) -> Request {
        Request::Read { sector, buffer: self.pool.take().unwrap(), len }
    }

    /// Submits as many reads of a sector as there is room for, and takes their chains.
    fn fill(&mut self, disk: &mut Disk) -> Vec<Chain> {
        for number in 0.. {
            let request = self.read(number % SECTORS, SECTOR);
            match self.block.queue.submit(request) {
                Ok(_) => {}
                Err((error, _)) => {
                    assert_eq!(error, RequestError::Full);
                    break;
                }
            }
        }
        self.block.queue.kick();
        std::iter::from_fn(|| disk.ring.take()).collect()
    }

    fn reap_good(&mut self) -> usize {
        self.block.queue.reap(|done| assert_eq!(done.result, Ok(()))).unwrap()
    }
}

#[test]
fn interrupts_as_the_caller_wants_them() {
    for format in FORMATS {
        for features in [format, format | EVENT_IDX] {
            let config = config_with(1);
            let mut bench = Bench::new(features, config, &[16], &Options::default()).unwrap();
            let mut disk = Disk::new(bench.fake.ring(0));
            for _ in 0..3 {
                bench.block.queue.disable_interrupts();
                assert!(!disk.ring.interrupts_wanted(), "features {features:#x}");
                assert!(!bench.block.queue.enable_interrupts(), "nothing is there: the caller may sleep");
                assert!(disk.ring.interrupts_wanted(), "features {features:#x}");
                bench.block.queue.submit(Request::Flush).unwrap();
                bench.block.queue.kick();
                assert_eq!(disk.serve_all(), 1);
                assert!(bench.block.queue.enable_interrupts(), "an answer is there");
                assert_eq!(bench.reap_good(), 1);
            }
        }
    }
}

fn finish(disk: &mut Disk, chains: Vec<Chain>) {
    for chain in chains {
        let written = disk.carry_out(&chain);
        disk.ring.put_used(chain.head.into(), written);
    }
    disk.ring.publish();
}

#[test]
fn as_many_queues_as_wanted_and_there() {
    for (offered, there, wanted, expected) in [
        (MQ, 4, 1, 1),
        (MQ, 4, 3, 3),
        (MQ, 4, 4, 4),
        (MQ, 3, 4, 3),
        (MQ, 1, 4, 1),
        (MQ, 4, 65535, 4),
        // Several queues, and none: taken to be one.
        (MQ, 0, 4, 1),
        // The field means nothing without the feature.
        (0, 4, 4, 1),
        (MQ, 4, 0, 1),
    ] {
        let options = Options { queues: wanted, ..Options::default() };
        let mut bench = Bench::new(offered, config_with(there), &[64; 4], &options).unwrap();
        let case = format!("{there} there, {wanted} wanted");
        assert_eq!(bench.queues(), expected, "{case}");
        assert_eq!(bench.block.control.features() & MQ, offered, "{case}");
        let up = |event: &&Event| matches!(event, Event::QueueUp(_));
        let events = bench.fake.model().events.iter().filter(up).copied().collect::<Vec<_>>();
        assert_eq!(events, (0..expected as u16).map(Event::QueueUp).collect::<Vec<_>>(), "{case}");
    }
}

#[test]
fn queues_that_are_announced_but_not_there() {
    let options = Options { queues: u16::MAX, ..Options::default() };
    for (there, sizes, missing) in
        [(4, vec![64, 64, 0, 64], 2), (u16::MAX, vec![64; 3], 3), (2, vec![64, 2], 1)]
    {
        let result = Bench::new(MQ, config_with(there), &sizes, &options);
        assert_eq!(result.map(drop), Err(Error::QueueUnavailable(missing)));
    }
    // A configuration that ends before the field.
    let mut short = config_with(4);
    short.truncate(34);
    assert_eq!(Bench::new(MQ, short, &[64; 4], &options).map(drop), Err(Error::BadConfig));
}

#[test]
fn options_that_cannot_be() {
    for (options, expected) in [
        (Options { queue_size: 0, ..Options::default() }, Some(Error::QueueUnavailable(0))),
        (Options { queue_size: 2, ..Options::default() }, Some(Error::QueueUnavailable(0))),
        (Options { depth: 0, ..Options::default() }, None),
    ] {
        let result = Bench::new(0, config_with(1), &[64], &options).map(drop);
        assert!(expected.map_or(result.is_err(), |expected| result == Err(expected)), "{options:?}");
    }
    let all = features::QUEUES;
    for wanted in [0, all & !RING_PACKED, RING_PACKED, INDIRECT_DESC, EVENT_IDX] {
        let options = Options { features: wanted, ..Options::default() };
        let bench = Bench::new(all, config_with(1), &[64], &options).unwrap();
        assert_eq!(bench.block.control.features() & all, wanted, "only what the user wants");
    }
    // What is no feature of queues cannot be had this way.
    let options = Options { features: u64::MAX, ..Options::default() };
    let bench = Bench::new(u64::MAX, config_with(1), &[64], &options).unwrap();
    assert_eq!(bench.block.control.features() & 1 << 14, 0, "WRITE_ZEROES is not implemented");
}

/// Reads every sector a few times through one queue, and answers as its disk.
fn work(queue: &mut BlockQueue<FakeNotifier>, disk: &mut Disk, buffers: &mut Vec<DmaBuf>) {
    let depth = buffers.len();
    for round in 0..40 {
        let mut sectors = std::collections::HashMap::new();
        for number in 0..depth as u64 {
            let (sector, buffer) = ((round * 7 + number) % SECTORS, buffers.pop().unwrap());
            let ticket = queue.submit(Request::Read { sector, buffer, len: SECTOR }).unwrap();
            assert!(sectors.insert(ticket, sector).is_none());
        }
        queue.kick();
        assert_eq!(disk.serve_all(), depth);
        let count = queue.reap(|done| {
            let (sector, buffer) = (sectors.remove(&done.ticket).unwrap(), done.buffer.unwrap());
            assert_eq!(done.result, Ok(()));
            assert_eq!(bytes(&buffer, SECTOR), disk.expected(sector, SECTOR));
            buffers.push(buffer);
        });
        assert_eq!(count, Ok(depth));
        thread::yield_now();
    }
}

#[test]
fn each_queue_works_on_a_cpu_of_its_own() {
    for format in FORMATS {
        let options = Options { queues: 4, ..Options::default() };
        let mut bench = Bench::new(MQ | format, config_with(4), &[64; 4], &options).unwrap();
        let Bench { fake, block, pool } = &mut bench;
        let mut disks: Vec<_> = (0..4).map(|index| Disk::new(fake.ring(index))).collect();
        thread::scope(|scope| {
            let (control, queues) = block.split();
            let mut workers = Vec::new();
            for ((index, queue), disk) in queues.enumerate().zip(&mut disks) {
                let mut buffers: Vec<_> = (0..=index).map(|_| pool.take().unwrap()).collect();
                workers.push(scope.spawn(move || work(queue, disk, &mut buffers)));
            }
            // Meanwhile the device as a whole can be looked after.
            assert_eq!(control.config_changed(), Ok(false));
            workers.into_iter().for_each(|worker| worker.join().unwrap());
        });
        for (index, queue) in block.split().1.enumerate() {
            let counters = queue.counters();
            assert_eq!(counters.completions, 40 * (index as u64 + 1), "only its own");
            assert_eq!((counters.kicks, counters.rejected), (40, 0));
            assert_eq!(fake.kicks(index as u16), 40);
        }
        assert_eq!(pool.available(), BUFFERS);
    }
}

#[test]
fn all_queues_learn_of_a_new_capacity() {
    let options = Options { queues: 3, ..Options::default() };
    let mut bench = Bench::new(MQ, config_with(3), &[64; 3], &options).unwrap();
    let Bench { fake, block, pool } = &mut bench;
    let read = |sector| Request::Read { sector, buffer: pool.take().unwrap(), len: SECTOR };
    let (control, queues) = block.split();
    let mut queues: Vec<_> = queues.collect();
    for (capacity, changed) in [(SECTORS, false), (16, true), (16, false), (40, true)] {
        fake.model().config[0..8].copy_from_slice(&capacity.to_le_bytes());
        assert_eq!(control.config_changed(), Ok(changed));
        for queue in &mut queues {
            assert_eq!(queue.geometry().sectors, capacity);
            assert_eq!(queue.submit(read(capacity)).unwrap_err().0, RequestError::OutOfRange);
            assert!(queue.submit(read(capacity - 1)).is_ok());
        }
    }
}

#[test]
fn a_broken_queue_and_its_neighbours() {
    for format in FORMATS {
        let options = Options { queues: 3, ..Options::default() };
        let mut bench = Bench::new(MQ | format, config_with(3), &[64; 3], &options).unwrap();
        let Bench { fake, block, pool } = &mut bench;
        let read = || Request::Read { sector: 0, buffer: pool.take().unwrap(), len: SECTOR };
        for queue in block.split().1 {
            queue.submit(read()).unwrap();
            queue.submit(read()).unwrap();
            queue.kick();
        }
        let mut disks: Vec<_> = (0..3).map(|index| Disk::new(fake.ring(index))).collect();
        disks[1].ring.complete(50, 513);
        disks[2].serve_all();
        let results: Vec<_> = block.split().1.map(|queue| queue.reap(drop)).collect();
        assert_eq!(results, [Ok(0), Err(QueueError::Broken), Ok(2)]);
        let broken: Vec<_> = block.split().1.map(|queue| queue.is_broken()).collect();
        assert_eq!(broken, [false, true, false]);
        assert_eq!(pool.available(), BUFFERS - 4);
        let (windows, platform) = (fake.windows(), fake.platform);
        drop(bench.block);
        assert_eq!(bench.pool.available(), BUFFERS, "the reset gave back what all queues had");
        drop(bench.pool);
        assert_eq!((platform.dma_in_use(), windows.usage()), (0, (0, 0)));
    }
}

/// Who cannot wait for a queue's reset asks, and looks now and then. The others go on meanwhile.
#[test]
fn a_queue_is_reset_while_its_neighbour_works() {
    let options = Options { queues: 2, ..Options::default() };
    let mut bench = Bench::new(MQ | RING_RESET, config_with(2), &[64; 2], &options).unwrap();
    let mut buffers: Vec<_> = (0..20).map(|_| bench.pool.take().unwrap()).collect();
    let read = bench.read(0, SECTOR);
    let Bench { fake, block, .. } = &mut bench;
    fake.model().stuck_queues = true;
    let (control, mut queues) = block.split();
    let [first, second] = [(); 2].map(|()| queues.next().unwrap());
    assert_eq!(control.begin_reset_queue(second), Ok(()));
    assert_eq!(control.poll_reset_queue(second), None);
    assert_eq!(second.submit(read).unwrap_err().0, RequestError::Full);
    work(first, &mut Disk::new(fake.ring(0)), &mut buffers);
    fake.model().stuck_queues = false;
    assert_eq!(control.poll_reset_queue(second), Some(Ok(())));
    let resets = |event: &&Event| matches!(event, Event::QueueReset(_));
    assert_eq!(fake.model().events.iter().filter(resets).collect::<Vec<_>>(), [&Event::QueueReset(1)]);
    work(second, &mut Disk::new(fake.ring(1)), &mut buffers);
}

#[test]
fn without_proof_no_queue_gives_anything_back() {
    let options = Options { queues: 2, ..Options::default() };
    let bench = Bench::new(MQ, config_with(2), &[64; 2], &options).unwrap();
    let Bench { fake, mut block, pool } = bench;
    for queue in block.split().1 {
        queue.submit(Request::Read { sector: 0, buffer: pool.take().unwrap(), len: SECTOR }).unwrap();
        queue.kick();
    }
    fake.model().stuck = true;
    let in_use = fake.platform.dma_in_use();
    drop(block);
    assert_eq!((pool.available(), fake.platform.dma_in_use()), (BUFFERS - 2, in_use));
}

/// Safe code can swap the parts of two disks. No buffer comes back before the device that has it was reset.
#[test]
fn queues_swapped_between_two_disks() {
    for format in FORMATS {
        let bench = |_| Bench::new(format | RING_RESET, config_with(1), &[16], &Options::default()).unwrap();
        let mut benches = [0, 1].map(bench);
        for bench in &mut benches {
            assert!(!bench.fill(&mut Disk::new(bench.fake.ring(0))).is_empty());
        }
        let [Bench { fake, mut block, pool }, other] = benches;
        let available = (pool.available(), other.pool.available());
        let mut swapped = other.block;
        mem::swap(&mut block.queue, &mut swapped.queue);
        let wrong = Err(Error::Dma(DmaError::WrongLife));
        assert_eq!(block.control.reset_queue(&mut block.queue), wrong);

        drop(block);
        assert_eq!((fake.model().status, other.fake.model().status), (0, 15), "one device was reset");
        assert_eq!((pool.available(), other.pool.available()), available, "and has no queue here");
        drop((pool, other.pool));
        assert!(other.fake.platform.dma_in_use() > 0, "the device may still write there");
        drop(swapped);
        assert_eq!(other.fake.model().status, 0);
        assert_eq!((fake.platform.dma_in_use(), other.fake.platform.dma_in_use()), (0, 0));
    }
}

/// D15: no request is slower because of another.
#[test]
fn all_in_tables_or_none() {
    for format in FORMATS.into_iter().flat_map(|format| [format, format | IN_ORDER]) {
        for (size, depth, indirect, expected) in [
            // All direct.
            (256, 128, false, 85),
            (256, 85, true, 85),
            (512, 128, true, 128),
            (4, 1, true, 1),
            (4, 4, false, 1),
            // All by tables.
            (256, 128, true, 128),
            (256, 86, true, 86),
            (64, 40, true, 40),
            (256, 256, true, 256),
            (256, 1000, true, 256),
            (4, 4, true, 4),
        ] {
            let case = format!("{depth} of {size}, indirect {indirect}, format {format:#x}");
            let offered = format | if indirect { INDIRECT_DESC } else { 0 };
            let options = Options { queue_size: size, depth, ..Options::default() };
            let mut bench = Bench::new(offered, config_with(1), &[1024], &options).unwrap();
            assert_eq!(
                (bench.block.queue.depth(), bench.block.queue.queue_size()),
                (expected, size),
                "{case}"
            );
            let mut disk = Disk::new(bench.fake.ring(0));
            let mut tables = std::collections::HashSet::new();
            for _ in 0..3 {
                let chains = bench.fill(&mut disk);
                assert_eq!((chains.len(), bench.block.queue.in_flight()), (expected, expected), "{case}");
                let descriptors: usize = chains.iter().map(|chain| usize::from(chain.descriptors)).sum();
                assert!(descriptors <= size.into(), "{descriptors} descriptors: {case}");
                let tabled = 3 * expected > size.into();
                assert!(chains.iter().all(|chain| chain.table.is_some() == tabled), "{case}");
                let each = if tabled { 1 } else { 3 };
                assert!(chains.iter().all(|chain| chain.descriptors == each), "{case}");
                let used: Vec<_> = chains.iter().filter_map(|chain| chain.table).collect();
                tables.extend(used.iter().copied());
                let distinct: std::collections::HashSet<_> = used.iter().collect();
                assert_eq!(distinct.len(), used.len(), "no table is used twice at once: {case}");
                finish(&mut disk, chains);
                assert_eq!(bench.reap_good(), expected, "{case}");
            }
            assert!(tables.len() <= expected, "tables are used again: {case}");
        }
    }
}

/// D15: with the default options, however many requests are in flight, all kinds of them.
#[test]
fn the_default_options_have_one_path() {
    let formats = FORMATS.into_iter().flat_map(|format| [format, format | IN_ORDER]);
    assert_eq!((Options::default().depth, Options::default().queue_size), (64, 256));
    for (format, depth) in formats.flat_map(|format| [64, 128].map(|depth| (format, depth))) {
        let options = Options { depth, ..Options::default() };
        let mut bench = Bench::new(format | INDIRECT_DESC, config_with(1), &[256], &options).unwrap();
        let depth = bench.block.queue.depth();
        assert_eq!((depth, bench.block.queue.queue_size()), (options.depth.into(), 256));
        let mut disk = Disk::new(bench.fake.ring(0));
        let mut kinds = std::collections::HashSet::new();
        for round in 0..1000_usize {
            for number in 0..round % (depth + 1) {
                let buffer = bench.pool.take().unwrap();
                let request = match number % 4 {
                    0 => Request::Read { sector: 1, buffer, len: SECTOR },
                    1 => Request::Write { sector: 1, buffer, len: SECTOR },
                    2 => Request::Identify { buffer },
                    _ => Request::Flush,
                };
                bench.block.queue.submit(request).unwrap();
            }
            bench.block.queue.kick();
            let chains: Vec<_> = std::iter::from_fn(|| disk.ring.take()).collect();
            kinds.extend(chains.iter().map(|chain| (chain.table.is_some(), chain.descriptors)));
            finish(&mut disk, chains);
            assert_eq!(bench.reap_good(), round % (depth + 1));
        }
        // A flush has two segments.
        let expected = if depth > 64 { vec![(true, 1)] } else { vec![(false, 2), (false, 3)] };
        let mut kinds = Vec::from_iter(kinds);
        kinds.sort();
        assert_eq!(kinds, expected, "{format:#x}, depth {depth}");
    }
}

#[test]
fn segments_of_the_longest_length() {
    for (format, indirect) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let offered = format | if indirect { INDIRECT_DESC } else { 0 };
        for (size_max, seg_max, ring, segments) in [
            (512, 8, 64, 8),
            (1024, 3, 64, 3),
            (700, 100, 64, if indirect { 62 } else { 33 }),
            (512, 100, 8, if indirect { 6 } else { 5 }),
            (1 << 20, 8, 64, 1),
            (4096, 1000, 1024, 256),
            (u32::MAX, u32::MAX, 8, 1),
        ] {
            let case = format!("{seg_max} of {size_max} in {ring}, offered {offered:#x}");
            let config = config(SECTORS, size_max, seg_max, 512);
            let mut bench =
                Bench::new(offered, config, &[ring], &Options { queue_size: ring, ..Options::default() })
                    .unwrap();
            let geometry = bench.block.queue.geometry();
            assert_eq!((geometry.segments, geometry.segment_size), (segments, size_max), "{case}");
            let mut disk = Disk::new(bench.fake.ring(0));
            let longest = u64::from(segments) * u64::from(size_max);
            let longest = longest.min(4096) as usize / SECTOR * SECTOR;
            // Several at once, so that tables are used where there are any, and otherwise as many as the
            // descriptors are enough for that no slot has to itself.
            let mut buffers = Vec::new();
            let count = longest.div_ceil(size_max as usize) + 2;
            let spare = (!indirect).then(|| usize::from(ring) - 3 * bench.block.queue.depth());
            let most = spare.and_then(|spare| spare.checked_div(count - 3)).unwrap_or(20);
            for sector in 0..bench.block.queue.depth().min(most).min(20) as u64 {
                let request = bench.read(sector, longest);
                bench.block.queue.submit(request).unwrap();
                buffers.push(sector);
            }
            assert!(!buffers.is_empty());
            if most < bench.block.queue.depth().min(20) {
                let request = bench.read(0, longest);
                assert_eq!(bench.block.queue.submit(request).unwrap_err().0, RequestError::Full, "{case}");
            }
            if longest < 4096 {
                let request = bench.read(0, longest + SECTOR);
                assert_eq!(bench.block.queue.submit(request).unwrap_err().0, RequestError::TooLong, "{case}");
            }
            bench.block.queue.kick();
            let chains: Vec<_> = std::iter::from_fn(|| disk.ring.take()).collect();
            assert_eq!(chains.len(), buffers.len(), "{case}");
            for chain in &chains {
                let [header, data @ .., status] = &chain.segments[..] else { panic!("{case}") };
                assert_eq!((header.len, status.len), (16, 1));
                let (last, others) = data.split_last().unwrap();
                assert!(
                    others.iter().all(|segment| segment.len == size_max) && last.len <= size_max,
                    "{case}"
                );
                assert_eq!(data.iter().map(|segment| segment.len as usize).sum::<usize>(), longest, "{case}");
            }
            assert!(indirect || chains.iter().all(|chain| chain.table.is_none()));
            finish(&mut disk, chains);
            let (mut sectors, expected) = (buffers.into_iter(), &disk);
            bench
                .block
                .queue
                .reap(|done| {
                    let sector = sectors.next().unwrap();
                    assert_eq!(done.result, Ok(()), "{case}");
                    assert_eq!(bytes(&done.buffer.unwrap(), longest), expected.expected(sector, longest));
                })
                .unwrap();
            assert_eq!(sectors.next(), None, "{case}");
        }
    }
}

#[test]
fn packed_rings_of_any_size() {
    for (there, wanted, size) in [
        (3, 256, 3),
        (5, 256, 5),
        (100, 256, 100),
        (1000, 7, 7),
        (1000, 255, 255),
        (257, 257, 257),
        (1000, 999, 999),
    ] {
        for indirect in [0, INDIRECT_DESC] {
            let options = Options { queue_size: wanted, depth: 40, ..Options::default() };
            let mut bench = Bench::new(RING_PACKED | indirect, config_with(1), &[there], &options).unwrap();
            assert_eq!(bench.block.queue.queue_size(), size);
            let mut disk = Disk::new(bench.fake.ring(0));
            let depth = bench.block.queue.depth();
            assert_eq!(depth, if indirect != 0 { size.min(40) } else { (size / 3).min(40) }.into());
            // Around the ring a few times, with chains that cross its end, and in an order of the device's
            // own.
            for round in 0..200 {
                let mut chains = bench.fill(&mut disk);
                assert_eq!(chains.len(), depth);
                chains.rotate_left(round % depth);
                finish(&mut disk, chains);
                assert_eq!(bench.reap_good(), depth);
            }
        }
    }
}
