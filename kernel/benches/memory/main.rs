//! `./run-qemu.sh bench memory`, in the guest: what memory operations cost, and how memory fragments.
#![no_std]
#![no_main]

extern crate alloc;

mod audit;
mod devices;
mod fragmentation;
mod live;
mod operations;
#[path = "../support/mod.rs"]
mod support;

use live::Live;
use ringfence_kernel::boot::Boot;
use ringfence_kernel::qemu::{self, ExitCode};
use ringfence_kernel::{fw_cfg, memory, println};
use x86_64::instructions::interrupts;

ringfence_kernel::entry!(main);

/// Does what the option `opt/org.ringfence/bench` says: `fragmentation`, or the number of live mappings among
/// which to measure; after `audit-` it is those among which the steps of an audit are counted, after `time-`
/// timed.
fn main(_boot: Boot) -> ! {
    interrupts::disable();
    let what = fw_cfg::option("bench").unwrap_or_default();
    let depth = what.rsplit('-').next().and_then(|depth| depth.parse().ok());
    match (what.split('-').next().unwrap_or_default(), depth) {
        ("fragmentation", None) => fragmentation::measure(),
        ("audit", Some(depth)) => audit::count_steps(&mut Live::new(depth)),
        ("time", Some(depth)) => {
            let _live = Live::new(depth);
            audit::time_steps();
        }
        (_, Some(depth)) => operations::measure(depth),
        _ => panic!("there is no benchmark called {what:?}"),
    }
    let report = memory::space().audit();
    assert!(report.ok(), "the audit found {} violations", report.violations);
    println!("bench-done");
    qemu::exit(ExitCode::Passed)
}
