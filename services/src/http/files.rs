//! Where the files come from.

use crate::block::BlockSource;
use crate::fs::{DirEntry, FileSystem, FsError, Metadata, Node};
use crate::shared::Shared;

/// A read-only tree of files.
#[allow(async_fn_in_trait, reason = "one single-threaded executor: futures need not be Send")]
pub trait Files {
    /// An opened file or directory.
    type Node;

    /// Finds `path`: absolute, components separated by single slashes, no `.` or `..`, no slash at the end
    /// except for `/` itself. Symbolic links are followed.
    async fn lookup(&self, path: &[u8]) -> Result<Self::Node, FsError>;

    /// Opens what an entry of a directory names; symbolic links are not followed.
    async fn node(&self, inode: u32) -> Result<Self::Node, FsError>;

    /// The metadata of an opened node.
    fn metadata(&self, node: &Self::Node) -> Metadata;

    /// Reads at most `buf.len()` bytes at `offset`; 0 only at the end of the file.
    async fn read_at(&self, node: &Self::Node, offset: u64, buf: &mut [u8]) -> Result<usize, FsError>;

    /// The same from where they are, as many as lie together; `None` where they do not, and
    /// [`read_at`](Self::read_at) is to be used.
    async fn share_at(
        &self,
        _node: &Self::Node,
        _offset: u64,
        _most: usize,
    ) -> Result<Option<Shared>, FsError> {
        Ok(None)
    }

    /// Shows `take` the next few entries of a directory, up to a block's worth, without `.` and `..`, until
    /// it says false: that one was not taken. `cursor` is 0 at first, and each call, which may show none,
    /// moves it behind all that were taken. Returns false after the last. Where a part of the directory is
    /// lost it fails, with `cursor` behind that part: call again for what follows.
    async fn read_dir(
        &self,
        dir: &Self::Node,
        cursor: &mut u64,
        take: impl FnMut(DirEntry<'_>) -> Result<bool, FsError>,
    ) -> Result<bool, FsError>;
}

impl<B: BlockSource> Files for FileSystem<B> {
    type Node = Node;

    async fn lookup(&self, path: &[u8]) -> Result<Node, FsError> {
        self.lookup(path).await
    }

    async fn node(&self, inode: u32) -> Result<Node, FsError> {
        self.node(inode).await
    }

    fn metadata(&self, node: &Node) -> Metadata {
        node.metadata()
    }

    async fn read_at(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        self.read_at(node, offset, buf).await
    }

    async fn share_at(&self, node: &Node, offset: u64, most: usize) -> Result<Option<Shared>, FsError> {
        self.share_at(node, offset, most).await
    }

    async fn read_dir(
        &self,
        dir: &Node,
        cursor: &mut u64,
        mut take: impl FnMut(DirEntry<'_>) -> Result<bool, FsError>,
    ) -> Result<bool, FsError> {
        let mut end = *cursor;
        let read = self.read_dir(dir, &mut end).await;
        let Some(block) = read.inspect_err(|_| *cursor = end)? else { return Ok(false) };
        for entry in block.entries() {
            // Behind an entry that makes no sense there are no more in its block.
            let entry = entry.inspect_err(|_| *cursor = end)?;
            if !take(entry)? {
                return Ok(true);
            }
            *cursor = entry.next;
        }
        *cursor = end;
        Ok(true)
    }
}
