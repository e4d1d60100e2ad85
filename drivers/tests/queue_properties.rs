//! The driver side of the virtqueue through any sequence of steps, in both formats and with every feature of
//! the rings.

use proptest::prelude::*;
use ringfence_drivers::virtio::QueueError;
use ringfence_testkit::bench::{Bench, Shape};
use ringfence_testkit::{Chain, EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED};

#[derive(Clone, Debug)]
enum Step {
    Submit {
        readable: usize,
        writable: usize,
    },
    Kick,
    Take,
    /// Completes one of the chains that the device holds, without publishing; in order, the oldest few at
    /// once.
    Use {
        which: prop::sample::Index,
        len: u32,
    },
    Publish,
    Reap,
    Pop,
    Interrupts(bool),
    Suppress(bool),
    Scribble(u8),
    // What no device may do.
    BadId(u32),
    Lie(u16),
}

fn polite() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..4, 0_usize..4).prop_map(|(readable, writable)| Step::Submit { readable, writable }),
        3 => Just(Step::Kick),
        6 => Just(Step::Take),
        5 => (any::<prop::sample::Index>(), 0_u32..300).prop_map(|(which, len)| Step::Use { which, len }),
        3 => Just(Step::Publish),
        3 => Just(Step::Reap),
        2 => Just(Step::Pop),
        1 => any::<bool>().prop_map(Step::Interrupts),
        1 => any::<bool>().prop_map(Step::Suppress),
    ]
}

fn hostile() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => polite(),
        2 => any::<u8>().prop_map(Step::Scribble),
        1 => prop_oneof![0_u32..40, any::<u32>()].prop_map(Step::BadId),
        1 => prop_oneof![0_u16..40, any::<u16>()].prop_map(Step::Lie),
    ]
}

/// Any size that the format allows; any chains, of any length.
fn shape() -> impl Strategy<Value = Shape> {
    let features = prop::sample::subsequence(vec![RING_PACKED, EVENT_IDX, INDIRECT_DESC, IN_ORDER], 0..=4);
    let longer = prop_oneof![Just(0_u16), 0_u16..9];
    (features, 1_u16..40, 1_u16..40, 1_u16..9, longer, any::<bool>()).prop_map(
        |(features, size, chains, segments, longer, fixed)| {
            let features = features.into_iter().sum();
            let size = if features & RING_PACKED == 0 { 1 << size.ilog2() } else { size };
            let longest = segments + longer;
            // Fixed segments are two of them.
            let fixed = fixed && size > 1 && longest > 1;
            Shape { features, size, chains, segments, longest, fixed }
        },
    )
}

/// What the driver makes of a used element's length: where nothing can be written it means nothing (2.8.13).
fn believed(chain: &Chain, len: u32) -> Option<u32> {
    let most = chain.writable_len();
    if most == 0 { Some(0) } else { Some(len).filter(|&len| len <= most) }
}

/// Runs `steps` against a model of what should come back. The device may lie only if `hostile`.
fn run(shape: Shape, steps: Vec<Step>, hostile: bool) {
    let mut bench = Bench::with(shape);
    let [event_idx, in_order] = [EVENT_IDX, IN_ORDER].map(|feature| shape.features & feature != 0);
    let mut held = Vec::<Chain>::new();
    // Chains used but not reaped, in order, with what the driver should say of their length.
    let mut expected = Vec::new();
    let mut published = 0;
    // Whether interrupts are wanted; whether the driver was told that there is something already.
    let mut wanted = true;
    for step in steps {
        match step {
            Step::Submit { readable, writable } => {
                let broken = bench.submit(readable, writable) == Err(QueueError::Broken);
                assert!(hostile || !broken);
            }
            Step::Kick => {
                let before = bench.fake.kicks(0);
                let old = bench.ring.available();
                bench.queue.kick();
                let kicks = bench.fake.kicks(0) - before;
                assert!(kicks <= 1);
                if !bench.ring.lied() {
                    let new = bench.ring.available();
                    assert_eq!(kicks == 1, bench.ring.kick_due(old, new), "{old}..{new}");
                    let position = bench.fake.model().queues[0].position;
                    assert!(kicks == 0 || position == Some(bench.ring.event(new)), "{position:?}");
                }
            }
            // After a lie the model cannot read the chains any more: it only lies from then on.
            Step::Take if !bench.ring.lied() => {
                let chain = bench.ring.take();
                let mut inside = bench.inside.values().map(|count| count + bench.fixed);
                assert!(chain.iter().all(|chain| inside.any(|count| count == chain.segments.len())));
                held.extend(chain);
            }
            Step::Use { which, len } if in_order && !held.is_empty() => {
                let batch: Vec<_> = held.drain(..1 + which.index(held.len().min(4))).collect();
                let ids: Vec<_> = batch.iter().map(|chain| chain.head).collect();
                bench.ring.put_used_batch(&ids, len);
                // Only of the last is the length known: the others were written to the end.
                let (last, others) = batch.split_last().unwrap();
                expected.extend(others.iter().map(|chain| Some(chain.writable_len())));
                expected.push(believed(last, len));
            }
            Step::Use { which, len } if !held.is_empty() => {
                let chain = held.swap_remove(which.index(held.len()));
                bench.ring.put_used(chain.head.into(), len);
                expected.push(believed(&chain, len));
            }
            Step::Publish => {
                let due = bench.ring.publish();
                assert!(hostile || !due || wanted, "an interrupt that nobody wants");
                // Without an event index every used element is worth an interrupt, if any is.
                let more = expected.len() > published;
                assert!(event_idx || hostile || due == (more && wanted));
                published = expected.len();
            }
            Step::Reap | Step::Pop => {
                let single = matches!(step, Step::Pop);
                let result = if single {
                    let inside = &mut bench.inside;
                    bench.queue.pop().map(|done| {
                        done.into_iter()
                            .map(|done| {
                                assert!(inside.remove(&done.buffers.name()).is_some());
                                (done.buffers.name(), done.written)
                            })
                            .collect()
                    })
                } else {
                    bench.reap()
                };
                match result {
                    Ok(back) if !hostile => {
                        assert!(back.len() <= published);
                        assert!(single || published == 0 || !back.is_empty());
                        for (_, written) in back {
                            assert_eq!(written, expected.remove(0));
                            published -= 1;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => assert_eq!((hostile, error), (true, QueueError::Broken)),
                }
            }
            Step::Interrupts(true) => {
                wanted = true;
                let more = bench.queue.enable_interrupts();
                assert!(hostile || more == (published > 0));
                // Whoever may sleep now is woken by the next used element.
                assert!(hostile || more || expected.len() > published || bench.ring.interrupts_wanted());
            }
            Step::Interrupts(false) => {
                wanted = false;
                bench.queue.disable_interrupts();
            }
            Step::Suppress(on) => bench.ring.suppress_kicks(on),
            Step::Scribble(with) => bench.ring.scribble(with),
            Step::BadId(id) => bench.ring.lie_used(id),
            Step::Lie(index) => bench.ring.lie(index),
            Step::Take | Step::Use { .. } => {}
        }
        bench.check();
    }
    if hostile {
        let held = bench.buffers - bench.pool.available();
        drop(bench.queue);
        assert_eq!(bench.pool.available(), bench.buffers - held);
        return;
    }
    // A polite device gives everything back.
    bench.queue.kick();
    held.extend(std::iter::from_fn(|| bench.ring.take()));
    for chain in held {
        bench.ring.complete(chain.head, chain.writable_len());
    }
    bench.ring.publish();
    while !bench.reap().unwrap().is_empty() {}
    bench.check();
    assert!(bench.inside.is_empty());
    assert_eq!(bench.room(), bench.queue.depth());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn everything_comes_back_from_a_polite_device(
        shape in shape(), steps in prop::collection::vec(polite(), 1..200),
    ) {
        run(shape, steps, false);
    }

    #[test]
    fn a_hostile_device_breaks_the_queue_and_nothing_else(
        shape in shape(), steps in prop::collection::vec(hostile(), 1..200),
    ) {
        run(shape, steps, true);
    }
}
