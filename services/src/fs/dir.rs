//! Folders. Those with a hash tree are read like the others: the tree's nodes look like empty entries.

use super::inode::{Content, Kind, Node};
use super::layout::{DirEntryHead, DirEntryTail, crc32c};
use super::{FileSystem, FsError, NAME_MAX, corrupt, zeroed};
use crate::block::BlockSource;
use crate::text;
use alloc::vec::Vec;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

const ENTRY_HEAD: usize = size_of::<DirEntryHead>();

/// An entry of a folder; `.` and `..` are never returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Name: 1 to 255 bytes, of any encoding, without `/` and NUL.
    pub name: &'a [u8],
    /// Inode number, for [`FileSystem::node`].
    pub inode: u32,
    /// What it is, where the folder says so.
    pub kind: Option<Kind>,
    /// The cursor with which [`FileSystem::read_dir`] goes on behind it.
    pub next: u64,
}

/// Some entries of a folder: one block of it, or the rest of one.
pub struct DirBlock {
    bytes: Vec<u8>,
    /// Bytes that were passed before.
    skipped: usize,
    /// The cursor behind the block.
    end: u64,
    has_file_type: bool,
}

impl DirBlock {
    /// The entries in the order of the disk. After an error there are no more.
    pub fn entries(&self) -> impl Iterator<Item = Result<DirEntry<'_>, FsError>> {
        let mut rest = self.bytes.get(self.skipped..).unwrap_or_default();
        core::iter::from_fn(move || {
            while !rest.is_empty() {
                match split_entry(rest, self.has_file_type, self.end) {
                    Ok((entry, tail)) => {
                        rest = tail;
                        if entry.inode != 0 && !matches!(entry.name, b"." | b"..") {
                            return Some(check_name(entry));
                        }
                    }
                    Err(error) => {
                        rest = &[];
                        return Some(Err(error));
                    }
                }
            }
            None
        })
    }
}

fn check_name(entry: DirEntry<'_>) -> Result<DirEntry<'_>, FsError> {
    if entry.name.is_empty() || entry.name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(corrupt("a directory entry has an impossible name"));
    }
    Ok(entry)
}

/// The first entry, and the bytes behind it: always fewer than before. They end at `end` in the folder.
fn split_entry(bytes: &[u8], has_file_type: bool, end: u64) -> Result<(DirEntry<'_>, &[u8]), FsError> {
    const WRONG: FsError = corrupt("a directory entry has a wrong length");
    let (head, names) = DirEntryHead::ref_from_prefix(bytes).map_err(|_| WRONG)?;
    let name_len = usize::from(head.name_len);
    let name = names.get(..name_len).ok_or(WRONG)?;
    let len = record_len(head, bytes.len());
    if !len.is_multiple_of(4) || len < ENTRY_HEAD.saturating_add(name_len) {
        return Err(WRONG);
    }
    let kind = if has_file_type { Kind::from_entry(head.file_type) } else { None };
    let (_, rest) = bytes.split_at_checked(len).ok_or(WRONG)?;
    let next = end.saturating_sub(rest.len() as u64);
    Ok((DirEntry { name, inode: head.inode.get(), kind, next }, rest))
}

/// 64 KiB do not fit the field: they are written as 65535 or 0.
fn record_len(head: &DirEntryHead, bytes_left: usize) -> usize {
    match head.rec_len.get() {
        0 | 0xffff if bytes_left == 0x1_0000 => 0x1_0000,
        len => len.into(),
    }
}

impl<B: BlockSource> FileSystem<B> {
    /// Reads a folder piece by piece: start with a `cursor` of 0, and call again until there is `None`. At
    /// most one block of the folder is in memory at a time. Who has not used all its entries goes on with
    /// [`DirEntry::next`] of the last one used.
    ///
    /// # Errors
    /// [`FsError::NotADirectory`], [`FsError::Corrupt`], [`FsError::Io`], [`FsError::NoMemory`]. The cursor
    /// then stays where it was.
    pub async fn read_dir(&self, node: &Node, cursor: &mut u64) -> Result<Option<DirBlock>, FsError> {
        if node.metadata().kind != Kind::Directory {
            return Err(FsError::NotADirectory);
        }
        // Where the block starts in the folder, and its bytes.
        let found = match &node.content {
            Content::Inline(data) => inline_entries(data, *cursor)?,
            _ => self.dir_block(node, *cursor >> self.geometry.block_bits).await?,
        };
        let Some((start, bytes)) = found else { return Ok(None) };
        let skipped = usize::try_from(cursor.saturating_sub(start)).unwrap_or(usize::MAX);
        let end = start.saturating_add(bytes.len() as u64);
        *cursor = end;
        Ok(Some(DirBlock { bytes, skipped, end, has_file_type: self.geometry.has_file_type }))
    }

    async fn dir_block(&self, node: &Node, number: u64) -> Result<Option<(u64, Vec<u8>)>, FsError> {
        let block_size = self.geometry.block_size;
        let offset = number.saturating_mul(block_size as u64);
        if offset >= node.metadata().size {
            return Ok(None);
        }
        let mut bytes = zeroed(block_size)?;
        if self.read_content(node, offset, &mut bytes).await? != block_size {
            return Err(corrupt("the size of a folder is not whole blocks"));
        }
        if let Some(seed) = node.checksum_seed(&self.geometry) {
            let is_index_node = node.is_indexed && is_index_node(number, &bytes);
            let matches = if is_index_node { index_checksum_matches } else { leaf_checksum_matches };
            if matches(seed, &bytes) != Some(true) {
                return Err(corrupt("a folder fails its checksum"));
            }
        }
        Ok(Some((offset, bytes)))
    }

    /// The inode number of an entry of a folder.
    pub(super) async fn find(&self, node: &Node, name: &[u8]) -> Result<u32, FsError> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        let mut cursor = 0;
        while let Some(block) = self.read_dir(node, &mut cursor).await? {
            for entry in block.entries() {
                let entry = entry?;
                if entry.name == name {
                    return Ok(entry.inode);
                }
            }
        }
        Err(FsError::NotFound)
    }
}

/// A small folder in its inode: the parent's inode number and entries in the first 60 bytes, more entries
/// behind them.
fn inline_entries(data: &[u8], cursor: u64) -> Result<Option<(u64, Vec<u8>)>, FsError> {
    let (start, end) = if cursor < 60 { (4, 60) } else { (60, data.len()) };
    if cursor >= data.len() as u64 {
        return Ok(None);
    }
    let part = data.get(start..end.min(data.len())).unwrap_or_default();
    Ok(Some((start as u64, text::bytes(part)?)))
}

/// Whether a block of a folder with a hash tree is a node of the tree: the first block is its root, and other
/// nodes look like one empty entry that fills the block. Nothing else tells: a root that grew out of the
/// folder's only block still ends with that block's tail.
fn is_index_node(number: u64, bytes: &[u8]) -> bool {
    let first = DirEntryHead::ref_from_prefix(bytes).ok();
    number == 0 || first.is_some_and(|(first, _)| record_len(first, bytes.len()) == bytes.len())
}

/// Whether the checksum of a leaf matches; `None` where there is none.
fn leaf_checksum_matches(seed: u32, bytes: &[u8]) -> Option<bool> {
    let (rest, tail) = DirEntryTail::ref_from_suffix(bytes).ok()?;
    let head = &tail.head;
    let is_tail = (head.inode.get(), head.rec_len.get(), head.name_len, head.file_type) == (0, 12, 0, 0xde);
    is_tail.then(|| crc32c(seed, &[rest]) == tail.checksum.get())
}

/// The same of a node of a hash tree: one empty entry, or those for `.` and `..` and 8 bytes about the tree,
/// then `limit` and `count` of 8-byte index entries. The checksum lies behind `limit` entries and covers
/// `count` of them.
fn index_checksum_matches(seed: u32, bytes: &[u8]) -> Option<bool> {
    let (first, _) = DirEntryHead::ref_from_prefix(bytes).ok()?;
    let entries_at = if record_len(first, bytes.len()) == bytes.len() { 8usize } else { 32 };
    let counts = bytes.get(entries_at..)?.first_chunk::<4>()?;
    let [a, b, c, d] = *counts;
    let (limit, count) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    if count > limit {
        return None;
    }
    let after = |entries: u16| entries_at.checked_add(usize::from(entries).checked_mul(8)?);
    let covered = bytes.get(..after(count)?)?;
    let (reserved, sum) = bytes.get(after(limit)?..)?.split_at_checked(4)?;
    let (sum, _) = U32::read_from_prefix(sum).ok()?;
    Some(crc32c(seed, &[covered, reserved, &[0; 4]]) == sum.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bytes: Vec<u8>) -> Result<usize, FsError> {
        let block = DirBlock { end: bytes.len() as u64, bytes, skipped: 0, has_file_type: true };
        block.entries().try_fold(0, |count, entry| entry.map(|_| count + 1))
    }

    /// No tool makes folders with an empty block of 64 KiB on demand.
    #[test]
    fn an_empty_block_of_64_kib() {
        for (len, expected) in [(0u16, Ok(0)), (0xffff, Ok(0)), (12, Err(())), (0xfffe, Err(()))] {
            let mut bytes = alloc::vec![0; 0x1_0000];
            bytes[4..6].copy_from_slice(&len.to_le_bytes());
            assert_eq!(names(bytes).map_err(|_| ()), expected, "{len}");
        }
        // In smaller blocks these lengths mean what they say.
        for len in [0u16, 0xffff, 1028, 7] {
            let mut bytes = alloc::vec![0; 1024];
            bytes[4..6].copy_from_slice(&len.to_le_bytes());
            assert!(names(bytes).is_err(), "{len}");
        }
    }
}
