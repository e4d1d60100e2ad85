//! `./run-qemu.sh bench memory`, in the guest: what memory operations cost, and how memory fragments.
#![no_std]
#![no_main]

extern crate alloc;

mod fragmentation;
mod operations;
#[path = "../support/mod.rs"]
mod support;

use ringfence_kernel::boot::Boot;
use ringfence_kernel::qemu::{self, ExitCode};
use ringfence_kernel::{fw_cfg, memory, println};
use x86_64::instructions::interrupts;

ringfence_kernel::entry!(main);

/// Does what the option `opt/org.ringfence/bench` says: `fragmentation`, or the number of live mappings among which to
/// measure.
fn main(_boot: Boot) -> ! {
    interrupts::disable();
    let what = fw_cfg::option("bench").unwrap_or_default();
    match what.parse() {
        Ok(depth) => operations::measure(depth),
        Err(_) if what == "fragmentation" => fragmentation::measure(),
        Err(_) => panic!("there is no benchmark called {what:?}"),
    }
    let report = memory::space().audit();
    assert!(report.ok(), "the audit found {} violations", report.violations);
    println!("bench-done");
    qemu::exit(ExitCode::Passed)
}
