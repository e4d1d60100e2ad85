//! How fast frames go, and how long an answer takes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ringfence_kernel::println;
use ringfence_kernel::time::{tsc, tsc_hz};

use crate::card::{Place, frame, receive_all, receive_until};
use crate::drivers::open;
use crate::report_features;
use crate::support::lines::Subject;
use crate::support::options::Options;

/// The shortest frame.
const SHORTEST: usize = 60;
/// The host is asked for so many frames at once, and acknowledges so many.
const RUN: usize = 1024;

/// What to measure.
struct Plan {
    guests: Vec<String>,
    lengths: Vec<usize>,
    batches: Vec<usize>,
    /// How long one figure is measured, in TSC increments.
    duration: u64,
    /// Round trips for one figure.
    trips: usize,
}

/// Measures everything, `rounds` times. For each figure the drivers take turns.
pub fn measure(mut options: Options, cards: &[Place]) {
    let rounds = options.number("rounds", 5);
    let plan = Plan {
        guests: options.words("guests", "ours+ceiling+virtio-drivers"),
        lengths: options.numbers("lengths", "60+1514"),
        batches: options.numbers("batches", "1+8+32+128"),
        duration: options.number("millis", 20) * tsc_hz() / 1000,
        trips: options.number("trips", 200) as usize,
    };
    options.done();
    let [one, two, others @ ..] = cards else { panic!("two network cards on one hub are needed") };
    report_features(&plan.guests, one);
    for round in 1..=rounds {
        hub(&plan, one, two);
        if let Some(card) = others.first() {
            host(&plan, card);
        }
        println!("bench-progress: round {round} of {rounds}");
    }
}

/// From one card of the hub to the other: the next batch is sent when all of the last one has arrived, or
/// with two of them on their way.
fn hub(plan: &Plan, one: &Place, two: &Place) {
    plan.for_each(|guest, length, batch| {
        for (name, rest) in [("hub", 0), ("hub, two batches", batch)] {
            let (mut sender, mut receiver) = (open(guest, one), open(guest, two));
            sender.load(&frame(length, 0, 0, 0));
            let mut missing = 0;
            let rate = plan.rate(|| {
                sender.send(batch);
                missing = receive_until(&mut *receiver, missing + batch, rest, batch);
                batch
            });
            receive_all(&mut *receiver, missing, batch);
            let workload = format!("{length} B, {name}");
            let subject = Subject { guest, workload: &workload, depth: batch };
            rate.report(&subject);
            if let (Some(one), Some(two)) = (sender.costs(), receiver.costs()) {
                one.and(two).report(&subject, rate.before + rate.frames);
            }
        }
    });
    for guest in &plan.guests {
        let mut cards = [open(guest, one), open(guest, two)];
        cards.iter_mut().for_each(|card| card.load(&frame(SHORTEST, 0, 0, 0)));
        let [sender, receiver] = &mut cards;
        plan.latency(guest, "60 B, hub, there and back", || {
            sender.send(1);
            receive_all(&mut **receiver, 1, 1);
            receiver.send(1);
            receive_all(&mut **sender, 1, 1);
        });
    }
}

/// To the host and from it, which waits for what it has no room for, as does the card: none is lost.
fn host(plan: &Plan, function: &Place) {
    plan.for_each(|guest, length, batch| {
        let mut card = open(guest, function);
        card.load(&frame(length, RUN as u32, 1, SHORTEST as u16));
        let rate = plan.rate(|| {
            (0..RUN / batch).for_each(|_| card.send(batch));
            receive_all(&mut *card, 1, 1);
            RUN
        });
        let workload = format!("{length} B, send to the host");
        rate.report(&Subject { guest, workload: &workload, depth: batch });

        card.load(&frame(SHORTEST, 1, RUN as u32, length as u16));
        let rate = plan.rate(|| {
            card.send(1);
            receive_all(&mut *card, RUN, batch);
            RUN
        });
        let workload = format!("{length} B, receive from the host");
        rate.report(&Subject { guest, workload: &workload, depth: batch });
    });
    for guest in &plan.guests {
        let mut card = open(guest, function);
        card.load(&frame(SHORTEST, 1, 1, SHORTEST as u16));
        plan.latency(guest, "60 B, host, there and back", || {
            card.send(1);
            receive_all(&mut *card, 1, 1);
        });
    }
}

/// Frames, and the time that they took.
struct Rate {
    frames: u64,
    time: u64,
    /// Frames before that, to warm up.
    before: u64,
}

impl Rate {
    fn report(&self, subject: &Subject<'_>) {
        let rate = u128::from(self.frames) * u128::from(tsc_hz()) / u128::from(self.time);
        subject.report("throughput", "frames/s", rate);
        subject.report("cycles", "per frame", self.time / self.frames);
    }
}

impl Plan {
    /// Every length and batch, under each driver in turn.
    fn for_each(&self, mut measure: impl FnMut(&str, usize, usize)) {
        for &length in &self.lengths {
            for &batch in &self.batches {
                self.guests.iter().for_each(|guest| measure(guest, length, batch));
            }
        }
    }

    /// Repeats `exchange`, which says how many frames it moved, as long as planned, after an eighth of that
    /// to warm up.
    fn rate(&self, mut exchange: impl FnMut() -> usize) -> Rate {
        let mut run = |duration| {
            let start = tsc();
            let mut frames = 0;
            loop {
                frames += exchange() as u64;
                let time = tsc() - start;
                if time >= duration {
                    return (frames, time);
                }
            }
        };
        let (before, _) = run(self.duration / 8);
        let (frames, time) = run(self.duration);
        Rate { frames, time, before }
    }

    /// Reports how long `trip` takes.
    fn latency(&self, guest: &str, workload: &str, mut trip: impl FnMut()) {
        (0..self.trips / 8).for_each(|_| trip());
        let mut times: Vec<u64> = Vec::with_capacity(self.trips);
        for _ in 0..self.trips {
            let start = tsc();
            trip();
            times.push(tsc() - start);
        }
        times.sort_unstable();
        let at = |percent| times[(times.len() - 1) * percent / 100];
        let subject = Subject { guest, workload, depth: 1 };
        for (metric, time) in [("latency, median", at(50)), ("latency, 99th percentile", at(99))] {
            subject.report(metric, "ns", u128::from(time) * 1_000_000_000 / u128::from(tsc_hz()));
        }
    }
}
