//! What the kernel gives to drivers: DMA memory, claimed registers, a clock, and access to configuration
//! space.

use alloc::boxed::Box;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::time::Duration;

use ringfence_memory::{
    ClaimError, ConfigAccess, DeviceId, Direction, DmaMemory, DmaRegistry, FrameRange, FrameRequest,
    MmioMemory, PciAddress, PhysAddr, Platform, PlatformError,
};
use spin::Mutex;
use x86_64::instructions::port::Port;

use crate::{memory, time};

/// The platform of this kernel.
#[derive(Debug)]
pub struct Kernel;

/// The one [`Kernel`].
pub static KERNEL: Kernel = Kernel;

// SAFETY: promise by promise:
// - `dma_allocate` hands out pages of the address space's DMA arena as they are lent to one owner, the
//   `DmaMemory`, and they are not lent again before it is dropped;
// - that arena is type-stable: frames that were in it once go back to it, when their owner is dropped, and
//   nowhere else;
// - `mmio_map` hands out ranges that `claim_mmio` gives to one owner each: no page of one is given to another
//   before, and a caller has the whole pages, so each byte is its own;
// - `now` is the TSC, of one processor, which never goes backwards;
// - `registry` is that of the one address space, and `Kernel` has no state: all its values are the same
//   platform.
unsafe impl Platform for Kernel {
    fn dma_allocate(
        &self,
        _: DeviceId,
        pages: NonZeroUsize,
        _: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        let request = FrameRequest::new(pages.get());
        let memory = memory::space().allocate_dma(request).map_err(|_| PlatformError::OutOfMemory)?;
        let address = memory.physical_address().value();
        // SAFETY: this kernel programs no IOMMU, so what devices use are physical addresses.
        Ok(unsafe { DmaMemory::from_pages(memory, address) })
    }

    fn mmio_map(
        &self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        let range = FrameRange::from_phys_addr(start, len as u64).map_err(|_| PlatformError::BadRange)?;
        let pages = memory::space().claim_mmio(range, device).map_err(|error| match error {
            ClaimError::AlreadyClaimed => PlatformError::Claimed,
            ClaimError::Map(_) => PlatformError::OutOfMemory,
            _ => PlatformError::BadRange,
        })?;
        let first = NonNull::new(pages.as_ptr()).ok_or(PlatformError::BadRange)?;
        // SAFETY: the pages were rounded outward from these bytes, so `frame_offset` is inside, and `len`
        // bytes more are not beyond the end.
        let first = unsafe { first.add(start.frame_offset()) };
        // SAFETY: only ranges that are not RAM can be offered, and only those claimed; `Mmio` pages are
        // mapped uncached, readable and writable, as long as they are owned, and give no references.
        Ok(unsafe { MmioMemory::new(first, len, Box::new(pages)) })
    }

    fn now(&self) -> Duration {
        time::now()
    }

    fn registry(&self) -> &DmaRegistry {
        memory::space().registry()
    }
}

/// Configuration space through the I/O ports 0xcf8 and 0xcfc: 256 bytes for each function of segment 0 (PCI
/// Local Bus Specification 3.0, 3.2.2.3.2). What there is where ACPI names no memory-mapped configuration
/// space.
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

// SAFETY: the two ports reach nothing but the selected function's configuration space, and the lock keeps
// selection and access together.
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

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        let Some(address) = Self::select(function, offset) else { return };
        let (select, data) = &mut *self.ports.lock();
        // SAFETY: as in `read`; the caller answers for what the function then does.
        unsafe {
            select.write(address);
            data.write(value);
        }
    }

    fn last_bus(&self) -> u8 {
        u8::MAX
    }
}
