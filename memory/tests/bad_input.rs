//! Null, the end of the address space, zero, overflow, misaligned, foreign, too large: every public function
//! answers with a typed error and leaves everything as it was.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::*;
use ringfence_testkit::machine::*;

fn at(value: u64) -> VirtAddr {
    VirtAddr::new(value).unwrap()
}

const TOP_PAGE: u64 = 0xffff_ffff_ffff_f000;

#[test]
fn ranges() {
    let physical = |value| PhysAddr::new(value).unwrap();
    assert_eq!(FrameRange::new(physical(1), 1), Err(RangeError::Misaligned));
    assert_eq!(FrameRange::new(physical(PHYS_END - PAGE), 2), Err(RangeError::OutOfSpace));
    assert_eq!(FrameRange::new(physical(0), usize::MAX), Err(RangeError::OutOfSpace));
    assert_eq!(FrameRange::from_phys_addr(physical(PAGE), u64::MAX), Err(RangeError::OutOfSpace));
    assert_eq!(PageRange::new(at(8), 1), Err(RangeError::Misaligned));
    assert_eq!(PageRange::new(at(TOP_PAGE), 2), Err(RangeError::OutOfSpace));
    assert_eq!(PageRange::new(at(0), 1 << 36), Err(RangeError::OutOfSpace), "into the hole");
    assert_eq!(PageRange::from_virt_addr(at(u64::MAX), u64::MAX), Err(RangeError::OutOfSpace));
    let (low, high) = (PageRange::new(at(0), 1).unwrap(), Page::containing_address(at(TOP_PAGE)));
    assert_eq!(low.to_extended(high), Err(RangeError::OutOfSpace), "across the hole");
    assert_eq!((low.address_at_offset(u64::MAX), low.offset_of_address(at(u64::MAX))), (None, None));
    assert_eq!((low.split_at(usize::MAX), low.overlap(&PageRange::empty())), (None, None));
    assert!(FrameRange::new(physical(5 * PAGE), 0).unwrap().is_empty());
}

#[test]
fn frames_and_pages() {
    let system = System::small();
    let before = system.everything();
    let (all, past) = (system.machine.ram_frames as usize, system.machine.ram_frames * PAGE);
    let frames = |request: FrameRequest| system.space.frames().allocate(request).map(|_| ()).unwrap_err();
    let dma = |request: FrameRequest| match system.space.allocate_dma(request).map(|_| ()).unwrap_err() {
        MapError::Frames(error) | MapError::Pages(error) => error,
        other => panic!("{other:?}"),
    };
    let physical = PhysAddr::new;
    let one = FrameRequest::new(1);
    use AllocError::*;
    for (request, error) in [
        (FrameRequest::new(0), ZeroLength),
        (FrameRequest::new(all + 1), OutOfRange),
        (FrameRequest::new(usize::MAX), OutOfRange),
        (FrameRequest::new(all), OutOfMemory),
        (FrameRequest { align: 0, ..one }, BadAlignment),
        (FrameRequest { align: 3, ..one }, BadAlignment),
        (FrameRequest { align: 1 << 19, ..one }, BadAlignment),
        (FrameRequest { align: 1 << 63, ..one }, BadAlignment),
        (FrameRequest { below: physical(0), ..one }, OutOfRange),
        (FrameRequest { below: physical(PAGE - 1), ..one }, OutOfRange),
        (FrameRequest { at: physical(200 * PAGE + 1), ..one }, Misaligned),
        (FrameRequest { at: physical(201 * PAGE), align: 2, ..one }, Misaligned),
        (FrameRequest { at: physical(past), ..one }, OutOfRange),
        (FrameRequest { at: physical(past - PAGE), ..FrameRequest::new(2) }, OutOfRange),
        (FrameRequest { at: physical(PHYS_END - PAGE), ..one }, OutOfRange),
        (FrameRequest { at: physical(0), ..one }, OutOfMemory),
        (FrameRequest { at: physical(16 * PAGE), ..one }, OutOfMemory),
        (FrameRequest { at: physical(300 * PAGE), below: physical(300 * PAGE), ..one }, OutOfRange),
    ] {
        assert_eq!(frames(request), error, "{request:?}");
        assert_eq!(system.everything(), before, "{request:?}");
        // The pages for it may be what is missing first; and a run for devices begins where a block does.
        let found = dma(request);
        let other = if request.count >= all { OutOfMemory } else { Misaligned };
        let whole = request.count == 1;
        assert!(found == error || (!whole && found == other), "{request:?}: {found:?}");
        assert_eq!(system.everything(), before, "{request:?}");
    }
    let pages = |request: PageRequest| system.space.pages().allocate(request).map(|_| ()).unwrap_err();
    let window = system.space.pages().window();
    let (start, one) = (window.start_address().value(), PageRequest::new(1));
    let end = start + window.size_in_bytes();
    let elsewhere = PageRange::new(at(TOP_PAGE), 1).ok();
    for (request, error) in [
        (PageRequest::new(0), ZeroLength),
        (PageRequest::new(window.size_in_pages() + 1), OutOfRange),
        (PageRequest::new(usize::MAX), OutOfRange),
        (PageRequest { align: 0, ..one }, BadAlignment),
        (PageRequest { align: 6, ..one }, BadAlignment),
        (PageRequest { at: Some(at(0)), ..one }, OutOfRange),
        (PageRequest { at: Some(at(TOP_PAGE)), ..one }, OutOfRange),
        (PageRequest { at: Some(at(start + 1)), ..one }, Misaligned),
        (PageRequest { at: Some(at(start + PAGE)), align: 2, ..one }, Misaligned),
        (PageRequest { at: Some(at(start - PAGE)), ..one }, OutOfRange),
        (PageRequest { at: Some(at(end)), ..one }, OutOfRange),
        (PageRequest { at: Some(at(end - PAGE)), ..PageRequest::new(2) }, OutOfRange),
        (PageRequest { within: elsewhere, ..one }, OutOfRange),
        (PageRequest { within: Some(PageRange::empty()), ..one }, OutOfRange),
    ] {
        assert_eq!(pages(request), error, "{request:?}");
        assert_eq!(system.everything(), before, "{request:?}");
    }
}

#[test]
fn mappings() {
    let (system, other) = (System::small(), System::small());
    let (space, mapping) = (system.space, system.space.allocate(4, Protection::ReadWrite).unwrap());
    let start = mapping.start_address().value();
    unsafe { space.offer_mmio(frames(4096, 2)) }.unwrap();
    let before = system.everything();
    let same = || assert_eq!(system.everything(), before);
    // Sizes.
    use MapError::{Frames as NoFrames, Pages as NoPages};
    assert_eq!(space.allocate(0, Protection::ReadWrite).unwrap_err(), NoPages(AllocError::ZeroLength));
    assert_eq!(
        space.allocate(usize::MAX, Protection::ReadWrite).unwrap_err(),
        NoPages(AllocError::OutOfRange)
    );
    assert_eq!(space.allocate(4096, Protection::ReadWrite).unwrap_err(), NoFrames(AllocError::OutOfMemory));
    assert_eq!(space.allocate_stack(0).unwrap_err(), MapError::ZeroLength);
    assert_eq!(space.allocate_stack(usize::MAX).unwrap_err(), NoPages(AllocError::OutOfRange));
    same();
    // Tokens of another machine, or of another size.
    let map = |pages, frames| {
        let (error, pages, frames) =
            space.map_allocated_pages_to(pages, frames, Protection::ReadWrite).unwrap_err();
        (error, pages.size_in_pages(), frames.size_in_frames())
    };
    let pages = |of: &System, count| of.space.pages().allocate(PageRequest::new(count)).unwrap();
    let tokens = |of: &System, count| of.space.frames().allocate(FrameRequest::new(count)).unwrap();
    assert_eq!(map(pages(&system, 2), tokens(&system, 3)), (MapError::SizeMismatch, 2, 3));
    assert_eq!(map(pages(&system, 2), tokens(&other, 2)), (MapError::WrongAllocator, 2, 2));
    assert_eq!(map(pages(&other, 2), tokens(&system, 2)), (MapError::WrongAllocator, 2, 2));
    let (error, foreign) = space.map_allocated_pages(pages(&other, 2), Protection::ReadWrite).unwrap_err();
    assert_eq!((error, foreign.size_in_pages()), (MapError::WrongAllocator, 2));
    drop(foreign);
    let (error, none) =
        space.map_allocated_pages(AllocatedPages::empty(), Protection::ReadWrite).unwrap_err();
    assert!(error == MapError::ZeroLength && none.is_empty());
    same();
    other.check();
    // Addresses outside, or within a page.
    let mut mapping = mapping;
    for wrong in [0, 1, start - PAGE, start + 1, start + 5 * PAGE, TOP_PAGE, u64::MAX] {
        mapping = mapping.split(at(wrong)).unwrap_err();
        assert_eq!(mapping.size_in_pages(), 4, "{wrong:#x}");
    }
    let theirs = other.space.allocate(1, Protection::ReadWrite).unwrap();
    let theirs = mapping.merge(theirs).unwrap_err();
    assert_eq!((mapping.size_in_pages(), theirs.size_in_pages()), (4, 1));
    assert_eq!((space.translate(at(0)), space.translate(at(u64::MAX))), (None, None));
    for (offset, length) in
        [(0, usize::MAX), (usize::MAX, 1), (4 * 4096, 1), (8, 2048), (usize::MAX, usize::MAX)]
    {
        assert_eq!(mapping.as_slice::<u64>(offset, length), Err(AccessError::OutOfBounds));
        assert_eq!(mapping.as_slice_mut::<u64>(offset, length).map(|_| ()), Err(AccessError::OutOfBounds));
    }
    same();
    // Registers.
    let offer = |range| unsafe { space.offer_mmio(range) };
    assert_eq!(offer(FrameRange::empty()), Err(ClaimError::ZeroLength));
    assert_eq!(offer(frames(0, 1)), Err(ClaimError::Ram));
    assert_eq!(offer(frames(4095, 2)), Err(ClaimError::Ram));
    assert_eq!(offer(frames(4097, 2)), Err(ClaimError::Overlap));
    for range in
        [FrameRange::empty(), frames(0, 1), frames(4095, 2), frames(4097, 2), frames((1 << 40) - 1, 1)]
    {
        assert_eq!(space.claim_mmio(range, None).unwrap_err(), ClaimError::NotOffered);
    }
    same();
    system.check();
}

/// What the kernel says of its own memory before there is an address space.
#[test]
fn boot() {
    let arena = Machine::new(64, 0, 512);
    let pool = |base, count| unsafe { TablePool::new(base, frames(0, count)) };
    for (base, count) in
        [(std::ptr::null_mut(), 8), (arena.ram.wrapping_add(8), 8), (arena.ram, 0), (arena.ram, 1)]
    {
        assert_eq!(pool(base, count).err(), Some(MapError::NoTables));
    }
    let mut mapper = Mapper::new(pool(arena.ram, 8).unwrap(), true).unwrap();
    let available = mapper.pool().available();
    let pages = |start, count| PageRange::new(at(start), count).unwrap();
    let mut map = |pages, frames| unsafe { mapper.map_boot(pages, frames, Protection::ReadOnly) };
    assert_eq!(map(pages(KERNEL_VA, 2), frames(9, 1)), Err(MapError::SizeMismatch));
    let no_address = Err(MapError::Pages(AllocError::OutOfRange));
    assert_eq!(
        (map(pages(0, 1), frames(9, 1)), map(pages(TOP_PAGE, 1), frames(9, 1))),
        (no_address, no_address)
    );
    // Scattered over more tables than there are.
    assert_eq!(map(pages(KERNEL_VA, 512 * 8), frames(9, 512 * 8)), Err(MapError::NoTables));
    assert_eq!(mapper.pool().available(), available);
    // The allocators' storage.
    let words = FrameAllocator::storage_words(64);
    assert_eq!(FrameAllocator::new(frames(1, 64), storage(words)).err(), Some(AllocError::Misaligned));
    assert_eq!(
        FrameAllocator::new(frames(0, 64), storage(words - 1)).err(),
        Some(AllocError::StorageTooSmall)
    );
    let words = PageAllocator::storage_words(64);
    assert_eq!(PageAllocator::new(pages(PAGE, 64), storage(words)).err(), Some(AllocError::Misaligned));
    let window = |start, count, words| PageAllocator::new(pages(start, count), storage(words)).err();
    assert_eq!(window(1 << 30, 64, words - 1), Some(AllocError::StorageTooSmall));
    // Null, and what would end at an address that does not exist.
    let (last, gib) = (0xffff_ffff_c000_0000, 1 << 18);
    assert_eq!(window(0, 64, words), Some(AllocError::OutOfRange));
    assert_eq!(window(last, gib, PageAllocator::storage_words(gib)), Some(AllocError::OutOfRange));
    assert_eq!(window(last, gib - 1, PageAllocator::storage_words(gib)), None);
    assert_eq!(
        window(0, 0, 0),
        Some(AllocError::StorageTooSmall).filter(|_| PageAllocator::storage_words(0) > 0)
    );
}
