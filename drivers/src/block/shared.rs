//! One request queue for many tasks, under any executor.
//!
//! Tasks put requests into the ring and sleep. One more task, the server, tells the device once of all that
//! were put since it last ran, and wakes whoever is done. There is no lock: a queue's tasks run on one CPU,
//! and other queues have tasks of their own.

use alloc::collections::VecDeque;
use core::cell::RefCell;
use core::future::Future;
use core::mem;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use super::calls::{Calls, Stage};
use super::{BlockQueue, CallResult, Geometry, Request, RequestError};
use ringfence_memory::Quiet;

use crate::virtio::{Counters, Hybrid, LEAST_SILENCE, Notify, QueueError, longest_gap};

/// How much of a device is borne before [`SharedQueue::poll_serve`] calls it unresponsive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// So many requests that timed out and that it still has; 0 is as good as 1.
    pub lost: usize,
    /// So long without any completion, while requests wait for one; `None` for ever, and 0 is as good as 2
    /// ms. If the server runs later than it asked for, since the host had stopped the guest, no more than
    /// half of this counts at once, and requests whose deadlines passed meanwhile have that much more time.
    pub silence: Option<Duration>,
}

struct State<'a, N> {
    queue: &'a mut BlockQueue<N>,
    calls: Calls,
    /// The server, while it sleeps.
    server: Option<Waker>,
    hybrid: Hybrid,
    /// Whether interrupts are on.
    armed: bool,
    closed: bool,
    /// When the server last ran, on the clock of its caller.
    now: Duration,
    /// Not after the earliest deadline of those that are not done.
    next_deadline: Option<Duration>,
    patience: Patience,
    /// For how long requests have waited since the last completion, up to `now`; and whether some still do.
    silence: Duration,
    waited_for: bool,
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
    /// Takes a queue, as a rule with nothing in flight: of requests that are, nobody hears any more, and
    /// their buffers go back to their pools when they are done. `hybrid` says when the server sleeps. The
    /// device may lose half of the slots, and be silent for 30 seconds.
    ///
    /// # Errors
    /// [`QueueError::OutOfMemory`].
    pub fn new(queue: &'a mut BlockQueue<N>, hybrid: Hybrid) -> Result<Self, QueueError> {
        let mut woken = VecDeque::new();
        let wakers = queue.tickets().saturating_mul(2).saturating_add(2);
        woken.try_reserve(wakers).map_err(|_| QueueError::OutOfMemory)?;
        let patience = Patience { lost: (queue.depth() / 2).max(1), silence: Some(Duration::from_secs(30)) };
        let state = State {
            calls: Calls::new(queue.tickets())?,
            queue,
            server: None,
            hybrid,
            armed: true,
            closed: false,
            now: Duration::ZERO,
            next_deadline: None,
            patience,
            silence: Duration::ZERO,
            waited_for: false,
            woken,
        };
        Ok(Self { state: RefCell::new(state) })
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_patience(mut self, Patience { lost, silence }: Patience) -> Self {
        let silence = silence.map(|silence| silence.max(LEAST_SILENCE));
        self.state.get_mut().patience = Patience { lost: lost.max(1), silence };
        self
    }

    /// Carries out a request; does nothing before it is first polled. Gives what came of it, and its buffer.
    /// A request that is refused, for example since it reaches beyond the end of the disk, never gets to the
    /// device. Where the ring has no room, first come is first served. It allocates nothing, except when
    /// there are more requests at once than ever before.
    ///
    /// If the future is dropped while the device has the request, the request still happens, and its buffer
    /// then goes back to its pool.
    pub fn request(&self, request: Request) -> Transfer<'_, 'a, N> {
        Transfer { queue: self, deadline: None, progress: Progress::New(request) }
    }

    /// The same until `deadline`, on the clock of [`poll_serve`](Self::poll_serve): then it ends with
    /// [`RequestError::TimedOut`], with its buffer if it was still waiting for room. If the device has it, it
    /// may still happen; it is counted as [lost](Self::lost), and its buffer goes back to its pool when the
    /// device is done with it, and to nobody else before that. What the device has done when the server runs
    /// at the deadline was done in time.
    pub fn request_until(&self, request: Request, deadline: Duration) -> Transfer<'_, 'a, N> {
        Transfer { queue: self, deadline: Some(deadline), progress: Progress::New(request) }
    }

    /// Serves the queue: tells the device of what was submitted, hands out what it has done, and sleeps by
    /// the rule of [`Hybrid`]. To be polled by one task for as long as the driver lives. Before each call the
    /// task must have arranged that the queue's interrupt wakes it; afterwards, that it is woken at
    /// [`next_deadline`](Self::next_deadline).
    ///
    /// Without an executor, whoever polls requests and server in turns sleeps only if no waker that they were
    /// given was called since: serving may have ended a request, and a server that has more to do wakes
    /// itself. With [`Waker::noop`] and a processor that halts after each round, that goes unseen.
    ///
    /// `now` is the time since a moment of the caller's choice, and never goes back.
    ///
    /// Ready only if the queue is of no more use, or the device [unresponsive](QueueError::Unresponsive):
    /// reset the device, then [`close`](Self::close) all its queues.
    pub fn poll_serve(&self, context: &mut Context<'_>, now: Duration) -> Poll<QueueError> {
        let (result, stale) = self.with(|state| {
            let stale = state.server.replace(context.waker().clone());
            (state.serve(now), stale)
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

    /// When the server must run again, whatever else wakes it.
    pub fn next_deadline(&self) -> Option<Duration> {
        let state = self.state.borrow();
        let limit = state.patience.silence.filter(|_| state.waited_for);
        let silent = limit.map(|limit| {
            let left = limit.saturating_sub(state.silence).min(longest_gap(limit));
            state.now.saturating_add(left)
        });
        state.next_deadline.into_iter().chain(silent).min()
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

    /// Whether it is worth while to run the server: false only while it looks for completions and there are
    /// none. For a few cheap looks, with pauses of the processor, before the next
    /// [`poll_serve`](Self::poll_serve).
    pub fn may_have_completed(&self) -> bool {
        let mut state = self.state.borrow_mut();
        state.armed || state.queue.in_flight() == 0 || !matches!(state.queue.inner().has_used(), Ok(false))
    }

    /// Once more notifies the device if it wants that, see [`BlockQueue::kick_again`], and wakes the server
    /// if the device has done something. Nothing, unless the server sleeps: it looks by itself.
    pub fn look_again(&self) {
        if self.is_asleep() {
            self.with(State::look_again);
        }
    }

    /// Ends all requests with [`RequestError::Broken`], those in the ring without their buffers, and refuses
    /// more. With the proof that the device is `quiet` the buffers are free again; without, they stay with
    /// the queue, until it is called once more.
    pub fn close(&self, quiet: Option<&Quiet>) {
        self.with(|state| {
            state.closed = true;
            if let Some(quiet) = quiet {
                state.queue.reclaim(quiet);
            }
            (0..state.calls.count()).for_each(|key| state.stop(key, RequestError::Broken));
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

    /// How many of those timed out.
    pub fn lost(&self) -> usize {
        self.state.borrow().queue.lost()
    }

    /// What the queue has done.
    pub fn counters(&self) -> Counters {
        self.state.borrow().queue.counters()
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

    /// Makes room for one more request, and for telling all wakers that are kept.
    fn reserve(&mut self) -> Result<(), QueueError> {
        self.calls.reserve()?;
        let wakers = self.calls.count().saturating_add(2);
        self.woken.try_reserve(wakers).map_err(|_| QueueError::OutOfMemory)
    }

    /// Ends a request that is not done. One in the ring goes on, but nobody waits for it.
    fn stop(&mut self, key: usize, why: RequestError) {
        let buffer = match self.calls.stop(key) {
            Some(Stage::Queued(request)) => request.into_buffer(),
            Some(Stage::InFlight(ticket)) => {
                self.queue.give_up(ticket);
                None
            }
            _ => return,
        };
        self.woken.extend(self.calls.end(key, (Err(why), buffer)));
    }

    /// Ends the requests whose time is up, or gives them so much `more`. It looks at all, but no more often
    /// than deadlines pass.
    fn expire(&mut self, more: Option<Duration>) {
        if self.next_deadline.is_none_or(|next| next > self.now) {
            return;
        }
        self.next_deadline = None;
        let later = more.map(|more| self.now.saturating_add(more));
        for key in 0..self.calls.count() {
            let Some(deadline) = self.calls.deadline(key) else { continue };
            match (deadline > self.now, later) {
                (true, _) => _ = self.expect(deadline),
                (false, None) => self.stop(key, RequestError::TimedOut),
                (false, Some(later)) => {
                    self.calls.set_deadline(key, Some(later));
                    self.expect(later);
                }
            }
        }
    }

    /// Counts the time since the server last ran as silence, if requests waited and there was `found` nothing
    /// now. How much of it counted, if not all.
    fn listen(&mut self, found: usize, now: Duration) -> Option<Duration> {
        let passed = now.saturating_sub(mem::replace(&mut self.now, now));
        let most = self.patience.silence.filter(|_| self.waited_for).map(longest_gap);
        if found > 0 {
            self.silence = Duration::ZERO;
        } else if self.waited_for {
            self.silence = self.silence.saturating_add(most.map_or(passed, |most| passed.min(most)));
        }
        most.filter(|&most| passed > most)
    }

    /// Whether the device has not used up one's patience.
    fn judge(&mut self) -> Result<(), QueueError> {
        let lost = self.queue.lost();
        self.waited_for = self.queue.in_flight() > lost || self.calls.is_line();
        let Patience { lost: most, silence } = self.patience;
        let is_silent = silence.is_some_and(|limit| self.waited_for && self.silence >= limit);
        if lost >= most || is_silent {
            return Err(QueueError::Unresponsive);
        }
        Ok(())
    }

    /// The server will run at `deadline`. Whether it does not know that yet.
    fn expect(&mut self, deadline: Duration) -> bool {
        let is_next = self.next_deadline.is_none_or(|next| deadline < next);
        if is_next {
            self.next_deadline = Some(deadline);
        }
        is_next
    }

    /// Those that wait for room go into the ring, in their order, as far as there is any.
    fn refill(&mut self) {
        let Self { queue, calls, woken, .. } = self;
        while let Some(result) = calls.submit_first(|request| queue.submit(request)) {
            if let Err((key, error, request)) = result {
                woken.extend(calls.end(key, (Err(error), request.into_buffer())));
            }
        }
    }

    /// Whether to look again soon.
    fn serve(&mut self, now: Duration) -> Result<bool, QueueError> {
        loop {
            if self.closed {
                return Err(QueueError::Broken);
            }
            if mem::take(&mut self.armed) {
                self.queue.disable_interrupts();
            }
            let Self { queue, calls, woken, .. } = self;
            let found = queue.reap(|done| {
                let key = calls.key_of(done.ticket);
                woken.extend(key.and_then(|key| calls.end(key, (done.result, done.buffer))));
            })?;
            let stopped = self.listen(found, now);
            self.expire(stopped);
            self.refill();
            self.judge()?;
            self.queue.kick();
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

    /// Takes a request for a task, into the ring or, behind others that wait for room, into the line; gives
    /// its key.
    fn start(
        &mut self,
        request: Request,
        deadline: Option<Duration>,
        waker: &Waker,
    ) -> Result<usize, (RequestError, Request)> {
        if self.closed {
            return Err((RequestError::Broken, request));
        }
        if deadline.is_some_and(|deadline| deadline <= self.now) {
            return Err((RequestError::TimedOut, request));
        }
        if let Err(error) = self.reserve() {
            return Err((error.into(), request));
        }
        let result = if self.calls.is_line() {
            Err((RequestError::Full, request))
        } else {
            self.queue.submit(request)
        };
        let (key, wake) = match result {
            Ok(ticket) => (self.calls.add_in_flight(ticket, waker.clone()), true),
            Err((RequestError::Full, request)) => {
                (self.calls.add_queued(request, waker.clone()), !self.waited_for)
            }
            Err(refused) => return Err(refused),
        };
        self.calls.set_deadline(key, deadline);
        if deadline.is_some_and(|deadline| self.expect(deadline)) || wake {
            self.wake_server();
        }
        Ok(key)
    }

    /// The task does not wait any more. What is left to be dropped.
    fn abandon(&mut self, key: usize) -> Option<(Stage, Option<Waker>)> {
        let (left, was_first) = self.calls.abandon(key);
        if was_first {
            // There may be room for the next one.
            self.wake_server();
        }
        left
    }
}

/// A request on its way: resolves to what came of it, and its buffer. See [`SharedQueue::request`].
#[must_use = "it does nothing before it is polled"]
pub struct Transfer<'q, 'a, N: Notify> {
    queue: &'q SharedQueue<'a, N>,
    deadline: Option<Duration>,
    progress: Progress,
}

enum Progress {
    New(Request),
    Begun(usize),
    Over,
}

impl<N: Notify> Future for Transfer<'_, '_, N> {
    type Output = CallResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<CallResult> {
        let (queue, deadline, waker) = (self.queue, self.deadline, context.waker());
        match mem::replace(&mut self.progress, Progress::Over) {
            Progress::New(request) => match queue.with(|state| state.start(request, deadline, waker)) {
                Ok(key) => self.progress = Progress::Begun(key),
                Err((error, request)) => return Poll::Ready((Err(error), request.into_buffer())),
            },
            Progress::Begun(key) => match queue.with(|state| state.calls.fetch(key, waker)) {
                Ok(result) => return Poll::Ready(result),
                Err(_stale) => self.progress = Progress::Begun(key),
            },
            Progress::Over => return Poll::Ready((Err(RequestError::Broken), None)),
        }
        Poll::Pending
    }
}

impl<N: Notify> Drop for Transfer<'_, '_, N> {
    fn drop(&mut self) {
        if let Progress::Begun(key) = self.progress {
            // Dropped when the state is not borrowed any more.
            let _left = self.queue.with(|state| state.abandon(key));
        }
    }
}
