//! What boot sets up: logging, heap, exceptions, protections, clock and interrupts.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

use alloc::vec::Vec;
use core::hint::black_box;

use log::{Level, log_enabled};
use ringfence_kernel::arch::cpu::{self, Protections};
use ringfence_kernel::testing::{On, expect_fault};
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

ringfence_kernel::test_image!();

/// What is freed is gone from the count.
#[test_case]
fn heap_allocates_and_frees() {
    let before = ringfence_kernel::memory::heap::usage().allocated;
    for round in 0..1_000usize {
        let numbers: Vec<usize> = (0..round % 100).collect();
        assert_eq!(numbers.iter().sum::<usize>(), (0..round % 100).sum::<usize>());
    }
    assert_eq!(ringfence_kernel::memory::heap::usage().allocated, before);
}

/// A breakpoint is reported and passed over.
#[test_case]
fn breakpoint_returns() {
    // SAFETY: the handler returns to the next instruction.
    unsafe { core::arch::asm!("int3") };
}

/// Address and error code of a page fault are those of the access.
#[test_case]
fn page_fault_is_described() {
    let address = 0x1234_5678_9ab8usize;
    // SAFETY: the read is expected to fault, and nothing uses its value.
    let fault = expect_fault(|| unsafe {
        black_box(core::ptr::read_volatile(address as *const u64));
    });
    let fault = fault.expect("reading unmapped memory faults");
    assert_eq!((fault.vector, fault.error_code, fault.address), (14, 0, address as u64));
}

/// Exceptions other than page faults are caught as well.
#[test_case]
fn invalid_opcode_is_caught() {
    // SAFETY: the instruction does nothing but fault.
    let fault = expect_fault(|| unsafe { core::arch::asm!("ud2") });
    assert_eq!(fault.map(|fault| fault.vector), Some(6));
}

/// Without a fault there is nothing to report.
#[test_case]
fn closure_that_does_not_fault_completes() {
    let mut done = false;
    assert_eq!(expect_fault(|| done = true), None);
    assert!(done);
}

/// An inner recovery point leaves the outer one in place.
#[test_case]
fn faults_nest() {
    let outer = expect_fault(|| {
        // SAFETY: as above.
        let inner = expect_fault(|| unsafe { core::arch::asm!("ud2") });
        assert_eq!(inner.map(|fault| fault.vector), Some(6));
        // SAFETY: a general protection fault: the address is not canonical.
        unsafe { black_box(core::ptr::read_volatile(0x8000_0000_0000_0000usize as *const u8)) };
    });
    assert_eq!(outer.map(|fault| fault.vector), Some(13));
}

fn every_protection_is_on() {
    assert_eq!(cpu::active(), Protections::all());
}

/// The newest processor has all of them.
#[test_case]
const NEW_PROCESSOR: On = On("cpu=max", &every_protection_is_on);

fn protections_follow_the_processor() {
    assert_eq!(cpu::active(), Protections::NX | Protections::WP);
}

/// What the processor lacks is left off.
#[test_case]
const OLD_PROCESSOR: On = On("cpu=qemu64", &protections_follow_the_processor);

fn paging_does_not_depend_on_firmware() {
    assert!(!Cr4::read().contains(Cr4Flags::PAGE_GLOBAL));
    // SAFETY: the kernel runs only on processors that have the register, and reading it changes nothing.
    let types = unsafe { Msr::new(0x277).read() }.to_le_bytes();
    // Write-back, write-through, uncached but for MTRRs, uncached.
    let half = [6, 4, 7, 0];
    assert_eq!((&types[..4], &types[4..]), (&half[..], &half[..]));
}

/// Global translations outlive a change of page tables, and the memory types decide how registers are
/// accessed: neither is left to firmware (Intel SDM volume 3, 4.10.4.1 and 11.12).
#[test_case]
const PAGING: On = On("", &paging_does_not_depend_on_firmware);

fn paging_does_not_depend_on_uefi() {
    paging_does_not_depend_on_firmware();
}

/// The same where UEFI firmware has set the processor up.
#[test_case]
const AFTER_UEFI: On = On("uefi", &paging_does_not_depend_on_uefi);

fn each_module_has_its_level() {
    let most = |module: &str| {
        let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
        levels.into_iter().rfind(|&level| log_enabled!(target: module, level))
    };
    let expected = [
        ("ringfence_services", Some(Level::Warn)),
        ("ringfence_services::net", Some(Level::Debug)),
        ("ringfence_services::net::pool", Some(Level::Debug)),
        ("ringfence_services::net::ingress", Some(Level::Trace)),
        ("ringfence_services::network", Some(Level::Warn)),
        ("smoltcp::iface", None),
        ("net", Some(Level::Warn)),
    ];
    for (module, level) in expected {
        assert_eq!(most(module), level, "{module}");
    }
}

/// The longest name that fits counts, wherever it stands; what is not understood changes nothing.
#[test_case]
const LOG: On = On(
    "log=services::net::ingress=trace+services::net=debug+warn+smoltcp=off+a=loud",
    &each_module_has_its_level,
);
