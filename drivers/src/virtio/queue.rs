//! The driver side of a virtqueue: buffers go in by value and come back by value, exactly once.

use alloc::vec::Vec;

use ringfence_memory::{DeviceId, DmaWindows};

use super::chain::{Buffers, Entry, Frames};
use super::in_order::InOrder;
use super::packed::PackedRing;
use super::ring::{Layout, Ring, Used};
use super::split::SplitRing;
use super::{DriverOk, Error, Notify, QueueSetup, Quiet, features};

/// Why a queue refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// As many chains are in flight as can be; some come back with the next completions.
    Full,
    /// No parts, too many, an empty part, a readable part after a writable one, or 4 GiB and more.
    BadChain,
    /// A part is memory of another device.
    WrongDevice,
    /// The device broke the rules of the ring: it completed what it does not have. What it may still hold stays
    /// with the queue until the device is reset; no more can be done with the queue.
    Broken,
}

/// What comes back from a queue.
#[derive(Debug)]
pub struct Completion<B> {
    /// What [`Queue::submit`] returned.
    pub slot: u16,
    /// What was submitted.
    pub buffers: B,
    /// How many bytes the device says it wrote, from the start of the writable parts; `None` if that is more than
    /// fits or less than [`Buffers::least_written`].
    pub written: Option<u32>,
}

/// What a queue has done since it was set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chains submitted.
    pub submitted: u64,
    /// Notifications sent to the device.
    pub kicks: u64,
    /// Interrupts that the kernel reported.
    pub interrupts: u64,
    /// Chains that came back.
    pub completions: u64,
    /// Completions with an id or a length that cannot be.
    pub rejected: u64,
}

/// How large a queue is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// The most descriptors: 1 to 32,768. It becomes the largest number that the device and the format allow.
    pub size: u16,
    /// The most chains in flight.
    pub chains: u16,
    /// The most parts of a chain.
    pub parts: u16,
}

/// A queue's memory, in the format that was negotiated.
#[derive(Debug)]
enum Format {
    Split(SplitRing),
    Packed(PackedRing),
}

/// Does the same with either kind of ring.
macro_rules! with_ring {
    ($format:expr, $ring:ident => $do:expr) => {
        match $format {
            Format::Split($ring) => $do,
            Format::Packed($ring) => $do,
        }
    };
}

/// What is in a slot.
struct Place<B> {
    /// `None` while it is free.
    buffers: Option<B>,
    /// Bytes that the device may write, and number of descriptors.
    writable: u32,
    count: u16,
    /// In flight: how many chains were submitted before it. Free: the next free slot.
    link: u16,
}

/// No slot.
const NONE: u16 = u16::MAX;

/// What is in flight, and which slots are free.
struct Flights<B: Buffers> {
    context: B::Context,
    places: Vec<Place<B>>,
    /// First of the free slots; those of a split queue with an indirect table are apart, and used when there are no others.
    free: u16,
    free_indirect: u16,
    first_indirect: usize,
    /// Chains submitted, those of them that the device was told of, and those that came back.
    submitted: u64,
    published: u64,
    completed: u64,
    in_order: Option<InOrder>,
    broken: bool,
}

/// A virtqueue with the buffers that are in flight in it.
///
/// Buffers that are in flight when the queue is dropped are [abandoned](Buffers::abandon), unless the driver has shown
/// the device quiet and called `reclaim`.
pub struct Queue<B: Buffers, N> {
    flights: Flights<B>,
    format: Format,
    layout: Layout,
    device: DeviceId,
    /// How often the device was reset before it knew the queue.
    resets: u64,
    index: u16,
    notifier: N,
    started: bool,
    /// The device wants a notification that was not sent yet, because it was not started.
    owed_kick: bool,
    kicks: u64,
    interrupts: u64,
    rejected: u64,
}

/// The memory of a queue that the device does not know yet.
pub(super) struct NewQueue {
    format: Format,
    layout: Layout,
    in_order: bool,
}

impl NewQueue {
    /// Rings of `size` descriptors in the format that `accepted` features demand.
    pub(super) fn new(
        windows: &DmaWindows,
        size: u16,
        options: &QueueOptions,
        accepted: u64,
    ) -> Result<Self, Error> {
        let has = |feature| accepted & feature != 0;
        let layout = Layout::new(size, options, has(features::INDIRECT_DESC));
        let (event_index, in_order) = (has(features::EVENT_IDX), has(features::IN_ORDER));
        let format = if has(features::RING_PACKED) {
            Format::Packed(PackedRing::new(windows, layout, event_index)?)
        } else {
            Format::Split(SplitRing::new(windows, layout, event_index, in_order)?)
        };
        Ok(Self { format, layout, in_order })
    }

    pub(super) fn setup(&self, index: u16) -> Result<QueueSetup, Error> {
        with_ring!(&self.format, ring => ring.setup(index))
    }

    /// The most parts that a chain can have.
    pub(super) fn parts(&self) -> u16 {
        self.layout.parts
    }

    /// Free slots, and those of them that have a table.
    fn slots(&self) -> (Vec<u16>, Vec<u16>) {
        match self.format {
            Format::Split(_) if !self.in_order => self.layout.split_slots(),
            _ => ((0..self.layout.slots).rev().collect(), Vec::new()),
        }
    }

    /// Slots are numbered from 0 to below this.
    pub(super) fn slot_count(&self) -> usize {
        let (free, indirect) = self.slots();
        free.iter().chain(&indirect).max().map_or(0, |&slot| usize::from(slot).saturating_add(1))
    }
}

impl<B: Buffers> Flights<B> {
    #[inline]
    fn in_flight(&self) -> u16 {
        // There are never more than slots.
        self.submitted.wrapping_sub(self.completed) as u16
    }

    #[cold]
    fn break_off(&mut self) -> QueueError {
        self.broken = true;
        (self.free, self.free_indirect) = (NONE, NONE);
        QueueError::Broken
    }

    #[inline]
    fn next_slot(&self) -> Option<u16> {
        match self.free {
            NONE if self.free_indirect == NONE => None,
            NONE => Some(self.free_indirect),
            slot => Some(slot),
        }
    }

    #[inline(always)]
    fn submit<R: Ring>(&mut self, ring: &mut R, slots: u16, buffers: B) -> Result<u16, (QueueError, B)> {
        let slot = self.free;
        let Some(place) = self.places.get_mut(usize::from(slot)) else {
            return self.submit_indirect(ring, slots, buffers);
        };
        let others = slots.wrapping_sub(self.submitted.wrapping_sub(self.completed) as u16).wrapping_sub(1);
        let chain = match ring.add(Entry { buffers: &buffers, context: &self.context, slot }, others) {
            Ok(chain) => chain,
            Err(error) => return Err((error, buffers)),
        };
        self.free = place.link;
        place.link = self.submitted as u16;
        (place.writable, place.count) = (chain.writable, chain.count);
        place.buffers = Some(buffers);
        if let Some(order) = &mut self.in_order {
            order.push(slot, chain.id);
        }
        self.submitted = self.submitted.wrapping_add(1);
        Ok(slot)
    }

    /// As `submit`, but with a slot that has a table.
    #[cold]
    #[inline(never)]
    fn submit_indirect<R: Ring>(
        &mut self,
        ring: &mut R,
        slots: u16,
        buffers: B,
    ) -> Result<u16, (QueueError, B)> {
        if self.free_indirect == NONE {
            return Err((if self.broken { QueueError::Broken } else { QueueError::Full }, buffers));
        }
        core::mem::swap(&mut self.free, &mut self.free_indirect);
        let result = self.submit(ring, slots, buffers);
        core::mem::swap(&mut self.free, &mut self.free_indirect);
        result
    }

    /// Hands the chain in `slot` to `done`: the device has used it. `len` is `None` if its length is not known.
    #[inline]
    fn take<R: Ring>(
        &mut self,
        ring: &mut R,
        slot: usize,
        len: Option<u32>,
        untold: u16,
        done: impl FnOnce(Completion<B>, &B::Context),
    ) -> Result<(), QueueError> {
        let Some(place) = self.places.get_mut(slot) else { return Err(QueueError::Broken) };
        // Not one that the device was not told of.
        if untold > 0 && (self.submitted as u16).wrapping_sub(place.link) <= untold {
            return Err(QueueError::Broken);
        }
        let Some(buffers) = place.buffers.take() else { return Err(QueueError::Broken) };
        ring.advance(place.count);
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
    fn next<R: Ring>(
        &mut self,
        ring: &mut R,
        done: impl FnOnce(Completion<B>, &B::Context),
    ) -> Result<bool, QueueError> {
        let untold = self.submitted.wrapping_sub(self.published) as u16;
        if self.in_order.is_some() {
            return self.next_in_order(ring, untold, done);
        }
        let Some(used) = ring.used()? else { return Ok(false) };
        // The whole 32 bits: an id that only looks right after truncation is wrong.
        self.take(ring, used.id as usize, Some(used.len), untold, done).map(|()| true)
    }

    #[inline(never)]
    fn next_in_order<R: Ring>(
        &mut self,
        ring: &mut R,
        untold: u16,
        done: impl FnOnce(Completion<B>, &B::Context),
    ) -> Result<bool, QueueError> {
        let Some(used) = self.next_used(ring)? else { return Ok(false) };
        let named = self.in_order.as_mut().and_then(|order| order.next(used, untold));
        let (slot, len) = named.ok_or(QueueError::Broken)?;
        self.take(ring, slot, len, untold, done).map(|()| true)
    }

    /// The used element that is due; the same again until the ring advances.
    #[inline]
    fn next_used<R: Ring>(&self, ring: &R) -> Result<Option<Used>, QueueError> {
        match self.in_order.as_ref().and_then(InOrder::batch) {
            None => ring.used(),
            // One element for several chains; the index must cover them all.
            batch if ring.is_skippable() => Ok(batch),
            _ => Err(QueueError::Broken),
        }
    }
}

impl<B: Buffers, N: Notify> Queue<B, N> {
    pub(super) fn new(
        new: NewQueue,
        (device, resets): (DeviceId, u64),
        index: u16,
        notifier: N,
        context: B::Context,
    ) -> Result<Self, QueueError> {
        let (free, free_indirect) = new.slots();
        let frames = Frames::new::<B>(&context, new.slot_count())?;
        let place = |_| Place { buffers: None, writable: 0, count: 0, link: NONE };
        let mut places: Vec<_> = (0..new.slot_count()).map(place).collect();
        let NewQueue { mut format, layout, in_order } = new;
        with_ring!(&mut format, ring => ring.set_frames(frames))?;
        let first_indirect =
            if free_indirect.is_empty() { usize::MAX } else { usize::from(layout.first_indirect) };
        let flights = Flights {
            context,
            free: link(&mut places, &free),
            free_indirect: link(&mut places, &free_indirect),
            places,
            first_indirect,
            submitted: 0,
            published: 0,
            completed: 0,
            in_order: in_order.then(|| InOrder::new(layout.slots)),
            broken: false,
        };
        Ok(Self {
            flights,
            format,
            layout,
            device,
            resets,
            index,
            notifier,
            started: false,
            owed_kick: false,
            kicks: 0,
            interrupts: 0,
            rejected: 0,
        })
    }

    /// Allows the queue to notify its device.
    pub fn start(&mut self, started: &DriverOk) {
        self.started |= started.0 == self.device;
    }

    /// What all chains have in common.
    pub fn context(&self) -> &B::Context {
        &self.flights.context
    }

    /// The device that it belongs to.
    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    /// Its number among the device's queues.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Slots are numbered from 0 to below this.
    pub fn slots(&self) -> usize {
        self.flights.places.len()
    }

    /// The most chains that can be in flight.
    pub fn depth(&self) -> u16 {
        self.layout.slots
    }

    /// Number of chains in flight.
    pub fn in_flight(&self) -> u16 {
        self.flights.in_flight()
    }

    /// Number of slots with buffers in them, counted one by one: for checks.
    pub fn occupied(&self) -> usize {
        self.flights.places.iter().filter(|place| place.buffers.is_some()).count()
    }

    /// Whether the device broke the rules of the ring.
    pub fn is_broken(&self) -> bool {
        self.flights.broken
    }

    /// What the queue has done.
    pub fn counters(&self) -> Counters {
        let Flights { submitted, completed, .. } = self.flights;
        let Self { kicks, interrupts, rejected, .. } = *self;
        Counters { submitted, kicks, interrupts, completions: completed, rejected }
    }

    /// Reports `count` interrupts of this queue, for the counters.
    pub fn count_interrupts(&mut self, count: u64) {
        self.interrupts = self.interrupts.wrapping_add(count);
    }

    /// The slot that the next [`submit`](Self::submit) takes; `None` if there is none free.
    pub fn next_slot(&self) -> Option<u16> {
        self.flights.next_slot()
    }

    /// Takes `buffers`. The device learns of them with the next [`kick`](Self::kick). Returns the slot: a number that is
    /// below [`slots`](Self::slots) and unique among the chains in flight.
    ///
    /// # Errors
    /// Gives `buffers` back.
    #[inline(always)]
    pub fn submit(&mut self, buffers: B) -> Result<u16, (QueueError, B)> {
        let slots = self.layout.slots;
        with_ring!(&mut self.format, ring => self.flights.submit(ring, slots, buffers))
    }

    /// Tells the device about everything submitted since the last call: one store, at most one notification, and
    /// none before the device was started.
    pub fn kick(&mut self) {
        if self.flights.broken {
            return;
        }
        let wanted = with_ring!(&mut self.format, ring => ring.publish());
        self.flights.published = self.flights.submitted;
        match wanted {
            Ok(wanted) => self.owed_kick |= wanted,
            Err(_) => _ = self.flights.break_off(),
        }
        if self.owed_kick && self.started {
            self.owed_kick = false;
            self.kicks = self.kicks.wrapping_add(1);
            self.notifier.notify(with_ring!(&self.format, ring => ring.position()));
        }
    }

    /// Takes one completion, if there is one.
    ///
    /// # Errors
    /// [`QueueError::Broken`], from then on.
    pub fn pop(&mut self) -> Result<Option<Completion<B>>, QueueError> {
        let flights = &mut self.flights;
        if flights.broken {
            return Err(QueueError::Broken);
        }
        let (mut popped, rejected) = (None, &mut self.rejected);
        let result = with_ring!(&mut self.format, ring => {
            ring.look(flights.in_flight()).and_then(|()| flights.next(ring, |completion, _| popped = Some(completion)))
        });
        let wrong = matches!(popped, Some(Completion { written: None, .. }));
        *rejected = rejected.wrapping_add((wrong || result.is_err()).into());
        result.map(|_| popped).map_err(|_| flights.break_off())
    }

    /// Hands all completions of one look at the ring to `done`, with what all chains have in common, and says how many
    /// there were.
    ///
    /// # Errors
    /// [`QueueError::Broken`], from then on; `done` has seen what came before.
    #[inline]
    pub fn reap(&mut self, done: impl FnMut(Completion<B>, &B::Context)) -> Result<usize, QueueError> {
        let Self { flights, rejected, .. } = self;
        if flights.broken {
            return Err(QueueError::Broken);
        }
        with_ring!(&mut self.format, ring => Self::reap_from(ring, flights, rejected, done)).map_err(|_| {
            *rejected = rejected.wrapping_add(1);
            flights.break_off()
        })
    }

    #[inline]
    fn reap_from<R: Ring>(
        ring: &mut R,
        flights: &mut Flights<B>,
        rejected: &mut u64,
        mut done: impl FnMut(Completion<B>, &B::Context),
    ) -> Result<usize, QueueError> {
        ring.look(flights.in_flight())?;
        let before = flights.completed;
        // Each round ends a flight, so there is an end.
        while flights.next(ring, |completion, context| {
            if completion.written.is_none() {
                *rejected = rejected.wrapping_add(1);
            }
            done(completion, context);
        })? {}
        Ok(flights.completed.wrapping_sub(before) as usize)
    }

    /// Asks the device not to interrupt for this queue. It still may.
    pub fn disable_interrupts(&mut self) {
        if with_ring!(&mut self.format, ring => ring.disable_interrupts()).is_err() {
            self.flights.break_off();
        }
    }

    /// Asks the device to interrupt for the next completion. `true` if there are completions already, for which
    /// no interrupt may come, or the queue is broken: do not sleep.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        let in_flight = self.flights.in_flight();
        let used = with_ring!(&mut self.format, ring => {
            ring.enable_interrupts().and_then(|()| ring.look(in_flight)).and_then(|()| self.flights.next_used(ring))
        });
        self.flights.broken || !matches!(used, Ok(None))
    }

    /// Starts over after the device has reset this queue: nothing may be in flight. `set_up` makes the new notifier.
    pub(super) fn restart(&mut self, set_up: impl FnOnce(&QueueSetup) -> Result<N, Error>) -> Result<(), Error> {
        with_ring!(&mut self.format, ring => ring.rewind())?;
        self.flights.published = self.flights.submitted;
        self.owed_kick = false;
        let setup = with_ring!(&self.format, ring => ring.setup(self.index))?;
        self.notifier = set_up(&setup)?;
        Ok(())
    }

    /// Gives up the buffers that are in flight: the device was reset, so they are its no more. None if another device
    /// was, or this one only before the queue was made.
    pub fn reclaim(&mut self, quiet: &Quiet) -> impl Iterator<Item = B> {
        let is_ours = quiet.0 == self.device && quiet.1 > self.resets;
        if is_ours {
            self.flights.break_off();
            self.flights.completed = self.flights.submitted;
        }
        let end = if is_ours { self.flights.places.len() } else { 0 };
        self.flights.places.drain(..end).filter_map(|place| place.buffers)
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
        self.places.drain(..).filter_map(|place| place.buffers).for_each(B::abandon);
    }
}
