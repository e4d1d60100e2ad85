//! Many tasks on one queue: whatever order tasks, server and device run in, each task gets its own answer or
//! none, and none sleeps for ever.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use ringfence_drivers::block::{CallResult, Request, RequestError};
use ringfence_drivers::virtio::{Hybrid, QueueError};
use ringfence_memory::DmaBuf;
use ringfence_testkit::tasks::*;
use ringfence_testkit::{EVENT_IDX, INDIRECT_DESC};

#[test]
fn answers_reach_their_tasks_in_any_order() {
    for ring in formats() {
        let mut bench = Bench::new(ring, 1, 64);
        let (mut disk, fake) = (bench.disk(0), bench.fake.model.clone());
        let requests: Vec<Request> = (0..16).map(|sector| bench.read(sector)).collect();
        let pool = bench.pool.clone();
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        let order = RefCell::new(Vec::new());
        let mut tasks: Vec<Task> = (0..)
            .zip(requests)
            .map(|(sector, request)| {
                let (queue, order) = (&queue, &order);
                Task::new(async move {
                    check(queue.request(request).await, sector);
                    order.borrow_mut().push(sector);
                })
            })
            .collect();
        tasks.iter_mut().for_each(|task| _ = task.run());
        server.run();
        let kicks = fake
            .lock()
            .events
            .iter()
            .filter(|event| matches!(event, ringfence_testkit::Event::Kick(0)))
            .count();
        assert_eq!(kicks, 1, "one notification for all");
        assert_eq!((disk.take(), queue.in_flight()), (16, 16));
        let mut expected = Vec::new();
        while !disk.pending.is_empty() {
            let place = disk.pending.len() * 7 % 5 % disk.pending.len();
            let chain = disk.pending[place].segments[0];
            expected.push(u64::from_le_bytes(disk.ring.read(&chain)[8..16].try_into().unwrap()));
            assert!(disk.finish(place), "the server sleeps");
            server.flag.clone().wake();
            settle(&mut [&mut server]);
            tasks.iter_mut().for_each(|task| _ = task.run());
        }
        assert_eq!(*order.borrow(), expected);
        assert!(!expected.is_sorted());
        assert!(tasks.iter().all(Task::is_over));
        assert_eq!((queue.in_flight(), queue.counters().completions, pool.available()), (0, 16, BUFFERS));
    }
}

#[test]
fn dropped_future_leaves_its_buffer_to_the_device() {
    for ring in formats() {
        let mut bench = Bench::new(ring, 1, 64);
        let mut disk = bench.disk(0);
        let (pool, requests) = (bench.pool.clone(), [bench.read(1), bench.read(2), bench.read(3)]);
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        let mut transfers = requests.map(|request| Box::pin(queue.request(request)));
        let mut context = Context::from_waker(Waker::noop());
        // The first is never polled, the second never told of, the third in the device's hands.
        assert!(transfers[2].as_mut().poll(&mut context).is_pending());
        server.run();
        assert_eq!(disk.take(), 1);
        assert!(transfers[1].as_mut().poll(&mut context).is_pending());
        assert_eq!(pool.available(), BUFFERS - 3);
        drop(transfers);
        assert_eq!((pool.available(), queue.in_flight()), (BUFFERS - 2, 2), "only the first came back");
        server.run();
        assert_eq!(disk.take(), 1, "what was in the ring still happens");
        // Nobody who takes all other buffers shares one with the device.
        let others: Vec<DmaBuf> = std::iter::from_fn(|| pool.take()).collect();
        let blank = bytes(&others[0]);
        for place in [1, 0] {
            assert!(disk.finish(place), "the server sleeps");
            server.flag.clone().wake();
            settle(&mut [&mut server]);
        }
        assert!(others.iter().all(|buffer| bytes(buffer) == blank));
        drop(others);
        assert_eq!((pool.available(), queue.in_flight()), (BUFFERS, 0));
        assert!(server.future.is_some());
    }
}

#[test]
fn done_and_never_fetched() {
    let mut bench = Bench::new(0, 1, 64);
    let mut disk = bench.disk(0);
    let (pool, request) = (bench.pool.clone(), bench.read(5));
    let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
    let ended = RefCell::default();
    let mut server = server(&queue, &ended);
    let mut transfer = Box::pin(queue.request(request));
    assert!(transfer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    server.run();
    disk.take();
    assert!(disk.finish(0));
    server.flag.clone().wake();
    server.run();
    assert_eq!((pool.available(), queue.in_flight()), (BUFFERS - 1, 0), "it waits for its task");
    drop(transfer);
    assert_eq!(pool.available(), BUFFERS);
}

#[test]
fn what_is_refused_comes_back_at_once() {
    let mut bench = Bench::new(0, 1, 64);
    let requests = [bench.read(SECTORS), Request::Flush];
    let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
    let answers = requests.map(|request| {
        let mut transfer = Box::pin(queue.request(request));
        match transfer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready((result, buffer)) => (result, buffer.is_some()),
            Poll::Pending => panic!("it is on its way"),
        }
    });
    assert_eq!(answers, [(Err(RequestError::OutOfRange), true), (Err(RequestError::Unsupported), false)]);
}

#[test]
fn device_that_is_gone_ends_all_requests() {
    for (ring, quiet) in formats().flat_map(|ring| [(ring, true), (ring, false)]) {
        // Room for two, so that the third waits for room.
        let mut bench = Bench::new(ring & !INDIRECT_DESC, 1, 8);
        let mut disk = bench.disk(0);
        let requests: Vec<Request> = (0..3).map(|sector| bench.read(sector)).collect();
        let (pool, late) = (bench.pool.clone(), bench.read(9));
        let (control, mut queues) = bench.block.split();
        let queue = Shared::new(queues.next().unwrap(), Hybrid::new(3)).unwrap();
        let (ended, results) = (RefCell::default(), RefCell::new(Vec::new()));
        let mut server = server(&queue, &ended);
        let mut tasks: Vec<Task> = requests
            .into_iter()
            .map(|request| {
                Task::new(async {
                    let (result, buffer) = queue.request(request).await;
                    results.borrow_mut().push((result, buffer.is_some()));
                })
            })
            .collect();
        tasks.iter_mut().for_each(|task| _ = task.run());
        server.run();
        assert_eq!((disk.take(), queue.in_flight()), (2, 2));
        // An id that the driver does not know.
        disk.ring.put_used(7, 0);
        disk.ring.publish();
        let mut all: Vec<&mut Task> = tasks.iter_mut().chain([&mut server]).collect();
        all.last().unwrap().flag.clone().wake();
        settle(&mut all);
        assert_eq!(*ended.borrow(), Some(QueueError::Broken));
        assert!(results.borrow().is_empty(), "they wait until it is known who has the buffers");
        bench.fake.model().stuck = !quiet;
        let proof = control.shut_down();
        assert_eq!(proof.is_ok(), quiet);
        queue.close(proof.ok().as_ref());
        settle(&mut all);
        assert!(tasks.iter().all(Task::is_over));
        let broken = |has_buffer| (Err(RequestError::Broken), has_buffer);
        // The third never got into the ring.
        assert_eq!(results.take(), [broken(false), broken(false), broken(true)]);
        assert_eq!(pool.available(), if quiet { BUFFERS - 1 } else { BUFFERS - 3 });
        // Nothing begins any more.
        let mut late = Box::pin(queue.request(late));
        let Poll::Ready((result, buffer)) = late.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("it is on its way");
        };
        assert_eq!((result, buffer.is_some()), broken(true));
    }
}

#[test]
fn queues_share_nothing() {
    let mut bench = Bench::new(EVENT_IDX, 3, 64);
    let mut disks = [0, 1, 2].map(|queue| bench.disk(queue));
    let requests: Vec<Request> = (0..30).map(|sector| bench.read(sector)).collect();
    let (_, queues) = bench.block.split();
    let queues: Vec<Shared> = queues.map(|queue| Shared::new(queue, Hybrid::new(0)).unwrap()).collect();
    let ended = RefCell::default();
    let mut servers: Vec<Task> = queues.iter().map(|queue| server(queue, &ended)).collect();
    let mut tasks: Vec<Task> = (0..)
        .zip(requests)
        .map(|(sector, request)| {
            let queue = &queues[sector as usize % 3];
            Task::new(async move { check(queue.request(request).await, sector) })
        })
        .collect();
    settle(&mut tasks.iter_mut().chain(&mut servers).collect::<Vec<_>>());
    assert_eq!(disks.each_mut().map(Disk::take), [10; 3]);
    // One queue is served, and the others sleep.
    for (number, disk) in disks.iter_mut().enumerate().rev() {
        while !disk.pending.is_empty() {
            if disk.finish(disk.pending.len() / 2) {
                servers[number].flag.clone().wake();
            }
            let woken: Vec<bool> = servers.iter_mut().map(Task::run).collect();
            assert!(woken.iter().enumerate().all(|(other, woken)| other == number || !woken));
        }
        settle(&mut tasks.iter_mut().chain(&mut servers).collect::<Vec<_>>());
        let over = tasks.iter().filter(|task| task.is_over()).count();
        assert_eq!(over, (3 - number) * 10);
    }
}

/// A waker that owns its task, as those of most executors do: waking it last drops the task, whatever that
/// does.
struct Owning(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for Owning {
    fn wake(self: Arc<Self>) {
        if let Some(run) = self.0.lock().unwrap().take() {
            run();
        }
    }
}

thread_local! {
    /// What a waker ends.
    static DOOMED: RefCell<Vec<Pin<Box<dyn Future<Output = CallResult>>>>> = RefCell::default();
}

/// A wake-up may end other requests of the same queue.
#[test]
fn wakers_may_drop_transfers() {
    let bench: &'static mut Bench = Box::leak(Box::new(Bench::new(0, 1, 64)));
    let mut disk = bench.disk(0);
    let (pool, [first, second]) = (bench.pool.clone(), [bench.read(1), bench.read(2)]);
    let queue: &'static Shared<'static> =
        Box::leak(Box::new(Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap()));
    let ended = Box::leak(Box::default());
    let mut server = server(queue, ended);
    DOOMED.with_borrow_mut(|doomed| doomed.push(Box::pin(queue.request(second))));
    let doom = Owning(Mutex::new(Some(Box::new(|| DOOMED.with_borrow_mut(Vec::clear)))));
    let waker = Waker::from(Arc::new(doom));
    let mut transfer = Box::pin(queue.request(first));
    assert!(transfer.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    DOOMED.with_borrow_mut(|doomed| {
        assert!(doomed[0].as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    server.run();
    assert_eq!(disk.take(), 2);
    disk.finish(0);
    server.flag.clone().wake();
    server.run();
    assert_eq!(DOOMED.with_borrow(Vec::len), 0, "the waker ran");
    disk.finish(0);
    server.flag.clone().wake();
    server.run();
    assert_eq!((queue.in_flight(), pool.available()), (0, BUFFERS - 1));
    drop(transfer);
    assert_eq!(pool.available(), BUFFERS);
}

#[test]
fn hybrid_looks_again_for_as_long_as_it_may() {
    let looks =
        |hybrid: &mut Hybrid, in_flight| (0..).take_while(|_| hybrid.look_again(0, in_flight)).count();
    for budget in [0, 1, 5, 1000] {
        let mut hybrid = Hybrid::new(budget);
        for _ in 0..2 {
            assert_eq!(looks(&mut hybrid, 1), budget as usize, "the budget begins anew after each sleep");
            assert_eq!(looks(&mut hybrid, 0), 0, "there is nothing to wait for");
        }
        for _ in 0..3 {
            (0..budget).for_each(|_| assert!(hybrid.look_again(0, 1)));
            assert!(hybrid.look_again(1, 1), "work came");
        }
        assert_eq!(looks(&mut hybrid, 1), budget as usize);
        assert!(!hybrid.look_again(3, 0));
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// A task begins to read.
    Read,
    /// A task is polled if it was woken; or is ended, whatever it is at.
    Task(Index),
    End(Index),
    /// The server is polled if it was woken.
    Server,
    /// The device takes what is available.
    Take,
    /// It finishes something it has, and interrupts if that is due.
    Finish(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Read),
        6 => any::<Index>().prop_map(Step::Task),
        1 => any::<Index>().prop_map(Step::End),
        4 => Just(Step::Server),
        3 => Just(Step::Take),
        6 => any::<Index>().prop_map(Step::Finish),
    ]
}

proptest! {
    /// Whatever happens in which order: as long as the device goes on, and interrupts are all that wakes the
    /// server, every task comes to its end.
    #[test]
    fn nobody_sleeps_for_ever(
        steps in prop::collection::vec(step(), 1..300),
        format in 0..8_usize,
        budget in 0..4_u32,
    ) {
        let mut bench = Bench::new(formats().nth(format).unwrap(), 1, 16);
        let mut disk = bench.disk(0);
        let (pool, answered) = (bench.pool.clone(), Rc::new(RefCell::new(0)));
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(budget)).unwrap();
        let ended = RefCell::default();
        let mut server = server(&queue, &ended);
        let mut tasks: Vec<Task> = Vec::new();
        let (mut begun, mut dropped) = (0, 0);
        for step in steps {
            match step {
                Step::Read => {
                    let Some(buffer) = pool.take() else { continue };
                    let (queue, answered, sector) = (&queue, answered.clone(), begun);
                    begun += 1;
                    tasks.push(Task::new(async move {
                        let request = Request::Read { sector, buffer, len: LEN };
                        check(queue.request(request).await, sector);
                        *answered.borrow_mut() += 1;
                    }));
                }
                Step::Task(which) if !tasks.is_empty() => _ = which.get_mut(&mut tasks).run(),
                Step::End(which) if !tasks.is_empty() => {
                    let task = tasks.swap_remove(which.index(tasks.len()));
                    dropped += u64::from(!task.is_over());
                }
                Step::Server => _ = server.run(),
                Step::Take => _ = disk.take(),
                Step::Finish(which) if !disk.pending.is_empty() => {
                    let interrupts = disk.finish(which.index(disk.pending.len()));
                    if interrupts {
                        server.flag.clone().wake();
                    }
                }
                _ => {}
            }
        }
        loop {
            settle(&mut tasks.iter_mut().chain([&mut server]).collect::<Vec<_>>());
            if disk.take() == 0 && disk.pending.is_empty() {
                break;
            }
            if disk.finish(0) {
                server.flag.clone().wake();
            }
        }
        let asleep = tasks.iter().filter(|task| !task.is_over()).count();
        prop_assert_eq!(asleep, 0, "tasks sleep for ever");
        prop_assert_eq!((*answered.borrow() + dropped, queue.in_flight()), (begun, 0));
        prop_assert_eq!(pool.available(), BUFFERS);
        prop_assert!(ended.borrow().is_none());
    }
}

/// Wakes a thread, and remembers.
struct Thread(thread::Thread, AtomicBool);

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        self.0.unpark();
    }
}

/// The device is a thread of its own, so completions come at any moment: also while interrupts are being
/// turned on.
#[test]
fn no_wake_up_is_lost_between_two_threads() {
    const REQUESTS: u64 = 20_000;
    for (ring, budget) in formats().zip([0, 0, 0, 0, 1, 2, 5, 50]) {
        let mut bench = Bench::new(ring, 1, 16);
        let mut disk = bench.disk(0);
        let (interrupts, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let server = Arc::new(Thread(thread::current(), AtomicBool::new(true)));
        let (wake, fired, stopped) = (server.clone(), interrupts.clone(), stop.clone());
        // It looks for requests all the time: notifications have tests of their own.
        let device = thread::spawn(move || {
            let mut finished: usize = 0;
            while !stopped.load(Ordering::Relaxed) {
                disk.take();
                if disk.pending.is_empty() {
                    thread::yield_now();
                    continue;
                }
                finished += 1;
                // Sooner or later than the server goes to sleep.
                (0..finished * 7 % 400).for_each(|_| std::hint::spin_loop());
                if disk.finish(finished % disk.pending.len()) {
                    fired.fetch_add(1, Ordering::Relaxed);
                    wake.clone().wake();
                }
            }
        });
        let pool = bench.pool.clone();
        let queue = Shared::new(&mut bench.block.queue, Hybrid::new(budget)).unwrap();
        let left = RefCell::new(REQUESTS);
        let tasks = (0..3).map(|_| {
            Task::new(async {
                while *left.borrow() > 0 {
                    *left.borrow_mut() -= 1;
                    let sector = *left.borrow();
                    let request = Request::Read { sector, buffer: pool.take().unwrap(), len: LEN };
                    check(queue.request(request).await, sector);
                }
            })
        });
        let mut tasks: Vec<Task> = tasks.collect();
        let (waker, mut sleeps) = (Waker::from(server.clone()), 0);
        while !tasks.iter().all(Task::is_over) {
            if server.1.swap(false, Ordering::SeqCst) {
                assert!(queue.poll_serve(&mut Context::from_waker(&waker), Duration::ZERO).is_pending());
            }
            tasks.iter_mut().for_each(|task| _ = task.run());
            let start = Instant::now();
            while !server.1.load(Ordering::SeqCst) && !tasks.iter().all(Task::is_over) {
                sleeps += 1;
                thread::park_timeout(Duration::from_secs(5));
                assert!(
                    start.elapsed() < Duration::from_secs(5),
                    "nobody woke the server: {:?}",
                    queue.counters()
                );
            }
        }
        assert_eq!(queue.counters().completions, REQUESTS);
        assert!(sleeps > 0 && interrupts.load(Ordering::Relaxed) > 0, "{sleeps} sleeps, budget {budget}");
        stop.store(true, Ordering::Relaxed);
        device.join().unwrap();
    }
}
