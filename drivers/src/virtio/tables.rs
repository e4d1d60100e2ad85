//! Indirect descriptor tables (2.7.5.3, 2.8.7), allocated with the queue.

use core::sync::atomic::Ordering;

use ringfence_memory::{DescriptorTable, Direction, DmaWindows, RingFormat, Segment};

use super::chain::{Buffers, Chain, Entry, Frames};
use super::{Error, QueueError};

/// Tables of equal length.
#[derive(Debug)]
pub(super) struct Tables<F: RingFormat> {
    pub(super) descriptors: DescriptorTable<F>,
    /// Descriptors in each table.
    len: u16,
}

impl<F: RingFormat> Tables<F> {
    /// `count` tables for chains of up to `len` segments; both are not 0.
    pub(super) fn new(windows: &DmaWindows, count: u16, len: u16) -> Result<Self, Error> {
        let descriptors = usize::from(count).saturating_mul(len.into());
        Ok(Self { descriptors: DescriptorTable::new(windows, descriptors, 0, Direction::ToDevice)?, len })
    }

    /// Writes a chain to the table at `index`. `bits` makes the second half of each descriptor from the place
    /// of the next in the table, if there is one. Says what the chain is (which itself takes one descriptor),
    /// and the first and the number of its descriptors.
    #[inline(never)]
    pub(super) fn write<B: Buffers>(
        &mut self,
        index: u16,
        entry: Entry<'_, B>,
        frames: &Frames,
        bits: impl Fn(Option<u16>) -> u64,
    ) -> Result<(Chain, usize, usize), QueueError> {
        let first = usize::from(index).wrapping_mul(self.len.into());
        let chain = entry.write(frames.get(entry.slot), self.len, |place, segment: &Segment<'_>, more| {
            let at = first.wrapping_add(place.into());
            let bits = bits(more.then_some(place.wrapping_add(1)));
            Ok(self.descriptors.store(at, segment, bits, Ordering::Relaxed)?)
        })?;
        Ok((Chain { count: 1, ..chain }, first, chain.count.into()))
    }
}
