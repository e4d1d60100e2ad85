//! `run-qemu.sh` as a person uses it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Kernel, Run, free_port, served};
use crate::guest::Guest;
use crate::test::client;
use crate::{root, target};

/// The tests here; they measure time.
pub const TESTS: &[(&str, Run)] = &[
    ("command_line::serves_the_site", serves_the_site),
    ("command_line::second_start_is_quick", second_start_is_quick),
    ("command_line::sigint_ends_qemu", |_| signal_ends_qemu(Signal::INT)),
    ("command_line::sigterm_ends_qemu", |_| signal_ends_qemu(Signal::TERM)),
    ("command_line::sighup_ends_qemu", |_| signal_ends_qemu(Signal::HUP)),
    ("command_line::sigkill_ends_qemu", |_| signal_ends_qemu(Signal::KILL)),
    ("command_line::errors_are_one_line", errors_are_one_line),
    ("command_line::busy_port", busy_port),
    ("command_line::more_processors", more_processors),
    ("command_line::gdb_attaches", gdb_attaches),
    ("command_line::help", help),
    ("command_line::kvm_works_or_says_why_not", kvm_works_or_says_why_not),
    ("command_line::kvm_of_every_kind", kvm_of_every_kind),
];

/// `run-qemu.sh` with these arguments.
pub fn run_qemu(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(root().join("run-qemu.sh"));
    command.args(arguments).env("CARGO_TARGET_DIR", target()?);
    Ok(command)
}

/// Starts `run-qemu.sh` and waits until it serves; returns how long that took.
fn start(port: u16, more: &[&str]) -> Result<(Guest, Duration)> {
    let start = Instant::now();
    let port = port.to_string();
    let mut guest = Guest::start(run_qemu(&[&["--port", &port, "--headless"], more].concat())?)?;
    let url = format!("http://127.0.0.1:{port}/");
    guest
        .wait_until(Duration::from_secs(60), |log| log.contains(&url))
        .context("run-qemu.sh does not come up")?;
    Ok((guest, start.elapsed()))
}

/// SIGTERM, and no QEMU left.
pub fn stop(mut guest: Guest) -> Result<()> {
    kill_process(pid(guest.id())?, Signal::TERM)?;
    guest.wait_exit(Duration::from_secs(2))?.context("it does not end")?;
    Ok(())
}

fn pid(id: u32) -> Result<Pid> {
    Pid::from_raw(id.try_into()?).context("no process")
}

/// Without options: every file of site/, as it is there.
fn serves_the_site(_: &Kernel) -> Result<()> {
    let port = free_port()?;
    let (guest, _) = start(port, &[])?;
    let site = root().join("site");
    let mut folders = vec![site.clone()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir()? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&site)?.to_str().context("a name in site/ is not UTF-8")?;
            let reply = client::get(&format!("http://127.0.0.1:{port}/{name}"), &[])?
                .expect(200)
                .context(name.to_owned())?;
            ensure!(reply.body == std::fs::read(&path)?, "{name} is not what is in site/");
        }
    }
    let front = client::get(&format!("http://127.0.0.1:{port}/"), &[])?.expect(200)?.text();
    ensure!(front.contains("Ringfence"), "the front page does not say what this is");
    stop(guest)
}

/// A start without set-up and without anything to compile: it serves within 2 s. The best of three counts, as
/// the first may have to compile, and other work on the machine is not what this is about.
fn second_start_is_quick(_: &Kernel) -> Result<()> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let (guest, took) = start(free_port()?, &[])?;
        stop(guest)?;
        best = best.min(took);
    }
    ensure!(best < Duration::from_secs(2), "{best:?}");
    Ok(())
}

fn signal_ends_qemu(signal: Signal) -> Result<()> {
    let (mut guest, _) = start(free_port()?, &[])?;
    let qemu = child_of(guest.id()).context("run-qemu.sh has no child")?;
    let start = Instant::now();
    kill_process(pid(guest.id())?, signal)?;
    while is_running(qemu) && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(1), "QEMU took {took:?} to end");
    let status = guest.wait_exit(Duration::from_secs(1))?.context("run-qemu.sh goes on")?;
    let expected = 128 + signal.as_raw();
    ensure!(
        status.code() == Some(expected) || status.signal() == Some(signal.as_raw()),
        "it ended with {status}"
    );
    Ok(())
}

/// Whether a process is there and is more than what its parent has not yet taken note of.
fn is_running(id: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{id}/stat"));
    state.is_ok_and(|state| !state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// The only child of a process: for `run-qemu.sh`, QEMU.
fn child_of(parent: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let child = children.split_whitespace().next()?.parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    name.starts_with("qemu").then_some(child)
}

/// Runs `run-qemu.sh` for what must be refused at once, and ends what goes on.
pub fn refused(arguments: &[&str]) -> Result<Output> {
    const LIMIT: Duration = Duration::from_secs(5);
    let start = Instant::now();
    let mut command = run_qemu(arguments)?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    while child.try_wait()?.is_none() {
        if start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            bail!("{arguments:?} was not refused in {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output()?;
    ensure!(!output.status.success(), "{arguments:?} was accepted");
    Ok(output)
}

/// Checks that the one line on standard error names `cause`.
pub fn names(output: &Output, cause: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains(cause) && said.lines().count() == 1, "not one line about {cause:?}: {said}");
    Ok(())
}

fn errors_are_one_line(_: &Kernel) -> Result<()> {
    let port = free_port()?.to_string();
    let cases: [(&[&str], &str); 12] = [
        (&["--bogus"], "--bogus"),
        (&["frobnicate"], "frobnicate"),
        (&["--port", "99999"], "99999"),
        (&["--port", "abc"], "abc"),
        (&["--port"], "--port"),
        (&["--memory", "0"], "--memory"),
        (&["--machine", "isapc"], "isapc"),
        (&["--accel", "magic"], "magic"),
        (&["--disk", "/no/such/image", "--port", &port], "/no/such/image"),
        (&["--disk", "/", "--port", &port], "/"),
        (&["bench", "gpu"], "gpu"),
        (&["boot", "/no/such/program"], "/no/such/program"),
    ];
    for (arguments, cause) in cases {
        names(&refused(arguments)?, cause)?;
    }
    unreadable_image(&port)
}

/// For root every file is readable, so this is only tried by others.
fn unreadable_image(port: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let image = served::files()?.with_extension("unreadable");
    std::fs::write(&image, "x")?;
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o000))?;
    let path: &Path = &image;
    names(&refused(&["--disk", path.to_str().context("not UTF-8")?, "--port", port])?, "unreadable")
}

fn busy_port(_: &Kernel) -> Result<()> {
    let busy = TcpListener::bind(("127.0.0.1", 0))?;
    let port = busy.local_addr()?.port().to_string();
    names(&refused(&["--headless", "--port", &port])?, &port)
}

/// A person's number of processors is not mixed with ours.
fn more_processors(_: &Kernel) -> Result<()> {
    let (guest, _) = start(free_port()?, &["--", "-smp", "4"])?;
    stop(guest)
}

/// Nothing runs before a debugger says so. This one only asks why the guest stands still, and detaches.
fn gdb_attaches(_: &Kernel) -> Result<()> {
    let port = free_port()?.to_string();
    let mut guest = Guest::start(run_qemu(&["--headless", "--gdb", "--port", &port])?)?;
    let said = guest.wait_until(Duration::from_secs(60), |log| log.contains("-ex continue"))?;
    let address = said.split("target remote ").nth(1).and_then(|rest| rest.split('\'').next());
    let mut gdb = connect(address.context("it does not say where to attach")?)?;
    gdb.write_all(b"$?#3f")?;
    let mut reply = Vec::new();
    while !reply.contains(&b'#') {
        let mut piece = [0; 64];
        let count = gdb.read(&mut piece)?;
        ensure!(count > 0, "the stub hangs up");
        reply.extend_from_slice(&piece[..count]);
    }
    // Acknowledged, and stopped by signal 5.
    let reply = String::from_utf8_lossy(&reply);
    ensure!(reply.starts_with("+$T05") || reply.starts_with("+$S05"), "{reply:?}");
    ensure!(!guest.output().contains("protections"), "the guest did not wait");
    gdb.write_all(b"+$D#44")?;
    let url = format!("http://127.0.0.1:{port}/");
    guest.wait_until(Duration::from_secs(30), |log| log.contains(&url)).context("it does not go on")?;
    stop(guest)
}

/// QEMU may need a moment to listen.
fn connect(address: &str) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                return Ok(stream);
            }
            Err(error) if start.elapsed() > Duration::from_secs(10) => {
                return Err(error).context("no gdb stub");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn help(_: &Kernel) -> Result<()> {
    let cases: [(&[&str], &str); 5] = [
        (&["--help"], "--disk <IMAGE|none>"),
        (&["run", "--help"], "--disk <IMAGE|none>"),
        (&["test", "--help"], "[FILTER]"),
        (&["bench", "--help"], "blk, net, memory"),
        (&["-h"], "--disk <IMAGE|none>"),
    ];
    for (arguments, part) in cases {
        let output = run_qemu(arguments)?.output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success() && text.contains(part), "{arguments:?}: {text}");
    }
    Ok(())
}

fn kvm_works_or_says_why_not(_: &Kernel) -> Result<()> {
    let arguments = ["--headless", "--accel", "kvm", "--port", &free_port()?.to_string()];
    let mut guest = Guest::start(run_qemu(&arguments)?)?;
    // Where KVM is itself emulated it may work, and be too slow to wait for more than this.
    if guest.wait_until(Duration::from_secs(30), |log| log.contains("protections")).is_ok() {
        return stop(guest);
    }
    let status = guest.wait_exit(Duration::from_secs(1))?.context("it neither boots nor ends")?;
    let said = guest.kill();
    let refused = !status.success() && said.contains("--accel kvm") && said.lines().count() == 1;
    ensure!(refused, "not one line about KVM, and {status}: {said}");
    Ok(())
}

/// With a QEMU that behaves as the real one does on machines without KVM, with a broken one, and with a good
/// one.
fn kvm_of_every_kind(_: &Kernel) -> Result<()> {
    const MISSING: &str = "Could not access KVM kernel module: No such file or directory";
    const BROKEN: &str = "qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69";
    let kinds = [
        (
            format!("echo '{MISSING}' >&2; echo 'qemu-system-x86_64: failed to initialize kvm' >&2; exit 1"),
            MISSING,
        ),
        (format!("echo '{BROKEN}' >&2; echo 'kvm.c:3183: Assertion failed.' >&2; kill -ABRT $$"), BROKEN),
        (format!("echo 'x: warning: no such feature' >&2; echo '{BROKEN}' >&2; exec sleep 60"), BROKEN),
        ("echo 'protections  NX'; exit 33".into(), ""),
    ];
    let folder = crate::work_folder("fake-qemu")?;
    let fake = folder.join("qemu-system-x86_64");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    for (script, reason) in kinds {
        std::fs::write(&fake, format!("#!/bin/sh\n{script}\n"))?;
        std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755))?;
        let arguments = ["--headless", "--accel", "kvm", "--port", &free_port()?.to_string()];
        let output = run_qemu(&arguments)?.env("PATH", &path).stdin(std::process::Stdio::null()).output()?;
        ensure!(output.status.success() == reason.is_empty(), "{script}: {output:?}");
        if !reason.is_empty() {
            names(&output, reason)?;
            names(&output, "--accel tcg")?;
        }
    }
    Ok(())
}
