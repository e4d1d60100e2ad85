//! What the kernel gives to drivers: DMA memory, claimed registers, a clock, and access to configuration
//! space.

use alloc::boxed::Box;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::time::Duration;

use ringfence_memory::{
    ClaimError, ConfigPorts, DeviceId, Direction, DmaMemory, DmaRegistry, FrameRange, FrameRequest,
    MmioMemory, PhysAddr, Platform, PlatformError,
};

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

/// The one pair of configuration ports.
// SAFETY: the ports are there on every PC, this kernel runs at level 0, and uses them only here.
pub static CONFIG_PORTS: ConfigPorts = unsafe { ConfigPorts::new() };
