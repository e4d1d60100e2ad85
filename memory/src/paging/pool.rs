//! The frames that page tables live in.

use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Release};

use super::MapError;
use super::pte::{LOW_PAGES, Pte};
use crate::AtomicU64;
use crate::address::PAGE_SIZE;
use crate::paging::tlb::Flushed;
use crate::range::FrameRange;

/// Entries in a table.
pub(crate) const ENTRIES: usize = 512;
/// Notes (`u32`) in one frame.
const NOTES: usize = PAGE_SIZE / size_of::<u32>();
/// Set in the note of a table while the audit has seen it.
const SEEN: u32 = 1 << 31;

/// A table of the pool, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table(usize);

/// Tables that no other table links any more, though a processor may still walk through them: each is all
/// zero, and its note links the next one. Dropped, they are lost.
pub(crate) struct Unlinked {
    /// Of the first table: index + 1, or 0.
    first: u32,
    last: Table,
    count: usize,
}

impl Unlinked {
    pub const fn new() -> Self {
        Self { first: 0, last: Table(0), count: 0 }
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A private pool of page tables: adjacent frames, reached through one pointer.
///
/// The first frames hold a note for each table: how many of its entries are used, or, of a table that is not
/// in use, which is the next such table. So a table that is not in use is all zero: a processor that walks
/// through it all the same finds nothing, and writes nothing.
pub struct TablePool {
    base: *mut u8,
    frames: FrameRange,
    /// Frames at the beginning that hold notes.
    header: usize,
    /// The free list: index + 1, or 0.
    head: u32,
    /// Tables never used so far begin here; they are zeroed when taken.
    fresh: usize,
    in_use: usize,
    /// Tables that are [`Unlinked`].
    unlinked: usize,
    /// Tables in use that the audit has not seen.
    unseen: usize,
    /// Page number, without its sign, that the audit's walk has come to; 0 if there is none.
    walked: u64,
}

// SAFETY: the pool owns the memory behind `base`.
unsafe impl Send for TablePool {}

impl TablePool {
    /// How many frames a pool needs so that it can never run out, with a window of `pages` pages, the
    /// kernel's own mappings, and `processors` that map and unmap at the same time: about 0.2 % of the
    /// window. A smaller pool works, too: then mapping may fail with `NoTables`.
    ///
    /// A table that one processor unlinks is missing until all have acknowledged. Others may want another in
    /// its place only if it is for pages of others, too: one on either side of what is unmapped, at each of
    /// three levels.
    pub const fn frames_for(pages: usize, processors: usize) -> usize {
        let lowest = pages.div_ceil(ENTRIES) + 1;
        let linked = lowest + lowest.div_ceil(ENTRIES) + 1 + lowest.div_ceil(ENTRIES * ENTRIES) + 1 + 1;
        let tables = linked + 6 * processors.saturating_sub(1);
        // Kernel image, boot stack, the pool itself and the allocators' storage, all with 4 KiB leaves.
        let boot = 32 + tables.div_ceil(ENTRIES) + pages.div_ceil(ENTRIES * PAGE_SIZE);
        tables + boot + (tables + boot).div_ceil(NOTES)
    }

    /// A pool in `frames`, of at least two frames, which are now reached at `base`.
    ///
    /// # Safety
    /// From here on the frames belong to the pool alone, readable and writable at `base` until
    /// [`Mapper::activate`](super::Mapper::activate) names another place.
    pub unsafe fn new(base: *mut u8, frames: FrameRange) -> Result<Self, MapError> {
        let count = frames.size_in_frames();
        if !(2..SEEN as usize).contains(&count) || base.is_null() || !base.addr().is_multiple_of(PAGE_SIZE) {
            return Err(MapError::NoTables);
        }
        let header = count.div_ceil(NOTES + 1);
        Ok(Self { base, frames, header, head: 0, fresh: 0, in_use: 0, unlinked: 0, unseen: 0, walked: 0 })
    }

    /// All frames of the pool.
    pub const fn frames(&self) -> FrameRange {
        self.frames
    }

    /// How many tables could still be taken.
    pub const fn available(&self) -> usize {
        self.tables() - self.in_use - self.unlinked
    }

    /// Whether somebody waits until the processors have forgotten a table that was unlinked.
    pub(crate) const fn is_awaited(&self) -> bool {
        self.unlinked > 0
    }

    pub(crate) const fn in_use(&self) -> usize {
        self.in_use
    }

    /// # Safety
    /// The same frames must be reachable at `base`, for good.
    pub(crate) unsafe fn rebase(&mut self, base: *mut u8) {
        self.base = base;
    }

    const fn tables(&self) -> usize {
        self.frames.size_in_frames().wrapping_sub(self.header)
    }

    /// Takes a table that is all zero.
    pub(crate) fn take(&mut self) -> Option<Table> {
        let table = if self.head > 0 {
            let table = Table(self.head as usize - 1);
            // The audit notes it in a free table, too, if an entry that was tampered with links it.
            self.head = self.note(table) & !SEEN;
            table
        } else if self.fresh < self.tables() {
            let table = Table(self.fresh);
            self.fresh += 1;
            self.entries(table).iter().for_each(|entry| entry.store(0, Release));
            table
        } else {
            return None;
        };
        self.set_note(table, 0);
        self.in_use += 1;
        self.unseen = self.unseen.wrapping_add(1);
        Some(table)
    }

    /// Adds a table whose entries are all empty, and that nothing links any more, to `unlinked`.
    pub(crate) fn unlink(&mut self, table: Table, unlinked: &mut Unlinked) {
        // The audit does not expect it any more, from here on.
        self.see(table);
        self.set_note(table, unlinked.first);
        if unlinked.is_empty() {
            unlinked.last = table;
        }
        unlinked.first = table.0 as u32 + 1;
        unlinked.count += 1;
        self.in_use -= 1;
        self.unlinked += 1;
    }

    /// Gives back tables that no processor knows any more.
    pub(crate) fn give(&mut self, tables: Flushed<Unlinked>) {
        let tables = tables.into_inner();
        self.set_note(tables.last, self.head);
        self.head = tables.first;
        self.unlinked -= tables.count;
    }

    pub(crate) fn get(&self, table: Table, slot: usize) -> Pte {
        load(&self.entries(table)[slot])
    }

    pub(crate) fn set(&mut self, table: Table, slot: usize, pte: Pte) {
        self.set_run(table, slot..slot + 1, pte, 0);
    }

    /// Sets adjacent entries: the first to `pte`, each other to `step` more than the one before it.
    pub(crate) fn set_run(&mut self, table: Table, slots: Range<usize>, pte: Pte, step: u64) {
        let after = if pte.is_empty() { 0 } else { slots.len() as u32 };
        let (mut next, mut before) = (pte.0, 0);
        for entry in &self.entries(table)[slots] {
            before += u32::from(!load(entry).is_empty());
            // Release: what a CPU finds through it was written before.
            entry.store(next, Release);
            next = next.wrapping_add(step);
        }
        // Changes the count alone, not what the audit has noted.
        self.set_note(table, self.note(table) + after - before);
    }

    /// Whether adjacent entries are all empty.
    pub(crate) fn are_empty(&self, table: Table, slots: Range<usize>) -> bool {
        self.entries(table)[slots].iter().all(|entry| load(entry).is_empty())
    }

    /// The first of these entries and those that follow it, as long as each is `step` more than the one
    /// before, whatever the CPU has recorded in them.
    pub(crate) fn run(&self, table: Table, slots: Range<usize>, step: u64) -> Range<usize> {
        let entries = &self.entries(table)[slots.clone()];
        let mut next = entries.first().map_or(0, |first| load(first).without_history().0);
        let goes_on = |entry: &&AtomicU64| {
            let same = load(entry).without_history().0 == next;
            next = next.wrapping_add(step);
            same
        };
        slots.start..slots.start + entries.iter().take_while(goes_on).count()
    }

    /// How many entries of a table in use are not empty.
    pub(crate) fn used(&self, table: Table) -> u32 {
        self.note(table) & !SEEN
    }

    /// Notes that the audit has seen a table, or need not; whether it had before.
    pub(crate) fn see(&mut self, table: Table) -> bool {
        let note = self.note(table);
        self.set_note(table, note | SEEN);
        let seen = note & SEEN != 0;
        self.unseen = self.unseen.wrapping_sub(usize::from(!seen));
        seen
    }

    /// The table was just linked, for pages from `page` on: the walk will not see it if it is past its
    /// beginning.
    pub(crate) fn linked(&mut self, table: Table, page: u64) {
        if page & LOW_PAGES < self.walked {
            self.see(table);
        }
    }

    /// How far the audit's walk has come.
    pub(crate) const fn set_walked(&mut self, page: u64) {
        self.walked = page;
    }

    /// Tables in use that the audit has not seen; more than there are if it saw some that are not in use.
    pub(crate) const fn unseen(&self) -> usize {
        self.unseen
    }

    /// Forgets which of these tables the audit has seen, by index; whether they were the last.
    pub(crate) fn forget_seen(&mut self, tables: Range<usize>) -> bool {
        let past = self.fresh.min(tables.end);
        (tables.start..past).map(Table).for_each(|table| self.set_note(table, self.used(table)));
        // No walk is under way, so that nothing is seen meanwhile.
        self.unseen = self.in_use;
        past == self.fresh
    }

    /// The number of the frame that a table lies in.
    pub(crate) const fn frame(&self, table: Table) -> u64 {
        self.frames.first() + (self.header + table.0) as u64
    }

    /// The table in frame number `frame`, if that is one.
    pub(crate) fn at(&self, frame: u64) -> Option<Table> {
        let index = frame.checked_sub(self.frames.first() + self.header as u64)? as usize;
        (index < self.fresh).then_some(Table(index))
    }

    /// Atomic since CPUs write accessed and dirty bits.
    #[inline]
    fn entries(&self, table: Table) -> &[AtomicU64; ENTRIES] {
        assert!(table.0 < self.tables());
        let frame = self.header.wrapping_add(table.0);
        let entries = self.base.wrapping_add(frame.wrapping_mul(PAGE_SIZE)).cast_const().cast();
        // SAFETY: by the assertion a frame of the pool, which owns it, aligned since `base` is, and there as
        // long as the pool is borrowed (see `rebase`). The pool accesses it by these atomics only, CPUs by
        // aligned words.
        unsafe { &*entries }
    }

    fn note(&self, table: Table) -> u32 {
        // SAFETY: see `note_at`.
        unsafe { self.note_at(table).read() }
    }

    fn set_note(&mut self, table: Table, note: u32) {
        // SAFETY: see `note_at`.
        unsafe { self.note_at(table).write(note) }
    }

    /// Points into the header frames, which only notes live in; a note is written when its table is first
    /// taken.
    fn note_at(&self, table: Table) -> *mut u32 {
        assert!(table.0 < self.tables());
        self.base.wrapping_add(table.0 * size_of::<u32>()).cast()
    }
}

/// Acquire: what is reached through an entry is looked at later.
#[inline]
fn load(entry: &AtomicU64) -> Pte {
    Pte(entry.load(Acquire))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
