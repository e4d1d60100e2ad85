//! The layout of virtqueues (virtio 1.4, 2.7 and 2.8): numbers, and no access to memory. Drivers, device
//! models and the fakes of tests have it from here.
//!
//! Offsets and lengths are in bytes. Words are as the CPU has them; in memory they are little-endian.

pub mod packed;
pub mod split;

/// The largest size of a queue: its number of descriptors (2.7, 2.8).
pub const MAX_SIZE: u16 = 1 << 15;

/// Bytes of a descriptor (2.7.5, 2.8.13), and the alignment of a queue's descriptors.
pub const DESCRIPTOR_LEN: usize = 16;
/// Bytes of each of its two words: address; length, flags and what else the format has.
pub const WORD_LEN: usize = 8;

/// In the flags of a descriptor (2.7.5, 2.8.1): another one follows in its chain.
pub const NEXT: u16 = 1 << 0;
/// In the flags of a descriptor: the device writes the buffer, and does not read it.
pub const WRITE: u16 = 1 << 1;
/// In the flags of a descriptor: the buffer is a table of descriptors.
pub const INDIRECT: u16 = 1 << 2;

/// Offset of descriptor `index` in a table.
#[inline]
pub const fn descriptor(index: u16) -> usize {
    index as usize * DESCRIPTOR_LEN
}

/// Whether going from index `old` to `new` passes `event`: it is one of those from `old` on and before `new`
/// (2.7.7, 2.7.10). Indices run freely and wrap at 65,536.
#[inline]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
