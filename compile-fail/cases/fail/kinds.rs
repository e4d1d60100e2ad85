//! The kind of memory, the state of frames and the protection cannot be made up.
use ringfence_memory::*;
use zerocopy::FromBytes;

struct Mine;

fn writable_and_executable() {
    let _ = Protection::ReadWriteExecute; //~ E0599 writable_and_executable
}

fn protections_are_no_flags() {
    let _ = Protection::ReadWrite | Protection::ReadExecute; //~ E0369 protections_are_no_flags
}

fn protection_from_bits() {
    let _ = 7 as Protection; //~ E0605 protection_from_bits
}

fn dma_to_private(memory: MappedPages<Dma>) -> MappedPages<Private> {
    memory //~ E0308 dma_to_private
}

fn dma_into_private(memory: MappedPages<Dma>) -> MappedPages<Private> {
    memory.into() //~ E0277 dma_into_private
}

fn dma_merged_into_private(memory: &mut MappedPages<Private>, other: MappedPages<Dma>) {
    let _ = memory.merge(other); //~ E0308 dma_merged_into_private
}

fn dma_into_parts(memory: MappedPages<Dma>) {
    let _ = memory.unmap_into_parts(); //~ E0599 dma_into_parts
}

fn dma_copied(memory: &MappedPages<Dma>) {
    let _ = memory.deep_copy(None); //~ E0599 dma_copied
}

fn dma_remapped(memory: &mut MappedPages<Dma>) {
    memory.remap(Protection::ReadExecute); //~ E0599 dma_remapped
}

fn dma_split(memory: MappedPages<Dma>, at: VirtAddr) {
    let _ = memory.split(at); //~ E0599 dma_split
}

fn mmio_to_private(registers: MappedPages<Mmio>) -> MappedPages<Private> {
    registers //~ E0308 mmio_to_private
}

fn private_to_dma(memory: MappedPages<Private>) -> MappedPages<Dma> {
    memory //~ E0308 private_to_dma
}

fn new_kind(memory: MappedPages<Mine>) { //~ E0277 new_kind
}

fn free_frames_mapped(space: &'static AddressSpace, pages: AllocatedPages, frames: FreeFrames) {
    let _ = space.map_allocated_pages_to(pages, frames, Protection::ReadWrite); //~ E0308 free_frames_mapped
}

fn unmapped_frames_mapped(space: &'static AddressSpace, pages: AllocatedPages, frames: UnmappedFrames) {
    let _ = space.map_allocated_pages_to(pages, frames, Protection::ReadWrite); //~ E0308 unmapped_frames_mapped
}

fn range_mapped(space: &'static AddressSpace, pages: AllocatedPages, frames: FrameRange) {
    let _ = space.map_allocated_pages_to(pages, frames, Protection::ReadWrite); //~ E0308 range_mapped
}

fn pages_without_owner(space: &'static AddressSpace, pages: PageRange) {
    let _ = space.map_allocated_pages(pages, Protection::ReadWrite); //~ E0308 pages_without_owner
}

fn new_state(frames: Frames<Mine>) { //~ E0277 new_state
}

fn states_do_not_merge(frames: &mut AllocatedFrames, other: UnmappedFrames) {
    let _ = frames.merge(other); //~ E0308 states_do_not_merge
}

fn frames_from_a_range(home: &'static FrameAllocator, range: FrameRange) {
    let _ = AllocatedFrames::new(home, range); //~ E0624 frames_from_a_range
}

fn state_changed(frames: AllocatedFrames) {
    let _ = frames.into_state::<Mapped>(); //~ E0624 state_changed
}

fn mapping_from_pages(pages: AllocatedPages, space: &'static AddressSpace) {
    let _ = MappedPages::<Dma>::new(pages, space, Protection::ReadWrite); //~ E0624 mapping_from_pages
}

fn another_mapper(space: &'static AddressSpace) {
    let _ = space.mapper(); //~ E0624 another_mapper
}

fn device_address_from_integer() -> DmaAddr {
    DmaAddr::from(0x1000_u64) //~ E0308 device_address_from_integer
}

fn device_address_from_physical(address: PhysAddr) -> DmaAddr {
    address.into() //~ E0277 device_address_from_physical
}

fn device_address_cast() -> DmaAddr {
    0x1000_u64 as DmaAddr //~ E0605 device_address_cast
}

fn device_address_from_bytes() -> DmaAddr {
    DmaAddr::read_from_bytes(&[0; 16]).unwrap() //~ E0599 device_address_from_bytes
}

fn device_address_to_integer(address: DmaAddr) -> u64 {
    address.value //~ E0616 device_address_to_integer
}

fn physical_address_from_bytes() -> PhysAddr {
    PhysAddr::read_from_bytes(&[0; 8]).unwrap() //~ E0599 physical_address_from_bytes
}

fn physical_address_plus(address: PhysAddr) {
    let _ = address + 1; //~ E0369 physical_address_plus
}

fn virtual_address_or(address: VirtAddr) {
    let _ = address | 1; //~ E0369 virtual_address_or
}

fn physical_is_not_virtual(pages: &PageRange, address: PhysAddr) {
    let _ = pages.contains_address(address); //~ E0308 physical_is_not_virtual
}

fn physical_without_owner(memory: &MappedPages<Private>) {
    let _ = memory.physical_address(); //~ E0599 physical_without_owner
}

fn buffer_from_the_stack() -> DmaBuf {
    let bytes = [0; 64];
    bytes.into() //~ E0277 buffer_from_the_stack
}

fn registers_anywhere(space: &AddressSpace, frames: FrameRange) {
    let _ = space.offer_mmio(frames); //~ E0133 registers_anywhere
}

fn another_root(cpu: &dyn Cpu, root: PhysAddr) {
    cpu.load_root(root); //~ E0133 another_root
}

fn activated(mapper: &mut Mapper, cpu: &dyn Cpu, base: *mut u8) {
    mapper.activate(cpu, base); //~ E0133 activated
}

fn bus_master(device: DeviceId) {
    let _ = DmaGrant::without_iommu(device); //~ E0133 bus_master
}

fn quarantine_ended(memory: Quarantined) {
    let _ = memory.release(); //~ E0133 quarantine_ended
}

fn main() {}
