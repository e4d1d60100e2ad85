//! What whoever serves a queue does and is told, and when it is woken.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringfence_drivers::block::{Patience, Request, RequestError, Transfer};
use ringfence_drivers::virtio::{Hybrid, QueueError};
use ringfence_testkit::tasks::*;
use ringfence_testkit::{FakeNotifier, IN_ORDER, RING_PACKED};

const FORMATS: [u64; 4] = [0, RING_PACKED, IN_ORDER, RING_PACKED | IN_ORDER];

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

type OnItsWay<'q, 'a> = Pin<Box<Transfer<'q, 'a, FakeNotifier>>>;

/// What came of it, and whether its buffer came with it; `None` while it is on its way.
fn answer(transfer: &mut OnItsWay) -> Option<(Result<(), RequestError>, bool)> {
    match transfer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready((result, buffer)) => Some((result, buffer.is_some())),
        Poll::Pending => None,
    }
}

fn begin<'q, 'a>(queue: &'q Shared<'a>, request: Request, deadline: Option<u64>) -> OnItsWay<'q, 'a> {
    let mut transfer = Box::pin(match deadline {
        Some(deadline) => queue.request_until(request, at(deadline)),
        None => queue.request(request),
    });
    assert!(answer(&mut transfer).is_none());
    transfer
}

/// The server's turn, at a time.
fn serve(server: &mut Task, clock: &Cell<Duration>, ms: u64) {
    clock.set(at(ms));
    server.flag.clone().wake();
    settle(&mut [server]);
}

#[test]
fn interrupts_are_off_while_the_server_looks() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, request) = (bench.disk(0), bench.read(1));
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(3)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        assert!(disk.ring.interrupts_wanted() && !queue.is_asleep());
        let mut transfer = begin(&queue, request, None);
        assert!(queue.is_asleep(), "it has not run yet");
        for woken_by in ["itself", "an interrupt"] {
            server.flag.clone().wake();
            server.run();
            assert!(!disk.ring.interrupts_wanted() && !queue.is_asleep(), "{format:#x}, {woken_by}");
            settle(&mut [&mut server]);
            assert!(disk.ring.interrupts_wanted() && queue.is_asleep(), "{format:#x}, {woken_by}");
        }
        disk.take();
        assert!(disk.finish(0));
        server.flag.clone().wake();
        settle(&mut [&mut server]);
        assert_eq!(answer(&mut transfer), Some((Ok(()), true)));
        assert!(disk.ring.interrupts_wanted() && !queue.is_asleep(), "nothing is in flight");
    }
}

/// What a look finds, without the server: nothing while it looks and nothing is done.
#[test]
fn a_cheap_look_finds_what_the_server_would() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, request) = (bench.disk(0), bench.read(1));
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(3)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        assert!(queue.may_have_completed(), "nothing to look for");
        let mut transfer = begin(&queue, request, None);
        assert!(queue.may_have_completed(), "it has not run yet");
        server.flag.clone().wake();
        server.run();
        assert!(!queue.may_have_completed(), "{format:#x}");
        disk.take();
        assert!(!disk.finish(0), "interrupts are off");
        assert!(queue.may_have_completed(), "{format:#x}");
        settle(&mut [&mut server]);
        assert_eq!(answer(&mut transfer), Some((Ok(()), true)));
        assert!(queue.may_have_completed());
    }
}

/// A device that is done whenever the server goes to sleep does not keep it from giving way.
#[test]
fn others_run_before_it_looks_at_what_came_just_now() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, request) = (bench.disk(0), bench.read(1));
        let fake = bench.fake.model.clone();
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        let mut transfer = begin(&queue, request, None);
        fake.lock().on_kick = Some(Box::new(move || {
            disk.take();
            _ = disk.finish(0);
        }));
        server.run();
        assert_eq!((answer(&mut transfer), queue.in_flight()), (None, 1), "{format:#x}");
        assert!(server.run(), "no interrupt tells of it");
        assert_eq!(answer(&mut transfer), Some((Ok(()), true)));
    }
}

#[test]
fn the_server_is_woken_by_whoever_has_something_for_it_only() {
    let mut bench = Bench::new(0, 1, 64);
    let (mut disk, requests) = (bench.disk(0), [bench.read(1), bench.read(2)]);
    let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
    let ended = RefCell::default();
    let mut server = server(&queue, &ended);
    settle(&mut [&mut server]);
    let [in_flight, done] = requests.map(|request| begin(&queue, request, None));
    settle(&mut [&mut server]);
    disk.take();
    disk.finish(1);
    queue.wake();
    assert!(server.run(), "the interrupt was another queue's, too");
    settle(&mut [&mut server]);
    assert_eq!(queue.in_flight(), 1);
    drop(done);
    assert!(!server.run(), "that was done");
    drop(in_flight);
    assert!(!server.run(), "the device still has it");
    queue.close(None);
    assert!(server.run(), "it is over");
    assert_eq!(*ended.borrow(), Some(QueueError::Broken));
}

#[test]
fn the_task_that_asked_last_is_woken() {
    let mut bench = Bench::new(0, 1, 64);
    let (mut disk, request) = (bench.disk(0), bench.read(1));
    let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
    let ended = RefCell::default();
    let mut server = server(&queue, &ended);
    let flags = [Arc::new(Flag::default()), Arc::new(Flag::default())];
    let mut transfer = Box::pin(queue.request(request));
    for flag in [&flags[0], &flags[0], &flags[1], &flags[1]] {
        let waker = Waker::from(flag.clone());
        assert!(transfer.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    server.run();
    disk.take();
    disk.finish(0);
    server.flag.clone().wake();
    server.run();
    assert_eq!(flags.map(|flag| flag.is_set()), [false, true]);
}

/// One that waits in the line is looked at when its turn comes.
#[test]
fn what_is_refused_at_its_turn_holds_nobody_up() {
    for format in FORMATS {
        // Room for two.
        let mut bench = Bench::new(format, 1, 8);
        let mut disk = bench.disk(0);
        let requests = [0, 1, 2, SECTORS, 4].map(|sector| bench.read(sector));
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        let mut transfers = requests.map(|request| begin(&queue, request, None));
        settle(&mut [&mut server]);
        for _ in 0..4 {
            disk.take();
            disk.finish(0);
            server.flag.clone().wake();
            settle(&mut [&mut server]);
        }
        let done = Some((Ok(()), true));
        let refused = Some((Err(RequestError::OutOfRange), true));
        assert_eq!(transfers.each_mut().map(answer), [done, done, done, refused, done], "{format:#x}");
    }
}

#[test]
fn what_it_is_like() {
    let mut bench = Bench::new(0, 1, 32);
    let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
    assert_eq!((queue.queue_size(), queue.geometry().sectors), (32, SECTORS));
}

/// No time counts before the server ran first, nor any at whose end nobody waits any more.
#[test]
fn silence_is_that_in_which_somebody_waits() {
    const PATIENCE: Patience = Patience { lost: usize::MAX, silence: Some(Duration::from_millis(100)) };
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 64);
        let requests = [0, 1, 2].map(|sector| bench.read(sector));
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap().with_patience(PATIENCE);
        let (ended, clock) = (RefCell::default(), Cell::default());
        let mut server = server_at(&queue, &ended, || clock.get());
        assert_eq!(queue.next_deadline(), None);
        let [first, second, third] = requests;
        let mut first = begin(&queue, first, Some(5100));
        for now in [5000, 5050] {
            serve(&mut server, &clock, now);
            assert_eq!((*ended.borrow(), queue.next_deadline()), (None, Some(at(now + 50))));
        }
        serve(&mut server, &clock, 5100);
        assert_eq!(answer(&mut first), Some((Err(RequestError::TimedOut), false)));
        assert_eq!((*ended.borrow(), queue.next_deadline()), (None, None), "{format:#x}");
        // The silence goes on when somebody waits again.
        let _second = begin(&queue, second, Some(9000));
        assert_eq!(queue.next_deadline(), Some(at(9000)));
        let _third = begin(&queue, third, Some(5150));
        assert_eq!(queue.next_deadline(), Some(at(5150)));
        serve(&mut server, &clock, 5100);
        assert_eq!(*ended.borrow(), Some(QueueError::Unresponsive));
    }
}

/// A host that stops the guest for a while stops its disk, too, or is slow after it: half of the patience is
/// left for that, and the server runs in time for it.
#[test]
fn one_stop_of_the_guest_ends_no_healthy_queue() {
    const PATIENCE: Patience = Patience { lost: 1, silence: Some(Duration::from_millis(100)) };
    for (format, answers) in FORMATS.into_iter().flat_map(|format| [(format, true), (format, false)]) {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, requests) = (bench.disk(0), [0, 1, 2].map(|sector| bench.read(sector)));
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap().with_patience(PATIENCE);
        let (ended, clock) = (RefCell::default(), Cell::default());
        let mut server = server_at(&queue, &ended, || clock.get());
        let mut deadlines = [None, Some(500), Some(70_000)].into_iter();
        let mut transfers = requests.map(|request| begin(&queue, request, deadlines.next().unwrap()));
        serve(&mut server, &clock, 0);
        assert_eq!((disk.take(), queue.next_deadline()), (3, Some(at(50))));
        serve(&mut server, &clock, 40);
        assert_eq!(queue.next_deadline(), Some(at(90)));
        serve(&mut server, &clock, 60_040);
        assert_eq!((*ended.borrow(), queue.lost(), queue.next_deadline()), (None, 0, Some(at(60_050))));
        serve(&mut server, &clock, 60_049);
        assert_eq!((*ended.borrow(), queue.lost()), (None, 0));
        if answers {
            (0..3).for_each(|_| _ = disk.finish(0));
        }
        serve(&mut server, &clock, 60_050);
        if answers {
            assert_eq!(transfers.each_mut().map(answer), [Some((Ok(()), true)); 3], "{format:#x}");
        }
        assert_eq!(*ended.borrow(), (!answers).then_some(QueueError::Unresponsive));
    }
}

/// A deadline that passed while the guest was stopped has half of the patience left, and no more.
#[test]
fn a_deadline_that_passed_in_a_stop() {
    const PATIENCE: Patience = Patience { lost: 2, silence: Some(Duration::from_millis(100)) };
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, requests) = (bench.disk(0), [0, 1, 2, 3].map(|sector| bench.read(sector)));
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap().with_patience(PATIENCE);
        let (ended, clock) = (RefCell::default(), Cell::default());
        let mut server = server_at(&queue, &ended, || clock.get());
        let mut deadlines = [500, 600, 700, 9_030].into_iter();
        let mut transfers = requests.map(|request| begin(&queue, request, deadlines.next()));
        serve(&mut server, &clock, 0);
        assert_eq!(disk.take(), 4);
        serve(&mut server, &clock, 9_000);
        assert_eq!((queue.lost(), queue.next_deadline()), (0, Some(at(9_030))), "{format:#x}");
        disk.finish(0);
        serve(&mut server, &clock, 9_030);
        let timed_out = Some((Err(RequestError::TimedOut), false));
        assert_eq!(transfers.each_mut().map(answer), [Some((Ok(()), true)), None, None, timed_out]);
        assert_eq!((*ended.borrow(), queue.next_deadline()), (None, Some(at(9_050))));
        disk.finish(0);
        serve(&mut server, &clock, 9_049);
        serve(&mut server, &clock, 9_050);
        assert_eq!([1, 2].map(|place| answer(&mut transfers[place])), [Some((Ok(()), true)), timed_out]);
        assert_eq!((queue.lost(), *ended.borrow()), (2, Some(QueueError::Unresponsive)));
    }
}

/// The silence or a deadline, whichever comes first.
#[test]
fn the_server_runs_again_at_the_earlier_of_two_times() {
    const PATIENCE: Patience = Patience { lost: usize::MAX, silence: Some(Duration::from_millis(100)) };
    for (deadline, expected) in [(40, 40), (130, 50)] {
        let mut bench = Bench::new(0, 1, 8);
        let requests = [0, 1, 2, 3].map(|sector| bench.read(sector));
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap().with_patience(PATIENCE);
        let (ended, clock) = (RefCell::default(), Cell::default());
        let mut server = server_at(&queue, &ended, || clock.get());
        let mut requests = requests.into_iter();
        // Two in the ring, and one that waits for room.
        let _transfers: Vec<_> =
            requests.by_ref().take(3).map(|request| begin(&queue, request, Some(deadline))).collect();
        serve(&mut server, &clock, 0);
        assert_eq!(queue.next_deadline(), Some(at(expected)));
        let _last = begin(&queue, requests.next().unwrap(), Some(deadline));
        assert!(!server.run(), "it will run at that time anyway");
    }
}

#[test]
fn a_queue_of_one_slot_may_lose_none() {
    let mut bench = Bench::new(0, 1, 4);
    let request = bench.read(1);
    assert_eq!(bench.block.queue.depth(), 1);
    let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
    let (ended, clock) = (RefCell::default(), Cell::default());
    let mut server = server_at(&queue, &ended, || clock.get());
    let _transfer = begin(&queue, request, Some(10));
    serve(&mut server, &clock, 9);
    assert_eq!((queue.lost(), *ended.borrow()), (0, None));
    serve(&mut server, &clock, 10);
    assert_eq!((queue.lost(), *ended.borrow()), (1, Some(QueueError::Unresponsive)));
}
