//! Tokens for frames and pages, and the books behind them.
#![allow(clippy::undocumented_unsafe_blocks)]

use proptest::prelude::*;
use ringfence_memory::*;
use ringfence_testkit::machine::{PAGE, frames, storage};

fn allocator(span: FrameRange) -> &'static FrameAllocator {
    let words = FrameAllocator::storage_words(span.size_in_frames());
    Box::leak(Box::new(FrameAllocator::new(span, storage(words)).unwrap()))
}

fn full(count: u64) -> &'static FrameAllocator {
    let allocator = allocator(frames(0, count));
    assert_eq!(unsafe { allocator.add(frames(0, count), Owner::Free) }, count as usize);
    allocator
}

fn physical(frame: u64) -> Option<PhysAddr> {
    PhysAddr::new(frame * PAGE)
}

#[test]
fn what_was_added_first_stays() {
    let allocator = allocator(frames(0, 1000));
    unsafe {
        assert_eq!(allocator.add(frames(100, 50), Owner::Kernel), 50);
        assert_eq!(allocator.add(frames(140, 20), Owner::Tables), 10, "ten of them are the kernel's");
        assert_eq!(allocator.add(frames(50, 150), Owner::Free), 90);
        assert_eq!(allocator.add(frames(50, 150), Owner::Free), 0, "twice is once");
        assert_eq!(allocator.add(frames(990, 100), Owner::Free), 10, "the span ends at 1000");
        assert_eq!(allocator.add(frames(2000, 5), Owner::Free), 0);
        assert_eq!(allocator.add(FrameRange::empty(), Owner::Free), 0);
    }
    assert_eq!((allocator.count(Owner::Kernel), allocator.count(Owner::Tables)), (50, 10));
    assert_eq!((allocator.count(Owner::Free), allocator.total()), (100, 160));
    assert!(allocator.is_ram(frames(199, 5)) && !allocator.is_ram(frames(200, 700)));
    assert!(!allocator.is_ram(frames(5000, 1)));
    // Every free frame can be had, and no other.
    let mut got = Vec::new();
    while let Ok(frame) = allocator.allocate(FrameRequest::new(1)) {
        got.push(frame);
    }
    let mut numbers: Vec<u64> = got.iter().map(|frame| frame.start().unwrap().number()).collect();
    numbers.sort();
    assert!(numbers.into_iter().eq((50..100).chain(160..200).chain(990..1000)));
    assert_eq!((allocator.count(Owner::Free), allocator.count(Owner::Allocated)), (0, 100));
    drop(got);
    assert_eq!((allocator.count(Owner::Free), allocator.count(Owner::Allocated)), (100, 0));
}

#[test]
fn requests_are_honoured_or_refused() {
    let allocator = full(4096);
    let ask = |request: FrameRequest| allocator.allocate(request);
    let one = FrameRequest::new(1);
    let below = ask(FrameRequest { below: physical(16), ..FrameRequest::new(16) }).unwrap();
    assert_eq!(below.start_address(), physical(0).unwrap());
    assert_eq!(ask(FrameRequest { below: physical(16), ..one }).unwrap_err(), AllocError::OutOfMemory);
    assert_eq!(ask(FrameRequest { below: physical(0), ..one }).unwrap_err(), AllocError::OutOfRange);
    // `below` in the middle of a page: the last byte must lie below it.
    assert_eq!(
        ask(FrameRequest { below: PhysAddr::new(17 * PAGE - 1), ..one }).unwrap_err(),
        AllocError::OutOfMemory
    );
    let aligned = ask(FrameRequest { align: 1024, ..FrameRequest::new(3) }).unwrap();
    assert!(aligned.start_address().value().is_multiple_of(1024 * PAGE));
    let fixed = ask(FrameRequest { at: physical(3000), ..FrameRequest::new(100) }).unwrap();
    assert_eq!((fixed.start_address(), fixed.size_in_frames()), (physical(3000).unwrap(), 100));
    assert_eq!(ask(FrameRequest { at: physical(3099), ..one }).unwrap_err(), AllocError::OutOfMemory);
    assert_eq!(ask(FrameRequest { at: physical(4096), ..one }).unwrap_err(), AllocError::OutOfRange);
    assert_eq!(ask(FrameRequest { at: physical((1 << 40) - 1), ..one }).unwrap_err(), AllocError::OutOfRange);
    assert_eq!(
        ask(FrameRequest { at: PhysAddr::new(3100 * PAGE + 8), ..one }).unwrap_err(),
        AllocError::Misaligned
    );
    assert_eq!(ask(FrameRequest::new(0)).unwrap_err(), AllocError::ZeroLength);
    assert_eq!(ask(FrameRequest::new(usize::MAX)).unwrap_err(), AllocError::OutOfRange);
    assert_eq!(allocator.count(Owner::Allocated), 16 + 3 + 100);
}

#[test]
fn construction_is_checked() {
    let words = FrameAllocator::storage_words(64);
    assert_eq!(FrameAllocator::new(frames(5, 64), storage(words)).err(), Some(AllocError::Misaligned));
    assert_eq!(
        FrameAllocator::new(frames(0, 64), storage(words - 1)).err(),
        Some(AllocError::StorageTooSmall)
    );
    assert!(FrameAllocator::new(frames(0, 0), storage(words)).is_ok());
    let high = FrameAllocator::new(frames(1 << 18, 64), storage(words)).unwrap();
    let high: &'static FrameAllocator = Box::leak(Box::new(high));
    unsafe { high.add(frames(0, 1 << 20), Owner::Free) };
    let got = high.allocate(FrameRequest::new(64)).unwrap();
    assert_eq!(got.start_address().value(), 1 << 30);
    assert_eq!(
        high.allocate(FrameRequest { at: physical(5), ..FrameRequest::new(1) }).unwrap_err(),
        AllocError::OutOfRange
    );
    let window = PageRange::new(VirtAddr::new(0xffff_9000_0000_1000).unwrap(), 64).unwrap();
    let words = PageAllocator::storage_words(64);
    assert_eq!(PageAllocator::new(window, storage(words)).err(), Some(AllocError::Misaligned));
}

#[test]
fn pages_of_another_allocator_do_not_merge() {
    let window = |gib: u64| {
        PageRange::new(VirtAddr::new(0xffff_9000_0000_0000 + (gib << 30)).unwrap(), 1 << 18).unwrap()
    };
    let allocator = |gib| -> &'static PageAllocator {
        let pages = storage(PageAllocator::storage_words(1 << 18));
        Box::leak(Box::new(PageAllocator::new(window(gib), pages).unwrap()))
    };
    // The windows follow each other, so the numbers would do.
    let (here, there) = (allocator(0), allocator(1));
    let at = |allocator: &'static PageAllocator, at: Option<VirtAddr>| {
        allocator.allocate(PageRequest { at, ..PageRequest::new(1) }).unwrap()
    };
    let mut last = at(here, window(0).end().map(Page::start_address));
    let first = at(there, Some(window(1).start_address()));
    let first = last.merge(first).unwrap_err();
    assert_eq!((last.size_in_pages(), first.size_in_pages()), (1, 1));
    // An empty one joins with any, and takes over whose pages they are.
    let mut none = AllocatedPages::empty();
    none.merge(first).unwrap();
    none.merge(AllocatedPages::empty()).unwrap();
    drop((last, none));
    assert_eq!((here.free_pages(), there.free_pages()), (1 << 18, 1 << 18));
}

#[test]
fn strangers_do_not_merge() {
    let (here, there) = (full(64), full(64));
    let at = |allocator: &'static FrameAllocator, frame, count| {
        allocator.allocate(FrameRequest { at: physical(frame), ..FrameRequest::new(count) }).unwrap()
    };
    let mut a = at(here, 10, 5);
    let c = a.merge(at(there, 15, 5)).unwrap_err();
    assert_eq!((c.start_address(), c.size_in_frames()), (physical(15).unwrap(), 5));
    let gap = a.merge(at(here, 16, 2)).unwrap_err();
    a.merge(at(here, 15, 1)).unwrap();
    a.merge(gap).unwrap();
    a.merge(at(here, 9, 1)).unwrap();
    a.merge(AllocatedFrames::empty()).unwrap();
    assert_eq!((a.start_address(), a.size_in_frames()), (physical(9).unwrap(), 9));
    let a = a.split_at(10).unwrap_err();
    let (a, b) = a.split_at(9).unwrap();
    assert!(b.is_empty());
    drop((a, b, c));
    assert_eq!((here.count(Owner::Free), there.count(Owner::Free)), (64, 64));
}

proptest! {
    /// Whatever is cut and joined, in the end everything is back once.
    #[test]
    fn frames_survive_cutting_and_joining(
        steps in prop::collection::vec((0..4u8, any::<usize>(), any::<usize>()), 1..80),
    ) {
        let allocator = full(256);
        let mut held: Vec<AllocatedFrames> = Vec::new();
        for (kind, a, b) in steps {
            match kind {
                0 => held.extend(allocator.allocate(FrameRequest::new(1 + a % 40))),
                1 if !held.is_empty() => {
                    let frames = held.swap_remove(a % held.len());
                    let size = frames.size_in_frames();
                    let at = b % (size + 1);
                    let (head, tail) = frames.split_at(at).unwrap();
                    prop_assert_eq!((head.size_in_frames(), tail.size_in_frames()), (at, size - at));
                    held.extend([head, tail]);
                }
                2 if held.len() > 1 => {
                    let other = held.swap_remove(a % held.len());
                    let index = b % held.len();
                    let rest = held[index].merge(other).err();
                    held.extend(rest);
                }
                3 if !held.is_empty() => drop(held.swap_remove(a % held.len())),
                _ => {}
            }
            let sum: usize = held.iter().map(|frames| frames.size_in_frames()).sum();
            prop_assert_eq!(allocator.count(Owner::Allocated), sum);
            prop_assert_eq!(allocator.count(Owner::Free), 256 - sum);
            let mut numbers: Vec<_> = held.iter().flat_map(|frames| frames.iter()).collect();
            numbers.sort();
            numbers.dedup();
            prop_assert_eq!(numbers.len(), sum);
        }
        held.clear();
        prop_assert_eq!(allocator.allocate(FrameRequest::new(256)).unwrap().size_in_frames(), 256);
    }

    #[test]
    fn pages_survive_cutting_and_joining(
        steps in prop::collection::vec((0..5u8, any::<usize>(), any::<usize>()), 1..80),
    ) {
        let window = PageRange::new(VirtAddr::new(0xffff_9000_0000_0000).unwrap(), 300).unwrap();
        let pages = PageAllocator::new(window, storage(PageAllocator::storage_words(300))).unwrap();
        let pages: &'static PageAllocator = Box::leak(Box::new(pages));
        let mut held: Vec<AllocatedPages> = Vec::new();
        for (kind, a, b) in steps {
            match kind {
                0 => held.extend(pages.allocate(PageRequest::new(1 + a % 40))),
                1 if !held.is_empty() => {
                    let part = held.swap_remove(a % held.len());
                    let at = part.start_address().value() + (b % (part.size_in_pages() + 1)) as u64 * PAGE;
                    let part = part.split(VirtAddr::new(at + 1).unwrap()).unwrap_err();
                    if !part.is_empty() {
                        let (head, tail) = part.split(VirtAddr::new(at).unwrap()).unwrap();
                        prop_assert!(tail.is_empty() || tail.start_address().value() == at);
                        held.extend([head, tail]);
                    }
                }
                2 if held.len() > 1 => {
                    let other = held.swap_remove(a % held.len());
                    let index = b % held.len();
                    let past = held[index].end().map(|page| page.number() + 1);
                    let follows = past == other.start().map(|page| page.number());
                    let empty = held[index].is_empty() || other.is_empty();
                    let result = held[index].merge(other);
                    prop_assert_eq!(result.is_ok(), follows || empty);
                    held.extend(result.err());
                }
                3 if !held.is_empty() => drop(held.swap_remove(a % held.len())),
                4 => {
                    let start = window.start_address().checked_add((a % 300) as u64 * PAGE).unwrap();
                    let within = PageRange::new(start, (b % 50).min(300 - a % 300)).unwrap();
                    let request = PageRequest { within: Some(within), ..PageRequest::new(1 + b % 7) };
                    if let Ok(part) = pages.allocate(request) {
                        prop_assert!(within.contains_range(&part));
                        held.push(part);
                    }
                }
                _ => {}
            }
            let mut numbers: Vec<_> = held.iter().flat_map(|part| part.iter()).collect();
            prop_assert_eq!(pages.free_pages(), 300 - numbers.len());
            numbers.sort();
            numbers.dedup();
            prop_assert_eq!(pages.free_pages(), 300 - numbers.len());
        }
        held.clear();
        prop_assert_eq!(pages.free_pages(), 300);
        let all = PageRequest { at: Some(window.start_address()), ..PageRequest::new(300) };
        prop_assert!(pages.allocate(all).is_ok());
    }
}
