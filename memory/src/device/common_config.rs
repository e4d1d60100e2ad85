//! The common configuration of a virtio device on PCI (virtio 1.4, 4.1.4.3).

use core::fmt;

use super::control::{Alone, ControlRegisters, DeviceControl, SetQueueError};
use super::{ConfigSpace, MmioError, MmioRegion, Register};
use crate::{AtomicAccess, DeviceId, Platform};

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

/// The common configuration structure (4.1.4.3). Its methods are those of [`DeviceControl`].
pub type CommonConfig = DeviceControl<CommonRegisters>;

/// Its registers.
pub struct CommonRegisters {
    registers: MmioRegion,
    status: Register<u8>,
    config: ConfigSpace,
}

impl DeviceControl<CommonRegisters> {
    pub(super) fn new(
        registers: MmioRegion,
        config: ConfigSpace,
        platform: &'static dyn Platform,
    ) -> Result<Self, MmioError> {
        let status = registers.register(common::DEVICE_STATUS)?;
        Ok(Self::with(CommonRegisters { registers, status, config }, platform))
    }

    /// Reads the register at `offset`: one of [`common`] that nothing selects.
    ///
    /// # Errors
    /// If it is not in the structure, or not aligned.
    pub fn read<T: AtomicAccess>(&self, offset: usize) -> Result<T, MmioError> {
        self.registers.registers.read(offset)
    }

    /// Sets the vector of configuration changes, and reads it back.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn set_config_vector(&self, vector: u16) -> Result<u16, MmioError> {
        let (_alone, registers) = (self.alone(), &self.registers.registers);
        // SAFETY: a vector names a message in the table.
        unsafe { registers.write(common::CONFIG_MSIX_VECTOR, vector) }?;
        registers.read(common::CONFIG_MSIX_VECTOR)
    }

    /// Reads the register at `offset` of queue `index`.
    ///
    /// # Errors
    /// If it is not in the structure, or not aligned. What there is of a queue that does not exist is the
    /// device's choice.
    pub fn read_queue<T: AtomicAccess>(&self, index: u16, offset: usize) -> Result<T, MmioError> {
        let _alone = self.alone();
        self.registers.select(index)?;
        self.registers.registers.read(offset)
    }

    /// Sets the vector of queue `index`, and reads it back.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn set_queue_vector(&self, index: u16, vector: u16) -> Result<u16, MmioError> {
        let (_alone, registers) = (self.alone(), &self.registers.registers);
        self.registers.select(index)?;
        // SAFETY: a vector names a message in the table.
        unsafe { registers.write(common::QUEUE_MSIX_VECTOR, vector) }?;
        registers.read(common::QUEUE_MSIX_VECTOR)
    }

    /// Asks the device to reset queue `index` (4.1.4.3.1): it is disabled then, and
    /// [`set_queue`](Self::set_queue) enables it again. That proves nothing about buffers.
    ///
    /// # Errors
    /// If the structure is too short for it.
    pub fn reset_queue(&self, index: u16) -> Result<(), MmioError> {
        let _alone = self.alone();
        self.registers.select(index)?;
        // SAFETY: the device uses less memory than before.
        unsafe { self.registers.registers.write(common::QUEUE_RESET, 1_u16) }
    }
}

impl CommonRegisters {
    fn select(&self, index: u16) -> Result<(), MmioError> {
        // SAFETY: a selector.
        unsafe { self.registers.write(common::QUEUE_SELECT, index) }
    }

    /// Selects 32 bits of features, and has `access` read or write them. Everything is in the structure, so
    /// nothing can fail; no features would be a safe answer.
    fn features(
        &self,
        select: usize,
        half: u32,
        access: impl FnOnce(&MmioRegion) -> Result<u32, MmioError>,
    ) -> u32 {
        // SAFETY: a selector.
        let selected = unsafe { self.registers.write(select, half) };
        selected.and_then(|()| access(&self.registers)).unwrap_or(0)
    }

    /// # Safety
    /// As for [`ControlRegisters::write_queue`].
    unsafe fn try_write_queue(
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
        // SAFETY: this function's contract.
        unsafe { registers.write(common::QUEUE_SIZE, size) }?;
        if registers.read::<u16>(common::QUEUE_SIZE)? != size {
            return Ok(Err(SetQueueError::Refused));
        }
        for (offset, address) in (common::QUEUE_DESC..).step_by(8).zip(addresses) {
            // Two halves of 32 bits, the lower one first (4.1.3.1).
            for (offset, half) in [(offset, address as u32), (offset + 4, (address >> 32) as u32)] {
                // SAFETY: this function's contract.
                unsafe { registers.write(offset, half) }?;
            }
        }
        // SAFETY: the device knows where the queue is, and how large.
        unsafe { registers.write(common::QUEUE_ENABLE, 1_u16) }?;
        let enabled = registers.read::<u16>(common::QUEUE_ENABLE)? == 1;
        Ok(if enabled { Ok(()) } else { Err(SetQueueError::Refused) })
    }
}

impl ControlRegisters for CommonRegisters {
    /// The bus-master bit has it.
    const NEEDS_GRANT: bool = false;

    fn device(&self) -> DeviceId {
        self.config.address().id()
    }

    /// Nobody sizes the function's BARs.
    fn alone(&self) -> Alone {
        Alone(Some(self.config.alone()))
    }

    fn while_there(&self, is_so: impl FnOnce() -> bool) -> bool {
        self.config.while_decoding(is_so)
    }

    fn leave_bus(&self) {
        self.config.disable_bus_master();
    }

    fn status(&self) -> u8 {
        self.status.read()
    }

    unsafe fn write_status(&self, status: u8) {
        // SAFETY: this function's contract.
        unsafe { self.status.write(status) }
    }

    fn device_features(&self, half: u32) -> u32 {
        self.features(common::DEVICE_FEATURE_SELECT, half, |registers| registers.read(common::DEVICE_FEATURE))
    }

    unsafe fn write_driver_features(&self, half: u32, bits: u32) {
        self.features(common::DRIVER_FEATURE_SELECT, half, |registers| {
            // SAFETY: this function's contract.
            unsafe { registers.write(common::DRIVER_FEATURE, bits) }.map(|()| 0)
        });
    }

    unsafe fn write_queue(&self, index: u16, size: u16, addresses: [u64; 3]) -> Result<(), SetQueueError> {
        // Everything is in the structure, which is long enough: only the device can be wrong.
        // SAFETY: this function's contract.
        unsafe { self.try_write_queue(index, size, addresses) }.unwrap_or(Err(SetQueueError::Refused))
    }
}

impl fmt::Debug for CommonRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommonConfig({:?})", self.config)
    }
}
