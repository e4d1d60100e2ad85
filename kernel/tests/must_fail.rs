//! Tests that the host must judge as failed, each in its own way.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

use core::arch::asm;

use ringfence_kernel::qemu::{self, ExitCode};
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

ringfence_kernel::test_image!();

/// Prints a backtrace and leaves with the code for a failure.
#[test_case]
fn panics() {
    panic!("on purpose");
}

/// Ends by the time-out of the host.
#[test_case]
fn hangs() {
    qemu::halt();
}

/// Resets the machine: QEMU ends with its own status.
#[test_case]
fn triple_faults() {
    let nothing = DescriptorTablePointer { limit: 0, base: x86_64::VirtAddr::zero() };
    // SAFETY: with no handler for any exception the processor resets, which is the point.
    unsafe {
        lidt(&nothing);
        asm!("ud2");
    }
}

/// Leaves with the code for success, but without saying so.
#[test_case]
fn exits_early() {
    qemu::exit(ExitCode::Passed);
}

/// Runs over the end of its stack, which the message must say.
#[test_case]
fn overflows_the_stack() {
    #[inline(never)]
    fn recurse(depth: u64) -> u64 {
        let frame = core::hint::black_box([depth; 16]);
        if depth == u64::MAX { 0 } else { recurse(depth + 1) ^ frame[3] }
    }
    core::hint::black_box(recurse(0));
}
