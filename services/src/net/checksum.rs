//! The Internet checksum (RFC 1071).

/// Bytes that are added in one chain of carries.
const BLOCK: usize = 128;

/// The sum over pieces of a packet, one after the other, of any length each.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    /// In one's complement, and the byte order of this machine, as the words were read.
    words: u64,
    /// Whether the next byte is the second one of a 16-bit word.
    odd: bool,
}

impl Sum {
    /// The same, with `bytes` behind what is summed already.
    pub(super) fn add(mut self, bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        let (words, tail) = rest.as_chunks::<8>();
        let last = tail.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)).to_le();
        let sum = blocks.iter().fold(last, |sum, block| chain(sum, block.as_chunks().0));
        let sum = words.iter().fold(sum, |sum, word| chain(sum, core::slice::from_ref(word)));
        let sum = if self.odd { u64::from(fold(sum).swap_bytes()) } else { sum };
        self.words = plus(self.words, sum);
        self.odd ^= bytes.len() % 2 == 1;
        self
    }

    /// The same with a 16-bit word of a header behind it. What is before is of an even length.
    #[inline]
    pub(super) fn add_word(mut self, word: u16) -> Self {
        self.words = plus(self.words, u64::from(word.to_be()));
        self
    }

    /// The same with a header behind it, of whole 32-bit words. What is before is of an even length.
    #[inline]
    pub(super) fn add_header(mut self, bytes: &[u8]) -> Self {
        for word in bytes.as_chunks::<4>().0 {
            self.words = plus(self.words, u64::from(u32::from_ne_bytes(*word)));
        }
        self
    }

    /// The same, with `other` behind it. Both are of an even length.
    pub(super) fn and(self, other: Self) -> Self {
        Self { words: plus(self.words, other.words), ..other }
    }

    /// The bytes of the checksum field, if that was 0 when it was summed; and 0 twice if a packet is whole.
    pub(super) fn finish(self) -> [u8; 2] {
        (!fold(self.words)).to_ne_bytes()
    }
}

/// The one's complement sum of two: a carry is added at the other end (RFC 1071, 2B).
#[inline(always)]
fn plus(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    // At most `u64::MAX - 1` after a carry.
    sum.wrapping_add(carry.into())
}

/// The same of many, in a form of which compilers make one instruction for each.
#[inline(always)]
fn chain(mut sum: u64, words: &[[u8; 8]]) -> u64 {
    let mut carry = false;
    for word in words {
        let (partial, first) = sum.overflowing_add(u64::from_ne_bytes(*word));
        let (whole, second) = partial.overflowing_add(carry.into());
        (sum, carry) = (whole, first | second);
    }
    plus(sum, carry.into())
}

/// The one's complement sum of the 16-bit words in a sum of larger ones.
fn fold(sum: u64) -> u16 {
    // Each step adds the upper half to the lower one; after the last there is no carry left.
    let sum = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff).wrapping_add((sum >> 16) & 0xffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    (sum & 0xffff).wrapping_add(sum >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::wire::{Icmpv4Packet, Ipv4Packet};
    use std::vec::Vec;

    proptest! {
        /// What smoltcp says of the same bytes, wherever they are cut.
        #[test]
        fn any_bytes_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 4..500),
                                   cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5)) {
            let mut packet = bytes;
            Icmpv4Packet::new_unchecked(&mut packet).fill_checksum();
            let expected = [packet[2], packet[3]];
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(packet.len() + 1)).collect();
            cuts.extend([0, packet.len()]);
            cuts.sort_unstable();
            let sum = |packet: &[u8]| {
                let pieces = cuts.windows(2).map(|cut| &packet[cut[0]..cut[1]]);
                pieces.fold(Sum::default(), Sum::add).finish()
            };
            prop_assert_eq!(sum(&packet), [0, 0]);
            (packet[2], packet[3]) = (0, 0);
            prop_assert_eq!(sum(&packet), expected);
            let (header, rest) = packet.split_at(packet.len() / 4 * 4);
            prop_assert_eq!(Sum::default().add_header(header).add(rest).finish(), expected);
            let word = u16::from_be_bytes([packet[0], packet[1]]);
            prop_assert_eq!(Sum::default().add_word(word).add(&packet[2..]).finish(), expected);
        }
    }

    #[test]
    fn carries() {
        let mut packet = [0xff; 20];
        Ipv4Packet::new_unchecked(&mut packet[..]).set_header_len(20);
        Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
        assert_eq!(Sum::default().add(&packet).finish(), [0, 0]);
        assert_eq!(fold(u64::MAX), u16::MAX);
        assert_eq!(fold(1 << 48), 1);
        assert_eq!(
            [plus(u64::MAX, u64::MAX), plus(u64::MAX, 1), plus(u64::MAX - 1, 1)],
            [u64::MAX, 1, u64::MAX]
        );
        assert_eq!(chain(u64::MAX, &[[0xff; 8]; 3]), u64::MAX);
        assert_eq!(chain(1, &[[0xff; 8], [0; 8]]), 1);
    }
}
