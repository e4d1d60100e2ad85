//! What is in flight in a queue, and which slots are free: private state, which alone is believed.

use alloc::vec::Vec;

use super::chain::{Buffers, Chain, Entry};
use super::in_order::InOrder;
use super::ring::{Ring, Used};
use super::{Completion, QueueError};

/// What is in a slot.
struct Place<B> {
    /// `None` while it is free.
    buffers: Option<B>,
    /// Bytes that the device may write, and number of descriptors.
    writable: u32,
    count: u16,
    /// While it is free: the next free slot.
    link: u16,
    /// In flight: how many chains were submitted before it.
    order: u64,
}

impl<B> Place<B> {
    /// Takes what is in flight from now on, as the chain after `order` others. Returns the next free slot.
    #[inline(always)]
    fn fill(&mut self, buffers: B, chain: Chain, order: u64) -> u16 {
        self.renew(chain, order);
        self.buffers = Some(buffers);
        self.link
    }

    /// What is in flight goes again, as the chain after `order` others.
    #[inline(always)]
    fn renew(&mut self, chain: Chain, order: u64) {
        (self.writable, self.count, self.order) = (chain.writable, chain.count, order);
    }
}

/// No slot.
const NONE: u16 = u16::MAX;

/// What is in flight, and which slots are free.
pub(super) struct Flights<B: Buffers> {
    pub(super) context: B::Context,
    places: Vec<Place<B>>,
    /// First of the free slots; those of a split queue with an indirect table are apart, and used when there
    /// are no others.
    free: u16,
    free_indirect: u16,
    first_indirect: usize,
    /// Chains submitted, those of them that the device was told of, and those that came back.
    pub(super) submitted: u64,
    pub(super) published: u64,
    pub(super) completed: u64,
    in_order: Option<InOrder>,
    pub(super) broken: bool,
}

impl<B: Buffers> Flights<B> {
    /// No chains, and `slots` places. The lists of free slots begin with their last ones; those of
    /// `indirect`, which have tables, are numbered from `first_indirect` on.
    pub(super) fn new(
        context: B::Context,
        slots: usize,
        [free, indirect]: [&[u16]; 2],
        first_indirect: u16,
        in_order: Option<InOrder>,
    ) -> Self {
        let place = |_| Place { buffers: None, writable: 0, count: 0, link: NONE, order: 0 };
        let mut places: Vec<_> = (0..slots).map(place).collect();
        Self {
            context,
            free: link(&mut places, free),
            free_indirect: link(&mut places, indirect),
            places,
            first_indirect: if indirect.is_empty() { usize::MAX } else { first_indirect.into() },
            submitted: 0,
            published: 0,
            completed: 0,
            in_order,
            broken: false,
        }
    }

    /// Slots are numbered from 0 to below this.
    pub(super) fn slots(&self) -> usize {
        self.places.len()
    }

    /// Number of slots in use, counted one by one.
    pub(super) fn occupied(&self) -> usize {
        self.places.iter().filter(|place| place.buffers.is_some()).count()
    }

    /// Takes all that is in flight. Nothing more can be done.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = B> {
        self.break_off();
        self.completed = self.submitted;
        self.places.drain(..).filter_map(|place| place.buffers)
    }

    /// Number of chains in flight.
    #[inline]
    pub(super) fn in_flight(&self) -> u16 {
        // There are never more than slots.
        self.submitted.wrapping_sub(self.completed) as u16
    }

    /// Nothing more can be done.
    #[cold]
    pub(super) fn break_off(&mut self) -> QueueError {
        self.broken = true;
        (self.free, self.free_indirect) = (NONE, NONE);
        QueueError::Broken
    }

    /// The slot that the next chain takes.
    #[inline]
    pub(super) fn next_slot(&self) -> Option<u16> {
        match self.free {
            NONE if self.free_indirect == NONE => None,
            NONE => Some(self.free_indirect),
            slot => Some(slot),
        }
    }

    /// Writes a chain to the ring, which has `slots` slots, and keeps `buffers`.
    ///
    /// # Errors
    /// Gives `buffers` back.
    #[inline(always)]
    pub(super) fn submit<R: Ring>(
        &mut self,
        ring: &mut R,
        slots: u16,
        buffers: B,
    ) -> Result<u16, (QueueError, B)> {
        let slot = self.free;
        if self.in_order.is_none()
            && ring.is_usual(slot)
            && let Some(place) = self.places.get_mut(usize::from(slot))
            && let Some(segment) = buffers.only(&self.context)
        {
            if buffers.prepare(&self.context, slot).is_none() {
                return Err((QueueError::Broken, buffers));
            }
            match ring.add_usual::<B>(slot, &segment) {
                Ok(chain) => self.free = place.fill(buffers, chain, self.submitted),
                Err(error) => return Err((error, buffers)),
            }
            self.submitted = self.submitted.wrapping_add(1);
            return Ok(slot);
        }
        // By value: what is only moved there stays in registers here.
        self.submit_any(ring, slots, buffers)
    }

    /// As `submit`, but any chain, and also with a slot that has a table.
    #[cold]
    #[inline(never)]
    fn submit_any<R: Ring>(&mut self, ring: &mut R, slots: u16, buffers: B) -> Result<u16, (QueueError, B)> {
        let others = slots.wrapping_sub(self.in_flight()).wrapping_sub(1);
        let free = if self.free == NONE { &mut self.free_indirect } else { &mut self.free };
        let slot = *free;
        let Some(place) = self.places.get_mut(usize::from(slot)) else {
            return Err((if self.broken { QueueError::Broken } else { QueueError::Full }, buffers));
        };
        let prepared = buffers.prepare(&self.context, slot).ok_or(QueueError::Broken);
        let entry = Entry { buffers: &buffers, context: &self.context, slot };
        match prepared.and_then(|()| ring.add_any(entry, others)) {
            Ok(chain) => {
                if let Some(order) = &mut self.in_order {
                    order.push(slot, chain.id);
                }
                *free = place.fill(buffers, chain, self.submitted);
            }
            Err(error) => return Err((error, buffers)),
        }
        self.submitted = self.submitted.wrapping_add(1);
        Ok(slot)
    }

    /// Hands the chain in `slot` to `done`: the device has used it. `len` is `None` if its length is not
    /// known.
    #[inline]
    fn take<R: Ring>(
        &mut self,
        ring: &mut R,
        slot: usize,
        len: Option<u32>,
        done: impl FnOnce(Completion<B>, &B::Context),
    ) -> Result<(), QueueError> {
        let Some(place) = self.places.get_mut(slot) else { return Err(QueueError::Broken) };
        // Not one that the device was not told of.
        if place.order >= self.published {
            return Err(QueueError::Broken);
        }
        let Some(buffers) = place.buffers.take() else { return Err(QueueError::Broken) };
        ring.advance(place.count);
        if self.in_order.is_some() {
            ring.freed_in_order(place.count);
        }
        let free = if slot < self.first_indirect { &mut self.free } else { &mut self.free_indirect };
        place.link = core::mem::replace(free, slot as u16);
        self.completed = self.completed.wrapping_add(1);
        let len = len.unwrap_or(place.writable);
        let written = if len <= place.writable && len >= buffers.least_written() { Some(len) } else { None };
        done(Completion { slot: slot as u16, buffers, written }, &self.context);
        Ok(())
    }

    /// Hands the next chain that the device has used to `done`, if there is one.
    #[inline]
    pub(super) fn next<R: Ring>(
        &mut self,
        ring: &mut R,
        done: impl FnOnce(Completion<B>, &B::Context),
    ) -> Result<bool, QueueError> {
        if self.in_order.is_some() {
            return self.next_in_order(ring, done);
        }
        let Some(used) = ring.used()? else { return Ok(false) };
        // The whole 32 bits: an id that only looks right after truncation is wrong.
        self.take(ring, used.id as usize, Some(used.len), done).map(|()| true)
    }

    /// Shows `renew` the chains that the device has used, and puts them into the ring again, each in its
    /// slot, until it says `false`. Says how many those were. Does nothing in order.
    #[inline]
    pub(super) fn renew<R: Ring>(
        &mut self,
        ring: &mut R,
        slots: u16,
        mut renew: impl FnMut(&mut B, Option<u32>, &B::Context) -> bool,
    ) -> (usize, Result<(), QueueError>) {
        if self.in_order.is_some() {
            return (0, Ok(()));
        }
        // Each chain that comes goes again.
        let others = slots.wrapping_sub(self.in_flight());
        let before = self.submitted;
        let result = loop {
            match self.renew_next(ring, others, &mut renew) {
                Ok(true) => self.submitted = self.submitted.wrapping_add(1),
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let count = self.submitted.wrapping_sub(before);
        self.completed = self.completed.wrapping_add(count);
        (count as usize, result)
    }

    /// The same for one chain.
    #[inline(always)]
    fn renew_next<R: Ring>(
        &mut self,
        ring: &mut R,
        others: u16,
        renew: impl FnOnce(&mut B, Option<u32>, &B::Context) -> bool,
    ) -> Result<bool, QueueError> {
        let Some(used) = ring.used()? else { return Ok(false) };
        let Some(place) = self.places.get_mut(used.id as usize) else { return Err(QueueError::Broken) };
        if place.order >= self.published {
            return Err(QueueError::Broken);
        }
        let Some(buffers) = &mut place.buffers else { return Err(QueueError::Broken) };
        let fits = used.len <= place.writable && used.len >= buffers.least_written();
        if !renew(buffers, fits.then_some(used.len), &self.context) {
            return Ok(false);
        }
        ring.advance(place.count);
        let slot = used.id as u16;
        if B::SAME_AGAIN && ring.add_again::<B>(slot)? {
            place.order = self.submitted;
            return Ok(true);
        }
        // Each way books what it wrote by itself: what is constant there stays so.
        let added = if buffers.prepare(&self.context, slot).is_none() {
            Err(QueueError::Broken)
        } else if let Some(segment) = buffers.only(&self.context)
            && ring.is_usual(slot)
        {
            ring.add_usual::<B>(slot, &segment).map(|chain| place.renew(chain, self.submitted))
        } else {
            let entry = Entry { buffers, context: &self.context, slot };
            ring.add_any(entry, others).map(|chain| place.renew(chain, self.submitted))
        };
        added.map(|()| true).map_err(|error| self.drop_one(slot, error))
    }

    /// Frees a slot whose chain came back and cannot go again.
    #[cold]
    fn drop_one(&mut self, slot: u16, error: QueueError) -> QueueError {
        let free =
            if usize::from(slot) < self.first_indirect { &mut self.free } else { &mut self.free_indirect };
        if let Some(place) = self.places.get_mut(usize::from(slot)) {
            place.link = core::mem::replace(free, slot);
            place.buffers = None;
            self.completed = self.completed.wrapping_add(1);
        }
        error
    }

    #[inline(never)]
    fn next_in_order<R: Ring>(
        &mut self,
        ring: &mut R,
        done: impl FnOnce(Completion<B>, &B::Context),
    ) -> Result<bool, QueueError> {
        let Some(used) = self.next_used(ring)? else { return Ok(false) };
        let untold = self.submitted.wrapping_sub(self.published) as u16;
        let named = self.in_order.as_mut().and_then(|order| order.next(used, untold));
        let (slot, len) = named.ok_or(QueueError::Broken)?;
        self.take(ring, slot, len, done).map(|()| true)
    }

    /// The used element that is due; the same again until the ring advances.
    #[inline]
    pub(super) fn next_used<R: Ring>(&self, ring: &R) -> Result<Option<Used>, QueueError> {
        match self.in_order.as_ref().and_then(InOrder::batch) {
            None => ring.used(),
            // One element for several chains; the index must cover them all.
            batch if ring.is_skippable() => Ok(batch),
            _ => Err(QueueError::Broken),
        }
    }
}

/// Makes a list of `slots`, the last of which is the first free one.
fn link<B>(places: &mut [Place<B>], slots: &[u16]) -> u16 {
    let mut first = NONE;
    for &slot in slots {
        if let Some(place) = places.get_mut(usize::from(slot)) {
            place.link = core::mem::replace(&mut first, slot);
        }
    }
    first
}

impl<B: Buffers> Drop for Flights<B> {
    fn drop(&mut self) {
        // The device may still write to these: they must not be lent again.
        self.drain().for_each(B::abandon);
    }
}
