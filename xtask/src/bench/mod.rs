//! `bench`: benchmarks. Each is a guest of kernel/benches/, run in several machines; what it found goes to
//! the terminal and to target/bench/, as rows for programs, as a table and a plot for people.

pub mod blk;
mod figures;
pub mod http;
mod linux;
pub mod memory;
pub mod net;
mod plot;
mod report;
mod targets;

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use figures::{Key, Row, Samples};

use crate::guest::{Guest, last_line};
use crate::qemu::{Boot, Machine, exit};
use crate::setup::{self, Need, Toolchain};
use crate::target;

/// Every benchmark.
pub const NAMES: [&str; 4] = ["blk", "net", "memory", "http"];
/// How long a guest may take for one round of everything.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the benchmark called `name`, or all; returns the exit code for this program.
pub fn bench(name: Option<&str>, options: http::Options) -> Result<u8> {
    let chosen = options.count || options.quick;
    ensure!(!chosen || name == Some("http"), "--count and --quick are for bench http");
    let toolchain = setup::ensure(Need::Run)?;
    let mut worst = 0;
    for name in NAMES.into_iter().filter(|each| name.is_none_or(|name| name == *each)) {
        worst = worst.max(match name {
            "blk" => blk::bench(&toolchain)?,
            "net" => net::bench(&toolchain)?,
            "http" => http::bench(&toolchain, options)?,
            _ => memory::bench(&toolchain)?,
        });
    }
    Ok(worst)
}

/// What a guest printed.
struct Output {
    /// What it measured itself, in short.
    rows: Vec<Row>,
    /// What it measured, each round of it.
    samples: Vec<(Key, f64)>,
    /// What it says about itself, such as the features that were negotiated.
    info: Vec<String>,
}

/// Boots `machine`, whose guest, called `guest` here, does the benchmark `what`; shows its progress and
/// returns what it found. That comes as lines `bench-row: …` or `bench-sample: …`, see [`figures`], and
/// `bench-info: TEXT`; the last line is `bench-done`.
fn run(machine: &Machine, what: &str, guest: &str, limit: Duration) -> Result<Output> {
    let mut qemu = Guest::start(with_task(machine, what).command()?)?;
    let shown = Cell::new(0);
    let done = |output: &str| {
        let output = &output[..output.rfind('\n').unwrap_or(0)]; // whole lines
        let progress: Vec<_> = lines(output, "bench-progress: ").collect();
        progress[shown.get()..].iter().for_each(|line| eprintln!("  {line}"));
        shown.set(progress.len());
        output.lines().any(|line| line == "bench-done")
    };
    let output = qemu.wait_until(limit, done).with_context(|| format!("{guest}, {what}"))?;
    let status = qemu.wait_exit(Duration::from_secs(5))?;
    let how = status.map_or_else(|| "not at all".to_owned(), |status| format!("with {status}"));
    let right = status.and_then(|status| status.code()) == Some(exit::PASS);
    ensure!(right, "{guest}, {what}: it ended {how}: {}", last_line(&output));
    let depth = what.parse().ok();
    let output = Output {
        rows: read(&output, "bench-row: ", |line| figures::parse_row(line, guest, depth))?,
        samples: read(&output, "bench-sample: ", figures::parse_sample)?,
        info: lines(&output, "bench-info: ").map(String::from).collect(),
    };
    ensure!(!(output.rows.is_empty() && output.samples.is_empty()), "{guest}, {what}: it measured nothing");
    Ok(output)
}

/// What several guests found, each started several times.
#[derive(Default)]
struct Found {
    samples: Samples,
    /// What they said about themselves, each line once, with the machine it is about.
    info: Vec<String>,
}

impl Found {
    /// Boots `machine`, and adds what its guests find at `what`, under the names that `name` gives them.
    fn measure(&mut self, machine: &Machine, what: &str, name: impl Fn(&str) -> String) -> Result<()> {
        let output = run(machine, what, &name("all"), LIMIT)?;
        for (mut key, value) in output.samples {
            key.guest = name(&key.guest);
            self.samples.add(key, value);
        }
        for line in output.info {
            let line = format!("{}: {}", name("all"), linux::readable(&line));
            if !self.info.contains(&line) {
                self.info.push(line);
            }
        }
        Ok(())
    }
}

fn lines<'a>(output: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    output.lines().filter_map(move |line| line.strip_prefix(prefix))
}

fn read<T>(output: &str, prefix: &str, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    lines(output, prefix).map(|line| parse(line).with_context(|| format!("in {prefix}{line}"))).collect()
}

/// `machine` with the guest told to do the benchmark `what`.
fn with_task(machine: &Machine, what: &str) -> Machine {
    let mut machine = machine.clone();
    machine.options.push(("bench".into(), what.into()));
    machine
}

/// A machine that boots the guest `elf`.
fn machine(elf: PathBuf, mebibytes: u32) -> Machine {
    Machine { memory: mebibytes, ..Machine::new(Boot::Pvh(elf)) }
}

/// What made the guest, what ran it, and how busy that machine was with other things.
fn versions(toolchain: &Toolchain) -> Result<Vec<String>> {
    let version = |program: &mut Command| -> Result<String> {
        let output = program.arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
    };
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    Ok(vec![
        version(&mut Command::new("qemu-system-x86_64"))?,
        version(&mut Command::new(&toolchain.rustc))?,
        format!("{} CPUs, load average at the start {load}", std::thread::available_parallelism()?),
    ])
}

/// Writes `contents` to a file in target/bench/ and says so.
fn write(name: &str, contents: &str) -> Result<()> {
    let folder = target()?.join("bench");
    let file = folder.join(name);
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&file, contents))
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("wrote {}", file.display());
    Ok(())
}
