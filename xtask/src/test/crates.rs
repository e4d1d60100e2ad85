//! `check::features`, `check::package` and `check::sizes`: the crates as other kernels take them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Test;
use super::host::{Build, run_cargo};
use crate::setup::Toolchain;
use crate::{kernel, root, setup, target};

/// What is for others to take.
const CRATES: [&str; 3] = ["memory", "drivers", "device-side"];

/// The features of each that can be left out or added, one by one.
const MEMORY: [&str; 2] = ["mapper", "host"];
const DRIVERS: [&str; 5] = ["blk", "net", "rng", "packed", "in-order"];
const ADAPTERS: [&str; 6] = [
    "smoltcp",
    "embassy-net-driver",
    "embedded-storage",
    "embedded-storage-async",
    "block-device-driver",
    "rand_core",
];

/// The tests, the last of which builds with the kernel's toolchain.
pub fn checks(toolchain: &Toolchain) -> Vec<Test> {
    let toolchain = toolchain.clone();
    vec![
        Test::new("check::features", features),
        Test::new("check::package", package),
        Test::new("check::sizes", move || sizes(&toolchain)),
    ]
}

/// Every subset of `features`, separated by commas.
fn subsets(features: &[&str]) -> Vec<String> {
    let all = 0..1_u32 << features.len();
    let chosen = |bits: u32| features.iter().enumerate().filter(move |(at, _)| bits >> at & 1 != 0);
    all.map(|bits| chosen(bits).map(|(_, name)| *name).collect::<Vec<_>>().join(",")).collect()
}

/// All combinations of features build without a warning; of adapters, each alone and all together.
fn features() -> Result<()> {
    let adapters = ADAPTERS.into_iter().map(str::to_owned).chain([ADAPTERS.join(",")]);
    let drivers = subsets(&DRIVERS).into_iter().chain(adapters).map(|features| ("drivers", features));
    let memory = subsets(&MEMORY).into_iter().map(|features| ("memory", features));
    let (build, flags) = match setup::has_subcommand("clippy") {
        true => ("clippy", &["--", "-D", "warnings"][..]),
        false => ("check", &[][..]),
    };
    for (name, features) in memory.chain(drivers) {
        let package = format!("ringfence-{name}");
        let line = [build, "--lib", "--no-default-features", "--package", &package, "--features", &features];
        run_cargo(Build::Plain, &[&line[..], flags].concat())
            .with_context(|| format!("{package} with the features {features:?}"))?;
    }
    Ok(())
}

/// The packages of [`CRATES`] are complete, build from what is in them, and would be taken by a registry.
fn package() -> Result<()> {
    let packages = metadata()?;
    let licences = ["LICENSE-MIT", "LICENSE-APACHE"];
    for name in CRATES {
        let folder = root().join(name);
        for licence in licences {
            let same = std::fs::read(folder.join(licence))? == std::fs::read(root().join(licence))?;
            ensure!(same, "{name}/{licence} is not the licence at the root");
        }
        let package = find(&packages, &format!("ringfence-{name}"))?;
        check_metadata(package).with_context(|| name.to_owned())?;
        check_rust_version(package, &packages).with_context(|| name.to_owned())?;
    }
    let folder = target()?.join("package-check");
    forget_packages(&folder)?;
    let names = CRATES.map(|name| format!("--package=ringfence-{name}"));
    let folder = format!("--target-dir={}", folder.display());
    let line: Vec<&str> = names.iter().map(String::as_str).chain(["--allow-dirty", &folder]).collect();
    let online = [&["publish", "--dry-run"], &line[..]].concat();
    let offline = [&["package", "--offline"], &line[..]].concat();
    // Without a registry at hand, all but the question whether it would take them.
    run_cargo(Build::Plain, &online).or_else(|_| run_cargo(Build::Plain, &offline)).map(drop)
}

/// Removes what cargo keeps of an earlier run. It packs into a registry of its own in `folder`, and takes
/// what comes from a registry never to change: it would build this run's drivers with that run's `memory`.
fn forget_packages(folder: &Path) -> Result<()> {
    let unpacked = setup::home("CARGO_HOME", ".cargo").join("registry/src");
    let registries = std::fs::read_dir(unpacked).into_iter().flatten().flatten();
    let name = |name| format!("ringfence-{name}-{}", env!("CARGO_PKG_VERSION"));
    let old = registries.flat_map(|registry| CRATES.map(|crate_name| registry.path().join(name(crate_name))));
    for folder in old.chain([folder.to_owned()]).filter(|folder| folder.exists()) {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn metadata() -> Result<Vec<Value>> {
    let arguments = ["metadata", "--format-version=1", "--all-features"];
    let output = Command::new("cargo").current_dir(root()).args(arguments).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let mut all: Value = serde_json::from_slice(&output.stdout)?;
    match all["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => anyhow::bail!("cargo metadata names no packages"),
    }
}

fn find<'a>(packages: &'a [Value], name: &str) -> Result<&'a Value> {
    packages.iter().find(|package| package["name"] == name).with_context(|| format!("there is no {name}"))
}

/// What a registry shows, and what it would refuse.
fn check_metadata(package: &Value) -> Result<()> {
    for field in ["description", "license", "readme", "documentation", "rust_version"] {
        ensure!(package[field].as_str().is_some_and(|text| !text.is_empty()), "no {field}");
    }
    for field in ["keywords", "categories"] {
        let count = package[field].as_array().map_or(0, Vec::len);
        ensure!((1..=5).contains(&count), "{count} {field}");
    }
    let readme = package["readme"].as_str().unwrap_or_default();
    let folder = Path::new(package["manifest_path"].as_str().unwrap_or_default()).with_file_name(readme);
    ensure!(folder.is_file(), "the README is not there");
    ensure!(package["publish"].is_null(), "publishing is off");
    let dependencies = package["dependencies"].as_array().context("no dependencies")?;
    for dependency in dependencies.iter().filter(|dependency| dependency["kind"].is_null()) {
        let name = dependency["name"].as_str().unwrap_or_default();
        ensure!(dependency["req"] != "*", "{name} without a version");
        // `portable-atomic` brings nothing along; without it there are no counters on 32 bits.
        ensure!(
            dependency["target"].is_null() || name == "portable-atomic",
            "{name}, for some targets only, is in every user's lock file"
        );
    }
    Ok(())
}

/// The compiler that `package` promises to do with builds all that it may depend on.
fn check_rust_version(package: &Value, packages: &[Value]) -> Result<()> {
    let version = |package: &Value| {
        let parts = package["rust_version"].as_str()?.split('.').map(str::parse);
        parts.collect::<Result<Vec<u32>, _>>().ok()
    };
    let promised = version(package).context("no rust-version")?;
    let (mut seen, mut open) = (BTreeSet::new(), vec![package]);
    while let Some(next) = open.pop() {
        let name = next["name"].as_str().unwrap_or_default();
        ensure!(version(next).is_none_or(|needs| needs <= promised), "{name} needs a newer compiler");
        for dependency in next["dependencies"].as_array().into_iter().flatten() {
            let name = dependency["name"].as_str().unwrap_or_default();
            if dependency["kind"].is_null() && (next["source"].is_null() || dependency["optional"] == false) {
                let found = packages.iter().filter(|package| package["name"] == name);
                open.extend(found.filter(|_| seen.insert(name.to_owned())));
            }
        }
    }
    Ok(())
}

/// A row of the README's table: what a kernel takes, the crates that come with it, and the code in KB, each
/// with the most that is allowed.
struct Row {
    title: &'static str,
    features: &'static str,
    code: u64,
}

const ROWS: [Row; 4] = [
    Row { title: "disk, split rings", features: "blk", code: 46_500 },
    Row { title: "network card, split rings", features: "net", code: 53_500 },
    Row { title: "both, split rings", features: "blk,net", code: 66_000 },
    Row { title: "both, all rings (default)", features: "blk,net,rings", code: 88_000 },
];
const CRATE_LIMIT: usize = 6;

/// The README's table of what the drivers cost is true, to a tenth, and within the limits.
fn sizes(toolchain: &Toolchain) -> Result<()> {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let base = code_len(&kernel::build_small(toolchain, "")?)?;
    for Row { title, features, code: limit } in ROWS {
        let code = code_len(&kernel::build_small(toolchain, features)?)?.saturating_sub(base);
        let crates = external_crates(features)?;
        let said = said(&readme, title).with_context(|| format!("README.md has no row {title:?}"))?;
        let measured = format!("{title}: {crates} crates, {code} bytes");
        println!("       {measured}");
        ensure!(crates <= CRATE_LIMIT && code <= limit, "{measured}: too many");
        ensure!(said.0 == crates, "{measured}, and README.md says {} crates", said.0);
        ensure!(
            (said.1 * 900..=said.1 * 1100).contains(&code),
            "{measured}, and README.md says {} KB",
            said.1
        );
    }
    Ok(())
}

/// The crates and the KB in the README's row called `title`.
fn said(readme: &str, title: &str) -> Option<(usize, u64)> {
    let row = readme.lines().find_map(|line| line.strip_prefix(&format!("| {title} |")))?;
    let mut cells = row.split('|').map(str::trim);
    Some((cells.next()?.parse().ok()?, cells.next()?.strip_suffix(" KB")?.parse().ok()?))
}

/// How many crates that are not ours a kernel builds for these features.
fn external_crates(features: &str) -> Result<usize> {
    let features = features.replace("rings", "packed,in-order");
    let mut found = BTreeSet::new();
    let line = ["tree", "--package=ringfence-drivers", "--no-default-features", "--edges=normal,build"];
    let rest = ["--prefix=none", "--target=x86_64-unknown-none", "--features", &features];
    let tree = run_cargo(Build::Plain, &[&line[..], &rest].concat())?;
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    found.extend(names.filter(|name| !name.starts_with("ringfence")).map(str::to_owned));
    Ok(found.len())
}

/// Bytes of the sections that are loaded from the file: code, constants and initialised data.
fn code_len(elf: &Path) -> Result<u64> {
    const SECTION_TABLE: usize = 0x28;
    const SECTION_COUNT: usize = 0x3c;
    const SECTION_LEN: usize = 64;
    const NO_BITS: u64 = 8;
    const ALLOCATED: u64 = 2;
    let file = std::fs::read(elf)?;
    let number = |at: usize, len: usize| -> Result<u64> {
        let bytes = file.get(at..at + len).context("the ELF file breaks off")?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let (table, count) = (number(SECTION_TABLE, 8)? as usize, number(SECTION_COUNT, 2)? as usize);
    let mut len = 0;
    for at in (table..).step_by(SECTION_LEN).take(count) {
        let (kind, flags, size) = (number(at + 4, 4)?, number(at + 8, 8)?, number(at + 32, 8)?);
        if kind != NO_BITS && flags & ALLOCATED != 0 {
            len += size;
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_subsets_are_tried() {
        assert_eq!(subsets(&["a", "b"]), ["", "a", "b", "a,b"]);
    }

    #[test]
    fn rows_of_the_readme_are_read() {
        let readme = "| disk | crates | code |\n|---|---|---|\n| disk | 3 | 45 KB |\n| card | x | 45 KB |\n";
        assert_eq!(said(&readme.replace("| disk | crates | code |\n", ""), "disk"), Some((3, 45)));
        assert_eq!((said(readme, "card"), said(readme, "both")), (None, None));
    }
}
