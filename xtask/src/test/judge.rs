//! Boots one test of the kernel's and judges how it ended.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;

use crate::guest::{Guest, last_line};
use crate::qemu::{Machine, exit};

/// How a test in the guest ended.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Passed,
    /// The test said so itself, and why.
    Failed(String),
    /// The kernel panicked outside the test.
    Panicked(String),
    /// Nothing came in time; with the last line it printed.
    Hung(String),
    /// The guest was reset: a triple fault.
    Reset(String),
    /// The guest left QEMU with the code of success, but did not say that the test passed.
    LeftEarly,
    /// QEMU itself did not run.
    Qemu(String),
}

/// Boots `machine` for its test called `name`.
pub fn run(machine: &Machine, name: &str, limit: Duration) -> Result<Verdict> {
    let mut machine = machine.clone();
    machine.options.push(("test".into(), name.into()));
    let mut guest = Guest::start(machine.command()?)?;
    let status = guest.wait_exit(limit)?;
    Ok(judge(name, status, &guest.kill()))
}

/// Passing takes both the exit code and the line; either alone proves nothing.
fn judge(name: &str, status: Option<ExitStatus>, output: &str) -> Verdict {
    let last = || last_line(output).to_owned();
    let Some(status) = status else { return Verdict::Hung(last()) };
    let passed = format!("test-passed: {name}");
    let failed = format!("test-failed: {name}: ");
    match status.code() {
        Some(exit::PASS) if output.lines().any(|line| line == passed) => Verdict::Passed,
        Some(exit::PASS) => Verdict::LeftEarly,
        Some(exit::FAIL) => {
            let message = output.lines().find_map(|line| line.strip_prefix(&failed));
            Verdict::Failed(message.unwrap_or("without saying why").to_owned())
        }
        Some(exit::PANIC) => Verdict::Panicked(last()),
        Some(exit::RESET) => Verdict::Reset(last()),
        _ => Verdict::Qemu(format!("{status}: {}", last())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn judged(code: i32, output: &str) -> Verdict {
        judge("maps", Some(ExitStatus::from_raw(code << 8)), output)
    }

    #[test]
    fn passing_takes_the_code_and_the_line() {
        assert_eq!(judged(33, "log\ntest-passed: maps\n"), Verdict::Passed);
        assert_eq!(judged(33, "log\n"), Verdict::LeftEarly);
        assert_eq!(judged(33, "test-passed: maps_more\n"), Verdict::LeftEarly);
        assert_eq!(judged(33, "not test-passed: maps\n"), Verdict::LeftEarly);
    }

    #[test]
    fn the_line_without_the_code_does_not_pass() {
        let output = "test-passed: maps\n";
        assert_eq!(judged(35, output), Verdict::Failed("without saying why".into()));
        assert!(matches!(judged(37, output), Verdict::Panicked(_)));
        assert!(matches!(judged(0, output), Verdict::Reset(_)));
        assert!(matches!(judged(1, output), Verdict::Qemu(_)));
        assert!(matches!(judge("maps", None, output), Verdict::Hung(_)));
        assert!(matches!(judge("maps", Some(ExitStatus::from_raw(9)), output), Verdict::Qemu(_)));
    }

    #[test]
    fn a_failure_carries_its_message() {
        assert_eq!(judged(35, "test-failed: maps: left != right\n"), Verdict::Failed("left != right".into()));
    }
}
