//! How many instructions a frame takes. Only for `-icount shift=0,sleep=off`, where the TSC counts them.

use alloc::format;
use core::hint::black_box;

use ringfence_kernel::memory::heap;

use crate::card::{Card, Costs, Place, frame, receive_all};
use crate::drivers::{TWICE, open};
use crate::report_features;
use crate::support::count;
use crate::support::lines::Subject;
use crate::support::options::Options;

/// Buffers of every ring. A figure is of this many frames or a multiple, so that what is done once in a round
/// is in it.
const ROUND: usize = 256;
/// Turns of an empty loop in which a batch should arrive. Where the host is slow it takes more.
const PATIENCE: u64 = 100_000;

/// What a frame took.
#[derive(Clone, Copy)]
struct Counts {
    /// Instructions.
    send: f64,
    receive: f64,
    allocations: f64,
    /// If the driver can tell, and for how many frames.
    costs: Option<(Costs, u64)>,
}

/// Counts for each driver, length and batch.
pub fn measure(mut options: Options, cards: &[Place]) {
    let guests = options.words("guests", "ours+ceiling+virtio-drivers");
    let lengths = options.numbers("lengths", "60+1514");
    let batches = options.numbers("batches", "1+8+32+128");
    options.done();
    let [one, two, ..] = cards else { panic!("two network cards on one hub are needed") };
    report_features(&guests, one);
    for &length in &lengths {
        let workload = format!("{length} B, hub");
        for &batch in &batches {
            for guest in &guests {
                let subject = Subject { guest, workload: &workload, depth: batch };
                let counts = Counts::take([one, two], guest, length, batch);
                // The same with one copy more in each direction: the difference is what copying takes.
                let twice = (guest == "ours").then(|| Counts::take([one, two], TWICE, length, batch));
                counts.report(&subject, twice);
            }
        }
    }
}

impl Counts {
    /// Sends and receives batches under `guest`. Waiting is not counted: each batch has arrived before it is
    /// looked for.
    fn take([one, two]: [&Place; 2], guest: &str, length: usize, batch: usize) -> Self {
        let (mut sender, mut receiver) = (open(guest, one), open(guest, two));
        sender.load(&frame(length, 0, 0, 0));
        // Once round every ring, after which all is as it will be.
        for _ in 0..ROUND / batch {
            sender.send(batch);
            receive_all(&mut *receiver, batch, batch);
        }
        let nothing = (0..9).map(|_| count(|| ()).0).min().unwrap_or(0);
        let (costs_before, allocations_before) = (costs_of(&*sender, &*receiver), heap::usage().allocations);
        let (mut send, mut sent, mut receive, mut received) = (0, 0, 0, 0);
        let mut patience = PATIENCE;
        while sent == 0 || sent % ROUND != 0 || received < ROUND {
            send += count(|| sender.send(batch)).0 - nothing;
            sent += batch;
            // Neither `pause` nor a look at the clock: both interrupt QEMU.
            (0..patience).for_each(|turn| _ = black_box(turn));
            let (cost, arrived) = count(|| receiver.receive(batch));
            if arrived == batch {
                receive += cost - nothing;
                received += batch;
                patience = PATIENCE.max(patience - patience / 8);
            } else {
                receive_all(&mut *receiver, batch - arrived, batch);
                patience *= 2;
                assert!(patience < PATIENCE << 10, "batches arrive too late");
            }
        }
        let each = |count: u64| count as f64 / sent as f64;
        let costs = costs_before
            .zip(costs_of(&*sender, &*receiver))
            .map(|(before, after)| (after.since(before), sent as u64));
        Self {
            send: each(send),
            receive: receive as f64 / received as f64,
            allocations: each(heap::usage().allocations - allocations_before),
            costs,
        }
    }

    /// `twice` is the same with one copy more in each direction: here there is one for each frame sent, none
    /// for those received.
    fn report(self, subject: &Subject<'_>, twice: Option<Self>) {
        let Self { mut send, receive, allocations, costs } = self;
        let report = |metric, value: f64| subject.report(metric, "per frame", format!("{value:.4}"));
        if let Some(twice) = twice {
            report("instructions with both copies", send + twice.receive);
            send -= twice.send - send;
        }
        report("instructions", send + receive);
        report("instructions to send", send);
        report("instructions to receive", receive);
        report("allocations", allocations);
        if let Some((costs, frames)) = costs {
            costs.report(subject, frames);
        }
    }
}

/// Of both cards.
fn costs_of(sender: &dyn Card, receiver: &dyn Card) -> Option<Costs> {
    Some(sender.costs()?.and(receiver.costs()?))
}
