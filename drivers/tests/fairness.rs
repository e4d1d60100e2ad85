//! Room in the ring goes to those who came first, whoever else is quick.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use ringfence_drivers::block::{Block, Options, Request, SharedQueue, Transfer};
use ringfence_drivers::virtio::{DeviceType, Hybrid};
use ringfence_memory::DmaPool;
use ringfence_testkit::disk::{ALL, SECTOR, config};
use ringfence_testkit::tasks::*;
use ringfence_testkit::{Fake, FakeNotifier, IN_ORDER, INDIRECT_DESC, RING_PACKED};

const FORMATS: [u64; 4] = [0, RING_PACKED, IN_ORDER, RING_PACKED | IN_ORDER];

/// The sectors of the requests that the device has, in the order in which it took them.
fn held(disk: &Disk) -> Vec<u64> {
    let header =
        |chain: &ringfence_testkit::Chain| disk.ring.read(&chain.segments[0])[8..16].try_into().unwrap();
    disk.pending.iter().map(|chain| u64::from_le_bytes(header(chain))).collect()
}

/// The server's turn, and then the device takes what there is.
fn run(server: &mut Task, disk: &mut Disk) -> Vec<u64> {
    server.flag.clone().wake();
    server.run();
    disk.take();
    held(disk)
}

type OnItsWay<'q, 'a> = Pin<Box<Transfer<'q, 'a, FakeNotifier>>>;

fn begin<'q, 'a>(queue: &'q Shared<'a>, request: Request) -> OnItsWay<'q, 'a> {
    let mut transfer = Box::pin(queue.request(request));
    assert!(transfer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    transfer
}

/// Whoever comes between the device's answer and the next look at it finds others before itself.
#[test]
fn a_latecomer_waits_behind_those_who_wait() {
    for format in FORMATS {
        // Room for two.
        let mut bench = Bench::new(format, 1, 8);
        let mut disk = bench.disk(0);
        let mut requests = (0..6).map(|sector| bench.read(sector)).collect::<Vec<_>>().into_iter();
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        let mut transfers: Vec<_> = requests.by_ref().take(4).map(|request| begin(&queue, request)).collect();
        assert_eq!(run(&mut server, &mut disk), [0, 1], "{format:#x}");
        disk.finish(0);
        transfers.push(begin(&queue, requests.next().unwrap()));
        assert_eq!(run(&mut server, &mut disk), [1, 2]);
        transfers.push(begin(&queue, requests.next().unwrap()));
        for expected in [[2, 3], [3, 4], [4, 5]] {
            disk.finish(0);
            assert_eq!(run(&mut server, &mut disk), expected, "{format:#x}");
        }
    }
}

#[test]
fn whoever_leaves_the_line_holds_nobody_up() {
    for (format, leaver) in FORMATS.into_iter().flat_map(|format| (2..6).map(move |leaver| (format, leaver)))
    {
        let mut bench = Bench::new(format, 1, 8);
        let mut disk = bench.disk(0);
        let requests: Vec<_> = (0..6).map(|sector| bench.read(sector)).collect();
        let (pool, one_more) = (bench.pool.clone(), bench.read(6));
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        let mut transfers: Vec<_> = requests.into_iter().map(|request| begin(&queue, request)).collect();
        let before = pool.available();
        drop(transfers.remove(leaver));
        assert_eq!(pool.available(), before + 1, "it was not the device's");
        transfers.push(begin(&queue, one_more));
        let mut seen = Vec::<u64>::new();
        while seen.len() < 6 {
            seen.extend(run(&mut server, &mut disk).first());
            disk.finish(0);
        }
        assert!(run(&mut server, &mut disk).is_empty());
        assert_eq!(seen, (0..7).filter(|&sector| sector != leaver as u64).collect::<Vec<_>>());
        assert_eq!(queue.in_flight(), 0);
    }
}

/// Where the device limits segments, one long request needs what several short ones leave over.
#[test]
fn short_requests_do_not_overtake_a_long_one() {
    const LONG: usize = 8 * SECTOR;
    for (format, leaves) in [0, RING_PACKED].into_iter().flat_map(|format| [(format, false), (format, true)])
    {
        let fake = Fake::new(DeviceType::BLOCK, ALL | format, config(1024, 512, 64, 512), &[32]);
        let windows = fake.windows();
        let pool = DmaPool::new(&windows, 16, LONG).unwrap();
        let options = Options { queue_size: 32, ..Options::default() };
        let mut block = Block::with_options(fake.transport(), &fake.grant(), windows, &options).unwrap();
        let depth = block.queue.depth();
        let mut disk = Disk { ring: fake.ring(0), pending: Vec::new() };
        let queue = SharedQueue::new(&mut block.queue, Hybrid::new(0)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        let read = |sector, len| Request::Read { sector, buffer: pool.take().unwrap(), len };
        let mut transfers = Vec::new();
        // The first long ones take all descriptors that belong to no slot.
        while queue.in_flight() == transfers.len() {
            transfers.push(begin(&queue, read(transfers.len() as u64, LONG)));
        }
        let waits = queue.in_flight() as u64;
        assert!(0 < waits && (waits as usize) < depth, "it waits for room, and slots are free");
        transfers.push(begin(&queue, read(500, SECTOR)));
        assert_eq!(run(&mut server, &mut disk), (0..waits).collect::<Vec<_>>());
        server.run();
        if leaves {
            drop(transfers.remove(waits as usize));
            assert!(server.run(), "nothing else tells of room");
            disk.take();
            assert_eq!(held(&disk), (0..waits).chain([500]).collect::<Vec<_>>());
            continue;
        }
        let mut seen = Vec::new();
        while !disk.pending.is_empty() {
            seen.extend(held(&disk));
            for chain in disk.pending.drain(..) {
                disk.ring.complete(chain.head, chain.writable_len());
            }
            run(&mut server, &mut disk);
        }
        assert_eq!(seen, (0..=waits).chain([500]).collect::<Vec<_>>());
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Begin,
    Drop(Index),
    Server,
    Finish(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::Begin),
        2 => any::<Index>().prop_map(Step::Drop),
        4 => Just(Step::Server),
        4 => any::<Index>().prop_map(Step::Finish),
    ]
}

proptest! {
    /// The device gets all requests in the order in which they were begun, but for those that were dropped
    /// while they waited for room.
    #[test]
    fn first_come_first_served(
        format in select(FORMATS.to_vec()),
        tables in select(vec![0, INDIRECT_DESC]),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut bench = Bench::new(format | tables, 1, 16);
        let (mut disk, pool) = (bench.disk(0), bench.pool.clone());
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        let (mut begun, mut transfers) = (0_u64, Vec::new());
        let (mut expected, mut seen, mut done) = (Vec::new(), Vec::new(), Vec::new());
        let mut look = |server: &mut Task, disk: &mut Disk| {
            let before = disk.pending.len();
            seen.extend(run(server, disk).split_off(before));
        };
        for step in steps {
            match step {
                Step::Begin => {
                    let Some(buffer) = pool.take() else { continue };
                    let request = Request::Read { sector: begun, buffer, len: LEN };
                    transfers.push((begun, begin(&queue, request)));
                    expected.push(begun);
                    begun += 1;
                }
                Step::Drop(which) if !transfers.is_empty() => {
                    let before = (pool.available(), queue.in_flight());
                    let (sector, transfer) = transfers.swap_remove(which.index(transfers.len()));
                    drop(transfer);
                    prop_assert_eq!(queue.in_flight(), before.1);
                    if pool.available() > before.0 && !done.contains(&sector) {
                        expected.retain(|&other| other != sector);
                    }
                }
                Step::Server => look(&mut server, &mut disk),
                Step::Finish(which) if !disk.pending.is_empty() => {
                    let which = if format & IN_ORDER != 0 { 0 } else { which.index(disk.pending.len()) };
                    done.push(held(&disk)[which]);
                    disk.finish(which);
                }
                _ => {}
            }
        }
        loop {
            look(&mut server, &mut disk);
            if disk.pending.is_empty() {
                break;
            }
            disk.finish(0);
        }
        prop_assert_eq!(seen, expected);
        for (_, mut transfer) in transfers {
            let ready = transfer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            prop_assert!(matches!(ready, Poll::Ready((Ok(()), Some(_)))));
        }
        prop_assert_eq!((pool.available(), queue.in_flight()), (BUFFERS, 0));
    }
}
