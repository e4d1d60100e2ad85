//! The kernel heap: talc over regions of mapped memory, which grows by itself once the kernel has its own
//! memory.

use core::alloc::Layout;

use ringfence_memory::PAGE_SIZE;
use talc::TalcLock;
use talc::base::{Talc, binning::Binning};
use talc::source::Source;
use x86_64::VirtAddr;

use crate::memory;

/// The heap grows by at least this many bytes.
const STEP: usize = 256 * 1024;
/// Room for the allocator's own tags around an allocation.
const TAGS: usize = 64;

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Growing> = TalcLock::new(Growing);

/// Takes pages from the kernel's address space, for good.
#[derive(Debug)]
struct Growing;

// SAFETY: `AddressSpace::allocate` takes nothing from a heap, whether it succeeds or not, so the allocator is
// not entered again. (Other operations of the address space do; none of them allocates while it holds a lock
// that this one takes.)
unsafe impl Source for Growing {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let wanted =
            layout.size().checked_add(layout.align()).and_then(|size| size.checked_add(TAGS)).ok_or(())?;
        let space = memory::try_space().ok_or(())?;
        let pages = wanted.max(STEP).div_ceil(PAGE_SIZE);
        let memory = space.allocate_uninit(pages).map_err(|_| ())?;
        // SAFETY: it is mapped writable for good, and was given to nobody else.
        unsafe { talc.claim(memory.as_ptr().cast(), memory.len()) }.map(|_| ()).ok_or(())
    }
}

/// Adds `len` bytes at `start` to the heap; false if that is too little to be of use. The first region must
/// hold the allocator's own tables, about 1 KiB.
///
/// # Safety
/// The bytes are mapped writable, never unmapped, and used for nothing else.
pub unsafe fn init(start: VirtAddr, len: usize) -> bool {
    // SAFETY: the caller hands the memory over.
    unsafe { HEAP.lock().claim(start.as_mut_ptr(), len).is_some() }
}

/// Bytes of the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Handed out.
    pub allocated: usize,
    /// Given to the heap in all.
    pub claimed: usize,
    /// Allocations so far, freed ones included.
    pub allocations: u64,
}

/// How much of the heap is in use.
pub fn usage() -> Usage {
    let heap = HEAP.lock();
    let counters = heap.counters();
    Usage {
        allocated: counters.allocated_bytes,
        claimed: counters.claimed_bytes,
        allocations: counters.total_allocation_count,
    }
}
