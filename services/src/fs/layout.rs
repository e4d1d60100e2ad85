//! The on-disk structures of ext4, field by field (`Documentation/filesystems/ext4` of Linux; little-endian),
//! and the checksums over them. Only what a reader needs is named.

use crc::{Algorithm, CRC_16_MODBUS, CRC_32_ISCSI, Crc, Table};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The super block, 1024 bytes at byte 1024 of the disk.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SuperBlock {
    pub inodes_count: U32,
    pub blocks_count_lo: U32,
    _free: [U32; 3],
    pub first_data_block: U32,
    pub log_block_size: U32,
    pub log_cluster_size: U32,
    pub blocks_per_group: U32,
    pub clusters_per_group: U32,
    pub inodes_per_group: U32,
    _mount_times: [u8; 12],
    pub magic: U16,
    _check: [u8; 18],
    pub rev_level: U32,
    _defaults: [u8; 8],
    pub inode_size: U16,
    _block_group_nr: U16,
    pub feature_compat: U32,
    pub feature_incompat: U32,
    pub feature_ro_compat: U32,
    pub uuid: [u8; 16],
    pub volume_name: [u8; 16],
    _last_mounted: [u8; 64],
    _prealloc: [u8; 6],
    pub reserved_gdt_blocks: U16,
    _journal: [u8; 28],
    pub hash_seed: [U32; 4],
    _default_hash: [u8; 2],
    pub desc_size: U16,
    _default_mount_opts: U32,
    pub first_meta_bg: U32,
    _mkfs_time_and_journal: [u8; 72],
    pub blocks_count_hi: U32,
    _reserved: [u8; 12],
    pub flags: U32,
    _raid_to_flex: [u8; 17],
    pub checksum_type: u8,
    _encryption_to_quota: [u8; 214],
    pub backup_bgs: [U32; 2],
    _encrypt_and_quota: [u8; 28],
    pub checksum_seed: U32,
    _more: [u8; 392],
    pub checksum: U32,
}

const _: () =
    assert!(size_of::<SuperBlock>() == 1024 && core::mem::offset_of!(SuperBlock, backup_bgs) == 0x24c);

/// The part of a group descriptor that every format has.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupDescriptor {
    pub block_bitmap_lo: U32,
    pub inode_bitmap_lo: U32,
    pub inode_table_lo: U32,
    _counts: [u8; 18],
    pub checksum: U16,
}

/// Where [`GroupDescriptor::checksum`] lies.
pub const GROUP_CHECKSUM: usize = 0x1e;

/// The high halves of the block numbers, with the 64bit feature.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupDescriptorHigh {
    pub block_bitmap: U32,
    pub inode_bitmap: U32,
    pub inode_table: U32,
}

/// Where [`GroupDescriptorHigh`] lies.
pub const GROUP_HIGH: usize = 0x20;

/// The part of an inode that every format has.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Inode {
    pub mode: U16,
    _uid: U16,
    pub size_lo: U32,
    _atime_ctime: [U32; 2],
    pub mtime: U32,
    _dtime: U32,
    _gid: U16,
    pub links_count: U16,
    _blocks_lo: U32,
    pub flags: U32,
    _version: U32,
    pub block: [u8; 60],
    pub generation: U32,
    _file_acl_lo: U32,
    pub size_high: U32,
    _faddr: U32,
    _osd2: [u8; 8],
    pub checksum_lo: U16,
    _reserved: U16,
}

/// What follows in inodes larger than 128 bytes, as far as `extra_isize` says.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InodeExtra {
    pub extra_isize: U16,
    pub checksum_hi: U16,
    _ctime_extra: U32,
    pub mtime_extra: U32,
}

/// Where [`Inode::checksum_lo`] lies.
pub const INODE_CHECKSUM_LO: usize = 0x7c;
/// Where [`InodeExtra::checksum_hi`] lies.
pub const INODE_CHECKSUM_HI: usize = 0x82;
/// Bytes of an inode before [`InodeExtra`].
pub const INODE_BASE_SIZE: usize = size_of::<Inode>();

/// The head of each node of an extent tree; `entries` × [`ExtentEntry`] follow.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtentHeader {
    pub magic: U16,
    pub entries: U16,
    pub max: U16,
    pub depth: U16,
    _generation: U32,
}

/// An entry of an extent tree: in a leaf an extent (length, start high, start low), above it an index (child
/// low, child high).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtentEntry {
    pub block: U32,
    payload: [u8; 8],
}

impl ExtentEntry {
    /// Length of an extent in blocks; more than 32,768: that much more, and not written yet.
    pub fn raw_len(&self) -> u16 {
        let [a, b, ..] = self.payload;
        u16::from_le_bytes([a, b])
    }

    /// First block of an extent.
    pub fn physical(&self) -> u64 {
        let [_, _, c, d, e, f, g, h] = self.payload;
        u64::from_le_bytes([e, f, g, h, c, d, 0, 0])
    }

    /// Block of the child node.
    pub fn child(&self) -> u64 {
        let [a, b, c, d, e, f, ..] = self.payload;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

/// The head of a directory entry; the name follows.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirEntryHead {
    pub inode: U32,
    pub rec_len: U16,
    pub name_len: u8,
    pub file_type: u8,
}

/// The last 12 bytes of a directory block with a checksum: an entry without a name.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirEntryTail {
    pub head: DirEntryHead,
    pub checksum: U32,
}

/// An extended attribute stored in an inode; the name follows.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct XattrEntry {
    pub name_len: u8,
    pub name_index: u8,
    pub value_offs: U16,
    pub value_inum: U32,
    pub value_size: U32,
    _hash: U32,
}

/// ext4's CRC-32C is not inverted at the end, so that sums can be continued.
static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&Algorithm { xorout: 0, ..CRC_32_ISCSI });
static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// The value that CRC-32C starts with where nothing else is said.
pub const CRC_START: u32 = u32::MAX;

/// Continues the CRC-32C `sum` over `parts`.
pub fn crc32c(sum: u32, parts: &[&[u8]]) -> u32 {
    // The crate takes the start value as the polynomial's mirror image.
    let mut digest = CRC32C.digest_with_initial(sum.reverse_bits());
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize()
}

/// The CRC-16 of the older group descriptor checksum.
pub fn crc16(parts: &[&[u8]]) -> u16 {
    let mut digest = CRC16.digest();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize()
}
