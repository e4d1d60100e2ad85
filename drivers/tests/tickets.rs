//! A ticket names one chain, and nothing once that came back.

mod support;

use support::bench::{Bench, FORMATS};
use support::{EVENT_IDX, IN_ORDER};

#[test]
fn a_stale_ticket_names_nothing_however_often_its_slot_was_taken() {
    for format in FORMATS.into_iter().flat_map(|format| [format, format | IN_ORDER | EVENT_IDX]) {
        // Two slots, so that each is taken more often than a slot's number, or an index of a ring, can say.
        let mut bench = Bench::new(format, 4, 2);
        let stale = bench.submit(1, 1).unwrap();
        let mut before = stale;
        for round in 0..1 << 17 {
            bench.queue.kick();
            let chain = bench.ring.take().unwrap();
            bench.ring.complete(chain.head, 0);
            assert!(bench.queue.is_in_flight(before), "it was not taken out yet");
            assert_eq!(bench.reap().unwrap().len(), 1);
            let next = bench.submit(1, 1).unwrap();
            let named = [stale, before, next].map(|ticket| bench.queue.is_in_flight(ticket));
            assert_eq!(named, [false, false, true], "{format:#x}, round {round}");
            assert!(stale != next && before != next && next.index() < bench.queue.slots());
            before = next;
        }
        assert!(bench.queue.counters().submitted > 1 << 17);
    }
}
