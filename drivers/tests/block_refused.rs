//! Why a disk's driver does not carry a request out, and what it counts.

use std::time::Duration;

use ringfence_drivers::block::{self, Block, Options, Request, RequestError};
use ringfence_drivers::virtio::{DeviceType, Error, features};
use ringfence_memory::{Direction, DmaBuf, DmaPool};
use ringfence_testkit::disk::{ALL, Disk, SECTOR, SECTORS, bytes, config};
use ringfence_testkit::{Fake, FakeTransport};

struct Bench {
    fake: Fake,
    block: Block<FakeTransport>,
}

impl Bench {
    fn new(offered: u64, config: Vec<u8>, options: &Options) -> Self {
        let fake = Fake::new(DeviceType::BLOCK, features::VERSION_1 | offered, config, &[2048; 4]);
        let block = Block::with_options(fake.transport(), &fake.grant(), fake.windows(), options).unwrap();
        Self { fake, block }
    }

    fn pool(&self, count: usize, len: usize, direction: Direction) -> DmaPool {
        DmaPool::new_for(&self.fake.windows(), count, len, direction).unwrap()
    }
}

fn plain() -> Bench {
    Bench::new(ALL, config(SECTORS, 1 << 20, 4, 512), &Options { queue_size: 16, ..Options::default() })
}

/// Nothing is wrong with a request that finds no room, whatever it is, and it comes back as it was.
#[test]
fn no_room() {
    type Make = fn(DmaBuf) -> Request;
    let kinds: [(Direction, Make); 6] = [
        (Direction::FromDevice, |buffer| Request::Read { sector: 3, buffer, len: SECTOR }),
        (Direction::Both, |buffer| Request::Read { sector: 3, buffer, len: SECTOR }),
        (Direction::ToDevice, |buffer| Request::Write { sector: 3, buffer, len: SECTOR }),
        (Direction::Both, |buffer| Request::Write { sector: 3, buffer, len: SECTOR }),
        (Direction::FromDevice, |buffer| Request::Identify { buffer }),
        (Direction::Both, |_| Request::Flush),
    ];
    for (number, (direction, make)) in kinds.into_iter().enumerate() {
        let mut bench = plain();
        let depth = bench.block.queue.depth();
        let pool = bench.pool(depth + 1, SECTOR, direction);
        let request = || make(pool.take().unwrap());
        (0..depth).for_each(|_| assert!(bench.block.queue.submit(request()).is_ok()));
        let last = request();
        let text = format!("{last:?}");
        let (error, back) = bench.block.queue.submit(last).unwrap_err();
        assert_eq!((error, format!("{back:?}")), (RequestError::Full, text), "kind {number}");
    }
}

/// What breaks the rules is rejected, and counted; an error that the disk reports is an answer.
#[test]
fn rejected_answers_are_counted() {
    let mut bench = plain();
    let pool = bench.pool(1, SECTOR, Direction::FromDevice);
    let mut ring = bench.fake.ring(0);
    let mut rejected = 0;
    for (status, len, expected) in [
        (0, 513, Ok(())),
        (0, 512, Err(RequestError::BadLength)),
        (1, 0, Err(RequestError::BadLength)),
        (2, 514, Err(RequestError::BadLength)),
        (9, 0, Err(RequestError::BadLength)),
        (1, 1, Err(RequestError::Io)),
        (2, 1, Err(RequestError::Unsupported)),
        (9, 1, Err(RequestError::BadStatus(9))),
    ] {
        let buffer = pool.take().unwrap();
        bench.block.queue.submit(Request::Read { sector: 0, buffer, len: SECTOR }).unwrap();
        bench.block.queue.kick();
        let chain = ring.take().unwrap();
        ring.write(&chain.segments[2], &[status]);
        ring.complete(chain.head, len);
        bench.block.queue.reap(|done| assert_eq!(done.result, expected, "{status}, {len}")).unwrap();
        rejected += u64::from(expected == Err(RequestError::BadLength));
        assert_eq!(bench.block.queue.counters().rejected, rejected, "{status}, {len}");
    }
    assert_eq!((rejected, bench.block.queue.counters().completions), (4, 8));
}

/// Sectors are the unit, and blocks of several (5.2.6.1).
#[test]
fn parts_of_blocks() {
    for block_size in [512_usize, 1024, 4096] {
        let mut bench = Bench::new(ALL, config(SECTORS, 1 << 20, 4, block_size as u32), &Options::default());
        let pool = bench.pool(64, 8192, Direction::FromDevice);
        for len in (0..13).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]).chain([8191, 8192]) {
            for sector in 0..8 {
                let request = Request::Read { sector, buffer: pool.take().unwrap(), len };
                let edges = [len, sector as usize * SECTOR];
                let whole = len > 0 && edges.iter().all(|at| at.is_multiple_of(block_size));
                let result = bench.block.queue.submit(request).map(drop).map_err(|(error, _)| error);
                let expected = if whole { Ok(()) } else { Err(RequestError::Misaligned) };
                assert_eq!(result, expected, "{len} bytes at {sector}, blocks of {block_size}");
            }
        }
    }
}

/// Without SEG_MAX a request has one segment, however short those are (5.2.4).
#[test]
fn segments_without_a_limit_of_their_number() {
    let offered = block::features::SIZE_MAX;
    let mut bench = Bench::new(offered, config(SECTORS, 512, 9, 0), &Options::default());
    let pool = bench.pool(2, 1024, Direction::FromDevice);
    assert_eq!(bench.block.queue.geometry().segments, 1);
    let mut read = |len| {
        let request = Request::Read { sector: 0, buffer: pool.take().unwrap(), len };
        bench.block.queue.submit(request).map(drop).map_err(|(error, _)| error)
    };
    assert_eq!((read(512), read(1024)), (Ok(()), Err(RequestError::TooLong)));
}

/// The shortest segments that a device could want.
#[test]
fn segments_of_a_byte() {
    let options = Options { queue_size: 2048, ..Options::default() };
    let mut bench = Bench::new(ALL, config(SECTORS, 1, 512, 512), &options);
    let mut disk = Disk::new(bench.fake.ring(0));
    let buffer = bench.pool(1, SECTOR, Direction::FromDevice).take().unwrap();
    bench.block.queue.submit(Request::Read { sector: 5, buffer, len: SECTOR }).unwrap();
    bench.block.queue.kick();
    assert_eq!(disk.serve_all(), 1);
    bench
        .block
        .queue
        .reap(|done| {
            assert_eq!(done.result, Ok(()));
            assert_eq!(bytes(&done.buffer.unwrap(), SECTOR), disk.expected(5, SECTOR));
        })
        .unwrap();
    assert_eq!(bench.block.queue.in_flight(), 0);
}

/// Who does not ask for more queues has one, whatever the disk has.
#[test]
fn one_queue_unless_more_are_wanted() {
    let mut config = config(SECTORS, 1 << 20, 4, 512);
    config[34] = 4;
    let mut bench = Bench::new(ALL | block::features::MQ, config, &Options::default());
    assert_eq!((bench.block.split().1.count(), Options::default().queues), (1, 1));
}

/// Why nothing came in time, if that can be known.
#[test]
fn a_call_to_a_disk_that_is_not_in_order() {
    type Change = fn(&Fake);
    let changes: [(Change, Error); 4] = [
        (|_| {}, Error::Timeout),
        (|fake| fake.model().gone = true, Error::Gone),
        (|fake| fake.model().status |= 64, Error::NeedsReset),
        (|fake| fake.model().status = 0x07, Error::StatusRefused(8)),
    ];
    for (change, expected) in changes {
        let mut bench = plain();
        change(&bench.fake);
        let result = bench.block.call(Request::Flush, Duration::from_millis(1));
        assert_eq!(result.map(drop), Err(expected));
    }
    // What is refused is an answer.
    let mut bench = plain();
    let buffer = bench.pool(1, 19, Direction::FromDevice).take().unwrap();
    let refused = bench.block.identify(buffer, Duration::ZERO);
    assert_eq!(refused, Ok(Err(RequestError::BufferTooShort)));
}
