//! The driver side of a virtqueue: buffers go in by value and come back by value, exactly once.

use alloc::vec::Vec;

use ringfence_memory::{DmaWindows, Life, Quiet};

use super::chain::{Buffers, Frames};
use super::in_order::InOrder;
use super::packed::PackedRing;
use super::ring::{Layout, Ring};
use super::slots::Flights;
use super::split::SplitRing;
use super::{DriverOk, Error, Notify, QueueSetup, features};

/// Why a queue refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// As many chains are in flight as can be; some come back with the next completions.
    Full,
    /// No parts, too many, an empty part, a readable part after a writable one, or 4 GiB and more.
    BadChain,
    /// A part is memory of another device.
    WrongDevice,
    /// The device broke the rules of the ring: it completed what it does not have. What it may still hold
    /// stays with the queue until the device is reset; no more can be done with the queue.
    Broken,
}

/// What comes back from a queue.
#[derive(Debug)]
pub struct Completion<B> {
    /// What [`Queue::submit`] returned.
    pub slot: u16,
    /// What was submitted.
    pub buffers: B,
    /// How many bytes the device says it wrote, from the start of the writable parts; `None` if that is more
    /// than fits or less than [`Buffers::least_written`].
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

/// Looks at what the device wrote, and does something with the ring then. All looks go through here: an error
/// breaks the queue at once, whoever found it, so that nobody can go on after it.
macro_rules! look {
    ($queue:expr, $ring:ident, $flights:ident, $rejected:ident => $do:expr) => {{
        let Queue { format, flights: $flights, rejected: $rejected, .. } = $queue;
        if $flights.broken {
            return Err(QueueError::Broken);
        }
        let looked = with_ring!(format, $ring => match $ring.look($flights.in_flight()) {
            Ok(()) => $do,
            Err(error) => Err(error),
        });
        looked.map_err(|error| if error == QueueError::Broken { broken($flights, $rejected) } else { error })
    }};
}

#[cold]
fn broken<B: Buffers>(flights: &mut Flights<B>, rejected: &mut u64) -> QueueError {
    *rejected = rejected.wrapping_add(1);
    flights.break_off()
}

/// A virtqueue with the buffers that are in flight in it.
///
/// Buffers that are in flight when the queue is dropped are [abandoned](Buffers::abandon), unless the driver
/// has shown the device quiet and called `reclaim`.
pub struct Queue<B: Buffers, N> {
    flights: Flights<B>,
    format: Format,
    layout: Layout,
    /// The life of the device in which it knows the queue.
    life: Life,
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

    pub(super) fn setup(&self, index: u16) -> Result<QueueSetup<'_>, Error> {
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

impl<B: Buffers, N: Notify> Queue<B, N> {
    pub(super) fn new(
        new: NewQueue,
        life: Life,
        index: u16,
        notifier: N,
        context: B::Context,
    ) -> Result<Self, QueueError> {
        let (free, free_indirect) = new.slots();
        let frames = Frames::new::<B>(&context, new.slot_count())?;
        let slots = new.slot_count();
        let NewQueue { mut format, layout, in_order } = new;
        with_ring!(&mut format, ring => ring.set_frames(frames))?;
        let in_order = in_order.then(|| InOrder::new(layout.slots));
        let flights = Flights::new(context, slots, [&free, &free_indirect], layout.first_indirect, in_order);
        Ok(Self {
            flights,
            format,
            layout,
            life,
            index,
            notifier,
            started: false,
            owed_kick: false,
            kicks: 0,
            interrupts: 0,
            rejected: 0,
        })
    }

    /// Allows the queue to notify its device, if it was started in the life that the queue is of.
    pub fn start(&mut self, started: &DriverOk) {
        self.started |= started.0 == self.life;
    }

    /// What all chains have in common.
    pub fn context(&self) -> &B::Context {
        &self.flights.context
    }

    /// The life of its device that it belongs to.
    pub(super) fn life(&self) -> &Life {
        &self.life
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
        self.flights.slots()
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
        self.flights.occupied()
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

    /// Takes `buffers`. The device learns of them with the next [`kick`](Self::kick). Returns the slot: a
    /// number that is below [`slots`](Self::slots) and unique among the chains in flight.
    ///
    /// # Errors
    /// Gives `buffers` back.
    #[inline(always)]
    pub fn submit(&mut self, buffers: B) -> Result<u16, (QueueError, B)> {
        let slots = self.layout.slots;
        with_ring!(&mut self.format, ring => self.flights.submit(ring, slots, buffers))
    }

    /// Tells the device about everything submitted since the last call: one store, at most one notification,
    /// and none before the device was started or after it was reset.
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
        // After a reset the device is not to be notified before the next DRIVER_OK (3.1.1).
        if self.owed_kick && self.started && self.life.is_present() {
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
        let mut popped = None;
        look!(self, ring, flights, rejected => flights.next(ring, |completion, _| {
            *rejected = rejected.wrapping_add(completion.written.is_none().into());
            popped = Some(completion);
        }))?;
        Ok(popped)
    }

    /// Hands all completions of one look at the ring to `done`, with what all chains have in common, and says
    /// how many there were.
    ///
    /// # Errors
    /// [`QueueError::Broken`], from then on; `done` has seen what came before.
    #[inline]
    pub fn reap(&mut self, done: impl FnMut(Completion<B>, &B::Context)) -> Result<usize, QueueError> {
        look!(self, ring, flights, rejected => Self::reap_from(ring, flights, rejected, done))
    }

    #[inline]
    fn reap_from<R: Ring>(
        ring: &mut R,
        flights: &mut Flights<B>,
        rejected: &mut u64,
        mut done: impl FnMut(Completion<B>, &B::Context),
    ) -> Result<usize, QueueError> {
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

    /// Shows `renew` the chains of one look at the ring, which it may change, with how many bytes the device
    /// wrote, as in a [`Completion`]. Those for which it says `true` are in the ring again, in their slots;
    /// the first for which it does not stays used, and ends it. Says how many there were. Cheaper than taking
    /// chains out and submitting them; does nothing if [`IN_ORDER`](features::IN_ORDER) was negotiated.
    ///
    /// # Errors
    /// [`QueueError::Broken`], from then on, or what is wrong with a chain as `renew` left it, which is
    /// dropped.
    #[inline]
    pub(crate) fn renew(
        &mut self,
        mut renew: impl FnMut(&mut B, Option<u32>, &B::Context) -> bool,
    ) -> Result<usize, QueueError> {
        let (slots, mut count) = (self.layout.slots, 0);
        look!(self, ring, flights, rejected => {
            let (renewed, result) = flights.renew(ring, slots, |buffers, written, context| {
                let renewed = renew(buffers, written, context);
                if renewed && written.is_none() {
                    *rejected = rejected.wrapping_add(1);
                }
                renewed
            });
            count = renewed;
            result
        })?;
        Ok(count)
    }

    /// Asks the device not to interrupt for this queue. It still may.
    pub fn disable_interrupts(&mut self) {
        if with_ring!(&mut self.format, ring => ring.disable_interrupts()).is_err() {
            self.flights.break_off();
        }
    }

    /// Asks the device to interrupt for the next completion. `true` if there are completions already, for
    /// which no interrupt may come, or the queue is broken: do not sleep.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        if with_ring!(&mut self.format, ring => ring.enable_interrupts()).is_err() {
            self.flights.break_off();
        }
        !matches!(self.is_used(), Ok(false))
    }

    /// Whether the device has used what was not taken yet.
    fn is_used(&mut self) -> Result<bool, QueueError> {
        look!(self, ring, flights, rejected => flights.next_used(ring).map(|used| used.is_some()))
    }

    /// Starts over: nothing may be in flight. `set_up` has the device reset the queue and makes the new
    /// notifier. If it fails the queue is broken.
    pub(super) fn restart(
        &mut self,
        set_up: impl FnOnce(&QueueSetup<'_>) -> Result<N, Error>,
    ) -> Result<(), Error> {
        let (flights, index) = (&mut self.flights, self.index);
        flights.published = flights.submitted;
        self.owed_kick = false;
        let restarted = with_ring!(&mut self.format, ring => {
            ring.rewind().map_err(Error::from).and_then(|()| set_up(&ring.setup(index)?))
        });
        self.notifier = restarted.inspect_err(|_| _ = flights.break_off())?;
        Ok(())
    }

    /// Gives up the buffers that are in flight: the device was reset, so they are its no more. None unless
    /// `quiet` ends the life that the queue is of.
    pub fn reclaim(&mut self, quiet: &Quiet) -> impl Iterator<Item = B> {
        quiet.ends(&self.life).then(|| self.flights.drain()).into_iter().flatten()
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
