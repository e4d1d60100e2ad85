//! Memory that is owned by exactly one Rust value: frames, pages, mappings, device registers and DMA regions.
//!
//! ```text
//! frames ─► MappedPages<Private>   &T / &mut T
//!    │  ├─► MappedPages<Mmio>      registers; each range claimed once
//!    │  └─► MappedPages<Dma> ─► DmaRegion ─► DmaPool ─► DmaBuf, by value ─► queue ─► device
//!    └ pages ─ Mapper ─ TLB        DmaWindows (one per device): what the device may reach
//! ```
//!
//! A kernel that only wants the drivers implements [`Platform`]; one that also wants the allocators and the
//! mapper takes the feature `mapper`, and implements `Cpu` as well.
//!
//! Names that stand here are what kernels and drivers use. What only the systems ask for from which the
//! design comes is in [`theseus`], [`rust_vmm`] and [`fuchsia`] (how a device model finds memory);
//! [`seed_systems`] says what differs.
#![no_std]
#![cfg_attr(not(feature = "mapper"), allow(dead_code, reason = "the mapper looks more closely at the rest"))]
#![cfg_attr(
    not(feature = "mapper"),
    allow(rustdoc::broken_intra_doc_links, reason = "they lead to the mapper")
)]

extern crate alloc;
#[cfg(any(test, feature = "host"))]
extern crate std;

mod address;
#[cfg(feature = "mapper")]
mod allocator;
mod atomic;
#[cfg(feature = "mapper")]
mod audit;
mod device;
mod dma;
mod error;
#[cfg(any(test, feature = "host"))]
pub mod host;
mod lock;
#[cfg(feature = "mapper")]
mod paging;
mod platform;
mod range;
pub mod rust_vmm;
#[doc = include_str!("seed_systems.md")]
pub mod seed_systems {}
mod shared;
#[cfg(feature = "mapper")]
mod token;
pub mod virtqueue;

pub mod fuchsia {
    //! From an address that a driver published to memory that a device model may touch; names as in Fuchsia's
    //! `virtio_device::mem`.

    pub use crate::shared::{DeviceRange, DriverMem, DriverRange};
}

#[cfg(feature = "mapper")]
pub mod theseus {
    //! Views of [`MappedPages`](crate::MappedPages) that own them, in the names of Theseus. Whoever need not
    //! move the mapping with the view takes [`as_type`](crate::MappedPages::as_type) and its like.

    pub use crate::paging::{
        BorrowedMappedPages, BorrowedSliceMappedPages, Immutable, Mutability, Mutable, PagesOwner,
    };
}

pub use address::{PAGE_SHIFT, PAGE_SIZE, PHYS_END, PhysAddr, VirtAddr};
#[cfg(feature = "mapper")]
pub use allocator::{
    AllocError, AllocatedFrames, AllocatedPages, FrameAllocator, FrameRequest, Owner, PageAllocator,
    PageRequest,
};
pub use atomic::AtomicU64;
#[cfg(feature = "mapper")]
pub use audit::{Audit, Finding, Report};
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
pub use device::ConfigPorts;
pub use device::{
    BAR_COUNT, Bar, BegunReset, Capability, ClaimError, CommonConfig, ConfigAccess, ConfigSpace,
    DeviceControl, DmaGrant, Ecam, MmioClaims, MmioError, MmioInterrupts, MmioNotifier, MmioRegion,
    MsiMessage, MsixTable, Notifier, NotifyConfig, PciAddress, Register, SetQueueError, VirtioMmio,
    VirtioMmioError, VirtioPci, VirtioPciError, common,
};
pub use dma::{
    DescriptorBits, DescriptorTable, DmaAddr, DmaArray, DmaBlock, DmaBlocks, DmaBuf, DmaError, DmaPool,
    DmaRegion, DmaRegistry, DmaSnapshot, DmaWindow, DmaWindows, Life, Packed, QueueAddresses, Quiet,
    ResetError, RingFormat, Segment, Split, WindowInfo,
};
#[cfg(feature = "mapper")]
pub use paging::{
    AccessError, AddressSpace, Cpu, Dma, Kind, MapError, MappedPages, Mapper, Mmio, Private, Protection,
    Stack, Stale, TablePool,
};
pub use platform::{DeviceId, DmaMemory, MmioMemory, Platform, PlatformError};
pub use range::{Frame, FrameRange, Page, PageRange, RangeError};
#[cfg(ringfence_loom)]
pub use shared::shadow;
pub use shared::{AtomicAccess, Bytes, Direction, VolatileError, VolatileSlice, fence};
