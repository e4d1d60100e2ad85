//! A kernel that is nothing but a user of the drivers, to see how much code they are. Built, never run: see
//! `check::sizes`.
//!
//! Without features it is what is there anyway: a heap, and a panic handler that formats.
#![no_std]
#![no_main]

extern crate alloc;

#[cfg(any(feature = "blk", feature = "net"))]
mod user;

use alloc::string::ToString;
use core::alloc::{GlobalAlloc, Layout};
use core::fmt::{self, Write};
use core::hint::black_box;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

struct Heap(AtomicUsize);

// A kernel's heap is a function that is called, not a few instructions wherever something is allocated.
// SAFETY: no memory is handed out twice; that it is memory, nobody needs who does not run.
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let at = self.0.fetch_add(layout.size() + layout.align(), Ordering::Relaxed);
        black_box(ptr::with_exposed_provenance_mut(at.next_multiple_of(layout.align())))
    }

    #[inline(never)]
    unsafe fn dealloc(&self, at: *mut u8, _: Layout) {
        black_box(at);
    }
}

#[global_allocator]
static HEAP: Heap = Heap(AtomicUsize::new(1 << 30));

struct Log;

impl Write for Log {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        black_box(text);
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Log, "{info}");
    loop {}
}

// SAFETY: the linker looks for this name, and nothing else has it.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    let text = black_box(7_u64).to_string();
    let _ = writeln!(Log, "{text} {:#x}", black_box(7_usize));
    #[cfg(any(feature = "blk", feature = "net"))]
    user::run();
    panic!("the end")
}
