//! The load: threads that ask for files over HTTP. What they get is looked at when the time was taken.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::files::{Content, File};

/// How long an answer, and each part of it, may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a client waits when its connection was refused or broken.
const PAUSE: Duration = Duration::from_millis(100);
/// Most bytes of an answer's head.
const MOST_HEAD: usize = 4096;

/// What several clients do together.
pub struct Task {
    /// How it is called in rows.
    pub name: &'static str,
    pub clients: usize,
    /// Requests share connections.
    pub keep_alive: bool,
    /// One for each request; each client has its share of them.
    pub files: Vec<File>,
    /// After this time no more requests are made.
    pub limit: Option<Duration>,
}

/// How that went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub seconds: f64,
    /// Requests that were answered, and the bytes they got.
    pub answered: usize,
    pub bytes: usize,
    /// Requests whose connection was refused or broken.
    pub failed: usize,
}

impl Task {
    /// Whether bytes count, not requests.
    pub fn is_bulk(&self) -> bool {
        self.files.iter().any(|file| file.length > 1 << 16)
    }

    /// Does it, at `address`. An error if an answer is not the file.
    pub fn run(&self, address: SocketAddr, content: &Content) -> Result<Outcome> {
        let mut answers: Vec<Answer> = self.files.iter().map(Answer::new).collect();
        let shares = answers.chunks_mut(self.files.len().div_ceil(self.clients));
        let start = Barrier::new(shares.len() + 1);
        let seconds = thread::scope(|scope| {
            let clients: Vec<_> =
                shares.map(|share| scope.spawn(|| self.be_client(address, share, &start))).collect();
            start.wait();
            let start = Instant::now();
            clients.into_iter().for_each(|client| client.join().expect("no thread panics"));
            start.elapsed().as_secs_f64()
        });
        let (mut outcome, mut last) = (Outcome { seconds, ..Outcome::default() }, None);
        for answer in &answers {
            match &answer.result {
                None => {} // the time was over
                Some(Ok(())) => {
                    let right = content.matches(answer.file, &answer.body);
                    ensure!(right, "{}: {}: these are not its bytes", self.name, answer.file.path);
                    outcome.answered += 1;
                    outcome.bytes += answer.body.len();
                }
                Some(Err(error)) => {
                    outcome.failed += 1;
                    last = Some(error);
                }
            }
        }
        match last {
            Some(error) if outcome.answered == 0 => bail!("{}: no answer: {error:#}", self.name),
            _ => Ok(outcome),
        }
    }

    /// Asks for a `share` of the files, one after the other, as long as there is time.
    fn be_client(&self, address: SocketAddr, share: &mut [Answer], start: &Barrier) {
        let mut connection = self.keep_alive.then(|| connect(address).ok()).flatten();
        start.wait();
        let start = Instant::now();
        for answer in share {
            if self.limit.is_some_and(|limit| start.elapsed() > limit) {
                break;
            }
            let result = self.request(address, &mut connection, answer);
            if result.is_err() {
                thread::sleep(PAUSE);
            }
            answer.result = Some(result);
        }
    }

    /// One request, on a connection that is there, if it may be, and stays there if all went well.
    fn request(
        &self,
        address: SocketAddr,
        connection: &mut Option<TcpStream>,
        answer: &mut Answer,
    ) -> Result<()> {
        let mut stream = connection.take().map_or_else(|| connect(address), Ok)?;
        let end = if self.keep_alive { "" } else { "Connection: close\r\n" };
        let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n{end}\r\n", answer.file.path, address.ip());
        stream.write_all(request.as_bytes())?;
        read_answer(&mut stream, &mut answer.body)?;
        *connection = self.keep_alive.then_some(stream);
        Ok(())
    }
}

/// What a request for a file gets.
struct Answer<'a> {
    file: &'a File,
    /// As long as it should be; its memory is there already.
    body: Vec<u8>,
    /// `None`: it was not asked for.
    result: Option<Result<()>>,
}

impl<'a> Answer<'a> {
    fn new(file: &'a File) -> Self {
        // Not zeroes: memory for these is only promised.
        Self { file, body: vec![0xa5; file.length], result: None }
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads an answer whose body fills `body`.
fn read_answer(stream: &mut impl Read, body: &mut [u8]) -> Result<()> {
    let mut head = [0; MOST_HEAD];
    let mut filled = 0;
    let end = loop {
        let count = stream.read(&mut head[filled..])?;
        ensure!(count > 0, "no whole head in {filled} bytes");
        filled += count;
        if let Some(end) = end_of_head(&head[..filled]) {
            break end;
        }
    };
    let text = std::str::from_utf8(&head[..end])?;
    ensure!(text.starts_with("HTTP/1.1 200 "), "{}", text.lines().next().unwrap_or_default());
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    let length: usize = length.context("no Content-Length")?.parse()?;
    let start = &head[end..filled];
    let right = length == body.len() && start.len() <= length;
    ensure!(right, "{length} bytes, {} at once, instead of {}", start.len(), body.len());
    body[..start.len()].copy_from_slice(start);
    let mut at = start.len();
    while at < length {
        match stream.read(&mut body[at..])? {
            0 => bail!("{at} of {length} bytes"),
            count => at += count,
        }
    }
    Ok(())
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::files::Size;
    use super::*;

    /// A server that answers so often with `body`, and then is gone.
    fn serve(body: Vec<u8>, mut answers: usize) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let mut request = [0; 1024];
            while answers > 0 {
                let (mut stream, _) = listener.accept().unwrap();
                while answers > 0 && stream.read(&mut request).unwrap() > 0 {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
                    answers -= 1;
                    if request.windows(5).any(|word| word == b"close") {
                        break;
                    }
                }
            }
        });
        address
    }

    #[test]
    fn answers_and_failures_are_counted() {
        let content = Content::new();
        let file = Size::byte();
        let body = content.pieces(&file).collect::<Vec<_>>().concat();
        let task = |keep_alive, limit, body: &[u8], answers| {
            let files = vec![file.clone(); 6];
            let clients = if keep_alive { 1 } else { 2 };
            Task { name: "test", clients, keep_alive, files, limit }
                .run(serve(body.to_vec(), answers), &content)
        };
        for keep_alive in [true, false] {
            let outcome = task(keep_alive, None, &body, 4).unwrap();
            assert_eq!((outcome.answered, outcome.bytes, outcome.failed), (4, 4, 2), "{keep_alive}");
            assert!(task(keep_alive, None, &[body[0] ^ 1], 6).is_err());
            assert!(task(keep_alive, None, &[], 6).is_err());
            let outcome = task(keep_alive, Some(Duration::ZERO), &body, 6).unwrap();
            assert_eq!((outcome.answered, outcome.failed), (0, 0));
        }
    }

    #[test]
    fn answers_are_read_to_their_end() {
        let read = |text: &str, length: usize| {
            let mut body = vec![0; length];
            read_answer(&mut text.as_bytes(), &mut body).map(|()| body)
        };
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(read(answer, 3).unwrap(), b"abc");
        for length in 0..answer.len() {
            assert!(read(&answer[..length], 3).is_err(), "{length}");
        }
        for (wrong, length) in [
            (answer, 2),
            (answer, 4),
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc", 3),
            ("HTTP/1.1 200 OK\r\n\r\nabc", 3),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", 3),
        ] {
            assert!(read(wrong, length).is_err(), "{wrong}");
        }
    }
}
