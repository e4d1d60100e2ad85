//! The judgment of somebody else: REDbot asks for what is served, negotiates, validates, asks for ranges, and
//! says what it finds wrong with the answers.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::served::web_disk;
use super::{Kernel, Run, Server};
use crate::setup;
use crate::test::Skipped;

/// The tests here.
pub const TESTS: &[(&str, Run)] = &[("conformance::redbot_finds_nothing", redbot_finds_nothing)];

/// What is asked for, and the status that it is to have.
const PATHS: [(&str, u16); 8] = [
    ("/", 200),
    ("/page.html", 200), // compressed for who takes that
    ("/folder/notes.txt", 200),
    ("/1m.bin", 200),
    ("/folder/", 200), // a listing
    ("/folder", 301),
    ("/none", 404),
    ("/api/memory", 200),
];

/// Notes that are no faults, and why.
const ACCEPTED: [(&str, &str); 2] = [
    ("FRESHNESS_HEURISTIC", "how long a file stays as it is only its owner knows"),
    ("FRESHNESS_NO_CACHE_NO_VALIDATOR", "what is made anew each time has nothing to be validated by"),
];

fn redbot_finds_nothing(kernel: &Kernel) -> Result<()> {
    let redbot = setup::ensure_redbot().map_err(|error| Skipped(format!("{error:#}")))?;
    let server = Server::with_disk(kernel, web_disk()?)?;
    for (path, status) in PATHS {
        let output = Command::new(&redbot).args(["-o", "har", &server.url(path)]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let report: Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("{path}: {said}"))?;
        let entries = report["log"]["entries"].as_array().context("no entries")?;
        let first = entries.first().with_context(|| format!("{path} was not asked for"))?;
        ensure!(first["response"]["status"] == status, "{path} has {}", first["response"]["status"]);
        let mut notes = Vec::new();
        entries.iter().for_each(|entry| collect(&entry["_red_messages"], &mut notes));
        ensure!(!notes.is_empty(), "REDbot has nothing to say about {path}");
        let faults: Vec<String> =
            notes.iter().filter(|note| !is_fine(note)).map(|note| note.to_string()).collect();
        ensure!(faults.is_empty(), "REDbot about {path}: {}", faults.join("; "));
    }
    server.finish()
}

/// Notes, and those under them.
fn collect<'a>(messages: &'a Value, notes: &mut Vec<&'a Value>) {
    for note in messages.as_array().into_iter().flatten() {
        notes.push(note);
        collect(&note["subnotes"], notes);
    }
}

fn is_fine(note: &Value) -> bool {
    let is_accepted = |(id, _): &(&str, &str)| note["note_id"] == *id;
    note["level"] == "GOOD" || note["level"] == "INFO" || ACCEPTED.iter().any(is_accepted)
}
