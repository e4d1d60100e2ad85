//! Set-up: finds what a command needs on this machine and installs what is missing, or says how to.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// The pinned nightly for those who have rustup: `rustc 1.97.0-nightly (e50aa6fba 2026-05-19)`.
pub const NIGHTLY: &str = "nightly-2026-05-20";
/// The oldest compiler that reads the kernel's target file.
const OLDEST_MINOR: u32 = 96;

/// A compiler that has the standard library's sources, which the kernel's `-Zbuild-std` needs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    /// A folder with a `rust-lld` in it, or `None` if rustc finds its own.
    pub linker_folder: Option<PathBuf>,
}

/// UEFI firmware: its code, and the variable store that belongs to it.
#[derive(Clone, Debug)]
pub struct Firmware {
    pub code: PathBuf,
    pub variables: PathBuf,
}

/// Where distributions keep UEFI firmware, as (code, variables).
const FIRMWARE: [(&str, &str); 5] = [
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
];

/// How much of the set-up a command needs; each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Need {
    Run,
    Uefi,
    Test,
}

/// A program, the Debian package that has it, what it is for, and the first command that needs it.
const PROGRAMS: [(&str, &str, &str, Need); 11] = [
    ("qemu-system-x86_64", "qemu-system-x86", "runs the kernel", Need::Run),
    ("mkfs.ext4", "e2fsprogs", "makes ext4 disk images", Need::Run),
    ("qemu-img", "qemu-utils", "makes qcow2 disk images", Need::Test),
    ("sfdisk", "fdisk", "partitions disk images", Need::Test),
    ("curl", "curl", "plays the HTTP client in tests", Need::Test),
    ("wget", "wget", "mirrors a folder in a test", Need::Test),
    ("aria2c", "aria2", "takes a file in parts in a test", Need::Test),
    ("python3", "python3", "speaks HTTP in a test", Need::Test),
    ("ip", "iproute2", "sets up the network of the ping test", Need::Test),
    ("ping", "iputils-ping", "pings the guest in a test", Need::Test),
    ("unshare", "util-linux", "keeps the ping test's network apart", Need::Test),
];

/// Makes sure that everything for `need` is there. Installs what is missing where that is allowed.
pub fn ensure(need: Need) -> Result<Toolchain> {
    let mut missing = missing_programs(need);
    if need >= Need::Uefi && firmware().is_none() {
        missing.push(("ovmf", "UEFI firmware, for --uefi"));
    }
    if toolchain().is_none() && apt_has("rust-web-src") {
        missing
            .push(("rustc-web", "a compiler that comes with the library sources the kernel is built from"));
        missing.push(("cargo-web", "the build tool that goes with it"));
        missing.push(("rust-web-src", "the library sources themselves"));
    }
    if lld().is_none() {
        missing.push(("lld", "links the kernel"));
    }
    install_packages(&missing)?;
    if need == Need::Test
        && program("rustup").is_some()
        && !(has_subcommand("clippy") && has_subcommand("fmt"))
    {
        rustup(&["component", "add", "clippy", "rustfmt"], "clippy and rustfmt check the code in tests")?;
    }
    if toolchain().is_none() {
        let install = ["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"];
        rustup(
            &install,
            "the kernel is built from the standard library's sources, which no compiler here has",
        )?;
    }
    match toolchain() {
        Some(toolchain) => Ok(toolchain),
        None => {
            bail!("no compiler from 1.{OLDEST_MINOR} on with the library's sources was found after set-up")
        }
    }
}

/// What makes the Linux guests that the benchmarks compare with: as in [`PROGRAMS`], but only they need it.
const LINUX_GUEST: [(&str, &str, &str); 5] = [
    ("fio", "fio", "measures disks in a Linux guest of the benchmarks"),
    ("busybox", "busybox-static", "starts programs in that guest"),
    ("dpkg-deb", "dpkg", "unpacks the kernel of that guest"),
    ("tar", "tar", "unpacks the kernel of that guest"),
    ("xz", "xz-utils", "decompresses the kernel of that guest"),
];

/// What the benchmark of web servers needs.
const WEB_BENCHMARK: [(&str, &str, &str); 4] = [
    ("ip", "iproute2", "sets up the benchmark's network"),
    ("unshare", "util-linux", "keeps the benchmark's network apart"),
    ("cc", "gcc", "builds the plugin that counts instructions"),
    ("nm", "binutils", "names the functions that they are in"),
];

/// Makes sure that there is what the benchmarks' Linux guests are made with. Their kernel is Debian's.
pub fn ensure_linux_guest() -> Result<()> {
    if program("apt-get").is_none() {
        bail!("the Linux guest is made of Debian packages, and there is no apt-get here");
    }
    ensure_programs(&LINUX_GUEST)
}

/// Makes sure that there is what the benchmark of web servers needs.
pub fn ensure_web_benchmark() -> Result<()> {
    ensure_programs(&WEB_BENCHMARK)
}

/// Makes sure that there is a browser.
pub fn ensure_browser() -> Result<()> {
    ensure_programs(&[("chromium", "chromium", "shows the dashboard in a test")])
}

fn ensure_programs(programs: &[(&'static str, &'static str, &'static str)]) -> Result<()> {
    let missing = programs.iter().filter(|(name, ..)| program(name).is_none());
    install_packages(&missing.map(|(_, package, why)| (*package, *why)).collect::<Vec<_>>())
}

/// Makes sure that there is a C++ compiler, which libFuzzer is built with.
pub fn ensure_cxx() -> Result<()> {
    if ["c++", "g++", "clang++"].into_iter().any(|name| program(name).is_some()) {
        return Ok(());
    }
    if !is_root() || program("apt-get").is_none() {
        bail!("there is no C++ compiler here (Debian's package g++), which libFuzzer is built with");
    }
    install_packages(&[("g++", "builds libFuzzer")])
}

/// REDbot, which judges the answers of web servers, and its rules, as of a day: newer ones find other things.
const REDBOT: [&str; 2] = ["redbot==2.7.1", "httplint==2026.10.4"];

/// Makes sure that there is REDbot, in an environment of its own for Python; returns the program.
pub fn ensure_redbot() -> Result<PathBuf> {
    let folder = crate::work_folder(&REDBOT[0].replace("==", "-"))?;
    let redbot = folder.join("bin/redbot");
    if redbot.is_file() {
        return Ok(redbot);
    }
    if output(Command::new("python3").args(["-c", "import ensurepip"])).is_none() {
        install_packages(&[("python3-venv", "keeps REDbot apart, which judges HTTP in a test")])?;
    }
    eprintln!("run-qemu.sh: installing {} with pip, in {}", REDBOT.join(" and "), folder.display());
    let run = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(std::io::stderr()).status()
    };
    let made = run(Path::new("python3"), &["-m", "venv", &folder.to_string_lossy()])?.success();
    let pip = folder.join("bin/pip");
    if made
        && run(&pip, &[&["install", "-q", "--disable-pip-version-check"][..], &REDBOT].concat())?.success()
    {
        return Ok(redbot);
    }
    bail!("pip could not install {}: its own words are above", REDBOT.join(" and "))
}

/// What rustc builds for if it is not told.
pub fn host_triple() -> Option<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    version.lines().find_map(|line| Some(line.strip_prefix("host: ")?.to_owned()))
}

/// The first package that `package` depends on.
pub fn dependency(package: &str) -> Option<String> {
    if is_root() {
        apt_get(&["update"]); // old lists may name a version that the archive no longer has
    }
    let depends = output(Command::new("apt-cache").args(["depends", package]))?;
    depends.lines().find_map(|line| Some(line.trim().strip_prefix("Depends: ")?.to_owned()))
}

/// The first program of this name on the PATH, or where only root's PATH leads.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Whether `cargo NAME` works.
pub fn has_subcommand(name: &str) -> bool {
    output(Command::new("cargo").args([name, "--version"])).is_some()
}

/// The UEFI firmware of this machine.
pub fn firmware() -> Option<Firmware> {
    let found =
        FIRMWARE.iter().find(|(code, variables)| Path::new(code).is_file() && Path::new(variables).is_file());
    found.map(|(code, variables)| Firmware { code: code.into(), variables: variables.into() })
}

fn missing_programs(need: Need) -> Vec<(&'static str, &'static str)> {
    let needed = PROGRAMS.iter().filter(|(name, _, _, from)| *from <= need && program(name).is_none());
    needed.map(|(_, package, why, _)| (*package, *why)).collect()
}

// --- The kernel's compiler ---

/// The compiler to build the kernel with: the pinned nightly, another nightly, then whatever else has library
/// sources.
pub fn toolchain() -> Option<Toolchain> {
    let found = rustup_sysroots().into_iter().find_map(|sysroot| usable(&sysroot.join("bin"), &sysroot));
    found.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).filter(|folder| folder.join("rustc").is_file()).find_map(|folder| {
            if folder.join("rustup").is_file() {
                return None; // rustup's stand-ins: their toolchains were looked at above
            }
            usable(
                &folder,
                Path::new(output(Command::new(folder.join("rustc")).args(["--print", "sysroot"]))?.trim()),
            )
        })
    })
}

/// The one target whose sanitizer the tests use.
pub const TSAN_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The `rustc` of a nightly that has ThreadSanitizer for this machine: the pinned one, or another.
pub fn thread_sanitizer() -> Option<PathBuf> {
    let nightlies = rustup_sysroots().into_iter().filter(|sysroot| {
        let name = sysroot.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let runtime = format!("lib/rustlib/{TSAN_TARGET}/lib/librustc-nightly_rt.tsan.a");
        name.starts_with("nightly") && sysroot.join(runtime).is_file()
    });
    let mut compilers = nightlies.map(|sysroot| sysroot.join("bin/rustc"));
    compilers.find(|_| cfg!(all(target_arch = "x86_64", target_os = "linux")))
}

/// The folder that `variable` names, else `name` in the user's own.
pub fn home(variable: &str, name: &str) -> PathBuf {
    let named = std::env::var_os(variable).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(name))).unwrap_or_default()
}

fn rustup_sysroots() -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(home("RUSTUP_HOME", ".rustup").join("toolchains")).into_iter().flatten().flatten();
    let mut sysroots: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    sysroots.sort_by_key(|sysroot| {
        let name = sysroot.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let nightly = name.strip_prefix("nightly-");
        let dated = nightly.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
        (!name.starts_with(NIGHTLY), nightly.is_none(), dated, std::cmp::Reverse(name))
    });
    sysroots
}

fn usable(programs: &Path, sysroot: &Path) -> Option<Toolchain> {
    let (cargo, rustc) = (programs.join("cargo"), programs.join("rustc"));
    let sources = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !(cargo.is_file() && rustc.is_file() && sources.is_file()) {
        return None;
    }
    let version = output(Command::new(&rustc).arg("--version"))?;
    let minor: u32 = version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()?;
    let own_linker = rust_lld(sysroot).is_some();
    let linker_folder = if own_linker { None } else { lld().and_then(|lld| linker_folder(&lld)) };
    (minor >= OLDEST_MINOR).then_some(Toolchain { cargo, rustc, linker_folder })
}

/// The LLD that comes with a rustup toolchain.
fn rust_lld(sysroot: &Path) -> Option<PathBuf> {
    let targets = std::fs::read_dir(sysroot.join("lib/rustlib")).ok()?.flatten();
    targets.map(|target| target.path().join("bin/rust-lld")).find(|file| file.is_file())
}

/// An LLD: the one of any rustup toolchain, or the system's.
fn lld() -> Option<PathBuf> {
    let ours = rustup_sysroots().iter().find_map(|sysroot| rust_lld(sysroot));
    ours.or_else(|| ["rust-lld", "lld", "ld.lld"].into_iter().find_map(program))
}

/// A folder where `lld` goes by the name that rustc looks for.
fn linker_folder(lld: &Path) -> Option<PathBuf> {
    let folder = crate::work_folder("bin").ok()?;
    let link = folder.join("rust-lld");
    if std::fs::read_link(&link).ok().as_deref() != Some(lld) {
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(lld, &link).ok()?;
    }
    Some(folder)
}

// --- Installing ---

fn install_packages(missing: &[(&str, &str)]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    let reasons: Vec<String> = missing.iter().map(|(package, why)| format!("{package} ({why})")).collect();
    if program("apt-get").is_none() {
        bail!("missing here, please install them (the names are Debian's): {}", reasons.join(", "));
    }
    let install = ["install", "-y", "--no-install-recommends"];
    if !is_root() {
        bail!(
            "missing here: {}; only root may install them. Run: sudo apt-get update && sudo apt-get {} {}",
            reasons.join(", "),
            install.join(" "),
            packages.join(" ")
        );
    }
    eprintln!("run-qemu.sh: installing with apt-get, as this is missing here:");
    reasons.iter().for_each(|reason| eprintln!("  {reason}"));
    apt_get(&["update"]); // may fail where the lists are there already: the installation tells
    if apt_get(&[&install[..], &["--no-remove"], &packages].concat()) {
        return Ok(());
    }
    let replaced = foreign_qemu_packages();
    if !replaced.is_empty() {
        eprintln!(
            "run-qemu.sh: QEMU packages from another release are in the way of this one's: replacing them with {}",
            replaced.join(", ")
        );
        let replaced: Vec<&str> = replaced.iter().map(String::as_str).collect();
        if apt_get(&[&install[..], &["--allow-downgrades"], &replaced, &packages].concat()) {
            return Ok(());
        }
    }
    bail!("apt-get could not install {}: its own words are above", packages.join(" "))
}

/// Installed QEMU packages that this machine's archive does not have, as `name=version` of what it has
/// instead.
fn foreign_qemu_packages() -> Vec<String> {
    let list = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${Version}\n", "qemu-*"])
        .stderr(Stdio::null())
        .output();
    let list = list.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let installed = list.lines().filter_map(|line| line.trim().split_once(' '));
    installed
        .filter_map(|(name, version)| {
            let offers = output(Command::new("apt-cache").args(["madison", name]))?;
            let mut offered = offers.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
            let newest = offered.next()?;
            (newest != version && !offered.any(|offer| offer == version)).then(|| format!("{name}={newest}"))
        })
        .collect()
}

fn apt_get(arguments: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    // What apt says is for the person at the terminal, not part of what the guest prints.
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    command.status().is_ok_and(|status| status.success())
}

/// Whether apt could install `package`. Without any package lists, and no right to fetch them, Debian is
/// trusted to.
fn apt_has(package: &str) -> bool {
    let candidate = |package| {
        let policy = output(Command::new("apt-cache").args(["policy", package])).unwrap_or_default();
        policy.contains("Candidate:") && !policy.contains("Candidate: (none)")
    };
    let debian =
        || std::fs::read_to_string("/etc/os-release").is_ok_and(|text| text.contains("\nID=debian\n"));
    program("apt-get").is_some()
        && (candidate(package)
            || is_root() && apt_get(&["update"]) && candidate(package)
            || !is_root() && !candidate("qemu-system-x86") && debian())
}

fn rustup(arguments: &[&str], why: &str) -> Result<()> {
    let command_line = format!("rustup {}", arguments.join(" "));
    let Some(rustup) = program("rustup") else {
        bail!("{why}: install rustup (https://rustup.rs), then run: {command_line}");
    };
    eprintln!("run-qemu.sh: {why}: {command_line}");
    if Command::new(rustup).args(arguments).stdin(Stdio::null()).stdout(std::io::stderr()).status()?.success()
    {
        return Ok(());
    }
    bail!(
        "{why}, and rustup could not install it. With a network that reaches its server, run: {command_line}"
    )
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
