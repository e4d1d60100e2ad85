//! The page tables of one address space.

use super::MapError;
use super::pool::{ENTRIES, Table, TablePool, Unlinked};
use super::pte::{Protection, Pte, Tag, leaf_pages};
use crate::address::{PAGE_SHIFT, PhysAddr, VirtAddr};
use crate::allocator::AllocError;
use crate::paging::tlb::{Cpu, Flush, Stale};
use crate::range::{FrameRange, Page, PageRange};
use core::ops::Range;

/// Level of the top table; level 0 holds 4 KiB leaves.
pub(crate) const TOP: usize = 3;
/// How many ranges [`Mapper::map_boot`] can remember.
const BOOT_MAPPINGS: usize = 32;

/// A mapping made before there was an allocator; nothing ever removes it.
#[derive(Clone, Copy)]
pub(crate) struct BootMapping {
    pub pages: PageRange,
    pub frames: FrameRange,
    pub protection: Protection,
}

/// Creates and changes page tables. [`AddressSpace`](super::AddressSpace) owns the one that is in use.
///
/// Tables come from a [`TablePool`]. One whose last entry is cleared is unlinked, and returns to the pool
/// when no processor can know of it any more.
pub struct Mapper {
    pool: TablePool,
    root: Table,
    gib_pages: bool,
    boot: [Option<BootMapping>; BOOT_MAPPINGS],
}

/// A present leaf.
#[derive(Clone, Copy)]
pub(crate) struct Leaf {
    table: Table,
    slot: usize,
    pub level: usize,
    pub pte: Pte,
}

/// Adjacent leaves of one size in one table.
#[derive(Clone, Copy)]
struct Span {
    page: u64,
    frame: u64,
    level: usize,
    leaves: usize,
}

const fn slot(page: u64, level: usize) -> usize {
    (page / leaf_pages(level)) as usize % ENTRIES
}

impl Mapper {
    /// An address space with nothing in it. `gib_pages`: the CPU knows leaves of 1 GiB
    /// (`CPUID.80000001H:EDX[26]`).
    pub fn new(mut pool: TablePool, gib_pages: bool) -> Result<Self, MapError> {
        let root = pool.take().ok_or(MapError::NoTables)?;
        Ok(Self { pool, root, gib_pages, boot: [None; BOOT_MAPPINGS] })
    }

    /// Maps what the kernel itself lives in: its image, its boot stack, the pool of tables, the allocators'
    /// storage. These mappings stay for ever, and no more than 32 are possible.
    ///
    /// # Safety
    /// The caller answers for both ranges: no other mapping of the frames, except of the loader that is about
    /// to be left, and a protection that suits whatever Rust objects live there. Page 0 and the very last one
    /// are refused.
    pub unsafe fn map_boot(
        &mut self,
        pages: PageRange,
        frames: FrameRange,
        protection: Protection,
    ) -> Result<(), MapError> {
        if pages.size_in_pages() != frames.size_in_frames() {
            return Err(MapError::SizeMismatch);
        }
        if !crate::allocator::pages::has_addresses(&pages) {
            return Err(MapError::Pages(AllocError::OutOfRange));
        }
        let place = self.boot.iter().position(Option::is_none).ok_or(MapError::TooManyBootMappings)?;
        self.map(&pages, &frames, protection, Tag::Boot)?;
        self.boot[place] = Some(BootMapping { pages, frames, protection });
        Ok(())
    }

    /// Leaves the loader's address space for this one, where the pool is reached at `pool_base`.
    ///
    /// # Safety
    /// All that is still in use is mapped here at the addresses in use, and the pool at `pool_base`.
    pub unsafe fn activate(&mut self, cpu: &dyn Cpu, pool_base: *mut u8) {
        // SAFETY: the caller's promise; the pool is not touched between the two lines.
        unsafe {
            cpu.load_root(self.root());
            self.pool.rebase(pool_base);
        }
    }

    /// The address of the top-level table, as `CR3` wants it.
    pub fn root(&self) -> PhysAddr {
        FrameRange::from_numbers(self.pool.frame(self.root), 1).unwrap_or(FrameRange::empty()).start_address()
    }

    /// The pool of tables.
    pub const fn pool(&self) -> &TablePool {
        &self.pool
    }

    pub(crate) const fn pool_mut(&mut self) -> &mut TablePool {
        &mut self.pool
    }

    pub(crate) const fn root_table(&self) -> Table {
        self.root
    }

    pub(crate) fn boot_mapping(&self, page: u64) -> Option<&BootMapping> {
        self.boot.iter().flatten().find(|boot| (boot.pages.first()..boot.pages.past()).contains(&page))
    }

    /// Maps pages to as many frames with the largest leaves that fit. All or nothing: what can fail happens
    /// first, and nothing is linked that has to be unlinked again.
    pub(crate) fn map(
        &mut self,
        pages: &PageRange,
        frames: &FrameRange,
        protection: Protection,
        tag: Tag,
    ) -> Result<(), MapError> {
        let (mut missing, mut before) = (0, None);
        for span in self.spans(pages, frames) {
            missing += self.missing(&span, before)?;
            before = Some(span.page);
        }
        if missing > self.pool.available() {
            return Err(MapError::NoTables);
        }
        for span in self.spans(pages, frames) {
            let (table, first) = (self.make_table(span.page, span.level), slot(span.page, span.level));
            let pte = Pte::leaf(span.frame, span.level, protection, tag);
            self.pool.set_run(table, first..first + span.leaves, pte, Pte::step(span.level));
        }
        Ok(())
    }

    /// Clears the leaves of `pages` from the front, until all are cleared or there is no room for another run
    /// of frames in `flush`, and takes the pages it has done off `pages`. `cleared` hears of each run of
    /// leaves.
    pub(crate) fn unmap(
        &mut self,
        pages: &mut PageRange,
        flush: &mut Flush,
        mut cleared: impl FnMut(Tag, u64, FrameRange),
    ) {
        let mut near = None;
        while !pages.is_empty() {
            let (leaf, slots) = self.own_leaves(pages, &mut near);
            let count = slots.len() * leaf_pages(leaf.level) as usize;
            let frames =
                FrameRange::from_numbers(leaf.pte.frame(), count as u64).unwrap_or(FrameRange::empty());
            let (head, rest) = pages.split_at(count).unwrap_or((*pages, PageRange::empty()));
            if !flush.push(&head, leaf_pages(leaf.level) as usize, &frames) {
                break;
            }
            self.pool.set_run(leaf.table, slots, Pte::EMPTY, 0);
            cleared(leaf.pte.tag(), head.first(), frames);
            if self.pool.used(leaf.table) == 0 {
                // `near` may name one of these: it is all zero, and has no leaf.
                self.prune(head.first(), &mut flush.tables);
            }
            *pages = rest;
        }
    }

    /// Gives the leaves of `pages` another protection.
    pub(crate) fn protect(&mut self, pages: &PageRange, protection: Protection) -> Stale {
        let (mut stale, mut rest, mut near) = (Stale::new(), *pages, None);
        while !rest.is_empty() {
            let (leaf, slots) = self.own_leaves(&rest, &mut near);
            let count = slots.len() * leaf_pages(leaf.level) as usize;
            let pte = Pte::leaf(leaf.pte.frame(), leaf.level, protection, leaf.pte.tag());
            self.pool.set_run(leaf.table, slots, pte, Pte::step(leaf.level));
            let (head, tail) = rest.split_at(count).unwrap_or((rest, PageRange::empty()));
            stale.add(&head, leaf_pages(leaf.level) as usize);
            rest = tail;
        }
        stale
    }

    /// Makes `page` the beginning of a leaf, by breaking larger ones that reach across. All or nothing; what
    /// every address maps to stays the same.
    pub(crate) fn break_at(&mut self, page: Page) -> Result<Stale, MapError> {
        let (mut stale, number) = (Stale::new(), page.number());
        let needed =
            |leaf: &Leaf| (1..=leaf.level).filter(|level| !number.is_multiple_of(leaf_pages(*level))).count();
        if self.leaf(number, &mut None).is_some_and(|leaf| needed(&leaf) > self.pool.available()) {
            return Err(MapError::NoTables);
        }
        while let Some(leaf) = self.leaf(number, &mut None).filter(|leaf| needed(leaf) > 0) {
            let table = self.pool.take().ok_or(MapError::NoTables)?;
            let level = leaf.level - 1;
            let protection = leaf.pte.protection().unwrap_or(Protection::ReadOnly);
            let first = Pte::leaf(leaf.pte.frame(), level, protection, leaf.pte.tag());
            self.pool.set_run(table, 0..ENTRIES, first, Pte::step(level));
            self.pool.set(leaf.table, leaf.slot, Pte::table(self.pool.frame(table)));
            self.pool.linked(table, number & !(leaf_pages(leaf.level) - 1));
            stale = Stale::of(page);
        }
        Ok(stale)
    }

    /// The leaf that maps page number `page`. `near` remembers the last table, for the next page.
    pub(crate) fn leaf(&self, page: u64, near: &mut Option<(u64, Table, usize)>) -> Option<Leaf> {
        if let Some((region, table, level)) = *near
            && page >> (9 * (level + 1)) == region
        {
            let pte = self.pool.get(table, slot(page, level));
            if pte.is_leaf(level) {
                return Some(Leaf { table, slot: slot(page, level), level, pte });
            }
        }
        let mut table = self.root;
        for level in (0..=TOP).rev() {
            let pte = self.pool.get(table, slot(page, level));
            if pte.is_leaf(level) {
                *near = Some((page >> (9 * (level + 1)), table, level));
                return Some(Leaf { table, slot: slot(page, level), level, pte });
            }
            table = self.pool.at(pte.frame()).filter(|_| pte.is_present())?;
        }
        None
    }

    /// The physical address that `address` maps to.
    pub(crate) fn translate(&self, address: VirtAddr) -> Option<PhysAddr> {
        let leaf = self.leaf(address.value() >> PAGE_SHIFT, &mut None)?;
        let offset = address.value() % (leaf_pages(leaf.level) << PAGE_SHIFT);
        PhysAddr::new((leaf.pte.frame() << PAGE_SHIFT) + offset)
    }

    /// How many runs of adjacent frames the pages are mapped to.
    pub(crate) fn runs(&self, pages: &PageRange) -> usize {
        let (mut page, mut near, mut next, mut runs) = (pages.first(), None, None, 0);
        while page < pages.past() {
            let leaf = self.own_leaf(page, pages.past(), &mut near);
            runs += usize::from(next != Some(leaf.pte.frame()));
            next = Some(leaf.pte.frame() + leaf_pages(leaf.level));
            page += leaf_pages(leaf.level);
        }
        runs
    }

    /// A leaf inside a range that the caller owns: it begins at `page` and does not reach past the range.
    fn own_leaf(&self, page: u64, past: u64, near: &mut Option<(u64, Table, usize)>) -> Leaf {
        let leaf = self.leaf(page, near);
        let whole = |leaf: &Leaf| {
            page.is_multiple_of(leaf_pages(leaf.level)) && past - page >= leaf_pages(leaf.level)
        };
        // Nobody but the owner changes these tables: anything else means that they were overwritten.
        leaf.filter(whole).expect("a mapping that is owned has lost its leaf")
    }

    /// The first leaf of pages that the caller owns, and the entries of it and of those after it, in the same
    /// table and among these pages, that differ from it in nothing but that their frames go on where the last
    /// one's end.
    fn own_leaves(&self, pages: &PageRange, near: &mut Option<(u64, Table, usize)>) -> (Leaf, Range<usize>) {
        let leaf = self.own_leaf(pages.first(), pages.past(), near);
        let most = (pages.size_in_pages() as u64 / leaf_pages(leaf.level)).min(ENTRIES as u64) as usize;
        let slots = leaf.slot..(leaf.slot + most).min(ENTRIES);
        (leaf, self.pool.run(leaf.table, slots, Pte::step(leaf.level)))
    }

    fn spans(&self, pages: &PageRange, frames: &FrameRange) -> impl Iterator<Item = Span> + use<> {
        let largest = 1 + usize::from(self.gib_pages);
        let (mut page, mut frame, past) = (pages.first(), frames.first(), pages.past());
        core::iter::from_fn(move || {
            let left = past - page;
            // The pages of a leaf are a power of two: 2 to the power of 9 times its level.
            let order = left.checked_ilog2()?.min((page | frame).trailing_zeros());
            let level = (order as usize / 9).min(largest);
            let leaves = (ENTRIES - slot(page, level)).min((left / leaf_pages(level)) as usize);
            let span = Span { page, frame, level, leaves };
            page += leaves as u64 * leaf_pages(level);
            frame += leaves as u64 * leaf_pages(level);
            Some(span)
        })
    }

    /// How many tables a span needs that neither exist nor are needed by the span `before` it.
    fn missing(&self, span: &Span, before: Option<u64>) -> Result<usize, MapError> {
        let mut table = self.root;
        for level in (span.level..TOP).rev() {
            let pte = self.pool.get(table, slot(span.page, level + 1));
            if pte.is_empty() {
                let new =
                    |level: &usize| before.is_none_or(|page| (page ^ span.page) >> (9 * (level + 1)) > 0);
                return Ok((span.level..=level).filter(new).count());
            }
            let next = self.pool.at(pte.frame()).filter(|_| pte.is_present() && !pte.is_leaf(level + 1));
            table = next.ok_or(MapError::AlreadyMapped)?;
        }
        let first = slot(span.page, span.level);
        if self.pool.are_empty(table, first..first + span.leaves) {
            Ok(0)
        } else {
            Err(MapError::AlreadyMapped)
        }
    }

    /// The table at `level` on the way to a page, with what is missing on the way, which [`Self::missing`]
    /// has counted.
    fn make_table(&mut self, page: u64, level: usize) -> Table {
        (level..TOP).rev().fold(self.root, |table, level| {
            let pte = self.pool.get(table, slot(page, level + 1));
            if !pte.is_empty() {
                return self.pool.at(pte.frame()).expect("seen a moment ago");
            }
            // Zeroed by `take`, before it is linked.
            let new = self.pool.take().expect("counted a moment ago");
            self.pool.linked(new, page & !(leaf_pages(level + 1) - 1));
            self.pool.set(table, slot(page, level + 1), Pte::table(self.pool.frame(new)));
            new
        })
    }

    /// The table at `level` on the way to a page whose leaf has just been cleared: an empty entry names frame
    /// 0, which is no table.
    fn table_of(&self, page: u64, level: usize) -> Option<Table> {
        (level + 1..=TOP)
            .rev()
            .try_fold(self.root, |table, level| self.pool.at(self.pool.get(table, slot(page, level)).frame()))
    }

    /// Unlinks the tables on the way to `page` that have become empty.
    fn prune(&mut self, page: u64, unlinked: &mut Unlinked) {
        for level in 0..TOP {
            let Some(table) = self.table_of(page, level) else { continue };
            if self.pool.used(table) > 0 {
                return;
            }
            if let Some(parent) = self.table_of(page, level + 1) {
                self.pool.set(parent, slot(page, level + 1), Pte::EMPTY);
                self.pool.unlink(table, unlinked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::PAGE_SIZE;
    use std::vec;

    /// The next leaf of a table is found without a walk, though nothing leads there any more; no other
    /// table's is.
    #[test]
    fn the_last_table_is_remembered() {
        let memory = vec![0_u64; 17 * ENTRIES].leak().as_mut_ptr().cast::<u8>();
        let base = memory.wrapping_add(memory.align_offset(PAGE_SIZE));
        // SAFETY: sixteen aligned pages of `memory`, which nothing else touches.
        let pool = unsafe { TablePool::new(base, FrameRange::from_numbers(16, 16).unwrap()) }.unwrap();
        let mut mapper = Mapper::new(pool, true).unwrap();
        for level in 0..TOP {
            let (size, first) = (leaf_pages(level), (5 + level as u64) << 27);
            let pages = PageRange::from_numbers(first, 2 * size).unwrap();
            let frames = FrameRange::from_numbers(3 * size, 2 * size).unwrap();
            mapper.map(&pages, &frames, Protection::ReadOnly, Tag::Boot).unwrap();
            let mut near = None;
            let frame = |leaf: Option<Leaf>| leaf.map(|leaf| leaf.pte.frame());
            assert_eq!(frame(mapper.leaf(first, &mut near)), Some(3 * size));
            mapper.pool.set(mapper.root, slot(first, TOP), Pte::EMPTY);
            assert_eq!(frame(mapper.leaf(first + size, &mut near)), Some(4 * size));
            assert_eq!(frame(mapper.leaf(first + size, &mut None)), None);
            assert_eq!(frame(mapper.leaf(first + leaf_pages(level + 1), &mut near)), None);
        }
    }
}
