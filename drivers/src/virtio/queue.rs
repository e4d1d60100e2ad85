//! The driver side of a virtqueue: buffers go in by value and come back by value, exactly once.

use alloc::vec::Vec;

use ringfence_memory::{DmaAddr, DmaBuf};

use super::split::{Chain, SplitRing};
use super::{DriverOk, Notify, Quiet};

/// Why a queue refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// Not enough free descriptors; some come back with the next completions.
    Full,
    /// No parts, an empty part, a readable part after a writable one, or 4 GiB and more.
    BadChain,
    /// A part is memory of another device.
    WrongDevice,
    /// The device broke the rules of the ring: it completed what it does not have. What it may still hold stays
    /// with the queue until the device is reset; no more can be done with the queue.
    Broken,
}

/// A piece of memory for the device to read or to write.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub(super) address: DmaAddr,
    pub(super) len: u32,
    pub(super) writable: bool,
}

impl Part {
    /// `len` bytes from `offset` on, for the device to read. `None` beyond the end of the buffer.
    pub fn readable(buffer: &DmaBuf, offset: usize, len: usize) -> Option<Self> {
        Self::new(buffer, offset, len, false)
    }

    /// `len` bytes from `offset` on, for the device to write. `None` beyond the end of the buffer.
    pub fn writable(buffer: &DmaBuf, offset: usize, len: usize) -> Option<Self> {
        Self::new(buffer, offset, len, true)
    }

    fn new(buffer: &DmaBuf, offset: usize, len: usize, writable: bool) -> Option<Self> {
        offset.checked_add(len).filter(|&end| end <= buffer.len())?;
        Some(Self { address: buffer.address_at(offset)?, len: u32::try_from(len).ok()?, writable })
    }
}

/// What can be put in a queue: a value that owns every buffer that it tells the device about.
pub trait Buffers {
    /// The part with this index, or `None` after the last one. Readable parts come first.
    fn part(&self, index: u16) -> Option<Part>;

    /// The fewest bytes that the device must have written for a completion to be true.
    fn least_written(&self) -> u32;

    /// Gives up the buffers while the device may still use them: [`DmaBuf::abandon`] for each.
    fn abandon(self);
}

/// What comes back from a queue.
#[derive(Debug)]
pub struct Completion<B> {
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

struct Flight<B> {
    buffers: B,
    chain: Chain,
    /// Position of its available entry.
    position: u16,
}

/// A virtqueue with the buffers that are in flight in it.
///
/// Buffers that are in flight when the queue is dropped are [abandoned](Buffers::abandon), unless the driver has shown
/// the device quiet and called `reclaim`.
pub struct Queue<B: Buffers, N> {
    ring: SplitRing,
    /// By head descriptor.
    flights: Vec<Option<Flight<B>>>,
    in_flight: u16,
    /// Used elements that are known to be there.
    ready: u16,
    notifier: N,
    started: bool,
    /// The device wants a notification that was not sent yet, because it was not started.
    owed_kick: bool,
    broken: bool,
    counters: Counters,
}

impl<B: Buffers, N: Notify> Queue<B, N> {
    pub(super) fn new(ring: SplitRing, notifier: N) -> Self {
        let flights = (0..ring.size()).map(|_| None).collect();
        let counters = Counters::default();
        Self {
            ring,
            flights,
            in_flight: 0,
            ready: 0,
            notifier,
            started: false,
            owed_kick: false,
            broken: false,
            counters,
        }
    }

    /// Allows the queue to notify the device.
    pub fn start(&mut self, _: &DriverOk) {
        self.started = true;
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Number of descriptors that are free. With those of the chains in flight they make up the size.
    pub fn free(&self) -> u16 {
        self.ring.free()
    }

    /// Number of chains in flight.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Number of descriptors that the chains in flight occupy, counted one by one: for checks.
    pub fn occupied(&self) -> usize {
        self.flights.iter().flatten().map(|flight| usize::from(flight.chain.count)).sum()
    }

    /// Whether the device broke the rules of the ring.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// What the queue has done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Reports `count` interrupts of this queue, for the counters.
    pub fn count_interrupts(&mut self, count: u64) {
        self.counters.interrupts = self.counters.interrupts.wrapping_add(count);
    }

    /// Takes `buffers`. The device learns of them with the next [`kick`](Self::kick). Returns a number that is
    /// below [`size`](Self::size) and unique among the chains in flight.
    ///
    /// # Errors
    /// Gives `buffers` back.
    pub fn submit(&mut self, buffers: B) -> Result<u16, (QueueError, B)> {
        if self.broken {
            return Err((QueueError::Broken, buffers));
        }
        let (chain, position) = match self.ring.add(&buffers) {
            Ok(added) => added,
            Err(error) => return Err((error, buffers)),
        };
        // The head was free, so its place is there and empty.
        if let Some(place) = self.flights.get_mut(usize::from(chain.head)) {
            *place = Some(Flight { buffers, chain, position });
        }
        self.in_flight = self.in_flight.saturating_add(1);
        self.counters.submitted = self.counters.submitted.wrapping_add(1);
        Ok(chain.head)
    }

    /// Tells the device about everything submitted since the last call: one index written, at most one
    /// notification, and none before the device was started.
    pub fn kick(&mut self) {
        if self.broken {
            return;
        }
        match self.ring.publish() {
            Ok(wanted) => self.owed_kick |= wanted,
            Err(_) => self.broken = true,
        }
        if self.owed_kick && self.started {
            self.owed_kick = false;
            self.counters.kicks = self.counters.kicks.wrapping_add(1);
            self.notifier.notify();
        }
    }

    /// Takes one completion, if there is one. The used index is read once for each batch of completions.
    ///
    /// # Errors
    /// [`QueueError::Broken`], from then on.
    pub fn pop(&mut self) -> Result<Option<Completion<B>>, QueueError> {
        if self.broken {
            return Err(QueueError::Broken);
        }
        if self.ready == 0 {
            self.ready = self.ring.used_count()?;
            if self.ready > self.in_flight {
                return Err(self.break_off());
            }
            if self.ready == 0 {
                return Ok(None);
            }
        }
        self.ready = self.ready.saturating_sub(1);
        let used = self.ring.take_used()?;
        // The whole 32 bits: an id that only looks right after truncation is wrong.
        let place = usize::try_from(used.id).ok().and_then(|id| self.flights.get_mut(id));
        let flight = place.and_then(|place| {
            let position = place.as_ref()?.position;
            if self.ring.is_unpublished(position) { None } else { place.take() }
        });
        let Some(Flight { buffers, chain, .. }) = flight else { return Err(self.break_off()) };
        self.ring.release(&chain);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.counters.completions = self.counters.completions.wrapping_add(1);
        let possible = buffers.least_written()..=chain.writable;
        let written = Some(used.len).filter(|len| possible.contains(len));
        if written.is_none() {
            self.counters.rejected = self.counters.rejected.wrapping_add(1);
        }
        Ok(Some(Completion { buffers, written }))
    }

    /// Hands all completions of one look at the ring to `done`, and says how many there were.
    ///
    /// # Errors
    /// [`QueueError::Broken`], from then on; `done` has seen what came before.
    pub fn reap(&mut self, mut done: impl FnMut(Completion<B>)) -> Result<usize, QueueError> {
        let mut count: usize = 0;
        while let Some(completion) = self.pop()? {
            done(completion);
            count = count.saturating_add(1);
            if self.ready == 0 {
                break;
            }
        }
        Ok(count)
    }

    /// Asks the device not to interrupt for this queue. It still may.
    pub fn disable_interrupts(&mut self) {
        self.broken |= self.ring.set_interrupts(false).is_err();
    }

    /// Asks the device to interrupt for the next completion. `true` if there are completions already, for which
    /// no interrupt may come, or the queue is broken: do not sleep.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        self.broken |= self.ring.set_interrupts(true).is_err();
        self.broken || self.ready != 0 || self.ring.used_count() != Ok(0)
    }

    /// Gives up the buffers that are in flight: the device was reset, so they are its no more.
    pub fn reclaim(&mut self, _: &Quiet) -> impl Iterator<Item = B> {
        self.broken = true;
        self.in_flight = 0;
        self.flights.drain(..).flatten().map(|flight| flight.buffers)
    }

    fn break_off(&mut self) -> QueueError {
        self.broken = true;
        self.counters.rejected = self.counters.rejected.wrapping_add(1);
        QueueError::Broken
    }
}

impl<B: Buffers, N> Drop for Queue<B, N> {
    fn drop(&mut self) {
        // The device may still write to these: they must not be lent again.
        self.flights.drain(..).flatten().for_each(|flight| flight.buffers.abandon());
    }
}
