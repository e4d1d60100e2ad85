//! A device that lies about chains that were given up, that are long, or that have no segments of their own;
//! and callers that unwind while chains come back.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use ringfence_drivers::virtio::{QueueError, Ticket};
use ringfence_testkit::bench::{Bench, FORMATS, Shape};
use ringfence_testkit::{EVENT_IDX, IN_ORDER};

fn formats() -> impl Iterator<Item = u64> {
    FORMATS.into_iter().flat_map(|format| [format, format | IN_ORDER, format | IN_ORDER | EVENT_IDX])
}

/// Slots of three descriptors, and others for chains of up to seven.
fn bench(features: u64, fixed: bool) -> Bench {
    Bench::with(Shape { features, size: 16, chains: 4, segments: 3, longest: 7, fixed })
}

#[derive(Clone, Debug)]
enum Step {
    Submit(usize),
    Kick,
    GiveUp(Index),
    Reap,
    Pop,
    /// The device uses a chain, which it may have used before, or not have been told of.
    Use(Index, u32),
    /// Several at once, in order or not.
    UseMany(Vec<Index>),
    Publish,
    /// A used index, or flags.
    Lie(u16),
    LieUsed(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let any = || any::<Index>();
    prop_oneof![
        20 => (0_usize..6).prop_map(Step::Submit),
        12 => Just(Step::Kick),
        6 => any().prop_map(Step::GiveUp),
        6 => Just(Step::Reap),
        6 => Just(Step::Pop),
        12 => (any(), prop_oneof![0..70_u32, proptest::num::u32::ANY]).prop_map(|(a, b)| Step::Use(a, b)),
        4 => prop::collection::vec(any(), 1..4).prop_map(Step::UseMany),
        16 => Just(Step::Publish),
        1 => prop_oneof![0_u16..20, proptest::num::u16::ANY].prop_map(Step::Lie),
        1 => prop_oneof![0_u32..20, proptest::num::u32::ANY].prop_map(Step::LieUsed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Nothing comes back twice, or after it was given up; what the queue still has nobody else has.
    #[test]
    fn lies_about_what_was_given_up(
        format in select(formats().collect::<Vec<_>>()),
        (fixed, once, resets) in any::<(bool, bool, bool)>(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut bench = bench(format, fixed);
        let mut names: Vec<Ticket> = Vec::new();
        // How many buffers each has that is waited for, and that was given up.
        let (mut waiting, mut lost) = (HashMap::new(), HashMap::new());
        let mut heads = Vec::new();
        // Until it uses some in another order than it may the device knows what it is told.
        let (in_order, mut knows) = (format & IN_ORDER != 0, true);
        for step in steps {
            match step {
                Step::Submit(count) => {
                    let Some(item) = bench.item(count / 2, count - count / 2) else { continue };
                    let name = item.name();
                    match bench.queue.submit(item) {
                        Ok(ticket) => assert!(waiting.insert(name, (ticket, count)).is_none()),
                        Err(_) => continue,
                    };
                    names.push(waiting[&name].0);
                }
                Step::Kick => {
                    bench.queue.kick();
                    if knows && !bench.ring.lied() {
                        heads.extend(std::iter::from_fn(|| bench.ring.take()).map(|chain| chain.head));
                    }
                }
                Step::GiveUp(which) if !names.is_empty() => {
                    let ticket = names[which.index(names.len())];
                    let name = waiting.iter().find(|(_, (other, _))| *other == ticket).map(|(name, _)| *name);
                    prop_assert_eq!(bench.queue.give_up(ticket), name.is_some());
                    name.map(|name| lost.insert(name, waiting.remove(&name).unwrap()));
                }
                Step::Reap | Step::Pop => {
                    let (mut back, before) = (Vec::new(), bench.queue.in_flight());
                    let result = if matches!(step, Step::Pop) {
                        bench.queue.pop().map(|done| back.extend(done))
                    } else {
                        bench.queue.reap(|done, _| back.push(done)).map(|count| {
                            assert_eq!(usize::from(before - bench.queue.in_flight()), count);
                        })
                    };
                    prop_assert!(matches!(result, Ok(()) | Err(QueueError::Broken)));
                    prop_assert_eq!(result.is_err(), bench.queue.is_broken());
                    for done in back {
                        let (ticket, count) = waiting.remove(&done.buffers.name()).expect("nobody waits");
                        prop_assert_eq!(ticket, done.ticket);
                        let [readable, writable] = done.buffers.buffers().map(<[_]>::len);
                        prop_assert_eq!(readable + writable, count);
                    }
                }
                Step::Use(which, len) if !heads.is_empty() => {
                    let which = which.index(heads.len());
                    bench.ring.put_used(heads[which].into(), len);
                    knows &= !in_order || which == 0;
                    if once {
                        heads.remove(which);
                    }
                }
                Step::UseMany(which) if !heads.is_empty() => {
                    let some: Vec<_> = if once && in_order {
                        heads[..which.len().min(heads.len())].to_vec()
                    } else {
                        which.iter().map(|which| heads[which.index(heads.len())]).collect()
                    };
                    bench.ring.put_used_batch(&some, 9);
                    knows &= in_order && heads.starts_with(&some);
                    if once {
                        heads.retain(|head| !some.contains(head));
                    }
                }
                Step::Publish => _ = bench.ring.publish(),
                Step::Lie(index) if !once => bench.ring.lie(index),
                Step::LieUsed(id) if !once => bench.ring.lie_used(id),
                _ => {}
            }
            let all = bench.queue.in_flight();
            prop_assert_eq!(usize::from(all), bench.queue.occupied());
            prop_assert_eq!(usize::from(all - bench.queue.lost()), waiting.len());
            prop_assert!(waiting.values().all(|(ticket, _)| bench.queue.is_in_flight(*ticket)));
            // Which of those that were given up are back nobody is told.
            let all = |map: &HashMap<u64, (Ticket, usize)>| map.values().map(|one| one.1).sum::<usize>();
            let (mine, gone) = (all(&waiting), all(&lost));
            let out = bench.buffers - bench.pool.available();
            prop_assert!((mine..=mine + gone).contains(&out));
            prop_assert!(bench.queue.lost() > 0 || out == mine);
        }
        let out = bench.buffers - bench.pool.available();
        if resets {
            let (quiet, counters) = (bench.device.shut_down().unwrap(), bench.queue.counters());
            let left = bench.queue.reclaim(&quiet).count() as u64;
            prop_assert_eq!(left, counters.submitted - counters.completions);
            prop_assert_eq!(bench.pool.available(), bench.buffers);
        } else {
            drop(bench.queue);
            prop_assert_eq!(bench.buffers - bench.pool.available(), out, "what the device may have");
        }
    }
}

/// Whoever unwinds while chains come back has those that it was given, and nobody has any of them twice.
#[test]
fn unwinding_breaks_the_queue() {
    let cases = formats().flat_map(|format| [false, true].map(|fixed| (format, fixed)));
    for ((format, fixed), end) in cases.flat_map(|case| (0..3).map(move |end| (case, end))) {
        let mut bench = bench(format, fixed);
        // One that was given up, one without a segment of its own, a long one.
        let counts = if fixed { [1, 0, 5, 1] } else { [1, 2, 5, 1] };
        let tickets = counts.map(|count| bench.submit(0, count).unwrap());
        bench.queue.kick();
        bench.queue.give_up(tickets[0]);
        while let Some(chain) = bench.ring.take() {
            bench.ring.complete(chain.head, 0);
        }
        let mut names = Vec::new();
        let reap = AssertUnwindSafe(|| {
            bench.queue.reap(|done, _| {
                names.push(done.buffers.name());
                assert!(names.len() <= end, "the caller");
            })
        });
        assert!(catch_unwind(reap).is_err());
        assert_eq!(names, [2, 3, 4][..=end], "{format:#x}");
        let left = 3 - names.len();
        let check = |bench: &mut Bench| {
            assert!(
                bench.queue.is_broken() && bench.queue.pop().is_err() && bench.queue.next_slot().is_none()
            );
            let item = bench.item(0, 1).unwrap();
            assert_eq!(bench.queue.submit(item).map_err(|(error, _)| error), Err(QueueError::Broken));
            assert!(tickets[..=names.len()].iter().all(|&ticket| !bench.queue.is_in_flight(ticket)));
            assert_eq!((bench.queue.occupied(), bench.queue.lost()), (left, 0));
        };
        check(&mut bench);
        bench.queue.kick();
        bench.queue.kick_again();
        check(&mut bench);
        let quiet = bench.device.shut_down().unwrap();
        let left: Vec<_> = bench.queue.reclaim(&quiet).map(|buffers| buffers.name()).collect();
        assert!(left.iter().all(|name| !names.contains(name)) && names.len() + left.len() == 3);
        assert_eq!(bench.pool.available(), bench.buffers);
    }
}
