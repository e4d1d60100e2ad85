//! One request queue of a block device.

use core::sync::atomic::Ordering;

use super::error::RequestError;
use super::request::{Command, Common, InFlight, Request};
use super::{Done, Geometry, Ticket};
use ringfence_memory::Quiet;

use crate::virtio::{Counters, DriverOk, Notify, Queue, QueueError};

/// One request queue. It shares nothing that is written with the device's other queues, so each CPU can have
/// its own. Its calls take no lock, allocate nothing and do not wait: an interrupt handler that has it may
/// use it.
pub struct BlockQueue<N>(Queue<InFlight, N>);

impl<N: Notify> BlockQueue<N> {
    pub(super) fn new(queue: Queue<InFlight, N>) -> Self {
        Self(queue)
    }

    pub(super) fn start(&mut self, started: &DriverOk) {
        self.0.start(started);
    }

    pub(super) fn reclaim(&mut self, quiet: &Quiet) {
        self.0.reclaim(quiet).for_each(drop);
    }

    pub(super) fn inner(&mut self) -> &mut Queue<InFlight, N> {
        &mut self.0
    }

    /// What the disk is like.
    pub fn geometry(&self) -> Geometry {
        let Common { geometry, sectors, .. } = self.0.context();
        Geometry { sectors: sectors.load(Ordering::Relaxed), ..*geometry }
    }

    /// The most requests that can be in flight.
    pub fn depth(&self) -> usize {
        self.0.depth().into()
    }

    /// Tickets' [indices](Ticket::index) are from 0 to below this.
    pub fn tickets(&self) -> usize {
        self.0.slots()
    }

    /// Whether the request that `ticket`, one of this queue, names is in flight and was not given up.
    pub fn is_in_flight(&self, ticket: Ticket) -> bool {
        self.0.is_in_flight(ticket)
    }

    /// Waits no more for the request that `ticket`, one of this queue, names (that of another may name one
    /// here, too): it is *lost*. It may still happen, and counts as in flight. Its buffer
    /// stays with the queue until the device is done with it, and then goes back to its pool; nobody is told.
    /// `false` if no request in flight has this ticket, or it was given up before.
    pub fn give_up(&mut self, ticket: Ticket) -> bool {
        self.0.give_up(ticket)
    }

    /// How many of those in flight were given up.
    pub fn lost(&self) -> usize {
        self.0.lost().into()
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight().into()
    }

    /// Number of descriptors.
    pub fn queue_size(&self) -> u16 {
        self.0.size()
    }

    /// Whether the device broke the rules of the ring: drop the driver.
    pub fn is_broken(&self) -> bool {
        self.0.is_broken()
    }

    /// What the queue has done.
    pub fn counters(&self) -> Counters {
        self.0.counters()
    }

    /// Puts a request into the ring. The device starts on it after the next [`kick`](Self::kick).
    ///
    /// # Errors
    /// Gives the request back: see [`RequestError`]. After [`RequestError::Full`], reap and try again.
    #[inline(always)] // What kind of request it is, the caller often knows.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, (RequestError, Request)> {
        let ((kind, sector, len), buffer) = request.split();
        let command = || Command { kind, sector, len };
        let result = if command().is_possible(self.0.context()) {
            self.0.submit_for(buffer, command)
        } else {
            Err((QueueError::BadChain, buffer))
        };
        match result {
            Ok(ticket) => Ok(ticket),
            Err((error, buffer)) => {
                Err(Command::refused((kind, sector, len), buffer, self.0.context(), error))
            }
        }
    }

    /// Submits all of `requests` and kicks once; `each` learns how each one fared.
    pub fn submit_batch(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        mut each: impl FnMut(Result<Ticket, (RequestError, Request)>),
    ) {
        for request in requests {
            each(self.submit(request));
        }
        self.kick();
    }

    /// Tells the device about all submitted requests, by at most one notification.
    pub fn kick(&mut self) {
        self.0.kick();
    }

    /// See [`Queue::kick_again`].
    pub fn kick_again(&mut self) {
        self.0.kick_again();
    }

    /// Hands all finished requests to `done`, and says how many came back, with those that were
    /// [given up](Self::give_up).
    ///
    /// # Errors
    /// [`QueueError::Broken`]: drop the driver.
    #[inline]
    pub fn reap(&mut self, mut done: impl FnMut(Done)) -> Result<usize, QueueError> {
        self.0.reap_raw(|used, InFlight(buffer), common, rejected| {
            let result = common.outcome(used);
            *rejected = rejected.wrapping_add((result == Err(RequestError::BadLength)).into());
            done(Done { ticket: used.ticket, result, buffer });
            true
        })
    }

    /// Asks for no interrupts while polling. Interrupts may come anyway.
    pub fn disable_interrupts(&mut self) {
        self.0.disable_interrupts();
    }

    /// Asks for an interrupt at the next completion; a new queue has asked for the first. `true`: something
    /// is there already; reap instead of sleeping.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        self.0.enable_interrupts()
    }
}
