//! A guest that waits for gdb.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result};

use crate::qemu::Machine;

/// Where gdb's users expect it.
const USUAL_PORT: u16 = 1234;
/// Reached by both loaders, on the kernel's own addresses.
const FIRST_STOP: &str = "ringfence_kernel::boot::start";

/// Has `machine`, which boots `elf`, wait for a debugger before its first instruction, and prints how to
/// attach one. Only programs on this computer can.
pub fn wait_for(machine: &mut Machine, elf: &Path) -> Result<()> {
    let port = free_port()?;
    machine.add(&format!("-gdb tcp:127.0.0.1:{port} -S"));
    eprintln!("run-qemu.sh: the guest waits for a debugger. In another terminal:\n  {}", command(elf, port));
    Ok(())
}

/// Before the kernel is mapped, gdb can only set breakpoints that the processor looks for itself (`hbreak`).
fn command(elf: &Path, port: u16) -> String {
    format!(
        "gdb {} -ex 'target remote 127.0.0.1:{port}' -ex 'hbreak {FIRST_STOP}' -ex continue",
        elf.display()
    )
}

fn free_port() -> Result<u16> {
    let usual = TcpListener::bind(("127.0.0.1", USUAL_PORT));
    let listener = usual.or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
    Ok(listener.context("no port for gdb")?.local_addr()?.port())
}
