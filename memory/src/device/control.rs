//! What a virtio device is told through its registers, and what they prove, whatever bus it is on.

use core::fmt;
use core::time::Duration;

use crate::lock::{Guard, Level, Lock};
use crate::platform::wait;
use crate::{DeviceId, DmaError, DmaWindows, Life, Platform, QueueAddresses, Quiet, ResetError};

/// Bits of the status (2.1): the driver shows itself, and the choice of features is final.
const ACKNOWLEDGE: u8 = 1;
const FEATURES_OK: u8 = 8;
/// All that there are. With others a status could read as if nobody answered, and no reset be proved any
/// more.
const DEFINED: u8 = 0b1100_1111;
/// What the status reads as where nobody answers.
const GONE: u8 = 0xff;

/// The feature that decides how the device reads a queue (6).
const RING_PACKED: u64 = 1 << 34;

/// The registers of one device, as one bus has them. Nobody else can implement it: the name is this crate's.
pub trait ControlRegisters: fmt::Debug {
    /// Whether no bus keeps the device from memory, so that it is told of none without a grant.
    const NEEDS_GRANT: bool;

    /// Whose registers they are.
    fn device(&self) -> DeviceId;

    /// While it is held, what is written is heard.
    fn alone(&self) -> Alone;

    /// Whether `is_so`, while the device is known to be what answers.
    fn while_there(&self, is_so: impl FnOnce() -> bool) -> bool;

    /// Keeps a device that was reset from memory, where the bus can.
    fn leave_bus(&self);

    /// The device status; all ones if nobody answers.
    fn status(&self) -> u8;

    /// # Safety
    /// The device must be told of nothing by it but queues that it may use, in the format that is final.
    unsafe fn write_status(&self, status: u8);

    /// 32 bits of what the device offers.
    fn device_features(&self, half: u32) -> u32;

    /// # Safety
    /// Which format the device will read must be noted.
    unsafe fn write_driver_features(&self, half: u32, bits: u32);

    /// Tells the device of a queue, and enables it; nothing was written if there is no such queue, or it is
    /// in use.
    ///
    /// # Safety
    /// A table and areas of that size must be at the addresses, which the device may be told.
    unsafe fn write_queue(&self, index: u16, size: u16, addresses: [u64; 3]) -> Result<(), SetQueueError>;
}

/// Keeps others from making a device deaf, where they could.
pub struct Alone(#[expect(dead_code, reason = "only dropped")] pub(super) Option<Guard<'static, ()>>);

/// The registers through which a virtio device learns where its queues are, and by whose status it is known
/// to have forgotten them: on PCI [`CommonConfig`](crate::CommonConfig), else
/// [`VirtioMmio`](crate::VirtioMmio).
///
/// Most calls take the device's spin lock, as registers that select others are shared: not for interrupt
/// handlers, which have [`Register`](crate::Register), [`MmioInterrupts`](crate::MmioInterrupts) and what
/// notifies. Only [`reset`](Self::reset) waits.
pub struct DeviceControl<R> {
    pub(super) registers: R,
    platform: &'static dyn Platform,
    /// What the device was told since its last reset. Held while a register is selected and accessed.
    told: Lock<Told>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Told {
    /// Whether nobody else told it anything: its last reset was proved, and none was asked for since.
    all: bool,
    /// Whether it may be told of memory, where the bus does not know.
    granted: bool,
    status: u8,
    features: u64,
}

/// A reset that a device was asked for, in the life that is to end.
#[derive(Debug)]
pub struct BegunReset(Life);

/// Why a device was not told of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetQueueError {
    /// They are not addresses that the device may be told.
    Dma(DmaError),
    /// Nobody granted the device access to memory since its last reset.
    NotGranted,
    /// It is a ring of the other format than was negotiated, or nothing was negotiated yet.
    WrongFormat,
    /// There is no such queue, or it is in use.
    Unavailable,
    /// A register did not keep what was written.
    Refused,
}

crate::error::messages! { SetQueueError {
    Dma(error: DmaError) => "{error}",
    NotGranted => "access to memory was not granted",
    WrongFormat => "not the format that was negotiated",
    Unavailable => "no such queue, or in use",
    Refused => "the device does not keep its settings",
} }

impl<R: ControlRegisters> DeviceControl<R> {
    pub(super) fn with(registers: R, platform: &'static dyn Platform) -> Self {
        Self { registers, platform, told: Lock::new(Level::Registers, Told::default()) }
    }

    /// While they are held nobody else selects a register, and what is written is not lost.
    pub(super) fn alone(&self) -> (Guard<'_, Told>, Alone) {
        (self.told.lock(), self.registers.alone())
    }

    /// The features that the device offers: bits 0 to 63.
    pub fn device_features(&self) -> u64 {
        let _alone = self.alone();
        let [low, high] = [0, 1].map(|half| u64::from(self.registers.device_features(half)));
        low | high << 32
    }

    /// Tells the device which features the driver accepts. `false` if that is final already.
    #[must_use]
    pub fn set_driver_features(&self, features: u64) -> bool {
        let (mut told, _alone) = self.alone();
        if told.status & FEATURES_OK != 0 {
            return false;
        }
        told.features = features;
        for half in [0, 1] {
            // SAFETY: features; of those, the one that decides how memory is read is noted.
            unsafe { self.registers.write_driver_features(half, (features >> (32 * half)) as u32) }
        }
        true
    }

    /// The device status; all ones if nobody answers.
    pub fn status(&self) -> u8 {
        self.registers.status()
    }

    /// Sets `bits` of the device status besides those that were set since the last [`reset`](Self::reset):
    /// none is cleared but by that.
    pub fn set_status(&self, bits: u8) {
        let (mut told, _alone) = self.alone();
        told.status |= bits & DEFINED;
        if told.status != 0 {
            // SAFETY: what the device may do then it does with queues that `set_queue` told it of, in the
            // format that was final before.
            unsafe { self.registers.write_status(told.status) }
        }
    }

    /// Notes whether the device may be told of memory until its next reset.
    pub(super) fn set_granted(&self, granted: bool) {
        self.told.lock().granted = granted;
    }

    /// Tells the device of queue `index`, where and how large it is, and enables it. From here on it may
    /// access its memory: what is dropped is quarantined until [`reset`](Self::reset) has succeeded. That is
    /// booked before the addresses are written, and nobody can prove a reset in between.
    ///
    /// The [format](QueueAddresses::is_packed) must be the one that was negotiated since the last
    /// [`reset`](Self::reset), and the negotiation final: FEATURES_OK.
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] if they are not addresses of this device and platform,
    /// [`DmaError::WrongLife`] if one of them, or the table, is older than the device's last reset, or any
    /// other: then the queue is not enabled. Nothing was written, except after [`SetQueueError::Refused`].
    pub fn set_queue(
        &self,
        windows: &DmaWindows,
        index: u16,
        queue: &QueueAddresses<'_>,
    ) -> Result<(), SetQueueError> {
        if !self.is_of(windows) {
            return Err(DmaError::WrongDevice.into());
        }
        windows.tell(queue.addresses, |addresses| {
            let (told, _alone) = self.alone();
            if R::NEEDS_GRANT && !told.granted {
                return Err(SetQueueError::NotGranted);
            }
            let packed = told.features & RING_PACKED != 0;
            if !told.all || told.status & FEATURES_OK == 0 || packed != queue.is_packed() {
                return Err(SetQueueError::WrongFormat);
            }
            // SAFETY: the size of the table and of both areas, as `DescriptorTable::queue` saw, and addresses
            // in open windows of this device, as `tell` saw, which has booked them.
            unsafe { self.registers.write_queue(index, queue.size(), addresses) }
        })?
    }

    /// Resets the device, and proves it, within `limit` by the platform's clock: as
    /// [`begin_reset`](Self::begin_reset), and [`poll_reset`](Self::poll_reset) until then. Not for interrupt
    /// handlers.
    ///
    /// # Errors
    /// See [`ResetError`]: the device's life goes on, whatever its status reads.
    pub fn reset(&self, windows: &DmaWindows, limit: Duration) -> Result<Quiet, ResetError> {
        let begun = self.begin_reset(windows)?;
        let quiet = wait(|| self.platform.now(), limit, || self.poll_reset(windows, &begun));
        quiet.ok_or(ResetError::Timeout)
    }

    /// Asks the device to reset, and does not wait for that. Until it is proved the device is told of no
    /// queue.
    ///
    /// # Errors
    /// [`ResetError::WrongDevice`], or [`ResetError::Timeout`] if it cannot be asked: it shows no status.
    pub fn begin_reset(&self, windows: &DmaWindows) -> Result<BegunReset, ResetError> {
        if !self.is_of(windows) {
            return Err(ResetError::WrongDevice);
        }
        let life = windows.life();
        if !self.ask_for_reset() {
            return Err(ResetError::Timeout);
        }
        windows.leave(&life);
        Ok(BegunReset(life))
    }

    /// The proof that the device has reset (2.4.2), if it has: the status, which was something else when it
    /// was asked, reads 0, while the device is what answers (on PCI: the function is there and decodes its
    /// memory BARs), and the life in which it was asked has not ended since. Then it is kept from mastering
    /// the bus, its life has ended, it holds no buffer, and the quarantine is released.
    pub fn poll_reset(&self, windows: &DmaWindows, begun: &BegunReset) -> Option<Quiet> {
        // A 0 that is not proved may be that of a function whose BARs are being sized: look again.
        if !self.is_of(windows) || windows.life() != begun.0 || self.status() != 0 {
            return None;
        }
        windows.end_life_if(&begun.0, || self.is_reset()).ok()
    }

    /// Writes a status of 0 to a device that was seen to have another, while nothing keeps it from being
    /// heard.
    fn ask_for_reset(&self) -> bool {
        let mut told = self.told.lock();
        let shows_status = self.registers.while_there(|| {
            if self.status() == 0 {
                told.status |= ACKNOWLEDGE;
                // SAFETY: as in `set_status`.
                unsafe { self.registers.write_status(told.status) };
            }
            // A register that never reads anything but 0 proves nothing.
            !matches!(self.status(), 0 | GONE)
        });
        shows_status
            && self.registers.while_there(|| {
                *told = Told::default();
                // SAFETY: a device that is reset does less than before.
                unsafe { self.registers.write_status(0) };
                true
            })
    }

    /// Whether the status is 0. Nobody sets it, or features, while a life ends.
    fn is_reset(&self) -> bool {
        let mut told = self.told.lock();
        let quiet = self.registers.while_there(|| self.status() == 0);
        if quiet {
            // Whatever it still thinks it has, it can reach it no more when that is given back.
            self.registers.leave_bus();
            *told = Told { all: true, ..Told::default() };
        }
        quiet
    }

    fn is_of(&self, windows: &DmaWindows) -> bool {
        windows.are_of(self.registers.device(), self.platform.registry())
    }
}

impl<R: fmt::Debug> fmt::Debug for DeviceControl<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.registers.fmt(f)
    }
}
