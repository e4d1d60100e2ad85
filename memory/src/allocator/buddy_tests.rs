//! The buddy system against a list of booleans.

use super::*;
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

fn buddy(units: usize) -> Buddy {
    let words = vec![u64::MAX; Buddy::storage_words(units)];
    Buddy::new(units, Box::leak(words.into_boxed_slice())).unwrap()
}

/// The same allocator, slow and obvious.
struct Model {
    buddy: Buddy,
    free: Vec<bool>,
    live: BTreeMap<usize, usize>,
    /// Whether all units have been counted: what was found keeps up with what is free then.
    counted: bool,
}

impl Model {
    fn new(units: usize) -> Self {
        Self { buddy: buddy(units), free: vec![false; units], live: BTreeMap::new(), counted: false }
    }

    fn is_free(&self, start: usize, count: usize) -> bool {
        self.free.get(start..start + count).is_some_and(|units| units.iter().all(|free| *free))
    }

    fn give(&mut self, start: usize, count: usize) {
        self.free[start..start + count].fill(true);
        self.buddy.free(start, count);
    }

    /// Whether the promise of `allocate` holds: some aligned block of the rounded size is free within the
    /// bounds.
    fn must_succeed(&self, request: &Request) -> bool {
        let size = request.count.max(request.align).next_power_of_two();
        let below = request.below.min(self.free.len());
        let mut starts = (0..self.free.len()).step_by(size).filter(|start| self.is_free(*start, size));
        starts.any(|start| start >= request.from && start + size <= below)
    }

    fn allocate(&mut self, request: &Request) -> Option<usize> {
        let must = match request.at {
            Some(at) => {
                at >= request.from && at + request.count <= request.below && self.is_free(at, request.count)
            }
            None => self.must_succeed(request),
        };
        let result = self.buddy.allocate(request);
        if let Ok(start) = result {
            let end = start + request.count;
            assert!(self.is_free(start, request.count), "{request:?} gave {start}, which is not free");
            assert!(start.is_multiple_of(request.align) && start >= request.from && end <= request.below);
            assert!(request.at.is_none_or(|at| at == start));
            self.free[start..end].fill(false);
            self.live.insert(start, request.count);
        } else {
            assert!(!must, "{request:?} refused with {result:?}");
        }
        result.ok()
    }

    fn check(&mut self) {
        let free = self.free.iter().filter(|free| **free).count();
        assert_eq!(self.buddy.free_units(), free);
        assert!(!self.counted || self.buddy.found() == free);
        self.counted = true;
        for (unit, free) in self.free.iter().enumerate() {
            assert_eq!(self.buddy.is_free(unit), *free, "unit {unit}");
        }
        for (start, count) in (0..self.free.len()).step_by(7).zip([1, 2, 3, 8, 64, 100].into_iter().cycle()) {
            let end = self.free.len().min(start + count);
            let any = self.free[start..end].iter().any(|free| *free);
            assert_eq!(self.buddy.any_free(start, end - start), any, "{start}+{count}");
        }
        let mut seen = vec![false; self.free.len()];
        self.buddy.count_anew();
        while let Some(FreeUnits { start, count, alone }) = self.buddy.count_on(100) {
            assert!(alone && (1..=100).contains(&count));
            for unit in &mut seen[start..start + count] {
                assert!(!*unit, "a unit is in two blocks");
                *unit = true;
            }
        }
        assert_eq!((seen, self.buddy.found()), (self.free.clone(), free));
        for (order, map) in self.buddy.maps.iter().enumerate() {
            let any = (0..map.bits).any(|block| map.get(self.buddy.words, block));
            assert_eq!(self.buddy.filled & 1 << order != 0, any, "order {order}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(Request),
    Free(usize),
    FreePart(usize, usize),
    Check,
}

fn step(units: usize) -> impl Strategy<Value = Step> {
    let count = prop_oneof![4 => 1..5usize, 2 => 1..70usize, 1 => 1..units + 2];
    let bounds = prop_oneof![3 => Just((0, usize::MAX)), 1 => (0..units, 0..units + 1)];
    let at = prop_oneof![3 => Just(None), 1 => (0..units).prop_map(Some)];
    let request = (count, 0..7u32, bounds, at).prop_map(|(count, align, (from, below), at)| {
        let align = if at.is_some() { 1 } else { 1 << align };
        Step::Allocate(Request { count, align, at, from, below })
    });
    prop_oneof![
        6 => request,
        4 => any::<usize>().prop_map(Step::Free),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(which, part)| Step::FreePart(which, part)),
        1 => Just(Step::Check),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn behaves_like_a_list_of_booleans(
        units in prop_oneof![Just(1usize), Just(64), Just(129), Just(1000), 1..700usize],
        holes in prop::collection::vec((0..700usize, 0..40usize), 0..4),
        steps in prop::collection::vec(step(700), 1..120),
    ) {
        let mut model = Model::new(units);
        let mut usable = vec![true; units];
        for (start, count) in holes {
            usable.iter_mut().skip(start).take(count).for_each(|unit| *unit = false);
        }
        for unit in (0..units).filter(|unit| usable[*unit]) {
            model.give(unit, 1);
        }
        model.check();
        for step in steps {
            match step {
                Step::Allocate(request) => drop(model.allocate(&request)),
                Step::Free(which) if !model.live.is_empty() => {
                    let which = model.live.iter().nth(which % model.live.len());
                    let (start, count) = which.map(|(a, b)| (*a, *b)).unwrap();
                    model.live.remove(&start);
                    model.give(start, count);
                }
                Step::FreePart(which, part) if !model.live.is_empty() => {
                    let which = model.live.iter().nth(which % model.live.len());
                    let (start, count) = which.map(|(a, b)| (*a, *b)).unwrap();
                    let keep = part % count;
                    model.live.remove(&start);
                    if keep > 0 {
                        model.live.insert(start, keep);
                    }
                    model.give(start + keep, count - keep);
                }
                Step::Check => model.check(),
                _ => {}
            }
        }
        for (start, count) in core::mem::take(&mut model.live) {
            model.give(start, count);
        }
        model.check();
        // Whole again: everything merged.
        let whole = Request { count: units, align: 1, at: Some(0), from: 0, below: usize::MAX };
        prop_assert_eq!(model.buddy.allocate(&whole).is_ok(), usable.iter().all(|unit| *unit));
    }
}

#[test]
fn bad_requests_are_told_apart() {
    let mut buddy = buddy(1 << 10);
    buddy.free(0, 1 << 10);
    let any = Request { count: 1, align: 1, at: None, from: 0, below: usize::MAX };
    let mut refused = |request| buddy.allocate(&request).unwrap_err();
    assert_eq!(refused(Request { count: 0, ..any }), AllocError::ZeroLength);
    for align in [0, 3, 12, MAX_ALIGN * 2, usize::MAX] {
        assert_eq!(refused(Request { align, ..any }), AllocError::BadAlignment);
    }
    for count in [1025, usize::MAX, usize::MAX / 2 + 1] {
        assert_eq!(refused(Request { count, ..any }), AllocError::OutOfRange);
    }
    for at in [1024, 1023, usize::MAX, usize::MAX - 1] {
        assert_eq!(refused(Request { count: 2, at: Some(at), ..any }), AllocError::OutOfRange);
    }
    assert_eq!(refused(Request { at: Some(2), align: 4, ..any }), AllocError::Misaligned);
    assert_eq!(refused(Request { from: 10, below: 5, ..any }), AllocError::OutOfRange);
    assert_eq!(refused(Request { align: 2048, ..any }), AllocError::OutOfMemory);
    assert_eq!(buddy.free_units(), 1 << 10);
    // The rest of a block, to its end, when the block begins too low.
    assert_eq!(buddy.allocate(&Request { count: 1023, from: 1, ..any }), Ok(1));
    assert!(Buddy::new(100, &mut []).is_none());
}

/// Two bits a unit, one more in 64 for the levels above, and at most a part of a word and a word above for
/// each order.
#[test]
fn storage_is_no_larger_than_the_bitmaps() {
    for units in [1, 63, 64, 65, 1000, 4096, 4097, 1 << 20, (1 << 24) + 1] {
        let words = Buddy::storage_words(units);
        let bits: usize = (0..25).map(|order| units >> order).sum();
        assert!(words * 64 >= bits, "{units} units in {words} words");
        assert!(words <= bits / 62 + 2 * 25, "{units} units in {words} words");
    }
    assert_eq!(Buddy::storage_words(1), 1);
    assert_eq!(Buddy::storage_words(64), 7);
    // 65 bits are two words and one above; 32 are one.
    assert_eq!(Buddy::storage_words(65), 3 + 6);
}

#[test]
#[should_panic(expected = "freed")]
fn freeing_twice_is_noticed() {
    let mut buddy = buddy(64);
    buddy.free(0, 64);
    buddy.free(3, 1);
}

/// Same size over and over: the bits beyond the block kept apart are not touched, whatever surrounds them.
#[test]
fn a_repeated_size_neither_splits_nor_merges() {
    let one = Request { count: 1, align: 1, at: None, from: 0, below: usize::MAX };
    let mut buddy = buddy(1 << 20);
    buddy.free(0, 1 << 20);
    let first = buddy.allocate(&one).unwrap();
    let before = buddy.words.to_vec();
    for _ in 0..100 {
        buddy.free(first, 1);
        assert_eq!(buddy.allocate(&one).unwrap(), first);
    }
    assert!(before == buddy.words);
}
