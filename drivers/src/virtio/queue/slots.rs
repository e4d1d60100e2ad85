//! What is in flight in a queue, and which slots are free: private state, which alone is believed.

use alloc::vec::Vec;
use core::mem;

use super::chain::{Added, Buffers, Chain};
use super::layout::Layout;
use super::ring::{AnyRing, Bad, Ring, Used};
use super::{Completion, QueueError};

/// What is in a slot.
struct Slot<B: Buffers> {
    /// In flight: how many chains were added before it, and [`GIVEN_UP`]. [`FREE`] while it is free.
    number: u64,
    /// While it is free, the default.
    buffers: B,
    /// See [`Added`].
    writable: u32,
    count: u16,
    /// While it is free: the next free slot.
    next: u16,
}

/// In place of a number: above all.
const FREE: u64 = u64::MAX;
/// In a number, which is above all others then: nobody waits for the chain.
const GIVEN_UP: u64 = 1 << 63;
/// The same: it has descriptors that belong to no slot.
const SPECIAL: u64 = 1 << 62;

impl<B: Buffers> Slot<B> {
    /// Takes a chain with its number; its `count` if somebody asks for it. Returns the next free slot.
    #[inline(always)]
    fn fill(&mut self, buffers: B, added: Added, number: u64, count: bool) -> u16 {
        (self.number, self.writable) = (number, added.writable);
        if count {
            self.count = added.count;
        }
        // A free slot holds the default, which owns nothing.
        mem::forget(mem::replace(&mut self.buffers, buffers));
        self.next
    }
}

/// Names a chain while it is in flight in its queue. A stale one names nothing there, however often its slot
/// was taken since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    slot: u16,
    /// How many chains were added before it.
    number: u64,
}

impl Ticket {
    pub(super) const fn new(slot: u16, number: u64) -> Self {
        Self { slot, number }
    }

    /// Its slot: a number below that of the queue's slots and unique among the chains in flight, to find the
    /// owner in a table.
    pub const fn index(self) -> usize {
        self.slot as usize
    }
}

/// No slot.
const NONE: u16 = u16::MAX;

/// The slots of a queue. Those that are free are in a list.
pub(super) struct Slots<B: Buffers> {
    pub(super) context: B::Context,
    slots: Vec<Slot<B>>,
    /// How long the own segment of a chain may be that the ring's `add_one` writes; 0 if it writes none.
    longest: u32,
    /// First of the free slots.
    free: u16,
    others: Others,
    /// Chains added, those of them that the device was told of, and those that came back; with all that were
    /// `skipped`, so that a ring's indices are the lower halves.
    pub(super) submitted: u64,
    pub(super) published: u64,
    pub(super) completed: u64,
    pub(super) skipped: u64,
    /// Chains that were given up, and those of them that came back.
    pub(super) given_up: u64,
    pub(super) late: u64,
    /// Completions with an id or a length that cannot be.
    pub(super) rejected: u64,
    pub(super) broken: bool,
}

/// The descriptors that belong to no slot.
struct Others {
    /// How many descriptors each slot has.
    reserved: u16,
    /// How many of the others are free.
    free: u16,
}

impl Others {
    /// A chain of `count` descriptors was added: the ring has checked that there are so many. Whether it has
    /// some of these.
    fn take(&mut self, count: u16) -> bool {
        let more = count.saturating_sub(self.reserved);
        self.free = self.free.saturating_sub(more);
        more > 0
    }

    /// It came back.
    fn give_back(&mut self, count: u16) {
        self.free = self.free.saturating_add(count.saturating_sub(self.reserved));
    }
}

/// A used chain.
#[derive(Clone, Copy)]
pub(crate) struct UsedChain {
    pub(crate) ticket: Ticket,
    /// How many bytes the device says that it wrote, and how many it may have written.
    pub(crate) written: u32,
    pub(crate) writable: u32,
}

impl UsedChain {
    /// How many bytes the device wrote, if it can be. Where it may write nothing, what it says of that means
    /// nothing (2.8.13).
    #[inline]
    pub(crate) fn written(&self, least: u32) -> Option<u32> {
        if self.writable == 0 {
            return (least == 0).then_some(0);
        }
        (self.written <= self.writable && self.written >= least).then_some(self.written)
    }
}

impl<B: Buffers> Slots<B> {
    /// As many as `layout` says, all free.
    ///
    /// # Errors
    /// [`QueueError::OutOfMemory`].
    pub(super) fn new(context: B::Context, layout: &Layout, longest: u32) -> Result<Self, QueueError> {
        let count = layout.slots;
        let mut slots = Vec::new();
        slots.try_reserve_exact(count.into()).map_err(|_| QueueError::OutOfMemory)?;
        slots.extend((1..=count).map(|next| Slot {
            number: FREE,
            buffers: B::default(),
            writable: 0,
            count: 0,
            next: if next < count { next } else { NONE },
        }));
        Ok(Self {
            context,
            slots,
            longest,
            free: if count > 0 { 0 } else { NONE },
            others: Others { reserved: layout.reserved, free: layout.spare() },
            submitted: 0,
            published: 0,
            completed: 0,
            skipped: 0,
            given_up: 0,
            late: 0,
            rejected: 0,
            broken: false,
        })
    }

    /// Slots are numbered from 0 to below this.
    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Whether the chain that `ticket` names is in flight.
    pub(super) fn is_in_flight(&self, ticket: Ticket) -> bool {
        self.slots.get(ticket.index()).is_some_and(|slot| slot.number & !SPECIAL == ticket.number)
    }

    /// Number of slots in use, counted one by one.
    pub(super) fn occupied(&self) -> usize {
        self.slots.iter().filter(|slot| slot.number != FREE).count()
    }

    /// Takes all that is in flight. Nothing more can be done.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = B> {
        self.break_off();
        (self.completed, self.late) = (self.submitted, self.given_up);
        self.slots.drain(..).filter(|slot| slot.number != FREE).map(|slot| slot.buffers)
    }

    /// Number of chains in flight.
    #[inline]
    pub(super) fn in_flight(&self) -> u16 {
        // There are never more than slots.
        self.submitted.wrapping_sub(self.completed) as u16
    }

    /// Number of slots that chains have which were given up.
    pub(super) fn lost(&self) -> u16 {
        // There are never more than slots.
        self.given_up.wrapping_sub(self.late) as u16
    }

    /// Nobody waits for the chain any more; it stays in its slot until the device has used it. `false` if
    /// `ticket` names nothing.
    pub(super) fn give_up(&mut self, ticket: Ticket) -> bool {
        let mut slot =
            self.slots.get_mut(ticket.index()).filter(|slot| slot.number & !SPECIAL == ticket.number);
        let found = slot.as_mut().map(|slot| slot.number |= GIVEN_UP).is_some();
        self.given_up = self.given_up.wrapping_add(found.into());
        found
    }

    /// Nothing more can be done.
    #[cold]
    pub(super) fn break_off(&mut self) -> QueueError {
        self.broken = true;
        self.free = NONE;
        QueueError::Broken
    }

    /// Takes no chain until `resume` with what this gives: the first of the free slots.
    #[inline]
    pub(super) fn pause(&mut self) -> u16 {
        mem::replace(&mut self.free, NONE)
    }

    /// Goes on with a ring that is as if new; nothing is in flight.
    pub(super) fn resume(&mut self, free: u16) {
        let number = (self.submitted | u64::from(u16::MAX)).wrapping_add(1);
        self.skipped = self.skipped.wrapping_add(number.wrapping_sub(self.submitted));
        (self.submitted, self.published, self.completed) = (number, number, number);
        self.free = free;
    }

    /// The slot that the next chain takes.
    #[inline]
    pub(super) fn next(&self) -> Option<u16> {
        Some(self.free).filter(|&slot| slot != NONE)
    }

    /// Writes a chain to the ring and keeps its buffers.
    ///
    /// # Errors
    /// Gives `buffers` back.
    #[inline(always)]
    pub(super) fn submit<R: Ring>(
        &mut self,
        ring: &mut R,
        buffers: B,
        request: impl Fn() -> B::Request,
    ) -> Result<u16, (QueueError, B)> {
        let (index, number, mut available) = (self.free, self.submitted, ring.available());
        if let Some(slot) = self.slots.get_mut(usize::from(index))
            && let Some(segment) = buffers.only(request(), &self.context)
            && segment.len() <= self.longest
            && let Ok(ends) = buffers.prepare(request(), &self.context, index)
            && let Ok(added) = ring.add_one(&mut available, (index, number), &segment, ends)
        {
            self.free = slot.fill(buffers, added, number, R::COUNTS);
            ring.set_available(available);
            self.submitted = number.wrapping_add(1);
            return Ok(index);
        }
        // By value: what is only moved there stays in registers here.
        self.submit_any(ring, buffers, request())
    }

    /// As `submit`, but any chain.
    #[cold]
    #[inline(never)]
    pub(super) fn submit_any(
        &mut self,
        ring: &mut dyn AnyRing,
        buffers: B,
        request: B::Request,
    ) -> Result<u16, (QueueError, B)> {
        let (index, spare) = (self.free, self.others.free);
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err((if self.broken { QueueError::Broken } else { QueueError::Full }, buffers));
        };
        let context = &self.context;
        let ends = match buffers.prepare(request, context, index) {
            Ok(ends) => ends,
            Err(error) => return Err((error, buffers)),
        };
        let own = buffers.count(request, context);
        let segment = &|number| buffers.segment(request, context, number);
        let number = self.submitted;
        match ring.add(Chain { slot: index, number, own, segment, ends, spare }) {
            Ok(added) => {
                let number = number | if self.others.take(added.count) { SPECIAL } else { 0 };
                self.free = slot.fill(buffers, added, number, true);
            }
            Err(error) => return Err((error, buffers)),
        }
        self.submitted = self.submitted.wrapping_add(1);
        Ok(index)
    }

    /// Hands chains that the device has used to `done`, from `at` on, until there are no more or it says
    /// `false`, and says how many came back, with those that were given up. It counts those that it rejects.
    #[inline(always)]
    pub(super) fn reap<R: Ring>(
        &mut self,
        ring: &mut R,
        mut at: R::Used,
        mut done: impl FnMut(UsedChain, B, &B::Context, &mut u64) -> bool,
    ) -> Result<usize, QueueError> {
        let mut free = self.begin();
        let before = self.completed;
        let mut number = before;
        loop {
            let Self { slots, context, published, rejected, .. } = self;
            let end = loop {
                let used = match ring.used(at, number) {
                    Ok(Some(used)) => used,
                    Ok(None) => break End::Reached,
                    Err(Bad) => break End::Bad,
                };
                let Some(slot) = slots.get_mut(used.id as usize) else { break End::Bad };
                if slot.number >= *published {
                    break End::Marked;
                }
                let chain = slot.came_back(ring, &mut at, used);
                (slot.number, slot.next) = (FREE, mem::replace(&mut free, chain.ticket.slot));
                number = number.wrapping_add(1);
                if !done(chain, mem::take(&mut slot.buffers), context, rejected) {
                    break End::Reached;
                }
            };
            (self.free, self.completed) = (free, number);
            match end {
                End::Reached => break,
                End::Bad => return Err(QueueError::Broken),
                End::Marked => at = self.take_marked(ring, at)?,
            }
            (free, number) = (self.begin(), self.completed);
        }
        ring.set_used(at, number);
        self.broken = false;
        Ok(number.wrapping_sub(before) as usize)
    }

    /// After a used element that names a chain with a mark in its number, or none: takes back what a special
    /// one has, frees the slot of one that was given up and drops its buffers, or finds the element wrong.
    #[cold]
    #[inline(never)]
    fn take_marked<R: Ring>(&mut self, ring: &mut R, at: R::Used) -> Result<R::Used, QueueError> {
        ring.leave(at);
        self.take_any_marked(ring)?;
        Ok(ring.now())
    }

    #[inline(never)]
    fn take_any_marked(&mut self, ring: &mut dyn AnyRing) -> Result<(), QueueError> {
        let Some(used) = ring.next_used(self.completed)? else { return Ok(()) };
        // The whole 32 bits: an id that only looks right after truncation is wrong.
        let slot = self.slots.get_mut(used.id as usize).ok_or(QueueError::Broken)?;
        // Neither one that is free nor one that the device was not told of.
        if slot.number & !(GIVEN_UP | SPECIAL) >= self.published {
            return Err(QueueError::Broken);
        }
        if slot.number & SPECIAL != 0 {
            slot.number &= !SPECIAL;
            self.others.give_back(slot.count);
            ring.give_back(used.id as u16);
        }
        if slot.number & GIVEN_UP != 0 {
            ring.go_on(slot.count);
            (slot.number, slot.next) = (FREE, mem::replace(&mut self.free, used.id as u16));
            self.completed = self.completed.wrapping_add(1);
            self.late = self.late.wrapping_add(1);
            drop(mem::take(&mut slot.buffers));
        }
        Ok(())
    }

    /// If foreign code unwinds from here on the queue is broken: a slot may be neither in flight nor free.
    /// Gives the first of the free slots.
    #[inline(always)]
    fn begin(&mut self) -> u16 {
        self.broken = true;
        self.pause()
    }
}

/// Drops what is seldom dropped, where that is in nobody's way.
#[cold]
#[inline(never)]
fn apart<B: Buffers>(_: B) {}

/// Why chains are not taken one after the other any more.
enum End {
    Reached,
    /// The next one has a mark in its number, or there is none.
    Marked,
    Bad,
}

impl<B: Buffers> Slot<B> {
    /// The ring goes on behind the chain, and its descriptors are free.
    #[inline(always)]
    fn came_back<R: Ring>(&mut self, ring: &mut R, at: &mut R::Used, used: Used) -> UsedChain {
        let writable = self.writable;
        ring.advance(at, self.count);
        let ticket = Ticket { slot: used.id as u16, number: self.number };
        UsedChain { ticket, written: used.len.unwrap_or(writable), writable }
    }
}

impl<B: Buffers> Slots<B> {
    /// Shows `renew` up to `most` chains that the device has used, from `at` on, and puts each for which
    /// it has a request into the ring again, in its slot. Says how many those were; the first other one is
    /// dropped, and ends it. It counts those that it rejects.
    ///
    /// # Errors
    /// [`QueueError::Broken`], or what is wrong with a chain as `renew` left it, which is dropped.
    #[inline(always)]
    pub(super) fn renew<R: Ring>(
        &mut self,
        ring: &mut R,
        mut at: R::Used,
        most: usize,
        mut renew: impl FnMut(&mut B, UsedChain, &mut u64) -> Option<B::Request>,
    ) -> Result<usize, QueueError> {
        let mut free = self.begin();
        let (mut available, mut number, mut back) = (ring.available(), self.submitted, self.completed);
        let end = number.wrapping_add(most as u64);
        let Self { slots, context, longest, published, rejected, .. } = self;
        let mut result = Ok(());
        while number != end
            && let Some(used) = ring.used(at, back)?
        {
            let slot = slots.get_mut(used.id as usize).ok_or(QueueError::Broken)?;
            // None is special, since it has one segment, or given up: the tickets stay with those who renew.
            if slot.number >= *published {
                return Err(QueueError::Broken);
            }
            let chain = slot.came_back(ring, &mut at, used);
            let index = chain.ticket.slot;
            back = back.wrapping_add(1);
            let request = renew(&mut slot.buffers, chain, rejected);
            match request.map(|request| {
                slot.add_again(ring, &mut available, request, (context, *longest), (index, number))
            }) {
                Some(Ok(())) => slot.number = number,
                refused => {
                    (slot.number, slot.next) = (FREE, mem::replace(&mut free, index));
                    apart(mem::take(&mut slot.buffers));
                    result = refused.unwrap_or(Ok(()));
                    break;
                }
            }
            number = number.wrapping_add(1);
        }
        ring.set_used(at, back);
        ring.set_available(available);
        let renewed = number.wrapping_sub(mem::replace(&mut self.submitted, number));
        (self.completed, self.broken, self.free) = (back, false, free);
        result.map(|()| renewed as usize)
    }
}

impl<B: Buffers> Slot<B> {
    /// Writes what came back, which is slot `index`, to the ring again.
    #[inline(always)]
    fn add_again<R: Ring>(
        &mut self,
        ring: &mut R,
        available: &mut R::Available,
        request: B::Request,
        (context, longest): (&B::Context, u32),
        (index, number): (u16, u64),
    ) -> Result<(), QueueError> {
        if B::SAME_AGAIN && ring.add_again(available, (index, number)) {
            return Ok(());
        }
        if let Some(segment) = self.buffers.only(request, context)
            && segment.len() <= longest
            && let Ok(ends) = self.buffers.prepare(request, context, index)
            && let Ok(added) = ring.add_one(available, (index, number), &segment, ends)
        {
            if !B::SAME_SHAPE {
                (self.writable, self.count) = (added.writable, added.count);
            }
            return Ok(());
        }
        ring.set_available(*available);
        let result = self.add_any_again(ring, request, context, (index, number));
        *available = ring.available();
        result
    }

    #[cold]
    #[inline(never)]
    fn add_any_again(
        &mut self,
        ring: &mut dyn AnyRing,
        request: B::Request,
        context: &B::Context,
        (slot, number): (u16, u64),
    ) -> Result<(), QueueError> {
        let buffers = &self.buffers;
        let ends = buffers.prepare(request, context, slot)?;
        let own = buffers.count(request, context);
        let segment = &|at| buffers.segment(request, context, at);
        let added = ring.add(Chain { slot, number, own, segment, ends, spare: 0 })?;
        (self.writable, self.count) = (added.writable, added.count);
        Ok(())
    }
}

impl<B: Buffers> Drop for Slots<B> {
    fn drop(&mut self) {
        // The device may still write to these: they must not be lent again.
        self.drain().for_each(B::abandon);
    }
}

impl<B: Buffers> Completion<B> {
    /// `None` for the length if it cannot be.
    #[inline(always)]
    pub(super) fn new(used: UsedChain, buffers: B) -> Self {
        let written = used.written(buffers.least_written());
        Self { ticket: used.ticket, buffers, written }
    }
}
