//! What time of day it is, for the heads of responses.

use core::cell::Cell;

use super::date::{Fixdate, fixdate};

/// The clock of a server, or none.
pub(super) struct Clock {
    read: fn() -> Option<u64>,
    /// The second that was told last, and how it is written.
    last: Cell<(u64, Fixdate)>,
}

impl Clock {
    /// `read` gives seconds since 1970, or nothing where there is no clock.
    pub(super) fn new(read: fn() -> Option<u64>) -> Self {
        Self { read, last: Cell::new((0, fixdate(0))) }
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> Option<u64> {
        (self.read)()
    }

    /// The same as a date. It is written once a second at most.
    pub(super) fn date(&self) -> Option<Fixdate> {
        let now = self.now()?;
        let (second, date) = self.last.get();
        if second == now {
            return Some(date);
        }
        let date = fixdate(now);
        self.last.set((now, date));
        Some(date)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(|| None)
    }
}
