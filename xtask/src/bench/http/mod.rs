//! `bench http`: our kernel as a web server, against Linux with nginx on the same machine.

mod client;
mod counter;
mod files;
mod network;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::client::{Outcome, Task};
use self::counter::{Counter, Counts, Symbols, between};
use self::files::{Content, FULL, QUICK, Size};
use super::figures::{COUNTED, Key, Samples};
use super::machine;
use crate::guest::Guest;
use crate::kernel;
use crate::qemu::Machine;
use crate::setup::Toolchain;

/// RAM of every guest in MiB.
const MEMORY: u32 = 512;
/// How long a guest may take to serve.
const LIMIT: Duration = Duration::from_secs(60);
/// How long an idle guest is left alone, and then counted.
const SETTLING: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);
/// Small files that are asked for are so far apart.
const STRIDE: usize = 37;

/// How the benchmark is started.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Options {
    /// http: only count our guest's instructions, and say which functions they are in
    #[arg(long)]
    pub count: bool,
    /// http: small files, few requests, without Linux
    #[arg(long)]
    pub quick: bool,
}

/// Runs it all; returns the exit code for this program.
pub fn bench(toolchain: &Toolchain, options: Options) -> Result<u8> {
    let elf = kernel::build(toolchain)?;
    let size = if options.quick || options.count { QUICK } else { FULL };
    size.image().context("cannot make the disk")?;
    if !network::is_inside() {
        let mut arguments = vec!["bench", "http"];
        arguments.extend(options.count.then_some("--count"));
        arguments.extend(options.quick.then_some("--quick"));
        return network::run_inside(&arguments);
    }
    network::set_up()?;
    let mut samples = Samples::default();
    count(&ours(&elf, size)?, "ours", size, &Symbols::of(&elf)?, &mut samples)?;
    Ok(0)
}

/// Our guest.
fn ours(elf: &Path, size: Size) -> Result<Machine> {
    let mut machine = machine(elf.into(), MEMORY);
    machine.disk = Some(size.image()?);
    machine.options.push(("url".into(), format!("http://{}/", network::GUEST)));
    network::add_card(&mut machine, "");
    Ok(machine)
}

/// A guest that serves.
struct Server {
    _guest: Guest,
    content: Content,
}

impl Server {
    /// Starts `machine`; returns it, and how long it took to answer a request.
    fn start(machine: &Machine) -> Result<(Self, Duration)> {
        let content = Content::new();
        let start = Instant::now();
        let mut guest = Guest::start(machine.command()?)?;
        let url = format!("http://{}/", network::GUEST);
        guest.wait_until(LIMIT, |log| log.contains(&url)).context("the guest does not come up")?;
        let server = Self { _guest: guest, content };
        let first = Task { name: "first", clients: 1, keep_alive: false, files: vec![Size::byte()] };
        server.run(&first)?;
        Ok((server, start.elapsed()))
    }

    fn run(&self, task: &Task) -> Result<Outcome> {
        task.run(network::GUEST, &self.content)
    }
}

/// Counts the instructions of `machine`'s guest, called `name`, for each task of `plan`.
fn count(machine: &Machine, name: &str, size: Size, symbols: &Symbols, samples: &mut Samples) -> Result<()> {
    let mut machine = machine.clone();
    let counter = Counter::attach(&mut machine)?;
    let (server, _) = Server::start(&machine)?;
    std::thread::sleep(SETTLING);
    let before = counter.read()?;
    std::thread::sleep(IDLE);
    let counts = between(&before, &counter.read()?);
    add(samples, name, ("idle", 1), IDLE.as_secs_f64(), "per second", &counts);
    show(&format!("{name}: idle"), "per second", IDLE.as_secs_f64(), symbols, &counts);
    for task in counted(size) {
        let before = counter.read()?;
        let outcome = server.run(&task)?;
        let counts = between(&before, &counter.read()?);
        let large = outcome.bytes / outcome.answered > 1 << 16;
        let (units, unit) =
            if large { (outcome.bytes, "per byte") } else { (outcome.answered, "per request") };
        add(samples, name, (task.name, task.clients), units as f64, unit, &counts);
        show(
            &format!("{name}: {}, {} clients", task.name, task.clients),
            unit,
            units as f64,
            symbols,
            &counts,
        );
        ensure!(outcome.failed == 0 || task.clients > 1, "{}: {} failed", task.name, outcome.failed);
    }
    Ok(())
}

fn add(samples: &mut Samples, guest: &str, what: (&str, usize), units: f64, unit: &str, counts: &Counts) {
    let key = Key {
        guest: format!("{guest}{COUNTED}"),
        workload: what.0.into(),
        depth: Some(what.1 as u64),
        metric: "instructions".into(),
        unit: unit.into(),
    };
    samples.add(key, counts.values().sum::<u64>() as f64 / units);
}

/// Prints where the instructions are.
fn show(title: &str, unit: &str, units: f64, symbols: &Symbols, counts: &Counts) {
    let all: u64 = counts.values().sum();
    println!("\n{title}: {:.2} instructions {unit}", all as f64 / units);
    for (function, count) in symbols.by_function(counts).into_iter().take(30) {
        let share = 100.0 * count as f64 / all as f64;
        println!("{:12.2} {share:5.1} % {function:.100}", count as f64 / units);
    }
}

/// What is counted.
fn counted(size: Size) -> Vec<Task> {
    let one = |name, keep_alive, files| Task { name, clients: 1, keep_alive, files };
    let bytes = |name, keep_alive, clients, requests| Task {
        name,
        clients,
        keep_alive,
        files: vec![Size::byte(); requests],
    };
    let small = || (0..1000).map(|number| Size::small(number * STRIDE)).collect();
    vec![
        one("large file, from the disk", true, vec![size.again()]),
        one("large file, from the cache", true, vec![size.again()]),
        one("4 KiB file, cold", true, small()),
        one("4 KiB file, warm", true, small()),
        bytes("1 byte, keep-alive", true, 1, 1000),
        bytes("1 byte, keep-alive", true, 16, 2000),
        bytes("1 byte, keep-alive", true, 64, 2000),
        bytes("1 byte, closing", false, 1, 500),
        bytes("1 byte, closing", false, 16, 1000),
    ]
}
