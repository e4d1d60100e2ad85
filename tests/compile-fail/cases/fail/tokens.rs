//! A token is used once, and what is seen in memory does not outlive it.
use ringfence_drivers::virtio::{Offer, PciTransport};
use ringfence_memory::*;
use ringfence_memory::theseus::BorrowedMappedPages;

fn pages_twice(space: &'static AddressSpace, pages: AllocatedPages) {
    let _ = space.map_allocated_pages(pages, Protection::ReadWrite);
    let _ = space.map_allocated_pages(pages, Protection::ReadOnly); //~ E0382 pages_twice
}

fn frames_twice(space: &'static AddressSpace, a: AllocatedPages, b: AllocatedPages, frames: AllocatedFrames) {
    let _ = space.map_allocated_pages_to(a, frames, Protection::ReadWrite);
    let _ = space.map_allocated_pages_to(b, frames, Protection::ReadWrite); //~ E0382 frames_twice
}

fn frames_dropped(space: &'static AddressSpace, pages: AllocatedPages, frames: AllocatedFrames) {
    drop(frames);
    let _ = space.map_allocated_pages_to(pages, frames, Protection::ReadWrite); //~ E0382 frames_dropped
}

fn frames_after_merge(mut frames: AllocatedFrames, other: AllocatedFrames) {
    let _ = frames.merge(other);
    drop(other); //~ E0382 frames_after_merge
}

fn frames_after_split(frames: AllocatedFrames) {
    let _ = frames.split_at(1);
    drop(frames); //~ E0382 frames_after_split
}

fn pages_after_merge(mut pages: AllocatedPages, other: AllocatedPages) {
    let _ = pages.merge(other);
    drop(other); //~ E0382 pages_after_merge
}

fn pages_after_split(pages: AllocatedPages, at: VirtAddr) {
    let _ = pages.split(at);
    drop(pages); //~ E0382 pages_after_split
}

fn mapping_after_unmap(memory: MappedPages<Private>) {
    let _ = memory.unmap_into_parts();
    drop(memory); //~ E0382 mapping_after_unmap
}

fn mapping_after_merge(mut memory: MappedPages<Private>, other: MappedPages<Private>) {
    let _ = memory.merge(other);
    let _ = other.flags(); //~ E0382 mapping_after_merge
}

fn mapping_after_split(memory: MappedPages<Private>, at: VirtAddr) {
    let _ = memory.split(at);
    let _ = memory.flags(); //~ E0382 mapping_after_split
}

fn mapping_after_borrow(memory: MappedPages<Private>) {
    let _ = memory.into_borrowed::<u64>(0);
    let _ = memory.flags(); //~ E0382 mapping_after_borrow
}

fn given_to_a_device(memory: MappedPages<Dma>) {
    // SAFETY: never called.
    let _given = unsafe { DmaMemory::from_pages(memory, 0) };
    let _ = memory.physical_address(); //~ E0382 given_to_a_device
}

fn negotiated_twice(offer: Offer<PciTransport>) {
    let _ = offer.negotiate(0);
    let _ = offer.negotiate(1); //~ E0382 negotiated_twice
}

fn buffer_in_flight(buffer: DmaBuf, submit: impl FnOnce(DmaBuf)) {
    submit(buffer);
    let _ = buffer.len(); //~ E0382 buffer_in_flight
}

fn region_given_away(region: DmaRegion, give: impl FnOnce(DmaRegion)) {
    give(region);
    let _ = region.len(); //~ E0382 region_given_away
}

fn view_outlives_mapping(memory: MappedPages<Private>) {
    let word = memory.as_type::<u64>(0);
    drop(memory); //~ E0505 view_outlives_mapping
    let _ = word.is_ok();
}

fn view_during_unmap(memory: MappedPages<Private>) {
    let bytes = memory.as_slice::<u8>(0, 1);
    let _ = memory.unmap_into_parts(); //~ E0505 view_during_unmap
    let _ = bytes.is_ok();
}

fn view_during_remap(mut memory: MappedPages<Private>) {
    let bytes = memory.as_slice_mut::<u8>(0, 1);
    memory.remap(Protection::ReadOnly); //~ E0499 view_during_remap
    let _ = bytes.is_ok();
}

fn two_mutable_views(memory: &mut MappedPages<Private>) {
    let first = memory.as_slice_mut::<u8>(0, 1);
    let second = memory.as_slice_mut::<u8>(0, 1); //~ E0499 two_mutable_views
    let _ = (first.is_ok(), second.is_ok());
}

fn shared_and_mutable_view(memory: &mut MappedPages<Private>) {
    let shared = memory.as_slice::<u8>(0, 1);
    let mutable = memory.as_slice_mut::<u8>(0, 1); //~ E0502 shared_and_mutable_view
    let _ = (shared.is_ok(), mutable.is_ok());
}

fn borrowed_view_outlives_owner(view: BorrowedMappedPages<u64>) {
    let word: &u64 = &view;
    let memory = view.into_inner(); //~ E0505 borrowed_view_outlives_owner
    let _ = (word, memory);
}

fn window_outlives_region(region: DmaRegion) {
    let bytes = region.as_volatile_slice();
    drop(region); //~ E0505 window_outlives_region
    let _ = bytes.len();
}

fn window_outlives_buffer(buffer: DmaBuf) {
    let bytes = buffer.as_volatile_slice();
    drop(buffer); //~ E0505 window_outlives_buffer
    let _ = bytes.len();
}

fn address_outlives_region(region: DmaRegion, windows: &DmaWindows) {
    let address = region.address(0);
    drop(region); //~ E0505 address_outlives_region
    let _ = address.map(|address| windows.publish(address));
}

fn address_outlives_buffer(buffer: DmaBuf, windows: &DmaWindows) {
    let address = buffer.address();
    drop(buffer); //~ E0505 address_outlives_buffer
    let _ = windows.publish(address);
}

fn segment_outlives_buffer(buffer: DmaBuf, table: &DescriptorTable<Split>) {
    let segment = buffer.segment(0, 16, true);
    drop(buffer); //~ E0505 segment_outlives_buffer
    let _ = segment.map(|segment| table.check(&segment));
}

fn segment_outlives_blocks(blocks: DmaBlocks<4>, table: &DescriptorTable<Split>) {
    let segment = blocks.get(0).map(|block| block.segment::<0, 16>(true));
    drop(blocks); //~ E0505 segment_outlives_blocks
    let _ = segment.map(|segment| table.check(&segment));
}

fn queue_outlives_descriptors(table: DescriptorTable<Split>, area: DmaAddr<'_>) {
    let addresses = table.queue(area, area);
    drop(table); //~ E0505 queue_outlives_descriptors
    let _ = addresses.map(|addresses| addresses.addresses());
}

fn address_space_on_the_stack(space: AddressSpace) {
    let _ = space.allocate(1, Protection::ReadWrite); //~ E0597 address_space_on_the_stack
}

fn main() {}
