//! `test`: every test of the project, by name. A name starts with its section: `check::` (formatting, lints, docs),
//! `host::` (cargo test), `kernel::` (kernel/tests/ under QEMU) and `system::` (the whole guest, from outside).

mod client;
mod host;
mod in_qemu;
mod judge;
mod system;

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::kernel;
use crate::qemu::Boot;
use crate::run::uefi;
use crate::setup::{self, Need, Toolchain};

/// How many guests run at once.
const WORKERS: usize = 2;

/// A test that has not run yet.
pub struct Test {
    pub name: String,
    /// It measures time, so nothing may run beside it.
    pub alone: bool,
    pub run: Box<dyn FnOnce() -> Result<()> + Send>,
}

impl Test {
    fn new(name: impl Into<String>, run: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self { name: name.into(), alone: false, run: Box::new(run) }
    }
}

/// What the tests boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub pvh: Boot,
    pub uefi: Boot,
}

/// Runs every test whose name contains `filter`; returns the exit code for this program.
pub fn test(filter: &str) -> Result<u8> {
    let toolchain = setup::ensure(Need::Test)?;
    let report = Report::default();
    let chosen = |test: &Test| test.name.contains(filter);
    let mut tests = Vec::new();
    if is_section(filter, "check") {
        tests.extend(host::checks(&report, filter).into_iter().filter(chosen));
    }
    let cases = if is_section(filter, "host") { host::list(&report) } else { Vec::new() };
    let cases: Vec<_> = cases.into_iter().filter(|case| case.name().contains(filter)).collect();
    if is_section(filter, "kernel") {
        report.prepare("kernel::build", || in_qemu::tests(&toolchain), &mut tests, chosen);
    }
    if is_section(filter, "system") {
        report.prepare("system::build", || Ok(system::tests(&build(&toolchain)?)), &mut tests, chosen);
    }
    if tests.is_empty() && cases.is_empty() && report.is_clean() {
        bail!("no test's name contains {filter:?}");
    }
    let (checks, tests): (Vec<_>, _) = tests.into_iter().partition(|test| test.name.starts_with("check::"));
    let (alone, together): (Vec<_>, _) = tests.into_iter().partition(|test| test.alone);
    report.run(checks, 1);
    host::run(&report, &cases);
    report.run(together, WORKERS);
    report.run(alone, 1);
    Ok(report.close())
}

/// Whether tests of `section` may be meant: `host::x` is about no other section's tests.
fn is_section(filter: &str, section: &str) -> bool {
    let named = ["check", "host", "kernel", "system"]
        .into_iter()
        .find(|name| filter.starts_with(&format!("{name}::")));
    named.is_none_or(|name| name == section)
}

fn build(toolchain: &Toolchain) -> Result<Kernel> {
    let elf: PathBuf = kernel::build(toolchain)?;
    Ok(Kernel { uefi: uefi(toolchain, &elf)?, pvh: Boot::Pvh(elf) })
}

/// Counts and prints results.
#[derive(Default)]
pub struct Report {
    passed: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Report {
    /// Runs the tests, up to `workers` of them at once.
    fn run(&self, tests: Vec<Test>, workers: usize) {
        let queue = Mutex::new(tests.into_iter());
        let next = || queue.lock().expect("no test runs under the lock").next();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(test) = next() {
                        let start = Instant::now();
                        let run = std::panic::AssertUnwindSafe(test.run);
                        let result = std::panic::catch_unwind(run)
                            .unwrap_or_else(|_| bail!("the test itself panicked"));
                        self.add(&test.name, start.elapsed(), result);
                    }
                });
            }
        });
    }

    /// Adds the tests that `make` finds and `chosen` wants; that it cannot find them is a failed test called `name`.
    fn prepare(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Vec<Test>>,
        tests: &mut Vec<Test>,
        chosen: impl Fn(&Test) -> bool,
    ) {
        let start = Instant::now();
        match make() {
            Ok(found) => tests.extend(found.into_iter().filter(chosen)),
            Err(error) => self.add(name, start.elapsed(), Err(error)),
        }
    }

    /// Records and prints one result.
    pub fn add(&self, name: &str, time: Duration, result: Result<()>) {
        let seconds = time.as_secs_f32();
        match result {
            Ok(()) => {
                println!("ok     {seconds:7.2} s  {name}");
                self.passed.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                println!("FAILED {seconds:7.2} s  {name}: {error:#}");
                self.failed.lock().expect("printing does not panic").push(name.to_owned());
            }
        }
    }

    /// Prints that a test cannot run here.
    pub fn skip(&self, name: &str, why: impl Display) {
        println!("skip              {name}: {why}");
    }

    fn is_clean(&self) -> bool {
        self.failed.lock().expect("printing does not panic").is_empty()
    }

    fn close(self) -> u8 {
        let failed = self.failed.into_inner().expect("printing does not panic");
        for name in &failed {
            println!("failed: {name}");
        }
        println!("{} passed, {} failed", self.passed.into_inner(), failed.len());
        (!failed.is_empty()).into()
    }
}
