//! A tap interface for the guest's network card, made by whoever may.

use std::ffi::OsString;
use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::qemu::tethered;

/// The argument of QEMU's `-netdev`.
pub fn netdev(name: &str) -> String {
    format!("tap,id=net0,ifname={},script=no,downscript=no", name.replace(',', ",,"))
}

/// Makes sure that there is an interface called `name`: QEMU would make one that nobody has given an address.
pub fn ensure_there(name: &str) -> Result<()> {
    let interfaces =
        std::fs::read_to_string("/proc/self/net/dev").context("no list of network interfaces")?;
    let mut names = interfaces.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    ensure!(
        names.any(|other| other == name),
        "--tap {name}: there is no such interface; {}",
        how_to_make(name)
    );
    Ok(())
}

/// Makes sure that QEMU can use it, by having it do so.
pub fn probe(name: &str) -> Result<()> {
    let options = "-machine none -nodefaults -display none -monitor stdio -netdev";
    let arguments = options.split(' ').map(OsString::from).chain([netdev(name).into()]).collect();
    let mut qemu = tethered("qemu-system-x86_64", arguments)?
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    // It hears that only if it has come so far.
    let _ = qemu.stdin.take().map(|mut monitor| monitor.write_all(b"quit\n"));
    let output = qemu.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.lines().next().and_then(|line| line.rsplit_once("downscript=no: ")).map(|(_, why)| why);
    bail!("--tap {name}: {}; {}", reason.unwrap_or("QEMU cannot use it"), how_to_make(name))
}

fn how_to_make(name: &str) -> String {
    format!(
        "make one that you may use: sudo ip tuntap add {name} mode tap user $USER && \
         sudo ip address add 10.0.0.1/24 dev {name} && sudo ip link set {name} up"
    )
}
