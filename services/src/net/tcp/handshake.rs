//! Handshakes, of which nothing is kept: our first number is a cookie (RFC 4987, 3.6).
//!
//! The acknowledgment of it proves that the peer is where it says, and tells what its SYN said: of its 32
//! bits eight are that, and the others are the proof.

use core::hash::{BuildHasher, Hasher};

use siphasher::sip::SipHasher13;

use super::Micros;
use super::segment::{Abilities, Flow, Segment, Seq};

/// A cookie is good for this long, and as long again.
const EPOCH: Micros = 64_000_000;
/// Segment sizes that a cookie can tell: of what a SYN says, the next smaller one is used.
const SIZES: [u16; 8] = [536, 1220, 1300, 1360, 1400, 1440, 1452, 1460];
/// The bits that tell what the SYN said: the size, selective acknowledgments, and the scale of windows.
const TOLD: u32 = 0xff;
const SIZE: u32 = 7;
const SACK: u32 = 8;
const SCALE: u32 = 4;
/// No scale: the largest is 14 (RFC 7323, 2.3).
const NO_SCALE: u8 = 15;

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
pub struct Handshakes(pub Keys);

impl Handshakes {
    /// Our first number, in answer to a SYN.
    pub fn begin(&self, syn: &Segment<'_>, now: Micros) -> Seq {
        Seq(self.cookie(&syn.flow, syn.seq, now / EPOCH) & !TOLD | tell(&syn.abilities))
    }

    /// What the peer is able to, if `segment` acknowledges our SYN.
    pub fn complete(&self, segment: &Segment<'_>, now: Micros) -> Option<Abilities> {
        let cookie = segment.ack?.plus(u32::MAX).0;
        let theirs = segment.seq.plus(u32::MAX);
        let epoch = now / EPOCH;
        let is_ours = |epoch| (self.cookie(&segment.flow, theirs, epoch) ^ cookie) & !TOLD == 0;
        (is_ours(epoch) || is_ours(epoch.wrapping_sub(1))).then(|| told(cookie))
    }

    fn cookie(&self, flow: &Flow, theirs: Seq, epoch: u64) -> u32 {
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(self.0.hash_one(flow));
        hasher.write_u32(theirs.0);
        hasher.write_u64(epoch);
        hasher.finish() as u32
    }
}

/// What a SYN said, as a cookie tells it.
fn tell(said: &Abilities) -> u32 {
    let size = SIZES.iter().rposition(|size| *size <= said.mss).unwrap_or(0) as u32;
    let scale = u32::from(said.scale.unwrap_or(NO_SCALE).min(NO_SCALE));
    size | if said.sack { SACK } else { 0 } | scale << SCALE
}

/// What the SYN said that a cookie is the answer to.
fn told(cookie: u32) -> Abilities {
    let mss = SIZES.get((cookie & SIZE) as usize).copied().unwrap_or(super::segment::DEFAULT_MSS);
    let scale = ((cookie & TOLD) >> SCALE) as u8;
    Abilities { mss, scale: (scale < NO_SCALE).then_some(scale), sack: cookie & SACK != 0 }
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
        let handshakes = Handshakes(Keys(1, 2));
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
        let handshakes = Handshakes(Keys(1, 2));
        let ours = handshakes.begin(&segment(5000, 77, None, able(1460)), 5);
        let complete = |port, seq, ack: Seq| handshakes.complete(&segment(port, seq, Some(ack), able(0)), 5);
        assert_eq!(complete(5001, 78, ours.plus(1)), None);
        assert_eq!(complete(5000, 79, ours.plus(1)), None);
        // What the SYN said is told by eight bits; any other bit is part of the proof.
        for bit in 8..32 {
            assert_eq!(complete(5000, 78, Seq(ours.0 ^ 1 << bit).plus(1)), None, "bit {bit}");
        }
        let other = Handshakes(Keys(1, 3));
        assert_eq!(other.complete(&segment(5000, 78, Some(ours.plus(1)), able(0)), 5), None);
    }

    /// What a SYN said is known when the handshake is complete, however many others began in between: a
    /// window that is taken for 128 times smaller than it is keeps a connection waiting all the time.
    #[test]
    fn a_cookie_tells_what_the_syn_said() {
        for (mss, size) in [(100, 536), (536, 536), (1419, 1400), (1452, 1452), (1460, 1460), (9000, 1460)] {
            for scale in [None, Some(0), Some(7), Some(14)] {
                for sack in [false, true] {
                    let handshakes = Handshakes(Keys(1, 2));
                    let ours = handshakes.begin(&segment(5000, 77, None, Abilities { mss, scale, sack }), 5);
                    for port in 0..1000 {
                        let _ = handshakes.begin(&segment(port, 77, None, able(1000)), 5);
                    }
                    let known = handshakes.complete(&segment(5000, 78, Some(ours.plus(1)), able(0)), 5);
                    assert_eq!(known, Some(Abilities { mss: size, scale, sack }));
                }
            }
        }
    }
}
