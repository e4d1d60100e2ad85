//! The mapper on its own: what it writes into its tables, read back from plain memory by a walk of the test's
//! own (Intel SDM volume 3, 4.5), and how many tables that takes.
#![allow(clippy::undocumented_unsafe_blocks)]

use proptest::prelude::*;
use ringfence_memory::*;
use ringfence_testkit::machine::{PAGE, frames};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Number of the first frame of every pool.
const POOL: u64 = 0x100;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const READ_ONLY: u64 = 1 << 63;

/// So many frames, with something in them.
fn memory(frames: usize) -> *mut u64 {
    let words = vec![0xa5a5_a5a5_a5a5_a5a5_u64; (frames + 1) * 512].leak().as_mut_ptr();
    words.wrapping_add(words.align_offset(PAGE as usize))
}

/// A mapper, and the memory that its tables lie in.
struct Tables {
    mapper: Mapper,
    base: *mut u64,
    frames: usize,
}

impl Tables {
    /// Room for so many tables, the first of which is the root.
    fn new(tables: usize, gib_pages: bool) -> Self {
        // A frame of notes is enough for 1024 tables.
        let count = tables + tables.div_ceil(1024);
        let base = memory(count);
        let pool = unsafe { TablePool::new(base.cast(), frames(POOL, count as u64)) }.unwrap();
        assert_eq!(pool.available(), tables);
        Self { mapper: Mapper::new(pool, gib_pages).unwrap(), base, frames: count }
    }

    fn map(&mut self, (page, frame, count): (u64, u64, u64)) -> Result<(), MapError> {
        let pages = pages(page, count);
        unsafe { self.mapper.map_boot(pages, frames(frame, count), Protection::ReadOnly) }
    }

    fn word(&self, table: u64, index: u64) -> u64 {
        let at = (table / PAGE - POOL) * 512 + index;
        assert!(at < self.frames as u64 * 512);
        unsafe { self.base.add(at as usize).read_volatile() }
    }

    fn words(&self) -> Vec<u64> {
        (0..self.frames * 512).map(|at| unsafe { self.base.add(at).read_volatile() }).collect()
    }

    /// The level and the entry that map a page.
    fn walk(&self, page: u64) -> Option<(u32, u64)> {
        let mut table = self.mapper.root().value();
        for level in (0..4).rev() {
            let entry = self.word(table, page >> (9 * level) & 511);
            if entry & 1 == 0 {
                return None;
            }
            if level == 0 || entry & 0x80 != 0 {
                return Some((level, entry));
            }
            assert_eq!(entry & !ADDRESS, 3, "a link is present and writable, and no more");
            table = entry & ADDRESS;
        }
        None
    }
}

fn pages(page: u64, count: u64) -> PageRange {
    // The upper half of the address space has the upper half of the page numbers, of 36 bits.
    let sign = if page >> 35 & 1 == 1 { 0xffff << 48 } else { 0 };
    PageRange::new(VirtAddr::new((page * PAGE) | sign).unwrap(), count as usize).unwrap()
}

/// The largest level whose leaf at `page` lies inside the range and maps to frames that are as aligned.
fn level((first, frame, count): (u64, u64, u64), page: u64, largest: u32) -> u32 {
    let fits = |level: &u32| {
        let size = 1 << (9 * level);
        let begin = page / size * size;
        begin >= first && begin + size <= first + count && first.abs_diff(frame) % size == 0
    };
    (0..=largest).rev().find(fits).unwrap()
}

/// Maps the ranges with just as many tables as they need, then with one fewer: the leaves are the largest
/// that fit, and a range that does not get what it needs changes nothing.
fn check(ranges: &[(u64, u64, u64)], gib_pages: bool) {
    let largest = 1 + u32::from(gib_pages);
    let (mut leaves, mut tables) = (Vec::new(), BTreeSet::from([(3, 0)]));
    // How many tables there are when each range is mapped.
    let needed: Vec<usize> = ranges
        .iter()
        .map(|range| {
            let mut page = range.0;
            while page < range.0 + range.2 {
                let level = level(*range, page, largest);
                leaves.push((page, level, range.1 + page - range.0));
                tables.extend((level..3).map(|level| (level, page >> (9 * (level + 1)))));
                page += 1 << (9 * level);
            }
            tables.len()
        })
        .collect();
    for room in [tables.len(), tables.len() - 1] {
        let mut made = Tables::new(room, gib_pages);
        for (range, needed) in ranges.iter().zip(&needed) {
            let before = made.words();
            let result = made.map(*range);
            assert_eq!(result, if *needed <= room { Ok(()) } else { Err(MapError::NoTables) }, "{range:?}");
            if result.is_err() {
                assert!(made.words() == before, "{range:?}: nothing has changed");
                break;
            }
            assert_eq!(made.mapper.pool().available(), room - needed);
        }
        for (page, level, frame) in leaves.iter().filter(|_| room == tables.len()) {
            let large = if *level > 0 { 0x80 } else { 0 };
            assert_eq!(made.walk(*page), Some((*level, leaf(*frame) | large)), "{page:#x}");
        }
    }
}

/// The entry of a leaf of the lowest level.
fn leaf(frame: u64) -> u64 {
    (frame * PAGE) | READ_ONLY | 1
}

#[test]
fn leaves_of_every_size() {
    for gib_pages in [false, true] {
        // Wherever a table of some level ends, and where only one of the lowest level does.
        for bits in [9, 16, 18, 24, 27] {
            let border = (5 << 27) + (1 << bits);
            check(&[(border - 1, 77, 2)], gib_pages);
            check(&[(border - 3, 77, 1), (border - 1, 500, 700), (border - 2, 78, 1)], gib_pages);
        }
        // The last of them crosses from 4 KiB leaves to larger ones and back.
        check(
            &[(1 << 18, 1 << 18, 1 << 18), ((3 << 18) - 513, (9 << 18) - 513, (1 << 18) + 1026)],
            gib_pages,
        );
        check(&[((1 << 18) + 1, (1 << 18) + 1, 1 << 18)], gib_pages);
    }
    // There are no leaves of 512 GiB.
    check(&[(1 << 27, 1 << 27, 1 << 27)], true);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn as_few_tables_as_possible(
        place in (1..4u64, 0..3u64, 0..3u64),
        cuts in prop::collection::vec(
            (prop_oneof![0..4u64, 510..515u64, 0..1500u64], prop_oneof![1..4u64, 1..1200u64], 0..3u64),
            1..6,
        ),
        gib_pages: bool,
    ) {
        let mut page = (place.0 << 27) + (place.1 << 18) - (place.2 << 9);
        let ranges: Vec<_> = cuts
            .iter()
            .map(|(gap, count, shift)| {
                let first = page + gap;
                page = first + count;
                // As aligned as the pages are, or not.
                (first, first + (1 << 30) + shift * 256, *count)
            })
            .collect();
        check(&ranges, gib_pages);
    }
}

/// The pages `page..page + count` lie in at most so many regions of `size` pages.
fn regions(count: u64, size: u64) -> u64 {
    // The first page is the last one of its region.
    1 + (count - 1).div_ceil(size)
}

/// The pool that is advised for a window is what the worst place for it takes, if all its leaves are of 4
/// KiB, and what the kernel itself takes.
#[test]
fn the_advised_pool_is_what_the_worst_case_takes() {
    for (first, count) in [((5 << 27) - 1, 2), ((5 << 27) - 1, 514), ((5 << 27) - 1, 1026)] {
        let mut made = Tables::new(20, true);
        for region in 0..regions(count, 512) {
            let page = if region == 0 { first } else { (first + 1) + (region - 1) * 512 };
            made.map((page, 1000 + 2 * region, 1)).unwrap();
        }
        let window = [9, 18, 27].map(|bits| regions(count, 1 << bits)).iter().sum::<u64>();
        assert_eq!(20 - made.mapper.pool().available() as u64, window + 1);
    }
    for count in [2, 514, (1 << 18) + 2, (1 << 21) + 2, (1 << 27) + 2, (1 << 30) + (1 << 27) + 2] {
        let window = 1 + [9, 18, 27].map(|bits| regions(count, 1 << bits)).iter().sum::<u64>();
        // The kernel's image and stack; its window onto the pool; the allocators' storage, a byte a page.
        let kernel = 32 + window.div_ceil(512) + count.div_ceil(512 * PAGE);
        let notes = (window + kernel).div_ceil(1024);
        assert_eq!(TablePool::frames_for(count as usize, 1) as u64, window + kernel + notes, "{count} pages");
    }
    // For each processor but one, two tables at each of three levels.
    for processors in [0_usize, 1, 2, 9] {
        let others = processors.saturating_sub(1);
        assert_eq!(TablePool::frames_for(2, processors), TablePool::frames_for(2, 1) + 6 * others);
    }
    // Whatever the size: no table too few, and hardly one too many.
    for count in (1..600).chain((1 << 18) - 600..(1 << 18) + 600) {
        let window = 1 + [9, 18, 27].map(|bits| regions(count, 1 << bits)).iter().sum::<u64>();
        let advised = TablePool::frames_for(count as usize, 1) as u64;
        assert!((window + 32..=window + 32 + 8).contains(&advised), "{advised} for {count} pages");
    }
}

/// Remembers the top-level table, and has no TLB.
struct Root(AtomicU64);

unsafe impl Cpu for Root {
    fn shoot_down(&self, _: &Stale) {}

    unsafe fn load_root(&self, root: PhysAddr) {
        self.0.store(root.value(), SeqCst);
    }

    fn root(&self) -> PhysAddr {
        PhysAddr::new(self.0.load(SeqCst)).unwrap()
    }
}

/// After the loader's address space has been left, the pool is used where it is then, not where it was.
#[test]
fn the_pool_moves_with_the_address_space() {
    let mut made = Tables::new(10, false);
    made.map((600, 40, 1)).unwrap();
    let new = memory(made.frames);
    unsafe { std::ptr::copy_nonoverlapping(made.base, new, made.frames * 512) };
    let cpu = Root(AtomicU64::new(0));
    unsafe { made.mapper.activate(&cpu, new.cast()) };
    assert_eq!(cpu.root(), made.mapper.root());
    let old = made.words();
    made.map((601, 50, 1)).unwrap();
    assert!(made.words() == old);
    made.base = new;
    assert_eq!(made.walk(600), Some((0, leaf(40))));
    assert_eq!(made.walk(601), Some((0, leaf(50))));
}

/// Page 0 is nobody's, nor is the very last one; their neighbours may be used, and so may the last frame.
#[test]
fn the_ends_of_the_address_spaces() {
    let mut made = Tables::new(20, false);
    let last = (1 << 36) - 1;
    let refused = Err(MapError::Pages(AllocError::OutOfRange));
    assert_eq!((made.map((0, 5, 1)), made.map((0, 5, 2))), (refused, refused));
    assert_eq!((made.map((last, 5, 1)), made.map((last - 1, 5, 2))), (refused, refused));
    assert_eq!((made.map((1, 5, 1)), made.map((last - 1, 6, 1))), (Ok(()), Ok(())));
    assert_eq!(made.walk(1), Some((0, leaf(5))));
    assert_eq!(made.walk(last - 1), Some((0, leaf(6))));
    let (pool, past) = (memory(2), 1 << 40);
    let pool = unsafe { TablePool::new(pool.cast(), frames(past - 2, 2)) }.unwrap();
    assert_eq!(Mapper::new(pool, false).unwrap().root().value(), (past - 1) * PAGE);
}
