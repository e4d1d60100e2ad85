//! PCI configuration space. It decides what memory a device may touch, and where its registers appear:
//! nothing in it can be written but by the functions here, each for one purpose, which change no more than
//! they say.

use alloc::boxed::Box;
use core::fmt;

use spin::Once;

use super::MmioRegion;
use crate::dma::Side;
use crate::lock::{Guard, Level, Lock};
use crate::{DeviceId, DmaError, DmaWindows, PhysAddr, Platform, PlatformError};

/// Held while a register is read, changed and written back (else a bit that somebody else cleared would come
/// back), while a function does not answer at its BARs, and while that would matter.
static ALONE: Lock<()> = Lock::new(Level::Config, ());

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
        DeviceId((self.segment as u64) << 16 | self.requester_id() as u64)
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

/// A way to reach configuration space: ECAM ([`Ecam`]) or the I/O ports 0xcf8/0xcfc (`ConfigPorts`, on x86).
///
/// # Safety
/// `read` and `write` must touch nothing but the configuration space of `function`, and a read must return
/// what is there. `offset` is a multiple of 4. Functions and offsets that the mechanism cannot reach read as
/// all ones and ignore writes. They may be called by several CPUs at once, with locks of this crate held:
/// they call nothing of it. Not from an interrupt handler.
pub unsafe trait ConfigAccess: Sync {
    /// Reads the 32-bit register at byte `offset`.
    fn read(&self, function: PciAddress, offset: u16) -> u32;
    /// Writes the 32-bit register at byte `offset`.
    ///
    /// # Safety
    /// The caller answers for what the function then does: it may start to access memory, send messages to
    /// any address, or answer elsewhere.
    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32);
    /// The last bus that can be reached.
    fn last_bus(&self) -> u8;
    /// Makes the functions of a bus reachable, where that costs something. Called before anything on it is
    /// read, on any CPU, with no lock held. Not from an interrupt handler.
    fn open_bus(&self, _segment: u16, _bus: u8) {}
}

/// Memory-mapped configuration space (PCI Express base specification, 7.2.2), as the ACPI MCFG table
/// announces it.
///
/// A bus is 1 MiB, which is mapped when the bus is [opened](ConfigAccess::open_bus), as `pci::enumerate` does
/// with each, and stays so if any device answers there. A bus that was not opened, or that the platform would
/// not map (it knows why), reads as all ones: as if it were empty. Opening it again tries again. Two that
/// open the same bus wait for each other, the platform's mapping included; nothing else here takes a lock.
pub struct Ecam {
    platform: &'static dyn Platform,
    start: PhysAddr,
    segment: u16,
    first_bus: u8,
    last_bus: u8,
    /// From the first to the last bus.
    buses: Box<[Once<MmioRegion>]>,
}

/// Bytes of configuration space for each bus.
const BUS_LEN: usize = 1 << 20;

impl Ecam {
    /// The window of `first_bus..=last_bus`, which begins at `start`: 1 MiB for each bus. The first bus is
    /// claimed and mapped at once. 32 bytes of heap for each bus.
    ///
    /// The `platform` must be able to map each bus uncached. If it has an [`MmioClaims`](crate::MmioClaims),
    /// the window lies in its range, and is [offered](crate::MmioClaims::offer) before. `pci::enumerate`
    /// wants a `&'static Ecam`: leak it, or keep it in a static.
    ///
    /// # Safety
    /// It is configuration space of `segment`, as the firmware says, and nothing else.
    ///
    /// # Errors
    /// As for [`Platform::mmio_map`]; [`PlatformError::BadRange`] if there is no bus, or a part of the window
    /// has no address.
    pub unsafe fn new(
        platform: &'static dyn Platform,
        start: PhysAddr,
        segment: u16,
        first_bus: u8,
        last_bus: u8,
    ) -> Result<Self, PlatformError> {
        let last = last_bus.checked_sub(first_bus).ok_or(PlatformError::BadRange)?;
        let buses = (0..=last).map(|_| Once::new()).collect();
        let ecam = Self { platform, start, segment, first_bus, last_bus, buses };
        ecam.address(last).ok_or(PlatformError::BadRange)?;
        if let Some(first) = ecam.buses.first() {
            first.try_call_once(|| ecam.map(0))?;
        }
        Ok(ecam)
    }

    /// Where bus number `index` of the window is.
    fn address(&self, index: u8) -> Option<PhysAddr> {
        self.start.checked_add(u64::from(index) * BUS_LEN as u64)
    }

    fn map(&self, index: u8) -> Result<MmioRegion, PlatformError> {
        let start = self.address(index).ok_or(PlatformError::BadRange)?;
        let registers = MmioRegion::map(self.platform, None, start, BUS_LEN)?;
        registers.register::<u32>(0).map_err(|_| PlatformError::BadRange)?;
        Ok(registers)
    }

    /// The number of `bus` in the window.
    fn index(&self, segment: u16, bus: u8) -> Option<u8> {
        bus.checked_sub(self.first_bus).filter(|_| bus <= self.last_bus && segment == self.segment)
    }

    /// The bus that `function` is on, and where in it the register at `offset` is, which is in its 4 KiB.
    fn place(&self, function: PciAddress, offset: u16) -> Option<(&MmioRegion, usize)> {
        let bus = self.buses.get(usize::from(self.index(function.segment, function.bus)?))?.get()?;
        let in_bus = usize::from(function.device_function) << 12 | usize::from(offset & !3);
        (offset < CONFIG_LEN).then_some((bus, in_bus))
    }
}

// SAFETY: `place` stays within the 4 KiB that ECAM assigns to `function`, as its masks show.
unsafe impl ConfigAccess for Ecam {
    fn read(&self, function: PciAddress, offset: u16) -> u32 {
        self.place(function, offset).and_then(|(bus, at)| bus.read(at).ok()).unwrap_or(u32::MAX)
    }

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        if let Some((bus, at)) = self.place(function, offset) {
            // SAFETY: the caller answers for what the device does. (All of it is there, as `map` saw.)
            let _ = unsafe { bus.write(at, value) };
        }
    }

    fn last_bus(&self) -> u8 {
        self.last_bus
    }

    fn open_bus(&self, segment: u16, bus: u8) {
        let Some(index) = self.index(segment, bus) else { return };
        let somebody = |registers: &MmioRegion| {
            (0..32).any(|device| registers.read::<u32>(device << 15).is_ok_and(|id| id as u16 != NOBODY))
        };
        if let Some(once) = self.buses.get(usize::from(index)) {
            // What is not kept is released.
            let _ = once.try_call_once(|| self.map(index).ok().filter(somebody).ok_or(()));
        }
    }
}

impl fmt::Debug for Ecam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ecam({:04x}:{:02x}..={:02x})", self.segment, self.first_bus, self.last_bus)
    }
}

/// Permission for one device to master the bus, that is, to read and write memory on its own.
///
/// It comes from an IOMMU domain that holds the device to its windows, or from a promise made in the kernel.
///
/// A value and no more: making it takes no lock and changes nothing about the device, dropping it revokes
/// nothing.
#[derive(Debug)]
pub struct DmaGrant {
    device: DeviceId,
    side: Side,
}

impl DmaGrant {
    /// A grant without an IOMMU.
    ///
    /// # Safety
    /// The caller promises, for the whole system, that `device` accesses only addresses that it was given. A
    /// hypervisor that emulates the device correctly keeps this; a physical device need not.
    pub const unsafe fn without_iommu(device: DeviceId) -> Self {
        Self { device, side: Side::Bus }
    }

    /// The grant of a device model, which reaches no memory but through `windows`. No register of a device on
    /// the bus takes it, whatever the model's number.
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] for the windows of a device on the bus.
    pub fn for_model(windows: &DmaWindows) -> Result<Self, DmaError> {
        match windows.side() {
            Side::Model => Ok(Self { device: windows.device(), side: Side::Model }),
            Side::Bus => Err(DmaError::WrongDevice),
        }
    }

    /// Whether it is for `device`, on the bus.
    pub(super) fn is_for(&self, device: DeviceId) -> bool {
        self.device == device && self.side == Side::Bus
    }

    /// The device that the grant is for.
    pub const fn device(&self) -> DeviceId {
        self.device
    }
}

/// An interrupt message: a write that the device performs. Only the kernel can mint one, since the address
/// could as well be that of memory.
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

    pub(super) const fn parts(self) -> [u32; 3] {
        [self.address as u32, (self.address >> 32) as u32, self.data]
    }
}

/// Bytes of a function's configuration space.
const CONFIG_LEN: u16 = 4096;
const VENDOR: u16 = 0x00;
const COMMAND: u16 = 0x04;
const COMMAND_IO_MEMORY: u32 = 0b011;
const COMMAND_MEMORY: u32 = 0b010;
const COMMAND_BUS_MASTER: u32 = 0b100;
const COMMAND_INTX_DISABLE: u32 = 1 << 10;
/// Status bits in the upper half of the command register are cleared by writing 1: write them as 0.
const COMMAND_MASK: u32 = 0xffff;
/// What a vendor id reads as where there is no function.
const NOBODY: u16 = 0xffff;

/// The configuration space of one function.
///
/// Reading takes what the [`ConfigAccess`] takes; everything else takes one lock for all functions, since
/// others must not write in between. Not for interrupt handlers.
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
    #[inline(never)]
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

    /// Lets the function answer at its memory BARs.
    pub fn enable_memory(&self) {
        self.change_command(|command| command | COMMAND_MEMORY);
    }

    /// Lets the function raise its interrupt line, or not.
    pub fn enable_intx(&self, enable: bool) {
        let disable = if enable { 0 } else { COMMAND_INTX_DISABLE };
        self.change_command(|command| command & !COMMAND_INTX_DISABLE | disable);
    }

    /// Lets the device master the bus.
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] if the grant is for another, or for a model: nothing was written.
    pub fn enable_bus_master(&self, grant: &DmaGrant) -> Result<(), DmaError> {
        if !grant.is_for(self.address.id()) {
            return Err(DmaError::WrongDevice);
        }
        self.change_command(|command| command | COMMAND_BUS_MASTER);
        Ok(())
    }

    /// Stops the device from mastering the bus.
    pub fn disable_bus_master(&self) {
        self.change_command(|command| command & !COMMAND_BUS_MASTER);
    }

    fn change_command(&self, change: impl FnOnce(u32) -> u32) {
        self.change(COMMAND, |command| change(command & COMMAND_MASK));
    }

    /// Reads, changes and writes back the register at `offset`, alone.
    pub(super) fn change(&self, offset: u16, change: impl FnOnce(u32) -> u32) {
        let alone = self.alone();
        self.write(&alone, offset, change(self.read_u32(offset)));
    }

    /// While it is held nobody keeps the function from answering at its memory BARs.
    #[inline(never)]
    pub(super) fn alone(&self) -> Guard<'static, ()> {
        ALONE.lock()
    }

    /// Calls `probe`, which may write ones to a register to learn what sticks, while the function answers
    /// nowhere.
    pub(super) fn without_decoding<R>(&self, probe: impl FnOnce(&Guard<'_, ()>) -> R) -> R {
        let alone = self.alone();
        let command = self.read_u32(COMMAND) & COMMAND_MASK;
        self.write(&alone, COMMAND, command & !COMMAND_IO_MEMORY);
        let result = probe(&alone);
        self.write(&alone, COMMAND, command);
        result
    }

    /// Whether `is_so`, while nobody can keep the function from answering at its memory BARs, which it does
    /// before and after.
    pub(super) fn while_decoding(&self, is_so: impl FnOnce() -> bool) -> bool {
        let _alone = self.alone();
        let decodes = || self.read_u16(VENDOR) != NOBODY && self.read_u32(COMMAND) & COMMAND_MEMORY != 0;
        decodes() && is_so() && decodes()
    }

    pub(super) fn write(&self, _alone: &Guard<'_, ()>, offset: u16, value: u32) {
        // SAFETY: this module and its siblings, which alone can call this, write the command register (the
        // bus-master bit by a grant), the control words of MSI-X, and base address registers, which get their
        // old value back before the function answers again.
        unsafe { self.access.write(self.address, offset, value) }
    }
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigSpace({})", self.address)
    }
}
