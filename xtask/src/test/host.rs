//! `check::` and `host::` tests: what cargo can tell without the guest.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Skipped, Test, fuzz};
use crate::guest::Guest;
use crate::{qemu, root, setup, target};

/// How long cargo may take, in seconds: a first build of everything, or all tests of one kind.
const LIMIT: u64 = 1800;

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
    /// The kernel, only to be read: as a program of the host, whose library comes with a linter.
    Kernel,
}

/// The standard library comes without the sanitizer: its own races are suppressed by name.
const TSAN_FLAGS: &str = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg ringfence_tsan";
const TSAN: &str = "check::thread_sanitizer";
const TSAN_CRATES: [&str; 2] = ["memory", "drivers"];

const LOOM_TESTS: [&str; 5] = ["test", "--package", "ringfence-oracles", "--test", "loom"];

/// With what is off by default, as docs.rs shows it.
const DOC: &str = "doc --no-deps --features ringfence-memory/mapper,ringfence-memory/host,\
    ringfence-drivers/smoltcp,ringfence-drivers/embassy-net-driver,ringfence-drivers/embedded-storage,\
    ringfence-drivers/embedded-storage-async,ringfence-drivers/block-device-driver";

/// All that runs on bare metal. `--all-targets` would want tests of a harness that is not there.
const KERNEL_CLIPPY: &str = "clippy --package ringfence-kernel --package ringfence-sizes \
    --features ringfence-sizes/blk,ringfence-sizes/net,ringfence-sizes/rings \
    --lib --bins --test * --bench * --keep-going -- -D warnings";
const HOST_IS_TARGET: bool = cfg!(all(target_arch = "x86_64", target_os = "linux"));

/// Formatting, lints and documentation.
pub fn checks() -> Vec<Test> {
    let checks = [
        ("check::fmt", "fmt --all --check -- --color never"),
        ("check::fmt_uefi_image", "fmt --manifest-path xtask/uefi-image/Cargo.toml --check -- --color never"),
        ("check::clippy", "clippy --all-targets -- -D warnings"),
        ("check::doc", DOC),
    ];
    let checks = checks.into_iter().map(|(name, line)| Test::new(name, move || check(Build::Plain, line)));
    let kernel = Test::new("check::clippy_kernel", || match HOST_IS_TARGET {
        true => check(Build::Kernel, KERNEL_CLIPPY),
        false => bail!(Skipped("the kernel's instructions are not this processor's".into())),
    });
    checks.chain([kernel, Test::new(TSAN, thread_sanitizer)]).collect()
}

fn check(build: Build, line: &str) -> Result<()> {
    let arguments: Vec<&str> = line.split(' ').collect();
    if arguments[0] != "doc" && !setup::has_subcommand(arguments[0]) {
        bail!(Skipped(format!("cargo {} is not installed here", arguments[0])));
    }
    run_cargo(build, &arguments).map(drop)
}

/// ThreadSanitizer over the test programs of [`TSAN_CRATES`] that start threads: others have nobody to race
/// with.
fn thread_sanitizer() -> Result<()> {
    if setup::thread_sanitizer().is_none() {
        bail!(Skipped("no nightly here has the sanitizer's runtime".into()));
    }
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
    run_cargo(Build::ThreadSanitizer, &arguments).map(drop)
}

/// A test program.
struct Program {
    /// A crate, or a file of tests.
    name: String,
    file: PathBuf,
    /// Its package, where its tests run.
    folder: PathBuf,
}

/// The tests of the programs that cargo builds. Each test is a run of its own: what it comes to is how the
/// program ends.
pub fn tests(build: Build) -> Result<Vec<Test>> {
    let all = if matches!(build, Build::Loom) { &LOOM_TESTS[..] } else { &["test"] };
    let line = [all, &["--no-run", "--message-format=json-render-diagnostics"]].concat();
    let mut tests = Vec::new();
    for line in run_cargo(build, &line)?.lines() {
        let Some(program) = serde_json::from_str(line).ok().and_then(|message| Program::of(&message)) else {
            continue;
        };
        let program = Arc::new(program);
        let listed = program.run(build, &["--list", "--format", "terse"])?;
        tests.extend(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(|test| {
            let (program, test) = (program.clone(), test.to_owned());
            let name = format!("host::{}::{test}", program.name);
            Test::new(name, move || judge(&program.run(build, &["--exact", &test])?))
        }));
    }
    Ok(tests)
}

impl Program {
    /// What cargo's message is about, if it built a test program.
    fn of(message: &Value) -> Option<Self> {
        let file = PathBuf::from(message["executable"].as_str()?);
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        let name = file.file_name()?.to_str()?.rsplit_once('-')?.0.to_owned();
        message["profile"]["test"].as_bool()?.then_some(Self { name, file, folder })
    }

    fn run(&self, build: Build, arguments: &[&str]) -> Result<String> {
        let mut command = command(build, self.file.as_os_str(), arguments)?;
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        finish(command)
    }
}

/// What a program that ended well says about its one test. That may be that it cannot run here, in the line
/// `test-skipped: NAME: WHY`.
fn judge(output: &str) -> Result<()> {
    let skipped = output.lines().find_map(|line| line.strip_prefix("test-skipped: ")?.split_once(": "));
    if let Some((_, why)) = skipped {
        bail!(Skipped(why.into()));
    } else if output.contains("; 1 ignored;") {
        bail!(Skipped("marked #[ignore]".into()));
    }
    ensure!(output.contains("test result: ok. 1 passed;"), "it did not run:\n{output}");
    Ok(())
}

/// The tests in documentation. All of them run with the first, as rustdoc cannot be told the name of one.
pub fn doc_tests() -> Result<Vec<Test>> {
    let output = Arc::new(OnceLock::new());
    let (mut name, mut tests) = (String::new(), Vec::new());
    for line in run_cargo(Build::Plain, &["test", "--doc", "--", "--list", "--format", "terse"])?.lines() {
        if let Some(of) = line.trim_start().strip_prefix("Doc-tests ") {
            name = format!("host::doc {of}");
        } else if let Some(test) = line.strip_suffix(": test") {
            let (output, test) = (output.clone(), test.to_owned());
            tests.push(Test::new(format!("{name}::{test}"), move || {
                let run = || match run_cargo(Build::Plain, &["test", "--no-fail-fast", "--doc"]) {
                    Ok(output) => output,
                    Err(error) => format!("{error:#}"),
                };
                judge_doc(output.get_or_init(run), &test)
            }));
        }
    }
    Ok(tests)
}

/// Whether rustdoc's `output` has the line in which `test` is well.
fn judge_doc(output: &str, test: &str) -> Result<()> {
    let is_about = |line: &str| line.strip_prefix("test ").is_some_and(|rest| rest.starts_with(test));
    ensure!(output.lines().any(|line| is_about(line) && line.ends_with(" ... ok")), "it failed:\n{output}");
    Ok(())
}

/// Runs stock cargo at the root on the host's crates; returns all that it prints.
pub fn run_cargo(build: Build, arguments: &[&str]) -> Result<String> {
    finish(command(build, OsStr::new("cargo"), arguments)?).with_context(|| format!("cargo {}", arguments[0]))
}

/// A command that ends with this program, and in time.
fn command(build: Build, program: &OsStr, arguments: &[&str]) -> Result<Command> {
    let limited = ["-k", "5", &LIMIT.to_string()].map(OsString::from).into_iter().chain([program.to_owned()]);
    let mut command = qemu::tethered("timeout", limited.chain(arguments.iter().map(Into::into)).collect())?;
    command.current_dir(root()).env("CARGO_TARGET_DIR", target()?).env("CARGO_TERM_COLOR", "never");
    command.env("RUSTDOCFLAGS", "-D warnings");
    match build {
        Build::Plain => {}
        Build::Fuzz => {
            command.env("RUSTFLAGS", fuzz::RUSTFLAGS).env("CARGO_TARGET_DIR", target()?.join("fuzz"));
        }
        Build::Loom => {
            command.env("RUSTFLAGS", "--cfg ringfence_loom").env("CARGO_TARGET_DIR", target()?.join("loom"));
        }
        Build::ThreadSanitizer => {
            let rustc = setup::thread_sanitizer().context("no compiler with ThreadSanitizer")?;
            let suppressions = root().join("xtask/thread-sanitizer.suppressions");
            command.env("RUSTC", rustc).env("RUSTFLAGS", TSAN_FLAGS);
            command.env("CARGO_TARGET_DIR", target()?.join("tsan"));
            command.env("TSAN_OPTIONS", format!("suppressions={}", suppressions.display()));
        }
        Build::Kernel => {
            // There is no unwinding without a standard library, and stable compilers know its features, too.
            command.env("RUSTFLAGS", "-Cpanic=abort -Zpanic_abort_tests").env("RUSTC_BOOTSTRAP", "1");
            command.env("CARGO_TARGET_DIR", target()?.join("kernel-clippy"));
        }
    }
    Ok(command)
}

/// What `command` prints until it ends. An error, with the last of it, if it fails.
fn finish(command: Command) -> Result<String> {
    let mut child = Guest::start(command)?;
    let status = child.wait_exit(Duration::from_secs(2 * LIMIT))?.context("it does not end")?;
    let output = child.kill();
    if status.success() {
        return Ok(output);
    }
    let lines: Vec<&str> = output.lines().filter(|line| !line.starts_with('{')).collect();
    bail!("it ended with {status}:\n{}", lines[lines.len().saturating_sub(100)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_test_that_ran_has_passed() {
        let judged = |output| judge(output).map_err(|error| (error.is::<Skipped>(), error.to_string()));
        assert_eq!(
            judged("test a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 9 measured"),
            Ok(())
        );
        let nothing = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out";
        assert!(judged(nothing).is_err_and(|(skipped, _)| !skipped));
        assert!(
            judged("test result: ok. 0 passed; 0 failed; 1 ignored; 0").is_err_and(|(skipped, _)| skipped)
        );
        let said = "\ntest-skipped: a::b: no curl: none\ntest result: ok. 1 passed; 0 failed";
        assert_eq!(judged(said), Err((true, "no curl: none".into())));
    }

    #[test]
    fn documentation_is_judged_line_by_line() {
        let output = "test a.rs - A (line 3) ... ok\ntest a.rs - B (line 3) - compile fail ... ok\n\
                      test a.rs - C (line 3) ... FAILED\ntest result: FAILED. 2 passed; 1 failed";
        let is_ok = |test| judge_doc(output, test).is_ok();
        let tests = ["a.rs - A (line 3)", "a.rs - B (line 3)", "a.rs - C (line 3)", "a.rs - D (line 3)"];
        assert_eq!(tests.map(is_ok), [true, true, false, false]);
    }

    #[test]
    fn cargo_names_the_programs() {
        let message = |test| {
            json!({ "executable": "/t/deps/ringfence_memory-0123abcd", "manifest_path": "/r/memory/Cargo.toml",
                    "profile": { "test": test } })
        };
        let program = Program::of(&message(true)).unwrap();
        assert_eq!((program.name.as_str(), program.folder.to_str()), ("ringfence_memory", Some("/r/memory")));
        assert!(Program::of(&message(false)).is_none() && Program::of(&json!({})).is_none());
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

    /// `text` without its unit tests.
    fn without_tests(text: &str) -> &str {
        text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }

    /// The sources of what is run, but for tests.
    fn sources_that_run(visit: &mut impl FnMut(&Path, &str)) {
        for folder in ["memory", "drivers", "device-side", "services", "kernel", "xtask"] {
            sources(&root().join(folder).join("src"), &mut |path, text| {
                let is_test = path.ends_with("tests.rs") || path.to_string_lossy().ends_with("_tests.rs");
                if !is_test && !path.starts_with(root().join("xtask/src/test")) {
                    visit(path, without_tests(text));
                }
            });
        }
    }

    /// What `{:?}` makes is for programmers: it may stand in `Debug` itself, where a mistake of theirs ends
    /// the program, and in what is logged for them alone.
    #[test]
    fn nobody_is_shown_debug_formatting() {
        const FOR_PROGRAMMERS: [&str; 7] =
            ["panic", "assert", "assert_eq", "assert_ne", "unreachable", "debug", "trace"];
        let mut shown = Vec::new();
        sources_that_run(&mut |path, text| {
            for (at, _) in text.match_indices("?}") {
                let before = &text[..at];
                let of_macro = before.rsplit_once("!(").map_or("", |(before, _)| before);
                let name = of_macro.rsplit(|letter: char| !letter.is_alphanumeric() && letter != '_').next();
                let item = before.lines().rfind(|line| line.trim_start().starts_with("impl"));
                let in_debug = item.is_some_and(|line| line.contains("Debug for"));
                if !in_debug && !FOR_PROGRAMMERS.contains(&name.unwrap_or_default()) {
                    shown.push(format!("{}:{}", path.display(), before.lines().count()));
                }
            }
        });
        assert!(shown.is_empty(), "debug formatting is shown to people: {shown:#?}");
    }

    /// Whatever is called an error can be shown, and is one to those who pass any error on.
    #[test]
    fn errors_say_what_they_are() {
        let (mut count, mut silent) = (0, Vec::new());
        sources_that_run(&mut |path, text| {
            for (at, _) in text.match_indices("Error {").chain(text.match_indices("Error;")) {
                let line = text[..at].lines().last().unwrap_or_default();
                let Some(name) = line.strip_prefix("pub enum ").or_else(|| line.strip_prefix("pub struct "))
                else {
                    continue;
                };
                let name = format!("{name}Error");
                let attributes = text[..at].rsplit_once("\n\n").map_or("", |(_, item)| item);
                let derived = attributes.contains("Error)]") && attributes.contains("#[derive(");
                count += 1;
                if !derived && !text.contains(&format!("messages! {{ {name} {{")) {
                    silent.push(format!("{}: {name}", path.display()));
                }
            }
        });
        assert!(count > 20, "only {count} errors were found");
        assert!(silent.is_empty(), "errors that say nothing: {silent:#?}");
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
