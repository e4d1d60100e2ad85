//! Chains of whole buffers: for devices whose requests have no fixed form.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use ringfence_memory::{Direction, DmaArray, DmaBuf, DmaWindows, Segment, SegmentArray};

use super::{Buffers, Error, QueueShape, sealed};

/// Words of a header.
const HEADER_WORDS: usize = 2;

/// Buffers for the device to read, buffers for it to write, and a name to know them by when they come back.
///
/// In a queue with [frames](BufferFrames::new) the header of the chain is the name and a word of zeros,
/// little-endian.
#[derive(Debug)]
pub struct BufferList {
    name: u64,
    readable: Vec<DmaBuf>,
    writable: Vec<DmaBuf>,
    parts: Vec<Range<usize>>,
    least_written: u32,
}

impl BufferList {
    /// A chain of `readable` and then `writable`, all of each, of which the device must write at least
    /// `least_written` bytes. The buffers are the queue's while the chain is in flight.
    pub fn new(name: u64, readable: Vec<DmaBuf>, writable: Vec<DmaBuf>, least_written: u32) -> Self {
        Self { name, readable, writable, parts: Vec::new(), least_written }
    }

    /// Of each buffer, readable ones first, only the bytes in this range; all of those that have none. A
    /// queue refuses a range that is empty or not in its buffer.
    pub fn with_parts(self, parts: Vec<Range<usize>>) -> Self {
        Self { parts, ..self }
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

/// Memory for the headers and status bytes of a queue's chains, if they have such.
#[derive(Debug, Default)]
pub struct BufferFrames(Option<Memory>);

#[derive(Debug)]
struct Memory {
    headers: DmaArray<u64>,
    statuses: DmaArray<u8>,
    frames: [SegmentArray; 2],
}

impl BufferFrames {
    /// A header of 16 bytes, for the device to read, and a status byte, for it to write, for each slot of a
    /// queue like `shape`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn new(windows: &DmaWindows, shape: &QueueShape) -> Result<Self, Error> {
        let words = shape.slots.saturating_mul(HEADER_WORDS);
        let headers = windows.allocate_for(words.saturating_mul(size_of::<u64>()), Direction::ToDevice)?;
        let headers = headers.array(0, words)?;
        let statuses = windows.allocate_for(shape.slots, Direction::FromDevice)?;
        let statuses = statuses.array::<u8>(0, shape.slots)?;
        let frames = headers.segments(HEADER_WORDS, false).zip(statuses.segments(1, true));
        let (first, last) = frames.ok_or(Error::BadConfig)?;
        Ok(Self(Some(Memory { headers, statuses, frames: [first, last] })))
    }

    /// What the device wrote last to the status byte of `slot`; `None` if it has none.
    pub fn status(&self, slot: u16) -> Option<u8> {
        self.0.as_ref()?.statuses.load(slot.into(), Ordering::Relaxed)
    }
}

impl sealed::Sealed for BufferList {}

impl Buffers for BufferList {
    type Context = BufferFrames;

    const FRAMED: bool = true;

    fn frames(BufferFrames(memory): &BufferFrames) -> Option<[&SegmentArray; 2]> {
        memory.as_ref().map(|memory| memory.frames.each_ref())
    }

    fn only<'a>(&'a self, frames: &'a BufferFrames) -> Option<Segment<'a>> {
        if self.count(frames) == 1 { self.segment(frames, 0) } else { None }
    }

    fn count(&self, _: &BufferFrames) -> u16 {
        let count = self.readable.len().saturating_add(self.writable.len());
        count.try_into().unwrap_or(u16::MAX)
    }

    fn segment<'a>(&'a self, _: &'a BufferFrames, index: u16) -> Option<Segment<'a>> {
        let index = usize::from(index);
        let part = self.parts.get(index);
        let (buffer, writable) = match index.checked_sub(self.readable.len()) {
            None => (self.readable.get(index)?, false),
            Some(index) => (self.writable.get(index)?, true),
        };
        let (start, len) = part.map_or((0, buffer.len()), |part| (part.start, part.len()));
        buffer.segment(start, len, writable)
    }

    fn prepare(&self, BufferFrames(memory): &BufferFrames, slot: u16) -> Option<()> {
        let Some(Memory { headers, .. }) = memory else { return Some(()) };
        headers.store(usize::from(slot).wrapping_mul(HEADER_WORDS), self.name.to_le(), Ordering::Relaxed)
    }

    fn least_written(&self) -> u32 {
        self.least_written
    }

    fn abandon(self) {
        self.readable.into_iter().chain(self.writable).for_each(DmaBuf::abandon);
    }
}
