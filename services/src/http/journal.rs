//! What the log says about requests: all of them where that is wanted, and why some failed, for whoever runs
//! the server. A client sees no more than a status.

use core::fmt;
use core::net::IpAddr;

use embassy_time::Duration;
use log::{Level, debug, log_enabled, warn};

use super::Status;
use super::bucket::Bucket;
use super::date::Civil;

/// Bytes of a target or request line that are shown.
const SHOWN: usize = 160;
/// The module, as far as filters know, of the lines about all requests.
const ACCESS: &str = "access";

/// The lines about requests, but not too many.
pub(super) struct Journal {
    failures: Bucket,
    access: Bucket,
}

/// A request that was answered.
pub(super) struct Answered<'a> {
    pub peer: Option<IpAddr>,
    /// Seconds since 1970.
    pub now: Option<u64>,
    /// The request line.
    pub line: &'a [u8],
    pub status: Option<Status>,
    /// Bytes sent, head and body.
    pub bytes: u64,
    pub took: Duration,
}

impl Journal {
    pub(super) const fn new() -> Self {
        Self {
            failures: Bucket::new(8, Duration::from_millis(1250)),
            access: Bucket::new(200, Duration::from_millis(20)),
        }
    }

    /// Notes that the request for `target` got `outcome` because of `why`.
    pub(super) fn failed(&self, target: &str, outcome: &dyn fmt::Display, why: &dyn fmt::Display) {
        match self.failures.take() {
            None => return,
            Some(0) => {}
            Some(silent) => warn!("http: {silent} more requests failed, and are not told here"),
        }
        warn!("http: {}: {outcome}: {why}", Shown(target.as_bytes()));
    }

    /// Whether [`answered`](Self::answered) has anything to say.
    pub(super) fn wants_all() -> bool {
        log_enabled!(target: ACCESS, Level::Debug)
    }

    /// Notes any request, in the manner of the Common Log Format.
    pub(super) fn answered(&self, request: &Answered<'_>) {
        let Answered { peer, now, line, status, bytes, took } = request;
        match self.access.take() {
            None => return,
            Some(0) => {}
            Some(silent) => debug!(target: ACCESS, "{silent} more requests are not told here"),
        }
        let (peer, now) = (Known(*peer), Known(now.map(Timestamp)));
        let (status, line, took) = (Known(status.map(Status::code)), Shown(line), took.as_millis());
        debug!(target: ACCESS, "{peer} [{now}] \"{line}\" {status} {bytes} {took} ms");
    }
}

/// A dash where it is not known.
struct Known<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Known<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(known) => known.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// Bytes of a client, so that they can neither pass for something else nor be too many.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, rest) = self.0.split_at_checked(SHOWN).unwrap_or((self.0, &[]));
        write!(f, "{}{}", shown.escape_ascii(), if rest.is_empty() { "" } else { "…" })
    }
}

/// Seconds since 1970 as in `2026-11-27 11:20:03`.
struct Timestamp(u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Civil { year, month, day, hour, minute, second } = Civil::at(self.0);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}
