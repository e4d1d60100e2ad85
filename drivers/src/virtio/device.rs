//! Bringing a device up, step by step (3.1.1), and shutting it down.

use core::time::Duration;

use ringfence_memory::{DeviceId, DmaError, DmaGrant, DmaWindows, Life, Quiet, ResetError};

use super::queue::NewQueue;
use super::{
    Buffers, ConfigField, DeviceType, Error, Queue, QueueError, QueueOptions, Transport, features, status,
};

/// How long a device may take to reset: it may have to finish what it is doing first.
pub const RESET_LIMIT: Duration = Duration::from_secs(2);

/// How long one that was never started is waited for when it is dropped: it has nothing to finish.
const IDLE_RESET_LIMIT: Duration = Duration::from_micros(100);

/// The largest size of a queue (2.7, 2.8).
const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// How often a changing configuration is read again.
const CONFIG_ATTEMPTS: usize = 16;

/// Proof that the driver has set DRIVER_OK in this life of the device: its queues may notify from now on
/// (3.1.1).
#[derive(Debug)]
pub struct DriverOk(pub(super) Life);

/// What a queue turned out to be, before the device knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueShape {
    /// Slots are numbered from 0 to below this.
    pub slots: usize,
    /// The most segments that a chain can have, with its ends.
    pub segments: u16,
}

/// A device that a driver has taken; reset when dropped, which may take [`RESET_LIMIT`] if it was started and
/// nobody has [asked](Self::begin_shut_down) before, and 100 µs if it was not.
///
/// Without proof of the reset its memory stays in the quarantine of its [`DmaWindows`], until there is one:
/// that of the next driver.
///
/// Its calls, and its drop, take locks of `memory`: not for interrupt handlers.
#[derive(Debug)]
pub struct Device<T: Transport> {
    transport: T,
    windows: DmaWindows,
    offered: u64,
    features: u64,
    /// The life that the driver has the device for.
    life: Life,
    /// What the device status should be; 0 after the device was shut down.
    status: u8,
}

/// A device that a driver has taken, and that waits for it to choose among what it offers. Dropped, it is
/// reset as a [`Device`] that was not started.
#[derive(Debug)]
pub struct Offer<T: Transport>(Device<T>);

/// A device that was asked to reset, so that a driver can take it. Dropping it waits for nothing.
#[derive(Debug)]
pub struct Starting<'a, T: Transport> {
    /// Until it has.
    device: Option<Device<T>>,
    grant: &'a DmaGrant,
}

impl<T: Transport> Device<T> {
    /// Resets the device, which may take [`RESET_LIMIT`], tells it that there is a driver for it, lets it
    /// master the bus, and reads what it offers.
    ///
    /// # Errors
    /// Any; the device is left asked to reset and marked as failed, if it was asked once.
    pub fn begin(
        mut transport: T,
        kind: DeviceType,
        grant: &DmaGrant,
        windows: DmaWindows,
    ) -> Result<Offer<T>, Error> {
        may_take(&transport, kind, grant, &windows)?;
        reset(&mut transport, &windows, RESET_LIMIT)?;
        Self::new(transport, windows).take(grant)
    }

    /// The same without waiting: asks for the reset, and [`Starting::poll`] goes on when that is done.
    ///
    /// # Errors
    /// Gives the transport back.
    pub fn begin_reset(
        mut transport: T,
        kind: DeviceType,
        grant: &DmaGrant,
        windows: DmaWindows,
    ) -> Result<Starting<'_, T>, (Error, T)> {
        let may_take = may_take(&transport, kind, grant, &windows);
        match may_take.and_then(|()| Ok(transport.begin_reset(&windows)?)) {
            Ok(()) => Ok(Starting { device: Some(Self::new(transport, windows)), grant }),
            Err(error) => Err((error, transport)),
        }
    }

    fn new(transport: T, windows: DmaWindows) -> Self {
        let life = windows.life();
        Self { transport, windows, offered: 0, features: 0, life, status: 0 }
    }

    /// Goes on after the reset.
    fn take(mut self, grant: &DmaGrant) -> Result<Offer<T>, Error> {
        self.advance(status::ACKNOWLEDGE)?;
        self.advance(status::DRIVER)?;
        self.transport.start(grant)?;
        self.offered = self.transport.device_features();
        Ok(Offer(self))
    }
}

/// The device does not offer `feature`, a single bit.
const fn missing(feature: u64) -> Error {
    Error::MissingFeature(feature.trailing_zeros() as u8)
}

/// Whether it is the device that the driver and the grant are for, and there.
fn may_take<T: Transport>(
    transport: &T,
    kind: DeviceType,
    grant: &DmaGrant,
    windows: &DmaWindows,
) -> Result<(), Error> {
    if transport.device_type() != kind {
        return Err(Error::WrongType);
    }
    if grant.device() != windows.device() {
        return Err(DmaError::WrongDevice.into());
    }
    if transport.status() == status::GONE { Err(Error::Gone) } else { Ok(()) }
}

impl<T: Transport> Starting<'_, T> {
    /// What the device offers, or why there is nothing to choose from, as for [`Device::begin`], once the
    /// device has reset; nothing more after that. How long it may take, for example [`RESET_LIMIT`], is the
    /// caller's choice.
    ///
    /// # Errors
    /// [`Error::WrongState`] if somebody else has reset the device since it was asked, or as for `begin`.
    pub fn poll(&mut self) -> Option<Result<Offer<T>, Error>> {
        let Device { transport, windows, life, .. } = self.device.as_mut()?;
        if windows.life() != *life {
            self.device = None;
            return Some(Err(Error::WrongState));
        }
        // A proof about something else proves nothing here.
        transport.poll_reset(windows).filter(|quiet| quiet.ends(life))?;
        *life = windows.life();
        self.device.take().map(|device| device.take(self.grant))
    }
}

/// Resets the device: what it was told of in its present life, and in those before, is its no more.
fn reset<T: Transport>(
    transport: &mut T,
    windows: &DmaWindows,
    limit: Duration,
) -> Result<Quiet, ResetError> {
    let life = windows.life();
    let quiet = transport.reset(windows, limit)?;
    // A proof about something else proves nothing here.
    if quiet.ends(&life) { Ok(quiet) } else { Err(ResetError::WrongDevice) }
}

impl<T: Transport> Offer<T> {
    pub(crate) fn device_type(&self) -> DeviceType {
        self.0.transport.device_type()
    }

    pub(crate) fn device(&self) -> DeviceId {
        self.0.windows.device()
    }

    /// The features that the device offers (bits 0..=63).
    pub fn offered(&self) -> u64 {
        self.0.offered
    }

    /// Reads the configuration field at `offset`. Before the negotiation that is for features which depend on
    /// it (2.5.3).
    pub fn config<V: ConfigField>(&self, offset: usize) -> Result<V, Error> {
        self.0.config(offset)
    }

    /// As [`Device::consistent_config`].
    pub fn consistent_config<V>(&self, read: impl Fn(&Self) -> Result<V, Error>) -> Result<V, Error> {
        self.0.consistent_config(|_| read(self))
    }

    /// Accepts what is offered of `implemented` and has its prerequisites; VERSION_1 and, since there is a
    /// grant, ACCESS_PLATFORM are always implemented.
    ///
    /// # Errors
    /// Any; the device is left asked to reset and marked as failed.
    pub fn negotiate(self, implemented: u64) -> Result<Device<T>, Error> {
        let Self(mut device) = self;
        let implemented = implemented & features::POSSIBLE | features::VERSION_1 | features::ACCESS_PLATFORM;
        let features = features::select(device.offered, implemented);
        if features & features::VERSION_1 == 0 {
            return Err(missing(features::VERSION_1));
        }
        device.transport.set_driver_features(features);
        device.advance(status::FEATURES_OK).map_err(|error| match error {
            Error::StatusRefused(_) => Error::FeaturesRefused,
            other => other,
        })?;
        device.features = features;
        Ok(device)
    }
}

impl<T: Transport> Device<T> {
    /// The features that the device offers (bits 0..=63).
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The features in use.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The windows through which the device sees memory.
    pub fn windows(&self) -> &DmaWindows {
        &self.windows
    }

    /// Sets queue `index` up, with at least `least` descriptors. `context` makes what its chains have in
    /// common.
    ///
    /// # Errors
    /// [`Error::WrongState`] after [`driver_ok`](Self::driver_ok) or [`shut_down`](Self::shut_down), or any
    /// other.
    pub fn queue<B: Buffers>(
        &mut self,
        index: u16,
        options: &QueueOptions,
        least: u16,
        context: impl FnOnce(&QueueShape) -> Result<B::Context, Error>,
    ) -> Result<Queue<B, T::Notifier>, Error> {
        self.expect(status::FEATURES_OK)?;
        let limit = self.transport.queue_max_size(index).min(options.size).min(MAX_QUEUE_SIZE);
        let packed = self.features & features::RING_PACKED != 0;
        let power = || 1_u16.checked_shl(limit.checked_ilog2().unwrap_or(0)).unwrap_or(0);
        let size = if packed { limit } else { power() };
        if limit == 0 || size < least {
            return Err(Error::QueueUnavailable(index));
        }
        let queue = NewQueue::new(&self.windows, size, options, self.features)?;
        let context = context(&queue.shape())?;
        let setup = queue.setup(index)?;
        // If somebody else has ended the device's life it is not the driver's.
        let life = setup.addresses.life();
        let notifier = self.transport.set_up_queue(&self.windows, &setup)?;
        Ok(Queue::new(queue, life, index, notifier, context)?)
    }

    /// Resets a queue of this device in which nothing is in flight, and sets it up again as if new. That may
    /// take [`RESET_LIMIT`].
    ///
    /// # Errors
    /// As for [`begin_reset_queue`](Self::begin_reset_queue): then nothing was done, but
    /// [`Error::Timeout`] or any other of [`poll_reset_queue`](Self::poll_reset_queue): then the queue is
    /// broken.
    pub fn reset_queue<B: Buffers>(&mut self, queue: &mut Queue<B, T::Notifier>) -> Result<(), Error> {
        self.begin_reset_queue(queue)?;
        let windows = self.windows.clone();
        let done = windows.wait(RESET_LIMIT, || self.poll_reset_queue(queue));
        done.unwrap_or_else(|| {
            queue.break_off();
            Err(Error::Timeout)
        })
    }

    /// Asks for a reset of a queue of this device in which nothing is in flight, and does not wait. Until
    /// [`poll_reset_queue`](Self::poll_reset_queue) says that it is done the queue takes nothing.
    ///
    /// # Errors
    /// [`Error::WrongState`] before [`driver_ok`](Self::driver_ok) and after [`shut_down`](Self::shut_down),
    /// [`Error::MissingFeature`] without [`RING_RESET`](features::RING_RESET), [`Error::Busy`] if something
    /// is in flight or a reset is under way, [`QueueError::Broken`] if the queue is broken,
    /// [`DmaError::WrongLife`] if it is a queue of another device or of an earlier life of this one: then
    /// nothing was done. After any other the queue is broken.
    pub fn begin_reset_queue<B: Buffers>(&mut self, queue: &mut Queue<B, T::Notifier>) -> Result<(), Error> {
        if self.features & features::RING_RESET == 0 {
            self.expect(status::DRIVER_OK)?;
            return Err(missing(features::RING_RESET));
        }
        self.expect_queue(queue)?;
        if queue.in_flight() != 0 || queue.is_resetting() {
            return Err(Error::Busy);
        }
        queue.begin_reset();
        self.transport.begin_reset_queue(queue.index()).inspect_err(|_| queue.break_off())
    }

    /// Sets the queue up again if the device has reset it since it was asked, which may take for example
    /// [`RESET_LIMIT`]. The queue of a device that never does is of use no more.
    ///
    /// # Errors
    /// [`Error::WrongState`] if nobody asked or the device was reset or shut down since,
    /// [`DmaError::WrongLife`] if it is a queue of another device or life: then nothing was done.
    /// After any other the queue is broken.
    pub fn poll_reset_queue<B: Buffers>(
        &mut self,
        queue: &mut Queue<B, T::Notifier>,
    ) -> Option<Result<(), Error>> {
        if let Err(error) = self.expect_queue(queue) {
            return Some(Err(error));
        }
        if !queue.is_resetting() {
            return Some(Err(Error::WrongState));
        }
        let Self { transport, windows, .. } = self;
        match transport.poll_reset_queue(queue.index()) {
            Ok(false) => None,
            Ok(true) => Some(queue.restart(|setup| transport.set_up_queue(windows, setup))),
            Err(error) => {
                queue.break_off();
                Some(Err(error))
            }
        }
    }

    /// Whether it is a queue of the device in this life, in which the device was started.
    fn expect_queue<B: Buffers>(&self, queue: &Queue<B, T::Notifier>) -> Result<(), Error> {
        self.expect(status::DRIVER_OK)?;
        if *queue.life() != self.life {
            return Err(DmaError::WrongLife.into());
        }
        if queue.is_broken() { Err(QueueError::Broken.into()) } else { Ok(()) }
    }

    /// Tells the device to start.
    ///
    /// # Errors
    /// [`Error::WrongState`] if it was told before, or shut down.
    pub fn driver_ok(&mut self) -> Result<DriverOk, Error> {
        self.expect(status::FEATURES_OK)?;
        self.advance(status::DRIVER_OK)?;
        Ok(DriverOk(self.life.clone()))
    }

    /// Whether `bit`, FEATURES_OK or DRIVER_OK, is what the driver set last, and nobody has reset the device
    /// since: where a transport is shared it would be another driver's device by now.
    fn expect(&self, bit: u8) -> Result<(), Error> {
        const BOTH: u8 = status::FEATURES_OK | status::DRIVER_OK;
        let expected = if bit == status::DRIVER_OK { BOTH } else { bit };
        let in_state = self.status & BOTH == expected && self.life == self.windows.life();
        if in_state { Ok(()) } else { Err(Error::WrongState) }
    }

    /// Whether the device is still there and in order. An MMIO read: after a configuration interrupt or when
    /// something is overdue, not for every request.
    pub fn check(&self) -> Result<(), Error> {
        match self.transport.status() {
            status::GONE => Err(Error::Gone),
            now if now & status::NEEDS_RESET != 0 => Err(Error::NeedsReset),
            now if now & self.status != self.status => Err(Error::StatusRefused(self.status & !now)),
            _ => Ok(()),
        }
    }

    /// Reads the configuration field at `offset`; a single access cannot be torn.
    pub fn config<V: ConfigField>(&self, offset: usize) -> Result<V, Error> {
        self.transport.read_config(offset)
    }

    /// Reads several fields as they were at one moment (2.5.3): `read` runs again if the configuration
    /// changed.
    pub fn consistent_config<V>(&self, read: impl Fn(&Self) -> Result<V, Error>) -> Result<V, Error> {
        for _ in 0..CONFIG_ATTEMPTS {
            let before = self.transport.config_generation();
            let value = read(self)?;
            if self.transport.config_generation() == before {
                return Ok(value);
            }
        }
        Err(Error::ConfigUnstable)
    }

    /// Reads a 64-bit field in two halves.
    pub fn config_u64(&self, offset: usize) -> Result<u64, Error> {
        self.consistent_config(|device| {
            let low: u32 = device.config(offset)?;
            let high: u32 = device.config(offset.saturating_add(4))?;
            Ok(u64::from(high) << 32 | u64::from(low))
        })
    }

    /// Resets the device. On success nothing that it was given is in its hands any more. In any case the
    /// driver is done with it.
    ///
    /// # Errors
    /// As for [`Transport::reset`]: then its memory stays in quarantine. It can be tried again.
    pub fn shut_down(&mut self) -> Result<Quiet, ResetError> {
        self.end(RESET_LIMIT)
    }

    /// Asks the device to reset for good, and does not wait: [`poll_shut_down`](Self::poll_shut_down) says
    /// when it has. Dropping the driver after that does not wait either.
    ///
    /// # Errors
    /// As for [`shut_down`](Self::shut_down).
    pub fn begin_shut_down(&mut self) -> Result<(), ResetError> {
        self.status = 0;
        self.transport.begin_reset(&self.windows).inspect_err(|_| self.transport.stop())
    }

    /// Whether the device has reset since it was asked; how long that may take, for example [`RESET_LIMIT`],
    /// is the caller's choice.
    pub fn poll_shut_down(&mut self) -> Option<Quiet> {
        if self.status != 0 {
            return None;
        }
        let life = self.windows.life();
        let quiet = self.transport.poll_reset(&self.windows)?;
        self.transport.stop();
        // A proof about something else proves nothing here.
        quiet.ends(&life).then_some(quiet)
    }

    /// The same for a driver that is dropped: what did not reset when it was shut down is not waited for
    /// again.
    pub(crate) fn shut_down_at_last(&mut self) -> Result<Quiet, ResetError> {
        let tried = self.status == 0 && self.life == self.windows.life();
        self.end(if tried { Duration::ZERO } else { RESET_LIMIT })
    }

    fn end(&mut self, limit: Duration) -> Result<Quiet, ResetError> {
        // An unplugged device will not answer however long one waits.
        let gone = self.transport.status() == status::GONE;
        self.status = 0;
        let result = reset(&mut self.transport, &self.windows, if gone { Duration::ZERO } else { limit });
        self.transport.stop();
        result
    }

    /// Sets one more status bit and reads it back.
    fn advance(&mut self, bit: u8) -> Result<(), Error> {
        let before = self.status;
        self.status |= bit;
        self.transport.set_status(self.status);
        // Not 0: the device is still to be reset, and marked as failed.
        self.check().inspect_err(|_| self.status = before.max(status::ACKNOWLEDGE))
    }
}

impl<T: Transport> Drop for Device<T> {
    fn drop(&mut self) {
        let failed = self.status & status::DRIVER_OK == 0;
        if self.status != 0 {
            // Without proof the memory stays in quarantine: nothing more can be done.
            let _ = self.end(if failed { IDLE_RESET_LIMIT } else { RESET_LIMIT });
            if failed {
                self.transport.set_status(status::FAILED);
            }
        }
    }
}
