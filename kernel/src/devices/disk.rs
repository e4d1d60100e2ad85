//! A virtio disk that many tasks read at once: the [`BlockSource`] under the file system.
//!
//! Its queues are [`SharedQueue`]s, each with a server and an interrupt of its own; requests go to them in
//! turn. No reader waits for another, and nobody waits for the disk but readers.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Poll, Waker};

use embassy_time::{Duration, with_timeout};
use ringfence_drivers::block::{
    self, Block, BlockControl, Geometry, ID_LEN, Options, Patience, Request, RequestError, SECTOR_SIZE,
    SharedQueue,
};
use ringfence_drivers::virtio::{Counters, DeviceType, Error, Hybrid, QueueError, RESET_LIMIT, features};
use ringfence_memory::{DmaBuf, DmaError, DmaPool, DmaWindows, Quiet};
use ringfence_services::block::{BlockError, BlockSource, MAX_READ};
use ringfence_services::wakers::Wakers;

use crate::alarm::Alarm;
use crate::devices::bus::{BusNotifier, BusTransport};
use crate::devices::second_look::SecondLook;
use crate::devices::{Driver, Home, InUse, Started};
use crate::executor::Task;
use crate::interrupts::Interrupt;
use crate::interrupts::device::{DeviceInterrupts, InterruptStats};
use crate::platform::KERNEL;
use crate::time;

/// How a disk is driven, unless more queues are wished: as many requests at once as have all their
/// descriptors in the ring, since a table for each takes the device longer.
const OPTIONS: Options = Options { queues: 1, queue_size: 256, depth: 64, features: features::QUEUES };

/// Length of the buffers for single blocks.
const SMALL: usize = 4096;
const SMALL_COUNT: usize = 32;
/// Looks at a queue that may find nothing before its server sleeps: about as long as sleeping and waking take
/// under QEMU.
const BUDGET: u32 = 8;
/// Most pauses of the processor before a look while there is nothing to be found: the look itself, with all
/// other tasks between two, costs as much as 20 of them.
const PAUSES: usize = 8;
/// A reader that has waited this long has the device's health checked.
const OVERDUE: Duration = Duration::from_secs(5);
/// And gives up after so many times that: a request to the disk ends by then at the latest.
const MAX_OVERDUE: u32 = 120;
const LIMIT: core::time::Duration = core::time::Duration::from_secs(MAX_OVERDUE as u64 * OVERDUE.as_secs());
/// A disk that does worse is given up itself.
const PATIENCE: Patience = Patience { lost: 8, silence: Some(core::time::Duration::from_secs(30)) };

/// How long it may take to write what it keeps back, before it is given up in good order.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// A request queue.
pub type DiskQueue = SharedQueue<'static, BusNotifier>;

/// The driver without its queues.
struct Control {
    /// `None` once the device had to be given up.
    block: Option<&'static mut BlockControl<BusTransport>>,
    /// Whether some reader has waited for long.
    overdue: bool,
    /// When the queues are looked at though their servers sleep.
    look: SecondLook,
    /// The task that runs [`Disk::watch`].
    watcher: Option<Waker>,
}

/// A disk.
pub struct Disk {
    address: String,
    queues: Vec<DiskQueue>,
    /// The queue for the next request.
    next: Cell<usize>,
    control: RefCell<Control>,
    small: DmaPool,
    large: DmaPool,
    more: OnceCell<DmaPool>,
    /// Tasks that wait for a buffer.
    waiting: RefCell<Wakers>,
    windows: DmaWindows,
    features: u64,
}

impl Disk {
    /// Takes a driver whose device has just been brought up. `windows` are the ones given to the driver.
    pub fn new(
        block: Block<BusTransport>,
        windows: DmaWindows,
        address: impl ToString,
    ) -> Result<&'static Self, Error> {
        let small = DmaPool::new(&windows, SMALL_COUNT, SMALL)?;
        let large = DmaPool::new(&windows, 1, MAX_READ)?;
        let features = block.control.features();
        // For good, so that queues and tasks can be apart; a disk that is given up is shut down.
        let (control, queues) = Box::leak(Box::new(block)).split();
        let queues = queues.map(|queue| {
            let shared = SharedQueue::new(queue, Hybrid::new(BUDGET))?;
            Ok(shared.with_patience(PATIENCE))
        });
        let queues: Result<Vec<_>, QueueError> = queues.collect();
        let queues = queues.inspect_err(|_| _ = control.shut_down())?;
        let look = SecondLook::default();
        let control = Control { block: Some(control), overdue: false, look, watcher: None };
        Ok(Box::leak(Box::new(Self {
            address: address.to_string(),
            queues,
            next: Cell::new(0),
            control: RefCell::new(control),
            small,
            large,
            more: OnceCell::new(),
            waiting: RefCell::default(),
            windows,
            features,
        })))
    }

    /// Lets `count` more reads of [`MAX_READ`] bytes be in flight: for the disk that is served from. Call it
    /// once.
    pub fn enlarge(&self, count: usize) -> Result<(), DmaError> {
        let pool = DmaPool::new(&self.windows, count, MAX_READ)?;
        // A second pool would only be dropped.
        let _ = self.more.set(pool);
        Ok(())
    }

    /// Where it is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the disk is like.
    pub fn geometry(&self) -> Geometry {
        // All queues have the same, and there is one at least.
        self.queues[0].geometry()
    }

    /// Its request queues.
    pub fn queues(&self) -> &[DiskQueue] {
        &self.queues
    }

    /// The name the disk gives itself, if it has one.
    pub async fn name(&self) -> Option<Vec<u8>> {
        let _turn = Turn(self);
        let buffer = self.take_buffer(ID_LEN).await.ok()?;
        let (result, buffer) = self.request(Request::Identify { buffer }).await;
        let mut name = [0; ID_LEN];
        result.ok().and(buffer)?.read_slice(&mut name, 0).ok()?;
        name.split(|&byte| byte == 0).next().filter(|name| !name.is_empty()).map(<[u8]>::to_vec)
    }

    /// Whether the device had to be given up.
    pub fn is_gone(&self) -> bool {
        self.control.borrow().block.is_none()
    }

    /// The disk's tasks: one for each queue, and one for the device. To be run for good.
    pub fn tasks(&'static self, mut interrupts: DeviceInterrupts) -> Vec<Task> {
        let count = self.queues.len() as u16;
        let (mut tasks, mut shared): (Vec<Task>, _) = (Vec::new(), Vec::new());
        for (index, queue) in (0..).zip(&self.queues) {
            let own = interrupts.take(index, count);
            if own.is_none() {
                shared.push(queue);
            }
            tasks.push(Box::pin(self.serve(queue, own)));
        }
        tasks.push(Box::pin(self.watch(interrupts, shared)));
        tasks
    }

    /// Serves a queue, with its own interrupt if it has one.
    async fn serve(&self, queue: &DiskQueue, mut interrupt: Option<Interrupt>) {
        let mut alarm = Alarm::default();
        let error = poll_fn(|context| {
            if let Some(interrupt) = &mut interrupt {
                // The waker comes first: whatever completes once interrupts are on wakes this task.
                while interrupt.poll_wait(context).is_ready() {}
            }
            let before = queue.counters().completions;
            (0..PAUSES).take_while(|_| !queue.may_have_completed()).for_each(|_| core::hint::spin_loop());
            let result = queue.poll_serve(context, time::now());
            if queue.counters().completions != before {
                // Buffers whose readers are gone may have come back.
                self.wake_waiting();
            }
            if queue.is_asleep() && self.control.borrow_mut().look.want() {
                self.wake_watcher();
            }
            alarm.set(queue.next_deadline(), context);
            result
        });
        let error = error.await;
        self.give_up(error.into()).await;
    }

    /// Looks after the device, wakes the servers of the queues without an interrupt of their own, and looks
    /// at all queues once more while their servers sleep.
    async fn watch(&self, mut interrupts: DeviceInterrupts, shared: Vec<&DiskQueue>) {
        let error = poll_fn(|context| {
            let mut control = self.control.borrow_mut();
            control.watcher = Some(context.waker().clone());
            let mut changed = core::mem::take(&mut control.overdue);
            while let Poll::Ready(status) = interrupts.poll(context) {
                changed |= status.config;
                shared.iter().filter(|_| status.queue).for_each(|queue| queue.wake());
            }
            if control.look.poll(context) {
                self.queues.iter().for_each(|queue| queue.look_again());
            }
            let Some(block) = &mut control.block else { return Poll::Ready(Error::Gone) };
            match changed.then(|| block.config_changed()) {
                Some(Err(error)) => Poll::Ready(error),
                _ => Poll::Pending,
            }
        });
        let error = error.await;
        self.give_up(error).await;
    }

    /// Ends all requests and resets the device, if that did not happen yet, since it does not do what it
    /// should.
    async fn give_up(&self, error: Error) {
        if !self.is_gone() {
            log::error!("disk {} given up: {error}", self.address);
            self.let_go().await;
        }
    }

    /// Has the disk write what it keeps back, if it knows how, then as above.
    async fn leave(&self) {
        let flush = self.request(Request::Flush);
        if self.geometry().flush && !matches!(with_timeout(FLUSH_LIMIT, flush).await, Ok((Ok(()), _))) {
            log::error!("disk {} was not flushed", self.address);
        }
        self.let_go().await;
    }

    async fn let_go(&self) {
        let Some(block) = self.control.borrow_mut().block.take() else { return };
        self.close(None);
        self.wake_waiting();
        self.wake_watcher();
        let quiet = match block.begin_shut_down() {
            Ok(()) => time::look_for(RESET_LIMIT, || block.poll_shut_down()).await,
            Err(_) => None,
        };
        // What the device had is free then.
        self.close(quiet.as_ref());
    }

    fn close(&self, quiet: Option<&Quiet>) {
        self.queues.iter().for_each(|queue| queue.close(quiet));
    }

    fn wake_waiting(&self) {
        self.waiting.borrow_mut().wake_all();
    }

    fn wake_watcher(&self) {
        if let Some(waker) = self.control.borrow_mut().watcher.take() {
            waker.wake();
        }
    }

    /// A buffer of at least `len` bytes, when there is one.
    async fn take_buffer(&self, len: usize) -> Result<DmaBuf, BlockError> {
        poll_fn(|context| {
            let small = if len <= SMALL { self.small.take() } else { None };
            let large = || self.more.get().and_then(DmaPool::take).or_else(|| self.large.take());
            if self.is_gone() {
                return Poll::Ready(Err(BlockError::Gone));
            }
            match small.or_else(large) {
                Some(buffer) => Poll::Ready(Ok(buffer)),
                None => {
                    self.waiting.borrow_mut().add(context.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The queue whose turn it is.
    fn queue(&self) -> &DiskQueue {
        let index = self.next.get();
        self.next.set((index + 1) % self.queues.len());
        &self.queues[index]
    }

    /// Carries out one request on the queue whose turn it is, within [`LIMIT`].
    pub async fn request(&self, request: Request) -> (Result<(), RequestError>, Option<DmaBuf>) {
        self.queue().request_until(request, time::now() + LIMIT).await
    }

    /// Reads into a buffer, when there is one; has the disk's health checked when that takes long.
    async fn read_buffer(&self, sector: u64, len: usize) -> Result<DmaBuf, BlockError> {
        let mut read = pin!(async {
            let buffer = self.take_buffer(len).await?;
            match self.request(Request::Read { sector, buffer, len }).await {
                (Ok(()), Some(buffer)) => Ok(buffer),
                (Err(RequestError::OutOfRange), _) => Err(BlockError::OutOfRange),
                _ if self.is_gone() => Err(BlockError::Gone),
                _ => Err(BlockError::Device),
            }
        });
        for _ in 0..MAX_OVERDUE {
            if let Ok(result) = with_timeout(OVERDUE, read.as_mut()).await {
                return result;
            }
            self.control.borrow_mut().overdue = true;
            self.wake_watcher();
        }
        Err(BlockError::Device)
    }
}

/// A reader's turn. When it is over, whatever came of it, the others see whether there is a buffer now.
struct Turn<'a>(&'a Disk);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.wake_waiting();
    }
}

impl BlockSource for Disk {
    fn size_bytes(&self) -> u64 {
        self.geometry().sectors.saturating_mul(SECTOR_SIZE as u64)
    }

    fn block_size(&self) -> u64 {
        self.geometry().block_size.into()
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
            let bytes = buffer.as_volatile_slice().get_array_ref(offset, buf.len());
            bytes.and_then(|bytes| bytes.copy_to(buf)).map_err(|_| BlockError::Device)?;
            offset += buf.len();
        }
        Ok(())
    }
}

/// The driver of disks.
pub struct Disks;

impl Driver for Disks {
    fn name(&self) -> &'static str {
        "virtio-blk"
    }

    fn kind(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn feature_names(&self) -> &'static [(u32, &'static str)] {
        block::features::NAMES
    }

    fn most(&self) -> usize {
        32
    }

    fn start(&self, home: &Home, started: &mut Started) -> Result<(InterruptStats, Box<dyn InUse>), Error> {
        let windows = DmaWindows::new(&KERNEL, home.id())?;
        let (block, interrupts) = open(&windows, home, started.queues)?;
        let (stats, disk) = (interrupts.stats(), Disk::new(block, windows, home)?);
        started.disks.push((disk, interrupts));
        Ok((stats, Box::new(disk)))
    }
}

/// Brings a disk up with at most `queues` queues, as all disks here, and as what is measured.
///
/// # Errors
/// As for [`Home::bring_up`].
pub fn open(
    windows: &DmaWindows,
    home: &Home,
    queues: u16,
) -> Result<(Block<BusTransport>, DeviceInterrupts), Error> {
    let options = Options { queues, ..OPTIONS };
    home.bring_up(windows, queues, |transport, grant, windows| {
        Block::with_options(transport, grant, windows, &options)
    })
}

impl InUse for &'static Disk {
    fn features(&self) -> u64 {
        self.features
    }

    fn queues(&self) -> Vec<(u16, Counters)> {
        self.queues.iter().map(|queue| (queue.queue_size(), queue.counters())).collect()
    }

    fn leave(&self) -> Task {
        Box::pin(Disk::leave(self))
    }
}
