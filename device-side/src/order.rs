//! Returning chains in the order in which they were taken (VIRTIO_F_IN_ORDER).

use alloc::collections::VecDeque;

/// A chain that the device is done with, or a batch of them by what its one used element says.
pub(super) struct Returned {
    pub(super) id: u16,
    /// How far it moves the used position on.
    pub(super) count: u16,
    pub(super) written: u32,
    /// Nothing that could be written was left out: the driver may take it as such without being told.
    pub(super) complete: bool,
}

/// The chains that were taken and of which the driver was not told yet.
#[derive(Default)]
pub(super) struct InOrder {
    /// In the order they were taken; `None` while the device has not returned it.
    chains: VecDeque<Option<Returned>>,
    /// The turn of the first of them.
    first: u16,
}

impl InOrder {
    /// Notes that a chain was taken, and gives its turn.
    pub(super) fn take(&mut self) -> u16 {
        // There are at most as many as a queue has descriptors, 32768: no two have the same turn.
        let turn = self.first.wrapping_add(self.chains.len() as u16);
        self.chains.push_back(None);
        turn
    }

    pub(super) fn put(&mut self, turn: u16, chain: Returned) {
        let index = turn.wrapping_sub(self.first);
        if let Some(returned) = self.chains.get_mut(usize::from(index)) {
            *returned = Some(chain);
        }
    }

    /// As many chains as one used element can return: all but the last are complete (2.7.9, 2.8.9). `None` if
    /// the next in order is not done.
    pub(super) fn next_batch(&mut self) -> Option<Returned> {
        let mut batch = self.pop()?;
        while batch.complete
            && let Some(next) = self.pop()
        {
            batch = Returned { count: batch.count.saturating_add(next.count), ..next };
        }
        Some(batch)
    }

    fn pop(&mut self) -> Option<Returned> {
        self.chains.front()?.as_ref()?;
        let chain = self.chains.pop_front()??;
        self.first = self.first.wrapping_add(1);
        Some(chain)
    }
}
