//! HTTP from outside: curl as the independent client, a bare TCP connection for what no client would send,
//! and random content that is known without being kept.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// An HTTP answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// Splits what a server sent, its head included.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.with_context(|| format!("no HTTP head in {:?}", String::from_utf8_lossy(bytes)))?;
        let head = std::str::from_utf8(&bytes[..end]).context("the HTTP head is not UTF-8")?;
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.with_context(|| format!("not a status line: {status_line:?}"))?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line:?}"))?;
            Ok((name.to_lowercase(), value.trim().to_owned()))
        };
        Ok(Self {
            status,
            headers: lines.map(header).collect::<Result<_>>()?,
            body: bytes[end + 4..].to_vec(),
        })
    }

    /// The value of a header, `""` if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(header, _)| header == name).map_or("", |(_, value)| value)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// An error unless the status is `expected`.
    pub fn expect(self, expected: u16) -> Result<Self> {
        ensure!(
            self.status == expected,
            "status {} instead of {expected}: {:.200}",
            self.status,
            self.text()
        );
        Ok(self)
    }
}

/// A curl command that takes at most `seconds`, sends the path as it is, and asks no proxy.
pub fn curl(seconds: u32) -> Command {
    let mut command = Command::new("curl");
    command.args(["-q", "-sS", "--path-as-is", "--noproxy", "*", "--max-time", &seconds.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What `curl -i` with these arguments gets within 20 s.
pub fn get(url: &str, arguments: &[&str]) -> Result<Reply> {
    let output = curl(20).arg("-i").args(arguments).arg(url).output().context("cannot start curl")?;
    ensure!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Reply::parse(&output.stdout).with_context(|| url.to_owned())
}

/// Sends `request` on a connection of its own; returns what comes back until the server closes, or is silent
/// for `silence`.
pub fn raw(port: u16, request: &[u8], silence: Duration) -> Result<Vec<u8>> {
    let mut connection = connect(port, silence)?;
    if let Err(error) = connection.write_all(request) {
        // A server may hang up in the middle of a request that it does not like.
        ensure!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), error);
    }
    read_until_silent(&mut connection)
}

/// A connection whose reads and writes give up after `silence`.
pub fn connect(port: u16, silence: Duration) -> Result<TcpStream> {
    let connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(silence))?;
    connection.set_write_timeout(Some(silence))?;
    Ok(connection)
}

/// Reads until the end of the connection or of the server's patience; at most 64 MiB, for at most a minute.
pub fn read_until_silent(connection: &mut TcpStream) -> Result<Vec<u8>> {
    let (mut bytes, mut chunk, start) = (Vec::new(), [0; 16384], Instant::now());
    while bytes.len() < 64 << 20 && start.elapsed() < Duration::from_secs(60) {
        match connection.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionReset => break,
                _ => return Err(error.into()),
            },
        }
    }
    Ok(bytes)
}

const CHUNK: usize = 64 << 10;

/// Random bytes `from..to` of the endless content called `seed`: the same each time.
pub fn content(seed: u64, from: u64, to: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let first = from / CHUNK as u64;
    let mut chunk = vec![0; CHUNK];
    for index in first..to.div_ceil(CHUNK as u64) {
        fastrand::Rng::with_seed(seed << 32 | index).fill(&mut chunk);
        bytes.extend_from_slice(&chunk);
    }
    let skipped = (from - first * CHUNK as u64) as usize;
    bytes.drain(..skipped);
    bytes.truncate((to - from) as usize);
    bytes
}

/// Starts curl on `url`; [`compare`] takes what it gets.
pub fn start_download(url: &str, seconds: u32) -> Result<Child> {
    curl(seconds).args(["--fail", url]).spawn().context("cannot start curl")
}

/// Compares what `curl` gets, piece by piece, with the first `size` bytes of `seed`.
pub fn compare(mut curl: Child, seed: u64, size: u64) -> Result<()> {
    let mut body = curl.stdout.take().context("curl has no output")?;
    let (mut at, mut piece) = (0, vec![0; 1 << 20]);
    loop {
        let count = body.read(&mut piece)?;
        if count == 0 {
            break;
        }
        let end = at + count as u64;
        if end > size || piece[..count] != content(seed, at, end) {
            curl.kill()?;
            curl.wait()?;
            bail!("wrong bytes between {at} and {end} of {size}");
        }
        at = end;
    }
    let output = curl.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "curl after {at} of {size} bytes: {}", said.trim());
    ensure!(at == size, "{at} bytes instead of {size}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_however_it_is_cut() {
        let whole = content(7, 0, 200_000);
        for (from, to) in [(0, 0), (0, 1), (65_535, 65_537), (65_536, 131_072), (199_999, 200_000)] {
            assert_eq!(content(7, from, to), whole[from as usize..to as usize]);
        }
        assert_ne!(content(8, 0, 100), whole[..100]);
    }

    #[test]
    fn a_reply_is_taken_apart() {
        let reply =
            Reply::parse(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\nX: a:b\r\n\r\nhi").unwrap();
        assert_eq!((reply.status, reply.header("content-length"), reply.header("x")), (206, "2", "a:b"));
        assert_eq!((reply.header("missing"), reply.text().as_str()), ("", "hi"));
        for bad in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"] {
            assert!(Reply::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
