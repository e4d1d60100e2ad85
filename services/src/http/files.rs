//! Where the files come from.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt;

use crate::block::BlockError;
use crate::fs::{Kind, Metadata};
use crate::text::NoMemory;

/// Why the disk did not give what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// No such file, or a component of the path is not a directory.
    NotFound,
    /// There is no usable disk. The sentence says why, for the person who asked.
    Unavailable(Rc<str>),
    /// The file system uses something there that is not known.
    Unsupported(&'static str),
    /// The file system contradicts itself.
    Corrupt(&'static str),
    /// The device reported an error, or did not answer in time.
    Io(BlockError),
    /// Memory is short; try again later.
    OutOfMemory,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such file or folder"),
            Self::Unavailable(why) => f.write_str(why),
            Self::Unsupported(what) => write!(f, "not supported: {what}"),
            Self::Corrupt(what) => write!(f, "the file system is damaged: {what}"),
            Self::Io(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory"),
        }
    }
}

impl core::error::Error for FileError {}

impl From<NoMemory> for FileError {
    fn from(_: NoMemory) -> Self {
        Self::OutOfMemory
    }
}

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
    /// [`FileError::OutOfMemory`], and [`FileError::Corrupt`] for a name that is too long.
    pub fn push(&mut self, name: &[u8], kind: Kind) -> Result<bool, FileError> {
        let len = u8::try_from(name.len()).map_err(|_| FileError::Corrupt("a name is too long"))?;
        let start = self.names.len();
        self.is_full |= self.entries.len() >= Self::MAX || start.saturating_add(name.len()) > Self::BYTES;
        if self.is_full {
            return Ok(false);
        }
        self.entries.try_reserve(1).map_err(|_| FileError::OutOfMemory)?;
        self.names.try_reserve(name.len()).map_err(|_| FileError::OutOfMemory)?;
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
    async fn lookup(&self, path: &[u8]) -> Result<Self::Node, FileError>;

    /// The metadata of an opened node.
    fn metadata(&self, node: &Self::Node) -> Metadata;

    /// Reads at most `buf.len()` bytes at `offset`; 0 only at the end of the file.
    async fn read_at(&self, node: &Self::Node, offset: u64, buf: &mut [u8]) -> Result<usize, FileError>;

    /// Adds the next few entries of a directory (up to a block's worth, and as many as fit), without `.` and
    /// `..`. `cursor` is 0 at first and advanced by each call, which may add nothing. Returns false after the
    /// last.
    async fn read_dir(
        &self,
        dir: &Self::Node,
        cursor: &mut u64,
        names: &mut Names,
    ) -> Result<bool, FileError>;
}
