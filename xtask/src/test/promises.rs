//! `check::security_promises`: each promise that SECURITY.md makes names its tests, and they exist and run. A
//! test that is skipped does not count: on a machine that cannot run it, the promise is not shown.

use std::collections::HashSet;

use anyhow::{Context, Result, bail, ensure};

/// The name of this check among the tests.
pub const NAME: &str = "check::security_promises";

const HEADING: &str = "## Promises";

/// The tests that the table under the heading "Promises" names: its last column, in backquotes. A row without
/// one, or with anything else there, is an error.
fn named_tests(text: &str) -> Result<Vec<&str>> {
    let mut section = text.lines().skip_while(|line| *line != HEADING).skip(1);
    let rows =
        section.by_ref().take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with('|'));
    // After the column titles and the line under them.
    let cells = rows.skip(2).map(|row| {
        let columns: Vec<&str> = row.trim().trim_matches('|').split('|').collect();
        let [promise, _, tests] = columns[..] else { bail!("not three columns: {row}") };
        let parts: Vec<&str> = tests.split('`').collect();
        let (outside, names): (Vec<_>, Vec<_>) = parts.iter().enumerate().partition(|(at, _)| at % 2 == 0);
        let is_between = |part: &str| part.chars().all(|letter| letter == ',' || letter == ' ');
        let is_list = parts.len() % 2 == 1 && outside.iter().all(|(_, part)| is_between(part));
        ensure!(
            is_list && !names.is_empty(),
            "not a list of tests in backquotes, of {}: {tests}",
            promise.trim()
        );
        Ok(names.into_iter().map(|(_, name)| *name).collect())
    });
    let names = cells.collect::<Result<Vec<Vec<_>>>>()?.concat();
    ensure!(!names.is_empty(), "no table under the heading {HEADING:?}");
    Ok(names)
}

/// Whether all tests that `text` names exist and, in a complete run, `ran`.
pub fn check(text: &str, exist: &HashSet<String>, ran: Option<&HashSet<String>>) -> Result<()> {
    let names = named_tests(text).context("SECURITY.md")?;
    let lacking = |there: &HashSet<String>| {
        let names = names.iter().filter(|name| !there.contains(**name));
        names.copied().collect::<Vec<_>>().join(", ")
    };
    let missing = lacking(exist);
    ensure!(missing.is_empty(), "SECURITY.md names tests that do not exist: {missing}");
    let idle = ran.map(lacking).unwrap_or_default();
    ensure!(idle.is_empty(), "SECURITY.md names tests that did not run: {idle}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Security\n\n| other | table |\n|---|---|\n| `no` | `no` |\n\n## Promises\n\nText, `no`.\n\n\
        | promise | mechanism | tests |\n|---|---|---|\n\
        | one | `a type` | `host::a::b` |\n\
        | two | a check | `kernel::c::d on qemu64`, `system::e::f` |\n\n## After\n\n| x | y | `no` |\n";

    fn names(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_last_column_of_the_right_table() {
        let expected = ["host::a::b", "kernel::c::d on qemu64", "system::e::f"];
        assert_eq!(named_tests(TEXT).unwrap(), expected);
    }

    #[test]
    fn malformed_tables() {
        let row = |row: &str| format!("## Promises\n| a | b | c |\n|---|---|---|\n{row}\n");
        assert!(named_tests(&row("| one | two | `host::a` |")).is_ok());
        for bad in [
            "",
            "| one | two | |",
            "| one | two | host::a |",
            "| one | two | `a`, b |",
            "| one | `host::a` |",
        ] {
            assert!(named_tests(&row(bad)).is_err(), "{bad:?}");
        }
        assert!(named_tests("| one | two | `host::a` |").is_err(), "no heading");
        assert!(named_tests(&row("| one | two | `host::a |")).is_err(), "a backquote without its other");
    }

    #[test]
    fn tests_must_exist_and_run() {
        let all = names(&["host::a::b", "kernel::c::d on qemu64", "system::e::f", "other"]);
        let some = names(&["host::a::b", "system::e::f"]);
        assert!(check(TEXT, &all, None).is_ok() && check(TEXT, &all, Some(&all)).is_ok());
        let error = |result: Result<()>| result.unwrap_err().to_string();
        let missing = error(check(TEXT, &some, None));
        assert!(missing.contains("do not exist: kernel::c::d on qemu64"), "{missing}");
        let idle = error(check(TEXT, &all, Some(&some)));
        assert!(idle.contains("did not run: kernel::c::d on qemu64"), "{idle}");
    }
}
