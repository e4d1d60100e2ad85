//! A virtio disk that many tasks read at once: the [`BlockSource`] under the file system.
//!
//! Readers put requests into the ring and sleep; one task, [`Disk::run`], notifies the device once for all that were
//! put since, and wakes whoever is served. No reader waits for another, and nobody waits for the disk but readers.

use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use embassy_time::{Duration, with_timeout};
use ringfence_drivers::block::{Block, Done, Geometry, ID_LEN, Request, RequestError, SECTOR_SIZE};
use ringfence_drivers::virtio::{Counters, Error, PciTransport};
use ringfence_memory::{DmaBuf, DmaError, DmaPool, DmaWindows, PciAddress};
use ringfence_services::block::{BlockError, BlockSource, MAX_READ};
use slab::Slab;

use crate::irq::DeviceInterrupts;

/// Length of the buffers for single blocks.
const SMALL: usize = 4096;
const SMALL_COUNT: usize = 32;
/// A reader that has waited this long has the device's health checked.
const OVERDUE: Duration = Duration::from_secs(5);
/// It gives up when the disk has finished nothing at all for so many times [`OVERDUE`] in a row.
const MAX_QUIET: usize = 6;
/// And, whatever else the disk does, after this many.
const MAX_OVERDUE: usize = 120;
/// How long the disk may take to tell its name while the kernel boots.
const IDENTIFY_LIMIT: core::time::Duration = core::time::Duration::from_secs(2);

/// A request that was put into the ring, until its reader is gone and the device is done with it.
enum Flight {
    /// The device has it. The reader's waker, once it waits.
    Waiting(Option<Waker>),
    /// The device has it and there is no reader any more.
    Abandoned,
    /// The device is done with it. The buffer, until the reader takes it.
    Done(Result<(), RequestError>, Option<DmaBuf>),
}

struct State {
    /// `None` once the device had to be given up.
    block: Option<Block<PciTransport>>,
    flights: Slab<Flight>,
    /// The key in `flights` of the request with this ticket. A ticket is free as soon as the device is done, when the
    /// reader may not have run yet.
    keys: Vec<usize>,
    /// Tasks that wait for a buffer or for room in the ring.
    waiting: Vec<Waker>,
    /// Whether some reader has waited for long.
    overdue: bool,
    /// The task that runs [`Disk::run`].
    runner: Option<Waker>,
}

/// A disk.
pub struct Disk {
    address: PciAddress,
    state: RefCell<State>,
    small: DmaPool,
    large: DmaPool,
    more: OnceCell<DmaPool>,
    windows: DmaWindows,
    geometry: Cell<Geometry>,
    features: u64,
    queue_size: u16,
    vector: Option<u16>,
    counters: Cell<Counters>,
    name: Option<[u8; ID_LEN]>,
}

impl Disk {
    /// Takes a driver whose device has just been brought up. `windows` are the ones given to the driver.
    pub fn new(
        mut block: Block<PciTransport>,
        windows: DmaWindows,
        address: PciAddress,
        vector: Option<u16>,
    ) -> Result<Self, DmaError> {
        let small = DmaPool::new(&windows, SMALL_COUNT, SMALL)?;
        let large = DmaPool::new(&windows, 1, MAX_READ)?;
        let id = small.take().and_then(|buffer| block.identify(buffer, IDENTIFY_LIMIT).ok()?.ok());
        let keys = alloc::vec![usize::MAX; block.depth()];
        Ok(Self {
            address,
            small,
            large,
            more: OnceCell::new(),
            windows,
            geometry: Cell::new(block.geometry()),
            features: block.features(),
            queue_size: block.queue_size(),
            vector,
            counters: Cell::new(block.counters()),
            name: id.filter(|id| id[0] != 0),
            state: RefCell::new(State {
                block: Some(block),
                flights: Slab::new(),
                keys,
                waiting: Vec::new(),
                overdue: false,
                runner: None,
            }),
        })
    }

    /// Lets `count` more reads of [`MAX_READ`] bytes be in flight: for the disk that is served from. Call it once.
    pub fn enlarge(&self, count: usize) -> Result<(), DmaError> {
        let pool = DmaPool::new(&self.windows, count, MAX_READ)?;
        // A second pool would only be dropped.
        let _ = self.more.set(pool);
        Ok(())
    }

    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// What the disk is like.
    pub fn geometry(&self) -> Geometry {
        self.geometry.get()
    }

    /// The features in use.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Number of descriptors of the queue.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// The queue's MSI-X vector.
    pub fn vector(&self) -> Option<u16> {
        self.vector
    }

    /// What the queue has done.
    pub fn counters(&self) -> Counters {
        self.state.borrow().block.as_ref().map_or(self.counters.get(), Block::counters)
    }

    /// The name the disk gives itself, if it has one.
    pub fn name(&self) -> Option<&[u8]> {
        self.name.as_ref().map(|name| name.split(|&byte| byte == 0).next().unwrap_or_default())
    }

    /// Whether the device had to be given up.
    pub fn is_gone(&self) -> bool {
        self.state.borrow().block.is_none()
    }

    /// Notifies, reaps and wakes, for as long as the device lives.
    pub async fn run(&self, mut interrupts: DeviceInterrupts) {
        let error = poll_fn(|context| self.poll_device(&mut interrupts, context)).await;
        log::error!("disk {} given up: {error}", self.address);
        let mut state = self.state.borrow_mut();
        if let Some(block) = &state.block {
            self.counters.set(block.counters());
        }
        // Resets the device.
        state.block = None;
        for (_, flight) in &mut state.flights {
            if let Flight::Waiting(waker) = flight {
                wake(waker);
            }
        }
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Ready only when the device has to be given up.
    fn poll_device(&self, interrupts: &mut DeviceInterrupts, context: &mut Context<'_>) -> Poll<Error> {
        let mut state = self.state.borrow_mut();
        let State { block: Some(block), flights, keys, waiting, overdue, runner } = &mut *state else {
            return Poll::Ready(Error::Gone);
        };
        *runner = Some(context.waker().clone());
        loop {
            block.disable_interrupts();
            // The waker comes first: what is done once interrupts are on again wakes this task.
            let mut changed = core::mem::take(overdue);
            while let Poll::Ready(status) = interrupts.poll(context) {
                changed |= status.config;
            }
            if changed {
                match block.config_changed() {
                    Ok(_) => self.geometry.set(block.geometry()),
                    Err(error) => return Poll::Ready(error),
                }
            }
            let [count] = interrupts.counts();
            block.count_interrupts(count.wrapping_sub(block.counters().interrupts));
            block.kick();
            match block.reap(|done| finish(flights, keys, done)) {
                Err(error) => return Poll::Ready(error.into()),
                Ok(0) => {}
                Ok(_) => waiting.drain(..).for_each(Waker::wake),
            }
            if !block.enable_interrupts() {
                return Poll::Pending;
            }
        }
    }

    /// A buffer of at least `len` bytes, when there is one.
    async fn take_buffer(&self, len: usize) -> Result<DmaBuf, BlockError> {
        poll_fn(|context| {
            let small = if len <= SMALL { self.small.take() } else { None };
            let large = || self.more.get().and_then(DmaPool::take).or_else(|| self.large.take());
            let mut state = self.state.borrow_mut();
            if state.block.is_none() {
                return Poll::Ready(Err(BlockError::Gone));
            }
            match small.or_else(large) {
                Some(buffer) => Poll::Ready(Ok(buffer)),
                None => state.wait(context),
            }
        })
        .await
    }

    /// Puts a read into the ring, when there is room.
    async fn submit(&self, sector: u64, buffer: DmaBuf, len: usize) -> Result<Reader<'_>, BlockError> {
        let mut request = Some(Request::Read { sector, buffer, len });
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            let State { block: Some(block), flights, keys, runner, .. } = &mut *state else {
                return Poll::Ready(Err(BlockError::Gone));
            };
            let Some(wanted) = request.take() else { return Poll::Ready(Err(BlockError::Device)) };
            match block.submit(wanted) {
                Ok(ticket) => {
                    let key = flights.insert(Flight::Waiting(None));
                    if let Some(place) = keys.get_mut(ticket.index()) {
                        *place = key;
                    }
                    // The runner kicks, once for all that are submitted until it runs.
                    wake(runner);
                    Poll::Ready(Ok(Reader { disk: self, key }))
                }
                Err((RequestError::Full, back)) => {
                    request = Some(back);
                    state.wait(context)
                }
                Err((RequestError::OutOfRange, _)) => Poll::Ready(Err(BlockError::OutOfRange)),
                Err(_) => Poll::Ready(Err(BlockError::Device)),
            }
        })
        .await
    }

    /// Reads into a buffer; gives up on a disk that does not answer.
    async fn read_buffer(&self, sector: u64, len: usize) -> Result<DmaBuf, BlockError> {
        let mut read = pin!(async {
            let buffer = self.take_buffer(len).await?;
            self.submit(sector, buffer, len).await?.fetch().await
        });
        let mut quiet = 0;
        for _ in 0..MAX_OVERDUE {
            let before = self.counters().completions;
            if let Ok(result) = with_timeout(OVERDUE, read.as_mut()).await {
                return result;
            }
            quiet = if self.counters().completions == before { quiet + 1 } else { 0 };
            if quiet == MAX_QUIET {
                break;
            }
            let mut state = self.state.borrow_mut();
            state.overdue = true;
            wake(&mut state.runner);
        }
        Err(BlockError::Device)
    }
}

impl State {
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<T> {
        if !self.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            self.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn finish(flights: &mut Slab<Flight>, keys: &[usize], done: Done) {
    let key = keys.get(done.ticket.index()).copied().unwrap_or(usize::MAX);
    match flights.get_mut(key) {
        Some(flight @ Flight::Waiting(_)) => {
            if let Flight::Waiting(waker) = flight {
                wake(waker);
            }
            *flight = Flight::Done(done.result, done.buffer);
        }
        Some(Flight::Abandoned) => drop(flights.remove(key)),
        Some(Flight::Done(..)) | None => {}
    }
}

/// Who waits for the request with this key.
struct Reader<'a> {
    disk: &'a Disk,
    key: usize,
}

impl Reader<'_> {
    async fn fetch(&self) -> Result<DmaBuf, BlockError> {
        poll_fn(|context| {
            let mut state = self.disk.state.borrow_mut();
            let gone = state.block.is_none();
            match state.flights.get_mut(self.key) {
                Some(Flight::Done(Ok(()), buffer)) => Poll::Ready(buffer.take().ok_or(BlockError::Device)),
                Some(Flight::Waiting(_)) if gone => Poll::Ready(Err(BlockError::Gone)),
                Some(Flight::Waiting(waker)) => {
                    *waker = Some(context.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(Err(BlockError::Device)),
            }
        })
        .await
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut state = self.disk.state.borrow_mut();
        let gone = state.block.is_none();
        match state.flights.get_mut(self.key) {
            Some(flight @ Flight::Waiting(_)) if !gone => *flight = Flight::Abandoned,
            _ => drop(state.flights.try_remove(self.key)),
        }
    }
}

/// A reader's turn. When it is over, whatever came of it, the others see whether there is a buffer now.
struct Turn<'a>(&'a Disk);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().waiting.drain(..).for_each(Waker::wake);
    }
}

impl BlockSource for Disk {
    fn size_bytes(&self) -> u64 {
        self.geometry.get().sectors.saturating_mul(SECTOR_SIZE as u64)
    }

    async fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
        let len = bufs.iter().map(|buf| buf.len()).sum();
        if len > MAX_READ {
            return Err(BlockError::OutOfRange);
        }
        // The first to be made, so the last to be dropped.
        let _turn = Turn(self);
        let buffer = self.read_buffer(sector, len).await?;
        let mut offset = 0;
        for buf in bufs {
            buffer.read_slice(buf, offset).map_err(|_| BlockError::Device)?;
            offset += buf.len();
        }
        Ok(())
    }
}
