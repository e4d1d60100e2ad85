//! Tests that need what not every machine has.

use std::io::Write;

/// Says that the test of this name cannot run here, in the words that `xtask` reads. Not by `eprint!`:
/// libtest keeps that to itself.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "\ntest-skipped: {test}: {}", why.replace('\n', " "));
}
