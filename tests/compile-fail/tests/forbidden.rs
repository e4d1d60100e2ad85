//! Each function in `cases/fail` does one forbidden thing, in the line marked `//~ CODE name`. The compiler
//! must report exactly that error for exactly that line; what else it says differs between versions.
//! `cases/pass` does the allowed counterparts, so that a broken set-up cannot look like success.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

/// One at a time: each run cleans what the one before has built.
static ALONE: Mutex<()> = Mutex::new(());

fn try_build(expected: &str, files: &Path) -> Output {
    let _alone = ALONE.lock();
    Command::new(env!("CARGO_BIN_EXE_ringfence-compile-fail"))
        .args([expected, files.to_str().expect("a path in UTF-8")])
        .env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // What the compiler says goes into files, to be read here.
        .env("TRYBUILD", "overwrite")
        .output()
        .expect("the program runs")
}

/// A new directory under the target directory.
fn empty_directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("a new directory");
    path
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What follows `//~` in `line`.
fn mark(line: &str) -> Option<&str> {
    line.split_once("//~").map(|(_, mark)| mark.trim())
}

/// Every mark that the source has must be in an error with that code, and every error must have a mark: how
/// many marks there are, or else all differences.
fn compare(source: &str, said: &str) -> Result<usize, Vec<String>> {
    let marks: Vec<&str> = source.lines().filter_map(mark).collect();
    let expected: BTreeSet<&str> = marks.iter().copied().collect();
    let (mut seen, mut differences) = (BTreeSet::new(), Vec::new());
    if expected.is_empty() || expected.len() < marks.len() {
        differences.push("the marks must be unique, and there must be one".to_owned());
    }
    let starts = said.match_indices("error").map(|(at, _)| at);
    let mut starts: Vec<usize> = starts.filter(|at| *at == 0 || said[..*at].ends_with('\n')).collect();
    starts.push(said.len());
    for ends in starts.windows(2) {
        let error = &said[ends[0]..ends[1]];
        let code = error.strip_prefix("error[").and_then(|rest| rest.split_once(']')).map(|(code, _)| code);
        let found = error.lines().filter_map(mark).find(|mark| mark.split_once(' ').map(|(c, _)| c) == code);
        match found.filter(|mark| expected.contains(mark)) {
            Some(mark) => _ = seen.insert(mark),
            None => differences.push(format!("not expected: {error}")),
        }
    }
    differences.extend(expected.difference(&seen).map(|mark| format!("not refused: {mark}")));
    if differences.is_empty() { Ok(marks.len()) } else { Err(differences) }
}

#[test]
fn the_compiler_refuses_every_marked_line() {
    let copies = empty_directory("forbidden");
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/fail");
    for case in fs::read_dir(cases).expect("cases") {
        let case = case.expect("a case");
        fs::copy(case.path(), copies.join(case.file_name())).expect("a copy");
    }
    let output = try_build("fail", &copies.join("*.rs"));
    assert!(output.status.success(), "{}", text(&output));
    let (mut lines, mut differences) = (0, Vec::new());
    for case in fs::read_dir(&copies).expect("copies") {
        let path = case.expect("a copy").path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let read = |path: &Path| fs::read_to_string(path).expect("text");
            match compare(&read(&path), &read(&path.with_extension("stderr"))) {
                Ok(marks) => lines += marks,
                Err(more) => differences.extend(more),
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    println!("{lines} forbidden lines");
}

#[test]
fn the_compiler_accepts_the_allowed_counterparts() {
    let output = try_build("pass", Path::new("cases/pass/*.rs"));
    assert!(output.status.success(), "{}", text(&output));
    let count = |kind: &str| {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(kind);
        let names = fs::read_dir(cases).expect("cases").map(|case| case.expect("a case").file_name());
        names.collect::<BTreeSet<_>>()
    };
    assert_eq!(count("pass"), count("fail"), "each file has its counterpart");
}

#[test]
fn a_case_that_compiles_is_noticed() {
    let file = empty_directory("allowed").join("compiles.rs");
    fs::write(&file, "fn main() {\n    drop(1); //~ E0382 nothing_wrong\n}\n").expect("a file");
    let output = try_build("fail", &file);
    assert!(!output.status.success() && text(&output).contains("to fail to compile"), "{}", text(&output));
}

#[test]
fn errors_are_compared_exactly() {
    let source = "a; //~ E0382 one\nb; //~ E0599 two\n";
    let one = "error[E0382]: use of moved value\n  |\n1 | a; //~ E0382 one\n";
    let two = "error[E0599]: no method named error\n  |\n2 | b; //~ E0599 two\n";
    let other_code = "error[E0277]: something else\n  |\n2 | b; //~ E0599 two\n";
    let other_line = "error[E0599]: no method\n  |\n3 | c;\n";
    assert_eq!(compare(source, &format!("warning: x\n\n{one}\n{two}")), Ok(2));
    assert_eq!(compare(source, &format!("{one}\n{two}\n{two}")), Ok(2));
    assert_eq!(compare(source, one), Err(vec!["not refused: E0599 two".to_owned()]));
    assert_eq!(compare(source, "").map_err(|differences| differences.len()), Err(2));
    for extra in [other_code, other_line, "error: something without a code\n"] {
        assert!(compare(source, &format!("{one}\n{two}\n{extra}")).is_err());
    }
    assert!(compare(source, &format!("{one}\n{other_code}")).is_err());
    assert!(compare("a;\n", "").is_err());
}
