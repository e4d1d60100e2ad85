//! `check::` and `host::` tests: what cargo can tell without the guest.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::{Report, Test, fuzz};
use crate::{qemu, root, setup, target};

/// How long cargo may take, in seconds: a first build of everything, or all host tests.
const LIMIT: &str = "1800";

/// How cargo builds.
#[derive(Clone, Copy)]
pub enum Build {
    Plain,
    /// For libFuzzer.
    Fuzz,
    /// With the rings over loom's atomics, for the one test program that is about that.
    Loom,
    /// With ThreadSanitizer, for the test programs that start threads.
    ThreadSanitizer,
}

/// The standard library comes without the sanitizer: its own races are suppressed by name.
const TSAN_FLAGS: &str = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg ringfence_tsan";
const TSAN: &str = "check::thread_sanitizer";
const TSAN_CRATES: [&str; 2] = ["memory", "drivers"];

const LOOM: &str = "loom";
const LOOM_TESTS: [&str; 6] = ["test", "--no-fail-fast", "--package", "ringfence-oracles", "--test", LOOM];

/// Formatting, lints and documentation. What the machine has no program for is skipped, and said to be.
pub fn checks(report: &Report, filter: &str) -> Vec<Test> {
    let checks = [
        ("check::fmt", "fmt", "fmt --all --check -- --color never"),
        (
            "check::fmt_uefi_image",
            "fmt",
            "fmt --manifest-path xtask/uefi-image/Cargo.toml --check -- --color never",
        ),
        ("check::clippy", "clippy", "clippy --all-targets"),
        ("check::doc", "doc", "doc --no-deps"),
    ];
    let (runnable, rest): (Vec<_>, Vec<_>) = checks
        .into_iter()
        .partition(|(_, subcommand, _)| *subcommand == "doc" || setup::has_subcommand(subcommand));
    for (name, subcommand, _) in rest.iter().filter(|(name, ..)| name.contains(filter)) {
        report.skip(name, format!("cargo {subcommand} is not installed here"));
    }
    let mut tests: Vec<_> =
        runnable.into_iter().map(|(name, _, line)| Test::new(name, move || check(line))).collect();
    if setup::thread_sanitizer().is_some() {
        tests.push(Test::new(TSAN, thread_sanitizer));
    } else if TSAN.contains(filter) {
        report.skip(TSAN, "left out: no nightly here has the sanitizer's runtime");
    }
    tests
}

/// ThreadSanitizer over the test programs of [`TSAN_CRATES`] that start threads: others have nobody to race
/// with.
fn thread_sanitizer() -> Result<()> {
    let mut arguments: Vec<String> =
        ["test", "--no-fail-fast", "--target", setup::TSAN_TARGET].map(str::to_owned).into();
    for name in TSAN_CRATES {
        arguments.push(format!("--package=ringfence-{name}"));
        for entry in std::fs::read_dir(root().join(name).join("tests"))? {
            let path = entry?.path();
            if path.is_file() && std::fs::read_to_string(&path)?.contains("thread::") {
                let program = path.file_stem().context("a test without a name")?.to_string_lossy();
                arguments.push(format!("--test={program}"));
            }
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run_cargo(Build::ThreadSanitizer, &arguments, |_| ()).map(drop)
}

fn check(line: &str) -> Result<()> {
    let arguments: Vec<&str> = line.split(' ').collect();
    run_cargo(Build::Plain, &arguments, |_| ()).map(drop)
}

/// One test of one crate.
pub struct Case {
    /// The test program: a crate, a test file, or `doc` and a crate.
    program: String,
    test: String,
}

impl Case {
    /// Its name among all tests.
    pub fn name(&self) -> String {
        format!("host::{}::{}", self.program, self.test)
    }
}

/// Builds the host tests and lists them. That this does not work is a failed test.
pub fn list(report: &Report) -> Vec<Case> {
    let (start, mut program, mut cases) = (Instant::now(), String::new(), Vec::new());
    let format = ["--", "--list", "--format", "terse"];
    let loom = [&LOOM_TESTS[..], &format].concat();
    for (build, arguments) in [(Build::Plain, &[&["test"], &format[..]].concat()), (Build::Loom, &loom)] {
        let listed = run_cargo(build, arguments, |line| {
            if let Some(started) = started_program(line) {
                program = started;
            } else if let Some(test) = line.strip_suffix(": test") {
                cases.push(Case { program: program.clone(), test: test.to_owned() });
            }
        });
        if let Err(error) = listed {
            report.add("host::build", start.elapsed(), Err(error));
        }
    }
    cases
}

/// Runs `cases`. One that cargo says nothing about has failed.
pub fn run(report: &Report, cases: &[Case]) {
    let (docs, others): (Vec<&Case>, Vec<_>) =
        cases.iter().partition(|case| case.program.starts_with("doc "));
    let (loom, others): (Vec<&Case>, Vec<_>) = others.into_iter().partition(|case| case.program == LOOM);
    for (build, cases, line) in [
        (Build::Plain, others, &["test", "--no-fail-fast", "--all-targets"][..]),
        (Build::Loom, loom, &LOOM_TESTS),
    ] {
        let names = cases.iter().map(|case| case.test.as_str());
        let line: Vec<&str> = line.iter().copied().chain(["--", "--exact"]).chain(names).collect();
        run_cases(report, build, &cases, &line);
    }
    // All of them, as rustdoc cannot be told a name with a space in it.
    run_cases(report, Build::Plain, &docs, &["test", "--no-fail-fast", "--doc"]);
}

/// Runs cargo with `arguments` and reports those of its tests that are in `cases`.
fn run_cases(report: &Report, build: Build, cases: &[&Case], arguments: &[&str]) {
    if cases.is_empty() {
        return;
    }
    let mut waiting: HashSet<String> = cases.iter().map(|case| case.name()).collect();
    let (mut program, mut last) = (String::new(), Instant::now());
    let outcome = run_cargo(build, arguments, |line| {
        if let Some(started) = started_program(line) {
            program = started;
        } else if let Some((test, why)) = skipped_test(line) {
            let name = format!("host::{program}::{test}");
            if waiting.remove(&name) {
                report.skip(&name, why);
            }
        } else if let Some((test, result)) = finished_test(line)
            && let name = format!("host::{program}::{test}")
            && waiting.remove(&name)
        {
            match result {
                Outcome::Ignored => report.skip(&name, "marked #[ignore]"),
                // Tests run side by side: the time is that since the one before.
                Outcome::Ok => report.add(&name, last.elapsed(), Ok(())),
                Outcome::Failed => report.add(&name, last.elapsed(), Err(anyhow!("see below"))),
            }
            last = Instant::now();
        }
    });
    let mut unfinished: Vec<String> = waiting.into_iter().collect();
    unfinished.sort();
    for name in unfinished {
        report.add(&name, Duration::ZERO, Err(anyhow!("it did not finish, see below")));
    }
    if let Err(error) = outcome {
        println!("{error:#}");
    }
}

enum Outcome {
    Ok,
    Failed,
    Ignored,
}

/// The name in cargo's line about a test program: `Running … (…/NAME-HASH)` or `Doc-tests NAME`.
fn started_program(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("doc {name}"));
    }
    let (_, file) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once('/')?;
    Some(file.rsplit_once('-')?.0.to_owned())
}

/// The test and its outcome in libtest's line `test NAME - KIND ... OUTCOME`.
fn finished_test(line: &str) -> Option<(&str, Outcome)> {
    let (test, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match outcome.split([',', ' ']).next()? {
        "ok" => Outcome::Ok,
        "FAILED" => Outcome::Failed,
        "ignored" => Outcome::Ignored,
        _ => return None,
    };
    let kinds = [" - should panic", " - compile fail", " - compile"];
    Some((kinds.iter().find_map(|kind| test.strip_suffix(kind)).unwrap_or(test), outcome))
}

/// The test and the reason in the line `test-skipped: NAME: WHY`, by which a test says that it cannot run
/// here before it ends. libtest calls it passed.
fn skipped_test(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test-skipped: ")?.split_once(": ")
}

/// Runs stock cargo at the root on the host's crates, `each` seeing every line. An error carries the end of
/// its output.
pub fn run_cargo(build: Build, arguments: &[&str], mut each: impl FnMut(&str)) -> Result<()> {
    let limited = ["-k", "5", LIMIT, "cargo"].iter().chain(arguments).map(OsString::from).collect();
    let mut command = qemu::tethered("timeout", limited)?;
    let (reader, writer) = std::io::pipe()?;
    command.current_dir(root()).env("CARGO_TARGET_DIR", target()?).env("CARGO_TERM_COLOR", "never");
    command.env("RUSTDOCFLAGS", "-D warnings");
    match build {
        Build::Plain => {}
        Build::Fuzz => {
            command.env("RUSTFLAGS", fuzz::RUSTFLAGS).env("CARGO_TARGET_DIR", target()?.join("fuzz"));
        }
        Build::Loom => {
            command.env("RUSTFLAGS", "--cfg ringfence_loom").env("CARGO_TARGET_DIR", target()?.join(LOOM));
        }
        Build::ThreadSanitizer => {
            let rustc = setup::thread_sanitizer().context("no compiler with ThreadSanitizer")?;
            let suppressions = root().join("xtask/thread-sanitizer.suppressions");
            command.env("RUSTC", rustc).env("RUSTFLAGS", TSAN_FLAGS);
            command.env("CARGO_TARGET_DIR", target()?.join("tsan"));
            command.env("TSAN_OPTIONS", format!("suppressions={}", suppressions.display()));
        }
    }
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("cannot start cargo")?;
    drop(command); // and with it our ends of the pipe
    let mut output = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        each(&line);
        output.push(line);
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    let kept = output.len().saturating_sub(100);
    bail!("cargo {} ended with {status}:\n{}", arguments[0], output[kept..].join("\n"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn cargo_names_the_programs() {
        let cases = [
            (
                "     Running unittests src/lib.rs (target/debug/deps/ringfence_memory-0123abcd)",
                Some("ringfence_memory"),
            ),
            ("     Running tests/model.rs (/x/target/debug/deps/model-0123)", Some("model")),
            ("   Doc-tests ringfence_drivers", Some("doc ringfence_drivers")),
            ("running 3 tests", None),
            ("test a ... ok", None),
        ];
        for (line, name) in cases {
            assert_eq!(started_program(line).as_deref(), name, "{line}");
        }
    }

    #[test]
    fn a_test_says_itself_that_it_was_skipped() {
        assert_eq!(skipped_test("test-skipped: a::b: no curl: none"), Some(("a::b", "no curl: none")));
        for line in ["test a ... ok", "test-skipped: a", " test-skipped: a: b"] {
            assert_eq!(skipped_test(line), None, "{line}");
        }
    }

    #[test]
    fn libtest_names_the_outcomes() {
        let cases = [
            ("test a::b ... ok", Some(("a::b", "ok"))),
            ("test a ... FAILED", Some(("a", "FAILED"))),
            ("test a ... ignored, slow", Some(("a", "ignored"))),
            ("test a - should panic ... ok", Some(("a", "ok"))),
            ("test x.rs - C (line 3) - compile fail ... ok", Some(("x.rs - C (line 3)", "ok"))),
            ("test result: ok. 3 passed; 0 failed", None),
            ("testing ... ok", None),
        ];
        for (line, expected) in cases {
            let found = finished_test(line).map(|(test, outcome)| match outcome {
                Outcome::Ok => (test, "ok"),
                Outcome::Failed => (test, "FAILED"),
                Outcome::Ignored => (test, "ignored"),
            });
            assert_eq!(found, expected, "{line}");
        }
    }

    fn sources(folder: &Path, visit: &mut impl FnMut(&Path, &str)) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                sources(&path, visit);
            } else if name.ends_with(".rs") {
                visit(&path, &std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// proptest writes the seed of a failure beside the test and prints it, unless it is told not to.
    #[test]
    fn property_tests_keep_their_seeds() {
        let setting = ["failure", "persistence"].join("_");
        let mut count = 0;
        sources(root(), &mut |path, text| {
            count += usize::from(text.contains("proptest! {"));
            assert!(!text.contains(&setting), "{} changes where seeds go", path.display());
        });
        assert!(count > 15, "only {count} files with property tests were found");
    }

    /// rustfmt sees to the width of code, but leaves comments as they are, and code in macros. Strings may be
    /// wider.
    #[test]
    fn lines_have_110_columns_at_most() {
        let mut wide = Vec::new();
        sources(root(), &mut |path, text| {
            let is_string = |line: &str| line.contains('"') || line.ends_with('\\');
            let is_checked = |line: &str| line.trim_start().starts_with("//") || !is_string(line);
            let lines = text.lines().enumerate().filter(|(_, line)| is_checked(line));
            let too_wide = lines.filter(|(_, line)| line.chars().count() > 110);
            wide.extend(too_wide.map(|(number, _)| format!("{}:{}", path.display(), number + 1)));
        });
        assert!(wide.is_empty(), "lines of more than 110 columns: {wide:#?}");
    }
}
