//! Extent trees, checked as Linux does before it believes them: in order, nothing twice, and each node within
//! what its parent says.

use super::cache::Piece;
use super::checks::MAP;
use super::inode::Node;
use super::layout::{ExtentEntry, ExtentHeader, crc32c};
use super::run::Run;
use super::{FileSystem, FsError, corrupt};
use crate::block::BlockSource;
use core::ops::Range;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// Levels below the root of an extent tree; more cannot be needed for 2³² blocks.
const MAX_DEPTH: u16 = 5;
const EXTENT_MAGIC: u16 = 0xf30a;
/// A length above this marks an extent that is allocated but not written yet: it reads as zeros.
const MAX_WRITTEN: u16 = 32768;
/// Block numbers of a file are 32 bits wide.
const ALL: Range<u64> = 0..1 << 32;

/// What one node of an extent tree says about a block.
enum Step {
    Found(Run),
    /// It is in the tree below this node, which is responsible for so many blocks of the file.
    Child(u64, Range<u64>),
}

impl<B: BlockSource> FileSystem<B> {
    pub(super) async fn map_extents(&self, node: &Node, root: &[u8], logical: u64) -> Result<Run, FsError> {
        let mut depth = parts(root)?.0.depth.get();
        if depth > MAX_DEPTH {
            return Err(corrupt("an extent tree is too deep"));
        }
        self.check_extents(root)?;
        let mut step = search(root, depth, logical, &ALL)?;
        // `depth` falls with each level, so that no cycle can be followed.
        loop {
            let (block, covers) = match step {
                Step::Found(run) => return Ok(run),
                Step::Child(block, covers) => (block, covers),
            };
            depth = depth.checked_sub(1).ok_or(corrupt("an extent tree is too deep"))?;
            self.check_data(block, 1)?;
            let piece = Piece::block(&self.geometry, block, MAP | u64::from(node.metadata().inode));
            let check = |bytes: &[u8]| {
                node.checksum_seed(&self.geometry).map_or(Ok(()), |seed| check_sum(seed, bytes))?;
                self.check_extents(bytes)
            };
            let look = |bytes: &[u8]| {
                starts_with(bytes, covers.start)?;
                search(bytes, depth, logical, &covers)
            };
            step = self.view(&piece, check, look).await?.0?;
        }
    }

    /// Checks a node for itself: its entries are in order, cover nothing twice, and lead to blocks that a
    /// file can have.
    fn check_extents(&self, bytes: &[u8]) -> Result<(), FsError> {
        let (header, entries) = parts(bytes)?;
        let is_leaf = header.depth.get() == 0;
        if entries.is_empty() && !is_leaf {
            return Err(corrupt("an extent tree has an empty node"));
        }
        let mut free_from = 0;
        for entry in entries {
            let (blocks, at) = if is_leaf { (entry.len(), entry.physical()) } else { (1, entry.child()) };
            let end = entry.first().saturating_add(blocks);
            if entry.first() < free_from || blocks == 0 || end > ALL.end {
                return Err(corrupt("an extent tree is out of order"));
            }
            self.check_data(at, blocks)?;
            free_from = end;
        }
        Ok(())
    }
}

/// The first entry of a node, other than the root, is where its parent says.
fn starts_with(bytes: &[u8], first: u64) -> Result<(), FsError> {
    match parts(bytes)?.1.first() {
        Some(entry) if entry.first() == first => Ok(()),
        _ => Err(corrupt("an extent tree contradicts itself")),
    }
}

/// Looks a block up in a checked node of an extent tree, which is responsible for `covers`.
fn search(bytes: &[u8], depth: u16, logical: u64, covers: &Range<u64>) -> Result<Step, FsError> {
    let (header, entries) = parts(bytes)?;
    if header.depth.get() != depth {
        return Err(corrupt("an extent tree has a wrong depth"));
    }
    if entries.last().is_some_and(|last| last.end(depth) > covers.end) {
        return Err(corrupt("an extent tree contradicts itself"));
    }
    let following = entries.partition_point(|entry| entry.first() <= logical);
    let end = entries.get(following).map_or(covers.end, ExtentEntry::first);
    let until_end = end.saturating_sub(logical).max(1);
    let hole = Step::Found(Run { logical, blocks: until_end, physical: None });
    let Some(entry) = following.checked_sub(1).and_then(|index| entries.get(index)) else {
        return Ok(hole);
    };
    if depth > 0 {
        return Ok(Step::Child(entry.child(), entry.first()..end));
    }
    let physical = entry.is_written().then_some(entry.physical());
    let extent = Run { logical: entry.first(), blocks: entry.len(), physical };
    Ok(extent.from(logical).map_or(hole, Step::Found))
}

impl ExtentEntry {
    pub(super) fn first(&self) -> u64 {
        self.block.get().into()
    }

    pub(super) fn is_written(&self) -> bool {
        self.raw_len() <= MAX_WRITTEN
    }

    pub(super) fn len(&self) -> u64 {
        let len = self.raw_len();
        u64::from(len.checked_sub(MAX_WRITTEN).filter(|&len| len > 0).unwrap_or(len))
    }

    /// The block of the file behind what an entry of a node of this depth is known to cover.
    fn end(&self, depth: u16) -> u64 {
        self.first().saturating_add(if depth == 0 { self.len() } else { 1 })
    }
}

/// The header and the entries of a node.
fn parts(bytes: &[u8]) -> Result<(&ExtentHeader, &[ExtentEntry]), FsError> {
    let wrong = corrupt("an extent tree node has a wrong header");
    let (header, rest) = ExtentHeader::ref_from_prefix(bytes).map_err(|_| wrong)?;
    let (entries, max) = (usize::from(header.entries.get()), usize::from(header.max.get()));
    let fits = max.saturating_mul(size_of::<ExtentEntry>()) <= rest.len();
    if header.magic.get() != EXTENT_MAGIC || max == 0 || entries > max || !fits {
        return Err(wrong);
    }
    let (entries, _) = <[ExtentEntry]>::ref_from_prefix_with_elems(rest, entries).map_err(|_| wrong)?;
    Ok((header, entries))
}

/// The checksum follows the room for entries.
fn check_sum(seed: u32, bytes: &[u8]) -> Result<(), FsError> {
    let (header, _) = parts(bytes)?;
    let entries = usize::from(header.max.get()).saturating_mul(size_of::<ExtentEntry>());
    let end = size_of::<ExtentHeader>().saturating_add(entries);
    let sum = bytes.get(end..).and_then(|tail| U32::read_from_prefix(tail).ok()).map(|(sum, _)| sum.get());
    if sum != Some(crc32c(seed, &[bytes.get(..end).unwrap_or_default()])) {
        return Err(corrupt("an extent tree node fails its checksum"));
    }
    Ok(())
}
