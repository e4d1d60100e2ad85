//! What tasks have asked of a queue: which requests wait for room, in which order, which are in the ring, and
//! what came of those that are done. All in one table, which grows only when there are more than ever before.

use alloc::vec::Vec;
use core::mem;
use core::task::Waker;
use core::time::Duration;

use super::{CallResult, Request, RequestError, Ticket};
use crate::virtio::QueueError;

/// How far a request is.
pub(super) enum Stage {
    /// There is none.
    Free,
    /// It is in the line, and waits for room in the ring.
    Queued(Request),
    /// It is in the ring.
    InFlight(Ticket),
    /// Its task was woken.
    Done(CallResult),
}

struct Call {
    stage: Stage,
    /// Who is woken when it is done. If there is none, nobody waits for it any more, or was woken.
    waker: Option<Waker>,
    /// When it ends at the latest; `None` when it is done.
    deadline: Option<Duration>,
    /// The next one that is free, or the next one in the line.
    next: usize,
}

/// No call.
const NONE: usize = usize::MAX;

/// A queue's requests by key, which stays the same until they are removed.
pub(super) struct Calls {
    calls: Vec<Call>,
    free: usize,
    /// The line of those that wait for room.
    first: usize,
    last: usize,
    /// By slot. A slot is free as soon as the device is done, when the task may not have run yet.
    keys: Vec<usize>,
}

impl Calls {
    /// For a queue with so many slots. As many more requests may be done whose tasks have not run, or wait,
    /// before it allocates.
    pub(super) fn new(slots: usize) -> Result<Self, QueueError> {
        let (mut calls, mut keys) = (Vec::new(), Vec::new());
        let reserved = calls.try_reserve_exact(slots.saturating_mul(2));
        reserved.and_then(|()| keys.try_reserve_exact(slots)).map_err(|_| QueueError::OutOfMemory)?;
        keys.resize(slots, NONE);
        Ok(Self { calls, free: NONE, first: NONE, last: NONE, keys })
    }

    /// Keys are below this.
    pub(super) fn count(&self) -> usize {
        self.calls.len()
    }

    /// Whether some wait for room.
    pub(super) fn is_line(&self) -> bool {
        self.first != NONE
    }

    /// Makes room for one more.
    pub(super) fn reserve(&mut self) -> Result<(), QueueError> {
        let needed = if self.free == NONE { 1 } else { 0 };
        self.calls.try_reserve(needed).map_err(|_| QueueError::OutOfMemory)
    }

    /// Adds a request for which there is room.
    fn add(&mut self, stage: Stage, waker: Waker) -> usize {
        let call = Call { stage, waker: Some(waker), deadline: None, next: NONE };
        match self.calls.get_mut(self.free) {
            Some(free) => {
                let next = mem::replace(free, call).next;
                mem::replace(&mut self.free, next)
            }
            None => {
                self.calls.push(call);
                self.calls.len().wrapping_sub(1)
            }
        }
    }

    /// Adds one that is in the ring.
    pub(super) fn add_in_flight(&mut self, ticket: Ticket, waker: Waker) -> usize {
        let key = self.add(Stage::InFlight(ticket), waker);
        self.keep(ticket, key);
        key
    }

    /// Adds one at the end of the line.
    pub(super) fn add_queued(&mut self, request: Request, waker: Waker) -> usize {
        let key = self.add(Stage::Queued(request), waker);
        let last = mem::replace(&mut self.last, key);
        match self.calls.get_mut(last) {
            Some(last) => last.next = key,
            None => self.first = key,
        }
        key
    }

    fn keep(&mut self, ticket: Ticket, key: usize) {
        // There is one for each slot.
        if let Some(kept) = self.keys.get_mut(ticket.index()) {
            *kept = key;
        }
    }

    /// Shows the first in the line to `submit`, which takes its request or gives it back. That one leaves the
    /// line then, and its key is returned with what is wrong with it if it got no ticket.
    pub(super) fn submit_first(
        &mut self,
        submit: impl FnOnce(Request) -> Result<Ticket, (RequestError, Request)>,
    ) -> Option<Result<(), (usize, RequestError, Request)>> {
        let key = self.first;
        let call = self.calls.get_mut(key)?;
        let Stage::Queued(request) = mem::replace(&mut call.stage, Stage::Free) else { return None };
        match submit(request) {
            Err((RequestError::Full, request)) => {
                call.stage = Stage::Queued(request);
                None
            }
            Err((error, request)) => {
                self.leave_line(key);
                Some(Err((key, error, request)))
            }
            Ok(ticket) => {
                call.stage = Stage::InFlight(ticket);
                self.leave_line(key);
                self.keep(ticket, key);
                Some(Ok(()))
            }
        }
    }

    fn leave_line(&mut self, key: usize) {
        let (mut before, mut at) = (NONE, self.first);
        while at != key {
            let Some(call) = self.calls.get(at) else { return };
            (before, at) = (at, call.next);
        }
        let next = self.calls.get_mut(key).map_or(NONE, |call| mem::replace(&mut call.next, NONE));
        match self.calls.get_mut(before) {
            Some(before) => before.next = next,
            None => self.first = next,
        }
        if self.last == key {
            self.last = before;
        }
    }

    /// The key of a request that the device is done with.
    pub(super) fn key_of(&self, ticket: Ticket) -> Option<usize> {
        let key = *self.keys.get(ticket.index())?;
        let stage = &self.calls.get(key)?.stage;
        matches!(stage, Stage::InFlight(found) if *found == ticket).then_some(key)
    }

    /// When time is up for a request that is not done.
    pub(super) fn deadline(&self, key: usize) -> Option<Duration> {
        self.calls.get(key)?.deadline
    }

    /// Sets that.
    pub(super) fn set_deadline(&mut self, key: usize, deadline: Option<Duration>) {
        if let Some(call) = self.calls.get_mut(key) {
            call.deadline = deadline;
        }
    }

    /// Takes a request out of the line, or forgets the ring's ticket: [`end`](Self::end) it. `None` if it is
    /// done.
    pub(super) fn stop(&mut self, key: usize) -> Option<Stage> {
        let call = self.calls.get_mut(key)?;
        if let Stage::Free | Stage::Done(_) = call.stage {
            return None;
        }
        let stage = mem::replace(&mut call.stage, Stage::Free);
        if let Stage::Queued(_) = stage {
            self.leave_line(key);
        }
        Some(stage)
    }

    /// A request is done: whom to wake. If nobody waits for it, it is removed.
    pub(super) fn end(&mut self, key: usize, result: CallResult) -> Option<Waker> {
        let call = self.calls.get_mut(key)?;
        (call.stage, call.deadline) = (Stage::Done(result), None);
        let waker = call.waker.take();
        if waker.is_none() {
            drop(self.remove(key));
        }
        waker
    }

    /// What came of a request, which is removed then; or `None` and a waker that is not needed any more.
    pub(super) fn fetch(&mut self, key: usize, waker: &Waker) -> Result<CallResult, Option<Waker>> {
        match self.calls.get_mut(key) {
            Some(Call { stage: Stage::InFlight(_) | Stage::Queued(_), waker: old, .. }) => {
                let same = old.as_ref().is_some_and(|old| old.will_wake(waker));
                Err(if same { None } else { old.replace(waker.clone()) })
            }
            _ => match self.remove(key) {
                Some((Stage::Done(result), _)) => Ok(result),
                // Only a transfer itself abandons its request.
                _ => Ok((Err(RequestError::Broken), None)),
            },
        }
    }

    /// The task does not wait any more. What is left to be dropped, and whether it was the first in the line.
    pub(super) fn abandon(&mut self, key: usize) -> (Option<(Stage, Option<Waker>)>, bool) {
        let was_first = self.first == key;
        match self.calls.get_mut(key) {
            Some(Call { stage: Stage::InFlight(_), waker, .. }) => (Some((Stage::Free, waker.take())), false),
            Some(Call { stage: Stage::Queued(_), .. }) => {
                self.leave_line(key);
                (self.remove(key), was_first)
            }
            _ => (self.remove(key), false),
        }
    }

    fn remove(&mut self, key: usize) -> Option<(Stage, Option<Waker>)> {
        let next = self.free;
        let call = self.calls.get_mut(key)?;
        let free = Call { stage: Stage::Free, waker: None, deadline: None, next };
        self.free = key;
        let Call { stage, waker, .. } = mem::replace(call, free);
        Some((stage, waker))
    }
}
