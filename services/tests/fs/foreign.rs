//! What disks hold that hold no ext4: made by the tools themselves where they are here, else the magic
//! numbers that their descriptions name.

use crate::disks::MemDisk;
use crate::support::{CACHE, find_tool, noise, run, write};
use futures::executor::block_on;
use ringfence_services::fs::open_first;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// What is said of a disk of these bytes.
fn said(bytes: Vec<u8>) -> String {
    let disk = MemDisk::new(bytes);
    block_on(open_first(&[("disk", &disk)], None, CACHE, &mut |_| {})).err().expect("nothing to serve")
}

/// 1 MiB, and something at a place in it.
fn with(at: usize, magic: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[at..at + magic.len()].copy_from_slice(magic);
    bytes
}

#[test]
fn by_magic_numbers() {
    let cases: [(usize, &[u8], &str); 25] = [
        (0, b"XFSB\0\0\x10\0", "an XFS file system"),
        (65536 + 64, b"_BHRfS_M", "a Btrfs file system"),
        (0, b"LUKS\xba\xbe\0\x02", "LUKS"),
        (1024, &0xf2f5_2010u32.to_le_bytes(), "an F2FS file system"),
        (3, b"NTFS    ", "an NTFS file system"),
        (3, b"EXFAT   ", "an exFAT file system"),
        (54, b"FAT16   ", "a FAT file system"),
        (82, b"FAT32   ", "a FAT file system"),
        (4086, b"SWAPSPACE2", "swap space"),
        (512 + 24, b"LVM2 001", "LVM"),
        (4096, &0xa92b_4efcu32.to_le_bytes(), "RAID"),
        (16384 + 24, b"version\0", "perhaps a ZFS pool"),
        (32769, b"CD001\x01", "an ISO 9660 file system"),
        (0, b"hsqs", "a SquashFS file system"),
        (1024, &0xe0f5_e1e2u32.to_le_bytes(), "an EROFS file system"),
        (0, b"QFI\xfb\0\0\0\x03", "qemu-img convert -O raw"),
        (0, b"KDMV\x01\0\0\0", "qemu-img convert -O raw"),
        (64, &0xbeda_107fu32.to_le_bytes(), "qemu-img convert -O raw"),
        (0, b"conectix", "qemu-img convert -f vpc -O raw"),
        (0, b"vhdxfile", "qemu-img convert -O raw"),
        (0, b"\x1f\x8b\x08", "gunzip"),
        (0, b"\xfd7zXZ\0\0", "unxz"),
        (0, &0xfd2f_b528u32.to_le_bytes(), "unzstd"),
        (0, b"BZh9", "bunzip2"),
        (0, b"PK\x03\x04", "unzip"),
    ];
    for (at, magic, expected) in cases {
        let text = said(with(at, magic));
        assert!(text.contains(expected), "{magic:?}: {text}");
    }
    assert_eq!(said(vec![0; 1 << 20]), "The disk cannot be used: not an ext4 file system.");
    assert!(said(b"# Disk DescriptorFile\nversion=1".repeat(20)).contains("VMDK"));
}

/// What `make` leaves in a file.
fn made_by(tool: &str, make: impl FnOnce(&mut std::process::Command, &Path)) -> Option<Vec<u8>> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    let mut command = find_tool(tool)?;
    make(&mut command, &path);
    run(&mut command);
    Some(fs::read(path).unwrap())
}

#[test]
fn by_tools() {
    let mut seen = 0;
    let mut check = |made: Option<Vec<u8>>, expected: &str| {
        let Some(bytes) = made else { return };
        let text = said(bytes);
        assert!(text.contains(expected), "{expected}: {text}");
        seen += 1;
    };
    for format in ["qcow2", "vmdk", "vdi", "vhdx", "vpc"] {
        let make = |command: &mut std::process::Command, path: &Path| {
            command.args(["create", "-q", "-f", format]).arg(path).arg("4M");
        };
        check(made_by("qemu-img", make), "-O raw");
    }
    for (tool, expected) in [
        ("mkswap", "swap space"),
        ("mkfs.xfs", "XFS"),
        ("mkfs.btrfs", "Btrfs"),
        ("mkfs.vfat", "FAT"),
        ("mkfs.exfat", "exFAT"),
        ("mkfs.f2fs", "F2FS"),
    ] {
        let make = |command: &mut std::process::Command, path: &Path| {
            fs::File::create(path).unwrap().set_len(320 << 20).unwrap();
            command.arg(path);
        };
        check(made_by(tool, make), expected);
    }
    for (tool, suffix, expected) in [
        ("gzip", "gz", "gunzip"),
        ("xz", "xz", "unxz"),
        ("bzip2", "bz2", "bunzip2"),
        ("zstd", "zst", "unzstd"),
    ] {
        let dir = TempDir::new().unwrap();
        write(dir.path(), "file", &noise(1, 20_000));
        let Some(mut command) = find_tool(tool) else { continue };
        run(command.arg(dir.path().join("file")));
        check(Some(fs::read(dir.path().join(format!("file.{suffix}"))).unwrap()), expected);
    }
    assert!(seen > 0, "no tool is here");
}
