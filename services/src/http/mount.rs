//! The files that are served, once they are there.

use alloc::rc::Rc;

use async_lock::OnceCell;

use crate::block::BlockSource;
use crate::fs::FileSystem;

/// A file system that is served, once it is open, or the reason why there is none.
pub struct Mount<F>(OnceCell<Result<F, Rc<str>>>);

impl<F> Mount<F> {
    /// Nothing is open yet: whoever asks for a file waits until [`open`](Self::open) has done its work.
    pub fn new() -> Self {
        Self(OnceCell::new())
    }

    /// The file system, once it is open.
    pub fn get(&self) -> Option<&F> {
        self.0.get()?.as_ref().ok()
    }

    /// Waits until it is open, or it is known why there is none.
    pub(super) async fn ready(&self) -> Result<&F, &Rc<str>> {
        self.0.wait().await.as_ref()
    }
}

impl<B: BlockSource> Mount<FileSystem<B>> {
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
        self.0.get_or_init(|| open).await.as_ref().map_err(|why| &**why)
    }
}

impl<F> Default for Mount<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// What is open already, or why there is none.
impl<F> From<Result<F, Rc<str>>> for Mount<F> {
    fn from(opened: Result<F, Rc<str>>) -> Self {
        Self(opened.into())
    }
}
