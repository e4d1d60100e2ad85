//! Proof, from the live page tables, that every frame has one owner.
//!
//! Starts at the table that the processor really uses, not at what the mapper believes. Each frame of RAM is one bit in
//! a scratch bitmap that every possible owner marks in turn: the allocators' free blocks, then each leaf. Marking twice
//! is an alias; what is never marked must be exactly as much as tokens and the firmware hold. Time grows with the number
//! of leaves and tables, and with RAM only at one bit for each frame.
//!
//! What it cannot see: a leaf whose frame was exchanged for one that a token holds unmapped (both sums stay the same).

use crate::address::{PAGE_SHIFT, PhysAddr, VirtAddr};
use crate::bits;
use crate::frames::{FrameAllocator, Inner, Owner};
use crate::mapping::{AddressSpace, ENTRIES, Mapper, Protection, Pte, TOP, Table, Tag, leaf_pages};
use crate::range::{FrameRange, PageRange};

mod report;

pub use report::{Finding, Report};

fn frame_address(frame: u64) -> PhysAddr {
    FrameRange::from_numbers(frame, 1).unwrap_or(FrameRange::empty()).start_address()
}

fn page_address(page: u64) -> VirtAddr {
    PageRange::from_numbers(page, 1).unwrap_or(PageRange::empty()).start_address()
}

struct Audit<'a> {
    space: &'a AddressSpace,
    allocator: &'a FrameAllocator,
    inner: &'a mut Inner,
    report: Report,
    /// RAM frames found mapped, by [`Tag`].
    mapped: [usize; 4],
}

impl AddressSpace {
    /// Walks the live page tables and compares them with the allocators' books.
    ///
    /// Every other use of memory must be at rest: with several processors the others must wait.
    pub fn audit(&self) -> Report {
        let claims = self.claims().lock();
        let mut mapper = self.mapper().lock();
        let allocator = self.frames();
        let mut inner = allocator.inner().lock();
        let report = Report::new(Owner::ALL.map(|owner| (owner, inner.count(owner))));
        let mut audit = Audit { space: self, allocator, inner: &mut inner, report, mapped: [0; 4] };
        audit.mark_free();
        if self.cpu().root() == mapper.root() {
            audit.walk(&mut mapper, &|page, frame| claims.maps(page, frame));
            audit.compare();
        } else {
            audit.report.add(Finding::WrongRoot(self.cpu().root()));
        }
        let mut report = audit.report;
        // The locks of the windows come before the mapper's.
        drop((inner, mapper, claims));
        self.audit_windows(&mut report);
        report
    }

    /// Every window of a device has a live region, whose pages are DMA memory, and every region its window. That no
    /// frame is in two windows follows from the leaves, as no frame has two.
    fn audit_windows(&self, report: &mut Report) {
        let mut wrong = None;
        let is_dma = |at: VirtAddr| {
            let leaf = self.mapper().lock().leaf(at.value() >> PAGE_SHIFT, &mut None);
            leaf.is_some_and(|leaf| leaf.pte.tag() == Tag::Dma)
        };
        let seen = self.registry().audit(
            |at| wrong = wrong.or((!is_dma(at)).then_some(at)),
            |device| report.add(Finding::WindowWithoutRegion(device)),
        );
        if let Some(at) = wrong {
            report.add(Finding::WindowNotDma(at));
        }
        if seen.regions != seen.windows {
            report.add(Finding::Windows { regions: seen.regions, windows: seen.windows });
        }
        report.windows = (seen.windows, seen.pages);
    }
}

impl Audit<'_> {
    /// Marks the free blocks of both allocators.
    fn mark_free(&mut self) {
        let booked = [Owner::Free, Owner::DmaIdle].map(|owner| self.inner.count(owner));
        let Inner { private, dma, ram, scratch, .. } = &mut *self.inner;
        scratch.fill(0);
        for (buddy, (owner, booked)) in
            [private, dma].into_iter().zip([Owner::Free, Owner::DmaIdle].into_iter().zip(booked))
        {
            let mut found = 0;
            buddy.visit_free(|start, count| {
                let end = start + count;
                if bits::find(scratch, start, end, true) < end || bits::find(ram, start, end, false) < end {
                    self.report.add(Finding::FreeTwice(self.allocator.range(start, 1).start_address()));
                }
                bits::set(scratch, start, end);
                found += count;
            });
            self.report.compare(owner, booked, found);
        }
    }

    /// Visits every entry of every table once.
    fn walk(&mut self, mapper: &mut Mapper, claimed: &dyn Fn(u64, u64) -> bool) {
        let mut path = [mapper.root_table(); TOP + 1];
        let (mut slots, mut used, mut level) = ([0; TOP + 1], [0; TOP + 1], TOP);
        mapper.pool_mut().see(path[TOP]);
        self.report.tables = 1;
        loop {
            let (table, slot) = (path[level], slots[level]);
            if slot == ENTRIES {
                self.check_count(mapper, table, used[level]);
                if level == TOP {
                    break;
                }
                level += 1;
                continue;
            }
            slots[level] += 1;
            let pte = mapper.pool().get(table, slot);
            if pte.is_empty() {
                continue;
            }
            used[level] += 1;
            let page = (level..=TOP).fold(0, |page, level| page | ((slots[level] - 1) as u64) << (9 * level));
            // Bit 47 of an address is repeated above it, bit 35 of a page number.
            let page = ((page << 28) as i64 >> 28) as u64 & ((1 << 52) - 1);
            if pte.is_leaf(level) {
                self.leaf(mapper, page, level, pte, claimed);
            } else if let Some(next) = self.enter(mapper, pte) {
                level -= 1;
                (path[level], slots[level], used[level]) = (next, 0, 0);
            }
        }
        mapper.pool_mut().unsee_all();
        let booked = mapper.pool().in_use();
        if booked != self.report.tables {
            self.report.add(Finding::Tables { booked, found: self.report.tables });
        }
    }

    fn check_count(&mut self, mapper: &Mapper, table: Table, used: u32) {
        if mapper.pool().used(table) != used {
            self.report.add(Finding::TableCount(frame_address(mapper.pool().frame(table))));
        }
    }

    /// The table that an entry links, unless it is foreign or was visited.
    fn enter(&mut self, mapper: &mut Mapper, pte: Pte) -> Option<Table> {
        let Some(table) = mapper.pool().at(pte.frame()).filter(|_| pte.is_present()) else {
            self.report.add(Finding::ForeignTable(frame_address(pte.frame())));
            return None;
        };
        if mapper.pool_mut().see(table) {
            self.report.add(Finding::TableTwice(frame_address(pte.frame())));
            return None;
        }
        self.report.tables += 1;
        Some(table)
    }

    fn leaf(
        &mut self,
        mapper: &Mapper,
        page: u64,
        level: usize,
        pte: Pte,
        claimed: &dyn Fn(u64, u64) -> bool,
    ) {
        self.report.leaves += 1;
        let (at, tag, count) = (page_address(page), pte.tag(), leaf_pages(level));
        match pte.protection() {
            None => self.report.add(Finding::WritableExecutable(at)),
            Some(protection) => {
                let expected = Pte::leaf(pte.frame(), level, protection, tag);
                if pte.without_history() != expected
                    || (protection == Protection::ReadExecute && tag == Tag::Mmio)
                {
                    self.report.add(Finding::UnexpectedFlags(at));
                }
            }
        }
        let window = self.space.pages().window();
        let known = if tag == Tag::Boot {
            mapper.boot_mapping(page).is_some_and(|boot| {
                let offset = page - boot.pages.first();
                page + count <= boot.pages.past()
                    && pte.frame() == boot.frames.first() + offset
                    && pte.protection() == Some(boot.protection)
            })
        } else {
            (window.first()..window.past()).contains(&page) && page + count <= window.past()
        };
        if !known {
            self.report.add(Finding::OutsideKnownRanges(at));
        } else if tag != Tag::Boot && self.space.pages().any_free(page, count) {
            self.report.add(Finding::PageFree(at));
        }
        if tag == Tag::Mmio {
            let last = count - 1;
            if !claimed(page, pte.frame()) || !claimed(page + last, pte.frame() + last) {
                self.report.add(Finding::UnclaimedMmio(at));
            }
        } else {
            self.mark(page, level, pte);
        }
    }

    /// Marks the frames of a leaf that maps RAM.
    fn mark(&mut self, page: u64, level: usize, pte: Pte) {
        let (at, frame) = (page_address(page), frame_address(pte.frame()));
        let frames = FrameRange::from_numbers(pte.frame(), leaf_pages(level)).unwrap_or(FrameRange::empty());
        let Inner { private, dma, ram, scratch, .. } = &mut *self.inner;
        let (start, end) = self.allocator.indices(&frames).unwrap_or((0, 0));
        if end - start != frames.size_in_frames() || bits::find(ram, start, end, false) < end {
            self.report.add(Finding::NotRam(at, frame));
        }
        let marked = bits::find(scratch, start, end, true);
        if marked < end {
            let free = private.is_free(marked) || dma.is_free(marked);
            let finding =
                if free { Finding::MappedButFree(at, frame) } else { Finding::MappedTwice(at, frame) };
            self.report.add(finding);
        }
        bits::set(scratch, start, end);
        self.mapped[pte.tag() as usize] += end - start;
    }

    /// Compares the books with what was marked.
    fn compare(&mut self) {
        use Owner::{Allocated, Dma, Kernel, Private, Quarantined, Reserved, Tables, Unmapped};
        let booked = |owner| self.inner.count(owner);
        let (dma, kernel) = (booked(Dma) + booked(Quarantined), booked(Kernel) + booked(Tables));
        let held = booked(Allocated) + booked(Unmapped) + booked(Reserved);
        let boot = self.mapped[Tag::Boot as usize];
        self.report.compare(Private, booked(Private), self.mapped[Tag::Private as usize]);
        self.report.compare(Dma, dma, self.mapped[Tag::Dma as usize]);
        let Inner { ram, scratch, .. } = &*self.inner;
        let frames = ram.len() * 64;
        let present = bits::count(ram, 0, frames);
        let marked = bits::count(scratch, 0, frames);
        // What nobody marked: tokens in somebody's hand, the firmware's, and kernel memory that is not mapped.
        self.report.compare(Allocated, held + kernel.saturating_sub(boot), present.saturating_sub(marked));
        if boot > kernel {
            self.report.add(Finding::Count { owner: Kernel, booked: kernel, found: boot });
        }
        if present != self.report.total {
            self.report.add(Finding::Count { owner: Reserved, booked: self.report.total, found: present });
        }
    }
}
