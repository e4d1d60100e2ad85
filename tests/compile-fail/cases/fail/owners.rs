//! Owners deref to a range; the range cannot be exchanged.
use ringfence_memory::*;
use ringfence_memory::theseus::{BorrowedMappedPages, BorrowedSliceMappedPages, Mutable};

fn pages(pages: &mut AllocatedPages, range: PageRange) {
    **pages = range; //~ E0594 pages
}

fn frames(frames: &mut AllocatedFrames, range: FrameRange) {
    **frames = range; //~ E0594 frames
}

fn private(memory: &mut MappedPages<Private>, range: PageRange) {
    **memory = range; //~ E0594 private
}

fn dma(memory: &mut MappedPages<Dma>, range: PageRange) {
    **memory = range; //~ E0594 dma
}

fn mmio(registers: &mut MappedPages<Mmio>, range: PageRange) {
    **registers = range; //~ E0594 mmio
}

fn view(view: &mut BorrowedMappedPages<u64>) {
    **view = 1; //~ E0594 view
}

fn slice(view: &mut BorrowedSliceMappedPages<u8>) {
    view[0] = 1; //~ E0594 slice
}

fn mapping_of_a_mutable_view(view: &BorrowedMappedPages<u64, Mutable>) {
    let _ = view.inner_ref(); //~ E0599 mapping_of_a_mutable_view
}

fn mapping_of_a_mutable_slice(view: &BorrowedSliceMappedPages<u8, Mutable>) {
    let _ = view.inner_ref(); //~ E0599 mapping_of_a_mutable_slice
}

fn main() {}
