//! What a descriptor is made of: some of an owner's bytes, borrowed from it.

use core::fmt;
use core::marker::PhantomData;

use super::DmaBuf;
use super::region::Region;
use super::table::WindowTable;

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
    pub(super) owner: PhantomData<&'a Region>,
}

/// The most bytes of a segment: a chain with a header and a status of up to 64 KiB each is below 4 GiB then
/// (virtio 1.4, 2.7.5).
pub(super) const LONGEST: u32 = u32::MAX - (1 << 18);

impl Segment<'_> {
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

impl DmaBuf {
    /// `len` bytes from `offset` on, for the device to read or, if `writable`, to write. `None` if they are
    /// not all in the buffer, if there are none, or if the buffer is not for this direction.
    #[inline]
    pub fn segment(&self, offset: usize, len: usize, writable: bool) -> Option<Segment<'_>> {
        // No buffer is longer than `LONGEST`.
        let allowed = self.allowed(writable) as usize;
        offset.checked_add(len).filter(|&end| end <= allowed && len > 0)?;
        let address = self.device_address().wrapping_add(offset as u64);
        Some(Segment { address, len: len as u32, writable, table: self.table(), owner: PhantomData })
    }
}
