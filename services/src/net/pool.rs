//! The TCP sockets of the one served port: a few listening, the rest made on demand, and those still closing.

use alloc::vec::Vec;
use core::task::Waker;

use crate::wakers::Wakers;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};

/// A peer that does not finish the handshake loses its socket after this.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The same while no socket is left to listen with.
const CROWDED_HANDSHAKE: Duration = Duration::from_millis(500);
/// How long a closing connection may go without progress while data is unacknowledged.
const UNSENT: Duration = Duration::from_secs(30);
/// How long a peer may keep its half of a connection open after we closed ours.
const HALF_CLOSED: Duration = Duration::from_secs(5);
/// TIME-WAIT, long enough for the last ACK to leave: a server cannot hold a socket for the full 2 MSL.
const TIME_WAIT: Duration = Duration::from_millis(100);
/// After this long without hearing from the peer a connection is dead.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of keep-alive probes; a living peer answers them, which holds off [`TIMEOUT`].
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Sizes of the socket pool. Memory used is at most `sockets * (rx + tx)` bytes plus about 600 bytes per
/// socket.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// TCP port served.
    pub port: u16,
    /// Most sockets at once: listening, connected and closing together.
    pub sockets: usize,
    /// Sockets kept in LISTEN while `sockets` allows. At least 1.
    pub backlog: usize,
    /// Receive buffer in bytes; also the largest window offered.
    pub rx: usize,
    /// Transmit buffer in bytes; bounds the throughput per round trip.
    pub tx: usize,
}

impl PoolConfig {
    /// For a guest with `memory` bytes of RAM: sockets for 72 served connections and 16 more that listen,
    /// wait or close, using at most about a tenth of the memory.
    pub fn for_memory(port: u16, memory: u64) -> Self {
        let tx = match memory >> 20 {
            0..=31 => 16 << 10,
            32..=127 => 32 << 10,
            _ => 64 << 10,
        };
        Self { port, sockets: 88, backlog: 4, rx: 4 << 10, tx }
    }
}

/// Sockets by stage of life. Those handed out by [`accept`](Self::accept) are in neither list.
pub(super) struct Pool {
    config: PoolConfig,
    /// Listening, in the handshake, or connected and not yet accepted; with the time the entry was made or
    /// taken.
    backlog: Vec<(SocketHandle, Option<Instant>)>,
    closing: Vec<Closing>,
    total: usize,
    ready: usize,
    waiting: Wakers,
}

struct Closing {
    handle: SocketHandle,
    seen: (State, usize),
    until: Instant,
    aborted: bool,
}

impl Pool {
    pub(super) fn new(config: PoolConfig) -> Self {
        let (backlog, closing) = (Vec::with_capacity(config.sockets), Vec::with_capacity(config.sockets));
        let waiting = Wakers::with_capacity(config.sockets);
        Self { config, backlog, closing, total: 0, ready: 0, waiting }
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    pub(super) fn crowded(&self) -> bool {
        self.ready > 0 || self.total >= self.config.sockets
    }

    /// Hands out a connection whose handshake is complete.
    pub(super) fn accept(&mut self, sockets: &SocketSet<'_>) -> Option<SocketHandle> {
        let position = self.backlog.iter().position(|(handle, _)| is_ready(sockets, *handle))?;
        self.ready = self.ready.saturating_sub(1);
        Some(self.backlog.remove(position).0)
    }

    /// Wakes `waker` when a connection is ready.
    pub(super) fn wait(&mut self, waker: &Waker) {
        self.waiting.add(waker);
    }

    /// Takes over a socket whose owner is done: data, FIN and ACKs still go out.
    pub(super) fn linger(&mut self, sockets: &mut SocketSet<'_>, handle: SocketHandle) {
        sockets.get_mut::<Socket>(handle).close();
        self.closing.push(Closing { handle, seen: (State::Listen, 0), until: Instant::ZERO, aborted: false });
    }

    /// Keeps `backlog` sockets listening as long as there is room. Cheap: called after every frame.
    pub(super) fn refill(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        let mut listening = 0_usize;
        for (handle, since) in &mut self.backlog {
            match sockets.get::<Socket>(*handle).state() {
                // Also after a handshake that the peer reset.
                State::Listen => {
                    listening = listening.saturating_add(1);
                    *since = None;
                }
                _ => *since = since.or(Some(now)),
            }
        }
        while listening < self.config.backlog.max(1) && self.make_room(sockets, now) {
            let Some(socket) = listener(&self.config) else { return };
            self.backlog.push((sockets.add(socket), None));
            self.total = self.total.saturating_add(1);
            listening = listening.saturating_add(1);
        }
    }

    /// True if one more socket is allowed. A connection that is over gives way, or a handshake that hangs:
    /// else a peer that only sends SYNs would keep everybody out.
    fn make_room(&mut self, sockets: &mut SocketSet<'_>, now: Instant) -> bool {
        if self.total < self.config.sockets {
            return true;
        }
        // Our FIN is acknowledged, and so is all that we sent.
        let over = |c: &Closing| {
            matches!(sockets.get::<Socket>(c.handle).state(), State::TimeWait | State::FinWait2)
        };
        let hangs = |(handle, since): &(SocketHandle, Option<Instant>)| {
            sockets.get::<Socket>(*handle).state() == State::SynReceived
                && since.is_some_and(|since| now > after(since, CROWDED_HANDSHAKE))
        };
        let handle = if let Some(position) = self.closing.iter().position(over) {
            self.closing.swap_remove(position).handle
        } else if let Some(position) = self.backlog.iter().position(hangs) {
            self.backlog.remove(position).0
        } else {
            return false;
        };
        self.remove(sockets, handle);
        true
    }

    fn remove(&mut self, sockets: &mut SocketSet<'_>, handle: SocketHandle) {
        drop(sockets.remove(handle));
        self.total = self.total.saturating_sub(1);
    }

    /// Frees what is finished, wakes waiting tasks, tells when to come back.
    pub(super) fn maintain(&mut self, sockets: &mut SocketSet<'static>, now: Instant) -> Option<Duration> {
        self.drop_failed(sockets, now);
        self.drop_closed(sockets, now);
        self.refill(sockets, now);
        self.ready = self.backlog.iter().filter(|(handle, _)| is_ready(sockets, *handle)).count();
        self.waiting.wake(self.ready);
        let handshakes = self.backlog.iter().filter_map(|(handle, since)| {
            since.filter(|_| !is_ready(sockets, *handle)).map(|since| after(since, HANDSHAKE))
        });
        let next = handshakes.chain(self.closing.iter().map(|c| c.until)).min()?;
        let micros = next.total_micros().saturating_sub(now.total_micros());
        Some(Duration::from_micros(u64::try_from(micros).unwrap_or(0).max(1000)))
    }

    /// Connections that ended before they were accepted, and handshakes that take too long.
    fn drop_failed(&mut self, sockets: &mut SocketSet<'_>, now: Instant) {
        let mut index = 0;
        while let Some((handle, since)) = self.backlog.get(index).copied() {
            let state = sockets.get::<Socket>(handle).state();
            let late =
                state == State::SynReceived && since.is_some_and(|since| now > after(since, HANDSHAKE));
            if state == State::Closed || late {
                self.backlog.remove(index);
                self.remove(sockets, handle);
            } else {
                index = index.saturating_add(1);
            }
        }
    }

    fn drop_closed(&mut self, sockets: &mut SocketSet<'_>, now: Instant) {
        let mut index = 0;
        while let Some(closing) = self.closing.get_mut(index) {
            if closing.finished(sockets.get_mut::<Socket>(closing.handle), now) {
                let handle = self.closing.swap_remove(index).handle;
                self.remove(sockets, handle);
            } else {
                index = index.saturating_add(1);
            }
        }
    }
}

impl Closing {
    fn finished(&mut self, socket: &mut Socket<'_>, now: Instant) -> bool {
        let state = socket.state();
        // A closed socket that still knows its peer has a RST to send.
        if state == State::Closed && socket.remote_endpoint().is_none() {
            return true;
        }
        let seen = (state, socket.send_queue());
        if seen != self.seen {
            self.seen = seen;
            self.until = after(now, patience(state));
        }
        if now < self.until {
            return false;
        }
        if state == State::TimeWait || self.aborted {
            return true;
        }
        socket.abort();
        self.aborted = true;
        false
    }
}

fn after(time: Instant, delay: Duration) -> Instant {
    let delay = i64::try_from(delay.total_micros()).unwrap_or(i64::MAX);
    Instant::from_micros(time.total_micros().saturating_add(delay))
}

/// How long a closing socket may stay in `state` without progress.
fn patience(state: State) -> Duration {
    match state {
        State::TimeWait => TIME_WAIT,
        State::FinWait2 | State::Closed => HALF_CLOSED,
        _ => UNSENT,
    }
}

/// Connected, with or without the peer having finished sending.
fn is_ready(sockets: &SocketSet<'_>, handle: SocketHandle) -> bool {
    matches!(sockets.get::<Socket>(handle).state(), State::Established | State::CloseWait)
}

/// A listening socket, or `None` when there is no memory for its buffers now.
fn listener(config: &PoolConfig) -> Option<Socket<'static>> {
    let mut socket = Socket::new(buffer(config.rx)?, buffer(config.tx)?);
    // No congestion control: the transmit buffer bounds what is under way and time-outs back off, while
    // smoltcp's Reno waits for a 1 s time-out at nearly every loss (1 MB over a cable losing 3 %: 9 to 26 s
    // with it, 3 ms to 1 s without). Responses are written in large pieces; waiting to fill a segment would
    // cost a delayed ACK of the peer.
    socket.set_nagle_enabled(false);
    socket.set_timeout(Some(TIMEOUT));
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.listen(config.port).ok()?;
    Some(socket)
}

fn buffer(size: usize) -> Option<SocketBuffer<'static>> {
    let mut storage = Vec::new();
    storage.try_reserve_exact(size).ok()?;
    storage.resize(size, 0);
    Some(SocketBuffer::new(storage))
}
