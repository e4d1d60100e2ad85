//! Several queues of one disk at once, and the reset of one of them.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::future::Future;
use core::iter::Peekable;

use embassy_time::{Duration, with_timeout};
use ringfence_drivers::block::{BlockQueue, Options, Request, RequestError};
use ringfence_drivers::virtio::Error;
use ringfence_kernel::devices::Devices;
use ringfence_kernel::devices::bus::BusNotifier;
use ringfence_kernel::devices::disk::Disk;
use ringfence_kernel::interrupts::device::InterruptStats;
use ringfence_kernel::testing::On;
use ringfence_kernel::{executor, interrupts, testing};
use ringfence_memory::DmaPool;
use ringfence_services::block::BlockSource;

use crate::block::{Piece, SECTORS, SLOT, all_slots, bytes, features, one, pump};
use crate::support::{Random, numbered, run, start_disk_with, tables, until};

const MQ: u64 = 1 << 12;
const QUEUES: u16 = 4;

fn options() -> Options {
    Options { queues: QUEUES, depth: 32, ..Options::default() }
}

/// A queue, what it still has to do, and by ticket what it is at.
struct Lane<'a, I: Iterator> {
    queue: &'a mut BlockQueue<BusNotifier>,
    pieces: Peekable<I>,
    owners: Vec<Option<Piece>>,
}

/// All slots of the disk, spread over the queues: in round `n`, slot `s` is for queue `s + n`.
fn lanes<'a>(
    queues: impl Iterator<Item = &'a mut BlockQueue<BusNotifier>>,
    round: u64,
) -> Vec<Lane<'a, impl Iterator<Item = Piece>>> {
    (0..u64::from(QUEUES))
        .zip(queues)
        .map(|(number, queue)| {
            let is_mine = move |piece: &Piece| (piece.sector / 8 + round) % u64::from(QUEUES) == number;
            let owners = alloc::vec![None; queue.tickets()];
            Lane { queue, pieces: all_slots(number).filter(is_mine).peekable(), owners }
        })
        .collect()
}

fn all_queues_at_once() {
    let (mut disk, _interrupts, windows) = start_disk_with(&options());
    assert_eq!(disk.control.features(), features() | MQ);
    let pool = DmaPool::new(&windows, usize::from(QUEUES) * 32, SLOT).expect("there is memory");
    // Each round reads what another queue wrote in the round before.
    for round in 0..6 {
        let (writes, generation) = (round % 2 == 0, round / 2);
        let mut lanes = lanes(disk.split().1, round);
        assert_eq!(lanes.len(), usize::from(QUEUES));
        let mut most = 0;
        while lanes.iter_mut().any(|lane| lane.pieces.peek().is_some() || lane.queue.in_flight() > 0) {
            for Lane { queue, pieces, owners } in &mut lanes {
                while let Some(&piece) = pieces.peek().filter(|_| queue.in_flight() < 32) {
                    let buffer = pool.take().expect("one for each request");
                    let request = match writes {
                        true => piece.write(buffer, &piece.contents(generation)),
                        false => piece.read(buffer),
                    };
                    let ticket = queue.submit(request).expect("there is room");
                    assert!(owners[ticket.index()].replace(piece).is_none(), "{ticket:?} twice");
                    pieces.next();
                }
                queue.kick();
            }
            most = most.max(lanes.iter().map(|lane| lane.queue.in_flight()).sum());
            for Lane { queue, owners, .. } in &mut lanes {
                let reaped = queue.reap(|done| {
                    let piece = owners[done.ticket.index()].take().expect("it was in flight");
                    assert_eq!(done.result, Ok(()), "{piece:?}");
                    let found = bytes(&done.buffer.expect("it has one"), SLOT);
                    assert!(found == piece.contents(generation), "{piece:?}, round {round}");
                });
                reaped.expect("the ring is sound");
            }
        }
        assert!(most > 64, "at most {most} in flight: the queues waited for each other");
    }
    for queue in disk.split().1 {
        let counters = queue.counters();
        let expected = 6 * SECTORS / 8 / u64::from(QUEUES);
        assert_eq!((counters.completions, counters.rejected), (expected, 0));
        assert_eq!(counters.submitted, expected);
    }
    assert_eq!(pool.available(), usize::from(QUEUES) * 32);
}

/// What one queue wrote, another reads.
#[test_case]
const AT_ONCE: On = On("blk-mq=4,rings", &all_queues_at_once);

fn as_many_queues_as_there_are() {
    let (mut disk, _interrupts, windows) = start_disk_with(&Options { queues: 9, ..options() });
    assert_eq!((disk.control.features() & MQ, disk.split().1.count()), (MQ, 2));
    let pool = DmaPool::new(&windows, 33, SLOT).expect("there is memory");
    for queue in disk.split().1 {
        pump(queue, &pool, all_slots(1).take(100), Piece::read, |_, _| {});
    }
}

/// The device's number is the limit.
#[test_case]
const FEWER: On = On("blk-mq=2,formats", &as_many_queues_as_there_are);

/// A future that must be ready soon.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    with_timeout(Duration::from_secs(5), future).await.unwrap_or_else(|_| panic!("{what}: not within 5 s"))
}

fn each_queue_has_its_vector() {
    const ROUNDS: u64 = 25;
    run(async {
        let (mut disk, mut calls, windows) = start_disk_with(&options());
        let pool = DmaPool::new(&windows, 1, 512).expect("there is memory");
        let mut own: Vec<_> = (0..QUEUES).map(|queue| calls.take(queue, QUEUES).expect("a vector")).collect();
        assert_eq!([0, 1, 2, 3].map(|queue| calls.vector(queue)), [1, 2, 3, 4].map(Some));
        let mut queues: Vec<_> = disk.split().1.collect();
        for round in 0..ROUNDS {
            for index in [2, 0, 3, 1] {
                let queue = &mut queues[index];
                assert!(!queue.enable_interrupts(), "nothing is in flight");
                let buffer = pool.take().expect("it came back");
                queue.submit(Request::Read { sector: round, buffer, len: 512 }).expect("there is room");
                queue.kick();
                soon("the queue's interrupt", own[index].wait()).await;
                assert_eq!(queue.reap(|done| assert_eq!(done.result, Ok(()))), Ok(1));
                let before = own.iter().map(|interrupt| interrupt.count()).sum::<u64>();
                assert_eq!(own[index].count(), round + 1);
                let turn = [2, 0, 3, 1].iter().position(|&other| other == index).expect("it is there") as u64;
                assert_eq!(before, round * u64::from(QUEUES) + turn + 1, "another vector fired too");
            }
        }
        assert_eq!(interrupts::unexpected(), 0);
    })
}

/// It fires when the queue has something, and no other does.
#[test_case]
const VECTORS: On = On("blk-mq=4,rings", &each_queue_has_its_vector);

/// Reads the disk of the running system, with as many queues as the option says, from many tasks.
fn system_spreads_reads() {
    const READERS: u64 = 12;
    const READS: u64 = 100;
    let (devices, mut started) = Devices::start(tables());
    devices.log();
    let (disk, calls) = started.disks.pop().expect("there is one");
    assert_eq!(disk.queues().len(), usize::from(QUEUES));
    let own = calls.name() == "MSI-X" && calls.vector(QUEUES - 1) == Some(QUEUES);
    let stats = Rc::new(calls.stats());
    executor::run(|spawner| {
        disk.tasks(calls).into_iter().for_each(|task| executor::spawn(&spawner, task));
        let running = Rc::new(Cell::new(READERS));
        for reader in 0..READERS {
            let (running, stats) = (running.clone(), stats.clone());
            executor::spawn(&spawner, async move {
                let mut random = Random(reader);
                for _ in 0..READS {
                    check_read(disk, &mut random).await;
                }
                running.set(running.get() - 1);
                if running.get() == 0 {
                    check_queues(disk, &stats, READERS * READS, own);
                    testing::pass();
                }
            });
        }
    })
}

/// All queues took part in `reads`, and interrupted if they have vectors of their `own`.
fn check_queues(disk: &Disk, stats: &InterruptStats, reads: u64, own: bool) {
    let all: Vec<_> = disk.queues().iter().map(|queue| queue.counters()).collect();
    assert_eq!(all.iter().map(|counters| counters.completions).sum::<u64>(), reads, "{all:?}");
    for (index, counters) in (0..).zip(&all) {
        assert_eq!(counters.completions, reads / u64::from(QUEUES), "{all:?}");
        assert!(!own && index > 0 || stats.count(index) > 0, "{stats:?}, {all:?}");
        assert_eq!(counters.rejected, 0);
    }
    assert_eq!(interrupts::unexpected(), 0);
}

async fn check_read(disk: &Disk, random: &mut Random) {
    let len = 512 * (1 + random.below(12)) as usize;
    let sector = random.below(SECTORS - 12);
    let (mut head, mut tail) = (alloc::vec![0; 512], alloc::vec![0; len - 512]);
    let read = soon("a read", disk.read(sector, &mut [&mut head, &mut tail])).await;
    assert_eq!(read, Ok(()));
    head.append(&mut tail);
    assert!(head == numbered(sector, len), "{len} bytes at {sector}");
}

/// As the kernel's option says, each with its vector.
#[test_case]
const SPREAD: On = On("blk-mq-numbered=4,queues=4,rings", &system_spreads_reads);

fn system_spreads_reads_by_three_vectors() {
    system_spreads_reads();
}
/// Some queues share the last vector.
#[test_case]
const SPREAD_THREE: On = On("blk-mq-numbered=4,queues=4,vectors=3", &system_spreads_reads_by_three_vectors);

fn system_spreads_reads_by_line() {
    system_spreads_reads();
}
/// All share the line.
#[test_case]
const SPREAD_LINE: On = On("blk-mq-numbered=4,queues=4,intx", &system_spreads_reads_by_line);

fn idle_queue_is_reset() {
    let options = Options { queues: 2, ..options() };
    let (mut disk, _interrupts, windows) = start_disk_with(&options);
    let pool = DmaPool::new(&windows, 40, SLOT).expect("there is memory");
    for round in 0..8 {
        let (control, mut queues) = disk.split();
        let (first, second) = (queues.next().expect("a queue"), queues.next().expect("another"));
        // More than once around the ring, so that it is reset at another place each time.
        let pieces = || all_slots(round).take(100 + 7 * round as usize);
        pump(first, &pool, pieces(), |piece, buffer| piece.write(buffer, &piece.contents(round)), |_, _| {});
        // The other queue is not disturbed.
        let buffer = pool.take().expect("it came back");
        second.submit(Request::Read { sector: 0, buffer, len: SLOT }).expect("there is room");
        assert_eq!(control.reset_queue(second), Err(Error::Busy), "nothing was done");
        assert_eq!(control.reset_queue(first), Ok(()), "round {round}");
        second.kick();
        until("the other queue's answer", || {
            let count = second.reap(|done| assert_eq!(done.result, Ok(()))).expect("the ring is sound");
            (count == 1).then_some(())
        });
        pump(first, &pool, pieces(), Piece::read, |piece, buffer| {
            assert!(bytes(&buffer, SLOT) == piece.contents(round), "{piece:?}, round {round}");
        });
        pump(second, &pool, pieces(), Piece::read, |piece, buffer| {
            assert!(bytes(&buffer, SLOT) == piece.contents(round), "{piece:?}, round {round}");
        });
    }
    let past = Request::Read { sector: SECTORS, buffer: pool.take().expect("it came back"), len: SLOT };
    assert_eq!(one(&mut disk.queue, past).err(), Some(RequestError::OutOfRange));
    assert_eq!(disk.queue.counters().rejected, 0);
}

/// It works on as if new.
#[test_case]
const RESET: On = On("blk-mq=2,rings", &idle_queue_is_reset);

fn reset_queue_still_interrupts() {
    run(async {
        let (mut disk, mut calls, windows) = start_disk_with(&options());
        let pool = DmaPool::new(&windows, 1, 512).expect("there is memory");
        let mut own = calls.take(1, QUEUES).expect("a vector");
        let (control, mut queues) = disk.split();
        let queue = queues.nth(1).expect("a queue");
        for round in 0..20 {
            assert!(!queue.enable_interrupts(), "nothing is in flight");
            let buffer = pool.take().expect("it came back");
            queue.submit(Request::Read { sector: 8, buffer, len: 512 }).expect("there is room");
            queue.kick();
            soon("the queue's interrupt", own.wait()).await;
            assert_eq!(queue.reap(|done| assert_eq!(done.result, Ok(()))), Ok(1));
            assert_eq!(own.count(), round + 1);
            assert_eq!(control.reset_queue(queue), Ok(()));
        }
    })
}

/// By the vector that it had.
#[test_case]
const RESET_VECTOR: On = On("blk-mq=4,formats", &reset_queue_still_interrupts);
