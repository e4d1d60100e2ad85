//! An audit in steps, with everything else going on between them.
#![allow(clippy::undocumented_unsafe_blocks)]

use proptest::prelude::*;
use ringfence_memory::*;
use ringfence_testkit::machine::*;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// What somebody holds.
#[allow(dead_code, reason = "some are only held")]
enum Held {
    Private(MappedPages<Private>),
    Dma(MappedPages<Dma>),
    Parts(AllocatedPages, Vec<AllocatedFrames>),
    Mmio(MappedPages<Mmio>),
    Region(DmaRegion),
}

#[derive(Clone, Debug)]
enum Op {
    Map(usize),
    MapDma(usize),
    Frames(usize),
    Claim,
    Region(usize),
    /// Ends the life of the device: nothing is quarantined any more.
    Reset,
    Drop(usize),
    /// Cuts a mapping in two, or changes what becomes of it.
    Change(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let size = || prop_oneof![4 => 1..9usize, 2 => 1..600usize, 1 => Just(512usize), 1 => 1000..1500usize];
    prop_oneof![
        4 => size().prop_map(Op::Map),
        2 => size().prop_map(Op::MapDma),
        1 => size().prop_map(Op::Frames),
        1 => Just(Op::Claim),
        2 => (1..5usize).prop_map(Op::Region),
        1 => Just(Op::Reset),
        6 => any::<usize>().prop_map(Op::Drop),
        4 => (any::<usize>(), any::<usize>()).prop_map(|(which, how)| Op::Change(which, how)),
    ]
}

struct World {
    system: System,
    windows: DmaWindows,
    held: Vec<Held>,
}

impl World {
    fn new() -> Self {
        let system = System::new(Config { ram_frames: 8192, window_pages: 1 << 14, ..Config::default() });
        unsafe { system.space.offer_mmio(frames(8192, 3)).unwrap() };
        let windows = system.model();
        Self { system, windows, held: Vec::new() }
    }

    fn apply(&mut self, op: &Op) {
        let space = self.system.space;
        let new = match *op {
            Op::Map(pages) => space.allocate(pages, Protection::ReadWrite).ok().map(Held::Private),
            Op::MapDma(pages) => space.allocate_dma(FrameRequest::new(pages)).ok().map(Held::Dma),
            Op::Frames(count) => {
                let frames = space.frames().allocate(FrameRequest::new(count)).ok();
                frames.map(|frames| Held::Parts(AllocatedPages::empty(), vec![frames]))
            }
            Op::Claim => space.claim_mmio(frames(8192, 3), None).ok().map(Held::Mmio),
            Op::Region(pages) => self.windows.allocate(pages * 4096).ok().map(Held::Region),
            Op::Reset => {
                self.windows.reset_model().unwrap();
                None
            }
            Op::Drop(which) => {
                if !self.held.is_empty() {
                    drop(self.held.swap_remove(which % self.held.len()));
                }
                None
            }
            Op::Change(which, how) => {
                if !self.held.is_empty() {
                    let held = self.held.swap_remove(which % self.held.len());
                    self.change(held, how);
                }
                None
            }
        };
        self.held.extend(new);
    }

    fn change(&mut self, held: Held, how: usize) {
        let space = self.system.space;
        match held {
            Held::Private(mut pages) if how.is_multiple_of(3) => {
                let flags =
                    [Protection::ReadOnly, Protection::ReadWrite, Protection::ReadExecute][how / 3 % 3];
                pages.remap(flags);
                self.held.push(Held::Private(pages));
            }
            Held::Private(pages) if how % 3 == 1 => {
                let (pages, frames) = pages.unmap_into_parts().unwrap();
                self.held.push(Held::Parts(pages, frames));
            }
            Held::Private(pages) => {
                let offset = (how / 3 % pages.size_in_pages()) as u64 * PAGE;
                let at = pages.address_at_offset(offset).unwrap();
                match pages.split(at) {
                    Ok((head, tail)) => self
                        .held
                        .extend([head, tail].into_iter().filter(|part| !part.is_empty()).map(Held::Private)),
                    Err(pages) => self.held.push(Held::Private(pages)),
                }
            }
            // The device may use it from here on, so that it is quarantined at once.
            Held::Region(region) => {
                self.windows.publish(region.address(0).unwrap()).unwrap();
            }
            // Mapped again, as far as pages and frames fit together.
            Held::Parts(pages, mut frames)
                if frames.len() == 1 && frames[0].size_in_frames() == pages.size_in_pages() =>
            {
                let mapped = space.map_allocated_pages_to(pages, frames.remove(0), Protection::ReadWrite);
                self.held.extend(mapped.ok().map(Held::Private));
            }
            other => self.held.push(other),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is done by the rules between the steps, whatever their size: no audit finds anything.
    #[test]
    fn nothing_is_found_in_a_sound_system(
        before in prop::collection::vec(op(), 0..20),
        ops in prop::collection::vec((prop_oneof![1 => 1..20usize, 3 => 20..400usize], op()), 1..150),
    ) {
        let mut world = World::new();
        before.iter().for_each(|op| world.apply(op));
        let mut audit = world.system.space.start_audit();
        let mut reports = 0;
        for (limit, op) in ops.iter().cycle().take(1000) {
            if let Some(report) = audit.step_of(*limit) {
                let findings: Vec<String> = report.findings().map(|finding| finding.to_string()).collect();
                prop_assert!(report.ok(), "after {reports} reports: {findings:#?}");
                prop_assert_eq!(report.total, 8192);
                reports += 1;
                audit = world.system.space.start_audit();
            }
            world.apply(op);
        }
        prop_assert!(reports > 0 || ops.iter().all(|(limit, _)| *limit < 20), "no audit came to an end");
        // The one that is under way ends, too, and so does the next.
        world.system.check();
        world.held.clear();
        world.system.check();
    }
}

/// No step does much more than it should, however large the machine and its leaves are.
#[test]
#[cfg_attr(ringfence_tsan, ignore = "one thread, for minutes")]
fn steps_are_bounded() {
    let large = Config { ram_frames: 1 << 20, window_pages: 1 << 20, pool_frames: 4096, ..Config::default() };
    let system = System::new(large);
    let gib = system.space.allocate(1 << 18, Protection::ReadWrite).unwrap();
    assert_eq!(system.machine.walk(gib.start_address().value()).unwrap().level, 2);
    let mut many: Vec<_> =
        (0..30_000).map(|_| system.space.allocate(1, Protection::ReadWrite).unwrap()).collect();
    let mut keep = false;
    many.retain(|_| {
        keep = !keep; // so that there are as many free blocks
        keep
    });
    for limit in [1, 100, 2048] {
        let mut audit = system.space.start_audit();
        let (mut total, mut steps) = (0, 0);
        let report = loop {
            if let Some(report) = audit.step_of(limit) {
                break report;
            }
            assert!(audit.work() <= limit + 250, "{} of {limit}", audit.work());
            (total, steps) = (total + audit.work(), steps + 1);
        };
        assert!(report.ok() && report.leaves > 15_000);
        // Two bitmaps of 16384 words, a gigabyte once more, a leaf or a free block for each mapping, and
        // tables.
        assert!((200_000..600_000).contains(&total), "{total} in {steps} steps");
        assert!(steps >= total / (limit + 250), "{steps}");
    }
    system.check();
}

/// Windows make no step longer, however many there are; each is looked at once.
#[test]
fn steps_through_windows_are_bounded() {
    let system = System::small();
    let windows = system.model();
    let regions: Vec<_> = (0..300).map(|page| windows.allocate(page % 4 * 4096 + 1).unwrap()).collect();
    for limit in [1, 20, 21, 100] {
        let mut audit = system.space.start_audit();
        let report = loop {
            if let Some(report) = audit.step_of(limit) {
                break report;
            }
            assert!(audit.work() <= limit + 250, "{} of {limit}", audit.work());
        };
        assert!(report.ok());
        assert_eq!(report.windows, (300, regions.iter().map(|region| region.len() / 4096).sum()));
    }
}

/// Who asks while an audit is under way gets the next one, and shares it.
#[test]
fn requests_share_an_audit() {
    let system = System::small();
    let mapped = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let entry = system.machine.entry(mapped.start_address().value(), 0);
    let sound = system.machine.word(entry);
    let finish = |audit: &mut Audit<'_>| {
        let mut steps = 1;
        loop {
            match audit.step_of(50) {
                Some(report) => break (steps, report),
                None => steps += 1,
            }
        }
    };
    let (whole, _) = finish(&mut system.space.start_audit());
    let mut early = system.space.start_audit();
    (0..whole - 3).for_each(|_| assert!(early.step_of(50).is_none()));
    // The walk is past this page.
    system.machine.set_word(entry, sound & !(1 << 63));
    let mut late = [system.space.start_audit(), system.space.start_audit()];
    let (_, report) = finish(&mut early);
    assert!(report.ok());
    let (steps, report) = finish(&mut late[0]);
    assert!(report.violations == 1 && steps <= whole + 1);
    system.machine.set_word(entry, sound);
    // The second finds it done.
    assert_eq!(finish(&mut late[1]).0, 1);
    let mut next = system.space.start_audit();
    assert!(finish(&mut next).1.ok());
    assert!(finish(&mut early).1.ok(), "a later report is as good");
}

/// An audit begins again when RAM is made known meanwhile.
#[test]
fn ram_may_be_added_between_steps() {
    let system = System::small();
    for stop in 1..400 {
        let mut audit = system.space.start_audit();
        assert!((0..stop).all(|_| audit.step_of(20).is_none()) || stop > 100);
        assert_eq!(
            unsafe { system.space.frames().add(frames(0, 4096), Owner::Free) },
            0,
            "all of it is known"
        );
        system.check();
    }
}

/// What an audit has found before it begins again is found again.
#[test]
fn beginning_again_forgets_nothing() {
    let system = System::new(Config { ram_frames: 1024, window_pages: 1024, ..Config::default() });
    let space = system.space;
    for frame in [300, 302, 304] {
        let at = PhysAddr::new(frame * PAGE);
        drop(space.allocate_dma(FrameRequest { at, ..FrameRequest::new(1) }).unwrap());
    }
    // One is no RAM.
    let ram = FrameAllocator::storage_words(1024) - 2 * 16;
    for frame in [300, 500] {
        let flip = || unsafe { *system.storage.add(ram + frame / 64) ^= 1 << (frame % 64) };
        flip();
        for stop in 0..80 {
            let mut audit = space.start_audit();
            assert!((0..stop).all(|_| audit.step_of(1).is_none()));
            assert_eq!(unsafe { space.frames().add(frames(0, 1), Owner::Reserved) }, 0, "it is known");
            let report = std::iter::repeat_with(|| audit.step()).flatten().next().unwrap();
            let found = report.findings().any(|finding| matches!(finding, Finding::FreeTwice(_)));
            assert!(found, "{frame} after {stop} steps: {report:?}");
        }
        flip();
    }
    system.check();
}

/// What is unmapped and waits until all processors have forgotten it, frames and tables, is nobody's: no
/// audit that looks meanwhile finds anything, however far it has come.
#[test]
fn an_audit_may_look_before_the_acknowledgements() {
    let system = System::small();
    let space = system.space;
    for stop in 0..120 {
        let audit = Arc::new(Mutex::new(space.start_audit()));
        let ended = (0..stop).any(|_| audit.lock().unwrap().step_of(50).is_some());
        let (shared, looked) = (audit.clone(), Arc::new(AtomicUsize::new(0)));
        let count = looked.clone();
        *system.machine.on_flush.lock().unwrap() = Some(Box::new(move || {
            let report = shared.lock().unwrap().step_of(50);
            assert!(report.is_none_or(|report| report.ok()));
            count.fetch_add(1, Relaxed);
        }));
        drop(space.allocate(600, Protection::ReadWrite).unwrap());
        drop(space.allocate_dma(FrameRequest::new(3)).unwrap());
        *system.machine.on_flush.lock().unwrap() = None;
        assert!(looked.load(Relaxed) >= 2);
        let report = loop {
            if let Some(report) = audit.lock().unwrap().step_of(50) {
                break report;
            }
        };
        assert!(report.ok(), "{stop}: {:?}", report.findings().collect::<Vec<_>>());
        if ended {
            // The same, all at once.
            *system.machine.on_flush.lock().unwrap() = Some(Box::new(move || assert!(space.audit().ok())));
            drop(space.allocate(600, Protection::ReadWrite).unwrap());
            drop(space.allocate_dma(FrameRequest::new(3)).unwrap());
            *system.machine.on_flush.lock().unwrap() = None;
            return;
        }
    }
    panic!("no audit came to an end");
}

/// What one processor does: a bit of everything, with two devices of its own whose tables lie on both sides
/// of all others.
fn work(system: &System, platform: &'static SystemPlatform, thread: u32, turns: &AtomicUsize) {
    let (space, mut held) = (system.space, Vec::new());
    let devices = [DeviceId(thread.into()), DeviceId((100 - thread).into())]
        .map(|id| (DmaWindows::new(platform, id).unwrap(), DmaWindows::for_model(platform, id).unwrap()));
    for turn in 0_usize.. {
        if turns.fetch_add(1, Relaxed) >= TURNS {
            return;
        }
        let (bus, model) = &devices[turn % 2];
        // The others may have left too little for any of these.
        held.extend(space.allocate([1, 3, 600][turn % 3], Protection::ReadWrite).ok().map(Held::Private));
        held.extend(bus.allocate(4096 * (1 + turn % 3)).ok().map(Held::Region));
        let count = 1 + turn as u64 % 2;
        held.extend(space.claim_mmio(frames(4096 + count, count), None).ok().map(Held::Mmio));
        if let Ok(region) = model.allocate(4096 * (1 + turn % 30)) {
            // From here on the device may use it.
            model.publish(region.address(0).unwrap()).unwrap();
            let view = model.writable().unwrap();
            drop(region);
            drop(view);
        }
        if turn.is_multiple_of(3) {
            model.reset_model().unwrap();
        }
        held.drain(..held.len().saturating_sub(5 * (turn % 3)));
    }
}

const TURNS: usize = 800;

/// Two processors audit while two others map, unmap, open and close windows, and end devices' lives: nothing
/// is found. What is wrong all the while is.
#[test]
fn several_processors_audit_while_others_work() {
    for wrong in [false, true] {
        let system = System::small();
        unsafe { (1..3).for_each(|count| system.space.offer_mmio(frames(4096 + count, count)).unwrap()) };
        let platform: &'static _ = Box::leak(Box::new(SystemPlatform { space: system.space, bus: 0 }));
        let region = DmaWindows::new(platform, DeviceId(50)).unwrap().allocate(3 * 4096).unwrap();
        let page = region.as_volatile_slice().as_ptr().as_ptr() as u64 + 4096;
        let (entry, expected) =
            (system.machine.entry(page, 0), Finding::WindowNotDma(VirtAddr::new(page).unwrap()));
        let sound = system.machine.word(entry);
        // The tag says private, not for devices.
        system.machine.set_word(entry, if wrong { sound ^ 3 << 9 } else { sound });
        let [turns, reports]: [&AtomicUsize; 2] = [(); 2].map(|()| &*Box::leak(Box::default()));
        std::thread::scope(|scope| {
            let system = &system;
            for thread in [1, 2] {
                scope.spawn(move || work(system, platform, thread, turns));
            }
            for limit in [50, 1000] {
                scope.spawn(move || {
                    while turns.load(Relaxed) < TURNS {
                        let mut audit = system.space.start_audit();
                        let mut step = || (audit.step_of(limit), std::thread::yield_now()).0;
                        let report = std::iter::repeat_with(&mut step).flatten().next().unwrap();
                        if report.ok() == wrong
                            || report.findings().any(|finding| *finding == expected) != wrong
                        {
                            turns.store(TURNS, Relaxed);
                            panic!("{:?}", report.findings().collect::<Vec<_>>());
                        }
                        reports.fetch_add(1, Relaxed);
                    }
                });
            }
        });
        assert!(reports.load(Relaxed) > 0);
        system.machine.set_word(entry, sound);
        system.check();
    }
}
