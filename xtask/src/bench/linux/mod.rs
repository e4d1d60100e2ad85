//! The Linux guests of the benchmarks: Debian's kernel with Debian's fio or nginx, and an init of a few
//! lines.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, work_folder};

/// The package that depends on Debian's current kernel.
const KERNEL_PACKAGE: &str = "linux-image-amd64";
/// The kernel's modules that a guest with a disk needs, each after those it depends on.
const DISK: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];
/// What it needs besides to serve files.
const FILES: [&str; 9] = [
    "failover",
    "net_failover",
    "virtio_net",
    "crc16",
    "crc32c_generic",
    "crc32c-intel",
    "mbcache",
    "jbd2",
    "ext4",
];
/// What Linux is started with: nothing that changes how it works.
pub const APPEND: &str = "console=ttyS0 quiet panic=-1";

/// How process 1 of each guest begins. It prints what the host reads.
const INIT: &str = include_str!("init.sh");
/// How it goes on with fio, and ends QEMU as our own guests do: by a byte to port 0xf4.
const FIO: &str = include_str!("fio.sh");
/// How it goes on with nginx.
const NGINX: &str = include_str!("nginx.sh");

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
pub fn with_fio(jobs: &[(&str, u64)]) -> Result<Linux> {
    setup::ensure_linux_guest()?;
    let jobs = format!("{JOBS}{}", jobs.iter().map(job).collect::<Result<String>>()?);
    let fio = setup::program("fio").context("there is no fio")?;
    prepare("fio", &fio, &DISK, FIO, &[("jobs.fio", &jobs)])
}

/// Makes the guest that serves its disk over HTTP at `address`, with the same preparations.
pub fn with_nginx(address: Ipv4Addr) -> Result<Linux> {
    setup::ensure_linux_guest()?;
    let folder = work_folder("nginx")?;
    let nginx = folder.join("usr/sbin/nginx");
    if !nginx.is_file() {
        eprintln!("run-qemu.sh: downloading nginx, for the Linux guest");
        shell(&folder, "rm -rf *; apt-get -qq -o APT::Sandbox::User=root download nginx")?;
        shell(&folder, "dpkg-deb -x nginx_*.deb .").context("cannot get nginx")?;
    }
    let files = [
        ("nginx.conf", include_str!("nginx.conf")),
        ("etc/passwd", "root:x:0:0::/:/bin/false\n"),
        ("etc/group", "root:x:0:\n"),
        ("disk/empty", ""),
        ("var/lib/nginx/empty", ""),
        ("var/log/nginx/empty", ""),
    ];
    let init = NGINX.replace("ADDRESS", &address.to_string());
    prepare("nginx", &nginx, &[&DISK[..], &FILES].concat(), &init, &files)
}

/// Makes a guest with `program`, called `name`, and `files`, whose process 1 does `script` when it has loaded
/// `modules`.
fn prepare(
    name: &str,
    program: &Path,
    modules: &[&str],
    script: &str,
    files: &[(&str, &str)],
) -> Result<Linux> {
    let folder = work_folder("linux")?;
    let kernel = folder.join("vmlinux");
    let module = |name: &str| folder.join(format!("modules/{name}.ko"));
    if !(kernel.is_file() && modules.iter().all(|name| module(name).is_file())) {
        fetch_kernel(&folder).context("cannot get the Linux kernel")?;
    }
    let root = folder.join(name);
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for name in ["bin", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(name))?;
    }
    add_program(&root, "busybox", &setup::program("busybox").context("there is no busybox")?)?;
    add_program(&root, name, program)?;
    for name in modules {
        fs::copy(module(name), root.join(format!("{name}.ko"))).with_context(|| format!("no {name}.ko"))?;
    }
    for (name, text) in files {
        let file = root.join(name);
        fs::create_dir_all(file.parent().context("a file outside any folder")?)?;
        fs::write(file, text)?;
    }
    fs::write(root.join("init"), INIT.replace("MODULES", &modules.join(" ")) + script)?;
    let initrd = folder.join(format!("{name}.initrd"));
    shell(&root, &format!("chmod +x init; find . | busybox cpio -o -H newc 2>&1 >../{name}.initrd"))?;
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
    let modules = DISK.iter().chain(&FILES).map(|name| format!("'*/{name}.ko' "));
    shell(
        folder,
        &"mkdir package modules; dpkg-deb --fsys-tarfile linux-image-*.deb \
         | tar -x -C package --wildcards './boot/vmlinuz-*' NAMES; rm linux-image-*.deb; \
         find package -name '*.ko' -exec mv {} modules/ ';'; mv package/boot/vmlinuz-* vmlinuz"
            .replace("NAMES", &modules.collect::<String>()),
    )?;
    let image = fs::read(folder.join("vmlinuz"))?;
    const XZ: &[u8] = b"\xfd7zXZ\0";
    let start =
        image.windows(XZ.len()).position(|window| window == XZ).context("it is not compressed with xz")?;
    fs::write(folder.join("vmlinux.xz"), &image[start..])?;
    // What follows the compressed kernel in the image is not xz's.
    shell(folder, "xz -dc --single-stream vmlinux.xz >vmlinux.new; mv vmlinux.new vmlinux")
}

/// Copies `program` to bin/, called `name` there, and the libraries it is linked with to where they are here.
fn add_program(root: &Path, name: &str, program: &Path) -> Result<()> {
    fs::copy(program, root.join("bin").join(name))?;
    // For a static program ldd finds nothing, and fails.
    let output = Command::new("ldd").arg(program).stderr(Stdio::null()).output()?;
    let libraries = String::from_utf8(output.stdout)?;
    if let Some(line) = libraries.lines().find(|line| line.contains("not found")) {
        bail!("{name} needs a library that is not here: {}", line.trim());
    }
    for library in libraries.split_whitespace().filter_map(|word| word.strip_prefix('/')) {
        let copy = root.join(library);
        fs::create_dir_all(copy.parent().context("a library outside any folder")?)?;
        fs::copy(Path::new("/").join(library), copy)?;
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
            format!("{text} {}", features(digits, if text.contains("network") { NETWORK } else { BLOCK }))
        }
        _ => line.to_owned(),
    }
}

/// From bit 0 on; one without a name has none here.
const BLOCK: &str = "- SIZE_MAX SEG_MAX - GEOMETRY RO BLK_SIZE - - FLUSH TOPOLOGY CONFIG_WCE MQ DISCARD \
    WRITE_ZEROES - SECURE_ERASE - - - - - - -";
const NETWORK: &str = "CSUM GUEST_CSUM CTRL_GUEST_OFFLOADS MTU - MAC - GUEST_TSO4 GUEST_TSO6 GUEST_ECN \
    GUEST_UFO HOST_TSO4 HOST_TSO6 HOST_ECN HOST_UFO MRG_RXBUF STATUS CTRL_VQ CTRL_RX CTRL_VLAN \
    CTRL_RX_EXTRA GUEST_ANNOUNCE MQ CTRL_MAC_ADDR";
/// From bit 24 on.
const ALL: &str = "- - - - INDIRECT_DESC EVENT_IDX - - VERSION_1 ACCESS_PLATFORM RING_PACKED IN_ORDER - - \
    NOTIFICATION_DATA - RING_RESET";

/// The names of the bits that are set, those below 24 after `own`.
fn features(digits: &str, own: &str) -> String {
    let names: Vec<_> = own.split(' ').chain(ALL.split(' ')).collect();
    let set = digits.chars().enumerate().filter(|(_, digit)| *digit == '1');
    let name = |(bit, _)| match names.get(bit) {
        None | Some(&"-") => format!("bit {bit}"),
        Some(name) => (*name).to_owned(),
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
        assert_eq!(features("0001", BLOCK), "bit 3");
        let digits = "1110010111111111111101010000110010000000100000000000000000000000";
        let names = readable(&format!("network features {digits}"));
        assert!(
            names.starts_with(
                "network features CSUM GUEST_CSUM CTRL_GUEST_OFFLOADS MAC GUEST_TSO4 GUEST_TSO6"
            )
        );
        assert!(names.ends_with("GUEST_ANNOUNCE CTRL_MAC_ADDR INDIRECT_DESC EVENT_IDX VERSION_1 RING_RESET"));
    }

    #[test]
    fn each_workload_is_a_job() {
        assert_eq!(job(&("write4k", 32)).unwrap(), "[write4k-32]\nrw=randwrite\nbs=4k\niodepth=32\n");
        assert!(job(&("trim", 1)).is_err());
    }
}
