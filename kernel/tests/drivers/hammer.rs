//! Ten million completions, waited for by the rule of `Hybrid`, deep and shallow in turn: no wake-up is lost.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Poll, Waker};

use embassy_time::Timer;
use ringfence_drivers::block::{Options, Request, SharedQueue};
use ringfence_drivers::virtio::Hybrid;
use ringfence_kernel::devices::bus::BusNotifier;
use ringfence_kernel::interrupts::device::InterruptStats;
use ringfence_kernel::testing::On;
use ringfence_kernel::{executor, time};
use ringfence_memory::DmaPool;

use crate::support::{Random, Task, run_with, start_disk_with};

/// Completions, half of them on each queue.
const TOTAL: u64 = 10_000_000;
const QUEUES: u16 = 2;
/// Looks that may find nothing: the first queue sleeps as soon as it has nothing to do.
const BUDGETS: [u32; QUEUES as usize] = [0, 64];
const WORKERS: usize = 64;
/// Requests of a stretch with many in flight, and of one with few.
const DEEP: u64 = 20_000;
const SHALLOW: u64 = 128;
/// Seconds without a completion after which the test fails. No request takes any time here.
const PATIENCE: usize = 5;

/// Which workers of a queue work, and how much there is left to do.
struct Plan {
    left: Cell<u64>,
    /// Requests left of the stretch, and the number of workers that take part.
    stretch: Cell<u64>,
    active: Cell<usize>,
    random: RefCell<Random>,
    resting: RefCell<Vec<Waker>>,
}

impl Plan {
    fn new(total: u64) -> Self {
        let (stretch, active) = (Cell::new(0), Cell::new(1));
        Self {
            left: Cell::new(total),
            stretch,
            active,
            random: Random(total).into(),
            resting: RefCell::default(),
        }
    }

    /// Whether this worker is to do one request more; ready when that is known.
    fn next(&self, worker: usize, waker: &Waker) -> Poll<bool> {
        if self.left.get() == 0 {
            return Poll::Ready(false);
        }
        if self.stretch.get() == 0 {
            let shallow = self.active.get() == WORKERS;
            self.stretch.set(if shallow { SHALLOW } else { DEEP });
            let few = 1 + self.random.borrow_mut().below(3) as usize;
            self.active.set(if shallow { few } else { WORKERS });
            self.resting.borrow_mut().drain(..).for_each(Waker::wake);
        }
        if worker >= self.active.get() {
            self.resting.borrow_mut().push(waker.clone());
            return Poll::Pending;
        }
        self.stretch.set(self.stretch.get() - 1);
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 {
            self.resting.borrow_mut().drain(..).for_each(Waker::wake);
        }
        Poll::Ready(true)
    }
}

async fn work(queue: &SharedQueue<'static, BusNotifier>, plan: Rc<Plan>, worker: usize, pool: Rc<DmaPool>) {
    let mut sectors = Random(worker as u64);
    while poll_fn(|context| plan.next(worker, context.waker())).await {
        let buffer = pool.take().expect("one for each worker");
        let sector = sectors.below(1 << 21);
        let (result, buffer) = queue.request(Request::Read { sector, buffer, len: 512 }).await;
        assert_eq!((result, buffer.is_some()), (Ok(()), true));
    }
}

fn ten_million_completions() {
    let options = Options { queues: QUEUES, ..Options::default() };
    let (disk, mut calls, windows) = start_disk_with(&options);
    let stats = calls.stats();
    let pool = Rc::new(DmaPool::new(&windows, usize::from(QUEUES) * WORKERS, 512).expect("there is memory"));
    let mut tasks: Vec<Task> = Vec::new();
    let mut queues = Vec::new();
    let (_, split) = Box::leak(Box::new(disk)).split();
    for ((index, queue), budget) in (0..).zip(split).zip(BUDGETS) {
        let shared = SharedQueue::new(queue, Hybrid::new(budget)).expect("there is memory");
        let queue: &'static _ = Box::leak(Box::new(shared));
        queues.push(queue);
        let mut interrupt = calls.take(index, QUEUES).expect("a vector for each queue");
        tasks.push(Box::pin(async move {
            let server = poll_fn(|context| {
                while interrupt.poll_wait(context).is_ready() {}
                queue.poll_serve(context, time::now())
            });
            panic!("queue {index}: {:?}", server.await);
        }));
        let plan = Rc::new(Plan::new(TOTAL / u64::from(QUEUES)));
        let worker = |number| -> Task { Box::pin(work(queue, plan.clone(), number, pool.clone())) };
        tasks.extend((0..WORKERS).map(worker));
    }
    assert_eq!(queues.len(), usize::from(QUEUES));
    run_with(tasks, watch(queues, stats))
}

/// Waits until all is done, and notices when nothing happens.
async fn watch(queues: Vec<&'static SharedQueue<'static, BusNotifier>>, stats: InterruptStats) {
    let (start, halts) = (time::now(), executor::halts());
    let goal = TOTAL / u64::from(QUEUES);
    let mut last = [0; QUEUES as usize];
    let mut quiet = [0; QUEUES as usize];
    loop {
        let counters: Vec<_> = queues.iter().map(|queue| queue.counters()).collect();
        let done: Vec<u64> = counters.iter().map(|counters| counters.completions).collect();
        if done.iter().all(|&done| done == goal) {
            let seconds = (time::now() - start).as_secs_f32();
            log::info!(
                "{TOTAL} completions in {seconds:.1} s, {} halts: {counters:?}",
                executor::halts() - halts
            );
            break;
        }
        for (index, &done) in done.iter().enumerate() {
            let moves = done == goal || done != last[index];
            quiet[index] = if moves { 0 } else { quiet[index] + 1 };
            assert!(quiet[index] < PATIENCE, "queue {index} sleeps for ever: {counters:?}");
            last[index] = done;
        }
        Timer::after_secs(1).await;
    }
    for (index, queue) in (0..).zip(&queues) {
        let counters = queue.counters();
        assert_eq!((queue.in_flight(), counters.rejected), (0, 0));
        assert_eq!((counters.submitted, counters.completions), (goal, goal));
        assert!(stats.count(index) > 1000, "it hardly slept: {stats:?}");
        assert!(counters.kicks < goal / 4, "no batches: {counters:?}");
    }
    assert!(executor::halts() - halts > 1000, "somebody polls");
}

/// On both queues of a disk that answers at once, in both formats.
#[test_case]
const HAMMER: On = On("blk-null=2,formats,slow,cpu=max", &ten_million_completions);
