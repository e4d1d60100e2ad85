//! Memory as somebody else addresses it: regions at guest addresses, in the shape of `vm-memory` 0.17.
//!
//! Three maps implement it: [`DmaSnapshot`](crate::DmaSnapshot), what one device may reach,
//! [`PhysMap`](super::PhysMap), all RAM by physical address, and
//! [`GuestRegionCollection`](super::GuestRegionCollection), of any regions.

use core::sync::atomic::Ordering;

use super::{Bitmap, WithBitmapSlice};
use crate::{AtomicAccess, Bytes, VolatileError, VolatileSlice};

macro_rules! address {
    ($name:ident, $what:literal) => {
        #[doc = $what]
        ///
        /// It gives no access to anything: every use is checked.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The address as a number.
            pub const fn raw_value(self) -> u64 {
                self.0
            }

            /// `None` if the sum overflows.
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }

            /// `None` if the difference is negative.
            pub fn checked_sub(self, bytes: u64) -> Option<Self> {
                self.0.checked_sub(bytes).map(Self)
            }

            /// Bytes from `base` to here; `None` if `base` is higher.
            pub fn checked_offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }
        }

        impl core::fmt::LowerHex for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}
address!(
    GuestAddress,
    "An address as a device uses it. It is not a [`PhysAddr`](crate::PhysAddr): those numbers only a device without \
     IOMMU and bus offset uses, whose memory a [`PhysMap`](super::PhysMap) is."
);
address!(MemoryRegionAddress, "An offset in one region, in bytes.");

/// Why a guest address was refused. Nothing was accessed, unless `PartialBuffer` says how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMemoryError {
    /// There is no memory at this address, or the range does not end within memory.
    InvalidGuestAddress(GuestAddress),
    /// An offset beyond the end of its region.
    InvalidRegionAddress(MemoryRegionAddress),
    /// The memory is there, but not for this side to access: it is not shared.
    HostAddressNotAvailable,
    /// Memory ended after `completed` bytes, which were accessed.
    PartialBuffer {
        /// Bytes asked for.
        expected: usize,
        /// Bytes accessed.
        completed: usize,
    },
    /// The callback of `try_access` claims more bytes than were left.
    CallbackOutOfRange,
    /// The slice refused: misaligned, or not in this direction.
    Access(VolatileError),
}

crate::error::messages! { GuestMemoryError {
    InvalidGuestAddress(address) => "no memory at {address:#x}",
    InvalidRegionAddress(address) => "offset {address:#x} is beyond its region",
    HostAddressNotAvailable => "memory that is not shared",
    PartialBuffer { expected, completed } => "memory ended after {completed} of {expected} bytes",
    CallbackOutOfRange => "more bytes are said to be done than there were",
    Access(error) => "the memory cannot be accessed so: {error}",
} }

impl From<VolatileError> for GuestMemoryError {
    fn from(error: VolatileError) -> Self {
        Self::Access(error)
    }
}

/// What a guest memory call returns.
pub type Result<T> = core::result::Result<T, GuestMemoryError>;

/// A contiguous run of guest addresses.
///
/// Implementors give length, start and, for memory that may be accessed, `get_slice`; the rest follows, with
/// `Bytes` by [`GuestMemoryRegionBytes`].
pub trait GuestMemoryRegion: Bytes<MemoryRegionAddress, E = GuestMemoryError> {
    /// What records writes to the region.
    type B: Bitmap + for<'a> WithBitmapSlice<'a>;

    /// Length in bytes; not 0.
    fn len(&self) -> u64;

    /// Address of the first byte.
    fn start_addr(&self) -> GuestAddress;

    /// Where writes are recorded.
    fn bitmap(&self) -> &Self::B;

    /// Whether the region has no bytes (it always has).
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Address of the last byte.
    fn last_addr(&self) -> GuestAddress {
        GuestAddress(self.start_addr().0.saturating_add(self.len().saturating_sub(1)))
    }

    /// `addr` if it is in the region.
    fn check_address(&self, addr: MemoryRegionAddress) -> Option<MemoryRegionAddress> {
        self.address_in_range(addr).then_some(addr)
    }

    /// Whether `addr` is in the region.
    fn address_in_range(&self, addr: MemoryRegionAddress) -> bool {
        addr.0 < self.len()
    }

    /// `base + offset`, if that is in the region.
    fn checked_offset(&self, base: MemoryRegionAddress, offset: usize) -> Option<MemoryRegionAddress> {
        base.checked_add(offset as u64).and_then(|addr| self.check_address(addr))
    }

    /// The offset of `addr`, if it is in the region.
    fn to_region_addr(&self, addr: GuestAddress) -> Option<MemoryRegionAddress> {
        let offset = addr.checked_offset_from(self.start_addr())?;
        self.check_address(MemoryRegionAddress(offset))
    }

    /// Pointer to the byte at `addr`, for atomic access only.
    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        Ok(self.get_slice(addr, 1)?.as_ptr().as_ptr())
    }

    /// The `count` bytes from `offset` on. Refused here, for memory that is not shared.
    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<RegionSlice<'_, Self>> {
        let _ = (offset, count);
        Err(GuestMemoryError::HostAddressNotAvailable)
    }

    /// All of the region's bytes.
    fn as_volatile_slice(&self) -> Result<RegionSlice<'_, Self>> {
        let len = usize::try_from(self.len()).map_err(|_| GuestMemoryError::HostAddressNotAvailable)?;
        self.get_slice(MemoryRegionAddress(0), len)
    }
}

/// The bitmap part that slices of region `R` carry.
pub type BS<'a, R> = <<R as GuestMemoryRegion>::B as WithBitmapSlice<'a>>::S;

/// The bitmap part that slices of memory `M` carry.
pub type MS<'a, M> = BS<'a, <M as GuestMemory>::R>;

/// A slice of region `R`.
pub type RegionSlice<'a, R> = VolatileSlice<'a, BS<'a, R>>;

/// Gives a [`GuestMemoryRegion`] its [`Bytes`], from its slice of everything.
pub trait GuestMemoryRegionBytes: GuestMemoryRegion {}

/// By byte offset from the start of the region. An offset that is not in it is refused by the slice.
impl<R: GuestMemoryRegionBytes> Bytes<MemoryRegionAddress> for R {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<usize> {
        Ok(self.as_volatile_slice()?.write(buf, slice_offset(addr))?)
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<usize> {
        Ok(self.as_volatile_slice()?.read(buf, slice_offset(addr))?)
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<()> {
        Ok(self.as_volatile_slice()?.write_slice(buf, slice_offset(addr))?)
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<()> {
        Ok(self.as_volatile_slice()?.read_slice(buf, slice_offset(addr))?)
    }

    fn store<T: AtomicAccess>(&self, val: T, addr: MemoryRegionAddress, order: Ordering) -> Result<()> {
        Ok(self.as_volatile_slice()?.store(val, slice_offset(addr), order)?)
    }

    fn load<T: AtomicAccess>(&self, addr: MemoryRegionAddress, order: Ordering) -> Result<T> {
        Ok(self.as_volatile_slice()?.load(slice_offset(addr), order)?)
    }
}

/// `addr` as an offset in a slice: beyond its end, where it would be beyond all memory.
fn slice_offset(addr: MemoryRegionAddress) -> usize {
    usize::try_from(addr.0).unwrap_or(usize::MAX)
}

/// `addr` as an offset in `region`, or in a slice of all of it; no bytes may lie behind the last one.
///
/// # Errors
/// If it is beyond the region's end.
pub fn region_offset<R: GuestMemoryRegion + ?Sized>(region: &R, addr: MemoryRegionAddress) -> Result<usize> {
    let offset = Some(addr.0).filter(|offset| *offset <= region.len());
    let offset = offset.and_then(|offset| usize::try_from(offset).ok());
    offset.ok_or(GuestMemoryError::InvalidRegionAddress(addr))
}

/// An immutable collection of [`GuestMemoryRegion`]s that do not overlap. It gives
/// [`Bytes<GuestAddress>`](Bytes).
///
/// ```
/// use ringfence_memory::rust_vmm::{GuestAddress, GuestMemory};
/// use ringfence_memory::{Bytes, DeviceId, DmaWindows, host::HostPlatform};
///
/// let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DeviceId(0x18))?;
/// let regions = [windows.allocate(4096)?, windows.allocate(8192)?];
/// let memory = windows.writable()?;
/// assert_eq!(memory.num_regions(), 2);
/// let address = windows.publish(regions[1].address(8000).unwrap()).unwrap();
/// assert!(memory.check_range(address, 192) && !memory.check_range(address, 193));
/// memory.write_obj(5_u32, address).unwrap();
/// let slices: Vec<_> = memory.get_slices(address, 192).map(|slice| slice.unwrap().len()).collect();
/// assert_eq!(slices, [192]);
/// assert!(memory.find_region(GuestAddress(0)).is_none());
/// # Ok::<(), ringfence_memory::DmaError>(())
/// ```
///
/// The view is frozen: implementors have no interior mutability, so that two answers never contradict each
/// other.
pub trait GuestMemory {
    /// The kind of its regions.
    type R: GuestMemoryRegion;

    /// The regions, by rising address.
    fn iter(&self) -> impl Iterator<Item = &Self::R>;

    /// Number of regions.
    fn num_regions(&self) -> usize {
        self.iter().count()
    }

    /// The region of `addr`.
    fn find_region(&self, addr: GuestAddress) -> Option<&Self::R> {
        self.iter().find(|region| region.to_region_addr(addr).is_some())
    }

    /// The highest address; 0 if there is no memory.
    fn last_addr(&self) -> GuestAddress {
        self.iter().map(GuestMemoryRegion::last_addr).max().unwrap_or(GuestAddress(0))
    }

    /// The region of `addr` and the offset in it.
    fn to_region_addr(&self, addr: GuestAddress) -> Option<(&Self::R, MemoryRegionAddress)> {
        let region = self.find_region(addr)?;
        Some((region, region.to_region_addr(addr)?))
    }

    /// Whether there is memory at `addr`.
    fn address_in_range(&self, addr: GuestAddress) -> bool {
        self.find_region(addr).is_some()
    }

    /// `addr` if there is memory at it.
    fn check_address(&self, addr: GuestAddress) -> Option<GuestAddress> {
        self.address_in_range(addr).then_some(addr)
    }

    /// Whether there is memory at all of `base..base + len`, without a hole. There is at all of an empty
    /// range.
    ///
    /// It says nothing about access: memory that is not shared counts as well.
    fn check_range(&self, base: GuestAddress, len: usize) -> bool {
        let (mut next, mut left) = (Some(base), len as u64);
        while left > 0 {
            let found = next.and_then(|at| self.to_region_addr(at).map(|found| (at, found)));
            let Some((at, (region, offset))) = found else { return false };
            let here = left.min(region.len() - offset.0);
            (next, left) = (at.checked_add(here), left - here);
        }
        true
    }

    /// `base + offset`, if there is memory at it.
    fn checked_offset(&self, base: GuestAddress, offset: usize) -> Option<GuestAddress> {
        base.checked_add(offset as u64).and_then(|addr| self.check_address(addr))
    }

    /// Calls `f` for each piece of `addr..addr + count` that lies in one region, with the bytes done so far,
    /// the bytes of this piece, and where it is; `f` says how much is done (of what is left, not of the piece
    /// alone), 0 to stop. Ends at a hole, and says how much was done. Of no bytes `f` is told as well.
    ///
    /// # Errors
    /// The first one of `f`; [`InvalidGuestAddress`](GuestMemoryError::InvalidGuestAddress) if there is no
    /// memory at `addr`; [`CallbackOutOfRange`](GuestMemoryError::CallbackOutOfRange) if `f` claims more than
    /// was left.
    #[deprecated = "use `get_slices`"]
    fn try_access<F>(&self, count: usize, addr: GuestAddress, mut f: F) -> Result<usize>
    where
        F: FnMut(usize, usize, MemoryRegionAddress, &Self::R) -> Result<usize>,
    {
        let mut done = 0;
        while let Some((region, offset)) =
            addr.checked_add(done as u64).and_then(|at| self.to_region_addr(at))
        {
            let left = count - done;
            let len = usize::try_from(region.len() - offset.0).unwrap_or(usize::MAX).min(left);
            let part = f(done, len, offset, region)?;
            if part > left {
                return Err(GuestMemoryError::CallbackOutOfRange);
            }
            done += part;
            if part == 0 || done == count {
                return Ok(done);
            }
        }
        if done == 0 { Err(GuestMemoryError::InvalidGuestAddress(addr)) } else { Ok(done) }
    }

    /// Pointer to the byte at `addr`, for atomic access only.
    fn get_host_address(&self, addr: GuestAddress) -> Result<*mut u8> {
        let (region, offset) =
            self.to_region_addr(addr).ok_or(GuestMemoryError::InvalidGuestAddress(addr))?;
        region.get_host_address(offset)
    }

    /// The `count` bytes at `addr`, which must lie in one region.
    fn get_slice(&self, addr: GuestAddress, count: usize) -> Result<VolatileSlice<'_, MS<'_, Self>>> {
        let (region, offset) =
            self.to_region_addr(addr).ok_or(GuestMemoryError::InvalidGuestAddress(addr))?;
        region.get_slice(offset, count)
    }

    /// Slices that together are the `count` bytes at `addr`, however many regions they lie in. The first
    /// error is the last item. None if `count` is 0.
    fn get_slices<'a>(&'a self, addr: GuestAddress, count: usize) -> GuestMemorySliceIterator<'a, Self> {
        GuestMemorySliceIterator { memory: self, addr: Some(addr), left: count }
    }
}

/// The items of [`GuestMemory::get_slices`].
#[derive(Debug)]
pub struct GuestMemorySliceIterator<'a, M: ?Sized> {
    memory: &'a M,
    /// `None` behind the last address.
    addr: Option<GuestAddress>,
    left: usize,
}

impl<'a, M: GuestMemory + ?Sized> GuestMemorySliceIterator<'a, M> {
    fn slice(&mut self) -> Result<VolatileSlice<'a, MS<'a, M>>> {
        let addr = self.addr.ok_or(GuestMemoryError::InvalidGuestAddress(GuestAddress(u64::MAX)))?;
        let found = self.memory.to_region_addr(addr);
        let (region, offset) = found.ok_or(GuestMemoryError::InvalidGuestAddress(addr))?;
        let len = usize::try_from(region.len() - offset.0).unwrap_or(usize::MAX).min(self.left);
        let slice = region.get_slice(offset, len)?;
        self.addr = addr.checked_add(len as u64);
        self.left -= len;
        Ok(slice)
    }
}

impl<'a, M: GuestMemory + ?Sized> Iterator for GuestMemorySliceIterator<'a, M> {
    type Item = Result<VolatileSlice<'a, MS<'a, M>>>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.left > 0).then(|| self.slice().inspect_err(|_| self.left = 0))
    }
}

impl<M: GuestMemory + ?Sized> core::iter::FusedIterator for GuestMemorySliceIterator<'_, M> {}

/// Copies piece by piece; `each` gets the bytes done so far and a slice.
fn transfer<M: GuestMemory + ?Sized>(
    memory: &M,
    addr: GuestAddress,
    count: usize,
    mut each: impl FnMut(usize, &VolatileSlice<'_, MS<'_, M>>) -> core::result::Result<(), VolatileError>,
) -> Result<usize> {
    let mut done = 0;
    for slice in memory.get_slices(addr, count) {
        match slice {
            Ok(slice) => {
                each(done, &slice)?;
                done += slice.len();
            }
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn all(expected: usize, completed: usize) -> Result<()> {
    if completed == expected { Ok(()) } else { Err(GuestMemoryError::PartialBuffer { expected, completed }) }
}

/// Across adjacent regions; atomic accesses must lie in one.
impl<M: GuestMemory + ?Sized> Bytes<GuestAddress> for M {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: GuestAddress) -> Result<usize> {
        transfer(self, addr, buf.len(), |done, slice| slice.write_slice(&buf[done..][..slice.len()], 0))
    }

    fn read(&self, buf: &mut [u8], addr: GuestAddress) -> Result<usize> {
        let count = buf.len();
        transfer(self, addr, count, |done, slice| slice.read_slice(&mut buf[done..][..slice.len()], 0))
    }

    /// On [`PartialBuffer`](GuestMemoryError::PartialBuffer) the first bytes were written.
    fn write_slice(&self, buf: &[u8], addr: GuestAddress) -> Result<()> {
        all(buf.len(), self.write(buf, addr)?)
    }

    /// On [`PartialBuffer`](GuestMemoryError::PartialBuffer) the first bytes were read.
    fn read_slice(&self, buf: &mut [u8], addr: GuestAddress) -> Result<()> {
        all(buf.len(), self.read(buf, addr)?)
    }

    fn store<T: AtomicAccess>(&self, val: T, addr: GuestAddress, order: Ordering) -> Result<()> {
        Ok(self.get_slice(addr, size_of::<T>())?.store(val, 0, order)?)
    }

    fn load<T: AtomicAccess>(&self, addr: GuestAddress, order: Ordering) -> Result<T> {
        Ok(self.get_slice(addr, size_of::<T>())?.load(0, order)?)
    }
}
