//! Memory as somebody else addresses it, in the names of rust-vmm's `vm-memory`: what differs is listed in
//! [`seed_systems`](crate::seed_systems).
//!
//! The snapshots of a device's windows ([`DmaSnapshot`](crate::DmaSnapshot)) are [`GuestMemory`]; all else
//! here is for device models, on a host or in tests. The examples of the trait's documentation, with memory
//! from the heap in place of `GuestMemoryMmap`:
//!
//! ```
//! # use ringfence_memory::Bytes;
//! # use ringfence_memory::rust_vmm::{GuestAddress, GuestMemory, GuestMemoryHeap, GuestMemoryRegion};
//! let start_addr1 = GuestAddress(0x0);
//! let start_addr2 = GuestAddress(0x400);
//! let gm = GuestMemoryHeap::<()>::from_ranges(&vec![(start_addr1, 1024), (start_addr2, 2048)])
//!     .expect("Could not create guest memory");
//!
//! let total_size = gm
//!     .iter()
//!     .map(|region| region.len() / 1024)
//!     .fold(0, |acc, size| acc + size);
//! assert_eq!(3, total_size);
//!
//! let start_addr = GuestAddress(0x1000);
//! let mut gm = GuestMemoryHeap::<()>::from_ranges(&vec![(start_addr, 0x400)])
//!     .expect("Could not create guest memory");
//!
//! assert_eq!(start_addr.checked_add(0x3ff), Some(gm.last_addr()));
//!
//! let addr = gm
//!     .get_host_address(GuestAddress(0x1200))
//!     .expect("Could not get host address");
//! println!("Host address is {:p}", addr);
//!
//! let res = gm.write(&[1, 2, 3, 4, 5], GuestAddress(0x1200)).expect("Could not write to guest memory");
//! assert_eq!(5, res);
//! ```

pub use crate::shared::{
    AtomicBitmap, BS, Bitmap, BitmapSlice, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryHeap,
    GuestMemoryRegion, GuestMemoryRegionBytes, GuestMemoryResult, GuestMemorySliceIterator,
    GuestRegionCollection, GuestRegionCollectionError, GuestRegionHeap, MS, MemoryRegionAddress, NewBitmap,
    RefSlice, RegionSlice, VolatileArrayRef, VolatileRef, WithBitmapSlice, region_offset,
};
#[cfg(feature = "mapper")]
pub use crate::shared::{PhysMap, PhysRegion};
