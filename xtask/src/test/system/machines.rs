//! Machines of other shapes: no network, two, little memory, much.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::served::{self, files, files_disk};
use super::{Kernel, Run, Server, machine};
use crate::guest::Guest;
use crate::qemu::{Boot, MICROVM, Machine, exit};
use crate::test::client::{compare, start_download};

/// The tests here.
pub const TESTS: &[(&str, Run)] = &[
    ("machines::no_network", no_network),
    ("machines::two_networks", two_networks),
    ("machines::one_processor", one_processor),
    ("machines::24_mib", |kernel| little_memory(kernel, 24)),
    ("machines::16_mib", |kernel| little_memory(kernel, 16)),
    ("machines::64_mib", |kernel| serves_with(kernel, 64)),
    ("machines::4_gib", |kernel| serves_with(kernel, 4096)),
    ("machines::uefi_64_mib", uefi_64_mib),
    ("machines::legacy_devices_left_alone", legacy_devices),
    ("machines::microvm", microvm),
    ("machines::microvm_legacy_devices_left_alone", microvm_legacy),
    ("machines::no_nx", |kernel| refused(&kernel.pvh, "qemu64,-nx", "NX")),
    ("machines::no_pat", |kernel| refused(&kernel.pvh, "qemu64,-pat", "PAT")),
    ("machines::no_pat_uefi", |kernel| refused(&kernel.uefi, "qemu64,-pat", "PAT")),
    ("machines::no_apic", |kernel| refused(&kernel.pvh, "qemu64,-apic", "APIC")),
    ("machines::no_tsc", |kernel| refused(&kernel.pvh, "qemu64,-tsc", "TSC")),
    ("machines::no_msr", |kernel| refused(&kernel.pvh, "qemu64,-msr", "MSR")),
    ("machines::no_long_mode", |kernel| refused(&kernel.pvh, "qemu32", "64-bit mode")),
    ("machines::disk_behind_another_host_bridge", |kernel| other_root(machine(&kernel.pvh))),
    ("machines::disk_behind_another_host_bridge_uefi", |kernel| other_root(machine(&kernel.uefi))),
    ("machines::disk_behind_another_host_bridge_pc", |kernel| {
        other_root(Machine { kind: "pc".into(), ..machine(&kernel.pvh) })
    }),
];

/// Without a network the guest stays up, says so, and does not spin itself to death.
fn no_network(kernel: &Kernel) -> Result<()> {
    let machine = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    let mut guest = Guest::start(machine.command()?)?;
    let ended = guest.wait_exit(Duration::from_secs(5))?;
    let log = guest.kill();
    ensure!(ended.is_none(), "the guest ended with {ended:?}:\n{log}");
    ensure!(!log.to_lowercase().contains("panic"), "the guest panicked:\n{log}");
    let said = log.lines().any(|line| line.contains("no ") && line.contains("network"));
    ensure!(said, "the guest does not say that it has no network:\n{log}");
    Ok(())
}

fn over_mmio(kernel: &Kernel) -> Machine {
    Machine { kind: MICROVM.into(), ..machine(&kernel.pvh) }
}

/// Disk and network over MMIO, each by a line of its own.
fn microvm(kernel: &Kernel) -> Result<()> {
    let server = Server::start(Machine { disk: files_disk()?, ..over_mmio(kernel) })?;
    compare(start_download(&server.url("/1m.bin"), 60)?, 6, 1 << 20)?;
    let log = server.log();
    let lines = log.lines().filter(|line| line.contains("  mmio@") && line.contains(", line, queues of "));
    ensure!(lines.count() == 2, "a disk and a card with a line each were expected:\n{log}");
    server.finish()
}

/// Devices of version 1 of the registers are named, and nothing else is done with them.
fn microvm_legacy(kernel: &Kernel) -> Result<()> {
    let mut machine = Machine { disk: files_disk()?, ..over_mmio(kernel) };
    machine.add("-global virtio-mmio.force-legacy=on");
    let mut guest = Guest::start(machine.command()?)?;
    guest.wait_until(Duration::from_secs(20), |log| log.contains("there is no usable network device"))?;
    let log = guest.kill();
    ensure!(log.contains("mmio@") && log.contains("not used: legacy interface only"), "not named:\n{log}");
    Ok(())
}

fn two_networks(kernel: &Kernel) -> Result<()> {
    let mut machine = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    machine.add("-netdev user,id=other,net=10.9.0.0/24 -device virtio-net-pci,netdev=other,romfile=");
    let server = Server::start(machine)?;
    compare(start_download(&server.url("/1m.bin"), 60)?, 6, 1 << 20)?;
    server.finish()
}

/// As a kernel that is started by hand may be: without room for a second processor QEMU leaves out its
/// fences, and notifications of a disk that sleeps at once are lost now and then.
fn one_processor(kernel: &Kernel) -> Result<()> {
    let mut machine = machine(&kernel.pvh);
    machine.add("-smp 1,maxcpus=1 -object iothread,id=disks,poll-max-ns=0");
    let node = json!({ "driver": "file", "node-name": "disk0", "filename": files()?, "read-only": true });
    machine.extra.extend(["-blockdev".into(), node.to_string().into()]);
    machine.add("-device virtio-blk-pci,drive=disk0,iothread=disks");
    let server = Server::start(machine)?;
    for (path, seed, size) in served::FILES {
        compare(start_download(&server.url(path), 60)?, seed, size)?;
    }
    server.finish()
}

/// Works, or says what it lacks and leaves with the code for a failure.
fn little_memory(kernel: &Kernel, mebibytes: u32) -> Result<()> {
    let machine = Machine { disk: files_disk()?, memory: mebibytes, ..machine(&kernel.pvh) };
    match Server::start(machine.clone()) {
        Ok(server) => {
            compare(start_download(&server.url("/1m.bin"), 60)?, 6, 1 << 20)?;
            server.finish()
        }
        Err(error) => {
            let mut guest = Guest::start(machine.command()?)?;
            let status = guest.wait_exit(Duration::from_secs(10))?.context("it neither serves nor ends")?;
            let log = guest.kill();
            let said = log.to_lowercase().contains("memory") && status.code() == Some(exit::FAIL);
            if said { Ok(()) } else { bail!("{error:#}; it ended with {status}:\n{log}") }
        }
    }
}

fn serves_with(kernel: &Kernel, mebibytes: u32) -> Result<()> {
    let server = Server::start(Machine { disk: files_disk()?, memory: mebibytes, ..machine(&kernel.pvh) })?;
    compare(start_download(&server.url("/16m.bin"), 60)?, 8, 16 << 20)?;
    server.finish()
}

fn uefi_64_mib(kernel: &Kernel) -> Result<()> {
    let server = Server::start(Machine { disk: files_disk()?, memory: 64, ..machine(&kernel.uefi) })?;
    compare(start_download(&server.url("/5m3.bin"), 60)?, 7, (5 << 20) + 3)?;
    server.finish()
}

/// A processor without what the kernel needs is refused: the log says what is missing and what to do.
/// (Without NX the UEFI loader, which is not ours, ends in a reset before the kernel's first instruction.)
fn refused(boot: &Boot, cpu: &str, missing: &str) -> Result<()> {
    let mut machine = machine(boot);
    machine.add(&format!("-cpu {cpu}"));
    let mut guest = Guest::start(machine.command()?)?;
    let status = guest.wait_exit(Duration::from_secs(10))?;
    let log = guest.kill();
    let said =
        log.contains("cannot start") && log.contains(&format!("no {missing}")) && log.contains("-cpu max");
    ensure!(
        said && status.and_then(|status| status.code()) == Some(exit::FAIL),
        "-cpu {cpu} ended with {status:?}:\n{log}"
    );
    Ok(())
}

/// The only disk is behind a bridge on a root bus other than bus 0.
fn other_root(mut machine: Machine) -> Result<()> {
    let disk = files_disk()?.context("it was just made")?;
    if machine.kind == "pc" {
        machine.add("-device pxb,id=far,bus_nr=128");
    } else {
        machine.add("-device pxb-pcie,id=root,bus_nr=128 -device pcie-root-port,id=far,bus=root,chassis=9");
    }
    machine.extra.extend(["-blockdev".into(), disk.node("disk").to_string().into()]);
    machine.add("-device virtio-blk-pci,drive=disk,bus=far");
    let server = Server::start(machine)?;
    compare(start_download(&server.url("/1m.bin"), 60)?, 6, 1 << 20)?;
    let devices = server.json("/api/devices")?;
    let addresses = devices.as_array().context("not a list")?.iter().map(|device| device["address"].as_str());
    let addresses: Vec<_> = addresses.collect::<Option<_>>().context("a device without an address")?;
    let far = addresses.iter().filter(|address| **address >= "0000:80").count();
    ensure!(far == 2, "a bridge and the disk should be beyond bus 128: {addresses:?}");
    server.finish()
}

/// A virtio device without the modern interface is listed and left alone.
fn legacy_devices(kernel: &Kernel) -> Result<()> {
    let mut machine = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    machine.add("-device virtio-rng-pci,disable-modern=on,disable-legacy=off -device virtio-balloon-pci");
    machine.add("-blockdev driver=null-co,node-name=old,size=1048576 -device virtio-blk-pci,drive=old,disable-modern=on,disable-legacy=off");
    let server = Server::start(machine)?;
    let devices = server.json("/api/devices")?;
    let disks = devices.as_array().context("not a list")?.iter().filter(|device| device["id"] == "1af4:1001");
    let without_driver = disks.filter(|device| device["driver"].is_null()).count();
    ensure!(without_driver == 1, "the legacy-only disk should have no driver: {devices}");
    compare(start_download(&server.url("/1m.bin"), 60)?, 6, 1 << 20)?;
    server.finish()
}
