//! No reference to memory that a device, or the processor by itself, may touch.
use ringfence_memory::*;
use ringfence_memory::theseus::{BorrowedMappedPages, Immutable};

fn dma_as_type(memory: &MappedPages<Dma>) {
    let _ = memory.as_type::<u64>(0); //~ E0599 dma_as_type
}

fn dma_as_type_mut(memory: &mut MappedPages<Dma>) {
    let _ = memory.as_type_mut::<u64>(0); //~ E0599 dma_as_type_mut
}

fn dma_as_slice(memory: &MappedPages<Dma>) {
    let _ = memory.as_slice::<u8>(0, 1); //~ E0599 dma_as_slice
}

fn dma_as_slice_mut(memory: &mut MappedPages<Dma>) {
    let _ = memory.as_slice_mut::<u8>(0, 1); //~ E0599 dma_as_slice_mut
}

fn dma_into_borrowed(memory: MappedPages<Dma>) {
    let _ = memory.into_borrowed::<u64>(0); //~ E0599 dma_into_borrowed
}

fn dma_into_borrowed_mut(memory: MappedPages<Dma>) {
    let _ = memory.into_borrowed_mut::<u64>(0); //~ E0599 dma_into_borrowed_mut
}

fn dma_into_borrowed_slice(memory: MappedPages<Dma>) {
    let _ = memory.into_borrowed_slice::<u8>(0, 1); //~ E0599 dma_into_borrowed_slice
}

fn dma_into_borrowed_slice_mut(memory: MappedPages<Dma>) {
    let _ = memory.into_borrowed_slice_mut::<u8>(0, 1); //~ E0599 dma_into_borrowed_slice_mut
}

fn dma_borrowed_from(memory: &MappedPages<Dma>) {
    let _ = BorrowedMappedPages::<u64, Immutable, _>::from(memory, 0); //~ E0277 dma_borrowed_from
}

fn mmio_as_type(registers: &MappedPages<Mmio>) {
    let _ = registers.as_type::<u64>(0); //~ E0599 mmio_as_type
}

fn mmio_as_type_mut(registers: &mut MappedPages<Mmio>) {
    let _ = registers.as_type_mut::<u64>(0); //~ E0599 mmio_as_type_mut
}

fn mmio_as_slice(registers: &MappedPages<Mmio>) {
    let _ = registers.as_slice::<u8>(0, 1); //~ E0599 mmio_as_slice
}

fn mmio_as_slice_mut(registers: &mut MappedPages<Mmio>) {
    let _ = registers.as_slice_mut::<u8>(0, 1); //~ E0599 mmio_as_slice_mut
}

fn mmio_into_borrowed(registers: MappedPages<Mmio>) {
    let _ = registers.into_borrowed::<u64>(0); //~ E0599 mmio_into_borrowed
}

fn mmio_into_borrowed_mut(registers: MappedPages<Mmio>) {
    let _ = registers.into_borrowed_mut::<u64>(0); //~ E0599 mmio_into_borrowed_mut
}

fn mmio_into_borrowed_slice(registers: MappedPages<Mmio>) {
    let _ = registers.into_borrowed_slice::<u8>(0, 1); //~ E0599 mmio_into_borrowed_slice
}

fn mmio_into_borrowed_slice_mut(registers: MappedPages<Mmio>) {
    let _ = registers.into_borrowed_slice_mut::<u8>(0, 1); //~ E0599 mmio_into_borrowed_slice_mut
}

fn region_as_slice(region: &DmaRegion) -> &[u8] {
    region.as_ref() //~ E0599 region_as_slice
}

fn buffer_as_slice(buffer: &DmaBuf) -> &[u8] {
    buffer //~ E0308 buffer_as_slice
}

fn buffer_as_slice_mut(buffer: &mut DmaBuf) -> &mut [u8] {
    buffer //~ E0308 buffer_as_slice_mut
}

fn register_as_reference(register: &Register<u32>) -> &u32 {
    register //~ E0308 register_as_reference
}

fn stack_pages(stack: &Stack) {
    let _ = stack.pages(); //~ E0599 stack_pages
}

fn stack_as_slice(stack: &Stack) {
    let _ = stack.as_slice::<u64>(0, 1); //~ E0599 stack_as_slice
}

fn main() {}
