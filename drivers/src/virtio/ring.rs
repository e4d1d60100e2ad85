//! What the two formats of a virtqueue have in common: [`SplitRing`](super::split::SplitRing) and
//! [`PackedRing`](super::packed::PackedRing) are [`Ring`]s.

use alloc::vec::Vec;

use ringfence_memory::Segment;

use super::chain::{Buffers, Chain, Entry, Frames};
use super::{Error, QueueError, QueueOptions, QueueSetup};

/// How slots share the descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: u16,
    /// The most parts of a chain.
    pub(super) parts: u16,
    /// Number of slots, and how many of them can have their parts in the ring while all are in use.
    pub(super) slots: u16,
    direct: u16,
    /// In a split queue, the number of the first slot with a table.
    pub(super) first_indirect: u16,
}

impl Layout {
    /// As many slots as wanted, if they fit: each takes `parts` descriptors or, with indirect tables, at
    /// least one. A table costs the device another look at memory, so as few slots as possible have one.
    pub(super) fn new(size: u16, options: &QueueOptions, indirect: bool) -> Self {
        let parts = options.parts.min(size).max(1);
        let fit = size.checked_div(parts).unwrap_or(0);
        let most = if indirect && parts > 1 { size } else { fit };
        let slots = options.chains.min(most);
        let others = || size.saturating_sub(slots).checked_div(parts.saturating_sub(1)).unwrap_or(0);
        let direct = if slots <= fit { slots } else { others() };
        // At most `size`.
        let first_indirect = direct.wrapping_mul(parts);
        Self { size, parts, slots, direct, first_indirect }
    }

    /// How many slots have their parts in an indirect table while all are in use.
    pub(super) fn tables(&self) -> u16 {
        self.slots.saturating_sub(self.direct)
    }

    /// The slots of a split queue: those with their parts in the ring, and the others. The last are to be
    /// used first.
    pub(super) fn split_slots(&self) -> (Vec<u16>, Vec<u16>) {
        let direct = (0..self.direct).rev().map(|slot| slot.wrapping_mul(self.parts)).collect();
        let end = self.first_indirect.saturating_add(self.tables());
        (direct, (self.first_indirect..end).rev().collect())
    }
}

/// A used element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) id: u32,
    pub(super) len: u32,
}

/// A virtqueue's memory, as the driver uses it.
pub(super) trait Ring {
    /// What the device is to know of it.
    fn setup(&self, index: u16) -> Result<QueueSetup<'_>, Error>;

    /// As if new: nothing was published and nothing used. What was asked about interrupts still holds.
    fn rewind(&mut self) -> Result<(), QueueError>;

    /// Where the driver is, as a notification says it (2.9).
    fn position(&self) -> u16;

    /// Learns the frames of the slots. Called once, before anything is added.
    fn set_frames(&mut self, frames: Frames) -> Result<(), QueueError>;

    /// Whether a chain in `slot` with one segment of its own can be written by [`add_usual`](Self::add_usual)
    /// now.
    fn is_usual(&self, slot: u16) -> bool;

    /// Writes a chain whose own segment is `segment`; the device is not told. On failure nothing is taken.
    fn add_usual<B: Buffers>(&mut self, slot: u16, segment: &Segment<'_>) -> Result<Chain, QueueError>;

    /// Makes the chain that was in `slot` last, and that nothing but its segment describes, available again
    /// as it is; the device is not told. `false` if it must be written anew.
    fn add_again<B: Buffers>(&mut self, _slot: u16) -> Result<bool, QueueError> {
        Ok(false)
    }

    /// Writes any chain; the device is not told. `others` slots are free besides. On failure nothing is
    /// taken.
    fn add_any<B: Buffers>(&mut self, entry: Entry<'_, B>, others: u16) -> Result<Chain, QueueError>;

    /// Tells the device of all that was added. `true` if it wants to be notified of it.
    fn publish(&mut self) -> Result<bool, QueueError>;

    /// Looks for used elements, unless some are known that were not taken. There must be at most `in_flight`.
    fn look(&mut self, in_flight: u16) -> Result<(), QueueError>;

    /// The next used element of those that the last look showed; the same again until the ring advances.
    fn used(&self) -> Result<Option<Used>, QueueError>;

    /// Whether what was looked at may end a chain without a used element of its own.
    fn is_skippable(&self) -> bool;

    /// Goes on by a chain of `count` descriptors, which are free now.
    fn advance(&mut self, count: u16);

    /// Where IN_ORDER was accepted: so many descriptors are free again. Called besides
    /// [`advance`](Self::advance).
    fn freed_in_order(&mut self, _count: u16) {}

    /// Asks the device not to interrupt. Only a wish: interrupts may come anyway.
    fn disable_interrupts(&mut self) -> Result<(), QueueError>;

    /// Asks the device to interrupt for the next used element.
    fn enable_interrupts(&mut self) -> Result<(), QueueError>;
}
