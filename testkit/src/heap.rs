//! A heap with as much room as a test leaves it. A test program that wants it has
//!
//! ```
//! # use ringfence_testkit::heap::Scarce;
//! #[global_allocator]
//! static HEAP: Scarce = Scarce;
//! ```
#![allow(clippy::undocumented_unsafe_blocks, reason = "a test dies of what is wrong here")]

use std::alloc::{GlobalAlloc, Layout, System as Heap};
use std::cell::Cell;
use std::ptr;

use ringfence_memory::host;

thread_local! {
    /// The largest block that this thread gets, in bytes.
    pub static LARGEST: Cell<usize> = const { Cell::new(usize::MAX) };
    /// How many blocks this thread still gets.
    pub static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// How many blocks this thread asked for.
    pub static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// How many of them while a lock of `memory` was held.
    pub static UNDER_LOCK: Cell<usize> = const { Cell::new(0) };
}

/// The heap. What is aligned to pages is the host's DMA memory, which is no part of it.
pub struct Scarce;

unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        UNDER_LOCK.set(UNDER_LOCK.get() + usize::from(host::locks_held()));
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        let left = LEFT.get();
        if layout.align() < 4096 && (layout.size() > LARGEST.get() || left == 0) {
            return ptr::null_mut();
        }
        if left != usize::MAX {
            LEFT.set(left.saturating_sub(1));
        }
        unsafe { Heap.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { Heap.dealloc(pointer, layout) }
    }
}

/// Runs `then` with a heap of so many more blocks. Whoever allocates more and does not expect that to fail
/// ends the process.
pub fn with_blocks<R>(blocks: usize, then: impl FnOnce() -> R) -> R {
    LEFT.set(blocks);
    let result = then();
    LEFT.set(usize::MAX);
    result
}
