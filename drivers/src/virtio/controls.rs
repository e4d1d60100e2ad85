//! Header and status: what the requests of many devices begin and end with.

use core::sync::atomic::Ordering;

use ringfence_memory::{Direction, DmaArray, DmaWindows, SegmentArray};

use super::Error;

/// Words of a header.
const HEADER_WORDS: usize = 2;

/// For each slot of a queue a header of 16 bytes, which the device reads first, and a status byte, which it
/// writes last.
#[derive(Debug)]
pub struct Controls {
    headers: DmaArray<u64>,
    statuses: DmaArray<u8>,
    /// The same as segments.
    fixed: [SegmentArray; 2],
}

impl Controls {
    /// A status that no device reports.
    pub const NO_STATUS: u8 = 0xff;

    /// Those of `slots` slots.
    ///
    /// # Errors
    /// If there is no memory for them, or no slots.
    pub fn new(windows: &DmaWindows, slots: usize) -> Result<Self, Error> {
        let words = slots.saturating_mul(HEADER_WORDS);
        let headers = windows.allocate_for(words.saturating_mul(size_of::<u64>()), Direction::ToDevice)?;
        let statuses = windows.allocate_for(slots, Direction::FromDevice)?;
        let (headers, statuses) = (headers.array(0, words)?, statuses.array(0, slots)?);
        let fixed = headers.segments(HEADER_WORDS, false).zip(statuses.segments(1, true));
        let (first, last) = fixed.ok_or(Error::BadConfig)?;
        Ok(Self { headers, statuses, fixed: [first, last] })
    }

    /// Writes the header of `slot`, little-endian, and clears its status; `None` if there is no such slot.
    #[inline(always)]
    pub(crate) fn prepare(&self, slot: u16, [first, second]: [u64; HEADER_WORDS]) -> Option<()> {
        let slot = usize::from(slot);
        let at = slot.wrapping_mul(HEADER_WORDS);
        self.headers.store(at.wrapping_add(1), second.to_le(), Ordering::Relaxed)?;
        self.headers.store(at, first.to_le(), Ordering::Relaxed)?;
        self.statuses.store(slot, Self::NO_STATUS, Ordering::Relaxed)
    }

    /// What the device wrote last to the status byte of `slot`.
    #[inline(always)]
    pub fn status(&self, slot: u16) -> u8 {
        self.statuses.load(slot.into(), Ordering::Relaxed).unwrap_or(Self::NO_STATUS)
    }

    pub(crate) fn fixed(&self) -> [&SegmentArray; 2] {
        self.fixed.each_ref()
    }
}
