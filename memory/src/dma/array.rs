//! Parts of regions that are checked once, so that each access costs one comparison: for rings.

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::region::Region;
use super::{DmaAddr, DmaError, DmaRegion};
use crate::{AtomicAccess, VolatileError};

/// Consecutive integers in a [`DmaRegion`], each loaded and stored in one access.
///
/// It owns the region together with whoever else holds a part of it: while it exists, the device's window is open.
pub struct DmaArray<T> {
    start: NonNull<T>,
    count: usize,
    device_address: u64,
    /// Keeps `start` valid.
    region: Arc<Region>,
}

// SAFETY: like `VolatileSlice`, it gives atomic access only, to memory that holds no Rust object; racing accesses are the
// case it exists for.
unsafe impl<T: AtomicAccess> Send for DmaArray<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: AtomicAccess> Sync for DmaArray<T> {}

impl DmaRegion {
    /// The `count` consecutive values of type `T` from the byte at `offset` on.
    ///
    /// # Errors
    /// [`DmaError::Access`] if they are not all in the region, or not aligned.
    pub fn array<T: AtomicAccess>(&self, offset: usize, count: usize) -> Result<DmaArray<T>, DmaError> {
        DmaArray::new(&self.0, offset, count)
    }
}

impl<T: AtomicAccess> DmaArray<T> {
    pub(super) fn new(region: &Arc<Region>, offset: usize, count: usize) -> Result<Self, DmaError> {
        let len = count.checked_mul(size_of::<T>()).ok_or(VolatileError::OutOfBounds)?;
        let start = region.as_volatile_slice().subslice(offset, len)?.as_ptr().cast::<T>();
        if !start.is_aligned() {
            return Err(VolatileError::Misaligned.into());
        }
        let device_address = region.device_address.wrapping_add(offset as u64);
        Ok(Self { start, count, device_address, region: region.clone() })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The value at `index`; `None` beyond the end. Panics if `order` is not one for loads.
    #[inline]
    pub fn load(&self, index: usize, order: Ordering) -> Option<T> {
        let at = self.at(index)?;
        // SAFETY: in bounds, and so in the memory that `region` keeps; aligned, as `start` is.
        Some(unsafe { T::load(at, order) })
    }

    /// Stores the value at `index`; `None` beyond the end. Panics if `order` is not one for stores.
    #[inline]
    pub fn store(&self, index: usize, value: T, order: Ordering) -> Option<()> {
        let at = self.at(index)?;
        // SAFETY: as in `load`.
        unsafe { T::store(at, value, order) };
        Some(())
    }

    /// Where the device finds the value at `index`; `None` beyond the end.
    pub fn address(&self, index: usize) -> Option<DmaAddr<'_>> {
        let offset = index.wrapping_mul(size_of::<T>()) as u64;
        let (value, life) = (self.device_address.wrapping_add(offset), self.region.table.life());
        (index < self.count).then_some(DmaAddr { value, region: &self.region, life })
    }

    #[inline]
    pub(super) fn device_address(&self) -> u64 {
        self.device_address
    }

    #[inline]
    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    #[inline]
    fn at(&self, index: usize) -> Option<NonNull<T>> {
        // SAFETY: `index` is below the number of values from `start` on.
        (index < self.count).then(|| unsafe { self.start.add(index) })
    }
}

impl<T> fmt::Debug for DmaArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaArray({} of {} bytes)", self.count, size_of::<T>())
    }
}
