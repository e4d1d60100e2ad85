//! Segments: what is read of one that came in, and the headers of those that go out.

use core::net::IpAddr;

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
    TcpSeqNumber,
};

use crate::net::checksum::Sum;
use crate::net::frame::Packet;

/// A sequence number: it wraps, and is compared by its distance (RFC 9293, 3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seq(pub u32);

impl Seq {
    /// The one that is `count` later.
    pub fn plus(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// How much later it is than `other`; negative if it is earlier.
    pub fn since(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// Whether it is later than `other`.
    pub fn is_after(self, other: Self) -> bool {
        self.since(other) > 0
    }

    /// How many numbers there are from `other` to this one; 0 if it is earlier.
    pub fn from(self, other: Self) -> u32 {
        self.since(other).max(0).cast_unsigned()
    }

    /// The later of two.
    pub fn max(self, other: Self) -> Self {
        if other.is_after(self) { other } else { self }
    }

    /// The earlier of two.
    pub fn min(self, other: Self) -> Self {
        if other.is_after(self) { self } else { other }
    }
}

impl From<TcpSeqNumber> for Seq {
    fn from(number: TcpSeqNumber) -> Self {
        Self(number.0.cast_unsigned())
    }
}

/// A connection, as those who are not part of it see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Our address.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    /// The peer's port. Ours is the one that is served.
    pub port: u16,
}

/// What a peer can do, as its SYN says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// The longest segment it takes, in bytes of data.
    pub mss: u16,
    /// By how many bits its windows are to be shifted: `None` if it knows no scaling.
    pub scale: Option<u8>,
    /// Whether it sends selective acknowledgments (RFC 2018).
    pub sack: bool,
}

/// What is assumed of a peer that does not say (RFC 9293, 3.7.1).
pub const DEFAULT_MSS: u16 = 536;

/// A segment that came in.
pub struct Segment<'a> {
    /// From whom, and to which of our addresses.
    pub flow: Flow,
    /// The hardware address that sent it: the peer's, or that of the router in between.
    pub hardware: EthernetAddress,
    /// The port that it is for.
    pub local_port: u16,
    /// Its first sequence number.
    pub seq: Seq,
    /// The acknowledged sequence number, if it has one.
    pub ack: Option<Seq>,
    /// Control bits.
    pub syn: bool,
    /// Control bits.
    pub fin: bool,
    /// Control bits.
    pub rst: bool,
    /// The window, as it stands there.
    pub window: u16,
    /// What its SYN says of the peer.
    pub abilities: Abilities,
    /// Selective acknowledgments.
    pub sack: [Option<(Seq, Seq)>; 3],
    /// The data.
    pub data: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a packet: `None` if it is damaged.
    pub fn parse(packet: &Packet<'a>) -> Option<Self> {
        let segment = TcpPacket::new_checked(packet.payload).ok()?;
        if packet.pseudo_sum().add(packet.payload).finish() != [0, 0] || segment.src_port() == 0 {
            return None;
        }
        let options = segment.options_summary().ok()?;
        let abilities = Abilities {
            mss: options.max_segment_size.unwrap_or(DEFAULT_MSS),
            // More than 14 counts as 14 (RFC 7323, 2.3).
            scale: options.window_scale.map(|scale| scale.min(14)),
            sack: options.sack_permitted,
        };
        Some(Self {
            flow: Flow { local: packet.to, remote: packet.from, port: segment.src_port() },
            hardware: packet.hardware,
            local_port: segment.dst_port(),
            seq: segment.seq_number().into(),
            ack: segment.ack().then(|| segment.ack_number().into()),
            syn: segment.syn(),
            fin: segment.fin(),
            rst: segment.rst(),
            window: segment.window_len(),
            abilities,
            sack: options.sack_ranges.map(|range| range.map(|(from, to)| (Seq(from), Seq(to)))),
            data: segment.payload(),
        })
    }

    /// How many sequence numbers it takes.
    pub fn length(&self) -> u32 {
        (self.data.len() as u32).wrapping_add(u32::from(self.fin)).wrapping_add(u32::from(self.syn))
    }
}

/// What differs from one segment of a connection to the next.
#[derive(Clone, Copy, Default)]
pub struct Fields<'a> {
    /// Its first sequence number.
    pub seq: Seq,
    /// What is acknowledged, if anything is.
    pub ack: Option<Seq>,
    /// The window, as it is to stand there.
    pub window: u16,
    /// Control bits.
    pub syn: bool,
    /// Control bits.
    pub fin: bool,
    /// Control bits.
    pub rst: bool,
    /// Control bits.
    pub push: bool,
    /// Options, in whole words.
    pub options: &'a [u8],
    /// How many bytes of data follow.
    pub length: usize,
    /// Their sum.
    pub sum: Sum,
}

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// A TCP header without options.
pub const TCP: usize = 20;
/// Where the length of the header and the control bits are: FIN, SYN, RST, PSH, ACK, from the lowest on.
const LENGTH_AND_BITS: core::ops::Range<usize> = 12..14;
/// The most options that we send: a SYN's.
const OPTIONS: usize = 12;
/// Room for all headers.
pub const HEADERS: usize = ETHERNET + IPV6 + TCP + OPTIONS;

/// The headers of a connection's segments.
pub struct Headers {
    bytes: [u8; HEADERS],
    /// Where the TCP header is.
    tcp: usize,
    /// The sum of an IPv4 header, and that of the pseudo header, without the length.
    ip: Sum,
    pseudo: Sum,
}

impl Headers {
    /// For segments from our port `port` to the peer of `flow`.
    pub fn new(flow: &Flow, port: u16, from: EthernetAddress, to: EthernetAddress) -> Self {
        let mut bytes = [0; HEADERS];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        frame.set_src_addr(from);
        frame.set_dst_addr(to);
        let tcp = match (flow.local, flow.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                frame.set_ethertype(EthernetProtocol::Ipv4);
                let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
                packet.set_version(4);
                packet.set_header_len(IPV4 as u8);
                packet.set_dont_frag(true);
                packet.set_hop_limit(64);
                packet.set_next_header(IpProtocol::Tcp);
                packet.set_src_addr(local);
                packet.set_dst_addr(remote);
                ETHERNET.saturating_add(IPV4)
            }
            (local, remote) => {
                frame.set_ethertype(EthernetProtocol::Ipv6);
                let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
                packet.set_version(6);
                packet.set_hop_limit(64);
                packet.set_next_header(IpProtocol::Tcp);
                let v6 = |address| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped(),
                    IpAddr::V6(address) => address,
                };
                packet.set_src_addr(v6(local));
                packet.set_dst_addr(v6(remote));
                ETHERNET.saturating_add(IPV6)
            }
        };
        let pseudo = crate::net::frame::pseudo_sum(flow.local, flow.remote, IpProtocol::Tcp);
        let ip = Sum::default().add_header(bytes.get(ETHERNET..tcp).unwrap_or_default());
        let mut headers = Self { bytes, tcp, ip, pseudo };
        if let Some(header) = headers.bytes.get_mut(tcp..) {
            let mut segment = TcpPacket::new_unchecked(header);
            segment.set_src_port(port);
            segment.set_dst_port(flow.port);
        }
        headers
    }

    /// Where segments go.
    pub fn hardware(&self) -> EthernetAddress {
        EthernetFrame::new_unchecked(&self.bytes).dst_addr()
    }

    /// Segments go to this hardware address from now on.
    pub fn set_hardware(&mut self, to: EthernetAddress) {
        EthernetFrame::new_unchecked(&mut self.bytes).set_dst_addr(to);
    }

    /// How many bytes all headers of a segment without options have, without that of Ethernet.
    pub fn overhead(&self) -> u16 {
        self.tcp.saturating_sub(ETHERNET).saturating_add(TCP) as u16
    }

    /// The headers of one segment.
    pub fn write(&mut self, fields: &Fields<'_>) -> &[u8] {
        let header = TCP.saturating_add(fields.options.len());
        let length = header.saturating_add(fields.length);
        let Some((lower, tcp)) = self.bytes.split_at_mut_checked(self.tcp) else { return &[] };
        let Some(ip) = lower.get_mut(ETHERNET..) else { return &[] };
        if ip.len() == IPV4 {
            let mut packet = Ipv4Packet::new_unchecked(&mut *ip);
            let total = length.saturating_add(IPV4) as u16;
            packet.set_total_len(total);
            packet.set_checksum(u16::from_be_bytes(self.ip.add_word(total).finish()));
        } else {
            Ipv6Packet::new_unchecked(ip).set_payload_len(length as u16);
        }
        let mut segment = TcpPacket::new_unchecked(&mut *tcp);
        segment.set_seq_number(TcpSeqNumber(fields.seq.0.cast_signed()));
        segment.set_ack_number(TcpSeqNumber(fields.ack.unwrap_or_default().0.cast_signed()));
        segment.set_window_len(fields.window);
        segment.set_checksum(0);
        let Some(tcp) = tcp.get_mut(..header) else { return &[] };
        // All at once: length in words, and the control bits.
        if let Some([length, bits]) = tcp.get_mut(LENGTH_AND_BITS) {
            *length = (header as u8) << 2;
            let set = [fields.fin, fields.syn, fields.rst, fields.push, fields.ack.is_some()];
            *bits = set.into_iter().rev().fold(0, |bits, set| bits << 1 | u8::from(set));
        }
        if let Some(options) = tcp.get_mut(TCP..) {
            options.copy_from_slice(fields.options);
        }
        let sum = self.pseudo.add_word(length as u16).add_header(tcp).and(fields.sum).finish();
        TcpPacket::new_unchecked(tcp).set_checksum(u16::from_be_bytes(sum));
        self.bytes.get(..self.tcp.saturating_add(header)).unwrap_or_default()
    }
}
