//! Proof, from the live page tables, that every frame has one owner.
//!
//! Starts at the table that the processor really uses, not at what the mapper believes. Free blocks of both
//! allocators, then every entry of every table are looked at; each frame that a leaf maps is one bit in a
//! scratch bitmap. Marking twice is an alias; marking what is free is another; what is neither must be
//! exactly as much as tokens and the firmware hold. Time grows with the number of leaves and tables, and with
//! RAM only at one bit for each frame.
//!
//! An audit is many [steps](Audit::step) of bounded work, and memory may be mapped, unmapped, taken and freed
//! between them. What has been looked at is kept up to date meanwhile: whoever changes a page below the one
//! that the walk has come to changes its mark and its count too, by [`Progress::change`], under the locks
//! under which the tables and the books change; the buddy allocators and the pool of tables do the like. So
//! when the walk ends, marks and counts are those of that moment, as if everything had been looked at then,
//! and must equal the books. What is wrong from beginning to end is found; what is done by the rules
//! meanwhile is not.
//!
//! What it cannot see: a leaf whose frame was exchanged for one that a token holds unmapped (both sums stay
//! the same).

use crate::address::{PhysAddr, VirtAddr};
use crate::allocator::bits;
use crate::allocator::buddy::FreeUnits;
use crate::allocator::frames::Inner;
use crate::allocator::owner::Owner;
use crate::device::Claims;
use crate::paging::{AddressSpace, ENTRIES, LOW_PAGES, Mapper, Protection, Pte, TOP, Table, Tag, leaf_pages};
use crate::range::{FrameRange, PageRange};

pub(crate) mod progress;
mod report;
mod windows;

use progress::{Phase, Place, Progress};
pub use report::{Finding, Report};

/// Work of an ordinary step: words of bitmaps, table entries, and what costs as much as some of them.
const STEP: usize = 1024;
/// Looking at one leaf or at one free block.
const ONE: usize = 8;
/// Counting the entries of one table.
const TABLE: usize = 64;
/// One past the last page number, without its sign.
const END: u64 = LOW_PAGES + 1;

fn frame_address(frame: u64) -> PhysAddr {
    FrameRange::from_numbers(frame, 1).unwrap_or(FrameRange::empty()).start_address()
}

/// The address of a page number without its sign: bit 47 of an address is repeated above it.
fn page_address(page: u64) -> VirtAddr {
    PageRange::from_numbers(with_sign(page), 1).unwrap_or(PageRange::empty()).start_address()
}

const fn with_sign(page: u64) -> u64 {
    ((page << 28) as i64 >> 28) as u64 & ((1 << 52) - 1)
}

/// An audit, to be done step by step: see [`AddressSpace::start_audit`].
pub struct Audit<'a> {
    space: &'a AddressSpace,
    /// The report is of this audit, counted from the first, or of a later one.
    number: u64,
    work: usize,
}

impl AddressSpace {
    /// Walks the live page tables and compares them with the allocators' books, all at once.
    pub fn audit(&self) -> Report {
        let mut audit = self.start_audit();
        loop {
            if let Some(report) = audit.step() {
                return report;
            }
        }
    }

    /// The same in steps, between which anything else may be done. Whoever asks while an audit is under way
    /// waits for the next one, and shares it with all who ask until that begins: the wait is for two audits
    /// at most, and whoever loses interest just stops.
    pub fn start_audit(&self) -> Audit<'_> {
        let begun = self.frames().inner().lock().audit.begun;
        Audit { space: self, number: begun + 1, work: 0 }
    }
}

impl Audit<'_> {
    /// Goes on for less than a millisecond; the report, when there is nothing left to look at.
    pub fn step(&mut self) -> Option<Report> {
        self.step_of(STEP)
    }

    /// The same, until `limit` words and entries have been looked at, or what costs as much; a leaf, a table
    /// or a free block may be begun before and makes it up to 250 more.
    pub fn step_of(&mut self, limit: usize) -> Option<Report> {
        let (space, limit) = (self.space, limit.max(1));
        // The locks of the windows come before the mapper's, so that these are looked at on their own.
        let windows = {
            let progress = &space.frames().inner().lock().audit;
            if let Some(report) = self.ended(progress) {
                return Some(report);
            }
            let Progress { begun, phase, ref report, .. } = *progress;
            if let Phase::Windows(place) = phase { Some((begun, place, report.clone())) } else { None }
        };
        if let Some((begun, place, mut report)) = windows {
            let (next, work) = space.audit_windows(place, limit, &mut report);
            self.work = work;
            let progress = &mut space.frames().inner().lock().audit;
            // Unless another processor was here first.
            if (progress.begun, progress.phase) == (begun, Phase::Windows(place)) {
                match next {
                    Some(place) => (progress.phase, progress.report) = (Phase::Windows(place), report),
                    None => progress.end(report),
                }
            }
            return self.ended(progress);
        }
        let claims = space.claims().lock();
        let mut mapper = space.mapper().lock();
        let mut inner = space.frames().inner().lock();
        let mut slice =
            Slice { space, claims: &claims, mapper: &mut mapper, inner: &mut inner, limit, work: 0 };
        slice.run();
        self.work = slice.work;
        None
    }

    /// How much the last step looked at.
    pub const fn work(&self) -> usize {
        self.work
    }

    fn ended(&self, progress: &Progress) -> Option<Report> {
        let last = progress.last.as_ref().filter(|(number, _)| *number >= self.number);
        last.map(|(_, report)| report.clone())
    }
}

/// One step, with all locks held.
struct Slice<'a> {
    space: &'a AddressSpace,
    claims: &'a Claims,
    mapper: &'a mut Mapper,
    inner: &'a mut Inner,
    limit: usize,
    work: usize,
}

impl Slice<'_> {
    fn run(&mut self) {
        match self.inner.audit.phase {
            Phase::Idle => self.inner.audit.begin(),
            Phase::Clear(word) => self.clear(word),
            Phase::Tables(first) => self.forget_tables(first),
            Phase::Free(owner) => self.free(owner),
            Phase::Walk => self.walk(),
            Phase::Windows(_) => {}
        }
    }

    fn report(&mut self) -> &mut Report {
        &mut self.inner.audit.report
    }

    fn clear(&mut self, word: usize) {
        let Inner { ram, scratch, audit, .. } = &mut *self.inner;
        let past = scratch.len().min(word.saturating_add(self.limit));
        scratch[word..past].fill(0);
        audit.present += ram[word..past].iter().map(|word| word.count_ones() as usize).sum::<usize>();
        audit.phase = if past < scratch.len() { Phase::Clear(past) } else { Phase::Tables(0) };
        self.work += past - word;
    }

    fn forget_tables(&mut self, first: usize) {
        let pool = self.mapper.pool_mut();
        pool.set_walked(0);
        let past = first.saturating_add(self.limit);
        self.inner.audit.phase = if pool.forget_seen(first..past) {
            self.inner.private.count_anew();
            self.inner.dma.count_anew();
            Phase::Free(Owner::Free)
        } else {
            Phase::Tables(past)
        };
        self.work += self.limit;
    }

    /// Free blocks do not overlap, are RAM, and as many as are booked.
    fn free(&mut self, owner: Owner) {
        let booked = self.inner.count(owner);
        while self.work < self.limit {
            let Inner { private, dma, ram, audit, .. } = &mut *self.inner;
            let (buddy, other) = if owner == Owner::Free { (private, None) } else { (dma, Some(private)) };
            let Some(FreeUnits { start, count, alone }) =
                buddy.count_on((self.limit - self.work).saturating_mul(64))
            else {
                audit.report.compare(owner, booked, buddy.found());
                audit.phase = match other {
                    None => Phase::Free(Owner::DmaIdle),
                    Some(_) => Phase::Walk,
                };
                return;
            };
            self.work += ONE + count / 64;
            let shared = other.is_some_and(|other| other.any_free(start, count));
            if !alone || shared || bits::find(ram, start, start + count, false) < start + count {
                audit.report.add(Finding::FreeTwice(self.space.frames().range(start, count).start_address()));
            }
        }
    }

    /// Looks at the next entries; compares when there are none left.
    fn walk(&mut self) {
        let root = self.space.cpu().root();
        let mut page = self.inner.audit.walked;
        if root != self.mapper.root() {
            self.report().add(Finding::WrongRoot(root));
            page = END;
        } else {
            if page == 0 {
                self.table(self.mapper.root_table());
            }
            while page < END && self.work < self.limit {
                page = self.walk_table(page);
            }
            if page == END {
                self.compare();
            }
        }
        if page == END {
            let counts = self.inner.counts();
            let audit = &mut self.inner.audit;
            audit.report.frames = counts;
            audit.report.total = counts.iter().map(|(_, count)| count).sum();
            (audit.phase, page) = (Phase::Windows(Place::START), 0);
        }
        self.inner.audit.walked = page;
        self.mapper.pool_mut().set_walked(page);
    }

    /// Looks at entries from `page` on that are in one table; returns the page to go on with.
    fn walk_table(&mut self, mut page: u64) -> u64 {
        let (mut table, mut level) = (self.mapper.root_table(), TOP);
        loop {
            let pte = self.mapper.pool().get(table, (page >> (9 * level)) as usize % ENTRIES);
            let first = page & !(leaf_pages(level) - 1);
            let past = first + leaf_pages(level);
            self.work += 1;
            if pte.is_empty() {
                page = past;
            } else if pte.is_leaf(level) {
                if page == first {
                    self.leaf(first, level, pte);
                }
                let words = self.limit.saturating_sub(self.work).max(1);
                let part = (past - page).min(words.saturating_mul(64) as u64);
                self.frames(first, page, part, pte.frame() + (page - first), pte.tag());
                page += part;
            } else if let Some(next) = self.enter(pte, page == first) {
                (table, level) = (next, level - 1);
                continue;
            } else {
                page = past;
            }
            if page.is_multiple_of(leaf_pages(level + 1)) || self.work >= self.limit {
                return page;
            }
        }
    }

    /// The table that an entry links, unless it is foreign or, at its `beginning`, was seen before.
    fn enter(&mut self, pte: Pte, beginning: bool) -> Option<Table> {
        let Some(table) = self.mapper.pool().at(pte.frame()).filter(|_| pte.is_present()) else {
            self.report().add(Finding::ForeignTable(frame_address(pte.frame())));
            return None;
        };
        if beginning && !self.table(table) {
            self.report().add(Finding::TableTwice(frame_address(pte.frame())));
            return None;
        }
        Some(table)
    }

    /// Looks at a table as a whole; `false` if it was seen before.
    fn table(&mut self, table: Table) -> bool {
        if self.mapper.pool_mut().see(table) {
            return false;
        }
        self.work += TABLE;
        let pool = self.mapper.pool();
        let used = (0..ENTRIES).filter(|slot| !pool.get(table, *slot).is_empty()).count();
        if pool.used(table) as usize != used {
            let at = frame_address(pool.frame(table));
            self.report().add(Finding::TableCount(at));
        }
        true
    }

    /// Looks at a leaf, but not at its frames.
    fn leaf(&mut self, page: u64, level: usize, pte: Pte) {
        let report = &mut self.inner.audit.report;
        report.leaves += 1;
        self.work += ONE;
        let (at, tag, count) = (page_address(page), pte.tag(), leaf_pages(level));
        let page = with_sign(page);
        match pte.protection() {
            None => report.add(Finding::WritableExecutable(at)),
            Some(protection) => {
                let expected = Pte::leaf(pte.frame(), level, protection, tag);
                if pte.without_history() != expected
                    || (protection == Protection::ReadExecute && tag == Tag::Mmio)
                {
                    report.add(Finding::UnexpectedFlags(at));
                }
            }
        }
        let window = self.space.pages().window();
        let finding = if tag == Tag::Boot {
            let known = self.mapper.boot_mapping(page).is_some_and(|boot| {
                let offset = page - boot.pages.first();
                page + count <= boot.pages.past()
                    && pte.frame() == boot.frames.first() + offset
                    && pte.protection() == Some(boot.protection)
            });
            (!known).then_some(Finding::OutsideKnownRanges(at))
        } else if page < window.first() || page + count > window.past() {
            Some(Finding::OutsideKnownRanges(at))
        } else {
            self.space.pages().any_free(page, count).then_some(Finding::PageFree(at))
        };
        finding.into_iter().for_each(|finding| report.add(finding));
        if tag == Tag::Mmio {
            let (last, claims) = (count - 1, self.claims);
            if !claims.maps(page, pte.frame()) || !claims.maps(page + last, pte.frame() + last) {
                report.add(Finding::UnclaimedMmio(at));
            }
        }
    }

    /// Marks the frames that pages of the leaf at page `leaf` are mapped to, if they must be RAM.
    fn frames(&mut self, leaf: u64, page: u64, count: u64, frame: u64, tag: Tag) {
        if tag == Tag::Mmio {
            return;
        }
        let frames = FrameRange::from_numbers(frame, count).unwrap_or(FrameRange::empty());
        let (start, end) = self.space.frames().indices(&frames).unwrap_or((0, 0));
        let Inner { private, dma, ram, scratch, audit, .. } = &mut *self.inner;
        let finding = if (end - start) as u64 != count || bits::find(ram, start, end, false) < end {
            Some(Finding::NotRam as fn(_, _) -> _)
        } else if private.any_free(start, end - start) || dma.any_free(start, end - start) {
            Some(Finding::MappedButFree as fn(_, _) -> _)
        } else if bits::find(scratch, start, end, true) < end {
            Some(Finding::MappedTwice as fn(_, _) -> _)
        } else {
            None
        };
        // One for each leaf.
        if let Some(finding) = finding.filter(|_| audit.blamed != Some(leaf)) {
            audit.report.add(finding(page_address(page), frame_address(frame)));
            audit.blamed = Some(leaf);
        }
        bits::set(scratch, start, end);
        audit.mapped[tag as usize] = audit.mapped[tag as usize].wrapping_add(end - start);
        self.work += (end - start) / 64;
    }

    /// Compares the books with what was found, all of it as it is now.
    fn compare(&mut self) {
        use Owner::{Allocated, Dma, Kernel, Private, Quarantined, Reserved, Tables, Unmapped};
        let inner = &mut *self.inner;
        let booked = |owner| inner.count(owner);
        let (dma, kernel) = (booked(Dma) + booked(Quarantined), booked(Kernel) + booked(Tables));
        let held = booked(Allocated) + booked(Unmapped) + booked(Reserved);
        let (private, total) = (booked(Private), Owner::ALL.map(booked).iter().sum::<usize>());
        let free = inner.private.free_units() + inner.dma.free_units();
        let Progress { mapped, present, report, .. } = &mut inner.audit;
        let [boot, of_private, of_dma, _] = *mapped;
        report.compare(Private, private, of_private);
        report.compare(Dma, dma, of_dma);
        // What is neither free nor mapped: tokens in somebody's hand, the firmware's, and kernel memory that
        // is not mapped.
        let marked = [free, boot, of_private, of_dma].into_iter().fold(0, usize::wrapping_add);
        report.compare(Allocated, held + kernel.saturating_sub(boot), present.saturating_sub(marked));
        if boot > kernel {
            report.add(Finding::Count { owner: Kernel, booked: kernel, found: boot });
        }
        if *present != total {
            report.add(Finding::Count { owner: Reserved, booked: total, found: *present });
        }
        let (tables, unseen) = (self.mapper.pool().in_use(), self.mapper.pool().unseen());
        report.tables = tables.wrapping_sub(unseen);
        if unseen != 0 {
            report.add(Finding::Tables { booked: tables, found: report.tables });
        }
    }
}
