//! What a descriptor is made of: some of an owner's bytes, borrowed from it.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;

use super::region::Region;
use super::windows::WindowTable;
use super::{DmaArray, DmaBuf};
use crate::{AtomicAccess, Direction};

/// Bytes for a device to read or to write, borrowed from the value that owns them: inside it, in a direction
/// that it allows, not empty, and shorter than 4 GiB by at least 256 KiB.
///
/// ```
/// use ringfence_memory::{DeviceId, Direction, DmaPool, DmaWindows, host::HostPlatform};
///
/// let windows = DmaWindows::new(Box::leak(Box::new(HostPlatform::new())), DeviceId(0x18))?;
/// let pool = DmaPool::new_for(&windows, 1, 512, Direction::ToDevice)?;
/// let buffer = pool.take().expect("none is lent");
/// assert_eq!(buffer.segment(0, 512, false).map(|segment| segment.len()), Some(512));
/// assert!(buffer.segment(1, 512, false).is_none(), "beyond the end");
/// assert!(buffer.segment(512, 0, false).is_none(), "no bytes");
/// assert!(buffer.segment(0, 512, true).is_none(), "the device may only read");
/// # Ok::<(), ringfence_memory::DmaError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) writable: bool,
    /// Compared, never followed.
    pub(super) table: *const WindowTable,
    owner: PhantomData<&'a Region>,
}

/// The most bytes of a segment: a chain with a header and a status of up to 64 KiB each is below 4 GiB then
/// (virtio 1.4, 2.7.5).
pub(super) const LONGEST: u32 = u32::MAX - (1 << 18);

impl Segment<'_> {
    #[inline]
    fn new(table: *const WindowTable, address: u64, len: usize, writable: bool) -> Option<Self> {
        // Neither 0 nor too long.
        let fits = len.wrapping_sub(1) < LONGEST as usize;
        fits.then_some(Self { address, len: len as u32, writable, table, owner: PhantomData })
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the device writes it; else it reads.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

impl fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.writable { "from" } else { "to" };
        write!(f, "Segment(d:{:#x}, {} bytes {way} the device)", self.address, self.len)
    }
}

/// What a device does with a segment.
#[inline]
fn direction(writable: bool) -> Direction {
    if writable { Direction::FromDevice } else { Direction::ToDevice }
}

impl DmaBuf {
    /// `len` bytes from `offset` on, for the device to read or, if `writable`, to write. `None` if they are
    /// not all in the buffer, if there are none, or if the buffer is not for this direction.
    #[inline]
    pub fn segment(&self, offset: usize, len: usize, writable: bool) -> Option<Segment<'_>> {
        // No buffer is longer than `LONGEST`.
        offset.checked_add(len).filter(|&end| end <= self.len() && len > 0)?;
        let address = self.device_address().wrapping_add(offset as u64);
        let (len, table) = (len as u32, self.table());
        let segment = Segment { address, len, writable, table, owner: PhantomData };
        self.direction().allows(direction(writable)).then_some(segment)
    }
}

impl<T: AtomicAccess> DmaArray<T> {
    /// `count` values from `index` on, for the device to read or, if `writable`, to write. `None` if they are
    /// not all in the array, if there are none, or if the memory is not for this direction.
    #[inline]
    pub fn segment(&self, index: usize, count: usize, writable: bool) -> Option<Segment<'_>> {
        index.checked_add(count).filter(|&end| end <= self.len())?;
        let offset = index.wrapping_mul(size_of::<T>()) as u64;
        let len = count.checked_mul(size_of::<T>())?;
        let address = self.device_address().wrapping_add(offset);
        Segment::new(Arc::as_ptr(&self.region().table), address, len, writable)
            .filter(|_| self.region().direction.allows(direction(writable)))
    }

    /// Equal segments that fill the array from its beginning, each of `count` values.
    ///
    /// `None` as for [`segment`](Self::segment).
    pub fn segments(&self, count: usize, writable: bool) -> Option<SegmentArray> {
        let first = self.segment(0, count, writable)?;
        let (start, len) = (first.address, first.len);
        let segments = self.len().checked_div(count)?;
        let (table, region) = (first.table, self.region().clone());
        Some(SegmentArray { start, len, segments, writable, table, _region: region })
    }
}

/// Equal segments one after the other: the headers, or the status bytes, of all slots of a queue. It owns
/// what it is made of together with the array.
#[derive(Clone)]
pub struct SegmentArray {
    start: u64,
    len: u32,
    segments: usize,
    writable: bool,
    /// The region's, for speed: compared, never followed.
    table: *const WindowTable,
    /// Keeps the window open.
    _region: Arc<Region>,
}

// SAFETY: `table` alone keeps it from being `Send`, and is never followed.
unsafe impl Send for SegmentArray {}
// SAFETY: as for `Send`.
unsafe impl Sync for SegmentArray {}

/// Pairs of segments: those of the same index in two arrays of one device, which reads the one and writes the
/// other.
#[derive(Debug)]
pub struct SegmentPairs {
    read: SegmentArray,
    written: SegmentArray,
    /// In both.
    count: usize,
}

impl SegmentPairs {
    /// `None` if they are different devices', or not for these directions.
    pub fn new(read: &SegmentArray, written: &SegmentArray) -> Option<Self> {
        let right = core::ptr::eq(read.table, written.table) && !read.writable && written.writable;
        let count = read.segments.min(written.segments);
        right.then(|| Self { read: read.clone(), written: written.clone(), count })
    }

    /// Number of pairs.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Lengths of the segments of each pair in bytes.
    #[inline]
    pub fn segment_lens(&self) -> [u32; 2] {
        [self.read.len, self.written.len]
    }

    /// The pair with this index; `None` beyond the end.
    #[inline(always)]
    pub fn get(&self, index: usize) -> Option<[Segment<'_>; 2]> {
        let Self { read, written, count } = self;
        if index >= *count {
            return None;
        }
        let segment = |array: &SegmentArray, writable| {
            let address = array.start.wrapping_add((index as u64).wrapping_mul(array.len.into()));
            Segment { address, len: array.len, writable, table: read.table, owner: PhantomData }
        };
        Some([segment(read, false), segment(written, true)])
    }
}

impl fmt::Debug for SegmentArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.writable { "from" } else { "to" };
        write!(f, "SegmentArray({} of {} bytes {way} the device)", self.segments, self.len)
    }
}
