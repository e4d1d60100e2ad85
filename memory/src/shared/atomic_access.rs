//! Integers that the CPU loads and stores in one access.

use core::ptr::NonNull;
#[cfg(target_has_atomic = "64")]
use core::sync::atomic::AtomicU64;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

mod sealed {
    pub trait Sealed: Sized {
        /// Between the CPU's order of bytes and little-endian.
        fn le(self) -> Self;
    }
}

/// An integer that the CPU loads and stores in one access: `u8`, `u16`, `u32`, `u64`.
///
/// A CPU with none of 64 bits has two for a `u64`. The half at the higher address is loaded first and stored
/// last: it has what says that the word is there (2.8.13).
pub trait AtomicAccess: FromBytes + IntoBytes + Immutable + Copy + sealed::Sealed {
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
        impl sealed::Sealed for $int {
            #[inline(always)]
            fn le(self) -> Self {
                self.to_le()
            }
        }
        impl AtomicAccess for $int {
            #[inline(always)]
            unsafe fn load(at: NonNull<Self>, order: Ordering) -> Self {
                #[cfg(ringfence_loom)]
                {
                    let (at, mut bytes) = (at.as_ptr().cast(), [0; size_of::<Self>()]);
                    if crate::shared::shadow::ask(|shadow| shadow.load(at, &mut bytes, order)) {
                        return Self::from_ne_bytes(bytes);
                    }
                }
                // SAFETY: aligned and valid by this function's contract; no access to shared memory is plain
                // (for races of different sizes see `VolatileSlice`).
                unsafe { <$atomic>::from_ptr(at.as_ptr()) }.load(order)
            }
            #[inline(always)]
            unsafe fn store(at: NonNull<Self>, value: Self, order: Ordering) {
                #[cfg(ringfence_loom)]
                {
                    let (at, bytes) = (at.as_ptr().cast(), value.to_ne_bytes());
                    if crate::shared::shadow::ask(|shadow| shadow.store(at, &bytes, order)) {
                        return;
                    }
                }
                // SAFETY: as in `load`.
                unsafe { <$atomic>::from_ptr(at.as_ptr()) }.store(value, order)
            }
        }
    )*};
}
atomic_access!(u8 => AtomicU8, u16 => AtomicU16, u32 => AtomicU32);
#[cfg(target_has_atomic = "64")]
atomic_access!(u64 => AtomicU64);
#[cfg(not(target_has_atomic = "64"))]
impl sealed::Sealed for u64 {
    #[inline(always)]
    fn le(self) -> Self {
        self.to_le()
    }
}
#[cfg(not(target_has_atomic = "64"))]
impl AtomicAccess for u64 {
    #[inline(always)]
    unsafe fn load(at: NonNull<Self>, order: Ordering) -> Self {
        // SAFETY: this function's contract.
        unsafe { super::halves::load(at, order) }
    }
    #[inline(always)]
    unsafe fn store(at: NonNull<Self>, value: Self, order: Ordering) {
        // SAFETY: this function's contract.
        unsafe { super::halves::store(at, value, order) }
    }
}
