//! How many slots a queue has, and how they share its descriptors.

use super::QueueOptions;

/// How slots share the descriptors. Either all slots have a table (INDIRECT_DESC) and take one descriptor, or
/// none does: so no chain is slower because of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: u16,
    /// Number of slots.
    pub(super) slots: u16,
    /// Descriptors of the ring that each slot has to itself.
    pub(super) reserved: u16,
    /// The most segments of a chain.
    pub(super) longest: u16,
    /// Whether chains are in tables.
    pub(super) indirect: bool,
}

impl Layout {
    /// As many slots as wanted, if they fit; tables only where they do not, since one costs the device
    /// another look at memory. What is left of the ring is for chains longer than `options.segments`.
    pub(super) fn new(size: u16, options: &QueueOptions, may_be_indirect: bool) -> Self {
        let reserved = options.segments.clamp(1, size.max(1));
        let longest = options.longest.clamp(reserved, size.max(1));
        // Long chains get no more than half of the ring, and at least one of them fits.
        let spare = longest.wrapping_sub(reserved).min(size / 2);
        let fit = size.saturating_sub(spare).checked_div(reserved).unwrap_or(0);
        if may_be_indirect && options.chains > fit && longest > 1 {
            return Self { size, slots: options.chains.min(size), reserved: 1, longest, indirect: true };
        }
        let longest = longest.min(reserved.wrapping_add(spare));
        Self { size, slots: options.chains.min(fit), reserved, longest, indirect: false }
    }

    /// How many descriptors belong to no slot.
    pub(super) fn spare(&self) -> u16 {
        // At most `size`.
        if self.indirect { 0 } else { self.size.saturating_sub(self.slots.wrapping_mul(self.reserved)) }
    }
}
