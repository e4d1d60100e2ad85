//! Handshakes, of which nothing needs to be kept: our first number is a cookie (RFC 4987, 3.6).
//!
//! The acknowledgment of it proves that the peer is where it says. What its SYN said is kept in a table where
//! one handshake takes another's place; if that is lost, the connection does without it.

use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};

use siphasher::sip::SipHasher13;

use super::Micros;
use super::segment::{Abilities, Flow, Segment, Seq};

/// A cookie is good for this long, and as long again.
const EPOCH: Micros = 64_000_000;
/// Segment sizes that a cookie can tell.
const SIZES: [u16; 4] = [536, 1220, 1440, 1460];
/// The bits that tell it.
const SIZE_BITS: u32 = 3;

/// The keys of everything that a stranger must not foresee.
#[derive(Clone, Copy, Debug)]
pub struct Keys(pub u64, pub u64);

impl BuildHasher for Keys {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

/// Handshakes that may be under way.
pub struct Handshakes {
    keys: Keys,
    /// What SYNs said, by the hash of their flow.
    said: Vec<Option<(Flow, Abilities)>>,
}

impl Handshakes {
    /// With room for `room` of them, if there is memory.
    pub fn new(keys: Keys, room: usize) -> Self {
        let mut said = Vec::new();
        if said.try_reserve_exact(room).is_ok() {
            said.resize(room, None);
        }
        Self { keys, said }
    }

    /// Our first number, in answer to a SYN.
    pub fn begin(&mut self, syn: &Segment<'_>, now: Micros) -> Seq {
        if let Some(place) = self.place(&syn.flow) {
            *place = Some((syn.flow, syn.abilities));
        }
        let size = SIZES.iter().rposition(|size| *size <= syn.abilities.mss).unwrap_or(0) as u32;
        Seq(self.cookie(&syn.flow, syn.seq, now / EPOCH) & !SIZE_BITS | size)
    }

    /// What the peer is able to, if `segment` acknowledges our SYN.
    pub fn complete(&mut self, segment: &Segment<'_>, now: Micros) -> Option<Abilities> {
        let cookie = segment.ack?.plus(u32::MAX).0;
        let theirs = segment.seq.plus(u32::MAX);
        let epoch = now / EPOCH;
        let is_ours = |epoch| (self.cookie(&segment.flow, theirs, epoch) ^ cookie) & !SIZE_BITS == 0;
        if !is_ours(epoch) && !is_ours(epoch.wrapping_sub(1)) {
            return None;
        }
        // It stays: that this acknowledgment brings no data yet is the usual case.
        let said =
            self.place(&segment.flow).and_then(|place| place.filter(|(flow, _)| *flow == segment.flow));
        let mss = SIZES.get((cookie & SIZE_BITS) as usize).copied().unwrap_or(super::segment::DEFAULT_MSS);
        Some(said.map_or(Abilities { mss, scale: None, sack: false }, |(_, abilities)| abilities))
    }

    fn cookie(&self, flow: &Flow, theirs: Seq, epoch: u64) -> u32 {
        let mut hasher = self.keys.build_hasher();
        hasher.write_u64(self.keys.hash_one(flow));
        hasher.write_u32(theirs.0);
        hasher.write_u64(epoch);
        hasher.finish() as u32
    }

    fn place(&mut self, flow: &Flow) -> Option<&mut Option<(Flow, Abilities)>> {
        let index = self.keys.hash_one(flow).checked_rem(self.said.len() as u64)?;
        self.said.get_mut(index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;
    use smoltcp::wire::EthernetAddress;

    fn segment(port: u16, seq: u32, ack: Option<Seq>, abilities: Abilities) -> Segment<'static> {
        Segment {
            flow: Flow { local: IpAddr::from([10, 0, 2, 15]), remote: IpAddr::from([10, 0, 2, 2]), port },
            hardware: EthernetAddress([2; 6]),
            local_port: 80,
            seq: Seq(seq),
            ack,
            syn: ack.is_none(),
            fin: false,
            rst: false,
            window: 1000,
            abilities,
            sack: [None; 3],
            data: b"x",
        }
    }

    fn able(mss: u16) -> Abilities {
        Abilities { mss, scale: Some(7), sack: true }
    }

    /// The answer to our first number completes a handshake, once or again, until the cookie is stale.
    #[test]
    fn cookies_are_good_for_a_while() {
        let mut handshakes = Handshakes::new(Keys(1, 2), 8);
        for start in [0, 5, EPOCH - 1, 7 * EPOCH + 3] {
            let ours = handshakes.begin(&segment(5000, 77, None, able(1460)), start);
            let answer = segment(5000, 78, Some(ours.plus(1)), able(0));
            for later in [0, 1, EPOCH] {
                assert_eq!(handshakes.complete(&answer, start + later), Some(able(1460)), "{start} {later}");
            }
            assert_eq!(handshakes.complete(&answer, start + 2 * EPOCH), None);
        }
    }

    /// Nobody else's number does, nor one that was guessed.
    #[test]
    fn another_number_completes_nothing() {
        let mut handshakes = Handshakes::new(Keys(1, 2), 8);
        let ours = handshakes.begin(&segment(5000, 77, None, able(1460)), 5);
        let mut complete =
            |port, seq, ack: Seq| handshakes.complete(&segment(port, seq, Some(ack), able(0)), 5);
        assert_eq!(complete(5001, 78, ours.plus(1)), None);
        assert_eq!(complete(5000, 79, ours.plus(1)), None);
        // The size is told by two bits, of which each value is right; any other bit is part of the proof.
        for bit in 2..32 {
            assert_eq!(complete(5000, 78, Seq(ours.0 ^ 1 << bit).plus(1)), None, "bit {bit}");
        }
        let mut other = Handshakes::new(Keys(1, 3), 8);
        assert_eq!(other.complete(&segment(5000, 78, Some(ours.plus(1)), able(0)), 5), None);
    }

    /// Whose options were pushed out of the table, or found no room, has a connection without them.
    #[test]
    fn a_cookie_alone_is_enough() {
        for (mss, told) in [(100, 536), (536, 536), (1400, 1220), (1452, 1440), (1460, 1460), (9000, 1460)] {
            for room in [0, 1] {
                let mut handshakes = Handshakes::new(Keys(1, 2), room);
                let ours = handshakes.begin(&segment(5000, 77, None, able(mss)), 5);
                let _ = handshakes.begin(&segment(5001, 77, None, able(1000)), 5);
                let known = handshakes.complete(&segment(5000, 78, Some(ours.plus(1)), able(0)), 5);
                assert_eq!(known, Some(Abilities { mss: told, scale: None, sack: false }));
            }
        }
    }
}
