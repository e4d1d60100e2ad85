//! The command line of `run-qemu.sh`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, value_parser};

use crate::qemu::MICROVM;
use crate::static_address::StaticAddress;

/// Ringfence: a memory-safe virtio driver subsystem, and the small kernel that proves it.
///
/// The guest's serial port is standard output. Stop it with Ctrl-C. The first start installs what is missing,
/// and says so.
#[derive(Parser)]
#[command(name = "./run-qemu.sh", args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunOptions,
}

/// One invocation.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build the kernel and boot it: what is done without a command. It serves files over HTTP
    Run(RunOptions),
    /// Run every test whose name contains FILTER
    Test {
        #[arg(default_value = "", hide_default_value = true)]
        filter: String,
        /// Boot one test of the kernel's on this terminal, waiting for gdb; FILTER is its whole name,
        /// kernel::FILE::TEST
        #[arg(long, requires = "filter")]
        gdb: bool,
    },
    /// Run one benchmark, or all; results go to target/bench/
    Bench {
        #[arg(value_parser = crate::bench::NAMES)]
        name: Option<String>,
        #[command(flatten)]
        http: crate::bench::http::Options,
    },
    /// Boot examples/minikernel, the drivers in another kernel, with a disk made for it and a network card
    Minikernel(MinikernelOptions),
    /// Run cargo in kernel/ with the compiler that builds the kernel
    #[command(disable_help_flag = true)]
    Cargo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<OsString>,
    },
    /// Boot what cargo has built: it calls this, see kernel/.cargo/config.toml
    #[command(hide = true, disable_help_flag = true)]
    Boot {
        /// The ELF, then for the kernel options of `run`, for tests a filter
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "ELF")]
        built: Vec<OsString>,
    },
}

/// Options of `minikernel`.
#[derive(Args, Debug)]
pub struct MinikernelOptions {
    /// QEMU's machine type; microvm has its devices behind registers in memory, without PCI
    #[arg(long, default_value = "q35", value_parser = ["q35", "pc", MICROVM])]
    pub machine: String,
    /// Go to QEMU as they are, e.g. `-- -d int`
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub qemu_arguments: Vec<OsString>,
}

/// Options of `run`.
#[derive(Args, Debug)]
pub struct RunOptions {
    /// Disk to serve: a raw or qcow2 image of an ext4 file system, or of a disk with partitions, opened
    /// read-only; by default one made from the folder site/
    #[arg(long, value_name = "IMAGE|none")]
    pub disk: Option<PathBuf>,
    /// Partition to serve, by its number; by default the first file system that can be
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub partition: Option<u32>,
    /// Port on 127.0.0.1 that leads to the guest's HTTP server
    #[arg(long, value_name = "N", default_value = "8080", value_parser = value_parser!(u16).range(1..))]
    pub port: u16,
    /// Tap interface for the guest's network card, which is there already: the guest is on its network, and
    /// no port leads to it
    #[arg(long, value_name = "NAME", conflicts_with = "port")]
    pub tap: Option<String>,
    /// The guest's address, with the length of the network's prefix, and its gateway, e.g.
    /// 10.0.0.2/24,10.0.0.1; by default the guest asks by DHCP
    #[arg(long, value_name = "ADDRESS/N[,GATEWAY]")]
    pub address: Option<StaticAddress>,
    /// The guest's memory in MiB
    #[arg(long, value_name = "MIB", default_value = "128", value_parser = value_parser!(u32).range(1..=1 << 20))]
    pub memory: u32,
    /// Request queues of a disk, and pairs of queues of a network card that has several
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u32).range(1..=16))]
    pub queues: u32,
    /// QEMU's machine type; microvm has no PCI and no firmware
    #[arg(long, default_value = "q35", value_parser = ["q35", "pc", MICROVM])]
    pub machine: String,
    /// Run under emulation or hardware virtualisation
    #[arg(long, default_value = "tcg", value_parser = ["tcg", "kvm"])]
    pub accel: String,
    /// Boot through UEFI firmware instead of directly
    #[arg(long)]
    pub uefi: bool,
    /// What the guest logs: a level (off, error, warn, info, debug, trace), MODULE=LEVEL, or several with
    /// commas between, e.g. warn,smoltcp=trace; by default info
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Wait for gdb before the first instruction, and print how to attach it
    #[arg(long)]
    pub gdb: bool,
    /// Leave standard input alone
    #[arg(long)]
    pub headless: bool,
    /// Go to QEMU as they are and win over the options above, e.g. `-- -cpu qemu64 -smp 4`
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub qemu_arguments: Vec<OsString>,
}

/// Parses the arguments that follow the program's name. An error is one line; `--help` does not return.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command> {
    match CommandLine::try_parse_from(["./run-qemu.sh".into()].into_iter().chain(arguments)) {
        Ok(line) => match line.command.unwrap_or(Command::Run(line.run)) {
            Command::Run(run) if run.uefi && run.machine == MICROVM => {
                bail!("--uefi: a microvm has no such firmware (see --help)")
            }
            command => Ok(command),
        },
        Err(help) if !help.use_stderr() => help.exit(),
        Err(error) => {
            let text = error.to_string();
            let cause: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            bail!("{} (see --help)", cause.join(" ").trim_start_matches("error: "))
        }
    }
}

/// Parses the words that follow `boot`: the ELF, and how it is to be booted.
pub fn parse_built(words: &[OsString]) -> Result<(PathBuf, Command)> {
    let (elf, rest) = words.split_first().context("boot: of what?")?;
    let elf = PathBuf::from(elf);
    let command = match elf.file_name().and_then(OsStr::to_str) {
        Some("ringfence-kernel") => "run",
        Some("minikernel") => "minikernel",
        _ => "test",
    };
    Ok((elf, parse([command.into()].into_iter().chain(rest.iter().cloned()))?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::static_address::Wrong;

    fn parsed(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn run(line: &str) -> RunOptions {
        match parsed(line).unwrap() {
            Command::Run(options) => options,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn defaults() {
        for line in ["", "run"] {
            let options = run(line);
            assert_eq!((options.disk, options.port, options.memory, options.queues), (None, 8080, 128, 1));
            assert_eq!((options.machine.as_str(), options.accel.as_str()), ("q35", "tcg"));
            assert!(!options.uefi && !options.gdb && !options.headless);
            assert!(options.log.is_none() && options.qemu_arguments.is_empty());
            assert!(options.tap.is_none() && options.partition.is_none() && options.address.is_none());
        }
        assert!(matches!(parsed("test").unwrap(), Command::Test { filter, gdb: false } if filter.is_empty()));
        assert!(matches!(parsed("bench").unwrap(), Command::Bench { name: None, .. }));
    }

    #[test]
    fn every_option() {
        let options = "--disk a.img --partition 5 --port=81 --memory 64 --queues 4 --machine pc --accel kvm --uefi \
                       --log warn,a=debug --gdb --headless";
        for command in ["", "run "] {
            let options = run(&format!("{command}{options} -- -cpu qemu64 --help"));
            assert_eq!((options.disk, options.partition), (Some("a.img".into()), Some(5)));
            assert_eq!((options.port, options.memory, options.queues), (81, 64, 4));
            assert_eq!((options.machine.as_str(), options.accel.as_str()), ("pc", "kvm"));
            assert_eq!(options.log.as_deref(), Some("warn,a=debug"));
            assert!(options.uefi && options.gdb && options.headless);
            assert_eq!(options.qemu_arguments, ["-cpu", "qemu64", "--help"]);
        }
        for (line, debug) in [("test a::b", false), ("test a::b --gdb", true), ("test --gdb a::b", true)] {
            let parsed = parsed(line).unwrap();
            assert!(matches!(parsed, Command::Test { filter, gdb } if filter == "a::b" && gdb == debug));
        }
        assert!(
            matches!(parsed("bench net").unwrap(), Command::Bench { name, .. } if name.as_deref() == Some("net"))
        );
    }

    #[test]
    fn addresses_are_those_of_hosts() {
        let parse = str::parse::<StaticAddress>;
        for text in
            ["10.0.0.2/24", "10.0.0.2/24,10.0.0.1", "192.168.1.255/16,192.168.2.0", "10.0.0.0/31,10.0.0.1"]
        {
            assert_eq!(parse(text).unwrap().to_string(), text);
            assert_eq!(run(&format!("--tap a,b --address {text}")).address, parse(text).ok());
        }
        let cases = [
            (Wrong::NoPrefix, "|10.0.0.2|10.0.0.2,10.0.0.1|x"),
            (Wrong::Address, "/|/24|10.0.0/24|10.0.0.256/24|10.0.0.2 /24|010.0.0.2/24"),
            (
                Wrong::Prefix,
                "10.0.0.2/|10.0.0.2/0|10.0.0.2/32|10.0.0.2/-1|10.0.0.2/24/24|10.0.0.2/255.255.255.0",
            ),
            (
                Wrong::Gateway,
                "10.0.0.2/24,|10.0.0.2/24,x|10.0.0.2/24,10.0.0.1,10.0.0.3|10.0.0.2/24,10.0.0.1/24",
            ),
            (Wrong::Ipv6, "fd00::2/64|10.0.0.2/24,fd00::1"),
            (
                Wrong::NotAHost,
                "0.0.0.0/8|10.0.0.0/24|10.0.0.255/24|127.0.0.1/8|224.0.0.1/4|255.255.255.255/31",
            ),
            (
                Wrong::GatewayElsewhere,
                "10.0.0.2/24,10.0.0.2|10.0.0.2/24,10.0.1.2|10.0.0.2/24,10.0.0.255|10.0.0.2/24,0.0.0.0",
            ),
        ];
        for (wrong, texts) in cases {
            for text in texts.split('|') {
                assert_eq!(parse(text), Err(wrong), "{text:?}");
            }
        }
    }

    #[test]
    fn cargo_gets_its_arguments_as_they_are() {
        for line in ["", "--help", "test --help", "test --test time -- alarm --gdb", "-V"] {
            let Command::Cargo { arguments } = parsed(&format!("cargo {line}")).unwrap() else {
                panic!("{line}")
            };
            assert_eq!(arguments, line.split_whitespace().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_cargo_has_built() {
        let built = |line: &str| match parsed(line)? {
            Command::Boot { built } => parse_built(&built),
            other => panic!("{line}: {other:?}"),
        };
        let (elf, tests) = built("boot deps/time-0123 alarm").unwrap();
        assert_eq!(elf, Path::new("deps/time-0123"));
        assert!(matches!(tests, Command::Test { filter, gdb: false } if filter == "alarm"));
        let (elf, kernel) = built("boot x/ringfence-kernel --port 81 -- -cpu x").unwrap();
        assert_eq!(elf, Path::new("x/ringfence-kernel"));
        assert!(matches!(kernel, Command::Run(options)
            if options.port == 81 && options.qemu_arguments == ["-cpu", "x"]));
        let (_, kernel) = built("boot x/ringfence-kernel -- -S").unwrap();
        assert!(matches!(kernel, Command::Run(options) if options.qemu_arguments == ["-S"]));
        let (_, mini) = built("boot x/minikernel --machine pc -- -S").unwrap();
        assert!(matches!(mini, Command::Minikernel(options)
            if options.machine == "pc" && options.qemu_arguments == ["-S"]));
        assert!(built("boot deps/time-0123 one two").unwrap_err().to_string().contains("two"));
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
            ("--partition 0", "--partition"),
            ("--memory x", "--memory"),
            ("--memory 0", "--memory"),
            ("--queues 0", "--queues"),
            ("--queues 17", "17"),
            ("--machine isapc", "isapc"),
            ("--machine microvm --uefi", "--uefi"),
            ("minikernel --machine isapc", "isapc"),
            ("--accel hvf", "hvf"),
            ("--disk", "--disk"),
            ("--uefi=yes", "--uefi"),
            ("test one two", "two"),
            ("test --fast", "--fast"),
            ("test --gdb", "FILTER"),
            ("boot", "ELF"),
            ("--log", "--log"),
            ("--tap", "--tap"),
            ("--tap a --port 81", "--port"),
            ("--address", "--address"),
            ("--address 10.0.0.2", "as in 10.0.0.2/24"),
            ("--address 10.0.0.2/33", "from 1 to 31"),
            ("--address 10.0.0.2/24,10.0.1.1", "same network"),
            ("bench memry", "memory"),
            ("bench memory twice", "twice"),
        ];
        for (line, cause) in cases {
            let message = format!("{:#}", parsed(line).unwrap_err());
            assert!(message.contains(cause) && !message.contains('\n'), "{line}: {message}");
        }
    }
}
