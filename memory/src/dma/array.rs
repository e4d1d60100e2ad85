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
/// It owns the region together with whoever else holds a part of it: while it exists, the device's window is
/// open.
pub struct DmaArray<T> {
    start: NonNull<T>,
    /// The index of the last value.
    last: usize,
    /// Keeps `start` valid.
    region: Arc<Region>,
}

// SAFETY: like `VolatileSlice`, it gives atomic access only, to memory that holds no Rust object; racing
// accesses are the case it exists for.
unsafe impl<T: AtomicAccess> Send for DmaArray<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: AtomicAccess> Sync for DmaArray<T> {}

impl DmaRegion {
    /// The `count` consecutive values of type `T` from the byte at `offset` on.
    ///
    /// # Errors
    /// [`DmaError::Access`] if there are none, if they are not all in the region, or not aligned.
    pub fn array<T: AtomicAccess>(&self, offset: usize, count: usize) -> Result<DmaArray<T>, DmaError> {
        DmaArray::new(&self.0, offset, count)
    }
}

impl<T: AtomicAccess> DmaArray<T> {
    pub(super) fn new(region: &Arc<Region>, offset: usize, count: usize) -> Result<Self, DmaError> {
        let last = count.checked_sub(1).ok_or(VolatileError::OutOfBounds)?;
        let len = count.checked_mul(size_of::<T>()).ok_or(VolatileError::OutOfBounds)?;
        let start = region.as_volatile_slice().subslice(offset, len)?.as_ptr().cast::<T>();
        if !start.is_aligned() {
            return Err(VolatileError::Misaligned.into());
        }
        Ok(Self { start, last, region: region.clone() })
    }

    /// The `count` values from `index` on, as an array of their own in the same memory. `None` if there are
    /// none, or not as many.
    pub fn part(&self, index: usize, count: usize) -> Option<Self> {
        let last = count.checked_sub(1)?;
        index.checked_add(last).filter(|&end| end <= self.last)?;
        Some(Self { start: self.at(index)?, last, region: self.region.clone() })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.last + 1
    }

    /// Always false: an array has at least one value.
    pub fn is_empty(&self) -> bool {
        false
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

    /// [`load`](Self::load), from the beginning again where the array ends, if its length is a power of two;
    /// of other arrays some value. For rings: there is nothing to check.
    #[inline]
    pub fn load_wrapping(&self, index: usize, order: Ordering) -> T {
        // SAFETY: as in `load`.
        unsafe { T::load(self.at_wrapping(index), order) }
    }

    /// [`store`](Self::store), where [`load_wrapping`](Self::load_wrapping) loads.
    #[inline]
    pub fn store_wrapping(&self, index: usize, value: T, order: Ordering) {
        // SAFETY: as in `load`.
        unsafe { T::store(self.at_wrapping(index), value, order) }
    }

    /// Where the device finds the value at `index`; `None` beyond the end.
    pub fn address(&self, index: usize) -> Option<DmaAddr<'_>> {
        let offset = self.at(index)?.addr().get() - self.region.start.addr().get();
        let (value, life) =
            (self.region.device_address.wrapping_add(offset as u64), self.region.table().life());
        Some(DmaAddr { value, region: &self.region, life })
    }

    #[inline]
    fn at(&self, index: usize) -> Option<NonNull<T>> {
        // SAFETY: `index` is not above that of the last value from `start` on.
        (index <= self.last).then(|| unsafe { self.start.add(index) })
    }

    #[inline]
    fn at_wrapping(&self, index: usize) -> NonNull<T> {
        // SAFETY: with no bits but those of `last` it is not above `last`, which is the last value's index.
        unsafe { self.start.add(index & self.last) }
    }
}

impl<T> fmt::Debug for DmaArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaArray({} of {} bytes)", self.last + 1, size_of::<T>())
    }
}
