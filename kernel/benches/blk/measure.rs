//! One sample: time, or instructions.

use ringfence_kernel::memory::heap;
use ringfence_kernel::time::{tsc, tsc_hz};
use ringfence_memory::DmaWindows;

use crate::support::count;
use crate::support::lines::{Subject, info};
use crate::workload::{Guest, Stopwatch, Watch, drain, pump};

/// Requests between two looks at the clock.
const STRIDE: usize = 64;
/// Requests of a warm-up at least, and its least length.
const WARM_REQUESTS: usize = 512;
const WARM_MICROS: u64 = 2000;
/// As soon as this part of the requests in flight is completed, as many are submitted.
const BATCH_PART: usize = 4;
/// Latencies are measured for this part of a sample's time more.
const LATENCY_PART: u64 = 4;

/// What is measured.
#[derive(Clone, Copy)]
pub enum Mode {
    /// Time, for so many milliseconds.
    Time { millis: u64 },
    /// Instructions.
    Count,
}

/// Measures a driver, if it can do what is asked for, and reports.
pub fn measure<G: Guest>(guest: Option<G>, mode: Mode, subject: Subject<'_>, windows: &DmaWindows) {
    let Some(mut guest) = guest else { return };
    let result = match mode {
        Mode::Time { millis } => time(&mut guest, millis * tsc_hz() / 1000, &subject),
        Mode::Count => instructions(&mut guest, &subject, windows),
    };
    if result.is_none() {
        let Subject { guest, workload, depth } = subject;
        info(format_args!(
            "{guest} {workload} depth {depth}: the device was not notified, or does not answer"
        ));
    }
}

/// `cycles` of work.
fn time(guest: &mut impl Guest, cycles: u64, subject: &Subject<'_>) -> Option<()> {
    let hz = tsc_hz();
    guest.submit(&mut ());
    let batch = (subject.depth / BATCH_PART).max(1);
    run(guest, &mut (), batch, WARM_MICROS * hz / 1_000_000, WARM_REQUESTS)?;

    let before = guest.costs();
    let (requests, elapsed) = run(guest, &mut (), batch, cycles, 0)?;
    let costs = guest.costs().zip(before);

    let mut watch = Stopwatch::new();
    run(guest, &mut watch, batch, cycles / LATENCY_PART, 0)?;
    drain(guest, subject.depth)?;

    let each = |total: u64| Fixed(total, requests);
    subject.report(
        "throughput",
        "requests/s",
        requests as u128 * u128::from(hz) / u128::from(elapsed.max(1)),
    );
    subject.report("cycles", "per request", elapsed / requests.max(1));
    // In a closed loop this is exact.
    let mean = u128::from(elapsed) * subject.depth as u128 * 1_000_000_000;
    subject.report("latency", "ns", mean / u128::from(requests.max(1)) / u128::from(hz));
    let latencies = watch.into_sorted();
    for (name, permille) in [("latency p50", 500), ("latency p99", 990)] {
        if let Some(cycles) = latencies.get(latencies.len() * permille / 1000) {
            subject.report(name, "ns", u128::from(*cycles) * 1_000_000_000 / u128::from(hz));
        }
    }
    if let Some((after, before)) = costs {
        subject.report("kicks", "per request", each(after.kicks - before.kicks));
        subject.report("interrupts", "per request", each(after.interrupts - before.interrupts));
        subject.report("halts", "per request", each(after.halts - before.halts));
    }
    Some(())
}

/// Keeps the device busy for `cycles` and at least `requests`; says how many were completed, in which time.
fn run(
    guest: &mut impl Guest,
    watch: &mut impl Watch,
    batch: usize,
    cycles: u64,
    requests: usize,
) -> Option<(u64, u64)> {
    let (start, mut done) = (tsc(), 0);
    loop {
        done += pump(guest, watch, STRIDE, batch)?;
        let elapsed = tsc().wrapping_sub(start);
        if elapsed >= cycles && done >= requests {
            return Some((done as u64, elapsed));
        }
    }
}

/// Batches in a sample of instructions, one more for the warm-up.
const BATCHES: usize = 17;
/// Instructions that are given to the device for a batch at first.
const QUIET: u64 = 300_000;

/// Instructions of submitting and completing batches of `depth` requests. Waiting is not counted: a batch is
/// completed in one go when the device has had time to finish all of it; if it had too little, the batch does
/// not count.
fn instructions(guest: &mut impl Guest, subject: &Subject<'_>, windows: &DmaWindows) -> Option<()> {
    let depth = subject.depth;
    let nothing = (0..9).map(|_| count(|| ()).0).min().unwrap_or(0);
    let (mut quiet, mut submits, mut completes) = (QUIET, [0; BATCHES], [0; BATCHES]);
    let (mut batches, mut counted) = (0, 0);
    let (mut before, mut heap_before, mut mapped_before) = (None, heap::usage(), windows.generation());
    while counted < BATCHES {
        let (submit, ()) = count(|| guest.submit(&mut ()));
        let start = tsc();
        while tsc() - start < quiet {}
        let (complete, completed) = count(|| guest.complete(&mut ()));
        batches += 1;
        if completed == depth {
            (submits[counted], completes[counted]) = (submit - nothing, complete - nothing);
            counted += 1;
        } else {
            drain(guest, depth - completed)?;
            quiet *= 2;
        }
        if counted <= 1 {
            (before, batches) = (guest.costs(), 0);
            (heap_before, mapped_before) = (heap::usage(), windows.generation());
        }
    }
    let requests = (batches * depth) as u64;
    let median = |counts: &mut [u64]| {
        counts.sort_unstable();
        counts[counts.len() / 2]
    };
    let (submit, complete) = (median(&mut submits[1..]), median(&mut completes[1..]));
    let depth = depth as u64;
    subject.report("instructions", "per request", Fixed(submit + complete, depth));
    subject.report("submit", "instructions per request", Fixed(submit, depth));
    subject.report("complete", "instructions per request", Fixed(complete, depth));
    let allocations = heap::usage().allocations - heap_before.allocations;
    subject.report("allocations", "per request", Fixed(allocations, requests));
    if let Some((after, before)) = guest.costs().zip(before) {
        let each = |total: u64| Fixed(total, requests);
        subject.report("kicks", "per request", each(after.kicks - before.kicks));
        subject.report("interrupts", "per request", each(after.interrupts - before.interrupts));
        subject.report("MMIO accesses", "per request", each(after.accesses - before.accesses));
        // Each mapping of memory for the device changes its windows.
        subject.report("mappings", "per request", each(windows.generation() - mapped_before));
    }
    Some(())
}

/// A quotient, printed with four digits after the point.
struct Fixed(u64, u64);

impl core::fmt::Display for Fixed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let tenthousandths = u128::from(self.0) * 10_000 / u128::from(self.1.max(1));
        write!(f, "{}.{:04}", tenthousandths / 10_000, tenthousandths % 10_000)
    }
}
