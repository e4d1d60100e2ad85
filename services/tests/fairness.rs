//! Honest clients beside many that are not.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant as Clock};

use common::byte_at;
use common::peer::{App, Peer, Setup, body, drain, request, syn_frame, with_server};
use ringfence_services::http::Limits;
use ringfence_services::net::TcpConfig;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

/// How many of each kind.
const MANY: usize = 500;
const HONEST: usize = 20;

#[derive(Clone, Copy)]
struct Crowd {
    /// Read a large file at 2 KB/s.
    slow_readers: bool,
    /// Send a byte of their request now and then.
    slow_requests: bool,
    /// Connect, and say nothing.
    idle: bool,
    /// Say that they send a body, and send a byte of it now and then.
    bodies: bool,
    /// Have their answer sent after the end, and do not read it.
    last_answers: bool,
    /// SYNs from nowhere, 1,000 a second.
    syns: bool,
    /// Resets from nowhere, 200 a second.
    resets: bool,
}

/// The crowd's connections, and what they do.
struct Attack {
    crowd: Crowd,
    readers: Vec<SocketHandle>,
    writers: Vec<SocketHandle>,
    bodies: Vec<SocketHandle>,
    last_answers: Vec<SocketHandle>,
    start: Clock,
    last: Clock,
    sent: u64,
}

impl Attack {
    fn begin(peer: &mut Peer, crowd: Crowd) -> Self {
        let mut some = |wanted: bool| -> Vec<_> {
            (0..if wanted { MANY } else { 0 }).map(|_| peer.connect_with(4096)).collect()
        };
        let (readers, writers) = (some(crowd.slow_readers), some(crowd.slow_requests));
        let (bodies, last_answers) = (some(crowd.bodies), some(crowd.last_answers));
        some(crowd.idle);
        let now = Clock::now();
        Self { crowd, readers, writers, bodies, last_answers, start: now, last: now, sent: 0 }
    }

    /// Sends a request of each reader once it is connected.
    async fn ask(&self, peer: &mut Peer) {
        for (handles, path, fields) in [
            (&self.readers, "/big.bin", ""),
            (&self.bodies, "/f.txt", "Content-Length: 9999\r\n"),
            (&self.last_answers, "/m.bin", "Range: bytes=0-15999\r\nConnection: close\r\n"),
        ] {
            for handle in handles {
                if peer.tcp(*handle).may_send() {
                    peer.send(*handle, request(path, fields).as_bytes()).await;
                }
            }
        }
    }

    /// What the crowd does by now.
    fn act(&mut self, peer: &mut Peer, app: &App) {
        let now = Clock::now();
        if now - self.last >= Duration::from_millis(250) {
            self.last = now;
            for handle in &self.readers {
                let _ = peer.tcp(*handle).recv(|bytes| (bytes.len().min(512), ()));
            }
            for handle in &self.bodies {
                let _ = peer.tcp(*handle).send_slice(b"x");
            }
            for handle in &self.writers {
                let _ = peer.tcp(*handle).send_slice(if now - self.start < Duration::from_secs(1) {
                    b"GET /"
                } else {
                    b"x"
                });
            }
        }
        let due = (now - self.start).as_millis() as u64;
        let to = app.0.with_nic(|nic| nic.mac);
        for n in self.sent..due {
            if self.crowd.syns {
                peer.port.cable.send(0, syn_frame(peer.port.mac, to, n as u16));
            }
            if self.crowd.resets && n % 5 == 0 {
                let mut frame = syn_frame(peer.port.mac, to, n as u16);
                reset(&mut frame);
                peer.port.cable.send(0, frame);
            }
        }
        self.sent = due;
    }
}

/// Makes a reset of a SYN.
fn reset(frame: &mut [u8]) {
    use smoltcp::wire::{Ipv4Address, TcpPacket};
    let source = Ipv4Address::new(frame[26], frame[27], frame[28], frame[29]);
    let mut tcp = TcpPacket::new_unchecked(&mut frame[34..]);
    tcp.set_syn(false);
    tcp.set_rst(true);
    tcp.fill_checksum(&source.into(), &common::peer::SERVER.into());
}

/// Lets 20 clients fetch 100 KB each beside a crowd, from a server with so many MiB of memory, and says how
/// long each took, the quickest first.
fn honest_beside(crowd: Crowd, mebibytes: u64) -> Vec<Duration> {
    let times = Rc::new(Cell::new(vec![]));
    let result = times.clone();
    let tcp = TcpConfig::for_memory(80, mebibytes << 20);
    let setup = Setup { limits: Limits::default(), tcp, workers: 2048, ..Setup::default() };
    with_server(setup, move |mut peer, app| async move {
        let mut attack = Attack::begin(&mut peer, crowd);
        peer.rest(Duration::from_millis(500)).await;
        attack.ask(&mut peer).await;
        for _ in 0..20 {
            peer.rest(Duration::from_millis(100)).await;
            attack.act(&mut peer, &app);
        }
        println!("{:?}", app.0.tcp());
        let start = Clock::now();
        let honest: Vec<_> = (0..HONEST).map(|_| peer.connect()).collect();
        let (mut asked, mut data) = (vec![false; HONEST], vec![vec![]; HONEST]);
        let mut times = vec![None; HONEST];
        let fields = "Range: bytes=0-99999\r\nConnection: close\r\n";
        while times.iter().any(Option::is_none) && start.elapsed() < Duration::from_secs(30) {
            peer.rest(Duration::from_millis(2)).await;
            attack.act(&mut peer, &app);
            for (n, handle) in honest.iter().enumerate() {
                let socket = peer.tcp(*handle);
                assert!(socket.state() != tcp::State::Closed || times[n].is_some(), "refused");
                if socket.may_send() && !asked[n] {
                    socket.send_slice(request("/m.bin", fields).as_bytes()).unwrap();
                    asked[n] = true;
                }
                drain(socket, &mut data[n]);
                if asked[n] && !socket.may_recv() && times[n].is_none() && data[n].len() > 100_000 {
                    times[n] = Some(start.elapsed());
                    assert!(body(&data[n]).iter().copied().eq((0..100_000).map(byte_at)));
                }
            }
        }
        let mut times: Vec<_> = times.into_iter().flatten().collect();
        times.sort_unstable();
        result.set(times);
    });
    times.take()
}

/// All of them are served, in the median within 5 s.
fn are_served(name: &str, crowd: Crowd, mebibytes: u64) {
    let times = honest_beside(crowd, mebibytes);
    let (median, last) = (times.get(HONEST / 2), times.last());
    println!("{mebibytes} MiB, {name}: {} of {HONEST}, median {median:?}, last {last:?}", times.len());
    assert_eq!(times.len(), HONEST, "{mebibytes} MiB, {name}");
    assert!(times[HONEST / 2] < Duration::from_secs(5), "{mebibytes} MiB, {name}");
}

const NONE: Crowd = Crowd {
    slow_readers: false,
    slow_requests: false,
    idle: false,
    bodies: false,
    last_answers: false,
    syns: false,
    resets: false,
};

/// With each kind of crowd alone, and with all of them, all honest clients are served.
#[test]
fn honest_clients_are_served_beside_any_crowd() {
    let all = Crowd { slow_readers: true, slow_requests: true, idle: true, syns: true, resets: true, ..NONE };
    for (name, crowd) in [
        ("none", NONE),
        ("slow readers", Crowd { slow_readers: true, ..NONE }),
        ("slow requests", Crowd { slow_requests: true, ..NONE }),
        ("idle", Crowd { idle: true, ..NONE }),
        ("SYNs", Crowd { syns: true, ..NONE }),
        ("resets", Crowd { resets: true, ..NONE }),
        ("all", all),
    ] {
        are_served(name, crowd, 512);
    }
}

/// Where there is not room for all of a crowd, those who keep what they have longest give way.
#[test]
fn a_crowd_makes_room() {
    for (name, crowd) in [
        ("slow readers", Crowd { slow_readers: true, ..NONE }),
        ("slow requests", Crowd { slow_requests: true, ..NONE }),
        ("bodies", Crowd { bodies: true, ..NONE }),
        ("last answers", Crowd { last_answers: true, ..NONE }),
    ] {
        are_served(name, crowd, 16);
    }
}
