//! Where the files come from.

use alloc::string::String;
use alloc::vec::Vec;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else (device, socket, pipe): not served.
    Other,
}

/// The metadata that a response needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// Length in bytes.
    pub size: u64,
    /// Last change in seconds since 1970 (UTC), if known.
    pub modified: Option<u64>,
    /// Tells files of one disk apart (the inode number); part of the ETag.
    pub id: u64,
}

/// Why the disk did not give what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// No such file, or a component of the path is not a directory.
    NotFound,
    /// There is no usable disk. The sentence says why, for the person who asked.
    Unavailable(String),
    /// The file system contradicts itself.
    Corrupt,
    /// The device reported an error, or did not answer in time.
    Io,
    /// Memory is short; try again later.
    OutOfMemory,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name as stored: any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// What it is, without following a symbolic link.
    pub kind: Kind,
}

/// A read-only tree of files.
#[allow(async_fn_in_trait, reason = "one single-threaded executor: futures need not be Send")]
pub trait Files {
    /// An opened file or directory.
    type Node;

    /// Finds `path`: absolute, components separated by single slashes, no `.` or `..`, no slash at the end except
    /// for `/` itself. Symbolic links are followed.
    async fn lookup(&self, path: &[u8]) -> Result<Self::Node, FileError>;

    /// The metadata of an opened node.
    fn metadata(&self, node: &Self::Node) -> Metadata;

    /// Reads at most `buf.len()` bytes at `offset`; 0 only at the end of the file.
    async fn read_at(&self, node: &Self::Node, offset: u64, buf: &mut [u8]) -> Result<usize, FileError>;

    /// Appends the next few entries of a directory (a block's worth), without `.` and `..`. `cursor` is 0 at first
    /// and advanced by each call. Returns false, with nothing appended, after the last.
    async fn read_dir(
        &self,
        dir: &Self::Node,
        cursor: &mut u64,
        entries: &mut Vec<DirEntry>,
    ) -> Result<bool, FileError>;
}
