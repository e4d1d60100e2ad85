//! How fast a client has to take a response, and when it has to make room for others.

use embassy_time::{Duration, Instant};

use super::{Limits, Stats, Status};

/// How often a connection that waits looks whether it should make room. Who takes 32 KiB in this time is not
/// even looked at.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// Others are short of room if they have waited for so long: not if a task is about to take them.
const SHORT: Duration = Duration::from_millis(250);
/// While others wait the least rate doubles after each of these, up to 16 times: so the slowest go first.
const DOUBLING: Duration = Duration::from_secs(4);

/// The pace of one connection.
pub(super) struct Pace<'a> {
    limits: &'a Limits,
    crowded: &'a dyn Fn() -> bool,
    /// Since when others have been waiting, as far as was seen.
    since: Option<Instant>,
    /// When the response began, how much of it was sent, and its status.
    pub(super) start: Instant,
    sent: u64,
    pub(super) status: Option<Status>,
}

impl<'a> Pace<'a> {
    pub(super) fn new(limits: &'a Limits, crowded: &'a dyn Fn() -> bool) -> Self {
        Self { limits, crowded, since: None, start: Instant::MIN, sent: 0, status: None }
    }

    /// A request is there, and begins to be answered.
    pub(super) fn begin(&mut self) {
        (self.start, self.sent, self.status) = (Instant::now(), 0, None);
    }

    pub(super) fn sent(&mut self, n: usize) {
        self.sent = self.sent.saturating_add(n as u64);
    }

    /// Bytes of the response so far, and how long it has taken.
    pub(super) fn progress(&self) -> (u64, Duration) {
        (self.sent, self.start.elapsed())
    }

    /// Whether others wait for a place at this moment.
    pub(super) fn is_crowded(&self) -> bool {
        (self.crowded)()
    }

    /// For how long others have been waiting, if they are short of room.
    pub(super) fn shortage(&mut self) -> Option<Duration> {
        if !self.is_crowded() {
            self.since = None;
            return None;
        }
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        Some(waited).filter(|waited| *waited >= SHORT)
    }

    /// Whether the client has to go: it took too long for what is sent since `since`, or it is slow while
    /// others wait.
    pub(super) fn is_over(&mut self, since: Instant, stats: &Stats) -> bool {
        if since.elapsed() >= self.limits.stall {
            return true;
        }
        let Some(waited) = self.shortage() else { return false };
        let age = self.start.elapsed();
        let doublings = waited.as_ticks().checked_div(DOUBLING.as_ticks()).unwrap_or(0).min(4);
        let expected = age.as_millis().saturating_mul(self.limits.rate << doublings) / 1000;
        let gives_way = age >= self.limits.grace && self.sent < expected;
        if gives_way {
            stats.gave_way.add(1);
        }
        gives_way
    }
}
