//! Bytes that several hold, without a copy.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;

/// A part of a page that is given back when its last holder is done.
#[derive(Clone, Debug)]
pub struct Shared {
    page: Rc<Vec<u8>>,
    start: usize,
    end: usize,
}

impl Shared {
    /// The part `range` of `page`, as far as there is one.
    pub fn new(page: Rc<Vec<u8>>, range: Range<usize>) -> Self {
        let end = range.end.min(page.len());
        Self { start: range.start.min(end), end, page }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.page.get(self.start..self.end).unwrap_or_default()
    }

    /// How many bytes of memory it holds.
    pub fn holds(&self) -> usize {
        self.page.capacity()
    }
}
