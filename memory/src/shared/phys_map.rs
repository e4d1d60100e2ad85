//! All RAM, by physical address.

use alloc::vec::Vec;
use core::fmt;

use super::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryResult, GuestRegionCollection,
    MemoryRegionAddress, RegionSlice, region_offset,
};
use crate::{AddressSpace, DmaRegion, FrameRange, PAGE_SHIFT, PAGE_SIZE, VirtAddr, VolatileSlice};

/// The physical memory map, frozen: which addresses are RAM, to a device that uses physical addresses. It is
/// [`GuestMemory`](super::GuestMemory).
///
/// Only the DMA regions that their owners have lent can be accessed through it, each as a region of its own,
/// while the loan lasts. Slices of all other RAM are refused, since Rust objects or somebody else's buffers
/// live there.
pub type PhysMap<'a> = GuestRegionCollection<PhysRegion<'a>>;

/// A run of RAM in a [`PhysMap`].
pub struct PhysRegion<'a> {
    frames: FrameRange,
    shared: Option<VolatileSlice<'a>>,
}

impl AddressSpace {
    /// The physical memory map as it is now, in which the regions `shared` can be accessed. One that this
    /// address space does not map to adjacent frames is left out.
    ///
    /// Allocates on the heap, but not under a lock: one entry for each run of RAM and each region.
    pub fn phys_map<'a>(&self, shared: &[&'a DmaRegion]) -> PhysMap<'a> {
        let mut shared: Vec<_> = shared.iter().filter_map(|region| self.locate(region)).collect();
        shared.sort_unstable_by_key(|region| region.frames.start_address());
        shared.dedup_by_key(|region| region.frames.start_address());
        let (mut regions, mut shared) = (Vec::new(), shared.into_iter().peekable());
        let plain = |frames: FrameRange| (!frames.is_empty()).then_some(PhysRegion { frames, shared: None });
        let mut next = 0;
        while let Some(mut run) = self.frames().next_ram_run(next) {
            next = run.past();
            while let Some(region) = shared.next_if(|region| run.contains_range(&region.frames)) {
                let before = (region.frames.first() - run.first()) as usize;
                let cut = run.split_at(before).unwrap_or_default();
                let rest = cut.1.split_at(region.frames.size_in_frames()).unwrap_or_default();
                regions.extend(plain(cut.0));
                regions.push(region);
                run = rest.1;
            }
            regions.extend(plain(run));
        }
        GuestRegionCollection { regions }
    }

    /// Where a region lies, if this address space maps it to adjacent frames of RAM.
    fn locate<'a>(&self, region: &'a DmaRegion) -> Option<PhysRegion<'a>> {
        let slice = region.as_volatile_slice();
        let start = slice.as_ptr().as_ptr();
        let physical = |offset| self.translate(VirtAddr::from_ptr(start.wrapping_add(offset))?);
        let first = physical(0)?;
        let mut offsets = (0..slice.len()).step_by(PAGE_SIZE);
        let adjacent = offsets.all(|offset| physical(offset) == first.checked_add(offset as u64));
        let frames = FrameRange::new(first, slice.len() >> PAGE_SHIFT).ok().filter(|_| adjacent)?;
        let run = self.frames().next_ram_run(frames.first())?;
        run.contains_range(&frames).then_some(PhysRegion { frames, shared: Some(slice) })
    }
}

impl PhysRegion<'_> {
    /// Whether its owner has lent it, so that it can be accessed.
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

impl super::GuestMemoryRegionBytes for PhysRegion<'_> {}

impl fmt::Debug for PhysRegion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhysRegion({:?}, shared: {})", self.frames, self.is_shared())
    }
}
