//! A frame on its way into smoltcp, one at a time, so that it can be looked at first.

use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::socket::Socket;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpEndpoint, IpProtocol, Ipv4Packet, TcpPacket};

/// Gives a frame to smoltcp, with room for its answer; but not one of [`is_repeated`].
pub(super) fn take_in(
    iface: &mut Interface,
    sockets: &mut SocketSet<'_>,
    now: Instant,
    frame: &[u8],
    room: impl TxToken,
    capabilities: DeviceCapabilities,
) {
    if !is_repeated(sockets, frame) {
        iface.poll_ingress_single(now, &mut OneFrame { frame: Some((frame, room)), capabilities }, sockets);
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

/// Whether a frame would begin a connection that is there already, as a repeated SYN does. smoltcp gives such
/// a segment to the first socket that takes it, and a listening one takes it as well as the connection's own;
/// that one would ignore it, whatever its state. So it is not shown to smoltcp at all: no segment of a known
/// connection reaches a listener.
fn is_repeated(sockets: &SocketSet<'_>, frame: &[u8]) -> bool {
    let Some((from, to)) = opening(frame) else { return false };
    sockets.iter().any(|(_, socket)| match socket {
        Socket::Tcp(socket) => (socket.remote_endpoint(), socket.local_endpoint()) == (Some(from), Some(to)),
        _ => false,
    })
}

/// Source and destination of a segment that a listening socket takes: one with neither ACK nor RST.
fn opening(frame: &[u8]) -> Option<(IpEndpoint, IpEndpoint)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if packet.next_header() != IpProtocol::Tcp {
        return None;
    }
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    let from = IpEndpoint::new(packet.src_addr().into(), segment.src_port());
    let to = IpEndpoint::new(packet.dst_addr().into(), segment.dst_port());
    (!segment.ack() && !segment.rst()).then_some((from, to))
}
