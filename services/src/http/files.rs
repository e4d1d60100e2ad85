//! Where the files come from.

use alloc::vec::Vec;

use crate::block::BlockSource;
use crate::fs::{FileSystem, FsError, Kind, Metadata, Node};

/// Some names of a directory: as many as fit a bound, whatever the directory holds.
#[derive(Default)]
pub struct Names {
    entries: Vec<Entry>,
    /// One after the other.
    names: Vec<u8>,
    is_full: bool,
}

struct Entry {
    start: u32,
    len: u8,
    kind: Kind,
}

impl Names {
    /// Entries that fit. A listing is sorted within so many.
    pub const MAX: usize = 256;
    /// Bytes of names that fit.
    const BYTES: usize = 16 << 10;

    /// Adds a name, as stored (any bytes but `/` and NUL, 255 at most), and what it is, without following a
    /// symbolic link. Returns false, with nothing added, when there is no more room.
    ///
    /// # Errors
    /// [`FsError::NoMemory`], and [`FsError::Corrupt`] for a name that is too long.
    pub fn push(&mut self, name: &[u8], kind: Kind) -> Result<bool, FsError> {
        let len = u8::try_from(name.len()).map_err(|_| FsError::Corrupt("a name is too long"))?;
        let start = self.names.len();
        self.is_full |= self.entries.len() >= Self::MAX || start.saturating_add(name.len()) > Self::BYTES;
        if self.is_full {
            return Ok(false);
        }
        self.entries.try_reserve(1).map_err(|_| FsError::NoMemory)?;
        self.names.try_reserve(name.len()).map_err(|_| FsError::NoMemory)?;
        self.names.extend_from_slice(name);
        self.entries.push(Entry { start: u32::try_from(start).unwrap_or(u32::MAX), len, kind });
        Ok(true)
    }

    /// Whether there was a name that did not fit.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Folders first, then by name.
    pub(super) fn sort(&mut self) {
        let names = &self.names;
        self.entries.sort_unstable_by_key(|entry| (entry.kind != Kind::Directory, entry.name(names)));
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Kind)> {
        self.entries.iter().map(|entry| (entry.name(&self.names), entry.kind))
    }
}

impl Entry {
    fn name<'a>(&self, names: &'a [u8]) -> &'a [u8] {
        let rest = names.get(self.start as usize..).unwrap_or_default();
        rest.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// A read-only tree of files.
#[allow(async_fn_in_trait, reason = "one single-threaded executor: futures need not be Send")]
pub trait Files {
    /// An opened file or directory.
    type Node;

    /// Finds `path`: absolute, components separated by single slashes, no `.` or `..`, no slash at the end
    /// except for `/` itself. Symbolic links are followed.
    async fn lookup(&self, path: &[u8]) -> Result<Self::Node, FsError>;

    /// The metadata of an opened node.
    fn metadata(&self, node: &Self::Node) -> Metadata;

    /// Reads at most `buf.len()` bytes at `offset`; 0 only at the end of the file.
    async fn read_at(&self, node: &Self::Node, offset: u64, buf: &mut [u8]) -> Result<usize, FsError>;

    /// Adds the next few entries of a directory (up to a block's worth, and as many as fit), without `.` and
    /// `..`. `cursor` is 0 at first and advanced by each call, which may add nothing. Returns false after the
    /// last.
    async fn read_dir(&self, dir: &Self::Node, cursor: &mut u64, names: &mut Names) -> Result<bool, FsError>;
}

impl<B: BlockSource> Files for FileSystem<B> {
    type Node = Node;

    async fn lookup(&self, path: &[u8]) -> Result<Node, FsError> {
        self.lookup(path).await
    }

    fn metadata(&self, node: &Node) -> Metadata {
        node.metadata()
    }

    async fn read_at(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        self.read_at(node, offset, buf).await
    }

    async fn read_dir(&self, dir: &Node, cursor: &mut u64, names: &mut Names) -> Result<bool, FsError> {
        let mut next = *cursor;
        let Some(block) = self.read_dir(dir, &mut next).await? else { return Ok(false) };
        for entry in block.entries() {
            let entry = entry?;
            if !names.push(entry.name, entry.kind.unwrap_or(Kind::Other))? {
                return Ok(true);
            }
            *cursor = entry.next;
        }
        *cursor = next;
        Ok(true)
    }
}
