//! How far an audit has come: kept with the books, and moved on by whoever changes them.

use super::report::Report;
use crate::allocator::bits;
use crate::allocator::owner::Owner;
use crate::paging::{LOW_PAGES, Tag};
use core::ops::Range;

/// What the next step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No audit is under way.
    Idle,
    /// Forgets marks, and counts RAM, from this word on.
    Clear(usize),
    /// Forgets which tables, from this one on, were seen.
    Tables(usize),
    /// Looks at free blocks: of private memory, then of the DMA arena.
    Free(Owner),
    /// Looks at tables.
    Walk,
    /// Looks at the devices' windows, from here on.
    Windows(Place),
}

/// The audit that is under way in a frame allocator, or was last.
pub(crate) struct Progress {
    /// How many were begun, or begun again.
    pub(super) begun: u64,
    pub(super) phase: Phase,
    /// The pages below this number (without its sign) have been looked at, and are kept track of.
    pub(super) walked: u64,
    /// Frames that they map, by [`Tag`].
    pub(super) mapped: [usize; 4],
    /// The last leaf, by its first page, whose frames are not as they must be.
    pub(super) blamed: Option<u64>,
    /// Frames of RAM.
    pub(super) present: usize,
    pub(super) report: Report,
    /// The last report, and how many audits had been begun by then.
    pub(super) last: Option<(u64, Report)>,
}

impl Progress {
    pub fn new() -> Self {
        Self {
            begun: 0,
            phase: Phase::Idle,
            walked: 0,
            mapped: [0; 4],
            blamed: None,
            present: 0,
            report: Report::new(),
            last: None,
        }
    }

    /// Begins again if an audit is under way.
    pub fn restart(&mut self) {
        if self.phase != Phase::Idle {
            self.begin();
        }
    }

    pub(super) fn begin(&mut self) {
        let (begun, last) = (self.begun + 1, self.last.take());
        *self = Self { begun, phase: Phase::Clear(0), last, ..Self::new() };
    }

    pub(super) fn end(&mut self, report: Report) {
        self.last = Some((self.begun, report));
        self.phase = Phase::Idle;
    }

    /// The pages from number `page` on are now mapped to these frames (as indices), or not any more.
    pub fn change(&mut self, scratch: &mut [u64], tag: Tag, page: u64, frames: Range<usize>, mapped: bool) {
        let walked = self.walked.saturating_sub(page & LOW_PAGES);
        let end = frames.end.min(frames.start.saturating_add(walked as usize));
        let count = end - frames.start;
        // Tables that were tampered with may lead below zero; then the count is far from what is booked.
        if mapped {
            bits::set(scratch, frames.start, end);
            self.mapped[tag as usize] = self.mapped[tag as usize].wrapping_add(count);
        } else {
            bits::clear(scratch, frames.start, end);
            self.mapped[tag as usize] = self.mapped[tag as usize].wrapping_sub(count);
        }
    }
}

/// How far the look at the devices' windows has come: the table, the window by its device address, and the
/// bytes of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) table: u64,
    pub(super) window: u64,
    pub(super) offset: usize,
}

impl Place {
    pub const START: Self = Self::at_table(0);

    pub(super) const fn at_table(table: u64) -> Self {
        Self { table, window: 0, offset: 0 }
    }
}
