//! Read-only ext4 (and ext2, ext3) on a disk or a partition, for many tasks of one executor.
//!
//! Everything is asynchronous down to the device: a task that needs a block awaits it, and nobody else waits.
//! Nothing on the disk is trusted: numbers are checked before use, metadata checksums are verified where the
//! file system has them, every walk is bounded by what the format can hold and lets other tasks run, and no
//! allocation is larger than a block, a path, or 40 bytes for each group of blocks, but for what a journal
//! says, which is bounded. The contents of files are
//! never held whole: they pass through the [`PageCache`], which is bounded and reads ahead.
//!
//! Permissions, ownership and access times are ignored: everything on the disk can be read by everyone. A
//! journal that needs recovery is replayed in memory; the disk is never written to.
//! [`open_first`] looks for a file system on disks and in their partitions.

mod cache;
mod casefold;
mod changes;
mod checks;
mod choice;
mod dir;
mod extents;
mod find;
mod foreign;
mod free_pages;
mod groups;
mod hash;
mod hash_tree;
mod inode;
mod journal;
mod layout;
mod map;
mod pages;
mod partitions;
mod path;
mod path_cache;
mod read_ahead;
mod run;
mod super_block;

pub use cache::{CacheStats, PAGE_SIZE, PageCache};
pub use choice::{Choice, open_first};
pub use dir::{DirBlock, DirEntry};
pub use inode::{Kind, Metadata, Node, ROOT_INODE};
pub use partitions::{MAX_PARTITIONS, Partition, Table};

use crate::block::{BlockError, BlockSource};
use crate::shared::Shared;
use crate::text::NoMemory;
use alloc::vec::Vec;
use cache::Piece;
use changes::Changes;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use embassy_futures::yield_now;
use groups::Groups;
use inode::Content;
use journal::Overlay;
use path_cache::PathCache;
use super_block::{Geometry, SUPER_BLOCK_OFFSET, SUPER_BLOCK_SIZE};
use thiserror::Error;

/// Longest path, in bytes.
pub const PATH_MAX: usize = 4096;
/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;

/// Why the file system could not do what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FsError {
    /// There is no ext4 super block on the disk.
    #[error("not an ext4 file system")]
    NotExt4,
    /// There is something else: what, and what helps.
    #[error("{0}")]
    Foreign(&'static str),
    /// The disk uses something that this reader does not know.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// What the disk says cannot be true.
    #[error("the file system is damaged: {0}")]
    Corrupt(&'static str),
    /// The disk did not answer.
    #[error(transparent)]
    Io(#[from] BlockError),
    /// No memory for a block.
    #[error("no memory")]
    NoMemory,
    /// There is nothing with this name.
    #[error("no such file or folder")]
    NotFound,
    /// A name in the middle of the path is not a folder, or a folder is needed.
    #[error("not a folder")]
    NotADirectory,
    /// A file is needed, and this is a folder.
    #[error("this is a folder")]
    IsADirectory,
    /// A file is needed, and this is a device, pipe or socket.
    #[error("not a regular file")]
    NotAFile,
    /// More than 40 symbolic links: most likely they form a loop.
    #[error("too many symbolic links")]
    TooManyLinks,
    /// A name of more than [`NAME_MAX`] bytes, or a path of more than [`PATH_MAX`].
    #[error("the name is too long")]
    NameTooLong,
    /// The folders on the way are too large to be looked through for one request.
    #[error("the folders on the way are too large to be looked through")]
    TooMuch,
}

impl FsError {
    /// Whether it concerns one place of the disk only: others can be read.
    pub fn is_local(self) -> bool {
        matches!(self, Self::Corrupt(_) | Self::Io(BlockError::Device | BlockError::OutOfRange))
    }
}

impl From<NoMemory> for FsError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

const fn corrupt(what: &'static str) -> FsError {
    FsError::Corrupt(what)
}

/// A buffer of `len` zeros, or [`FsError::NoMemory`]: how much is needed depends on the disk.
fn zeroed(len: usize) -> Result<Vec<u8>, FsError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| FsError::NoMemory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// So many bytes of page cache are there for each path that is remembered, which takes about 250 bytes.
const CACHE_OF_A_PATH: usize = 16 << 10;
/// Most paths that are remembered.
const MAX_PATHS: usize = 8192;

/// A task that has looked at so many bytes of the file system lets others run, wherever these bytes came
/// from.
const BYTES_BETWEEN_YIELDS: usize = 128 << 10;

async fn read_geometry<B: BlockSource>(cache: &PageCache<B>) -> Result<Geometry, FsError> {
    let disk_size = cache.size_bytes();
    if disk_size < SUPER_BLOCK_OFFSET.saturating_add(SUPER_BLOCK_SIZE as u64) {
        return Err(FsError::NotExt4);
    }
    let mut super_block = zeroed(SUPER_BLOCK_SIZE)?;
    cache.read(SUPER_BLOCK_OFFSET, &mut super_block, 0).await?;
    Geometry::parse(&super_block, disk_size)
}

/// An ext4 file system on a disk.
pub struct FileSystem<B> {
    cache: PageCache<Overlay<B>>,
    geometry: Geometry,
    groups: Groups,
    paths: RefCell<PathCache>,
    /// What fast commits in the journal say.
    changes: Option<Changes>,
    /// Bytes looked at since a task last let others run.
    work: Cell<usize>,
}

impl<B: BlockSource> FileSystem<B> {
    /// Opens the file system on `disk` with a page cache of at most `cache_capacity` bytes.
    ///
    /// # Errors
    /// [`FsError::NotExt4`], [`FsError::Unsupported`], [`FsError::Corrupt`], [`FsError::Io`],
    /// [`FsError::NoMemory`].
    pub async fn open(disk: B, cache_capacity: usize) -> Result<Self, FsError> {
        let cache = PageCache::new(Overlay::new(disk), cache_capacity);
        let geometry = read_geometry(&cache).await?;
        let (groups, paths) = (Groups::default(), RefCell::default());
        let mut fs = Self { cache, geometry, groups, paths, changes: None, work: Cell::new(0) };
        fs.groups = fs.read_groups().await?;
        if let Some(journal) = fs.geometry.journal.filter(|_| fs.geometry.needs_replay) {
            let fast = fs.replay(journal).await?;
            fs.geometry = read_geometry(&fs.cache).await?;
            fs.groups = fs.read_groups().await?;
            if let Some(fast) = fast {
                fs.replay_fast(fast).await?;
            }
        }
        if fs.node(ROOT_INODE).await?.metadata().kind != Kind::Directory {
            return Err(corrupt("the root is not a folder"));
        }
        fs.take_journal().await?;
        let paths = (cache_capacity / CACHE_OF_A_PATH).min(MAX_PATHS);
        fs.paths = RefCell::new(PathCache::new(paths));
        Ok(fs)
    }

    /// Volume label; empty if there is none.
    pub fn label(&self) -> &[u8] {
        self.geometry.label.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// Volume UUID, in the order in which it is written.
    pub fn uuid(&self) -> [u8; 16] {
        self.geometry.uuid
    }

    /// Size of the file system in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes()
    }

    /// Size of a block in bytes.
    pub fn block_size(&self) -> usize {
        self.geometry.block_size
    }

    /// How many blocks are read from the journal, as their copy there is newer.
    pub fn blocks_in_journal(&self) -> usize {
        self.cache.source().len()
    }

    /// How many fast commits in the journal count.
    pub fn fast_commits(&self) -> usize {
        self.changes.as_ref().map_or(0, |changes| changes.commits)
    }

    /// What the page cache has done so far.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Opens an inode by its number.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] for a free or damaged inode, [`FsError::Unsupported`] for an encrypted one,
    /// [`FsError::Io`], [`FsError::NoMemory`].
    pub async fn node(&self, inode: u32) -> Result<Node, FsError> {
        if let Some(bytes) = self.changes.as_ref().and_then(|changes| changes.inode(inode)) {
            return Node::parse(&self.geometry, inode, bytes);
        }
        let piece = self.inode_piece(inode).await?;
        let check = |bytes: &[u8]| Node::check(&self.geometry, inode, bytes);
        self.view(&piece, check, |bytes| Node::parse(&self.geometry, inode, bytes)).await?.0
    }

    /// Where an inode is on the disk.
    async fn inode_piece(&self, inode: u32) -> Result<Piece, FsError> {
        let (group, index) = self.geometry.group_of(inode)?;
        let table = match self.groups.inode_table(group) {
            Some(table) => table,
            // Its descriptor could not be read at first, or is damaged.
            None => self.descriptor(group).await?.inode_table,
        };
        let len = self.geometry.inode_size;
        let within = u64::from(index).saturating_mul(len as u64);
        let offset = self.geometry.byte_of(table).saturating_add(within);
        Ok(Piece { offset, len, ahead: 0, owner: checks::INODES })
    }

    /// Fills `buf` with the contents of a file from `offset` on, and returns how many bytes there were: fewer
    /// than `buf` holds only at the end of the file. Holes read as zeros. Use a buffer of 4 KiB to 128 KiB.
    ///
    /// Sequential reads with the same `node` read ahead, up to [`MAX_READ`](crate::block::MAX_READ) bytes in
    /// one device request, or less when the cache is too small for all readers.
    ///
    /// # Errors
    /// [`FsError::IsADirectory`], [`FsError::NotAFile`], [`FsError::Corrupt`], [`FsError::Io`],
    /// [`FsError::NoMemory`]; the contents of `buf` are then unspecified. The same read may be tried again.
    pub async fn read_at(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        match node.metadata().kind {
            Kind::File => self.read_content(node, offset, buf).await,
            Kind::Directory => Err(FsError::IsADirectory),
            Kind::Symlink | Kind::Other => Err(FsError::NotAFile),
        }
    }

    async fn read_content(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let left = node.metadata().size.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let (buf, _) = buf.split_at_mut_checked(len).unwrap_or_default();
        if let Content::Inline(data) = &node.content {
            let data = usize::try_from(offset).ok().and_then(|offset| data.get(offset..)).unwrap_or_default();
            buf.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
            return Ok(len);
        }
        let bits = self.geometry.block_bits;
        let window = node.cursor.start(offset, len);
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let run = self.run_at(node, at >> bits).await?;
            let within = at.saturating_sub(run.logical << bits);
            let run_left = usize::try_from((run.blocks << bits).saturating_sub(within)).unwrap_or(usize::MAX);
            let count = run_left.min(rest.len());
            let (part, tail) = rest.split_at_mut_checked(count).unwrap_or_default();
            let end = at.saturating_add(count as u64);
            self.pace(count).await;
            match run.physical {
                None => part.fill(0),
                Some(physical) => {
                    let file_left =
                        usize::try_from(node.metadata().size.saturating_sub(end)).unwrap_or(usize::MAX);
                    let ahead = tail.len().max(window).min(run_left.saturating_sub(count)).min(file_left);
                    let start = (physical << bits).saturating_add(within);
                    if let Some(loaded) = self.cache.read(start, part, ahead).await? {
                        // Within this run: what follows on the disk belongs to another file.
                        let place =
                            |byte: u64| at.saturating_add(byte.saturating_sub(start).min(run_left as u64));
                        node.cursor.missed(place(loaded.start), place(loaded.end));
                    }
                }
            }
            (at, rest) = (end, tail);
        }
        Ok(len)
    }

    /// Bytes of a file from `offset` on, from where the page cache has them: up to `most`, of one page.
    /// `None` where there is no such page: [`read_at`](Self::read_at) has them.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    pub async fn share_at(&self, node: &Node, offset: u64, most: usize) -> Result<Option<Shared>, FsError> {
        let metadata = node.metadata();
        let left = metadata.size.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(most);
        if metadata.kind != Kind::File || len == 0 || matches!(node.content, Content::Inline(_)) {
            return Ok(None);
        }
        let bits = self.geometry.block_bits;
        let run = self.run_at(node, offset >> bits).await?;
        let Some(physical) = run.physical else { return Ok(None) };
        let within = offset.saturating_sub(run.logical << bits);
        let run_left = usize::try_from((run.blocks << bits).saturating_sub(within)).unwrap_or(usize::MAX);
        let start = (physical << bits).saturating_add(within);
        const PAGE: u64 = PAGE_SIZE as u64;
        let in_page = PAGE_SIZE.saturating_sub((start % PAGE) as usize);
        let count = len.min(run_left).min(in_page);
        let window = node.cursor.start(offset, count);
        self.pace(count).await;
        let file_left = usize::try_from(left).unwrap_or(usize::MAX).saturating_sub(count);
        let ahead = len.saturating_sub(count).max(window).min(run_left.saturating_sub(count)).min(file_left);
        let (shared, loaded) = self.cache.share(start, count, ahead).await?;
        if let Some(loaded) = loaded {
            let place = |byte: u64| offset.saturating_add(byte.saturating_sub(start).min(run_left as u64));
            node.cursor.missed(place(loaded.start), place(loaded.end));
        }
        Ok(shared)
    }

    /// The run that a block of a file is in, remembered for the next read.
    async fn run_at(&self, node: &Node, logical: u64) -> Result<run::Run, FsError> {
        if let Some(run) = node.cursor.run.get().and_then(|run| run.from(logical)) {
            return Ok(run);
        }
        let run = self.map(node, logical).await?;
        node.cursor.run.set(Some(run));
        Ok(run)
    }

    /// [`PageCache::view`], booked.
    async fn view<T>(
        &self,
        piece: &Piece,
        check: impl FnOnce(&[u8]) -> Result<(), FsError>,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<(T, Option<Range<u64>>), FsError> {
        self.pace(piece.len).await;
        self.cache.view(piece, check, look).await
    }

    /// Books a look at `bytes`, at least a page, and lets other tasks run when it is time. All that is read
    /// passes here, holes and what is in the cache too: no loop over a disk's claims keeps the executor to
    /// itself.
    async fn pace(&self, bytes: usize) {
        let work = self.work.get().saturating_add(bytes.max(PAGE_SIZE));
        if work < BYTES_BETWEEN_YIELDS {
            return self.work.set(work);
        }
        self.work.set(0);
        yield_now().await;
    }
}
