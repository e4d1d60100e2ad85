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

fn _address(region: &DmaRegion) -> Option<DmaAddr<'_>> {
    region.address(0)
}

fn _memory(memory: MappedPages<Dma>) -> DmaMemory {
    // SAFETY: never called.
    unsafe { DmaMemory::from_pages(memory, 0) }
}

fn _written(register: &Register<u32>, registers: &MmioRegion) -> Result<(), MmioError> {
    // SAFETY: never called.
    unsafe {
        register.write(1);
        registers.write(0x20, 1_u32)
    }
}

fn _configuration(config: &ConfigSpace, grant: &DmaGrant) -> Result<(), DmaError> {
    config.enable_memory();
    config.enable_bus_master(grant)
}

fn _segment(blocks: &DmaBlocks<4>) -> Option<u32> {
    Some(blocks.get(0)?.segment::<0, 16>(true).len())
}

fn _queue<'a>(table: &'a DescriptorTable<Packed>, area: DmaAddr<'a>) -> Option<QueueAddresses<'a>> {
    table.queue(area, area).ok()
}

fn main() {}
