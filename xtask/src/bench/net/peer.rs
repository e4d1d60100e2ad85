//! What the guest's third network card leads to: a thread that takes frames from a unix datagram socket and
//! answers when they ask for it. Whoever has no room makes the other wait, so that no frame is lost.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::target;

/// How often a waiting thread looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(20);
/// Lengths that an answer may have.
const SHORTEST: usize = 60;
const LONGEST: usize = 1514;
/// Most answers that a frame may ask for.
const MOST: u32 = 100_000;
/// The Ethernet type of frames that ask, the one for experiments.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// The thread. It ends, and its socket is removed, when this is dropped.
pub struct Peer {
    guest: PathBuf,
    host: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Starts it, with a socket in target/bench/.
    pub fn start() -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = target()?.join("bench");
        std::fs::create_dir_all(&folder)?;
        let path = |side| folder.join(format!("net-{side}-{}-{number}.socket", std::process::id()));
        let (guest, host) = (path("guest"), path("host"));
        let socket = UnixDatagram::bind(&host)
            .with_context(|| format!("cannot make a socket at {}", host.display()))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, to) = (stop.clone(), guest.clone());
        let thread = Some(thread::spawn(move || serve(&socket, &to, &stopped)));
        Ok(Self { guest, host, stop, thread })
    }

    /// The end of the wire that QEMU has.
    pub fn netdev(&self, id: &str) -> OsString {
        let [guest, host] = [&self.guest, &self.host].map(|path| path.to_string_lossy().replace(',', ",,"));
        let ends = format!("local.type=unix,local.path={guest},remote.type=unix,remote.path={host}");
        format!("dgram,id={id},{ends}").into()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic there was printed there; files that are gone need not be removed.
        let _ = self.thread.take().map(JoinHandle::join);
        for path in [&self.guest, &self.host] {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What a frame asks for: after so many of its kind, so many answers, each so long.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Request {
    after: u32,
    answers: u32,
    len: usize,
}

impl Request {
    /// The three numbers after the Ethernet header, little-endian.
    fn read(frame: &[u8]) -> Option<Self> {
        let word = |at| Some(u32::from_le_bytes(*frame.get(at..)?.first_chunk()?));
        let len = u16::from_le_bytes(*frame.get(22..)?.first_chunk()?);
        (frame[12..14] == EXPERIMENT).then_some(Self {
            after: word(14)?,
            answers: word(18)?.min(MOST),
            len: usize::from(len).clamp(SHORTEST, LONGEST),
        })
    }
}

/// Takes frames and answers to `guest` until it should stop.
fn serve(socket: &UnixDatagram, guest: &Path, stop: &AtomicBool) {
    let mut frame = [0; 2048];
    let mut seen = (None, 0);
    while !stop.load(Ordering::Relaxed) {
        let len = match socket.recv(&mut frame) {
            Ok(len) => len,
            Err(error) if is_timeout(&error) => continue,
            Err(_) => return,
        };
        let Some(request) = Request::read(&frame[..len]) else { continue };
        if seen.0 != Some(request) {
            seen = (Some(request), 0);
        }
        seen.1 += 1;
        if seen.1 == request.after {
            seen.1 = 0;
            let mut answers = 0;
            while answers < request.answers && !stop.load(Ordering::Relaxed) {
                match socket.send_to(&frame[..request.len], guest) {
                    Ok(_) => answers += 1,
                    Err(error) if is_timeout(&error) => {}
                    Err(_) => break, // nobody is there
                }
            }
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(after: u32, answers: u32, len: u16) -> Vec<u8> {
        let numbers = [&after.to_le_bytes()[..], &answers.to_le_bytes(), &len.to_le_bytes()].concat();
        [&[0xff; 12][..], &EXPERIMENT, &numbers, &[7; 40]].concat()
    }

    #[test]
    fn answers_come_when_asked_for_and_the_end_is_clean() {
        let peer = Peer::start().unwrap();
        let guest = UnixDatagram::bind(&peer.guest).unwrap();
        guest.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 2048];
        let mut exchange = |sent: &[u8], times: usize, expected: &[usize]| {
            (0..times).for_each(|_| _ = guest.send_to(sent, &peer.host).unwrap());
            for len in expected {
                assert_eq!(guest.recv(&mut buffer).unwrap(), *len);
            }
        };
        exchange(&frame(1, 3, 100), 1, &[100; 3]);
        exchange(&frame(4, 1, 9), 8, &[60; 2]);
        exchange(&frame(4, 1, 9), 2, &[]);
        exchange(&[1, 2, 3], 1, &[]);
        // Another request: those before do not count for it. More answers than fit the socket.
        exchange(&frame(3, 500, 2000), 3, &[1514; 500]);
        let paths = [peer.guest.clone(), peer.host.clone()];
        drop(peer);
        assert!(paths.iter().all(|path| !path.exists()));
    }
}
