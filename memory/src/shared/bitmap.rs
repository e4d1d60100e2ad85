//! Which pages were written through a [`VolatileSlice`](crate::VolatileSlice): names as in rust-vmm's
//! `vm-memory`.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use crate::{AtomicU64, PAGE_SIZE};

/// Records writes by byte offset.
pub trait Bitmap {
    /// The `len` bytes from `offset` on were written. What lies beyond the bitmap's end is ignored.
    fn mark_dirty(&self, offset: usize, len: usize);

    /// Whether the page of the byte at `offset` was written.
    fn dirty_at(&self, offset: usize) -> bool;
}

/// A part of a bitmap, as a slice of the recorded memory carries it.
pub trait BitmapSlice: Bitmap + Clone + fmt::Debug {
    /// The part that starts `offset` bytes after this one does.
    fn slice_at(&self, offset: usize) -> Self;
}

/// A bitmap that lends parts of itself for `'a`.
pub trait WithBitmapSlice<'a> {
    /// The part lent.
    type S: BitmapSlice;

    /// The part for memory that starts at byte `offset`.
    fn slice_at(&'a self, offset: usize) -> Self::S;
}

/// A bitmap that a memory region owns.
pub trait NewBitmap: Bitmap + for<'a> WithBitmapSlice<'a> {
    /// A clean bitmap for `len` bytes.
    fn with_len(len: usize) -> Self;
}

/// Records nothing, and costs nothing.
impl Bitmap for () {
    fn mark_dirty(&self, _: usize, _: usize) {}

    fn dirty_at(&self, _: usize) -> bool {
        false
    }
}

impl BitmapSlice for () {
    fn slice_at(&self, _: usize) -> Self {}
}

impl WithBitmapSlice<'_> for () {
    type S = ();

    fn slice_at(&self, _: usize) -> Self::S {}
}

impl NewBitmap for () {
    fn with_len(_: usize) -> Self {}
}

/// One bit for each page of a region; may be marked from anywhere at any time.
///
/// ```
/// use ringfence_memory::rust_vmm::{AtomicBitmap, GuestMemory, GuestMemoryRegion};
/// use ringfence_memory::{Bytes, DeviceId, Direction, DmaWindows};
/// use ringfence_memory::host::HostPlatform;
///
/// let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DeviceId(0x18))?;
/// let region = windows.allocate(3 * 4096)?;
/// let end_of_first_page = windows.publish(region.address(4095).unwrap()).unwrap();
/// let writable = windows.snapshot::<AtomicBitmap>(Direction::FromDevice)?;
/// writable.write_slice(&[1, 2], end_of_first_page).unwrap();
/// assert_eq!(writable.iter().next().unwrap().bitmap().dirty_pages(), 2);
/// # Ok::<(), ringfence_memory::DmaError>(())
/// ```
pub struct AtomicBitmap {
    words: Vec<AtomicU64>,
    pages: usize,
}

impl AtomicBitmap {
    /// Whether page `page` (counted from the region's start) was written.
    pub fn is_bit_set(&self, page: usize) -> bool {
        let word = self.words.get(page / 64).map_or(0, |word| word.load(Ordering::Relaxed));
        word >> (page % 64) & 1 != 0
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.pages
    }

    /// Whether there are no pages.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// How many pages were written.
    pub fn dirty_pages(&self) -> usize {
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Forgets all writes.
    pub fn reset(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

impl Bitmap for AtomicBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(last) = len.checked_sub(1).map(|rest| offset.saturating_add(rest) / PAGE_SIZE) else {
            return;
        };
        for page in offset / PAGE_SIZE..=last.min(self.pages.saturating_sub(1)) {
            if let Some(word) = self.words.get(page / 64) {
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.is_bit_set(offset / PAGE_SIZE)
    }
}

impl fmt::Debug for AtomicBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AtomicBitmap({} of {} pages dirty)", self.dirty_pages(), self.pages)
    }
}

impl<'a> WithBitmapSlice<'a> for AtomicBitmap {
    type S = RefSlice<'a>;

    fn slice_at(&'a self, offset: usize) -> RefSlice<'a> {
        RefSlice { bitmap: self, offset }
    }
}

impl NewBitmap for AtomicBitmap {
    fn with_len(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_SIZE);
        Self { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), pages }
    }
}

/// An [`AtomicBitmap`] from some byte on.
#[derive(Clone, Copy, Debug)]
pub struct RefSlice<'a> {
    bitmap: &'a AtomicBitmap,
    offset: usize,
}

impl Bitmap for RefSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.bitmap.mark_dirty(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bitmap.dirty_at(self.offset.saturating_add(offset))
    }
}

impl BitmapSlice for RefSlice<'_> {
    fn slice_at(&self, offset: usize) -> Self {
        Self { bitmap: self.bitmap, offset: self.offset.saturating_add(offset) }
    }
}
