//! `test`: every test of the project, by name. A name starts with its section: `check::` (formatting, lints,
//! docs), `host::` (cargo test), `kernel::` (kernel/tests/ under QEMU) and `system::` (the whole guest, from
//! outside).

mod browser;
mod client;
mod crates;
mod documents;
mod files;
mod fuzz;
mod host;
mod in_qemu;
mod judge;
mod promises;
mod qmp;
mod system;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::host::Build;
use crate::kernel;
use crate::qemu::Boot;
use crate::root;
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

    /// The program that it is a run of, if it is one.
    fn program(&self) -> Option<&str> {
        self.name.strip_prefix("host::")?.split("::").next()
    }
}

/// Why a test could not run here. As its error, it has not failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skipped(pub String);

/// What the tests boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub pvh: Boot,
    pub uefi: Boot,
    /// The ELF of examples/minikernel.
    pub mini: PathBuf,
}

/// Runs every test whose name contains `filter`; returns the exit code for this program.
pub fn test(filter: &str) -> Result<u8> {
    let toolchain = setup::ensure(Need::Test)?;
    let report = Report::default();
    // The promises are about tests of all sections, so these must be known.
    let promises = promises::NAME.contains(filter);
    let is_section = |section| promises || is_section(filter, section);
    let mut tests = Vec::new();
    if is_section("check") {
        tests.extend(host::checks());
        tests.extend(fuzz::checks());
        tests.extend(crates::checks(&toolchain));
        let for_targets = toolchain.clone();
        tests.push(Test::new("check::targets", move || kernel::check_targets(&for_targets)));
        tests.push(Test::new(documents::NAME, documents::check));
        tests.push(Test::new(files::NAME, files::check));
    }
    if is_section("host") {
        report.prepare("host::build", || host::tests(Build::Plain), &mut tests);
        report.prepare("host::build", || host::tests(Build::Loom), &mut tests);
        report.prepare("host::build", host::doc_tests, &mut tests);
    }
    if is_section("kernel") {
        report.prepare("kernel::build", || in_qemu::tests(&toolchain), &mut tests);
    }
    if is_section("system") {
        report.prepare("system::build", || Ok(system::tests(&build(&toolchain)?)), &mut tests);
    }
    let known: HashSet<String> = tests.iter().map(|test| test.name.clone()).collect();
    tests.retain(|test| test.name.contains(filter));
    if tests.is_empty() && !promises && report.is_clean() {
        bail!("no test's name contains {filter:?}");
    }
    let (checks, tests): (Vec<_>, _) = tests.into_iter().partition(|test| test.name.starts_with("check::"));
    let (alone, together): (Vec<_>, _) = tests.into_iter().partition(|test| test.alone);
    report.run(checks, 1);
    report.run(together, WORKERS);
    report.run(alone, 1);
    if promises {
        let (start, ran) = (Instant::now(), report.ran());
        let text = std::fs::read_to_string(root().join("SECURITY.md"))?;
        let kept = promises::check(&text, &known, filter.is_empty().then_some(&ran));
        report.add(promises::NAME, start.elapsed(), kept);
    }
    Ok(report.close())
}

/// Boots the kernel's test called `name`, waiting for gdb; returns the exit code for this program.
pub fn debug(name: &str) -> Result<u8> {
    in_qemu::debug(&setup::ensure(Need::Uefi)?, name)
}

/// Runs the tests of an image that cargo has built in kernel/, those whose name contains `filter`; returns
/// the exit code for this program.
pub fn test_image(elf: &Path, filter: &str) -> Result<u8> {
    let file = elf.file_stem().unwrap_or_default().to_string_lossy();
    // Cargo adds `-HASH`.
    let file = file.rsplit_once('-').map_or(&*file, |(file, _)| file);
    let mut tests = in_qemu::of_image(&setup::ensure(Need::Uefi)?, file, elf)?;
    tests.retain(|test| test.name.contains(filter));
    let report = Report::default();
    report.run(tests, WORKERS);
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
    let mini = kernel::build_minikernel(toolchain)?;
    Ok(Kernel { uefi: uefi(toolchain, &elf)?, pvh: Boot::Pvh(elf), mini })
}

/// Counts and prints results.
#[derive(Default)]
pub struct Report {
    passed: Mutex<Vec<String>>,
    skipped: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Report {
    /// Runs the tests, up to `workers` of them at once, and those of one program one after the other.
    fn run(&self, tests: Vec<Test>, workers: usize) {
        let queue = Mutex::new(tests.into_iter().peekable());
        let next = || {
            let mut queue = queue.lock().expect("no test runs under the lock");
            let first = queue.next()?;
            let program = first.program().map(str::to_owned);
            let same = |test: &Test| program.is_some() && test.program() == program.as_deref();
            let others: Vec<Test> = std::iter::from_fn(|| queue.next_if(same)).collect();
            Some([first].into_iter().chain(others))
        };
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| std::iter::from_fn(next).flatten().for_each(|test| self.run_one(test)));
            }
        });
    }

    fn run_one(&self, test: Test) {
        let start = Instant::now();
        let run = std::panic::AssertUnwindSafe(test.run);
        let result = std::panic::catch_unwind(run).unwrap_or_else(|_| bail!("the test itself panicked"));
        self.add(&test.name, start.elapsed(), result);
    }

    /// Adds the tests that `make` finds; that it cannot find them is a failed test called `name`.
    fn prepare(&self, name: &str, make: impl FnOnce() -> Result<Vec<Test>>, tests: &mut Vec<Test>) {
        let start = Instant::now();
        match make() {
            Ok(found) => tests.extend(found),
            Err(error) => self.add(name, start.elapsed(), Err(error)),
        }
    }

    /// Records and prints one result.
    pub fn add(&self, name: &str, time: Duration, result: Result<()>) {
        let seconds = time.as_secs_f32();
        match result {
            Ok(()) => {
                println!("ok     {seconds:7.2} s  {name}");
                self.passed.lock().expect("printing does not panic").push(name.to_owned());
            }
            Err(error) if error.is::<Skipped>() => {
                println!("skip              {name}: {error}");
                self.skipped.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                println!("FAILED {seconds:7.2} s  {name}: {error:#}");
                self.failed.lock().expect("printing does not panic").push(name.to_owned());
            }
        }
    }

    /// The tests that ran, however they ended.
    fn ran(&self) -> HashSet<String> {
        let [passed, failed] =
            [&self.passed, &self.failed].map(|names| names.lock().expect("printing does not panic").clone());
        passed.into_iter().chain(failed).collect()
    }

    fn is_clean(&self) -> bool {
        self.failed.lock().expect("printing does not panic").is_empty()
    }

    fn close(self) -> u8 {
        let failed = self.failed.into_inner().expect("printing does not panic");
        for name in &failed {
            println!("failed: {name}");
        }
        let passed = self.passed.into_inner().expect("printing does not panic");
        println!("{}", closing_line(passed.len(), failed.len(), self.skipped.into_inner()));
        (!failed.is_empty()).into()
    }
}

/// The last line. Whoever reads it is told about every test.
fn closing_line(passed: usize, failed: usize, skipped: usize) -> String {
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
    format!("{passed} passed, {failed} failed{skipped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_counts_what_was_skipped() {
        let report = Report::default();
        report.add("a", Duration::ZERO, Ok(()));
        report.add("b", Duration::ZERO, Err(Skipped("no program".into()).into()));
        report.add("c", Duration::ZERO, Err(Skipped("no program".into()).into()));
        let passed = report.passed.lock().unwrap().len();
        let counts = (passed, report.skipped.load(Ordering::Relaxed));
        assert_eq!(closing_line(counts.0, 0, counts.1), "1 passed, 0 failed, 2 skipped");
        assert_eq!(closing_line(3, 1, 0), "3 passed, 1 failed");
    }
}
