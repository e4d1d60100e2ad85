//! What every driver does, and how it is done: the same loop drives all of them.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::array;

use ringfence_kernel::time::tsc;
use ringfence_memory::{DmaPool, DmaWindows};

use crate::support::Random;

/// How many different places on the disk are used. A power of two.
const PLACES: usize = 1024;
const SECTOR: usize = 512;
/// Requests of more bytes than this are done at small depths only.
const SMALL: usize = 4096;
const LARGE_DEPTH: usize = 16;
/// How often nothing may have come back, one time after the other, before that counts as never: a second or
/// more.
const PATIENCE: u32 = 1 << 27;

/// Requests of one kind.
pub struct Workload {
    pub name: &'static str,
    /// Whether data goes to the disk.
    pub write: bool,
    /// Bytes of data in a request.
    pub len: usize,
    /// The buffers that requests use.
    pub pool: DmaPool,
    places: Box<[u64; PLACES]>,
}

impl Workload {
    /// The workload of this name on a disk of `sectors` sectors, with buffers for `depth` requests.
    pub fn new(name: &str, sectors: u64, depth: usize, windows: &DmaWindows) -> Self {
        let (name, write, len, random) = match name {
            "read4k" => ("read4k", false, 4096, true),
            "write4k" => ("write4k", true, 4096, true),
            "seq4k" => ("seq4k", false, 4096, false),
            "read64k" => ("read64k", false, 64 << 10, false),
            "read1m" => ("read1m", false, 1 << 20, false),
            _ => panic!("there is no workload called {name:?}"),
        };
        let per_request = (len / SECTOR) as u64;
        let blocks = (sectors / per_request) as usize;
        assert!(blocks > 0, "the disk is too small");
        let mut random_numbers = Random::new(0x5eed);
        let place =
            |index| per_request * if random { random_numbers.below(blocks) } else { index % blocks } as u64;
        let places = Box::new(array::from_fn(place));
        let most = if len > SMALL { depth.min(LARGE_DEPTH) } else { depth };
        let pool = DmaPool::new(windows, most, len).expect("the guest has room for the buffers");
        Self { name, write, len, pool, places }
    }

    /// Whether there are buffers for that many requests at once.
    pub fn allows(&self, depth: usize) -> bool {
        depth <= self.pool.available()
    }

    /// First sectors of the requests to come.
    pub fn places(&self) -> Places {
        Places { sectors: self.places.clone(), next: 0 }
    }
}

/// First sectors of requests, without end. Costs next to nothing, and the same for every driver.
pub struct Places {
    sectors: Box<[u64; PLACES]>,
    next: usize,
}

impl Places {
    #[inline(always)]
    pub fn next(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1) % PLACES;
        self.sectors[self.next]
    }
}

/// A driver that was brought up to do one workload at one depth; dropping it resets the device.
pub trait Guest {
    /// Submits as many requests as `depth` allows, and notifies the device if it wants that.
    fn submit(&mut self, watch: &mut impl Watch);

    /// Takes what was completed, and says how much that was. All of it succeeded.
    fn complete(&mut self, watch: &mut impl Watch) -> usize;

    /// Called when nothing was completed.
    fn wait(&mut self) {}

    /// What it cost so far, as far as the driver can tell.
    fn costs(&self) -> Option<Costs>;
}

/// What a driver cost beside instructions.
#[derive(Clone, Copy, Default)]
pub struct Costs {
    /// Notifications of the device.
    pub kicks: u64,
    /// Reads and writes of the device's registers.
    pub accesses: u64,
    pub interrupts: u64,
    pub halts: u64,
}

/// Who wants to know when a request begins and ends.
pub trait Watch {
    /// The request in `slot` was submitted.
    fn submitted(&mut self, slot: usize);
    /// The request in `slot` was completed.
    fn completed(&mut self, slot: usize);
}

/// Nobody.
impl Watch for () {
    #[inline(always)]
    fn submitted(&mut self, _: usize) {}
    #[inline(always)]
    fn completed(&mut self, _: usize) {}
}

/// Measures how long requests take, one at a time.
pub struct Stopwatch {
    slot: Option<usize>,
    start: u64,
    skip: usize,
    /// In TSC counts.
    latencies: Vec<u64>,
}

impl Stopwatch {
    /// Not in step with any depth.
    const SKIP: usize = 13;

    pub fn new() -> Self {
        Self { slot: None, start: 0, skip: 0, latencies: Vec::with_capacity(1 << 14) }
    }

    /// The latencies in rising order.
    pub fn into_sorted(mut self) -> Vec<u64> {
        self.latencies.sort_unstable();
        self.latencies
    }
}

impl Watch for Stopwatch {
    #[inline]
    fn submitted(&mut self, slot: usize) {
        self.skip = self.skip.saturating_sub(1);
        if self.skip == 0 && self.slot.is_none() && self.latencies.len() < self.latencies.capacity() {
            (self.slot, self.skip, self.start) = (Some(slot), Self::SKIP, tsc());
        }
    }

    #[inline]
    fn completed(&mut self, slot: usize) {
        if self.slot == Some(slot) {
            self.latencies.push(tsc().wrapping_sub(self.start));
            self.slot = None;
        }
    }
}

/// Completes at least `count` requests and submits as many, `batch` at a time. Whatever was completed is
/// submitted again in the end. How many it was; `None` if the device does not answer any more.
pub fn pump(guest: &mut impl Guest, watch: &mut impl Watch, count: usize, batch: usize) -> Option<usize> {
    let (mut done, mut submitted) = (0, 0);
    while done < count {
        done += complete_some(guest, watch)?;
        if done - submitted >= batch || done >= count {
            submitted = done;
            guest.submit(watch);
        }
    }
    Some(done)
}

/// Takes back the `left` requests that are in flight.
pub fn drain(guest: &mut impl Guest, mut left: usize) -> Option<()> {
    while left > 0 {
        left -= complete_some(guest, &mut ())?;
    }
    Some(())
}

/// Takes what is completed, and waits if that is nothing.
#[inline(always)]
fn complete_some(guest: &mut impl Guest, watch: &mut impl Watch) -> Option<usize> {
    for _ in 0..PATIENCE {
        match guest.complete(watch) {
            0 => guest.wait(),
            some => return Some(some),
        }
    }
    None
}
