//! The Linux guest of the benchmarks: Debian's kernel with Debian's fio, and an init of a few lines.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, work_folder};

/// The package that depends on Debian's current kernel.
const KERNEL_PACKAGE: &str = "linux-image-amd64";
/// The kernel's modules that the guest needs, each after those it depends on.
const MODULES: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];
/// What Linux is started with: nothing that changes how it works.
pub const APPEND: &str = "console=ttyS0 quiet panic=-1";

/// Process 1 of the guest. It prints what the host reads, and ends QEMU as our own guests do: by a byte to
/// port 0xf4.
const INIT: &str = include_str!("init.sh");

/// What fio's jobs have in common. No random map: null-co has no data, and picking blocks without one is
/// quicker.
const JOBS: &str = include_str!("jobs.fio");

/// A kernel with an initial file system, ready to boot.
pub struct Linux {
    /// The decompressed kernel, which QEMU starts as it starts ours, in less time than the compressed one
    /// takes.
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// Makes the guest that does `jobs`, pairs of workload and depth. Installs what it is made with where that is
/// missing, and downloads the kernel the first time.
pub fn prepare(jobs: &[(&str, u64)]) -> Result<Linux> {
    setup::ensure_linux_guest()?;
    let folder = work_folder("linux")?;
    let kernel = folder.join("vmlinux");
    if !kernel.is_file() {
        fetch_kernel(&folder).context("cannot get the Linux kernel")?;
    }
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for name in ["bin", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(name))?;
    }
    add_programs(&root)?;
    for module in MODULES {
        let file = format!("{module}.ko");
        fs::copy(folder.join("modules").join(&file), root.join(&file))
            .with_context(|| format!("no {file}"))?;
    }
    fs::write(root.join("jobs.fio"), format!("{JOBS}{}", jobs.iter().map(job).collect::<Result<String>>()?))?;
    fs::write(root.join("init"), INIT.replace("MODULES", &MODULES.join(" ")))?;
    let initrd = folder.join("initrd");
    shell(&root, "chmod +x init; find . | busybox cpio -o -H newc 2>&1 >../initrd")?;
    Ok(Linux { kernel, initrd })
}

fn job((workload, depth): &(&str, u64)) -> Result<String> {
    let (direction, size) = match *workload {
        "read4k" => ("randread", "4k"),
        "write4k" => ("randwrite", "4k"),
        "read64k" => ("read", "64k"),
        "read1m" => ("read", "1m"),
        other => bail!("there is no workload {other}"),
    };
    Ok(format!("[{workload}-{depth}]\nrw={direction}\nbs={size}\niodepth={depth}\n"))
}

/// Downloads Debian's current kernel and takes out the kernel itself and its virtio modules.
fn fetch_kernel(folder: &Path) -> Result<()> {
    let package =
        setup::dependency(KERNEL_PACKAGE).with_context(|| format!("apt knows no {KERNEL_PACKAGE}"))?;
    eprintln!("run-qemu.sh: downloading {package}, the kernel of the Linux guest (about 70 MB, once)");
    shell(folder, "rm -rf *")?;
    shell(folder, &format!("apt-get -qq -o APT::Sandbox::User=root download {package}"))?;
    shell(
        folder,
        "mkdir package modules; dpkg-deb --fsys-tarfile linux-image-*.deb \
         | tar -x -C package --wildcards './boot/vmlinuz-*' '*/virtio*.ko'; rm linux-image-*.deb; \
         find package -name 'virtio*.ko' -exec mv {} modules/ ';'; mv package/boot/vmlinuz-* vmlinuz",
    )?;
    let image = fs::read(folder.join("vmlinuz"))?;
    const XZ: &[u8] = b"\xfd7zXZ\0";
    let start =
        image.windows(XZ.len()).position(|window| window == XZ).context("it is not compressed with xz")?;
    fs::write(folder.join("vmlinux.xz"), &image[start..])?;
    // What follows the compressed kernel in the image is not xz's.
    shell(folder, "xz -dc --single-stream vmlinux.xz >vmlinux.new; mv vmlinux.new vmlinux")
}

/// Copies busybox and fio to bin/, and the libraries they are linked with to where they are here.
fn add_programs(root: &Path) -> Result<()> {
    for name in ["busybox", "fio"] {
        let program = setup::program(name).with_context(|| format!("there is no {name}"))?;
        fs::copy(&program, root.join("bin").join(name))?;
        // For a static program ldd finds nothing, and fails.
        let output = Command::new("ldd").arg(&program).stderr(Stdio::null()).output()?;
        let libraries = String::from_utf8(output.stdout)?;
        for library in libraries.split_whitespace().filter_map(|word| word.strip_prefix('/')) {
            let copy = root.join(library);
            fs::create_dir_all(copy.parent().context("a library outside any folder")?)?;
            fs::copy(Path::new("/").join(library), copy)?;
        }
    }
    Ok(())
}

/// Runs `script` in `folder`.
fn shell(folder: &Path, script: &str) -> Result<()> {
    let log = folder.with_extension("log");
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(folder).stdin(Stdio::null());
    command.stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
    let status = command.status()?;
    ensure!(status.success(), "`{script}` ended with {status}: {}", fs::read_to_string(&log)?.trim());
    Ok(())
}

/// A line of information with the names of the features, which the guest gives as Linux does: a digit for
/// each bit, bit 0 first. Other lines stay as they are.
pub fn readable(line: &str) -> String {
    match line.rsplit_once(' ') {
        Some((text, digits)) if digits.len() == 64 && digits.bytes().all(|digit| b"01".contains(&digit)) => {
            format!("{text} {}", features(digits))
        }
        _ => line.to_owned(),
    }
}

fn features(digits: &str) -> String {
    // From bit 0 on; one without a name has none here.
    const NAMES: &str = "- SIZE_MAX SEG_MAX - GEOMETRY RO BLK_SIZE - - FLUSH TOPOLOGY CONFIG_WCE MQ DISCARD WRITE_ZEROES - \
        SECURE_ERASE - - - - - - - - - - - INDIRECT_DESC EVENT_IDX - - VERSION_1 ACCESS_PLATFORM RING_PACKED IN_ORDER \
        - - NOTIFICATION_DATA - RING_RESET";
    let set = digits.chars().enumerate().filter(|(_, digit)| *digit == '1');
    let name = |(bit, _)| match NAMES.split(' ').nth(bit) {
        None | Some("-") => format!("bit {bit}"),
        Some(name) => name.to_owned(),
    };
    set.map(name).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_names() {
        let digits = "0010101001110110000000000000110010000000100000000000000000000000";
        let names = "SEG_MAX GEOMETRY BLK_SIZE FLUSH TOPOLOGY CONFIG_WCE DISCARD WRITE_ZEROES INDIRECT_DESC EVENT_IDX \
                     VERSION_1 RING_RESET";
        assert_eq!(readable(&format!("Linux, features {digits}")), format!("Linux, features {names}"));
        assert_eq!(readable("features 0001"), "features 0001");
        assert_eq!(features("0001"), "bit 3");
    }

    #[test]
    fn each_workload_is_a_job() {
        assert_eq!(job(&("write4k", 32)).unwrap(), "[write4k-32]\nrw=randwrite\nbs=4k\niodepth=32\n");
        assert!(job(&("trim", 1)).is_err());
    }
}
