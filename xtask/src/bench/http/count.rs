//! Counting a guest's instructions by function: a plugin for QEMU, and the names of addresses.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};

use super::files::Size;
use super::server::Server;
use super::{counted, key, plan};
use crate::bench::figures::{Samples, figure};
use crate::qemu::Machine;
use crate::work_folder;

/// The plugin, compiled when it is needed.
const PLUGIN: &str = include_str!("count.c");
/// Addresses from here on are a kernel's.
const KERNEL: u64 = 1 << 63;

/// How long an idle guest is left alone, and then counted.
const SETTLING: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(5);
/// Most functions that are shown of a task.
const MOST_SHOWN: usize = 30;

/// Counts the instructions of `machine`'s guest, called `name`, for each of the plan's tasks, and tells
/// `show` in which functions they are.
pub fn run(
    machine: &Machine,
    name: &str,
    size: Size,
    symbols: &Symbols,
    samples: &mut Samples,
    mut show: impl FnMut(&str),
) -> Result<()> {
    let mut machine = machine.clone();
    let counter = Counter::attach(&mut machine)?;
    let (server, _) = Server::start(&machine)?;
    sleep(SETTLING);
    let mut count = |workload: &str, clients, work: &dyn Fn() -> Result<(f64, &'static str)>| {
        let before = counter.read()?;
        let (units, unit) = work()?;
        let counts = between(&before, &counter.read()?);
        let total = counts.values().sum::<u64>() as f64 / units;
        samples.add(key(&counted(name), workload, clients, "instructions", unit), total);
        show(&symbols.table(&format!("{name}: {workload}, {clients} at a time"), units, unit, &counts));
        Ok::<_, Error>(())
    };
    count(plan::IDLE, 1, &|| {
        sleep(IDLE);
        Ok((IDLE.as_secs_f64(), "per second"))
    })?;
    for task in plan::counted(size) {
        count(task.name, task.clients, &|| {
            let outcome = server.run(&task)?;
            Ok(match task.is_bulk() {
                true => (outcome.bytes as f64, "per byte"),
                false => (outcome.answered as f64, "per request"),
            })
        })?;
    }
    Ok(())
}

/// The plugin in a machine.
struct Counter {
    socket: PathBuf,
}

/// How many instructions ran so far in the blocks that begin at each address.
type Counts = HashMap<u64, u64>;

impl Counter {
    /// Adds the plugin to `machine`.
    fn attach(machine: &mut Machine) -> Result<Self> {
        let folder = work_folder("count")?;
        let (source, plugin) = (folder.join("count.c"), folder.join("count.so"));
        let same = std::fs::read_to_string(&source).is_ok_and(|text| text == PLUGIN);
        if !(same && plugin.is_file()) {
            std::fs::write(&source, PLUGIN)?;
            let arguments = ["-O2", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-o"];
            let made = Command::new("cc").args(arguments).arg(&plugin).arg(&source).output()?;
            ensure!(made.status.success(), "cc: {}", String::from_utf8_lossy(&made.stderr));
        }
        // In /tmp, as the name of a socket must be short.
        let socket = std::env::temp_dir().join(format!("ringfence-{}.count", std::process::id()));
        machine.extra.push("-plugin".into());
        machine.extra.push(format!("file={},socket={}", plugin.display(), socket.display()).into());
        Ok(Self { socket })
    }

    /// The counts up to now.
    fn read(&self) -> Result<Counts> {
        let mut text = String::new();
        let mut stream = UnixStream::connect(&self.socket).context("QEMU's plugin does not answer")?;
        stream.read_to_string(&mut text)?;
        let mut counts = Counts::new();
        for line in text.lines() {
            let (address, count) = line.split_once(' ').with_context(|| format!("the plugin says {line}"))?;
            let count = u64::from_str_radix(count, 16)?;
            *counts.entry(u64::from_str_radix(address, 16)?).or_default() += count;
        }
        Ok(counts)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// What was counted between two readings.
fn between(before: &Counts, after: &Counts) -> Counts {
    let more = |(address, count): (&u64, &u64)| {
        Some((*address, count.checked_sub(before.get(address).copied().unwrap_or_default())?))
    };
    after.iter().filter_map(more).filter(|(_, count)| *count > 0).collect()
}

/// Where the functions of a program begin, in order, with their names.
#[derive(Default)]
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Those of an ELF, by binutils' `nm`.
    pub fn of(elf: &Path) -> Result<Self> {
        let output = Command::new("nm").args(["-Cn", "--defined-only"]).arg(elf).output()?;
        ensure!(output.status.success(), "nm: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(Self(text.lines().filter_map(symbol).collect()))
    }

    /// What was counted by function, in so many units.
    fn table(&self, title: &str, units: f64, unit: &str, counts: &Counts) -> String {
        let all = counts.values().sum::<u64>() as f64;
        let mut table = format!("{title}: {} instructions {unit}\n", figure(all / units));
        for (function, count) in self.by_function(counts).into_iter().take(MOST_SHOWN) {
            let (each, share) = (figure(count as f64 / units), 100.0 * count as f64 / all);
            table += &format!("{each:>12} {share:5.1} % {function:.100}\n");
        }
        table
    }

    /// The function that `address` is in.
    fn name(&self, address: u64) -> &str {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        match after.checked_sub(1).and_then(|number| self.0.get(number)) {
            Some((_, name)) => name,
            None if address >= KERNEL => "kernel",
            None => "programs",
        }
    }

    /// Instructions by function, most first.
    fn by_function(&self, counts: &Counts) -> Vec<(&str, u64)> {
        let mut functions = HashMap::<&str, u64>::new();
        for (address, count) in counts {
            *functions.entry(self.name(*address)).or_default() += count;
        }
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_unstable_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        functions
    }
}

/// A function of nm's output: `ADDRESS KIND NAME`.
fn symbol(line: &str) -> Option<(u64, String)> {
    let (address, rest) = line.split_once(' ')?;
    let (kind, name) = rest.split_once(' ')?;
    let address = u64::from_str_radix(address, 16).ok()?;
    matches!(kind, "t" | "T" | "w" | "W").then(|| (address, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_in_between_and_go_to_their_functions() {
        let lines = "0000000000001000 T a::b\n0000000000001010 d data\n0000000000001020 t <c as d>::e f\n";
        let symbols = Symbols(lines.lines().filter_map(symbol).collect());
        assert_eq!(symbols.0.len(), 2);
        let before = Counts::from([(0x1000, 5), (0x1020, 7), (0x10, 1)]);
        let after = Counts::from([(0x1000, 6), (0x1008, 2), (0x1020, 7), (0x1030, 9), (0x10, 2)]);
        let functions = [("<c as d>::e f", 9), ("a::b", 3), ("programs", 1)];
        let counts = between(&before, &after);
        assert_eq!(symbols.by_function(&counts), functions);
        let table = "x: 6.50 instructions each\n        4.50  69.2 % <c as d>::e f\n";
        assert!(symbols.table("x", 2.0, "each", &counts).starts_with(table));
        let counts = Counts::from([(u64::MAX, 4), (0x1000, 1)]);
        assert_eq!(Symbols::default().by_function(&counts), [("kernel", 4), ("programs", 1)]);
    }
}
