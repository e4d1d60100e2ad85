//! What the formats of a virtqueue have in common: [`SplitRing`](super::split::SplitRing),
//! [`PackedRing`](super::packed::PackedRing), and either of them [in order](super::in_order::InOrder).

use ringfence_memory::Segment;

use super::chain::{Added, Chain};
use super::{Error, QueueError, QueueSetup};

/// A used element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// Names the slot, if it is true.
    pub(super) id: u32,
    /// How many bytes the device says it wrote; `None` if it wrote all that it may.
    pub(super) len: Option<u32>,
}

/// A used element that cannot be. Without a value: so that it shares no bytes with [`Used`].
#[derive(Debug)]
pub(super) struct Bad;

impl From<Bad> for QueueError {
    fn from(Bad: Bad) -> Self {
        Self::Broken
    }
}

/// What the chains of each slot begin and end with: see [`Buffers::ends`](super::Buffers::ends).
pub(super) type EndsOf<'a> = &'a dyn Fn(u16) -> Option<[Segment<'a>; 2]>;

/// What is done off the path of a request, which is compiled for each format: that is compiled once for all.
pub(super) trait AnyRing {
    /// Writes any chain; the device is not told. On failure nothing is taken.
    fn add(&mut self, chain: Chain<'_>) -> Result<Added, QueueError>;

    /// The next used element of those that the last look showed, after `number` others.
    fn next_used(&mut self, number: u64) -> Result<Option<Used>, Bad>;

    /// Goes on by a chain of `count` descriptors, which are free now.
    fn go_on(&mut self, count: u16);

    /// The chain in `slot` came back, which took descriptors of no slot: those are free now.
    fn give_back(&mut self, _slot: u16) {}
}

/// A virtqueue's memory, as the driver uses it.
pub(super) trait Ring: AnyRing {
    /// Where the next chain is made available, and what a look has shown and where in it one is: by value, so
    /// that they stay in registers. What the number of a chain says is not in them.
    type Available: Copy;
    type Used: Copy;

    /// Whether the next chain is as many descriptors further on as a chain has.
    const COUNTS: bool = true;

    /// What the device is to know of it.
    fn setup(&self, index: u16) -> Result<QueueSetup<'_>, Error>;

    /// As if new: nothing was published and nothing used. What was asked about interrupts still holds.
    fn rewind(&mut self);

    /// Where the driver is, as a notification says it (2.9).
    fn position(&self) -> u16;

    /// Learns the ends of the slots. Called once, before anything is added. Whether chains with one segment
    /// of their own can be written by [`add_one`](Self::add_one).
    fn set_ends(&mut self, ends: EndsOf<'_>) -> Result<bool, QueueError>;

    /// Where the next chain goes.
    fn available(&self) -> Self::Available;

    /// The next chain goes there: behind those that were added from [`available`](Self::available) on.
    fn set_available(&mut self, available: Self::Available);

    /// Writes a chain whose own segment is `segment`, between the ends of its slot; with the slot how many
    /// chains were added before. The device is not told. On failure nothing is taken, and
    /// [`add`](AnyRing::add) finds out why.
    fn add_one(
        &mut self,
        available: &mut Self::Available,
        slot: (u16, u64),
        segment: &Segment<'_>,
        ends: Option<[Segment<'_>; 2]>,
    ) -> Result<Added, QueueError>;

    /// Makes the chain that was in `slot` last, and that nothing but its segment describes, available again
    /// as it is; the device is not told. `false` if it must be written anew.
    #[inline(always)]
    fn add_again(&mut self, _available: &mut Self::Available, _: (u16, u64)) -> bool {
        false
    }

    /// Tells the device of all that was added: `number` chains since the ring was new. `true` if it wants to
    /// be notified of it.
    fn publish(&mut self, number: u64) -> bool;

    /// Whether it wants to be notified, as it says now, of the last `chains` it was told of: those in flight.
    fn is_kick_due(&self, chains: u16) -> bool;

    /// Looks for used elements. There must be at most `in_flight`.
    fn look(&mut self, in_flight: u16) -> Result<Self::Used, QueueError>;

    /// The next used element of those that the look showed, after `number` others; the same again until it
    /// advances.
    fn used(&mut self, at: Self::Used, number: u64) -> Result<Option<Used>, Bad>;

    /// Goes on by a chain of `count` descriptors, which are free now.
    fn advance(&mut self, at: &mut Self::Used, count: u16);

    /// The next look goes on from here, `number` chains having come back.
    fn set_used(&mut self, at: Self::Used, number: u64);

    /// [`next_used`](AnyRing::next_used) is to go on from there; and where it is.
    fn leave(&mut self, _at: Self::Used) {}
    fn now(&self) -> Self::Used;

    /// Asks the device not to interrupt. Only a wish: interrupts may come anyway.
    fn disable_interrupts(&mut self);

    /// Asks the device to interrupt for the next used element.
    fn enable_interrupts(&mut self);
}
