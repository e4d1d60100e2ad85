//! Files come out of the guest as they are on the disk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::served::{BIG, FILES, big, files, files_disk, qcow2};
use super::{Kernel, Run, Server, machine};
use crate::image::Image;
use crate::qemu::Machine;
use crate::test::Test;
use crate::test::client::{compare, connect, read_until_silent, start_download};
use crate::test::in_qemu::INTX;

/// The tests here, but for [`combinations`].
pub const TESTS: &[(&str, Run)] = &[
    ("files::one_gib_through_64_mib", one_gib_through_64_mib),
    ("files::qcow2_named_raw", qcow2_named_raw),
    ("files::raw_named_qcow2", raw_named_qcow2),
    ("files::64_clients_at_once", many_clients),
    ("files::90_idle_connections", idle_connections),
    ("files::slow_reader_stalls_nobody", slow_reader),
];

/// Every file, over every way to boot, machine type and kind of interrupt.
pub fn combinations(kernel: &Kernel) -> Vec<Test> {
    let mut tests = Vec::new();
    for (boot_name, boot) in [("pvh", &kernel.pvh), ("uefi", &kernel.uefi)] {
        for kind in ["q35", "pc"] {
            for (interrupts, arguments) in [("msix", ""), ("intx", INTX)] {
                let mut machine = Machine { kind: kind.into(), ..machine(boot) };
                machine.add(arguments);
                let name = format!("system::files::{boot_name}_{kind}_{interrupts}");
                tests.push(Test::new(name, move || every_file(machine)));
            }
        }
    }
    tests
}

fn every_file(machine: Machine) -> Result<()> {
    let server = Server::start(Machine { disk: files_disk()?, ..machine })?;
    for (path, seed, size) in FILES {
        download(&server, path, seed, size, 60)?;
    }
    server.finish()
}

fn download(server: &Server, path: &str, seed: u64, size: u64, seconds: u32) -> Result<()> {
    compare(start_download(&server.url(path), seconds)?, seed, size).with_context(|| path.to_owned())
}

fn one_gib_through_64_mib(kernel: &Kernel) -> Result<()> {
    let disk = Some(Image::open(&big()?)?);
    let server = Server::start(Machine { disk, memory: 64, ..machine(&kernel.pvh) })?;
    download(&server, BIG.0, BIG.1, BIG.2, 600)?;
    server.finish()
}

fn qcow2_named_raw(kernel: &Kernel) -> Result<()> {
    let server = Server::with_disk(kernel, Some(Image::open(&qcow2()?)?))?;
    download(&server, "/1m.bin", 6, 1 << 20, 60)?;
    server.finish()
}

fn raw_named_qcow2(kernel: &Kernel) -> Result<()> {
    let file = files()?;
    let link = file.with_extension("qcow2");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&file, &link)?;
    let server = Server::with_disk(kernel, Some(Image::open(&link)?))?;
    download(&server, "/1m.bin", 6, 1 << 20, 60)?;
    server.finish()
}

/// Each of 64 clients gets 1 MiB while the others do.
fn many_clients(kernel: &Kernel) -> Result<()> {
    let server = Server::with_disk(kernel, files_disk()?)?;
    let clients: Vec<_> =
        (0..64).map(|_| start_download(&server.url("/1m.bin"), 120)).collect::<Result<_>>()?;
    for client in clients {
        compare(client, 6, 1 << 20)?;
    }
    server.finish()
}

/// Connections that ask for nothing keep nobody from being served for longer than a moment.
fn idle_connections(kernel: &Kernel) -> Result<()> {
    let server = Server::with_disk(kernel, files_disk()?)?;
    let idle: Vec<_> = (0..90).filter_map(|_| connect(server.port, Duration::from_secs(1)).ok()).collect();
    ensure!(idle.len() >= 64, "only {} connections at once", idle.len());
    download(&server, "/4097.bin", 4, 4097, 10)?;
    drop(idle);
    download(&server, "/4097.bin", 4, 4097, 20)?;
    server.finish()
}

/// A client that asks for 16 MiB and then does not read does not disturb another.
fn slow_reader(kernel: &Kernel) -> Result<()> {
    let server = Server::with_disk(kernel, files_disk()?)?;
    let mut slow = connect(server.port, Duration::from_secs(5))?;
    std::io::Write::write_all(&mut slow, b"GET /16m.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    std::thread::sleep(Duration::from_millis(500));
    download(&server, "/5m3.bin", 7, (5 << 20) + 3, 30)?;
    let bytes = read_until_silent(&mut slow)?;
    let reply = crate::test::client::Reply::parse(&bytes)?.expect(200)?;
    let expected = crate::test::client::content(8, 0, 16 << 20);
    ensure!(reply.body == expected, "the slow client got {} bytes, or wrong ones", reply.body.len());
    server.finish()
}
