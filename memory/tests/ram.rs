//! RAM as it is known and booked: runs, blocks of the DMA arena, quarantine, and what is told of them.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;
use ringfence_testkit::machine::*;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::time::Duration;

/// An address space over RAM in this span, none of which is known yet. Its tables lie below.
fn space(machine: &'static Machine, span: FrameRange) -> &'static AddressSpace {
    let pool = unsafe { TablePool::new(machine.ram.add(16 * PAGE as usize), frames(16, 64)) }.unwrap();
    let mapper = Mapper::new(pool, true).unwrap();
    unsafe { machine.load_root(mapper.root()) };
    let words = storage(FrameAllocator::storage_words(span.size_in_frames()));
    let frames: &_ = Box::leak(Box::new(FrameAllocator::new(span, words).unwrap()));
    let words = storage(PageAllocator::storage_words(machine.window.size_in_pages()));
    let pages: &_ = Box::leak(Box::new(PageAllocator::new(machine.window, words).unwrap()));
    Box::leak(Box::new(AddressSpace::new(mapper, frames, pages, machine)))
}

/// RAM that becomes known between the steps of an audit belongs to that audit, however far it has come.
#[test]
fn new_ram_between_steps_is_no_finding() {
    let space = space(Machine::new(4096, 0, 512), frames(0, 4096));
    unsafe { space.frames().add(frames(1024, 512), Owner::Free) };
    for stop in 0.. {
        let mut audit = space.start_audit();
        let ended = (0..stop).any(|_| audit.step_of(100).is_some());
        assert_eq!(unsafe { space.frames().add(frames(2048 + stop, 1), Owner::Free) }, 1);
        let report = loop {
            if let Some(report) = audit.step_of(100) {
                break report;
            }
        };
        let findings: Vec<_> = report.findings().collect();
        assert!(report.ok(), "{stop}: {findings:?}");
        if ended {
            return assert!(stop > 5, "an audit has a step for each of its phases");
        }
    }
}

/// Runs of RAM are where they were said to be, also if the span does not begin at 0.
#[test]
fn the_physical_map_has_the_runs_of_ram() {
    const GIB: u64 = 1 << 18;
    for base in [0, GIB, 5 * GIB] {
        let space = space(Machine::new(128, 0, 512), frames(base, 8192));
        let runs = [(0, 1), (63, 2), (128, 64), (1000, 3000), (8191, 1)];
        for (start, count) in runs.iter().rev() {
            unsafe { space.frames().add(frames(base + start, *count), Owner::Reserved) };
        }
        let map = space.phys_map(&[]);
        let found: Vec<_> =
            map.iter().map(|run| (run.start_addr().0 / PAGE - base, run.len() / PAGE)).collect();
        assert_eq!(found, runs);
    }
}

/// Hands out pages whose frames are not adjacent, as an IOMMU allows.
struct Scattered(&'static AddressSpace);

unsafe impl Platform for Scattered {
    fn dma_allocate(
        &self,
        _: DeviceId,
        pages: NonZeroUsize,
        _: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        let pages = self.0.pages().allocate(PageRequest::new(pages.get())).unwrap();
        let (start, count) = (pages.start_address(), pages.size_in_pages());
        let (mut rest, mut mapped) = (pages, MappedPages::empty());
        for (index, frame) in [300, 301, 303, 302].into_iter().cycle().take(count).enumerate() {
            let frames = FrameRequest { at: PhysAddr::new(frame * PAGE), ..FrameRequest::new(1) };
            let frames = self.0.frames().allocate(frames).map_err(|_| PlatformError::OutOfMemory)?;
            let (page, more) = rest.split(start.checked_add((index as u64 + 1) * PAGE).unwrap()).unwrap();
            rest = more;
            mapped
                .merge(self.0.map_allocated_pages_to(page, frames, Protection::ReadWrite).unwrap())
                .unwrap();
        }
        let start = NonNull::new(mapped.as_ptr()).unwrap();
        Ok(unsafe { DmaMemory::new(start, count * 4096, 1 << 40, Box::new(mapped)) })
    }
    fn mmio_map(&self, _: Option<DeviceId>, _: PhysAddr, _: usize) -> Result<MmioMemory, PlatformError> {
        Err(PlatformError::BadRange)
    }
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn registry(&self) -> &DmaRegistry {
        self.0.registry()
    }
}

/// By physical address only what is adjacent there can be reached as one region.
#[test]
fn regions_that_are_not_adjacent_have_no_physical_address() {
    let system = System::small();
    let platform: &'static _ = Box::leak(Box::new(Scattered(system.space)));
    for (pages, shared) in [(1, 1), (2, 1), (3, 0), (4, 0)] {
        let windows = DmaWindows::for_model(platform, DeviceId(8)).unwrap();
        let region = windows.allocate(pages * 4096).unwrap();
        let map = system.space.phys_map(&[&region]);
        assert_eq!(map.iter().filter(|run| run.is_shared()).count(), shared, "{pages} pages");
    }
}

/// The DMA arena grows by whole blocks, of 2 MiB at least, and at a fixed place by the block that begins
/// there.
#[test]
fn the_arena_grows_by_blocks() {
    let system = System::new(Config { ram_frames: 8192, ..Config::default() });
    let free = || system.space.frames().count(Owner::Free);
    let mut held = Vec::new();
    for (frame, count, grown) in [
        (None, 1, 512),
        (None, 511, 512),
        (None, 3, 0),
        (None, 600, 1024),
        (Some(4096), 600, 1024),
        (None, 1025, 2048),
    ] {
        let before = free();
        let at = frame.and_then(|frame| PhysAddr::new(frame * PAGE));
        held.push(system.space.allocate_dma(FrameRequest { at, ..FrameRequest::new(count) }).unwrap());
        assert_eq!(before - free(), grown, "{count} at {frame:?}");
    }
    let inside = FrameRequest { at: PhysAddr::new(6001 * PAGE), ..FrameRequest::new(3) };
    assert!(system.space.allocate_dma(inside).is_err());
    system.check();
}

/// An empty token joins with any, and takes over whose frames they are.
#[test]
fn no_frames_join_with_any() {
    let system = System::small();
    let before = system.state();
    let mut none = AllocatedFrames::empty();
    none.merge(system.space.frames().allocate(FrameRequest::new(3)).unwrap()).unwrap();
    none.merge(AllocatedFrames::empty()).unwrap();
    assert_eq!((none.size_in_frames(), system.space.frames().count(Owner::Allocated)), (3, 3));
    drop(none);
    assert_eq!(system.state(), before);
}

/// Each region that is told to a device and dropped is booked as quarantined, and no other.
#[test]
fn quarantine_is_booked_by_the_frame() {
    let system = System::small();
    let (windows, frames) = (system.model(), system.space.frames());
    let count = || (frames.count(Owner::Dma), frames.count(Owner::Quarantined));
    let [one, two] = [1, 2].map(|pages| windows.allocate(pages * 4096).unwrap());
    let _kept = windows.allocate(5 * 4096).unwrap();
    windows.publish(two.address(0).unwrap()).unwrap();
    drop(two);
    assert_eq!(count(), (6, 2));
    windows.publish(one.address(0).unwrap()).unwrap();
    drop(one);
    assert_eq!(count(), (5, 3));
    windows.reset_model().unwrap();
    assert_eq!(count(), (5, 0));
    system.check();
}

#[test]
fn texts_tell_apart() {
    let owners = Owner::ALL.map(|owner| owner.to_string());
    assert_eq!(owners, Owner::ALL.map(Owner::name));
    assert_eq!(BTreeSet::from(owners).len(), Owner::ALL.len());
    let errors = [PlatformError::OutOfMemory, PlatformError::BadRange, PlatformError::Claimed];
    let texts = BTreeSet::from(errors.map(|error| error.to_string()));
    assert!(texts.len() == errors.len() && texts.iter().all(|text| !text.is_empty()));
}

/// Who has each frame, by the runs that are told from the first on: each begins where the last one ended, or
/// behind a gap in RAM.
fn told(frames: &FrameAllocator) -> Vec<(u64, Option<Owner>)> {
    let (mut told, mut from) = (Vec::new(), 0);
    while let Some((run, owner)) = frames.next_run(from) {
        let start = run.start_address().value() / PAGE;
        assert!(start >= from && !run.is_empty(), "{run:?} from {from}");
        from = start + run.size_in_frames() as u64;
        told.extend((start..from).map(|frame| (frame, owner)));
    }
    told
}

/// Each frame of RAM is in one run, and that is the one of who has it: as many as are booked, and none that
/// a token names is free.
#[test]
fn runs_are_those_of_the_books() {
    let system = System::small();
    let (space, frames) = (system.space, system.space.frames());
    unsafe { frames.add(self::frames(4200, 100), Owner::Reserved) };
    let (mut held, mut lent, mut seed, mut most) = (Vec::new(), Vec::new(), 7_u64, (0, 0));
    for step in 0..200 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (kind, count) = (seed >> 61, (seed >> 40) as usize % 40 + 1);
        match kind {
            0..3 => held.extend(frames.allocate(FrameRequest::new(count))),
            3..6 => lent.extend(space.allocate_dma(FrameRequest::new(count))),
            6 if !held.is_empty() => drop(held.swap_remove(count % held.len())),
            _ if !lent.is_empty() => drop(lent.swap_remove(count % lent.len())),
            _ => {}
        }
        most = (most.0.max(held.len()), most.1.max(lent.len()));
        let told = told(frames);
        assert_eq!(told.len(), frames.total(), "{step}");
        assert!(told.is_sorted_by(|one, next| one.0 < next.0), "{step}");
        for owner in [Owner::Free, Owner::DmaIdle] {
            let count = told.iter().filter(|(_, told)| *told == Some(owner)).count();
            assert_eq!(count, frames.count(owner), "{owner} after {step}");
        }
        let used = |frame| told.binary_search_by_key(&frame, |(frame, _)| *frame).map(|at| told[at].1);
        for token in &held {
            let start = token.start_address().value() / PAGE;
            assert!((start..).take(token.size_in_frames()).all(|frame| used(frame) == Ok(None)), "{step}");
        }
        for mapped in &lent {
            let start = mapped.physical_address().value() / PAGE;
            assert!((start..).take(mapped.size_in_pages()).all(|frame| used(frame) == Ok(None)), "{step}");
        }
    }
    assert!(most.0 > 5 && most.1 > 5, "{most:?} at most");
}

/// All windows of all devices are told, those in quarantine too.
#[test]
fn windows_are_told_by_device_and_address() {
    let system = System::small();
    let platform: &'static _ = Box::leak(Box::new(SystemPlatform { space: system.space, bus: 0 }));
    let told = || -> Vec<_> {
        let windows = system.space.registry().windows();
        windows.map(|window| (window.device.0, window.device_address, window.len, window.is_open)).collect()
    };
    assert_eq!(told(), []);
    let [nine, two] = [9, 2].map(|id| DmaWindows::for_model(platform, DeviceId(id)).unwrap());
    let mut regions = Vec::new();
    let addresses = [&two, &nine, &nine].map(|windows| {
        let region = windows.allocate(2 * 4096).unwrap();
        let address = windows.publish(region.address(0).unwrap()).unwrap().0;
        regions.push(region);
        address
    });
    let mut expected = vec![
        (2, addresses[0], 2 * 4096, true),
        (9, addresses[1], 2 * 4096, true),
        (9, addresses[2], 2 * 4096, true),
    ];
    expected.sort();
    assert_eq!(told(), expected);
    assert_eq!(addresses[1].abs_diff(addresses[2]), 2 * 4096, "adjacent");
    regions.pop();
    expected.iter_mut().filter(|window| window.1 == addresses[2]).for_each(|window| window.3 = false);
    assert_eq!(told(), expected, "the device was told of it");
    nine.reset_model().unwrap();
    expected.retain(|window| window.3);
    assert_eq!(told(), expected);
}
