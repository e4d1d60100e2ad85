//! IN_ORDER (2.7.9, 2.8.9): the device uses chains in the order in which they were made available, and one
//! used element may stand for several.

use alloc::vec::Vec;

use ringfence_memory::Segment;

use super::chain::{Added, Chain};
use super::layout::Layout;
#[cfg(feature = "packed")]
use super::packed::PackedRing;
use super::ring::{AnyRing, Bad, EndsOf, Ring, Used};
use super::split::SplitRing;
use super::{Error, QueueError, QueueSetup};

/// The used element of several chains, and how many of those are left. The length is known of the last alone:
/// the others were written to the end.
#[derive(Clone, Copy, Debug)]
struct Batch {
    last: Used,
    left: usize,
}

/// A ring in which chains can be put one behind the other.
pub(super) enum Plain {
    Split(SplitRing),
    #[cfg(feature = "packed")]
    Packed(PackedRing),
}

/// Does the same with either.
macro_rules! with_plain {
    ($plain:expr, $ring:ident => $do:expr) => {
        match $plain {
            Plain::Split($ring) => $do,
            #[cfg(feature = "packed")]
            Plain::Packed($ring) => $do,
        }
    };
}

/// A ring with the chains in it, oldest first.
pub(super) struct InOrder {
    ring: Plain,
    /// Number of descriptors.
    size: u16,
    /// Where the next chain begins, in a table whose descriptors are taken in turn (2.7.9).
    head: u16,
    /// A ring, with room for all: each chain's slot and what the device calls it.
    chains: Vec<(u16, u16)>,
    first: usize,
    count: usize,
    /// How many of them the device was told of.
    told: usize,
    batch: Option<Batch>,
}

impl InOrder {
    /// # Errors
    /// [`QueueError::OutOfMemory`].
    pub(super) fn new(ring: Plain, layout: &Layout) -> Result<Self, QueueError> {
        let mut chains = Vec::new();
        chains.try_reserve_exact(layout.slots.into()).map_err(|_| QueueError::OutOfMemory)?;
        chains.extend((0..layout.slots).map(|slot| (slot, slot)));
        Ok(Self { ring, size: layout.size, head: 0, chains, first: 0, count: 0, told: 0, batch: None })
    }

    /// How many chains end with the one that `used` names, if the device was told of it.
    fn ended(&self, used: Used) -> Option<usize> {
        let named = |&age: &usize| self.chain(age).is_some_and(|(_, id)| u32::from(id) == used.id);
        (0..self.told).find(named)?.checked_add(1)
    }

    /// The chain that is as old as the first but for `age` others.
    fn chain(&self, age: usize) -> Option<(u16, u16)> {
        self.chains.get(self.index(age)).copied()
    }

    /// Where it is; `age` is not above the number of slots.
    fn index(&self, age: usize) -> usize {
        let at = self.first.wrapping_add(age);
        if at >= self.chains.len() { at.wrapping_sub(self.chains.len()) } else { at }
    }
}

impl AnyRing for InOrder {
    fn add(&mut self, chain: Chain<'_>) -> Result<Added, QueueError> {
        // There are never more than there are slots.
        let at = self.index(self.count);
        let last = self.chains.get_mut(at).ok_or(QueueError::Broken)?;
        let (added, id) = with_plain!(&mut self.ring, ring => ring.add_at(chain, self.head))?;
        *last = (chain.slot, id);
        self.count = self.count.wrapping_add(1);
        let head = self.head.wrapping_add(added.count);
        self.head = head.checked_rem(self.size).unwrap_or(0);
        Ok(added)
    }

    fn next_used(&mut self, number: u64) -> Result<Option<Used>, Bad> {
        if self.batch.is_some() {
            // One element for several chains; the index must cover them all.
            if !with_plain!(&self.ring, ring => ring.may_be_skipped(number)) {
                return Err(Bad);
            }
        } else if let Some(last) = with_plain!(&mut self.ring, ring => ring.next_used(number))? {
            let left = self.ended(last).ok_or(Bad)?;
            self.batch = Some(Batch { last, left });
        }
        let Some(Batch { last, left }) = self.batch else { return Ok(None) };
        let (slot, _) = self.chain(0).ok_or(Bad)?;
        Ok(Some(Used { id: slot.into(), len: last.len.filter(|_| left == 1) }))
    }

    fn go_on(&mut self, count: u16) {
        self.first = self.index(1);
        (self.count, self.told) = (self.count.saturating_sub(1), self.told.saturating_sub(1));
        let left = self.batch.map_or(0, |batch| batch.left.saturating_sub(1));
        self.batch = self.batch.filter(|_| left > 0).map(|batch| Batch { left, ..batch });
        with_plain!(&mut self.ring, ring => ring.go_on(count));
    }
}

impl Ring for InOrder {
    type Available = ();
    /// The ring below knows.
    type Used = ();

    fn setup(&self, index: u16) -> Result<QueueSetup<'_>, Error> {
        with_plain!(&self.ring, ring => ring.setup(index))
    }

    fn rewind(&mut self) {
        (self.head, self.first, self.count, self.told, self.batch) = (0, 0, 0, 0, None);
        with_plain!(&mut self.ring, ring => ring.rewind());
    }

    fn position(&self) -> u16 {
        with_plain!(&self.ring, ring => ring.position())
    }

    fn set_ends(&mut self, ends: EndsOf<'_>) -> Result<bool, QueueError> {
        with_plain!(&mut self.ring, ring => ring.set_ends(ends)).map(|_| false)
    }

    fn available(&self) {}

    fn set_available(&mut self, (): ()) {}

    fn add_one(
        &mut self,
        (): &mut (),
        _: (u16, u64),
        _: &Segment<'_>,
        _: Option<[Segment<'_>; 2]>,
    ) -> Result<Added, QueueError> {
        Err(QueueError::Broken)
    }

    fn publish(&mut self, number: u64) -> bool {
        self.told = self.count;
        with_plain!(&mut self.ring, ring => ring.publish(number))
    }

    fn is_kick_due(&self, chains: u16) -> bool {
        with_plain!(&self.ring, ring => ring.is_kick_due(chains))
    }

    fn look(&mut self, in_flight: u16) -> Result<(), QueueError> {
        with_plain!(&mut self.ring, ring => ring.look(in_flight).map(drop))
    }

    fn used(&mut self, (): (), number: u64) -> Result<Option<Used>, Bad> {
        self.next_used(number)
    }

    fn advance(&mut self, (): &mut (), count: u16) {
        self.go_on(count);
    }

    fn set_used(&mut self, (): (), number: u64) {
        with_plain!(&mut self.ring, ring => ring.set_used(ring.now(), number));
    }

    fn now(&self) {}

    fn disable_interrupts(&mut self) {
        with_plain!(&mut self.ring, ring => ring.disable_interrupts());
    }

    fn enable_interrupts(&mut self) {
        with_plain!(&mut self.ring, ring => ring.enable_interrupts());
    }
}
