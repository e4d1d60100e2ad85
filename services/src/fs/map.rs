//! Which blocks of the disk hold which blocks of a file: extent trees, and the block maps of ext2 and ext3.

use super::inode::{Content, Node};
use super::layout::{ExtentEntry, ExtentHeader, crc32c};
use super::run::Run;
use super::{FileSystem, FsError, corrupt};
use crate::block::{BlockSource, MAX_READ};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// Levels below the root of an extent tree; more cannot be needed for 2³² blocks.
const MAX_DEPTH: u16 = 5;
const EXTENT_MAGIC: u16 = 0xf30a;
/// A length above this marks an extent that is allocated but not written yet: it reads as zeros.
const MAX_WRITTEN: u16 = 32768;
/// Block numbers of a file are 32 bits wide.
const END_OF_FILE: u64 = 1 << 32;
const DIRECT: u64 = 12;

/// What one node of an extent tree says about a block.
enum Step {
    Found(Run),
    Child { block: u64, end: u64 },
}

impl<B: BlockSource> FileSystem<B> {
    /// The run that starts at a block of a file; it may go beyond the end of the file.
    pub(super) async fn map(&self, node: &Node, logical: u64) -> Result<Run, FsError> {
        match &node.content {
            Content::Inline(_) => Err(corrupt("inline data has no blocks")),
            Content::Extents(root) => self.map_extents(node, root, logical).await,
            Content::BlockMap(root) => self.map_blocks(root, logical).await,
        }
    }

    async fn map_extents(&self, node: &Node, root: &[u8], logical: u64) -> Result<Run, FsError> {
        let (header, _) = extent_header(root)?;
        let mut depth = header.depth.get();
        if depth > MAX_DEPTH {
            return Err(corrupt("an extent tree is too deep"));
        }
        let mut step = self.search(root, depth, logical, END_OF_FILE)?;
        // `depth` falls with each level, so that no cycle can be followed.
        loop {
            let (block, end) = match step {
                Step::Found(run) => return Ok(run),
                Step::Child { block, end } => (block, end),
            };
            depth = depth.checked_sub(1).ok_or(corrupt("an extent tree is too deep"))?;
            let bytes = self.block(block).await?;
            if let Some(seed) = node.checksum_seed {
                check_extent_block(seed, &bytes)?;
            }
            step = self.search(&bytes, depth, logical, end)?;
        }
    }

    /// Looks a block up in one node of an extent tree; the node is responsible for blocks before `end`.
    fn search(&self, bytes: &[u8], depth: u16, logical: u64, end: u64) -> Result<Step, FsError> {
        let (header, rest) = extent_header(bytes)?;
        if header.depth.get() != depth {
            return Err(corrupt("an extent tree has a wrong depth"));
        }
        let count = usize::from(header.entries.get());
        let (entries, _) = <[ExtentEntry]>::ref_from_prefix_with_elems(rest, count)
            .map_err(|_| corrupt("an extent tree node has too many entries"))?;
        let first = |entry: &ExtentEntry| u64::from(entry.block.get());
        let following = entries.partition_point(|entry| first(entry) <= logical);
        let end = entries.get(following).map_or(end, |next| first(next).min(end));
        // Also in a tree that is out of order, `partition_point` has found that `end` is behind `logical`.
        let until_end = end.saturating_sub(logical).max(1);
        let hole = Step::Found(Run { logical, blocks: until_end, physical: None });
        let Some(entry) = following.checked_sub(1).and_then(|index| entries.get(index)) else {
            return Ok(hole);
        };
        if depth > 0 {
            return Ok(Step::Child { block: entry.child(), end });
        }
        let (len, physical) = entry.extent();
        let is_written = len <= MAX_WRITTEN;
        let blocks = u64::from(if is_written { len } else { len.saturating_sub(MAX_WRITTEN) });
        if blocks == 0 {
            return Err(corrupt("an extent is empty"));
        }
        self.geometry.check_blocks(physical, blocks)?;
        let extent = Run { logical: first(entry), blocks, physical: is_written.then_some(physical) };
        Ok(extent
            .from(logical)
            .map_or(hole, |run| Step::Found(Run { blocks: run.blocks.min(until_end), ..run })))
    }

    async fn map_blocks(&self, root: &[u8; 60], logical: u64) -> Result<Run, FsError> {
        let per_block = self.geometry.block_size as u64 / 4;
        // Which tree of the root the block is in, and how many blocks an entry at each of its levels covers.
        let (mut slot, mut index, mut covers) = (logical, 0, 1u64);
        if let Some(mut within) = logical.checked_sub(DIRECT) {
            (slot, covers) = (DIRECT, per_block);
            while within >= covers {
                within = within.saturating_sub(covers);
                slot = slot.saturating_add(1);
                covers = covers.saturating_mul(per_block);
                if slot > 14 {
                    return Err(corrupt("a block number is too large for a block map"));
                }
            }
            index = within;
        }
        let pointers = <[U32]>::ref_from_bytes(root).map_err(|_| corrupt("a block map is cut off"))?;
        let roots = pointers.get(slot as usize..if slot < DIRECT { 12 } else { 15 }).unwrap_or_default();
        let mut block = u64::from(roots.first().map_or(0, |first| first.get()));
        if slot < DIRECT {
            return self.contiguous(logical, roots);
        }
        loop {
            if block == 0 {
                // The whole tree below is one hole.
                return Ok(Run { logical, blocks: covers.saturating_sub(index).max(1), physical: None });
            }
            covers = covers.checked_div(per_block).unwrap_or(0).max(1);
            let entry = index.checked_div(covers).unwrap_or(0);
            index = index.checked_rem(covers).unwrap_or(0);
            // As many entries as one device request can use.
            let most = (MAX_READ as u64 >> self.geometry.block_bits).max(1);
            let wanted = if covers == 1 { per_block.saturating_sub(entry).min(most) } else { 1 };
            self.geometry.check_blocks(block, 1)?;
            let at = self.geometry.byte_of(block).saturating_add(entry.saturating_mul(4));
            let bytes = self.bytes(at, (wanted as usize).saturating_mul(4)).await?;
            let pointers = <[U32]>::ref_from_bytes(&bytes).map_err(|_| corrupt("a block map is cut off"))?;
            if covers == 1 {
                return self.contiguous(logical, pointers);
            }
            block = u64::from(pointers.first().map_or(0, |first| first.get()));
        }
    }

    /// The run that the first of some block numbers starts.
    fn contiguous(&self, logical: u64, pointers: &[U32]) -> Result<Run, FsError> {
        let first = pointers.first().map_or(0, |first| first.get());
        let step = u32::from(first != 0);
        let same = pointers.iter().zip(0u32..).take_while(|(pointer, n)| {
            first.checked_add(n.saturating_mul(step)).is_some_and(|expected| pointer.get() == expected)
        });
        let blocks = (same.count() as u64).max(1);
        let physical = (first != 0).then_some(u64::from(first));
        if let Some(physical) = physical {
            self.geometry.check_blocks(physical, blocks)?;
        }
        Ok(Run { logical, blocks, physical })
    }
}

fn extent_header(bytes: &[u8]) -> Result<(&ExtentHeader, &[u8]), FsError> {
    let (header, rest) =
        ExtentHeader::ref_from_prefix(bytes).map_err(|_| corrupt("an extent tree node is cut off"))?;
    let fits = usize::from(header.max.get()).saturating_mul(size_of::<ExtentEntry>()) <= rest.len();
    if header.magic.get() != EXTENT_MAGIC || header.entries.get() > header.max.get() || !fits {
        return Err(corrupt("an extent tree node has a wrong header"));
    }
    Ok((header, rest))
}

/// The checksum follows the room for entries.
fn check_extent_block(seed: u32, bytes: &[u8]) -> Result<(), FsError> {
    let (header, _) = extent_header(bytes)?;
    let entries = usize::from(header.max.get()).saturating_mul(size_of::<ExtentEntry>());
    let end = size_of::<ExtentHeader>().saturating_add(entries);
    let sum = bytes.get(end..).and_then(|tail| U32::read_from_prefix(tail).ok()).map(|(sum, _)| sum.get());
    if sum != Some(crc32c(seed, &[bytes.get(..end).unwrap_or_default()])) {
        return Err(corrupt("an extent tree node fails its checksum"));
    }
    Ok(())
}
