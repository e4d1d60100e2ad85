//! No owner can be copied.
use ringfence_memory::*;
use ringfence_memory::theseus::BorrowedMappedPages;

fn allocated_frames(frames: &AllocatedFrames) {
    let _ = <AllocatedFrames as Clone>::clone(frames); //~ E0277 allocated_frames
}

fn allocated_pages(pages: &AllocatedPages) {
    let _ = <AllocatedPages as Clone>::clone(pages); //~ E0277 allocated_pages
}

fn private(memory: &MappedPages<Private>) {
    let _ = <MappedPages<Private> as Clone>::clone(memory); //~ E0277 private
}

fn dma(memory: &MappedPages<Dma>) {
    let _ = <MappedPages<Dma> as Clone>::clone(memory); //~ E0277 dma
}

fn mmio(registers: &MappedPages<Mmio>) {
    let _ = <MappedPages<Mmio> as Clone>::clone(registers); //~ E0277 mmio
}

fn dma_memory(memory: &DmaMemory) {
    let _ = <DmaMemory as Clone>::clone(memory); //~ E0277 dma_memory
}

fn mmio_memory(registers: &MmioMemory) {
    let _ = <MmioMemory as Clone>::clone(registers); //~ E0277 mmio_memory
}

fn stack(stack: &Stack) {
    let _ = <Stack as Clone>::clone(stack); //~ E0277 stack
}

fn borrowed(view: &BorrowedMappedPages<u64>) {
    let _ = <BorrowedMappedPages<u64> as Clone>::clone(view); //~ E0277 borrowed
}

fn region(region: &DmaRegion) {
    let _ = <DmaRegion as Clone>::clone(region); //~ E0277 region
}

fn pool(pool: &DmaPool) {
    let _ = <DmaPool as Clone>::clone(pool); //~ E0277 pool
}

fn buffer(buffer: &DmaBuf) {
    let _ = <DmaBuf as Clone>::clone(buffer); //~ E0277 buffer
}

fn array(array: &DmaArray<u64>) {
    let _ = <DmaArray<u64> as Clone>::clone(array); //~ E0277 array
}

fn descriptors(table: &DescriptorTable<Split>) {
    let _ = <DescriptorTable<Split> as Clone>::clone(table); //~ E0277 descriptors
}

fn proof_of_a_reset(quiet: &Quiet) {
    let _ = <Quiet as Clone>::clone(quiet); //~ E0277 proof_of_a_reset
}

fn grant(grant: &DmaGrant) {
    let _ = <DmaGrant as Clone>::clone(grant); //~ E0277 grant
}

fn table_pool(pool: &TablePool) {
    let _ = <TablePool as Clone>::clone(pool); //~ E0277 table_pool
}

fn mapper(mapper: &Mapper) {
    let _ = <Mapper as Clone>::clone(mapper); //~ E0277 mapper
}

fn address_space(space: &AddressSpace) {
    let _ = <AddressSpace as Clone>::clone(space); //~ E0277 address_space
}

fn main() {}
