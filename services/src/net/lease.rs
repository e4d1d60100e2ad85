//! Leases that say less than smoltcp insists on.

use alloc::vec::Vec;

use smoltcp::wire::{
    DhcpPacket, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Address, Ipv4Packet, UdpPacket,
};

const ETHERNET: usize = 14;
/// Where the options of a DHCP message begin, behind its fixed part and the magic number.
const OPTIONS: usize = 240;
/// Options (RFC 2132): the subnet mask, the kind of message and its value for an acknowledgment.
const MASK: u8 = 1;
const KIND: u8 = 53;
const ACK: u8 = 5;
/// A server's and a client's port.
const PORTS: [u16; 2] = [67, 68];

/// If `frame` has the acknowledgment of a lease without a subnet mask, which servers leave out when they
/// renew one, the same with `mask`.
pub(super) fn with_mask(frame: &[u8], mask: Ipv4Address) -> Option<Vec<u8>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if ip.next_header() != IpProtocol::Udp || !ip.verify_checksum() {
        return None;
    }
    let udp = UdpPacket::new_checked(ip.payload()).ok()?;
    let is_intact = udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into());
    if [udp.src_port(), udp.dst_port()] != PORTS || !is_intact {
        return None;
    }
    let message = DhcpPacket::new_checked(udp.payload()).ok()?;
    let has = |kind| message.options().find(|option| option.kind == kind).map(|option| option.data);
    if has(KIND)? != [ACK] || has(MASK).is_some() {
        return None;
    }
    let header = usize::from(ip.header_len());
    let before = ETHERNET.checked_add(header)?.checked_add(8)?.checked_add(OPTIONS)?;
    let end = ETHERNET.checked_add(usize::from(ip.total_len()))?;
    let mut longer = Vec::new();
    longer.try_reserve_exact(frame.len().checked_add(6)?).ok()?;
    longer.extend_from_slice(frame.get(..before)?);
    longer.extend_from_slice(&[MASK, 4]);
    longer.extend_from_slice(&mask.octets());
    longer.extend_from_slice(frame.get(before..end)?);
    let total = ip.total_len().checked_add(6)?;
    let length = udp.len().checked_add(6)?;
    let mut ip = Ipv4Packet::new_unchecked(longer.get_mut(ETHERNET..)?);
    ip.set_total_len(total);
    ip.fill_checksum();
    let mut udp = UdpPacket::new_unchecked(ip.payload_mut());
    udp.set_len(length);
    // None: it was right before.
    udp.set_checksum(0);
    Some(longer)
}
