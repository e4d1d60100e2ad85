//! Virtual memory: which part of the kernel's window belongs to whom.

use super::buddy::{AllocError, Buddy, MAX_ALIGN, Request};
use crate::address::{PAGE_SHIFT, VirtAddr};
use crate::lock::{Level, Lock};
use crate::range::PageRange;
use core::mem::ManuallyDrop;

/// The allocator of virtual addresses, over one window.
///
/// Needs no heap: its storage is handed in. Not for interrupt handlers (it takes a spin lock).
///
/// ```
/// use ringfence_memory::{PageAllocator, PageRange, PageRequest, VirtAddr};
///
/// let window = PageRange::new(VirtAddr::new(0xffff_9000_0000_0000).unwrap(), 1024).unwrap();
/// let storage = vec![0; PageAllocator::storage_words(1024)].leak();
/// let allocator: &'static _ = Box::leak(Box::new(PageAllocator::new(window, storage).unwrap()));
///
/// let mut pages = allocator.allocate(PageRequest { align: 8, ..PageRequest::new(5) }).unwrap();
/// let next = VirtAddr::new(pages.start_address().value() + pages.size_in_bytes());
/// let more = allocator.allocate(PageRequest { at: next, ..PageRequest::new(1) }).unwrap();
/// pages.merge(more).unwrap();
/// assert_eq!((pages.size_in_pages(), allocator.free_pages()), (6, 1018));
/// drop(pages);
/// assert_eq!(allocator.free_pages(), 1024);
/// ```
pub struct PageAllocator {
    window: PageRange,
    buddy: Lock<Buddy>,
}

/// Which pages are wanted.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// How many, adjacent.
    pub count: usize,
    /// In pages; a power of two, at most 1 GiB.
    pub align: usize,
    /// Exactly here.
    pub at: Option<VirtAddr>,
    /// Somewhere in this range.
    pub within: Option<PageRange>,
}

impl PageRequest {
    /// `count` adjacent pages anywhere.
    pub const fn new(count: usize) -> Self {
        Self { count, align: 1, at: None, within: None }
    }
}

impl PageAllocator {
    /// How many words of storage a window of `pages` needs (about a quarter of a byte for each page).
    pub const fn storage_words(pages: usize) -> usize {
        Buddy::storage_words(pages)
    }

    /// An allocator of all pages in `window`, which must begin at a multiple of 1 GiB, and holds neither page
    /// 0 (its first byte is null) nor the very last one (the byte after it has no address):
    /// [`AllocError::OutOfRange`].
    pub fn new(window: PageRange, storage: &'static mut [u64]) -> Result<Self, AllocError> {
        if !window.first().is_multiple_of(MAX_ALIGN as u64) {
            return Err(AllocError::Misaligned);
        }
        if !has_addresses(&window) {
            return Err(AllocError::OutOfRange);
        }
        let pages = window.size_in_pages();
        let mut buddy = Buddy::new(pages, storage).ok_or(AllocError::StorageTooSmall)?;
        buddy.free(0, pages);
        Ok(Self { window, buddy: Lock::new(Level::Pages, buddy) })
    }

    /// All pages that this allocator hands out.
    pub const fn window(&self) -> PageRange {
        self.window
    }

    /// How many pages nobody has.
    pub fn free_pages(&self) -> usize {
        self.buddy.lock().free_units()
    }

    /// Takes pages. They are not mapped. Without `at` and `within` they begin at a multiple of a power of two
    /// that is not below their number, or of 1 GiB, so that the largest leaves fit.
    pub fn allocate(&'static self, request: PageRequest) -> Result<AllocatedPages, AllocError> {
        let index = |page: u64| page.checked_sub(self.window.first()).map(|index| index as usize);
        let at = match request.at {
            Some(address) if !address.is_page_aligned() => return Err(AllocError::Misaligned),
            Some(address) => Some(index(address.value() >> PAGE_SHIFT).ok_or(AllocError::OutOfRange)?),
            None => None,
        };
        let within =
            self.window.overlap(&request.within.unwrap_or(self.window)).ok_or(AllocError::OutOfRange)?;
        let from = (within.first() - self.window.first()) as usize;
        let below = from + within.size_in_pages();
        let start = self.buddy.lock().allocate(&Request {
            count: request.count,
            align: request.align,
            at,
            from,
            below,
        })?;
        let range = PageRange::from_numbers(self.window.first() + start as u64, request.count as u64);
        Ok(AllocatedPages { range: range.map_err(|_| AllocError::OutOfRange)?, home: Some(self) })
    }

    pub(crate) fn any_free(&self, page: u64, count: u64) -> bool {
        self.buddy.lock().any_free((page - self.window.first()) as usize, count as usize)
    }
}

/// Whether the first byte is not null and the byte past the last one has an address.
pub(crate) const fn has_addresses(pages: &PageRange) -> bool {
    pages.is_empty() || (pages.first() > 0 && pages.past() < PageRange::END)
}

crate::token::token! {
    /// Adjacent pages that nobody else has. Dropping gives them back.
    AllocatedPages: PageRange of PageAllocator,
    /// Joins `other` to these pages. Gives it back unless it follows directly and is of the same allocator.
    merge PageRange::join,
    drop |home, range| {
        let start = (range.first() - home.window.first()) as usize;
        home.buddy.lock().free(start, range.size_in_pages());
    }
}

impl AllocatedPages {
    /// The pages before `at` and those from `at` on; either may be empty. Gives the pages back if `at` is not
    /// a multiple of 4 KiB or lies outside (the address just past the last page is allowed).
    pub fn split(self, at: VirtAddr) -> Result<(Self, Self), Self> {
        let count = (at.value() >> PAGE_SHIFT).checked_sub(self.range.first());
        let halves =
            count.filter(|_| at.is_page_aligned()).and_then(|count| self.range.split_at(count as usize));
        let Some((head, tail)) = halves else { return Err(self) };
        let this = ManuallyDrop::new(self);
        Ok((Self { range: head, home: this.home }, Self { range: tail, home: this.home }))
    }

    /// Keeps the first `count` pages and returns the others.
    pub(crate) fn split_off(&mut self, count: usize) -> Self {
        let Some((head, tail)) = self.range.split_at(count) else { return Self::empty() };
        self.range = head;
        Self { range: tail, home: self.home }
    }

    /// Joins what is known to follow directly.
    pub(crate) fn append(&mut self, next: Self) {
        let rest = self.merge(next);
        debug_assert!(rest.is_ok(), "not adjacent");
    }
}

impl Default for AllocatedPages {
    fn default() -> Self {
        Self::empty()
    }
}
