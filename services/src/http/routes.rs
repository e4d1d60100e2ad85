//! Addresses that are not files.

use super::{Broken, Connection, Exchange};

/// Answers some addresses, whatever files there are. Listings do not show files of these names.
#[allow(async_fn_in_trait, reason = "one single-threaded executor: futures need not be Send")]
pub trait Routes {
    /// Whether the path, decoded and without a slash at its end, is one of them: it is never looked for among
    /// the files.
    fn is_reserved(&self, path: &[u8]) -> bool;

    /// Answers GET or HEAD for such a path. Where the client does not know chunked encoding the connection
    /// is not kept.
    async fn answer<C: Connection>(
        &self,
        exchange: &mut Exchange<'_, '_, C>,
        path: &[u8],
    ) -> Result<(), Broken>;
}
