//! Descriptions may be copied: they own nothing.
use ringfence_memory::*;

fn _ranges(frames: &FrameRange, pages: &PageRange) -> (FrameRange, PageRange) {
    (*frames, *pages)
}

fn _range_of_a_token(memory: &MappedPages<Private>) -> PageRange {
    **memory
}

fn _addresses<'a>(physical: PhysAddr, device: DmaAddr<'a>) -> [(PhysAddr, DmaAddr<'a>); 2] {
    [(physical, device); 2]
}

fn main() {}
