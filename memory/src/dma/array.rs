//! Parts of regions that are checked once, so that each access costs one comparison: for rings.

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::{DmaAddr, DmaError, DmaRegion, Shared};
use crate::{AtomicAccess, DeviceId, VolatileError};

/// Consecutive integers in a [`DmaRegion`], each loaded and stored in one access.
///
/// It keeps the memory alive, but not the device's window to it: for that the region itself must live.
pub struct DmaArray<T> {
    start: NonNull<T>,
    count: usize,
    device_address: u64,
    device: DeviceId,
    /// Keeps `start` valid.
    _owner: Arc<Shared>,
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
        let len = count.checked_mul(size_of::<T>()).ok_or(VolatileError::OutOfBounds)?;
        let start = self.slice(offset, len)?.as_ptr().cast::<T>();
        if !start.is_aligned() {
            return Err(VolatileError::Misaligned.into());
        }
        let device_address = self.0.device_address().wrapping_add(offset as u64);
        let device = self.0.table().device();
        Ok(DmaArray { start, count, device_address, device, _owner: self.0.clone() })
    }
}

impl<T: AtomicAccess> DmaArray<T> {
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
        // SAFETY: in bounds, and so in the memory that `_owner` keeps; aligned, as `start` is.
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

    /// Where the device finds the `count` values from `index` on; `None` if they are not all there.
    #[inline]
    pub fn address_of(&self, index: usize, count: usize) -> Option<DmaAddr> {
        index.checked_add(count).filter(|&end| end <= self.count)?;
        let offset = index.wrapping_mul(size_of::<T>()) as u64;
        Some(DmaAddr { value: self.device_address.wrapping_add(offset), device: self.device })
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

/// Consecutive records of 16 bytes that each begin with the address of something: descriptors (virtio 1.4, 2.7.5 and
/// 2.8.13).
#[derive(Debug)]
pub struct DescriptorArray {
    words: DmaArray<u64>,
    count: usize,
}

impl DescriptorArray {
    /// The `count` descriptors from the byte at `offset` of `region` on.
    ///
    /// # Errors
    /// As for [`DmaRegion::array`].
    pub fn new(region: &DmaRegion, offset: usize, count: usize) -> Result<Self, DmaError> {
        let words = region.array(offset, count.checked_mul(2).ok_or(VolatileError::OutOfBounds)?)?;
        Ok(Self { words, count })
    }

    /// Number of descriptors.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Writes the address at the start of the descriptor at `index`.
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] if the address is another device's, [`DmaError::Access`] beyond the end.
    #[inline]
    pub fn store_address(&self, index: usize, address: DmaAddr) -> Result<(), DmaError> {
        if address.device != self.words.device {
            return Err(DmaError::WrongDevice);
        }
        let [at, _] = self.at(index)?;
        // SAFETY: in the memory that `words` keeps, and aligned.
        unsafe { u64::store(at, address.value.to_le(), Ordering::Relaxed) };
        Ok(())
    }

    /// Writes the second half of the descriptor at `index`, in one access: `rest` as a little-endian integer. Panics if
    /// `order` is not one for stores.
    ///
    /// # Errors
    /// [`DmaError::Access`] beyond the end.
    #[inline]
    pub fn store_rest(&self, index: usize, rest: u64, order: Ordering) -> Result<(), DmaError> {
        let [_, at] = self.at(index)?;
        // SAFETY: as in `store_address`.
        unsafe { u64::store(at, rest.to_le(), order) };
        Ok(())
    }

    /// Where the device finds the descriptor at `index`; `None` beyond the end.
    #[inline]
    pub fn address(&self, index: usize) -> Option<DmaAddr> {
        self.words.address_of(index.checked_mul(2)?, 2)
    }

    /// Both halves of the descriptor at `index`.
    #[inline]
    fn at(&self, index: usize) -> Result<[NonNull<u64>; 2], VolatileError> {
        if index >= self.count {
            return Err(VolatileError::OutOfBounds);
        }
        // SAFETY: `words` has two words for each of the `count` descriptors.
        let first = unsafe { self.words.start.add(index.wrapping_mul(2)) };
        // SAFETY: as above.
        Ok([first, unsafe { first.add(1) }])
    }
}
