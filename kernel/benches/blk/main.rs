//! `./run-qemu.sh bench blk`, in the guest: the disk under our driver, under `virtio-drivers`, and under the
//! smallest ring loop there can be.
#![no_std]
#![no_main]

extern crate alloc;

mod ceiling;
mod ceiling_packed;
mod measure;
mod ours;
mod rescue;
#[path = "../support/mod.rs"]
mod support;
mod virtio_drivers;
mod workload;

use alloc::string::String;
use alloc::vec::Vec;

use ringfence_drivers::block;
use ringfence_drivers::pci::{self, Function};
use ringfence_drivers::probe::{Match, probe};
use ringfence_drivers::virtio::{DeviceType, features};
use ringfence_kernel::boot::Boot;
use ringfence_kernel::devices::{Home, config_access, disk};
use ringfence_kernel::platform::KERNEL;
use ringfence_kernel::qemu::{self, ExitCode};
use ringfence_kernel::{memory, println, time};
use ringfence_memory::{ConfigAccess, DmaWindows};
use x86_64::instructions::interrupts;

use ceiling::Ceiling;
use ceiling_packed::CeilingPacked;
use measure::{Mode, measure};
use ours::{Ours, Wait};
use support::lines::{Subject, info};
use support::options::Options;
use virtio_drivers::VirtioDrivers;
use workload::Workload;

ringfence_kernel::entry!(main);

/// What the host wants.
struct Plan {
    mode: Mode,
    wait: Wait,
    guests: Vec<String>,
    workloads: Vec<String>,
    depths: Vec<usize>,
    rounds: u64,
}

impl Plan {
    fn read() -> Self {
        let mut options = Options::read();
        let millis = options.number("millis", 20);
        let mode = match &*options.mode {
            "time" => Mode::Time { millis },
            "count" => Mode::Count,
            other => panic!("there is no mode called {other:?}"),
        };
        let wait = match &*options.words("wait", "poll")[0] {
            "poll" => Wait::Poll,
            "interrupt" => Wait::Interrupt,
            other => panic!("there is no way to wait called {other:?}"),
        };
        let plan = Self {
            mode,
            wait,
            guests: options.words("guests", "ours+ceiling+virtio-drivers"),
            workloads: options.words("workloads", "read4k+write4k+read64k+read1m"),
            depths: options.numbers("depths", "1+4+16+32+64"),
            rounds: options.number("rounds", 5),
        };
        options.done();
        plan
    }
}

/// The disk under test.
struct Disk {
    function: Function,
    access: &'static dyn ConfigAccess,
    windows: DmaWindows,
    sectors: u64,
    /// Whether it has indirect descriptors.
    indirect: bool,
    /// With the kernel's driver.
    agreed: (u16, usize, u64),
}

impl Disk {
    /// Finds it, and says what our driver and it agree on.
    fn find(boot: &Boot) -> Self {
        let access = config_access(&boot.acpi);
        let is_disk = |function: &Function| probe(function) == Match::Virtio(DeviceType::BLOCK);
        let function = pci::enumerate(access, 0).find(is_disk).expect("there is a disk");
        let windows = DmaWindows::new(&KERNEL, function.address().id()).expect("nobody else has it");
        let (disk, interrupts) = disk::open(&windows, &Home::Pci(function), 1).expect("the disk starts");
        let names: Vec<_> = features::names(block::features::NAMES, disk.control.features()).collect();
        let (size, interrupts) = (disk.queue.queue_size(), interrupts.name());
        info(format_args!("ours: queue of {size}, {interrupts}, {}", names.join(" ")));
        let indirect = disk.control.features() & features::INDIRECT_DESC != 0;
        let (sectors, agreed) = (disk.queue.geometry().sectors, ours::agreed(&disk));
        Self { function, access, windows, sectors, indirect, agreed }
    }
}

fn main(boot: Boot) -> ! {
    interrupts::disable();
    time::start_alarms();
    // `virtio-drivers` has something to say whenever it starts.
    log::set_max_level(log::LevelFilter::Warn);
    run(&Plan::read(), &Disk::find(&boot));
    let report = memory::space().audit();
    assert!(report.ok(), "the audit found {} violations", report.violations);
    println!("bench-done");
    qemu::exit(ExitCode::Passed)
}

fn run(plan: &Plan, disk: &Disk) {
    let deepest = plan.depths.iter().copied().max().unwrap_or(0);
    let workload = |name: &String| Workload::new(name, disk.sectors, deepest, &disk.windows);
    let workloads: Vec<_> = plan.workloads.iter().map(workload).collect();
    for _ in 0..plan.rounds {
        for workload in &workloads {
            for &depth in plan.depths.iter().filter(|depth| workload.allows(**depth)) {
                // What is compared is measured right after each other.
                for guest in &plan.guests {
                    one(plan, disk, workload, Subject { guest, workload: workload.name, depth });
                }
            }
        }
    }
}

/// Brings the disk up under one driver and measures it.
fn one(plan: &Plan, disk: &Disk, workload: &Workload, subject: Subject<'_>) {
    let (mode, depth, Disk { function, windows, .. }) = (plan.mode, subject.depth, disk);
    let is_timed = matches!(mode, Mode::Time { .. });
    match subject.guest {
        "ours" if workload.write => {
            measure(Ours::<true>::new(disk, workload, depth, plan.wait), mode, subject, windows)
        }
        "ours" => measure(Ours::<false>::new(disk, workload, depth, plan.wait), mode, subject, windows),
        "virtio-drivers" => {
            measure(VirtioDrivers::new(disk, workload, depth, is_timed), mode, subject, windows)
        }
        "ceiling" => measure(Ceiling::new(function, windows, workload, depth), mode, subject, windows),
        "ceiling-packed" => {
            measure(CeilingPacked::new(function, windows, workload, depth), mode, subject, windows)
        }
        other => panic!("there is no driver called {other:?}"),
    }
}
