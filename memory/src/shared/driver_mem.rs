//! From an address that a driver published to memory that a device model may touch; names as in Fuchsia's
//! `virtio_device::mem`.

use core::ops::{Deref, Range};
use core::ptr::NonNull;

use crate::{
    Direction, RangeError, VolatileSlice,
    rust_vmm::{Bitmap, GuestAddress, GuestMemory},
};

/// A range of addresses as the driver published it. It may be a lie: the one thing to do with it is
/// [`DriverMem::translate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverRange(pub Range<usize>);

impl DriverRange {
    /// `start..start + offset` and the rest; `None` if `offset` is beyond the end.
    pub fn split_at(&self, offset: usize) -> Option<(Self, Self)> {
        let middle = self.0.start.checked_add(offset).filter(|_| offset <= self.len())?;
        Some((Self(self.0.start..middle), Self(middle..self.0.end)))
    }

    /// Length in bytes; 0 if the end lies before the start.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Address and length of a descriptor.
impl TryFrom<(u64, u32)> for DriverRange {
    /// The range would end beyond the address space.
    type Error = RangeError;

    fn try_from((start, len): (u64, u32)) -> Result<Self, RangeError> {
        let start = usize::try_from(start).map_err(|_| RangeError::OutOfSpace)?;
        let end = start.checked_add(len as usize).ok_or(RangeError::OutOfSpace)?;
        Ok(Self(start..end))
    }
}

impl From<Range<usize>> for DriverRange {
    fn from(range: Range<usize>) -> Self {
        Self(range)
    }
}

/// A range of driver memory that this side may touch, for `'a`.
///
/// The other side may change it at any moment, so there are no references: safe code uses
/// [`Bytes<usize>`](crate::Bytes) by offset, as it is a [`VolatileSlice`] with other names, which checks
/// bounds, alignment and direction; `unsafe` code may take the pointers.
///
/// ```
/// use core::sync::atomic::Ordering;
/// use ringfence_memory::fuchsia::{DriverMem, DriverRange};
/// use ringfence_memory::{Bytes, DeviceId, DmaWindows, host::HostPlatform};
///
/// let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DeviceId(0x18))?;
/// let region = windows.allocate(4096)?;
/// let address = windows.publish(region.address(0).unwrap()).unwrap().raw_value();
///
/// // A device model finds address and length in a descriptor, and believes neither.
/// let memory = windows.writable()?;
/// let range = memory.translate(DriverRange::try_from((address, 16)).unwrap()).expect("a window");
/// range.store(7_u32, 4, Ordering::Release)?;
/// assert!(range.store(7_u32, 16, Ordering::Release).is_err(), "beyond the end");
/// assert!(memory.translate(DriverRange::try_from((address, 4097)).unwrap()).is_none());
/// assert!(DriverRange::try_from((u64::MAX, 16)).is_err());
/// assert_eq!(region.as_volatile_slice().read_obj::<u32>(4), Ok(7));
/// # Ok::<(), ringfence_memory::DmaError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DeviceRange<'a>(VolatileSlice<'a>);

impl PartialEq for DeviceRange<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for DeviceRange<'_> {}

impl<'a> From<VolatileSlice<'a>> for DeviceRange<'a> {
    fn from(slice: VolatileSlice<'a>) -> Self {
        Self(slice)
    }
}

impl<'a> DeviceRange<'a> {
    /// The bytes at the addresses `range`; empty if its end lies before its start, or its start is the null
    /// address.
    ///
    /// # Safety
    /// For `'a` they must be mapped, readable and writable, and hold no Rust object. Their provenance must
    /// have been exposed.
    pub unsafe fn new(range: Range<usize>) -> Self {
        let start = NonNull::new(core::ptr::with_exposed_provenance_mut(range.start));
        let len = if start.is_some() { range.len() } else { 0 };
        // SAFETY: the caller's promise; a range at address 0 is taken as empty.
        Self(unsafe { VolatileSlice::new(start.unwrap_or(NonNull::dangling()), len) })
    }

    /// The bytes before `offset` and the rest; `None` if `offset` is beyond the end.
    pub fn split_at(&self, offset: usize) -> Option<(Self, Self)> {
        let (head, tail) = self.0.split_at(offset).ok()?;
        Some((Self(head), Self(tail)))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A pointer to a `T` at the start, valid for atomic reads as long as `'a`. `None` if the range is too
    /// short, misaligned for `T`, or not to be read.
    pub fn try_ptr<T>(&self) -> Option<*const T> {
        self.pointer::<T>().filter(|_| self.0.direction() != Direction::FromDevice).map(<*mut T>::cast_const)
    }

    /// A pointer to a `T` at the start, valid for atomic writes as long as `'a`. `None` if the range is too
    /// short, misaligned for `T`, or not to be written.
    pub fn try_mut_ptr<T>(&self) -> Option<*mut T> {
        self.pointer::<T>().filter(|_| self.0.direction() != Direction::ToDevice)
    }

    /// The addresses on this side.
    pub fn get(&self) -> Range<usize> {
        let start = self.0.as_ptr().addr().get();
        start..start + self.len()
    }

    /// The same bytes as a slice.
    pub fn as_volatile_slice(&self) -> VolatileSlice<'a> {
        self.0
    }

    fn pointer<T>(&self) -> Option<*mut T> {
        let start = self.0.as_ptr().cast::<T>();
        (self.len() >= size_of::<T>() && start.is_aligned()).then_some(start.as_ptr())
    }
}

impl<'a> Deref for DeviceRange<'a> {
    type Target = VolatileSlice<'a>;

    #[inline]
    fn deref(&self) -> &VolatileSlice<'a> {
        &self.0
    }
}

/// Turns what a driver published into memory.
pub trait DriverMem {
    /// The memory that `driver` means, if all of it is memory that this side may touch, in one piece. It
    /// cannot be used longer than the translation is borrowed.
    fn translate<'a>(&'a self, driver: DriverRange) -> Option<DeviceRange<'a>>;
}

/// A range carries no dirty bitmap: memory that may be written through it is marked when it is translated.
impl<M: GuestMemory> DriverMem for M {
    fn translate<'a>(&'a self, driver: DriverRange) -> Option<DeviceRange<'a>> {
        let start = GuestAddress(u64::try_from(driver.0.start).ok()?);
        let len = driver.0.end.checked_sub(driver.0.start)?;
        let slice = self.get_slice(start, len).ok()?;
        if slice.direction() != Direction::ToDevice {
            slice.bitmap().mark_dirty(0, len);
        }
        Some(DeviceRange(slice.with_bitmap(())))
    }
}
