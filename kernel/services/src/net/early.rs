//! Frames that come before the interface has its address.
//!
//! A client may be waiting before the guest is up. What it sends while DHCP still asks for the address, its ARP request
//! or its SYN, is for nobody yet, and its next attempt may be seconds away (6 s with QEMU's user networking). So what
//! may be such an attempt is kept, and looked at again as soon as there is an address.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use smoltcp::phy::{Device, DeviceCapabilities, RxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet};

use super::Nic;

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

    fn keep(&mut self, frame: &[u8]) {
        if frame.len() <= LONGEST && may_be_a_client(frame) {
            self.0.truncate(FRAMES.saturating_sub(1));
            self.0.push_front(frame.to_vec());
        }
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

/// The device while frames come in. Without an address, what passes is also kept; with one, what was kept comes first.
pub(super) struct Ingress<'a, N> {
    pub(super) nic: &'a mut N,
    pub(super) early: &'a mut Early,
    pub(super) has_address: bool,
}

impl<N: Nic> Device for Ingress<'_, N> {
    type RxToken<'t>
        = Frame<'t, N::RxToken<'t>>
    where
        Self: 't;
    type TxToken<'t>
        = N::TxToken<'t>
    where
        Self: 't;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        if self.has_address && !self.early.is_empty() {
            let room = self.nic.transmit(now)?;
            return Some((Frame::Early(self.early.0.pop_back()?), room));
        }
        let (frame, room) = self.nic.receive(now)?;
        let early = (!self.has_address).then_some(&mut *self.early);
        Some((Frame::New(frame, early), room))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        self.nic.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.nic.capabilities()
    }
}

/// A frame that came in.
pub(super) enum Frame<'a, R> {
    Early(Vec<u8>),
    /// One of the device's, and where to keep a copy if that is wanted.
    New(R, Option<&'a mut Early>),
}

impl<R: RxToken> RxToken for Frame<'_, R> {
    fn consume<T, F: FnOnce(&[u8]) -> T>(self, f: F) -> T {
        match self {
            Self::Early(frame) => f(&frame),
            Self::New(frame, None) => frame.consume(f),
            Self::New(frame, Some(early)) => frame.consume(|frame| {
                early.keep(frame);
                f(frame)
            }),
        }
    }
}
