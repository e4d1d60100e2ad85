//! Blocks of words: an index is checked once for all that is in its block.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::region::Region;
use super::segment::Segment;
use super::table::WindowTable;
use super::{DmaError, DmaWindows};
use crate::{AtomicAccess, Direction};

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Equal blocks of `N` 64-bit words, all zero at first, which the CPU and the device read and write: for what
/// each slot of a queue needs besides its descriptors.
///
/// ```
/// use core::sync::atomic::Ordering;
/// use ringfence_memory::{DeviceId, DmaBlocks, DmaWindows, host::HostPlatform};
///
/// let windows = DmaWindows::new(Box::leak(Box::new(HostPlatform::new())), DeviceId(0x18))?;
/// let blocks = DmaBlocks::<4>::new(&windows, 3)?;
/// let block = blocks.get(2).expect("there are three");
/// block.store::<1>(7, Ordering::Relaxed);
/// assert_eq!(block.load::<1>(Ordering::Relaxed), 7);
/// assert_eq!(block.segment::<2, 1>(true).len(), 1);
/// assert!(blocks.get(3).is_none());
/// assert_eq!(blocks.get_wrapping(6).load::<1>(Ordering::Relaxed), 7, "there is room for four");
/// # Ok::<(), ringfence_memory::DmaError>(())
/// ```
pub struct DmaBlocks<const N: usize> {
    start: NonNull<u64>,
    count: usize,
    /// So many blocks there is room for, less 1.
    last: usize,
    device_address: u64,
    /// The region's, for speed: compared, never followed.
    table: *const WindowTable,
    /// Keeps `start` valid.
    region: Arc<Region>,
}

// SAFETY: like `VolatileSlice`, it gives atomic access only, to memory that holds no Rust object; racing
// accesses are the case it exists for. `table` is compared, never followed.
unsafe impl<const N: usize> Send for DmaBlocks<N> {}
// SAFETY: as for `Send`.
unsafe impl<const N: usize> Sync for DmaBlocks<N> {}

impl<const N: usize> DmaBlocks<N> {
    /// `count` blocks in memory of their own, with room for a power of two of them.
    ///
    /// # Errors
    /// As for [`DmaWindows::allocate_for`].
    pub fn new(windows: &DmaWindows, count: usize) -> Result<Self, DmaError> {
        let room = count.checked_next_power_of_two().filter(|_| count > 0).ok_or(DmaError::BadLength)?;
        let len = N.checked_mul(WORD).and_then(|block| room.checked_mul(block)).ok_or(DmaError::BadLength)?;
        let region = windows.allocate_for(len, Direction::Both)?.0;
        let start = region.as_volatile_slice().subslice(0, len)?.as_ptr().cast();
        let (device_address, table) = (region.device_address, Arc::as_ptr(region.table()));
        Ok(Self { start, count, last: room.wrapping_sub(1), device_address, table, region })
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Always false: there is at least one block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The block at `index`; `None` beyond the end.
    pub fn get(&self, index: usize) -> Option<DmaBlock<'_, N>> {
        (index < self.count).then(|| self.get_wrapping(index))
    }

    /// The same, from the beginning again where the room for blocks ends: there is nothing to check.
    #[inline(always)]
    pub fn get_wrapping(&self, index: usize) -> DmaBlock<'_, N> {
        let first = (index & self.last).wrapping_mul(N);
        // SAFETY: `new` found room for `last + 1` blocks of `N` words from `start` on, and with no bits but
        // those of `last` the index is not above it.
        let start = unsafe { self.start.add(first) };
        let device_address = self.device_address.wrapping_add(first.wrapping_mul(WORD) as u64);
        DmaBlock { start, device_address, table: self.table, owner: PhantomData }
    }
}

impl<const N: usize> fmt::Debug for DmaBlocks<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBlocks({} of {N} words, {} bytes)", self.len(), self.region.len)
    }
}

/// One block of [`DmaBlocks`].
#[derive(Clone, Copy)]
pub struct DmaBlock<'a, const N: usize> {
    /// The first of `N` words.
    start: NonNull<u64>,
    device_address: u64,
    table: *const WindowTable,
    owner: PhantomData<&'a Region>,
}

impl<'a, const N: usize> DmaBlock<'a, N> {
    /// Word `I`, which must be below `N`. Panics if `order` is not one for loads.
    #[inline(always)]
    pub fn load<const I: usize>(self, order: Ordering) -> u64 {
        // SAFETY: there is such a word, in memory that outlives `'a`, and it is aligned.
        unsafe { u64::load(self.word::<I>(), order) }
    }

    /// Stores word `I`, which must be below `N`. Panics if `order` is not one for stores.
    #[inline(always)]
    pub fn store<const I: usize>(self, value: u64, order: Ordering) {
        // SAFETY: as in `load`.
        unsafe { u64::store(self.word::<I>(), value, order) }
    }

    /// The first `LEN` bytes from word `I` on, all in the block, for the device to read or, if `writable`, to
    /// write.
    #[inline(always)]
    pub fn segment<const I: usize, const LEN: u32>(self, writable: bool) -> Segment<'a> {
        const { assert!(LEN > 0 && I * WORD + LEN as usize <= N * WORD, "bytes of the block") }
        let address = self.device_address.wrapping_add((I * WORD) as u64);
        Segment { address, len: LEN, writable, table: self.table, owner: PhantomData }
    }

    #[inline(always)]
    fn word<const I: usize>(self) -> NonNull<u64> {
        const { assert!(I < N, "a word of the block") }
        // SAFETY: `start` is the first of `N` words.
        unsafe { self.start.add(I) }
    }
}
