//! What the benchmarks in the guest share: counting instructions, options from the host, and the lines that
//! it reads.
#![allow(dead_code, reason = "each benchmark uses a part")]

pub mod hal;
pub mod lines;
pub mod options;
pub mod raw;

use alloc::vec::Vec;
use core::hint::black_box;

use ringfence_kernel::println;
use ringfence_kernel::time::tsc;

/// Runs `work` and says how many instructions the guest executed meanwhile. For QEMU's
/// `-icount shift=0,sleep=off`, where the TSC counts them; interrupts must be off, and `work` must not halt.
pub fn count<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let start = tsc();
    let result = black_box(work());
    (tsc() - start, result)
}

/// Counts of one thing, one from each round.
pub struct Series {
    workload: &'static str,
    metric: &'static str,
    rounds: Vec<u64>,
}

impl Series {
    /// No rounds yet, room for `rounds`.
    pub fn new(workload: &'static str, metric: &'static str, rounds: usize) -> Self {
        Self { workload, metric, rounds: Vec::with_capacity(rounds) }
    }

    /// Adds a round.
    pub fn add(&mut self, count: u64) {
        self.rounds.push(count);
    }

    /// Reports median, bounds of the middle 95 % and number of rounds, less what counting itself costs.
    pub fn report(mut self) {
        let overhead = (0..9).map(|_| count(|| ()).0).min().unwrap_or(0);
        self.rounds.sort_unstable();
        let last = self.rounds.len() - 1;
        let at = |permille: usize| self.rounds[last * permille / 1000].saturating_sub(overhead);
        let (low, median, high) = (at(25), at(500), at(975));
        report(self.workload, self.metric, "instructions", median, (low, high), last + 1);
    }
}

/// The line for one row of the result.
pub fn report(workload: &str, metric: &str, unit: &str, median: u64, spread: (u64, u64), rounds: usize) {
    println!("bench-row: {workload}|{metric}|{unit}|{median}|{}|{}|{rounds}", spread.0, spread.1);
}

/// Numbers that look random (xorshift), the same in every run.
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`, which is not 0.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
