//! A guest on a network that is there already.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::command_line::{names, refused, run_qemu, stop};
use super::namespace::{self, TAP};
use super::{Kernel, Run, Server, machine};
use crate::guest::Guest;
use crate::qemu::{MICROVM, Machine};

/// The tests here. The first measures time.
pub const TESTS: &[(&str, Run)] = &[
    ("tap::many_clients_at_once", many_clients),
    ("tap::fixed_address_without_a_tap", |kernel| fixed_address(machine(&kernel.pvh))),
    ("tap::fixed_address_without_a_tap_on_microvm", |kernel| {
        fixed_address(Machine { kind: MICROVM.into(), ..machine(&kernel.pvh) })
    }),
    ("tap::wrong_addresses_are_said", wrong_addresses),
    ("tap::there_must_be_one", there_must_be_one),
    ("tap::another_card_has_its_own_address", another_card),
];

/// What `--tap` and `--address` say is where the guest is, and there clients that come at once are served at
/// once.
fn many_clients(_: &Kernel) -> Result<()> {
    const URL: &str = "http://10.77.0.2/";
    let options = ["--tap", TAP, "--address", "10.77.0.2/24,10.77.0.1"];
    let run = run_qemu(&[&["--headless"], &options[..]].concat())?;
    let mut command = Command::new("unshare");
    command.args(namespace::arguments("10.77.0.1/24", run.get_program())).args(run.get_args());
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut guest = Guest::start(command)?;
    let log =
        guest.wait_until(Duration::from_secs(60), |log| log.contains(&format!("serving at   {URL}\n")))?;
    ensure!(log.contains("address      10.77.0.2/24 as told"), "not the address that it was told:\n{log}");
    let start = Instant::now();
    let clients = (0..40).map(|_| namespace::curl(guest.id(), 10, URL).stdout(Stdio::null()).spawn());
    for client in clients.collect::<Result<Vec<_>, _>>()? {
        let output = client.wait_with_output()?;
        ensure!(output.status.success(), "a client got nothing: {output:?}");
    }
    println!("       40 clients in {:.1?}", start.elapsed());
    // One that has to send its SYN again is late by a second.
    ensure!(start.elapsed() < Duration::from_secs(5), "40 clients took {:?}", start.elapsed());
    stop(guest)
}

/// In QEMU's own network too, wherever that is said to be.
fn fixed_address(mut machine: Machine) -> Result<()> {
    machine.address = Some("10.78.1.9/16,10.78.0.1".parse()?);
    let server = Server::start(machine)?;
    server.get("/api/devices", &[])?.expect(200)?;
    let log = server.log();
    ensure!(log.contains("address      10.78.1.9/16 as told") && !log.contains("DHCP"), "{log}");
    server.finish()
}

/// An address that none can have is not used, and the log says why.
fn wrong_addresses(kernel: &Kernel) -> Result<()> {
    for (wrong, why) in [("10.0.2.9", "a prefix length is wanted"), ("10.0.2.255/24", "no host can have")] {
        let mut machine = machine(&kernel.pvh);
        machine.options.push(("address".into(), wrong.into()));
        let server = Server::start(machine)?;
        let log = server.log();
        let line = format!("warning: option address={wrong} is ignored: {why}");
        ensure!(log.contains(&line) && log.contains("10.0.2.15/24 by DHCP"), "{log}");
        server.finish()?;
    }
    Ok(())
}

/// What is no tap interface is refused at once, with how to make one.
fn there_must_be_one(_: &Kernel) -> Result<()> {
    for (name, why) in [("no-such-tap", "there is no such interface"), ("lo", "could not configure")] {
        let output = refused(&["--headless", "--tap", name])?;
        names(&output, why)?;
        names(&output, &format!("ip tuntap add {name} mode tap"))?;
    }
    Ok(())
}

/// The forwarded port leads to one card. Where the other one serves is its own address.
fn another_card(kernel: &Kernel) -> Result<()> {
    for kind in ["q35", MICROVM] {
        let mut machine = Machine { kind: kind.into(), ..machine(&kernel.pvh) };
        let rom = if kind == MICROVM { "" } else { ",romfile=" };
        let device = machine.device("net");
        machine.add(&format!("-netdev user,id=other,net=10.9.0.0/24 -device {device},netdev=other{rom}"));
        let mut server = Server::start(machine)?;
        let log = server.wait_for_log("serving at   http://10.9.0.15/\n").context(kind)?;
        let forwarded = format!("serving at   {}\n", server.url("/"));
        ensure!(log.matches("serving at").count() == 2 && log.contains(&forwarded), "{kind}: {log}");
        server.finish()?;
    }
    Ok(())
}
