//! Builds the kernel, its tests and benchmarks, and the UEFI image, with the toolchain that set-up found.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::setup::Toolchain;
use crate::{root, target};

/// Builds the kernel; returns its ELF.
pub fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    build_one(toolchain, "bin", &["--release", "--bin", "ringfence-kernel"])
}

/// Builds the kernel's tests; returns the name and ELF of each that builds, and whether all do.
pub fn build_tests(toolchain: &Toolchain) -> Result<(Vec<(String, PathBuf)>, bool)> {
    build_executables(toolchain, "test", &["build", "--release", "--test", "*", "--keep-going"])
}

/// Runs cargo in kernel/ as it builds the kernel; returns its exit code.
pub fn run_cargo(toolchain: &Toolchain, arguments: &[OsString]) -> Result<u8> {
    let mut command = cargo(toolchain, &root().join("kernel"));
    // What the tests have built, whatever CARGO_TARGET_DIR is; and for the runner this program as it is.
    command.arg("--config").arg(format!("build.target-dir='{}'", target()?.join("kernel").display()));
    command.env("RINGFENCE_XTASK", std::env::current_exe()?);
    let status = command.args(arguments).status().context("cannot start cargo")?;
    Ok(status.code().and_then(|code| code.try_into().ok()).unwrap_or(1))
}

/// Builds the benchmark called `name`; returns its ELF.
pub fn build_bench(toolchain: &Toolchain, name: &str) -> Result<PathBuf> {
    build_one(toolchain, "bench", &["--release", "--bench", name])
}

/// Builds the kernel of examples/minikernel; returns its ELF.
pub fn build_minikernel(toolchain: &Toolchain) -> Result<PathBuf> {
    build_one(toolchain, "bin", &["--release", "--package", "minikernel"])
}

/// Builds the kernel that is nothing but a user of the drivers, with `features` of its own; returns its ELF.
pub fn build_small(toolchain: &Toolchain, features: &str) -> Result<PathBuf> {
    let package = ["--profile", "small", "--package", "ringfence-sizes", "--features", features];
    build_one(toolchain, "bin", &package)
}

/// What the library crates are checked for besides the host: processors of 64 and 32 bits, of both byte
/// orders.
const TARGETS: [&str; 6] = [
    "aarch64-unknown-none",
    "aarch64_be-unknown-none-softfloat",
    "riscv32imac-unknown-none-elf",
    "riscv64gc-unknown-none-elf",
    "thumbv7em-none-eabi",
    "x86_64-unknown-none",
];
const LIBRARIES: [&str; 3] = ["ringfence-memory", "ringfence-drivers", "ringfence-device-side"];

/// Checks the library crates for each of [`TARGETS`]. None of them need be installed.
pub fn check_targets(toolchain: &Toolchain) -> Result<()> {
    let mut command = cargo(toolchain, root());
    command.args(["check", "--quiet", "-Zbuild-std=core,alloc", "--target-dir"]);
    command.arg(target()?.join("targets"));
    command.args(TARGETS.iter().flat_map(|target| ["--target", target]));
    command.args(LIBRARIES.iter().flat_map(|name| ["--package", name]));
    let output = command.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Wraps `kernel` in a disk image that UEFI firmware boots. Made anew only if the kernel is newer.
pub fn build_uefi_image(toolchain: &Toolchain, kernel: &Path) -> Result<PathBuf> {
    // Tests ask for images side by side, and two of them may want the same.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock();
    let image = kernel.with_extension("uefi.img");
    if is_newer(&image, kernel) {
        return Ok(image);
    }
    // By `--target-dir`, not CARGO_TARGET_DIR: the crate's build script starts a cargo of its own, which
    // would inherit the variable and wait for this one's lock for ever.
    let folder = target()?.join("uefi-image");
    let mut build = cargo(toolchain, &root().join("xtask/uefi-image"));
    build.args(["build", "--release", "--target-dir"]).arg(&folder);
    if folder.join("release/uefi-image").is_file() {
        build.arg("--quiet");
    } else {
        eprintln!("run-qemu.sh: building the UEFI boot loader, once");
    }
    ensure!(build.status()?.success(), "the UEFI boot loader did not build");
    let unfinished = image.with_extension(format!("{}.new", std::process::id()));
    let made = Command::new(folder.join("release/uefi-image")).arg(kernel).arg(&unfinished).status()?;
    ensure!(made.success(), "the UEFI boot image could not be made");
    std::fs::rename(&unfinished, &image)?;
    Ok(image)
}

/// Runs `cargo build` in kernel/ for the one executable that is chosen; returns it.
fn build_one(toolchain: &Toolchain, kind: &str, choice: &[&str]) -> Result<PathBuf> {
    let (built, complete) = build_executables(toolchain, kind, &[&["build"], choice].concat())?;
    ensure!(complete, "{} did not build", choice.join(" "));
    let file = built.into_iter().next().map(|(_, file)| file);
    file.with_context(|| format!("cargo built no executable of {}", choice.join(" ")))
}

/// Runs cargo in kernel/, passing its messages on; returns the executables of targets of `kind`, with the
/// targets' names, and whether everything built.
fn build_executables(
    toolchain: &Toolchain,
    kind: &str,
    arguments: &[&str],
) -> Result<(Vec<(String, PathBuf)>, bool)> {
    let folder = target()?.join("kernel");
    let mut command = cargo(toolchain, &root().join("kernel"));
    command.args(arguments).arg("--target-dir").arg(&folder).arg("--message-format=json-render-diagnostics");
    if folder.join("x86_64-target/release").is_dir() {
        command.arg("--quiet");
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    let messages = String::from_utf8(output.stdout)?;
    let found = messages.lines().filter_map(|line| executable(kind, &serde_json::from_str(line).ok()?));
    Ok((found.collect(), output.status.success()))
}

fn executable(kind: &str, message: &Value) -> Option<(String, PathBuf)> {
    let (file, target) = (message.get("executable")?.as_str()?, message.get("target")?);
    (target.pointer("/kind/0")? == kind).then_some((target.get("name")?.as_str()?.to_owned(), file.into()))
}

/// The toolchain's cargo, in `folder`, free of settings that are meant for host builds.
fn cargo(toolchain: &Toolchain, folder: &Path) -> Command {
    let mut command = Command::new(&toolchain.cargo);
    command
        .current_dir(folder)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .stdin(Stdio::null());
    for variable in
        ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTUP_TOOLCHAIN"]
    {
        command.env_remove(variable);
    }
    // Debian's cargo looks for its companions on the PATH; rustc looks there for a linker it has not got
    // itself.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let ours = toolchain.linker_folder.iter().cloned().chain(toolchain.cargo.parent().map(Path::to_owned));
    if let Ok(path) = std::env::join_paths(ours.chain(std::env::split_paths(&path))) {
        command.env("PATH", path);
    }
    command
}

fn is_newer(file: &Path, than: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    matches!((modified(file), modified(than)), (Some(file), Some(than)) if file > than)
}
