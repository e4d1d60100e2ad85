//! A server on one end of a cable and a plain smoltcp host on the other.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant as Clock};

use super::wire::{Faults, Port, cable};
use super::{Machine, Tree, quick_limits};
use embassy_futures::select::{Either, select};
use embassy_time::Timer;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use ringfence_services::api::Api;
use ringfence_services::http::{Limits, Server, worker};
use ringfence_services::net::{Addressing, Config, Nic, Stack, TcpConfig};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr};

pub const SERVER: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);
pub const PEER: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
pub const WORKERS: usize = 72;

pub fn now() -> Instant {
    Instant::from_micros(embassy_time::Instant::now().as_micros() as i64)
}

/// The other host.
pub struct Peer {
    pub port: Port,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    pub next_port: u16,
}

impl Peer {
    pub fn new(mut port: Port) -> Self {
        let mut config = smoltcp::iface::Config::new(HardwareAddress::Ethernet(EthernetAddress(port.mac)));
        config.random_seed = 7;
        let mut iface = Interface::new(config, &mut port, now());
        iface.update_ip_addrs(|a| a.push(IpCidr::new(PEER.into(), 24)).unwrap());
        Self { port, iface, sockets: SocketSet::new(vec![]), next_port: 49152 }
    }

    pub fn connect(&mut self) -> SocketHandle {
        self.connect_with(65_000)
    }

    /// Connects, with room for so many bytes of an answer.
    pub fn connect_with(&mut self, room: usize) -> SocketHandle {
        let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
        let mut socket = tcp::Socket::new(buffer(room), buffer(8192));
        self.next_port += 1;
        socket.connect(self.iface.context(), (SERVER, 80), self.next_port).unwrap();
        self.sockets.add(socket)
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Moves packets until `done` gives an answer.
    pub async fn until<R>(&mut self, mut done: impl FnMut(&mut SocketSet<'static>) -> Option<R>) -> R {
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

    pub async fn rest(&mut self, time: Duration) {
        let end = Clock::now() + time;
        self.until(|_| (Clock::now() >= end).then_some(())).await;
    }

    pub async fn send(&mut self, handle: SocketHandle, text: &[u8]) {
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
    pub async fn read_to_end(&mut self, handle: SocketHandle) -> (Vec<u8>, bool) {
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

    pub async fn fetch(&mut self, path: &str) -> (Vec<u8>, bool) {
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

pub fn drain(socket: &mut tcp::Socket<'_>, data: &mut Vec<u8>) {
    while socket.can_recv() {
        socket
            .recv(|bytes| {
                data.extend_from_slice(bytes);
                (bytes.len(), ())
            })
            .unwrap();
    }
}

pub fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

pub fn body(response: &[u8]) -> &[u8] {
    let head = response.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
    &response[head + 4..]
}

pub fn tcp_config() -> TcpConfig {
    TcpConfig { port: 80, connections: 88, remembered: 256, memory: 4 << 20, window: 256 << 10 }
}

pub fn fixed() -> Addressing {
    Addressing::Static { address: Ipv4Cidr::new(SERVER, 24), gateway: None }
}

pub struct Setup {
    pub addressing: Addressing,
    pub faults: Faults,
    pub limits: Limits,
    pub workers: usize,
    pub tcp: TcpConfig,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            addressing: fixed(),
            faults: Faults::default(),
            limits: quick_limits(),
            workers: WORKERS,
            tcp: tcp_config(),
        }
    }
}

pub type App = Rc<(Stack<Port>, Server<Tree, Api<Machine>>)>;

/// Runs `test` against a server on one executor, as in the kernel; hanging is failing.
pub fn with_server<F: Future<Output = ()> + 'static>(setup: Setup, test: impl FnOnce(Peer, App) -> F) {
    let (ours, theirs) = cable(setup.faults);
    let tree = Tree::default()
        .with("/a.txt", "0123456789")
        .with_generated("/m.bin", 1_000_000)
        .with_generated("/big.bin", 100_000_000);
    let config = Config { addressing: setup.addressing, seed: 42, tcp: setup.tcp };
    let app: App = Rc::new((
        Stack::new(ours, config),
        Server::new(super::mounted(tree), Api(Machine::default()), setup.limits),
    ));
    let mut executor = LocalPool::new();
    let spawn = |future: Pin<Box<dyn Future<Output = ()>>>| executor.spawner().spawn_local(future).unwrap();
    let carrying = theirs.cable.clone();
    spawn(Box::pin(async move { carrying.carry().await }));
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

pub fn syn_frame(from: [u8; 6], to: [u8; 6], n: u16) -> Vec<u8> {
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
