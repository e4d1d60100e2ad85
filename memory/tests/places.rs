//! Where pages come to lie, and that nothing reaches what lies beside them.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::*;
use ringfence_testkit::machine::*;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE).unwrap()
}

fn first(pages: &PageRange) -> u64 {
    pages.start().unwrap().number()
}

/// Pages of the window, by number from its beginning on.
fn take(system: &System, page: u64, count: usize) -> AllocatedPages {
    let at = Some(at(first(&system.machine.window) + page));
    system.space.pages().allocate(PageRequest { at, ..PageRequest::new(count) }).unwrap()
}

/// Wherever the next free page is: the largest leaves that there are enough pages for fit. Registers are
/// mapped here, as a gigabyte of them takes no memory.
#[test]
fn pages_lie_where_the_largest_leaves_fit() {
    const GIB: u64 = 1 << 18;
    for gib_pages in [false, true] {
        let largest = if gib_pages { 2 } else { 1 };
        let system = System::new(Config { window_pages: 4 << 18, gib_pages, ..Config::default() });
        let (_one, mut from) = (system.space.allocate(1, Protection::ReadOnly).unwrap(), 1 << 20);
        for (count, level) in [(1, 0), (511, 0), (512, 1), (513, 1), (GIB - 1, 1), (GIB, 2), (GIB + 1, 2)] {
            let range = frames(from, count);
            unsafe { system.space.offer_mmio(range).unwrap() };
            let mapped = system.space.claim_mmio(range, None).unwrap();
            let hit = system.machine.walk(mapped.start_address().value()).unwrap();
            assert_eq!((hit.frame, hit.level), (from, level.min(largest)), "{count}");
            from += 2 * GIB;
        }
        let mut held = Vec::new();
        for count in [1, 2, 3, 5, 1, 8, 9, 300, 1, 600, 512] {
            let pages = system.space.pages().allocate(PageRequest::new(count)).unwrap();
            assert!(first(&pages).is_multiple_of(count.next_power_of_two() as u64), "{count}");
            held.push(pages);
        }
    }
}

/// What `translate` says is what the processor finds, to the byte, and nothing where that finds nothing.
#[test]
fn translation_is_the_walk() {
    let system = System::small();
    let _held = [1, 512, 3].map(|count| system.space.allocate(count, Protection::ReadOnly).unwrap());
    let mut mapped = 0;
    for page in first(&system.machine.window)..first(&system.machine.window) + 2100 {
        for offset in [0, 8, 4095] {
            let address = page * PAGE + offset;
            let frame = system.machine.walk(address).map(|hit| hit.frame);
            let found = system.space.translate(VirtAddr::new(address).unwrap()).map(PhysAddr::value);
            assert_eq!(found, frame.map(|frame| frame * PAGE + offset), "{address:#x}");
            mapped += found.map_or(0, |_| 1);
        }
    }
    assert_eq!(mapped, 3 * 516);
    assert_eq!(system.space.translate(VirtAddr::new(0).unwrap()), None);
}

/// New memory has the rights that were asked for, whichever way.
#[test]
fn rights_are_as_asked_for() {
    let system = System::small();
    for flags in [Protection::ReadOnly, Protection::ReadWrite, Protection::ReadExecute] {
        let frames = system.space.frames().allocate(FrameRequest::new(3)).unwrap();
        for mapped in [
            system.space.allocate(3, flags).unwrap(),
            system.space.map_allocated_pages(take(&system, 4000, 3), flags).unwrap(),
            system.space.map_allocated_pages_to(take(&system, 5000, 3), frames, flags).unwrap(),
        ] {
            let hit = system.machine.walk(mapped.start_address().value() + 2 * PAGE).unwrap();
            let wanted = (flags == Protection::ReadWrite, flags == Protection::ReadExecute);
            assert_eq!(((hit.write, hit.execute), mapped.flags()), (wanted, flags));
        }
    }
}

/// A split that is refused breaks no leaf, neither of this mapping nor of its neighbours.
#[test]
fn a_refused_split_leaves_large_leaves_whole() {
    let system = System::small();
    let mapped = system.space.map_allocated_pages(take(&system, 512, 1024), Protection::ReadWrite).unwrap();
    let middle = mapped.address_at_offset(512 * PAGE).unwrap();
    let (_left, mut rest) = mapped.split(middle).unwrap();
    let _right = system.space.map_allocated_pages(take(&system, 1536, 512), Protection::ReadWrite).unwrap();
    let before = system.everything();
    let start = rest.start_address().value();
    for page in [-512, -511, -1, 513, 1000, 1024] {
        rest = rest.split(VirtAddr::new(start.wrapping_add_signed(page * PAGE as i64)).unwrap()).unwrap_err();
    }
    for offset in [1, 8, 7 * PAGE + 8, 511 * PAGE + 4095] {
        rest = rest.split(VirtAddr::new(start + offset).unwrap()).unwrap_err();
    }
    assert_eq!(system.everything(), before);
    // At its ends there is nothing to break either.
    let (none, rest) = rest.split(VirtAddr::new(start).unwrap()).unwrap();
    let (rest, nothing) = rest.split(VirtAddr::new(start + 512 * PAGE).unwrap()).unwrap();
    assert!(none.is_empty() && nothing.is_empty() && system.everything() == before);
    // The first and the last page.
    let (_first, rest) = rest.split(VirtAddr::new(start + PAGE).unwrap()).unwrap();
    let (rest, last) = rest.split(VirtAddr::new(start + 511 * PAGE).unwrap()).unwrap();
    assert_eq!((rest.size_in_pages(), last.size_in_pages()), (510, 1));
    system.check();
}

/// A leaf that begins before the pages or reaches past them is somebody else's, and stays.
#[test]
fn leaves_that_are_not_ones_own_stay() {
    for (page, count) in [(0, 1), (0, 511), (5, 1000), (511, 512)] {
        let system = System::small();
        let mapped =
            system.space.map_allocated_pages(take(&system, page, count), Protection::ReadWrite).unwrap();
        let entry = system.machine.entry(mapped.start_address().value(), 1);
        let large = 1 << 63 | 0x283;
        system.machine.set_word(entry, large);
        assert!(catch_unwind(AssertUnwindSafe(|| drop(mapped))).is_err());
        assert_eq!(system.machine.word(entry), large, "{count} pages from {page} on");
    }
}

/// Two address spaces may share allocators. What one maps does not become part of what the other does.
#[test]
fn mappings_of_two_spaces_do_not_merge() {
    let system = System::small();
    let (one, machine) = (system.space, system.machine);
    let pool = one.frames().allocate(FrameRequest::new(8)).unwrap();
    let base = unsafe { machine.ram.add(pool.start_address().value() as usize) };
    let mapper = Mapper::new(unsafe { TablePool::new(base, *pool) }.unwrap(), false).unwrap();
    let roots = [machine.root(), mapper.root()];
    let mut mine = one.map_allocated_pages(take(&system, 7, 1), Protection::ReadWrite).unwrap();
    unsafe { machine.load_root(roots[1]) };
    let two: &AddressSpace =
        Box::leak(Box::new(AddressSpace::new(mapper, one.frames(), one.pages(), machine)));
    let theirs = two.map_allocated_pages(take(&system, 8, 1), Protection::ReadWrite).unwrap();
    let theirs = mine.merge(theirs).unwrap_err();
    assert_eq!((mine.size_in_pages(), theirs.size_in_pages()), (1, 1));
    drop(theirs);
    unsafe { machine.load_root(roots[0]) };
    drop(mine);
    system.check();
    drop(pool);
}

/// Views of the same bytes are equal and hash alike; views of others are not.
#[test]
fn views_compare_as_what_they_show() {
    let system = System::small();
    let view = |bytes: &[u8]| {
        let mut mapped = system.space.allocate(1, Protection::ReadWrite).unwrap();
        mapped.as_slice_mut::<u8>(0, bytes.len()).unwrap().copy_from_slice(bytes);
        mapped.into_borrowed_slice::<u8>(0, bytes.len()).unwrap()
    };
    let (one, same, other) = (view(b"one"), view(b"one"), view(b"two"));
    assert!(one == same && one != other);
    assert!(one < other);
    let hasher = RandomState::new();
    assert_eq!(hasher.hash_one(&one), hasher.hash_one(&b"one"[..]));
    assert_ne!(hasher.hash_one(&one), hasher.hash_one(&other));
    assert_eq!(MappedPages::empty().as_slice_mut::<u8>(0, 0), Ok(&mut [][..]));
}

/// A claim maps each of its pages to its own frame.
#[test]
fn claimed_registers_are_not_exchanged() {
    let system = System::small();
    let range = frames(5000, 3);
    unsafe { system.space.offer_mmio(range).unwrap() };
    let mapped = system.space.claim_mmio(range, None).unwrap();
    let start = mapped.start_address().value();
    let word = system.machine.word(system.machine.entry(start, 0)) & !(3 << 12);
    // A free page, in the same table, is nobody's and has no claim.
    let free = take(&system, 100, 1).start_address().value();
    for page in [start, start + PAGE, start + 2 * PAGE, free] {
        for frame in 5000..5003 {
            let entry = system.machine.entry(page, 0);
            let before = system.machine.word(entry);
            system.machine.set_word(entry, word | (frame & 3) << 12);
            let found: Vec<_> = system.space.audit().findings().copied().collect();
            system.machine.set_word(entry, before);
            let at = VirtAddr::new(page).unwrap();
            let own = page != free && (page - start) / PAGE == frame - 5000;
            assert_eq!(found.contains(&Finding::UnclaimedMmio(at)), !own, "{page:#x} to {frame}");
            assert_eq!(found.contains(&Finding::PageFree(at)), page == free);
        }
    }
    system.check();
}
