//! Virtio devices made of software, in the kernel itself: a second [`Transport`], over which the drivers work
//! unchanged, and an example of how to use [`the queues`](crate).
//!
//! ```text
//! driver ─► Transport for Loopback   registers: plain fields     Model   what the device does: RamDisk, Echo
//!    └────► Notify for Doorbell ───► Queues: rings, and the windows as they are now ───┘
//! ```
//!
//! The device knows memory as any device does: by the addresses that [`DmaWindows::publish`] tells it, which
//! it looks up in what it may read and write at that moment. It runs when it is notified, and keeps nothing
//! of its driver's memory in between.

mod blk;
mod net;
mod ring;

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use core::time::Duration;

use ringfence_drivers::virtio::{DeviceType, Error, Notify, QueueSetup, Transport, features, status};
use ringfence_memory::{AtomicAccess, DmaError, DmaGrant, DmaWindows, Quiet, ResetError};

pub use blk::RamDisk;
pub use net::Echo;
use ring::Ring;
pub use ring::{Broken, Interrupt, Queues, View};

/// What a loopback device offers besides what its model does.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Any of [`Options::RINGS`].
    pub features: u64,
    /// The largest size of a queue: a power of two, at most 32768.
    pub queue_size: u16,
}

impl Options {
    /// The features of rings that can be offered.
    pub const RINGS: u64 = features::INDIRECT_DESC
        | features::EVENT_IDX
        | features::RING_PACKED
        | features::IN_ORDER
        | features::NOTIFICATION_DATA
        | features::RING_RESET;
}

impl Default for Options {
    /// What most devices offer.
    fn default() -> Self {
        Self { features: features::INDIRECT_DESC | features::EVENT_IDX, queue_size: 256 }
    }
}

/// What a device does, apart from the registers and rings that all have.
pub trait Model {
    /// Its kind.
    const TYPE: DeviceType;

    /// How many queues it has.
    fn queues(&self) -> u16;

    /// The feature bits of its kind that it offers.
    fn features(&self) -> u64;

    /// The device configuration: its fields as the specification lays them out.
    fn config(&self) -> &[u8];

    /// Does all that can be done now that the driver has notified queue `index`.
    ///
    /// # Errors
    /// [`Broken`], from [`Queues::serve`]: the device stops until it is reset.
    fn run(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken>;

    /// Forgets what it was doing for its driver.
    fn reset(&mut self) {}
}

/// The registers of a device, and the device.
struct State<M> {
    model: M,
    options: Options,
    windows: DmaWindows,
    status: u8,
    /// Those that the driver accepted.
    features: u64,
    rings: Vec<Option<Ring>>,
    /// Whether it may use memory at all, as the bus-master bit of a PCI function says.
    granted: bool,
    held: bool,
    interrupts: Cell<u64>,
}

impl<M: Model> State<M> {
    fn offered(&self) -> u64 {
        let rings = self.options.features & Options::RINGS;
        self.model.features() | rings | features::VERSION_1 | features::ACCESS_PLATFORM
    }

    fn run(&mut self, indexes: Range<u16>) {
        if !self.granted || self.status & (status::DRIVER_OK | status::NEEDS_RESET) != status::DRIVER_OK {
            return;
        }
        let Ok(view) = View::new(&self.windows) else {
            self.status |= status::NEEDS_RESET;
            return;
        };
        let rings = &mut self.rings[..];
        let mut queues = Queues { view, rings, features: self.features, interrupts: &self.interrupts };
        for index in indexes {
            if self.model.run(index, &mut queues).is_err() {
                self.status |= status::NEEDS_RESET;
                return;
            }
        }
    }

    fn reset(&mut self) {
        (self.status, self.features) = (0, 0);
        self.rings.iter_mut().for_each(|ring| *ring = None);
        self.model.reset();
    }
}

/// A virtio device in the same kernel as its driver. Cloning gives another handle to it: one is the driver's
/// transport, each queue's doorbell has one, and one may be kept to look at it.
pub struct Loopback<M>(Rc<RefCell<State<M>>>);

impl<M> Clone for Loopback<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Model> Loopback<M> {
    /// As [`with_options`](Self::with_options), with the default ones.
    pub fn new(model: M, windows: DmaWindows) -> Self {
        Self::with_options(model, windows, &Options::default())
    }

    /// A device that reaches memory through `windows`, which are [those of a model](DmaWindows::for_model).
    pub fn with_options(model: M, windows: DmaWindows, options: &Options) -> Self {
        let rings = (0..model.queues()).map(|_| None).collect();
        Self(Rc::new(RefCell::new(State {
            model,
            options: *options,
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
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] if its windows are not those of a model.
    pub fn grant(&self) -> Result<DmaGrant, DmaError> {
        DmaGrant::for_model(&self.0.borrow().windows)
    }

    /// While the device is held, notifications do not wake it; [`poll`](Self::poll) still does.
    pub fn hold(&self, on: bool) {
        self.0.borrow_mut().held = on;
    }

    /// Lets the device look at its queues.
    pub fn poll(&self) {
        let mut state = self.0.borrow_mut();
        let all = 0..state.model.queues();
        state.run(all);
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

/// Notifies one queue of a device.
pub struct Doorbell<M> {
    device: Loopback<M>,
    index: u16,
}

impl<M: Model> Notify for Doorbell<M> {
    fn notify(&self, position: u16) {
        let mut state = self.device.0.borrow_mut();
        let tells = state.features & features::NOTIFICATION_DATA != 0;
        if let Some(Some(ring)) = state.rings.get_mut(usize::from(self.index)) {
            ring.notified = Some(position).filter(|_| tells);
        }
        if !state.held {
            state.run(self.index..self.index + 1);
        }
    }
}

impl<M: Model> Transport for Loopback<M> {
    type Notifier = Doorbell<M>;

    fn device_type(&self) -> DeviceType {
        M::TYPE
    }

    fn status(&self) -> u8 {
        self.0.borrow().status
    }

    fn set_status(&mut self, status: u8) {
        let mut state = self.0.borrow_mut();
        let unknown = state.features & !state.offered() != 0;
        let refused = unknown || state.features & features::VERSION_1 == 0;
        let accepted = if refused { status & !status::FEATURES_OK } else { status };
        state.status = accepted | state.status & status::NEEDS_RESET;
    }

    fn reset(&mut self, windows: &DmaWindows, _: Duration) -> Result<Quiet, ResetError> {
        let mut state = self.0.borrow_mut();
        if windows.life() != state.windows.life() {
            return Err(ResetError::WrongDevice);
        }
        // First it forgets what it was told; views it has only while it runs.
        state.reset();
        windows.reset_model()
    }

    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error> {
        let mut state = self.0.borrow_mut();
        if grant.device() != state.windows.device() {
            return Err(DmaError::WrongDevice.into());
        }
        state.granted = true;
        Ok(())
    }

    fn stop(&mut self) {
        self.0.borrow_mut().granted = false;
    }

    fn device_features(&mut self) -> u64 {
        self.0.borrow().offered()
    }

    fn set_driver_features(&mut self, features: u64) {
        self.0.borrow_mut().features = features;
    }

    fn config_generation(&self) -> u32 {
        // It never changes.
        0
    }

    fn read_config<V: AtomicAccess>(&self, offset: usize) -> Result<V, Error> {
        let state = self.0.borrow();
        let field = state.model.config().get(offset..).and_then(|config| V::read_from_prefix(config).ok());
        field.map(|(value, _)| value).ok_or(Error::BadConfig)
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        let state = self.0.borrow();
        if index < state.model.queues() { state.options.queue_size } else { 0 }
    }

    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup<'_>) -> Result<Doorbell<M>, Error> {
        let (index, refused) = (queue.index, Error::QueueRefused(queue.index));
        let state = &mut *self.0.borrow_mut();
        let free = state.rings.get_mut(usize::from(index)).filter(|ring| ring.is_none());
        let free = free.ok_or(Error::QueueUnavailable(index))?;
        let learn = |address| windows.publish(address).map(|address| address.0).map_err(|_| refused);
        let [descriptors, driver, device] = queue.addresses.addresses();
        let ring = Ring {
            size: queue.addresses.size(),
            addresses: [learn(descriptors)?, learn(driver)?, learn(device)?],
            position: None,
            notified: None,
        };
        let fits = queue.addresses.size() <= state.options.queue_size;
        let view = View::new(&state.windows).map_err(|_| refused)?;
        let queue = ring.open(&view, state.features, Interrupt(&state.interrupts));
        queue.filter(|_| fits).ok_or(refused)?;
        *free = Some(ring);
        Ok(Doorbell { device: self.clone(), index })
    }

    fn begin_reset_queue(&mut self, index: u16) -> Result<(), Error> {
        let mut state = self.0.borrow_mut();
        let there = state.features & features::RING_RESET != 0;
        let ring = state.rings.get_mut(usize::from(index)).filter(|_| there);
        *ring.ok_or(Error::QueueUnavailable(index))? = None;
        Ok(())
    }

    fn poll_reset_queue(&mut self, _: u16) -> Result<bool, Error> {
        // It was done at once.
        Ok(true)
    }
}
