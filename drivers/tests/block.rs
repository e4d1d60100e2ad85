//! The block driver against a disk in memory that answers through the ring, rightly or wrongly.

use std::time::Duration;

use proptest::prelude::*;
use ringfence_drivers::block::{self, Block, Done, Geometry, Options, Request, RequestError, Ticket};
use ringfence_drivers::virtio::{DeviceType, Error, QueueError, features};
use ringfence_memory::{DeviceId, DmaBuf, DmaPool, DmaWindows};
use ringfence_testkit::disk::{ALL, Disk, ID_TEXT, SECTOR, SECTORS, bytes, config};
use ringfence_testkit::{Chain, DeviceRing, Fake, FakeTransport, INDIRECT_DESC, grant};

struct Bench {
    fake: Fake,
    block: Block<FakeTransport>,
    disk: Disk,
    pool: DmaPool,
}

fn bench_with(offered: u64, config: Vec<u8>, size: u16) -> Bench {
    let fake = Fake::new(DeviceType::BLOCK, offered, config, &[size]);
    let windows = fake.windows();
    let pool = DmaPool::new(&windows, 64, 4096).unwrap();
    let block = Block::new(fake.transport(), &grant(), windows).unwrap();
    let disk = Disk::new(fake.ring(0));
    Bench { fake, block, disk, pool }
}

fn bench() -> Bench {
    bench_with(ALL, config(SECTORS, 1 << 20, 4, 512), 64)
}

impl Bench {
    fn buffer(&self) -> DmaBuf {
        self.pool.take().unwrap()
    }

    fn read(&mut self, sector: u64, len: usize) -> Result<Ticket, RequestError> {
        let buffer = self.buffer();
        self.block.queue.submit(Request::Read { sector, buffer, len }).map_err(|(error, _)| error)
    }

    fn reap(&mut self) -> Vec<Done> {
        let mut done = Vec::new();
        self.block.queue.reap(|one| done.push(one)).unwrap();
        done
    }

    /// Submits a 512-byte read and lets `answer` complete it.
    fn read_answered(&mut self, answer: impl FnOnce(&mut DeviceRing, &Chain)) -> Result<(), RequestError> {
        self.read(3, SECTOR).unwrap();
        self.block.queue.kick();
        let chain = self.disk.ring.take().unwrap();
        answer(&mut self.disk.ring, &chain);
        let done = self.reap();
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].buffer.as_ref().map(DmaBuf::len), Some(4096), "the buffer comes back in any case");
        done.into_iter().next().unwrap().result
    }
}

#[test]
fn reads_writes_and_flushes() {
    let mut bench = bench();
    let mut buffer = bench.buffer();
    let pattern: Vec<u8> = (0..1024).map(|at| (at % 13) as u8).collect();
    buffer.write_slice(&pattern, 0).unwrap();
    bench.block.queue.submit(Request::Write { sector: 10, buffer, len: 1024 }).unwrap();
    bench.block.queue.submit(Request::Flush).unwrap();
    bench.read(5, 2048).unwrap();
    assert_eq!(bench.disk.ring.pending(), 0, "not before the kick");
    bench.block.queue.kick();
    assert_eq!(bench.fake.kicks(0), 1);
    assert_eq!(bench.disk.serve_all(), 3);
    let done = bench.reap();
    assert!(done.iter().all(|done| done.result.is_ok()));
    assert_eq!(bench.disk.expected(10, 1024), pattern);
    assert!(done[1].buffer.is_none());
    assert_eq!(bytes(done[2].buffer.as_ref().unwrap(), 2048), bench.disk.expected(5, 2048));
    let counters = bench.block.queue.counters();
    assert_eq!((counters.submitted, counters.completions, counters.rejected, counters.kicks), (3, 3, 0, 1));
}

#[test]
fn as_many_in_flight_as_the_ring_holds() {
    for size in [4, 8, 64] {
        let mut bench = bench_with(ALL, config(SECTORS, 1 << 20, 4, 512), size);
        let mut tickets = std::collections::HashSet::new();
        let most = usize::from(size / 3);
        for sector in 0..most {
            let ticket = bench.read(sector as u64, SECTOR).unwrap();
            assert!(ticket.index() < bench.block.queue.tickets() && tickets.insert(ticket));
        }
        assert_eq!(bench.read(0, SECTOR), Err(RequestError::Full));
        assert_eq!(bench.block.queue.in_flight(), most);
        bench.block.queue.kick();
        bench.disk.serve_all();
        let done = bench.reap();
        assert_eq!(done.iter().map(|done| done.ticket).collect::<std::collections::HashSet<_>>(), tickets);
        drop(done);
        // Each slot has room for a request with data: of flushes, without, there fit no more.
        let flushes = (0..).take_while(|_| bench.block.queue.submit(Request::Flush).is_ok()).count();
        assert_eq!((flushes, bench.block.queue.depth()), (most, most));
        bench.block.queue.kick();
        assert_eq!(bench.disk.serve_all(), most);
    }
}

#[test]
fn a_batch_is_one_kick() {
    let mut bench = bench();
    let requests: Vec<_> =
        (0..10).map(|sector| Request::Read { sector, buffer: bench.buffer(), len: SECTOR }).collect();
    let mut accepted = 0;
    bench.block.queue.submit_batch(requests, |result| accepted += usize::from(result.is_ok()));
    assert_eq!((accepted, bench.fake.kicks(0), bench.disk.serve_all()), (10, 1, 10));
}

#[test]
fn completions_in_any_order() {
    let mut bench = bench();
    let tickets: Vec<_> = (0..10).map(|sector| bench.read(sector, SECTOR).unwrap()).collect();
    bench.block.queue.kick();
    let mut chains: Vec<_> = std::iter::from_fn(|| bench.disk.ring.take()).collect();
    chains.reverse();
    for chain in &chains {
        let written = bench.disk.carry_out(chain);
        bench.disk.ring.complete(chain.head, written);
    }
    for (done, sector) in bench.reap().into_iter().zip((0..10).rev()) {
        assert_eq!((done.ticket, done.result), (tickets[sector], Ok(())));
        let data = bytes(done.buffer.as_ref().unwrap(), SECTOR);
        assert_eq!(data, bench.disk.expected(sector as u64, SECTOR));
    }
}

#[test]
fn what_no_device_should_see() {
    let mut bench = bench_with(ALL | block::features::RO, config(SECTORS, 1024, 3, 1024), 64);
    let cases = [
        (0, 0, RequestError::Misaligned),
        (0, 512, RequestError::Misaligned),
        (1, 1024, RequestError::Misaligned),
        (SECTORS, 1024, RequestError::OutOfRange),
        (SECTORS - 2, 2048, RequestError::OutOfRange),
        (u64::MAX - 1, 1024, RequestError::OutOfRange),
        (u64::MAX - 1, 2048, RequestError::OutOfRange),
        (0, 4096, RequestError::TooLong),
        (0, 8192, RequestError::BufferTooShort),
        (0, usize::MAX, RequestError::BufferTooShort),
    ];
    for (sector, len, expected) in cases {
        let result =
            bench.block.queue.submit(Request::Read { sector, buffer: bench.pool.take().unwrap(), len });
        let (error, request) = result.unwrap_err();
        assert_eq!(error, expected, "sector {sector}, length {len}");
        assert_eq!(request.into_buffer().unwrap().len(), 4096);
    }
    let write = Request::Write { sector: 0, buffer: bench.buffer(), len: 1024 };
    assert_eq!(bench.block.queue.submit(write).unwrap_err().0, RequestError::ReadOnly);
    bench.read(SECTORS - 2, 1024).unwrap();
    bench.read(0, 3072).unwrap();
    bench.block.queue.kick();
    bench.disk.ring.take().unwrap();
    let chain = bench.disk.ring.take().unwrap();
    assert_eq!(chain.segments.iter().map(|part| part.len).collect::<Vec<_>>(), [16, 1024, 1024, 1024, 1]);
    assert!(bench.disk.ring.take().is_none(), "nothing else reached the device");

    let mut plain = bench_with(features::VERSION_1, config(SECTORS, 0, 0, 0), 64);
    assert_eq!(plain.block.queue.submit(Request::Flush).unwrap_err().0, RequestError::Unsupported);
    let expected = Geometry {
        sectors: SECTORS,
        block_size: 512,
        read_only: false,
        flush: false,
        segment_size: u32::MAX,
        segments: 1,
    };
    assert_eq!(plain.block.queue.geometry(), expected, "fields without their feature are not looked at");
    assert!(plain.read(0, 4096).is_ok());
}

#[test]
fn another_devices_buffer_is_refused() {
    let (mut ours, theirs) = (bench(), bench());
    let windows = DmaWindows::for_model(theirs.fake.platform, DeviceId(99)).unwrap();
    let foreign = DmaPool::new(&windows, 1, 512).unwrap().take().unwrap();
    let request = Request::Read { sector: 0, buffer: foreign, len: 512 };
    assert_eq!(ours.block.queue.submit(request).unwrap_err().0, RequestError::WrongDevice);
    assert_eq!(ours.block.queue.in_flight(), 0);
    assert!(ours.read(0, 512).is_ok());
}

#[test]
fn senseless_configurations() {
    for config in [
        config(SECTORS, 0, 4, 512),
        config(SECTORS, 512, 0, 512),
        config(SECTORS, 512, 4, 0),
        config(SECTORS, 512, 4, 256),
        config(SECTORS, 512, 4, 513),
        // No block goes into a request.
        config(SECTORS, 512, 1, 1024),
        config(SECTORS, 512, 7, 4096),
        config(SECTORS, 584, 7, 4096),
        config(SECTORS, 1, 511, 512),
        config(SECTORS, 4096, 1, 1 << 31),
        vec![0; 7],
    ] {
        let fake = Fake::new(DeviceType::BLOCK, ALL, config, &[64]);
        let result = Block::new(fake.transport(), &grant(), fake.windows());
        assert_eq!(result.map(drop), Err(Error::BadConfig));
        assert_eq!(fake.model().status, 128);
        assert_eq!(fake.platform.dma_in_use(), 0);
    }
    for max in [0, 1, 2, 3] {
        let fake = Fake::new(DeviceType::BLOCK, ALL, config(SECTORS, 512, 4, 512), &[max]);
        let result = Block::new(fake.transport(), &grant(), fake.windows());
        assert_eq!(result.map(drop), Err(Error::QueueUnavailable(0)), "no room for a request in {max}");
    }
    // The ring has no room for a block.
    for (size_max, block_size, size) in [(512, 4096, 8), (1, 512, 64), (1 << 20, 1 << 31, 512)] {
        let fake =
            Fake::new(DeviceType::BLOCK, ALL, config(SECTORS, size_max, u32::MAX, block_size), &[size]);
        let result = Block::new(fake.transport(), &grant(), fake.windows());
        assert_eq!(result.map(drop), Err(Error::QueueUnavailable(0)), "{block_size} bytes in {size}");
        assert_eq!(fake.platform.dma_in_use(), 0);
    }
    // Limits beyond what the ring holds are limits of the ring; without tables, of the half that is for long
    // requests.
    for (offered, segments) in [(0, 33), (INDIRECT_DESC, 62)] {
        let bench = bench_with(ALL | offered, config(u64::MAX, 16, u32::MAX, 512), 64);
        assert_eq!(bench.block.queue.geometry().segments, segments);
    }
}

/// One block goes into a request, if only just.
#[test]
fn requests_of_one_block() {
    for (size_max, seg_max, block_size, size, segments) in [
        (512, 1, 512, 4, 1),
        (512, 8, 4096, 16, 8),
        (4096, 1, 4096, 4, 1),
        (586, 7, 4096, 16, 7),
        (4095, 2, 4096, 4, 2),
        (1 << 20, 2, 2 << 20, 4, 2),
        (1 << 31, 1, 1 << 31, 4, 1),
    ] {
        let mut bench = bench_with(ALL, config(1 << 23, size_max, seg_max, block_size), size);
        assert_eq!(bench.block.queue.geometry().segments, segments, "{size_max} * {seg_max}");
        if block_size <= 4096 {
            bench.read(8, block_size as usize).unwrap();
            assert_eq!(bench.read(8, block_size as usize + 512).is_err(), block_size > 512 || segments == 1);
        }
    }
}

/// A disk is as long as its whole blocks are, or could not be read to its end.
#[test]
fn whole_blocks() {
    for (sectors, block_size, expected) in
        [(64, 4096, 64), (63, 4096, 56), (7, 4096, 0), (0, 512, 0), (u64::MAX, 512, u64::MAX), (65, 1024, 64)]
    {
        let mut bench = bench_with(ALL, config(sectors, 1 << 20, 4, block_size), 64);
        assert_eq!(
            bench.block.queue.geometry().sectors,
            expected,
            "{sectors} sectors, blocks of {block_size}"
        );
        let last = expected.wrapping_sub(u64::from(block_size) / 512);
        assert_eq!(bench.read(last, block_size as usize).is_ok(), expected != 0);
        bench.fake.model().config[0..8].copy_from_slice(&17_u64.to_le_bytes());
        assert_eq!(bench.block.control.config_changed(), Ok(true));
        assert_eq!(bench.block.queue.geometry().sectors, 17 & !(u64::from(block_size) / 512 - 1));
    }
}

#[test]
fn true_errors_and_lies() {
    let mut bench = bench();
    let answer = |status: u8, len: u32| {
        move |ring: &mut DeviceRing, chain: &Chain| {
            ring.write(chain.segments.last().unwrap(), &[status]);
            ring.complete(chain.head, len);
        }
    };
    for (status, len, expected) in [
        (0, 513, Ok(())),
        (0, 512, Err(RequestError::BadLength)),
        (0, 1, Err(RequestError::BadLength)),
        (0, 0, Err(RequestError::BadLength)),
        (0, 514, Err(RequestError::BadLength)),
        (0, u32::MAX, Err(RequestError::BadLength)),
        (1, 1, Err(RequestError::Io)),
        (1, 513, Err(RequestError::Io)),
        (2, 513, Err(RequestError::Unsupported)),
        (3, 513, Err(RequestError::BadStatus(3))),
        (255, 513, Err(RequestError::BadStatus(255))),
    ] {
        assert_eq!(bench.read_answered(answer(status, len)), expected, "status {status}, length {len}");
    }
    // No status written at all, after one that was good in the same place.
    assert_eq!(bench.read_answered(answer(0, 513)), Ok(()));
    let silent = bench.read_answered(|ring, chain| ring.complete(chain.head, 513));
    assert_eq!(silent, Err(RequestError::BadStatus(255)), "an old status does not count");
    assert_eq!(bench.block.queue.in_flight(), 0);
}

#[test]
fn a_broken_ring_ends_it() {
    let mut bench = bench();
    bench.read(0, SECTOR).unwrap();
    bench.block.queue.kick();
    bench.disk.ring.complete(40, 513);
    assert_eq!(bench.block.queue.reap(|_| panic!("nothing is done")), Err(QueueError::Broken));
    assert_eq!(bench.read(0, SECTOR), Err(RequestError::Broken));
    assert!(bench.block.queue.is_broken());
    let free = bench.pool.available();
    drop(bench.block);
    assert_eq!(bench.pool.available(), free + 1, "the reset gave the buffer back");
}

#[test]
fn the_capacity_may_change() {
    let mut bench = bench();
    assert_eq!(bench.block.control.config_changed(), Ok(false));
    bench.fake.model().config[0..8].copy_from_slice(&16_u64.to_le_bytes());
    assert_eq!(bench.block.control.config_changed(), Ok(true));
    assert_eq!(bench.read(16, SECTOR), Err(RequestError::OutOfRange));
    bench.fake.model().status |= 64;
    assert_eq!(bench.block.control.config_changed(), Err(Error::NeedsReset));
    bench.fake.model().gone = true;
    assert_eq!(bench.block.control.config_changed(), Err(Error::Gone));
}

/// What a disk says of itself may depend on the features that were chosen: `writeback` does (5.2.5.1).
#[test]
fn a_disk_is_read_when_the_features_are_final() {
    const FEATURES_OK: u8 = 8;
    let every = bench_with(!(1 << 12), config(SECTORS, 1 << 20, 4, 512), 64);
    let looks = every.fake.model().looks.clone();
    assert!(looks.iter().all(|(_, status)| status & FEATURES_OK != 0), "{looks:x?}");
    let mut fields: Vec<_> = looks.iter().map(|(offset, _)| *offset).collect();
    fields.sort_unstable();
    assert_eq!(fields, [0, 4, 8, 12, 20], "what is used, each once");
}

/// What is read of the configuration was all there at one moment (2.5.3), whenever it changes.
#[test]
fn a_disk_that_changes_while_it_is_read() {
    // Each is sane, but not a mixture of both.
    let mut several = config(SECTORS, 1 << 20, 4, 8192);
    several[34] = 1;
    let mut other = config(16, 512, 8, 1024);
    other[34] = 2;
    let offered = ALL | block::features::MQ;
    let shape = |block: &mut Block<FakeTransport>| {
        let geometry = block.queue.geometry();
        let queues = block.split().1.count();
        (geometry.sectors, geometry.segment_size, geometry.segments, geometry.block_size, queues)
    };
    let (old, new) = ((SECTORS, 1 << 20, 1, 8192, 1), (16, 512, 8, 1024, 2));
    let mut seen = Vec::new();
    for looks in 0..8 {
        let fake = Fake::new(DeviceType::BLOCK, offered, several.clone(), &[64, 64]);
        fake.model().change = Some((looks, other.clone()));
        let options = Options { queues: 4, ..Options::default() };
        let mut block = Block::with_options(fake.transport(), &grant(), fake.windows(), &options).unwrap();
        let shape = shape(&mut block);
        assert!(shape == old || shape == new, "after {looks} looks: {shape:?}");
        seen.push(shape);
    }
    assert!(seen.contains(&old) && seen.contains(&new));

    // Later on as well: a capacity is believed with the limits that it was said with.
    for looks in 0..8 {
        let mut bench = bench();
        bench.fake.model().change = Some((looks, config(16, 1 << 20, 4, 1024)));
        let changed = bench.block.control.config_changed();
        let later = bench.fake.model().change.take().is_some();
        let expected = if later { Ok(false) } else { Err(Error::BadConfig) };
        assert_eq!(
            (changed, bench.block.queue.geometry().sectors),
            (expected, SECTORS),
            "after {looks} looks"
        );
        bench.fake.model().config = config(16, 1 << 20, 4, 512);
        assert_eq!(
            (bench.block.control.config_changed(), bench.block.queue.geometry().sectors),
            (Ok(true), 16)
        );
    }
}

#[test]
fn the_id_of_a_disk() {
    // Answered by another thread, since the call waits.
    let mut bench = bench();
    let mut disk = Disk::new(bench.fake.ring(0));
    let buffer = bench.buffer();
    let server = std::thread::spawn(move || {
        while disk.serve_all() == 0 {
            std::thread::yield_now();
        }
        disk
    });
    assert_eq!(bench.block.identify(buffer, Duration::from_secs(10)), Ok(Ok(*ID_TEXT)));
    let mut disk = server.join().unwrap();
    assert_eq!(bench.pool.available(), 64);

    // Nobody answers: the wait ends, and the buffer stays with the device.
    assert_eq!(
        bench.block.identify(bench.pool.take().unwrap(), Duration::from_millis(5)),
        Err(Error::Timeout)
    );
    assert_eq!((bench.pool.available(), bench.block.queue.in_flight(), bench.block.queue.lost()), (63, 1, 1));
    // The next one gets its own answer, whenever the first one is done.
    let buffer = bench.pool.take().unwrap();
    disk.ring.take().unwrap();
    let server = std::thread::spawn(move || while disk.serve_all() == 0 {});
    assert_eq!(bench.block.identify(buffer, Duration::from_secs(10)), Ok(Ok(*ID_TEXT)));
    server.join().unwrap();
    let ticket = bench.read(0, SECTOR).unwrap();
    assert_eq!(bench.block.identify(bench.pool.take().unwrap(), Duration::ZERO), Err(Error::Busy));
    assert!(bench.block.queue.is_in_flight(ticket) && bench.block.queue.give_up(ticket));
    assert!(!bench.block.queue.is_in_flight(ticket), "nobody waits for it");
    bench.fake.model().gone = true;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Random reads and writes, answered in random order, always agree with a plain array.
    #[test]
    fn agrees_with_an_array(
        requests in prop::collection::vec(
            (any::<bool>(), 0..SECTORS, 1_usize..=8, any::<u8>(), any::<prop::sample::Index>()), 1..150),
        size_max in prop_oneof![Just(512_u32), Just(700), Just(1 << 20)],
        ring in prop_oneof![Just(16_u16), Just(64)],
    ) {
        let mut bench = bench_with(ALL, config(SECTORS, size_max, 8, 512), ring);
        let mut array = bench.disk.data.clone();
        // One at a time in effect, since overlapping requests in flight have no order: kick and serve each
        // batch of requests that touch different sectors.
        let mut expected = std::collections::HashMap::<usize, (usize, usize, bool)>::new();
        let mut touched = Vec::<std::ops::Range<usize>>::new();
        for (write, sector, count, fill, order) in requests {
            let (from, to) = (sector as usize * SECTOR, (sector as usize + count) * SECTOR);
            let len = to - from;
            let overlaps = touched.iter().any(|range| range.start < to && from < range.end);
            let mut buffer = bench.buffer();
            let request = if write {
                buffer.write_slice(&vec![fill; len], 0).unwrap();
                Request::Write { sector, buffer, len }
            } else {
                Request::Read { sector, buffer, len }
            };
            let mut request = Some(request);
            let mut flush = overlaps;
            while let Some(next) = request.take() {
                if flush {
                    bench.block.queue.kick();
                    let mut chains: Vec<_> = std::iter::from_fn(|| bench.disk.ring.take()).collect();
                    while !chains.is_empty() {
                        let chain = chains.swap_remove(order.index(chains.len()));
                        let written = bench.disk.carry_out(&chain);
                        bench.disk.ring.complete(chain.head, written);
                    }
                    for done in bench.reap() {
                        prop_assert_eq!(done.result, Ok(()));
                        let (from, to, write) = expected.remove(&done.ticket.index()).unwrap();
                        if !write {
                            let read = bytes(done.buffer.as_ref().unwrap(), to - from);
                            prop_assert_eq!(&read, &array[from..to]);
                        }
                    }
                    prop_assert!(expected.is_empty());
                    touched.clear();
                }
                match bench.block.queue.submit(next) {
                    Ok(ticket) => {
                        prop_assert!(expected.insert(ticket.index(), (from, to, write)).is_none());
                        touched.push(from..to);
                        if write {
                            array[from..to].fill(fill);
                        }
                    }
                    Err((RequestError::Full, back)) => {
                        prop_assert!(!flush, "the ring was just emptied");
                        (request, flush) = (Some(back), true);
                    }
                    Err((RequestError::OutOfRange, _)) => prop_assert!(to > SECTORS as usize * SECTOR),
                    Err((RequestError::TooLong, _)) => {
                        prop_assert!(len.div_ceil(size_max as usize) > 8);
                    }
                    Err((error, _)) => prop_assert!(false, "{:?}", error),
                }
            }
        }
    }

    /// Whatever status and length come back, in whatever order: an answer, and the buffer.
    #[test]
    fn survives_any_answer(
        answers in prop::collection::vec((any::<u8>(), 0_u32..600, 0_u16..80, 0_u8..4), 1..100),
    ) {
        let mut bench = bench();
        let mut held = Vec::new();
        for (status, len, id, honest) in answers {
            let submitted = bench.read(3, SECTOR);
            bench.block.queue.kick();
            held.extend(std::iter::from_fn(|| bench.disk.ring.take()));
            match (honest, held.pop()) {
                (1.., Some(chain)) => {
                    bench.disk.ring.write(chain.segments.last().unwrap(), &[status]);
                    bench.disk.ring.complete(chain.head, len);
                }
                _ => bench.disk.ring.complete(id, len),
            }
            let result = bench.block.queue.reap(|done| {
                assert!(done.buffer.is_some());
                assert!(done.result.is_err() || status == 0 && len == 513);
            });
            prop_assert_eq!(result.is_err(), bench.block.queue.is_broken());
            prop_assert!(matches!(submitted, Ok(_) | Err(RequestError::Broken | RequestError::Full)));
            prop_assert_eq!(bench.pool.available() + bench.block.queue.in_flight(), 64);
        }
    }
}
