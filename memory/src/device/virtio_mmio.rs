//! The registers of a virtio device that is on no bus that can be walked (virtio 1.4, 4.2): version 2.

use core::fmt;

use super::control::{Alone, ControlRegisters, DeviceControl, SetQueueError};
use super::{DmaGrant, MmioError, MmioRegion, Register};
use crate::{DeviceId, DmaError, Platform};

/// Offsets of the registers (4.2.2): 32 bits each.
mod at {
    pub const MAGIC_VALUE: usize = 0x000;
    pub const VERSION: usize = 0x004;
    pub const DEVICE_ID: usize = 0x008;
    pub const DEVICE_FEATURES: usize = 0x010;
    pub const DEVICE_FEATURES_SEL: usize = 0x014;
    pub const DRIVER_FEATURES: usize = 0x020;
    pub const DRIVER_FEATURES_SEL: usize = 0x024;
    pub const QUEUE_SEL: usize = 0x030;
    pub const QUEUE_NUM_MAX: usize = 0x034;
    pub const QUEUE_NUM: usize = 0x038;
    pub const QUEUE_READY: usize = 0x044;
    pub const QUEUE_NOTIFY: usize = 0x050;
    pub const INTERRUPT_STATUS: usize = 0x060;
    pub const INTERRUPT_ACK: usize = 0x064;
    pub const STATUS: usize = 0x070;
    pub const QUEUE_DESC: usize = 0x080;
    pub const QUEUE_DRIVER: usize = 0x090;
    pub const QUEUE_DEVICE: usize = 0x0a0;
    pub const QUEUE_RESET: usize = 0x0c0;
    pub const CONFIG_GENERATION: usize = 0x0fc;
    /// From here on the device configuration.
    pub const CONFIG: usize = 0x100;
}

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const LEGACY: u32 = 1;

/// Why registers cannot be used. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtioMmioError {
    /// They are not those of a virtio device, or of a version that is not known.
    Unknown,
    /// They are those of a place where no device is: nothing that a person need be told (4.2.2.2).
    Empty,
    /// The device has only the legacy interface (4.2.4).
    Legacy,
    /// There are fewer than the specification knows.
    Mmio(MmioError),
}

crate::error::messages! { VirtioMmioError {
    Unknown => "not the registers of a virtio device",
    Empty => "no device is there",
    Legacy => "legacy interface only",
    Mmio(error: MmioError) => "fewer registers than a virtio device has: {error}",
} }

/// A virtio device behind registers in memory, version 2 (4.2).
/// Its methods are those of [`DeviceControl`].
///
/// ```
/// use ringfence_memory::host::HostPlatform;
/// use ringfence_memory::{DeviceId, MmioRegion, PhysAddr, VirtioMmio, VirtioMmioError};
///
/// let platform: &'static HostPlatform = Box::leak(Box::new(HostPlatform::new()));
/// let start = 0xfeb0_0e00;
/// let device = platform.add_registers(start, 512);
/// let registers = MmioRegion::map(platform, None, PhysAddr::new(start).unwrap(), 512)?;
/// // SAFETY: the registers are this device's, which has no other name.
/// let found = unsafe { VirtioMmio::new(platform, DeviceId::off_bus(0), &registers) };
/// assert_eq!(found.unwrap_err(), VirtioMmioError::Unknown, "there is nothing but zeros");
/// # Ok::<(), ringfence_memory::PlatformError>(())
/// ```
pub type VirtioMmio = DeviceControl<MmioRegisters>;

/// Its registers.
pub struct MmioRegisters {
    device: DeviceId,
    registers: MmioRegion,
    config: MmioRegion,
    device_type: u32,
}

impl DeviceControl<MmioRegisters> {
    /// The device with these registers, which goes by `device`, as [`DeviceId::off_bus`] makes it. Several
    /// devices may have theirs in one page: then the regions are parts of one.
    ///
    /// Nothing is written. 4.2.3.1.1 says in which order they are read.
    ///
    /// # Errors
    /// Any: the device was left alone.
    ///
    /// # Safety
    /// If it is a virtio device that is there then nobody else calls it, or any other, `device` on this
    /// platform; and as long as the value or a [`MmioNotifier`] of it exists nobody else writes to the
    /// registers.
    pub unsafe fn new(
        platform: &'static dyn Platform,
        device: DeviceId,
        registers: &MmioRegion,
    ) -> Result<Self, VirtioMmioError> {
        let config_len = registers.len().checked_sub(at::CONFIG).ok_or(MmioError::OutOfBounds)?;
        let config = registers.part(at::CONFIG, config_len)?;
        let registers = registers.part(0, at::CONFIG)?;
        // The others follow, as there is none that is larger.
        registers.register::<u32>(at::MAGIC_VALUE)?;
        let mut found = MmioRegisters { device, registers, config, device_type: 0 };
        match (found.read(at::MAGIC_VALUE), found.read(at::VERSION)) {
            (MAGIC, VERSION) => {}
            (MAGIC, LEGACY) if found.read(at::DEVICE_ID) == 0 => return Err(VirtioMmioError::Empty),
            (MAGIC, LEGACY) => return Err(VirtioMmioError::Legacy),
            _ => return Err(VirtioMmioError::Unknown),
        }
        found.device_type = found.read(at::DEVICE_ID);
        if found.device_type == 0 { Err(VirtioMmioError::Empty) } else { Ok(Self::with(found, platform)) }
    }

    /// The name of the device.
    pub fn device(&self) -> DeviceId {
        self.registers.device
    }

    /// The kind of the device (5).
    pub fn device_type(&self) -> u32 {
        self.registers.device_type
    }

    /// Lets the device be told of queues until its next reset was proved: there is no bus that could keep it
    /// from memory.
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] if the grant is for another, or for a model.
    pub fn grant(&self, grant: &DmaGrant) -> Result<(), DmaError> {
        if !grant.is_for(self.registers.device) {
            return Err(DmaError::WrongDevice);
        }
        self.set_granted(true);
        Ok(())
    }

    /// From here on the device is told of no queue. What it was told already it may use until it is reset.
    pub fn revoke(&self) {
        self.set_granted(false);
    }

    /// The largest size that queue `index` can have; 0 if there is no such queue.
    pub fn queue_max_size(&self, index: u16) -> u32 {
        let _alone = self.alone();
        self.registers.select(index);
        self.registers.read(at::QUEUE_NUM_MAX)
    }

    /// Asks the device to reset queue `index`, which [`set_queue`](Self::set_queue) enables again then. That
    /// proves nothing about buffers.
    pub fn reset_queue(&self, index: u16) {
        let _alone = self.alone();
        self.registers.select(index);
        // SAFETY: the device uses less memory than before.
        unsafe { self.registers.write(at::QUEUE_RESET, 1) }
    }

    /// Whether queue `index` has reset since it was asked, and is not in use.
    pub fn is_queue_reset(&self, index: u16) -> bool {
        let _alone = self.alone();
        self.registers.select(index);
        self.registers.read(at::QUEUE_RESET) == 0 && self.registers.read(at::QUEUE_READY) == 0
    }

    /// Changes whenever the device configuration does.
    pub fn config_generation(&self) -> u32 {
        self.registers.read(at::CONFIG_GENERATION)
    }

    /// The device configuration.
    pub fn config(&self) -> &MmioRegion {
        &self.registers.config
    }

    /// What notifies queue `index`; `with_data` if NOTIFICATION_DATA was accepted.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn notifier(&self, index: u16, with_data: bool) -> Result<MmioNotifier, MmioError> {
        let register = self.registers.registers.register(at::QUEUE_NOTIFY)?;
        let position = if with_data { 0xffff_0000 } else { 0 };
        Ok(MmioNotifier { register, queue: index.into(), position })
    }

    /// What an interrupt handler acknowledges the device's interrupts with.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn interrupts(&self) -> Result<MmioInterrupts, MmioError> {
        let register = |offset| self.registers.registers.register(offset);
        Ok(MmioInterrupts { status: register(at::INTERRUPT_STATUS)?, ack: register(at::INTERRUPT_ACK)? })
    }
}

impl MmioRegisters {
    /// Of a register of this file's, which are all there; what is not would read as if nobody answered.
    fn read(&self, offset: usize) -> u32 {
        self.registers.read(offset).unwrap_or(u32::MAX)
    }

    /// # Safety
    /// As for [`MmioRegion::write`].
    unsafe fn write(&self, offset: usize, value: u32) {
        // SAFETY: this function's contract. It is a register of this file's, and so is there.
        let _there = unsafe { self.registers.write(offset, value) };
    }

    fn select(&self, index: u16) {
        // SAFETY: a selector.
        unsafe { self.write(at::QUEUE_SEL, index.into()) }
    }

    fn is_there(&self) -> bool {
        self.read(at::MAGIC_VALUE) == MAGIC && self.read(at::VERSION) == VERSION
    }
}

impl ControlRegisters for MmioRegisters {
    const NEEDS_GRANT: bool = true;

    fn device(&self) -> DeviceId {
        self.device
    }

    /// There is nothing that makes it deaf.
    fn alone(&self) -> Alone {
        Alone(None)
    }

    fn while_there(&self, is_so: impl FnOnce() -> bool) -> bool {
        self.is_there() && is_so() && self.is_there()
    }

    /// There is no bus: it is told of nothing without a new grant.
    fn leave_bus(&self) {}

    /// Bits above the 8 that there are read as if nobody answered.
    fn status(&self) -> u8 {
        u8::try_from(self.read(at::STATUS)).unwrap_or(u8::MAX)
    }

    unsafe fn write_status(&self, status: u8) {
        // SAFETY: this function's contract.
        unsafe { self.write(at::STATUS, status.into()) }
    }

    fn device_features(&self, half: u32) -> u32 {
        // SAFETY: a selector.
        unsafe { self.write(at::DEVICE_FEATURES_SEL, half) };
        self.read(at::DEVICE_FEATURES)
    }

    unsafe fn write_driver_features(&self, half: u32, bits: u32) {
        // SAFETY: a selector.
        unsafe { self.write(at::DRIVER_FEATURES_SEL, half) };
        // SAFETY: this function's contract.
        unsafe { self.write(at::DRIVER_FEATURES, bits) }
    }

    /// In the order of 4.2.3.2.
    unsafe fn write_queue(&self, index: u16, size: u16, addresses: [u64; 3]) -> Result<(), SetQueueError> {
        self.select(index);
        let (in_use, max) = (self.read(at::QUEUE_READY) != 0, self.read(at::QUEUE_NUM_MAX));
        if in_use || max == 0 {
            return Err(SetQueueError::Unavailable);
        }
        if u32::from(size) > max {
            return Err(SetQueueError::Refused);
        }
        // SAFETY: this function's contract.
        unsafe { self.write(at::QUEUE_NUM, size.into()) };
        for (offset, address) in
            [at::QUEUE_DESC, at::QUEUE_DRIVER, at::QUEUE_DEVICE].into_iter().zip(addresses)
        {
            // SAFETY: this function's contract.
            unsafe { self.write(offset, address as u32) };
            // SAFETY: the same.
            unsafe { self.write(offset + 4, (address >> 32) as u32) };
        }
        // SAFETY: the device knows where the queue is, and how large.
        unsafe { self.write(at::QUEUE_READY, 1) };
        if self.read(at::QUEUE_READY) == 1 { Ok(()) } else { Err(SetQueueError::Refused) }
    }
}

impl fmt::Debug for MmioRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtioMmio({:?}, type {})", self.device, self.device_type)
    }
}

/// Notifies one queue (4.2.3.3).
#[derive(Debug)]
pub struct MmioNotifier {
    register: Register<u32>,
    queue: u32,
    /// What is written of the position, in the upper half.
    position: u32,
}

impl MmioNotifier {
    /// One register write: the queue's number and, with NOTIFICATION_DATA, `position`. Any context.
    #[inline]
    pub fn notify(&self, position: u16) {
        // SAFETY: a number and a position, no address.
        unsafe { self.register.write(self.queue | u32::from(position) << 16 & self.position) }
    }
}

/// What an interrupt was about (4.2.3.4). Any context.
#[derive(Clone, Debug)]
pub struct MmioInterrupts {
    status: Register<u32>,
    ack: Register<u32>,
}

impl MmioInterrupts {
    /// Used buffers.
    pub const QUEUE: u32 = 1;
    /// A change of the configuration or the status.
    pub const CONFIG: u32 = 2;

    /// Which of [`QUEUE`](Self::QUEUE) and [`CONFIG`](Self::CONFIG) there were since the last call; the line
    /// is released. What else the device says is ignored (4.2.2.2).
    pub fn acknowledge(&self) -> u32 {
        let events = self.status.read() & (Self::QUEUE | Self::CONFIG);
        // SAFETY: bits that say what was seen.
        unsafe { self.ack.write(events) }
        events
    }
}
