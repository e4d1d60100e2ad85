//! A caller has its answer when its time is up, whatever the device does, and nobody else has the buffer
//! before the device is done with it.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use ringfence_drivers::block::{CallResult, Patience, Request, RequestError, Transfer};
use ringfence_drivers::virtio::{Hybrid, QueueError};
use ringfence_memory::DmaBuf;
use ringfence_testkit::tasks::*;
use ringfence_testkit::{Chain, FakeNotifier, IN_ORDER, INDIRECT_DESC, RING_PACKED};

const FORMATS: [u64; 4] = [0, RING_PACKED, IN_ORDER, RING_PACKED | IN_ORDER];
const ENDLESS: Patience = Patience { lost: usize::MAX, silence: None };
const TIMED_OUT: Result<(), RequestError> = Err(RequestError::TimedOut);

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

type OnItsWay<'q, 'a> = Pin<Box<Transfer<'q, 'a, FakeNotifier>>>;

fn poll(transfer: &mut OnItsWay) -> Poll<CallResult> {
    transfer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn begin<'q, 'a>(queue: &'q Shared<'a>, request: Request, deadline: u64) -> OnItsWay<'q, 'a> {
    let mut transfer = Box::pin(queue.request_until(request, at(deadline)));
    assert!(poll(&mut transfer).is_pending());
    transfer
}

/// What came of it, and whether its buffer came with it.
#[track_caller]
fn answer(transfer: &mut OnItsWay) -> (Result<(), RequestError>, bool) {
    let Poll::Ready((result, buffer)) = poll(transfer) else { panic!("it is on its way") };
    (result, buffer.is_some())
}

/// A server that runs at a time.
struct Server<'a>(Task<'a>, &'a Cell<Duration>);

impl Server<'_> {
    fn run(&mut self, ms: u64) {
        self.1.set(at(ms));
        self.0.flag.clone().wake();
        settle(&mut [&mut self.0]);
    }
}

macro_rules! set_up {
    ($bench:ident, $queue:ident, $server:ident) => {
        let $queue = Shared::new(&mut $bench.block.queue, Hybrid::new(0)).unwrap().with_patience(ENDLESS);
        let (ended, clock) = (RefCell::default(), Cell::default());
        let mut $server = Server(server_at(&$queue, &ended, || clock.get()), &clock);
    };
}

#[test]
fn a_swallowed_request_ends_at_its_deadline() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, pool, request) = (bench.disk(0), bench.pool.clone(), bench.read(3));
        set_up!(bench, queue, server);
        let mut transfer = begin(&queue, request, 50);
        assert_eq!(queue.next_deadline(), Some(at(50)));
        server.run(0);
        assert_eq!(disk.take(), 1);
        server.run(49);
        assert!(poll(&mut transfer).is_pending());
        assert_eq!(queue.lost(), 0);
        server.run(50);
        assert_eq!(answer(&mut transfer), (TIMED_OUT, false), "{format:#x}");
        assert_eq!((queue.lost(), queue.in_flight(), queue.next_deadline()), (1, 1, None));
        drop(transfer);
        // Nobody who takes all other buffers shares one with the device, which writes late.
        let others: Vec<DmaBuf> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(others.len(), BUFFERS - 1);
        let blank = bytes(&others[0]);
        disk.finish(0);
        assert!(others.iter().all(|buffer| bytes(buffer) == blank));
        server.run(60);
        assert_eq!((queue.lost(), queue.in_flight(), pool.available()), (0, 0, 1));
        let counters = queue.counters();
        assert_eq!((counters.given_up, counters.late, counters.completions), (1, 1, 1));
    }
}

#[test]
fn what_is_done_at_the_deadline_is_done() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, request) = (bench.disk(0), bench.read(3));
        set_up!(bench, queue, server);
        let mut transfer = begin(&queue, request, 50);
        server.run(0);
        disk.take();
        disk.finish(0);
        // However late the server is.
        server.run(9999);
        let Poll::Ready(result) = poll(&mut transfer) else { panic!("it is on its way") };
        check(result, 3);
        assert_eq!((queue.lost(), queue.counters().given_up), (0, 0));
    }
}

#[test]
fn who_waits_for_room_has_a_deadline_too() {
    for format in FORMATS {
        // Room for two.
        let mut bench = Bench::new(format, 1, 8);
        let (mut disk, pool) = (bench.disk(0), bench.pool.clone());
        let requests: Vec<_> = (0..5).map(|sector| bench.read(sector)).collect();
        set_up!(bench, queue, server);
        let deadlines = [100, 100, 30, 100, 20];
        let mut transfers: Vec<_> =
            requests.into_iter().zip(deadlines).map(|(request, end)| begin(&queue, request, end)).collect();
        server.run(0);
        assert_eq!((disk.take(), queue.next_deadline()), (2, Some(at(20))));
        server.run(20);
        assert_eq!(answer(&mut transfers[4]), (TIMED_OUT, true), "the device never had it");
        assert_eq!(queue.next_deadline(), Some(at(30)));
        // There is room at the moment at which its time is up: it does not go to the device any more.
        disk.finish(0);
        server.run(30);
        assert_eq!(answer(&mut transfers[2]), (TIMED_OUT, true));
        assert_eq!((disk.take(), queue.lost(), queue.in_flight()), (1, 0, 2));
        disk.finish(0);
        disk.finish(0);
        server.run(40);
        for place in [0, 1, 3] {
            assert_eq!(answer(&mut transfers[place]), (Ok(()), true), "{format:#x} {place}");
        }
        assert_eq!((queue.in_flight(), pool.available()), (0, BUFFERS));
    }
}

#[test]
fn the_server_is_woken_for_an_earlier_deadline() {
    let mut bench = Bench::new(0, 1, 8);
    let (mut disk, requests) = (bench.disk(0), [0, 1, 2, 3, 4].map(|sector| bench.read(sector)));
    set_up!(bench, queue, server);
    assert_eq!(queue.next_deadline(), None);
    let [first, second, third, fourth, fifth] = requests;
    let _first = Box::pin(queue.request(first)).as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(queue.next_deadline(), None, "who has no deadline waits for ever");
    let mut transfers = vec![begin(&queue, second, 70)];
    assert_eq!(queue.next_deadline(), Some(at(70)));
    server.run(0);
    disk.take();
    // These wait for room.
    transfers.push(begin(&queue, third, 80));
    assert!(!server.0.run(), "nothing new for it");
    transfers.push(begin(&queue, fourth, 60));
    assert!(server.0.run(), "its timer is late");
    assert_eq!(queue.next_deadline(), Some(at(60)));
    server.run(60);
    assert_eq!(queue.next_deadline(), Some(at(70)));
    server.run(80);
    assert_eq!(queue.next_deadline(), None);
    assert_eq!(
        transfers.iter_mut().map(answer).collect::<Vec<_>>(),
        [(TIMED_OUT, false), (TIMED_OUT, true), (TIMED_OUT, true)]
    );
    // Its time was up before it began.
    let mut late = Box::pin(queue.request_until(fifth, at(80)));
    assert_eq!(answer(&mut late), (TIMED_OUT, true));
}

/// Without its task a request is lost when its time is up, and not before.
#[test]
fn dropped_and_swallowed() {
    let mut bench = Bench::new(0, 1, 64);
    let (mut disk, pool, request) = (bench.disk(0), bench.pool.clone(), bench.read(3));
    set_up!(bench, queue, server);
    drop(begin(&queue, request, 50));
    server.run(49);
    assert_eq!((disk.take(), queue.lost()), (1, 0));
    server.run(50);
    assert_eq!((queue.lost(), pool.available()), (1, BUFFERS - 1));
    disk.finish(0);
    server.run(51);
    assert_eq!((queue.lost(), pool.available()), (0, BUFFERS));
}

#[test]
fn a_reset_gives_back_what_is_lost() {
    for (format, quiet) in FORMATS.into_iter().flat_map(|format| [(format, true), (format, false)]) {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, pool, requests) = (bench.disk(0), bench.pool.clone(), [bench.read(3), bench.read(4)]);
        let fake = bench.fake.model.clone();
        let (control, mut queues) = bench.block.split();
        let queue = Shared::new(queues.next().unwrap(), Hybrid::new(0)).unwrap();
        let (ended, clock) = (RefCell::default(), Cell::default());
        let mut server = Server(server_at(&queue, &ended, || clock.get()), &clock);
        let mut transfers = requests.map(|request| begin(&queue, request, 50));
        server.run(0);
        disk.take();
        server.run(50);
        fake.lock().stuck = !quiet;
        // Nobody has to wait for the reset.
        queue.close(None);
        assert_eq!(pool.available(), BUFFERS - 2);
        queue.close(control.shut_down().ok().as_ref());
        assert_eq!(transfers.each_mut().map(answer), [(TIMED_OUT, false); 2], "one answer");
        assert_eq!(pool.available(), if quiet { BUFFERS } else { BUFFERS - 2 });
        // The device writes after all.
        disk.finish(0);
        server.run(60);
        assert!(ended.borrow().is_some());
        assert_eq!(pool.available(), if quiet { BUFFERS } else { BUFFERS - 2 });
    }
}

#[test]
fn a_device_that_loses_too_many_requests_is_unresponsive() {
    const PATIENCE: Patience = Patience { lost: 3, silence: None };
    for (format, dropped) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, pool) = (bench.disk(0), bench.pool.clone());
        let requests: Vec<_> = (0..4).map(|sector| bench.read(sector)).collect();
        let (control, mut queues) = bench.block.split();
        let queue = Shared::new(queues.next().unwrap(), Hybrid::new(0)).unwrap().with_patience(PATIENCE);
        let (ended, clock) = (RefCell::default(), Cell::default());
        let mut server = Server(server_at(&queue, &ended, || clock.get()), &clock);
        let mut transfers: Vec<_> =
            (1..).zip(requests).map(|(number, request)| begin(&queue, request, 10 * number)).collect();
        if dropped {
            transfers.clear();
        }
        server.run(0);
        assert_eq!(disk.take(), 4);
        server.run(20);
        assert_eq!((queue.lost(), *ended.borrow()), (2, None));
        // One comes back, so that there is room for one more loss.
        disk.finish(0);
        server.run(30);
        assert_eq!((queue.lost(), *ended.borrow()), (2, None));
        server.run(40);
        assert_eq!((queue.lost(), *ended.borrow()), (3, Some(QueueError::Unresponsive)), "{format:#x}");
        assert!(transfers.iter_mut().all(|transfer| answer(transfer) == (TIMED_OUT, false)));
        queue.close(Some(&control.shut_down().unwrap()));
        assert_eq!((queue.lost(), pool.available()), (0, BUFFERS));
    }
}

/// Whatever the deadlines are; but only the time counts in which somebody waits.
#[test]
fn a_silent_device_is_unresponsive() {
    const PATIENCE: Patience = Patience { lost: usize::MAX, silence: Some(Duration::from_millis(100)) };
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 8);
        let mut disk = bench.disk(0);
        let mut requests = (0..6).map(|sector| bench.read(sector)).collect::<Vec<_>>().into_iter();
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap().with_patience(PATIENCE);
        let (ended, clock) = (RefCell::default(), Cell::default());
        let mut server = Server(server_at(&queue, &ended, || clock.get()), &clock);
        server.run(0);
        // A disk that nobody asks anything is silent.
        server.run(5000);
        assert_eq!(queue.next_deadline(), None);
        let mut patient = Box::pin(queue.request(requests.next().unwrap()));
        assert!(poll(&mut patient).is_pending());
        server.run(5000);
        assert_eq!(queue.next_deadline(), Some(at(5050)));
        server.run(5050);
        assert_eq!(queue.next_deadline(), Some(at(5100)));
        server.run(5099);
        disk.take();
        disk.finish(0);
        server.run(5300);
        assert_eq!((answer(&mut patient), *ended.borrow()), ((Ok(()), true), None), "slow, but not silent");
        // Two short tries, with a pause between them.
        let mut first = begin(&queue, requests.next().unwrap(), 5340);
        server.run(5300);
        server.run(5340);
        assert_eq!(answer(&mut first), (TIMED_OUT, false));
        server.run(7000);
        let mut second = begin(&queue, requests.next().unwrap(), 7050);
        server.run(7000);
        server.run(7050);
        assert_eq!((answer(&mut second), *ended.borrow()), ((TIMED_OUT, false), None));
        // There is no room any more, for one that has no deadline.
        let mut third = Box::pin(queue.request(requests.next().unwrap()));
        assert!(poll(&mut third).is_pending());
        assert_eq!((queue.lost(), queue.in_flight()), (2, 2));
        server.0.run();
        assert_eq!(queue.next_deadline(), Some(at(7060)), "{format:#x}");
        server.run(7059);
        assert_eq!(*ended.borrow(), None);
        server.run(7060);
        assert_eq!(*ended.borrow(), Some(QueueError::Unresponsive));
    }
}

#[test]
fn half_of_the_slots_and_half_a_minute_are_borne() {
    for lost in [9, 10] {
        let mut bench = Bench::new(0, 1, 64);
        let (mut disk, pool, depth) = (bench.disk(0), bench.pool.clone(), bench.block.queue.depth());
        let requests: Vec<_> = (0..depth as u64).map(|sector| bench.read(sector)).collect();
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
        let (ended, clock) = (RefCell::default(), Cell::default());
        let mut server = Server(server_at(&queue, &ended, || clock.get()), &clock);
        let _transfers: Vec<_> = (0..)
            .zip(requests)
            .map(|(place, request)| begin(&queue, request, if place < lost { 10 } else { 60_000 }))
            .collect();
        server.run(0);
        assert_eq!((disk.take(), depth), (depth, 21));
        server.run(10);
        assert_eq!(queue.lost(), lost);
        assert_eq!(ended.borrow().is_some(), lost == depth / 2, "{lost} of {depth}");
        server.run(15_010);
        server.run(29_999);
        assert_eq!(ended.borrow().is_some(), lost == depth / 2);
        server.run(30_000);
        assert_eq!(*ended.borrow(), Some(QueueError::Unresponsive));
        assert_eq!(pool.available(), BUFFERS - depth, "until it is known who has the buffers");
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// A request, with so much time.
    Begin(Option<u64>),
    Poll(Index),
    Drop(Index),
    /// Time goes by, and the server runs.
    Server(u64),
    Take,
    Finish(Index),
    /// The device keeps a request for itself, or gives it back after all.
    Swallow(Index),
    Recall(Index),
}

fn step() -> impl Strategy<Value = Step> {
    let any = || any::<Index>();
    prop_oneof![
        6 => prop::option::weighted(0.8, 1..40_u64).prop_map(Step::Begin),
        4 => any().prop_map(Step::Poll),
        1 => any().prop_map(Step::Drop),
        6 => (0..20_u64).prop_map(Step::Server),
        3 => Just(Step::Take),
        4 => any().prop_map(Step::Finish),
        2 => any().prop_map(Step::Swallow),
        2 => any().prop_map(Step::Recall),
    ]
}

/// A request as the model knows it.
struct Asked {
    sector: u64,
    deadline: Option<Duration>,
    /// The answer that it has or is to have: decided when the server runs.
    answer: Option<Result<(), RequestError>>,
}

proptest! {
    /// Against a model: what is in the ring, what is done, and what the time is decide alone.
    #[test]
    fn every_caller_has_one_answer(
        format in select(FORMATS.to_vec()),
        tables in select(vec![0, INDIRECT_DESC]),
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let mut bench = Bench::new(format | tables, 1, 16);
        let (mut disk, pool, windows) = (bench.disk(0), bench.pool.clone(), bench.fake.windows());
        let in_order = format & IN_ORDER != 0;
        set_up!(bench, queue, server);
        let (mut now, mut next) = (0, 0);
        let (mut asked, mut transfers): (Vec<Asked>, Vec<(u64, OnItsWay)>) = (Vec::new(), Vec::new());
        // By sector: what the device took, in its order, and what it has done; and what it keeps.
        let (mut taken, mut done, mut swallowed) = (Vec::new(), HashSet::new(), Vec::<Chain>::new());
        let sector_of = |disk: &Disk, chain: &Chain| {
            u64::from_le_bytes(disk.ring.read(&chain.segments[0])[8..16].try_into().unwrap())
        };
        for step in steps {
            match step {
                Step::Begin(time) => {
                    let Some(buffer) = pool.take() else { continue };
                    let address = windows.publish(buffer.address()).unwrap().0;
                    let mut lent = disk.pending.iter().chain(&swallowed);
                    prop_assert!(lent.all(|chain| chain.segments[1].address != address), "lent twice");
                    let deadline = time.map(|time| at(now + time));
                    let request = Request::Read { sector: next, buffer, len: LEN };
                    let mut transfer = Box::pin(match deadline {
                        Some(deadline) => queue.request_until(request, deadline),
                        None => queue.request(request),
                    });
                    prop_assert!(poll(&mut transfer).is_pending());
                    transfers.push((next, transfer));
                    asked.push(Asked { sector: next, deadline, answer: None });
                    next += 1;
                }
                Step::Poll(which) if !transfers.is_empty() => {
                    let which = which.index(transfers.len());
                    let (sector, transfer) = &mut transfers[which];
                    let asked = &asked[*sector as usize];
                    match poll(transfer) {
                        Poll::Pending => prop_assert!(asked.answer.is_none()),
                        Poll::Ready((result, buffer)) => {
                            prop_assert_eq!(Some(result), asked.answer);
                            prop_assert!(buffer.is_some() || result.is_err());
                            if result.is_ok() {
                                check((result, buffer), *sector);
                            } else {
                                prop_assert!(buffer.is_none() || !taken.contains(sector), "the device's");
                            }
                            drop(transfers.swap_remove(which));
                        }
                    }
                }
                Step::Drop(which) if !transfers.is_empty() => {
                    let (sector, _) = transfers.swap_remove(which.index(transfers.len()));
                    // Whatever comes of it.
                    asked[sector as usize].answer.get_or_insert(Ok(()));
                }
                Step::Server(time) => {
                    now += time;
                    server.run(now);
                    for Asked { sector, deadline, answer } in &mut asked {
                        if done.contains(sector) {
                            answer.get_or_insert(Ok(()));
                        } else if deadline.is_some_and(|deadline| deadline <= at(now)) {
                            answer.get_or_insert(TIMED_OUT);
                        }
                    }
                    prop_assert!(queue.next_deadline().is_none_or(|next| next > at(now)));
                    let left = asked.iter().filter(|asked| asked.answer.is_none());
                    let earliest = left.filter_map(|asked| asked.deadline).min();
                    prop_assert!(earliest.is_none_or(|earliest| queue.next_deadline().unwrap() <= earliest));
                }
                Step::Take => {
                    let before = disk.pending.len();
                    disk.take();
                    taken.extend(disk.pending[before..].iter().map(|chain| sector_of(&disk, chain)));
                    prop_assert!(taken.is_sorted(), "first come, first served: {:?}", taken);
                }
                Step::Finish(which) if !disk.pending.is_empty() && (!in_order || swallowed.is_empty()) => {
                    let which = if in_order { 0 } else { which.index(disk.pending.len()) };
                    done.insert(sector_of(&disk, &disk.pending[which]));
                    disk.finish(which);
                }
                Step::Swallow(which) if !disk.pending.is_empty() && (!in_order || swallowed.is_empty()) => {
                    let which = if in_order { 0 } else { which.index(disk.pending.len()) };
                    swallowed.push(disk.pending.remove(which));
                }
                Step::Recall(which) if !swallowed.is_empty() => {
                    let chain = swallowed.remove(which.index(swallowed.len()));
                    disk.pending.insert(0, chain);
                }
                _ => {}
            }
            prop_assert!(queue.lost() <= queue.in_flight());
            let counters = queue.counters();
            prop_assert_eq!(counters.given_up - counters.late, queue.lost() as u64);
        }
        // The device gives all back, and all buffers are there again.
        swallowed.into_iter().rev().for_each(|chain| disk.pending.insert(0, chain));
        loop {
            server.run(now);
            disk.take();
            if disk.pending.is_empty() {
                break;
            }
            disk.finish(0);
        }
        transfers.iter_mut().for_each(|(_, transfer)| assert!(poll(transfer).is_ready()));
        prop_assert_eq!((queue.in_flight(), queue.lost(), pool.available()), (0, 0, BUFFERS));
        prop_assert!(server.0.future.is_some());
    }
}
