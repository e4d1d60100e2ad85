//! What a fallible call consumes comes back with the error and may be used again.
use ringfence_memory::*;
use ringfence_memory::rust_vmm::GuestAddress;

fn _retry(space: &'static AddressSpace, pages: AllocatedPages, frames: AllocatedFrames) -> bool {
    match space.map_allocated_pages_to(pages, frames, Protection::ReadWrite) {
        Ok(_) => true,
        Err((_, pages, frames)) => {
            drop(frames);
            space.map_allocated_pages(pages, Protection::ReadWrite).is_ok()
        }
    }
}

fn _halves(memory: MappedPages<Private>, at: VirtAddr) -> MappedPages<Private> {
    match memory.split(at) {
        Ok((mut head, tail)) => {
            let _ = head.merge(tail);
            head
        }
        Err(memory) => memory,
    }
}

fn _view_then_drop(memory: MappedPages<Private>) -> usize {
    let len = memory.as_slice::<u8>(0, 1).map_or(0, <[u8]>::len);
    drop(memory);
    len
}

fn _buffer(buffer: DmaBuf, submit: impl FnOnce(DmaBuf)) {
    let _ = buffer.len();
    submit(buffer);
}

fn _publish(windows: &DmaWindows, region: DmaRegion) -> Option<GuestAddress> {
    let told = windows.publish(region.address(0)?).ok();
    drop(region);
    told
}

fn _store(table: &mut DescriptorTable<Split>, buffer: DmaBuf) -> Option<DmaBuf> {
    let order = core::sync::atomic::Ordering::Relaxed;
    table.store(0, &buffer.segment(0, 16, true)?, 0, order).ok()?;
    Some(buffer)
}

fn main() {}
