//! Memory shared with one device: regions, pools of equal buffers, and the table of what the device may
//! reach.
//!
//! Who owns what: a driver holds one [`DmaWindows`] per device; each [`DmaRegion`] cut from it is a
//! contiguous run of zeroed bytes with a device address; a [`DmaPool`] takes a region and lends its slots as
//! [`DmaBuf`]s, by value. A buffer moves into a queue and comes back with its completion, so no lifetime can
//! be got wrong, and `mem::forget` only shrinks the capacity.
//!
//! What a device knows of memory it learns in three ways, all of them here: the addresses of a queue, written
//! to its registers by [`CommonConfig::set_queue`](crate::CommonConfig::set_queue) or told to a model by
//! [`DmaWindows::publish`]; descriptors, which a [`DescriptorTable`] makes of [`Segment`]s borrowed from
//! their owners; and nothing else: there is no way from an integer to an address.
//!
//! A device *lives* from one reset that was seen to the next. A region that is dropped after the device may
//! have been told of it is *quarantined*: it goes back to the platform only when that [`Life`] has ended. If
//! it never does, the memory is leaked.

mod array;
mod blocks;
mod descriptors;
mod life;
mod pool;
mod region;
mod registry;
mod segment;
mod snapshot;
mod table;
mod windows;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

pub use array::DmaArray;
pub use blocks::{DmaBlock, DmaBlocks};
pub use descriptors::{DescriptorBits, DescriptorTable, Packed, QueueAddresses, RingFormat, Split};
pub use life::{Life, Quiet, ResetError};
pub use pool::{DmaBuf, DmaPool};
pub use region::DmaRegion;
pub use registry::{DmaRegistry, WindowInfo};
pub use segment::Segment;
pub use snapshot::{DmaSnapshot, DmaWindow};
pub use windows::DmaWindows;

use crate::{Direction, PlatformError, VolatileError};
use region::Region;
pub(crate) use table::Side;

/// Why a DMA call was refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DmaError {
    /// The platform has no memory for it.
    Platform(PlatformError),
    /// Somebody else drives the device: its windows are in use.
    Claimed,
    /// A length of zero, or one that overflows when rounded up.
    BadLength,
    /// The device has a window to some of this memory, or had one since it was last reset.
    Overlap,
    /// The address, or the memory, belongs to another device; or the grant is for another.
    WrongDevice,
    /// The address, or the descriptor table, is of a life of the device that has ended.
    WrongLife,
    /// Somebody else has access to a part of the region.
    Shared,
    /// The access does not fit the memory.
    Access(VolatileError),
}

crate::error::messages! { DmaError {
    Platform(error: PlatformError) => "no memory for the device: {error}",
    Claimed => "somebody has the device, or memory of it",
    Overlap => "the device has that memory, or had it since its last reset",
    BadLength => "a length of no bytes, or too many",
    WrongDevice => "memory of another device, or a grant for another",
    WrongLife => "of another device, or of before its last reset",
    Shared => "somebody has a part of the region",
    Access(error: VolatileError) => "outside the memory: {error}",
} }

/// So that `?` works where what was refused is not needed any more.
impl<T> From<(Self, T)> for DmaError {
    fn from((error, _): (Self, T)) -> Self {
        error
    }
}

/// An empty list with room for `count`.
fn list<T>(count: usize) -> Result<Vec<T>, DmaError> {
    let mut list = Vec::new();
    match list.try_reserve_exact(count) {
        Ok(()) => Ok(list),
        Err(_) => Err(DmaError::Platform(PlatformError::OutOfMemory)),
    }
}

/// Adds to a list that may have no room.
fn push<T>(list: &mut Vec<T>, value: T) -> Result<(), DmaError> {
    list.try_reserve(1).map_err(|_| DmaError::Platform(PlatformError::OutOfMemory))?;
    list.push(value);
    Ok(())
}

/// An address as one device uses it, borrowed from the memory that is there: while it exists, the device's
/// window to that memory is open.
///
/// Only the owners of DMA memory mint it, for the device's present [`Life`]; there is no way to build one
/// from an integer or to read the integer out.
#[derive(Clone, Copy)]
pub struct DmaAddr<'a> {
    value: u64,
    region: &'a Region,
    life: u64,
}

impl DmaAddr<'_> {
    /// How many bytes of its region lie before it.
    fn offset(&self) -> usize {
        self.value.wrapping_sub(self.region.device_address) as usize
    }

    /// Whether the device finds `len` bytes here, at a multiple of `align`, that it may access so.
    fn check_room(&self, len: usize, align: usize, direction: Direction) -> Result<(), VolatileError> {
        if self.region.len.saturating_sub(self.offset()) < len {
            Err(VolatileError::OutOfBounds)
        } else if !self.value.is_multiple_of(align as u64) {
            Err(VolatileError::Misaligned)
        } else if !self.region.direction.allows(direction) {
            Err(VolatileError::NotPermitted)
        } else {
            Ok(())
        }
    }
}

impl PartialEq for DmaAddr<'_> {
    fn eq(&self, other: &Self) -> bool {
        let same = Arc::ptr_eq(self.region.table(), other.region.table());
        same && (self.value, self.life) == (other.value, other.life)
    }
}

impl Eq for DmaAddr<'_> {}

impl fmt::Debug for DmaAddr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d:{:#x}", self.value)
    }
}
