//! Bytes that a device, or another processor, may access meanwhile: how they are reached, and how they are
//! found by somebody else's addresses.

mod atomic_access;
mod bitmap;
mod bytes;
mod collection;
mod copy;
mod driver_mem;
mod guest_memory;
#[cfg(any(test, not(target_has_atomic = "64")))]
mod halves;
#[cfg(feature = "mapper")]
mod phys_map;
#[cfg(ringfence_loom)]
pub mod shadow;
mod volatile;

pub use atomic_access::AtomicAccess;
pub use bitmap::{AtomicBitmap, Bitmap, BitmapSlice, NewBitmap, RefSlice, WithBitmapSlice};
pub use bytes::Bytes;
pub use collection::{GuestMemoryHeap, GuestRegionCollection, GuestRegionCollectionError, GuestRegionHeap};
pub use driver_mem::{DeviceRange, DriverMem, DriverRange};
pub use guest_memory::{
    BS, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestMemorySliceIterator, MS, MemoryRegionAddress, RegionSlice, Result as GuestMemoryResult,
    region_offset,
};
#[cfg(feature = "mapper")]
pub use phys_map::{PhysMap, PhysRegion};
pub use volatile::{Direction, VolatileArrayRef, VolatileError, VolatileRef, VolatileSlice, fence};
