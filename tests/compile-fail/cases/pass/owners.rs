//! Owners as ranges, and a view that may be changed.
use ringfence_memory::*;
use ringfence_memory::theseus::{BorrowedMappedPages, BorrowedSliceMappedPages, Mutable};

fn _sizes(pages: &AllocatedPages, frames: &AllocatedFrames, memory: &MappedPages<Dma>) -> u64 {
    pages.size_in_bytes() + frames.size_in_bytes() + memory.size_in_bytes()
}

fn _view(view: &mut BorrowedMappedPages<u64, Mutable>) {
    **view = 1;
}

fn _slice(view: &mut BorrowedSliceMappedPages<u8, Mutable>) {
    view[0] = 1;
}

fn _mapping(view: &BorrowedMappedPages<u64>, slice: &BorrowedSliceMappedPages<u8>) -> usize {
    view.inner_ref().size_in_pages() + slice.inner_ref().size_in_pages()
}

fn main() {}
