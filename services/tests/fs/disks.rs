//! Disks for tests.

use futures::future::poll_fn;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::block::{BlockError, BlockSource, MAX_READ, SECTOR_SIZE};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// An image in memory. Notes which 512-byte sectors were read.
pub struct MemDisk {
    pub bytes: Rc<Vec<u8>>,
    pub requests: Cell<u64>,
    pub sectors_read: RefCell<BTreeSet<u64>>,
}

impl MemDisk {
    pub fn new(bytes: impl Into<Rc<Vec<u8>>>) -> Self {
        Self { bytes: bytes.into(), requests: Cell::new(0), sectors_read: RefCell::default() }
    }
}

fn copy(image: &[u8], sector: u64, bufs: &mut [&mut [u8]]) -> Result<Range<u64>, BlockError> {
    let total: usize = bufs.iter().map(|buf| buf.len()).sum();
    assert!(total > 0 && total <= MAX_READ, "a request of {total} bytes");
    assert!(bufs.iter().all(|buf| !buf.is_empty() && buf.len() % SECTOR_SIZE == 0));
    let mut at = sector as usize * SECTOR_SIZE;
    for buf in bufs {
        let from = image.get(at..at + buf.len()).ok_or(BlockError::OutOfRange)?;
        buf.copy_from_slice(from);
        at += buf.len();
    }
    Ok(sector..sector + (total / SECTOR_SIZE) as u64)
}

impl BlockSource for MemDisk {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
        self.requests.set(self.requests.get() + 1);
        let range = copy(&self.bytes, sector, bufs)?;
        self.sectors_read.borrow_mut().extend(range);
        Ok(())
    }
}

/// A disk whose requests wait until [`SlowDisk::complete_one`] picks them, in random order. It checks that no
/// sector is asked for twice at the same time.
pub struct SlowDisk {
    image: Rc<Vec<u8>>,
    random: RefCell<StdRng>,
    pending: RefCell<Vec<Request>>,
    next_id: Cell<u64>,
    /// Requests that touch a sector in here fail.
    pub bad_sectors: RefCell<Range<u64>>,
    /// One in so many requests fails; 0 for none.
    pub one_in_fails: Cell<u32>,
    pub most_at_once: Cell<usize>,
    pub completed: Cell<u64>,
}

struct Request {
    id: u64,
    sectors: Range<u64>,
    done: bool,
    waker: Option<Waker>,
}

impl SlowDisk {
    pub fn new(image: Rc<Vec<u8>>, seed: u64) -> Self {
        Self {
            image,
            random: StdRng::seed_from_u64(seed).into(),
            pending: RefCell::default(),
            next_id: Cell::new(0),
            bad_sectors: RefCell::new(0..0),
            one_in_fails: Cell::new(0),
            most_at_once: Cell::new(0),
            completed: Cell::new(0),
        }
    }

    pub fn pending(&self) -> usize {
        self.pending.borrow().len()
    }

    /// Completes a random request; says whether there was one.
    pub fn complete_one(&self) -> bool {
        let mut pending = self.pending.borrow_mut();
        let mut waiting: Vec<_> = pending.iter_mut().filter(|request| !request.done).collect();
        if waiting.is_empty() {
            return false;
        }
        let chosen = self.random.borrow_mut().random_range(0..waiting.len());
        waiting[chosen].done = true;
        self.completed.set(self.completed.get() + 1);
        if let Some(waker) = waiting[chosen].waker.take() {
            waker.wake();
        }
        true
    }
}

/// Takes a request off the list, also when its future is dropped.
struct Pending<'a>(&'a SlowDisk, u64);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.borrow_mut().retain(|request| request.id != self.1);
    }
}

impl BlockSource for SlowDisk {
    fn size_bytes(&self) -> u64 {
        self.image.len() as u64
    }

    async fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let sectors = sector..sector + (total / SECTOR_SIZE) as u64;
        let id = self.next_id.replace(self.next_id.get() + 1);
        {
            let mut pending = self.pending.borrow_mut();
            let overlaps =
                |other: &Request| other.sectors.start < sectors.end && sectors.start < other.sectors.end;
            assert!(
                !pending.iter().any(overlaps),
                "sectors {sectors:?} were asked for twice at the same time"
            );
            pending.push(Request { id, sectors: sectors.clone(), done: false, waker: None });
            self.most_at_once.set(self.most_at_once.get().max(pending.len()));
        }
        let _pending = Pending(self, id);
        poll_fn(|cx| {
            let mut pending = self.pending.borrow_mut();
            let request = pending.iter_mut().find(|request| request.id == id).unwrap();
            if request.done {
                return Poll::Ready(());
            }
            request.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        let bad = self.bad_sectors.borrow().clone();
        let one_in = self.one_in_fails.get();
        let unlucky = one_in > 0 && self.random.borrow_mut().random_ratio(1, one_in);
        if unlucky || (bad.start < sectors.end && sectors.start < bad.end) {
            // What a failed request leaves behind must never be used.
            bufs.iter_mut().for_each(|buf| buf.fill(0xee));
            return Err(BlockError::Device);
        }
        copy(&self.image, sector, bufs).map(|_| ())
    }
}
