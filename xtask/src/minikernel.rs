//! `minikernel`: boots the kernel of examples/minikernel.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::MinikernelOptions;
use crate::qemu::{Boot, MICROVM, Machine};
use crate::setup::{self, Need};
use crate::{kernel, run, work_folder};

/// How long a disk for it is, in bytes.
const DISK_LEN: usize = 1 << 20;

/// Boots it, `elf` if there is one already, with a new disk; returns the exit code for this program.
pub fn run(options: &MinikernelOptions, elf: Option<PathBuf>) -> Result<u8> {
    let toolchain = setup::ensure(Need::Run)?;
    let elf = elf.map_or_else(|| kernel::build_minikernel(&toolchain), Ok)?;
    let disk = work_folder("minikernel")?.join("disk.img");
    std::fs::write(&disk, content())?;
    let mut machine = machine(&elf, &options.machine, json!({ "driver": "file", "filename": disk }));
    machine.extra.extend_from_slice(&options.qemu_arguments);
    run::boot(&machine, true)
}

/// What is on its disk at first: bytes that are different each time.
pub fn content() -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(DISK_LEN).collect()
}

/// A machine of this kind with a disk that QEMU makes of `node`, and a card in QEMU's own network.
pub fn machine(elf: &Path, kind: &str, mut node: Value) -> Machine {
    let mut machine = Machine { kind: kind.into(), ..Machine::new(Boot::Pvh(elf.into())) };
    node["node-name"] = "disk0".into();
    machine.extra.extend(["-blockdev".into(), node.to_string().into()]);
    let (disk, card) = (machine.device("blk"), machine.device("net"));
    let rom = if kind == MICROVM { "" } else { ",romfile=" };
    machine.add(&format!("-device {disk},drive=disk0 -netdev user,id=net0 -device {card},netdev=net0{rom}"));
    machine
}
