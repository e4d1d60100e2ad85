//! Frames as they come in: which packet is in one, and answers that need to know nothing else.

use core::net::IpAddr;

use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};

use super::checksum::Sum;

/// A whole packet in a frame: no fragment, and with no options or extension headers in between.
pub(super) struct Packet<'a> {
    /// The hardware address that sent the frame.
    pub hardware: EthernetAddress,
    /// The sender.
    pub from: IpAddr,
    /// The receiver.
    pub to: IpAddr,
    /// What the payload is.
    pub protocol: IpProtocol,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The packet in `frame`, if there is one.
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        let hardware = frame.src_addr();
        match frame.ethertype() {
            EthernetProtocol::Ipv4 => {
                let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
                let is_whole = !packet.more_frags() && packet.frag_offset() == 0 && packet.version() == 4;
                let header = frame.payload().get(..usize::from(packet.header_len()))?;
                (is_whole && Sum::default().add_header(header).finish() == [0, 0]).then_some(Self {
                    hardware,
                    from: packet.src_addr().into(),
                    to: packet.dst_addr().into(),
                    protocol: packet.next_header(),
                    payload: packet.payload(),
                })
            }
            EthernetProtocol::Ipv6 => {
                let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
                (packet.version() == 6).then_some(Self {
                    hardware,
                    from: packet.src_addr().into(),
                    to: packet.dst_addr().into(),
                    protocol: packet.next_header(),
                    payload: packet.payload(),
                })
            }
            _ => None,
        }
    }

    /// The sum of the pseudo header in front of the payload.
    pub(super) fn pseudo_sum(&self) -> Sum {
        pseudo_sum(self.from, self.to, self.protocol).add_word(self.payload.len() as u16)
    }
}

/// The sum of a pseudo header without the length (RFC 9293, 3.1; RFC 8200, 8.1).
pub(super) fn pseudo_sum(from: IpAddr, to: IpAddr, protocol: IpProtocol) -> Sum {
    let sum = Sum::default().add_word(u8::from(protocol).into());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => sum.add_header(&from.octets()).add_header(&to.octets()),
        (IpAddr::V6(from), IpAddr::V6(to)) => sum.add_header(&from.octets()).add_header(&to.octets()),
        _ => sum,
    }
}
