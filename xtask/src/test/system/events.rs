//! What QEMU does to a running guest on command.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::command_line::run_qemu;
use super::served::{files, files_disk};
use super::{Kernel, Run, Server, free_port, machine};
use crate::guest::Guest;
use crate::qemu::{Machine, exit, tethered};
use crate::test::client::{compare, connect, curl, get, start_download};
use crate::test::qmp::Qmp;

/// The tests here; some measure time.
pub const TESTS: &[(&str, Run)] = &[
    ("events::nmi", nmi),
    ("events::devices_leave_their_slots", slots),
    ("events::the_disk_leaves_its_slot", served_disk),
    ("events::power_button_waits_for_answers", power_button),
    ("events::power_button_waits_ten_seconds_at_most", stalled_client),
    ("events::power_button_has_disks_flushed", flushed),
    ("events::power_button_on_pc", |kernel| off(Machine { kind: "pc".into(), ..machine(&kernel.pvh) })),
    ("events::power_button_under_uefi", |kernel| off(machine(&kernel.uefi))),
    ("events::power_button_without_an_exit_device", no_exit_device),
];

/// Interrupts that nothing masks, whatever the guest does just now: each is reported, and it goes on.
fn nmi(kernel: &Kernel) -> Result<()> {
    const COUNT: usize = 50;
    let mut machine = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    let port = Qmp::listen(&mut machine)?;
    let mut server = Server::start(machine)?;
    let mut qmp = Qmp::connect(port)?;
    qmp.execute("inject-nmi", json!({}))?;
    let log = server.wait_for_log("hardware has failed\n")?;
    ensure!(log.contains("non-maskable interrupt at 0xffffffff8"), "it does not say where:\n{log}");
    let download = start_download(&server.url("/16m.bin"), 60)?;
    for _ in 0..COUNT {
        qmp.execute("inject-nmi", json!({}))?;
        sleep(Duration::from_millis(5));
    }
    compare(download, 8, 16 << 20)?;
    server.finish()
}

/// Devices of each kind are taken out of a running machine, which goes on with others.
fn slots(kernel: &Kernel) -> Result<()> {
    let mut machine = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    for port in 1..=3 {
        machine.add(&format!("-device pcie-root-port,id=root{port},chassis={port}"));
    }
    machine.add(
        "-blockdev null-co,node-name=zeros,size=1048576 -device virtio-blk-pci,id=disk,drive=zeros,bus=root1",
    );
    machine.add("-netdev user,id=other -device virtio-net-pci,id=card,netdev=other,romfile=,bus=root2");
    machine.add("-device virtio-rng-pci,id=rng,bus=root3");
    let port = Qmp::listen(&mut machine)?;
    let server = Server::start(machine)?;
    let mut qmp = Qmp::connect(port)?;
    let driven = || -> Result<usize> {
        let devices = server.json("/api/devices")?;
        Ok(devices.as_array().context("not a list")?.iter().filter(|one| !one["driver"].is_null()).count())
    };
    ensure!(driven()? == 5, "not all devices are used");
    let download = start_download(&server.url("/16m.bin"), 60)?;
    for (left, device) in [(4, "disk"), (3, "card"), (2, "rng")] {
        take(&mut qmp, device)?;
        ensure!(driven()? == left, "{device} is still used");
    }
    compare(download, 8, 16 << 20)?;
    let log = server.log();
    ensure!(!log.contains("given up") && !log.contains("was not flushed"), "not in good order:\n{log}");
    server.finish()
}

/// Without its disk the server answers still, only not with files.
fn served_disk(kernel: &Kernel) -> Result<()> {
    let mut machine = machine(&kernel.pvh);
    let disk = files_disk()?.context("it was just made")?;
    machine.add("-device pcie-root-port,id=root");
    machine.extra.extend(["-blockdev".into(), disk.node("disk0").to_string().into()]);
    machine.add("-device virtio-blk-pci,id=disk,drive=disk0,bus=root");
    let port = Qmp::listen(&mut machine)?;
    let mut server = Server::start(machine)?;
    server.wait_for_log("disk         ext4")?;
    server.get("/1k.bin", &[])?.expect(200)?;
    take(&mut Qmp::connect(port)?, "disk")?;
    let status = server.get("/16m.bin", &[])?.status;
    ensure!((500..600).contains(&status), "status {status} without a disk");
    server.finish()
}

/// Asks for a device, until QEMU has it.
fn take(qmp: &mut Qmp, device: &str) -> Result<()> {
    qmp.execute("device_del", json!({ "id": device }))?;
    while qmp.wait_for("DEVICE_DELETED").context(device.to_owned())?["data"]["device"] != device {}
    Ok(())
}

/// An answer that is under way is completed, a kept connection is answered once more, others are not served;
/// then `run-qemu.sh` ends with success.
fn power_button(_: &Kernel) -> Result<()> {
    let (port, monitor) = (free_port()?, free_port()?);
    let qmp = format!("tcp:127.0.0.1:{monitor},server=on,wait=off");
    let image = files()?;
    let options = ["--headless", "--disk", image.to_str().context("not UTF-8")?, "--port", &port.to_string()];
    let mut guest = Guest::start(run_qemu(&[&options, &["--", "-qmp", &qmp][..]].concat())?)?;
    guest.wait_until(Duration::from_secs(60), |log| log.contains("disk         ext4"))?;
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let mut qmp = Qmp::connect(monitor)?;
    let download = curl(30).args(["--fail", "--limit-rate", "4M", &url("/16m.bin")]).spawn()?;
    sleep(Duration::from_millis(500));
    let mut kept = connect(port, Duration::from_secs(5))?;
    let request = b"GET /notes.txt HTTP/1.1\r\nHost: guest\r\n\r\n";
    let first = exchange(&mut kept, request)?;
    ensure!(!first.contains("Connection: close"), "{first}");

    // Who has nothing to ask is let go after a second.
    qmp.execute("system_powerdown", json!({}))?;
    guest.wait_until(Duration::from_secs(5), |log| log.contains("power button: 2 connections"))?;
    let last = exchange(&mut kept, request)?;
    ensure!(last.contains("Connection: close") && last.ends_with("0123456789"), "{last}");
    drop(kept);
    ensure!(get(&url("/notes.txt"), &[]).is_err(), "somebody came later and was served");
    compare(download, 8, 16 << 20)?;
    let status = guest.wait_exit(Duration::from_secs(5))?.context("it goes on")?;
    let log = guest.kill();
    ensure!(status.success() && log.contains("\noff ") && !log.contains("given up"), "{status}:\n{log}");
    Ok(())
}

/// What comes back for a request, in one piece.
fn exchange(connection: &mut TcpStream, request: &[u8]) -> Result<String> {
    connection.write_all(request)?;
    let mut answer = vec![0; 4096];
    let mut len = 0;
    while !answer[..len].ends_with(b"0123456789") {
        let count = connection.read(&mut answer[len..])?;
        ensure!(count > 0, "hung up after {:?}", String::from_utf8_lossy(&answer[..len]));
        len += count;
    }
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

/// A client that takes nothing of its answer keeps the system no longer than it may.
fn stalled_client(kernel: &Kernel) -> Result<()> {
    let mut machine = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    let port = Qmp::listen(&mut machine)?;
    let mut server = Server::start(machine)?;
    let mut client = connect(server.port, Duration::from_secs(5))?;
    client.write_all(b"GET /16m.bin HTTP/1.1\r\nHost: guest\r\n\r\n")?;
    sleep(Duration::from_millis(500));
    Qmp::connect(port)?.execute("system_powerdown", json!({}))?;
    ensure!(server.guest.wait_exit(Duration::from_secs(8))?.is_none(), "it did not wait");
    let status = server.guest.wait_exit(Duration::from_secs(7))?.context("it waits for ever")?;
    let log = server.guest.kill();
    ensure!(
        status.code() == Some(exit::PASS) && log.contains("1 connections are cut off"),
        "{status}:\n{log}"
    );
    Ok(())
}

/// Each disk is flushed before the machine is switched off.
fn flushed(kernel: &Kernel) -> Result<()> {
    let mut machine = Machine { disk: files_disk()?, port: Some(free_port()?), ..machine(&kernel.pvh) };
    machine.add("-blockdev null-co,node-name=zeros,size=1048576 -device virtio-blk-pci,drive=zeros");
    machine.add("-action shutdown=pause");
    let monitor = Qmp::listen(&mut machine)?;
    let mut guest = Guest::start(tethered("qemu-system-x86_64", without_exit_device(&machine))?)?;
    guest.wait_until(Duration::from_secs(30), |log| log.contains("disk         ext4"))?;
    let mut qmp = Qmp::connect(monitor)?;
    qmp.execute("system_powerdown", json!({}))?;
    qmp.wait_for("SHUTDOWN")?;
    let stats = qmp.execute("query-blockstats", json!({}))?;
    let disks = stats.as_array().context("not a list")?;
    let flushes: Vec<_> = disks.iter().map(|disk| &disk["stats"]["flush_operations"]).collect();
    ensure!(flushes == [1, 1], "not one flush each: {stats}");
    Ok(())
}

/// Nobody is there: the end comes at once.
fn off(machine: Machine) -> Result<()> {
    let (status, log) = off_after(Machine { disk: files_disk()?, ..machine }, Machine::arguments)?;
    ensure!(status == Some(exit::PASS), "{status:?}:\n{log}");
    Ok(())
}

/// A guest that cannot choose QEMU's status switches the machine off.
fn no_exit_device(kernel: &Kernel) -> Result<()> {
    for kind in ["q35", "pc"] {
        let machine = Machine { kind: kind.into(), disk: files_disk()?, ..machine(&kernel.pvh) };
        let (status, log) = off_after(machine, without_exit_device)?;
        ensure!(status == Some(0) && log.contains("\noff "), "{status:?}:\n{log}");
    }
    Ok(())
}

fn without_exit_device(machine: &Machine) -> Vec<OsString> {
    let mut arguments = machine.arguments();
    let device = arguments.iter().position(|word| word.to_string_lossy().contains("isa-debug-exit"));
    device.map(|at| arguments.drain(at - 1..=at));
    arguments
}

/// Starts a machine with these arguments, and presses its power button; returns the status and the log.
fn off_after(
    mut machine: Machine,
    arguments: impl Fn(&Machine) -> Vec<OsString>,
) -> Result<(Option<i32>, String)> {
    machine.port = Some(free_port()?);
    let monitor = Qmp::listen(&mut machine)?;
    let mut guest = Guest::start(tethered("qemu-system-x86_64", arguments(&machine))?)?;
    guest.wait_until(Duration::from_secs(30), |log| log.contains("disk         ext4"))?;
    Qmp::connect(monitor)?.execute("system_powerdown", json!({}))?;
    let status = guest.wait_exit(Duration::from_secs(3))?;
    Ok((status.and_then(|status| status.code()), guest.kill()))
}
