//! The lines that the host reads.

use core::fmt::Display;

use ringfence_kernel::println;

/// What a figure is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Which driver.
    pub guest: &'a str,
    /// What it did.
    pub workload: &'a str,
    /// How many requests were in flight, or how large a batch was.
    pub depth: usize,
}

impl Subject<'_> {
    /// The line for one figure of one round.
    pub fn report(&self, metric: &str, unit: &str, value: impl Display) {
        println!("bench-sample: {}|{}|{}|{metric}|{unit}|{value}", self.guest, self.workload, self.depth);
    }
}

/// The line for what a reader of the figures should know.
pub fn info(text: impl Display) {
    println!("bench-info: {text}");
}
