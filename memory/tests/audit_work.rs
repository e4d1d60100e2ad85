//! How much each step of an audit looks at, counted by hand.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::*;
use ringfence_testkit::machine::*;

/// A leaf, a free block, a window or a device.
const ONE: usize = 8;
/// A table, when it is first come to.
const TABLE: usize = 64;

/// 16 words of bitmap. Free are the frames 1 to 7 and those from 48 on: three blocks and five. The tables are
/// the root, one of each level below it, and one more for leaves: eight of the kernel image, then (the slot
/// after the next seven of the table above) 32 of the pool.
fn system() -> System {
    System::new(Config { ram_frames: 1024, pool_frames: 32, window_pages: 1024, ..Config::default() })
}

/// The work of each step of an audit, as runs of equal steps: how many, and what each did; and the report.
fn audit(system: &System, limit: usize) -> (Vec<(usize, usize)>, Report) {
    let mut audit = system.space.start_audit();
    assert_eq!(audit.work(), 0);
    let mut runs: Vec<(usize, usize)> = Vec::new();
    loop {
        let report = audit.step_of(limit);
        match runs.last_mut() {
            Some((count, work)) if *work == audit.work() => *count += 1,
            _ => runs.push((1, audit.work())),
        }
        if let Some(report) = report {
            assert!(report.ok(), "{report:?}");
            return (runs, report);
        }
    }
}

/// With no limit, each step is a phase: it begins, clears the bitmap, forgets the tables, looks at free
/// blocks of both kinds, at tables, and at windows.
#[test]
fn phases() {
    let free = (8 * ONE) + (1 + 2 + 4 + 8);
    // Each entry once; when a table is done, those that lead to the next entry again.
    let walk = 5 * (TABLE + 512) + 40 * ONE + (2 + 2 + 1);
    let steps = [(1, 0), (1, 16), (1, usize::MAX), (1, free), (1, 0), (1, walk), (1, 0)];
    let system = system();
    for _ in 0..3 {
        assert_eq!(audit(&system, usize::MAX).0, steps);
    }
    // Not the next one's: whoever asks before it begins shares it.
    let mut shared = [(); 2].map(|()| system.space.start_audit());
    assert!((0..6).all(|_| shared[0].step_of(usize::MAX).is_none()));
    assert!(shared.iter_mut().all(|audit| audit.step_of(usize::MAX).is_some()));
}

/// The smallest steps: a word, a table that is forgotten, 64 frames of a free block, an entry with all that
/// leads to it.
#[test]
fn smallest_steps() {
    let leaf = 4 + ONE;
    let expected = [
        (1, 0),
        (16 + 5, 1),
        (3 + 1, ONE),
        (1 + 2 + 4 + 8, ONE + 1),
        // Either allocator has no more.
        (2, 0),
        // The root, and what is empty in it.
        (1, TABLE),
        (511, 1),
        (1, 1 + TABLE + 1),
        (509, 2),
        (1, 2 + TABLE + 1 + TABLE + 1 + ONE),
        (7, leaf),
        (504, 4),
        (7, 3),
        (1, 3 + TABLE + 1 + ONE),
        (31, leaf),
        (480, 4),
        (503, 3),
        (1, 2),
        (1, 0),
    ];
    let system = system();
    for limit in [1, 0] {
        assert_eq!(audit(&system, limit).0, expected);
    }
}

/// A step ends as soon as its limit is reached, and looks at no more of a free block than what is left of it
/// in words.
#[test]
fn free_blocks() {
    let system = system();
    let free = |limit, begin: usize, len: usize| {
        let (runs, _) = audit(&system, limit);
        let works: Vec<_> = runs.into_iter().flat_map(|(count, work)| vec![work; count]).collect();
        works[begin..begin + len].to_vec()
    };
    // Before that, it begins, clears two parts, and forgets tables.
    assert_eq!(free(8, 4, 9), [8, 8, 8, 8, 9, 10, 12, 16, 0]);
    // 1, 2; 4, 16; 64 frames and 64 of 128; 64 and 64 of 256; 192 of it; 512.
    assert_eq!(free(10, 4, 7), [16, 16, 18, 18, 11, 16, 0]);
}

/// A leaf is looked at in parts of as many words as are left.
#[test]
fn large_leaves() {
    let large = Config { ram_frames: 4096, window_pages: 4096, ..Config::default() };
    let system = System::new(large);
    let _two = system.space.allocate(1024, Protection::ReadWrite).unwrap();
    let (runs, _) = audit(&system, 1);
    let begins = 3 + ONE + 1;
    let second = [(1, begins), (7, 3 + 1), (510, 3)];
    assert!(runs.windows(3).any(|steps| steps == second), "{runs:?}");
    let (runs, _) = audit(&system, 5);
    // Two words a step; the last one, and with it the next leaf; then an entry, and then three a step.
    let both = runs.windows(3).any(|steps| {
        let [(3, 5), (1, 14), (rest, 5)] = *steps else { return false };
        rest >= 4 + 509 / 3
    });
    assert!(both, "{runs:?}");
}

/// A word of frames is 64, of large blocks and leaves too; of a leaf, those that are RAM.
#[test]
fn many_frames() {
    let pages = PageRange::new(VirtAddr::new(1 << 30).unwrap(), 2 << 18).unwrap();
    let config = Config { ram_frames: 8192, pool_frames: 32, window: Some(pages), ..Config::default() };
    let system = System::new(config);
    let (runs, _) = audit(&system, usize::MAX);
    // Three blocks before the pool; after it 16 frames, then 64 to 4096.
    assert_eq!(runs[3], (1, 11 * ONE + 127));
    unsafe { system.space.offer_mmio(frames(8192, 1)).unwrap() };
    let _claimed = system.space.claim_mmio(frames(8192, 1), None).unwrap();
    // A gigabyte in the second half of the window.
    let entry = system.machine.entry(2 << 30, 2);
    let walk = || {
        let mut audit = system.space.start_audit();
        assert!((0..6).all(|_| audit.step_of(usize::MAX).is_none()));
        let work = audit.work();
        assert!(audit.step_of(usize::MAX).is_some());
        work
    };
    let without = walk();
    system.machine.set_word(entry, 1 | 1 << 7 | 1 << 9 | 1 << 63);
    let with = walk();
    system.machine.set_word(entry, 0);
    assert_eq!(with - without, ONE + 8192 / 64);
}

/// Of windows, at least one leaf in a step; the next window only if the limit is not reached.
#[test]
fn windows() {
    let system = System::small();
    let windows = system.model();
    let regions = [1, 3].map(|pages| windows.allocate(pages * 4096).unwrap());
    let step = 3 * ONE;
    for (limit, expected) in [
        (0, &[(4, step), (1, ONE), (1, 0)][..]),
        (1, &[(4, step), (1, ONE), (1, 0)]),
        (step, &[(4, step), (1, ONE)]),
        (step + 1, &[(1, 5 * ONE), (1, 4 * ONE), (1, ONE)]),
        (5 * ONE, &[(1, 5 * ONE), (1, 4 * ONE)]),
        (usize::MAX, &[(1, 7 * ONE)]),
    ] {
        let (runs, report) = audit(&system, limit);
        assert_eq!(report.windows, (2, 4));
        assert_eq!(runs[runs.len() - expected.len()..], *expected, "{limit}");
    }
    drop(regions);
    // A leaf of 512 pages is one, even if it begins the window.
    let _region = windows.allocate(513 * 4096).unwrap();
    let (runs, report) = audit(&system, usize::MAX);
    assert_eq!((runs.last(), report.windows), (Some(&(1, 4 * ONE)), (1, 513)));
}
