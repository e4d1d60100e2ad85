//! What a client has sent and nobody has used yet.

use alloc::vec::Vec;

use embassy_futures::poll_once;
use embassy_time::{Duration, with_timeout};
use embedded_io_async::Read;

use super::request::MAX_HEAD;
use super::{Broken, Stats};
use crate::text::NoMemory;

/// An idle connection keeps no more memory than this.
const KEPT: usize = 1 << 10;
/// Memory that is asked for at first.
const FIRST: usize = 512;

/// Bytes received, up to a full head.
#[derive(Default)]
pub(super) struct Input {
    /// What is behind `filled` is room for more.
    buffer: Vec<u8>,
    filled: usize,
}

impl Input {
    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    /// Waits for more, up to `limit` where there is one, and returns how much came: 0 at the end, or if there
    /// is no room; `None` when the time is over. Cancelling loses nothing.
    pub(super) async fn read_more<C: Read>(
        &mut self,
        conn: &mut C,
        limit: Option<Duration>,
        stats: &Stats,
    ) -> Result<Option<usize>, Broken> {
        self.make_room()?;
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        // Without a timer, which costs more than the bytes, if they are there already.
        let read = match poll_once(conn.read(room)) {
            core::task::Poll::Ready(read) => read,
            core::task::Poll::Pending => match limit {
                None => conn.read(room).await,
                Some(limit) => match with_timeout(limit, conn.read(room)).await {
                    Ok(read) => read,
                    Err(_) => return Ok(None),
                },
            },
        };
        let n = read.map_err(|_| Broken::Lost)?;
        self.filled = self.filled.saturating_add(n).min(self.buffer.len());
        stats.received.add(n);
        Ok(Some(n))
    }

    fn make_room(&mut self) -> Result<(), NoMemory> {
        if self.filled < self.buffer.len() {
            return Ok(());
        }
        let size = self.filled.saturating_mul(2).clamp(FIRST, MAX_HEAD);
        self.buffer.try_reserve_exact(size.saturating_sub(self.filled)).map_err(|_| NoMemory)?;
        self.buffer.resize(size, 0);
        Ok(())
    }

    /// Forgets the first `n` bytes, or all there are.
    pub(super) fn consume(&mut self, n: usize) {
        let n = n.min(self.filled);
        self.buffer.copy_within(n..self.filled, 0);
        self.filled = self.filled.saturating_sub(n);
        if self.filled == 0 && self.buffer.len() > KEPT {
            self.buffer = Vec::new();
        }
    }
}
