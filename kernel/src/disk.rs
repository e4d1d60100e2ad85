//! A virtio disk that many tasks read at once: the [`BlockSource`] under the file system.
//!
//! Readers put requests into the ring and sleep; one task, [`Disk::run`], notifies the device once for all that were
//! put since, and wakes whoever is served. No reader waits for another, and nobody waits for the disk but readers.

use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};

use embassy_time::{Duration, with_timeout};
use ringfence_drivers::block::{Block, Geometry, ID_LEN, Request, RequestError, SECTOR_SIZE, Ticket};
use ringfence_drivers::virtio::{Counters, Error, PciTransport};
use ringfence_memory::{DmaBuf, DmaError, DmaPool, DmaWindows};
use ringfence_services::block::{BlockError, BlockSource, MAX_READ};

use crate::irq::DeviceInterrupts;

/// Length of the buffers for single blocks.
const SMALL: usize = 4096;
const SMALL_COUNT: usize = 32;
/// A request is given up when the disk has finished nothing at all for this long.
const STALL: Duration = Duration::from_secs(30);
/// And, whatever else the disk does, after this many times [`STALL`].
const MAX_STALLS: usize = 20;
/// How long the disk may take to tell its name while the kernel boots.
const IDENTIFY_LIMIT: core::time::Duration = core::time::Duration::from_secs(2);

/// A request in flight, or one that is done and not yet fetched.
#[derive(Default)]
struct Pending {
    waker: Option<Waker>,
    /// Once it is done: how, and the buffer.
    done: Option<(Result<(), RequestError>, Option<DmaBuf>)>,
    /// Nobody waits any more: the slot is free once it is done.
    abandoned: bool,
}

struct State {
    /// `None` once the device had to be given up.
    block: Option<Block<PciTransport>>,
    /// By ticket.
    pending: Vec<Option<Pending>>,
    /// Tasks that wait for a buffer or for room in the ring.
    waiting: Vec<Waker>,
    /// The task that runs [`Disk::run`].
    runner: Option<Waker>,
}

/// A disk.
pub struct Disk {
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
        vector: Option<u16>,
    ) -> Result<Self, DmaError> {
        let small = DmaPool::new(&windows, SMALL_COUNT, SMALL)?;
        let large = DmaPool::new(&windows, 1, MAX_READ)?;
        let id = small.take().and_then(|buffer| block.identify(buffer, IDENTIFY_LIMIT).ok()?.ok());
        let pending = (0..block.depth()).map(|_| None).collect();
        Ok(Self {
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
            state: RefCell::new(State { block: Some(block), pending, waiting: Vec::new(), runner: None }),
        })
    }

    /// Lets `count` more reads of [`MAX_READ`] bytes be in flight: for the disk that is served from. Call it once.
    pub fn enlarge(&self, count: usize) -> Result<(), DmaError> {
        let pool = DmaPool::new(&self.windows, count, MAX_READ)?;
        // A second pool would only be dropped.
        let _ = self.more.set(pool);
        Ok(())
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
        log::error!("disk given up: {error}");
        let mut state = self.state.borrow_mut();
        if let Some(block) = &state.block {
            self.counters.set(block.counters());
        }
        // Resets the device.
        state.block = None;
        for pending in state.pending.iter_mut().flatten() {
            wake(&mut pending.waker);
        }
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Ready only when the device has to be given up.
    fn poll_device(&self, interrupts: &mut DeviceInterrupts, context: &mut Context<'_>) -> Poll<Error> {
        let mut state = self.state.borrow_mut();
        let State { block: Some(block), pending, waiting, runner } = &mut *state else {
            return Poll::Ready(Error::Gone);
        };
        *runner = Some(context.waker().clone());
        let mut counted = interrupts.counts::<1>()[0].wrapping_sub(block.counters().interrupts);
        loop {
            block.count_interrupts(counted);
            block.kick();
            block.disable_interrupts();
            match block.reap(|done| finish(pending, done.ticket, done.result, done.buffer)) {
                Err(error) => return Poll::Ready(error.into()),
                Ok(0) => {}
                Ok(_) => waiting.drain(..).for_each(Waker::wake),
            }
            if block.enable_interrupts() {
                counted = 0;
                continue;
            }
            match interrupts.poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(status) => {
                    counted = interrupts.counts::<1>()[0].wrapping_sub(block.counters().interrupts);
                    if status.config {
                        match block.config_changed() {
                            Ok(_) => self.geometry.set(block.geometry()),
                            Err(error) => return Poll::Ready(error),
                        }
                    }
                }
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
    async fn submit(&self, sector: u64, buffer: DmaBuf, len: usize) -> Result<Ticket, BlockError> {
        let mut request = Some(Request::Read { sector, buffer, len });
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            let Some(block) = &mut state.block else { return Poll::Ready(Err(BlockError::Gone)) };
            let Some(wanted) = request.take() else { return Poll::Ready(Err(BlockError::Device)) };
            match block.submit(wanted) {
                Ok(ticket) => {
                    if let Some(slot) = state.pending.get_mut(ticket.index()) {
                        *slot = Some(Pending::default());
                    }
                    // The runner kicks, once for all that are submitted until it runs.
                    wake(&mut state.runner);
                    Poll::Ready(Ok(ticket))
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

    async fn fetch(&self, flight: &Flight<'_>) -> Result<DmaBuf, BlockError> {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            let gone = state.block.is_none();
            let Some(Some(pending)) = state.pending.get_mut(flight.ticket.index()) else {
                return Poll::Ready(Err(BlockError::Device));
            };
            match pending.done.take() {
                Some((Ok(()), Some(buffer))) => Poll::Ready(Ok(buffer)),
                Some(_) => Poll::Ready(Err(BlockError::Device)),
                None if gone => Poll::Ready(Err(BlockError::Gone)),
                None => {
                    pending.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
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

fn finish(
    pending: &mut [Option<Pending>],
    ticket: Ticket,
    result: Result<(), RequestError>,
    buffer: Option<DmaBuf>,
) {
    let Some(slot) = pending.get_mut(ticket.index()) else { return };
    match slot {
        Some(request) if !request.abandoned => {
            request.done = Some((result, buffer));
            wake(&mut request.waker);
        }
        _ => *slot = None,
    }
}

/// A read that somebody waits for. Its slot is free again when this is dropped and the device is done with it.
struct Flight<'a> {
    disk: &'a Disk,
    ticket: Ticket,
    fetched: bool,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut state = self.disk.state.borrow_mut();
        let gone = state.block.is_none();
        let Some(slot) = state.pending.get_mut(self.ticket.index()) else { return };
        match slot {
            Some(pending) if !self.fetched && pending.done.is_none() && !gone => pending.abandoned = true,
            _ => *slot = None,
        }
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
        let buffer = self.take_buffer(len).await?;
        let ticket = self.submit(sector, buffer, len).await?;
        let mut flight = Flight { disk: self, ticket, fetched: false };
        let mut buffer = Err(BlockError::Device);
        for _ in 0..MAX_STALLS {
            let before = self.counters().completions;
            match with_timeout(STALL, self.fetch(&flight)).await {
                Ok(result) => {
                    flight.fetched = true;
                    buffer = result;
                    break;
                }
                Err(_) if self.counters().completions != before => {}
                Err(_) => break,
            }
        }
        drop(flight);
        let buffer = buffer?;
        let mut offset = 0;
        for buf in bufs {
            buffer.read_slice(offset, buf).map_err(|_| BlockError::Device)?;
            offset += buf.len();
        }
        drop(buffer);
        // Whoever waits for a buffer can have this one.
        self.state.borrow_mut().waiting.drain(..).for_each(Waker::wake);
        Ok(())
    }
}
