//! What the group descriptors say, read once: where the inode tables lie, and which blocks can belong to no
//! file. The journal's are among these.

use super::cache::Piece;
use super::checks::GROUPS;
use super::super_block::Descriptor;
use super::{FileSystem, FsError, corrupt};
use crate::block::{BlockSource, MAX_READ};
use alloc::vec::Vec;

const NO_TABLE: u64 = 0;
/// A journal is made at once, and so of a few runs: this many are looked at.
const MOST_RUNS: usize = 4096;

/// Where the metadata of all groups lies.
#[derive(Default)]
pub struct Groups {
    /// First block of each group's inode table, or [`NO_TABLE`].
    tables: Vec<u64>,
    /// Blocks that hold metadata, by their ranges from the first on.
    taken: Vec<Taken>,
}

#[derive(Clone, Copy)]
struct Taken {
    start: u64,
    end: u64,
}

impl Groups {
    /// First block of a group's inode table, where its descriptor was right when it was read.
    pub fn inode_table(&self, group: u32) -> Option<u64> {
        self.tables.get(group as usize).copied().filter(|&table| table != NO_TABLE)
    }

    /// Checks that some blocks of the file system can be a file's.
    pub fn check_free(&self, first: u64, count: u64) -> Result<(), FsError> {
        let at = self.taken.partition_point(|taken| taken.end <= first);
        match self.taken.get(at) {
            Some(taken) if taken.start < first.saturating_add(count) => {
                Err(corrupt("a block of the file system's own is in a file"))
            }
            _ => Ok(()),
        }
    }

    fn take(&mut self, start: u64, count: u64) -> Result<(), FsError> {
        if count == 0 {
            return Ok(());
        }
        let end = start.saturating_add(count);
        // Mostly they follow each other.
        if let Some(last) = self.taken.last_mut().filter(|last| last.start <= start && start <= last.end) {
            last.end = last.end.max(end);
            return Ok(());
        }
        self.taken.try_reserve(1).map_err(|_| FsError::NoMemory)?;
        self.taken.push(Taken { start, end });
        Ok(())
    }

    fn sort(&mut self) {
        self.taken.sort_unstable_by_key(|taken| taken.start);
        self.taken.dedup_by(|next, taken| {
            let joins = next.start <= taken.end;
            if joins {
                taken.end = taken.end.max(next.end);
            }
            joins
        });
    }
}

impl<B: BlockSource> FileSystem<B> {
    /// Reads all descriptors. A damaged one costs the inodes of its group.
    pub(super) async fn read_groups(&self) -> Result<Groups, FsError> {
        let (geometry, mut groups) = (&self.geometry, Groups::default());
        let count = geometry.groups();
        groups.tables.try_reserve_exact(count as usize).map_err(|_| FsError::NoMemory)?;
        for group in 0..count {
            let (start, blocks) = geometry.copies_in(group);
            groups.take(start, blocks)?;
            let found = self.descriptor(group).await;
            groups.tables.push(found.as_ref().map_or(NO_TABLE, |found| found.inode_table));
            if let Ok(found) = found {
                groups.take(found.block_bitmap, 1)?;
                groups.take(found.inode_bitmap, 1)?;
                groups.take(found.inode_table, geometry.inode_table_blocks())?;
            }
        }
        groups.sort();
        Ok(groups)
    }

    /// Has the journal's blocks be its own from now on, as far as can be found out which they are.
    pub(super) async fn take_journal(&mut self) -> Result<(), FsError> {
        let Some(inode) = self.geometry.journal.filter(|&inode| inode != 0) else { return Ok(()) };
        let Ok(node) = self.node(inode).await else { return Ok(()) };
        let blocks = node.metadata().size >> self.geometry.block_bits;
        // Apart at first: whoever looks for the next run is refused what is taken.
        let mut runs = Groups::default();
        let mut at = 0;
        while at < blocks && runs.taken.len() < MOST_RUNS {
            let Ok(run) = self.run_at(&node, at).await else { break };
            let Some(physical) = run.physical else { break };
            let count = run.blocks.min(blocks.saturating_sub(at));
            runs.take(physical, count)?;
            at = at.saturating_add(count);
        }
        for run in &runs.taken {
            self.groups.take(run.start, run.end.saturating_sub(run.start))?;
        }
        self.groups.sort();
        Ok(())
    }

    /// The descriptor of a group, as the disk has it.
    pub(super) async fn descriptor(&self, group: u32) -> Result<Descriptor, FsError> {
        let (offset, len, following) = self.geometry.descriptor_of(group)?;
        let piece = Piece { offset, len, ahead: following.min(MAX_READ), owner: GROUPS };
        let (found, _) =
            self.view(&piece, |_| Ok(()), |bytes| self.geometry.descriptor(group, bytes)).await?;
        found
    }
}
