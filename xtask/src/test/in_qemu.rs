//! `kernel::` tests: each test of kernel/tests/ is a boot of its own, once on the newest CPU that QEMU knows
//! and once on an old one; those that ask for it also with other ring features offered.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Test;
use super::judge::{self, Verdict};
use crate::guest::Guest;
use crate::qemu::{Boot, MICROVM, Machine, exit};
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
        for device in ["blk", "net", "rng"].map(|kind| machine.device(kind)) {
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
pub const INTX: &str = "-global virtio-blk-pci.vectors=0 -global virtio-net-pci.vectors=0 \
    -global virtio-rng-pci.vectors=0";

/// A disk: its name, what its file holds, and more properties of QEMU's drive and device.
macro_rules! disk {
    ($name:literal, $file:literal, $drive:literal, $device:literal) => {
        concat!(
            concat!("-drive if=none,format=raw,id=", $name, ",file=", $file, $drive),
            concat!(" -device virtio-blk-pci,drive=", $name, ",serial=", $name, $device)
        )
    };
}

/// A disk that fails to read: one sector, or all of them.
macro_rules! bad_disk {
    ($sector:literal) => {
        concat!(
            "-drive if=none,id=bad,driver=blkdebug,image.driver=raw,image.file.driver=file,",
            "image.file.filename={numbers},inject-error.0.event=none,inject-error.0.iotype=read,",
            concat!("inject-error.0.errno=5", $sector, " -device virtio-blk-pci,drive=bad,serial=bad")
        )
    };
}

/// What a word of a test's key adds to QEMU's arguments. `{}` is what follows the word's `=`; `{zeros}` is a
/// file of 16 MiB for this one test, `{numbers}` the same, each 8 bytes their own byte offset.
const WORDS: &[(&str, &str)] = &[
    ("blk", disk!("scratch", "{zeros}", "", "")),
    ("blk-queue", disk!("queue", "{zeros}", "", ",queue-size={}")),
    ("blk-legacy", disk!("legacy", "{zeros}", "", ",disable-modern=on,disable-legacy=off")),
    ("blk-mq", disk!("scratch", "{zeros}", "", ",num-queues={}")),
    ("blk-mq-numbered", disk!("numbered", "{numbers}", "", ",num-queues={}")),
    // 1 GiB of nothing, at once, in a thread of its own, with so many queues.
    (
        "blk-null",
        "-object iothread,id=io0 -blockdev driver=null-co,node-name=null,size=1073741824,read-zeroes=off \
         -device virtio-blk-pci,drive=null,iothread=io0,num-queues={}",
    ),
    ("blk-numbered", disk!("numbered", "{numbers}", "", "")),
    ("blk-numbered", disk!("numbered", "{numbers}", ",throttling.iops-total={}", "")),
    // After the first one it answers a request in an hour.
    ("blk-silent", disk!("numbered", "{numbers}", ",throttling.bps-total=1", "")),
    ("blk-ro", disk!("ro", "{numbers}", ",read-only=on", "")),
    ("blk-4k", disk!("large", "{numbers}", "", ",logical_block_size=4096,physical_block_size=4096")),
    (
        "root-port",
        concat!("-device pcie-root-port,id=root,chassis=1 ", disk!("behind", "{numbers}", "", ",bus=root")),
    ),
    // To be left with all bits inverted.
    (INVERTED, disk!("inverted", "{numbers}", "", "")),
    ("blk-eio", bad_disk!("")),
    ("blk-eio", bad_disk!(",inject-error.0.sector={}")),
    // A network with QEMU's DHCP server.
    ("net", "-netdev user,id=net -device virtio-net-pci,netdev=net,romfile="),
    ("net-2", "-netdev user,id=net2 -device virtio-net-pci,netdev=net2,romfile="),
    // Two network devices on one cable.
    (
        "net-pair",
        "-netdev hubport,id=one,hubid=0 -netdev hubport,id=two,hubid=0 \
         -device virtio-net-pci,netdev=one,mac=52:54:00:00:00:01,romfile= \
         -device virtio-net-pci,netdev=two,mac=52:54:00:00:00:02,romfile=",
    ),
    ("rng", "-device virtio-rng-pci"),
    // It gives the bytes of a numbered disk, in their order.
    ("rng-numbered", "-object rng-random,id=known,filename={numbers} -device virtio-rng-pci,rng=known"),
    // A device that there is no driver for.
    ("console", "-device virtio-serial-pci"),
    // A device with only the legacy interface.
    ("legacy", "-device virtio-balloon-pci,disable-modern=on,disable-legacy=off"),
    ("intx", INTX),
    ("vectors", "-global virtio-blk-pci.vectors={} -global virtio-net-pci.vectors={}"),
    ("cpu", "-cpu {}"),
    ("mem", "-m {}M"),
];
const INVERTED: &str = "blk-inverted";

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
    /// A new disk that starts with `contents`, as QEMU wants its name.
    fn disk(&mut self, contents: &[u8]) -> Result<String> {
        let file = work_folder("scratch")?.join(format!("{}.raw", fastrand::u64(..)));
        self.files.push(file.clone());
        std::fs::write(&file, contents)?;
        std::fs::File::options().write(true).open(&file)?.set_len(DISK)?;
        Ok(file.to_string_lossy().replace(',', ",,"))
    }

    /// An argument of [`WORDS`] with everything in its place.
    fn fill(&mut self, argument: &str, value: &str) -> Result<OsString> {
        let mut argument = argument.replace("{}", value);
        if argument.contains("{zeros}") {
            argument = argument.replace("{zeros}", &self.disk(&[])?);
        } else if argument.contains("{numbers}") {
            argument = argument.replace("{numbers}", &self.disk(&numbers())?);
        }
        Ok(argument.into())
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
            // What the kernel's options say; `+` stands for a comma.
            ("queues", count) => machine.options.push(("queues".into(), count.into())),
            ("log", filter) => machine.options.push(("log".into(), filter.replace('+', ","))),
            ("pc" | MICROVM, "") => machine.kind = word.into(),
            // Booted by UEFI firmware.
            ("uefi", "") => machine.boot = uefi(toolchain, &elf)?,
            // Nothing of the machine's: see `variants` and `in_each_variant`.
            ("formats" | "rings" | "slow", "") => {}
            ("disks", count) => add_disks(&mut machine, count.parse()?, scratch)?,
            (word, value) => {
                let is_it = |(name, arguments): &&(&str, &str)| {
                    *name == word && arguments.contains("{}") != value.is_empty()
                };
                let found = WORDS.iter().find(is_it);
                let (_, arguments) =
                    found.with_context(|| format!("xtask knows no machine called {word:?}"))?;
                for argument in arguments.split_whitespace() {
                    machine.extra.push(scratch.fill(argument, value)?);
                }
                if word == INVERTED {
                    scratch.inverted = scratch.files.last().cloned();
                }
            }
        }
    }
    if machine.kind == MICROVM {
        let over_mmio = |argument: &OsString| {
            let argument = argument.to_string_lossy().replace(",romfile=", "");
            ["blk", "net", "rng"].iter().fold(argument, |line, kind| {
                line.replace(&format!("virtio-{kind}-pci"), &format!("virtio-{kind}-device"))
            })
        };
        machine.extra = machine.extra.iter().map(over_mmio).map(OsString::from).collect();
    }
    Ok(machine)
}

/// Adds `count` numbered disks, read-only, eight to a PCI device, which is to an interrupt line.
fn add_disks(machine: &mut Machine, count: u32, scratch: &mut Scratch) -> Result<()> {
    let file = scratch.disk(&numbers())?;
    for number in 0..count {
        let drive = format!("if=none,id=disk{number},format=raw,file={file},read-only=on");
        machine.extra.extend(["-drive".into(), drive.into()]);
        let place = format!("multifunction=on,addr={:x}.{}", 8 + number / 8, number % 8);
        machine.add(&format!("-device virtio-blk-pci,drive=disk{number},serial=disk{number},{place}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_arguments() {
        let toolchain = Toolchain { cargo: "c".into(), rustc: "r".into(), linker_folder: None };
        let mut scratch = Scratch::default();
        let mut added = |key| {
            let machine = machine(&toolchain, "k".into(), key, &mut scratch)?;
            let words: Vec<_> =
                machine.extra.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            anyhow::Ok(words.join(" "))
        };
        assert_eq!(added("cpu=max,slow,mem=24").unwrap(), "-cpu max -m 24M");
        let queue = added("blk-queue=4,formats").unwrap();
        assert!(queue.starts_with("-drive if=none,format=raw,id=queue,file=/") && !queue.contains('{'));
        assert!(queue.ends_with(".raw -device virtio-blk-pci,drive=queue,serial=queue,queue-size=4"));
        assert!(!added("blk-numbered").unwrap().contains("iops"));
        assert!(added("blk-numbered=7").unwrap().contains(",throttling.iops-total=7 "));
        assert_eq!(added("disks=9").unwrap().matches("serial=disk").count(), 9);
        for wrong in ["blk=1", "blk-queue", "floppy", "disks=many"] {
            assert!(added(wrong).is_err(), "{wrong}");
        }
    }
}
