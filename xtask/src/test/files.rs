//! `check::files`: no file is in the repository that nothing leads to.
//!
//! From the root's manifest, README and what tools look for there, a way leads
//! - from a manifest to the targets that cargo makes of its folder or that it names, and to its members;
//! - from Rust to its modules, and to manifests whose folder it names;
//! - from any text to each file, but for Rust, whose name is a word of it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::Skipped;
use crate::root;

/// The name of this check among the tests.
pub const NAME: &str = "check::files";

/// Where to begin: what people, cargo, git, rustfmt and the forge open by itself.
const ROOTS: [&str; 6] =
    ["README.md", "Cargo.toml", ".cargo/config.toml", ".gitignore", "rustfmt.toml", ".ci/run"];
/// What belongs to the manifest in the same folder, and which are targets of its package.
const BESIDE_MANIFEST: [&str; 5] =
    ["README.md", "LICENSE-MIT", "LICENSE-APACHE", "Cargo.lock", ".cargo/config.toml"];
const TARGETS: [&str; 3] = ["build.rs", "src/lib.rs", "src/main.rs"];
/// Folders of a package each of whose files is a target, as is the `main.rs` of each folder in them.
const MANY_TARGETS: [&str; 4] = ["tests", "benches", "examples", "src/bin"];
/// Folders that some program reads as a whole.
const READ_WHOLE: [&str; 3] = ["site/", "fuzz/seeds/adversary/", "tests/compile-fail/cases/"];

/// Checks what git tracks.
pub fn check() -> Result<()> {
    if !root().join(".git").exists() {
        bail!(Skipped("these files are no checkout of git".into()));
    }
    let listed = Command::new("git").current_dir(root()).args(["ls-files", "-z"]).output();
    let listed = listed.context("cannot start git")?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let mut files = Files::new();
    for path in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        // One that was deleted and not committed yet is not there.
        if let Ok(bytes) = std::fs::read(root().join(path)) {
            files.insert(path.to_owned(), String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    let strays = strays(&files);
    ensure!(strays.is_empty(), "nothing leads to these files:\n{}", strays.join("\n"));
    Ok(())
}

/// Paths from the root, and texts.
type Files = BTreeMap<String, String>;

/// The files that no way leads to.
fn strays(files: &Files) -> Vec<&str> {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    let begin =
        |path: &&str| ROOTS.contains(path) || READ_WHOLE.iter().any(|folder| path.starts_with(folder));
    let mut waiting: Vec<&str> = files.keys().map(String::as_str).filter(begin).collect();
    while let Some(path) = waiting.pop() {
        if found.insert(path) {
            let modules: BTreeSet<String> = modules(path, &files[path]).collect();
            let next =
                files.keys().filter(|other| modules.contains(*other) || leads(path, &files[path], other));
            waiting.extend(next.map(String::as_str));
        }
    }
    files.keys().map(String::as_str).filter(|path| !found.contains(path)).collect()
}

/// Whether the file at `path` leads to `other`, not as its module.
fn leads(path: &str, text: &str, other: &str) -> bool {
    let (folder, name) = parent(path);
    let (other_folder, other_name) = parent(other);
    if let Some(below) = other.strip_prefix(folder).filter(|_| name == "Cargo.toml") {
        let many = MANY_TARGETS.iter().filter_map(|of| below.strip_prefix(of)?.strip_prefix('/'));
        let is_target = TARGETS.contains(&below)
            || many
                .map(|target| target.split_once('/'))
                .any(|rest| rest.is_none_or(|(_, rest)| rest == "main.rs"));
        let is_named = text.contains(&format!("\"{below}\""));
        let is_rust = other.ends_with(".rs") && text.contains("[package]");
        if BESIDE_MANIFEST.contains(&below) || is_rust && (is_target || is_named) {
            return true;
        }
    }
    if other.ends_with(".rs") {
        false
    } else if other_name == "Cargo.toml" {
        let folder = other_folder.trim_end_matches('/');
        ["\"", "/"].iter().any(|end| text.contains(&format!("\"{folder}{end}")))
    } else if let Some((tests, _)) = other.split_once(".proptest-regressions") {
        path == format!("{tests}.rs")
    } else {
        // proptest keeps the seeds of what is below src/ in a folder of their own.
        let seeds = other_folder.ends_with("proptest-regressions/");
        seeds && name.strip_suffix(".rs") == other_name.strip_suffix(".txt") || has_word(text, other_name)
    }
}

/// The folder, with its slash, and the name.
fn parent(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('/').map_or(0, |slash| slash + 1))
}

/// Where the modules of the Rust file at `path` may be, and what it includes.
fn modules<'a>(path: &'a str, text: &'a str) -> impl Iterator<Item = String> + 'a {
    let (folder, name) = parent(path);
    let stem = name.trim_end_matches(".rs");
    let mut named = None;
    text.lines().map(str::trim).flat_map(move |line| {
        let quoted = |start: &str| line.split_once(start)?.1.split('"').next();
        if let Some(path) = quoted("#[path = \"").or_else(|| quoted("include!(\"")) {
            named = Some(path);
            return vec![join(folder, path)];
        }
        let declared =
            line.split_once("mod ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
        match declared.and_then(|(_, rest)| rest.strip_suffix(';')) {
            Some(_) if named.take().is_some() => vec![],
            // A target's own file has them beside it, like `mod.rs`.
            Some(module) => [folder.to_owned(), format!("{folder}{stem}/")]
                .iter()
                .flat_map(|folder| [format!("{folder}{module}.rs"), format!("{folder}{module}/mod.rs")])
                .collect(),
            None => vec![],
        }
    })
}

/// `path` from `folder`, which it may leave.
fn join(folder: &str, path: &str) -> String {
    match path.strip_prefix("../") {
        Some(rest) => join(parent(folder.trim_end_matches('/')).0, rest),
        None => format!("{folder}{path}"),
    }
}

/// Whether `name` stands in `text`, and is not a part of a longer name.
fn has_word(text: &str, name: &str) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || "_-.".contains(letter);
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        !before.ends_with(is_part) && !after.starts_with(|letter| is_part(letter) && letter != '.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: [(&str, &str); 16] = [
        ("README.md", "See [how](docs/how.md) and `run.sh`."),
        ("Cargo.toml", "members = [\"a\"]"),
        ("a/Cargo.toml", "[package]\n[[bench]]\npath = \"speed/main.rs\""),
        ("a/LICENSE-MIT", ""),
        ("a/src/lib.rs", "pub mod b;\n#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod tests;\n//! mod c;"),
        ("a/src/b/mod.rs", "pub(crate) mod deep;\nconst TEXT: &str = include_str!(\"b.txt\");"),
        ("a/src/b/deep.rs", ""),
        ("a/src/b/b.txt", ""),
        ("a/src/b_tests.rs", ""),
        ("a/speed/main.rs", "#[path = \"../../shared/x.rs\"]\nmod x;"),
        ("a/tests/one.rs", "mod common;"),
        ("a/tests/common/mod.rs", ""),
        ("a/tests/one.proptest-regressions", ""),
        ("shared/x.rs", ""),
        ("docs/how.md", ""),
        ("run.sh", ""),
    ];

    fn with(more: &[&str]) -> Vec<String> {
        let mut files: Files = TREE.map(|(path, text)| (path.to_owned(), text.to_owned())).into();
        files.extend(more.iter().map(|path| (path.to_string(), String::new())));
        strays(&files).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_way_leads_to_all_of_it() {
        assert_eq!(with(&[]), [""; 0]);
        assert_eq!(with(&["site/new.html", "a/tests/two.rs", "a/benches/two/main.rs"]), [""; 0]);
    }

    #[test]
    fn what_nothing_leads_to() {
        let mut strays = [
            "Cargo.toml.orig",
            "a/src/b/mod.rs.orig",
            "a/src/c.rs",
            "a/src/tests.rs",
            "a/tests/one/helper.rs",
            "a/tests/other.proptest-regressions",
            "b/Cargo.toml",
            "b/src/lib.rs",
            "docs/how.md~",
            "docs/other.md",
            "src/lib.rs",
            "tests/of_no_package.rs",
            "show.md",
            "x.rs",
        ];
        strays.sort_unstable();
        assert_eq!(with(&strays), strays);
    }
}
