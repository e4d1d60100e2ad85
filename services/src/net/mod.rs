//! TCP/IP over one Ethernet device: smoltcp, driven by one task.
//!
//! [`Stack::run`] is the only place where packets move. It runs when the device has something (through the
//! waker it leaves with [`Nic::register_waker`]), when a socket was used, and when a timer of the stack is
//! due. smoltcp has no listen backlog: a SYN needs a socket in LISTEN. The pool keeps a few of those ready
//! and makes the next one as soon as one is taken, within the same poll, so a burst of connections costs no
//! resets and an idle stack little memory.

mod early;
mod ingress;
mod nic;
mod pool;
mod socket;

pub use nic::Nic;
pub use pool::PoolConfig;
pub use socket::{TcpError, TcpSocket};

use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use crate::wakers::Wakers;
use alloc::vec::Vec;
use early::Early;
use embassy_time::Timer;
use ingress::take_in;
use log::{info, warn};
use pool::Pool;
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::socket::dhcpv4;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr,
};

/// Frames taken from the device in one poll before other tasks get a turn.
const INGRESS_BUDGET: usize = 64;
/// Rounds over all sockets (one segment each) in one poll before other tasks get a turn.
const EGRESS_BUDGET: usize = 64;
/// When to look again if something waits to be sent and the device had no room: it may not interrupt for
/// that.
const DEVICE_FULL_RETRY: Duration = Duration::from_millis(1);

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
    /// The TCP port served and the sockets for it.
    pub pool: PoolConfig,
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
    pool: Pool,
    early: Early,
    link_up: bool,
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
        let hardware = HardwareAddress::Ethernet(usable_mac(nic.mac(), config.seed));
        let mut iface_config = smoltcp::iface::Config::new(hardware);
        iface_config.random_seed = config.seed;
        let mut iface = Interface::new(iface_config, &mut nic, now());
        let mut sockets = SocketSet::new(Vec::with_capacity(config.pool.sockets.saturating_add(1)));
        let dhcp = match config.addressing {
            Addressing::Dhcp => Some(sockets.add(dhcp_client())),
            Addressing::Static { address, gateway } => {
                set_address(&mut iface, Some((address, gateway)));
                None
            }
        };
        let link_up = nic.link_up();
        let pool = Pool::new(config.pool);
        let inner = Inner {
            nic,
            iface,
            sockets,
            dhcp,
            pool,
            early: Early::default(),
            link_up,
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

    /// The next connection to the port of the pool. Any number of tasks may wait here.
    pub async fn accept(&self) -> TcpSocket<'_, N> {
        let handle = poll_fn(|cx| self.inner.borrow_mut().accept(cx)).await;
        self.count(|stats| stats.accepted = stats.accepted.saturating_add(1));
        TcpSocket::new(self, handle)
    }

    /// Whether somebody is waiting for a free socket or a free task: idle connections should make room.
    pub fn crowded(&self) -> bool {
        self.inner.borrow().pool.crowded()
    }

    /// TCP sockets that exist now: listening, connected and closing.
    pub fn sockets(&self) -> usize {
        self.inner.borrow().pool.total()
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
        self.iface.poll_maintenance(now);
        self.announce(now);
        let more_in = self.ingress(now);
        let more_out = self.egress(now);
        let changed = self.update_dhcp();
        let linger = self.pool.maintain(&mut self.sockets, now);
        self.nic.flush();
        if more_in || more_out || changed {
            cx.waker().wake_by_ref();
            return;
        }
        self.nic.register_waker(cx.waker());
        let stack = match self.iface.poll_delay(now, &self.sockets) {
            Some(Duration::ZERO) => Some(DEVICE_FULL_RETRY),
            other => other,
        };
        if let Some(delay) = [stack, linger].into_iter().flatten().min() {
            let timer = pin!(Timer::after_micros(delay.total_micros()));
            if timer.poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Returns whether frames may be left.
    fn ingress(&mut self, now: Instant) -> bool {
        (0..INGRESS_BUDGET).all(|_| self.ingress_single(now))
    }

    /// Takes one frame in, if there is one: with an address, those that came before it first. A socket that a
    /// SYN took is replaced before the next frame is looked at.
    fn ingress_single(&mut self, now: Instant) -> bool {
        let has_address = self.address().is_some();
        let Self { nic, iface, sockets, pool, early, .. } = self;
        let capabilities = nic.capabilities();
        if has_address && !early.is_empty() {
            let Some(room) = nic.transmit(now) else { return false };
            let frame = early.take().unwrap_or_default();
            take_in(iface, sockets, now, &frame, room, capabilities);
        } else {
            let Some((frame, room)) = nic.receive(now) else { return false };
            frame.consume(|frame| {
                if !has_address {
                    early.keep(frame);
                }
                take_in(iface, sockets, now, frame, room, capabilities);
            });
        }
        pool.refill(sockets, now);
        true
    }

    /// Returns whether there may be more to send.
    fn egress(&mut self, now: Instant) -> bool {
        for _ in 0..EGRESS_BUDGET {
            if self.iface.poll_egress(now, &mut self.nic, &mut self.sockets) == PollResult::None {
                return false;
            }
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
        }
    }

    /// Returns whether there is a new address.
    fn update_dhcp(&mut self) -> bool {
        let Some(handle) = self.dhcp else { return false };
        match self.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            None => false,
            Some(dhcpv4::Event::Configured(lease)) => {
                info!("network: address {} (DHCP)", lease.address);
                set_address(&mut self.iface, Some((lease.address, lease.router)));
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
        self.iface.ip_addrs().first().map(|cidr| match cidr {
            IpCidr::Ipv4(v4) => *v4,
        })
    }

    fn accept(&mut self, cx: &mut Context<'_>) -> Poll<SocketHandle> {
        match self.pool.accept(&self.sockets) {
            Some(handle) => {
                self.wake_runner();
                Poll::Ready(handle)
            }
            None => {
                self.pool.wait(cx.waker());
                Poll::Pending
            }
        }
    }

    fn wake_runner(&self) {
        if let Some(waker) = &self.runner {
            waker.wake_by_ref();
        }
    }
}

fn now() -> Instant {
    Instant::from_micros(i64::try_from(embassy_time::Instant::now().as_micros()).unwrap_or(i64::MAX))
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
    if iface.ip_addrs().first() != wanted.as_ref() {
        iface.update_ip_addrs(|addresses| {
            addresses.clear();
            // Cannot fail: the list was just emptied.
            let _ = wanted.map(|cidr| addresses.push(cidr));
        });
    }
    iface.routes_mut().remove_default_ipv4_route();
    if let Some(gateway) = usable.and_then(|(_, gateway)| gateway) {
        // Cannot fail: the only route was just removed.
        let _ = iface.routes_mut().add_default_ipv4_route(gateway);
    }
}
