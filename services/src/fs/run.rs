//! Runs of blocks.

/// Consecutive blocks of a file that are consecutive on the disk too, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block within the file.
    pub logical: u64,
    /// Length in blocks, at least 1.
    pub blocks: u64,
    /// First block on the disk; `None` reads as zeros.
    pub physical: Option<u64>,
}

impl Run {
    /// The part of this run from a block on, if the block is in it.
    pub fn from(&self, logical: u64) -> Option<Self> {
        let skipped = logical.checked_sub(self.logical)?;
        let blocks = self.blocks.checked_sub(skipped).filter(|&blocks| blocks > 0)?;
        let physical = self.physical.map(|first| first.saturating_add(skipped));
        Some(Self { logical, blocks, physical })
    }
}
