//! A disk that a test plays, and tasks that wait for it.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use ringfence_drivers::block::{self, Block, CallResult, Options, Request, SharedQueue};
use ringfence_drivers::virtio::{DeviceType, QueueError, features};
use ringfence_memory::{DmaBuf, DmaPool};

use crate::{
    Chain, DeviceRing, EVENT_IDX, Fake, FakeNotifier, FakeTransport, INDIRECT_DESC, RING_PACKED, grant,
};

pub const SECTORS: u64 = 1 << 20;
pub const LEN: usize = 512;
/// Buffers, and tasks at most.
pub const BUFFERS: usize = 64;

pub type Shared<'a> = SharedQueue<'a, FakeNotifier>;

/// A disk with `queues` queues of `size` descriptors: sector n holds the number n, over and over.
pub struct Bench {
    pub fake: Fake,
    pub block: Block<FakeTransport>,
    pub pool: Rc<DmaPool>,
}

impl Bench {
    pub fn new(ring: u64, queues: u16, size: u16) -> Self {
        let mut config = vec![0; 60];
        config[0..8].copy_from_slice(&SECTORS.to_le_bytes());
        config[34..36].copy_from_slice(&queues.to_le_bytes());
        let offered = features::VERSION_1 | block::features::MQ | ring;
        let fake = Fake::new(DeviceType::BLOCK, offered, config, &vec![size; queues.into()]);
        let windows = fake.windows();
        let pool = Rc::new(DmaPool::new(&windows, BUFFERS, LEN).unwrap());
        let options = Options { queues, ..Options::default() };
        let block = Block::with_options(fake.transport(), &grant(), windows, &options).unwrap();
        Self { fake, block, pool }
    }

    pub fn disk(&self, queue: u16) -> Disk {
        Disk { ring: self.fake.ring(queue.into()), pending: Vec::new() }
    }

    pub fn read(&self, sector: u64) -> Request {
        Request::Read { sector, buffer: self.pool.take().unwrap(), len: LEN }
    }
}

/// The device's side of one queue.
pub struct Disk {
    pub ring: DeviceRing,
    pub pending: Vec<Chain>,
}

impl Disk {
    /// Takes what was made available.
    pub fn take(&mut self) -> usize {
        let before = self.pending.len();
        while let Some(chain) = self.ring.take() {
            self.pending.push(chain);
        }
        self.pending.len() - before
    }

    /// Finishes the request in this place. Says whether an interrupt is due.
    pub fn finish(&mut self, place: usize) -> bool {
        let chain = self.pending.remove(place);
        let header = self.ring.read(&chain.segments[0]);
        let sector = u64::from_le_bytes(header[8..16].try_into().unwrap());
        self.ring.write(&chain.segments[1], &contents(sector));
        self.ring.write(&chain.segments[2], &[0]);
        let before = self.ring.used;
        self.ring.complete(chain.head, LEN as u32 + 1);
        // As a device must: it shows what is used before it looks whether an interrupt is wanted.
        fence(Ordering::SeqCst);
        self.ring.interrupt_due(before, self.ring.used)
    }
}

fn contents(sector: u64) -> Vec<u8> {
    sector.to_le_bytes().repeat(LEN / 8)
}

#[track_caller]
pub fn check((result, buffer): CallResult, sector: u64) {
    assert_eq!(result, Ok(()), "sector {sector}");
    assert_eq!(bytes(&buffer.unwrap()), contents(sector));
}

pub fn bytes(buffer: &DmaBuf) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    buffer.read_slice(&mut bytes, 0).unwrap();
    bytes
}

/// Whether a task was woken since it was last polled.
#[derive(Default)]
pub struct Flag(AtomicBool);

impl Flag {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub struct Task<'a> {
    pub flag: Arc<Flag>,
    waker: Waker,
    pub future: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
}

impl<'a> Task<'a> {
    pub fn new(future: impl Future<Output = ()> + 'a) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        Self { waker: flag.clone().into(), flag, future: Some(Box::pin(future)) }
    }

    /// Polls the task if it was woken, and says whether it was.
    pub fn run(&mut self) -> bool {
        let woken = self.flag.0.swap(false, Ordering::SeqCst);
        if let Some(future) = self.future.as_mut().filter(|_| woken)
            && future.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready()
        {
            self.future = None;
        }
        woken
    }

    pub fn is_over(&self) -> bool {
        self.future.is_none()
    }
}

/// The queue's server: woken by interrupts, and only by them and by those who submit.
pub fn server<'a>(queue: &'a Shared<'_>, ended: &'a RefCell<Option<QueueError>>) -> Task<'a> {
    server_at(queue, ended, || Duration::ZERO)
}

/// The same with a clock; nobody but the test wakes it when its time has come.
pub fn server_at<'a>(
    queue: &'a Shared<'_>,
    ended: &'a RefCell<Option<QueueError>>,
    now: impl Fn() -> Duration + 'a,
) -> Task<'a> {
    Task::new(async move {
        let error = poll_fn(|context| queue.poll_serve(context, now())).await;
        *ended.borrow_mut() = Some(error);
    })
}

/// Runs whoever is woken until nobody is.
pub fn settle(tasks: &mut [&mut Task]) {
    for _ in 0..10_000 {
        if !tasks.iter_mut().fold(false, |any, task| task.run() | any) {
            return;
        }
    }
    panic!("the tasks never come to rest");
}

pub fn formats() -> impl Iterator<Item = u64> {
    (0..8).map(|bits: u64| {
        [RING_PACKED, EVENT_IDX, INDIRECT_DESC]
            .iter()
            .enumerate()
            .map(|(bit, one)| (bits >> bit & 1) * one)
            .sum()
    })
}
