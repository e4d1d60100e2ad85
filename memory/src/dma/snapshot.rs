//! What a device may reach, as a device model sees it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::region::Shared;
use crate::{
    Direction,
    rust_vmm::{
        GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion, GuestMemoryResult,
        MemoryRegionAddress, NewBitmap, RegionSlice, region_offset,
    },
};

/// The windows of one device in one direction, frozen. It is [`GuestMemory`], and so
/// [`DriverMem`](crate::fuchsia::DriverMem).
///
/// It holds a counted reference to each region, so their memory goes nowhere before the snapshot does, even if the
/// driver drops them. What the driver opens later is not seen: take a new snapshot.
pub struct DmaSnapshot<B: NewBitmap = ()> {
    /// By rising address.
    windows: Vec<DmaWindow<B>>,
    /// While it exists a model's reset is not proved.
    _view: Option<Arc<()>>,
}

impl<B: NewBitmap> DmaSnapshot<B> {
    /// The memory can be reached if there is a `view`.
    pub(super) fn new(regions: Vec<Arc<Shared>>, direction: Direction, view: Option<Arc<()>>) -> Self {
        let open = view.is_some();
        let window =
            |shared: Arc<Shared>| DmaWindow { bitmap: B::with_len(shared.len()), shared, direction, open };
        Self { windows: regions.into_iter().map(window).collect(), _view: view }
    }
}

impl<B: NewBitmap> GuestMemory for DmaSnapshot<B> {
    type R = DmaWindow<B>;

    fn iter(&self) -> impl Iterator<Item = &DmaWindow<B>> {
        self.windows.iter()
    }

    fn find_region(&self, addr: GuestAddress) -> Option<&DmaWindow<B>> {
        let past = self.windows.partition_point(|window| window.start_addr() <= addr);
        let window = self.windows.get(past.checked_sub(1)?)?;
        window.to_region_addr(addr).map(|_| window)
    }
}

impl<B: NewBitmap> fmt::Debug for DmaSnapshot<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.windows).finish()
    }
}

/// One window: a region at its device address.
pub struct DmaWindow<B: NewBitmap = ()> {
    shared: Arc<Shared>,
    direction: Direction,
    /// Whether the memory can be reached.
    open: bool,
    bitmap: B,
}

impl<B: NewBitmap> GuestMemoryRegion for DmaWindow<B> {
    type B = B;

    fn len(&self) -> u64 {
        self.shared.len() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.shared.device_address())
    }

    fn bitmap(&self) -> &B {
        &self.bitmap
    }

    fn get_slice(&self, addr: MemoryRegionAddress, count: usize) -> GuestMemoryResult<RegionSlice<'_, Self>> {
        let offset = region_offset(self, addr)?;
        if !self.open {
            return Err(GuestMemoryError::HostAddressNotAvailable);
        }
        let slice = self.shared.as_volatile_slice().restrict(self.direction).subslice(offset, count);
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
