//! The blocks of folders, and listing them. Those with a hash tree are listed like the others: the tree's
//! nodes look like empty entries.

use super::cache::Piece;
use super::checks::{FOLDER, HASH_TREE, Owner};
use super::hash_tree::check_node;
use super::inode::{Content, Kind, Metadata, Node};
use super::layout::{DirEntryHead, DirEntryTail, crc32c};
use super::{FileSystem, FsError, corrupt};
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
        let mut entries = Entries(self.bytes.get(self.skipped..).unwrap_or_default());
        core::iter::from_fn(move || {
            loop {
                let (head, name) = match entries.next() {
                    Ok(found) => found?,
                    Err(error) => return Some(Err(error)),
                };
                if head.inode.get() != 0 && !matches!(name, b"." | b"..") {
                    let next = self.end.saturating_sub(entries.0.len() as u64);
                    return Some(self.entry(head, name, next));
                }
            }
        })
    }

    fn entry<'a>(&self, head: &DirEntryHead, name: &'a [u8], next: u64) -> Result<DirEntry<'a>, FsError> {
        if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(corrupt("a directory entry has an impossible name"));
        }
        let kind = if self.has_file_type { Kind::from_entry(head.file_type) } else { None };
        Ok(DirEntry { name, inode: head.inode.get(), kind, next })
    }
}

/// The entries from here to the end of a block, those without a name too.
pub(super) struct Entries<'a>(pub &'a [u8]);

impl<'a> Entries<'a> {
    /// The next one. There are none behind an error.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(&'a DirEntryHead, &'a [u8])>, FsError> {
        const WRONG: FsError = corrupt("a directory entry has a wrong length");
        let bytes = core::mem::take(&mut self.0);
        if bytes.is_empty() {
            return Ok(None);
        }
        let (head, _) = DirEntryHead::ref_from_prefix(bytes).map_err(|_| WRONG)?;
        let name_end = ENTRY_HEAD.saturating_add(head.name_len.into());
        let len = record_len(head, bytes.len());
        let (entry, rest) = bytes.split_at_checked(len).filter(|_| len.is_multiple_of(4)).ok_or(WRONG)?;
        let name = entry.get(ENTRY_HEAD..name_end).ok_or(WRONG)?;
        self.0 = rest;
        Ok(Some((head, name)))
    }
}

/// 64 KiB do not fit the field: they are written as 65535 or 0.
fn record_len(head: &DirEntryHead, bytes_left: usize) -> usize {
    let len = head.rec_len.get();
    if bytes_left == 0x1_0000 && matches!(len, 0 | 0xffff) { bytes_left } else { len.into() }
}

impl<B: BlockSource> FileSystem<B> {
    /// Reads a folder piece by piece: start with a `cursor` of 0, and call again until there is `None`. At
    /// most one block of the folder is in memory at a time. Who has not used all its entries goes on with
    /// [`DirEntry::next`] of the last one used.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] and [`FsError::Io`] where a part of the folder is damaged or missing; if the
    /// cursor has moved, it is behind that part, and what follows can be read. [`FsError::TooMuch`] if there
    /// was no entry in a very long part of it. [`FsError::NotADirectory`], [`FsError::NoMemory`]. In all
    /// other cases the cursor stays where it was.
    pub async fn read_dir(&self, node: &Node, cursor: &mut u64) -> Result<Option<DirBlock>, FsError> {
        if node.metadata().kind != Kind::Directory {
            return Err(FsError::NotADirectory);
        }
        if *cursor >= node.metadata().size {
            return self.read_added(node, cursor);
        }
        // Where the block starts in the folder, and its bytes.
        let (start, mut bytes) = match &node.content {
            Content::Inline(data) => {
                let [first, second] = inline_parts(data);
                let (start, part) = if *cursor < INLINE_BLOCK { (4, first) } else { (INLINE_BLOCK, second) };
                (start, text::bytes(part)?)
            }
            _ => self.copy_block(node, cursor).await?,
        };
        if let Some(changes) = &self.changes {
            changes.hide(node.metadata().inode, &mut bytes);
        }
        let skipped = usize::try_from(cursor.saturating_sub(start)).unwrap_or(usize::MAX);
        let end = start.saturating_add(bytes.len() as u64);
        let block = DirBlock { bytes, skipped, end, has_file_type: self.geometry.has_file_type };
        match block.entries().next() {
            Some(Ok(_)) => node.budget.refill(),
            Some(Err(_)) | None => node.budget.take(self.geometry.block_size)?,
        }
        *cursor = end;
        Ok(Some(block))
    }

    /// The names that fast commits have added to a folder, a block's worth: they follow those on the disk.
    fn read_added(&self, node: &Node, cursor: &mut u64) -> Result<Option<DirBlock>, FsError> {
        let Some(changes) = &self.changes else { return Ok(None) };
        let Metadata { inode, size, .. } = node.metadata();
        let (start, bytes) = changes.added(inode, cursor.saturating_sub(size), self.geometry.block_size)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        *cursor = size.saturating_add(start).saturating_add(bytes.len() as u64);
        Ok(Some(DirBlock { bytes, skipped: 0, end: *cursor, has_file_type: self.geometry.has_file_type }))
    }

    /// A copy of the block of a folder that the cursor is in, and where it starts. The cursor moves on if it
    /// is lost.
    async fn copy_block(&self, node: &Node, cursor: &mut u64) -> Result<(u64, Vec<u8>), FsError> {
        let bits = self.geometry.block_bits;
        let number = *cursor >> bits;
        let copied = match self.view_folder(node, number, FOLDER, text::bytes).await {
            Ok(copied) => copied?,
            Err(error) => {
                if error.is_local() {
                    node.budget.take(self.geometry.block_size)?;
                    *cursor = number.saturating_add(node.blocks_lost_at(number)) << bits;
                }
                return Err(error);
            }
        };
        Ok((number << bits, copied))
    }

    /// Shows `look` a block of a folder, seen as what it is a `part` of: the folder, or its hash tree.
    pub(super) async fn view_folder<T>(
        &self,
        node: &Node,
        number: u64,
        part: Owner,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, FsError> {
        // Where blocks are lost nothing else is looked at.
        self.pace(0).await;
        let (bits, len, size) = (self.geometry.block_bits, self.geometry.block_size, node.metadata().size);
        let offset = number.saturating_mul(len as u64);
        let left = size.checked_sub(offset).and_then(|left| left.checked_sub(len as u64));
        let left = left.ok_or(corrupt("a folder ends within a block"))?;
        let run = self.run_at(node, number).await?;
        let block = run.physical.ok_or(corrupt("a folder has a hole"))?;
        // The tree leads to blocks here and there.
        let window = if part == FOLDER { node.cursor.start(offset, len) } else { 0 };
        let run_left = run.blocks.saturating_sub(1) << bits;
        let ahead = (window as u64).min(run_left).min(left) as usize;
        let owner = part | u64::from(node.metadata().inode);
        let piece = Piece { ahead, ..Piece::block(&self.geometry, block, owner) };
        let check = |bytes: &[u8]| self.check_folder(node, number, part, bytes);
        let (found, loaded) = self.view(&piece, check, look).await?;
        if let Some(loaded) = loaded {
            let loaded = loaded.end.saturating_sub(piece.offset).min(run_left.saturating_add(len as u64));
            node.cursor.missed(offset, offset.saturating_add(loaded));
        }
        Ok(found)
    }

    fn check_folder(&self, node: &Node, number: u64, part: Owner, bytes: &[u8]) -> Result<(), FsError> {
        let seed = node.checksum_seed(&self.geometry);
        if let Some(seed) = seed {
            let is_node = part == HASH_TREE || (node.is_indexed && is_index_node(number, bytes));
            let matches = if is_node { index_checksum_matches } else { leaf_checksum_matches };
            if matches(seed, bytes) != Some(true) {
                return Err(corrupt("a folder fails its checksum"));
            }
        }
        if part == HASH_TREE { check_node(bytes, number == 0, seed.is_some()) } else { Ok(()) }
    }
}

/// Bytes of a folder in its inode that are in the place of block numbers.
const INLINE_BLOCK: u64 = 60;

/// A small folder in its inode: the parent's inode number and entries in the place of block numbers, more
/// entries behind them.
pub(super) fn inline_parts(data: &[u8]) -> [&[u8]; 2] {
    let (first, second) = data.split_at_checked(INLINE_BLOCK as usize).unwrap_or((data, &[]));
    [first.get(4..).unwrap_or_default(), second]
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
