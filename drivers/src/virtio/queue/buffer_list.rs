//! Chains of whole buffers: for devices whose requests have no fixed form.

use alloc::vec::Vec;
use core::ops::Range;

use ringfence_memory::{DmaBuf, Segment};

use super::{Buffers, Controls, Ends, sealed};

/// Buffers for the device to read, buffers for it to write, and a name to know them by when they come back.
///
/// In a queue with [controls](Controls::new) the header of the chain is the name and a word of zeros,
/// little-endian.
#[derive(Debug, Default)]
pub struct BufferList {
    name: u64,
    readable: Vec<DmaBuf>,
    writable: Vec<DmaBuf>,
    segments: Vec<Range<usize>>,
    least_written: u32,
}

impl BufferList {
    /// A chain of `readable` and then `writable`, all of each, of which the device must write at least
    /// `least_written` bytes. The buffers are the queue's while the chain is in flight.
    pub fn new(name: u64, readable: Vec<DmaBuf>, writable: Vec<DmaBuf>, least_written: u32) -> Self {
        Self { name, readable, writable, segments: Vec::new(), least_written }
    }

    /// Of each buffer, readable ones first, only the bytes in this range; all of those that have none. A
    /// queue refuses a range that is empty or not in its buffer.
    pub fn with_segments(self, segments: Vec<Range<usize>>) -> Self {
        Self { segments, ..self }
    }

    /// The name.
    pub fn name(&self) -> u64 {
        self.name
    }

    /// What the device reads, and what it writes.
    pub fn buffers(&self) -> [&[DmaBuf]; 2] {
        [&self.readable, &self.writable]
    }

    /// The same, by value.
    pub fn into_buffers(self) -> [Vec<DmaBuf>; 2] {
        [self.readable, self.writable]
    }
}

impl sealed::Sealed for BufferList {}

impl Buffers for BufferList {
    type Context = Option<Controls>;
    type Request = ();

    fn ends(controls: &Option<Controls>, slot: u16) -> Option<[Segment<'_>; 2]> {
        controls.as_ref()?.ends(slot)
    }

    fn only<'a>(&'a self, (): (), controls: &'a Option<Controls>) -> Option<Segment<'a>> {
        if self.count((), controls) == 1 { self.segment((), controls, 0) } else { None }
    }

    fn count(&self, (): (), _: &Option<Controls>) -> u16 {
        let count = self.readable.len().saturating_add(self.writable.len());
        count.try_into().unwrap_or(u16::MAX)
    }

    fn segment<'a>(&'a self, (): (), _: &'a Option<Controls>, index: u16) -> Option<Segment<'a>> {
        let index = usize::from(index);
        let range = self.segments.get(index);
        let (buffer, writable) = match index.checked_sub(self.readable.len()) {
            None => (self.readable.get(index)?, false),
            Some(index) => (self.writable.get(index)?, true),
        };
        let (start, len) = range.map_or((0, buffer.len()), |range| (range.start, range.len()));
        buffer.segment(start, len, writable)
    }

    fn prepare<'a>(&self, (): (), controls: &'a Option<Controls>, slot: u16) -> Ends<'a> {
        controls.as_ref().map_or(Ok(None), |controls| controls.prepare(slot, [self.name, 0]))
    }

    fn least_written(&self) -> u32 {
        self.least_written
    }

    fn abandon(self) {
        self.readable.into_iter().chain(self.writable).for_each(DmaBuf::abandon);
    }
}
