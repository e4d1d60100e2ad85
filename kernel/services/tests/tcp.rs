//! The stack against a plain smoltcp peer over a cable that can lose, repeat, reorder and damage frames.

mod common;

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant as Clock};

use common::wire::{Faults, Port, cable};
use common::{Machine, Tree, byte_at, quick_limits};
use embassy_futures::select::{Either, select};
use embassy_time::Timer;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use ringfence_services::http::{Limits, Server, worker};
use ringfence_services::net::{Addressing, Config, Nic, PoolConfig, Stack};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::{dhcpv4, icmp, tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr,
    IpAddress, IpCidr, IpEndpoint, Ipv4Address, Ipv4Cidr,
};

const SERVER: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);
const PEER: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
const WORKERS: usize = 72;

fn now() -> Instant {
    Instant::from_micros(embassy_time::Instant::now().as_micros() as i64)
}

/// The other host.
struct Peer {
    port: Port,
    iface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
}

impl Peer {
    fn new(mut port: Port) -> Self {
        let mut config = smoltcp::iface::Config::new(HardwareAddress::Ethernet(EthernetAddress(port.mac)));
        config.random_seed = 7;
        let mut iface = Interface::new(config, &mut port, now());
        iface.update_ip_addrs(|a| a.push(IpCidr::new(PEER.into(), 24)).unwrap());
        Self { port, iface, sockets: SocketSet::new(vec![]), next_port: 49152 }
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
        let mut socket = tcp::Socket::new(buffer(65_000), buffer(8192));
        self.next_port += 1;
        socket.connect(self.iface.context(), (SERVER, 80), self.next_port).unwrap();
        self.sockets.add(socket)
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Moves packets until `done` gives an answer.
    async fn until<R>(&mut self, mut done: impl FnMut(&mut SocketSet<'static>) -> Option<R>) -> R {
        poll_fn(|cx| {
            self.iface.poll(now(), &mut self.port, &mut self.sockets);
            let answer = done(&mut self.sockets);
            self.iface.poll(now(), &mut self.port, &mut self.sockets);
            if let Some(answer) = answer {
                return Poll::Ready(answer);
            }
            self.port.register_waker(cx.waker());
            let delay = self.iface.poll_delay(now(), &self.sockets).map_or(50_000, |d| d.total_micros());
            if pin!(Timer::after_micros(delay.clamp(100, 50_000))).poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }

    async fn rest(&mut self, time: Duration) {
        let end = Clock::now() + time;
        self.until(|_| (Clock::now() >= end).then_some(())).await;
    }

    async fn send(&mut self, handle: SocketHandle, text: &[u8]) {
        let mut left = text;
        self.until(|sockets| {
            let socket = sockets.get_mut::<tcp::Socket>(handle);
            assert_ne!(socket.state(), tcp::State::Closed, "refused");
            if socket.may_send() {
                left = &left[socket.send_slice(left).unwrap()..];
            }
            left.is_empty().then_some(())
        })
        .await;
    }

    /// Everything up to FIN or reset, and whether it was a FIN.
    async fn read_to_end(&mut self, handle: SocketHandle) -> (Vec<u8>, bool) {
        let mut data = Vec::new();
        let clean = self
            .until(|sockets| {
                let socket = sockets.get_mut::<tcp::Socket>(handle);
                drain(socket, &mut data);
                match socket.state() {
                    tcp::State::CloseWait
                    | tcp::State::LastAck
                    | tcp::State::Closing
                    | tcp::State::TimeWait
                        if !socket.can_recv() =>
                    {
                        Some(true)
                    }
                    tcp::State::Closed => Some(false),
                    _ => None,
                }
            })
            .await;
        (data, clean)
    }

    async fn fetch(&mut self, path: &str) -> (Vec<u8>, bool) {
        let handle = self.connect();
        self.send(handle, request(path, "Connection: close\r\n").as_bytes()).await;
        let (data, clean) = self.read_to_end(handle).await;
        self.tcp(handle).close();
        self.until(|sockets| {
            let state = sockets.get::<tcp::Socket>(handle).state();
            matches!(state, tcp::State::Closed | tcp::State::TimeWait).then_some(())
        })
        .await;
        self.sockets.remove(handle);
        (data, clean)
    }
}

fn drain(socket: &mut tcp::Socket<'_>, data: &mut Vec<u8>) {
    while socket.can_recv() {
        socket
            .recv(|bytes| {
                data.extend_from_slice(bytes);
                (bytes.len(), ())
            })
            .unwrap();
    }
}

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

fn body(response: &[u8]) -> &[u8] {
    let head = response.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
    &response[head + 4..]
}

fn pool_config() -> PoolConfig {
    PoolConfig { port: 80, sockets: 88, backlog: 4, rx: 4096, tx: 32768 }
}

fn fixed() -> Addressing {
    Addressing::Static { address: Ipv4Cidr::new(SERVER, 24), gateway: None }
}

struct Setup {
    addressing: Addressing,
    faults: Faults,
    limits: Limits,
    workers: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self { addressing: fixed(), faults: Faults::default(), limits: quick_limits(), workers: WORKERS }
    }
}

type App = Rc<(Stack<Port>, Server<Tree, Machine>)>;

/// Runs `test` against a server on one executor, as in the kernel; hanging is failing.
fn with_server<F: Future<Output = ()> + 'static>(setup: Setup, test: impl FnOnce(Peer, App) -> F) {
    let (ours, theirs) = cable(setup.faults);
    let tree = Tree::default()
        .with("/a.txt", "0123456789")
        .with_generated("/m.bin", 1_000_000)
        .with_generated("/big.bin", 100_000_000);
    let config = Config { addressing: setup.addressing, seed: 42, pool: pool_config() };
    let app: App = Rc::new((Stack::new(ours, config), Server::new(tree, Machine::default(), setup.limits)));
    let mut executor = LocalPool::new();
    let spawn = |future: Pin<Box<dyn Future<Output = ()>>>| executor.spawner().spawn_local(future).unwrap();
    let running = app.clone();
    spawn(Box::pin(async move { running.0.run().await }));
    for _ in 0..setup.workers {
        let app = app.clone();
        spawn(Box::pin(async move { worker(&app.0, &app.1).await }));
    }
    let test = test(Peer::new(theirs), app);
    match executor.run_until(async { select(test, Timer::after_secs(60)).await }) {
        Either::First(()) => {}
        Either::Second(()) => panic!("the test hangs"),
    }
}

#[test]
fn a_file_over_a_good_cable() {
    with_server(Setup::default(), |mut peer, app| async move {
        let start = Clock::now();
        let (data, clean) = peer.fetch("/m.bin").await;
        println!(
            "1 MB in {:?}, {} frames, {} kicks",
            start.elapsed(),
            peer.port.cable.frames.get(),
            peer.port.cable.kicks.get()
        );
        assert!(clean);
        assert!(body(&data).iter().copied().eq((0..1_000_000).map(byte_at)));
        assert_eq!(app.0.stats().sent, data.len() as u64);
        assert_eq!(app.0.stats().received, request("/m.bin", "Connection: close\r\n").len() as u64);
        // Frames go out in batches: far fewer notifications than frames.
        assert!(peer.port.cable.kicks.get() * 4 < peer.port.cable.frames.get());
    });
}

#[test]
fn files_over_bad_cables() {
    for faults in [
        Faults { lose: 30, ..Faults::default() },
        Faults { reorder: 200, ..Faults::default() },
        Faults { repeat: 200, ..Faults::default() },
        Faults { corrupt: 20, ..Faults::default() },
        Faults { lose: 10, reorder: 50, repeat: 50, corrupt: 10 },
    ] {
        let setup = Setup { faults, limits: Limits::default(), ..Setup::default() };
        with_server(setup, |mut peer, _| async move {
            for _ in 0..3 {
                let start = Clock::now();
                let (data, clean) = peer.fetch("/m.bin").await;
                println!("1 MB in {:?}", start.elapsed());
                assert!(clean);
                assert!(body(&data).iter().copied().eq((0..1_000_000).map(byte_at)));
            }
        });
    }
}

#[test]
fn many_connections_at_once() {
    let setup = Setup { limits: Limits::default(), ..Setup::default() };
    with_server(setup, |mut peer, app| async move {
        // 64 connections in one burst, each with one request, all kept open.
        let idle: Vec<_> = (0..64).map(|_| peer.connect()).collect();
        for handle in &idle {
            peer.send(*handle, request("/a.txt", "").as_bytes()).await;
        }
        let mut answered = HashSet::new();
        peer.until(|sockets| {
            for handle in &idle {
                let socket = sockets.get_mut::<tcp::Socket>(*handle);
                assert_ne!(socket.state(), tcp::State::Closed, "refused");
                if socket.recv_queue() > 0 && socket.peek(4096).unwrap().ends_with(b"0123456789") {
                    answered.insert(*handle);
                }
            }
            (answered.len() == 64).then_some(())
        })
        .await;
        assert_eq!(app.1.stats().active.get(), 64);
        // The 65th is served at once.
        let start = Clock::now();
        let (data, clean) = peer.fetch("/a.txt").await;
        assert!(clean && body(&data) == b"0123456789");
        assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
        // None of the 64 was given up for it.
        assert!(idle.iter().all(|handle| peer.tcp(*handle).state() == tcp::State::Established));
    });
}

#[test]
fn more_connections_than_places_make_idle_ones_go() {
    with_server(Setup::default(), |mut peer, app| async move {
        let idle: Vec<_> = (0..200).map(|_| peer.connect()).collect();
        peer.rest(Duration::from_millis(100)).await;
        let state = |peer: &mut Peer, state| idle.iter().filter(|h| peer.tcp(**h).state() == state).count();
        let (open, refused) =
            (state(&mut peer, tcp::State::Established), state(&mut peer, tcp::State::Closed));
        println!("{open} open, {refused} refused");
        assert_eq!(open + refused, 200);
        assert!((72..=88).contains(&open));
        assert!(app.0.sockets() <= 88);
        // All places are taken by silent clients; after the short limit a newcomer gets one.
        peer.rest(Duration::from_millis(1000)).await;
        let (data, clean) = peer.fetch("/a.txt").await;
        assert!(clean && body(&data) == b"0123456789");
        // And the memory comes back.
        peer.rest(Duration::from_millis(1800)).await;
        idle.iter().for_each(|handle| peer.tcp(*handle).abort());
        peer.rest(Duration::from_millis(300)).await;
        assert_eq!((app.0.sockets(), app.1.stats().active.get()), (4, 0));
    });
}

#[test]
fn hundreds_of_short_connections_leave_nothing_behind() {
    with_server(Setup::default(), |mut peer, app| async move {
        for _ in 0..300 {
            let (data, clean) = peer.fetch("/a.txt").await;
            assert!(clean && body(&data) == b"0123456789");
            assert!(app.0.sockets() <= 88);
        }
        peer.rest(Duration::from_millis(300)).await;
        assert_eq!((app.0.sockets(), app.1.stats().active.get()), (4, 0));
    });
}

#[test]
fn a_flood_of_half_open_connections_keeps_nobody_out() {
    with_server(Setup::default(), |mut peer, app| async move {
        // SYNs from addresses that never answer.
        let frame = |n: u16| syn_frame(peer.port.mac, app.0.with_nic(|nic| nic.mac), n);
        for n in 0..500 {
            peer.port.cable.send(0, frame(n));
        }
        peer.rest(Duration::from_millis(700)).await;
        assert!(app.0.sockets() <= 88);
        let (data, clean) = peer.fetch("/a.txt").await;
        assert!(clean && body(&data) == b"0123456789");
        peer.rest(Duration::from_secs(6)).await;
        assert_eq!(app.0.sockets(), 4);
    });
}

fn syn_frame(from: [u8; 6], to: [u8; 6], n: u16) -> Vec<u8> {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::*;
    let source = Ipv4Address::new(10, 0, 2, 100 + (n % 100) as u8);
    let tcp = TcpRepr {
        src_port: 1000 + n,
        dst_port: 80,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = Ipv4Repr {
        src_addr: source,
        dst_addr: SERVER,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(from),
        dst_addr: EthernetAddress(to),
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; 14 + ip.buffer_len() + tcp.buffer_len()];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &ChecksumCapabilities::default());
    tcp.emit(
        &mut TcpPacket::new_unchecked(&mut bytes[34..]),
        &source.into(),
        &SERVER.into(),
        &ChecksumCapabilities::default(),
    );
    bytes
}

#[test]
fn closing_in_every_way() {
    with_server(Setup::default(), |mut peer, app| async move {
        // The client finishes sending right after its request: it still gets all of the answer.
        let handle = peer.connect();
        peer.send(handle, request("/m.bin", "").as_bytes()).await;
        peer.tcp(handle).close();
        let (data, clean) = peer.read_to_end(handle).await;
        assert!(clean);
        assert_eq!(body(&data).len(), 1_000_000);

        // A reset in the middle of a body frees the place at once.
        let handle = peer.connect();
        peer.send(handle, request("/big.bin", "").as_bytes()).await;
        peer.rest(Duration::from_millis(50)).await;
        peer.tcp(handle).abort();
        peer.rest(Duration::from_millis(300)).await;
        assert_eq!((app.0.sockets(), app.1.stats().active.get()), (4, 0));

        // A refused upload: the answer arrives although the client is still sending.
        let handle = peer.connect();
        peer.send(handle, b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\n").await;
        peer.send(handle, &[b'x'; 50_000]).await;
        let (data, clean) = peer.read_to_end(handle).await;
        assert!(clean && data.starts_with(b"HTTP/1.1 405 "));
        peer.tcp(handle).abort();

        // A disk error in the middle of a body: a reset, so that the client knows.
        app.1.files().read_fault.set(Some((500_000, common::FaultKind::Io)));
        let handle = peer.connect();
        peer.send(handle, request("/m.bin", "").as_bytes()).await;
        let (_, clean) = peer.read_to_end(handle).await;
        assert!(!clean);
    });
}

#[test]
fn a_client_that_stops_reading_or_vanishes_is_let_go() {
    with_server(Setup::default(), |mut peer, app| async move {
        let handle = peer.connect();
        peer.send(handle, request("/big.bin", "").as_bytes()).await;
        // Its window closes; meanwhile others are served.
        peer.rest(Duration::from_millis(300)).await;
        assert_eq!(app.1.stats().active.get(), 1);
        let (data, _) = peer.fetch("/a.txt").await;
        assert_eq!(body(&data), b"0123456789");
        peer.rest(Duration::from_millis(1000)).await;
        assert_eq!(app.1.stats().active.get(), 0);
        peer.rest(Duration::from_millis(200)).await;
        assert_eq!(app.0.sockets(), 4);
    });
}

#[test]
fn a_slow_disk_stalls_nobody() {
    with_server(Setup { limits: Limits::default(), ..Setup::default() }, |mut peer, app| async move {
        app.1.files().delay.set(Duration::from_secs(1));
        let slow: Vec<_> = (0..10).map(|_| peer.connect()).collect();
        for handle in &slow {
            peer.send(*handle, request("/m.bin", "").as_bytes()).await;
        }
        let start = Clock::now();
        for _ in 0..5 {
            let (data, clean) = peer.fetch("/metrics").await;
            assert!(clean && data.starts_with(b"HTTP/1.1 200 "));
        }
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    });
}

#[test]
fn a_device_without_room_is_tried_again() {
    with_server(Setup::default(), |mut peer, _| async move {
        // Long enough for every timer of an earlier connection to be over.
        peer.fetch("/a.txt").await;
        peer.rest(Duration::from_millis(300)).await;
        let handle = peer.connect();
        peer.until(|s| s.get::<tcp::Socket>(handle).may_send().then_some(())).await;
        peer.port.cable.full.set(true);
        peer.send(handle, request("/a.txt", "Connection: close\r\n").as_bytes()).await;
        peer.rest(Duration::from_millis(50)).await;
        assert!(!peer.tcp(handle).can_recv());
        peer.port.cable.full.set(false);
        let start = Clock::now();
        let (data, clean) = peer.read_to_end(handle).await;
        assert!(clean && body(&data) == b"0123456789");
        assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    });
}

#[test]
fn ping_is_answered() {
    with_server(Setup::default(), |mut peer, _| async move {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(9)).unwrap();
        let handle = peer.sockets.add(socket);
        for size in [0, 56, 1400] {
            let data = vec![0xa5; size];
            let echo = Icmpv4Repr::EchoRequest { ident: 9, seq_no: size as u16, data: &data };
            let socket = peer.sockets.get_mut::<icmp::Socket>(handle);
            let space = socket.send(echo.buffer_len(), SERVER.into()).unwrap();
            echo.emit(&mut Icmpv4Packet::new_unchecked(space), &Default::default());
            let reply = peer
                .until(|sockets| {
                    let socket = sockets.get_mut::<icmp::Socket>(handle);
                    socket.can_recv().then(|| socket.recv().unwrap().0.to_vec())
                })
                .await;
            let packet = Icmpv4Packet::new_checked(&reply[..]).unwrap();
            let expected = Icmpv4Repr::EchoReply { ident: 9, seq_no: size as u16, data: &data };
            assert_eq!(Icmpv4Repr::parse(&packet, &Default::default()).unwrap(), expected);
        }
    });
}

#[test]
fn damaged_frames_of_every_kind() {
    let faults = Faults { corrupt: 300, lose: 20, ..Faults::default() };
    let setup = Setup { faults, limits: Limits::default(), ..Setup::default() };
    with_server(setup, |mut peer, app| async move {
        let mac = app.0.with_nic(|nic| nic.mac);
        let cable = peer.port.cable.clone();
        for n in 0..10_000_u16 {
            let mut frame = syn_frame(peer.port.mac, mac, n);
            for _ in 0..cable.random() % 8 {
                // Leave the addresses, so that it is looked into.
                let at = 6 + cable.random() as usize % (frame.len() - 6);
                frame[at] = cable.random() as u8;
            }
            frame.truncate(cable.random() as usize % (frame.len() + 20));
            cable.send(0, frame);
            if n % 64 == 0 {
                peer.rest(Duration::from_millis(1)).await;
            }
        }
        peer.rest(Duration::from_millis(700)).await;
        assert!(app.0.sockets() <= 88);
    });
}

#[test]
fn a_bad_hardware_address_is_replaced() {
    for mac in [[0; 6], [0xff; 6], [1, 2, 3, 4, 5, 6]] {
        let (mut ours, theirs) = cable(Faults::default());
        ours.mac = mac;
        let stack = Stack::new(ours, Config { addressing: fixed(), seed: 1, pool: pool_config() });
        let mut peer = Peer::new(theirs);
        let mut executor = LocalPool::new();
        let connects = async {
            let handle = peer.connect();
            peer.until(|s| (s.get::<tcp::Socket>(handle).state() == tcp::State::Established).then_some(()))
                .await;
        };
        let outcome = executor.run_until(async {
            let accepted = async { futures::future::join(connects, stack.accept()).await };
            select(accepted, select(Timer::after_secs(5), stack.run())).await
        });
        assert!(matches!(outcome, Either::First(_)), "{mac:?}");
    }
}

/// A DHCP server that leases [`SERVER`] for `lease` seconds.
struct Dhcp {
    handle: SocketHandle,
    lease: u32,
    acks: RefCell<u32>,
    mac: [u8; 6],
}

impl Dhcp {
    fn new(peer: &mut Peer, lease: u32, mac: [u8; 6]) -> Self {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(67).unwrap();
        Self { handle: peer.sockets.add(socket), lease, acks: RefCell::new(0), mac }
    }

    fn answer(&self, sockets: &mut SocketSet<'static>) {
        let socket = sockets.get_mut::<udp::Socket>(self.handle);
        while let Ok((data, from)) = socket.recv() {
            let packet = DhcpPacket::new_checked(data).unwrap();
            let asked = DhcpRepr::parse(&packet).unwrap();
            assert_eq!(asked.client_hardware_address.0, self.mac);
            let message_type = match asked.message_type {
                DhcpMessageType::Discover => DhcpMessageType::Offer,
                DhcpMessageType::Request => {
                    *self.acks.borrow_mut() += 1;
                    DhcpMessageType::Ack
                }
                _ => continue,
            };
            let reply = DhcpRepr {
                message_type,
                your_ip: SERVER,
                server_ip: PEER,
                server_identifier: Some(PEER),
                subnet_mask: Some(Ipv4Address::new(255, 255, 255, 0)),
                router: Some(PEER),
                lease_duration: Some(self.lease),
                requested_ip: None,
                parameter_request_list: None,
                client_identifier: None,
                max_size: None,
                dns_servers: None,
                additional_options: &[],
                broadcast: true,
                client_ip: Ipv4Address::UNSPECIFIED,
                relay_agent_ip: Ipv4Address::UNSPECIFIED,
                secs: 0,
                transaction_id: asked.transaction_id,
                client_hardware_address: asked.client_hardware_address,
                renew_duration: None,
                rebind_duration: None,
            };
            let to = match from.endpoint.addr {
                IpAddress::Ipv4(v4) if v4.is_unspecified() => Ipv4Address::BROADCAST,
                IpAddress::Ipv4(v4) => v4,
            };
            let space = socket.send(reply.buffer_len(), IpEndpoint::new(to.into(), 68)).unwrap();
            reply.emit(&mut DhcpPacket::new_unchecked(space)).unwrap();
        }
    }
}

#[test]
fn an_address_by_dhcp_renewed_and_asked_for_again_after_a_link_change() {
    let setup = Setup { addressing: Addressing::Dhcp, ..Setup::default() };
    with_server(setup, |mut peer, app| async move {
        let dhcp = Dhcp::new(&mut peer, 4, app.0.with_nic(|nic| nic.mac));
        assert_eq!(app.0.address(), None);
        let start = Clock::now();
        let address = select(
            app.0.wait_address(),
            peer.until(|s| {
                dhcp.answer(s);
                None::<()>
            }),
        )
        .await;
        assert!(matches!(address, Either::First(a) if a == Ipv4Cidr::new(SERVER, 24)));
        println!("address after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_millis(500));
        let serve_for = |time: Duration| {
            let end = Clock::now() + time;
            let dhcp = &dhcp;
            move |sockets: &mut SocketSet<'static>| {
                dhcp.answer(sockets);
                (Clock::now() >= end).then_some(())
            }
        };
        // The lease is renewed at half its time.
        peer.until(serve_for(Duration::from_millis(2600))).await;
        assert_eq!(*dhcp.acks.borrow(), 2);
        assert_eq!(app.0.address(), Some(Ipv4Cidr::new(SERVER, 24)));
        // The cable is pulled and put back.
        peer.port.cable.set_up(false);
        peer.rest(Duration::from_millis(100)).await;
        peer.port.cable.set_up(true);
        peer.until(serve_for(Duration::from_millis(500))).await;
        assert_eq!(*dhcp.acks.borrow(), 3);
        assert_eq!(app.0.address(), Some(Ipv4Cidr::new(SERVER, 24)));
        // Nobody renews: the address is given up in the end.
        peer.rest(Duration::from_millis(4500)).await;
        assert_eq!(app.0.address(), None);
        let _ = dhcpv4::Event::Deconfigured;
    });
}

#[test]
fn tasks_are_small() {
    with_server(Setup { workers: 0, ..Setup::default() }, |_, app| async move {
        let worker = size_of_val(&worker(&app.0, &app.1));
        let run = size_of_val(&app.0.run());
        println!("worker: {worker} bytes, run: {run} bytes, stack: {} bytes", size_of_val(&app.0));
        assert!(worker < 4096 && run < 512);
    });
}
