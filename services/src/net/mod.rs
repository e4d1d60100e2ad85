//! TCP/IP over one Ethernet device, driven by one task.
//!
//! [`Stack::run`] is the only place where packets move. It runs when the device has something (through the
//! waker it leaves with [`Nic::register_waker`]), when a connection was used, and when a timer is due. TCP
//! and echo requests are answered here; what an interface needs besides, ARP, neighbor discovery,
//! DHCP, the addresses of IPv6 and fragments, is smoltcp's.

mod checksum;
mod early;
mod frame;
mod icmp;
mod ingress;
mod lease;
mod nic;
mod socket;
mod tcp;

pub use nic::Nic;
pub use socket::TcpSocket;
pub use tcp::{TcpConfig, TcpError, TcpStats};

use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use crate::wakers::Wakers;
use alloc::vec;
use early::Early;
use embassy_time::Timer;
use ingress::take_in;
use log::{info, warn};
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::socket::dhcpv4;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr, Ipv6Cidr,
};
use tcp::{Micros, Output, PIECES, Sent, Tcp};

/// Frames taken from the device in one poll before other tasks get a turn.
const INGRESS_BUDGET: usize = 64;
/// Packets of smoltcp's in one poll.
const EGRESS_BUDGET: usize = 8;
/// Bytes in front of a packet.
const ETHERNET_HEADER: usize = 14;
/// When to look again if something waits to be sent and the device had no room: it may not interrupt for
/// that.
const DEVICE_FULL_RETRY: Micros = 1000;

/// How the interface gets its IPv4 address.
#[derive(Clone, Copy, Debug)]
pub enum Addressing {
    /// Ask a DHCP server and keep the lease renewed.
    Dhcp,
    /// Use these; no gateway means the local network only.
    Static {
        /// Own address and prefix length. Must be a unicast address.
        address: Ipv4Cidr,
        /// Where packets for other networks go.
        gateway: Option<Ipv4Address>,
    },
}

/// What [`Stack::new`] needs besides the device.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// DHCP or a fixed address.
    pub addressing: Addressing,
    /// Unpredictable bits: initial sequence numbers, DHCP transaction ids.
    pub seed: u64,
    /// The TCP port served, and how much there may be of everything.
    pub tcp: TcpConfig,
}

/// Bytes of TCP payload and connections since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetStats {
    /// Payload bytes handed to the application.
    pub received: u64,
    /// Payload bytes taken from the application.
    pub sent: u64,
    /// Connections handed out by [`Stack::accept`].
    pub accepted: u64,
}

/// A TCP/IP stack on the device `N`. Single-threaded: all tasks that use it share one executor.
pub struct Stack<N: Nic> {
    inner: RefCell<Inner<N>>,
    stats: Cell<NetStats>,
}

struct Inner<N: Nic> {
    nic: N,
    iface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    tcp: Tcp,
    early: Early,
    link_up: bool,
    /// When smoltcp has something to do: a packet for it, or a timer.
    smoltcp_due: Option<Instant>,
    /// Where packets for other networks go, as the lease says.
    router: Option<Ipv4Address>,
    /// Whether the network is to be told which hardware address is behind our address now.
    announce: bool,
    /// The task in [`Stack::run`].
    runner: Option<Waker>,
    /// Tasks in [`Stack::wait_address`].
    waiting: Wakers,
}

impl<N: Nic> Stack<N> {
    /// Takes the device. Nothing is sent before [`run`](Self::run) is polled.
    pub fn new(mut nic: N, config: Config) -> Self {
        let hardware = usable_mac(nic.mac(), config.seed);
        let mut iface_config = smoltcp::iface::Config::new(HardwareAddress::Ethernet(hardware));
        iface_config.random_seed = config.seed;
        iface_config.slaac = true;
        let mut iface = Interface::new(iface_config, &mut nic, now());
        iface.update_ip_addrs(|addresses| {
            // Cannot fail: the list is empty.
            let _ = addresses.push(link_local(hardware).into());
        });
        let mut sockets = SocketSet::new(vec![]);
        let dhcp = match config.addressing {
            Addressing::Dhcp => Some(sockets.add(dhcp_client())),
            Addressing::Static { address, gateway } => {
                set_address(&mut iface, Some((address, gateway)));
                None
            }
        };
        let link_up = nic.link_up();
        let longest = nic.capabilities().max_transmission_unit.saturating_sub(ETHERNET_HEADER);
        let mtu = u16::try_from(longest).unwrap_or(u16::MAX);
        let tcp = Tcp::new(config.tcp, hardware, mtu, config.seed);
        let inner = Inner {
            nic,
            iface,
            sockets,
            dhcp,
            tcp,
            early: Early::default(),
            link_up,
            smoltcp_due: Some(now()),
            router: None,
            announce: true,
            runner: None,
            waiting: Wakers::default(),
        };
        Self { inner: RefCell::new(inner), stats: Cell::new(NetStats::default()) }
    }

    /// Moves packets for ever. Spawn this once.
    pub async fn run(&self) -> ! {
        let forever = poll_fn(|cx| {
            self.inner.borrow_mut().poll(cx);
            Poll::<core::convert::Infallible>::Pending
        });
        match forever.await {}
    }

    /// Waits until the interface has an address and returns it.
    pub async fn wait_address(&self) -> Ipv4Cidr {
        poll_fn(|cx| {
            let mut inner = self.inner.borrow_mut();
            match inner.address() {
                Some(address) => Poll::Ready(address),
                None => {
                    inner.waiting.add(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The interface's address, if it has one now.
    pub fn address(&self) -> Option<Ipv4Cidr> {
        self.inner.borrow().address()
    }

    /// The next connection to the port served that has sent something. Any number of tasks may wait here.
    pub async fn accept(&self) -> TcpSocket<'_, N> {
        let id = poll_fn(|cx| self.inner.borrow_mut().tcp.accept(cx)).await;
        self.count(|stats| stats.accepted = stats.accepted.saturating_add(1));
        TcpSocket::new(self, id)
    }

    /// Waits until there is a connection that no task waits for in [`accept`](Self::accept): until one more
    /// task is of use.
    pub async fn wait_unserved(&self) {
        poll_fn(|cx| self.inner.borrow_mut().tcp.poll_unserved(cx)).await;
    }

    /// Whether somebody waits for a free connection or a free task: idle connections should make room.
    pub fn crowded(&self) -> bool {
        self.inner.borrow().tcp.crowded()
    }

    /// The connections.
    pub fn tcp(&self) -> TcpStats {
        self.inner.borrow().tcp.stats()
    }

    /// Traffic since start.
    pub fn stats(&self) -> NetStats {
        self.stats.get()
    }

    /// Runs `f` on the device, for its counters.
    pub fn with_nic<R>(&self, f: impl FnOnce(&N) -> R) -> R {
        f(&self.inner.borrow().nic)
    }

    fn count(&self, f: impl FnOnce(&mut NetStats)) {
        let mut stats = self.stats.get();
        f(&mut stats);
        self.stats.set(stats);
    }
}

impl<N: Nic> Inner<N> {
    /// One turn of the stack: link, frames in, frames out, timers.
    fn poll(&mut self, cx: &mut Context<'_>) {
        if !self.runner.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.runner = Some(cx.waker().clone());
        }
        self.check_link();
        let now = now();
        self.announce(now);
        let mut more = self.ingress(now);
        if self.smoltcp_due.is_some_and(|due| due <= now) {
            more |= self.poll_smoltcp(now);
        }
        let micros = micros(now);
        self.tcp.look(&mut Frames(&mut self.nic), micros);
        let sent = self.tcp.send(&mut Frames(&mut self.nic), micros);
        self.nic.flush();
        if more || sent == Sent::More {
            cx.waker().wake_by_ref();
            return;
        }
        self.nic.register_waker(cx.waker());
        let retry = (sent == Sent::Full).then(|| micros.saturating_add(DEVICE_FULL_RETRY));
        let smoltcp = self.smoltcp_due.map(self::micros);
        if let Some(next) = [retry, smoltcp, self.tcp.next_alarm()].into_iter().flatten().min() {
            let timer = pin!(Timer::after_micros(next.saturating_sub(micros)));
            if timer.poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Lets smoltcp do what it has to do. Returns whether there is more.
    fn poll_smoltcp(&mut self, now: Instant) -> bool {
        self.iface.poll_maintenance(now);
        let more = (0..EGRESS_BUDGET)
            .all(|_| self.iface.poll_egress(now, &mut self.nic, &mut self.sockets) != PollResult::None);
        let changed = self.update_dhcp();
        let delay =
            self.iface.poll_delay(now, &self.sockets).map(|delay| delay.max(Duration::from_millis(1)));
        self.smoltcp_due = if more || changed { Some(now) } else { delay.map(|delay| after(now, delay)) };
        more || changed
    }

    /// Returns whether frames may be left.
    fn ingress(&mut self, now: Instant) -> bool {
        (0..INGRESS_BUDGET).all(|_| self.ingress_single(now))
    }

    /// Takes one frame in, if there is one: with an address, those that came before it first.
    fn ingress_single(&mut self, now: Instant) -> bool {
        let has_address = self.address().is_some();
        let Self { nic, iface, sockets, tcp, early, .. } = self;
        let capabilities = nic.capabilities();
        let mut is_smoltcps = false;
        if has_address && !early.is_empty() {
            let Some(room) = nic.transmit(now) else { return false };
            let frame = early.take().unwrap_or_default();
            is_smoltcps = take_in(iface, sockets, tcp, now, &frame, room, capabilities);
        } else {
            let Some((frame, room)) = nic.receive(now) else { return false };
            frame.consume(|frame| {
                if !has_address {
                    early.keep(frame);
                }
                is_smoltcps = take_in(iface, sockets, tcp, now, frame, room, capabilities);
            });
        }
        if is_smoltcps {
            self.smoltcp_due = Some(now);
        }
        true
    }

    fn check_link(&mut self) {
        let up = self.nic.link_up();
        if up == self.link_up {
            return;
        }
        self.link_up = up;
        info!("network: link {}", if up { "up" } else { "down" });
        self.announce = up;
        // It may be another network now: ask again. Until the answer the old address stays, and with it the
        // connections, so the event that takes it away is not wanted.
        if let (true, Some(handle)) = (up, self.dhcp) {
            let dhcp = self.sockets.get_mut::<dhcpv4::Socket>(handle);
            dhcp.reset();
            let _ = dhcp.poll();
            self.smoltcp_due = Some(now());
        }
    }

    /// Returns whether there is a new address.
    fn update_dhcp(&mut self) -> bool {
        let Some(handle) = self.dhcp else { return false };
        let before = self.address();
        match self.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            None => false,
            Some(dhcpv4::Event::Configured(lease)) => {
                info!("network: address {} (DHCP)", lease.address);
                // A server that renews a lease need not repeat everything.
                let kept = self.router.filter(|_| Some(lease.address) == before);
                self.router = lease.router.or(kept);
                set_address(&mut self.iface, Some((lease.address, self.router)));
                self.announce = true;
                self.waiting.wake_all();
                true
            }
            Some(dhcpv4::Event::Deconfigured) => {
                // The client also says so when it begins, without ever having had one.
                if self.address().is_some() {
                    warn!("network: the DHCP lease is gone");
                }
                set_address(&mut self.iface, None);
                false
            }
        }
    }

    /// Tells everybody our hardware address, if that is due: who has an old one for our address, or asks just
    /// now, would else have to wait for a time-out (RFC 2131, 4.4.1; RFC 5227, 2.3).
    fn announce(&mut self, now: Instant) {
        let (true, Some(address)) = (self.announce, self.address()) else { return };
        let Some(room) = self.nic.transmit(now) else { return };
        let HardwareAddress::Ethernet(mac) = self.iface.hardware_addr();
        let ethernet = EthernetRepr {
            src_addr: mac,
            dst_addr: EthernetAddress::BROADCAST,
            ethertype: EthernetProtocol::Arp,
        };
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: mac,
            source_protocol_addr: address.address(),
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: address.address(),
        };
        room.consume(ethernet.buffer_len().saturating_add(arp.buffer_len()), |buffer| {
            let mut frame = EthernetFrame::new_unchecked(buffer);
            ethernet.emit(&mut frame);
            arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        });
        self.announce = false;
    }

    fn address(&self) -> Option<Ipv4Cidr> {
        self.iface.ip_addrs().iter().find_map(|cidr| match cidr {
            IpCidr::Ipv4(v4) => Some(*v4),
            IpCidr::Ipv6(_) => None,
        })
    }

    fn wake_runner(&self) {
        if let Some(waker) = &self.runner {
            waker.wake_by_ref();
        }
    }
}

/// Frames of TCP on their way to the device.
struct Frames<'a, N>(&'a mut N);

impl<N: Nic> Output for Frames<'_, N> {
    fn send(&mut self, headers: &[u8], data: &[&[u8]; PIECES]) -> bool {
        let [first, second, third, fourth] = data;
        match second.is_empty() {
            true => self.0.send(&[headers, first]),
            false => self.0.send(&[headers, first, second, third, fourth]),
        }
    }
}

fn now() -> Instant {
    Instant::from_micros(i64::try_from(embassy_time::Instant::now().as_micros()).unwrap_or(i64::MAX))
}

fn micros(time: Instant) -> Micros {
    u64::try_from(time.total_micros()).unwrap_or(0)
}

fn after(time: Instant, delay: Duration) -> Instant {
    let delay = i64::try_from(delay.total_micros()).unwrap_or(i64::MAX);
    Instant::from_micros(time.total_micros().saturating_add(delay))
}

/// The address that an interface has on its link (RFC 4291, 2.5.6 and appendix A).
fn link_local(hardware: EthernetAddress) -> Ipv6Cidr {
    let [a, b, c, d, e, f] = hardware.0;
    let interface = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    Ipv6Cidr::new((0xfe80_u128 << 112 | u128::from(u64::from_be_bytes(interface))).into(), 64)
}

/// A device may report any six bytes; smoltcp insists on a unicast address. Anything else is replaced by a
/// locally administered address made from the seed.
fn usable_mac(mac: [u8; 6], seed: u64) -> EthernetAddress {
    let mac = EthernetAddress(mac);
    if mac.is_unicast() && mac.0 != [0; 6] {
        return mac;
    }
    let [a, b, c, d, e, ..] = seed.to_le_bytes();
    EthernetAddress([0x02, a, b, c, d, e])
}

fn dhcp_client() -> dhcpv4::Socket<'static> {
    let mut socket = dhcpv4::Socket::new();
    let mut retry = dhcpv4::RetryConfig::default();
    // The defaults (10 s, 5 s) make one lost frame cost a person ten seconds of waiting.
    retry.discover_timeout = Duration::from_secs(1);
    retry.initial_request_timeout = Duration::from_secs(1);
    retry.min_renew_timeout = Duration::from_secs(10);
    socket.set_retry_config(retry);
    socket
}

fn set_address(iface: &mut Interface, lease: Option<(Ipv4Cidr, Option<Ipv4Address>)>) {
    let usable = lease.filter(|(cidr, _)| {
        let address = cidr.address();
        !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast()
    });
    let wanted = usable.map(|(cidr, _)| IpCidr::Ipv4(cidr));
    if iface.ip_addrs().iter().find(|cidr| matches!(cidr, IpCidr::Ipv4(_))) != wanted.as_ref() {
        iface.update_ip_addrs(|addresses| {
            addresses.retain(|cidr| matches!(cidr, IpCidr::Ipv6(_)));
            // In front of all that routers give: it has its place.
            let _ = wanted.map(|cidr| addresses.insert(0, cidr));
        });
    }
    iface.routes_mut().remove_default_ipv4_route();
    if let Some(gateway) = usable.and_then(|(_, gateway)| gateway) {
        // Cannot fail: the only route was just removed.
        let _ = iface.routes_mut().add_default_ipv4_route(gateway);
    }
}
