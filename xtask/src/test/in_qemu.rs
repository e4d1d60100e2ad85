//! `kernel::` tests: each test of kernel/tests/ is a boot of its own, once on the newest CPU that QEMU knows
//! and once on an old one; those that ask for it also with other ring features offered.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Test;
use super::judge::{self, Verdict};
use crate::guest::Guest;
use crate::qemu::{Boot, Machine, exit};
use crate::run::{self, uefi};
use crate::setup::Toolchain;
use crate::{gdb, kernel, work_folder};

/// How long one test may take: many times what it takes, since a loaded machine must not make it red.
const LIMIT: Duration = Duration::from_secs(120);
/// How long one may take whose key says `slow`.
const LONG_LIMIT: Duration = Duration::from_secs(600);
/// How long a test may take that is there to hang.
const SHORT_LIMIT: Duration = Duration::from_secs(3);
/// The file of tests that fail on purpose.
const MUST_FAIL: &str = "must_fail";

/// All tests of all files in kernel/tests/.
pub fn tests(toolchain: &Toolchain) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    let (files, complete) = kernel::build_tests(toolchain)?;
    if !complete {
        tests.push(Test::new("kernel::build", || bail!("not every file in kernel/tests/ builds")));
    }
    for (file, elf) in files {
        tests.extend(of_image(toolchain, &file, &elf)?);
    }
    Ok(tests)
}

/// The tests of one file in kernel/tests/, built as `elf`.
pub fn of_image(toolchain: &Toolchain, file: &str, elf: &Path) -> Result<Vec<Test>> {
    let listed = list(elf).with_context(|| format!("listing the tests of kernel/tests/{file}.rs"))?;
    let test = |(name, key): (String, String)| {
        let elf = elf.to_owned();
        if file == MUST_FAIL {
            vec![Test::new(format!("kernel::{file}::{name}"), move || must_fail(elf, &name))]
        } else {
            in_each_variant(toolchain, file, &elf, &name, &key)
        }
    };
    Ok(listed.into_iter().flat_map(test).collect())
}

/// Boots the test called `kernel::FILE::TEST` on this terminal, waiting for gdb; returns the exit code for
/// this program.
pub fn debug(toolchain: &Toolchain, name: &str) -> Result<u8> {
    let (file, test) = name
        .strip_prefix("kernel::")
        .and_then(|rest| rest.split_once("::"))
        .with_context(|| format!("{name:?} is no test that runs in the kernel: kernel::FILE::TEST"))?;
    let (files, _) = kernel::build_tests(toolchain)?;
    let (_, elf) = files
        .into_iter()
        .find(|(found, _)| found == file)
        .with_context(|| format!("there is no kernel/tests/{file}.rs"))?;
    let (_, key) = list(&elf)?
        .into_iter()
        .find(|(found, _)| found == test)
        .with_context(|| format!("there is no test {test:?} in kernel/tests/{file}.rs"))?;
    let mut scratch = Scratch::default();
    let mut machine = machine(toolchain, elf.clone(), &key, &mut scratch)?;
    DEFAULT_RINGS.apply(&mut machine);
    machine.options.push(("test".into(), test.into()));
    gdb::wait_for(&mut machine, &elf)?;
    run::boot(&machine, false)
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

/// What is offered where a test's key does not say.
const DEFAULT_RINGS: Rings = Rings { packed: false, event_idx: true, indirect_desc: true };

/// Which ring features the virtio devices offer.
#[derive(Clone, Copy, PartialEq)]
struct Rings {
    packed: bool,
    event_idx: bool,
    indirect_desc: bool,
}

impl Rings {
    fn all() -> impl Iterator<Item = Self> {
        (0..8_u32).map(|bits| Self {
            packed: bits & 1 != 0,
            event_idx: bits & 2 == 0,
            indirect_desc: bits & 4 == 0,
        })
    }

    /// Properties of QEMU's devices, whether they are on, and the feature bits they stand for.
    fn properties(self) -> [(&'static str, bool, u32); 3] {
        [
            ("packed", self.packed, 34),
            ("event_idx", self.event_idx, 29),
            ("indirect_desc", self.indirect_desc, 28),
        ]
    }

    /// How the variant is called: by what is not the default.
    fn title(self) -> String {
        let own = self.properties().into_iter();
        let differ = own.filter(|property| !DEFAULT_RINGS.properties().contains(property));
        differ.map(|(name, on, _)| format!(" {name}={}", on_off(on))).collect()
    }

    /// Has QEMU offer this, and tells the guest what was offered: the feature bits, in decimal.
    fn apply(self, machine: &mut Machine) {
        for device in ["virtio-blk-pci", "virtio-net-pci"] {
            for (name, on, _) in self.properties() {
                machine.add(&format!("-global {device}.{name}={}", on_off(on)));
            }
        }
        let bits: u64 = self.properties().iter().map(|&(_, on, bit)| u64::from(on) << bit).sum();
        machine.options.push(("rings".into(), bits.to_string()));
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// The variants of a test: on an old CPU too, unless its key names one, and with the ring features that its
/// key asks for: `formats` for both formats, `rings` for all combinations.
fn variants(key: &str) -> Vec<(&'static str, Rings)> {
    let has = |wanted: &str| key.split(',').any(|word| word == wanted);
    let packed = Rings { packed: true, ..DEFAULT_RINGS };
    let wanted = |rings| has("rings") || has("formats") && rings == packed;
    let others = Rings::all().filter(|&rings| rings != DEFAULT_RINGS && wanted(rings));
    let old_cpu = !key.split(',').any(|word| word.starts_with("cpu="));
    let cpus = [("", DEFAULT_RINGS)].into_iter().chain(old_cpu.then_some(("qemu64", DEFAULT_RINGS)));
    cpus.chain(others.map(|rings| ("", rings))).collect()
}

fn in_each_variant(toolchain: &Toolchain, file: &str, elf: &Path, name: &str, key: &str) -> Vec<Test> {
    let limit = if key.split(',').any(|word| word == "slow") { LONG_LIMIT } else { LIMIT };
    let test = |(cpu, rings): (&'static str, Rings)| {
        let (elf, name, key) = (elf.to_owned(), name.to_owned(), key.to_owned());
        let toolchain = toolchain.clone();
        let on = if cpu.is_empty() { rings.title() } else { format!(" on {cpu}") };
        Test::new(format!("kernel::{file}::{name}{on}"), move || {
            let mut scratch = Scratch::default();
            let mut machine = machine(&toolchain, elf, &key, &mut scratch)?;
            rings.apply(&mut machine);
            if !cpu.is_empty() {
                machine.add(&format!("-cpu {cpu}"));
            }
            match judge::run(&machine, &name, limit)? {
                Verdict::Passed => scratch.check(),
                other => bail!("{other:?}"),
            }
        })
    };
    variants(key).into_iter().map(test).collect()
}

/// A test that fails on purpose passes if it was judged failed for the right reason.
fn must_fail(elf: PathBuf, name: &str) -> Result<()> {
    let verdict = judge::run(&Machine::new(Boot::Pvh(elf)), name, SHORT_LIMIT)?;
    let right = match (name, &verdict) {
        ("panics", Verdict::Failed(message)) => message != "without saying why",
        ("hangs", Verdict::Hung(_)) => true,
        ("triple_faults", Verdict::Reset(_)) => true,
        ("exits_early", Verdict::LeftEarly) => true,
        ("overflows_the_stack", Verdict::Failed(message)) => message.ends_with("stack overflow"),
        _ => false,
    };
    ensure!(right, "judged {verdict:?}, which is not why this one fails");
    Ok(())
}

/// Takes MSI-X away from the virtio devices: INTx interrupts.
pub const INTX: &str = "-global virtio-blk-pci.vectors=0 -global virtio-net-pci.vectors=0";

/// Files that a test's guest writes to; removed with the test.
#[derive(Default)]
struct Scratch {
    files: Vec<PathBuf>,
    /// To be found with every bit inverted.
    inverted: Option<PathBuf>,
}

/// Size of the disks, in bytes.
const DISK: u64 = 16 << 20;

impl Scratch {
    fn disk(&mut self, contents: &[u8]) -> Result<PathBuf> {
        let file = work_folder("scratch")?.join(format!("{}.raw", fastrand::u64(..)));
        self.files.push(file.clone());
        std::fs::write(&file, contents)?;
        std::fs::File::options().write(true).open(&file)?.set_len(DISK)?;
        Ok(file)
    }

    /// A disk in which each 8 bytes are their own byte offset.
    fn numbered(&mut self) -> Result<PathBuf> {
        self.disk(&numbers())
    }

    /// Whether the guest left what it should.
    fn check(&self) -> Result<()> {
        let Some(file) = &self.inverted else { return Ok(()) };
        let found: Vec<u8> = std::fs::read(file)?.iter().map(|byte| !byte).collect();
        ensure!(found == numbers(), "the disk does not hold what the guest wrote");
        Ok(())
    }
}

fn numbers() -> Vec<u8> {
    (0..DISK).step_by(8).flat_map(u64::to_le_bytes).collect()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.files.iter().for_each(|file| drop(std::fs::remove_file(file)));
    }
}

/// The machine for a test's key: a list of words, separated by commas.
fn machine(toolchain: &Toolchain, elf: PathBuf, key: &str, scratch: &mut Scratch) -> Result<Machine> {
    let mut machine = Machine::new(Boot::Pvh(elf.clone()));
    for word in key.split(',').filter(|word| !word.is_empty()) {
        match word.split_once('=').unwrap_or((word, "")) {
            // A writable virtio disk, 16 MiB of zeros, serial number `scratch`; with a queue of so many
            // descriptors; with only the legacy interface.
            ("blk", "") => add_disk(&mut machine, "scratch", &scratch.disk(&[])?, "", ""),
            ("blk-queue", size) => {
                add_disk(&mut machine, "queue", &scratch.disk(&[])?, "", &format!("queue-size={size}"))
            }
            ("blk-legacy", "") => add_disk(
                &mut machine,
                "legacy",
                &scratch.disk(&[])?,
                "",
                "disable-modern=on,disable-legacy=off",
            ),
            // With so many queues; and numbered.
            ("blk-mq", queues) => {
                add_disk(&mut machine, "scratch", &scratch.disk(&[])?, "", &format!("num-queues={queues}"))
            }
            ("blk-mq-numbered", queues) => {
                add_disk(&mut machine, "numbered", &scratch.numbered()?, "", &format!("num-queues={queues}"))
            }
            // 1 GiB of nothing, at once, in a thread of its own, with so many queues.
            ("blk-null", queues) => machine.add(&format!(
                "-object iothread,id=io0 -blockdev driver=null-co,node-name=null,size=1073741824,read-zeroes=off \
                 -device virtio-blk-pci,drive=null,iothread=io0,num-queues={queues}"
            )),
            // What the kernel's options say; `+` stands for a comma.
            ("queues", count) => machine.options.push(("queues".into(), count.into())),
            ("log", filter) => machine.options.push(("log".into(), filter.replace('+', ","))),
            // See `variants`.
            ("formats" | "rings", "") => {}
            // So many numbered disks, read-only, eight to a PCI device, which is to an interrupt line.
            ("disks", count) => {
                let file = scratch.numbered()?;
                for number in 0..count.parse()? {
                    let place = format!("multifunction=on,addr={:x}.{}", 8 + number / 8, number % 8);
                    add_disk(&mut machine, &format!("disk{number}"), &file, ",read-only=on", &place);
                }
            }
            // Each 8 bytes are their own byte offset: answering so many requests per second; read-only; with
            // blocks of 4 KiB; behind a PCI Express root port; to be left with all bits inverted; failing to
            // read one sector, or all of them.
            ("blk-numbered", "") => add_disk(&mut machine, "numbered", &scratch.numbered()?, "", ""),
            ("blk-numbered", iops) => {
                let throttle = format!(",throttling.iops-total={iops}");
                add_disk(&mut machine, "numbered", &scratch.numbered()?, &throttle, "")
            }
            // After the first one it answers a request in an hour.
            ("blk-silent", "") => {
                add_disk(&mut machine, "numbered", &scratch.numbered()?, ",throttling.bps-total=1", "")
            }
            ("blk-ro", "") => add_disk(&mut machine, "ro", &scratch.numbered()?, ",read-only=on", ""),
            ("blk-4k", "") => {
                let blocks = "logical_block_size=4096,physical_block_size=4096";
                add_disk(&mut machine, "large", &scratch.numbered()?, "", blocks)
            }
            ("root-port", "") => {
                machine.add("-device pcie-root-port,id=root,chassis=1");
                add_disk(&mut machine, "behind", &scratch.numbered()?, "", "bus=root")
            }
            ("blk-inverted", "") => {
                let file = scratch.numbered()?;
                add_disk(&mut machine, "inverted", &file, "", "");
                scratch.inverted = Some(file);
            }
            ("blk-eio", sector) => add_bad_disk(&mut machine, &scratch.numbered()?, sector),
            // A network with QEMU's DHCP server.
            ("net", "") => machine.add("-netdev user,id=net -device virtio-net-pci,netdev=net,romfile="),
            ("net-2", "") => machine.add("-netdev user,id=net2 -device virtio-net-pci,netdev=net2,romfile="),
            // Two network devices on one cable.
            ("net-pair", "") => machine.add(
                "-netdev hubport,id=one,hubid=0 -netdev hubport,id=two,hubid=0 \
                 -device virtio-net-pci,netdev=one,mac=52:54:00:00:00:01,romfile= \
                 -device virtio-net-pci,netdev=two,mac=52:54:00:00:00:02,romfile=",
            ),
            ("rng", "") => machine.add("-device virtio-rng-pci"),
            // A device with only the legacy interface.
            ("legacy", "") => machine.add("-device virtio-balloon-pci,disable-modern=on,disable-legacy=off"),
            ("intx", "") => machine.add(INTX),
            ("vectors", count) => machine.add(&format!(
                "-global virtio-blk-pci.vectors={count} -global virtio-net-pci.vectors={count}"
            )),
            ("pc", "") => machine.kind = "pc".into(),
            // Booted by UEFI firmware.
            ("uefi", "") => machine.boot = uefi(toolchain, &elf)?,
            // Nothing of the machine's: it takes longer than others.
            ("slow", "") => {}
            ("cpu", cpu) => machine.add(&format!("-cpu {cpu}")),
            ("mem", mebibytes) => machine.memory = mebibytes.parse()?,
            _ => bail!("xtask knows no machine called {word:?}"),
        }
    }
    Ok(machine)
}

fn add_disk(machine: &mut Machine, name: &str, file: &Path, drive: &str, device: &str) {
    let file = file.to_string_lossy().replace(',', ",,");
    machine
        .extra
        .extend(["-drive".into(), format!("if=none,id={name},format=raw,file={file}{drive}").into()]);
    let device = if device.is_empty() { String::new() } else { format!(",{device}") };
    machine.add(&format!("-device virtio-blk-pci,drive={name},serial={name}{device}"));
}

/// A disk on which reading `sector` fails, or reading anything if it is empty.
fn add_bad_disk(machine: &mut Machine, file: &Path, sector: &str) {
    let file = file.to_string_lossy().replace(',', ",,");
    let sector = if sector.is_empty() { String::new() } else { format!(",inject-error.0.sector={sector}") };
    let drive = format!(
        "if=none,id=bad,driver=blkdebug,image.driver=raw,image.file.driver=file,image.file.filename={file},\
         inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.errno=5{sector}"
    );
    machine.extra.extend(["-drive".into(), drive.into()]);
    machine.add("-device virtio-blk-pci,drive=bad,serial=bad");
}
