//! Single segments and their answers, as the RFCs have them. The peer is written by hand.

mod common;

use common::peer::{App, Peer, SERVER, Setup, request, tcp_config, with_server};
use embassy_time::Timer;
use ringfence_services::http::Limits;
use ringfence_services::net::TcpConfig;
use smoltcp::phy::{ChecksumCapabilities, Device, RxToken};
use smoltcp::time::Instant;
use smoltcp::wire::*;

/// A client at any address, whose frames come from any hardware address.
struct Client {
    address: Ipv4Address,
    hardware: [u8; 6],
    port: u16,
    seq: i32,
    ack: i32,
    window: u16,
}

/// What came for it.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    to: [u8; 6],
    control: TcpControl,
    seq: i32,
    ack: Option<i32>,
    data: Vec<u8>,
}

impl Client {
    fn new(port: u16) -> Self {
        Self {
            address: Ipv4Address::new(10, 0, 2, 9),
            hardware: [2, 9, 9, 9, 9, 9],
            port,
            seq: 1000,
            ack: 0,
            window: 65_000,
        }
    }

    fn send(&self, peer: &Peer, app: &App, control: TcpControl, ack: bool, data: &[u8]) {
        let tcp = TcpRepr {
            src_port: self.port,
            dst_port: 80,
            control,
            seq_number: TcpSeqNumber(self.seq),
            ack_number: ack.then_some(TcpSeqNumber(self.ack)),
            window_len: self.window,
            window_scale: None,
            max_seg_size: (control == TcpControl::Syn).then_some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: data,
        };
        self.send_as(peer, app, &tcp);
    }

    fn send_as(&self, peer: &Peer, app: &App, tcp: &TcpRepr<'_>) {
        let ip = Ipv4Repr {
            src_addr: self.address,
            dst_addr: SERVER,
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let ethernet = EthernetRepr {
            src_addr: EthernetAddress(self.hardware),
            dst_addr: EthernetAddress(app.0.with_nic(|nic| nic.mac)),
            ethertype: EthernetProtocol::Ipv4,
        };
        let mut frame = vec![0; 34 + tcp.buffer_len()];
        let checksums = ChecksumCapabilities::default();
        ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame));
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &checksums);
        let mut segment = TcpPacket::new_unchecked(&mut frame[34..]);
        tcp.emit(&mut segment, &self.address.into(), &SERVER.into(), &checksums);
        peer.port.cable.send(0, frame);
    }

    /// What has come within 20 ms.
    async fn answers(&self, peer: &mut Peer) -> Vec<Answer> {
        Timer::after_millis(20).await;
        let next = || Some(peer.port.receive(Instant::ZERO)?.0.consume(<[u8]>::to_vec));
        let frames: Vec<_> = std::iter::from_fn(next).collect();
        frames.iter().filter_map(|frame| self.read(frame)).collect()
    }

    fn read(&self, frame: &[u8]) -> Option<Answer> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let checksums = ChecksumCapabilities::default();
        let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
        let ip = Ipv4Repr::parse(&packet, &checksums).unwrap();
        if (ip.src_addr, ip.dst_addr, ip.next_header) != (SERVER, self.address, IpProtocol::Tcp) {
            return None;
        }
        let segment = TcpPacket::new_checked(packet.payload()).unwrap();
        let tcp = TcpRepr::parse(&segment, &SERVER.into(), &self.address.into(), &checksums).unwrap();
        (tcp.dst_port == self.port).then(|| Answer {
            to: ethernet.dst_addr().0,
            control: tcp.control,
            seq: tcp.seq_number.0,
            ack: tcp.ack_number.map(|ack| ack.0),
            data: tcp.payload.to_vec(),
        })
    }

    async fn shake_hands(&mut self, peer: &mut Peer, app: &App) {
        self.send(peer, app, TcpControl::Syn, false, b"");
        let answers = self.answers(peer).await;
        let [answer] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(
            (answer.control, answer.ack, answer.to),
            (TcpControl::Syn, Some(self.seq + 1), self.hardware)
        );
        (self.seq, self.ack) = (self.seq + 1, answer.seq.wrapping_add(1));
        self.send(peer, app, TcpControl::None, true, b"");
    }

    /// Shakes hands, and asks for `path`. Returns the answer's data, all of it acknowledged.
    async fn ask(&mut self, peer: &mut Peer, app: &App, path: &str, fields: &str) -> Vec<Answer> {
        self.shake_hands(peer, app).await;
        let text = request(path, fields);
        self.send(peer, app, TcpControl::Psh, true, text.as_bytes());
        self.seq += text.len() as i32;
        let answers = self.answers(peer).await;
        for answer in &answers {
            let fin = i32::from(answer.control == TcpControl::Fin);
            self.ack = answer.seq.wrapping_add(answer.data.len() as i32 + fin);
        }
        answers
    }
}

fn no_faults() -> Setup {
    Setup::default()
}

/// Who cannot see a connection cannot end it (RFC 5961).
#[test]
fn a_guess_resets_nothing() {
    with_server(no_faults(), |mut peer, app| async move {
        let mut client = Client::new(5000);
        assert!(!client.ask(&mut peer, &app, "/a.txt", "").await.is_empty());
        client.send(&peer, &app, TcpControl::None, true, b"");
        let here = client.seq;
        for (control, offset) in [(TcpControl::Rst, 1), (TcpControl::Syn, 0), (TcpControl::Syn, 5)] {
            client.seq = here + offset;
            client.send(&peer, &app, control, control != TcpControl::Syn, b"");
            let answers = client.answers(&mut peer).await;
            let [answer] = &answers[..] else { panic!("{control:?}: {answers:?}") };
            assert_eq!((answer.control, answer.ack), (TcpControl::None, Some(here)));
            // Not each is answered: time passes.
            Timer::after_millis(110).await;
        }
        client.seq = here.wrapping_add(100_000);
        client.send(&peer, &app, TcpControl::Rst, true, b"");
        assert_eq!(client.answers(&mut peer).await, []);
        assert_eq!(app.0.tcp().connections, 1);
        // The one that is right does.
        client.seq = here;
        client.send(&peer, &app, TcpControl::Rst, true, b"");
        Timer::after_millis(20).await;
        assert_eq!(app.0.tcp().connections, 0);
    });
}

/// There is nobody: neither at another port, nor with a number that was never given out.
#[test]
fn strangers_are_refused() {
    with_server(no_faults(), |mut peer, app| async move {
        let mut client = Client::new(5000);
        client.ack = 77;
        for data in [&b""[..], b"GET / HTTP/1.1\r\n\r\n"] {
            client.send(&peer, &app, TcpControl::None, true, data);
            let answers = client.answers(&mut peer).await;
            let [answer] = &answers[..] else { panic!("{answers:?}") };
            assert_eq!((answer.control, answer.seq), (TcpControl::Rst, 77));
        }
        client.send(&peer, &app, TcpControl::Rst, true, b"");
        assert_eq!(client.answers(&mut peer).await, []);
        assert_eq!((app.0.tcp().refused, app.0.tcp().connections), (2, 0));
    });
}

/// Who is one too many hears nothing, and tries again; then there is room.
#[test]
fn one_too_many_is_lost_not_refused() {
    let tcp = TcpConfig { connections: 1, ..tcp_config() };
    with_server(Setup { tcp, ..Setup::default() }, |mut peer, app| async move {
        let mut first = Client::new(5000);
        assert!(!first.ask(&mut peer, &app, "/a.txt", "").await.is_empty());
        let mut second = Client::new(5001);
        assert_eq!(second.ask(&mut peer, &app, "/a.txt", "").await, []);
        assert_eq!((app.0.tcp().connections, app.0.tcp().turned_away), (1, 1));
        first.send(&peer, &app, TcpControl::Rst, true, b"");
        Timer::after_millis(20).await;
        let text = request("/a.txt", "");
        second.seq -= text.len() as i32;
        second.send(&peer, &app, TcpControl::Psh, true, text.as_bytes());
        let answers = second.answers(&mut peer).await;
        assert!(answers[0].data.starts_with(b"HTTP/1.1 200 "), "{answers:?}");
    });
}

/// Where there is no room for one more, the slowest of those that are not new gives way, and is told.
#[test]
fn the_slowest_gives_way() {
    let (tcp, limits) = (TcpConfig { connections: 2, ..tcp_config() }, Limits::default());
    with_server(Setup { tcp, limits, ..Setup::default() }, |mut peer, app| async move {
        let [mut slow, mut quick, mut next] = [5000, 5001, 5002].map(Client::new);
        for client in [&mut quick, &mut slow] {
            assert!(!client.ask(&mut peer, &app, "/big.bin", "").await.is_empty());
        }
        quick.send(&peer, &app, TcpControl::None, true, b"");
        assert_eq!(next.ask(&mut peer, &app, "/a.txt", "").await, []);
        assert_eq!(app.0.tcp().gave_way, 0, "they have only begun");
        Timer::after_millis(1100).await;
        next.seq -= request("/a.txt", "").len() as i32;
        next.send(&peer, &app, TcpControl::Psh, true, request("/a.txt", "").as_bytes());
        let told = slow.answers(&mut peer).await;
        assert_eq!(told.last().map(|answer| answer.control), Some(TcpControl::Rst));
        assert_eq!((app.0.tcp().gave_way, app.0.tcp().connections), (1, 1));
        quick.send(&peer, &app, TcpControl::None, true, b"");
        assert!(!quick.answers(&mut peer).await.is_empty());
    });
}

/// One that has everything and does not close gives way at once, and is not told: a reset could destroy what
/// it has not read yet.
#[test]
fn who_has_everything_gives_way_in_silence() {
    let tcp = TcpConfig { connections: 1, ..tcp_config() };
    with_server(Setup { tcp, ..Setup::default() }, |mut peer, app| async move {
        let [mut done, mut next] = [5000, 5001].map(Client::new);
        assert!(!done.ask(&mut peer, &app, "/a.txt", "Connection: close\r\n").await.is_empty());
        done.send(&peer, &app, TcpControl::None, true, b"");
        next.shake_hands(&mut peer, &app).await;
        next.send(&peer, &app, TcpControl::Psh, true, request("/big.bin", "").as_bytes());
        assert_eq!(done.answers(&mut peer).await, []);
        assert_eq!((app.0.tcp().gave_way, app.0.tcp().turned_away, app.0.tcp().connections), (1, 0, 1));
    });
}

/// Who goes on sending after the last answer is listened to for a while, so that no reset destroys the answer
/// before it is read; but it does not keep the task that others wait for.
#[test]
fn the_rest_of_a_body_keeps_no_task() {
    with_server(Setup { workers: 1, ..Setup::default() }, |mut peer, app| async move {
        let [mut sender, mut next] = [5000, 5001].map(Client::new);
        let answers = sender.ask(&mut peer, &app, "/a.txt", "Content-Length: 100000\r\n").await;
        assert_eq!(answers.last().map(|answer| answer.control), Some(TcpControl::Fin));
        for _ in 0..50 {
            sender.send(&peer, &app, TcpControl::None, true, &[b'x'; 1000]);
            sender.seq += 1000;
            let answers = sender.answers(&mut peer).await;
            assert!(answers.iter().all(|answer| answer.control == TcpControl::None), "{answers:?}");
        }
        assert!(!next.ask(&mut peer, &app, "/a.txt", "").await.is_empty());
        sender.send(&peer, &app, TcpControl::None, true, b"x");
        Timer::after_millis(100).await;
        let answers = sender.answers(&mut peer).await;
        assert_eq!(answers.last().map(|answer| answer.ack), Some(Some(sender.seq + 1)), "all is taken");
    });
}

/// An answer goes where the question came from, also when that changes, and for a client on another network
/// without a router that we know of.
#[test]
fn answers_go_where_questions_come_from() {
    with_server(no_faults(), |mut peer, app| async move {
        let mut client = Client::new(5000);
        client.address = Ipv4Address::new(198, 51, 100, 7);
        let answers = client.ask(&mut peer, &app, "/a.txt", "").await;
        assert!(!answers.is_empty() && answers.iter().all(|answer| answer.to == client.hardware));
        client.hardware = [2, 8, 8, 8, 8, 8];
        let text = request("/a.txt", "");
        client.send(&peer, &app, TcpControl::Psh, true, text.as_bytes());
        let answers = client.answers(&mut peer).await;
        assert!(!answers.is_empty() && answers.iter().all(|answer| answer.to == client.hardware));
    });
}

/// If nothing is heard there, they go where they went before.
#[test]
fn a_wrong_way_is_left() {
    with_server(no_faults(), |mut peer, app| async move {
        let mut client = Client::new(5000);
        client.ask(&mut peer, &app, "/a.txt", "").await;
        let right = std::mem::replace(&mut client.hardware, [2, 6, 6, 6, 6, 6]);
        client.send(&peer, &app, TcpControl::Psh, true, request("/a.txt", "").as_bytes());
        let answers = client.answers(&mut peer).await;
        assert!(!answers.is_empty() && answers.iter().all(|answer| answer.to == client.hardware));
        Timer::after_millis(1500).await;
        let answers = client.answers(&mut peer).await;
        assert!(answers.iter().any(|answer| answer.to == right), "{answers:?}");
    });
}

/// A closed window is asked for, and what waits is sent when it opens, though the update is lost.
#[test]
fn a_closed_window() {
    with_server(no_faults(), |mut peer, app| async move {
        let mut client = Client::new(5000);
        client.window = 0;
        assert_eq!(client.ask(&mut peer, &app, "/a.txt", "").await, []);
        let mut asked = 0;
        for _ in 0..80 {
            let answers = client.answers(&mut peer).await;
            assert!(answers.iter().all(|answer| answer.data.is_empty()), "{answers:?}");
            asked += answers.len();
            if asked > 1 {
                client.window = 5000;
                client.send(&peer, &app, TcpControl::None, true, b"");
                let answers = client.answers(&mut peer).await;
                assert!(answers[0].data.starts_with(b"HTTP/1.1 200 "));
                return;
            }
        }
        panic!("{asked} probes in 1.6 s");
    });
}

/// After the end a lost acknowledgment is repeated, and the same ports may begin anew.
#[test]
fn after_the_end() {
    with_server(no_faults(), |mut peer, app| async move {
        let mut client = Client::new(5000);
        let answers = client.ask(&mut peer, &app, "/a.txt", "Connection: close\r\n").await;
        assert_eq!(answers.last().unwrap().control, TcpControl::Fin);
        for _ in 0..3 {
            client.send(&peer, &app, TcpControl::Fin, true, b"");
            let answers = client.answers(&mut peer).await;
            let [answer] = &answers[..] else { panic!("{answers:?}") };
            assert_eq!((answer.control, answer.ack), (TcpControl::None, Some(client.seq + 1)));
            assert_eq!((app.0.tcp().connections, app.0.tcp().time_wait), (0, 1));
        }
        client.send(&peer, &app, TcpControl::Rst, true, b"");
        Timer::after_millis(20).await;
        assert_eq!(app.0.tcp().time_wait, 1, "RFC 1337");
        client.seq += 100;
        let answers = client.ask(&mut peer, &app, "/a.txt", "").await;
        assert!(answers[0].data.starts_with(b"HTTP/1.1 200 "));
        assert_eq!((app.0.tcp().connections, app.0.tcp().time_wait), (1, 0));
    });
}

/// Behind a router that shares its address, the next client with a port may begin with a lower number. It is
/// told of the old connection, resets that, and can begin when it tries again.
#[test]
fn the_same_ports_with_a_lower_number() {
    with_server(no_faults(), |mut peer, app| async move {
        let mut client = Client::new(5000);
        client.ask(&mut peer, &app, "/a.txt", "Connection: close\r\n").await;
        client.send(&peer, &app, TcpControl::Fin, true, b"");
        client.answers(&mut peer).await;
        let mut other = Client::new(5000);
        other.seq = client.seq - 100_000;
        let start = other.seq;
        other.send(&peer, &app, TcpControl::Syn, false, b"");
        let answers = other.answers(&mut peer).await;
        let [answer] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((answer.control, answer.ack), (TcpControl::None, Some(client.seq + 1)));
        for (seq, left) in [(client.seq, 1), (client.seq + 2, 1), (client.seq + 1, 0)] {
            other.seq = seq;
            other.send(&peer, &app, TcpControl::Rst, false, b"");
            Timer::after_millis(20).await;
            assert_eq!(app.0.tcp().time_wait, left);
        }
        other.seq = start;
        let answers = other.ask(&mut peer, &app, "/a.txt", "").await;
        assert!(answers[0].data.starts_with(b"HTTP/1.1 200 "));
    });
}

/// A request that comes in pieces, in any order and more than once, is one request.
#[test]
fn pieces_in_any_order() {
    with_server(no_faults(), |mut peer, app| async move {
        let mut client = Client::new(5000);
        client.ask(&mut peer, &app, "/a.txt", "").await;
        client.send(&peer, &app, TcpControl::None, true, b"");
        let (text, start) = (request("/a.txt", ""), client.seq);
        for (from, to) in
            [(2, 30), (20, 30), (0, 10), (5, 20), (0, 20), (10, 30), (30, text.len()), (25, text.len())]
        {
            client.seq = start + from as i32;
            client.send(&peer, &app, TcpControl::None, true, &text.as_bytes()[from..to]);
        }
        let answers = client.answers(&mut peer).await;
        let data: Vec<_> = answers.iter().filter(|answer| !answer.data.is_empty()).collect();
        let [answer] = &data[..] else { panic!("{answers:?}") };
        assert!(answer.data.starts_with(b"HTTP/1.1 200 "));
        assert_eq!(answer.ack, Some(start + text.len() as i32));
    });
}

/// A peer that takes one byte at a time, or says so, gets segments of a sensible size.
#[test]
fn a_tiny_segment_size() {
    with_server(no_faults(), |mut peer, app| async move {
        let client = Client::new(5000);
        let syn = TcpRepr {
            src_port: client.port,
            dst_port: 80,
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(client.seq),
            ack_number: None,
            window_len: 65_000,
            window_scale: Some(0),
            max_seg_size: Some(1),
            sack_permitted: true,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: b"",
        };
        client.send_as(&peer, &app, &syn);
        let answers = client.answers(&mut peer).await;
        let client = Client { seq: client.seq + 1, ack: answers[0].seq.wrapping_add(1), ..client };
        client.send(&peer, &app, TcpControl::Psh, true, request("/m.bin", "").as_bytes());
        let answers = client.answers(&mut peer).await;
        assert!(answers.len() > 2 && answers.iter().all(|answer| answer.data.len() >= 64), "{answers:?}");
    });
}
