//! Writing responses: one head format, bodies of known length, and bodies made piece by piece.

use alloc::string::String;
use core::fmt::{self, Write as _};

use embassy_time::{Duration, with_timeout};
use embedded_io_async::{Read, Write};

use super::{Request, Stats, Status};

/// The connection is of no more use: the peer is gone, too slow, or got a body cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A piece of a chunked body is sent when it has grown to this many bytes.
const CHUNK: usize = 4 << 10;

/// The client's side of a connection, with time limit and byte counts.
pub struct Wire<'a, C> {
    /// The connection itself.
    pub conn: &'a mut C,
    /// Where bytes are counted.
    pub stats: &'a Stats,
    /// How long the client may take for each piece.
    pub stall: Duration,
}

impl<C: Read + Write> Wire<'_, C> {
    /// Sends all of `bytes` or breaks.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        match with_timeout(self.stall, self.conn.write_all(bytes)).await {
            Ok(Ok(())) => {
                self.stats.sent.add(bytes.len());
                Ok(())
            }
            _ => Err(Broken),
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
        let mut text = head.field("Content-Type", mime).finish(self.stats, Length::Known(body.len() as u64));
        if with_body {
            text.push_str(body);
        }
        self.send(text.as_bytes()).await
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
    text: String,
}

impl Head {
    /// `close` tells the client that this is the last response; `http_1_0` confirms a keep-alive to an old client.
    pub fn new(status: Status, close: bool, http_1_0: bool) -> Self {
        let mut text = String::with_capacity(320);
        let _ = write!(text, "HTTP/1.1 {status}\r\n");
        let head = Self { status, text };
        match (close, http_1_0) {
            (true, _) => head.field("Connection", "close"),
            (false, true) => head.field("Connection", "keep-alive"),
            (false, false) => head,
        }
    }

    /// Appends a field. `value` must not come from outside unless it is known to hold no line breaks.
    pub fn field(mut self, name: &str, value: impl fmt::Display) -> Self {
        let _ = write!(self.text, "{name}: {value}\r\n");
        self
    }

    /// Counts the response and returns its head.
    pub fn finish(self, stats: &Stats, length: Length) -> String {
        stats.response(self.status);
        let mut text = match length {
            Length::Known(length) => self.field("Content-Length", length),
            Length::Chunked => self.field("Transfer-Encoding", "chunked"),
            Length::None => self,
        }
        .text;
        text.push_str("\r\n");
        text
    }
}

/// A body of unknown length, made of text: write to [`text`](Self::text), then [`pass`](Self::pass), and at the end
/// [`finish`](Self::finish).
pub struct Stream<'a, 'w, C> {
    wire: &'a mut Wire<'w, C>,
    /// What was not sent yet.
    pub text: String,
    length: Length,
    with_body: bool,
}

impl<'a, 'w, C: Read + Write> Stream<'a, 'w, C> {
    /// Sends the head and begins the body. Old clients get it ended by closing: then `keep` must be false.
    pub async fn begin(
        wire: &'a mut Wire<'w, C>,
        request: &Request,
        keep: bool,
        mime: &str,
    ) -> Result<Self, Broken> {
        let length = if request.http_1_1 { Length::Chunked } else { Length::None };
        let head = Head::new(Status::Ok, !keep, !request.http_1_1).field("Content-Type", mime);
        let text = head.field("Cache-Control", "no-cache").finish(wire.stats, length);
        wire.send(text.as_bytes()).await?;
        Ok(Self { wire, text: String::new(), length, with_body: request.with_body() })
    }

    /// Sends what has gathered if it is enough for a chunk.
    pub async fn pass(&mut self) -> Result<(), Broken> {
        if self.text.len() >= CHUNK { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> Result<(), Broken> {
        let text = core::mem::take(&mut self.text);
        if text.is_empty() || !self.with_body {
            return Ok(());
        }
        if self.length != Length::Chunked {
            return self.wire.send(text.as_bytes()).await;
        }
        let mut size = String::new();
        let _ = write!(size, "{:x}\r\n", text.len());
        self.wire.send(size.as_bytes()).await?;
        self.wire.send(text.as_bytes()).await?;
        self.wire.send(b"\r\n").await
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
