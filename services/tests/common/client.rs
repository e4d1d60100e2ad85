//! An HTTP client in memory, and what it hears taken apart.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use embassy_time::Timer;
use embedded_io_async::{ErrorType, Read, Write};

/// A client that says `input` (in pieces, with pauses), then finishes or goes silent.
pub struct Client {
    pub input: VecDeque<(Duration, Vec<u8>)>,
    pub then: Then,
    pub output: Vec<u8>,
    /// Bytes taken before the client stops taking any.
    pub takes: usize,
    /// Bytes taken at once, and how long the client waits before.
    pub gulp: (usize, Duration),
    pub discard: bool,
    pub written: u64,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Then {
    Finish,
    Silence,
}

impl Client {
    pub fn new(input: &[u8], then: Then) -> Self {
        let input = VecDeque::from([(Duration::ZERO, input.to_vec())]);
        let gulp = (usize::MAX, Duration::ZERO);
        Self { input, then, output: Vec::new(), takes: usize::MAX, gulp, discard: false, written: 0 }
    }

    pub fn pieces(pieces: impl IntoIterator<Item = (Duration, Vec<u8>)>, then: Then) -> Self {
        Self { input: pieces.into_iter().collect(), ..Self::new(b"", then) }
    }
}

impl ErrorType for Client {
    type Error = Infallible;
}

impl Read for Client {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        loop {
            let Some((pause, bytes)) = self.input.front_mut() else {
                match self.then {
                    Then::Finish => return Ok(0),
                    Then::Silence => std::future::pending().await,
                }
            };
            if !pause.is_zero() {
                let slice = (*pause).min(Duration::from_millis(20));
                Timer::after_micros(slice.as_micros() as u64).await;
                *pause -= slice;
                continue;
            }
            if bytes.is_empty() {
                self.input.pop_front();
                continue;
            }
            let n = buf.len().min(bytes.len());
            buf[..n].copy_from_slice(&bytes[..n]);
            bytes.drain(..n);
            return Ok(n);
        }
    }
}

impl Write for Client {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        let (gulp, pause) = self.gulp;
        if !pause.is_zero() {
            Timer::after_micros(pause.as_micros() as u64).await;
        }
        let n = buf.len().min(self.takes).min(gulp);
        if n == 0 && !buf.is_empty() {
            std::future::pending().await
        }
        self.takes -= n;
        self.written += n as u64;
        if !self.discard {
            self.output.extend_from_slice(&buf[..n]);
        }
        Ok(n)
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.head.lines().skip(1).filter_map(|line| {
            let (field, value) = line.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then_some(value)
        });
        let first = found.next();
        assert!(found.next().is_none(), "{name} twice:\n{}", self.head);
        first
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// Takes a stream of responses apart; `heads` says which of them answer HEAD.
pub fn responses(mut bytes: &[u8], heads: &[bool]) -> Vec<Response> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a complete head") + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        bytes = &bytes[end..];
        let status: u16 = head.strip_prefix("HTTP/1.1 ").expect("status line")[..3].parse().unwrap();
        let mut response = Response { status, head, body: Vec::new() };
        let bodyless = status == 304 || heads.get(all.len()) == Some(&true);
        if bodyless {
        } else if response.field("Transfer-Encoding") == Some("chunked") {
            loop {
                let line = bytes.windows(2).position(|w| w == b"\r\n").unwrap();
                let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
                response.body.extend_from_slice(&bytes[line + 2..][..size]);
                assert_eq!(&bytes[line + 2 + size..][..2], b"\r\n");
                bytes = &bytes[line + 4 + size..];
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = response.field("Content-Length") {
            let length = length.parse().unwrap();
            response.body = bytes[..length].to_vec();
            bytes = &bytes[length..];
        } else {
            assert_eq!(response.field("Connection"), Some("close"), "{}", response.head);
            response.body = std::mem::take(&mut bytes).to_vec();
        }
        all.push(response);
    }
    all
}
