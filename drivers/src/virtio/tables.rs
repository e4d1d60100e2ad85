//! Indirect descriptor tables (2.7.5.3, 2.8.7), allocated with the queue.

use core::sync::atomic::Ordering;

use ringfence_memory::{DescriptorArray, Direction, DmaAddr, DmaRegion, DmaWindows};

use super::chain::{Buffers, Chain, Entry, Frames, Part};
use super::{Error, QueueError};

/// Bytes of a descriptor, and its alignment.
pub(super) const DESCRIPTOR_LEN: usize = 16;

/// Tables of equal length.
#[derive(Debug)]
pub(super) struct Tables {
    /// Keeps the device's window open.
    _region: DmaRegion,
    descriptors: DescriptorArray,
    /// Descriptors in each table.
    len: u16,
}

impl Tables {
    /// `count` tables for chains of up to `len` parts; both are not 0.
    pub(super) fn new(windows: &DmaWindows, count: u16, len: u16) -> Result<Self, Error> {
        let descriptors = usize::from(count).saturating_mul(len.into());
        let bytes = descriptors.saturating_mul(DESCRIPTOR_LEN);
        let region = windows.allocate_for(bytes, Direction::ToDevice)?;
        Ok(Self { descriptors: DescriptorArray::new(&region, 0, descriptors)?, _region: region, len })
    }

    /// Writes a chain to the table at `index`. `rest` makes the second half of each descriptor from its part and the place
    /// of the next in the table, if there is one. Says what the chain is (which itself takes one descriptor), where its
    /// table is, and the table's length in bytes.
    #[inline(never)]
    pub(super) fn write<B: Buffers>(
        &self,
        index: u16,
        entry: Entry<'_, B>,
        frames: &Frames,
        rest: impl Fn(&Part, Option<u16>) -> u64,
    ) -> Result<(Chain, DmaAddr, u32), QueueError> {
        let first = usize::from(index).wrapping_mul(self.len.into());
        let chain = entry.write(frames.get(entry.slot), self.len, |place, part, more| {
            let at = first.wrapping_add(place.into());
            self.descriptors.store_address(at, part.address)?;
            let rest = rest(part, more.then_some(place.wrapping_add(1)));
            Ok(self.descriptors.store_rest(at, rest, Ordering::Relaxed)?)
        })?;
        let address = self.descriptors.address(first).ok_or(QueueError::Broken)?;
        let len = u32::from(chain.count).wrapping_mul(DESCRIPTOR_LEN as u32);
        Ok((Chain { count: 1, ..chain }, address, len))
    }
}
