//! What an audit says of each leaf and link that must not be, to the last page and frame.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::*;
use ringfence_testkit::machine::*;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const LARGE: u64 = 1 << 7;
const PRIVATE: u64 = 1 << 9;
const MMIO: u64 = 3 << 9;
const UNCACHED: u64 = 3 << 3;
const NO_EXECUTE: u64 = 1 << 63;
const DATA: u64 = PRESENT | WRITABLE | NO_EXECUTE;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Of the kernel image, and of the pool.
const KERNEL: usize = 8 + 32;

/// The window has a page more than a large leaf.
fn system() -> System {
    System::new(Config {
        ram_frames: 2048,
        mmio_frames: 1024,
        pool_frames: 32,
        window_pages: 1025,
        ..Config::default()
    })
}

fn address(value: u64) -> VirtAddr {
    VirtAddr::new(value).unwrap()
}

/// Pages of the window, from number `page` on, mapped to new memory.
fn map(system: &System, page: u64, count: usize) -> MappedPages<Private> {
    let at = system.machine.window.address_at_offset(page * PAGE);
    let pages = system.space.pages().allocate(PageRequest { at, ..PageRequest::new(count) }).unwrap();
    system.space.map_allocated_pages(pages, Protection::ReadWrite).unwrap()
}

/// What an audit finds while these entries have other values.
#[track_caller]
fn found(system: &System, changes: &[(u64, u64)]) -> Vec<Finding> {
    system.check();
    let swap = |changes: &[(u64, u64)]| -> Vec<_> {
        changes
            .iter()
            .map(|(entry, value)| {
                let before = system.machine.word(*entry);
                system.machine.set_word(*entry, *value);
                (*entry, before)
            })
            .collect()
    };
    let mut before = swap(changes);
    let report = system.space.audit();
    before.reverse();
    swap(&before);
    system.check();
    assert!(!report.ok());
    report.findings().copied().collect()
}

/// The table that holds an entry.
fn table(entry: u64) -> PhysAddr {
    PhysAddr::new(entry & !(PAGE - 1)).unwrap()
}

#[test]
fn kernel_leaves() {
    let system = system();
    let entry = |page| system.machine.entry(KERNEL_VA + page * PAGE, 0);
    let [first, second] = [0, 1].map(|page| system.machine.word(entry(page)));
    // Kernel memory need not be mapped.
    assert_eq!(found(&system, &[(entry(0), 0)]), [Finding::TableCount(table(entry(0)))]);
    // Somebody's memory, mapped as the kernel's.
    let held = system.space.frames().allocate(FrameRequest::new(1)).unwrap();
    let beside = address(KERNEL_VA + 8 * PAGE);
    assert_eq!(
        found(&system, &[(entry(8), held.start_address().value() | DATA)]),
        [
            Finding::TableCount(table(entry(0))),
            Finding::OutsideKnownRanges(beside),
            // The firmware's frame counts here, too.
            Finding::Count { owner: Owner::Allocated, booked: 2, found: 1 },
            Finding::Count { owner: Owner::Kernel, booked: KERNEL, found: KERNEL + 1 },
        ]
    );
    // Two pages changed places.
    let [text, next] = [0, 1].map(|page| Finding::OutsideKnownRanges(address(KERNEL_VA + page * PAGE)));
    assert_eq!(found(&system, &[(entry(0), second), (entry(1), first)]), [text, next]);
    // Other rights than were given.
    assert_eq!(found(&system, &[(entry(0), first | NO_EXECUTE)]), [text]);
    // A large leaf begins as the pool's mapping does, and goes further.
    let (pool, start) = (KERNEL_VA + 4096 * PAGE, system.pool.start_address().value());
    let outside = Finding::OutsideKnownRanges(address(pool));
    let large = (system.machine.entry(pool, 1), start | DATA | LARGE);
    assert!(found(&system, &[large]).contains(&outside));
}

#[test]
fn leaves_about_the_window() {
    let system = system();
    let start = system.machine.window.start_address().value();
    // Its last page is as good as the others.
    let _last = map(&system, 1024, 1);
    let _large = map(&system, 512, 512);
    system.check();
    // A large leaf begins with that page, and goes further.
    let last = start + 1024 * PAGE;
    let [entry, to_table] = [1, 2].map(|level| system.machine.entry(last, level));
    let large = system.machine.word(system.machine.entry(last - PAGE, 1));
    let all = found(&system, &[(entry, large)]);
    assert!(all.contains(&Finding::OutsideKnownRanges(address(last))), "{all:?}");
    assert!(!all.contains(&Finding::PageFree(address(last))), "{all:?}");
    // All of it 512 GiB lower.
    let (root, link) = (system.machine.entry(last, 3), system.machine.word(to_table) & FRAME);
    assert!(root & (PAGE - 1) > 0 && link > 0);
    let all = found(&system, &[(root - 8, system.machine.word(root)), (root, 0)]);
    let [first, second] = [512, 1024].map(|page| address(start + page * PAGE - (1 << 39)));
    assert_eq!(all, [Finding::OutsideKnownRanges(first), Finding::OutsideKnownRanges(second)]);
}

/// A leaf must have all of its pages from one claim: the first and the last say so.
#[test]
fn large_leaves_of_registers() {
    let system = system();
    let halves = [2048, 2048 + 256].map(|start| frames(start, 256));
    halves.iter().for_each(|half| unsafe { system.space.offer_mmio(*half).unwrap() });
    for half in halves {
        let _before =
            (half == halves[1]).then(|| system.space.pages().allocate(PageRequest::new(256)).unwrap());
        let claimed = system.space.claim_mmio(half, None).unwrap();
        let page = claimed.start_address().value() & !(512 * PAGE - 1);
        let large = halves[0].start_address().value() | DATA | LARGE | MMIO | UNCACHED;
        let all = found(&system, &[(system.machine.entry(page, 1), large)]);
        assert!(all.contains(&Finding::UnclaimedMmio(address(page))), "{all:?}");
        // Registers are not executed, even where nobody writes to them.
        let entry = system.machine.entry(claimed.start_address().value(), 0);
        let code = system.machine.word(entry) & !(NO_EXECUTE | WRITABLE);
        assert_eq!(found(&system, &[(entry, code)]), [Finding::UnexpectedFlags(claimed.start_address())]);
    }
}

/// A frame that is another's, or nobody's.
#[test]
fn frames_that_are_not_the_leafs() {
    let system = system();
    let mapped = [0, 1].map(|page| map(&system, page, 1));
    let dma = system.space.allocate_dma(FrameRequest::new(1)).unwrap();
    let [first, second, third] = [&*mapped[0], &*mapped[1], &*dma].map(|pages| {
        let entry = system.machine.entry(pages.start_address().value(), 0);
        let value = system.machine.word(entry);
        (pages.start_address(), entry, PhysAddr::new(value & FRAME).unwrap())
    });
    let moved = |frame: PhysAddr| found(&system, &[(second.1, frame.value() | DATA | PRIVATE)]);
    assert_eq!(moved(first.2), [Finding::MappedTwice(second.0, first.2)]);
    let free = system.space.frames().allocate(FrameRequest::new(1)).unwrap().start_address();
    // The next one of the arena is idle.
    let idle = third.2.checked_add(PAGE).unwrap();
    for frame in [free, idle] {
        assert_eq!(moved(frame), [Finding::MappedButFree(second.0, frame)]);
    }
    let count = |owner, booked, found| Finding::Count { owner, booked, found };
    for (entry, owner, booked) in [(third.1, Owner::Dma, 1), (first.1, Owner::Private, 2)] {
        assert_eq!(
            found(&system, &[(entry, 0)])[1..],
            [count(owner, booked, booked - 1), count(Owner::Allocated, 1, 2)]
        );
    }
}

/// However small the steps are in which a leaf is looked at, its frames are blamed once.
#[test]
fn one_finding_for_each_leaf() {
    let system = system();
    let large = map(&system, 0, 512);
    let entry = system.machine.entry(large.start_address().value(), 1);
    let sound = system.machine.word(entry);
    let at = PhysAddr::new(1 << 40).unwrap();
    system.machine.set_word(entry, sound & !FRAME | at.value());
    let mut audit = system.space.start_audit();
    let report = std::iter::repeat_with(|| audit.step_of(1)).flatten().next().unwrap();
    system.machine.set_word(entry, sound);
    assert_eq!(report.findings().next(), Some(&Finding::NotRam(large.start_address(), at)));
    let blamed = report.findings().filter(|finding| matches!(finding, Finding::NotRam(..))).count();
    assert_eq!((blamed, report.leaves), (1, KERNEL + 1));
}

/// What is not present links nothing, even if it names a table.
#[test]
fn links_that_are_not_present() {
    let system = system();
    let mapped = map(&system, 0, 1);
    let link = system.machine.entry(mapped.start_address().value(), 1);
    let value = system.machine.word(link);
    let foreign = Finding::ForeignTable(PhysAddr::new(value & FRAME).unwrap());
    let lost = Finding::Count { owner: Owner::Private, booked: 1, found: 0 };
    let all = found(&system, &[(link, value & !PRESENT)]);
    assert!(all.contains(&foreign) && all.contains(&lost), "{all:?}");
    // In a table of the lowest level.
    let entry = system.machine.entry(mapped.start_address().value(), 0);
    let all = found(&system, &[(entry, value & !PRESENT)]);
    assert!(all.contains(&foreign) && all.contains(&lost), "{all:?}");
}

/// A table is looked at where it is linked first; the entry that links it again is one too many, too.
#[test]
fn links_to_the_same_table() {
    let system = system();
    let mapped = map(&system, 0, 1);
    let link = system.machine.entry(mapped.start_address().value(), 1);
    let value = system.machine.word(link);
    let twice = Finding::TableTwice(PhysAddr::new(value & FRAME).unwrap());
    assert_eq!(found(&system, &[(link + 8, value)]), [Finding::TableCount(table(link)), twice]);
}

/// No leaf of memory has these: for user mode, uncached, another line of the PAT, global, not ours.
#[test]
fn attributes() {
    let system = system();
    let mapped = map(&system, 0, 1);
    let entry = system.machine.entry(mapped.start_address().value(), 0);
    let value = system.machine.word(entry);
    for bit in [2, 3, 4, 7, 8, 11, 52, 62] {
        let all = found(&system, &[(entry, value | 1 << bit)]);
        assert_eq!(all, [Finding::UnexpectedFlags(mapped.start_address())], "{bit}");
    }
}

/// Pages and frames whose number is the last that there is have an address.
#[test]
fn last_numbers() {
    let system = System::new(Config { window_pages: 1 << 18, ..Config::default() });
    let mapped = map(&system, (1 << 18) - 1, 1);
    let at = mapped.start_address().value();
    let [link, top] = [at, u64::MAX].map(|address| system.machine.entry(address, 2));
    let leaf = system.machine.entry(at, 0);
    // A gigabyte of pages goes to the end of all addresses; the last of them is mapped to the last frame.
    let changes = [(top, system.machine.word(link)), (link, 0), (leaf, FRAME | DATA | PRIVATE)];
    let last = address(!(PAGE - 1));
    let all = found(&system, &changes);
    assert!(all.contains(&Finding::OutsideKnownRanges(last)), "{all:?}");
    assert!(all.contains(&Finding::NotRam(last, PhysAddr::new(FRAME).unwrap())), "{all:?}");
}

/// Of tables that the processor does not use, an audit says nothing.
#[test]
fn another_root() {
    let system = system();
    let (root, other) = (system.machine.root(), PhysAddr::new(FRAME).unwrap());
    for limit in [1, usize::MAX] {
        unsafe { system.machine.load_root(other) };
        let mut audit = system.space.start_audit();
        let report = std::iter::repeat_with(|| audit.step_of(limit)).flatten().next().unwrap();
        unsafe { system.machine.load_root(root) };
        assert_eq!(report.findings().copied().collect::<Vec<_>>(), [Finding::WrongRoot(other)]);
        assert_eq!((report.tables, report.leaves, report.total), (0, 0, 2048));
        assert_eq!(report.frames, system.space.frames().counts());
    }
    system.check();
}
