//! The ways that do exist.
use ringfence_memory::*;

fn _protections() -> [Protection; 3] {
    [Protection::ReadOnly, Protection::ReadWrite, Protection::ReadExecute]
}

fn _map(space: &'static AddressSpace, pages: AllocatedPages) -> Option<MappedPages<Private>> {
    let count = pages.size_in_pages();
    let frames = space.frames().allocate(FrameRequest::new(count)).ok()?;
    space.map_allocated_pages_to(pages, frames, Protection::ReadWrite).ok()
}

fn _device(space: &'static AddressSpace) -> Result<PhysAddr, MapError> {
    let memory = space.allocate_dma(FrameRequest::new(4))?;
    Ok(memory.physical_address())
}

fn _address(region: &DmaRegion) -> Option<DmaAddr> {
    region.address(0)
}

fn _quarantine(memory: MappedPages<Dma>) -> MappedPages<Dma> {
    // SAFETY: never called.
    unsafe { memory.quarantine().release() }
}

fn main() {}
