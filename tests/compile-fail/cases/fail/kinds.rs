//! The kind of memory, the owner of frames and the protection cannot be made up.
use core::sync::atomic::Ordering::Relaxed;

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

fn range_mapped(space: &'static AddressSpace, pages: AllocatedPages, frames: FrameRange) {
    let _ = space.map_allocated_pages_to(pages, frames, Protection::ReadWrite); //~ E0308 range_mapped
}

fn pages_without_owner(space: &'static AddressSpace, pages: PageRange) {
    let _ = space.map_allocated_pages(pages, Protection::ReadWrite); //~ E0308 pages_without_owner
}

fn frames_from_a_range(home: &'static FrameAllocator, range: FrameRange) {
    let _ = AllocatedFrames::new(home, range); //~ E0624 frames_from_a_range
}

fn mapping_from_pages(pages: AllocatedPages, space: &'static AddressSpace) {
    let _ = MappedPages::<Dma>::new(pages, space, Protection::ReadWrite); //~ E0624 mapping_from_pages
}

fn another_mapper(space: &'static AddressSpace) {
    let _ = space.mapper(); //~ E0624 another_mapper
}

fn device_address_from_integer() -> DmaAddr<'static> {
    DmaAddr::from(0x1000_u64) //~ E0308 device_address_from_integer
}

fn device_address_from_physical(address: PhysAddr) -> DmaAddr<'static> {
    address.into() //~ E0277 device_address_from_physical
}

fn device_address_cast() -> DmaAddr<'static> {
    0x1000_u64 as DmaAddr<'static> //~ E0605 device_address_cast
}

fn device_address_from_bytes() -> DmaAddr<'static> {
    DmaAddr::read_from_bytes(&[0; 16]).unwrap() //~ E0599 device_address_from_bytes
}

fn device_address_to_integer(address: DmaAddr<'_>) -> u64 {
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

fn memory_for_a_device(memory: MappedPages<Dma>) {
    let _ = DmaMemory::from_pages(memory, 0); //~ E0133 memory_for_a_device
}

fn any_memory_for_a_device(start: core::ptr::NonNull<u8>, owner: Box<dyn Send + Sync>) {
    let _ = DmaMemory::new(start, 4096, 0x1000, owner); //~ E0133 any_memory_for_a_device
}

fn any_memory_as_registers(start: core::ptr::NonNull<u8>, owner: Box<dyn Send + Sync>) {
    let _ = MmioMemory::new(start, 4096, owner); //~ E0133 any_memory_as_registers
}

fn register_written(register: &Register<u32>) {
    register.write(0x1000); //~ E0133 register_written
}

fn region_written(registers: &MmioRegion) {
    let _ = registers.write(0x20, 0x1000_u32); //~ E0133 region_written
}

fn configuration_anywhere(platform: &'static dyn Platform, start: PhysAddr) {
    let _ = Ecam::new(platform, start, 0, 0, 0); //~ E0133 configuration_anywhere
}

fn configuration_written(access: &dyn ConfigAccess, function: PciAddress) {
    access.write(function, 0x54, 0x1000); //~ E0133 configuration_written
}

fn configuration_word(config: &ConfigSpace) {
    let _ = config.write_u32(0x54, 0x1000); //~ E0599 configuration_word
}

fn configuration_changed(config: &ConfigSpace) {
    config.change(0x04, |command| command | 0b100); //~ E0624 configuration_changed
}

fn message_to_anywhere() {
    let _ = MsiMessage::new(0x1000, 0x41); //~ E0133 message_to_anywhere
}

fn address_in_a_ring(region: &DmaRegion, address: DmaAddr<'_>) {
    let _ = region.write_dma_addr(0, address); //~ E0599 address_in_a_ring
}

fn descriptor_of_an_integer(table: &DescriptorTable<Split>) {
    let _ = table.store(0, &(0x1000_u64, 16_u32), 0, Relaxed); //~ E0308 descriptor_of_an_integer
}

fn descriptor_of_another_format(table: &mut DescriptorTable<Split>, other: &DescriptorTable<Packed>) {
    let _ = table.store_indirect(0, (other, 0, 1), 0, false); //~ E0308 descriptor_of_another_format
}

fn descriptors_as_memory(table: &DescriptorTable<Split>) {
    let _ = table.as_volatile_slice(); //~ E0599 descriptors_as_memory
}

fn segment_of_a_region(region: &DmaRegion) {
    let _ = region.segment(0, 16, true); //~ E0599 segment_of_a_region
}

fn segment_made_longer(segment: &mut Segment<'_>) {
    segment.len = u32::MAX; //~ E0616 segment_made_longer
}

fn descriptor_with_two_writers(table: &DescriptorTable<Split>, segment: &Segment<'_>) {
    let _ = table.store(0, segment, 0, Relaxed); //~ E0596 descriptor_with_two_writers
}

fn proof_of_nothing(life: Life) -> Quiet {
    life.into() //~ E0277 proof_of_nothing
}

fn life_by_number(life: &mut Life) {
    life.number = 0; //~ E0616 life_by_number
}

fn main() {}
