//! How bytes are copied to and from shared memory. In terms of Rust: for each byte, in any order, one relaxed
//! atomic load or store of one byte. Why so, and what it is worth, is said at `VolatileSlice`.
//!
//! `many_from_shared` and `many_to_shared` do the same for bytes that are many.

pub(crate) use bytes::{from_shared, many_from_shared, many_to_shared, to_shared};

/// A loop over atomics, which sanitizers and other processors can follow.
#[cfg(not(all(target_arch = "x86_64", not(any(miri, ringfence_tsan)))))]
mod bytes {
    pub(crate) use self::{from_shared as many_from_shared, to_shared as many_to_shared};
    use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

    /// # Safety
    /// The `to.len()` bytes at `from` must be valid for relaxed atomic loads.
    pub(crate) unsafe fn from_shared(from: *const u8, to: &mut [u8]) {
        for (index, byte) in to.iter_mut().enumerate() {
            // SAFETY: one of the bytes that this function's contract is about.
            *byte = unsafe { AtomicU8::from_ptr(from.add(index).cast_mut()) }.load(Relaxed);
        }
    }

    /// # Safety
    /// The `from.len()` bytes at `to` must be valid for relaxed atomic stores.
    pub(crate) unsafe fn to_shared(from: &[u8], to: *mut u8) {
        for (index, byte) in from.iter().enumerate() {
            // SAFETY: one of the bytes that this function's contract is about.
            unsafe { AtomicU8::from_ptr(to.add(index)) }.store(*byte, Relaxed);
        }
    }
}

/// The same in moves of up to 8 bytes at any alignment: to do several relaxed accesses at once is one way for
/// a machine to do them.
#[cfg(all(target_arch = "x86_64", not(any(miri, ringfence_tsan))))]
mod bytes {
    use core::arch::asm;

    /// # Safety
    /// The `to.len()` bytes at `from` must be valid for relaxed atomic loads.
    #[inline]
    pub(crate) unsafe fn from_shared(from: *const u8, to: &mut [u8]) {
        // SAFETY: `to` is borrowed mutably; the rest is this function's contract.
        unsafe { moves(from, to.as_mut_ptr(), to.len()) }
    }

    /// # Safety
    /// The `from.len()` bytes at `to` must be valid for relaxed atomic stores.
    #[inline]
    pub(crate) unsafe fn to_shared(from: &[u8], to: *mut u8) {
        // SAFETY: `from` is borrowed; the rest is this function's contract.
        unsafe { moves(from.as_ptr(), to, from.len()) }
    }

    /// # Safety
    /// As for [`from_shared`].
    #[inline(never)]
    pub(crate) unsafe fn many_from_shared(from: *const u8, to: &mut [u8]) {
        // SAFETY: `to` is borrowed mutably; the rest is this function's contract.
        unsafe { string_move(from, to.as_mut_ptr(), to.len()) }
    }

    /// # Safety
    /// As for [`to_shared`].
    #[inline(never)]
    pub(crate) unsafe fn many_to_shared(from: &[u8], to: *mut u8) {
        // SAFETY: `from` is borrowed; the rest is this function's contract.
        unsafe { string_move(from.as_ptr(), to, from.len()) }
    }

    /// It takes a processor longer to begin than a few moves, and less for each byte. Its stores may come in
    /// any order, but all before those of later instructions (Intel SDM, volume 3, "String Operations and
    /// Memory Ordering").
    ///
    /// # Safety
    /// As for [`moves`].
    #[inline]
    unsafe fn string_move(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: it moves `len` bytes. The direction flag is clear, as `asm!` promises.
        unsafe {
            asm!(
                "rep movsq",
                "mov rcx, {rest}",
                "rep movsb",
                inout("rcx") len / 8 => _, inout("rsi") from => _, inout("rdi") to => _, rest = in(reg) len % 8,
                options(nostack, preserves_flags),
            );
        }
    }

    /// # Safety
    /// `len` bytes at `from` must be valid for relaxed atomic loads, as many at `to` for relaxed atomic
    /// stores.
    #[inline]
    unsafe fn moves(from: *const u8, to: *mut u8, len: usize) {
        let mut at = 0;
        macro_rules! moves {
            ($repeat:tt $left:expr, $bytes:literal, $offsets:literal, $size:literal, $value:literal) => {
                $repeat $left {
                    // SAFETY: `at` bytes are done, so that of `len` as many as this moves are left. It
                    // touches only them.
                    unsafe {
                        asm!(
                            concat!(".irp offset, ", $offsets),
                            concat!("mov {", $value, "}, ", $size, " ptr [{from} + {at} + \\offset]"),
                            concat!("mov ", $size, " ptr [{to} + {at} + \\offset], {", $value, "}"),
                            ".endr",
                            from = in(reg) from, to = in(reg) to, at = in(reg) at, value = out(reg) _,
                            options(nostack, preserves_flags),
                        );
                    }
                    at = at.wrapping_add($bytes);
                }
            };
        }
        moves!(while at < len & !127, 128, "0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120", "qword", "value");
        moves!(if len & 64 != 0, 64, "0, 8, 16, 24, 32, 40, 48, 56", "qword", "value");
        moves!(if len & 32 != 0, 32, "0, 8, 16, 24", "qword", "value");
        moves!(if len & 16 != 0, 16, "0, 8", "qword", "value");
        moves!(if len & 8 != 0, 8, "0", "qword", "value");
        moves!(if len & 4 != 0, 4, "0", "dword", "value:e");
        moves!(if len & 2 != 0, 2, "0", "word", "value:x");
        moves!(if len & 1 != 0, 1, "0", "byte", "value:l");
        debug_assert_eq!(at, len);
    }
}
