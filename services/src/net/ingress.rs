//! Frames on their way in: each goes to TCP, is answered here, or is smoltcp's.

use core::net::IpAddr;

use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpProtocol, Ipv4Address};

use super::frame::Packet;
use super::tcp::{Output, PIECES, Tcp};
use super::{icmp, lease, micros};

/// Takes a frame in, with room for one to answer it. Returns whether smoltcp was told.
pub(super) fn take_in(
    iface: &mut Interface,
    sockets: &mut SocketSet<'_>,
    tcp: &mut Tcp,
    now: Instant,
    frame: &[u8],
    room: impl TxToken,
    capabilities: DeviceCapabilities,
) -> bool {
    let HardwareAddress::Ethernet(own) = iface.hardware_addr();
    if let Some(packet) = Packet::parse(frame) {
        let is_icmp = matches!(packet.protocol, IpProtocol::Icmp | IpProtocol::Icmpv6);
        let is_ours = is_own(iface, packet.to) && is_unicast(packet.from);
        if packet.protocol == IpProtocol::Tcp {
            if is_ours {
                tcp.take(&packet, &mut Answer(Some(room)), micros(now));
            }
            return false;
        }
        if is_icmp && icmp::is_echo_request(&packet) {
            if is_ours {
                icmp::answer(&packet, own, room);
            }
            return false;
        }
        if let Some(origin) = (is_icmp && is_ours).then(|| icmp::too_big(&packet)).flatten() {
            tcp.too_big(&origin, micros(now));
        }
    }
    let complete = lease::with_mask(frame, mask(iface));
    let frame = complete.as_deref().unwrap_or(frame);
    iface.poll_ingress_single(now, &mut OneFrame { frame: Some((frame, room)), capabilities }, sockets);
    true
}

/// The subnet mask that a lease keeps which names none.
fn mask(iface: &Interface) -> Ipv4Address {
    let of = |cidr: &IpCidr| match cidr {
        IpCidr::Ipv4(cidr) => Some(cidr.netmask()),
        IpCidr::Ipv6(_) => None,
    };
    // One that is new has the whole link for its network: others are reached by their requests.
    iface.ip_addrs().iter().find_map(of).unwrap_or(Ipv4Address::new(255, 255, 255, 0))
}

/// Whether an address is one of the interface's.
fn is_own(iface: &Interface, address: IpAddr) -> bool {
    iface.ip_addrs().iter().any(|cidr| IpAddr::from(cidr.address()) == address)
}

/// Whether an address can be somebody's.
fn is_unicast(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_multicast() && !address.is_unspecified() && !address.is_loopback() && !is_broadcast
}

/// Room for the one answer to a frame.
struct Answer<T>(Option<T>);

impl<T: TxToken> Output for Answer<T> {
    fn send(&mut self, headers: &[u8], data: &[&[u8]; PIECES]) -> bool {
        let length = data.iter().fold(headers.len(), |sum, piece| sum.saturating_add(piece.len()));
        let Some(room) = self.0.take() else { return false };
        room.consume(length, |frame| {
            let bytes = headers.iter().chain(data.iter().copied().flatten());
            frame.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        });
        true
    }
}

/// A device that has received one frame, and has room for the answer to it.
struct OneFrame<'a, T> {
    frame: Option<(&'a [u8], T)>,
    capabilities: DeviceCapabilities,
}

struct Frame<'a>(&'a [u8]);

impl RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl<'a, T: TxToken> Device for OneFrame<'a, T> {
    type RxToken<'t>
        = Frame<'a>
    where
        Self: 't;
    type TxToken<'t>
        = T
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Frame<'a>, T)> {
        self.frame.take().map(|(frame, room)| (Frame(frame), room))
    }

    fn transmit(&mut self, _: Instant) -> Option<T> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}
