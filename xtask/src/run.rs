//! `run`: boots the kernel and stays until it ends.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::RunOptions;
use crate::image::{self, Image};
use crate::qemu::{Boot, Machine, exit, probe_kvm};
use crate::setup::{self, Need, Toolchain};
use crate::{gdb, kernel, tap};

/// How long QEMU may take to end by itself after a signal.
const GRACE: Duration = Duration::from_millis(500);

/// Boots the kernel, `elf` if there is one already; returns the exit code for this program.
pub fn run(options: &RunOptions, elf: Option<PathBuf>) -> Result<u8> {
    // What the person got wrong is said before anything is installed or built.
    let image = options.disk.as_deref().filter(|disk| *disk != Path::new("none"));
    let given_disk = image.map(Image::open).transpose()?;
    match &options.tap {
        Some(name) => tap::ensure_there(name)?,
        None => {
            TcpListener::bind(("127.0.0.1", options.port))
                .with_context(|| format!("port {} on 127.0.0.1 cannot be used", options.port))?;
        }
    }
    let toolchain = setup::ensure(if options.uefi { Need::Uefi } else { Need::Run })?;
    options.tap.as_deref().map_or(Ok(()), tap::probe)?;
    let elf = elf.map_or_else(|| kernel::build(&toolchain), Ok)?;
    let mut machine = Machine {
        boot: if options.uefi { uefi(&toolchain, &elf)? } else { Boot::Pvh(elf.clone()) },
        kind: options.machine.clone(),
        kvm: options.accel == "kvm",
        memory: options.memory,
        disk: if options.disk.is_none() { Some(image::site()?) } else { given_disk },
        port: Some(options.port),
        tap: options.tap.clone(),
        address: options.address,
        options: options.log.iter().map(|filter| ("log".into(), filter.clone())).collect(),
        extra: Vec::new(),
    };
    if let Some(number) = options.partition {
        machine.options.push(("partition".into(), number.to_string()));
    }
    if options.queues > 1 {
        machine.options.push(("queues".into(), options.queues.to_string()));
        machine.add(&format!("-global {}.num-queues={}", machine.device("blk"), options.queues));
    }
    machine.extra.extend_from_slice(&options.qemu_arguments);
    if machine.kvm {
        probe_kvm(&machine)?;
    }
    if options.gdb {
        gdb::wait_for(&mut machine, &elf)?;
    }
    boot(&machine, options.headless)
}

/// Starts `machine` on this terminal and stays until it ends; returns the exit code for this program.
pub fn boot(machine: &Machine, headless: bool) -> Result<u8> {
    // Before QEMU starts, so that no signal can come in between and leave it running.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD])?;
    let mut command = machine.command()?;
    if headless {
        command.stdin(Stdio::null());
    }
    let mut qemu = command.spawn().context("cannot start QEMU")?;
    for signal in signals.forever() {
        if signal != SIGCHLD {
            end(&mut qemu)?;
            return Ok(128 + signal as u8);
        } else if let Some(status) = qemu.try_wait()? {
            return Ok(verdict(status));
        }
    }
    unreachable!("the signals do not end")
}

/// Makes the image that UEFI boots `elf` from.
pub fn uefi(toolchain: &Toolchain, elf: &Path) -> Result<Boot> {
    let firmware = setup::firmware().context("UEFI firmware is missing")?;
    Ok(Boot::Uefi { image: kernel::build_uefi_image(toolchain, elf)?, firmware })
}

/// Ends QEMU: asks first, as it gives the terminal back the way it was.
fn end(qemu: &mut Child) -> Result<()> {
    kill_process(Pid::from_child(qemu), Signal::TERM)?;
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        if qemu.try_wait()?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    qemu.kill()?;
    qemu.wait()?;
    Ok(())
}

fn verdict(status: ExitStatus) -> u8 {
    let (code, message) = match status.code() {
        Some(exit::PASS) => return 0,
        Some(exit::FAIL) => (1, "the guest gave up: see its last lines".into()),
        Some(exit::PANIC) => (3, "the kernel panicked".into()),
        Some(exit::RESET) => {
            (4, "the guest was reset or switched off (a triple fault looks like this)".into())
        }
        Some(_) => return 1, // QEMU has said why
        None => (1, format!("QEMU was ended by signal {}", status.signal().unwrap_or_default())),
    };
    eprintln!("run-qemu.sh: {message}");
    code
}
