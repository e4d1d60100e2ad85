//! The common configuration of a virtio device on PCI (virtio 1.4, 4.1.4.3): through it the device learns
//! where its queues are, and by its status it is known to have forgotten them.

use core::fmt;
use core::time::Duration;

use super::{ConfigSpace, MmioError, MmioRegion, Register};
use crate::lock::{Guard, Level, Lock};
use crate::platform::wait;
use crate::{AtomicAccess, DmaError, DmaWindows, Life, Platform, QueueAddresses, Quiet, ResetError};

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

/// Offsets in the common configuration structure (4.1.4.3).
#[expect(missing_docs, reason = "the specification's names")]
pub mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const CONFIG_MSIX_VECTOR: usize = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const DEVICE_STATUS: usize = 0x14;
    pub const CONFIG_GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
    /// Up to here every version of the structure has it.
    pub const LEN: usize = 0x38;
    pub const QUEUE_RESET: usize = 0x3a;
    /// Up to here the specification knows it (1.4).
    pub const KNOWN_LEN: usize = 0x40;
}

/// The common configuration structure (4.1.4.3).
pub struct CommonConfig {
    registers: MmioRegion,
    status: Register<u8>,
    config: ConfigSpace,
    platform: &'static dyn Platform,
    /// What the device was told since its last reset. Held while a register is selected and accessed.
    told: Lock<Told>,
}

#[derive(Clone, Copy, Default)]
struct Told {
    /// Whether nobody else told it anything: its last reset was proved, and none was asked for since.
    all: bool,
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
    /// It is a ring of the other format than was negotiated, or nothing was negotiated yet.
    WrongFormat,
    /// There is no such queue, or it is in use.
    Unavailable,
    /// A register did not keep what was written.
    Refused,
}

crate::error::messages! { SetQueueError {
    Dma(error: DmaError) => "{error}",
    WrongFormat => "not the format that was negotiated",
    Unavailable => "no such queue, or in use",
    Refused => "the device does not keep its settings",
} }

impl CommonConfig {
    pub(super) fn new(
        registers: MmioRegion,
        config: ConfigSpace,
        platform: &'static dyn Platform,
    ) -> Result<Self, MmioError> {
        let status = registers.register(common::DEVICE_STATUS)?;
        Ok(Self { registers, status, config, platform, told: Lock::new(Level::Registers, Told::default()) })
    }

    /// While they are held nobody else selects a register, and what is written is not lost because somebody
    /// sizes the function's BARs.
    fn alone(&self) -> (Guard<'_, Told>, Guard<'static, ()>) {
        (self.told.lock(), self.config.alone())
    }

    /// Reads the register at `offset`: one of [`common`] that nothing selects.
    ///
    /// # Errors
    /// If it is not in the structure, or not aligned.
    pub fn read<T: AtomicAccess>(&self, offset: usize) -> Result<T, MmioError> {
        self.registers.read(offset)
    }

    /// The features that the device offers: bits 0 to 63.
    pub fn device_features(&self) -> u64 {
        let _alone = self.alone();
        self.halves(common::DEVICE_FEATURE_SELECT, |_| self.registers.read::<u32>(common::DEVICE_FEATURE))
    }

    /// Tells the device which features the driver accepts. `false` if that is final already.
    #[must_use]
    pub fn set_driver_features(&self, features: u64) -> bool {
        let (mut told, _decodes) = self.alone();
        if told.status & FEATURES_OK != 0 {
            return false;
        }
        told.features = features;
        self.halves(common::DRIVER_FEATURE_SELECT, |half| {
            // SAFETY: features; of those, the one that decides how memory is read is noted.
            unsafe { self.registers.write(common::DRIVER_FEATURE, (features >> (32 * half)) as u32) }
                .map(|()| 0)
        });
        true
    }

    /// Selects both halves of a 64-bit field, one after the other, and joins what `access` says of each.
    fn halves(&self, select: usize, access: impl Fn(u32) -> Result<u32, MmioError>) -> u64 {
        (0..2).fold(0, |all, half| {
            // SAFETY: a selector. It is in the structure, so nothing can fail; no features would be a safe
            // answer.
            let selected = unsafe { self.registers.write(select, half) };
            all | u64::from(selected.and_then(|()| access(half)).unwrap_or(0)) << (32 * half)
        })
    }

    /// Sets the vector of configuration changes, and reads it back.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn set_config_vector(&self, vector: u16) -> Result<u16, MmioError> {
        let _alone = self.alone();
        // SAFETY: a vector names a message in the table.
        unsafe { self.registers.write(common::CONFIG_MSIX_VECTOR, vector) }?;
        self.registers.read(common::CONFIG_MSIX_VECTOR)
    }

    /// Reads the register at `offset` of queue `index`.
    ///
    /// # Errors
    /// If it is not in the structure, or not aligned. What there is of a queue that does not exist is the
    /// device's choice.
    pub fn read_queue<T: AtomicAccess>(&self, index: u16, offset: usize) -> Result<T, MmioError> {
        let _alone = self.alone();
        self.select(index)?;
        self.registers.read(offset)
    }

    /// Sets the vector of queue `index`, and reads it back.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn set_queue_vector(&self, index: u16, vector: u16) -> Result<u16, MmioError> {
        let _alone = self.alone();
        self.select(index)?;
        // SAFETY: a vector names a message in the table.
        unsafe { self.registers.write(common::QUEUE_MSIX_VECTOR, vector) }?;
        self.registers.read(common::QUEUE_MSIX_VECTOR)
    }

    /// Asks the device to reset queue `index` (4.1.4.3.1): it is disabled then, and
    /// [`set_queue`](Self::set_queue) enables it again. That proves nothing about buffers.
    ///
    /// # Errors
    /// If the structure is too short for it.
    pub fn reset_queue(&self, index: u16) -> Result<(), MmioError> {
        let _alone = self.alone();
        self.select(index)?;
        // SAFETY: the device uses less memory than before.
        unsafe { self.registers.write(common::QUEUE_RESET, 1_u16) }
    }

    fn select(&self, index: u16) -> Result<(), MmioError> {
        // SAFETY: a selector.
        unsafe { self.registers.write(common::QUEUE_SELECT, index) }
    }

    /// The device status; all ones if nobody answers.
    pub fn status(&self) -> u8 {
        self.status.read()
    }

    /// Sets `bits` of the device status besides those that were set since the last [`reset`](Self::reset):
    /// none is cleared but by that.
    pub fn set_status(&self, bits: u8) {
        let (mut told, _decodes) = self.alone();
        told.status |= bits & DEFINED;
        if told.status != 0 {
            // SAFETY: what the device may do then it does with queues that `set_queue` told it of, in the
            // format that was final before.
            unsafe { self.status.write(told.status) }
        }
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
            let (told, _decodes) = self.alone();
            let packed = told.features & RING_PACKED != 0;
            if !told.all || told.status & FEATURES_OK == 0 || packed != queue.is_packed() {
                return Err(SetQueueError::WrongFormat);
            }
            // Everything is in the structure, which is long enough: only the device can be wrong.
            self.write_queue(index, queue.size(), addresses).unwrap_or(Err(SetQueueError::Refused))
        })?
    }

    fn write_queue(
        &self,
        index: u16,
        size: u16,
        addresses: [u64; 3],
    ) -> Result<Result<(), SetQueueError>, MmioError> {
        let registers = &self.registers;
        self.select(index)?;
        let exists = index < registers.read(common::NUM_QUEUES)?;
        if !exists || registers.read::<u16>(common::QUEUE_ENABLE)? != 0 {
            return Ok(Err(SetQueueError::Unavailable));
        }
        // SAFETY: the size of the table and of both areas, as `DescriptorTable::queue` saw.
        unsafe { registers.write(common::QUEUE_SIZE, size) }?;
        if registers.read::<u16>(common::QUEUE_SIZE)? != size {
            return Ok(Err(SetQueueError::Refused));
        }
        for (offset, address) in (common::QUEUE_DESC..).step_by(8).zip(addresses) {
            // Two halves of 32 bits, the lower one first (4.1.3.1).
            for (offset, half) in [(offset, address as u32), (offset + 4, (address >> 32) as u32)] {
                // SAFETY: an address in an open window of this device, which the caller has booked.
                unsafe { registers.write(offset, half) }?;
            }
        }
        // SAFETY: the device knows where the queue is, and how large.
        unsafe { registers.write(common::QUEUE_ENABLE, 1_u16) }?;
        let enabled = registers.read::<u16>(common::QUEUE_ENABLE)? == 1;
        Ok(if enabled { Ok(()) } else { Err(SetQueueError::Refused) })
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

    /// The proof that the device has reset (2.4.2, 4.1.4.3.2), if it has: the status, which was something
    /// else when it was asked, reads 0, while the function is there and decodes its memory BARs, and the life
    /// in which it was asked has not ended since. Then it is kept from mastering the bus, its life has ended,
    /// it holds no buffer, and the quarantine is released.
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
        let shows_status = self.config.while_decoding(|| {
            if self.status() == 0 {
                told.status |= ACKNOWLEDGE;
                // SAFETY: as in `set_status`.
                unsafe { self.status.write(told.status) };
            }
            // A register that never reads anything but 0 proves nothing.
            !matches!(self.status(), 0 | GONE)
        });
        shows_status
            && self.config.while_decoding(|| {
                *told = Told::default();
                // SAFETY: a device that is reset does less than before.
                unsafe { self.status.write(0) };
                true
            })
    }

    /// Whether the status is 0. Nobody sets it, or features, while a life ends.
    fn is_reset(&self) -> bool {
        let mut told = self.told.lock();
        let quiet = self.config.while_decoding(|| self.status() == 0);
        if quiet {
            // Whatever it still thinks it has, it can reach it no more when that is given back.
            self.config.disable_bus_master();
            *told = Told { all: true, ..Told::default() };
        }
        quiet
    }

    fn is_of(&self, windows: &DmaWindows) -> bool {
        windows.are_of(self.config.address().id(), self.platform.registry())
    }
}

impl fmt::Debug for CommonConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommonConfig({:?})", self.config)
    }
}
