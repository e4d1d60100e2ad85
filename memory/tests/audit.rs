//! The audit finds what is planted in the tables, each time by name.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::*;
use ringfence_testkit::machine::*;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const PRIVATE: u64 = 1 << 9;
const MMIO: u64 = 3 << 9;
const NO_EXECUTE: u64 = 1 << 63;

/// Changes one entry, lets the audit look, and puts the entry back.
#[track_caller]
fn plant(system: &System, entry: u64, value: u64) -> Vec<Finding> {
    system.check();
    let before = system.machine.word(entry);
    system.machine.set_word(entry, value);
    let report = system.space.audit();
    for limit in [1, 7, 60] {
        let kinds = |report: &Report| {
            // A large leaf is looked at in parts, which may be wrong in different ways.
            let frames = std::mem::discriminant(&Finding::NotRam(
                page(&system.machine.window, 0),
                frames(0, 1).start_address(),
            ));
            let kind = |finding: &Finding| match finding {
                Finding::NotRam(..) | Finding::MappedTwice(..) | Finding::MappedButFree(..) => frames,
                other => std::mem::discriminant(other),
            };
            report.findings().map(kind).collect::<std::collections::HashSet<_>>()
        };
        let meanwhile = audit_meanwhile(system, limit);
        assert!(kinds(&meanwhile).is_superset(&kinds(&report)), "{report:?} but {meanwhile:?}");
    }
    system.machine.set_word(entry, before);
    system.check();
    assert!(!report.ok() && report.violations > 0);
    report.findings().copied().collect()
}

/// An audit between whose steps memory is mapped and unmapped, before and behind the page it has come to, and
/// frames are taken and freed; all of it far from what is planted.
fn audit_meanwhile(system: &System, limit: usize) -> Report {
    let (space, window) = (system.space, system.space.pages().window());
    let mut held = Vec::new();
    let mut audit = space.start_audit();
    for step in 0.. {
        if let Some(report) = audit.step_of(limit) {
            return report;
        }
        if step % 2 == 1 {
            held.clear();
            continue;
        }
        for (number, frame) in [(10_000, 4000), (16_000, 4040)] {
            let at = page(&window, number + step % 40);
            let pages = space.pages().allocate(PageRequest { at: Some(at), ..PageRequest::new(3) });
            let at = PhysAddr::new((frame + step % 30) * PAGE);
            let frames = space.frames().allocate(FrameRequest { at, ..FrameRequest::new(3) });
            // The test may have something there, or tables that were tampered with be in the way.
            if let (Ok(pages), Ok(frames)) = (pages, frames) {
                held.extend(space.map_allocated_pages_to(pages, frames, Protection::ReadWrite).ok());
            }
        }
    }
    unreachable!("an audit ends")
}

fn page(pages: &PageRange, index: u64) -> VirtAddr {
    pages.address_at_offset(index * PAGE).unwrap()
}

#[test]
fn aliases() {
    let system = System::small();
    let (a, b) = (
        system.space.allocate(2, Protection::ReadWrite).unwrap(),
        system.space.allocate(1, Protection::ReadWrite).unwrap(),
    );
    let entry = |pages: &PageRange| system.machine.entry(pages.start_address().value(), 0);
    let found = plant(&system, entry(&b), system.machine.word(entry(&a)));
    let frame = PhysAddr::new(system.machine.word(entry(&a)) & 0x000f_ffff_ffff_f000).unwrap();
    assert!(found.contains(&Finding::MappedTwice(page(&b, 0), frame)), "{found:?}");
    // A frame of the free list, of a page table, of the kernel.
    let flags = PRESENT | WRITABLE | NO_EXECUTE | PRIVATE;
    let free = system.space.frames().allocate(FrameRequest::new(1)).unwrap().start_address();
    let found = plant(&system, entry(&b), free.value() | flags);
    assert!(found.contains(&Finding::MappedButFree(page(&b, 0), free)), "{found:?}");
    for frame in [system.pool.start_address(), system.kernel.start_address()] {
        let found = plant(&system, entry(&b), frame.value() | flags);
        assert!(
            found.iter().any(|finding| matches!(finding, Finding::MappedTwice(_, at) if *at == frame)),
            "{found:?}"
        );
    }
}

/// A frame that somebody holds unmapped is mapped by somebody else.
#[test]
fn frames_mapped_behind_the_books() {
    let system = System::small();
    let mapped = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let held = system.space.frames().allocate(FrameRequest::new(1)).unwrap();
    let page_to_add = system.space.pages().allocate(PageRequest::new(1)).unwrap();
    let entry = system.machine.entry(mapped.start_address().value(), 0)
        + 8 * (page_to_add.start_address().value() / PAGE % 512)
        - 8 * (mapped.start_address().value() / PAGE % 512);
    let flags = PRESENT | WRITABLE | NO_EXECUTE | PRIVATE;
    let found = plant(&system, entry, held.start_address().value() | flags);
    assert!(found.contains(&Finding::Count { owner: Owner::Private, booked: 1, found: 2 }), "{found:?}");
    assert!(found.contains(&Finding::Count { owner: Owner::Allocated, booked: 2, found: 1 }), "{found:?}");
    assert!(found.iter().any(|finding| matches!(finding, Finding::TableCount(_))), "{found:?}");
}

#[test]
fn rights_and_flags() {
    let system = System::small();
    let mapped = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let at = mapped.start_address();
    let entry = system.machine.entry(at.value(), 0);
    let value = system.machine.word(entry);
    assert!(plant(&system, entry, value & !NO_EXECUTE).contains(&Finding::WritableExecutable(at)));
    for wrong in [USER, GLOBAL, CACHE_DISABLE, 1 << 11, 1 << 60] {
        assert!(plant(&system, entry, value | wrong).contains(&Finding::UnexpectedFlags(at)), "{wrong:#x}");
    }
    // Accessed and dirty are the processor's own.
    system.machine.set_word(entry, value | 0x60);
    system.check();
    // Kernel text made writable and not executable: no W+X, but not what was mapped either.
    let text = VirtAddr::new(KERNEL_VA).unwrap();
    let entry = system.machine.entry(KERNEL_VA, 0);
    let value = system.machine.word(entry);
    assert!(plant(&system, entry, value | WRITABLE).contains(&Finding::WritableExecutable(text)));
    let found = plant(&system, entry, value | WRITABLE | NO_EXECUTE);
    assert!(found.contains(&Finding::OutsideKnownRanges(text)), "{found:?}");
}

#[test]
fn foreign_places() {
    let system = System::small();
    let held = system.space.frames().allocate(FrameRequest::new(1)).unwrap();
    let frame = held.start_address().value();
    // A leaf next to the kernel image, and one that says it is private.
    let beside = system.machine.entry(KERNEL_VA + 8 * PAGE, 0);
    for tag in [0, PRIVATE] {
        let found = plant(&system, beside, frame | PRESENT | WRITABLE | NO_EXECUTE | tag);
        let at = VirtAddr::new(KERNEL_VA + 8 * PAGE).unwrap();
        assert!(found.contains(&Finding::OutsideKnownRanges(at)), "{found:?}");
    }
    // The loader's window left behind: a 1 GiB leaf in the low half, under a table from outside the pool.
    let root = system.machine.root().value();
    let found = plant(&system, root + 8 * 5, frame | PRESENT | WRITABLE);
    assert!(found.contains(&Finding::ForeignTable(held.start_address())), "{found:?}");
    // The root linked into itself: a recursive slot.
    let found = plant(&system, root + 8 * 6, root | PRESENT | WRITABLE);
    assert!(found.contains(&Finding::TableTwice(system.machine.root())), "{found:?}");
    // A large leaf straight in a table of the pool.
    let level2 = system.machine.word(system.machine.entry(KERNEL_VA, 3)) & 0x000f_ffff_ffff_f000;
    let found = plant(&system, level2, PRESENT | WRITABLE | LARGE | NO_EXECUTE);
    let at = VirtAddr::new(0xffff_ff80_0000_0000).unwrap();
    assert!(found.contains(&Finding::OutsideKnownRanges(at)), "{found:?}");
    assert!(
        found.iter().any(|finding| matches!(finding, Finding::MappedTwice(..) | Finding::MappedButFree(..)))
    );
    // A free page of the window, where a table exists.
    let mapped = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let next = mapped.start_address().value() + PAGE;
    let entry = system.machine.entry(next, 0);
    let found = plant(&system, entry, frame | PRESENT | WRITABLE | NO_EXECUTE | PRIVATE);
    assert!(found.contains(&Finding::PageFree(VirtAddr::new(next).unwrap())), "{found:?}");
}

#[test]
fn registers() {
    let system = System::small();
    unsafe { system.space.offer_mmio(frames(4096, 2)).unwrap() };
    let bar = system.space.claim_mmio(frames(4096, 2), None).unwrap();
    let entry = system.machine.entry(bar.start_address().value(), 0);
    let value = system.machine.word(entry);
    // Another register than claimed; cached; RAM; registers as if they were memory.
    let found = plant(&system, entry, value + 3 * PAGE);
    assert_eq!(found, [Finding::UnclaimedMmio(bar.start_address())]);
    assert_eq!(
        plant(&system, entry, value & !CACHE_DISABLE),
        [Finding::UnexpectedFlags(bar.start_address())]
    );
    let held = system.space.frames().allocate(FrameRequest::new(1)).unwrap();
    let found = plant(&system, entry, held.start_address().value() | value & !0x000f_ffff_ffff_f000);
    assert_eq!(found, [Finding::UnclaimedMmio(bar.start_address())]);
    let mapped = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let entry = system.machine.entry(mapped.start_address().value(), 0);
    let found = plant(
        &system,
        entry,
        frames(4096, 1).start_address().value() | system.machine.word(entry) & !0x000f_ffff_ffff_f000,
    );
    let register = frames(4096, 1).start_address();
    assert!(found.contains(&Finding::NotRam(mapped.start_address(), register)), "{found:?}");
    let tag = system.machine.word(entry) & !MMIO | MMIO;
    assert!(plant(&system, entry, tag).contains(&Finding::UnclaimedMmio(mapped.start_address())));
}

#[test]
fn lost_and_wrong_tables() {
    let system = System::small();
    let mapped = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let at = mapped.start_address().value();
    // A leaf that vanished, a table that vanished.
    let found = plant(&system, system.machine.entry(at, 0), 0);
    assert!(found.contains(&Finding::Count { owner: Owner::Private, booked: 1, found: 0 }), "{found:?}");
    let found = plant(&system, system.machine.entry(at, 1), 0);
    assert!(found.iter().any(|finding| matches!(finding, Finding::Tables { .. })), "{found:?}");
    // Something that is not present, but not empty either.
    let found = plant(&system, system.machine.entry(at + PAGE, 0), 0x1000);
    assert!(
        found.iter().any(|finding| matches!(finding, Finding::TableCount(_) | Finding::ForeignTable(_))),
        "{found:?}"
    );
    // The processor on other tables.
    let root = system.machine.root();
    let other = PhysAddr::new(9 * PAGE).unwrap();
    unsafe { system.machine.load_root(other) };
    let report = system.space.audit();
    unsafe { system.machine.load_root(root) };
    assert_eq!(report.findings().copied().collect::<Vec<_>>(), [Finding::WrongRoot(other)]);
    system.check();
}

/// The audit looks at what is linked, even if it is not in use, and the pool stays as it was.
#[test]
fn free_tables() {
    let system = System::small();
    let map = |number| {
        let at = Some(page(&system.machine.window, number));
        let pages = system.space.pages().allocate(PageRequest { at, ..PageRequest::new(1) }).unwrap();
        system.space.map_allocated_pages(pages, Protection::ReadWrite).unwrap()
    };
    let mut held = vec![map(0)];
    let gone = map(512);
    let (entry, next) = [512, 1024]
        .map(|number| system.machine.entry(page(&system.machine.window, number).value(), 1))
        .into();
    let table = system.machine.word(entry);
    drop(gone);
    assert_eq!(system.machine.word(entry), 0);
    system.machine.set_word(next, table);
    let report = system.space.audit();
    assert!(report.findings().any(|finding| matches!(finding, Finding::Tables { .. })), "{report:?}");
    system.machine.set_word(next, 0);
    // The next two tables, one of which was linked.
    held.extend([512, 1024].map(map));
    system.check();
}

/// Changes a bit in the storage of the frame allocator, lets the audit look, and puts it back.
#[track_caller]
fn plant_bit(system: &System, word: usize, bit: u64) -> Vec<Finding> {
    system.check();
    let at = unsafe { system.storage.add(word) };
    let flip = || unsafe { at.write_volatile(at.read_volatile() ^ 1 << bit) };
    flip();
    let report = system.space.audit();
    flip();
    system.check();
    report.findings().copied().collect()
}

/// Free blocks that overlap, within one allocator or between the two, and such as are no RAM.
#[test]
fn free_lists() {
    let system = System::small();
    let words = FrameAllocator::storage_words(4096);
    let (ram, buddy) = (words - 2 * 64, words / 2 - 64);
    // Single frames are free and in use, of both kinds.
    let _frames = [0; 2].map(|_| system.space.frames().allocate(FrameRequest::new(1)).unwrap());
    let alone = PhysAddr::new(1100 * PAGE);
    drop(system.space.allocate_dma(FrameRequest { at: alone, ..FrameRequest::new(1) }).unwrap());
    system.check();
    let at = |frame: u64| frames(frame, 1).start_address();
    // Frame 2048 begins a block; 2049 is said to be one as well. The count of free frames is not right
    // either.
    let found = plant_bit(&system, 2049 / 64, 2049 % 64);
    assert!(found.contains(&Finding::FreeTwice(at(2048))), "{found:?}");
    // Frame 0 is the firmware's.
    let found = plant_bit(&system, 0, 0);
    let free = system.space.frames().count(Owner::Free);
    assert!(
        found.contains(&Finding::Count { owner: Owner::Free, booked: free, found: free + 1 }),
        "{found:?}"
    );
    // Frame 1100 is the arena's; 1101, which is free, is said to be as well.
    let found = plant_bit(&system, buddy + 1101 / 64, 1101 % 64);
    assert!(found.contains(&Finding::Count { owner: Owner::DmaIdle, booked: 1, found: 2 }), "{found:?}");
    assert!(found.contains(&Finding::FreeTwice(at(1101))), "{found:?}");
    // Not RAM: a free frame, and one that the kernel is in.
    let found = plant_bit(&system, ram + 3000 / 64, 3000 % 64);
    assert!(found.iter().any(|finding| matches!(finding, Finding::FreeTwice(_))), "{found:?}");
    assert!(
        found.contains(&Finding::Count { owner: Owner::Reserved, booked: 4096, found: 4095 }),
        "{found:?}"
    );
    let found = plant_bit(&system, ram, 9);
    assert!(found.contains(&Finding::NotRam(VirtAddr::new(KERNEL_VA + PAGE).unwrap(), at(9))), "{found:?}");
}

/// DMA memory is as the private kind: not free, and what is booked.
#[test]
fn dma_frames() {
    let system = System::small();
    let dma = system.space.allocate_dma(FrameRequest::new(1)).unwrap();
    let entry = system.machine.entry(dma.start_address().value(), 0);
    let value = system.machine.word(entry);
    // The next frame is the arena's, and idle.
    let idle = PhysAddr::new(dma.physical_address().value() + PAGE).unwrap();
    let found = plant(&system, entry, value + PAGE);
    assert!(found.contains(&Finding::MappedButFree(dma.start_address(), idle)), "{found:?}");
    let found = plant(&system, entry, 0);
    assert!(found.contains(&Finding::Count { owner: Owner::Dma, booked: 1, found: 0 }), "{found:?}");
    // The report says who has what.
    let report = system.space.audit();
    assert_eq!(report.frames, system.space.frames().counts());
    assert_eq!((report.tables, report.leaves), (system.tables_in_use(), 8 + 128 + 1));
}

#[test]
fn many_findings_are_counted_not_kept() {
    let system = System::small();
    let mapped = system.space.allocate(100, Protection::ReadWrite).unwrap();
    let entry = system.machine.entry(mapped.start_address().value(), 0);
    for index in 0..100 {
        system.machine.set_word(entry + index * 8, system.machine.word(entry + index * 8) & !NO_EXECUTE);
    }
    let report = system.space.audit();
    assert_eq!((report.violations, report.findings().count()), (100, 16));
    let text = report.findings().next().unwrap().to_string();
    assert!(text.contains("writable and executable"), "{text}");
}

/// The books change together with what they count: whenever somebody else looks, they add up and agree with
/// the tables.
#[test]
fn books_add_up_at_every_moment() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let system = System::small();
    let (space, done) = (system.space, AtomicBool::new(false));
    std::thread::scope(|scope| {
        for size in [1, 3, 600] {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Relaxed) {
                    // The others may have left no run of so many frames.
                    let mapped = space.allocate(size, Protection::ReadWrite).ok();
                    drop(space.frames().allocate(FrameRequest::new(size)));
                    drop((mapped, space.allocate_dma(FrameRequest::new(size))));
                }
            });
        }
        for _ in 0..5_000 {
            let total = space.frames().counts().iter().map(|(_, count)| count).sum::<usize>();
            let report = space.audit();
            if (total, report.ok(), space.frames().total()) != (4096, true, 4096) {
                done.store(true, Relaxed);
                panic!("{total}: {:?}", report.findings().collect::<Vec<_>>());
            }
        }
        done.store(true, Relaxed);
    });
    system.check();
}

/// A region whose closing was cut short, as here by a panic, leaves a window to memory that is no region's.
/// It stays as long as the window.
#[test]
fn a_window_without_its_region_is_found() {
    let system = System::small();
    let kernel = Box::leak(Box::new(SystemPlatform { space: system.space, bus: 0 }));
    let windows = DmaWindows::for_model(kernel, DeviceId(5)).unwrap();
    let [lost, kept] = [(); 2].map(|()| windows.allocate(4096).unwrap());
    let view = windows.readable().unwrap();
    let cut_short = std::panic::AssertUnwindSafe(|| ringfence_memory::host::interrupt(|| drop(lost)));
    assert!(std::panic::catch_unwind(cut_short).is_err());
    assert!(system.space.audit().ok(), "the view still has its memory");
    drop(view);
    let report = system.space.audit();
    let found: Vec<_> = report.findings().copied().collect();
    assert_eq!(found, [Finding::WindowWithoutRegion(DeviceId(5))]);
    drop(kept);
}
