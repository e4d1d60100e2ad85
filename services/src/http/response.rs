//! Writing responses: one head format, bodies of known length, and bodies made piece by piece.

use alloc::vec::Vec;
use core::task::Poll;

use embassy_futures::poll_once;
use embassy_time::{Instant, with_timeout};
use thiserror::Error;

use super::clock::Clock;
use super::date::Fixdate;
use super::pace::{Pace, TICK};
use super::{Connection, Exchange, Stats, Status};
use crate::fs::FsError;
use crate::shared::Shared;
use crate::text::{Digits, NoMemory, Text};

/// The connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    /// The peer is gone, or too slow.
    #[error("the client is gone, or too slow")]
    Lost,
    /// The rest of a response cannot be had: only a reset can still tell the client.
    #[error("the response is cut off: {0}")]
    Cut(FsError),
    /// There is no memory for a response, and that is all the client was told: see [`Wire::give_up`].
    #[error("no memory for a response")]
    Refused,
}

impl From<NoMemory> for Broken {
    fn from(_: NoMemory) -> Self {
        Self::Cut(FsError::NoMemory)
    }
}

/// A piece of a chunked body is sent when it has grown to this many bytes.
const CHUNK: usize = 4 << 10;
/// Room for a chunk and the entry of a folder that makes it full.
const CHUNK_ROOM: usize = CHUNK + (4 << 10);
/// Room for most heads.
const HEAD_ROOM: usize = 480;
/// Memory that a connection keeps from one response for the next.
const KEPT: usize = 1 << 10;
/// A response that needs no memory.
const GIVE_UP: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// The client's side of a connection, with time limits and byte counts.
pub struct Wire<'a, C> {
    /// The connection itself.
    pub conn: &'a mut C,
    /// Where bytes are counted.
    pub stats: &'a Stats,
    pub(super) pace: Pace<'a>,
    pub(super) clock: &'a Clock,
    /// Memory of the last response.
    spare: Text,
}

impl<'a, C: Connection> Wire<'a, C> {
    pub(super) fn new(conn: &'a mut C, stats: &'a Stats, clock: &'a Clock, pace: Pace<'a>) -> Self {
        Self { conn, stats, pace, clock, spare: Text::default() }
    }

    /// Sends all of `bytes` or breaks.
    pub async fn send(&mut self, mut bytes: &[u8]) -> Result<(), Broken> {
        // Without a timer, which costs more than a short response, if there is room.
        if let Poll::Ready(sent) = poll_once(self.send_all(&mut bytes)) {
            return sent;
        }
        let since = Instant::now();
        loop {
            match with_timeout(TICK, self.send_all(&mut bytes)).await {
                Ok(sent) => return sent,
                Err(_) if self.pace.is_over(since, self.stats) => return Err(Broken::Lost),
                Err(_) => {}
            }
        }
    }

    /// Sends from `bytes` what is left there. Cancelling loses nothing.
    async fn send_all(&mut self, bytes: &mut &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let n = self.conn.write(bytes).await.ok().filter(|n| *n > 0).ok_or(Broken::Lost)?;
            self.stats.sent.add(n);
            self.pace.sent(n);
            *bytes = bytes.get(n..).ok_or(Broken::Lost)?;
        }
        Ok(())
    }

    /// Sends bytes from where they are, or breaks.
    pub(super) async fn share(&mut self, bytes: &Shared) -> Result<(), Broken> {
        let since = Instant::now();
        let shared = match poll_once(self.conn.share(bytes)) {
            Poll::Ready(shared) => shared,
            Poll::Pending => loop {
                match with_timeout(TICK, self.conn.share(bytes)).await {
                    Ok(shared) => break shared,
                    Err(_) if self.pace.is_over(since, self.stats) => return Err(Broken::Lost),
                    Err(_) => {}
                }
            },
        };
        shared.map_err(|_| Broken::Lost)?;
        let count = bytes.bytes().len();
        self.stats.sent.add(count);
        self.pace.sent(count);
        Ok(())
    }

    /// The start of a response; see [`Head`].
    pub(super) fn head(&mut self, status: Status, close: bool, http_1_0: bool) -> Head {
        let mut text = core::mem::take(&mut self.spare);
        // Without memory for this, the text is cut and never sent.
        text.reserve(HEAD_ROOM);
        Head::new(status, close, http_1_0, self.clock.date(), text)
    }

    /// Keeps the memory of a response that is sent, if it is little.
    pub(super) fn reuse(&mut self, memory: Vec<u8>) {
        if memory.capacity() <= KEPT {
            self.spare = memory.into();
        }
    }

    /// Sends the head of a response.
    pub async fn send_head(&mut self, head: Head, length: Length) -> Result<(), Broken> {
        let (status, text) = head.finish(length);
        self.send_first(status, text).await
    }

    /// Sends the start of a response, if it is whole.
    async fn send_first(&mut self, status: Status, text: Text) -> Result<(), Broken> {
        match text.into_bytes() {
            Ok(text) => {
                self.respond_with(status);
                self.send(&text).await?;
                self.reuse(text);
                Ok(())
            }
            Err(NoMemory) => Err(self.give_up().await),
        }
    }

    /// Counts a response whose start is sent next.
    pub(super) fn respond_with(&mut self, status: Status) {
        self.stats.response(status);
        self.stats.first_byte.add_since(self.pace.start);
        self.pace.status = Some(status);
    }

    /// Answers a request for which there is no memory, not even for an error page.
    pub async fn give_up(&mut self) -> Broken {
        self.respond_with(Status::Unavailable);
        match self.send(GIVE_UP).await {
            Ok(()) => Broken::Refused,
            Err(broken) => broken,
        }
    }

    /// Sends a complete response with a text body (left out for HEAD).
    pub async fn respond(
        &mut self,
        head: Head,
        mime: &str,
        body: &str,
        with_body: bool,
    ) -> Result<(), Broken> {
        let length = Length::Known(body.len() as u64);
        let (status, mut text) = head.field("Content-Type", mime).finish(length);
        if with_body {
            text.push_str(body);
        }
        self.send_first(status, text).await
    }
}

/// How the client knows where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// `Content-Length`.
    Known(u64),
    /// Chunked encoding.
    Chunked,
    /// The connection closes (HTTP/1.0), or there is no body (304).
    None,
}

/// A response head under construction.
pub struct Head {
    status: Status,
    text: Text,
}

impl Head {
    /// `close` tells the client that this is the last response; `http_1_0` confirms a keep-alive to an old
    /// client.
    fn new(status: Status, close: bool, http_1_0: bool, date: Option<Fixdate>, mut text: Text) -> Self {
        text.push_all(["HTTP/1.1 ", status.line(), "\r\n"]);
        let mut head = Self { status, text };
        if let Some(date) = &date {
            head = head.field("Date", core::str::from_utf8(date).unwrap_or_default());
        }
        match (close, http_1_0) {
            (true, _) => head.field("Connection", "close"),
            (false, true) => head.field("Connection", "keep-alive"),
            (false, false) => head,
        }
    }

    /// Appends a field. `value` must not come from outside unless it is known to hold no line breaks.
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.text.push_all([name, ": ", value, "\r\n"]);
        self
    }

    /// The status, and the head up to the empty line, which is included.
    pub(super) fn finish(self, length: Length) -> (Status, Text) {
        let Self { status, mut text } = match length {
            Length::Known(length) => self.field("Content-Length", Digits::<20>::new::<10>(length).as_str()),
            Length::Chunked => self.field("Transfer-Encoding", "chunked"),
            Length::None => self,
        };
        text.push_str("\r\n");
        (status, text)
    }
}

/// A body of unknown length, made of text: write to [`text`](Self::text), then [`pass`](Self::pass), and at
/// the end [`finish`](Self::finish).
pub struct Stream<'a, 'w, C> {
    wire: &'a mut Wire<'w, C>,
    /// What was not sent yet.
    pub text: Text,
    length: Length,
    with_body: bool,
}

impl<'a, 'w, C: Connection> Stream<'a, 'w, C> {
    /// Sends the head and begins the body. Old clients get it ended by closing: then the connection must not
    /// be kept.
    pub async fn begin(exchange: &'a mut Exchange<'_, 'w, C>, mime: &str) -> Result<Self, Broken> {
        let head = exchange.head(Status::Ok).field("Content-Type", mime);
        let Exchange { wire, request, .. } = exchange;
        let length = if request.http_1_1 { Length::Chunked } else { Length::None };
        // Before the head: while it is not sent, there is still a better answer than a body cut short.
        let Ok(text) = Text::with_capacity(CHUNK_ROOM) else { return Err(wire.give_up().await) };
        wire.send_head(head.field("Cache-Control", "no-cache"), length).await?;
        Ok(Self { wire, text, length, with_body: request.with_body() })
    }

    /// Sends what has gathered if it is enough for a chunk.
    pub async fn pass(&mut self) -> Result<(), Broken> {
        if self.text.len() >= CHUNK { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> Result<(), Broken> {
        let text = self.text.whole()?;
        if !text.is_empty() && self.with_body {
            if self.length == Length::Chunked {
                let size = Digits::<16>::new::<16>(text.len() as u64);
                self.wire.send(size.as_str().as_bytes()).await?;
                self.wire.send(b"\r\n").await?;
            }
            self.wire.send(text.as_bytes()).await?;
            if self.length == Length::Chunked {
                self.wire.send(b"\r\n").await?;
            }
        }
        self.text.clear();
        Ok(())
    }

    /// Sends the rest and the end.
    pub async fn finish(mut self) -> Result<(), Broken> {
        self.send().await?;
        if self.length == Length::Chunked && self.with_body {
            self.wire.send(b"0\r\n\r\n").await?;
        }
        Ok(())
    }
}
