//! The drivers on the devices that QEMU emulates.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

mod block;
mod hammer;
mod interrupts;
mod lifecycle;
mod net;
mod pci;
mod quarantine;
mod queues;
mod resets;
mod rng;
#[path = "../support/mod.rs"]
mod support;

ringfence_kernel::entry!(main);

fn main(boot: ringfence_kernel::boot::Boot) -> ! {
    support::keep(boot);
    run_tests();
    unreachable!("the harness leaves QEMU")
}
