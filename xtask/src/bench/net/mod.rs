//! `bench net`: our network driver against the ring's own ceiling and the crate `virtio-drivers`, on the same
//! devices.

mod peer;
mod results;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use self::peer::Peer;
use super::figures::{COUNTED, compare_samples};
use super::{Found, machine, report, versions};
use crate::kernel;
use crate::qemu::Machine;
use crate::setup::{self, Toolchain};

/// How often every machine is started, in turns.
const TURNS: u64 = 6;
/// RAM of every guest in MiB.
const MEMORY: u32 = 128;
/// Counts as they were when they were last looked at, by `GUEST|WORKLOAD|DEPTH|METRIC`.
const BASELINE: &str = include_str!("baseline.json");

/// What the devices offer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Setting {
    packed: bool,
    event_idx: bool,
}

const SPLIT: Setting = Setting { packed: false, event_idx: true };
const PACKED: Setting = Setting { packed: true, event_idx: true };
/// All that differ: nobody here uses EVENT_IDX with packed rings, since QEMU 7.2 loses notifications then.
const SETTINGS: [Setting; 3] = [SPLIT, PACKED, Setting { event_idx: false, ..SPLIT }];

impl Setting {
    /// What the name of a guest gets.
    fn name(self, guest: &str) -> String {
        let format = if self.packed { "packed" } else { "split" };
        let events = if self.event_idx { "" } else { ", no EVENT_IDX" };
        format!("{guest}, {format}{events}")
    }

    /// The same for what was counted.
    fn counted(self, guest: &str) -> String {
        self.name(guest) + COUNTED
    }

    /// The guests that can use it.
    fn guests(self) -> &'static str {
        if self.packed { "ours+ceiling" } else { "ours+ceiling+virtio-drivers" }
    }

    /// A machine with two network cards on one hub.
    fn machine(self, elf: &Path) -> Machine {
        let mut machine = machine(elf.into(), MEMORY);
        machine.add("-netdev hubport,id=one,hubid=0 -netdev hubport,id=two,hubid=0");
        ["one", "two"].iter().for_each(|id| self.add_card(&mut machine, id));
        machine
    }

    /// The same, and a third card that leads to `peer`.
    fn machine_with(self, elf: &Path, peer: &Peer) -> Machine {
        let mut machine = self.machine(elf);
        machine.extra.extend(["-netdev".into(), peer.netdev("host")]);
        self.add_card(&mut machine, "host");
        machine
    }

    fn add_card(self, machine: &mut Machine, id: &str) {
        let on = |on| if on { "on" } else { "off" };
        let (packed, event_idx) = (on(self.packed), on(self.event_idx));
        machine.add(&format!(
            "-device virtio-net-pci,netdev={id},romfile=,packed={packed},event_idx={event_idx}"
        ));
    }

    /// What counts instructions, and what its guest does.
    fn counting(self, elf: &Path) -> (Machine, String) {
        let mut machine = self.machine(elf);
        machine.add("-icount shift=0,sleep=off");
        (machine, format!("count,guests={}", self.guests()))
    }
}

/// Runs it all; returns the exit code for this program.
pub fn bench(toolchain: &Toolchain) -> Result<u8> {
    let elf = kernel::build_bench(toolchain, "net")?;
    let time = |setting: Setting| format!("time,guests={},rounds=4,millis=5", setting.guests());
    let mut setup = versions(toolchain)?;
    setup.push(report::command_line(&SPLIT.machine_with(&elf, &Peer::start()?), time(SPLIT)));
    let (counting, what) = SPLIT.counting(&elf);
    setup.push(report::command_line(&counting, what));
    setup.iter().for_each(|line| println!("{line}"));

    let mut found = Found::default();
    let start = Instant::now();
    for turn in 0..TURNS {
        eprintln!("turn {} of {TURNS}, after {} s", turn + 1, start.elapsed().as_secs());
        for setting in SETTINGS {
            let peer = Peer::start()?;
            let machine = setting.machine_with(&elf, &peer);
            found.measure(&machine, &time(setting), |guest| setting.name(guest))?;
        }
    }
    for setting in SETTINGS {
        eprintln!("counting, {}", setting.name("all"));
        let (machine, what) = setting.counting(&elf);
        found.measure(&machine, &what, |guest| setting.counted(guest))?;
    }
    results::publish(&setup, &found)?;
    Ok(0)
}

/// Each guest for a moment, and their counts: within a tenth of those recorded.
pub fn self_check() -> Result<()> {
    let toolchain = setup::toolchain().context("there is no compiler for the kernel")?;
    let elf = kernel::build_bench(&toolchain, "net")?;
    let mut found = Found::default();
    for setting in [SPLIT, PACKED] {
        let peer = Peer::start()?;
        let what = format!("time,guests={},rounds=1,millis=1,trips=8", setting.guests());
        found.measure(&setting.machine_with(&elf, &peer), &what, |guest| setting.name(guest))?;
        for guest in setting.guests().split('+').map(|guest| setting.name(guest)) {
            for workload in
                ["60 B, hub, two batches", "1514 B, send to the host", "1514 B, receive from the host"]
            {
                let rounds = found.samples.get(&guest, workload, 32, "throughput");
                ensure!(rounds.len() == 1 && rounds[0] > 0.0, "{guest} did not measure {workload}");
            }
        }
        let (machine, what) = setting.counting(&elf);
        let what = format!("{what},lengths=60,batches=32");
        found.measure(&machine, &what, |guest| setting.counted(guest))?;
    }
    compare_samples(BASELINE, &found.samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_what_they_are_called() {
        let names = SETTINGS.map(|setting| setting.name("ours"));
        assert_eq!(names, ["ours, split", "ours, packed", "ours, split, no EVENT_IDX"]);
        let line = |setting: Setting| report::command_line(&setting.machine(Path::new("guest")), "x");
        assert!(line(PACKED).contains("packed=on,event_idx=on"));
        assert!(line(SETTINGS[2]).contains("packed=off,event_idx=off"));
        let peer = Peer::start().unwrap();
        let machine = PACKED.machine_with(Path::new("guest"), &peer);
        assert_eq!(report::command_line(&machine, "x").matches("virtio-net-pci").count(), 3);
    }
}
