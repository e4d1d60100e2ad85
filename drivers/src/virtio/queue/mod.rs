//! The driver side of a virtqueue: buffers go in by value and come back by value, exactly once.

mod buffer_list;
mod chain;
mod controls;
#[cfg(feature = "in-order")]
mod in_order;
mod indirect;
mod layout;
#[cfg(feature = "packed")]
mod packed;
mod poll_policy;
mod ring;
mod slots;
mod spare;
mod split;

use ringfence_memory::{DmaWindows, Life, Quiet};

use super::{DriverOk, Error, Notify, QueueSetup, QueueShape, features};
#[cfg(feature = "in-order")]
use in_order::{InOrder, Plain};
use layout::Layout;
#[cfg(feature = "packed")]
use packed::PackedRing;
use ring::Ring;
use slots::Slots;
use split::SplitRing;

pub use buffer_list::BufferList;
pub(crate) use chain::sealed;
pub use chain::{Buffers, Ends};
pub use controls::Controls;
pub use poll_policy::{Hybrid, LOOK_AGAIN};
pub(crate) use poll_policy::{LEAST_SILENCE, longest_gap};
pub use slots::Ticket;
pub(crate) use slots::UsedChain;

/// Why a queue refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueError {
    /// As many chains are in flight as can be, or so long ones that this one does not fit; some come back
    /// with the next completions. Or the queue is [being reset](super::Device::begin_reset_queue).
    Full,
    /// No segments, too many, an empty one, a readable one after a writable one, or 4 GiB and more.
    BadChain,
    /// A segment is memory of another device.
    WrongDevice,
    /// There is no memory for the queue.
    OutOfMemory,
    /// The device broke the rules of the ring: it completed what it does not have. What it may still hold
    /// stays with the queue until the device is reset; no more can be done with the queue.
    Broken,
    /// The device has kept requests, or frames to send, to itself for longer than one has patience:
    /// [`Patience`](crate::block::Patience), [`NetPair::check`](crate::net::NetPair::check).
    Unresponsive,
}

ringfence_memory::messages! { QueueError {
    Full => "full",
    BadChain => "not buffers that can be told to a device",
    WrongDevice => "a buffer of another device",
    OutOfMemory => "out of memory",
    Broken => "the device broke the rules of the ring",
    Unresponsive => "the device does not answer any more",
} }

impl<B> From<(Self, B)> for QueueError {
    fn from((error, _): (Self, B)) -> Self {
        error
    }
}

/// What comes back from a queue.
#[derive(Debug)]
pub struct Completion<B> {
    /// What [`Queue::submit`] returned for it.
    pub ticket: Ticket,
    /// What was submitted.
    pub buffers: B,
    /// How many bytes the device says it wrote, from the start of the writable segments; `None` if that is
    /// more than fits or less than [`Buffers::least_written`].
    pub written: Option<u32>,
}

/// What a queue has done since it was set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chains submitted.
    pub submitted: u64,
    /// Notifications sent to the device.
    pub kicks: u64,
    /// Chains that came back.
    pub completions: u64,
    /// Chains that were given up.
    pub given_up: u64,
    /// Of these, the ones that the device used after all, or had when it was reset.
    pub late: u64,
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
    /// Segments of a chain, with its ends. So many chains as are in flight fit.
    pub segments: u16,
    /// The most segments of a chain: one such chain fits, if the ring has twice as many descriptors, and
    /// more if there is room.
    pub longest: u16,
}

/// A queue's memory, in the format that was negotiated.
#[allow(clippy::large_enum_variant, reason = "one for each queue")]
#[repr(u8)] // A tag of its own: which of the first two it is costs one comparison.
enum Format {
    Split(SplitRing),
    #[cfg(feature = "packed")]
    Packed(PackedRing),
    #[cfg(feature = "in-order")]
    InOrder(InOrder),
}

/// Does the same with any kind of ring.
macro_rules! with_ring {
    ($format:expr, $ring:ident => $do:expr) => {
        match $format {
            Format::Split($ring) => $do,
            #[cfg(feature = "packed")]
            Format::Packed($ring) => $do,
            #[cfg(feature = "in-order")]
            Format::InOrder($ring) => $do,
        }
    };
}

impl Format {
    #[inline(never)]
    fn has_used(&mut self, in_flight: u16, completed: u64) -> Result<bool, QueueError> {
        with_ring!(self, ring => {
            ring.look(in_flight).and_then(|at| Ok(ring.used(at, completed)?.is_some()))
        })
    }
}

/// Looks at what the device wrote, and does something with the ring then. All looks go through here, or
/// through [`Queue::has_used`]: an error breaks the queue at once, whoever found it, so that nobody can go on
/// after it.
#[inline(always)]
fn look<R: Ring, B: Buffers, T>(
    ring: &mut R,
    slots: &mut Slots<B>,
    then: impl FnOnce(&mut R, &mut Slots<B>, R::Used) -> Result<T, QueueError>,
) -> Result<T, QueueError> {
    if slots.broken {
        return Err(QueueError::Broken);
    }
    let looked = ring.look(slots.in_flight()).and_then(|cursor| then(ring, slots, cursor));
    looked.map_err(|error| if error == QueueError::Broken { broken(slots) } else { error })
}

#[cold]
fn broken<B: Buffers>(slots: &mut Slots<B>) -> QueueError {
    slots.rejected = slots.rejected.wrapping_add(1);
    slots.break_off()
}

/// A virtqueue with the buffers that are in flight in it.
///
/// Buffers that are in flight when the queue is dropped are [abandoned](Buffers::abandon), unless the driver
/// has shown the device quiet and called `reclaim`.
pub struct Queue<B: Buffers, N> {
    slots: Slots<B>,
    format: Format,
    layout: Layout,
    /// The life of the device in which it knows the queue.
    life: Life,
    index: u16,
    notifier: N,
    started: bool,
    /// The device wants a notification that was not sent yet, because it was not started.
    owed_kick: bool,
    /// While the device is to reset the queue: the first free slot, which nobody is given then.
    resetting: Option<u16>,
    /// How many chains it had been told of when it was notified once more of some of them.
    told_again: u64,
    kicks: u64,
}

/// The memory of a queue that the device does not know yet.
pub(super) struct NewQueue {
    format: Format,
    layout: Layout,
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
        let event_index = has(features::EVENT_IDX);
        let split = || SplitRing::new(windows, layout, event_index);
        #[cfg(feature = "packed")]
        let packed = || PackedRing::new(windows, layout, event_index);
        let format = match (has(features::RING_PACKED), has(features::IN_ORDER)) {
            #[cfg(all(feature = "packed", feature = "in-order"))]
            (true, true) => Format::InOrder(InOrder::new(Plain::Packed(packed()?), &layout)?),
            #[cfg(feature = "in-order")]
            (false, true) => Format::InOrder(InOrder::new(Plain::Split(split()?), &layout)?),
            #[cfg(feature = "packed")]
            (true, _) => Format::Packed(packed()?),
            _ => Format::Split(split()?),
        };
        Ok(Self { format, layout })
    }

    pub(super) fn shape(&self) -> QueueShape {
        QueueShape { slots: self.layout.slots.into(), segments: self.layout.longest }
    }

    pub(super) fn setup(&self, index: u16) -> Result<QueueSetup<'_>, Error> {
        with_ring!(&self.format, ring => ring.setup(index))
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
        let NewQueue { mut format, layout } = new;
        let have_ends = |slot| B::ends(&context, slot).is_some();
        if have_ends(0) && (!have_ends(layout.slots.saturating_sub(1)) || layout.longest < 2) {
            return Err(QueueError::BadChain);
        }
        let is_ready = with_ring!(&mut format, ring => ring.set_ends(&|slot| B::ends(&context, slot)))?;
        let longest = if is_ready { B::longest(&context) } else { 0 };
        Ok(Self {
            slots: Slots::new(context, &layout, longest)?,
            format,
            layout,
            life,
            index,
            notifier,
            started: false,
            owed_kick: false,
            resetting: None,
            told_again: 0,
            kicks: 0,
        })
    }

    /// Allows the queue to notify its device, if it was started in the life that the queue is of.
    pub fn start(&mut self, started: &DriverOk) {
        self.started |= started.0 == self.life;
    }

    /// What all chains have in common.
    pub fn context(&self) -> &B::Context {
        &self.slots.context
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
        self.slots.count()
    }

    /// The most chains that can be in flight.
    pub fn depth(&self) -> u16 {
        self.layout.slots
    }

    /// Number of chains in flight.
    pub fn in_flight(&self) -> u16 {
        self.slots.in_flight()
    }

    /// Whether the chain that `ticket`, one of this queue, names is in flight and was not given up.
    pub fn is_in_flight(&self, ticket: Ticket) -> bool {
        self.slots.is_in_flight(ticket)
    }

    /// Waits no more for the chain that `ticket` names: it is *lost*. It keeps its slot, and the queue its
    /// buffers, until the device uses it after all: then they are dropped, and nobody is told. `false` if no
    /// chain in flight has this ticket, or it was given up before. Counted, however long it takes, as in
    /// flight.
    pub fn give_up(&mut self, ticket: Ticket) -> bool {
        self.slots.give_up(ticket)
    }

    /// Number of chains in flight that were given up.
    pub fn lost(&self) -> u16 {
        self.slots.lost()
    }

    /// Number of slots with buffers in them, counted one by one: for checks.
    pub fn occupied(&self) -> usize {
        self.slots.occupied()
    }

    /// Whether the device broke the rules of the ring.
    pub fn is_broken(&self) -> bool {
        self.slots.broken
    }

    /// What the queue has done.
    pub fn counters(&self) -> Counters {
        let Slots { submitted, completed, skipped, given_up, late, rejected, .. } = self.slots;
        let [submitted, completions] = [submitted, completed].map(|count| count.wrapping_sub(skipped));
        Counters { submitted, kicks: self.kicks, completions, given_up, late, rejected }
    }

    /// The slot that the next [`submit`](Self::submit) takes; `None` if there is none free.
    pub fn next_slot(&self) -> Option<u16> {
        self.slots.next()
    }

    /// Takes `buffers`. The device learns of them with the next [`kick`](Self::kick).
    ///
    /// # Errors
    /// Gives `buffers` back.
    #[inline(always)]
    pub fn submit(&mut self, buffers: B) -> Result<Ticket, (QueueError, B)>
    where
        B: Buffers<Request = ()>,
    {
        self.submit_for(buffers, || ())
    }

    /// The same for `request`: a function, so that what it makes is in memory only where that is needed.
    #[inline(always)]
    pub(crate) fn submit_for(
        &mut self,
        buffers: B,
        request: impl Fn() -> B::Request,
    ) -> Result<Ticket, (QueueError, B)> {
        let number = self.slots.submitted;
        let slot = match &mut self.format {
            Format::Split(ring) => self.slots.submit(ring, buffers, request),
            #[cfg(feature = "packed")]
            Format::Packed(ring) => self.slots.submit(ring, buffers, request),
            #[cfg(feature = "in-order")]
            Format::InOrder(ring) => self.slots.submit_any(ring, buffers, request()),
        };
        slot.map(|slot| Ticket::new(slot, number))
    }

    /// Tells the device about everything submitted since the last call: one store, at most one notification,
    /// and none before the device was started or after it was reset.
    pub fn kick(&mut self) {
        if self.slots.broken {
            return;
        }
        let submitted = self.slots.submitted;
        let (due, position) =
            with_ring!(&mut self.format, ring => (ring.publish(submitted), ring.position()));
        self.owed_kick |= due;
        self.slots.published = self.slots.submitted;
        // After a reset the device is not to be notified before the next DRIVER_OK (3.1.1).
        if self.owed_kick && self.started && self.life.is_present() {
            self.owed_kick = false;
            self.kicks = self.kicks.wrapping_add(1);
            self.notifier.notify(position);
        }
    }

    /// Does the same, and looks once more whether the device wants to be notified of what is in flight: for
    /// whoever has waited for [`LOOK_AGAIN`](super::LOOK_AGAIN). One needless notification may come of it for
    /// each [`kick`](Self::kick), never more.
    ///
    /// No notification is lost where fences hold. But QEMU leaves them out of a guest that can have only one
    /// processor, though its devices run in threads of their own (seen in 7.2, TCG): then `kick` may see what
    /// the device wanted before it went to sleep, while the device does not yet see what was published.
    #[cold]
    pub fn kick_again(&mut self) {
        let Slots { published, completed, .. } = self.slots;
        let told = published.saturating_sub(completed);
        if told > 0 && self.told_again != published {
            // There are never more than slots.
            if with_ring!(&self.format, ring => ring.is_kick_due(told as u16)) {
                (self.owed_kick, self.told_again) = (true, published);
            }
        }
        self.kick();
    }

    /// Takes one completion, if there is one.
    ///
    /// # Errors
    /// [`QueueError::Broken`], from then on.
    pub fn pop(&mut self) -> Result<Option<Completion<B>>, QueueError> {
        let mut popped = None;
        self.reap_while(|completion, _| {
            popped = Some(completion);
            false
        })?;
        Ok(popped)
    }

    /// Hands all completions of one look at the ring to `done`, with what all chains have in common, and says
    /// how many chains came back, with those that were [given up](Self::give_up).
    ///
    /// # Errors
    /// [`QueueError::Broken`], from then on; `done` has seen what came before.
    #[inline]
    pub fn reap(&mut self, mut done: impl FnMut(Completion<B>, &B::Context)) -> Result<usize, QueueError> {
        self.reap_while(|completion, context| {
            done(completion, context);
            true
        })
    }

    #[inline(always)]
    fn reap_while(
        &mut self,
        mut done: impl FnMut(Completion<B>, &B::Context) -> bool,
    ) -> Result<usize, QueueError> {
        self.reap_raw(|used, buffers, context, rejected| {
            let completion = Completion::new(used, buffers);
            *rejected = rejected.wrapping_add(completion.written.is_none().into());
            done(completion, context)
        })
    }

    /// The same until `done` says `false`; it judges the lengths, and counts those that it rejects.
    #[inline(always)]
    pub(crate) fn reap_raw(
        &mut self,
        done: impl FnMut(UsedChain, B, &B::Context, &mut u64) -> bool,
    ) -> Result<usize, QueueError> {
        let Self { format, slots, .. } = self;
        with_ring!(format, ring => look(ring, slots, |ring, slots, at| slots.reap(ring, at, done)))
    }

    /// Shows `renew` up to `most` chains of one look at the ring, which it may change, and puts those for
    /// which it has a request into the ring again, in their slots. Says how many those were; the first other
    /// one is dropped, and ends it. `renew` counts those that it rejects. Cheaper than taking chains out and
    /// submitting them.
    ///
    /// # Errors
    /// [`QueueError::Broken`], from then on, or what is wrong with a chain as `renew` left it, which is
    /// dropped.
    #[inline(always)]
    pub(crate) fn renew(
        &mut self,
        most: usize,
        renew: impl FnMut(&mut B, UsedChain, &mut u64) -> Option<B::Request>,
    ) -> Result<usize, QueueError> {
        let Self { format, slots, .. } = self;
        with_ring!(format, ring => look(ring, slots, |ring, slots, at| slots.renew(ring, at, most, renew)))
    }

    /// Asks the device not to interrupt for this queue. It still may.
    pub fn disable_interrupts(&mut self) {
        with_ring!(&mut self.format, ring => ring.disable_interrupts());
    }

    /// Asks the device to interrupt for the next completion. `true` if there are completions already, for
    /// which no interrupt may come, or the queue is broken: do not sleep.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        with_ring!(&mut self.format, ring => ring.enable_interrupts());
        !matches!(self.has_used(), Ok(false))
    }

    /// Whether the device has used what was not taken yet.
    pub(crate) fn has_used(&mut self) -> Result<bool, QueueError> {
        if self.slots.broken {
            return Err(QueueError::Broken);
        }
        let has_used = self.format.has_used(self.slots.in_flight(), self.slots.completed);
        has_used.map_err(|_| broken(&mut self.slots))
    }

    /// Takes nothing until [`restart`](Self::restart): the device is to reset the queue, in which nothing is
    /// in flight, and which is not written to before it has.
    pub(super) fn begin_reset(&mut self) {
        self.slots.published = self.slots.submitted;
        self.owed_kick = false;
        self.resetting = Some(self.slots.pause());
    }

    /// Whether the device is to reset it, and has not yet.
    pub(super) fn is_resetting(&self) -> bool {
        self.resetting.is_some()
    }

    /// Starts over, once the device has reset the queue: `set_up` makes the new notifier. If it fails the
    /// queue is broken.
    pub(super) fn restart(
        &mut self,
        set_up: impl FnOnce(&QueueSetup<'_>) -> Result<N, Error>,
    ) -> Result<(), Error> {
        let index = self.index;
        let set_up = with_ring!(&mut self.format, ring => {
            ring.rewind();
            ring.setup(index).and_then(|setup| set_up(&setup))
        });
        self.notifier = set_up.inspect_err(|_| self.break_off())?;
        self.resetting.take().into_iter().for_each(|free| self.slots.resume(free));
        Ok(())
    }

    /// Nothing more can be done with it.
    pub(super) fn break_off(&mut self) {
        self.slots.break_off();
    }

    /// Gives up the buffers that are in flight: the device was reset, so they are its no more. None unless
    /// `quiet` ends the life that the queue is of.
    pub fn reclaim(&mut self, quiet: &Quiet) -> impl Iterator<Item = B> {
        quiet.ends(&self.life).then(|| self.slots.drain()).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests;
