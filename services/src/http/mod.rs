//! An HTTP/1.1 server over any byte stream.
//!
//! [`Server::serve`] takes one connection from its first byte to its last. What a client can make it hold is
//! bounded: a head of at most 8 KiB, and one buffer of 32 KiB while a file is being sent. Time is bounded by
//! [`Limits`].

mod body;
mod bucket;
mod clock;
mod conditions;
mod connection;
mod date;
mod encoding;
mod exchange;
mod few;
mod file;
mod files;
mod input;
mod journal;
mod listing;
mod mime;
mod mount;
mod pace;
mod path;
mod range;
mod request;
mod response;
mod routes;
mod stats;
mod status;
mod worker;

pub use connection::{Connection, Copied};
pub use date::Civil;
pub use exchange::{Exchange, Failure, Refusal};
pub use files::Files;
pub use mount::Mount;
pub use path::{DiskPath, PathError, html_escape, percent_encode};
pub use request::{Body, List, Method, Request};
pub use response::{Broken, Head, Length, Stream, Wire};
pub use routes::Routes;
pub use stats::{Counter, Durations, Gauge, Stats};
pub use status::Status;
pub use worker::worker;

use alloc::rc::Rc;
use core::cell::Cell;
use core::net::IpAddr;

use embassy_futures::yield_now;
use embassy_time::{Duration, Instant};
use embedded_io_async::{Read, Write};

use crate::fs::FsError;
use clock::Clock;
use input::Input;
use journal::{Answered, Journal};
use pace::{Pace, TICK};
use request::{Parsed, first_line};

/// Bytes of an unwanted request body that are skipped to keep the connection.
const MAX_SKIPPED_BODY: u64 = 64 << 10;
/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a whole request head, from its first byte.
    pub head: Duration,
    /// Between requests, and before the first.
    pub idle: Duration,
    /// The same two while others wait for a place.
    pub crowded: Duration,
    /// To take each piece (32 KiB at most) of a response.
    pub stall: Duration,
    /// How long a response may take before it has to have a pace while others wait.
    pub grace: Duration,
    /// That pace: bytes per second since it began. It grows while others go on waiting, up to 16 times.
    pub rate: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(15),
            crowded: Duration::from_secs(1),
            stall: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            rate: 4 << 10,
        }
    }
}

/// How to part from a client after [`Server::serve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All is answered: close.
    Close,
    /// All is answered, but the client may still be sending: close our half and read on for a while, or a
    /// reset could destroy the answer before the client has read it (RFC 9112 section 9.6).
    Drain,
    /// The response is cut short, or the client is gone: reset.
    Abort,
}

/// The server: where files come from, what else is answered, limits and counters.
pub struct Server<F, R> {
    files: Rc<Mount<F>>,
    routes: R,
    limits: Limits,
    stats: Stats,
    journal: Journal,
    clock: Clock,
    stopping: Cell<bool>,
    open: Gauge,
}

impl<F: Files, R: Routes> Server<F, R> {
    /// A server with all counters at zero, and without a clock.
    pub fn new(files: Rc<Mount<F>>, routes: R, limits: Limits) -> Self {
        let (stats, journal, clock) = (Stats::default(), Journal::new(), Clock::default());
        let (stopping, open) = (Cell::new(false), Gauge::default());
        Self { files, routes, limits, stats, journal, clock, stopping, open }
    }

    /// The same with a clock: `now` gives seconds since 1970-01-01T00:00:00Z, or nothing if that is not
    /// known.
    pub fn with_clock(self, now: fn() -> Option<u64>) -> Self {
        Self { clock: Clock::new(now), ..self }
    }

    /// Where files come from, once they are there.
    pub fn files(&self) -> Option<&F> {
        self.files.get()
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Asks for an end in good order: requests are answered, but no connection is kept after that, and those
    /// that come now are reset by their [`worker`].
    pub fn stop(&self) {
        self.stopping.set(true);
    }

    /// Whether the end was asked for.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Connections that [`worker`]s have: where the end was asked for, until their clients have all that was
    /// sent to them.
    pub fn open(&self) -> u64 {
        self.open.get()
    }

    /// Answers requests on `conn` until either side has had enough. `crowded` tells whether others wait for a
    /// place.
    pub async fn serve<C: Read + Write>(&self, conn: &mut C, crowded: impl Fn() -> bool) -> End {
        self.serve_peer(&mut Copied(conn), None, crowded).await
    }

    /// The same, for a client whose address the log may tell.
    pub async fn serve_peer<C: Connection>(
        &self,
        conn: &mut C,
        peer: Option<IpAddr>,
        crowded: impl Fn() -> bool,
    ) -> End {
        let _active = self.stats.active.enter();
        self.stats.connections.add(1);
        let mut wire = Wire::new(conn, &self.stats, &self.clock, Pace::new(&self.limits, &crowded));
        let mut input = Input::default();
        loop {
            let mut start = Instant::now();
            let (request, length) = loop {
                let stop = match request::parse(input.bytes()) {
                    Parsed::Complete(request, length) => break (request, length),
                    Parsed::Refused(status) => Stop::With(status),
                    Parsed::Partial => match self.read_on(&mut wire, &mut input, &mut start).await {
                        Ok(()) => continue,
                        Err(stop) => stop,
                    },
                };
                match stop {
                    Stop::Silently(end) => return end,
                    Stop::With(status) => return self.refuse_head(&mut wire, &input, peer, status).await,
                }
            };
            let end = self.exchange(&mut wire, &request).await;
            self.note(&wire, input.bytes(), peer);
            let body = request.body;
            if let Some(end) = end {
                return end;
            }
            input.consume(length);
            if body != Body::Length(0) && self.skip_body(&mut wire, &mut input, body).await.is_err() {
                return End::Abort;
            }
            // Who sends many requests at once, all answered from memory, takes turns with the others.
            yield_now().await;
        }
    }

    /// Answers a request. Returns how the connection ends, if it does.
    async fn exchange<C: Connection>(&self, wire: &mut Wire<'_, C>, request: &Request<'_>) -> Option<End> {
        wire.pace.begin();
        let mut keep = request.keep_alive && request.body.can_skip() && !self.is_stopping();
        if keep && wire.pace.shortage().is_some() {
            keep = false;
            self.stats.made_room.add(1);
        }
        let mut exchange = Exchange { wire, request, keep, gap: None };
        let answered = match self.answer(&mut exchange).await {
            Ok(()) => Ok(()),
            Err(Failure::Refused(refusal)) => self.refuse(&mut exchange, &refusal).await,
            Err(Failure::Broken(broken)) => Err(broken),
        };
        if let Some(why) = &exchange.gap {
            self.journal.failed(request.path, &"a part is missing", why);
        }
        match answered {
            Ok(()) if exchange.keep => None,
            Ok(()) => Some(End::Drain),
            Err(broken) => Some(self.part(request, broken)),
        }
    }

    /// Reads on in a head, which began to arrive or to be waited for at `start`.
    async fn read_on<C: Connection>(
        &self,
        wire: &mut Wire<'_, C>,
        input: &mut Input,
        start: &mut Instant,
    ) -> Result<(), Stop> {
        let idle = input.bytes().is_empty();
        let usual = if idle { self.limits.idle } else { self.limits.head };
        let Some(time) = self.time_left(wire, usual, *start) else {
            return Err(if idle { Stop::Silently(End::Close) } else { Stop::With(Status::RequestTimeout) });
        };
        match input.read_more(wire.conn, Some(time), &self.stats).await {
            Ok(Some(0)) if idle => Err(Stop::Silently(End::Close)),
            // The client has finished sending in the middle of a head.
            Ok(Some(0)) => Err(Stop::With(Status::BadRequest)),
            Err(Broken::Lost) => Err(Stop::Silently(End::Abort)),
            Err(_) => Err(Stop::With(Status::Unavailable)),
            Ok(Some(_)) => {
                if idle {
                    *start = Instant::now();
                }
                Ok(())
            }
            Ok(None) => Ok(()),
        }
    }

    /// How long to wait for a client, that has been waited for since `start`, before looking again; `usual`:
    /// how long while nobody else waits.
    fn time_left<C: Connection>(
        &self,
        wire: &Wire<'_, C>,
        usual: Duration,
        start: Instant,
    ) -> Option<Duration> {
        let limit = if wire.pace.is_crowded() { self.limits.crowded } else { usual };
        let left = limit.checked_sub(start.elapsed())?;
        (left.as_ticks() > 0).then_some(left.min(TICK))
    }

    /// Reads past a body for which [`Body::can_skip`] holds.
    async fn skip_body<C: Connection>(
        &self,
        wire: &mut Wire<'_, C>,
        input: &mut Input,
        body: Body,
    ) -> Result<(), Broken> {
        let Body::Length(length) = body else { return Err(Broken::Lost) };
        let mut left = usize::try_from(length).map_err(|_| Broken::Lost)?;
        let start = Instant::now();
        loop {
            let here = left.min(input.bytes().len());
            input.consume(here);
            left = left.saturating_sub(here);
            if left == 0 {
                return Ok(());
            }
            let time = self.time_left(wire, self.limits.head, start).ok_or(Broken::Lost)?;
            if input.read_more(wire.conn, Some(time), wire.stats).await? == Some(0) {
                return Err(Broken::Lost);
            }
        }
    }

    /// Counts a request that was answered, and logs it if that is wanted.
    fn note<C: Connection>(&self, wire: &Wire<'_, C>, received: &[u8], peer: Option<IpAddr>) {
        self.stats.duration.add_since(wire.pace.start);
        if Journal::wants_all() {
            let ((bytes, took), status) = (wire.pace.progress(), wire.pace.status);
            let line = first_line(received).unwrap_or(received);
            self.journal.answered(&Answered { peer, now: self.clock.now(), line, status, bytes, took });
        }
    }

    /// Answers what is no request.
    async fn refuse_head<C: Connection>(
        &self,
        wire: &mut Wire<'_, C>,
        input: &Input,
        peer: Option<IpAddr>,
        status: Status,
    ) -> End {
        if status == Status::Unavailable {
            self.journal.failed("a request's head", &status, &FsError::NoMemory);
        }
        wire.pace.begin();
        let mut exchange = Exchange { wire, request: &Request::unread(), keep: false, gap: None };
        let refused = self.refuse(&mut exchange, &status.into()).await;
        self.note(wire, input.bytes(), peer);
        match refused {
            Ok(()) | Err(Broken::Refused) => End::Drain,
            Err(_) => End::Abort,
        }
    }

    /// Tells the client as much as it needs to know, and the log why.
    async fn refuse<C: Connection>(
        &self,
        exchange: &mut Exchange<'_, '_, C>,
        refusal: &Refusal,
    ) -> Result<(), Broken> {
        if let Some(why) = &refusal.why {
            self.journal.failed(exchange.request.path, &refusal.status, why);
        }
        exchange.refuse(refusal).await
    }

    /// Ends a connection whose response is not complete.
    fn part(&self, request: &Request<'_>, broken: Broken) -> End {
        match broken {
            Broken::Lost => End::Abort,
            Broken::Cut(why) => {
                self.journal.failed(request.path, &"cut short", &why);
                End::Abort
            }
            Broken::Refused => {
                self.journal.failed(request.path, &Status::Unavailable, &FsError::NoMemory);
                End::Drain
            }
        }
    }

    async fn answer<C: Connection>(&self, exchange: &mut Exchange<'_, '_, C>) -> Result<(), Failure> {
        match exchange.request.method {
            Method::Get | Method::Head => {}
            Method::NotAllowed => {
                return Err(Refusal::from(Status::MethodNotAllowed).with("Allow", "GET, HEAD").into());
            }
            Method::Unknown => return Err(Status::NotImplemented.into()),
        }
        let path = DiskPath::decode(exchange.request.path)?;
        if !path.slash && self.routes.is_reserved(&path.path) {
            // Old clients know no chunked encoding: the close marks the end.
            exchange.keep &= exchange.request.http_1_1;
            return Ok(self.routes.answer(exchange, &path.path).await?);
        }
        file::send_path(self.files.ready().await?, &self.routes, exchange, &path).await
    }
}

impl Body {
    /// Whether reading past this body is worth it to keep the connection.
    fn can_skip(&self) -> bool {
        matches!(self, Self::Length(..=MAX_SKIPPED_BODY))
    }
}

impl Request<'_> {
    /// Whether the response may have a body.
    pub fn with_body(&self) -> bool {
        self.method != Method::Head
    }
}

/// Why no request was read.
enum Stop {
    Silently(End),
    With(Status),
}
