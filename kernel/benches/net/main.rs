//! `./run-qemu.sh bench net`, in the guest: frames between two network cards on one hub, and between a third
//! one and the host, under several drivers in turn.
//!
//! Network cards are taken in the order of their addresses: the hub's two first, then the one that leads to
//! the host.
#![no_std]
#![no_main]

extern crate alloc;

mod card;
mod ceiling;
mod counts;
mod drivers;
mod ours;
#[path = "../support/mod.rs"]
mod support;
mod times;
mod virtio_drivers;

use alloc::string::String;
use alloc::vec::Vec;

use ringfence_drivers::net;
use ringfence_drivers::pci::{self, Function};
use ringfence_drivers::probe::{Match, probe};
use ringfence_drivers::virtio::{DeviceType, features};
use ringfence_kernel::boot::Boot;
use ringfence_kernel::devices::config_access;
use ringfence_kernel::qemu::{self, ExitCode};
use ringfence_kernel::{memory, println};

use crate::card::Place;
use crate::drivers::open;
use crate::support::lines::info;
use crate::support::options::Options;

ringfence_kernel::entry!(main);

fn main(boot: Boot) -> ! {
    // `virtio-drivers` has something to say whenever it starts.
    log::set_max_level(log::LevelFilter::Warn);
    let options = Options::read();
    let access = config_access(&boot.acpi);
    let is_card = |function: &Function| probe(function) == Match::Virtio(DeviceType::NET);
    let functions = pci::enumerate(access, 0).filter(is_card);
    let cards: Vec<Place> = functions.map(|function| Place { function, access }).collect();
    match options.mode.as_str() {
        "time" => times::measure(options, &cards),
        "count" => counts::measure(options, &cards),
        mode => panic!("there is no mode called {mode:?}"),
    }
    let report = memory::space().audit();
    assert!(report.ok(), "the audit found {} violations", report.violations);
    println!("bench-done");
    qemu::exit(ExitCode::Passed)
}

/// Tells which features each driver uses. Ours is the kernel's.
fn report_features(guests: &[String], card: &Place) {
    ours::check(&card.function);
    for guest in guests {
        let names: Vec<_> = features::names(net::features::NAMES, open(guest, card).features()).collect();
        info(format_args!("{guest}: {}", names.join(" ")));
    }
}
