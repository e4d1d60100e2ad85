//! One connection: what comes in, and what its owner does with it. See [`output`](super::output) for what
//! goes out.
//!
//! A server's connection has few states. Those of RFC 9293, 3.3.2 are told apart by whether the peer has
//! ended its half ([`ended`](Connection::ended)), and how far we are with ending ours ([`Fin`]).

use core::task::{Context, Poll, Waker};

use smoltcp::wire::EthernetAddress;

use super::congestion::{Congestion, RoundTrip};
use super::flight::Flight;
use super::output::Timer;
use super::queue::SendQueue;
use super::received::Received;
use super::segment::{Abilities, Flow, Headers, Segment, Seq};
use super::{Micros, TcpError};
use crate::shared::Shared;
use crate::text::NoMemory;

/// Received bytes that wait for the owner at most, and the largest window that is offered: a request's head
/// fits.
pub const RECEIVE: u32 = 8 << 10;
/// After this long without progress a connection that nobody holds any more is reset.
const UNSENT: Micros = 30_000_000;
/// How long a peer may keep its half open after ours is over.
const HALF_CLOSED: Micros = 5_000_000;
/// A received segment may be acknowledged this much later, if no answer does it (RFC 9293, 3.8.6.3).
const DELAYED_ACK: Micros = 40_000;
/// Least time between acknowledgments of what is no part of the connection (RFC 5961, 7).
const CHALLENGES: Micros = 100_000;
/// A connection does not give way to others before it is so old.
const YOUNG: Micros = 1_000_000;
/// What a peer took counts half after about this time: 2 to this power, in microseconds.
const HALF_LIFE: u32 = 20;

/// How far our half is with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fin {
    /// More may be written.
    No,
    /// To be sent behind what is written.
    Wanted,
    /// It is on its way.
    Sent,
    /// The peer has everything.
    Acknowledged,
}

/// Who holds a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It waits to be accepted.
    Nobody,
    /// A task.
    Task,
    /// It was let go of: what was written is still sent.
    Past,
}

/// Whether an acknowledgment is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    No,
    At(Micros),
    Now,
}

/// While something that was lost is sent again.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// The number behind the last that was sent before.
    pub end: Seq,
    /// What [`Flight::lost_bytes`] was then.
    pub lost: u32,
}

/// A connection.
pub struct Connection {
    pub flow: Flow,
    pub owner: Owner,
    /// Reset by either side, or the peer does not answer.
    pub gone: bool,
    /// Our end was on its way before the peer's came: a TIME-WAIT follows.
    pub first: bool,
    /// Whether it waits for its turn to send, and for which time to be looked at.
    pub queued: bool,
    pub alarm: Option<Micros>,
    /// Bytes of memory that are counted as its own.
    pub counted: usize,
    /// When it began, and how much the peer took of late: of what it took until `halved`.
    began: Micros,
    lately: u64,
    halved: Micros,
    pub(super) headers: Headers,
    /// Where segments went before: they do again when nothing is heard.
    pub(super) other_way: EthernetAddress,
    /// The next number that is expected, and the first that does not fit into the window that was offered.
    pub(super) next: Seq,
    pub(super) edge: Seq,
    received: Received,
    pub(super) ended: bool,
    pub(super) ack: Ack,
    challenged: Micros,
    pub(super) queue: SendQueue,
    pub(super) flight: Flight,
    /// The peer's window in bytes, and the segment that said so: its number and its acknowledgment.
    pub(super) window: u32,
    updated: (Seq, Seq),
    pub(super) abilities: Abilities,
    /// Bytes of data in a full segment.
    pub(super) mss: u16,
    pub(super) fin: Fin,
    pub(super) round_trip: RoundTrip,
    pub(super) congestion: Congestion,
    /// What was on its way when the last loss was found: until it is acknowledged no other counts.
    pub(super) recovery: Option<Recovery>,
    pub(super) timer: Option<(Micros, Timer)>,
    /// When to look again for what is lost.
    pub(super) look_at: Option<Micros>,
    pub(super) reset: bool,
    /// When the last segment came, and went.
    pub(super) heard: Micros,
    pub(super) sent: Micros,
    /// When it is over, if nothing happens until then.
    pub(super) until: Option<Micros>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Connection {
    /// One whose handshake is complete: `segment` is the first with data, `ours` our first number behind the
    /// SYN. `mtu` is the longest packet that the device takes.
    pub fn new(
        segment: &Segment<'_>,
        abilities: Abilities,
        ours: Seq,
        headers: Headers,
        mtu: u16,
        now: Micros,
    ) -> Self {
        let mss = abilities.mss.min(mtu.saturating_sub(headers.overhead()));
        Self {
            flow: segment.flow,
            owner: Owner::Nobody,
            gone: false,
            first: false,
            queued: false,
            alarm: None,
            counted: 0,
            began: now,
            lately: 0,
            halved: now,
            headers,
            other_way: segment.hardware,
            next: segment.seq,
            edge: segment.seq.plus(RECEIVE),
            received: Received::default(),
            ended: false,
            ack: Ack::No,
            challenged: 0,
            queue: SendQueue::default(),
            flight: Flight::new(ours),
            window: 0,
            updated: (segment.seq.plus(u32::MAX), ours),
            abilities,
            mss,
            fin: Fin::No,
            round_trip: RoundTrip::default(),
            congestion: Congestion::new(mss, now),
            recovery: None,
            timer: None,
            look_at: None,
            reset: false,
            heard: now,
            sent: now,
            until: None,
            reader: None,
            writer: None,
        }
    }

    /// Takes a segment of this connection in.
    pub fn take(&mut self, segment: &Segment<'_>, now: Micros) {
        if self.gone {
            return;
        }
        let offset = segment.seq.since(self.next);
        let window = self.edge.from(self.next);
        let is_new = offset >= 0 && (offset.cast_unsigned() < window.max(1));
        if segment.rst {
            // Whoever does not see the connection can only guess (RFC 5961, 3.2).
            if offset == 0 {
                self.end(true);
            } else if is_new {
                self.challenge(now);
            }
            return;
        }
        if segment.syn {
            // From a peer that has forgotten the connection, or one that guesses (RFC 5961, 4).
            return self.challenge(now);
        }
        let Some(ack) = segment.ack else { return };
        let overlaps = offset < 0 && offset.saturating_add_unsigned(segment.length()) > 0;
        let is_sane = !ack.is_after(self.flight.end()) && self.flight.start().from(ack) <= 1 << 30;
        if !is_sane || !(is_new || overlaps) {
            // Also a probe of a peer that wants to know whether we are still here.
            return if segment.data.is_empty() { self.challenge(now) } else { self.ack = Ack::Now };
        }
        self.heard = now;
        if segment.hardware != self.headers.hardware() {
            self.other_way = self.headers.hardware();
            self.headers.set_hardware(segment.hardware);
        }
        self.acknowledged(segment, ack, now);
        self.receive(segment, now);
    }

    /// Answers what does not fit with what is expected, but not each time.
    fn challenge(&mut self, now: Micros) {
        if now.saturating_sub(self.challenged) >= CHALLENGES || self.challenged == 0 {
            (self.challenged, self.ack) = (now.max(1), Ack::Now);
        }
    }

    fn acknowledged(&mut self, segment: &Segment<'_>, ack: Seq, now: Micros) {
        let (seq_before, ack_before) = self.updated;
        let shift = self.abilities.scale.unwrap_or(0);
        let window = u32::from(segment.window) << shift;
        let same_window = window == self.window;
        if segment.seq.is_after(seq_before) || segment.seq == seq_before && !ack_before.is_after(ack) {
            (self.window, self.updated) = (window, (segment.seq, ack));
        }
        if self.flight.is_empty() {
            if self.window > 0 && matches!(self.timer, Some((_, Timer::Persist))) {
                self.timer = None;
                self.round_trip.reset();
            }
            return self.wake_writer();
        }
        let before = self.flight.under_way();
        let sack: &[_] = if self.abilities.sack { &segment.sack } else { &[] };
        let mut news = self.flight.acknowledge(ack, sack, &self.round_trip, now);
        if let Some(rtt) = news.rtt {
            self.round_trip.measure(rtt, now);
        }
        if !self.abilities.sack {
            let repeats = news.bytes == 0 && segment.length() == 0 && same_window;
            news.lost |= repeats && ack == self.flight.start() && self.flight.duplicate(self.mss);
        }
        if news.bytes > 0 {
            self.progress(news.bytes, before, now);
        }
        self.note_loss(news.lost);
        self.look_at = news.look_at;
        self.wake_writer();
    }

    /// The peer has `bytes` more.
    fn progress(&mut self, bytes: u32, before: u32, now: Micros) {
        let data = (bytes as usize).min(self.queue.len());
        self.queue.drop_first(data);
        self.count(bytes, now);
        if self.fin == Fin::Sent && self.flight.is_empty() {
            self.fin = Fin::Acknowledged;
        }
        if self.owner == Owner::Past {
            self.wait(now);
        }
        self.round_trip.reset();
        if let Some(recovery) = self.recovery.filter(|recovery| !recovery.end.is_after(self.flight.start())) {
            let lost = self.flight.lost_bytes().wrapping_sub(recovery.lost);
            self.congestion.recovered(lost, self.mss, &self.round_trip);
            self.recovery = None;
            self.flight.recount();
        } else if self.recovery.is_some() && !self.abilities.sack {
            // What comes next is lost as well (RFC 6582).
            self.flight.recount();
            self.flight.lose_first();
        }
        let window = self.congestion.window();
        let was_full = before.saturating_mul(2) >= window;
        if self.recovery.is_none() || self.congestion.is_starting() {
            self.congestion.acknowledged(bytes, self.mss, was_full, &self.round_trip, now);
        }
        self.set_timer(now);
    }

    /// The peer took `bytes` more.
    fn count(&mut self, bytes: u32, now: Micros) {
        let times = now.saturating_sub(self.halved) >> HALF_LIFE;
        self.halved = self.halved.saturating_add(times << HALF_LIFE);
        self.lately = self.lately.checked_shr(times as u32).unwrap_or(0).saturating_add(bytes.into());
    }

    /// How much the peer took of late, if the connection may give way to another: one that is new or waits to
    /// be accepted does not. One whose peer has everything is the first to do so.
    pub fn pace(&mut self, now: Micros) -> Option<u64> {
        if self.fin == Fin::Acknowledged {
            return Some(0).filter(|_| !self.gone);
        }
        if self.gone || self.owner == Owner::Nobody || now.saturating_sub(self.began) < YOUNG {
            return None;
        }
        self.count(0, now);
        Some(self.lately)
    }

    /// Gives way to another. A peer that has everything is not told, as that could destroy what it has not
    /// read yet.
    pub fn give_way(&mut self) {
        self.end(self.fin == Fin::Acknowledged);
    }

    fn receive(&mut self, segment: &Segment<'_>, now: Micros) {
        if segment.length() == 0 {
            return;
        }
        let offset = segment.seq.since(self.next);
        if offset > 0 || self.ended {
            // Something is missing: the peer sends it again, and this behind it.
            self.ack = Ack::Now;
            return;
        }
        let fresh = segment.data.get(offset.unsigned_abs() as usize..).unwrap_or_default();
        let room = self.edge.from(self.next) as usize;
        let data = fresh.get(..room).unwrap_or(fresh);
        let all = data.len() == fresh.len();
        // After the end of our half nobody reads any more.
        if self.owner != Owner::Past && self.received.push(data).is_err() {
            return;
        }
        self.next = self.next.plus(data.len() as u32);
        self.ack = match self.ack {
            Ack::No if all && !segment.fin => Ack::At(now.saturating_add(DELAYED_ACK)),
            _ => Ack::Now,
        };
        if segment.fin && all {
            self.next = self.next.plus(1);
            self.ended = true;
        }
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    /// The window to offer now.
    pub(super) fn offer(&self) -> u32 {
        RECEIVE.saturating_sub(self.received.len() as u32)
    }

    /// See [`Read`](embedded_io_async::Read).
    pub fn read(&mut self, to: &mut [u8], cx: &Context<'_>) -> Poll<Result<usize, TcpError>> {
        let count = self.received.take(to);
        if count > 0 || to.is_empty() {
            // A peer that waits for a larger window is told (RFC 9293, 3.8.6.2.2).
            if self.next.plus(self.offer()).from(self.edge) >= RECEIVE / 2 {
                self.ack = Ack::Now;
            }
            return Poll::Ready(Ok(count));
        }
        if self.gone {
            return Poll::Ready(Err(TcpError));
        }
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether more may be written, of a connection that holds at most `most` bytes of memory.
    pub fn poll_room(&mut self, most: usize, cx: &Context<'_>) -> Poll<Result<(), TcpError>> {
        if self.gone || self.fin != Fin::No {
            return Poll::Ready(Err(TcpError));
        }
        if self.queue.len() == 0 || self.queue.holds() < most.min(self.useful()) {
            return Poll::Ready(Ok(()));
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// So many bytes can be of use in the queue: what is on its way, and as much again.
    fn useful(&self) -> usize {
        let window = self.congestion.window().min(self.window) as usize;
        window.saturating_mul(2).max(16 << 10)
    }

    /// Appends a copy of `bytes`.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), NoMemory> {
        self.queue.push(bytes)
    }

    /// Appends bytes that others hold as well.
    ///
    /// # Errors
    /// If there is no memory for the books.
    pub fn share(&mut self, bytes: Shared) -> Result<(), NoMemory> {
        self.queue.share(bytes)
    }

    /// Bytes of memory that its queue holds.
    pub fn holds(&self) -> usize {
        self.queue.holds()
    }

    /// Waits until the peer has everything.
    pub fn poll_flush(&mut self, cx: &Context<'_>) -> Poll<Result<(), TcpError>> {
        if self.queue.len() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.gone {
            return Poll::Ready(Err(TcpError));
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    /// Ends our half behind what is written.
    pub fn close(&mut self) {
        if self.fin == Fin::No {
            self.fin = Fin::Wanted;
        }
    }

    /// Lets go of it.
    pub fn let_go(&mut self, now: Micros) {
        self.close();
        self.owner = Owner::Past;
        self.received.clear();
        self.wait(now);
    }

    /// Gives the peer of a connection that nobody holds its time from now on.
    fn wait(&mut self, now: Micros) {
        let patience = if self.fin == Fin::Acknowledged { HALF_CLOSED } else { UNSENT };
        self.until = Some(now.saturating_add(patience));
    }

    /// It is over; `by_peer`: the peer knows.
    pub fn end(&mut self, by_peer: bool) {
        if self.gone {
            return;
        }
        (self.gone, self.reset) = (true, !by_peer);
        self.queue.clear();
        (self.timer, self.look_at, self.until) = (None, None, None);
        self.ack = Ack::No;
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    /// Packets longer than `mtu` do not arrive; the router that says so has seen the number `seq` (RFC 5927,
    /// 7.2).
    pub fn too_big(&mut self, mtu: u16, seq: Seq) {
        let overhead = self.headers.overhead();
        let in_flight = !self.flight.start().is_after(seq) && self.flight.end().is_after(seq);
        // The least that each path carries (RFC 9293, 3.7.1; RFC 8200, 5).
        let least = if overhead > 40 { 1280 } else { 576 };
        self.shrink(if in_flight { mtu.max(least).saturating_sub(overhead) } else { self.mss });
    }

    /// Full segments have `mss` bytes from now on, if that is less.
    pub(super) fn shrink(&mut self, mss: u16) {
        if mss < self.mss {
            self.mss = mss;
            self.flight.lose_all();
        }
    }

    /// Whether nothing is left to do: nobody holds it, and both halves are over.
    pub fn is_over(&self) -> bool {
        let closed = self.fin == Fin::Acknowledged && self.ended && self.ack == Ack::No;
        self.owner == Owner::Past && (self.gone && !self.reset || closed)
    }

    /// The numbers of both sides that come next.
    pub fn numbers(&self) -> (Seq, Seq) {
        (self.flight.end(), self.next)
    }
}
