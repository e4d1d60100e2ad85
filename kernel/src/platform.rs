//! What the kernel gives to drivers: DMA memory, claimed registers, a clock, and access to configuration space.

use alloc::boxed::Box;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::time::Duration;

use ringfence_memory::{
    Backing, ClaimError, ConfigAccess, DeviceId, DmaMemory, DmaRegistry, FrameRange, FrameRequest,
    MappedPages, Mmio, PciAddress, PhysAddr, Platform, PlatformError,
};
use spin::Mutex;
use x86_64::instructions::port::Port;

use crate::{memory, time};

/// The platform of this kernel.
#[derive(Debug)]
pub struct Kernel;

/// The one [`Kernel`].
pub static KERNEL: Kernel = Kernel;

// SAFETY: DMA memory comes from the address space's arena: fresh frames, zeroed, mapped once and lent to one owner; a
// device address is a physical address, since there is no IOMMU. Registers come from ranges that were offered as such
// and are claimed once. The clock is the TSC, which never goes backwards.
unsafe impl Platform for Kernel {
    fn dma_allocate(&self, _: DeviceId, pages: NonZeroUsize) -> Result<DmaMemory, PlatformError> {
        let request = FrameRequest::new(pages.get());
        let memory = memory::space().allocate_dma(request).map_err(|_| PlatformError::OutOfMemory)?;
        let address = memory.physical_address().value();
        // SAFETY: the arena zeroes what it lends, nothing refers to it, and it is contiguous from `address` on.
        Ok(unsafe { DmaMemory::new(Box::new(memory), address) })
    }

    fn mmio_map(&self, start: PhysAddr, len: usize) -> Result<Box<dyn Backing>, PlatformError> {
        let range = FrameRange::from_phys_addr(start, len as u64).map_err(|_| PlatformError::BadRange)?;
        let pages = memory::space().claim_mmio(range).map_err(|error| match error {
            ClaimError::AlreadyClaimed => PlatformError::Claimed,
            ClaimError::Map(_) => PlatformError::OutOfMemory,
            _ => PlatformError::BadRange,
        })?;
        Ok(Box::new(Registers { pages, offset: start.frame_offset(), len }))
    }

    fn now(&self) -> Duration {
        time::now()
    }

    fn registry(&self) -> &DmaRegistry {
        memory::space().registry()
    }
}

/// Claimed registers that need not begin or end with a page.
struct Registers {
    pages: MappedPages<Mmio>,
    offset: usize,
    len: usize,
}

// SAFETY: the pages stay mapped as long as they are owned here, and `offset + len` does not exceed them: they were
// rounded outward from these bytes.
unsafe impl Backing for Registers {
    fn pointer(&self) -> NonNull<u8> {
        // SAFETY: `offset` is less than the pages' size.
        unsafe { self.pages.pointer().add(self.offset) }
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// Configuration space through the I/O ports 0xcf8 and 0xcfc: 256 bytes for each function of segment 0 (PCI Local Bus
/// Specification 3.0, 3.2.2.3.2). What there is where ACPI names no memory-mapped configuration space.
#[derive(Debug)]
pub struct ConfigPorts {
    ports: Mutex<(Port<u32>, Port<u32>)>,
}

/// The one pair of configuration ports.
pub static CONFIG_PORTS: ConfigPorts =
    ConfigPorts { ports: Mutex::new((Port::new(0xcf8), Port::new(0xcfc))) };

impl ConfigPorts {
    fn select(function: PciAddress, offset: u16) -> Option<u32> {
        (function.segment == 0 && offset < 256)
            .then(|| 1 << 31 | u32::from(function.requester_id()) << 8 | u32::from(offset & !3))
    }
}

// SAFETY: the two ports reach nothing but the selected function's configuration space, and the lock keeps selection and
// access together.
unsafe impl ConfigAccess for ConfigPorts {
    fn read(&self, function: PciAddress, offset: u16) -> u32 {
        let Some(address) = Self::select(function, offset) else { return u32::MAX };
        let (select, data) = &mut *self.ports.lock();
        // SAFETY: the ports are there on every PC and used only here.
        unsafe {
            select.write(address);
            data.read()
        }
    }

    fn write(&self, function: PciAddress, offset: u16, value: u32) {
        let Some(address) = Self::select(function, offset) else { return };
        let (select, data) = &mut *self.ports.lock();
        // SAFETY: as in `read`.
        unsafe {
            select.write(address);
            data.write(value);
        }
    }

    fn last_bus(&self) -> u8 {
        u8::MAX
    }
}
