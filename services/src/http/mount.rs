//! [`Files`] on the ext4 file system of a disk.

use alloc::rc::Rc;

use async_lock::OnceCell;

use super::{FileError, Files, Names};
use crate::block::BlockSource;
use crate::fs::{FileSystem, FsError, Kind, Metadata, Node};

/// The disk that files are served from, or the reason why there is none.
pub struct Disk<B> {
    opened: OnceCell<Result<FileSystem<B>, Rc<str>>>,
}

impl<B: BlockSource> Disk<B> {
    /// A disk that is not open yet: whoever asks for a file waits until [`open`](Self::open) has done its
    /// work.
    pub fn new() -> Self {
        Self { opened: OnceCell::new() }
    }

    /// Opens the file system on `source` with a page cache of at most `cache_bytes`. Without a usable disk
    /// every file is answered with 503 and the reason, which is also returned; everything else is served.
    /// Call this once: further calls change nothing.
    ///
    /// # Errors
    /// Why there are no files, as a sentence for a person.
    pub async fn open(&self, source: Option<B>, cache_bytes: usize) -> Result<&FileSystem<B>, &str> {
        let open = async {
            let source = source.ok_or_else(|| Rc::from("There is no disk."))?;
            let opened = FileSystem::open(source, cache_bytes).await;
            opened.map_err(|error| alloc::format!("The disk cannot be used: {error}.").into())
        };
        self.opened.get_or_init(|| open).await.as_ref().map_err(|why| &**why)
    }

    /// The file system, once it is open.
    pub fn file_system(&self) -> Option<&FileSystem<B>> {
        self.opened.get()?.as_ref().ok()
    }

    async fn ready(&self) -> Result<&FileSystem<B>, FileError> {
        self.opened.wait().await.as_ref().map_err(|why| FileError::Unavailable(why.clone()))
    }
}

impl<B: BlockSource> Default for Disk<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl From<FsError> for FileError {
    fn from(error: FsError) -> Self {
        match error {
            FsError::NotFound
            | FsError::NotADirectory
            | FsError::IsADirectory
            | FsError::NotAFile
            | FsError::TooManyLinks
            | FsError::NameTooLong => Self::NotFound,
            FsError::Corrupt(what) => Self::Corrupt(what),
            FsError::NoMemory => Self::OutOfMemory,
            FsError::Io(error) => Self::Io(error),
            FsError::Unsupported(what) => Self::Unsupported(what),
            FsError::NotExt4 => Self::Corrupt("not an ext4 file system"),
        }
    }
}

impl<B: BlockSource> Files for Disk<B> {
    type Node = Node;

    async fn lookup(&self, path: &[u8]) -> Result<Node, FileError> {
        Ok(self.ready().await?.lookup(path).await?)
    }

    fn metadata(&self, node: &Node) -> Metadata {
        node.metadata()
    }

    async fn read_at(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<usize, FileError> {
        Ok(self.ready().await?.read_at(node, offset, buf).await?)
    }

    async fn read_dir(&self, dir: &Node, cursor: &mut u64, names: &mut Names) -> Result<bool, FileError> {
        let mut next = *cursor;
        let Some(block) = self.ready().await?.read_dir(dir, &mut next).await? else { return Ok(false) };
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
