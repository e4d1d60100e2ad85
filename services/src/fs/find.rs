//! Names in folders: by the hash tree where there is one, or by looking through all blocks.

use super::casefold::is_same;
use super::checks::FOLDER;
use super::dir::{Entries, inline_parts};
use super::inode::{Content, Kind, Node};
use super::{FileSystem, FsError, NAME_MAX};
use crate::block::BlockSource;
use core::cell::Cell;

/// How much of its folders one look-up may look through: what the disk claims may have no end.
pub struct Budget(Cell<usize>);

impl Budget {
    /// Bytes of folders. That is 40,000 names as long as they can be, or two million of usual length.
    const BYTES: usize = 64 << 20;

    /// One of `bytes`.
    pub fn of(bytes: usize) -> Self {
        Self(Cell::new(bytes))
    }

    /// Takes `bytes` from what is left.
    pub fn take(&self, bytes: usize) -> Result<(), FsError> {
        let left = self.0.get().checked_sub(bytes).ok_or(FsError::TooMuch)?;
        self.0.set(left);
        Ok(())
    }

    /// Begins anew.
    pub fn refill(&self) {
        self.0.set(Self::BYTES);
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::of(Self::BYTES)
    }
}

impl<B: BlockSource> FileSystem<B> {
    /// The inode number of an entry of a folder.
    pub(super) async fn find(&self, folder: &Node, name: &[u8], budget: &Budget) -> Result<u32, FsError> {
        if folder.metadata().kind != Kind::Directory {
            return Err(FsError::NotADirectory);
        }
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        let known = self.changes.as_ref().and_then(|changes| changes.name(folder.metadata().inode, name));
        if let Some(known) = known {
            return known.target.map(|(inode, _)| inode).ok_or(FsError::NotFound);
        }
        if let Content::Inline(data) = &folder.content {
            for part in inline_parts(data) {
                if let Some(inode) = search(folder, part, name)? {
                    return Ok(inode);
                }
            }
            return Err(FsError::NotFound);
        }
        if folder.is_indexed
            && let Some(found) = self.find_by_hash(folder, name, budget).await
        {
            return found;
        }
        self.scan(folder, name, budget).await
    }

    /// Looks through all blocks that can be read. A name that is in none of them may be in one that is lost.
    async fn scan(&self, folder: &Node, name: &[u8], budget: &Budget) -> Result<u32, FsError> {
        let (mut number, mut lost) = (0, None);
        while number << self.geometry.block_bits < folder.metadata().size {
            match self.find_in_block(folder, number, name, budget).await {
                Ok(Some(inode)) => return Ok(inode),
                Ok(None) => number = number.saturating_add(1),
                Err(error) if error.is_local() => {
                    number = number.saturating_add(folder.blocks_lost_at(number));
                    lost = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(lost.unwrap_or(FsError::NotFound))
    }

    /// The inode number of a name in one block of a folder.
    pub(super) async fn find_in_block(
        &self,
        folder: &Node,
        number: u64,
        name: &[u8],
        budget: &Budget,
    ) -> Result<Option<u32>, FsError> {
        budget.take(self.geometry.block_size)?;
        self.view_folder(folder, number, FOLDER, |bytes| search(folder, bytes, name)).await?
    }
}

fn search(folder: &Node, bytes: &[u8], name: &[u8]) -> Result<Option<u32>, FsError> {
    let mut entries = Entries(bytes);
    while let Some((head, found)) = entries.next()? {
        // Names of a folder often begin alike.
        let is_equal = found.last() == name.last() && found == name;
        let matches = is_equal || (folder.ignores_case && is_same(found, name));
        if matches && head.inode.get() != 0 {
            return Ok(Some(head.inode.get()));
        }
    }
    Ok(None)
}
