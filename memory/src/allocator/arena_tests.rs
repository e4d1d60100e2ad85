use super::*;
use crate::{AllocatedFrames, PhysAddr};
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
fn whole_blocks_are_lent() {
    let home = of(1 << 13);
    let arena = || home.total() - home.count(Owner::Free);
    let runs = [5, 3, 1].map(|count| dma(home, &FrameRequest::new(count)));
    assert_eq!(runs.map(|run| run.first()), [0, 8, 12]);
    // What nobody asked for is as long as the rest: neither idle nor free.
    assert_eq!((home.count(Owner::DmaIdle), home.count(Owner::Allocated), arena()), (512 - 13, 13, 512));
    runs.iter().for_each(|run| home.give_dma(Owner::Allocated, run));
    assert_eq!((home.count(Owner::DmaIdle), home.count(Owner::Allocated), arena()), (512, 0, 512));
    // They grow together again, across what the arena grew by.
    let blocks = [0; 3].map(|_| dma(home, &FrameRequest::new(512)));
    blocks.iter().for_each(|block| home.give_dma(Owner::Allocated, block));
    assert_eq!((dma(home, &FrameRequest::new(700)).first(), arena()), (0, 1536));
    let below = FrameRequest { below: PhysAddr::new(1536 << 12), ..FrameRequest::new(300) };
    assert_eq!((dma(home, &below).first(), arena()), (1024, 1536));
    let at = |frame: u64, count| FrameRequest { at: PhysAddr::new(frame << 12), ..FrameRequest::new(count) };
    assert_eq!(home.take_dma(&at(2050, 3)).err(), Some(AllocError::Misaligned));
    assert_eq!(home.take_dma(&at(1026, 2)).err(), Some(AllocError::OutOfMemory));
    assert_eq!(dma(home, &at(2052, 3)).first(), 2052);
    assert_eq!(home.take_dma(&FrameRequest::new(0)).err(), Some(AllocError::ZeroLength));
    assert_eq!(home.take_dma(&FrameRequest::new(usize::MAX)).err(), Some(AllocError::OutOfRange));
}

#[test]
fn what_was_not_mapped_goes_back() {
    let home = of(1 << 13);
    home.undo_dma(home.take_dma(&FrameRequest::new(5)).ok().unwrap());
    assert_eq!(home.count(Owner::Free), 1 << 13);
    let run = dma(home, &FrameRequest::new(5));
    home.undo_dma(home.take_dma(&FrameRequest::new(3)).ok().unwrap());
    assert_eq!((home.count(Owner::DmaIdle), home.count(Owner::Allocated)), (504, 8));
    home.give_dma(Owner::Allocated, &run);
    assert_eq!((home.count(Owner::DmaIdle), home.count(Owner::Allocated)), (512, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The arena grows only if no idle block is large enough, by no more than a block, and so follows the
    /// largest use.
    #[test]
    fn the_arena_follows_the_largest_use(
        steps in prop::collection::vec(
            (any::<bool>(), prop_oneof![1..16usize, 1..300usize], any::<usize>()),
            1..300,
        ),
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
                let idle = idle(home, FRAMES);
                let fits = idle.chunks(size.next_power_of_two()).any(|block| block.iter().all(|idle| *idle));
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

/// Somebody who takes and gives back, to make the arena as large as can be.
struct Adversary {
    home: &'static FrameAllocator,
    lent: vec::Vec<FrameRange>,
    /// Blocks of 2 MiB that the arena cannot have yet.
    private: vec::Vec<AllocatedFrames>,
    /// Such that it never gets.
    others: vec::Vec<AllocatedFrames>,
    /// Frames lent at once, in whole blocks, and the largest order asked for.
    most: usize,
    order: u32,
}

impl Adversary {
    fn new(frames: u64) -> Self {
        Self { home: of(frames), lent: vec![], private: vec![], others: vec![], most: 0, order: 0 }
    }

    fn used(&self) -> usize {
        self.lent.iter().map(|run| run.size_in_frames().next_power_of_two()).sum()
    }

    fn take(&mut self, count: usize) {
        let frames = loop {
            match self.home.take_dma(&FrameRequest::new(count)) {
                Ok(frames) => break frames,
                // Lets go of the highest, so that what the arena gets next lies below what it has.
                Err(error) => assert!(self.private.pop().is_some(), "{error:?} at {} frames", self.size()),
            }
        };
        self.lent.push(frames.range);
        self.home.keep_dma(frames);
        self.most = self.most.max(self.used());
        self.order = self.order.max(count.next_power_of_two().trailing_zeros());
        let (size, bound) = (self.size(), self.bound());
        assert!(size <= bound, "{size} frames for {} in use", self.most);
    }

    /// Gives back what is not to be kept.
    fn give(&mut self, mut keep: impl FnMut(&FrameRange) -> bool) {
        let (kept, given) = core::mem::take(&mut self.lent).into_iter().partition(|run| keep(run));
        self.lent = kept;
        let given: vec::Vec<FrameRange> = given;
        given.iter().for_each(|run| self.home.give_dma(Owner::Allocated, run));
    }

    /// Takes as many runs of `count` as make `most` in use.
    fn fill(&mut self, count: usize, most: usize) {
        let free = most.saturating_sub(self.used());
        (0..free / count.next_power_of_two()).for_each(|_| self.take(count));
    }

    fn size(&self) -> usize {
        let private =
            self.private.iter().chain(&self.others).map(|frames| frames.size_in_frames()).sum::<usize>();
        self.home.total() - self.home.count(Owner::Free) - private
    }

    /// What the module says.
    fn bound(&self) -> usize {
        let order = self.order as usize;
        let (most, orders) = (self.most, order + 1);
        if order <= 9 { orders * most + 1024 } else { orders * (orders + 1) / 2 * most + (2 << orders) }
    }
}

#[test]
fn ever_larger_runs_take_little_more_than_the_largest() {
    let mut adversary = Adversary::new(1 << 15);
    for count in 1..3000 {
        adversary.take(count);
        adversary.give(|_| false);
        assert!(adversary.size() <= 4 * adversary.most.max(256), "{} for {count}", adversary.size());
    }
    // And smaller ones nothing more.
    let size = adversary.size();
    for count in (1..3000).rev() {
        adversary.take(count);
        adversary.give(|_| false);
    }
    assert_eq!(adversary.size(), size);
}

/// One frame stays at the end of each run that is given back.
#[test]
fn a_pin_at_the_end_of_each_run() {
    for count in [511, 255, 300, 512, 3, 65] {
        let mut adversary = Adversary::new(1 << 15);
        for _ in 0..100 {
            adversary.take(count);
            let run = adversary.lent.len() - 1;
            let run = adversary.lent[run];
            adversary.give(|other| *other != run);
            adversary.take(1);
        }
    }
}

/// The arena is in many places, 2 MiB each, and one frame stays behind each run, where a slightly larger one
/// does not fit on either side: what a choice of the smallest gap for each run, to the frame, would fall for.
#[test]
fn pins_behind_runs() {
    const MOST: usize = 2048;
    let mut adversary = Adversary::new(1 << 17);
    while let Ok(frames) = adversary.home.allocate(FrameRequest::new(512)) {
        let even = frames.first().is_multiple_of(1024);
        if even { &mut adversary.others } else { &mut adversary.private }.push(frames);
    }
    adversary.private.reverse();
    for count in (257..512).step_by(2) {
        // Single gaps first, of those that were before and of the new ones.
        let places = adversary.size() / 512;
        adversary.fill(count, MOST - MOST / 4);
        adversary.fill(1, MOST.min(adversary.used() + places + 3));
        adversary.give(|run| run.size_in_frames() == 1);
        if adversary.lent.len() > MOST / 4 {
            break;
        }
    }
}

/// What Robson showed that no allocator withstands: runs of each order, of which as many stay as hinder the
/// next one.
#[test]
fn ever_larger_runs_around_what_hinders_most() {
    for most in [512, 1000, 4096] {
        let mut adversary = Adversary::new(1 << 16);
        let mut offset = 0;
        for order in 0..10 {
            adversary.fill(1 << order, most);
            let block = 2 << order;
            let holds = |run: &FrameRange, offset: u64| {
                (run.first()..run.past()).any(|frame| frame % block == offset)
            };
            let other = offset + block / 2;
            let kept = |offset| adversary.lent.iter().filter(|run| holds(run, offset)).count();
            if kept(other) > kept(offset) {
                offset = other;
            }
            adversary.give(|run| holds(run, offset));
        }
        adversary.fill(512, most);
        // No allocator comes off better.
        assert!(2 * adversary.size() <= 11 * most, "{} frames for {most} in use", adversary.size());
    }
}

/// The arena gets memory below all that it has, which the lowest address alone would lure runs to.
#[test]
fn memory_at_ever_lower_addresses() {
    let mut adversary = Adversary::new(1 << 16);
    while let Ok(frames) = adversary.home.allocate(FrameRequest::new(512)) {
        adversary.private.push(frames);
    }
    for count in [1, 3, 5, 1, 7, 1] {
        for _ in 0..6 {
            adversary.fill(count, 2048);
            let mut seen = vec::Vec::new();
            adversary.give(|run| {
                let new = !seen.contains(&(run.first() / 512));
                seen.push(run.first() / 512);
                new
            });
            adversary.fill(512, 2048);
            adversary.give(|run| run.size_in_frames() < 512);
        }
        adversary.give(|_| false);
    }
}
