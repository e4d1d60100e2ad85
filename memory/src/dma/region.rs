//! Contiguous runs of bytes that one device may reach.

use alloc::sync::Arc;
use core::fmt;
use core::ops::Deref;

use super::DmaAddr;
use super::windows::{DmaWindows, WindowTable};
use crate::{Direction, DmaMemory, VolatileSlice};

/// An open window to memory: what the owner of a [`DmaRegion`] and the parts that were cut from it have in
/// common.
pub(crate) struct Region {
    /// In the list of windows as well, and in every snapshot that shows it.
    pub(super) memory: Arc<DmaMemory>,
    pub(super) table: Arc<WindowTable>,
    /// Keeps the table claimed.
    pub(super) _windows: DmaWindows,
    pub(super) direction: Direction,
    /// So many of its first bytes are descriptors: nothing else that a device writes may be there.
    pub(super) descriptors: usize,
}

impl Deref for Region {
    type Target = DmaMemory;

    #[inline]
    fn deref(&self) -> &DmaMemory {
        &self.memory
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.table.close_window(self.device_address);
    }
}

/// A contiguous run of zeroed bytes that one device may reach; page-aligned.
///
/// Not `Clone`: whoever holds the region, and the parts cut from it, are the only ones on the driver's side
/// to access it. When they are all dropped the device's window closes: later snapshots do not show it. The
/// memory goes back to the platform when the last snapshot is gone and the device is known to be quiet.
pub struct DmaRegion(pub(super) Arc<Region>);

impl DmaRegion {
    /// Length in bytes: a multiple of [`PAGE_SIZE`](crate::PAGE_SIZE).
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Always false: a region has at least one page.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the device may do with it.
    pub fn direction(&self) -> Direction {
        self.0.direction
    }

    /// Where the device finds the byte at `offset`; `None` beyond the end.
    pub fn address(&self, offset: usize) -> Option<DmaAddr<'_>> {
        let value = self.0.device_address.checked_add(offset as u64).filter(|_| offset < self.len())?;
        Some(DmaAddr { value, region: &self.0, life: self.0.table.life() })
    }

    /// All of the region's bytes.
    #[inline]
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

impl fmt::Debug for DmaRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaRegion({:?}, {} bytes, {:?})", self.address(0), self.len(), self.direction())
    }
}
