//! Callers of a shared queue at their worst: times that no clock shows, wakers that change, call back or
//! unwind, and thousands who leave in any order, or are refused while others wait.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use ringfence_drivers::block::{CallResult, Patience, Request, RequestError, Transfer};
use ringfence_drivers::virtio::{Hybrid, QueueError};
use ringfence_testkit::tasks::*;
use ringfence_testkit::{FakeNotifier, IN_ORDER, RING_PACKED};

const FORMATS: [u64; 4] = [0, RING_PACKED, IN_ORDER, RING_PACKED | IN_ORDER];
const ENDLESS: Patience = Patience { lost: usize::MAX, silence: None };
const DAY: Duration = Duration::from_secs(86_400);

type OnItsWay<'q, 'a> = Pin<Box<Transfer<'q, 'a, FakeNotifier>>>;

fn poll_with(transfer: &mut OnItsWay, waker: &Waker) -> Poll<CallResult> {
    transfer.as_mut().poll(&mut Context::from_waker(waker))
}

fn poll(transfer: &mut OnItsWay) -> Poll<CallResult> {
    poll_with(transfer, Waker::noop())
}

/// A server that runs at a time.
fn run(server: &mut Task, clock: &Cell<Duration>, now: Duration) {
    clock.set(now);
    server.flag.clone().wake();
    settle(&mut [server]);
}

macro_rules! set_up {
    ($bench:ident, $patience:expr => $queue:ident, $server:ident, $clock:ident, $ended:ident) => {
        let $queue = Shared::new(&mut $bench.block.queue, Hybrid::new(0)).unwrap().with_patience($patience);
        let ($ended, $clock) = (RefCell::default(), Cell::default());
        let mut $server = server_at(&$queue, &$ended, || $clock.get());
    };
}

#[test]
fn times_that_no_clock_shows() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 8);
        let (mut disk, pool) = (bench.disk(0), bench.pool.clone());
        let mut requests = (0..9).map(|sector| bench.read(sector)).collect::<Vec<_>>().into_iter();
        set_up!(bench, ENDLESS => queue, server, clock, ended);
        let mut begin = |deadline| Box::pin(queue.request_until(requests.next().unwrap(), deadline));
        // Before anybody knows what time it is it is 0.
        let Poll::Ready((result, buffer)) = poll(&mut begin(Duration::ZERO)) else { panic!() };
        assert_eq!((result, buffer.map(drop)), (Err(RequestError::TimedOut), Some(())));
        let mut endless: Vec<_> = [Duration::MAX; 4].map(&mut begin).into();
        assert!(endless.iter_mut().all(|transfer| poll(transfer).is_pending()));
        assert_eq!(queue.next_deadline(), Some(Duration::MAX));
        run(&mut server, &clock, Duration::ZERO);
        assert_eq!(disk.take(), 2);
        // A clock that goes back ends nobody's time.
        let mut last = begin(2 * DAY);
        run(&mut server, &clock, DAY);
        assert!(poll(&mut last).is_pending());
        run(&mut server, &clock, Duration::from_nanos(1));
        assert!(poll(&mut last).is_pending() && ended.borrow().is_none());
        // It jumps.
        run(&mut server, &clock, Duration::MAX - Duration::from_nanos(1));
        assert!(poll(&mut last).is_ready() && endless.iter_mut().all(|other| poll(other).is_pending()));
        assert_eq!((ended.borrow().is_none(), queue.next_deadline()), (true, Some(Duration::MAX)));
        disk.finish(0);
        run(&mut server, &clock, Duration::MAX);
        let results: Vec<_> = endless.iter_mut().map(poll).collect();
        let ends: Vec<_> = results.iter().map(|result| matches!(result, Poll::Ready((Ok(()), _)))).collect();
        assert_eq!(ends, [true, false, false, false], "one was done in time");
        assert!(results.iter().all(Poll::is_ready));
        assert!(poll(&mut begin(Duration::MAX)).is_ready(), "its time is up");
        drop(results);
        disk.finish(0);
        run(&mut server, &clock, Duration::MAX);
        assert_eq!((queue.lost(), queue.in_flight(), ended.borrow().is_none()), (0, 0, true));
        drop((endless, last, requests));
        assert_eq!(pool.available(), BUFFERS);
    }
}

/// Patience of nothing at all is for a device that fails, not for one that works.
#[test]
fn the_least_patience() {
    let mut bench = Bench::new(0, 1, 8);
    let (mut disk, requests) = (bench.disk(0), [bench.read(0), bench.read(1)]);
    set_up!(bench, Patience { lost: 0, silence: None } => queue, server, clock, ended);
    run(&mut server, &clock, Duration::ZERO);
    assert_eq!(*ended.borrow(), None, "nobody has asked it anything");
    let [mut first, mut second] = requests.map(|request| Box::pin(queue.request_until(request, DAY)));
    assert!(poll(&mut first).is_pending());
    run(&mut server, &clock, Duration::ZERO);
    disk.take();
    disk.finish(0);
    run(&mut server, &clock, 2 * DAY);
    assert!(matches!(poll(&mut first), Poll::Ready((Ok(()), _))));
    assert!(poll(&mut second).is_ready() && ended.borrow().is_none());
}

/// Nor is it for one that answers as soon as can be seen; and nobody looks for nothing meanwhile.
#[test]
fn no_silence_at_all() {
    let ms = Duration::from_millis;
    for silence in [Duration::ZERO, Duration::from_nanos(1), ms(1), ms(2)] {
        let mut bench = Bench::new(0, 1, 8);
        let (mut disk, requests) = (bench.disk(0), [bench.read(0), bench.read(1)]);
        let patience = Patience { lost: 1, silence: Some(silence) };
        set_up!(bench, patience => queue, server, clock, ended);
        let mut transfers = requests.map(|request| Box::pin(queue.request(request)));
        transfers.iter_mut().for_each(|transfer| assert!(poll(transfer).is_pending()));
        for (now, finishes) in [(0, false), (1, true), (2, false), (3, false)] {
            run(&mut server, &clock, ms(now));
            assert_eq!((*ended.borrow(), queue.next_deadline()), (None, Some(ms(now + 1))), "{silence:?}");
            disk.take();
            if finishes {
                disk.finish(0);
            }
        }
        assert!(matches!(poll(&mut transfers[0]), Poll::Ready((Ok(()), _))));
        run(&mut server, &clock, ms(4));
        assert_eq!(*ended.borrow(), Some(QueueError::Unresponsive), "{silence:?}");
    }
}

/// Whoever polls last is woken, and nobody else.
#[test]
fn wakers_that_change() {
    for (format, in_line) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let mut bench = Bench::new(format, 1, 8);
        let (mut disk, requests) = (bench.disk(0), [0, 1, 2].map(|sector| bench.read(sector)));
        set_up!(bench, ENDLESS => queue, server, clock, ended);
        let mut transfers = requests.map(|request| Box::pin(queue.request(request)));
        transfers.iter_mut().for_each(|transfer| assert!(poll(transfer).is_pending()));
        let flags: Vec<Arc<Flag>> = (0..50).map(|_| Arc::default()).collect();
        let transfer = &mut transfers[if in_line { 2 } else { 0 }];
        for (number, flag) in flags.iter().enumerate() {
            assert!(poll_with(transfer, &flag.clone().into()).is_pending());
            let kept = flags.iter().filter(|flag| Arc::strong_count(flag) > 1).count();
            assert_eq!((Arc::strong_count(flag), kept), (2, 1), "{number}");
        }
        for _ in 0..3 {
            run(&mut server, &clock, Duration::ZERO);
            disk.take();
            disk.finish(0);
        }
        run(&mut server, &clock, Duration::ZERO);
        let woken: Vec<_> = flags.iter().map(|flag| flag.is_set()).collect();
        assert!(woken[49] && woken[..49].iter().all(|woken| !woken));
        assert!(poll(transfer).is_ready() && ended.borrow().is_none());
    }
}

/// What a waker does, once.
struct Acts(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Acts {
    fn waker(act: impl FnOnce() + Send + 'static) -> Waker {
        Arc::new(Self(Mutex::new(Some(Box::new(act))))).into()
    }

    fn act(&self) {
        let act = self.0.lock().unwrap().take();
        act.into_iter().for_each(|act| act());
    }
}

impl Wake for Acts {
    fn wake(self: Arc<Self>) {
        self.act();
    }
}

/// If nobody wakes it, it acts all the same.
impl Drop for Acts {
    fn drop(&mut self) {
        self.act();
    }
}

/// A queue that wakers call, with requests for it.
type Called = (&'static Shared<'static>, &'static RefCell<Vec<Request>>);

thread_local! {
    static QUEUE: Cell<Option<Called>> = Cell::default();
}

/// Everything that there is to call, from within a call.
fn call_back() {
    let (queue, requests) = QUEUE.get().unwrap();
    let next = requests.borrow_mut().pop();
    if let Some(request) = next {
        // Dropped again: on its way, or in the line.
        let mut transfer = Box::pin(queue.request(request));
        (0..2).for_each(|_| _ = poll_with(&mut transfer, &Acts::waker(call_back)));
    }
    let now = queue.next_deadline().unwrap_or_default();
    let _ = queue.poll_serve(&mut Context::from_waker(&Acts::waker(|| {})), now);
    let _ = (queue.is_asleep(), queue.in_flight(), queue.lost(), queue.counters());
    let _ = queue.may_have_completed();
    queue.look_again();
    queue.wake();
}

/// Wakers that call the queue back, when they are woken and when they are dropped; to its end.
#[test]
fn wakers_that_call_back() {
    for (format, closes) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let bench: &'static mut Bench = Box::leak(Box::new(Bench::new(format, 1, 8)));
        let (mut disk, pool) = (bench.disk(0), bench.pool.clone());
        let requests: &'static RefCell<Vec<Request>> = Box::leak(Box::default());
        *requests.borrow_mut() = (0..40).map(|sector| bench.read(sector)).collect();
        let mine: Vec<_> = (40..45).map(|sector| bench.read(sector)).collect();
        let queue: &'static Shared<'static> =
            Box::leak(Box::new(Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap()));
        QUEUE.set(Some((queue, requests)));
        let mut transfers: Vec<_> =
            mine.into_iter().map(|request| Box::pin(queue.request(request))).collect();
        for transfer in &mut transfers {
            assert!(poll_with(transfer, &Acts::waker(call_back)).is_pending());
        }
        let serve = |waker| queue.poll_serve(&mut Context::from_waker(&waker), Duration::ZERO);
        assert!(serve(Acts::waker(call_back)).is_pending());
        if closes {
            queue.close(None);
            assert_eq!(serve(Waker::noop().clone()), Poll::Ready(QueueError::Broken));
            let answers = transfers.iter_mut().map(poll).collect::<Vec<_>>();
            let is_over = |answer: &_| matches!(answer, Poll::Ready((Err(RequestError::Broken), _)));
            assert!(answers.iter().all(is_over));
            continue;
        }
        for _ in 0..60 {
            disk.take();
            while !disk.pending.is_empty() {
                disk.finish(0);
            }
            assert!(serve(Acts::waker(call_back)).is_pending());
        }
        for (sector, transfer) in (40..).zip(&mut transfers) {
            let Poll::Ready(result) = poll(transfer) else { panic!("{sector} is on its way") };
            check(result, sector);
        }
        assert_eq!((queue.in_flight(), queue.lost(), requests.borrow().len()), (0, 0, 0));
        assert_eq!(pool.available(), BUFFERS);
    }
}

struct Unwinds;

impl Wake for Unwinds {
    fn wake(self: Arc<Self>) {
        panic!("a waker");
    }
}

/// A waker that unwinds keeps its own task from knowing, and nobody else.
#[test]
fn wakers_that_unwind() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 1, 64);
        let (mut disk, pool) = (bench.disk(0), bench.pool.clone());
        let requests: Vec<_> = (0..6).map(|sector| bench.read(sector)).collect();
        set_up!(bench, ENDLESS => queue, server, clock, ended);
        let mut transfers: Vec<_> =
            requests.into_iter().map(|request| Box::pin(queue.request(request))).collect();
        let flags: Vec<Arc<Flag>> = (0..6).map(|_| Arc::default()).collect();
        for (number, transfer) in transfers.iter_mut().enumerate() {
            let unwinds = number % 2 == 0;
            let waker = if unwinds { Arc::new(Unwinds).into() } else { flags[number].clone().into() };
            assert!(poll_with(transfer, &waker).is_pending());
        }
        run(&mut server, &clock, Duration::ZERO);
        assert_eq!(disk.take(), 6);
        (0..6).for_each(|_| _ = disk.finish(0));
        let serve = || queue.poll_serve(&mut Context::from_waker(Waker::noop()), Duration::ZERO);
        let unwound = (0..4).filter(|_| catch_unwind(AssertUnwindSafe(serve)).is_err());
        assert_eq!(unwound.count(), 3);
        assert_eq!(flags.iter().map(|flag| flag.is_set()).collect::<Vec<_>>(), [false, true].repeat(3));
        for (sector, transfer) in (0..).zip(&mut transfers) {
            let Poll::Ready(result) = poll(transfer) else { panic!("{sector} is on its way") };
            check(result, sector);
        }
        assert_eq!((queue.in_flight(), pool.available(), ended.borrow().is_none()), (0, BUFFERS, true));
    }
}

#[derive(Clone, Debug)]
enum Who {
    Reads,
    /// A request that the disk refuses.
    Refused,
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![1 => Just(Who::Reads), 30 => Just(Who::Refused)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Those who stay are served in their order, or told what is wrong; all of them are woken.
    #[test]
    fn thousands_who_leave(
        format in prop::sample::select(FORMATS.to_vec()),
        who in prop::collection::vec(who(), 1000..3000),
        deadlines in prop::collection::vec(prop::option::of(1_u64..100), 3000),
        leavers in prop::collection::vec(any::<Index>(), 0..2000),
        times in prop::collection::vec(1_u64..40, 1..6),
    ) {
        let mut bench = Bench::new(format, 1, 8);
        let (mut disk, pool) = (bench.disk(0), bench.pool.clone());
        set_up!(bench, ENDLESS => queue, server, clock, ended);
        let (mut all, mut leavers) = (Vec::new(), leavers.into_iter());
        for (number, (who, deadline)) in (0..).zip(who.into_iter().zip(deadlines)) {
            let reads = matches!(who, Who::Reads) || number < 3;
            let request = match pool.take().filter(|_| reads) {
                Some(buffer) => Request::Read { sector: number, buffer, len: LEN },
                None => Request::Flush,
            };
            let is_read = matches!(request, Request::Read { .. });
            let deadline = deadline.map_or(Duration::MAX, Duration::from_millis);
            let mut transfer: OnItsWay = Box::pin(queue.request_until(request, deadline));
            let flag = Arc::new(Flag::default());
            prop_assert!(poll_with(&mut transfer, &flag.clone().into()).is_pending());
            all.push((number, is_read, deadline, flag, transfer));
            if number > 500 && let Some(leaver) = leavers.next() {
                drop(all.swap_remove(leaver.index(all.len())));
            }
        }
        all.sort_by_key(|(number, ..)| *number);
        let (mut now, mut seen, mut left) = (Duration::ZERO, Vec::new(), all);
        let mut times = times.into_iter();
        loop {
            run(&mut server, &clock, now);
            let before = disk.pending.len();
            disk.take();
            seen.extend(disk.pending[before..].iter().map(|chain| {
                u64::from_le_bytes(disk.ring.read(&chain.segments[0])[8..16].try_into().unwrap())
            }));
            let mut still = Vec::new();
            for (number, is_read, deadline, flag, mut transfer) in left {
                match poll_with(&mut transfer, &flag.clone().into()) {
                    Poll::Pending => {
                        prop_assert!(deadline > now && !flag.is_set());
                        still.push((number, is_read, deadline, flag, transfer));
                    }
                    Poll::Ready((result, _)) => {
                        prop_assert!(flag.is_set(), "{} was not woken", number);
                        match result {
                            Ok(()) => prop_assert!(is_read && seen.contains(&number)),
                            Err(RequestError::Unsupported) => prop_assert!(!is_read),
                            error => {
                                prop_assert_eq!(error, Err(RequestError::TimedOut));
                                prop_assert!(deadline <= now);
                            }
                        }
                    }
                }
            }
            left = still;
            if disk.pending.is_empty() {
                break;
            }
            disk.finish(0);
            now += Duration::from_millis(times.next().unwrap_or(0));
        }
        prop_assert!(left.is_empty() && seen.is_sorted());
        prop_assert_eq!(seen.iter().collect::<HashSet<_>>().len(), seen.len());
        prop_assert_eq!((pool.available(), queue.in_flight(), queue.lost()), (BUFFERS, 0, 0));
        prop_assert!(ended.borrow().is_none());
    }
}
