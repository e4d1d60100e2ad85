//! How much may be logged: a client that causes lines must not fill the log, which may be a slow serial port.

use core::cell::Cell;

use embassy_time::{Duration, Instant};

/// Lets a burst of lines through, and then one in so much time.
pub(super) struct Bucket {
    burst: u32,
    every: Duration,
    /// Lines that may be written, as of when.
    left: Cell<(u32, Instant)>,
    dropped: Cell<u64>,
}

impl Bucket {
    pub(super) const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, left: Cell::new((burst, Instant::MIN)), dropped: Cell::new(0) }
    }

    /// Whether a line may be written; then also how many were not since the last.
    pub(super) fn take(&self) -> Option<u64> {
        let now = Instant::now();
        let (left, since) = self.left.get();
        let more = now.saturating_duration_since(since).as_ticks().checked_div(self.every.as_ticks());
        let left = u32::try_from(more.unwrap_or(0)).unwrap_or(u32::MAX).saturating_add(left).min(self.burst);
        // What is not enough for a line goes on counting.
        let since = if more == Some(0) { since } else { now };
        match left.checked_sub(1) {
            Some(left) => {
                self.left.set((left, since));
                Some(self.dropped.take())
            }
            None => {
                self.left.set((left, since));
                self.dropped.set(self.dropped.get().saturating_add(1));
                None
            }
        }
    }
}
