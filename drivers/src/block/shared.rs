//! One request queue for many tasks, under any executor.
//!
//! Tasks put requests into the ring and sleep. One more task, the server, tells the device once of all that
//! were put since it last ran, and wakes whoever is done. There is no lock: a queue's tasks run on one CPU,
//! and other queues have tasks of their own.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::Future;
use core::mem;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use slab::Slab;

use super::{BlockQueue, CallResult, Done, Geometry, Request, RequestError};
use ringfence_memory::Quiet;

use crate::virtio::{Counters, Hybrid, Notify, QueueError};

/// A request in the ring, until its task has what came of it and the device is done with it.
enum Flight {
    /// The device has it, and this task waits.
    Waiting(Waker),
    /// The device has it, and nobody waits any more.
    Abandoned,
    /// The device is done with it, and the task was woken.
    Done(CallResult),
}

struct State<'a, N> {
    queue: &'a mut BlockQueue<N>,
    /// Never more than there was room for at the start.
    flights: Slab<Flight>,
    /// By ticket, the key in `flights`. A ticket is free as soon as the device is done, when the task may not
    /// have run yet.
    keys: Vec<usize>,
    /// Tasks that wait for room in the ring.
    waiting: Vec<Waker>,
    /// The server, while it sleeps.
    server: Option<Waker>,
    hybrid: Hybrid,
    /// Whether interrupts are on.
    armed: bool,
    closed: bool,
    /// To be woken once the state is not borrowed any more: a waker may run anything, even drop a
    /// [`Transfer`]. There is room for all that are kept above.
    woken: VecDeque<Waker>,
}

/// One request queue that many tasks use at the same time; see [`request`](Self::request) for them, and
/// [`poll_serve`](Self::poll_serve) for whoever runs them.
pub struct SharedQueue<'a, N> {
    state: RefCell<State<'a, N>>,
}

impl<'a, N: Notify> SharedQueue<'a, N> {
    /// Takes a queue with nothing in flight. `hybrid` says when the server sleeps.
    pub fn new(queue: &'a mut BlockQueue<N>, hybrid: Hybrid) -> Self {
        let tickets = queue.tickets();
        let state = State {
            queue,
            // As many again may be done whose tasks have not run.
            flights: Slab::with_capacity(tickets.saturating_mul(2)),
            keys: alloc::vec![usize::MAX; tickets],
            waiting: Vec::new(),
            server: None,
            hybrid,
            armed: true,
            closed: false,
            woken: VecDeque::with_capacity(tickets.saturating_mul(2).saturating_add(2)),
        };
        Self { state: RefCell::new(state) }
    }

    /// Carries out a request; does nothing before it is first polled. Gives what came of it, and its buffer.
    /// A request that is refused, for example since it reaches beyond the end of the disk, never gets to the
    /// device. It allocates nothing, except when more tasks wait for room than ever before.
    ///
    /// If the future is dropped while the device has the request, the request still happens, and its buffer
    /// then goes back to its pool.
    pub fn request(&self, request: Request) -> Transfer<'_, 'a, N> {
        Transfer { queue: self, stage: Stage::New(request) }
    }

    /// Serves the queue: tells the device of what was submitted, hands out what it has done, and sleeps by
    /// the rule of [`Hybrid`]. To be polled by one task for as long as the driver lives. Before each call the
    /// task must have arranged that the queue's interrupt wakes it.
    ///
    /// Ready only if the queue is of no more use: reset the device, then [`close`](Self::close) all its
    /// queues.
    pub fn poll_serve(&self, context: &mut Context<'_>) -> Poll<QueueError> {
        let (result, stale) = self.with(|state| {
            let stale = state.server.replace(context.waker().clone());
            (state.serve(), stale)
        });
        drop(stale);
        match result {
            Err(error) => Poll::Ready(error),
            Ok(again) => {
                if again {
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }

    /// Wakes the server: for an interrupt that this queue shares with others.
    pub fn wake(&self) {
        self.with(State::wake_server);
    }

    /// Whether the server sleeps while the device has requests: [`look_again`](Self::look_again) is to be
    /// called after [`LOOK_AGAIN`](crate::virtio::LOOK_AGAIN).
    pub fn is_asleep(&self) -> bool {
        let state = self.state.borrow();
        state.armed && state.queue.in_flight() > 0
    }

    /// Once more notifies the device if it wants that, see [`BlockQueue::kick_again`], and wakes the server
    /// if the device has done something. Nothing, unless the server sleeps: it looks by itself.
    pub fn look_again(&self) {
        if self.is_asleep() {
            self.with(State::look_again);
        }
    }

    /// Ends all requests with [`RequestError::Broken`] and without their buffers, and refuses more. With the
    /// proof that the device is `quiet` the buffers are free again; without, they stay with the queue.
    pub fn close(&self, quiet: Option<&Quiet>) {
        self.with(|state| {
            state.closed = true;
            if let Some(quiet) = quiet {
                state.queue.reclaim(quiet);
            }
            state.flights.retain(|_, flight| match mem::replace(flight, Flight::Abandoned) {
                Flight::Waiting(waker) => {
                    state.woken.push_back(waker);
                    *flight = Flight::Done((Err(RequestError::Broken), None));
                    true
                }
                Flight::Abandoned => false,
                done @ Flight::Done(_) => {
                    *flight = done;
                    true
                }
            });
            state.wake_waiting();
            state.wake_server();
        });
    }

    /// What the disk is like.
    pub fn geometry(&self) -> Geometry {
        self.state.borrow().queue.geometry()
    }

    /// Number of descriptors.
    pub fn queue_size(&self) -> u16 {
        self.state.borrow().queue.queue_size()
    }

    /// How many requests the device has.
    pub fn in_flight(&self) -> usize {
        self.state.borrow().queue.in_flight()
    }

    /// What the queue has done.
    pub fn counters(&self) -> Counters {
        self.state.borrow().queue.counters()
    }

    /// Reports that there were `total` interrupts of the queue so far, for the counters.
    pub fn report_interrupts(&self, total: u64) {
        let queue = &mut self.state.borrow_mut().queue;
        let new = total.wrapping_sub(queue.counters().interrupts);
        queue.count_interrupts(new);
    }

    /// All changes go through here: tasks are woken after them.
    fn with<R>(&self, change: impl FnOnce(&mut State<'a, N>) -> R) -> R {
        let mut state = self.state.borrow_mut();
        let result = change(&mut state);
        while let Some(waker) = state.woken.pop_front() {
            drop(state);
            waker.wake();
            state = self.state.borrow_mut();
        }
        result
    }
}

impl<N: Notify> State<'_, N> {
    fn wake_server(&mut self) {
        self.woken.extend(self.server.take());
    }

    fn wake_waiting(&mut self) {
        self.woken.extend(self.waiting.drain(..));
    }

    /// Makes room for telling one more waker than are kept now.
    fn reserve(&mut self) -> Result<(), RequestError> {
        let wakers = self.flights.len().saturating_add(self.waiting.len()).saturating_add(2);
        self.woken.try_reserve(wakers).map_err(|_| RequestError::OutOfMemory)
    }

    /// Lets a task wait for room: says that it does, or why not.
    fn wait(&mut self, waker: &Waker) -> RequestError {
        if self.waiting.iter().any(|other| other.will_wake(waker)) {
            return RequestError::Full;
        }
        if self.waiting.try_reserve(1).is_err() {
            return RequestError::OutOfMemory;
        }
        self.waiting.push(waker.clone());
        RequestError::Full
    }

    /// Whether to look again soon.
    fn serve(&mut self) -> Result<bool, QueueError> {
        loop {
            if self.closed {
                return Err(QueueError::Broken);
            }
            if mem::take(&mut self.armed) {
                self.queue.disable_interrupts();
            }
            self.queue.kick();
            let Self { queue, flights, keys, woken, .. } = self;
            let found = queue.reap(|done| finish(flights, keys, woken, done))?;
            if found > 0 {
                self.wake_waiting();
            }
            if self.hybrid.look_again(found, self.queue.in_flight()) {
                return Ok(true);
            }
            self.armed = true;
            if !self.queue.enable_interrupts() {
                return Ok(false);
            }
            if found == 0 {
                // What came just now, or what a device shows and hides again: others may run first.
                return Ok(true);
            }
        }
    }

    fn look_again(&mut self) {
        self.queue.kick_again();
        if !matches!(self.queue.inner().has_used(), Ok(false)) {
            self.wake_server();
        }
    }

    /// Puts a request into the ring for a task; gives its key. [`RequestError::Full`] wakes the task when
    /// there may be room.
    fn submit(&mut self, request: Request, waker: &Waker) -> Result<usize, (RequestError, Request)> {
        if self.closed {
            return Err((RequestError::Broken, request));
        }
        if let Err(error) = self.reserve() {
            return Err((error, request));
        }
        let full = self.flights.len() == self.flights.capacity();
        let result = if full { Err((RequestError::Full, request)) } else { self.queue.submit(request) };
        let ticket = result.map_err(|(error, request)| match error {
            RequestError::Full => (self.wait(waker), request),
            error => (error, request),
        })?;
        let key = self.flights.insert(Flight::Waiting(waker.clone()));
        // Each ticket has a place.
        if let Some(place) = self.keys.get_mut(ticket.index()) {
            *place = key;
        }
        self.wake_server();
        Ok(key)
    }

    /// The result of the request with this key, or `None` and the waker that is not needed any more.
    fn take(&mut self, key: usize, waker: &Waker) -> Result<CallResult, Option<Waker>> {
        match self.flights.get_mut(key) {
            Some(Flight::Waiting(old)) if old.will_wake(waker) => Err(None),
            Some(Flight::Waiting(old)) => Err(Some(mem::replace(old, waker.clone()))),
            _ => match self.remove(key) {
                Some(Flight::Done(result)) => Ok(result),
                // Only a transfer itself abandons its request.
                _ => Ok((Err(RequestError::Broken), None)),
            },
        }
    }

    /// Forgets a request; there is room for another.
    fn remove(&mut self, key: usize) -> Option<Flight> {
        if self.flights.len() == self.flights.capacity() {
            self.wake_waiting();
        }
        self.flights.try_remove(key)
    }

    /// The task does not wait any more. What is left to be dropped.
    fn abandon(&mut self, key: usize) -> Option<Flight> {
        match self.flights.get_mut(key) {
            Some(flight @ Flight::Waiting(_)) => Some(mem::replace(flight, Flight::Abandoned)),
            _ => self.remove(key),
        }
    }
}

fn finish(flights: &mut Slab<Flight>, keys: &[usize], woken: &mut VecDeque<Waker>, done: Done) {
    let key = keys.get(done.ticket.index()).copied().unwrap_or(usize::MAX);
    let Some(flight) = flights.get_mut(key) else { return };
    match mem::replace(flight, Flight::Done((done.result, done.buffer))) {
        Flight::Waiting(waker) => woken.push_back(waker),
        Flight::Abandoned | Flight::Done(_) => drop(flights.try_remove(key)),
    }
}

/// A request on its way: resolves to what came of it, and its buffer. See [`SharedQueue::request`].
#[must_use = "it does nothing before it is polled"]
pub struct Transfer<'q, 'a, N: Notify> {
    queue: &'q SharedQueue<'a, N>,
    stage: Stage,
}

enum Stage {
    New(Request),
    InFlight(usize),
    Over,
}

impl<N: Notify> Future for Transfer<'_, '_, N> {
    type Output = CallResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<CallResult> {
        let (queue, waker) = (self.queue, context.waker());
        match mem::replace(&mut self.stage, Stage::Over) {
            Stage::New(request) => match queue.with(|state| state.submit(request, waker)) {
                Ok(key) => self.stage = Stage::InFlight(key),
                Err((RequestError::Full, request)) => self.stage = Stage::New(request),
                Err((error, request)) => return Poll::Ready((Err(error), request.into_buffer())),
            },
            Stage::InFlight(key) => match queue.with(|state| state.take(key, waker)) {
                Ok(result) => return Poll::Ready(result),
                Err(_stale) => self.stage = Stage::InFlight(key),
            },
            Stage::Over => return Poll::Ready((Err(RequestError::Broken), None)),
        }
        Poll::Pending
    }
}

impl<N: Notify> Drop for Transfer<'_, '_, N> {
    fn drop(&mut self) {
        if let Stage::InFlight(key) = self.stage {
            // Dropped when the state is not borrowed any more.
            let _left = self.queue.with(|state| state.abandon(key));
        }
    }
}
