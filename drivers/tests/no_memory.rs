//! A queue that many tasks share, while the heap has no room: what it cannot take it gives back, and what it
//! has taken it finishes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringfence_drivers::block::{Block, Request, RequestError, SharedQueue};
use ringfence_drivers::virtio::{DeviceType, Hybrid, QueueError, features};
use ringfence_memory::DmaPool;
use ringfence_testkit::heap::{Scarce, with_blocks};
use ringfence_testkit::{Fake, grant};

#[global_allocator]
static HEAP: Scarce = Scarce;

fn without_heap<R>(then: impl FnOnce() -> R) -> R {
    with_blocks(0, then)
}

/// Counts how often a task was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

const LEN: usize = 512;

fn poll<T>(waker: &Waker, future: &mut Pin<Box<impl Future<Output = T>>>) -> Poll<T> {
    without_heap(|| future.as_mut().poll(&mut Context::from_waker(waker)))
}

#[test]
fn requests_are_refused_and_finished_without_memory() {
    let mut config = vec![0; 60];
    config[0..8].copy_from_slice(&1024_u64.to_le_bytes());
    let fake = Fake::new(DeviceType::BLOCK, features::VERSION_1, config, &[8]);
    let windows = fake.windows();
    let pool = DmaPool::new(&windows, 64, LEN).unwrap();
    let mut block = Block::new(fake.transport(), &grant(), windows).unwrap();
    let (tickets, mut ring) = (block.queue.tickets(), fake.ring(0));
    // Whichever of its three tables it is that does not fit.
    for blocks in 0..3 {
        let none = with_blocks(blocks, || SharedQueue::new(&mut block.queue, Hybrid::new(0)).map(drop));
        assert_eq!(none, Err(QueueError::OutOfMemory), "{blocks}");
    }
    let queue = SharedQueue::new(&mut block.queue, Hybrid::new(0)).unwrap();
    let read =
        || Box::pin(queue.request(Request::Read { sector: 1, buffer: pool.take().unwrap(), len: LEN }));
    let woken = Arc::new(Woken::default());
    let (waker, server) = (Waker::from(woken.clone()), Waker::from(Arc::new(Woken::default())));
    let mut work = || {
        let serve = || queue.poll_serve(&mut Context::from_waker(&server), Duration::ZERO);
        // The model takes notes of the notification.
        assert!(serve().is_pending());
        while let Some(chain) = ring.take() {
            ring.write(&chain.segments[2], &[0]);
            ring.complete(chain.head, LEN as u32 + 1);
        }
        assert!(without_heap(serve).is_pending());
    };

    // What waits for room, or is done and not fetched, takes memory, until there is none.
    let mut done = Vec::new();
    let refused = loop {
        let mut transfer = read();
        match poll(&waker, &mut transfer) {
            Poll::Pending => done.push(transfer),
            // Some are not done.
            Poll::Ready((error, buffer)) if queue.in_flight() > 0 => {
                assert_eq!((error, buffer.is_some()), (Err(RequestError::OutOfMemory), true));
                work();
            }
            Poll::Ready((error, buffer)) => break (error, buffer.is_some()),
        }
    };
    assert_eq!((refused, done.len()), ((Err(RequestError::OutOfMemory), true), 2 * tickets));
    assert_eq!(woken.0.load(Ordering::Relaxed), 2 * tickets);
    // As many as ever before take none, however often.
    for _ in 0..2 {
        let mut last = done.pop().unwrap();
        assert!(matches!(poll(&waker, &mut last), Poll::Ready((Ok(()), Some(_)))));
        let mut next = read();
        assert!(poll(&waker, &mut next).is_pending());
        work();
        done.push(next);
    }
    assert_eq!(woken.0.load(Ordering::Relaxed), 2 * tickets + 2);
    // Nothing is in the way of one for which there is memory.
    let mut waits = read();
    assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    for (fetched, mut transfer) in done.into_iter().enumerate() {
        let Poll::Ready((result, buffer)) = poll(&waker, &mut transfer) else { panic!("it is done") };
        assert_eq!((result, buffer.is_some()), (Ok(()), true), "{fetched} were");
    }
    assert!(poll(&waker, &mut waits).is_pending());
    work();
    assert_eq!(woken.0.load(Ordering::Relaxed), 2 * tickets + 3);
    assert!(matches!(poll(&waker, &mut waits), Poll::Ready((Ok(()), Some(_)))));
    assert_eq!(pool.available(), 64);
}

/// However many there are: there is room for the wakers of all, and of the server.
#[test]
fn everybody_is_told_of_the_end_without_memory() {
    for more in 0..6 {
        let mut config = vec![0; 60];
        config[0..8].copy_from_slice(&1024_u64.to_le_bytes());
        let fake = Fake::new(DeviceType::BLOCK, features::VERSION_1, config, &[8]);
        let windows = fake.windows();
        let pool = DmaPool::new(&windows, 64, LEN).unwrap();
        let mut block = Block::new(fake.transport(), &grant(), windows).unwrap();
        let count = 2 * block.queue.tickets() + more;
        let queue = SharedQueue::new(&mut block.queue, Hybrid::new(0)).unwrap();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let mut transfers = Vec::new();
        for _ in 0..count {
            let request = Request::Read { sector: 1, buffer: pool.take().unwrap(), len: LEN };
            transfers.push(Box::pin(queue.request(request)));
            assert!(transfers.last_mut().unwrap().as_mut().poll(&mut context).is_pending());
        }
        assert!(queue.poll_serve(&mut context, Duration::ZERO).is_pending());
        without_heap(|| queue.close(None));
        assert_eq!(woken.0.load(Ordering::Relaxed), count + 1);
    }
}
