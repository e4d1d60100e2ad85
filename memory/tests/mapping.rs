//! Mappings on the machine of `common`.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::theseus::{BorrowedMappedPages, BorrowedSliceMappedPages};
use ringfence_memory::*;
use ringfence_testkit::machine::*;

fn address(value: u64) -> VirtAddr {
    VirtAddr::new(value).unwrap()
}

#[test]
fn boot_passes_the_audit() {
    let system = System::small();
    system.check();
    let frames = system.space.frames();
    assert_eq!(frames.count(Owner::Kernel), 8);
    assert_eq!(frames.count(Owner::Tables), 128);
    assert_eq!(frames.count(Owner::Reserved), 1);
    assert_eq!(frames.count(Owner::Free), 4096 - 137);
    let hit = system.machine.walk(KERNEL_VA + 5 * PAGE + 77).unwrap();
    assert_eq!(hit, Hit { frame: 13, level: 0, write: true, execute: false });
    assert!(system.machine.walk(0).is_none());
}

/// Whoever does not want back what was refused writes `?`.
#[test]
fn a_refusal_works_with_a_question_mark() {
    let system = System::small();
    let space = system.space;
    let map = |pages, frames| -> Result<MappedPages<Private>, MapError> {
        let pages = space.pages().allocate(PageRequest::new(pages)).map_err(MapError::Pages)?;
        let frames = space.frames().allocate(FrameRequest::new(frames)).map_err(MapError::Frames)?;
        Ok(space.map_allocated_pages_to(pages, frames, Protection::ReadOnly)?)
    };
    assert_eq!(map(2, 1).err(), Some(MapError::SizeMismatch));
    assert!(map(2, 2).is_ok());
    system.check();
}

#[test]
fn memory_is_real_and_goes_back() {
    let system = System::small();
    let before = system.state();
    let mut mapped = system.space.allocate(5, Protection::ReadWrite).unwrap();
    assert_eq!((mapped.size_in_pages(), mapped.flags()), (5, Protection::ReadWrite));
    mapped.as_slice_mut::<u8>(0, 5 * 4096).unwrap().fill(0x5a);
    let frame = system.machine.walk(mapped.start_address().value() + 4 * PAGE).unwrap().frame;
    assert_eq!(system.machine.word(frame * PAGE), 0x5a5a_5a5a_5a5a_5a5a);
    assert_eq!(system.space.frames().count(Owner::Private), 5);
    system.check();
    let start = mapped.start_address().value();
    drop(mapped);
    assert!(!system.machine.may(start, false), "freed memory must fault");
    system.check();
    assert_eq!(system.state(), before);
}

#[test]
fn merge_undoes_split_and_refuses_strangers() {
    let system = System::small();
    let mapped = system.space.allocate(6, Protection::ReadWrite).unwrap();
    let start = mapped.start_address().value();
    let (mut a, b) = mapped.split(address(start + 2 * PAGE)).unwrap();
    let (b, c) = b.split(address(start + 4 * PAGE)).unwrap();
    let c = a.merge(c).unwrap_err();
    a.merge(b).unwrap();
    a.merge(c).unwrap();
    assert_eq!((a.start_address().value(), a.size_in_pages()), (start, 6));
    // Ends are empty halves, outside is refused, and so is the middle of a page.
    let (empty, a) = a.split(address(start)).unwrap();
    assert!(empty.is_empty());
    let (mut a, empty) = a.split(address(start + 6 * PAGE)).unwrap();
    assert!(empty.is_empty());
    a.merge(empty).unwrap();
    for bad in [start - PAGE, start + 7 * PAGE, start + 1, start + 6 * PAGE + 8, 0] {
        a = a.split(address(bad)).unwrap_err();
    }
    // Other flags.
    let (mut a, mut b) = a.split(address(start + 3 * PAGE)).unwrap();
    b.remap(Protection::ReadOnly);
    let b = a.merge(b).unwrap_err();
    drop((a, b));
    // Another address space, though adjacent numbers may match.
    let other = System::small();
    let mut mine = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let theirs = other.space.allocate(1, Protection::ReadWrite).unwrap();
    assert!(mine.merge(theirs).is_err());
    system.check();
}

#[test]
fn remap_changes_rights_at_once() {
    let system = System::small();
    let mut mapped = system.space.allocate(512 + 3, Protection::ReadWrite).unwrap();
    let start = mapped.start_address().value();
    mapped.as_slice_mut::<u8>(0, (512 + 3) * 4096).unwrap().fill(1);
    mapped.remap(Protection::ReadOnly);
    for page in [0, 100, 514] {
        assert!(!system.machine.may(start + page * PAGE, true), "the TLB must have forgotten");
        assert!(system.machine.may(start + page * PAGE, false));
    }
    assert_eq!(mapped.as_slice_mut::<u8>(0, 1).unwrap_err(), AccessError::NotWritable);
    assert_eq!(mapped.as_type_mut::<u8>(0).unwrap_err(), AccessError::NotWritable);
    assert_eq!(mapped.as_slice::<u8>(514 * 4096, 1).unwrap(), [1]);
    system.check();
    mapped.remap(Protection::ReadExecute);
    assert!(system.machine.walk(start).unwrap().execute);
    system.check();
    // Only a part: split, remap, merge stays refused until the flags agree again.
    let (mut a, mut b) = mapped.split(address(start + 7 * PAGE)).unwrap();
    b.remap(Protection::ReadWrite);
    assert!(!system.machine.walk(start + 6 * PAGE).unwrap().write);
    assert!(system.machine.walk(start + 7 * PAGE).unwrap().write);
    system.check();
    b = a.merge(b).unwrap_err();
    a.remap(Protection::ReadWrite);
    a.merge(b).unwrap();
    system.check();
}

#[test]
fn deep_copy_is_another_memory() {
    let system = System::small();
    let mut mapped = system.space.allocate(3, Protection::ReadWrite).unwrap();
    mapped.as_slice_mut::<u8>(0, 3 * 4096).unwrap().fill(7);
    mapped.remap(Protection::ReadExecute);
    let copy = mapped.deep_copy(Some(Protection::ReadOnly)).unwrap();
    assert_eq!(copy.flags(), Protection::ReadOnly);
    let mut same = mapped.deep_copy(None).unwrap();
    assert_eq!(same.flags(), Protection::ReadExecute);
    same.remap(Protection::ReadWrite);
    same.as_slice_mut::<u8>(0, 1).unwrap()[0] = 8;
    assert_eq!(mapped.as_slice::<u8>(0, 3 * 4096).unwrap(), copy.as_slice::<u8>(0, 3 * 4096).unwrap());
    assert_eq!(MappedPages::empty().deep_copy(None).unwrap().size_in_pages(), 0);
    system.check();
}

#[test]
fn all_frames_come_back_as_parts() {
    let system = System::small();
    let before = system.state();
    // Scattered frames: every second one of a run.
    let mut runs: Vec<_> =
        (0..24).map(|_| system.space.frames().allocate(FrameRequest::new(1)).unwrap()).collect();
    runs.sort_by_key(|run| run.start_address());
    let mut index = 0;
    runs.retain(|_| {
        index += 1;
        index % 2 == 0
    });
    let pages = system.space.pages().allocate(PageRequest::new(12)).unwrap();
    let start = pages.start_address().value();
    let mut whole = MappedPages::empty();
    let mut rest = pages;
    for (index, frames) in runs.into_iter().enumerate() {
        let (head, tail) = rest.split(address(start + (index as u64 + 1) * PAGE)).unwrap();
        rest = tail;
        whole
            .merge(system.space.map_allocated_pages_to(head, frames, Protection::ReadWrite).unwrap())
            .unwrap();
    }
    system.check();
    assert_eq!(system.space.frames().count(Owner::Private), 12);
    let (pages, frames) = whole.unmap_into_parts().unwrap();
    assert_eq!((pages.start_address().value(), pages.size_in_pages()), (start, 12));
    assert_eq!((frames.len(), frames.capacity()), (12, 12), "no run is lost, and none was expected in vain");
    assert_eq!(frames.iter().map(|run| run.size_in_frames()).sum::<usize>(), 12);
    assert_eq!(system.space.frames().count(Owner::Allocated), 12);
    system.check();
    drop((pages, frames));
    assert_eq!(system.state(), before);

    // A long adjacent mapping is one token again, though it is unmapped piece by piece.
    let mapped = system.space.allocate(512 + 16 + 1, Protection::ReadWrite).unwrap();
    let (_, frames) = mapped.unmap_into_parts().unwrap();
    assert_eq!(frames.iter().map(|run| run.size_in_frames()).sum::<usize>(), 529);
    assert_eq!(frames.capacity(), frames.len());
}

#[test]
fn what_is_refused_comes_back() {
    let (system, other) = (System::small(), System::small());
    let before = system.state();
    let pages = |count| system.space.pages().allocate(PageRequest::new(count)).unwrap();
    let frames = |count| system.space.frames().allocate(FrameRequest::new(count)).unwrap();
    let refused = |pages, frames| {
        system.space.map_allocated_pages_to(pages, frames, Protection::ReadWrite).unwrap_err()
    };
    let (error, p, f) = refused(pages(2), frames(3));
    assert_eq!((error, p.size_in_pages(), f.size_in_frames()), (MapError::SizeMismatch, 2, 3));
    drop((p, f));
    let (error, p, f) = refused(AllocatedPages::empty(), AllocatedFrames::empty());
    assert!(error == MapError::WrongAllocator && p.is_empty() && f.is_empty());
    let (nothing, some) = (pages(1), frames(1).split_at(0).unwrap());
    let start = nothing.start_address();
    let (error, ..) = refused(nothing.split(start).unwrap().0, some.0);
    assert_eq!(error, MapError::ZeroLength);
    drop(some.1);
    let (error, ..) = refused(pages(1), other.space.frames().allocate(FrameRequest::new(1)).unwrap());
    assert_eq!(error, MapError::WrongAllocator);
    let (error, ..) = refused(other.space.pages().allocate(PageRequest::new(1)).unwrap(), frames(1));
    assert_eq!(error, MapError::WrongAllocator);
    let (error, p) =
        system.space.map_allocated_pages(AllocatedPages::empty(), Protection::ReadOnly).unwrap_err();
    assert!(error == MapError::ZeroLength && p.is_empty());
    assert_eq!(
        system.space.allocate(0, Protection::ReadOnly).unwrap_err(),
        MapError::Pages(AllocError::ZeroLength)
    );
    assert!(system.space.allocate(usize::MAX, Protection::ReadOnly).is_err());
    assert!(system.space.allocate_stack(0).is_err());
    assert!(system.space.allocate_stack(usize::MAX - 1).is_err());
    drop((p, f));
    // More than there is: pages suffice, frames do not.
    let error = system.space.allocate(5000, Protection::ReadWrite).unwrap_err();
    assert_eq!(error, MapError::Frames(AllocError::OutOfMemory));
    system.check();
    assert_eq!(system.state(), before);
    other.check();
}

#[test]
fn stacks_have_guards() {
    let system = System::small();
    let before = system.state();
    let stack = system.space.allocate_stack(4).unwrap();
    let (bottom, top) = (stack.range().start_address().value(), stack.top().value());
    assert_eq!(top - bottom, 4 * PAGE);
    assert!(system.machine.may(bottom, true) && system.machine.may(top - 1, true));
    assert!(!system.machine.may(bottom - 1, false) && !system.machine.may(top, false));
    // The guards belong to the stack.
    let at = |address| PageRequest { at: VirtAddr::new(address), ..PageRequest::new(1) };
    assert!(system.space.pages().allocate(at(bottom - PAGE)).is_err());
    assert!(system.space.pages().allocate(at(top)).is_err());
    system.check();
    drop(stack);
    assert_eq!(system.state(), before);
}

#[test]
fn views_are_checked() {
    let system = System::small();
    let mut mapped = system.space.allocate(2, Protection::ReadWrite).unwrap();
    let size = mapped.size_in_bytes() as usize;
    for offset in (0..40).chain(size - 40..size + 8).chain([usize::MAX, usize::MAX - 7]) {
        let fits = offset.checked_add(8).is_some_and(|end| end <= size);
        let expected = match (fits, offset % 8) {
            (false, _) => Err(AccessError::OutOfBounds),
            (true, 0) => Ok(()),
            _ => Err(AccessError::Misaligned),
        };
        assert_eq!(mapped.as_type::<u64>(offset).map(|_| ()), expected, "{offset}");
        assert_eq!(mapped.as_type_mut::<u64>(offset).map(|_| ()), expected, "{offset}");
        assert_eq!(mapped.as_slice::<u64>(offset, 1).map(|_| ()), expected, "{offset}");
        assert_eq!(mapped.as_slice_mut::<u64>(offset, 1).map(|_| ()), expected, "{offset}");
    }
    assert_eq!(mapped.as_slice::<u64>(0, usize::MAX / 4).unwrap_err(), AccessError::OutOfBounds);
    assert_eq!(mapped.as_slice::<u64>(8, size / 8).unwrap_err(), AccessError::OutOfBounds);
    assert_eq!(mapped.as_slice::<u64>(0, size / 8).unwrap().len(), size / 8);
    assert!(mapped.as_slice::<u64>(size, 0).unwrap().is_empty());
    assert_eq!(MappedPages::empty().as_slice::<u8>(0, 0).unwrap().len(), 0);
    assert_eq!(MappedPages::empty().as_type::<u8>(0).unwrap_err(), AccessError::OutOfBounds);
}

#[test]
fn borrowed_views_own_their_memory() {
    let system = System::small();
    let before = system.state();
    let mapped = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let mut word = mapped.into_borrowed_mut::<u64>(16).unwrap();
    *word = 42;
    let mut slice = word.into_inner().into_borrowed_slice_mut::<u16>(16, 4).unwrap();
    assert_eq!(*slice, [42, 0, 0, 0]);
    slice[1] = 1;
    let word = slice.into_inner().into_borrowed::<u64>(16).unwrap();
    assert_eq!(*word, 42 + (1 << 16));
    assert_eq!(word.inner_ref().size_in_pages(), 1);
    let (mapped, error) = word.into_inner().into_borrowed::<u64>(4095).unwrap_err();
    assert_eq!(error, AccessError::OutOfBounds);
    let (mapped, error) = mapped.into_borrowed_slice::<u32>(2, 4).unwrap_err();
    assert_eq!(error, AccessError::Misaligned);
    let shared = std::sync::Arc::new(mapped);
    let a = BorrowedMappedPages::<u64, _, _>::from(shared.clone(), 16).unwrap();
    let b = BorrowedSliceMappedPages::<u16, _, _>::from(shared, 16, 2).unwrap();
    let moved = Box::new((a, b));
    assert_eq!((*moved.0, &*moved.1), (42 + (1 << 16), &[42, 1][..]));
    system.check();
    drop(moved);
    assert_eq!(system.state(), before);
}

/// As few pages as possible in as many tables as possible.
#[test]
fn a_pool_of_the_advised_size_never_runs_out() {
    let window_pages = 1 << 17;
    let pool_frames = TablePool::frames_for(window_pages, 1);
    let system = System::new(Config { window_pages, pool_frames, ..Config::default() });
    let before = system.state();
    let at = |page: usize| system.machine.window.start_address().checked_add(page as u64 * PAGE);
    let scattered: Vec<_> = (0..window_pages)
        .step_by(512)
        .map(|page| {
            let pages =
                system.space.pages().allocate(PageRequest { at: at(page), ..PageRequest::new(1) }).unwrap();
            system.space.map_allocated_pages(pages, Protection::ReadOnly).unwrap()
        })
        .collect();
    assert_eq!(scattered.len(), 256);
    system.check();
    drop(scattered);
    assert_eq!(system.state(), before);
}

#[test]
fn what_is_mapped_is_not_mapped_over() {
    let system = System::small();
    let held = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let next = held.start_address().value() + PAGE;
    // Something sits in the middle of four pages that the allocator gives out.
    let before = system.state();
    let entry = system.machine.entry(next + 2 * PAGE, 0);
    system.machine.set_word(entry, 0x5000);
    let pages = system.space.pages().allocate(PageRequest { at: VirtAddr::new(next), ..PageRequest::new(4) });
    let frames = system.space.frames().allocate(FrameRequest::new(4)).unwrap();
    let (error, pages, frames) =
        system.space.map_allocated_pages_to(pages.unwrap(), frames, Protection::ReadWrite).unwrap_err();
    assert_eq!((error, pages.size_in_pages(), frames.size_in_frames()), (MapError::AlreadyMapped, 4, 4));
    assert!(system.machine.walk(next).is_none() && system.machine.walk(next + 3 * PAGE).is_none());
    assert_eq!(system.machine.word(entry), 0x5000);
    system.machine.set_word(entry, 0);
    drop((pages, frames));
    system.check();
    assert_eq!(system.state(), before);
}

#[test]
fn boot_mappings_are_checked() {
    let arena = Machine::new(4096, 0, 512);
    let pool = unsafe { TablePool::new(arena.ram, frames(0, 16)) }.unwrap();
    let mut mapper = Mapper::new(pool, false).unwrap();
    let at = |page: u64, count| PageRange::new(address(0xffff_8000_0000_0000 + page * PAGE), count).unwrap();
    let mut map = |pages, frames| unsafe { mapper.map_boot(pages, frames, Protection::ReadOnly) };
    assert_eq!(map(at(0, 2), frames(100, 3)), Err(MapError::SizeMismatch));
    map(at(0, 3), frames(100, 3)).unwrap();
    assert_eq!(map(at(2, 2), frames(200, 2)), Err(MapError::AlreadyMapped));
    map(at(512, 512), frames(512, 512)).unwrap();
    // Inside a large leaf, and a large leaf over small ones.
    assert_eq!(map(at(600, 1), frames(200, 1)), Err(MapError::AlreadyMapped));
    assert_eq!(map(at(0, 512), frames(1024, 512)), Err(MapError::AlreadyMapped));
    for index in 0..30 {
        map(at(2048 + index, 1), frames(300 + index, 1)).unwrap();
    }
    assert_eq!(map(at(3000, 1), frames(400, 1)), Err(MapError::TooManyBootMappings));
    let pool = |count| unsafe { TablePool::new(arena.ram, frames(0, count)) }.map(|pool| pool.available());
    assert_eq!((pool(0), pool(1), pool(2)), (Err(MapError::NoTables), Err(MapError::NoTables), Ok(1)));
    // A frame of notes is enough for 1024 tables.
    assert_eq!((pool(1025), pool(1026), pool(1027)), (Ok(1024), Ok(1024), Ok(1025)));
    // A large leaf that begins where a table lies is a leaf all the same.
    let pool = unsafe { TablePool::new(arena.ram.add(511 * PAGE as usize), frames(511, 16)) }.unwrap();
    let mut mapper = Mapper::new(pool, false).unwrap();
    let mut map = |pages, frames| unsafe { mapper.map_boot(pages, frames, Protection::ReadOnly) };
    map(at(512, 512), frames(512, 512)).unwrap();
    assert_eq!(map(at(600, 1), frames(200, 1)), Err(MapError::AlreadyMapped));
    assert!(unsafe { TablePool::new(std::ptr::null_mut(), frames(0, 16)) }.is_err());
    assert!(unsafe { TablePool::new(arena.ram.wrapping_add(8), frames(0, 16)) }.is_err());
}

/// Whatever way frames take, the next owner of the memory sees zeros: not what another one left, nor the
/// loader.
/// A heap's memory is its own for good, writable, and not cleared first.
#[test]
fn memory_that_is_not_initialised() {
    let system = System::new(Config { ram_frames: 512, ..Config::default() });
    let (space, machine) = (system.space, system.machine);
    let memory = space.allocate_uninit(3).unwrap();
    assert_eq!(memory.len() as u64, 3 * PAGE);
    let start = memory.cast::<u8>().as_ptr().addr() as u64;
    let hits: Vec<_> = (0..3).map(|page| machine.walk(start + page * PAGE).unwrap()).collect();
    assert!(hits.iter().all(|hit| hit.write && !hit.execute));
    assert!(space.allocate_uninit(0).is_err());
    // All that others get is other memory.
    let others: Vec<_> = std::iter::from_fn(|| space.allocate(1, Protection::ReadWrite).ok()).collect();
    let taken = others.iter().map(|other| other.start_address().value());
    let frames: Vec<_> = taken.clone().map(|at| machine.walk(at).unwrap().frame).collect();
    assert!(others.len() > 100 && hits.iter().all(|hit| !frames.contains(&hit.frame)));
    assert!({ taken }.all(|at| !(start..start + 3 * PAGE).contains(&at)));
    drop(others);
    system.check();
}

#[test]
fn new_memory_is_zero() {
    let system = System::new(Config { ram_frames: 2048, ..Config::default() });
    let (space, machine) = (system.space, system.machine);
    let secret = || {
        // All that is free; what is allocated afterwards was free before.
        let past = system.pool.end().unwrap().number() + 1;
        (past..machine.ram_frames).for_each(|frame| {
            (0..512).for_each(|word| machine.set_word(frame * PAGE + word * 8, 0x7465_7263_6573_2121));
        });
    };
    let zero = |memory: &MappedPages<Private>| {
        let words = memory.as_slice::<u64>(0, memory.size_in_pages() * 512).unwrap();
        words.iter().all(|word| *word == 0)
    };
    for protection in [Protection::ReadOnly, Protection::ReadWrite, Protection::ReadExecute] {
        for count in [1, 3, 600] {
            secret();
            let memory = space.allocate(count, protection).unwrap();
            assert!(zero(&memory) && memory.flags() == protection, "{count} pages");
            let hit = machine.walk(memory.start_address().value()).unwrap();
            assert_eq!(
                (hit.write, hit.execute),
                (protection == Protection::ReadWrite, protection == Protection::ReadExecute)
            );
            drop(memory);
            secret();
            let pages = space.pages().allocate(PageRequest::new(count)).unwrap();
            assert!(zero(&space.map_allocated_pages(pages, protection).unwrap()), "{count} pages");
            secret();
            let pages = space.pages().allocate(PageRequest::new(count)).unwrap();
            let frames = space.frames().allocate(FrameRequest::new(count)).unwrap();
            let memory = space.map_allocated_pages_to(pages, frames, protection).unwrap();
            assert!(zero(&memory) && memory.flags() == protection, "{count} pages");
            // Frames that pass through the owner's hands are new memory as well: the hands may change.
            drop(memory);
            let mut memory = space.allocate(count, Protection::ReadWrite).unwrap();
            memory.as_slice_mut::<u8>(0, count * 4096).unwrap().fill(9);
            let (pages, mut frames) = memory.unmap_into_parts().unwrap();
            if frames.len() == 1 {
                let memory = space.map_allocated_pages_to(pages, frames.remove(0), protection).unwrap();
                assert!(zero(&memory));
            }
        }
    }
    secret();
    let stack = space.allocate_stack(3).unwrap();
    let word =
        |page: Page| machine.word(machine.walk(page.start_address().value()).unwrap().frame * PAGE + 4088);
    assert!(stack.range().iter().all(|page| word(page) == 0));
    assert_eq!((stack.range().size_in_pages(), stack.range().size_in_bytes()), (3, 3 * PAGE));
    let dma = space.allocate_dma(FrameRequest::new(3)).unwrap();
    assert!(dma.iter().all(|page| word(page) == 0));
    system.check();
}
