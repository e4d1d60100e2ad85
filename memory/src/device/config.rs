//! PCI configuration space, as far as it decides what memory a device may touch: bus mastering, BAR placement and
//! MSI messages go through opaque tokens here; everything else is plain reads and writes.

use core::fmt;

use crate::lock::{Level, Lock};
use crate::{DeviceId, MmioError, MmioRegion};

/// Held while a register is read, changed and written back: else a bit that somebody else cleared would come back.
static READ_MODIFY_WRITE: Lock<()> = Lock::new(Level::Config, ());

/// A PCI function: segment, bus, device (0..=31) and function (0..=7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI segment group.
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    device_function: u8,
}

impl PciAddress {
    /// `None` if `device` exceeds 31 or `function` 7.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self { segment, bus, device_function: device << 3 | function })
        } else {
            None
        }
    }

    /// Device number, 0..=31.
    pub const fn device(self) -> u8 {
        self.device_function >> 3
    }

    /// Function number, 0..=7.
    pub const fn function(self) -> u8 {
        self.device_function & 7
    }

    /// The requester id that names this function to the memory system.
    pub const fn id(self) -> DeviceId {
        DeviceId((self.segment as u32) << 16 | self.requester_id() as u32)
    }

    /// Bus, device and function as PCI packs them.
    pub const fn requester_id(self) -> u16 {
        (self.bus as u16) << 8 | self.device_function as u16
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus, self.device(), self.function())
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A way to reach configuration space: ECAM ([`Ecam`]) or the I/O ports 0xcf8/0xcfc (in the kernel).
///
/// # Safety
/// `read` and `write` must touch nothing but the configuration space of `function`. `offset` is a multiple of 4.
/// Functions and offsets that the mechanism cannot reach read as all ones and ignore writes.
pub unsafe trait ConfigAccess: Sync {
    /// Reads the 32-bit register at byte `offset`.
    fn read(&self, function: PciAddress, offset: u16) -> u32;
    /// Writes the 32-bit register at byte `offset`.
    fn write(&self, function: PciAddress, offset: u16, value: u32);
    /// The last bus that can be reached.
    fn last_bus(&self) -> u8;
}

/// Memory-mapped configuration space (PCI Express base specification, 7.2.2), as the ACPI MCFG table announces it.
#[derive(Debug)]
pub struct Ecam {
    registers: MmioRegion,
    segment: u16,
    first_bus: u8,
    last_bus: u8,
}

impl Ecam {
    /// `registers` is the whole window of `first_bus..=last_bus`: 1 MiB for each bus.
    pub fn new(registers: MmioRegion, segment: u16, first_bus: u8, last_bus: u8) -> Self {
        Self { registers, segment, first_bus, last_bus }
    }

    fn offset(&self, function: PciAddress, offset: u16) -> Option<usize> {
        let bus = function.bus.checked_sub(self.first_bus).filter(|_| function.bus <= self.last_bus)?;
        (function.segment == self.segment && offset < 4096)
            .then_some((bus as usize) << 20 | (function.device_function as usize) << 12 | offset as usize)
    }
}

// SAFETY: `offset` stays within the 4 KiB that ECAM assigns to `function`, and `MmioRegion` checks the bounds.
unsafe impl ConfigAccess for Ecam {
    fn read(&self, function: PciAddress, offset: u16) -> u32 {
        self.offset(function, offset).and_then(|at| self.registers.read(at).ok()).unwrap_or(u32::MAX)
    }

    fn write(&self, function: PciAddress, offset: u16, value: u32) {
        if let Some(at) = self.offset(function, offset) {
            // A window shorter than announced: the write is ignored, as the trait says.
            let _ = self.registers.write(at, value);
        }
    }

    fn last_bus(&self) -> u8 {
        self.last_bus
    }
}

/// Permission for one device to master the bus, that is, to read and write memory on its own.
///
/// It comes from an IOMMU domain that holds the device to its windows, or from a promise made in the kernel.
#[derive(Debug)]
pub struct DmaGrant {
    device: DeviceId,
}

impl DmaGrant {
    /// A grant without an IOMMU.
    ///
    /// # Safety
    /// The caller promises, for the whole system, that `device` accesses only addresses that it was given. A
    /// hypervisor that emulates the device correctly keeps this; a physical device need not.
    pub const unsafe fn without_iommu(device: DeviceId) -> Self {
        Self { device }
    }

    /// The device that the grant is for.
    pub const fn device(&self) -> DeviceId {
        self.device
    }
}

/// An interrupt message: a write that the device performs. Only the kernel can mint one, since the address could
/// as well be that of memory.
#[derive(Clone, Copy, Debug)]
pub struct MsiMessage {
    address: u64,
    data: u32,
}

impl MsiMessage {
    /// # Safety
    /// A device that writes `data` to `address` must cause an interrupt and nothing else.
    pub const unsafe fn new(address: u64, data: u32) -> Self {
        Self { address, data }
    }
}

impl MmioRegion {
    /// Stores `message` in the MSI-X table entry at byte `offset` of this region (PCI 3.0, 6.8.2.6 to 6.8.2.8).
    /// The mask bit is untouched.
    pub fn write_msi_message(&self, offset: usize, message: MsiMessage) -> Result<(), MmioError> {
        let entry = self.part(offset, 12)?;
        entry.write(0, message.address as u32)?;
        entry.write(4, (message.address >> 32) as u32)?;
        entry.write(8, message.data)
    }
}

/// Why a configuration access was refused. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a multiple of the access size, or beyond the end.
    BadOffset,
    /// BARs and the ROM address decide where registers appear in memory: use [`ConfigSpace::bar_size_mask`].
    Protected,
    /// The grant is for another device.
    WrongDevice,
}

const COMMAND: u16 = 0x04;
const COMMAND_IO_MEMORY: u32 = 0b011;
const COMMAND_BUS_MASTER: u32 = 0b100;
const BAR0: u16 = 0x10;
/// Status bits in the upper half of the command register are cleared by writing 1: write them as 0.
const COMMAND_MASK: u32 = 0xffff;

/// The configuration space of one function.
#[derive(Clone, Copy)]
pub struct ConfigSpace {
    access: &'static dyn ConfigAccess,
    address: PciAddress,
}

impl ConfigSpace {
    /// The configuration space of `address`, whether or not there is a function (then it reads all ones).
    pub const fn new(access: &'static dyn ConfigAccess, address: PciAddress) -> Self {
        Self { access, address }
    }

    /// Which function this is.
    pub const fn address(&self) -> PciAddress {
        self.address
    }

    /// Reads the 32-bit register at `offset` (rounded down to a multiple of 4).
    pub fn read_u32(&self, offset: u16) -> u32 {
        self.access.read(self.address, offset & !3)
    }

    /// Reads the 16-bit register at `offset` (rounded down to a multiple of 2).
    pub fn read_u16(&self, offset: u16) -> u16 {
        (self.read_u32(offset) >> ((offset & 2) * 8)) as u16
    }

    /// Reads the byte at `offset`.
    pub fn read_u8(&self, offset: u16) -> u8 {
        (self.read_u32(offset) >> ((offset & 3) * 8)) as u8
    }

    /// Writes the 32-bit register at `offset`. The bus-master bit keeps its value; BARs are refused.
    pub fn write_u32(&self, offset: u16, value: u32) -> Result<(), ConfigError> {
        let _alone = READ_MODIFY_WRITE.lock();
        self.write_alone(offset, value)
    }

    fn write_alone(&self, offset: u16, value: u32) -> Result<(), ConfigError> {
        match offset {
            _ if !offset.is_multiple_of(4) || offset >= 4096 => Err(ConfigError::BadOffset),
            BAR0..0x28 | 0x30 | 0x38 => Err(ConfigError::Protected),
            COMMAND => {
                let keep = self.read_u32(COMMAND) & COMMAND_BUS_MASTER;
                self.access.write(self.address, COMMAND, value & !COMMAND_BUS_MASTER | keep);
                Ok(())
            }
            _ => {
                self.access.write(self.address, offset, value);
                Ok(())
            }
        }
    }

    /// Writes the 16-bit register at `offset` by rewriting the 32 bits around it.
    pub fn write_u16(&self, offset: u16, value: u16) -> Result<(), ConfigError> {
        if !offset.is_multiple_of(2) {
            return Err(ConfigError::BadOffset);
        }
        let (word, shift) = (offset & !3, (offset & 2) * 8);
        let _alone = READ_MODIFY_WRITE.lock();
        // The other half of the command register holds write-1-to-clear bits: leave them alone.
        let old = if word == COMMAND { self.read_u32(word) & COMMAND_MASK } else { self.read_u32(word) };
        self.write_alone(word, old & !(0xffff << shift) | u32::from(value) << shift)
    }

    /// Which bits of BAR `index` (0..=5) can be set, found by writing all ones with decoding off and restoring the
    /// old value (PCI 3.0, 6.2.5.1). The low bits are the BAR's type bits. `None` if there is no such BAR.
    pub fn bar_size_mask(&self, index: u8) -> Option<u32> {
        let offset = BAR0 + 4 * u16::from(index);
        if index > 5 {
            return None;
        }
        let _alone = READ_MODIFY_WRITE.lock();
        let command = self.read_u32(COMMAND) & COMMAND_MASK;
        let old = self.read_u32(offset);
        self.access.write(self.address, COMMAND, command & !COMMAND_IO_MEMORY);
        self.access.write(self.address, offset, u32::MAX);
        let mask = self.read_u32(offset);
        self.access.write(self.address, offset, old);
        self.access.write(self.address, COMMAND, command);
        Some(mask)
    }

    /// Lets the device master the bus.
    pub fn enable_bus_master(&self, grant: &DmaGrant) -> Result<(), ConfigError> {
        if grant.device != self.address.id() {
            return Err(ConfigError::WrongDevice);
        }
        let _alone = READ_MODIFY_WRITE.lock();
        let command = self.read_u32(COMMAND) & COMMAND_MASK;
        self.access.write(self.address, COMMAND, command | COMMAND_BUS_MASTER);
        Ok(())
    }

    /// Stops the device from mastering the bus.
    pub fn disable_bus_master(&self) {
        let _alone = READ_MODIFY_WRITE.lock();
        let command = self.read_u32(COMMAND) & COMMAND_MASK;
        self.access.write(self.address, COMMAND, command & !COMMAND_BUS_MASTER);
    }
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigSpace({})", self.address)
    }
}
