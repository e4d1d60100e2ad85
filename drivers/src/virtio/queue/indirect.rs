//! Indirect descriptor tables (2.7.5.3, 2.8.7), allocated with the queue: one for each slot.

use core::sync::atomic::Ordering;

use ringfence_memory::{DescriptorBits, DescriptorTable, Direction, DmaWindows, RingFormat, Segment};

use super::chain::{Added, Chain};
use super::layout::Layout;
use super::{Error, QueueError};

/// Tables of equal length.
#[derive(Debug)]
pub(super) struct Tables<F: RingFormat>(DescriptorTable<F>);

impl<F: RingFormat> Tables<F> {
    /// The tables of all slots, if they have such.
    pub(super) fn new(windows: &DmaWindows, layout: &Layout) -> Result<Option<Self>, Error> {
        if !layout.indirect {
            return Ok(None);
        }
        let count = usize::from(layout.slots).saturating_mul(layout.longest.into());
        Ok(Some(Self(DescriptorTable::new(windows, count, 0, Direction::ToDevice)?)))
    }

    /// Writes a chain to the table of its slot; `bits` makes the second half of each descriptor from the
    /// index of the next in the table, if there is one. Then writes the one descriptor of `ring` that refers
    /// to it, at `index` and with the bits in `head`, or holds it, as `hold` says.
    #[inline(never)]
    pub(super) fn add(
        &mut self,
        chain: Chain<'_>,
        layout: &Layout,
        bits: impl Fn(Option<u16>) -> u64,
        (ring, index, head, hold): (&mut DescriptorTable<F>, u16, DescriptorBits<F>, bool),
    ) -> Result<Added, QueueError> {
        let first = usize::from(chain.slot).wrapping_mul(layout.longest.into());
        let count = chain.count(layout)?;
        let added = chain.write(count, |index, segment: &Segment<'_>, more| {
            let at = first.wrapping_add(index.into());
            Ok(self.0.store(at, segment, bits(more.then_some(index.wrapping_add(1))), Ordering::Relaxed)?)
        })?;
        ring.store_indirect(index.into(), (&self.0, first, count.into()), head, hold)?;
        Ok(Added { count: 1, ..added })
    }
}
