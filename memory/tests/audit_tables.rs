//! Page tables that come and go right where an audit has come to.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::*;
use ringfence_testkit::machine::*;

/// Goes on with an audit that has just begun, in steps of one entry when it has cleared its marks; `false` if
/// it ends before.
fn steps(audit: &mut Audit<'_>, count: usize) -> bool {
    (0..3).all(|_| audit.step().is_none()) && (0..count).all(|_| audit.step_of(1).is_none())
}

fn finish(audit: &mut Audit<'_>) -> Report {
    loop {
        if let Some(report) = audit.step() {
            return report;
        }
    }
}

/// Pages of the window, mapped to new memory.
fn map(system: &System, page: u64, count: usize) -> MappedPages<Private> {
    let at = system.machine.window.address_at_offset(page * PAGE);
    let pages = system.space.pages().allocate(PageRequest { at, ..PageRequest::new(count) }).unwrap();
    system.space.map_allocated_pages(pages, Protection::ReadWrite).unwrap()
}

/// After how many steps an audit has looked at the first entry of a mapping: what is planted there is found
/// before, and not any more from then on.
fn steps_to(system: &System, mapped: &PageRange) -> usize {
    let at = mapped.start_address().value();
    let entry = system.machine.entry(at, system.machine.walk(at).unwrap().level);
    let found = |stop| {
        let mut audit = system.space.start_audit();
        if !steps(&mut audit, stop) {
            return false;
        }
        let before = system.machine.word(entry);
        system.machine.set_word(entry, before | 4);
        let report = finish(&mut audit);
        system.machine.set_word(entry, before);
        !report.ok()
    };
    (0..13).rev().fold(0, |steps, bit| if found(steps | 1 << bit) { steps | 1 << bit } else { steps }) + 1
}

/// What happens at a page (an offset into 512) when the audit has stopped.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Nothing more than that everything there is unmapped.
    Unmap,
    /// One page is mapped, where there is no table any more.
    Map(u64),
    /// A large leaf is mapped, then broken.
    MapAndSplit(u64),
    /// The leaf that is there is broken.
    Split(u64),
}

fn happens(
    system: &System,
    region: u64,
    there: MappedPages<Private>,
    then: Then,
) -> Vec<MappedPages<Private>> {
    let split = |mapped: MappedPages<Private>, page: u64| {
        let middle = mapped.address_at_offset(page * PAGE).unwrap();
        assert_eq!(system.machine.walk(middle.value()).unwrap().level, 1);
        let (head, tail) = mapped.split(middle).unwrap();
        vec![head, tail]
    };
    if let Then::Split(page) = then {
        return split(there, page);
    }
    drop(there);
    match then {
        Then::Map(page) => vec![map(system, region * 512 + page, 1)],
        Then::MapAndSplit(page) => split(map(system, region * 512, 512), page),
        Then::Unmap | Then::Split(_) => Vec::new(),
    }
}

/// Wherever the walk stops, before, in and behind the tables that change: each of them is counted once.
#[test]
fn tables_change_where_the_walk_is() {
    let cases = [
        (8, Then::Unmap),
        (8, Then::Map(0)),
        (8, Then::Map(1)),
        (8, Then::Map(6)),
        (8, Then::Map(511)),
        (8, Then::MapAndSplit(1)),
        (8, Then::MapAndSplit(300)),
        (512, Then::Unmap),
        (512, Then::Map(7)),
        (512, Then::Split(1)),
        (512, Then::Split(300)),
        (512, Then::Split(511)),
    ];
    let system = System::new(Config { ram_frames: 2048, window_pages: 2048, ..Config::default() });
    // Alone, so that all tables up to the root go; and with something behind or before.
    for (region, other) in [(2, None), (1, Some(1600)), (2, Some(3))] {
        let _other = other.map(|page| map(&system, page, 1));
        for (count, then) in cases {
            let reached = steps_to(&system, &map(&system, region * 512, count));
            for stop in reached - 3..reached + 12 {
                let there = map(&system, region * 512, count);
                let mut audit = system.space.start_audit();
                assert!(steps(&mut audit, stop), "there are kernel pages behind");
                let _held = happens(&system, region, there, then);
                let report = finish(&mut audit);
                let findings: Vec<_> = report.findings().collect();
                assert!(
                    report.ok(),
                    "{then:?} in {region} {} steps on: {findings:?}",
                    stop as i64 - reached as i64
                );
            }
            system.check();
        }
    }
}

/// A frame whose page was looked at may be mapped elsewhere meanwhile; one that comes to such a page is
/// noted.
#[test]
fn frames_move_behind_the_walk() {
    let system = System::new(Config { ram_frames: 2048, window_pages: 2048, ..Config::default() });
    let (first, second) = (map(&system, 3, 1), map(&system, 600, 1));
    let ahead = system.machine.window.address_at_offset(601 * PAGE);
    let ahead = system.space.pages().allocate(PageRequest { at: ahead, ..PageRequest::new(1) }).unwrap();
    let reached = steps_to(&system, &first);
    // From the first table to the second.
    let mut audit = system.space.start_audit();
    assert!(steps(&mut audit, reached + 10));
    let (pages, mut frames) = first.unmap_into_parts().unwrap();
    let moved = system.space.map_allocated_pages_to(ahead, frames.remove(0), Protection::ReadWrite).unwrap();
    assert!(finish(&mut audit).ok());
    drop(pages);
    // The second table maps what has come to the first.
    let (anchor, entry) = (map(&system, 3, 1), system.machine.entry(second.start_address().value(), 0));
    let sound = system.machine.word(entry);
    let mut audit = system.space.start_audit();
    assert!(steps(&mut audit, reached + 10));
    let come = map(&system, 4, 1);
    let frame = system.machine.word(system.machine.entry(come.start_address().value(), 0));
    system.machine.set_word(entry, frame);
    let report = finish(&mut audit);
    system.machine.set_word(entry, sound);
    let frame = PhysAddr::new(frame & 0x000f_ffff_ffff_f000).unwrap();
    let found: Vec<_> = report.findings().copied().collect();
    assert_eq!(found, [Finding::MappedTwice(second.start_address(), frame)]);
    drop((anchor, moved));
    system.check();
}

/// Tables that come in the lowest place of all before the walk does are looked at by it, also if it had been
/// further before the audit began again.
#[test]
fn tables_come_before_the_walk() {
    let low = PageRange::new(VirtAddr::new(1 << 30).unwrap(), 512).unwrap();
    let system =
        System::new(Config { ram_frames: 1024, pool_frames: 32, window: Some(low), ..Config::default() });
    unsafe { system.space.offer_mmio(frames(1024, 1)).unwrap() };
    for again in [false, true] {
        // 16 words of marks and at least five tables are forgotten; then come free blocks, then the walk.
        for stop in 0..80 {
            let mut audit = system.space.start_audit();
            if again {
                assert!((0..60).all(|_| audit.step_of(1).is_none()));
                assert_eq!(unsafe { system.space.frames().add(frames(0, 1), Owner::Reserved) }, 0);
            }
            assert!((0..stop).all(|_| audit.step_of(1).is_none()));
            let _claimed = system.space.claim_mmio(frames(1024, 1), None).unwrap();
            let report = finish(&mut audit);
            assert!(report.ok(), "after {stop} steps, {again}: {report:?}");
        }
    }
}
