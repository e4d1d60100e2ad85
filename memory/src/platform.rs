//! The one trait that a kernel implements to use the drivers.

use alloc::boxed::Box;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::time::Duration;

use crate::{Dma, DmaRegistry, MappedPages, Mmio, PageRange, PhysAddr};

/// Names a device to the memory system: its PCI requester id (segment, bus, device, function), which is also what
/// an IOMMU sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// Why the platform could not provide memory. Nothing was allocated or mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformError {
    /// No run of free frames, page-table pages or address space is large enough.
    OutOfMemory,
    /// The range is empty, misaligned, overflows, or is RAM.
    BadRange,
    /// Somebody already holds this range.
    Claimed,
}

/// What the drivers need of a kernel.
///
/// # Safety
/// The drivers build their memory safety on these promises:
/// - memory from `dma_allocate` is as [`DmaMemory::new`] demands, and is not given out again before the
///   `DmaMemory` is dropped;
/// - memory from `mmio_map` is device memory (never RAM) as [`Backing`] demands, mapped uncached, and each byte of
///   it belongs to one caller until dropped;
/// - `now` never goes backwards.
pub unsafe trait Platform: Sync {
    /// `pages` contiguous 4 KiB pages of zeroed memory that `device` can reach. The caller owns them until drop.
    fn dma_allocate(&self, device: DeviceId, pages: NonZeroUsize) -> Result<DmaMemory, PlatformError>;

    /// Maps the registers at `start..start + len` (bytes; any alignment). The caller owns them until drop.
    fn mmio_map(&self, start: PhysAddr, len: usize) -> Result<Box<dyn Backing>, PlatformError>;

    /// Monotonic time since some fixed moment.
    fn now(&self) -> Duration;

    /// Where the window tables of this platform's devices are kept: always the same one.
    fn registry(&self) -> &DmaRegistry;
}

/// A run of mapped bytes that lives as long as this value.
///
/// # Safety
/// `pointer()` must stay the same and be valid for `len()` bytes of volatile access until the value is dropped, and
/// no Rust reference to those bytes may exist in that time.
pub unsafe trait Backing: Send + Sync {
    /// First byte.
    fn pointer(&self) -> NonNull<u8>;
    /// Length in bytes.
    fn len(&self) -> usize;
    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Called when the bytes go into quarantine, because a device may still write there, and when they come out. For
    /// the platform's books.
    fn set_quarantined(&self, quarantined: bool) {
        let _ = quarantined;
    }
}

/// The bytes of a mapping: not null, since a mapping of these kinds has pages, and page 0 is never among them.
fn mapped(start: *mut u8) -> NonNull<u8> {
    NonNull::new(start).unwrap_or(NonNull::dangling())
}

fn bytes(pages: &PageRange) -> usize {
    pages.size_in_bytes() as usize
}

// SAFETY: the pages stay mapped where they are until the value is dropped, and the kind allows no reference to them.
unsafe impl Backing for MappedPages<Dma> {
    fn pointer(&self) -> NonNull<u8> {
        mapped(self.as_ptr())
    }
    fn len(&self) -> usize {
        bytes(self)
    }
    fn set_quarantined(&self, quarantined: bool) {
        self.book(quarantined);
    }
}

// SAFETY: as for `MappedPages<Dma>`.
unsafe impl Backing for MappedPages<Mmio> {
    fn pointer(&self) -> NonNull<u8> {
        mapped(self.as_ptr())
    }
    fn len(&self) -> usize {
        bytes(self)
    }
}

/// Memory for one device, as the platform hands it out: CPU mapping and device address of the same bytes.
pub struct DmaMemory {
    backing: Box<dyn Backing>,
    device_address: u64,
}

impl DmaMemory {
    /// # Safety
    /// - The `backing` bytes are page-aligned, zeroed, writable, and hold no Rust object now or as long as the
    ///   device may reach them.
    /// - To the device, the same bytes start at `device_address` and are contiguous, and
    ///   `device_address + backing.len()` does not overflow.
    pub unsafe fn new(backing: Box<dyn Backing>, device_address: u64) -> Self {
        Self { backing, device_address }
    }

    pub(crate) fn backing(&self) -> &dyn Backing {
        &*self.backing
    }

    pub(crate) fn device_address(&self) -> u64 {
        self.device_address
    }
}
