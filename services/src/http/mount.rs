//! The files that are served, once they are there.

use alloc::rc::Rc;
use alloc::string::String;

use async_lock::OnceCell;

/// A file system that is served, once it is open, or the reason why there is none.
pub struct Mount<F>(OnceCell<Result<F, Rc<str>>>);

impl<F> Mount<F> {
    /// Nothing is open yet: whoever asks for a file waits until [`open`](Self::open) has done its work.
    pub fn new() -> Self {
        Self(OnceCell::new())
    }

    /// Has it opened by `opening`, which also says why if that cannot be. Without a file system every file is
    /// answered with 503 and the reason; everything else is served. Call this once: further calls change
    /// nothing.
    ///
    /// # Errors
    /// Why there are no files, as a sentence for a person.
    pub async fn open(&self, opening: impl Future<Output = Result<F, String>>) -> Result<&F, &str> {
        let opened = async { opening.await.map_err(Rc::from) };
        self.0.get_or_init(|| opened).await.as_ref().map_err(|why| &**why)
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
