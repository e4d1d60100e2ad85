//! IN_ORDER (2.7.9, 2.8.9): the device uses chains in the order in which they were made available, and one
//! used element may stand for several.

use alloc::vec::Vec;

use super::ring::Used;

/// The chains in flight, oldest first.
#[derive(Debug)]
pub(super) struct InOrder {
    /// A ring, with room for all: each chain's slot and what the device calls it.
    chains: Vec<(u16, u16)>,
    first: usize,
    count: usize,
    /// The used element of the batch that is being taken, and how many of its chains are left.
    batch: Option<(Used, usize)>,
}

impl InOrder {
    pub(super) fn new(slots: u16) -> Self {
        Self { chains: (0..slots).map(|slot| (slot, slot)).collect(), first: 0, count: 0, batch: None }
    }

    /// Adds the youngest. There are never more than there are slots.
    pub(super) fn push(&mut self, slot: u16, id: u16) {
        let at = self.place(self.count);
        if let Some(place) = self.chains.get_mut(at) {
            *place = (slot, id);
            self.count = self.count.wrapping_add(1);
        }
    }

    /// The used element of the batch that is not taken to its end yet.
    pub(super) fn batch(&self) -> Option<Used> {
        self.batch.map(|(used, _)| used)
    }

    /// Takes the oldest chain of those that end with the one which `used` names, and says its slot. The
    /// length is known of the last alone: the others were written to the end. `None` if `used` names none, or
    /// one of the `untold` youngest.
    pub(super) fn next(&mut self, used: Used, untold: u16) -> Option<(usize, Option<u32>)> {
        let left = match self.batch {
            Some((_, left)) => left,
            None => {
                let told = self.count.saturating_sub(untold.into());
                let named = |&age: &usize| self.chain(age).is_some_and(|(_, id)| u32::from(id) == used.id);
                (0..told).find(named)?.wrapping_add(1)
            }
        };
        let (slot, _) = self.chain(0)?;
        self.first = self.place(1);
        self.count = self.count.wrapping_sub(1);
        self.batch = (left > 1).then_some((used, left.wrapping_sub(1)));
        Some((slot.into(), self.batch.is_none().then_some(used.len)))
    }

    /// The chain that is as old as the first but for `age` others.
    fn chain(&self, age: usize) -> Option<(u16, u16)> {
        self.chains.get(self.place(age)).copied()
    }

    /// Where it is; `age` is not above the number of slots.
    fn place(&self, age: usize) -> usize {
        let at = self.first.wrapping_add(age);
        if at >= self.chains.len() { at.wrapping_sub(self.chains.len()) } else { at }
    }
}
