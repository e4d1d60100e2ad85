//! ICMP: what is answered with no more than the question, and what tells of a path (RFC 1191, RFC 8201).

use core::net::IpAddr;

use smoltcp::phy::{ChecksumCapabilities, TxToken};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Message, Icmpv4Packet,
    Icmpv6Message, Icmpv6Packet, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet,
};

use super::checksum::Sum;
use super::frame::Packet;

/// Hops that an answer may take.
const HOPS: u8 = 64;
/// The header of an ICMP message of the kinds here.
const HEADER: usize = 8;

/// A packet that a router could not pass on, because it was too long.
pub(super) struct TooBig {
    /// Our address, and our port.
    pub local: (IpAddr, u16),
    /// The receiver's.
    pub remote: (IpAddr, u16),
    /// Its sequence number.
    pub seq: u32,
    /// The longest packet that passes; 0 if the router does not say.
    pub mtu: u16,
}

/// Whether a packet is an echo request, of either version.
pub(super) fn is_echo_request(packet: &Packet<'_>) -> bool {
    match packet.protocol {
        IpProtocol::Icmp => Icmpv4Packet::new_checked(packet.payload)
            .is_ok_and(|message| message.msg_type() == Icmpv4Message::EchoRequest && message.msg_code() == 0),
        _ => Icmpv6Packet::new_checked(packet.payload)
            .is_ok_and(|message| message.msg_type() == Icmpv6Message::EchoRequest && message.msg_code() == 0),
    }
}

/// Whether the checksum of an ICMP message is right.
fn is_intact(packet: &Packet<'_>) -> bool {
    let sum = match packet.protocol {
        IpProtocol::Icmp => Sum::default(),
        _ => packet.pseudo_sum(),
    };
    sum.add(packet.payload).finish() == [0, 0]
}

/// Answers an echo request to where it came from (RFC 1122, 3.2.2.6; RFC 4443, 4.2).
pub(super) fn answer(packet: &Packet<'_>, own: EthernetAddress, room: impl TxToken) {
    if !is_intact(packet) {
        return;
    }
    let length = packet.payload.len();
    let (from, to) = (packet.to, packet.from);
    let header = IpRepr::new(from.into(), to.into(), packet.protocol, length, HOPS);
    let (ethertype, echo) = match packet.protocol {
        IpProtocol::Icmp => (EthernetProtocol::Ipv4, u8::from(Icmpv4Message::EchoReply)),
        _ => (EthernetProtocol::Ipv6, u8::from(Icmpv6Message::EchoReply)),
    };
    let ethernet = EthernetRepr { src_addr: own, dst_addr: packet.hardware, ethertype };
    let headers = ethernet.buffer_len().saturating_add(header.header_len());
    room.consume(headers.saturating_add(length), |bytes| {
        let mut frame = EthernetFrame::new_unchecked(bytes);
        ethernet.emit(&mut frame);
        let bytes = frame.payload_mut();
        header.emit(&mut *bytes, &ChecksumCapabilities::default());
        let Some(message) = bytes.get_mut(header.header_len()..) else { return };
        message.copy_from_slice(packet.payload);
        let [kind, _, sum_0, sum_1, ..] = &mut *message else { return };
        (*kind, *sum_0, *sum_1) = (echo, 0, 0);
        let sum = match packet.protocol {
            IpProtocol::Icmp => Sum::default(),
            // The sum of both addresses is the same either way.
            _ => packet.pseudo_sum(),
        };
        let sum = sum.add(message).finish();
        if let [_, _, sum_0, sum_1, ..] = message {
            [*sum_0, *sum_1] = sum;
        }
    });
}

/// The packet that a message says was too long, if it says so.
pub(super) fn too_big(packet: &Packet<'_>) -> Option<TooBig> {
    let origin = packet.payload.get(HEADER..)?;
    if !is_intact(packet) {
        return None;
    }
    let (from, to, header, mtu) = match packet.protocol {
        IpProtocol::Icmp => {
            let [kind, code, .., high, low] = *packet.payload.first_chunk::<HEADER>()?;
            // Destination unreachable, fragmentation needed.
            if (kind, code) != (3, 4) || origin.len() < 20 {
                return None;
            }
            let origin = Ipv4Packet::new_unchecked(origin);
            let is_tcp = origin.next_header() == IpProtocol::Tcp && origin.frag_offset() == 0;
            is_tcp.then(|| {
                let header = usize::from(origin.header_len());
                (origin.src_addr().into(), origin.dst_addr().into(), header, u16::from_be_bytes([high, low]))
            })?
        }
        _ => {
            let message = Icmpv6Packet::new_checked(packet.payload).ok()?;
            if message.msg_type() != Icmpv6Message::PktTooBig || origin.len() < 40 {
                return None;
            }
            let origin = Ipv6Packet::new_unchecked(origin);
            let mtu = u16::try_from(message.pkt_too_big_mtu()).unwrap_or(u16::MAX);
            let is_tcp = origin.next_header() == IpProtocol::Tcp;
            is_tcp.then(|| (origin.src_addr().into(), origin.dst_addr().into(), 40, mtu))?
        }
    };
    let [p0, p1, p2, p3, seq @ ..] = *origin.get(header..)?.first_chunk::<8>()?;
    Some(TooBig {
        local: (from, u16::from_be_bytes([p0, p1])),
        remote: (to, u16::from_be_bytes([p2, p3])),
        seq: u32::from_be_bytes(seq),
        mtu,
    })
}
