//! A word of 64 bits in shared memory, for CPUs that have no access of that size. Of a descriptor's second
//! word, and of a used element, the half at the higher address says whether the other is there.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

/// Loads the half at the higher address, then the other.
///
/// # Safety
/// `at` must be aligned for `u64` and valid for atomic loads of 32 bits.
#[inline(always)]
pub(super) unsafe fn load(at: NonNull<u64>, order: Ordering) -> u64 {
    let first: NonNull<u32> = at.cast();
    // SAFETY: both halves are valid by this function's contract.
    let last = unsafe { AtomicU32::from_ptr(first.add(1).as_ptr()) }.load(order);
    // SAFETY: as above.
    join([unsafe { AtomicU32::from_ptr(first.as_ptr()) }.load(order), last])
}

/// Stores the half at the lower address, then the other.
///
/// # Safety
/// `at` must be aligned for `u64` and valid for atomic stores of 32 bits.
#[inline(always)]
pub(super) unsafe fn store(at: NonNull<u64>, value: u64, order: Ordering) {
    let ([low, last], first) = (split(value), at.cast::<u32>());
    // SAFETY: both halves are valid by this function's contract.
    unsafe { AtomicU32::from_ptr(first.as_ptr()) }.store(low, order);
    // SAFETY: as above.
    unsafe { AtomicU32::from_ptr(first.add(1).as_ptr()) }.store(last, order);
}

/// By rising address, whatever order the CPU has bytes in.
const fn split(word: u64) -> [u32; 2] {
    let halves = [word as u32, (word >> 32) as u32];
    if cfg!(target_endian = "little") { halves } else { [halves[1], halves[0]] }
}

const fn join([first, last]: [u32; 2]) -> u64 {
    let (low, high) = if cfg!(target_endian = "little") { (first, last) } else { (last, first) };
    low as u64 | (high as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one of the two writes the other reads, and it is the word that the CPU has there.
    #[test]
    fn halves_make_the_word() {
        let mut word = 0x0123_4567_89ab_cdef_u64;
        let at = NonNull::from(&mut word);
        // SAFETY: a word of this function's own.
        unsafe {
            assert_eq!(load(at, Ordering::Acquire), 0x0123_4567_89ab_cdef);
            store(at, 0xfedc_ba98_7654_3210, Ordering::Release);
            assert_eq!(at.read(), 0xfedc_ba98_7654_3210);
        }
    }
}
