//! The driver's queue against our device's, in every combination of ring features: what goes in comes out,
//! once, and notifications are sent exactly when they are due, in both directions.

use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;
use proptest::sample::Index;
use ringfence_drivers::virtio::QueueOptions;
use ringfence_testkit::rig::{LEN, Mode, Rig};

#[derive(Clone, Debug)]
enum Step {
    /// Lengths of the readable and the writable segments; most of the time no more than there may be.
    Submit(Vec<usize>, Vec<usize>, bool),
    Kick,
    Take(usize),
    Answer(Index, Option<Index>),
    Flush,
    Reap(usize),
    Interrupts(bool),
    Notifications(bool),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let lens = || prop::collection::vec(1..=LEN, 0..4);
    prop_oneof![
        12 => (lens(), lens(), prop::bool::weighted(0.9)).prop_map(|(r, w, fit)| Step::Submit(r, w, fit)),
        4 => Just(Step::Kick),
        4 => (1_usize..10).prop_map(Step::Take),
        8 => (any::<Index>(), any::<Option<Index>>()).prop_map(|(which, part)| Step::Answer(which, part)),
        2 => Just(Step::Flush),
        4 => prop_oneof![Just(usize::MAX), 1_usize..4].prop_map(Step::Reap),
        2 => any::<bool>().prop_map(Step::Interrupts),
        1 => any::<bool>().prop_map(Step::Notifications),
        1 => Just(Step::Reset),
    ]
}

/// Any size that both formats allow, and one of its own for packed rings.
fn options() -> impl Strategy<Value = [QueueOptions; 2]> {
    let odd = prop_oneof![prop::sample::select(vec![1_u16, 3, 5, 7, 255]), 1_u16..100];
    let indexes = any::<[Index; 3]>();
    (0_u32..8, odd, indexes).prop_map(|(order, odd, [segments, longer, chains])| {
        [1 << order, odd].map(|size| {
            let segments = 1 + segments.index(usize::from(size.min(6))) as u16;
            let longest = segments.max(longer.index(9) as u16);
            QueueOptions { size, chains: 1 + chains.index(size.into()) as u16, segments, longest }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_steps_in_every_mode(
        options in options(),
        (batching, fixed) in any::<(bool, bool)>(),
        steps in prop::collection::vec(step(), 1..400),
    ) {
        for mode in Mode::all() {
            let options = options[usize::from(mode.packed)];
            let batching = batching && options.size >= 2 * options.longest;
            let fixed = fixed && options.longest.min(options.size) > 1;
            let mut rig = Rig::with_fixed(mode, options, batching, fixed);
            for step in &steps {
                match step {
                    Step::Submit(readable, writable, fit) => {
                        let most = if *fit { rig.longest - rig.fixed } else { usize::MAX };
                        let readable = &readable[..readable.len().min(most)];
                        rig.submit(readable, &writable[..writable.len().min(most - readable.len())]);
                    }
                    Step::Kick => rig.kick(),
                    Step::Take(count) => {
                        let _ = (0..*count).all(|_| rig.take());
                    }
                    Step::Answer(which, part) if !rig.held.is_empty() => {
                        rig.answer(which.index(rig.held.len()), *part);
                    }
                    Step::Answer(..) => (),
                    Step::Flush => rig.flush(),
                    Step::Reap(limit) => {
                        rig.reap(*limit);
                    }
                    Step::Interrupts(on) => rig.set_interrupts(*on),
                    Step::Notifications(on) => rig.set_notifications(*on),
                    Step::Reset => rig.reset(),
                }
                rig.check();
            }
            rig.finish();
        }
    }
}

/// A generator of numbers below `below` (xorshift).
fn random(state: &Cell<u64>, below: usize) -> usize {
    let mut next = state.get();
    next ^= next << 13;
    next ^= next >> 7;
    next ^= next << 17;
    state.set(next);
    (next % below as u64) as usize
}

/// More chains than indexes can count, in small rings, with a notification now and then; in any order if it
/// may be.
#[test]
fn indexes_wrap_in_every_mode() {
    for mode in Mode::all() {
        let size = if mode.packed { 7 } else { 8 };
        let mut rig = Rig::new(mode, QueueOptions { size, chains: 8, segments: 3, longest: 3 }, false);
        let state = Rc::new(Cell::new(0x2545_f491_4f6c_dd1d));
        while rig.number < 70_000 {
            for _ in 0..1 + random(&state, 5) {
                let kind = random(&state, 8) + 1;
                let (readable, writable) = (kind / 3, kind % 3);
                rig.submit(&vec![4; readable], &vec![4; writable]);
            }
            rig.kick();
            while rig.take() {}
            while !rig.held.is_empty() {
                rig.answer(random(&state, rig.held.len()), None);
            }
            rig.reap(usize::MAX);
            if random(&state, 4) == 0 {
                rig.set_interrupts(random(&state, 2) == 0);
            }
        }
        rig.finish();
    }
}

/// The largest rings, filled to the last descriptor, with one notification in each direction.
#[test]
fn the_largest_rings_are_filled() {
    const SIZE: u16 = 1 << 15;
    for mode in Mode::all() {
        let options = QueueOptions { size: SIZE, chains: SIZE, segments: 3, longest: 3 };
        let mut rig = Rig::new(mode, options, true);
        let depth = usize::from(rig.driver.depth());
        for round in 0..3 {
            rig.set_interrupts(true);
            for _ in 0..depth {
                assert!(rig.submit(&[1], &[1, 1]));
            }
            assert!(!rig.submit(&[1], &[]));
            rig.kick();
            while rig.take() {}
            let interrupts = rig.interrupts.get();
            while let Some(last) = rig.held.len().checked_sub(1) {
                rig.answer(if mode.in_order { 0 } else { last }, None);
            }
            rig.flush();
            assert!(rig.interrupts.get() > interrupts);
            assert_eq!(rig.reap(usize::MAX), depth);
            assert_eq!(rig.kicks, round + 1, "one for each batch");
        }
        rig.finish();
    }
}

/// While the device polls it is not notified, and while the driver polls it is not interrupted.
#[test]
fn nobody_who_polls_is_notified() {
    for mode in Mode::all() {
        let size = if mode.packed { 5 } else { 4 };
        let mut rig = Rig::new(mode, QueueOptions { size, chains: 4, segments: 1, longest: 1 }, false);
        rig.set_interrupts(false);
        rig.set_notifications(false);
        for _ in 0..40_000 {
            rig.submit(&[1], &[]);
            rig.submit(&[], &[1]);
            rig.kick();
            while rig.take() {}
            while !rig.held.is_empty() {
                rig.answer(0, None);
            }
            rig.reap(usize::MAX);
        }
        assert_eq!([rig.kicks, rig.interrupts.get()], [0, 0], "{mode:?}");
        rig.finish();
    }
}
