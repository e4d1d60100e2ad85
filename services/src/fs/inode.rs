//! Inodes: what a path leads to.

use super::find::Budget;
use super::layout::{
    INODE_BASE_SIZE, INODE_CHECKSUM_HI, INODE_CHECKSUM_LO, Inode, InodeExtra, XattrEntry, crc32c,
};
use super::read_ahead::Cursor;
use super::super_block::Geometry;
use super::{FsError, PATH_MAX, corrupt, zeroed};
use crate::text::{self, NoMemory};
use alloc::vec::Vec;
use zerocopy::FromBytes;

/// Inode number of the root folder.
pub const ROOT_INODE: u32 = 2;

const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_INDEX: u32 = 0x1000;
pub(super) const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_EA_INODE: u32 = 0x20_0000;
pub(super) const FLAG_INLINE_DATA: u32 = 0x1000_0000;
pub(super) const FLAG_CASEFOLD: u32 = 0x4000_0000;

/// What kind of thing an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link. [`super::FileSystem::lookup`] follows them and never returns one.
    Symlink,
    /// A device, pipe or socket.
    Other,
}

impl Kind {
    /// From the type byte of a directory entry.
    pub(super) fn from_entry(file_type: u8) -> Option<Self> {
        match file_type {
            1 => Some(Self::File),
            2 => Some(Self::Directory),
            7 => Some(Self::Symlink),
            3..=6 => Some(Self::Other),
            _ => None,
        }
    }

    fn from_mode(mode: u16) -> Self {
        match mode >> 12 {
            0x8 => Self::File,
            0x4 => Self::Directory,
            0xa => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// Where the bytes of an inode are.
pub(super) enum Content {
    /// In the inode itself.
    Inline(Vec<u8>),
    /// In blocks found through the extent tree with this root.
    Extents([u8; 60]),
    /// In blocks found through these direct and indirect block numbers.
    BlockMap([u8; 60]),
}

/// What is known of a file or folder before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Inode number: tells files of one disk apart.
    pub inode: u32,
    /// What it is.
    pub kind: Kind,
    /// Size in bytes.
    pub size: u64,
    /// When the contents last changed, in seconds since 1970-01-01 00:00 UTC.
    pub mtime: i64,
}

/// An opened file or folder. It remembers where the last read was, so that sequential reading is cheap: give
/// each reader its own.
pub struct Node {
    metadata: Metadata,
    pub(super) content: Content,
    /// The directory has a hash tree.
    pub(super) is_indexed: bool,
    /// Names in the directory are the same whatever their case.
    pub(super) ignores_case: bool,
    generation: [u8; 4],
    pub(super) cursor: Cursor,
    /// What may be read of a folder without finding anything.
    pub(super) budget: Budget,
}

impl Node {
    /// What is known of it.
    pub fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// The same for another reader.
    pub(super) fn reopen(&self) -> Result<Self, NoMemory> {
        let content = match &self.content {
            Content::Inline(data) => Content::Inline(text::bytes(data)?),
            Content::Extents(root) => Content::Extents(*root),
            Content::BlockMap(root) => Content::BlockMap(*root),
        };
        let Self { metadata, is_indexed, ignores_case, generation, .. } = *self;
        let (cursor, budget) = (Cursor::default(), Budget::default());
        Ok(Self { metadata, content, is_indexed, ignores_case, generation, cursor, budget })
    }

    /// Bytes of its contents that are in the inode itself.
    pub(super) fn inline_len(&self) -> usize {
        if let Content::Inline(data) = &self.content { data.len() } else { 0 }
    }

    /// How many blocks of the file from one on are lost, if that one is: all of a hole, or one.
    pub(super) fn blocks_lost_at(&self, block: u64) -> u64 {
        let run = self.cursor.run.get().and_then(|run| run.from(block));
        run.filter(|run| run.physical.is_none()).map_or(1, |run| run.blocks)
    }

    /// Start value of the checksums over this inode's blocks, where there are any.
    pub(super) fn checksum_seed(&self, geometry: &Geometry) -> Option<u32> {
        seed_of(geometry, self.metadata.inode, self.generation)
    }

    /// Checks the bytes of an inode by their checksum, where there is one.
    pub(super) fn check(geometry: &Geometry, number: u32, bytes: &[u8]) -> Result<(), FsError> {
        let (inode, extra, extra_size) = parts(bytes)?;
        match seed_of(geometry, number, inode.generation.get().to_le_bytes()) {
            Some(seed) if !checksum_matches(seed, bytes, inode, extra, extra_size) => {
                Err(corrupt("an inode fails its checksum"))
            }
            _ => Ok(()),
        }
    }

    /// From the bytes of the inode table, which were checked.
    pub(super) fn parse(geometry: &Geometry, number: u32, bytes: &[u8]) -> Result<Self, FsError> {
        let (inode, extra, extra_size) = parts(bytes)?;
        if inode.mode.get() == 0 || inode.links_count.get() == 0 {
            return Err(corrupt("a directory entry points to a free inode"));
        }
        let flags = inode.flags.get();
        if flags & FLAG_ENCRYPTED != 0 {
            return Err(FsError::Unsupported("an encrypted file"));
        }
        let kind = if flags & FLAG_EA_INODE != 0 { Kind::Other } else { Kind::from_mode(inode.mode.get()) };
        let has_high = kind == Kind::File || (kind == Kind::Directory && geometry.has_large_dir);
        let size = u64::from(if has_high { inode.size_high.get() } else { 0 }) << 32
            | u64::from(inode.size_lo.get());
        let is_fast_symlink = kind == Kind::Symlink && size < 60 && flags & FLAG_EXTENTS == 0;
        let content = if flags & FLAG_INLINE_DATA != 0 {
            let xattrs = bytes.get(INODE_BASE_SIZE.saturating_add(extra_size)..).unwrap_or_default();
            Content::Inline(inline_data(&inode.block, xattrs, size)?)
        } else if is_fast_symlink {
            Content::Inline(copy_of(&[&inode.block], size)?)
        } else if flags & FLAG_EXTENTS != 0 {
            Content::Extents(inode.block)
        } else {
            Content::BlockMap(inode.block)
        };
        check_size(geometry, kind, size, &content)?;
        // Two more bits of the seconds, beyond 2038 (the 32-bit part stays signed).
        let epoch = extra.filter(|_| extra_size >= 12).map_or(0, |extra| extra.mtime_extra.get() & 3);
        let seconds = i64::from(inode.mtime.get().cast_signed());
        let mtime = seconds.saturating_add(i64::from(epoch) << 32);
        Ok(Self {
            metadata: Metadata { inode: number, kind, size, mtime },
            content,
            is_indexed: flags & FLAG_INDEX != 0 && geometry.has_dir_index,
            ignores_case: flags & FLAG_CASEFOLD != 0,
            generation: inode.generation.get().to_le_bytes(),
            cursor: Cursor::default(),
            budget: Budget::default(),
        })
    }
}

/// What every inode has, what larger ones have behind it, and how many bytes of that count.
fn parts(bytes: &[u8]) -> Result<(&Inode, Option<&InodeExtra>, usize), FsError> {
    let (inode, rest) = Inode::ref_from_prefix(bytes).map_err(|_| corrupt("an inode is cut off"))?;
    let extra = InodeExtra::ref_from_prefix(rest).ok().map(|(extra, _)| extra);
    let extra_size = extra.map_or(0, |extra| usize::from(extra.extra_isize.get()));
    if extra_size > rest.len() || !extra_size.is_multiple_of(4) {
        return Err(corrupt("the extra size of an inode is wrong"));
    }
    Ok((inode, extra, extra_size))
}

fn seed_of(geometry: &Geometry, number: u32, generation: [u8; 4]) -> Option<u32> {
    geometry.checksum_seed.map(|seed| crc32c(seed, &[&number.to_le_bytes(), &generation]))
}

fn checksum_matches(
    seed: u32,
    bytes: &[u8],
    inode: &Inode,
    extra: Option<&InodeExtra>,
    extra_size: usize,
) -> bool {
    let part = |from: usize, to: usize| bytes.get(from..to.min(bytes.len())).unwrap_or_default();
    let low = u32::from(inode.checksum_lo.get());
    let base =
        [part(0, INODE_CHECKSUM_LO), &[0; 2], part(INODE_CHECKSUM_LO.saturating_add(2), INODE_BASE_SIZE)];
    let sum = crc32c(seed, &base);
    match extra.filter(|_| extra_size >= 4) {
        Some(extra) => {
            let tail = part(INODE_CHECKSUM_HI.saturating_add(2), bytes.len());
            let sum = crc32c(sum, &[part(INODE_BASE_SIZE, INODE_CHECKSUM_HI), &[0; 2], tail]);
            sum == u32::from(extra.checksum_hi.get()) << 16 | low
        }
        None => crc32c(sum, &[part(INODE_BASE_SIZE, bytes.len())]) & 0xffff == low,
    }
}

/// Nothing later may run away over a size that the format could not hold.
fn check_size(geometry: &Geometry, kind: Kind, size: u64, content: &Content) -> Result<(), FsError> {
    let pointers = geometry.block_size as u64 / 4;
    let limit = match (kind, content) {
        (Kind::Directory, _) => geometry.size_bytes(),
        (Kind::Symlink, _) => PATH_MAX as u64,
        (_, Content::BlockMap(_)) => {
            let per_tree = pointers.saturating_mul(pointers.saturating_add(1)).saturating_add(1);
            let blocks = pointers.saturating_mul(per_tree).saturating_add(12).min(1 << 32);
            blocks.saturating_mul(geometry.block_size as u64)
        }
        _ => (1u64 << 32).saturating_mul(geometry.block_size as u64),
    };
    if size > limit { Err(corrupt("a file or folder is larger than possible")) } else { Ok(()) }
}

/// The contents of an inode with inline data: 60 bytes in the inode, and the value of its attribute
/// `system.data`.
fn inline_data(block: &[u8; 60], xattrs: &[u8], size: u64) -> Result<Vec<u8>, FsError> {
    copy_of(&[block, system_data(xattrs).unwrap_or_default()], size)
}

/// The first `size` bytes of all parts together.
fn copy_of(parts: &[&[u8]], size: u64) -> Result<Vec<u8>, FsError> {
    let mut left = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len()));
    let size = usize::try_from(size).ok().filter(|&size| size <= left);
    let size = size.ok_or(corrupt("inline data is shorter than the file"))?;
    let mut copy = zeroed(size)?;
    left = 0;
    for part in parts {
        let (_, to) = copy.split_at_mut_checked(left).unwrap_or_default();
        to.iter_mut().zip(*part).for_each(|(to, from)| *to = *from);
        left = left.saturating_add(part.len()).min(size);
    }
    Ok(copy)
}

fn system_data(xattrs: &[u8]) -> Option<&[u8]> {
    const MAGIC: [u8; 4] = 0xea02_0000u32.to_le_bytes();
    const INDEX_SYSTEM: u8 = 7;
    let entries = xattrs.strip_prefix(&MAGIC)?;
    let mut rest = entries;
    // The list ends with four zero bytes.
    while rest.first_chunk::<4>().is_some_and(|head| *head != [0; 4]) {
        let (entry, names) = XattrEntry::ref_from_prefix(rest).ok()?;
        let name_len = usize::from(entry.name_len);
        let name = names.get(..name_len)?;
        if entry.name_index == INDEX_SYSTEM && name == b"data" && entry.value_inum.get() == 0 {
            let value = entries.get(usize::from(entry.value_offs.get())..)?;
            return value.get(..usize::try_from(entry.value_size.get()).ok()?);
        }
        rest = names.get(name_len.next_multiple_of(4)..)?;
    }
    None
}
