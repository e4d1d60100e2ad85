//! What the guest tells about itself: `/metrics`, `/api/devices`, `/api/memory`, and the boot log.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::served::files_disk;
use super::{Kernel, Run, Server, machine};
use crate::qemu::Machine;
use crate::test::in_qemu::INTX;

/// The tests here.
pub const TESTS: &[(&str, Run)] = &[
    ("api::metrics", metrics),
    ("api::devices", devices),
    ("api::memory", memory),
    ("api::reserved_paths", reserved_paths),
    ("api::boot_log", boot_log),
    ("api::protections_follow_the_cpu", protections_follow_the_cpu),
];

/// Prometheus' text format: comments, and lines of a name, perhaps labels, and a number.
fn metrics(kernel: &Kernel) -> Result<()> {
    let server = Server::with_disk(kernel, files_disk()?)?;
    let text = server.get("/metrics", &[])?.expect(200)?.text();
    let samples = samples(&text).with_context(|| text.clone())?;
    promtool(&text)?;
    for part in
        ["request", "bytes", "kicks", "interrupts", "completions", "rejected", "frames", "tcp_", "cache_"]
    {
        ensure!(samples.iter().any(|sample| sample.contains(part)), "nothing about {part} in\n{text}");
    }
    let sum = |text: &str, part: &str| -> f64 {
        let lines = text.lines().filter(|line| !line.starts_with('#') && line.contains(part));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    server.get("/1m.bin", &[])?.expect(200)?;
    let later = server.get("/metrics", &[])?.expect(200)?.text();
    for part in ["request", "bytes", "kicks", "completions"] {
        ensure!(sum(&later, part) > sum(&text, part), "{part} did not grow while 1 MiB was served");
    }
    ensure!(sum(&later, "rejected") == 0.0, "QEMU's completions were rejected");
    server.finish()
}

/// The lines with numbers. Each family is described first, and told once and whole; nothing comes twice.
fn samples(text: &str) -> Result<Vec<&str>> {
    let (mut families, mut series, mut samples) = (HashSet::new(), HashSet::new(), Vec::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let (family, _) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
            .context("no help before it")?;
        ensure!(families.insert(family), "{family} is told twice");
        let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {family} ")));
        let parts: &[&str] = match kind {
            Some("histogram") => &["_bucket", "_sum", "_count"],
            Some("counter") if family.ends_with("_total") => &[""],
            Some("gauge") if !family.ends_with("_total") => &[""],
            _ => bail!("{family} is a {kind:?}"),
        };
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            let (name, value) = sample.rsplit_once(' ').with_context(|| format!("no value: {sample:?}"))?;
            let part = name.split('{').next().and_then(|name| name.strip_prefix(family));
            ensure!(part.is_some_and(|part| parts.contains(&part)), "{sample:?} is not of {family}");
            ensure!(
                family.starts_with("ringfence_") && value.parse::<f64>().is_ok(),
                "not a sample: {sample:?}"
            );
            ensure!(series.insert(name), "{name} is told twice");
            samples.push(sample);
        }
    }
    Ok(samples)
}

/// Asks Prometheus' own checker, where there is one; `host::api` says when there is none.
fn promtool(text: &str) -> Result<()> {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return Ok(()) };
    child.stdin.take().context("no pipe")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "promtool: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn devices(kernel: &Kernel) -> Result<()> {
    let mut with_more = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    with_more.add("-device virtio-rng-pci -device virtio-serial-pci -device pci-testdev");
    for (machine, msix) in [(with_more.clone(), true), (with_intx(with_more), false)] {
        let server = Server::start(machine)?;
        let list = server.json("/api/devices")?;
        let list = list.as_array().context("not a list")?;
        for device in list {
            for (field, is_right) in [
                ("address", Value::is_string as fn(&Value) -> bool),
                ("id", Value::is_string),
                ("name", Value::is_string),
                ("driver", |driver| driver.is_null() || driver.is_string()),
                ("features", Value::is_array),
                ("queues", Value::is_array),
            ] {
                ensure!(device.get(field).is_some_and(is_right), "{field} of {device}");
            }
        }
        let driven: Vec<&Value> = list.iter().filter(|device| device["driver"].is_string()).collect();
        ensure!(driven.len() == 3, "a disk, a network and an entropy device should have drivers: {driven:?}");
        for device in driven {
            let queues =
                device["queues"].as_array().filter(|queues| !queues.is_empty()).context("no queues")?;
            ensure!(
                queues.iter().all(|queue| queue["vector"].is_number() == msix),
                "MSI-X is {msix}, but: {device}"
            );
            ensure!(device["features"].to_string().contains("VERSION_1"), "not a modern device: {device}");
        }
        let left_alone =
            |id: &str| list.iter().any(|device| device["id"] == id && device["driver"].is_null());
        ensure!(left_alone("1b36:0005"), "pci-testdev is not listed, or has a driver");
        ensure!(left_alone("1af4:1003"), "virtio-serial is not listed, or has a driver");
        server.finish()?;
    }
    Ok(())
}

fn with_intx(mut machine: Machine) -> Machine {
    machine.add(INTX);
    machine
}

fn memory(kernel: &Kernel) -> Result<()> {
    for mebibytes in [64, 4096] {
        let server =
            Server::start(Machine { disk: files_disk()?, memory: mebibytes, ..machine(&kernel.pvh) })?;
        let memory = server.json("/api/memory")?;
        ensure!(
            memory["audit"]["ok"] == true && memory["audit"]["findings"] == serde_json::json!([]),
            "{memory}"
        );
        let frames = memory["frames"].as_object().context("no frames")?;
        let sum: u64 = frames.values().filter_map(Value::as_u64).sum();
        let all = u64::from(mebibytes) * 256;
        // Firmware keeps a little for itself.
        ensure!(sum <= all && sum + 1024 >= all, "{sum} of {all} frames are accounted for: {memory}");
        picture(&memory, sum).with_context(|| memory.to_string())?;
        server.finish()?;
    }
    Ok(())
}

/// The runs follow each other, and are all RAM there is: of those whose place tells the owner so many as in
/// the books. Each window lies in what devices have.
fn picture(memory: &Value, all: u64) -> Result<()> {
    let (mut past, mut counts) = (0, HashMap::<&str, u64>::new());
    let runs = memory["runs"].as_array().context("no runs")?;
    let mut lent = Vec::new();
    for run in runs {
        let (start, count) = (run[0].as_u64().context("no start")?, run[1].as_u64().context("no length")?);
        ensure!(start >= past && count > 0, "{run} comes after {past}");
        past = start + count;
        *counts.entry(run[2].as_str().context("no owner")?).or_default() += count;
        lent.extend((run[2] == "dma").then_some(start..past));
    }
    let sum: u64 = counts.values().sum();
    ensure!(sum == all, "{sum} of {all} frames are in runs");
    for owner in ["kernel", "tables", "reserved", "dma", "dma_idle"] {
        let booked = memory["frames"][owner].as_u64();
        ensure!(Some(counts.get(owner).copied().unwrap_or(0)) == booked, "{owner}: {counts:?}");
    }
    let windows = memory["windows"].as_array().context("no windows")?;
    ensure!(windows.len() >= 6, "a disk and a network card have more windows");
    for window in windows {
        let (start, bytes) = (window["start"].as_u64(), window["bytes"].as_u64());
        let (start, bytes) = (start.context("no start")?, bytes.context("no length")?);
        let frames = start >> 12..(start + bytes).div_ceil(4096);
        let inside = lent.iter().any(|run| run.start <= frames.start && frames.end <= run.end);
        ensure!(inside && window["device"] != "", "{window} is nobody's");
    }
    Ok(())
}

fn reserved_paths(kernel: &Kernel) -> Result<()> {
    let server = Server::with_disk(kernel, files_disk()?)?;
    let body = server.get("/api/devices", &[])?.expect(200)?.text();
    ensure!(body.starts_with('['), "a file on the disk hides a reserved path: {body:.60}");
    for path in ["/api/nothing", "/dashboard/", "/dashboard/nothing", "/metrics/"] {
        server.get(path, &[])?.expect(404).context(path)?;
    }
    let listing = server.get("/api/", &[])?.expect(200)?.text();
    let says_so = listing.contains("are left out") && !listing.contains("devices");
    ensure!(says_so, "a file that cannot be reached is listed: {listing}");
    server.get("/api/memory", &["-X", "POST"])?.expect(405)?;
    server.finish()
}

/// A table that a person can read: protections, devices, queues, features, disk, address, URL.
fn boot_log(kernel: &Kernel) -> Result<()> {
    let mut server = Server::with_disk(kernel, files_disk()?)?;
    let log = server.wait_for_log("ext4")?; // the disk is looked at while the network comes up
    for part in [
        "SMEP",
        "SMAP",
        "UMIP",
        "NX",
        "WP",
        "virtio",
        "queue",
        "VERSION_1",
        "ext4",
        "10.0.2.15",
        &server.url("/"),
    ] {
        ensure!(log.contains(part), "{part} is not in the boot log:\n{log}");
    }
    let (lines, longest) = (log.lines().count(), log.lines().map(str::len).max());
    ensure!(lines <= 60, "the boot log has {lines} lines");
    ensure!(longest <= Some(160), "the boot log has a line of {longest:?} bytes");
    server.finish()
}

fn protections_follow_the_cpu(kernel: &Kernel) -> Result<()> {
    let mut machine = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    machine.add("-cpu qemu64");
    let server = Server::start(machine)?;
    let log = server.log();
    let active = log
        .lines()
        .find(|line| line.contains("NX") && line.contains("WP"))
        .context("no line on protections")?;
    ensure!(!active.contains("SMAP,") && !active.ends_with("SMAP"), "qemu64 has no SMAP: {active}");
    server.get("/1m.bin", &[])?.expect(200)?;
    server.finish()
}
