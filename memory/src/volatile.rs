//! Access to memory that somebody else may change at any moment: a device, or the other half of a ring.
//!
//! No reference to such memory ever exists. A [`VolatileSlice`] holds a pointer, a length and a lifetime, and
//! offers bounds-checked copies and same-size atomic accesses, nothing else. The rule for users: copy once, then
//! validate the copy. The names follow rust-vmm's `vm-memory`.

use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Why a volatile access was refused. Nothing was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolatileError {
    /// The access would reach beyond the end of the slice.
    OutOfBounds,
    /// An atomic access at an address that is not a multiple of its size.
    Misaligned,
}

/// A run of shared bytes, valid for `'a`, read and written without ever forming a reference.
///
/// Shared by `Copy`: holding one proves only that the memory stays mapped, not that its contents stay put.
#[derive(Clone, Copy, Debug)]
pub struct VolatileSlice<'a> {
    start: NonNull<u8>,
    len: usize,
    owner: PhantomData<&'a AtomicU8>,
}

// SAFETY: the slice gives only volatile and atomic access to memory that, by the contract of `new`, holds no Rust
// object; racing accesses through it are the case it exists for.
unsafe impl Send for VolatileSlice<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for VolatileSlice<'_> {}

impl<'a> VolatileSlice<'a> {
    /// # Safety
    /// `start..start + len` must be mapped, readable and writable for `'a`, and no Rust reference to any of it may
    /// exist in that time.
    pub const unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self { start, len, owner: PhantomData }
    }

    /// A slice of no bytes.
    pub const fn empty() -> Self {
        Self { start: NonNull::dangling(), len: 0, owner: PhantomData }
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pointer to the first byte; valid for `len` bytes and `'a`, to be used by volatile access only.
    pub const fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// The `len` bytes that start at `offset`.
    pub fn subslice(&self, offset: usize, len: usize) -> Result<Self, VolatileError> {
        let start = self.pointer(offset, len)?;
        Ok(Self { start, len, owner: PhantomData })
    }

    /// The bytes before `offset`, and those from `offset` on.
    pub fn split_at(&self, offset: usize) -> Result<(Self, Self), VolatileError> {
        let rest = self.len.checked_sub(offset).ok_or(VolatileError::OutOfBounds)?;
        Ok((self.subslice(0, offset)?, self.subslice(offset, rest)?))
    }

    /// Copies `buf.len()` bytes from `offset` into `buf`.
    pub fn read_slice(&self, offset: usize, buf: &mut [u8]) -> Result<(), VolatileError> {
        let from = self.pointer(offset, buf.len())?;
        // SAFETY: `pointer` checked that `from` has `buf.len()` bytes in the slice; `buf` is private memory.
        unsafe { copy_from_volatile(from.as_ptr(), buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    /// Copies all of `buf` to `offset`.
    pub fn write_slice(&self, offset: usize, buf: &[u8]) -> Result<(), VolatileError> {
        let to = self.pointer(offset, buf.len())?;
        // SAFETY: `pointer` checked that `to` has `buf.len()` bytes in the slice; `buf` is private memory.
        unsafe { copy_to_volatile(buf.as_ptr(), to.as_ptr(), buf.len()) };
        Ok(())
    }

    /// Copies a `T` out of the bytes at `offset` (no alignment needed; not one atomic access).
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, VolatileError> {
        let mut value = T::new_zeroed();
        self.read_slice(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies `value` to the bytes at `offset` (no alignment needed; not one atomic access).
    pub fn write_obj<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> Result<(), VolatileError> {
        self.write_slice(offset, value.as_bytes())
    }

    /// Sets every byte to `value`.
    pub fn fill(&self, value: u8) {
        let word = u64::from_ne_bytes([value; 8]);
        let mut at = self.start.as_ptr();
        let mut left = self.len;
        while left > 0 {
            if left >= 8 && at.addr().is_multiple_of(8) {
                // SAFETY: at least 8 bytes of the slice are left at the aligned address `at`.
                unsafe { ptr::write_volatile(at.cast::<u64>(), word) };
                (at, left) = (at.wrapping_add(8), left - 8);
            } else {
                // SAFETY: at least one byte of the slice is left at `at`.
                unsafe { ptr::write_volatile(at, value) };
                (at, left) = (at.wrapping_add(1), left - 1);
            }
        }
    }

    /// One atomic load of a whole `T`.
    pub fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> Result<T, VolatileError> {
        let at = self.aligned::<T>(offset)?;
        // SAFETY: `aligned` checked bounds and alignment; the memory is valid for the slice's lifetime.
        Ok(unsafe { T::load(at, order) })
    }

    /// One atomic store of a whole `T`.
    pub fn store<T: AtomicAccess>(
        &self,
        offset: usize,
        value: T,
        order: Ordering,
    ) -> Result<(), VolatileError> {
        let at = self.aligned::<T>(offset)?;
        // SAFETY: as in `load`.
        unsafe { T::store(at, value, order) };
        Ok(())
    }

    fn aligned<T>(&self, offset: usize) -> Result<NonNull<T>, VolatileError> {
        let at = self.pointer(offset, size_of::<T>())?.cast::<T>();
        if at.is_aligned() { Ok(at) } else { Err(VolatileError::Misaligned) }
    }

    fn pointer(&self, offset: usize, len: usize) -> Result<NonNull<u8>, VolatileError> {
        match offset.checked_add(len) {
            // SAFETY: `offset <= self.len`, so the result is in the slice or one past its end.
            Some(end) if end <= self.len => Ok(unsafe { self.start.add(offset) }),
            _ => Err(VolatileError::OutOfBounds),
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// An integer that the CPU loads and stores in one access: `u8`, `u16`, `u32`, `u64`.
pub trait AtomicAccess: Copy + sealed::Sealed {
    /// # Safety
    /// `at` must be aligned for `Self` and valid for reads.
    #[doc(hidden)]
    unsafe fn load(at: NonNull<Self>, order: Ordering) -> Self;
    /// # Safety
    /// `at` must be aligned for `Self` and valid for writes.
    #[doc(hidden)]
    unsafe fn store(at: NonNull<Self>, value: Self, order: Ordering);
}

macro_rules! atomic_access {
    ($($int:ty => $atomic:ty),*) => {$(
        impl sealed::Sealed for $int {}
        impl AtomicAccess for $int {
            unsafe fn load(at: NonNull<Self>, order: Ordering) -> Self {
                // SAFETY: aligned and valid by this function's contract; the memory is only ever accessed
                // volatile or by atomics of this size.
                unsafe { <$atomic>::from_ptr(at.as_ptr()) }.load(order)
            }
            unsafe fn store(at: NonNull<Self>, value: Self, order: Ordering) {
                // SAFETY: as in `load`.
                unsafe { <$atomic>::from_ptr(at.as_ptr()) }.store(value, order)
            }
        }
    )*};
}
atomic_access!(u8 => AtomicU8, u16 => AtomicU16, u32 => AtomicU32, u64 => AtomicU64);

/// # Safety
/// `from` must be valid for `len` bytes of volatile reads, `to` for `len` bytes of writes.
unsafe fn copy_from_volatile(mut from: *const u8, mut to: *mut u8, mut len: usize) {
    while len > 0 {
        let step = if len >= 8 && from.addr().is_multiple_of(8) {
            // SAFETY: 8 bytes are left on both sides and `from` is aligned.
            unsafe { to.cast::<u64>().write_unaligned(ptr::read_volatile(from.cast::<u64>())) };
            8
        } else {
            // SAFETY: one byte is left on both sides.
            unsafe { to.write(ptr::read_volatile(from)) };
            1
        };
        (from, to, len) = (from.wrapping_add(step), to.wrapping_add(step), len - step);
    }
}

/// # Safety
/// `from` must be valid for `len` bytes of reads, `to` for `len` bytes of volatile writes.
unsafe fn copy_to_volatile(mut from: *const u8, mut to: *mut u8, mut len: usize) {
    while len > 0 {
        let step = if len >= 8 && to.addr().is_multiple_of(8) {
            // SAFETY: 8 bytes are left on both sides and `to` is aligned.
            unsafe { ptr::write_volatile(to.cast::<u64>(), from.cast::<u64>().read_unaligned()) };
            8
        } else {
            // SAFETY: one byte is left on both sides.
            unsafe { ptr::write_volatile(to, from.read()) };
            1
        };
        (from, to, len) = (from.wrapping_add(step), to.wrapping_add(step), len - step);
    }
}
