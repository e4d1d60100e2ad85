//! Frames that come before the interface has its address.
//!
//! A client may be waiting before the guest is up. What it sends while DHCP still asks for the address, its
//! ARP request or its SYN, is for nobody yet, and its next attempt may be seconds away (6 s with QEMU's user
//! networking). So what may be such an attempt is kept, and looked at again as soon as there is an address.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet};

/// Frames kept at most; the oldest give way.
const FRAMES: usize = 16;
/// Longest frame kept: ARP and a SYN with all its options are shorter.
const LONGEST: usize = 128;

/// The frames kept.
#[derive(Default)]
pub(super) struct Early(VecDeque<Vec<u8>>);

impl Early {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps a copy of `frame`, if it may be a client's attempt and there is memory.
    pub(super) fn keep(&mut self, frame: &[u8]) {
        let mut copy = Vec::new();
        if frame.len() > LONGEST
            || !may_be_a_client(frame)
            || copy.try_reserve_exact(frame.len()).is_err()
            || self.0.try_reserve(1).is_err()
        {
            return;
        }
        copy.extend_from_slice(frame);
        self.0.truncate(FRAMES.saturating_sub(1));
        self.0.push_front(copy);
    }

    /// The oldest frame.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        self.0.pop_back()
    }
}

/// Whether a frame is ARP, or TCP over IPv4.
fn may_be_a_client(frame: &[u8]) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return false };
    let is_tcp = |packet: Ipv4Packet<_>| packet.next_header() == IpProtocol::Tcp;
    match frame.ethertype() {
        EthernetProtocol::Arp => true,
        EthernetProtocol::Ipv4 => Ipv4Packet::new_checked(frame.payload()).is_ok_and(is_tcp),
        _ => false,
    }
}
