//! Any regions, or memory of its own, as a [`GuestMemory`].

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

use super::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestMemoryResult, MemoryRegionAddress, NewBitmap, RegionSlice, region_offset,
};
use crate::{AtomicU64, VolatileSlice};

/// Why regions make no collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRegionCollectionError {
    /// There are no regions.
    NoMemoryRegion,
    /// Two of them share an address.
    MemoryRegionOverlap,
    /// They do not come by rising address.
    UnsortedMemoryRegions,
    /// A region without a byte, or one that ends beyond the last address.
    InvalidGuestRegion,
    /// There is no memory for it.
    OutOfMemory,
}

crate::error::messages! { GuestRegionCollectionError {
    NoMemoryRegion => "no regions",
    MemoryRegionOverlap => "two regions share an address",
    UnsortedMemoryRegions => "regions out of order",
    InvalidGuestRegion => "a region that is empty or too long",
    OutOfMemory => "out of memory",
} }

/// A [`GuestMemory`] of any regions that do not overlap, by rising address.
#[derive(Clone, Debug)]
pub struct GuestRegionCollection<R> {
    pub(crate) regions: Vec<R>,
}

/// Of no regions.
impl<R> Default for GuestRegionCollection<R> {
    fn default() -> Self {
        Self { regions: Vec::new() }
    }
}

impl<R: GuestMemoryRegion> GuestRegionCollection<R> {
    /// Of these regions.
    ///
    /// # Errors
    /// If there are none, or they are not sorted, or overlap.
    pub fn from_regions(regions: Vec<R>) -> Result<Self, GuestRegionCollectionError> {
        if regions.is_empty() {
            return Err(GuestRegionCollectionError::NoMemoryRegion);
        }
        for (before, after) in regions.iter().zip(regions.iter().skip(1)) {
            if before.start_addr() > after.start_addr() {
                return Err(GuestRegionCollectionError::UnsortedMemoryRegions);
            }
            if before.last_addr() >= after.start_addr() {
                return Err(GuestRegionCollectionError::MemoryRegionOverlap);
            }
        }
        Ok(Self { regions })
    }
}

impl<R: GuestMemoryRegion> GuestMemory for GuestRegionCollection<R> {
    type R = R;

    fn iter(&self) -> impl Iterator<Item = &R> {
        self.regions.iter()
    }

    fn num_regions(&self) -> usize {
        self.regions.len()
    }

    fn find_region(&self, addr: GuestAddress) -> Option<&R> {
        let behind = self.regions.partition_point(|region| region.start_addr() <= addr);
        let region = self.regions.get(behind.checked_sub(1)?)?;
        region.to_region_addr(addr).map(|_| region)
    }
}

/// Zeroed memory of its own at some guest address, on the heap and aligned to 8 bytes.
pub struct GuestRegionHeap<B = ()> {
    start: GuestAddress,
    len: usize,
    words: Box<[AtomicU64]>,
    bitmap: B,
}

/// Guest memory on the heap.
pub type GuestMemoryHeap<B = ()> = GuestRegionCollection<GuestRegionHeap<B>>;

impl<B: NewBitmap> GuestMemoryHeap<B> {
    /// A region for each address and length in bytes.
    ///
    /// # Errors
    /// As for [`from_regions`](Self::from_regions) and [`GuestRegionHeap::new`].
    pub fn from_ranges(ranges: &[(GuestAddress, usize)]) -> Result<Self, GuestRegionCollectionError> {
        let regions = ranges.iter().map(|(start, len)| GuestRegionHeap::new(*start, *len));
        Self::from_regions(regions.collect::<Result<_, _>>()?)
    }
}

impl<B: NewBitmap> GuestRegionHeap<B> {
    /// `len` zeroed bytes at `start`.
    ///
    /// # Errors
    /// If `len` is 0, the region would end beyond the last address, or there is no memory.
    pub fn new(start: GuestAddress, len: usize) -> Result<Self, GuestRegionCollectionError> {
        let last = len.checked_sub(1).and_then(|rest| start.checked_add(rest as u64));
        last.ok_or(GuestRegionCollectionError::InvalidGuestRegion)?;
        let (mut words, count) = (Vec::new(), len.div_ceil(8));
        words.try_reserve_exact(count).map_err(|_| GuestRegionCollectionError::OutOfMemory)?;
        words.resize_with(count, AtomicU64::default);
        Ok(Self { start, len, words: words.into(), bitmap: B::with_len(len) })
    }
}

impl<B: NewBitmap> GuestMemoryRegion for GuestRegionHeap<B> {
    type B = B;

    fn len(&self) -> u64 {
        self.len as u64
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> &B {
        &self.bitmap
    }

    fn get_slice(&self, addr: MemoryRegionAddress, count: usize) -> GuestMemoryResult<RegionSlice<'_, Self>> {
        let offset = region_offset(self, addr)?;
        let start = NonNull::from(&*self.words).cast();
        // SAFETY: `words` has at least `len` bytes, lives as long as the borrow of `self`, and is of atomics.
        let slice = unsafe { VolatileSlice::new(start, self.len) }.subslice(offset, count);
        let slice = slice.map_err(|_| GuestMemoryError::InvalidRegionAddress(addr))?;
        Ok(slice.with_bitmap(self.bitmap.slice_at(offset)))
    }
}

impl<B: NewBitmap> GuestMemoryRegionBytes for GuestRegionHeap<B> {}

impl<B> fmt::Debug for GuestRegionHeap<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestRegionHeap({:#x}, {} bytes)", self.start.0, self.len)
    }
}
