//! How long one step of an audit takes: for so long other tasks wait.

use alloc::vec::Vec;

use ringfence_kernel::memory::space;
use ringfence_kernel::time;

use crate::live::Live;
use crate::support::{Series, count, report};

/// How many whole audits are counted, and how many are timed.
const COUNTED: usize = 5;
const TIMED: usize = 15;
/// More steps than an audit has.
const STEPS: usize = 1 << 16;

/// Instructions of the longest step.
pub fn count_steps(live: &mut Live) {
    let mut series = Series::new("audit", "longest step", COUNTED);
    for _ in 0..COUNTED {
        live.churn();
        let mut longest = 0;
        each_step(|step| {
            let (cost, done) = count(step);
            longest = longest.max(cost);
            done
        });
        series.add(longest);
    }
    series.report();
}

/// Nanoseconds of the longest step. All audits have the same steps: the least that each of them took is what
/// it takes when the host does nothing else meanwhile.
pub fn time_steps() {
    let mut least = Vec::with_capacity(STEPS);
    for _ in 0..TIMED {
        let mut index = 0;
        each_step(|step| {
            let start = time::now();
            let done = step();
            let took = (time::now() - start).as_nanos() as u64;
            if index == least.len() {
                least.push(took);
            }
            least[index] = took.min(least[index]);
            index += 1;
            done
        });
    }
    let longest = least.iter().max().copied().unwrap_or_default();
    report("audit", "longest step", "ns", longest, (longest, longest), TIMED);
}

/// Does each step of one audit by `with`, which says whether it was the last one.
fn each_step(mut with: impl FnMut(&mut dyn FnMut() -> bool) -> bool) {
    let mut audit = space().start_audit();
    let mut step = || audit.step().is_some();
    while !with(&mut step) {}
}
