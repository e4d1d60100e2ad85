//! The one trait that a kernel implements to use the drivers.

use alloc::boxed::Box;
use core::fmt;
use core::mem;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::time::Duration;

use crate::{Direction, DmaRegistry, PhysAddr, VolatileSlice};
#[cfg(feature = "mapper")]
use crate::{Dma, FrameAllocator, MappedPages, Owner, PAGE_SIZE};

/// Names a device to the memory system. That of a PCI function is its segment (bits 16 to 31) and requester
/// id (bus, device and function, bits 0 to 15), which is also what an IOMMU sees:
/// [`PciAddress::id`](crate::PciAddress::id). Others begin at 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u64);

impl DeviceId {
    /// A device that is on no PCI bus, by a number that the kernel gives it: its place in a device tree, or
    /// among the registers that a command line names.
    pub const fn off_bus(number: u32) -> Self {
        Self(1 << 32 | number as u64)
    }
}

/// Why the platform could not provide memory. Nothing was allocated or mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlatformError {
    /// No run of free frames, page-table pages or address space is large enough.
    OutOfMemory,
    /// The range is empty, misaligned, overflows, is RAM, or was not [offered](crate::MmioClaims::offer).
    BadRange,
    /// Somebody already holds this range.
    Claimed,
}

crate::error::messages! { PlatformError {
    OutOfMemory => "out of memory",
    BadRange => "cannot be mapped, or was not offered",
    Claimed => "somebody holds it already",
} }

/// What the drivers need of a kernel.
///
/// None of these functions is called from an interrupt handler, or while a lock of this crate is held, nor is
/// what they return dropped so: they may take locks, allocate, and call this crate. (Whoever drops a buffer
/// of a [`DmaPool`](crate::DmaPool) that is gone answers for where.) Any thread may call them, several at
/// once.
///
/// # Safety
/// The drivers build their memory safety on these promises:
/// - memory from `dma_allocate` is as [`DmaMemory::new`] demands, and is not given out again before the
///   `DmaMemory` is dropped;
/// - it is *type-stable*: it is never anything else again. After a drop it may be given out anew, to any
///   device, but no Rust object ever lies there (what the kernel itself lets a device
///   [adopt](crate::DmaWindows::adopt) is not from here, and may become anything once it is back);
/// - memory from `mmio_map` is as [`MmioMemory::new`] demands, and each byte of it belongs to one caller
///   until dropped; of one BAR, or other range of registers that belong together, it has no parts for two
///   devices at a time;
/// - `now` never goes backwards;
/// - `registry` is always the same one, and the same for all platform values through which one device, or one
///   byte of memory, can be had.
///
/// # Example
/// A kernel whose memory is mapped where it is:
/// ```
/// # use core::{num::NonZeroUsize, ptr::NonNull, time::Duration};
/// use ringfence_memory::{
///     DeviceId, Direction, DmaMemory, DmaRegistry, MmioClaims, MmioMemory, PAGE_SIZE, PhysAddr, Platform,
///     PlatformError,
/// };
/// # fn zeroed_pages(_: NonZeroUsize) -> Option<NonNull<u8>> { None }
/// # unsafe fn free_pages(_: NonNull<u8>, _: usize) {}
/// # fn uptime() -> Duration { Duration::ZERO }
///
/// struct MyKernel;
///
/// static REGISTRY: DmaRegistry = DmaRegistry::new();
/// // SAFETY: there is no RAM from 3 to 4 GiB, and this kernel has all of it mapped there, uncached.
/// static REGISTERS: MmioClaims = unsafe { MmioClaims::new(0xc000_0000..0x1_0000_0000, 0xc000_0000) };
///
/// // SAFETY: pages for devices are never anything else, and their addresses are physical ones; registers are
/// // claimed; the clock never goes backwards; there is one registry.
/// unsafe impl Platform for MyKernel {
///     fn dma_allocate(
///         &self,
///         _: DeviceId,
///         pages: NonZeroUsize,
///         _: Direction,
///     ) -> Result<DmaMemory, PlatformError> {
///         let start = zeroed_pages(pages).ok_or(PlatformError::OutOfMemory)?;
///         let (len, address) = (pages.get() * PAGE_SIZE, start.as_ptr().addr() as u64);
///         // SAFETY: they are zeroed, and nobody else has them until `free_pages` gets them back.
///         Ok(unsafe { DmaMemory::from_raw(start, len, address, free_pages) })
///     }
///
///     fn mmio_map(
///         &self,
///         device: Option<DeviceId>,
///         start: PhysAddr,
///         len: usize,
///     ) -> Result<MmioMemory, PlatformError> {
///         REGISTERS.claim(device, start, len)
///     }
///
///     fn now(&self) -> Duration {
///         uptime()
///     }
///
///     fn registry(&self) -> &DmaRegistry {
///         &REGISTRY
///     }
/// }
/// ```
pub unsafe trait Platform: Sync {
    /// `pages` contiguous 4 KiB pages of zeroed memory that `device` can reach, in `direction` at least: an
    /// IOMMU need not let it do more. The caller owns them until drop.
    ///
    /// # Errors
    /// [`PlatformError::OutOfMemory`]: fewer pages may be asked for then, where the memory need not be in one
    /// piece.
    fn dma_allocate(
        &self,
        device: DeviceId,
        pages: NonZeroUsize,
        direction: Direction,
    ) -> Result<DmaMemory, PlatformError>;

    /// Maps the registers at `start..start + len` (bytes; any alignment), which are those of `device`, or of
    /// no device with a name. The caller owns them until drop.
    ///
    /// # Errors
    /// [`PlatformError::Claimed`] while somebody else has any of it, or another of the three.
    fn mmio_map(
        &self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError>;

    /// Monotonic time since some fixed moment. The shortest limit is 100 µs: a coarser clock makes waits
    /// longer by a few of its steps, and does no other harm.
    fn now(&self) -> Duration;

    /// Where the window tables of the devices are kept.
    fn registry(&self) -> &DmaRegistry;
}

/// Asks `poll`, without a pause (which costs an emulated processor far more than most looks that it delays),
/// until it has an answer, or until `limit` has passed since the first time; at least once. Of the time
/// between two looks half of the limit counts at most: a host that stopped the machine has stopped the
/// device, too.
pub(crate) fn wait<T>(
    now: impl Fn() -> Duration,
    limit: Duration,
    mut poll: impl FnMut() -> Option<T>,
) -> Option<T> {
    let most = limit.checked_div(2).unwrap_or(limit).max(Duration::from_nanos(1));
    let (mut last, mut passed) = (now(), Duration::ZERO);
    loop {
        let answer = poll();
        let before = mem::replace(&mut last, now());
        passed = passed.saturating_add(last.saturating_sub(before).min(most));
        if answer.is_some() || passed > limit {
            return answer;
        }
    }
}

/// Memory for one device, as the platform hands it out: CPU mapping and device address of the same bytes.
/// Dropping it gives it back to the platform, on the thread where the last who used it let go. Accessing the
/// bytes takes no lock.
pub struct DmaMemory {
    pub(crate) start: NonNull<u8>,
    pub(crate) len: usize,
    pub(crate) device_address: u64,
    /// Where it is booked.
    #[cfg(feature = "mapper")]
    frames: Option<&'static FrameAllocator>,
    owner: DmaOwner,
}

/// What gives the memory back.
enum DmaOwner {
    Dropped(#[expect(dead_code, reason = "only dropped")] Box<dyn Send + Sync>),
    Freed(unsafe fn(NonNull<u8>, usize)),
}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        if let DmaOwner::Freed(free) = self.owner {
            // SAFETY: `from_raw`'s caller promised that this may be called once `self` is dropped.
            unsafe { free(self.start, self.len) };
        }
    }
}

// SAFETY: `start` alone keeps it from being `Send`; the bytes are shared memory, which any thread may access.
unsafe impl Send for DmaMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for DmaMemory {}

impl DmaMemory {
    /// `len` bytes from `start` on, which dropping `owner` gives back.
    ///
    /// # Safety
    /// - The bytes are whole 4 KiB pages, zeroed (or, for [`DmaWindows::adopt`](crate::DmaWindows::adopt)
    ///   alone, initialized), and until `owner` is dropped they are readable and writable at `start`, and
    ///   hold no Rust object that anybody uses.
    /// - To the device the same bytes begin at `device_address` and are contiguous, and
    ///   `device_address + len` does not overflow.
    pub unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        device_address: u64,
        owner: Box<dyn Send + Sync>,
    ) -> Self {
        Self::owned_by(start, len, device_address, DmaOwner::Dropped(owner))
    }

    /// The same without a value that owns the memory: `free` is called with `start` and `len` instead.
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// # use std::alloc::{Layout, alloc_zeroed};
    /// use ringfence_memory::{DmaMemory, PlatformError};
    ///
    /// /// Goes back to the pages that devices get, never to the heap.
    /// unsafe fn free(start: NonNull<u8>, len: usize) {
    ///     // ...
    /// }
    ///
    /// # let my_pages = || unsafe { alloc_zeroed(Layout::from_size_align(4096, 4096).unwrap()) };
    /// let start = NonNull::new(my_pages()).ok_or(PlatformError::OutOfMemory)?;
    /// let address = start.as_ptr().addr() as u64;   // where devices find it, in this kernel
    /// // SAFETY: one zeroed page that only devices get, until `free` has it back.
    /// let memory = unsafe { DmaMemory::from_raw(start, 4096, address, free) };
    /// # Ok::<(), PlatformError>(())
    /// ```
    ///
    /// # Safety
    /// As for [`new`](Self::new), until `free` is called, on any thread. `free` may be called then.
    pub unsafe fn from_raw(
        start: NonNull<u8>,
        len: usize,
        device_address: u64,
        free: unsafe fn(NonNull<u8>, usize),
    ) -> Self {
        Self::owned_by(start, len, device_address, DmaOwner::Freed(free))
    }

    fn owned_by(start: NonNull<u8>, len: usize, device_address: u64, owner: DmaOwner) -> Self {
        Self {
            start,
            len,
            device_address,
            #[cfg(feature = "mapper")]
            frames: None,
            owner,
        }
    }

    /// The memory of a mapping, which nobody has touched since it was zeroed for it. It is booked as
    /// quarantined while it is.
    ///
    /// # Safety
    /// As for [`new`](Self::new): to the device the memory begins at `device_address`, which without an IOMMU
    /// is its [physical address](MappedPages::physical_address).
    #[cfg(feature = "mapper")]
    pub unsafe fn from_pages(pages: MappedPages<Dma>, device_address: u64) -> Self {
        let frames = pages.frame_allocator();
        // `MappedPages<Dma>` is never empty, and never at address 0.
        let start = NonNull::new(pages.as_ptr()).unwrap_or(NonNull::dangling());
        let len = pages.size_in_bytes() as usize;
        Self { start, len, device_address, frames, owner: DmaOwner::Dropped(Box::new(pages)) }
    }

    #[inline]
    pub(crate) fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // SAFETY: whoever made `self` promised the bytes, where they are, until `self` is dropped, and that
        // they hold no Rust object; nothing in this crate makes a reference.
        unsafe { VolatileSlice::new(self.start, self.len) }
    }

    /// Without the allocators there are no books.
    #[cfg(not(feature = "mapper"))]
    pub(crate) fn book(&self, _quarantined: bool) {}

    /// Books the memory as being in quarantine, or not any more.
    #[cfg(feature = "mapper")]
    pub(crate) fn book(&self, quarantined: bool) {
        let (from, to) =
            if quarantined { (Owner::Dma, Owner::Quarantined) } else { (Owner::Quarantined, Owner::Dma) };
        if let Some(frames) = self.frames {
            frames.transfer(from, to, self.len / PAGE_SIZE);
        }
    }
}

impl fmt::Debug for DmaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMemory({:?}, d:{:#x}, {} bytes)", self.start, self.device_address, self.len)
    }
}

/// Device registers, as the platform hands them out. Dropping it gives them back.
pub struct MmioMemory {
    pub(crate) start: NonNull<u8>,
    pub(crate) len: usize,
    _owner: Box<dyn Send + Sync>,
}

// SAFETY: `start` alone keeps it from being `Send`; device registers may be accessed from any CPU.
unsafe impl Send for MmioMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for MmioMemory {}

impl MmioMemory {
    /// `len` bytes from `start` on, which dropping `owner` gives back.
    ///
    /// # Safety
    /// The bytes are device registers, never RAM, mapped uncached, and readable and writable at `start` until
    /// `owner` is dropped. No reference to them exists in that time.
    pub unsafe fn new(start: NonNull<u8>, len: usize, owner: Box<dyn Send + Sync>) -> Self {
        Self { start, len, _owner: owner }
    }
}
