//! `uefi-image KERNEL IMAGE`: writes a disk image that UEFI firmware boots into KERNEL.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [kernel, image] = arguments.as_slice() else {
        eprintln!("usage: uefi-image KERNEL IMAGE");
        return ExitCode::FAILURE;
    };
    match bootloader::UefiBoot::new(kernel).create_disk_image(image) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("uefi-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}
