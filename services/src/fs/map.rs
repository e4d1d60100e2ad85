//! Which blocks of the disk hold which blocks of a file: the block maps of ext2 and ext3; extent trees are in
//! [`extents`](super::extents).

use super::cache::Piece;
use super::checks::MAP;
use super::inode::{Content, Node};
use super::run::Run;
use super::{FileSystem, FsError, corrupt};
use crate::block::BlockSource;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

const DIRECT: u64 = 12;
const CUT_OFF: FsError = corrupt("a block map is cut off");

impl<B: BlockSource> FileSystem<B> {
    /// The run that starts at a block of a file; it may go beyond the end of the file.
    pub(super) async fn map(&self, node: &Node, logical: u64) -> Result<Run, FsError> {
        let Some(changes) = &self.changes else { return self.map_on_disk(node, logical).await };
        match changes.run_at(node.metadata().inode, logical) {
            Ok(run) => Ok(run),
            Err(next) => {
                let run = self.map_on_disk(node, logical).await?;
                Ok(Run { blocks: run.blocks.min(next.saturating_sub(logical)), ..run })
            }
        }
    }

    async fn map_on_disk(&self, node: &Node, logical: u64) -> Result<Run, FsError> {
        match &node.content {
            Content::Inline(_) => Err(corrupt("inline data has no blocks")),
            Content::Extents(root) => self.map_extents(node, root, logical).await,
            Content::BlockMap(root) => self.map_blocks(node, root, logical).await,
        }
    }

    /// Checks that blocks can hold a file's bytes, or say where those are.
    pub(super) fn check_data(&self, first: u64, count: u64) -> Result<(), FsError> {
        self.geometry.check_blocks(first, count)?;
        self.groups.check_free(first, count)
    }

    async fn map_blocks(&self, node: &Node, root: &[u8; 60], logical: u64) -> Result<Run, FsError> {
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
        self.check_pointers(root)?;
        let roots = <[U32]>::ref_from_bytes(root).map_err(|_| CUT_OFF)?;
        if slot < DIRECT {
            return Ok(contiguous(logical, roots.get(slot as usize..DIRECT as usize).unwrap_or_default()));
        }
        let mut block = u64::from(roots.get(slot as usize).map_or(0, |root| root.get()));
        loop {
            if block == 0 {
                // The whole tree below is one hole.
                return Ok(Run { logical, blocks: covers.saturating_sub(index).max(1), physical: None });
            }
            covers = covers.checked_div(per_block).unwrap_or(0).max(1);
            let entry = index.checked_div(covers).unwrap_or(0);
            index = index.checked_rem(covers).unwrap_or(0);
            let piece = Piece::block(&self.geometry, block, MAP | u64::from(node.metadata().inode));
            let look = |bytes: &[u8]| -> Result<Run, FsError> {
                let pointers = <[U32]>::ref_from_bytes(bytes).map_err(|_| CUT_OFF)?;
                Ok(contiguous(logical, pointers.get(entry as usize..).unwrap_or_default()))
            };
            let run = self.view(&piece, |bytes| self.check_pointers(bytes), look).await?.0?;
            if covers == 1 {
                return Ok(run);
            }
            block = run.physical.unwrap_or(0);
        }
    }

    /// All block numbers in one place are right, or none is believed.
    fn check_pointers(&self, bytes: &[u8]) -> Result<(), FsError> {
        let pointers = <[U32]>::ref_from_bytes(bytes).map_err(|_| CUT_OFF)?;
        let mut used = pointers.iter().map(|pointer| pointer.get()).filter(|&pointer| pointer != 0);
        used.try_for_each(|pointer| self.check_data(pointer.into(), 1))
    }
}

/// The run that the first of some block numbers starts.
fn contiguous(logical: u64, pointers: &[U32]) -> Run {
    let first = pointers.first().map_or(0, |first| first.get());
    let step = u32::from(first != 0);
    let same = pointers.iter().zip(0u32..).take_while(|(pointer, n)| {
        first.checked_add(n.saturating_mul(step)).is_some_and(|expected| pointer.get() == expected)
    });
    let blocks = (same.count() as u64).max(1);
    Run { logical, blocks, physical: (first != 0).then_some(u64::from(first)) }
}
