use super::*;
use crate::PhysAddr;
use proptest::prelude::*;
use std::boxed::Box;
use std::vec;

fn of(frames: u64) -> &'static FrameAllocator {
    let span = FrameRange::from_numbers(0, frames).unwrap();
    let storage = Box::leak(vec![0; FrameAllocator::storage_words(frames as usize)].into_boxed_slice());
    let home = Box::leak(Box::new(FrameAllocator::new(span, storage).unwrap()));
    // SAFETY: these frames are numbers, nobody uses them.
    unsafe { home.add(span, Owner::Free) };
    home
}

/// Frames `0..frames` of the arena that are idle.
fn idle(home: &FrameAllocator, frames: usize) -> vec::Vec<bool> {
    let inner = home.inner().lock();
    (0..frames).map(|frame| inner.dma.is_free(frame)).collect()
}

fn dma(home: &FrameAllocator, request: &FrameRequest) -> FrameRange {
    let frames = home.take_dma(request).ok().unwrap();
    let range = frames.range;
    home.keep_dma(frames);
    range
}

#[test]
fn idle_blocks_are_joined() {
    let home = of(1 << 13);
    let _private = home.allocate(FrameRequest::new(1)).unwrap();
    let blocks = [0; 3].map(|_| dma(home, &FrameRequest::new(512)));
    blocks.iter().for_each(|block| home.give_dma(Owner::Allocated, block));
    let arena = home.total() - home.count(Owner::Free) - 1;
    // Blocks 1 to 3: adjacent, but not one block of four.
    let whole = dma(home, &FrameRequest::new(1536));
    assert_eq!((whole.first(), home.total() - home.count(Owner::Free) - 1), (512, arena));
    assert_eq!(arena, 1536);
    home.give_dma(Owner::Allocated, &whole);
    let aligned = FrameRequest { align: 1024, ..FrameRequest::new(600) };
    assert_eq!(dma(home, &aligned).first(), 1024);
    let below = FrameRequest { below: PhysAddr::new(1024 << 12), ..FrameRequest::new(300) };
    assert_eq!(dma(home, &below).first(), 512);
    assert_eq!(home.total() - home.count(Owner::Free) - 1, arena);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The arena grows only if no idle run is long enough, by no more than a block, and so follows the largest use.
    #[test]
    fn the_arena_follows_the_largest_use(
        steps in prop::collection::vec((any::<bool>(), prop_oneof![1..16usize, 1..300usize], any::<usize>()), 1..300),
    ) {
        const FRAMES: usize = 1 << 13;
        let home = of(FRAMES as u64);
        let (mut live, mut private, mut largest) = (vec![], vec![], 0);
        for (take, size, which) in steps {
            if which.is_multiple_of(7) {
                private.extend(home.allocate(FrameRequest::new(size)));
            } else if which % 7 == 1 && !private.is_empty() {
                private.swap_remove(which % private.len());
            } else if !take && !live.is_empty() {
                home.give_dma(Owner::Allocated, &live.swap_remove(which % live.len()));
            } else if live.iter().map(FrameRange::size_in_frames).sum::<usize>() < 1500 {
                let fits = idle(home, FRAMES).chunk_by(|a, b| a == b).any(|run| run[0] && run.len() >= size);
                let before = home.count(Owner::Free);
                live.push(dma(home, &FrameRequest::new(size)));
                let grown = before - home.count(Owner::Free);
                prop_assert_eq!(fits, grown == 0);
                prop_assert!(grown <= size.next_power_of_two().max(512));
            }
            let used = live.iter().map(FrameRange::size_in_frames).sum::<usize>();
            largest = largest.max(used);
            let idle = home.count(Owner::DmaIdle);
            prop_assert!(used + idle <= 3 * largest + 512, "{} of {}", used + idle, largest);
        }
    }
}
