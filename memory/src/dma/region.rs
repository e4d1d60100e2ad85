//! Contiguous runs of bytes that one device may reach.

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use super::windows::Table;
use super::{Direction, DmaAddr, DmaError};
use crate::{Bytes, DmaMemory, VolatileError, VolatileSlice};

/// The memory of a region, held by the region and by every snapshot that shows it.
pub(crate) struct Shared {
    /// `None` only while dropping.
    memory: Option<DmaMemory>,
    /// Its first byte.
    start: NonNull<u8>,
    table: Arc<Table>,
    device_address: u64,
    len: usize,
    direction: Direction,
}

// SAFETY: `start` alone keeps it from being `Send`. It is where `memory`, which is `Send`, has its bytes, and those are
// accessed volatile only, by whichever thread.
unsafe impl Send for Shared {}
// SAFETY: as for `Send`.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(memory: DmaMemory, table: Arc<Table>, direction: Direction) -> Self {
        let (device_address, len) = (memory.device_address(), memory.backing().len());
        let start = memory.backing().pointer();
        Self { memory: Some(memory), start, table, device_address, len, direction }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn device_address(&self) -> u64 {
        self.device_address
    }

    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    pub(super) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    #[inline]
    pub(crate) fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // SAFETY: `Backing` promises the bytes, where they are, for as long as it lives, which is as long as `self`
        // (only `drop` takes `memory`); `DmaMemory` promises that they hold no Rust object, and nothing in this module
        // makes a reference.
        unsafe { VolatileSlice::new(self.start, self.len) }
    }

    pub(super) fn address(&self, offset: usize) -> Option<DmaAddr> {
        let value = self.device_address.checked_add(offset as u64).filter(|_| offset < self.len)?;
        Some(DmaAddr { value, device: self.table.device() })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.table.give_back(memory);
        }
    }
}

/// A contiguous run of zeroed bytes that one device may reach; page-aligned.
///
/// Not `Clone`: whoever holds the region is the only one on the driver's side to access it. Dropping it closes the
/// device's window: later snapshots do not show it. Its memory goes back to the platform when the last snapshot is gone
/// and the device is known to be quiet.
pub struct DmaRegion(pub(super) Arc<Shared>);

impl DmaRegion {
    /// Length in bytes: a multiple of [`PAGE_SIZE`](crate::PAGE_SIZE).
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Always false: a region has at least one page.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// What the device may do with it.
    pub fn direction(&self) -> Direction {
        self.0.direction
    }

    /// Where the device finds the byte at `offset`; `None` beyond the end.
    pub fn address(&self, offset: usize) -> Option<DmaAddr> {
        self.0.address(offset)
    }

    /// All of the region's bytes.
    #[inline]
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }

    /// Stores `address` as a little-endian 64-bit field at `offset`, for this region's own device only.
    pub fn write_dma_addr(&self, offset: usize, address: DmaAddr) -> Result<(), DmaError> {
        if address.device != self.0.table.device() {
            return Err(DmaError::WrongDevice);
        }
        Ok(self.as_volatile_slice().write_obj(address.value.to_le(), offset)?)
    }

    #[inline]
    pub(super) fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, VolatileError> {
        self.as_volatile_slice().subslice(offset, len)
    }
}

impl Drop for DmaRegion {
    fn drop(&mut self) {
        self.0.table.close_window(self.0.device_address);
    }
}

impl fmt::Debug for DmaRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaRegion({:?}, {} bytes, {:?})", self.address(0), self.len(), self.direction())
    }
}
