//! A queue that many tasks share, while the heap has no room: what it cannot take it gives back, and what it
//! has taken it finishes.
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System as Heap};
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringfence_drivers::block::{Block, Request, RequestError, SharedQueue};
use ringfence_drivers::virtio::{DeviceType, Hybrid, QueueError, features};
use ringfence_memory::DmaPool;
use support::{Fake, grant};

thread_local! {
    static HEAP_IS_FULL: Cell<bool> = const { Cell::new(false) };
}

/// The heap, which has no room for this thread when told so.
struct Scarce;

unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if HEAP_IS_FULL.get() { std::ptr::null_mut() } else { unsafe { Heap.alloc(layout) } }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { Heap.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Scarce = Scarce;

/// Whoever allocates in `then` and does not expect that to fail ends the process.
fn without_heap<R>(then: impl FnOnce() -> R) -> R {
    HEAP_IS_FULL.set(true);
    let result = then();
    HEAP_IS_FULL.set(false);
    result
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
    let (tickets, mut ring) = (block.tickets(), fake.ring(0));
    let none = without_heap(|| SharedQueue::new(&mut block, Hybrid::new(0)).map(drop));
    assert_eq!(none, Err(QueueError::OutOfMemory));
    let queue = SharedQueue::new(&mut block, Hybrid::new(0)).unwrap();
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
    // Nothing is in the way of one for which there is memory.
    let mut waits = read();
    assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    for (fetched, mut transfer) in done.into_iter().enumerate() {
        let Poll::Ready((result, buffer)) = poll(&waker, &mut transfer) else { panic!("it is done") };
        assert_eq!((result, buffer.is_some()), (Ok(()), true), "{fetched} were");
    }
    assert!(poll(&waker, &mut waits).is_pending());
    work();
    assert_eq!(woken.0.load(Ordering::Relaxed), 2 * tickets + 1);
    assert!(matches!(poll(&waker, &mut waits), Poll::Ready((Ok(()), Some(_)))));
    assert_eq!(pool.available(), 64);
}
