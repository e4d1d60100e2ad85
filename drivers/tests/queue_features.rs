//! What single features of queues are good for: tables, order, and event indices.

use ringfence_memory::Bytes;
use ringfence_testkit::bench::{Bench, Shape, rings};
use ringfence_testkit::{EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED};

/// A device that uses in order finds the entries of a table in order, too (2.7.5.3.1).
#[test]
fn tables_in_order() {
    for features in [IN_ORDER | INDIRECT_DESC, IN_ORDER | INDIRECT_DESC | EVENT_IDX] {
        let mut bench = Bench::new(features, 8, 4);
        for round in 0..40_usize {
            let count = 1 + round % 4;
            bench.submit(count / 2, count - count / 2).unwrap();
            bench.queue.kick();
            let chain = bench.ring.take().unwrap();
            let table = chain.table.expect("all are in tables");
            for at in 0..count {
                let rest = bench.ring.memory(table + 16 * at as u64 + 12, 4);
                let [flags, next] = [0, 2].map(|offset| rest.slice().read_obj::<u16>(offset).unwrap());
                assert_eq!(flags & 1 != 0, at + 1 < count, "NEXT in all but the last");
                assert!(at + 1 == count || usize::from(next) == at + 1, "{next} follows {at}");
            }
            bench.ring.complete(chain.head, 0);
            assert_eq!(bench.reap().unwrap().len(), 1);
        }
    }
}

/// What has one segment is described in the ring itself; for two, tables make room for twice as many, and
/// then all are in tables.
#[test]
fn tables_where_they_make_room() {
    for (features, segments) in rings().flat_map(|features| [(features, 1), (features, 2)]) {
        let mut bench = Bench::new(features | INDIRECT_DESC, 8, segments);
        while bench.room() > 0 {
            let readable = bench.room() % segments;
            bench.submit(readable.into(), 1).unwrap();
        }
        bench.queue.kick();
        let chains: Vec<_> = std::iter::from_fn(|| bench.ring.take()).collect();
        assert_eq!(chains.len(), 8, "{features:#x}");
        assert!(chains.iter().all(|chain| chain.table.is_some() == (segments > 1)), "{features:#x}");
    }
}

/// Without EVENT_IDX there is no position to wait for, whatever a device writes there (2.8.10): it is told.
#[test]
fn positions_that_were_not_negotiated() {
    for features in [RING_PACKED, RING_PACKED | IN_ORDER] {
        let mut bench = Bench::new(features, 8, 1);
        for position in [0, 1, 5, 7, 0x8000, 0x8007, 0xffff] {
            bench.submit(0, 1).unwrap();
            bench.ring.put_event([position, 2]);
            let kicks = bench.fake.kicks(0);
            bench.queue.kick();
            assert_eq!(bench.fake.kicks(0), kicks + 1, "at {position:#x}");
            let chain = bench.ring.take().unwrap();
            bench.ring.complete(chain.head, 0);
            assert_eq!(bench.reap().unwrap().len(), 1);
        }
    }
}

/// A small generator of numbers, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Whatever the device writes as `avail_event`: a kick exactly if the index passes it, and nothing else
/// happens.
#[test]
fn a_hostile_avail_event() {
    let mut bench = Bench::new(EVENT_IDX, 8, 1);
    let mut numbers = Numbers(1);
    let mut kicks = [0, 0];
    for round in 0..60_000_u64 {
        let old = bench.ring.available();
        let event = match round % 4 {
            // Around the index that the batch will end at, and anywhere.
            0 => numbers.below(1 << 16) as u16,
            _ => (old as u16).wrapping_add(numbers.below(24) as u16).wrapping_sub(8),
        };
        bench.ring.put_avail_event(event);
        let batch = numbers.below(8) + 1;
        for _ in 0..batch {
            bench.submit(0, 1).unwrap();
        }
        let before = bench.fake.kicks(0);
        bench.queue.kick();
        // Kicking twice says nothing new.
        bench.queue.kick();
        let due = (0..batch).any(|step| (old + step) as u16 == event);
        assert_eq!(bench.fake.kicks(0) - before, usize::from(due), "{old} + {batch}, event {event}");
        kicks[usize::from(due)] += 1;
        while let Some(chain) = bench.ring.take() {
            bench.ring.complete(chain.head, 1);
        }
        assert_eq!(bench.reap().unwrap().len() as u64, batch);
        bench.fake.model().events.clear();
    }
    assert!(kicks.iter().all(|&count| count > 1000), "{kicks:?}");
    assert!(bench.ring.available() > 1 << 17, "the index wrapped");
}

/// The same of a packed ring, where the event has a wrap counter and need not be in the ring at all.
#[test]
fn a_hostile_device_event() {
    for size in [8, 7] {
        let mut bench = Bench::new(EVENT_IDX | RING_PACKED, size, 1);
        let mut numbers = Numbers(2);
        let mut kicks = [0, 0];
        for round in 0..20_000_u64 {
            let old = bench.ring.available();
            let near =
                bench.ring.event((old + numbers.below(2 * u64::from(size))).saturating_sub(size.into()));
            let event = if round % 8 == 0 { numbers.below(1 << 16) as u16 } else { near };
            bench.ring.put_event([event, 2]);
            let batch = numbers.below(u64::from(size)) + 1;
            for _ in 0..batch {
                bench.submit(0, 1).unwrap();
            }
            let before = bench.fake.kicks(0);
            bench.queue.kick();
            let kicked = bench.fake.kicks(0) - before;
            let due = bench.ring.kick_due(old, old + batch);
            // Where the device asks for a position that the ring does not have, it may get a kick too many.
            let is_position = event & 0x7fff < size;
            assert!(
                kicked == usize::from(due) || !is_position && kicked <= 1,
                "{old} + {batch}, event {event:#x}"
            );
            kicks[usize::from(due)] += 1;
            while let Some(chain) = bench.ring.take() {
                bench.ring.complete(chain.head, 1);
            }
            assert_eq!(bench.reap().unwrap().len() as u64, batch);
            bench.fake.model().events.clear();
        }
        assert!(kicks.iter().all(|&count| count > 1000), "{kicks:?}");
    }
}

/// Keeps `depth` chains in flight; the device answers in batches of up to `batch`, and the driver looks every
/// now and then. Says how many interrupts were due over `total` completions.
fn interrupts_while_polling(features: u64, size: u16, depth: u16, batch: u64, total: u64) -> usize {
    let mut bench =
        Bench::with(Shape { features, size, chains: depth, segments: 1, longest: 1, fixed: false });
    bench.queue.disable_interrupts();
    let (mut numbers, mut due) = (Numbers(3), 0);
    while bench.queue.counters().completions < total {
        while bench.room() > 0 {
            bench.submit(0, 1).unwrap();
        }
        bench.queue.kick();
        for _ in 0..=numbers.below(3) {
            for _ in 0..=numbers.below(batch) {
                let Some(chain) = bench.ring.take() else { break };
                bench.ring.put_used(chain.head.into(), 1);
            }
            due += usize::from(bench.ring.publish());
        }
        match numbers.below(4) {
            0 => {
                let done = bench.queue.pop().unwrap();
                done.into_iter().for_each(|done| _ = bench.inside.remove(&done.buffers.name()));
            }
            _ => drop(bench.reap().unwrap()),
        }
    }
    due
}

#[test]
fn nobody_is_interrupted_while_polling() {
    for (features, size, depth, batch) in [
        (0, 4, 4, 4),
        (EVENT_IDX, 1, 1, 1),
        (EVENT_IDX, 4, 4, 1),
        (EVENT_IDX, 4, 4, 4),
        (EVENT_IDX, 256, 256, 300),
        (EVENT_IDX, 16384, 16384, 16384),
        (EVENT_IDX, 32768, 128, 128),
        (EVENT_IDX, 32768, 16384, 16384),
        (EVENT_IDX, 32768, 32768, 32768),
        (EVENT_IDX | RING_PACKED, 4, 4, 4),
        (EVENT_IDX | RING_PACKED, 32768, 32768, 32768),
    ] {
        let due = interrupts_while_polling(features, size, depth, batch, 100_000);
        assert_eq!(due, 0, "features {features:#x}, {depth} of {size}, batches of {batch}");
    }
}
