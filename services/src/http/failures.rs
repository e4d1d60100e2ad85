//! Why requests failed, on the log: for whoever runs the server. A client sees no more than a status.

use core::cell::Cell;
use core::fmt;

use embassy_time::{Duration, Instant};
use log::warn;

/// At most [`BURST`] failures are logged in so much time: a client that causes them must not fill the log,
/// which may be a slow serial port.
const WINDOW: Duration = Duration::from_secs(10);
const BURST: u32 = 8;
/// Bytes of a target that are shown.
const SHOWN: usize = 160;

/// Writes failures to the log, but not too many.
#[derive(Default)]
pub(super) struct Failures {
    since: Cell<Option<Instant>>,
    logged: Cell<u32>,
    silent: Cell<u64>,
}

impl Failures {
    /// Notes that the request for `target` got `outcome` because of `why`.
    pub(super) fn note(&self, target: &str, outcome: &dyn fmt::Display, why: &dyn fmt::Display) {
        let now = Instant::now();
        let ago = self.since.get().map(|since| now.saturating_duration_since(since));
        if ago.is_none_or(|ago| ago >= WINDOW) {
            self.since.set(Some(now));
            self.logged.set(0);
            match self.silent.take() {
                0 => {}
                silent => warn!("http: {silent} more requests failed in the last {} s", WINDOW.as_secs()),
            }
        }
        if self.logged.get() >= BURST {
            return self.silent.set(self.silent.get().saturating_add(1));
        }
        self.logged.set(self.logged.get().saturating_add(1));
        let target = target.as_bytes();
        let (shown, rest) = target.split_at_checked(SHOWN).unwrap_or((target, &[]));
        let more = if rest.is_empty() { "" } else { "…" };
        warn!("http: {}{more}: {outcome}: {why}", shown.escape_ascii());
    }
}
