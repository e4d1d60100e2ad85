//! Memory that is owned by exactly one Rust value: frames, pages, mappings, device registers and DMA regions.
//!
//! ```text
//! frames ─► MappedPages<Private>   &T / &mut T
//!    │  ├─► MappedPages<Mmio>      registers; each range claimed once
//!    │  └─► MappedPages<Dma> ─► DmaRegion ─► DmaPool ─► DmaBuf, by value ─► queue ─► device
//!    └ pages ─ Mapper ─ TLB        DmaWindows (one per device): what the device may reach
//! ```
//!
//! A kernel that only wants the drivers implements [`Platform`]; one that also wants the allocators and the mapper
//! implements [`Cpu`] as well.
#![no_std]

extern crate alloc;
#[cfg(any(test, feature = "host", ringfence_loom))]
extern crate std;

mod address;
mod allocator;
mod audit;
mod bitmap;
mod bits;
mod bytes;
mod copy;
mod device;
mod dma;
mod driver_mem;
mod frames;
mod guest_memory;
#[cfg(any(test, feature = "host"))]
pub mod host;
mod lock;
mod mapping;
mod pages;
mod phys_map;
mod platform;
mod range;
pub mod rust_vmm;
#[doc = include_str!("seed_systems.md")]
pub mod seed_systems {}
#[cfg(ringfence_loom)]
pub mod shadow;
mod tlb;
mod volatile;

pub use address::{PAGE_SHIFT, PAGE_SIZE, PHYS_END, PhysAddr, VirtAddr};
pub use allocator::AllocError;
pub use audit::{Audit, Finding, Report};
pub use bitmap::{AtomicBitmap, Bitmap, BitmapSlice, NewBitmap, RefSlice, WithBitmapSlice};
pub use bytes::Bytes;
pub use device::{
    BAR_COUNT, Bar, Capabilities, Capability, CommonConfig, ConfigAccess, ConfigError, ConfigSpace, DmaGrant,
    Ecam, MmioError, MmioRegion, MsiMessage, MsixTable, Notifier, NotifyConfig, PciAddress, Register,
    SetQueueError, VirtioPci, VirtioPciError, common,
};
pub use dma::{
    DescriptorTable, DmaAddr, DmaArray, DmaBuf, DmaError, DmaPool, DmaRegion, DmaRegistry, DmaSnapshot,
    DmaWindow, DmaWindows, Life, Packed, QueueAddresses, Quiet, ResetError, RingFormat, Segment,
    SegmentArray, SegmentPairs, Split,
};
pub use driver_mem::{DeviceRange, DriverMem, DriverRange};
pub use frames::{AllocatedFrames, FrameAllocator, FrameRequest, Owner};
pub use guest_memory::{
    BS, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestMemorySliceIterator, MS, MemoryRegionAddress, RegionSlice, Result as GuestMemoryResult,
    region_offset,
};
pub use mapping::{
    AccessError, AddressSpace, BorrowedMappedPages, BorrowedSliceMappedPages, ClaimError, Dma, Immutable,
    Kind, MapError, MappedPages, Mapper, Mmio, Mutability, Mutable, PagesOwner, Private, Protection, Stack,
    TablePool,
};
pub use pages::{AllocatedPages, PageAllocator, PageRequest};
pub use phys_map::{PhysMap, PhysRegion};
pub use platform::{DeviceId, DmaMemory, MmioMemory, Platform, PlatformError};
pub use range::{Frame, FrameRange, Page, PageRange, RangeError};
pub use tlb::{Cpu, Stale};
pub use volatile::{
    AtomicAccess, Direction, VolatileArrayRef, VolatileError, VolatileRef, VolatileSlice, fence,
};
