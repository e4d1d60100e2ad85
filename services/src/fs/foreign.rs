//! What a disk without ext4 holds, by its magic numbers, and what helps.

use super::{FsError, PAGE_SIZE, PageCache};
use crate::block::BlockSource;

/// What is not read here.
struct Foreign {
    /// Byte of the disk at which `magic` lies.
    at: u64,
    magic: &'static [u8],
    text: &'static str,
}

macro_rules! foreign {
    ($($at:expr, $magic:expr, $name:expr, $help:expr;)*) => {
        &[$(Foreign { at: $at, magic: $magic, text: concat!($name, ": ", $help) }),*]
    };
}

macro_rules! only_ext {
    () => {
        "only ext2, ext3 and ext4 are read"
    };
}

macro_rules! convert {
    () => {
        "make it raw with `qemu-img convert -O raw IMAGE RAW`"
    };
}

/// In the order in which they are looked for. What has a magic number of two bytes comes last.
const KNOWN: &[Foreign] = foreign! {
    0, b"XFSB", "an XFS file system", only_ext!();
    0x1_0040, b"_BHRfS_M", "a Btrfs file system", only_ext!();
    0, b"LUKS\xba\xbe", "encrypted by LUKS",
        "open it with `cryptsetup open` elsewhere, and copy what is in it to an image";
    1024, b"\x10\x20\xf5\xf2", "an F2FS file system", only_ext!();
    3, b"NTFS    ", "an NTFS file system", only_ext!();
    3, b"EXFAT   ", "an exFAT file system", only_ext!();
    54, b"FAT12   ", "a FAT file system", only_ext!();
    54, b"FAT16   ", "a FAT file system", only_ext!();
    82, b"FAT32   ", "a FAT file system", only_ext!();
    4086, b"SWAPSPACE2", "swap space", "it holds no files";
    4086, b"SWAP-SPACE", "swap space", "it holds no files";
    536, b"LVM2 001", "a physical volume of LVM", "copy a logical volume to an image";
    4096, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID", "copy what is in the RAID to an image";
    // Of a pool's label: the name of the first pair, behind the heads of the list and of the pair.
    0x4018, b"version\0", "perhaps a ZFS pool", only_ext!();
    0x8001, b"CD001", "an ISO 9660 file system", only_ext!();
    0, b"hsqs", "a SquashFS file system", only_ext!();
    1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system", only_ext!();
    0, b"QFI\xfb", "a qcow2 image seen as a raw one", convert!();
    0, b"KDMV", "a VMDK image seen as a raw one", convert!();
    0, b"COWD", "a VMDK image seen as a raw one", convert!();
    0, b"# Disk DescriptorFile", "the description of a VMDK image",
        "convert it with `qemu-img convert -O raw IMAGE RAW`, with its other files beside it";
    64, b"\x7f\x10\xda\xbe", "a VDI image seen as a raw one", convert!();
    0, b"conectix", "a VHD image seen as a raw one",
        "make it raw with `qemu-img convert -f vpc -O raw IMAGE RAW`";
    0, b"vhdxfile", "a VHDX image seen as a raw one", convert!();
    0, b"\x3a\xff\x26\xed", "a sparse Android image", "make it raw with `simg2img IMAGE RAW`";
    0, b"\xfd7zXZ\0", "compressed by xz", "decompress it with `unxz`";
    0, b"\x28\xb5\x2f\xfd", "compressed by Zstandard", "decompress it with `unzstd`";
    0, b"\x04\x22\x4d\x18", "compressed by LZ4", "decompress it with `unlz4`";
    0, b"PK\x03\x04", "a ZIP file", "unpack it with `unzip`";
    0, b"BZh", "compressed by bzip2", "decompress it with `bunzip2`";
    0, b"\x1f\x8b", "compressed by gzip", "decompress it with `gunzip`";
};

/// Says of a disk on which there is no ext4 what there is: [`FsError::Foreign`], or still
/// [`FsError::NotExt4`], or that it cannot be read.
pub async fn recognise<B: BlockSource>(disk: &B) -> FsError {
    let cache = PageCache::new(disk, 8 * PAGE_SIZE);
    for known in KNOWN {
        let mut bytes = [0; 24];
        let Some(bytes) = bytes.get_mut(..known.magic.len()) else { continue };
        let end = known.at.saturating_add(bytes.len() as u64);
        if end > cache.size_bytes() {
            continue;
        }
        match cache.read(known.at, bytes, 0).await {
            Ok(_) if bytes == known.magic => return FsError::Foreign(known.text),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    FsError::NotExt4
}
