//! How far one reader reads ahead.
//!
//! The window doubles each time the reader has used up what was read ahead for it. When it finds that a page
//! is gone before it came to it, the cache is too small for all readers' windows together: the window shrinks
//! to half, and grows by a page at a time from then on.

use super::cache::PAGE_SIZE;
use super::run::Run;
use crate::block::MAX_READ;
use core::cell::Cell;

/// Bytes read ahead at the first read of a file.
const FIRST_WINDOW: usize = 16 * 1024;

/// Where a reader is.
#[derive(Default)]
pub struct Cursor {
    /// The run of blocks it is in.
    pub run: Cell<Option<Run>>,
    /// Where a sequential reader goes on.
    next: Cell<u64>,
    /// Bytes to read ahead.
    window: Cell<usize>,
    /// How far has been read ahead.
    loaded: Cell<u64>,
    /// What was read ahead was lost once.
    is_crowded: Cell<bool>,
}

impl Cursor {
    /// Notes a read of `len` bytes, and says how many bytes to read ahead of it: none for a reader that
    /// jumps.
    pub fn start(&self, offset: u64, len: usize) -> usize {
        if offset != self.next.get() {
            self.window.set(0);
            self.loaded.set(0);
        } else if self.window.get() == 0 {
            self.window.set(FIRST_WINDOW);
        }
        self.next.set(offset.saturating_add(len as u64));
        self.window.get()
    }

    /// Notes that the bytes at `offset` were not in the cache, and that the device was asked for what lies
    /// before `loaded`.
    pub fn missed(&self, offset: u64, loaded: u64) {
        let window = self.window.get();
        if window > 0 {
            let lost = offset < self.loaded.get();
            self.is_crowded.set(self.is_crowded.get() || lost);
            let window = match (lost, self.is_crowded.get()) {
                (true, _) => window / 2,
                (false, true) => window.saturating_add(PAGE_SIZE),
                (false, false) => window.saturating_mul(2),
            };
            self.window.set(window.clamp(PAGE_SIZE, MAX_READ));
        }
        self.loaded.set(loaded);
    }
}
