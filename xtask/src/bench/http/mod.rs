//! `bench http`: our kernel as a web server, against Linux with nginx on the same machine.

mod client;
mod count;
mod files;
mod network;
mod plan;
mod results;
mod server;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::count::Symbols;
use self::files::{FULL, QUICK, Size};
use self::server::Server;
use super::figures::{COUNTED, Key, compare_samples};
use super::{Found, linux, machine, report, versions};
use crate::guest::last_line;
use crate::kernel;
use crate::qemu::Machine;
use crate::setup::{self, Toolchain};
use crate::work_folder;

/// How often every machine is started, in turns.
const TURNS: u64 = 5;
/// RAM of every guest in MiB.
const MEMORY: u32 = 512;
/// The least that our guest serves with.
const LEAST_MEMORY: u32 = 16;
const OURS: &str = "ours";
const LINUX: &str = "linux";
const LINUX_PLAIN: &str = "linux, no offloads";
const LINUX_TSC: &str = "linux, tsc=reliable";
/// Properties of a card that leaves checksums and segments to the guest.
const NO_OFFLOADS: &str = ",csum=off,guest_csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,\
    host_ufo=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
/// Most times that a count which is not what is recorded is taken.
const ROUNDS: usize = 5;
/// Counts as they were when they were last looked at, by `GUEST|WORKLOAD|DEPTH|METRIC`.
const BASELINE: &str = include_str!("baseline.json");

/// How the benchmark is started.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Options {
    /// http: only count our guest's instructions, and say which functions they are in
    #[arg(long, conflicts_with = "quick")]
    pub count: bool,
    /// http: the self-check of the tests: small files, few requests, without Linux
    #[arg(long)]
    pub quick: bool,
}

/// Runs it all; returns the exit code for this program.
pub fn bench(toolchain: &Toolchain, options: Options) -> Result<u8> {
    setup::ensure_web_benchmark()?;
    let elf = kernel::build(toolchain)?;
    let size = if options.quick || options.count { QUICK } else { FULL };
    if !network::is_inside() {
        // What is made the first time may need the network outside.
        ours(&elf, size)?;
        if size == FULL {
            linux_machines(size);
        }
        let status = network::inside(&arguments(options))?.status().context("cannot start unshare")?;
        return Ok(status.code().and_then(|code| code.try_into().ok()).unwrap_or(1));
    }
    network::set_up()?;
    if size == FULL {
        return compare(toolchain, &elf, size).map(|()| 0);
    }
    let (ours, symbols, mut found) = (ours(&elf, size)?, Symbols::of(&elf)?, Found::default());
    if options.count {
        count::run(&ours, OURS, size, &symbols, &mut found.samples, |table| println!("{table}"))?;
    } else {
        time(&ours, OURS, size, &mut found)?;
        count_quietly(&ours, size, &symbols, &mut found)?;
    }
    Ok(0)
}

/// Counts until each count was what is recorded: on a machine that does other work a guest has its packets in
/// smaller parcels, which costs it more.
fn count_quietly(ours: &Machine, size: Size, symbols: &Symbols, found: &mut Found) -> Result<()> {
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        count::run(ours, OURS, size, symbols, &mut found.samples, |_| {})?;
        outcome = compare_samples(BASELINE, &found.samples);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn arguments(options: Options) -> Vec<&'static str> {
    let chosen = [(true, "bench"), (true, "http"), (options.count, "--count"), (options.quick, "--quick")];
    chosen.into_iter().filter_map(|(given, word)| given.then_some(word)).collect()
}

/// Our guest at every workload for a moment, and its counts: within a tenth of those recorded.
pub fn self_check() -> Result<()> {
    setup::ensure_web_benchmark()?;
    let toolchain = setup::toolchain().context("there is no compiler for the kernel")?;
    let options = Options { quick: true, ..Options::default() };
    ours(&kernel::build(&toolchain)?, QUICK)?;
    let output = network::inside(&arguments(options))?.output().context("cannot start unshare")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", last_line(&said));
    Ok(())
}

/// Times all guests in turns, counts their instructions, and publishes what is found.
fn compare(toolchain: &Toolchain, elf: &Path, size: Size) -> Result<()> {
    let (ours, symbols) = (ours(elf, size)?, Symbols::of(elf)?);
    let mut machines = vec![(OURS, ours)];
    machines.extend(linux_machines(size));
    let small = Machine { memory: LEAST_MEMORY, ..machines[0].1.clone() };
    let mut setup = versions(toolchain)?;
    setup.extend(machines.iter().map(|(_, machine)| report::command(machine)));
    setup.iter().for_each(|line| println!("{line}"));

    let (mut found, mut functions, start) = (Found::default(), String::new(), Instant::now());
    for turn in 1..=TURNS {
        for (name, machine) in &machines {
            eprintln!("turn {turn} of {TURNS}, {} s: {name}", start.elapsed().as_secs());
            time(machine, name, size, &mut found)?;
        }
        let (_, first) = Server::start(&small).context("with little RAM")?;
        found.samples.add(key(OURS, plan::SMALL_START, 1, "time", "ms"), first.as_secs_f64() * 1e3);
    }
    found.samples.add(key(OURS, "image", 1, "size", "KiB"), image_size(elf)?);
    for (name, machine) in machines.iter().filter(|(name, _)| *name != LINUX_TSC) {
        eprintln!("counting, {name}");
        let unnamed = Symbols::default();
        let symbols = if *name == OURS { &symbols } else { &unnamed };
        let counted = count::run(machine, name, size, symbols, &mut found.samples, |table| {
            functions.extend((*name == OURS).then(|| format!("{table}\n")));
        });
        if *name == OURS {
            counted?;
        } else if let Err(error) = counted {
            found.info.push(format!("{name}: not all was counted: {error:#}"));
        }
    }
    results::publish(&setup, &functions, &found)
}

/// Times each of the plan's tasks in `machine`'s guest, called `name`.
fn time(machine: &Machine, name: &str, size: Size, found: &mut Found) -> Result<()> {
    let (server, first) = Server::start(machine).with_context(|| name.to_owned())?;
    let mut add = |(workload, clients): (&str, usize), metric: &str, unit: &str, value| {
        found.samples.add(key(name, workload, clients, metric, unit), value);
    };
    add((plan::START, 1), "time", "ms", first.as_secs_f64() * 1e3);
    for task in plan::timed(size) {
        let outcome = server.run(&task).with_context(|| name.to_owned())?;
        let (units, unit) = match task.is_bulk() {
            true => (outcome.bytes as f64 / f64::from(1 << 20), "MiB/s"),
            false => (outcome.answered as f64, "requests/s"),
        };
        let what = (task.name, task.clients);
        add(what, "throughput", unit, units / outcome.seconds);
        let failed = outcome.failed as f64 / (outcome.answered + outcome.failed) as f64;
        add(what, "failed", "%", 100.0 * failed);
    }
    for line in server.info() {
        let line = format!("{name}: {}", linux::readable(&line));
        if !found.info.contains(&line) {
            found.info.push(line);
        }
    }
    Ok(())
}

fn key(guest: &str, workload: &str, clients: usize, metric: &str, unit: &str) -> Key {
    let [guest, workload, metric, unit] = [guest, workload, metric, unit].map(String::from);
    Key { guest, workload, depth: Some(clients as u64), metric, unit }
}

/// The name under which `guest` counts.
fn counted(guest: &str) -> String {
    format!("{guest}{COUNTED}")
}

/// Our guest.
fn ours(elf: &Path, size: Size) -> Result<Machine> {
    let mut machine = machine(elf.into(), MEMORY);
    machine.disk = Some(size.image().context("cannot make the disk")?);
    machine.options.push(("url".into(), server::url()));
    network::add_card(&mut machine, "");
    Ok(machine)
}

/// Size in KiB of a kernel without its symbols.
fn image_size(elf: &Path) -> Result<f64> {
    let stripped = work_folder("http")?.join("stripped");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(elf).status()?;
    ensure!(status.success(), "strip ended with {status}");
    Ok(stripped.metadata()?.len() as f64 / 1024.0)
}

/// The Linux guests by their names; none, if they cannot be made here.
fn linux_machines(size: Size) -> Vec<(&'static str, Machine)> {
    let machines = || -> Result<_> {
        let linux = linux::with_nginx(network::GUEST)?;
        let guests = [(LINUX, "", ""), (LINUX_PLAIN, NO_OFFLOADS, ""), (LINUX_TSC, "", " tsc=reliable")];
        let guest = |(name, card, append)| {
            let mut machine = machine(linux.kernel.clone(), MEMORY);
            machine.disk = Some(size.image()?);
            network::add_card(&mut machine, card);
            machine.extra.extend(["-initrd".into(), linux.initrd.clone().into()]);
            machine.extra.extend(["-append".into(), format!("{}{append}", linux::APPEND).into()]);
            Ok((name, machine))
        };
        guests.into_iter().map(guest).collect()
    };
    machines().unwrap_or_else(|error| {
        println!("there will be no figures of Linux: {error:#}");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_what_they_are_called() {
        let mut machine = machine("guest".into(), MEMORY);
        network::add_card(&mut machine, NO_OFFLOADS);
        let line = report::command(&machine);
        assert!(
            line.contains("-device virtio-net-pci,netdev=net0,romfile=,csum=off,") && !line.contains(",on")
        );
        assert_eq!(arguments(Options { count: false, quick: true }), ["bench", "http", "--quick"]);
        assert_eq!(arguments(Options::default()), ["bench", "http"]);
    }
}
