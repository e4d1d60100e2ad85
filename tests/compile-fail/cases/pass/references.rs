//! Private memory may be seen through references; device memory through volatile access.
use ringfence_memory::*;
use ringfence_memory::theseus::{BorrowedMappedPages, Immutable};

fn _views(memory: &mut MappedPages<Private>) -> Result<u64, AccessError> {
    memory.as_slice_mut::<u8>(0, 1)?[0] = 1;
    *memory.as_type_mut::<u64>(8)? = 2;
    Ok(*memory.as_type::<u64>(0)? + u64::from(memory.as_slice::<u8>(8, 1)?[0]))
}

fn _borrowed(memory: MappedPages<Private>) -> Result<u8, (MappedPages<Private>, AccessError)> {
    let memory = memory.into_borrowed::<u64>(0)?.into_inner();
    let memory = memory.into_borrowed_mut::<u64>(0)?.into_inner();
    let memory = memory.into_borrowed_slice::<u8>(0, 1)?.into_inner();
    let mut bytes = memory.into_borrowed_slice_mut::<u8>(0, 1)?;
    bytes[0] = 1;
    Ok(bytes[0])
}

fn _shared(memory: &MappedPages<Private>) -> Option<u64> {
    BorrowedMappedPages::<u64, Immutable, _>::from(memory, 0).ok().map(|word| *word)
}

fn _device(memory: &MappedPages<Dma>, registers: &MappedPages<Mmio>) -> (PhysAddr, *mut u8) {
    (memory.physical_address(), registers.as_ptr())
}

fn _volatile(region: &DmaRegion, buffer: &DmaBuf, register: &Register<u32>) -> usize {
    region.as_volatile_slice().len() + buffer.as_volatile_slice().len() + register.read() as usize
}

fn _stack(stack: &Stack) -> (VirtAddr, usize) {
    (stack.top(), stack.range().size_in_pages())
}

fn main() {}
