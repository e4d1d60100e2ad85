//! A heap, and pages for devices. Both are part of the image, so nobody asks where RAM is.

use core::num::NonZeroUsize;
use core::ptr::NonNull;

use ringfence_memory::PAGE_SIZE;
use spin::Mutex;
use talc::TalcLock;
use talc::source::Claim;

static mut HEAP_MEMORY: [u8; 1 << 18] = [0; 1 << 18];

#[global_allocator]
// SAFETY: the memory is the heap's alone.
static HEAP: TalcLock<Mutex<()>, Claim> = TalcLock::new(unsafe { Claim::array(&raw mut HEAP_MEMORY) });

/// How many pages there are for devices.
pub const PAGES: usize = 128;

#[repr(C, align(4096))]
struct Pages([u8; PAGES * PAGE_SIZE]);

// They are never anything else: a device that writes late writes to no object of this program.
static mut MEMORY: Pages = Pages([0; PAGES * PAGE_SIZE]);
static USED: Mutex<[bool; PAGES]> = Mutex::new([false; PAGES]);

/// So many pages for a device, one after the other.
pub fn zeroed_pages(count: NonZeroUsize) -> Option<NonNull<u8>> {
    let mut used = USED.lock();
    let first = used.windows(count.get()).position(|run| !run.contains(&true))?;
    used.iter_mut().skip(first).take(count.get()).for_each(|used| *used = true);
    let start = (&raw mut MEMORY).cast::<u8>().wrapping_add(first * PAGE_SIZE);
    // SAFETY: there are so many pages, which nobody else has.
    unsafe { start.write_bytes(0, count.get() * PAGE_SIZE) };
    NonNull::new(start)
}

/// Takes pages back.
///
/// # Safety
/// `zeroed_pages` gave out these `len` bytes, and no device or program uses them any more.
pub unsafe fn free_pages(start: NonNull<u8>, len: usize) {
    let first = (start.as_ptr().addr() - (&raw const MEMORY).addr()) / PAGE_SIZE;
    USED.lock().iter_mut().skip(first).take(len / PAGE_SIZE).for_each(|used| *used = false);
}

/// How many pages are lent.
pub fn pages_in_use() -> usize {
    USED.lock().iter().filter(|used| **used).count()
}
