//! The descriptors of a split queue that belong to no slot: for chains longer than slots have descriptors.

use alloc::vec::Vec;

use super::QueueError;
use super::layout::Layout;

/// No descriptor.
const NONE: u16 = u16::MAX;

/// Which are free, and which each slot has, in lists.
#[derive(Debug)]
pub(super) struct Spare {
    /// The number of the first.
    first: u16,
    /// By descriptor, from the first one on: the next in its list.
    next: Vec<u16>,
    free: u16,
    /// By slot: the last that it took.
    taken: Vec<u16>,
}

impl Spare {
    /// All free; none, if no chain needs them.
    ///
    /// # Errors
    /// [`QueueError::OutOfMemory`].
    pub(super) fn new(layout: &Layout) -> Result<Self, QueueError> {
        let needed = layout.longest > layout.reserved && !layout.indirect;
        let (count, slots) = if needed { (layout.spare(), layout.slots) } else { (0, 0) };
        let first = layout.size.wrapping_sub(count);
        let (mut next, mut taken) = (Vec::new(), Vec::new());
        let reserved = next.try_reserve_exact(count.into()).and(taken.try_reserve_exact(slots.into()));
        reserved.map_err(|_| QueueError::OutOfMemory)?;
        let end = layout.size;
        next.extend(
            (0..count)
                .map(|index| first.wrapping_add(index).wrapping_add(1))
                .map(|next| if next < end { next } else { NONE }),
        );
        taken.extend((0..slots).map(|_| NONE));
        Ok(Self { first, next, free: if count > 0 { first } else { NONE }, taken })
    }

    /// One more for the chain in `slot`; `None` if there is none.
    pub(super) fn take(&mut self, slot: u16) -> Option<u16> {
        let descriptor = self.free;
        let next = self.next.get_mut(usize::from(descriptor.checked_sub(self.first)?))?;
        let taken = self.taken.get_mut(usize::from(slot))?;
        self.free = core::mem::replace(next, core::mem::replace(taken, descriptor));
        Some(descriptor)
    }

    /// All that the chain in `slot` has.
    #[cold]
    pub(super) fn give_back(&mut self, slot: u16) {
        let Self { first, next, free, taken } = self;
        let Some(taken) = taken.get_mut(usize::from(slot)) else { return };
        // Each is in one list, so this ends.
        while let Some(descriptor) = taken.checked_sub(*first)
            && let Some(next) = next.get_mut(usize::from(descriptor))
        {
            let here = core::mem::replace(taken, core::mem::replace(next, *free));
            *free = here;
        }
    }
}
