//! A heap with as much room as a test leaves it.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::alloc::{GlobalAlloc, Layout, System as Heap};
use std::cell::Cell;

use ringfence_memory::host;

thread_local! {
    /// The most bytes that the heap has in one piece.
    pub static HEAP: Cell<usize> = const { Cell::new(usize::MAX) };
    /// How often something was allocated while a lock of the crate was held.
    pub static UNDER_LOCK: Cell<usize> = const { Cell::new(0) };
    pub static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The heap, which has as much room for this thread as it is told.
struct Scarce;

unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        UNDER_LOCK.set(UNDER_LOCK.get() + usize::from(host::locks_held()));
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        if layout.size() > HEAP.get() { std::ptr::null_mut() } else { unsafe { Heap.alloc(layout) } }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { Heap.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static SCARCE: Scarce = Scarce;
