//! All RAM, by physical address.

use alloc::vec::Vec;
use core::fmt;

use crate::{
    AddressSpace, DmaRegion, FrameRange, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion,
    GuestMemoryResult, MemoryRegionAddress, PAGE_SIZE, PhysAddr, RegionSlice, VirtAddr, VolatileSlice,
    region_offset,
};

/// The physical memory map, frozen: which addresses are RAM. It is [`GuestMemory`].
///
/// Only memory that is shared with a device can be accessed through it: each shared region is a region of its own here,
/// held until the map is dropped. Slices of all other RAM are refused, since Rust objects live there.
pub struct PhysMap<'a> {
    /// By rising address.
    regions: Vec<PhysRegion<'a>>,
}

/// A run of RAM in a [`PhysMap`].
pub struct PhysRegion<'a> {
    frames: FrameRange,
    shared: Option<VolatileSlice<'a>>,
}

impl AddressSpace {
    /// The physical memory map as it is now, in which `shared` can be accessed.
    ///
    /// Allocates on the heap: one entry for each run of RAM and each region.
    pub fn phys_map<'a>(&self, shared: &[&'a DmaRegion]) -> PhysMap<'a> {
        let mut shared: Vec<PhysRegion<'a>> = shared.iter().filter_map(|it| self.locate(it)).collect();
        shared.sort_unstable_by_key(|region| region.frames.start_address());
        let mut regions = Vec::new();
        let mut shared = shared.into_iter().peekable();
        for mut run in self.frames().ram_runs() {
            while let Some(region) = shared.next_if(|region| region.frames.overlap(&run).is_some()) {
                let before = region.frames.first().saturating_sub(run.first()) as usize;
                let (plain, rest) = run.split_at(before).unwrap_or((FrameRange::empty(), run));
                let after = rest.split_at(region.frames.size_in_frames().min(rest.size_in_frames()));
                run = after.map_or(FrameRange::empty(), |(_, rest)| rest);
                regions.extend((!plain.is_empty()).then_some(PhysRegion { frames: plain, shared: None }));
                regions.push(region);
            }
            regions.extend((!run.is_empty()).then_some(PhysRegion { frames: run, shared: None }));
        }
        PhysMap { regions }
    }

    /// Where a region lies, if this address space maps it to adjacent frames.
    fn locate<'a>(&self, shared: &'a DmaRegion) -> Option<PhysRegion<'a>> {
        let start = shared.as_volatile_slice().as_ptr().as_ptr();
        let physical = |offset| self.translate(VirtAddr::from_ptr(start.wrapping_add(offset))?);
        let first: PhysAddr = physical(0)?;
        let mut offsets = (0..shared.len()).step_by(PAGE_SIZE);
        let adjacent = offsets.all(|offset| physical(offset) == first.checked_add(offset as u64));
        let frames = FrameRange::new(first, shared.len() / PAGE_SIZE).ok().filter(|_| adjacent)?;
        Some(PhysRegion { frames, shared: Some(shared.as_volatile_slice()) })
    }
}

impl<'m> GuestMemory for PhysMap<'m> {
    type R = PhysRegion<'m>;

    fn iter(&self) -> impl Iterator<Item = &PhysRegion<'m>> {
        self.regions.iter()
    }
}

impl PhysRegion<'_> {
    /// Whether a device shares it, so that it can be accessed.
    pub fn is_shared(&self) -> bool {
        self.shared.is_some()
    }
}

impl GuestMemoryRegion for PhysRegion<'_> {
    type B = ();

    fn len(&self) -> u64 {
        self.frames.size_in_bytes()
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.frames.start_address().value())
    }

    fn bitmap(&self) -> &() {
        &()
    }

    fn get_slice(&self, addr: MemoryRegionAddress, count: usize) -> GuestMemoryResult<RegionSlice<'_, Self>> {
        let offset = region_offset(self, addr)?;
        let shared = self.shared.as_ref().ok_or(GuestMemoryError::HostAddressNotAvailable)?;
        let slice = shared.subslice(offset, count);
        slice.map_err(|_| GuestMemoryError::InvalidRegionAddress(addr))
    }
}

impl crate::GuestMemoryRegionBytes for PhysRegion<'_> {}

impl fmt::Debug for PhysMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.regions).finish()
    }
}

impl fmt::Debug for PhysRegion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhysRegion({:?}, shared: {})", self.frames, self.is_shared())
    }
}
