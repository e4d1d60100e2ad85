//! Host side of Ringfence: sets a machine up, builds the kernel and its disk images, runs and tests it under
//! QEMU.

mod bench;
mod cli;
mod gdb;
mod guest;
mod image;
mod kernel;
mod minikernel;
mod qemu;
mod run;
mod setup;
#[path = "../../kernel/src/static_address.rs"]
mod static_address;
mod tap;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cli::Command;
use setup::Need;

fn main() -> ExitCode {
    match dispatch() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("run-qemu.sh: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<u8> {
    let mut arguments = std::env::args_os().skip(1);
    if std::env::args_os().nth(1).is_some_and(|word| word == qemu::TETHERED) {
        return Err(qemu::exec_tethered(arguments.skip(1)));
    }
    match cli::parse(&mut arguments)? {
        Command::Run(options) => run::run(&options, None),
        Command::Test { filter, gdb: false } => test::test(&filter),
        Command::Test { filter, gdb: true } => test::debug(&filter),
        Command::Bench { name, http } => bench::bench(name.as_deref(), http),
        Command::Minikernel(options) => minikernel::run(&options, None),
        Command::Cargo { arguments } => kernel::run_cargo(&setup::ensure(Need::Run)?, &arguments),
        Command::Boot { built } => match cli::parse_built(&built)? {
            (elf, _) if !elf.is_file() => bail!("boot: no program {}: cargo calls this", elf.display()),
            (elf, Command::Run(options)) => run::run(&options, Some(elf)),
            (elf, Command::Minikernel(options)) => minikernel::run(&options, Some(elf)),
            (elf, Command::Test { filter, gdb: false }) => test::test_image(&elf, &filter),
            _ => bail!("--gdb is for ./run-qemu.sh test kernel::FILE::TEST"),
        },
    }
}

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ is inside the repository")
}

/// Cargo's target folder: two levels above this program.
fn target() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    program.ancestors().nth(2).map(Path::to_owned).context("xtask runs outside a target folder")
}

/// The folder for what xtask makes, created if missing.
fn work_folder(name: &str) -> Result<PathBuf> {
    let folder = target()?.join("ringfence").join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}
