//! A ticket names one chain, and nothing once that came back. A chain that was given up stays with the queue
//! until the device is done with it.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use ringfence_drivers::virtio::{QueueError, Ticket};
use ringfence_testkit::bench::{Bench, FORMATS};
use ringfence_testkit::{Chain, EVENT_IDX, IN_ORDER};

fn formats() -> impl Iterator<Item = u64> {
    FORMATS.into_iter().flat_map(|format| [format, format | IN_ORDER | EVENT_IDX])
}

/// So many chains, which the device has.
fn in_flight(format: u64, count: u16) -> (Bench, Vec<Ticket>, Vec<Chain>) {
    let mut bench = Bench::new(format, 8, 2);
    let tickets = (0..count).map(|_| bench.submit(1, 1).unwrap()).collect();
    bench.queue.kick();
    let chains = std::iter::from_fn(|| bench.ring.take()).collect();
    (bench, tickets, chains)
}

#[test]
fn a_stale_ticket_names_nothing_however_often_its_slot_was_taken() {
    for format in formats() {
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
            assert!(!bench.queue.give_up(stale) && !bench.queue.give_up(before));
            assert!(stale != next && before != next && next.index() < bench.queue.slots());
            before = next;
        }
        assert!(bench.queue.counters().submitted > 1 << 17);
        bench.check();
    }
}

#[test]
fn what_was_given_up_comes_back_late_and_nobody_is_told() {
    for format in formats() {
        let (mut bench, tickets, chains) = in_flight(format, 3);
        assert!(bench.queue.give_up(tickets[1]));
        assert!(!bench.queue.give_up(tickets[1]) && !bench.queue.is_in_flight(tickets[1]), "only once");
        assert_eq!((bench.queue.lost(), bench.queue.in_flight()), (1, 3), "the device still has it");
        bench.check();
        chains.iter().for_each(|chain| bench.ring.complete(chain.head, 0));
        let mut names = Vec::new();
        let came_back = bench.queue.reap(|completion, _| {
            assert_ne!(completion.ticket, tickets[1]);
            names.push(completion.buffers.name());
        });
        assert_eq!((came_back, names), (Ok(3), vec![1, 3]), "{format:#x}");
        bench.inside.clear();
        let counters = bench.queue.counters();
        assert_eq!((bench.queue.lost(), counters.given_up, counters.late), (0, 1, 1));
        assert_eq!(bench.queue.in_flight(), 0);
        bench.check();
        // Its slot is as good as any other.
        while bench.room() > 0 {
            bench.submit(1, 1).unwrap();
        }
        bench.check();
    }
}

/// One look may find nothing else: that is no completion, and not the end of the queue.
#[test]
fn one_at_a_time() {
    for format in formats() {
        let (mut bench, tickets, chains) = in_flight(format, 3);
        bench.queue.give_up(tickets[0]);
        bench.ring.complete(chains[0].head, 0);
        assert!(bench.queue.pop().unwrap().is_none());
        bench.queue.give_up(tickets[1]);
        bench.ring.complete(chains[1].head, 0);
        bench.ring.complete(chains[2].head, 0);
        assert_eq!(bench.queue.pop().unwrap().unwrap().buffers.name(), 3);
        assert!(bench.queue.pop().unwrap().is_none());
        assert_eq!(
            (bench.queue.lost(), bench.queue.in_flight(), bench.pool.available()),
            (0, 0, bench.buffers)
        );
    }
}

#[test]
fn a_device_cannot_name_what_was_given_up_twice_or_too_early() {
    for format in FORMATS {
        let (mut bench, tickets, chains) = in_flight(format, 2);
        bench.queue.give_up(tickets[0]);
        bench.ring.complete(chains[0].head, 0);
        assert!(bench.queue.pop().unwrap().is_none());
        bench.inside.remove(&1);
        bench.ring.complete(chains[0].head, 0);
        assert_eq!(bench.queue.pop().map(drop), Err(QueueError::Broken));
        bench.assert_broken();

        let (mut bench, ..) = in_flight(format, 1);
        let untold = bench.submit(1, 1).unwrap();
        bench.queue.give_up(untold);
        bench.ring.complete(untold.index() as u16, 0);
        assert_eq!(bench.reap(), Err(QueueError::Broken));
        bench.assert_broken();
    }
}

/// The device is told of what was given up before: it lies in the ring.
#[test]
fn given_up_before_it_was_told() {
    for format in formats() {
        let mut bench = Bench::new(format, 8, 2);
        let ticket = bench.submit(1, 1).unwrap();
        bench.queue.give_up(ticket);
        bench.queue.kick();
        let chain = bench.ring.take().unwrap();
        bench.ring.complete(chain.head, 0);
        assert_eq!(bench.queue.reap(|_, _| panic!("nobody waits")), Ok(1));
        assert_eq!((bench.queue.lost(), bench.pool.available()), (0, bench.buffers));
    }
}

#[test]
fn a_reset_gives_back_what_was_given_up_and_nothing_else_does() {
    for format in formats() {
        let (mut bench, tickets, _) = in_flight(format, 2);
        bench.queue.give_up(tickets[0]);
        let quiet = bench.device.shut_down().unwrap();
        assert_eq!(bench.queue.reclaim(&quiet).count(), 2);
        assert_eq!(
            (bench.queue.lost(), bench.queue.in_flight(), bench.pool.available()),
            (0, 0, bench.buffers)
        );
        assert!(!bench.queue.is_in_flight(tickets[1]) && !bench.queue.give_up(tickets[1]));

        let (mut bench, tickets, _) = in_flight(format, 2);
        bench.queue.give_up(tickets[0]);
        drop(bench.queue);
        assert_eq!(bench.pool.available(), bench.buffers - 4, "the device may still write there");
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Submit,
    Kick,
    Take,
    Complete(Index),
    GiveUp(Index),
    Reap,
    Pop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::Submit),
        3 => Just(Step::Kick),
        3 => Just(Step::Take),
        5 => any::<Index>().prop_map(Step::Complete),
        3 => any::<Index>().prop_map(Step::GiveUp),
        2 => Just(Step::Reap),
        2 => Just(Step::Pop),
    ]
}

proptest! {
    /// Each chain comes back once, or was given up and never does; the queue has its buffers for as long as
    /// the device has.
    #[test]
    fn every_chain_has_one_end(
        format in select(formats().collect::<Vec<_>>()),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut bench = Bench::new(format, 8, 2);
        // All tickets by name, from 1 on; which of them are waited for, and how many are not any more.
        let (mut tickets, mut waiting, mut given_up) = (Vec::new(), Vec::new(), 0);
        let (mut held, mut used) = (Vec::new(), 0);
        for step in steps {
            match step {
                Step::Submit if bench.room() > 0 => {
                    let item = bench.item(1, 1).unwrap();
                    tickets.push(bench.queue.submit(item).unwrap());
                    waiting.push(tickets.len() as u64);
                }
                Step::Kick => bench.queue.kick(),
                Step::Take => held.extend(bench.ring.take()),
                Step::Complete(which) if !held.is_empty() => {
                    let which = if format & IN_ORDER != 0 { 0 } else { which.index(held.len()) };
                    bench.ring.complete(held.remove(which).head, 0);
                    used += 1;
                }
                Step::GiveUp(which) if !tickets.is_empty() => {
                    let name = which.index(tickets.len()) as u64 + 1;
                    let place = waiting.iter().position(|&other| other == name);
                    let ticket = tickets[name as usize - 1];
                    prop_assert_eq!(bench.queue.is_in_flight(ticket), place.is_some());
                    prop_assert_eq!(bench.queue.give_up(ticket), place.is_some());
                    given_up += u64::from(place.map(|place| waiting.remove(place)).is_some());
                }
                Step::Reap | Step::Pop => {
                    let before = bench.queue.in_flight();
                    let mut told = Vec::new();
                    if matches!(step, Step::Pop) {
                        let popped = bench.queue.pop().unwrap();
                        told.extend(popped.map(|done| (done.ticket, done.buffers.name())));
                    } else {
                        bench.queue.reap(|done, _| told.push((done.ticket, done.buffers.name()))).unwrap();
                        prop_assert_eq!(usize::from(bench.queue.in_flight()), tickets.len() - used);
                    }
                    prop_assert!(usize::from(before - bench.queue.in_flight()) >= told.len());
                    for (ticket, name) in told {
                        prop_assert_eq!(ticket, tickets[name as usize - 1]);
                        let place = waiting.iter().position(|&other| other == name);
                        waiting.remove(place.expect("it was waited for"));
                    }
                }
                _ => {}
            }
            let counters = bench.queue.counters();
            prop_assert_eq!(counters.given_up, given_up);
            prop_assert_eq!(counters.given_up - counters.late, bench.queue.lost().into());
            prop_assert_eq!(usize::from(bench.queue.in_flight()), bench.queue.occupied());
            prop_assert_eq!(bench.pool.available() + 2 * bench.queue.occupied(), bench.buffers);
        }
        bench.queue.kick();
        held.extend(std::iter::from_fn(|| bench.ring.take()));
        held.iter().for_each(|chain| bench.ring.complete(chain.head, 0));
        bench.queue.reap(|done, _| waiting.retain(|&name| name != done.buffers.name())).unwrap();
        prop_assert_eq!((waiting.len(), bench.queue.lost(), bench.queue.in_flight()), (0, 0, 0));
        prop_assert_eq!(bench.pool.available(), bench.buffers);
    }
}
