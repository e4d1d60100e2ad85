//! Each operation with each of its resources running out at each step: it fails with a typed error and gives
//! back what it was given, tables and books are as before to the bit, and with enough of the resource it
//! succeeds.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::*;
use ringfence_testkit::heap::{ALLOCATIONS, LARGEST, Scarce, UNDER_LOCK};
use ringfence_testkit::machine::*;
use std::any::Any;

#[global_allocator]
static HEAP: Scarce = Scarce;

/// What is in short supply.
#[derive(Clone, Copy, Debug)]
enum Resource {
    Tables,
    /// Single frames, no two of them adjacent.
    ScatteredFrames,
    /// Adjacent frames.
    Frames,
    Pages,
}

/// Frames of the pool that a machine needs to boot: root, four tables below it, and the counts.
const BOOT_POOL: usize = 6;

/// A machine on which all of a resource but `left` is taken, once `prepare` has run, and what holds it.
fn scarce<T>(resource: Resource, left: usize, prepare: &impl Fn(&System) -> T) -> (System, T, Box<dyn Any>) {
    let mut config = Config::default();
    if let Resource::Tables = resource {
        // A pool that holds what `prepare` needs, and that much more.
        let plenty = System::new(Config::default());
        let before = plenty.space.audit().tables;
        let input = prepare(&plenty);
        config.pool_frames = BOOT_POOL + plenty.space.audit().tables - before + left;
        drop(input);
    }
    let system = System::new(config);
    let input = prepare(&system);
    let held: Box<dyn Any> = match resource {
        Resource::Tables => Box::new(()),
        Resource::Frames | Resource::ScatteredFrames => {
            let one = || system.space.frames().allocate(FrameRequest::new(1)).ok();
            let mut held: Vec<_> = std::iter::from_fn(one).collect();
            held.sort_by_key(|frame| frame.start_address());
            let step = if let Resource::Frames = resource { 1 } else { 2 };
            let keep = held.len().checked_sub(left * step).expect("it still fails with all there is");
            let mut index = 0;
            held.retain(|_| {
                index += 1;
                index <= keep || !(index - keep).is_multiple_of(step)
            });
            Box::new(held)
        }
        Resource::Pages => {
            let one = || system.space.pages().allocate(PageRequest::new(1)).ok();
            let mut held: Vec<_> = std::iter::from_fn(one).collect();
            held.sort_by_key(|page| page.start_address());
            held.truncate(held.len().checked_sub(left).expect("it still fails with all there is"));
            Box::new(held)
        }
    };
    (system, input, held)
}

/// Runs `operate` on what `prepare` made with 0, 1, 2, … of `resource` left, until it succeeds; it must have
/// failed at least `least` times, and every time with one of these errors.
fn inject<T, R, E: PartialEq + std::fmt::Debug>(
    resource: Resource,
    least: usize,
    errors: &[E],
    prepare: impl Fn(&System) -> T,
    operate: impl Fn(&System, T) -> Result<R, (E, T)>,
) {
    let mut failures = 0;
    for left in 0.. {
        let (system, input, held) = scarce(resource, left, &prepare);
        let before = system.everything();
        match operate(&system, input) {
            Ok(done) => {
                system.check();
                // It succeeds as soon as there are as many tables as it takes.
                let used = system.space.audit().tables;
                assert!(!matches!(resource, Resource::Tables) || used == system.pool.size_in_frames() - 1);
                drop((done, held));
            }
            Err((error, input)) => {
                failures += 1;
                assert!(errors.contains(&error), "{resource:?}, {left} left: {error:?}");
                assert_eq!(system.everything(), before, "{resource:?}, {left} left");
                system.check();
                // What came back is as good as new, where there is more (the pool of tables does not grow).
                drop(held);
                match operate(&system, input) {
                    Ok(done) => drop(done),
                    Err((error, _)) => assert!(matches!(resource, Resource::Tables), "{error:?}"),
                }
            }
        }
        // And all of it goes back.
        system.check();
        let (frames, pages, tables) = system.state();
        assert_eq!((pages, tables), (system.machine.window.size_in_pages(), BOOT_POOL - 1));
        assert_eq!(frames[Owner::Allocated as usize] + frames[Owner::Private as usize], 0);
        assert_eq!(frames[Owner::Unmapped as usize] + frames[Owner::Dma as usize], 0);
        if failures <= left {
            assert!(failures >= least, "{resource:?}: only {failures} failures");
            return;
        }
    }
}

const NO_FRAMES: MapError = MapError::Frames(AllocError::OutOfMemory);
const NO_PAGES: MapError = MapError::Pages(AllocError::OutOfMemory);

/// An operation without input.
fn from_nothing<R>(
    resource: Resource,
    least: usize,
    error: MapError,
    operate: impl Fn(&'static AddressSpace) -> Result<R, MapError>,
) {
    inject(
        resource,
        least,
        &[error],
        |_| (),
        |system, ()| operate(system.space).map_err(|error| (error, ())),
    );
}

#[test]
fn allocate() {
    let small = |space: &'static AddressSpace| space.allocate(3, Protection::ReadWrite);
    from_nothing(Resource::Tables, 3, MapError::NoTables, small);
    from_nothing(Resource::Frames, 3, NO_FRAMES, small);
    from_nothing(Resource::ScatteredFrames, 3, NO_FRAMES, small);
    from_nothing(Resource::Pages, 3, NO_PAGES, small);
    let mixed = |space: &'static AddressSpace| space.allocate(512 + 9, Protection::ReadExecute);
    from_nothing(Resource::Tables, 3, MapError::NoTables, mixed);
}

#[test]
fn allocate_dma() {
    let dma = |space: &'static AddressSpace| space.allocate_dma(FrameRequest::new(4));
    from_nothing(Resource::Tables, 3, MapError::NoTables, dma);
    from_nothing(Resource::Frames, 4, NO_FRAMES, dma);
    from_nothing(Resource::Pages, 4, NO_PAGES, dma);
}

#[test]
fn allocate_stack() {
    let stack = |space: &'static AddressSpace| space.allocate_stack(2);
    from_nothing(Resource::Tables, 3, MapError::NoTables, stack);
    from_nothing(Resource::ScatteredFrames, 2, NO_FRAMES, stack);
    from_nothing(Resource::Pages, 4, NO_PAGES, stack);
}

#[test]
fn map_allocated_pages() {
    let pages = |system: &System| {
        system.space.pages().allocate(PageRequest { align: 512, ..PageRequest::new(520) }).unwrap()
    };
    let map = |system: &System, pages| system.space.map_allocated_pages(pages, Protection::ReadWrite);
    inject(Resource::Tables, 3, &[MapError::NoTables], pages, map);
    let few = |system: &System| system.space.pages().allocate(PageRequest::new(11)).unwrap();
    inject(Resource::ScatteredFrames, 11, &[NO_FRAMES], few, map);
    inject(Resource::Frames, 11, &[NO_FRAMES], few, map);
}

#[test]
fn map_allocated_pages_to() {
    // Frames that are not aligned like the pages: only leaves of 4 KiB, in three tables.
    let tokens = |system: &System| {
        let pages = system.space.pages().allocate(PageRequest { align: 512, ..PageRequest::new(1100) });
        let at = PhysAddr::new(1001 * PAGE);
        let frames = system.space.frames().allocate(FrameRequest { at, ..FrameRequest::new(1100) });
        (pages.unwrap(), frames.unwrap())
    };
    let map = |system: &System, (pages, frames)| {
        let mapped = system.space.map_allocated_pages_to(pages, frames, Protection::ReadOnly);
        mapped.map_err(|(error, pages, frames)| (error, (pages, frames)))
    };
    inject(Resource::Tables, 5, &[MapError::NoTables], tokens, map);
}

#[test]
fn split_and_remap_within_a_large_leaf() {
    let mapping = |system: &System| system.space.allocate(512, Protection::ReadWrite).unwrap();
    let part = |_: &System, mapping: MappedPages<Private>| {
        let at = mapping.address_at_offset(5 * PAGE).unwrap();
        let (head, mut tail) = mapping.split(at).map_err(|mapping| ((), mapping))?;
        tail.remap(Protection::ReadOnly);
        Ok((head, tail))
    };
    inject(Resource::Tables, 1, &[()], mapping, part);
}

#[test]
fn deep_copy() {
    let mapping = |system: &System| system.space.allocate(6, Protection::ReadExecute).unwrap();
    let copy = |_: &System, mapping: MappedPages<Private>| match mapping.deep_copy(None) {
        Ok(copy) => Ok((mapping, copy)),
        Err(error) => Err((error, mapping)),
    };
    inject(Resource::ScatteredFrames, 6, &[NO_FRAMES], mapping, copy);
    inject(Resource::Pages, 6, &[NO_PAGES], mapping, copy);
    // A copy that needs another table.
    let large = |system: &System| system.space.allocate(500, Protection::ReadWrite).unwrap();
    inject(Resource::Tables, 1, &[MapError::NoTables], large, copy);
}

#[test]
fn merge() {
    let parts = |system: &System| {
        let mapping = system.space.allocate(512, Protection::ReadWrite).unwrap();
        let at = mapping.address_at_offset(5 * PAGE).unwrap();
        mapping.split(at).unwrap()
    };
    // Joining needs nothing at all.
    let join = |_: &System, (mut head, tail): (MappedPages<Private>, _)| match head.merge(tail) {
        Ok(()) => Ok(head),
        Err(tail) => Err(((), (head, tail))),
    };
    inject(Resource::Tables, 0, &[], parts, join);
    inject(Resource::Frames, 0, &[], parts, join);
    // And nothing is changed by a refusal.
    let system = System::small();
    let (mut head, tail) = parts(&system);
    let (tail, last) = {
        let at = tail.address_at_offset(PAGE).unwrap();
        tail.split(at).unwrap()
    };
    let before = system.everything();
    let last = head.merge(last).unwrap_err();
    assert_eq!(system.everything(), before);
    head.merge(tail).unwrap();
    head.merge(last).unwrap();
}

#[test]
fn claim_mmio() {
    let range = frames(4096 + 1, 40);
    let offer = |system: &System| unsafe { system.space.offer_mmio(range) }.unwrap();
    let claim = |system: &System, ()| {
        let again = |_| system.space.claim_mmio(range, None);
        system.space.claim_mmio(range, None).or_else(again).map_err(|error| (error, ()))
    };
    inject(Resource::Tables, 3, &[ClaimError::Map(MapError::NoTables)], offer, claim);
    inject(Resource::Pages, 40, &[ClaimError::Map(NO_PAGES)], offer, claim);
}

#[test]
fn unmap_into_parts_without_heap() {
    let system = System::small();
    let mapping = system.space.allocate(521, Protection::ReadWrite).unwrap();
    let before = system.everything();
    LARGEST.set(0);
    let result = mapping.unmap_into_parts();
    LARGEST.set(usize::MAX);
    let mapping = result.unwrap_err();
    assert_eq!(system.everything(), before);
    system.check();
    let (pages, frames) = mapping.unmap_into_parts().unwrap();
    assert_eq!(
        (pages.size_in_pages(), frames.iter().map(|run| run.size_in_frames()).sum::<usize>()),
        (521, 521)
    );
    system.check();
}

fn windows(system: &System) -> DmaWindows {
    system.model()
}

#[test]
fn dma_regions_and_pools() {
    let error = DmaError::Platform(PlatformError::OutOfMemory);
    let region = |_: &System, windows: DmaWindows| match windows.allocate(4 * 4096) {
        Ok(region) => Ok((region, windows)),
        Err(error) => {
            assert_eq!(windows.usage(), (0, 0));
            Err((error, windows))
        }
    };
    inject(Resource::Tables, 3, &[error], windows, region);
    inject(Resource::Frames, 4, &[error], windows, region);
    inject(Resource::Pages, 4, &[error], windows, region);
    // One page: a larger pool takes what there is in pieces, and when that is not enough the arena keeps
    // them.
    let pool = |_: &System, windows: DmaWindows| match DmaPool::new(&windows, 2, 2048) {
        Ok(pool) => Ok((pool, windows)),
        Err(error) => Err((error, windows)),
    };
    inject(Resource::Frames, 1, &[error], windows, pool);
}

/// Lists grow with what there is of regions; when they cannot, nothing has changed.
#[test]
fn lists_cannot_grow() {
    let system = System::small();
    let platform = Box::leak(Box::new(SystemPlatform { space: system.space, bus: 0 }));
    let windows = &DmaWindows::for_model(platform, DeviceId(0)).unwrap();
    let _regions: Vec<_> = (0..64).map(|_| windows.allocate(1).unwrap()).collect();
    let attempts = || {
        let pool = DmaPool::new(windows, 1000, 4).err();
        let view = [windows.readable().err(), windows.writable().err()];
        (windows.allocate(1).err(), pool, view)
    };
    let before = (system.everything(), windows.usage(), windows.generation());
    LARGEST.set(400);
    let failed = attempts();
    LARGEST.set(usize::MAX);
    let none = Some(DmaError::Platform(PlatformError::OutOfMemory));
    assert_eq!(failed, (none, none, [none; 2]));
    assert!(before == (system.everything(), windows.usage(), windows.generation()));
    assert_eq!(attempts(), (None, None, [None; 2]));
    system.check();
}

/// Forgetting a guard costs capacity, and nothing else: no rule of the audit rests on `Drop`.
#[test]
fn forgetting_any_guard() {
    type Forget = fn(&System);
    let cases: [(&str, Forget, Owner, usize, usize); 16] = [
        (
            "allocated frames",
            |s| std::mem::forget(s.space.frames().allocate(FrameRequest::new(3)).unwrap()),
            Owner::Allocated,
            3,
            0,
        ),
        (
            "allocated pages",
            |s| std::mem::forget(s.space.pages().allocate(PageRequest::new(3)).unwrap()),
            Owner::Allocated,
            0,
            3,
        ),
        (
            "private",
            |s| std::mem::forget(s.space.allocate(3, Protection::ReadWrite).unwrap()),
            Owner::Private,
            3,
            3,
        ),
        ("dma", |s| std::mem::forget(s.space.allocate_dma(FrameRequest::new(3)).unwrap()), Owner::Dma, 3, 3),
        (
            "mmio",
            |s| {
                std::mem::forget({
                    unsafe { s.space.offer_mmio(frames(4096, 3)) }.unwrap();
                    s.space.claim_mmio(frames(4096, 3), None).unwrap()
                })
            },
            Owner::Private,
            0,
            3,
        ),
        (
            "quarantined",
            |s| {
                let windows = s.model();
                let region = windows.allocate(3 * 4096).unwrap();
                windows.publish(region.address(0).unwrap()).unwrap();
            },
            Owner::Quarantined,
            3,
            3,
        ),
        ("stack", |s| std::mem::forget(s.space.allocate_stack(3).unwrap()), Owner::Private, 3, 5),
        (
            "borrowed",
            |s| {
                std::mem::forget(
                    s.space.allocate(3, Protection::ReadWrite).unwrap().into_borrowed::<u64>(0).unwrap(),
                )
            },
            Owner::Private,
            3,
            3,
        ),
        (
            "borrowed mut",
            |s| {
                std::mem::forget(
                    s.space.allocate(3, Protection::ReadWrite).unwrap().into_borrowed_mut::<u64>(0).unwrap(),
                )
            },
            Owner::Private,
            3,
            3,
        ),
        (
            "borrowed slice",
            |s| {
                std::mem::forget(
                    s.space
                        .allocate(3, Protection::ReadWrite)
                        .unwrap()
                        .into_borrowed_slice::<u8>(0, 9)
                        .unwrap(),
                )
            },
            Owner::Private,
            3,
            3,
        ),
        (
            "borrowed slice mut",
            |s| {
                std::mem::forget(
                    s.space
                        .allocate(3, Protection::ReadWrite)
                        .unwrap()
                        .into_borrowed_slice_mut::<u8>(0, 9)
                        .unwrap(),
                )
            },
            Owner::Private,
            3,
            3,
        ),
        (
            "parts",
            |s| {
                std::mem::forget(
                    s.space.allocate(3, Protection::ReadWrite).unwrap().unmap_into_parts().unwrap(),
                )
            },
            Owner::Allocated,
            3,
            3,
        ),
        ("region", |s| std::mem::forget(windows(s).allocate(3 * 4096).unwrap()), Owner::Dma, 3, 3),
        ("pool", |s| std::mem::forget(DmaPool::new(&windows(s), 6, 2048).unwrap()), Owner::Dma, 3, 3),
        (
            "buffer",
            |s| {
                let pool = DmaPool::new(&windows(s), 6, 2048).unwrap();
                std::mem::forget(pool.take().unwrap())
            },
            Owner::Dma,
            3,
            3,
        ),
        ("windows", |s| std::mem::forget(windows(s)), Owner::Dma, 0, 0),
    ];
    for (name, forget, owner, frames, pages) in cases {
        let system = System::small();
        let (free_pages, total) = (system.space.pages().free_pages(), system.space.frames().total());
        let free = system.space.frames().count(Owner::Free);
        forget(&system);
        system.check();
        assert_eq!(system.space.frames().count(owner), frames, "{name}");
        assert_eq!(free_pages - system.space.pages().free_pages(), pages, "{name}");
        assert_eq!(system.space.frames().total(), total, "{name}");
        // What the arena has besides: idle, and the rest of the blocks that are lent.
        let rest = if owner != Owner::Allocated { system.space.frames().count(Owner::Allocated) } else { 0 };
        let arena = system.space.frames().count(Owner::DmaIdle) + rest;
        assert_eq!(free - system.space.frames().count(Owner::Free), frames + arena, "{name}");
        // All the rest still serves.
        let rest: Vec<_> =
            std::iter::from_fn(|| system.space.allocate(1, Protection::ReadWrite).ok()).collect();
        assert_eq!(rest.len(), free - frames - arena, "{name}");
        system.check();
        drop(rest);
        system.check();
    }
}

/// A heap that must grow takes the locks itself: the operations that use one do so while they hold none, and
/// the one that it grows by uses none.
#[test]
fn nothing_is_allocated_under_a_lock() {
    let system = System::small();
    let space = system.space;
    let windows = windows(&system);
    let regions = [1, 2, 1].map(|pages| windows.allocate(pages * 4096).unwrap());
    let count = |operation: &mut dyn FnMut()| {
        UNDER_LOCK.set(0);
        ALLOCATIONS.set(0);
        operation();
        assert_eq!(UNDER_LOCK.get(), 0);
        ALLOCATIONS.get()
    };
    let shared: Vec<&DmaRegion> = regions.iter().collect();
    assert!(count(&mut || drop(space.phys_map(&shared))) > 0);
    let mut mapping = space.allocate(600, Protection::ReadWrite).ok();
    assert!(count(&mut || drop(mapping.take().map(|mapping| mapping.unmap_into_parts().unwrap()))) > 0);
    for pages in [1, 64, 600, 5000] {
        // Also when it fails, as the last one does.
        assert_eq!(count(&mut || drop(space.allocate(pages, Protection::ReadWrite))), 0);
    }
    let mapping = space.allocate(600, Protection::ReadWrite).unwrap();
    assert_eq!(count(&mut || drop(mapping.deep_copy(None).unwrap())), 0);
    assert_eq!(count(&mut || drop(space.allocate_stack(4).unwrap())), 0);
    assert_eq!(count(&mut || drop(space.allocate_dma(FrameRequest::new(4)).unwrap())), 0);
}
