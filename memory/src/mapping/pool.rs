//! The frames that page tables live in.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

use super::MapError;
use super::pte::Pte;
use crate::address::PAGE_SIZE;
use crate::range::FrameRange;

/// Entries in a table.
pub(crate) const ENTRIES: usize = 512;
/// Use counts (`u16`) in one frame.
const COUNTS: usize = PAGE_SIZE / size_of::<u16>();
/// Set in a use count while the audit has seen the table.
const SEEN: u16 = 1 << 15;

/// A table of the pool, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table(usize);

/// A private pool of page tables: adjacent frames, reached through one pointer.
///
/// The first frames hold a count of used entries for each table. A table that is not in use is all zero, except for
/// its first entry, which links the free list.
pub struct TablePool {
    base: *mut u8,
    frames: FrameRange,
    /// Frames at the beginning that hold use counts.
    header: usize,
    /// The free list: index + 1, or 0.
    head: usize,
    /// Tables never used so far begin here; they are zeroed when taken.
    fresh: usize,
    in_use: usize,
}

// SAFETY: the pool owns the memory behind `base`.
unsafe impl Send for TablePool {}

impl TablePool {
    /// How many frames a pool needs so that it can never run out, with a window of `pages` pages and the kernel's own
    /// mappings: about 0.2 % of the window. A smaller pool works, too: then mapping may fail with `NoTables`.
    pub const fn frames_for(pages: usize) -> usize {
        let lowest = pages.div_ceil(ENTRIES) + 1;
        let tables = lowest + lowest.div_ceil(ENTRIES) + 1 + lowest.div_ceil(ENTRIES * ENTRIES) + 1 + 1;
        // Kernel image, boot stack, the pool itself and the allocators' storage, all with 4 KiB leaves.
        let boot = 32 + tables.div_ceil(ENTRIES) + pages.div_ceil(ENTRIES * PAGE_SIZE);
        tables + boot + (tables + boot).div_ceil(COUNTS)
    }

    /// A pool in `frames`, of at least two frames, which are now reached at `base`.
    ///
    /// # Safety
    /// From here on the frames belong to the pool alone, readable and writable at `base` until
    /// [`Mapper::activate`](super::Mapper::activate) names another place.
    pub unsafe fn new(base: *mut u8, frames: FrameRange) -> Result<Self, MapError> {
        let count = frames.size_in_frames();
        if count < 2 || base.is_null() || !base.addr().is_multiple_of(PAGE_SIZE) {
            return Err(MapError::NoTables);
        }
        let header = count.div_ceil(COUNTS + 1);
        Ok(Self { base, frames, header, head: 0, fresh: 0, in_use: 0 })
    }

    /// All frames of the pool.
    pub const fn frames(&self) -> FrameRange {
        self.frames
    }

    /// How many tables could still be taken.
    pub const fn available(&self) -> usize {
        self.tables() - self.in_use
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
        self.frames.size_in_frames() - self.header
    }

    /// Takes a table that is all zero.
    pub(crate) fn take(&mut self) -> Option<Table> {
        let table = if self.head > 0 {
            let table = Table(self.head - 1);
            self.head = self.get(table, 0).0 as usize;
            self.write(table, 0, Pte::EMPTY);
            table
        } else if self.fresh < self.tables() {
            let table = Table(self.fresh);
            self.fresh += 1;
            (0..ENTRIES).for_each(|slot| self.write(table, slot, Pte::EMPTY));
            table
        } else {
            return None;
        };
        self.set_count(table, 0);
        self.in_use += 1;
        Some(table)
    }

    /// Gives back a table whose entries are all empty and that nothing links.
    pub(crate) fn give(&mut self, table: Table) {
        self.write(table, 0, Pte(self.head as u64));
        self.head = table.0 + 1;
        self.in_use -= 1;
    }

    pub(crate) fn get(&self, table: Table, slot: usize) -> Pte {
        // SAFETY: `entry` lies in the pool, which owns it; atomic since CPUs write accessed and dirty bits.
        Pte(unsafe { AtomicU64::from_ptr(self.entry(table, slot)) }.load(Acquire))
    }

    pub(crate) fn set(&mut self, table: Table, slot: usize, pte: Pte) {
        let before = self.get(table, slot);
        self.write(table, slot, pte);
        let used = self.used(table) + u16::from(!pte.is_empty()) - u16::from(!before.is_empty());
        self.set_count(table, used);
    }

    /// How many entries of the table are not empty.
    pub(crate) fn used(&self, table: Table) -> u16 {
        // SAFETY: see `count`.
        unsafe { self.count(table).read() & !SEEN }
    }

    /// Notes that the audit has seen the table; whether it had before.
    pub(crate) fn see(&mut self, table: Table) -> bool {
        // SAFETY: see `count`.
        let count = unsafe { self.count(table).read() };
        self.set_count(table, count | SEEN);
        count & SEEN != 0
    }

    /// Forgets what the audit has seen.
    pub(crate) fn unsee_all(&mut self) {
        (0..self.fresh).map(Table).for_each(|table| self.set_count(table, self.used(table)));
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

    fn write(&mut self, table: Table, slot: usize, pte: Pte) {
        // SAFETY: `entry` lies in the pool, which owns it. Release: what a CPU finds through it was written before.
        unsafe { AtomicU64::from_ptr(self.entry(table, slot)) }.store(pte.0, Release);
    }

    fn set_count(&mut self, table: Table, used: u16) {
        // SAFETY: see `count`.
        unsafe { self.count(table).write(used) }
    }

    fn entry(&self, table: Table, slot: usize) -> *mut u64 {
        assert!(table.0 < self.tables() && slot < ENTRIES);
        // Inside the pool by the line above, and aligned since `base` is.
        self.base.wrapping_add((self.header + table.0) * PAGE_SIZE + slot * size_of::<u64>()).cast()
    }

    /// Points into the header frames, which only use counts live in; a count is written when its table is first taken.
    fn count(&self, table: Table) -> *mut u16 {
        assert!(table.0 < self.tables());
        self.base.wrapping_add(table.0 * size_of::<u16>()).cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// Whatever lay in the pool before, or was written to a table while it was in use: a table that is handed out, and
    /// only then linked, is all zero.
    #[test]
    fn tables_are_zero_before_they_can_be_linked() {
        let mut memory = vec![[0xa5a5_a5a5_a5a5_a5a5_u64; ENTRIES]; 9];
        let start = memory.as_mut_ptr().cast::<u8>();
        let base = start.wrapping_add(start.align_offset(PAGE_SIZE));
        let frames = FrameRange::from_numbers(0x100, 8).unwrap();
        // SAFETY: eight aligned pages of `memory`, which nothing else touches from here on.
        let mut pool = unsafe { TablePool::new(base, frames) }.unwrap();
        for _ in 0..3 {
            let tables: vec::Vec<Table> = core::iter::from_fn(|| pool.take()).collect();
            assert_eq!((tables.len(), pool.available()), (7, 0));
            for table in &tables {
                assert!((0..ENTRIES).all(|slot| pool.get(*table, slot).is_empty()));
                pool.set(*table, 5, Pte::table(1));
                pool.set(*table, 5, Pte::EMPTY);
            }
            tables.into_iter().for_each(|table| pool.give(table));
        }
    }
}
