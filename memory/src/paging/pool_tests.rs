//! The list of free tables.

use super::*;
use crate::PhysAddr;
use crate::paging::tlb::{Cpu, Flush, Stale};
use std::vec;

struct NoCpu;

// SAFETY: nothing is mapped by these tables.
unsafe impl Cpu for NoCpu {
    fn shoot_down(&self, _: &Stale) {}
    unsafe fn load_root(&self, _: PhysAddr) {}
    fn root(&self) -> PhysAddr {
        unreachable!()
    }
}

/// Whatever lay in the pool before, or was written to a table while it was in use: a table that is handed
/// out, and only then linked, is all zero.
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
        let mut flush = Flush::new();
        tables.into_iter().for_each(|table| pool.unlink(table, &mut flush.tables));
        assert_eq!((pool.take(), pool.available(), pool.in_use()), (None, 0, 0));
        pool.give(flush.flush(&NoCpu, |_| ()).unwrap());
        assert_eq!(pool.available(), 7);
    }
}

/// A run ends where an entry is not a step more than the one before, whatever the CPU has recorded.
#[test]
fn runs_of_entries() {
    let mut memory = vec![[0_u64; ENTRIES]; 3];
    let start = memory.as_mut_ptr().cast::<u8>();
    let base = start.wrapping_add(start.align_offset(PAGE_SIZE));
    let frames = FrameRange::from_numbers(0x100, 2).unwrap();
    // SAFETY: two aligned pages of `memory`, which nothing else touches from here on.
    let mut pool = unsafe { TablePool::new(base, frames) }.unwrap();
    let table = pool.take().unwrap();
    pool.set_run(table, 3..10, Pte(0x1000_0001), 0x1000);
    pool.set(table, 5, Pte(0x1000_2061));
    assert_eq!(pool.run(table, 3..12, 0x1000), 3..10);
    assert_eq!(pool.run(table, 4..8, 0x1000), 4..8);
    assert_eq!(pool.run(table, 3..12, 0x2000), 3..4);
    assert_eq!(pool.run(table, 4..4, 0x1000), 4..4);
}
