//! What the drivers ask of this kernel.

use core::num::NonZeroUsize;
use core::time::Duration;

use ringfence_memory::{
    DeviceId, Direction, DmaMemory, DmaRegistry, MmioClaims, MmioMemory, PAGE_SIZE, PhysAddr, Platform,
    PlatformError,
};

use crate::boot::uptime;
use crate::memory::{free_pages, zeroed_pages};

pub struct MyKernel;

static REGISTRY: DmaRegistry = DmaRegistry::new();
// SAFETY: there is no RAM from 3.5 GiB up to the interrupt controllers, and this kernel has it mapped where
// it is, uncached.
pub static REGISTERS: MmioClaims = unsafe { MmioClaims::new(0xe000_0000..0xfec0_0000, 0xe000_0000) };

// SAFETY: pages for devices are never anything else, and their addresses are physical ones; registers are
// claimed; the clock never goes backwards; there is one registry.
unsafe impl Platform for MyKernel {
    fn dma_allocate(
        &self,
        _: DeviceId,
        pages: NonZeroUsize,
        _: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        let start = zeroed_pages(pages).ok_or(PlatformError::OutOfMemory)?;
        let (len, address) = (pages.get() * PAGE_SIZE, start.as_ptr().addr() as u64);
        // SAFETY: they are zeroed, and nobody else has them until `free_pages` gets them back.
        Ok(unsafe { DmaMemory::from_raw(start, len, address, free_pages) })
    }

    fn mmio_map(
        &self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        REGISTERS.claim(device, start, len)
    }

    fn now(&self) -> Duration {
        uptime()
    }

    fn registry(&self) -> &DmaRegistry {
        &REGISTRY
    }
}
