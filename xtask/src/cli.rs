//! The command line of `run-qemu.sh`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use lexopt::prelude::*;

/// What `--help` prints.
pub const HELP: &str = "\
Ringfence: a memory-safe virtio driver subsystem, and the small kernel that proves it.

Usage:
  ./run-qemu.sh [run] [OPTIONS] [-- QEMU ARGS...]   build the kernel and boot it; it serves files over HTTP
  ./run-qemu.sh test [FILTER]                       run every test whose name contains FILTER (default: all)
  ./run-qemu.sh test NAME --gdb                     boot one test of the kernel's (kernel::…), waiting for gdb
  ./run-qemu.sh bench [blk|net|memory]              run one benchmark, or all; results go to target/bench/
  ./run-qemu.sh cargo ARGS...                       run cargo in kernel/ with the compiler that builds the kernel

Options of run:
  --disk IMAGE|none   disk to serve: a raw or qcow2 image of an ext4 file system, opened read-only
                      (default: an image made from the folder site/)
  --port N            port on 127.0.0.1 that leads to the guest's HTTP server (default: 8080)
  --memory MIB        the guest's memory in MiB (default: 128)
  --queues N          request queues of a disk, and pairs of queues of a network card that has several
                      (default: 1)
  --machine q35|pc    QEMU's machine type (default: q35)
  --accel tcg|kvm     run under emulation or hardware virtualisation (default: tcg)
  --uefi              boot through UEFI firmware instead of directly
  --log FILTER        what the guest logs: a level (off, error, warn, info, debug, trace), MODULE=LEVEL, or
                      several with commas between, e.g. warn,smoltcp=trace (default: info)
  --gdb               wait for gdb before the first instruction, and print how to attach it
  --headless          leave standard input alone
  -h, --help          print this

The guest's serial port is standard output. Stop it with Ctrl-C. What comes after `--` goes to QEMU as it is
and wins over the options above, e.g. `-- -cpu qemu64`. The first start installs what is missing, and says
so.
";

/// One invocation.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// `--help`.
    Help,
    /// Boot the kernel.
    Run(RunOptions),
    /// Run the tests whose name contains the string.
    Test(String),
    /// Boot the kernel's test of this name, waiting for gdb.
    DebugTest(String),
    /// Run the benchmark of this name, or all.
    Bench(Option<String>),
    /// Run the kernel's cargo with these arguments.
    Cargo(Vec<OsString>),
    /// Boot what cargo has built: it calls this, see kernel/.cargo/config.toml.
    Boot(Built),
}

/// An ELF for the guest.
#[derive(Debug, PartialEq)]
pub enum Built {
    /// The kernel.
    Kernel(PathBuf, RunOptions),
    /// Tests of the kernel's, those whose name contains the string.
    Tests(PathBuf, String),
}

/// Options of `run`.
#[derive(Debug, PartialEq)]
pub struct RunOptions {
    pub disk: Disk,
    pub port: u16,
    /// In MiB.
    pub memory: u32,
    pub queues: u32,
    pub machine: String,
    pub kvm: bool,
    pub uefi: bool,
    /// See the kernel's `logging::set_filter`.
    pub log: Option<String>,
    pub gdb: bool,
    pub headless: bool,
    pub qemu_arguments: Vec<OsString>,
}

/// Which disk the guest gets.
#[derive(Debug, PartialEq)]
pub enum Disk {
    Site,
    Image(PathBuf),
    None,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            disk: Disk::Site,
            port: 8080,
            memory: 128,
            queues: 1,
            machine: "q35".into(),
            kvm: false,
            uefi: false,
            log: None,
            gdb: false,
            headless: false,
            qemu_arguments: Vec::new(),
        }
    }
}

/// Parses the arguments that follow the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = match arguments.first().and_then(|first| first.to_str()) {
        Some(word) if !word.starts_with('-') => arguments.remove(0),
        _ => "run".into(),
    };
    match command.to_str() {
        Some("run") => parse_run(arguments),
        Some("test") => parse_test(arguments),
        Some("bench") => parse_bench(arguments),
        Some("cargo") => Ok(Command::Cargo(arguments)),
        Some("boot") => parse_boot(arguments),
        _ => bail!("unknown command {command:?}: run, test, bench or cargo (see --help)"),
    }
}

fn parse_run(mut arguments: Vec<OsString>) -> Result<Command> {
    let mut options = RunOptions::default();
    if let Some(end) = arguments.iter().position(|argument| argument == "--") {
        options.qemu_arguments = arguments.split_off(end).split_off(1);
    }
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("disk") => options.disk = disk(parser.value()?),
            Long("port") => options.port = number(&mut parser, "--port", 1, 65535)? as u16,
            Long("memory") => options.memory = number(&mut parser, "--memory", 1, 1 << 20)?,
            Long("queues") => options.queues = number(&mut parser, "--queues", 1, 16)?,
            Long("machine") => options.machine = choice(&mut parser, "--machine", ["q35", "pc"])?,
            Long("accel") => options.kvm = choice(&mut parser, "--accel", ["tcg", "kvm"])? == "kvm",
            Long("uefi") => options.uefi = true,
            Long("log") => options.log = Some(parser.value()?.string()?),
            Long("gdb") => options.gdb = true,
            Long("headless") => options.headless = true,
            other => bail!("{} (see --help)", other.unexpected()),
        }
    }
    Ok(Command::Run(options))
}

fn parse_test(arguments: Vec<OsString>) -> Result<Command> {
    let (mut filter, mut gdb) = (None, false);
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("gdb") => gdb = true,
            Value(value) if filter.is_none() => filter = Some(value.string()?),
            other => bail!("{} (see --help)", other.unexpected()),
        }
    }
    match filter {
        Some(name) if gdb => Ok(Command::DebugTest(name)),
        None if gdb => bail!("test --gdb: of which test? It takes one whole name, kernel::FILE::TEST"),
        filter => Ok(Command::Test(filter.unwrap_or_default())),
    }
}

/// Arguments after the ELF are options of `run` for the kernel, and a filter for tests.
fn parse_boot(mut arguments: Vec<OsString>) -> Result<Command> {
    let mut words = arguments.drain(..);
    let elf = PathBuf::from(words.next().context("boot: of what?")?);
    let rest = words.collect();
    let built = if elf.file_name().is_some_and(|name| name == "ringfence-kernel") {
        match parse_run(rest)? {
            Command::Run(options) => Built::Kernel(elf, options),
            other => return Ok(other),
        }
    } else {
        match parse_test(rest)? {
            Command::Test(filter) => Built::Tests(elf, filter),
            Command::DebugTest(_) => bail!("--gdb is for ./run-qemu.sh test kernel::FILE::TEST"),
            other => return Ok(other),
        }
    };
    Ok(Command::Boot(built))
}

fn parse_bench(arguments: Vec<OsString>) -> Result<Command> {
    let mut name = None;
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help),
            Value(value) if name.is_none() => name = Some(value.string()?),
            other => bail!("{} (see --help)", other.unexpected()),
        }
    }
    match name.as_deref().filter(|name| !crate::bench::NAMES.contains(name)) {
        Some(other) => bail!("unknown benchmark {other:?}: {}", crate::bench::NAMES.join(", ")),
        None => Ok(Command::Bench(name)),
    }
}

fn disk(value: OsString) -> Disk {
    if value == "none" { Disk::None } else { Disk::Image(value.into()) }
}

fn number(parser: &mut lexopt::Parser, option: &str, least: u32, most: u32) -> Result<u32> {
    let value = parser.value()?;
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|n| (least..=most).contains(n));
    number.with_context(|| format!("{option} {value:?}: not a number from {least} to {most}"))
}

fn choice(parser: &mut lexopt::Parser, option: &str, allowed: [&str; 2]) -> Result<String> {
    let value = parser.value()?;
    let found = allowed.into_iter().find(|allowed| value == *allowed);
    found.map(String::from).with_context(|| format!("{option} {value:?}: not {}", allowed.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn defaults() {
        assert_eq!(parsed("").unwrap(), Command::Run(RunOptions::default()));
        assert_eq!(parsed("run").unwrap(), Command::Run(RunOptions::default()));
        assert_eq!(parsed("test").unwrap(), Command::Test(String::new()));
        assert_eq!(parsed("bench").unwrap(), Command::Bench(None));
    }

    #[test]
    fn every_option() {
        let line = "run --disk a.img --port=81 --memory 64 --queues 4 --machine pc --accel kvm --uefi --log warn,a=debug \
             --gdb --headless -- -cpu qemu64 --help";
        let expected = RunOptions {
            disk: Disk::Image("a.img".into()),
            port: 81,
            memory: 64,
            queues: 4,
            machine: "pc".into(),
            kvm: true,
            uefi: true,
            log: Some("warn,a=debug".into()),
            gdb: true,
            headless: true,
            qemu_arguments: vec!["-cpu".into(), "qemu64".into(), "--help".into()],
        };
        assert_eq!(parsed(line).unwrap(), Command::Run(expected));
        assert_eq!(parsed("--disk none --help").unwrap(), Command::Help);
        assert_eq!(parsed("bench memory").unwrap(), Command::Bench(Some("memory".into())));
        assert_eq!(parsed("test kernel::a::b --gdb").unwrap(), Command::DebugTest("kernel::a::b".into()));
        assert_eq!(
            parsed("cargo test --help").unwrap(),
            Command::Cargo(vec!["test".into(), "--help".into()])
        );
    }

    #[test]
    fn what_cargo_has_built() {
        let tests = Command::Boot(Built::Tests("deps/time-0123".into(), "alarm".into()));
        assert_eq!(parsed("boot deps/time-0123 alarm").unwrap(), tests);
        let options = RunOptions { port: 81, ..Default::default() };
        let kernel = Command::Boot(Built::Kernel("x/ringfence-kernel".into(), options));
        assert_eq!(parsed("boot x/ringfence-kernel --port 81").unwrap(), kernel);
    }

    #[test]
    fn each_error_names_its_cause() {
        let cases = [
            ("--bogus", "--bogus"),
            ("frobnicate", "frobnicate"),
            ("run extra", "extra"),
            ("--port 0", "--port"),
            ("--port 65536", "65536"),
            ("--port -1", "-1"),
            ("--memory x", "--memory"),
            ("--memory 0", "--memory"),
            ("--queues 0", "--queues"),
            ("--queues 17", "17"),
            ("--machine microvm", "microvm"),
            ("--accel hvf", "hvf"),
            ("--disk", "--disk"),
            ("--uefi=yes", "--uefi"),
            ("test one two", "two"),
            ("test --fast", "--fast"),
            ("test --gdb", "which"),
            ("boot", "boot"),
            ("boot deps/time-0123 one two", "two"),
            ("--log", "--log"),
            ("bench memry", "memry"),
            ("bench memory twice", "twice"),
        ];
        for (line, cause) in cases {
            let message = format!("{:#}", parsed(line).unwrap_err());
            assert!(message.contains(cause) && !message.contains('\n'), "{line}: {message}");
        }
    }
}
