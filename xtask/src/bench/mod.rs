//! `bench`: benchmarks. Each is a guest of kernel/benches/, run in several machines; what it found goes to the terminal
//! and to target/bench/, as rows for programs, as a table and a plot for people.

pub mod memory;
mod plot;
mod report;

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::guest::{Guest, last_line};
use crate::qemu::{Boot, Machine, exit};
use crate::setup::{self, Need, Toolchain};
use crate::target;

/// Every benchmark there is to be.
pub const NAMES: [&str; 3] = ["blk", "net", "memory"];

/// Runs the benchmark called `name`, or all that exist; returns the exit code for this program.
pub fn bench(name: Option<&str>) -> Result<u8> {
    if let Some(name) = name.filter(|name| *name != "memory") {
        bail!("bench {name}: this benchmark is not built yet; there is only `bench memory`");
    }
    memory::bench(&setup::ensure(Need::Run)?)
}

/// One figure of a benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which guest, on which machine.
    pub guest: String,
    /// What it did.
    pub workload: String,
    /// Among how many live mappings, or with how many requests in flight.
    pub depth: Option<u64>,
    /// What was measured of it.
    pub metric: String,
    pub unit: String,
    pub median: u64,
    /// Width of the range that holds the middle 95 % of the rounds.
    pub spread: u64,
    pub rounds: u64,
}

/// Boots `machine`, whose guest does the benchmark `what`, shows its progress and returns its rows. They come as lines
/// `bench-row: WORKLOAD|METRIC|UNIT|MEDIAN|LOW|HIGH|ROUNDS`.
fn run(machine: &Machine, what: &str, guest: &str, limit: Duration) -> Result<Vec<Row>> {
    let mut machine = machine.clone();
    machine.options.push(("bench".into(), what.into()));
    let mut qemu = Guest::start(machine.command()?)?;
    let shown = Cell::new(0);
    let done = |output: &str| {
        let output = &output[..output.rfind('\n').unwrap_or(0)]; // whole lines
        let progress: Vec<_> =
            output.lines().filter_map(|line| line.strip_prefix("bench-progress: ")).collect();
        progress[shown.get()..].iter().for_each(|line| eprintln!("  {line}"));
        shown.set(progress.len());
        output.lines().any(|line| line == "bench-done")
    };
    let output = qemu.wait_until(limit, done).with_context(|| format!("{guest}, {what}"))?;
    let status = qemu.wait_exit(Duration::from_secs(5))?.and_then(|status| status.code());
    ensure!(status == Some(exit::PASS), "{guest}, {what}: it ended with {status:?}: {}", last_line(&output));
    let depth = what.parse().ok();
    let lines = output.lines().filter_map(|line| line.strip_prefix("bench-row: "));
    let rows: Result<Vec<Row>> =
        lines.map(|line| parse(line, guest, depth).with_context(|| format!("in the row {line:?}"))).collect();
    rows.and_then(|rows| if rows.is_empty() { bail!("{guest}, {what}: no rows") } else { Ok(rows) })
}

fn parse(line: &str, guest: &str, depth: Option<u64>) -> Result<Row> {
    let parts: Vec<&str> = line.split('|').collect();
    let [workload, metric, unit, median, low, high, rounds] = parts[..] else { bail!("not 7 parts") };
    let (low, high): (u64, u64) = (low.parse()?, high.parse()?);
    Ok(Row {
        guest: guest.into(),
        workload: workload.into(),
        depth,
        metric: metric.into(),
        unit: unit.into(),
        median: median.parse()?,
        spread: high.checked_sub(low).context("its bounds are the wrong way round")?,
        rounds: rounds.parse()?,
    })
}

/// A machine that boots the guest `elf`.
fn machine(elf: PathBuf, mebibytes: u32) -> Machine {
    Machine { memory: mebibytes, ..Machine::new(Boot::Pvh(elf)) }
}

/// What made the guest, and what ran it.
fn versions(toolchain: &Toolchain) -> Result<Vec<String>> {
    let version = |program: &mut Command| -> Result<String> {
        let output = program.arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
    };
    Ok(vec![version(&mut Command::new("qemu-system-x86_64"))?, version(&mut Command::new(&toolchain.rustc))?])
}

/// Where results go; created if missing.
fn folder() -> Result<PathBuf> {
    let folder = target()?.join("bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read() {
        let row = parse("4 KiB|map|instructions|70|65|81|201", "g", Some(10)).unwrap();
        let expected = Row {
            guest: "g".into(),
            workload: "4 KiB".into(),
            depth: Some(10),
            metric: "map".into(),
            unit: "instructions".into(),
            median: 70,
            spread: 16,
            rounds: 201,
        };
        assert_eq!(row, expected);
        for line in
            ["", "4 KiB|map|instructions|70|65|81", "a|b|c|x|1|2|3", "a|b|c|2|3|1|9", "a|b|c|1|1|1|1|1"]
        {
            assert!(parse(line, "g", None).is_err(), "{line}");
        }
    }
}
