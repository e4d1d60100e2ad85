//! The kernel's address space: the one place where pages and frames become mappings.

use super::mapped_pages::{Dma, Kind, MappedPages, Private};
use super::{MapError, Mapper, Protection};
use crate::DmaRegistry;
use crate::address::{PhysAddr, VirtAddr};
use crate::allocator::AllocError;
use crate::allocator::frames::{AllocatedFrames, FrameAllocator, FrameRequest};
use crate::allocator::pages::{AllocatedPages, PageAllocator, PageRequest};
use crate::device::Claims;
use crate::lock::{Level, Lock};
use crate::paging::tlb::{Cpu, Flush, Stale};
use crate::range::{FrameRange, Page, PageRange};
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ptr::NonNull;

/// The page tables in use, with the allocators of what they map.
///
/// Lives in a static: every [`MappedPages`] refers to it. No operation needs a heap, except where it says so.
/// Not for interrupt handlers (it takes spin locks).
///
/// Private memory is zero when it is mapped, wherever its frames come from: nobody sees what somebody else
/// left there. What is unmapped can be had by nobody, neither pages nor frames nor page tables, until every
/// processor has forgotten it; these are told ([`Cpu::shoot_down`]) while no lock is held, also by who maps
/// something while another waits for that.
pub struct AddressSpace {
    pub(super) claims: Lock<Claims>,
    mapper: Lock<Mapper>,
    frames: &'static FrameAllocator,
    pages: &'static PageAllocator,
    cpu: &'static dyn Cpu,
    registry: DmaRegistry,
}

impl AddressSpace {
    /// Puts the parts together. What is in use outside `pages` is safe from it: the active tables map that
    /// already.
    ///
    /// Every further processor, before it uses anything that is mapped here, loads the same top-level table
    /// ([`Cpu::root`], from the first one), is set up as the first one (`EFER.NXE`, `CR0.WP`, entry 3 of the
    /// PAT uncached, no global pages, no other process context), and answers to [`Cpu::shoot_down`] from then
    /// on.
    ///
    /// # Panics
    /// Unless `cpu` uses the tables of `mapper`: see [`Mapper::activate`].
    pub fn new(
        mapper: Mapper,
        frames: &'static FrameAllocator,
        pages: &'static PageAllocator,
        cpu: &'static dyn Cpu,
    ) -> Self {
        assert_eq!(cpu.root(), mapper.root(), "the mapper's tables are not in use");
        let (claims, mapper) = (Lock::new(Level::Claims, Claims::new()), Lock::new(Level::Mapper, mapper));
        Self { claims, mapper, frames, pages, cpu, registry: DmaRegistry::new() }
    }

    /// The allocator of physical memory.
    pub const fn frames(&self) -> &'static FrameAllocator {
        self.frames
    }

    /// The allocator of virtual memory.
    pub const fn pages(&self) -> &'static PageAllocator {
        self.pages
    }

    /// The window tables of this address space's devices, for
    /// [`Platform::registry`](crate::Platform::registry): the [audit](Self::audit) compares them with the
    /// page tables.
    pub const fn registry(&self) -> &DmaRegistry {
        &self.registry
    }

    /// The physical address that `address` maps to.
    pub fn translate(&self, address: VirtAddr) -> Option<PhysAddr> {
        self.mapper.lock().translate(address)
    }

    /// Maps `count` pages of new memory, zeroed. The frames need not be adjacent.
    pub fn allocate(
        &'static self,
        count: usize,
        protection: Protection,
    ) -> Result<MappedPages<Private>, MapError> {
        let mut mapped = self.allocate_stale(count)?;
        mapped.zero();
        mapped.remap(protection);
        Ok(mapped)
    }

    /// Maps `count` pages of new memory, writable, for good: for a heap, which hands out what is not
    /// initialised. Safe code cannot see what the last owners left in it.
    pub fn allocate_uninit(&'static self, count: usize) -> Result<NonNull<[MaybeUninit<u8>]>, MapError> {
        let mapped = ManuallyDrop::new(self.allocate_stale(count)?);
        let len = mapped.size_in_bytes() as usize;
        // No allocator has page 0.
        let start = NonNull::new(mapped.as_ptr().cast()).ok_or(MapError::ZeroLength)?;
        Ok(NonNull::slice_from_raw_parts(start, len))
    }

    /// As [`allocate`](Self::allocate), writable, with what the last owners left in it.
    pub(super) fn allocate_stale(&'static self, count: usize) -> Result<MappedPages<Private>, MapError> {
        let pages = self.pages.allocate(PageRequest::new(count)).map_err(MapError::Pages)?;
        Ok(self.map_stale(pages)?)
    }

    /// Maps a stack of `count` pages between two pages that stay unmapped.
    pub fn allocate_stack(&'static self, count: usize) -> Result<Stack, MapError> {
        let with_guards =
            PageRequest::new(count.checked_add(2).ok_or(MapError::Pages(AllocError::OutOfRange))?);
        let mut below = self.pages.allocate(with_guards).map_err(MapError::Pages)?;
        let mut middle = below.split_off(1);
        let above = middle.split_off(count);
        let pages = self.map_allocated_pages(middle, Protection::ReadWrite)?;
        Ok(Stack { pages, guards: [below, above] })
    }

    /// Maps pages to new memory, zeroed, in the largest pieces there are.
    pub fn map_allocated_pages(
        &'static self,
        pages: AllocatedPages,
        protection: Protection,
    ) -> Result<MappedPages<Private>, (MapError, AllocatedPages)> {
        let mut mapped = self.map_stale(pages)?;
        mapped.zero();
        mapped.remap(protection);
        Ok(mapped)
    }

    fn map_stale(
        &'static self,
        mut pages: AllocatedPages,
    ) -> Result<MappedPages<Private>, (MapError, AllocatedPages)> {
        if pages.is_empty() {
            return Err((MapError::ZeroLength, pages));
        }
        let (mut done, mut order) = (MappedPages::empty(), u32::MAX);
        while !pages.is_empty() {
            order = order.min(pages.size_in_pages().ilog2());
            let piece = self.largest_frames(&mut order).map_err(MapError::Frames).and_then(|frames| {
                let tail = pages.split_off(frames.size_in_frames());
                let head = core::mem::replace(&mut pages, tail);
                self.map_frames(head, frames).map_err(|(error, head, _)| {
                    let tail = core::mem::replace(&mut pages, head);
                    pages.append(tail);
                    error
                })
            });
            match piece {
                Ok(piece) => done.append(piece),
                Err(error) => {
                    let mut all = done.into_pages();
                    all.append(pages);
                    return Err((error, all));
                }
            }
        }
        Ok(done)
    }

    /// Maps pages to exactly these frames, which are zeroed.
    #[allow(clippy::type_complexity, reason = "gives back what it was given")]
    pub fn map_allocated_pages_to(
        &'static self,
        pages: AllocatedPages,
        frames: AllocatedFrames,
        protection: Protection,
    ) -> Result<MappedPages<Private>, (MapError, AllocatedPages, AllocatedFrames)> {
        let mut mapped = self.map_frames(pages, frames)?;
        mapped.zero();
        mapped.remap(protection);
        Ok(mapped)
    }

    #[allow(clippy::type_complexity, reason = "gives back what it was given")]
    fn map_frames(
        &'static self,
        pages: AllocatedPages,
        frames: AllocatedFrames,
    ) -> Result<MappedPages<Private>, (MapError, AllocatedPages, AllocatedFrames)> {
        if !frames.is_of(Some(self.frames)) {
            return Err((MapError::WrongAllocator, pages, frames));
        }
        match self.map::<Private>(pages, &frames, Protection::ReadWrite) {
            Ok(mapped) => {
                // From here on the page tables have them.
                core::mem::forget(frames);
                Ok(mapped)
            }
            Err((error, pages)) => Err((error, pages, frames)),
        }
    }

    /// Maps memory for devices: adjacent frames of the DMA arena, zeroed. Dropping the mapping gives them
    /// back to the arena, never to private use.
    pub fn allocate_dma(&'static self, request: FrameRequest) -> Result<MappedPages<Dma>, MapError> {
        let pages = self.pages.allocate(PageRequest::new(request.count)).map_err(MapError::Pages)?;
        let frames = self.frames.take_dma(&request).map_err(MapError::Frames)?;
        let mut mapped = match self.map::<Dma>(pages, &frames.range, Protection::ReadWrite) {
            Ok(mapped) => mapped,
            Err((error, _)) => {
                self.frames.undo_dma(frames);
                return Err(error);
            }
        };
        self.frames.keep_dma(frames);
        mapped.zero();
        Ok(mapped)
    }

    /// Maps pages to frames of the right kind, whose token the caller keeps or forgets.
    pub(super) fn map<K: Kind>(
        &'static self,
        pages: AllocatedPages,
        frames: &FrameRange,
        protection: Protection,
    ) -> Result<MappedPages<K>, (MapError, AllocatedPages)> {
        let error = if pages.is_empty() {
            MapError::ZeroLength
        } else if pages.size_in_pages() != frames.size_in_frames() {
            MapError::SizeMismatch
        } else if !pages.is_of(Some(self.pages)) {
            MapError::WrongAllocator
        } else {
            let mut mapper = self.mapper.lock();
            match mapper.map(&pages, frames, protection, K::TAG) {
                Ok(()) => {
                    // Under the lock, so that tables and books agree whenever it is free.
                    self.frames.books().mapped(K::TAG, pages.first(), frames);
                    let overtakes = mapper.pool().is_awaited();
                    drop(mapper);
                    // A processor may still walk through a table that was linked where these leaves are.
                    if let Some(page) = pages.start().filter(|_| overtakes) {
                        Stale::of(page).shoot_down(self.cpu);
                    }
                    return Ok(MappedPages::new(pages, self, protection));
                }
                Err(error) => error,
            }
        };
        Err((error, pages))
    }

    /// Unmaps pages that the caller owns and passes on each run of frames that no processor knows any more.
    pub(super) fn unmap(&self, mut pages: PageRange, mut take: impl FnMut(FrameRange)) {
        while !pages.is_empty() {
            let mut flush = Flush::new();
            let mut mapper = self.mapper.lock();
            let mut books = self.frames.books();
            mapper.unmap(&mut pages, &mut flush, |tag, page, frames| books.unmapped(tag, page, &frames));
            drop(books);
            drop(mapper);
            let tables = flush.flush(self.cpu, |frames| take(frames.into_inner()));
            if let Some(tables) = tables {
                self.mapper.lock().pool_mut().give(tables);
            }
        }
    }

    pub(super) fn protect(&self, pages: &PageRange, protection: Protection) {
        let stale = self.mapper.lock().protect(pages, protection);
        stale.shoot_down(self.cpu);
    }

    pub(super) fn break_at(&self, page: Page) -> Result<(), MapError> {
        let stale = self.mapper.lock().break_at(page)?;
        stale.shoot_down(self.cpu);
        Ok(())
    }

    /// How many runs of adjacent frames the pages are mapped to.
    pub(super) fn runs(&self, pages: &PageRange) -> usize {
        self.mapper.lock().runs(pages)
    }

    pub(crate) fn mapper(&self) -> &Lock<Mapper> {
        &self.mapper
    }

    pub(crate) fn claims(&self) -> &Lock<Claims> {
        &self.claims
    }

    pub(crate) fn cpu(&self) -> &'static dyn Cpu {
        self.cpu
    }

    /// The largest block of at most `1 << order` adjacent frames, whose order becomes `order`.
    fn largest_frames(&'static self, order: &mut u32) -> Result<AllocatedFrames, AllocError> {
        loop {
            let block = 1 << *order;
            let align = block.min(crate::allocator::buddy::MAX_ALIGN);
            match self.frames.allocate(FrameRequest { align, ..FrameRequest::new(block) }) {
                Err(AllocError::OutOfMemory | AllocError::OutOfRange) if *order > 0 => *order -= 1,
                result => return result,
            }
        }
    }
}

/// Memory for a stack, with an unmapped page on each side: running over the end faults instead of
/// overwriting.
#[derive(Debug)]
pub struct Stack {
    pages: MappedPages<Private>,
    guards: [AllocatedPages; 2],
}

impl Stack {
    /// One past the highest byte; a multiple of 4096.
    pub fn top(&self) -> VirtAddr {
        self.guards[1].start_address()
    }

    /// The mapped pages. There is no reference to what they hold: the processor writes there while it uses
    /// the stack.
    pub fn range(&self) -> PageRange {
        *self.pages
    }
}
