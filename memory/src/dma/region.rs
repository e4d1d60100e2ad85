//! Contiguous runs of bytes that one device may reach.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use super::DmaAddr;
use super::windows::{DmaWindows, WindowTable};
use crate::{Direction, DmaMemory, VolatileSlice};

/// The memory of a region, held by the region and by every snapshot that shows it.
pub(crate) struct RegionMemory {
    /// `None` only while dropping.
    memory: Option<Box<DmaMemory>>,
    /// Its first byte.
    pub(super) start: NonNull<u8>,
    pub(super) table: Arc<WindowTable>,
    pub(super) device_address: u64,
    pub(super) len: usize,
    pub(super) direction: Direction,
}

// SAFETY: `start` alone keeps it from being `Send`. It is where `memory`, which is `Send`, has its bytes, and
// those are accessed as shared memory only, by whichever thread.
unsafe impl Send for RegionMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for RegionMemory {}

impl RegionMemory {
    pub(super) fn new(memory: DmaMemory, table: Arc<WindowTable>, direction: Direction) -> Self {
        let (device_address, len, start) = (memory.device_address, memory.len, memory.start);
        // In a box already, so that it goes to the quarantine without an allocation.
        let memory = Some(Box::new(memory));
        Self { memory, start, table, device_address, len, direction }
    }

    #[inline]
    pub(super) fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // SAFETY: `DmaMemory` promises the bytes, where they are, for as long as it lives, which is as long
        // as `self` (only `drop` takes `memory`), and that they hold no Rust object; nothing in this module
        // makes a reference.
        unsafe { VolatileSlice::new(self.start, self.len) }
    }
}

impl Drop for RegionMemory {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.table.give_back(memory);
        }
    }
}

/// An open window to memory: what the owner of a [`DmaRegion`] and the parts that were cut from it have in
/// common.
pub(crate) struct Region {
    pub(super) shared: Arc<RegionMemory>,
    /// Keeps the table claimed.
    pub(super) _windows: DmaWindows,
    /// So many of its first bytes are descriptors: nothing else that a device writes may be there.
    pub(super) descriptors: usize,
}

impl Deref for Region {
    type Target = RegionMemory;

    #[inline]
    fn deref(&self) -> &RegionMemory {
        &self.shared
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
        let Region { shared, .. } = &*self.0;
        let value = shared.device_address.checked_add(offset as u64).filter(|_| offset < shared.len)?;
        Some(DmaAddr { value, region: &self.0, life: shared.table.life() })
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
