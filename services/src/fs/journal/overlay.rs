//! A disk of which some blocks are read elsewhere: from their copies in the journal.

use super::layout::MAGIC;
use crate::block::{BlockError, BlockSource, SECTOR_SIZE};
use alloc::vec::Vec;

const SECTOR: u64 = SECTOR_SIZE as u64;

/// A block whose latest copy is in the journal.
#[derive(Clone, Copy)]
pub struct Moved {
    /// The block that is meant.
    pub home: u64,
    /// The block that is read, and whether its first bytes are not the journal's magic number as they should.
    pub copy: Option<(u64, bool)>,
    /// The last transaction that revoked copies of the block, of itself and of earlier ones.
    pub revoked: Option<u32>,
}

/// A disk, and its blocks that are elsewhere.
pub struct Overlay<B> {
    disk: B,
    /// In the order of their `home`.
    moved: Vec<Moved>,
    block_size: u64,
}

impl<B> Overlay<B> {
    /// `disk` as it is.
    pub fn new(disk: B) -> Self {
        Self { disk, moved: Vec::new(), block_size: 1 }
    }

    /// From now on blocks of `block_size` bytes are read where `moved`, in their order, says.
    pub fn set(&mut self, moved: Vec<Moved>, block_size: usize) {
        (self.moved, self.block_size) = (moved, block_size as u64);
    }

    /// How many blocks are read elsewhere.
    pub fn len(&self) -> usize {
        self.moved.len()
    }
}

impl<B: BlockSource> BlockSource for Overlay<B> {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn block_size(&self) -> u64 {
        self.disk.block_size()
    }

    async fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
        self.disk.read(sector, bufs).await?;
        if self.moved.is_empty() {
            return Ok(());
        }
        let mut at = sector.saturating_mul(SECTOR);
        for buf in bufs {
            self.patch(at, buf).await?;
            at = at.saturating_add(buf.len() as u64);
        }
        Ok(())
    }
}

impl<B: BlockSource> Overlay<B> {
    /// Reads the moved blocks among the bytes from `at` on into `buf`.
    async fn patch(&self, at: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let end = at.saturating_add(buf.len() as u64);
        let start_of = |moved: &Moved| moved.home.saturating_mul(self.block_size);
        let behind = |moved: &Moved| start_of(moved).saturating_add(self.block_size);
        let first = self.moved.partition_point(|moved| behind(moved) <= at);
        for moved in self.moved.get(first..).unwrap_or_default() {
            if start_of(moved) >= end {
                break;
            }
            let Some((copy, is_escaped)) = moved.copy else { continue };
            let (from, to) = (start_of(moved).max(at), behind(moved).min(end));
            let part = buf.get_mut(from.saturating_sub(at) as usize..to.saturating_sub(at) as usize);
            let part = part.ok_or(BlockError::OutOfRange)?;
            let within = from.saturating_sub(start_of(moved));
            let byte = copy.saturating_mul(self.block_size).saturating_add(within);
            self.disk.read(byte / SECTOR, &mut [&mut *part]).await?;
            if let Some(head) = part.first_chunk_mut().filter(|_| is_escaped && within == 0) {
                *head = MAGIC;
            }
        }
        Ok(())
    }
}
