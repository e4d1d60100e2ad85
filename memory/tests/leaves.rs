//! Leaves of 4 KiB, 2 MiB and 1 GiB, and how larger ones are broken, on the machine of `common`.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::*;
use ringfence_testkit::machine::*;

fn address(value: u64) -> VirtAddr {
    VirtAddr::new(value).unwrap()
}

#[test]
fn leaves_are_as_large_as_fits() {
    let config = Config { ram_frames: 3 << 18, window_pages: 4 << 18, pool_frames: 64, ..Config::default() };
    let system = System::new(config);
    let before = system.state();
    for (count, level) in [(1 << 18, 2), (512, 1), (511, 0), (1 << 10, 1), (16, 0)] {
        let mapped = system.space.allocate(count, Protection::ReadWrite).unwrap();
        for page in [0, count - 1] {
            let hit = system.machine.walk(mapped.start_address().value() + page as u64 * PAGE).unwrap();
            assert_eq!(hit.level, level, "{count} pages");
        }
        system.check();
    }
    // 1 GiB + 2 MiB + 4 KiB: one of each.
    let mapped = system.space.allocate((1 << 18) + 512 + 1, Protection::ReadWrite).unwrap();
    let level = |page: u64| system.machine.walk(mapped.start_address().value() + page * PAGE).unwrap().level;
    assert_eq!((level(0), level(1 << 18), level((1 << 18) + 512)), (2, 1, 0));
    system.check();
    drop(mapped);
    assert_eq!(system.state(), before);
}

#[test]
fn without_gib_pages_2_mib_is_the_largest() {
    let config = Config { ram_frames: 3 << 18, window_pages: 4 << 18, gib_pages: false, ..Config::default() };
    let system = System::new(config);
    let mapped = system.space.allocate(1 << 18, Protection::ReadOnly).unwrap();
    assert_eq!(system.machine.walk(mapped.start_address().value()).unwrap().level, 1);
    system.check();
}

#[test]
fn split_breaks_large_leaves_and_keeps_every_address() {
    let config = Config { ram_frames: 3 << 18, window_pages: 4 << 18, ..Config::default() };
    let system = System::new(config);
    let before = system.state();
    let mut mapped = system.space.allocate(1 << 18, Protection::ReadWrite).unwrap();
    let start = mapped.start_address().value();
    let frame = system.machine.walk(start).unwrap().frame;
    for page in [0, 1, 513, (1 << 18) - 1] {
        mapped.as_slice_mut::<u64>((page * PAGE) as usize, 1).unwrap()[0] = page;
    }
    let (head, tail) = mapped.split(address(start + 513 * PAGE)).unwrap();
    assert_eq!((head.size_in_pages(), tail.size_in_pages()), (513, (1 << 18) - 513));
    for page in (0..1 << 18).step_by(97).chain([511, 512, 513, 514, 1023, 1024]) {
        assert_eq!(system.machine.walk(start + page * PAGE).unwrap().frame, frame + page);
    }
    assert_eq!(system.machine.walk(start + 513 * PAGE).unwrap().level, 0);
    assert_eq!(system.machine.walk(start + 1024 * PAGE).unwrap().level, 1);
    system.check();
    drop(head);
    system.check();
    assert!(!system.machine.may(start, false) && system.machine.may(start + 513 * PAGE, false));
    assert_eq!(tail.as_slice::<u64>(0, 1).unwrap()[0], 513);
    drop(tail);
    assert_eq!(system.state(), before);
}

/// What is split, protected or taken apart across page tables keeps its rights and its frames, page by page.
#[test]
fn parts_keep_their_rights() {
    let system = System::small();
    let wanted = |protection| (protection == Protection::ReadWrite, protection == Protection::ReadExecute);
    let check = |pages: &PageRange, first: u64, protection| {
        for (index, page) in pages.iter().enumerate() {
            let hit = system.machine.walk(page.start_address().value()).unwrap();
            assert_eq!(
                (hit.frame, (hit.write, hit.execute)),
                (first + index as u64, wanted(protection)),
                "{index}"
            );
        }
    };
    for protection in [Protection::ReadOnly, Protection::ReadWrite, Protection::ReadExecute] {
        let mapped = system.space.allocate(512, protection).unwrap();
        let first = system.machine.walk(mapped.start_address().value()).unwrap().frame;
        let middle = mapped.address_at_offset(7 * PAGE).unwrap();
        let (head, tail) = mapped.split(middle).unwrap();
        check(&head, first, protection);
        check(&tail, first + 7, protection);
    }
    // Leaves of 4 KiB in three tables, in frames that are adjacent.
    let pages = system.space.pages().allocate(PageRequest { align: 512, ..PageRequest::new(1100) }).unwrap();
    let at = PhysAddr::new(1001 * PAGE);
    let frames = system.space.frames().allocate(FrameRequest { at, ..FrameRequest::new(1100) }).unwrap();
    let mut mapped = system.space.map_allocated_pages_to(pages, frames, Protection::ReadWrite).unwrap();
    for protection in [Protection::ReadOnly, Protection::ReadExecute, Protection::ReadWrite] {
        mapped.remap(protection);
        check(&mapped, 1001, protection);
    }
    let (_pages, frames) = mapped.unmap_into_parts().unwrap();
    assert_eq!((frames.len(), frames.capacity(), frames[0].size_in_frames()), (1, 1, 1100));
    system.check();
}

/// With fewer tables than it takes, a leaf of 1 GiB is not broken at all.
#[test]
fn large_leaves_are_broken_whole() {
    let mut whole = Vec::new();
    for spare in 0..4 {
        let config = Config {
            ram_frames: 2 << 18,
            window_pages: 2 << 18,
            pool_frames: 7 + spare,
            ..Config::default()
        };
        let system = System::new(config);
        let at = PhysAddr::new(1 << 30);
        let frames = FrameRequest { at, ..FrameRequest::new(1 << 18) };
        let frames = system.space.frames().allocate(frames).unwrap();
        let pages = PageRequest { align: 1 << 18, ..PageRequest::new(1 << 18) };
        let pages = system.space.pages().allocate(pages).unwrap();
        let mapped = system.space.map_allocated_pages_to(pages, frames, Protection::ReadWrite).unwrap();
        let left = system.pool.size_in_frames() - 1 - system.space.audit().tables;
        let before = system.everything();
        let middle = mapped.address_at_offset(777 * PAGE).unwrap();
        let result = mapped.split(middle);
        assert_eq!(result.is_ok(), left >= 2, "{left} tables left");
        whole.push(left);
        match result {
            Ok((head, tail)) => {
                let frame =
                    |pages: &PageRange| system.machine.walk(pages.start_address().value()).unwrap().frame;
                assert_eq!((frame(&head), frame(&tail)), (1 << 18, (1 << 18) + 777));
            }
            Err(_mapped) => assert_eq!(system.everything(), before),
        }
    }
    assert!(whole.contains(&1) && whole.contains(&2), "{whole:?}");
}

/// A large leaf that somebody has put where pages were mapped is not touched as if it were theirs.
#[test]
fn leaves_that_reach_further_are_noticed() {
    for (first, count) in [(0, 1), (5, 1000)] {
        let system = System::small();
        let start = system.machine.window.start_address().value();
        let request = PageRequest { at: VirtAddr::new(start + first * PAGE), ..PageRequest::new(count) };
        let pages = system.space.pages().allocate(request).unwrap();
        let mapped = system.space.map_allocated_pages(pages, Protection::ReadWrite).unwrap();
        let entry = system.machine.entry(start, 1);
        system.machine.set_word(entry, 1 << 63 | 0x83);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(mapped)));
        assert!(result.is_err(), "{count} pages");
    }
}

/// Entries that are neither empty nor present are nobody's to use, nor are tables that the pool has not given
/// out.
#[test]
fn strange_entries_are_left_alone() {
    let system = System::small();
    let held = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let at = system.machine.window.start_address().checked_add(3 << 21).unwrap();
    let entry = system.machine.entry(at.value(), 1);
    assert_eq!(system.machine.word(entry), 0);
    system.machine.set_word(entry, system.machine.root().value());
    let pages = system.space.pages().allocate(PageRequest { at: Some(at), ..PageRequest::new(1) }).unwrap();
    let (error, pages) = system.space.map_allocated_pages(pages, Protection::ReadWrite).unwrap_err();
    assert_eq!(error, MapError::AlreadyMapped);
    system.machine.set_word(entry, 0);
    // The first table that was never taken; one frame of the pool holds notes.
    let fresh = system.pool.start_address().value() + (1 + system.space.audit().tables as u64) * PAGE;
    system.machine.set_word(entry, fresh | 3);
    let report = system.space.audit();
    system.machine.set_word(entry, 0);
    assert!(report.findings().any(|found| *found == Finding::ForeignTable(PhysAddr::new(fresh).unwrap())));
    drop((held, pages));
    system.check();
}
