//! What a device may reach, as a device model sees it.

use alloc::sync::Arc;
use core::fmt;

use crate::rust_vmm::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryResult, GuestRegionCollection,
    MemoryRegionAddress, NewBitmap, RegionSlice, region_offset,
};
use crate::{Direction, DmaMemory};

/// The windows of one device in one direction, frozen. It is [`GuestMemory`](crate::rust_vmm::GuestMemory),
/// and so [`DriverMem`](crate::fuchsia::DriverMem).
///
/// It holds a counted reference to the memory of each region, which goes nowhere before the snapshot does,
/// even if the driver drops them. What the driver opens later is not seen: take a new snapshot.
pub type DmaSnapshot<B = ()> = GuestRegionCollection<DmaWindow<B>>;

/// One window: a region at its device address.
pub struct DmaWindow<B: NewBitmap = ()> {
    memory: Arc<DmaMemory>,
    direction: Direction,
    /// While it exists a model's reset is not proved; without it the memory cannot be reached.
    token: Option<Arc<()>>,
    bitmap: B,
}

impl<B: NewBitmap> DmaWindow<B> {
    pub(super) fn new(memory: Arc<DmaMemory>, direction: Direction, token: Option<Arc<()>>) -> Self {
        Self { bitmap: B::with_len(memory.len), memory, direction, token }
    }
}

impl<B: NewBitmap> GuestMemoryRegion for DmaWindow<B> {
    type B = B;

    fn len(&self) -> u64 {
        self.memory.len as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.memory.device_address)
    }

    fn bitmap(&self) -> &B {
        &self.bitmap
    }

    fn get_slice(&self, addr: MemoryRegionAddress, count: usize) -> GuestMemoryResult<RegionSlice<'_, Self>> {
        let offset = region_offset(self, addr)?;
        if self.token.is_none() {
            return Err(GuestMemoryError::HostAddressNotAvailable);
        }
        let slice = self.memory.as_volatile_slice().restrict(self.direction).subslice(offset, count);
        let slice = slice.map_err(|_| GuestMemoryError::InvalidRegionAddress(addr))?;
        Ok(slice.with_bitmap(self.bitmap.slice_at(offset)))
    }
}

impl<B: NewBitmap> crate::rust_vmm::GuestMemoryRegionBytes for DmaWindow<B> {}

impl<B: NewBitmap> fmt::Debug for DmaWindow<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaWindow({:#x}, {} bytes, {:?})", self.start_addr().0, self.len(), self.direction)
    }
}
