//! `kernel::` tests: each test of kernel/tests/ is a boot of its own, once on the newest CPU that QEMU knows and once
//! on an old one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Test;
use super::judge::{self, Verdict};
use crate::guest::Guest;
use crate::kernel;
use crate::qemu::{Boot, Machine, exit};
use crate::setup::Toolchain;
use crate::work_folder;

/// How long one test may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a test may take that is there to hang.
const SHORT_LIMIT: Duration = Duration::from_secs(3);
/// The file of tests that fail on purpose.
const MUST_FAIL: &str = "must_fail";

/// All tests of all files in kernel/tests/.
pub fn tests(toolchain: &Toolchain) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for (file, elf) in kernel::build_tests(toolchain)? {
        for (name, key) in
            list(&elf).with_context(|| format!("listing the tests of kernel/tests/{file}.rs"))?
        {
            if file == MUST_FAIL {
                let elf = elf.clone();
                tests.push(Test::new(format!("kernel::{file}::{name}"), move || must_fail(elf, &name)));
            } else {
                tests.extend(on_each_cpu(&file, &elf, &name, &key));
            }
        }
    }
    Ok(tests)
}

/// The names of the tests in `elf`, and the key of the machine each needs.
fn list(elf: &Path) -> Result<Vec<(String, String)>> {
    let mut machine = Machine::new(Boot::Pvh(elf.to_owned()));
    machine.options.push(("test".into(), "list".into()));
    let mut guest = Guest::start(machine.command()?)?;
    let status = guest.wait_exit(LIMIT)?;
    let output = guest.kill();
    let code = status.and_then(|status| status.code());
    ensure!(code == Some(exit::PASS), "it ended with {status:?}:\n{output}");
    let lines = output.lines().filter_map(|line| line.strip_prefix("test-name: "));
    let tests: Vec<_> = lines
        .map(|line| line.split_once(" qemu=").unwrap_or((line, "")))
        .map(|(name, key)| (name.to_owned(), key.to_owned()))
        .collect();
    ensure!(!tests.is_empty(), "there are none");
    Ok(tests)
}

fn on_each_cpu(file: &str, elf: &Path, name: &str, key: &str) -> Vec<Test> {
    let cpus: &[&str] =
        if key.split(',').any(|part| part.starts_with("cpu=")) { &[""] } else { &["", "qemu64"] };
    let test = |cpu: &&str| {
        let (elf, name, key, cpu) = (elf.to_owned(), name.to_owned(), key.to_owned(), cpu.to_string());
        let title = format!("kernel::{file}::{name}{}{cpu}", if cpu.is_empty() { "" } else { " on " });
        Test::new(title, move || {
            let mut scratch = Scratch(Vec::new());
            let mut machine = machine(elf, &key, &mut scratch)?;
            if !cpu.is_empty() {
                machine.add(&format!("-cpu {cpu}"));
            }
            match judge::run(&machine, &name, LIMIT)? {
                Verdict::Passed => Ok(()),
                other => bail!("{other:?}"),
            }
        })
    };
    cpus.iter().map(test).collect()
}

/// A test that fails on purpose passes if it was judged failed for the right reason.
fn must_fail(elf: PathBuf, name: &str) -> Result<()> {
    let verdict = judge::run(&Machine::new(Boot::Pvh(elf)), name, SHORT_LIMIT)?;
    let right = match (name, &verdict) {
        ("panics", Verdict::Failed(message)) => message != "without saying why",
        ("hangs", Verdict::Hung(_)) => true,
        ("triple_faults", Verdict::Reset(_)) => true,
        ("exits_early", Verdict::LeftEarly) => true,
        _ => false,
    };
    ensure!(right, "judged {verdict:?}, which is not why this one fails");
    Ok(())
}

/// Takes MSI-X away from the virtio devices: INTx interrupts.
pub const INTX: &str = "-global virtio-blk-pci.vectors=0 -global virtio-net-pci.vectors=0";

/// Files that a test's guest writes to; removed with the test.
struct Scratch(Vec<PathBuf>);

impl Scratch {
    fn disk(&mut self, mebibytes: u64) -> Result<PathBuf> {
        let file = work_folder("scratch")?.join(format!("{}.raw", fastrand::u64(..)));
        std::fs::File::create_new(&file)?.set_len(mebibytes << 20)?;
        self.0.push(file.clone());
        Ok(file)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.0.iter().for_each(|file| drop(std::fs::remove_file(file)));
    }
}

/// The machine for a test's key: a list of words, separated by commas.
fn machine(elf: PathBuf, key: &str, scratch: &mut Scratch) -> Result<Machine> {
    let mut machine = Machine::new(Boot::Pvh(elf));
    for word in key.split(',').filter(|word| !word.is_empty()) {
        match word.split_once('=').unwrap_or((word, "")) {
            // A writable virtio disk, 16 MiB of zeros, serial number `scratch`.
            ("blk", "") => add_disk(&mut machine, "scratch", &scratch.disk(16)?, ""),
            // The same, but answering one request per second, serial number `slow`.
            ("blk-slow", "") => {
                add_disk(&mut machine, "slow", &scratch.disk(16)?, ",throttling.iops-total=1")
            }
            // A network with QEMU's DHCP server.
            ("net", "") => machine.add("-netdev user,id=net -device virtio-net-pci,netdev=net,romfile="),
            // Two network devices on one cable.
            ("net-pair", "") => machine.add(
                "-netdev hubport,id=one,hubid=0 -netdev hubport,id=two,hubid=0 \
                 -device virtio-net-pci,netdev=one,romfile= -device virtio-net-pci,netdev=two,romfile=",
            ),
            ("rng", "") => machine.add("-device virtio-rng-pci"),
            ("intx", "") => machine.add(INTX),
            ("pc", "") => machine.kind = "pc".into(),
            ("cpu", cpu) => machine.add(&format!("-cpu {cpu}")),
            ("mem", mebibytes) => machine.memory = mebibytes.parse()?,
            _ => bail!("xtask knows no machine called {word:?}"),
        }
    }
    Ok(machine)
}

fn add_disk(machine: &mut Machine, name: &str, file: &Path, more: &str) {
    let file = file.to_string_lossy().replace(',', ",,");
    machine.extra.extend(["-drive".into(), format!("if=none,id={name},format=raw,file={file}{more}").into()]);
    machine.add(&format!("-device virtio-blk-pci,drive={name},serial={name}"));
}
