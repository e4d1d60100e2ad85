//! Access to memory that somebody else may change at any moment: a device, or the other half of a ring.
//!
//! No reference to such memory ever exists. A [`VolatileSlice`] holds a pointer, a length and a lifetime, and
//! offers bounds-checked copies and same-size atomic accesses, nothing else. The rule for users: copy once,
//! then validate the copy. The names follow rust-vmm's `vm-memory`.
//!
//! What a race is worth is in the documentation of [`VolatileSlice`].

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{AtomicAccess, Bytes, copy};
use crate::rust_vmm::BitmapSlice;

/// Why a volatile access was refused. Nothing was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolatileError {
    /// The access would reach beyond the end of the slice.
    OutOfBounds,
    /// An atomic access at an address that is not a multiple of its size, or array elements that do not fill
    /// it.
    Misaligned,
    /// A write to memory that was lent for reading only, or the reverse.
    NotPermitted,
}

crate::error::messages! { VolatileError {
    OutOfBounds => "beyond the end of the memory",
    Misaligned => "misaligned",
    NotPermitted => "not in the direction that the memory is lent for",
} }

/// Which way bytes go between a driver and its device. The driver's side may always read and write; what is
/// given to the device, or to who plays one, serves its direction alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads.
    ToDevice,
    /// The device writes.
    FromDevice,
    /// The device does both.
    Both,
}

impl Direction {
    /// Whether the device may do all of what `wanted` says.
    #[inline]
    pub fn allows(self, wanted: Self) -> bool {
        self == Self::Both || self == wanted
    }
}

/// A run of shared bytes, valid for `'a`, read and written without ever forming a reference.
///
/// Its accessors are those of [`Bytes<usize>`](Bytes), by byte offset. Writes mark the dirty bitmap `B`.
/// Copying the slice is free: holding one proves only that the memory stays mapped, not that its contents
/// stay put.
///
/// ```
/// use core::sync::atomic::Ordering;
/// use ringfence_memory::{Bytes, Direction, VolatileError, host::HostPlatform};
///
/// let registers = HostPlatform::new().add_registers(0xfe00_0000, 4096);
/// let slice = registers.slice().subslice(16, 32)?;
/// slice.store(0x1234_u16, 2, Ordering::Release)?;
/// assert_eq!(slice.read_obj::<[u8; 4]>(0), Ok([0, 0, 0x34, 0x12]));
/// assert_eq!(slice.load::<u16>(1, Ordering::Acquire), Err(VolatileError::Misaligned));
/// assert_eq!(slice.write_slice(&[1, 2], 31), Err(VolatileError::OutOfBounds));
/// let to_device = slice.restrict(Direction::ToDevice);
/// assert_eq!(to_device.write_slice(&[1], 0), Err(VolatileError::NotPermitted));
///
/// let array = slice.get_array_ref::<u32>(4, 3)?;
/// array.store(2, 7)?;
/// assert_eq!(array.load(2), slice.read_obj(12));
/// # Ok::<(), VolatileError>(())
/// ```
///
/// # Races
/// Rust's memory model (`core::sync::atomic`) leaves two kinds of race undefined: with an access that is not
/// atomic, and between atomic accesses of different sizes. So no access is plain, and each place is accessed
/// in one size:
///
/// - *Copies* (`read…`, `write…`, `copy_…`, `fill`) access each byte by one relaxed atomic access of one
///   byte, wherever they begin and end. Any copies may race: the result is a mix of old and new bytes. The
///   machine may do several of these accesses in one move, and on x86-64 does, up to 8: in inline assembly,
///   of which Rust asks that Rust code could have the same effect. Elsewhere, and where a sanitizer is to see
///   it, it is a loop over `AtomicU8`.
/// - *`load` and `store`* are one atomic access of the whole value, which never tears. Any of one size may
///   race.
///
/// What is left is the protocol of the users: a place that is loaded or stored while others may access it is
/// accessed in that size by all. Both sides of a split ring keep it, and where a copy meets a `load` or
/// `store` (a descriptor is stored as two words and copied as 16 bytes), an acquire of the index comes
/// between. In a packed ring our driver stores and loads flags together with what they guard, as a word,
/// where a device (or a model of one in Rust) has them alone. There, and if a thread of Rust breaks the
/// protocol, the bytes are still each an old or a new one: LLVM defines such a race byte by byte, and an
/// aligned move of up to 8 bytes is one access of the processor. Rust's documentation does not promise that.
/// A device is no thread of Rust: bus and processor order its accesses.
#[derive(Clone, Copy, Debug)]
pub struct VolatileSlice<'a, B = ()> {
    start: NonNull<u8>,
    len: usize,
    direction: Direction,
    bitmap: B,
    owner: PhantomData<&'a AtomicU8>,
}

// SAFETY: the slice gives only atomic access to memory that, by the contract of `new`, holds no Rust object;
// racing accesses through it are the case it exists for.
unsafe impl<B: Send> Send for VolatileSlice<'_, B> {}
// SAFETY: as for `Send`.
unsafe impl<B: Sync> Sync for VolatileSlice<'_, B> {}

impl VolatileSlice<'_> {
    /// # Safety
    /// `start..start + len` must be mapped, readable and writable for the slice's lifetime; in that time no
    /// Rust reference to any of it may exist, other than to atomics, and nobody may access it other than by
    /// atomics.
    pub const unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self { start, len, direction: Direction::Both, bitmap: (), owner: PhantomData }
    }

    /// A slice of no bytes.
    pub const fn empty() -> Self {
        Self {
            start: NonNull::dangling(),
            len: 0,
            direction: Direction::Both,
            bitmap: (),
            owner: PhantomData,
        }
    }
}

impl<'a, B: BitmapSlice> VolatileSlice<'a, B> {
    /// The same bytes, whose writes mark `bitmap` (from its offset 0 on).
    pub fn with_bitmap<C: BitmapSlice>(self, bitmap: C) -> VolatileSlice<'a, C> {
        let Self { start, len, direction, owner, .. } = self;
        VolatileSlice { start, len, direction, bitmap, owner }
    }

    /// The same bytes, for no more than `direction`: what was forbidden stays so.
    ///
    /// Nothing at all is left of a slice of one direction that is to be for the other.
    pub fn restrict(self, direction: Direction) -> Self {
        let (direction, len) = match (self.direction, direction) {
            (old, Direction::Both) => (old, self.len),
            (Direction::Both, new) => (new, self.len),
            (old, new) => (old, if old == new { self.len } else { 0 }),
        };
        Self { direction, len, ..self }
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Which way the bytes may go.
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// Where writes are recorded.
    pub const fn bitmap(&self) -> &B {
        &self.bitmap
    }

    /// Pointer to the first byte; valid for `len` bytes and `'a`, to be used by atomic access only.
    pub const fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// The `len` bytes that start at `offset`.
    #[inline]
    pub fn subslice(&self, offset: usize, len: usize) -> Result<Self, VolatileError> {
        let start = self.pointer(offset, len)?;
        Ok(Self { start, len, bitmap: self.bitmap.slice_at(offset), ..*self })
    }

    /// The bytes from `offset` on.
    pub fn offset(&self, offset: usize) -> Result<Self, VolatileError> {
        let rest = self.len.checked_sub(offset).ok_or(VolatileError::OutOfBounds)?;
        self.subslice(offset, rest)
    }

    /// The bytes before `offset`, and those from `offset` on.
    pub fn split_at(&self, offset: usize) -> Result<(Self, Self), VolatileError> {
        Ok((self.subslice(0, offset)?, self.offset(offset)?))
    }

    /// The `T` at `offset`.
    pub fn get_ref<T>(&self, offset: usize) -> Result<VolatileRef<'a, T, B>, VolatileError> {
        Ok(VolatileRef { slice: self.subslice(offset, size_of::<T>())?, value: PhantomData })
    }

    /// The `count` consecutive values of type `T` from `offset` on.
    pub fn get_array_ref<T>(
        &self,
        offset: usize,
        count: usize,
    ) -> Result<VolatileArrayRef<'a, T, B>, VolatileError> {
        let len = count.checked_mul(size_of::<T>()).ok_or(VolatileError::OutOfBounds)?;
        Ok(VolatileArrayRef { slice: self.subslice(offset, len)?, count, value: PhantomData })
    }

    /// Copies bytes to `to`, as many as both have, and says how many.
    ///
    /// Both sides may change meanwhile: each byte is read once and written once. Overlapping slices are
    /// copied from the front.
    pub fn copy_to_volatile_slice<C: BitmapSlice>(
        &self,
        to: &VolatileSlice<'_, C>,
    ) -> Result<usize, VolatileError> {
        let (mut done, len) = (0, self.len.min(to.len));
        let mut buffer = [0; 256];
        while done < len {
            let part = &mut buffer[..(len - done).min(256)];
            self.read_slice(part, done)?;
            to.write_slice(part, done)?;
            done += part.len();
        }
        Ok(done)
    }

    /// Sets every byte to `value`.
    pub fn fill(&self, value: u8) -> Result<(), VolatileError> {
        let block = [value; 256];
        (0..self.len)
            .step_by(block.len())
            .try_for_each(|done| self.write_slice(&block[..(self.len - done).min(block.len())], done))
    }

    /// A pointer to `len` bytes from `offset` on, unless the slice allows nothing but what is `refused`. None
    /// of no bytes is refused, wherever it is.
    #[inline]
    fn accessible(
        &self,
        offset: usize,
        len: usize,
        refused: Direction,
    ) -> Result<NonNull<u8>, VolatileError> {
        match self.direction {
            _ if len == 0 => Ok(self.start),
            direction if direction == refused => Err(VolatileError::NotPermitted),
            _ => self.pointer(offset, len),
        }
    }

    /// Copies bytes in by one of the functions of [`copy`].
    #[inline(always)]
    fn write_by(
        &self,
        copy: unsafe fn(&[u8], *mut u8),
        buf: &[u8],
        offset: usize,
    ) -> Result<(), VolatileError> {
        let to = self.accessible(offset, buf.len(), Direction::ToDevice)?;
        #[cfg(ringfence_loom)]
        if crate::shared::shadow::ask(|shadow| shadow.write(to.as_ptr(), buf)) {
            return Ok(());
        }
        // SAFETY: `accessible` checked that `to` has `buf.len()` bytes in the slice.
        unsafe { copy(buf, to.as_ptr()) };
        self.bitmap.mark_dirty(offset, buf.len());
        Ok(())
    }

    /// Copies bytes out by one of the functions of [`copy`].
    #[inline(always)]
    fn read_by(
        &self,
        copy: unsafe fn(*const u8, &mut [u8]),
        buf: &mut [u8],
        offset: usize,
    ) -> Result<(), VolatileError> {
        let from = self.accessible(offset, buf.len(), Direction::FromDevice)?;
        #[cfg(ringfence_loom)]
        if crate::shared::shadow::ask(|shadow| shadow.read(from.as_ptr(), buf)) {
            return Ok(());
        }
        // SAFETY: `accessible` checked that `from` has `buf.len()` bytes in the slice.
        unsafe { copy(from.as_ptr(), buf) };
        Ok(())
    }

    /// How many of `wanted` bytes there are from `offset` on.
    fn room(&self, offset: usize, wanted: usize) -> Result<usize, VolatileError> {
        match self.len.saturating_sub(offset).min(wanted) {
            0 if wanted > 0 => Err(VolatileError::OutOfBounds),
            room => Ok(room),
        }
    }

    #[inline]
    fn pointer(&self, offset: usize, len: usize) -> Result<NonNull<u8>, VolatileError> {
        match offset.checked_add(len) {
            // SAFETY: `offset <= self.len`, so the result is in the slice or one past its end.
            Some(end) if end <= self.len => Ok(unsafe { self.start.add(offset) }),
            _ => Err(VolatileError::OutOfBounds),
        }
    }
}

fn aligned<T>(at: NonNull<u8>) -> Result<NonNull<T>, VolatileError> {
    let at = at.cast::<T>();
    if at.is_aligned() { Ok(at) } else { Err(VolatileError::Misaligned) }
}

/// By byte offset from the start of the slice.
impl<B: BitmapSlice> Bytes<usize> for VolatileSlice<'_, B> {
    type E = VolatileError;

    fn write(&self, buf: &[u8], offset: usize) -> Result<usize, VolatileError> {
        let len = self.room(offset, buf.len())?;
        self.write_slice(&buf[..len], offset).map(|()| len)
    }

    fn read(&self, buf: &mut [u8], offset: usize) -> Result<usize, VolatileError> {
        let len = self.room(offset, buf.len())?;
        self.read_slice(&mut buf[..len], offset).map(|()| len)
    }

    #[inline]
    fn write_slice(&self, buf: &[u8], offset: usize) -> Result<(), VolatileError> {
        self.write_by(copy::to_shared, buf, offset)
    }

    #[inline]
    fn read_slice(&self, buf: &mut [u8], offset: usize) -> Result<(), VolatileError> {
        self.read_by(copy::from_shared, buf, offset)
    }

    fn store<T: AtomicAccess>(&self, value: T, offset: usize, order: Ordering) -> Result<(), VolatileError> {
        let at = aligned::<T>(self.accessible(offset, size_of::<T>(), Direction::ToDevice)?)?;
        // SAFETY: bounds and alignment were checked; the memory is valid for the slice's lifetime.
        unsafe { T::store(at, value, order) };
        self.bitmap.mark_dirty(offset, size_of::<T>());
        Ok(())
    }

    fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> Result<T, VolatileError> {
        let at = aligned::<T>(self.accessible(offset, size_of::<T>(), Direction::FromDevice)?)?;
        // SAFETY: as in `store`.
        Ok(unsafe { T::load(at, order) })
    }
}

/// One value in shared memory, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct VolatileRef<'a, T, B = ()> {
    slice: VolatileSlice<'a, B>,
    value: PhantomData<fn() -> T>,
}

impl<'a, T: FromBytes + IntoBytes + Immutable, B: BitmapSlice> VolatileRef<'a, T, B> {
    /// Copies the value in; not one atomic access.
    pub fn store(&self, value: T) -> Result<(), VolatileError> {
        self.slice.write_obj(value, 0)
    }

    /// Copies the value out; not one atomic access.
    pub fn load(&self) -> Result<T, VolatileError> {
        self.slice.read_obj(0)
    }

    /// Its bytes.
    pub fn to_slice(&self) -> VolatileSlice<'a, B> {
        self.slice.clone()
    }
}

/// Consecutive values in shared memory, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct VolatileArrayRef<'a, T, B = ()> {
    slice: VolatileSlice<'a, B>,
    count: usize,
    value: PhantomData<fn() -> T>,
}

impl<'a, T: FromBytes + IntoBytes + Immutable, B: BitmapSlice> VolatileArrayRef<'a, T, B> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size of an element in bytes.
    pub fn element_size(&self) -> usize {
        size_of::<T>()
    }

    /// The element at `index`.
    pub fn ref_at(&self, index: usize) -> Result<VolatileRef<'a, T, B>, VolatileError> {
        if index >= self.count {
            return Err(VolatileError::OutOfBounds);
        }
        self.slice.get_ref(index * size_of::<T>())
    }

    /// Copies the element at `index` out.
    pub fn load(&self, index: usize) -> Result<T, VolatileError> {
        self.ref_at(index)?.load()
    }

    /// Copies `value` to the element at `index`.
    pub fn store(&self, index: usize, value: T) -> Result<(), VolatileError> {
        self.ref_at(index)?.store(value)
    }

    /// Copies elements out, as many as both have, and says how many. For many bytes this is the faster way,
    /// for a few [`read_slice`](Bytes::read_slice).
    pub fn copy_to(&self, buf: &mut [T]) -> Result<usize, VolatileError> {
        let count = buf.len().min(self.count);
        let bytes = buf[..count].as_mut_bytes();
        self.slice.read_by(copy::many_from_shared, bytes, 0).map(|()| count)
    }

    /// Copies elements in, as many as both have, and says how many. For many bytes this is the faster way,
    /// for a few [`write_slice`](Bytes::write_slice).
    pub fn copy_from(&self, buf: &[T]) -> Result<usize, VolatileError> {
        let count = buf.len().min(self.count);
        self.slice.write_by(copy::many_to_shared, buf[..count].as_bytes(), 0).map(|()| count)
    }

    /// Its bytes.
    pub fn to_slice(&self) -> VolatileSlice<'a, B> {
        self.slice.clone()
    }
}

/// The fence for protocols over shared memory.
#[inline]
pub fn fence(order: Ordering) {
    #[cfg(ringfence_loom)]
    if crate::shared::shadow::ask(|shadow| shadow.fence(order)) {
        return;
    }
    core::sync::atomic::fence(order);
}
