//! What Theseus's documents promise about `MappedPages` and its ranges, and the fourteen flaws found in its
//! source: each `flaw_…` test fails if that flaw is here. Where a type excludes a flaw, the test is a line in
//! `compile-fail`, named in the comment.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::theseus::{BorrowedMappedPages, BorrowedSliceMappedPages, Mutable};
use ringfence_memory::*;
use ringfence_testkit::machine::*;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use x86_64::structures::paging::PageTable;
use x86_64::structures::paging::mapper::{MappedFrame, OffsetPageTable, Translate, TranslateResult};

fn at(value: u64) -> VirtAddr {
    VirtAddr::new(value).unwrap()
}

fn large() -> System {
    System::new(Config { ram_frames: 3 << 18, window_pages: 4 << 18, ..Config::default() })
}

/// Pages of their own, mapped to every second of as many frames: no two leaves are adjacent in physical
/// memory.
fn scattered(system: &System, count: usize) -> MappedPages<Private> {
    let space = system.space;
    let start = space.pages().allocate(PageRequest::new(count)).unwrap();
    let (mut rest, mut whole) = (start, MappedPages::empty());
    for index in 0..count as u64 {
        let frame = PhysAddr::new((1000 + 2 * index) * PAGE);
        let frames = space.frames().allocate(FrameRequest { at: frame, ..FrameRequest::new(1) }).unwrap();
        let (head, tail) = {
            let next = at(rest.start_address().value() + PAGE);
            rest.split(next).unwrap()
        };
        rest = tail;
        whole.merge(space.map_allocated_pages_to(head, frames, Protection::ReadWrite).unwrap()).unwrap();
    }
    whole
}

#[test]
fn range_methods_as_documented() {
    let range = PageRange::from_virt_addr(at(0x2000), 0x2001).unwrap();
    assert_eq!(range, PageRange::new(at(0x2000), 3).unwrap());
    assert_eq!(
        (range.start_address(), range.size_in_pages(), range.size_in_bytes()),
        (at(0x2000), 3, 0x3000)
    );
    assert_eq!(range.offset_of_address(at(0x3500)), Some(0x1500));
    assert_eq!(range.address_at_offset(0x1500), Some(at(0x3500)));
    assert_eq!((range.offset_of_address(at(0x5000)), range.offset_of_address(at(0x1fff))), (None, None));
    assert_eq!(range.address_at_offset(0x3000), None);
    assert!(range.contains_address(at(0x4fff)) && !range.contains_address(at(0x5000)));
    let page = |address| Page::containing_address(at(address));
    assert_eq!((range.start(), range.end()), (Some(page(0x2000)), Some(page(0x4000))));
    assert!(range.contains(page(0x4fff)) && !range.contains(page(0x5000)) && !range.is_empty());
    let extended = range.to_extended(page(0x7123)).unwrap();
    assert_eq!((extended.start(), extended.end()), (range.start(), Some(page(0x7000))));
    let other = PageRange::new(at(0x4000), 9).unwrap();
    assert_eq!(range.overlap(&other), Some(PageRange::new(at(0x4000), 1).unwrap()));
    assert_eq!(range.overlap(&PageRange::new(at(0x5000), 9).unwrap()), None);
    assert!(PageRange::empty().is_empty() && PageRange::empty().end().is_none());
    let frames = FrameRange::from_phys_addr(PhysAddr::new(0x2fff).unwrap(), 2).unwrap();
    assert_eq!((frames.size_in_frames(), frames.size_in_bytes()), (2, 0x2000));
    // Iterating uses nothing up.
    assert_eq!((frames.iter().count(), frames.iter().rev().count()), (2, 2));
}

#[test]
fn mapped_pages_as_documented() {
    let system = System::small();
    let start = system.machine.window.start_address().value();
    let map = |first, count| {
        let request = PageRequest { at: VirtAddr::new(start + first * PAGE), ..PageRequest::new(count) };
        let pages = system.space.pages().allocate(request).unwrap();
        system.space.map_allocated_pages(pages, Protection::ReadWrite).unwrap()
    };
    // The document's example: [0x2000] and [0x3000, 0x4000] become [0x2000:0x4000].
    let (mut mapping, other) = (map(2, 1), map(3, 2));
    mapping.merge(other).unwrap();
    assert_eq!((mapping.start_address(), mapping.size_in_pages()), (at(start + 2 * PAGE), 3));
    let stranger = mapping.merge(map(6, 1)).unwrap_err();
    assert_eq!((stranger.start_address(), mapping.size_in_pages()), (at(start + 6 * PAGE), 3));
    // `split` at both ends leaves an empty half; outside gives everything back.
    let (empty, mapping) = mapping.split(at(start + 2 * PAGE)).unwrap();
    let (mapping, nothing) = mapping.split(at(start + 5 * PAGE)).unwrap();
    assert!(empty.is_empty() && nothing.is_empty());
    let mut mapping = mapping.split(at(start + 6 * PAGE)).unwrap_err();
    // A deep copy has the same bytes at a new place, in new frames.
    mapping.as_slice_mut::<u8>(0, 3 * 4096).unwrap().fill(9);
    let copy = mapping.deep_copy(Some(Protection::ReadOnly)).unwrap();
    assert_eq!((copy.flags(), mapping.flags()), (Protection::ReadOnly, Protection::ReadWrite));
    assert!(copy.overlap(&mapping).is_none());
    assert_eq!(copy.as_slice::<u8>(0, 3 * 4096), mapping.as_slice::<u8>(0, 3 * 4096));
    mapping.remap(Protection::ReadOnly);
    assert_eq!(
        (mapping.flags(), mapping.as_type_mut::<u8>(0)),
        (Protection::ReadOnly, Err(AccessError::NotWritable))
    );
    mapping.remap(Protection::ReadWrite);
    *mapping.as_type_mut::<u64>(8).unwrap() = 5;
    assert_eq!(mapping.as_type::<u64>(8), Ok(&5));
    let (pages, frames) = mapping.unmap_into_parts().unwrap();
    assert_eq!(frames.iter().map(|run| run.size_in_frames()).sum::<usize>(), 3);
    // The parts can be used again at once.
    let again = frames.into_iter().fold((MappedPages::empty(), pages), |(mut whole, pages), run| {
        let next = at(pages.start_address().value() + run.size_in_bytes());
        let (head, tail) = pages.split(next).unwrap();
        whole.merge(system.space.map_allocated_pages_to(head, run, Protection::ReadOnly).unwrap()).unwrap();
        (whole, tail)
    });
    assert_eq!(again.0.as_type::<u64>(8), Ok(&0), "it is new memory");
    let none = MappedPages::<Private>::empty();
    assert!(none.is_empty() && none.as_slice::<u8>(0, 1).is_err() && none.as_slice::<u8>(0, 0) == Ok(&[]));
    system.check();
}

#[test]
fn borrowed_pages_as_documented() {
    let system = System::small();
    let mapping = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let mut word = BorrowedMappedPages::<u32, Mutable>::from_mut(mapping, 4).unwrap();
    *word = 7;
    let word = BorrowedMappedPages::<u32>::from(word.into_inner(), 4).unwrap();
    assert_eq!((*word, word.as_ref(), word.inner_ref().size_in_pages()), (7, &7, 1));
    let mut bytes = BorrowedSliceMappedPages::<u8, Mutable>::from_mut(word.into_inner(), 4, 4).unwrap();
    bytes.as_mut()[0] = 9;
    let bytes = BorrowedSliceMappedPages::<u8>::from(bytes.into_inner(), 4, 2).unwrap();
    // Compared, ordered and hashed as what it derefs to.
    let mut other = system.space.allocate(1, Protection::ReadWrite).unwrap();
    other.as_slice_mut::<u8>(0, 3).unwrap().copy_from_slice(&[9, 0, 0]);
    let other = other.into_borrowed_slice::<u8>(0, 2).unwrap();
    let borrow: &[u8] = std::borrow::Borrow::borrow(&bytes);
    assert!(borrow == [9, 0] && bytes == other && bytes <= other);
    assert!(HashSet::from([bytes]).contains(&other));
    let mut shared = other.into_inner();
    shared.remap(Protection::ReadOnly);
    let read_only = BorrowedMappedPages::<u8, Mutable>::from_mut(shared, 0).unwrap_err();
    assert_eq!(read_only.1, AccessError::NotWritable);
    drop(read_only);
    system.check();
}

/// Flaw 1: Misalignment was logged, and the reference made all the same.
#[test]
fn flaw_01_misaligned_reference() {
    fn check<T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable + zerocopy::KnownLayout>(
        system: &System,
    ) {
        let mut memory = system.space.allocate(1, Protection::ReadWrite).unwrap();
        let wanted = |offset: usize| {
            offset.is_multiple_of(align_of::<T>()).then_some(()).ok_or(AccessError::Misaligned)
        };
        for offset in 0..64 {
            assert_eq!(memory.as_type::<T>(offset).map(|_| ()), wanted(offset));
            assert_eq!(memory.as_type_mut::<T>(offset).map(|_| ()), wanted(offset));
            assert_eq!(memory.as_slice::<T>(offset, 2).map(|_| ()), wanted(offset));
            assert_eq!(memory.as_slice_mut::<T>(offset, 2).map(|_| ()), wanted(offset));
            macro_rules! owned {
                ($($call:ident($($argument:expr),*)),*) => {$(
                    let (result, back) = match memory.$call::<T>($($argument),*) {
                        Ok(view) => (Ok(()), view.into_inner()),
                        Err((back, error)) => (Err(error), back),
                    };
                    assert_eq!(result, wanted(offset));
                    memory = back;
                )*};
            }
            owned!(
                into_borrowed(offset),
                into_borrowed_mut(offset),
                into_borrowed_slice(offset, 2),
                into_borrowed_slice_mut(offset, 2)
            );
        }
    }
    let system = System::small();
    check::<u8>(&system);
    check::<u16>(&system);
    check::<u32>(&system);
    check::<u64>(&system);
    check::<u128>(&system);
    check::<[u64; 3]>(&system);
}

// Flaw 2: References to device memory, and to types with padding:
// `tests/compile-fail/cases/fail/references.rs` and `overlays.rs`.

/// Flaw 3: `remap` worked on whatever table was in use, and a failure left flags mixed.
#[test]
fn flaw_03_remap_of_another_table_or_of_half() {
    let (system, other) = (large(), System::small());
    let mut mapping = system.space.allocate((1 << 18) + 512 + 3, Protection::ReadWrite).unwrap();
    let theirs = other.space.allocate(4, Protection::ReadWrite).unwrap();
    let before = other.tables();
    for flags in [Protection::ReadOnly, Protection::ReadExecute, Protection::ReadWrite] {
        mapping.remap(flags);
        for page in mapping.iter().step_by(509).chain(mapping.end()) {
            let hit = system.machine.walk(page.start_address().value()).unwrap();
            assert_eq!(
                (hit.write, hit.execute),
                (flags == Protection::ReadWrite, flags == Protection::ReadExecute)
            );
        }
        assert_eq!(mapping.flags(), flags);
        system.check();
    }
    assert_eq!(other.tables(), before);
    drop(theirs);
}

/// Flaw 4: A failure half-way left frames free and mapped.
#[test]
fn flaw_04_failure_half_way_through_a_map() {
    let system = System::small();
    let (before, tables) = (system.state(), system.tables());
    // All frames are there but one: the last piece of 4 KiB is what fails.
    let free = system.space.frames().count(Owner::Free);
    let pages = system.space.pages().allocate(PageRequest::new(free + 1)).unwrap();
    let (error, pages) = system.space.map_allocated_pages(pages, Protection::ReadWrite).unwrap_err();
    assert_eq!((error, pages.size_in_pages()), (MapError::Frames(AllocError::OutOfMemory), free + 1));
    assert_eq!(system.tables(), tables);
    system.check();
    drop(pages);
    assert_eq!(system.state(), before);
}

/// Flaw 5: The second and later runs of frames were free before the last processor had flushed.
#[test]
fn flaw_05_frames_free_before_the_flush() {
    let system = System::small();
    let mapping = scattered(&system, 40);
    system.machine.touch(&mapping);
    assert_eq!(system.machine.cached_frames().len(), 40);
    let (space, machine) = (system.space, system.machine);
    let flushes = Arc::new(AtomicUsize::new(0));
    let seen = flushes.clone();
    *machine.on_flush.lock().unwrap() = Some(Box::new(move || {
        seen.fetch_add(1, SeqCst);
        for frame in machine.cached_frames() {
            let request = FrameRequest { at: PhysAddr::new(frame * PAGE), ..FrameRequest::new(1) };
            assert!(space.frames().allocate(request).is_err(), "frame {frame:#x} is free but still cached");
        }
    }));
    drop(mapping);
    *machine.on_flush.lock().unwrap() = None;
    assert!(flushes.load(SeqCst) > 1 && machine.cached_frames().is_empty());
    system.check();
}

/// Flaw 6: A second mapper over the same tables, without a lock (`compile-fail`: `another_mapper`).
#[test]
fn flaw_06_unsynchronised_mappers() {
    let system = System::small();
    let before = system.state();
    std::thread::scope(|scope| {
        let workers = [0, 1, 2, 3_usize].map(|seed| {
            let space = system.space;
            scope.spawn(move || {
                for step in 0..200 {
                    let mapping = space.allocate(1 + (step * 7 + seed) % 20, Protection::ReadWrite).unwrap();
                    assert!(space.translate(mapping.start_address()).is_some());
                    let middle = mapping.address_at_offset((mapping.size_in_bytes() / 2) & !0xfff).unwrap();
                    let (head, tail) = mapping.split(middle).unwrap();
                    drop(if step % 2 == 0 { (tail, head) } else { (head, tail) });
                }
            })
        });
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    system.check();
    assert_eq!(system.state(), before);
}

/// Flaw 7: A table was linked before it was zero, and never freed. (The order within the pool has a test
/// there: what it hands out is zero.)
#[test]
fn flaw_07_tables_linked_before_they_are_zero() {
    let system = System::small();
    let before = system.state();
    // A second processor walks all the time. Whatever it meets is a table of the pool or a frame of the RAM.
    let (machine, stop) = (system.machine, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let walker = scope.spawn(|| {
            while !stop.load(SeqCst) {
                for page in machine.window.iter().step_by(512) {
                    let hit = machine.walk(page.start_address().value());
                    assert!(
                        hit.is_none_or(|hit| hit.frame < machine.ram_frames),
                        "garbage was linked: {hit:?}"
                    );
                }
            }
        });
        for round in 0..40 {
            let step = 512 + round % 3;
            let pages = machine.window.iter().step_by(step);
            let mapped: Vec<_> = pages
                .map(|page| {
                    let request = PageRequest { at: Some(page.start_address()), ..PageRequest::new(1) };
                    let pages = system.space.pages().allocate(request).unwrap();
                    system.space.map_allocated_pages(pages, Protection::ReadOnly).unwrap()
                })
                .collect();
            drop(mapped);
        }
        stop.store(true, SeqCst);
        walker.join().unwrap();
    });
    assert_eq!(system.state(), before, "every table is back");
}

/// Flaw 8: Loading another root was safe (`compile-fail`: `another_root`, `activated`): and tables that are
/// not in use make no address space.
#[test]
#[should_panic(expected = "not in use")]
fn flaw_08_tables_switched_by_safe_code() {
    let system = System::small();
    let arena = Machine::new(64, 0, 512);
    let pool = unsafe { TablePool::new(arena.ram, frames(0, 8)) }.unwrap();
    AddressSpace::new(
        Mapper::new(pool, false).unwrap(),
        system.space.frames(),
        system.space.pages(),
        system.machine,
    );
}

/// Flaw 9: A copy of executable memory was writable and executable for a while. (The machine of these tests
/// refuses every access to such memory; that only private memory can be copied is `compile-fail`:
/// `dma_copied`.)
#[test]
fn flaw_09_writable_and_executable_while_copying() {
    let system = System::small();
    let mut code = system.space.allocate(520, Protection::ReadWrite).unwrap();
    code.as_slice_mut::<u8>(0, 520 * 4096).unwrap().fill(0xc3);
    code.remap(Protection::ReadExecute);
    let machine = system.machine;
    *machine.on_flush.lock().unwrap() = Some(Box::new(move || {
        let both = |page: Page| {
            machine.walk(page.start_address().value()).is_some_and(|hit| hit.write && hit.execute)
        };
        assert!(!machine.window.iter().any(both));
    }));
    let copy = code.deep_copy(None).unwrap();
    *machine.on_flush.lock().unwrap() = None;
    assert_eq!((copy.flags(), copy.as_slice::<u8>(0, 1)), (Protection::ReadExecute, Ok(&[0xc3][..])));
    system.check();
}

/// Flaw 10: Large pages were one entry of 4 KiB each, and ranges of them ended too early. Every address of 1
/// GiB + 2 MiB + 4 KiB is looked up by the `x86_64` crate, before and after breaking.
#[test]
fn flaw_10_large_pages() {
    let system = large();
    let before = system.state();
    let count = (1 << 18) + 512 + 1;
    let mapping = system.space.allocate(count, Protection::ReadWrite).unwrap();
    assert_eq!(system.space.frames().count(Owner::Private), count);
    let last = mapping.start_address().value() + mapping.size_in_bytes() - 1;
    assert!(mapping.contains_address(at(last)) && !mapping.contains_address(at(last + 1)));
    assert_eq!(mapping.offset_of_address(at(last)), Some(mapping.size_in_bytes() - 1));
    let lookup = |pages: &PageRange| -> Vec<u64> {
        let root = unsafe {
            &mut *system.machine.ram.add(system.machine.root().value() as usize).cast::<PageTable>()
        };
        let offset = x86_64::VirtAddr::new(system.machine.ram as u64);
        let tables = unsafe { OffsetPageTable::new(root, offset) };
        let frame = |page: Page| match tables.translate(x86_64::VirtAddr::new(page.start_address().value())) {
            TranslateResult::Mapped { frame, offset, .. } => {
                let size = match frame {
                    MappedFrame::Size4KiB(_) => 1,
                    MappedFrame::Size2MiB(_) => 512,
                    MappedFrame::Size1GiB(_) => 1 << 18,
                };
                assert!(frame.start_address().as_u64().is_multiple_of(size * PAGE));
                (frame.start_address().as_u64() + offset) / PAGE
            }
            other => panic!("{page:?}: {other:?}"),
        };
        pages.iter().map(frame).collect()
    };
    let frames = lookup(&mapping);
    assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), count, "each frame once");
    let level = |page: u64| system.machine.walk(mapping.start_address().value() + page * PAGE).unwrap().level;
    assert_eq!((level(0), level((1 << 18) - 1), level(1 << 18), level((1 << 18) + 512)), (2, 2, 1, 0));
    let (mut head, tail) = {
        let middle = mapping.address_at_offset(777 * PAGE).unwrap();
        mapping.split(middle).unwrap()
    };
    head.merge(tail).unwrap();
    assert_eq!(lookup(&head), frames, "breaking changes no address");
    system.check();
    drop(head);
    assert_eq!(system.state(), before, "no frame is lost");
}

/// Flaw 11: Addresses were made by unchecked arithmetic (`compile-fail`: `physical_address_plus`,
/// `virtual_address_or`, `physical_address_from_bytes`).
#[test]
fn flaw_11_unchecked_addresses() {
    for value in [1 << 52, 1 << 63, u64::MAX] {
        assert_eq!(PhysAddr::new(value), None);
    }
    for value in [1 << 47, 0xffff_7fff_ffff_ffff, 1 << 63] {
        assert_eq!(VirtAddr::new(value), None);
    }
    let (top, low) = (PhysAddr::new((1 << 52) - 1).unwrap(), at((1 << 47) - 1));
    assert_eq!((top.checked_add(1), top.checked_add(u64::MAX)), (None, None));
    assert_eq!((low.checked_add(1), at(u64::MAX).checked_add(1)), (None, None));
    assert_eq!(FrameRange::from_phys_addr(top, 2), Err(RangeError::OutOfSpace));
    assert_eq!(FrameRange::from_phys_addr(top, u64::MAX), Err(RangeError::OutOfSpace));
    assert_eq!(PageRange::from_virt_addr(low, 2), Err(RangeError::OutOfSpace));
    assert_eq!(PageRange::from_virt_addr(at(u64::MAX), 2), Err(RangeError::OutOfSpace));
    // The highest frame is that of physical space, and walking back from page 0 ends.
    let last = FrameRange::from_phys_addr(top, 1).unwrap();
    assert_eq!(last.end().unwrap().number(), (1 << 40) - 1);
    assert_eq!(PageRange::new(at(0), 1).unwrap().iter().rev().count(), 1);
    assert!(last.to_extended(Frame::containing_address(PhysAddr::new(0).unwrap())).is_ok());
}

/// Flaw 12: Any safe code could claim any physical address that is no RAM (`compile-fail`:
/// `registers_anywhere`).
#[test]
fn flaw_12_registers_claimed_at_will() {
    let system = System::small();
    let before = (system.state(), system.tables());
    let claim = |frames| system.space.claim_mmio(frames, None).map(|_| ());
    for range in
        [frames(4096, 1), frames(100, 1), frames(0xfee00, 1), frames(0, 1), system.pool, FrameRange::empty()]
    {
        assert_eq!(claim(range), Err(ClaimError::NotOffered));
    }
    unsafe { system.space.offer_mmio(frames(4100, 4)) }.unwrap();
    for range in [frames(4099, 1), frames(4099, 5), frames(4100, 5), frames(4104, 1)] {
        assert_eq!(claim(range), Err(ClaimError::NotOffered), "not all of it is in the range");
    }
    let held = system.space.claim_mmio(frames(4101, 2), None).unwrap();
    for range in [frames(4100, 4), frames(4101, 1), frames(4100, 2), frames(4102, 2)] {
        assert_eq!(claim(range), Err(ClaimError::AlreadyClaimed));
    }
    drop(held);
    assert_eq!((system.state(), system.tables()), before);
}

/// Flaw 13: A device was given the address of memory that was already dropped. (An address for a device
/// cannot be made: `compile-fail`: `device_address_from_physical`.)
#[test]
fn flaw_13_device_address_outlives_its_memory() {
    let system = System::small();
    let windows = system.model();
    let region = windows.allocate(4 * 4096).unwrap();
    let at = VirtAddr::from_ptr(region.as_volatile_slice().as_ptr().as_ptr()).unwrap();
    let physical = system.space.translate(at).unwrap();
    windows.publish(region.address(0).unwrap()).unwrap();
    drop(region);
    // What a device may still write does not serve anybody else, not even other devices.
    let held: Vec<_> = std::iter::from_fn(|| system.space.allocate_dma(FrameRequest::new(1)).ok()).collect();
    let range = FrameRange::new(physical, 4).unwrap();
    assert!(held.iter().all(|other| !range.contains_address(other.physical_address())));
    assert!(
        system.space.frames().allocate(FrameRequest { at: Some(physical), ..FrameRequest::new(1) }).is_err()
    );
    assert_eq!(system.space.frames().count(Owner::Quarantined), 4);
    system.check();
    windows.reset_model().unwrap();
    assert_eq!(system.space.frames().count(Owner::Quarantined), 0);
    assert_eq!(system.space.allocate_dma(FrameRequest::new(4)).unwrap().physical_address(), physical);
}

/// Flaw 14: One lock, one entry and one flush for each page.
#[test]
fn flaw_14_page_by_page() {
    let system = large();
    let flushes = || system.machine.flushes.swap(0, SeqCst);
    for (count, leaves, most) in [(1 << 18, 1, 1), (8 * 512, 8, 8), (511, 511, 511_usize.div_ceil(64))] {
        let tables = system.tables().len();
        let mapping = system.space.allocate(count, Protection::ReadWrite).unwrap();
        assert!(system.tables().len() - tables <= leaves + 3, "{count} pages");
        assert_eq!(flushes(), 0, "nothing was cached");
        drop(mapping);
        assert!((1..=most).contains(&flushes()), "{count} pages");
    }
}
