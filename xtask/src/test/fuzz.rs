//! `check::fuzz_…`: libFuzzer on the targets in `fuzz/`, for a minute each, from the seeds that are kept
//! there.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::host::{Build, run_cargo};
use super::{Skipped, Test};
use crate::{qemu, root, setup, target};

/// What the compiler adds to the code for libFuzzer to see where an input leads. Stable compilers know it.
pub const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// How long each target runs, and how long it may take to stop, in seconds.
const SECONDS: u32 = 60;
const LIMIT: &str = "180";

/// One test for each target.
pub fn checks() -> Vec<Test> {
    vec![Test::new("check::fuzz_adversary", || fuzz("adversary"))]
}

fn fuzz(name: &str) -> Result<()> {
    setup::ensure_cxx().map_err(|error| Skipped(format!("{error:#}")))?;
    let (host, folder) =
        (setup::host_triple().context("rustc does not name its host")?, target()?.join("fuzz"));
    let package = ["build", "--package", "ringfence-fuzz", "--features", "libfuzzer"];
    // With a target, build scripts do not get the flags.
    run_cargo(Build::Fuzz, &[&package[..], &["--bin", name, "--target", &host]].concat())?;

    let (corpus, found) = (folder.join("corpus").join(name), folder.join("found").join(name));
    let seeds = root().join("fuzz/seeds").join(name);
    for folder in [&corpus, &found] {
        std::fs::create_dir_all(folder)?;
    }
    let last = found.join("last");
    let mut command = qemu::tethered(
        "timeout",
        vec!["-k".into(), "5".into(), LIMIT.into(), folder.join(&host).join("debug").join(name).into()],
    )?;
    command.arg(format!("-max_total_time={SECONDS}")).args(["-max_len=600", "-timeout=30", "-verbosity=0"]);
    command.arg(format!("-artifact_prefix={}/", found.display())).arg(&corpus).arg(&seeds);
    command.env("RINGFENCE_FUZZ_LAST", &last).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    let output = command.output().context("cannot start the target")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // A signal that libFuzzer does not see leaves the input that ran last.
    let input =
        said.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path.trim());
    let input = input.map_or(last.as_path(), Path::new);
    let lines: Vec<&str> = said.lines().collect();
    bail!(
        "{} ended with {}:\n{}\nthe input is {}\nreplay it: RINGFENCE_REPLAY={} cargo test -p ringfence-fuzz -- replay, \
         or keep it in {}",
        name,
        output.status,
        lines[lines.len().saturating_sub(40)..].join("\n"),
        input.display(),
        input.display(),
        seeds.display()
    )
}
