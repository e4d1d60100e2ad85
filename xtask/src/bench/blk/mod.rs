//! `bench blk`: our block driver against the ring's own ceiling, the crate `virtio-drivers` and Linux, on the
//! same device.

mod charts;
mod results;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::figures::{COUNTED, compare_samples};
use super::{Found, linux, machine, report, versions};
use crate::kernel;
use crate::qemu::Machine;
use crate::setup::{self, Toolchain};

/// How often every machine is started, in turns.
const TURNS: u64 = 6;
/// RAM of every guest in MiB; Linux with fio needs it.
const MEMORY: u32 = 512;
const DEPTHS: [u64; 5] = [1, 4, 16, 32, 64];
/// Depths of the sequential workloads.
const SEQUENTIAL: [u64; 3] = [1, 4, 16];
/// Workloads by their names in rows, and for people.
const WORKLOADS: [(&str, &str); 4] = [
    ("read4k", "4 KiB random read"),
    ("write4k", "4 KiB random write"),
    ("read64k", "64 KiB sequential read"),
    ("read1m", "1 MiB sequential read"),
];
/// The Linux guests: their names, the properties of their device, and what their kernel is told besides.
const LINUX: [(&str, &str, &str); 2] = [
    ("linux", "packed=off,event_idx=on", ""),
    (
        "linux-stripped",
        "packed=off,event_idx=off,indirect_desc=off,request-merging=off,queue_reset=off",
        " mitigations=off",
    ),
];
/// The least share of the ceiling's requests, from depth 32 on.
const CEILING_SHARE: f64 = 0.95;
/// Counts as they were when they were last looked at, by `GUEST|WORKLOAD|DEPTH|METRIC`: medians of
/// target/bench/blk.json.
const BASELINE: &str = include_str!("baseline.json");

/// A device, and how its guest waits.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Setting {
    packed: bool,
    event_idx: bool,
    /// The device looks for requests for a while before it sleeps.
    polling: bool,
    /// The guest halts when nothing is ready.
    interrupts: bool,
}

const SPLIT: Setting = Setting { packed: false, event_idx: true, polling: true, interrupts: false };
const PACKED: Setting = Setting { packed: true, ..SPLIT };

impl Setting {
    fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|bits| Self {
            packed: bits & 1 != 0,
            interrupts: bits & 2 != 0,
            event_idx: bits & 4 == 0,
            polling: bits & 8 == 0,
        })
    }

    /// What the name of a guest gets.
    fn name(self, guest: &str) -> String {
        let words = [
            (true, guest.trim_end_matches("-packed")),
            (true, if self.packed { "packed" } else { "split" }),
            (!self.event_idx, "no EVENT_IDX"),
            (!self.polling, "sleeping"),
            (self.interrupts, "interrupts"),
        ];
        let words = words.into_iter().filter(|(applies, _)| *applies).map(|(_, word)| word);
        words.collect::<Vec<_>>().join(", ")
    }

    fn machine(self, elf: &Path) -> Machine {
        let on = |on| if on { "on" } else { "off" };
        device(
            machine(elf.into(), MEMORY),
            self.polling,
            &format!("packed={},event_idx={}", on(self.packed), on(self.event_idx)),
        )
    }

    /// The same for what was counted.
    fn counted(self, guest: &str) -> String {
        self.name(guest) + COUNTED
    }

    /// Most instructions that a read of 4 KiB may take at `depth`.
    fn most_instructions(self, depth: u64) -> f64 {
        match (self.packed, depth) {
            (false, 1) => 200.0,
            (false, _) => 105.0,
            (true, 1) => 260.0,
            (true, _) => 150.0,
        }
    }

    /// The guests that can use it. Other drivers than ours do not know packed rings or do not halt here.
    fn guests(self) -> &'static str {
        match self {
            Self { interrupts: true, .. } => "ours",
            Self { packed: true, .. } => "ours+ceiling-packed",
            _ => "ours+ceiling+virtio-drivers",
        }
    }

    fn time(self, rounds: u64, millis: u64) -> String {
        let wait = if self.interrupts { "interrupt" } else { "poll" };
        format!("time,guests={},rounds={rounds},millis={millis},wait={wait}", self.guests())
    }
}

/// `machine` with the disk that all guests get.
fn device(mut machine: Machine, polling: bool, properties: &str) -> Machine {
    let poll = if polling { "" } else { ",poll-max-ns=0" };
    machine.add(&format!(
        "-object iothread,id=io0{poll} -blockdev driver=null-co,node-name=disk0,size=1073741824 \
         -device virtio-blk-pci,drive=disk0,iothread=io0,queue-size=512,{properties}"
    ));
    machine
}

/// The machines that count, and what their guests do.
fn counting(elf: &Path) -> impl Iterator<Item = (Setting, Machine, String)> {
    [SPLIT, PACKED].into_iter().map(move |setting| {
        let setting = Setting { polling: false, ..setting };
        let mut machine = setting.machine(elf);
        machine.add("-icount shift=0,sleep=off");
        let guests = setting.guests();
        (
            setting,
            machine,
            format!("count,guests={guests},workloads=read4k+write4k,depths=1+16+32+64,rounds=1"),
        )
    })
}

/// Runs it all; returns the exit code for this program.
pub fn bench(toolchain: &Toolchain) -> Result<u8> {
    let elf = kernel::build_bench(toolchain, "blk")?;
    let linux = linux_machines();
    let mut setup = versions(toolchain)?;
    setup.push(report::command_line(&SPLIT.machine(&elf), SPLIT.time(2, 20)));
    setup.extend(linux.iter().map(|(_, machine)| report::command_line(machine, "time")));
    setup.iter().for_each(|line| println!("{line}"));

    let mut found = Found::default();
    let (start, settings) = (Instant::now(), Setting::all().collect::<Vec<_>>());
    for turn in 1..=TURNS {
        let progress =
            |name: &str| eprintln!("turn {turn} of {TURNS}, {} s: {name}", start.elapsed().as_secs());
        for setting in &settings {
            progress(&setting.name("all"));
            // More rounds of what is compared with everything.
            let rounds = if [SPLIT, PACKED].contains(setting) { 2 } else { 1 };
            found.measure(&setting.machine(&elf), &setting.time(rounds, 20), |guest| setting.name(guest))?;
        }
        for (name, machine) in &linux {
            progress(name);
            found.measure(machine, "time", |_| (*name).into())?;
        }
    }
    for (setting, machine, what) in counting(&elf) {
        eprintln!("counting, {}", setting.name("all"));
        setup.push(report::command_line(&machine, &what));
        found.measure(&machine, &what, |guest| setting.counted(guest))?;
    }
    results::publish(&setup, &found)?;
    Ok(0)
}

/// The Linux guests by their names; none, if they cannot be made here.
fn linux_machines() -> Vec<(&'static str, Machine)> {
    let jobs: Vec<(&str, u64)> = WORKLOADS
        .iter()
        .flat_map(|(workload, _)| depths(workload).iter().map(move |depth| (*workload, *depth)))
        .collect();
    match linux::with_fio(&jobs) {
        Ok(linux) => LINUX
            .map(|(name, properties, append)| {
                let mut machine = device(machine(linux.kernel.clone(), MEMORY), true, properties);
                machine.extra.extend(["-initrd".into(), linux.initrd.clone().into()]);
                machine.extra.extend(["-append".into(), format!("{}{append}", linux::APPEND).into()]);
                (name, machine)
            })
            .into(),
        Err(error) => {
            println!("there will be no figures of Linux: {error:#}");
            Vec::new()
        }
    }
}

fn depths(workload: &str) -> &'static [u64] {
    if ["read4k", "write4k"].contains(&workload) { &DEPTHS } else { &SEQUENTIAL }
}

/// Each of our guests for a moment, and their counts: within a tenth of those recorded. Linux is left out; it
/// would have to be downloaded and takes too long to boot.
pub fn self_check() -> Result<()> {
    let toolchain = setup::toolchain().context("there is no compiler for the kernel")?;
    let elf = kernel::build_bench(&toolchain, "blk")?;
    let mut found = Found::default();
    for setting in [SPLIT, PACKED, Setting { interrupts: true, ..SPLIT }] {
        found.measure(&setting.machine(&elf), &setting.time(1, 1), |guest| setting.name(guest))?;
        for guest in setting.guests().split('+') {
            let rounds = found.samples.get(&setting.name(guest), "read4k", 1, "throughput");
            ensure!(rounds.len() == 1 && rounds[0] > 0.0, "{} did not measure", setting.name(guest));
        }
    }
    for (setting, machine, what) in counting(&elf) {
        found.measure(&machine, &what, |guest| setting.counted(guest))?;
    }
    compare_samples(BASELINE, &found.samples)
}

/// What waits for interrupts comes to an end though QEMU leaves out its fences, as where there can be only
/// one processor: a device that sleeps at once misses a request now and then, and both sleep for ever.
pub fn without_fences() -> Result<()> {
    const RUNS: u64 = 20;

    let toolchain = setup::toolchain().context("there is no compiler for the kernel")?;
    let elf = kernel::build_bench(&toolchain, "blk")?;
    for run in 0..RUNS {
        let setting = Setting { packed: run % 2 == 1, polling: false, interrupts: true, ..SPLIT };
        let mut machine = setting.machine(&elf);
        machine.add("-smp 1,maxcpus=1");
        let what = format!("{},workloads=read4k,depths=1+4", setting.time(5, 50));
        Found::default().measure(&machine, &what, |guest| setting.name(guest))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_names_of_their_own() {
        let mut names: Vec<_> = Setting::all().map(|setting| setting.name("ours")).collect();
        assert_eq!(names[..2], ["ours, split", "ours, packed"]);
        assert_eq!(names[15], "ours, packed, no EVENT_IDX, sleeping, interrupts");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 16);
    }

    #[test]
    fn machines_are_what_they_are_called() {
        let line = |setting: Setting| report::command_line(&setting.machine(Path::new("guest")), "x");
        assert!(line(SPLIT).contains("packed=off,event_idx=on") && !line(SPLIT).contains("poll-max-ns"));
        let other = Setting { packed: true, event_idx: false, polling: false, interrupts: true };
        assert!(line(other).contains("packed=on,event_idx=off") && line(other).contains("poll-max-ns=0"));
        assert_eq!(other.time(1, 20), "time,guests=ours,rounds=1,millis=20,wait=interrupt");
    }
}
