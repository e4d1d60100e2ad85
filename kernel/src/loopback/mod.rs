//! Virtio devices made of software, in the kernel itself: a second [`Transport`], over which the drivers work
//! unchanged, and an example of how to use [`device_side`](ringfence_drivers::virtio::device_side).
//!
//! ```text
//! driver ─► Transport for Loopback   registers: plain fields        Model   what the device does: RamDisk, Echo
//!    └────► Notify for Loopback ───► Queues: rings, and the windows as they are now ──────┘
//! ```
//!
//! The device knows memory as any device does: by the addresses that [`DmaWindows::publish`] tells it, which it looks
//! up in what it may read and write at that moment. It runs when it is notified, and keeps nothing of its driver's
//! memory in between.

mod blk;
mod net;

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::time::Duration;

use ringfence_drivers::virtio::device_side::queue::{DriverNotify, Position, Queue, QueueMemory};
use ringfence_drivers::virtio::device_side::ring;
use ringfence_drivers::virtio::{DeviceType, Error, Notify, QueueSetup, Transport, features, status};
use ringfence_memory::{
    AtomicAccess, ConfigError, DeviceRange, DeviceStatus, DmaGrant, DmaSnapshot, DmaWindows, DriverMem,
    DriverRange, GuestAddress, ResetTimeout,
};

pub use blk::RamDisk;
pub use net::Echo;

/// The largest size of a queue.
const MAX_QUEUE_SIZE: u16 = 256;
const DESCRIPTOR_LEN: usize = 16;
/// What every loopback device offers.
const FEATURES: u64 =
    features::INDIRECT_DESC | features::EVENT_IDX | features::VERSION_1 | features::ACCESS_PLATFORM;

/// What a device does, apart from the registers and rings that all have.
pub trait Model {
    /// Its kind.
    const TYPE: DeviceType;
    /// How many queues it has.
    const QUEUES: u16;
    /// The feature bits of its kind that it offers.
    const FEATURES: u64;

    /// The device configuration: its fields as the specification lays them out.
    fn config(&self) -> &[u8];

    /// Does all that can be done now: the driver has notified one of the queues.
    ///
    /// # Errors
    /// [`Broken`], from [`Queues::serve`]: the device stops until it is reset.
    fn run(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken>;

    /// Forgets what it was doing for its driver.
    fn reset(&mut self) {}
}

/// The driver broke the rules of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The "interrupt": counts how often the driver was notified.
pub struct Interrupt<'a>(&'a Cell<u64>);

impl DriverNotify for Interrupt<'_> {
    fn notify(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// The memory that the device may use at this moment.
pub struct View {
    /// What it may read.
    pub readable: DmaSnapshot,
    /// What it may write.
    pub writable: DmaSnapshot,
}

/// A queue that the driver set up: where its rings are, and how far the device is.
struct Ring {
    size: u16,
    descriptors: GuestAddress,
    driver: GuestAddress,
    device: GuestAddress,
    position: Position,
}

impl Ring {
    /// The queue in memory; `None` if the rings are not all in the windows.
    fn open<'a, N: DriverNotify>(&self, view: &'a View, features: u64, notify: N) -> Option<Queue<'a, N>> {
        let memory = QueueMemory {
            desc: find(&view.readable, self.descriptors, DESCRIPTOR_LEN * usize::from(self.size))?,
            avail: find(&view.readable, self.driver, ring::Driver::avail_len_for_queue_size(self.size))?,
            used: find(&view.writable, self.device, ring::Device::used_len_for_queue_size(self.size))?,
        };
        Queue::new(memory, notify)?.with_features(features).resume(self.position)
    }
}

fn find(memory: &DmaSnapshot, start: GuestAddress, len: usize) -> Option<DeviceRange<'_>> {
    memory.translate(DriverRange::try_from((start.0, u32::try_from(len).ok()?)).ok()?)
}

/// The device's queues, for one look at them.
pub struct Queues<'a> {
    view: View,
    rings: &'a mut [Option<Ring>],
    features: u64,
    interrupts: &'a Cell<u64>,
}

impl Queues<'_> {
    /// Lets `serve` take chains from queue `index` and return them, if the driver has set it up. The driver is notified
    /// once for all of them, if it wants that.
    ///
    /// # Errors
    /// [`Broken`] if the rings are no longer in the windows, or the driver broke their rules.
    pub fn serve(
        &mut self,
        index: u16,
        serve: impl FnOnce(&Queue<'_, Interrupt<'_>>, &View),
    ) -> Result<(), Broken> {
        let Some(Some(ring)) = self.rings.get_mut(usize::from(index)) else { return Ok(()) };
        let queue = ring.open(&self.view, self.features, Interrupt(self.interrupts)).ok_or(Broken)?;
        queue.set_batching(true);
        serve(&queue, &self.view);
        queue.flush();
        ring.position = queue.position();
        queue.error().map_or(Ok(()), |_| Err(Broken))
    }
}

/// The registers of a device, and the device.
struct State<M> {
    model: M,
    windows: DmaWindows,
    status: u8,
    features: u64,
    rings: Vec<Option<Ring>>,
    /// Whether it may use memory at all, as the bus-master bit of a PCI function says.
    granted: bool,
    held: bool,
    interrupts: Cell<u64>,
}

impl<M: Model> State<M> {
    fn run(&mut self) {
        if !self.granted || self.status & (status::DRIVER_OK | status::NEEDS_RESET) != status::DRIVER_OK {
            return;
        }
        let view = View { readable: self.windows.readable(), writable: self.windows.writable() };
        let (rings, interrupts) = (&mut self.rings[..], &self.interrupts);
        let mut queues = Queues { view, rings, features: self.features, interrupts };
        if self.model.run(&mut queues).is_err() {
            self.status |= status::NEEDS_RESET;
        }
    }

    fn reset(&mut self) {
        (self.status, self.features) = (0, 0);
        self.rings.iter_mut().for_each(|ring| *ring = None);
        self.model.reset();
    }
}

/// A virtio device in the same kernel as its driver. Cloning gives another handle to it: one is the driver's transport,
/// each queue's notifier is one, and one may be kept to look at it.
pub struct Loopback<M>(Rc<RefCell<State<M>>>);

impl<M> Clone for Loopback<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Model> Loopback<M> {
    /// A device that reaches memory through `windows`. Their device id must be nobody else's.
    pub fn new(model: M, windows: DmaWindows) -> Self {
        let rings = (0..M::QUEUES).map(|_| None).collect();
        Self(Rc::new(RefCell::new(State {
            model,
            windows,
            status: 0,
            features: 0,
            rings,
            granted: false,
            held: false,
            interrupts: Cell::new(0),
        })))
    }

    /// The permission that a driver needs to start the device.
    pub fn grant(&self) -> DmaGrant {
        let id = self.0.borrow().windows.device();
        // SAFETY: no hardware goes by this id, and the model can reach nothing but what the windows show it: it has only
        // a `View`.
        unsafe { DmaGrant::without_iommu(id) }
    }

    /// While the device is held, notifications do not wake it; [`poll`](Self::poll) still does.
    pub fn hold(&self, on: bool) {
        self.0.borrow_mut().held = on;
    }

    /// Lets the device look at its queues.
    pub fn poll(&self) {
        self.0.borrow_mut().run();
    }

    /// How often the device notified its driver.
    pub fn interrupts(&self) -> u64 {
        self.0.borrow().interrupts.get()
    }

    /// Calls `change` with what is behind the registers.
    pub fn with_model<R>(&self, change: impl FnOnce(&mut M) -> R) -> R {
        change(&mut self.0.borrow_mut().model)
    }
}

impl<M: Model> Notify for Loopback<M> {
    fn notify(&self) {
        let mut state = self.0.borrow_mut();
        if !state.held {
            state.run();
        }
    }
}

// SAFETY: the device uses memory only in `run`, and of that only what the rings lead to; writing 0 forgets them all before
// it returns, and `run` keeps no part of a `View`.
unsafe impl<M: Model> DeviceStatus for Loopback<M> {
    fn read(&self) -> u8 {
        self.0.borrow().status
    }

    fn write(&self, value: u8) {
        let mut state = self.0.borrow_mut();
        if value == 0 {
            state.reset();
            return;
        }
        let unknown = state.features & !(M::FEATURES | FEATURES) != 0;
        let refused = unknown || state.features & features::VERSION_1 == 0;
        let accepted = if refused { value & !status::FEATURES_OK } else { value };
        state.status = accepted | state.status & status::NEEDS_RESET;
    }
}

impl<M: Model> Transport for Loopback<M> {
    type Notifier = Self;

    fn device_type(&self) -> DeviceType {
        M::TYPE
    }

    fn status(&self) -> u8 {
        self.read()
    }

    fn set_status(&mut self, status: u8) {
        self.write(status);
    }

    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<(), ResetTimeout> {
        windows.reset_device(self, limit)
    }

    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error> {
        let mut state = self.0.borrow_mut();
        if grant.device() != state.windows.device() {
            return Err(ConfigError::WrongDevice.into());
        }
        state.granted = true;
        Ok(())
    }

    fn stop(&mut self) {
        self.0.borrow_mut().granted = false;
    }

    fn device_features(&mut self) -> u64 {
        M::FEATURES | FEATURES
    }

    fn set_driver_features(&mut self, features: u64) {
        self.0.borrow_mut().features = features;
    }

    fn config_generation(&self) -> u8 {
        // It never changes.
        0
    }

    fn read_config<V: AtomicAccess>(&self, offset: usize) -> Result<V, Error> {
        let state = self.0.borrow();
        let field = state.model.config().get(offset..).and_then(|config| V::read_from_prefix(config).ok());
        field.map(|(value, _)| value).ok_or(Error::BadConfig)
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        if index < M::QUEUES { MAX_QUEUE_SIZE } else { 0 }
    }

    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup) -> Result<Self, Error> {
        let (index, refused) = (queue.index, Error::QueueRefused(queue.index));
        let state = &mut *self.0.borrow_mut();
        let place = state.rings.get_mut(usize::from(index)).filter(|ring| ring.is_none());
        let place = place.ok_or(Error::QueueUnavailable(index))?;
        let learn = |address| windows.publish(address).ok_or(refused);
        let ring = Ring {
            size: queue.size,
            descriptors: learn(queue.descriptors)?,
            driver: learn(queue.driver)?,
            device: learn(queue.device)?,
            position: Position::SPLIT,
        };
        let view = View { readable: state.windows.readable(), writable: state.windows.writable() };
        ring.open(&view, state.features, Interrupt(&state.interrupts)).ok_or(refused)?;
        *place = Some(ring);
        Ok(self.clone())
    }
}
