//! The hashes by which folders are sorted: of `lib/ext2fs/dirhash.c` in e2fsprogs and `fs/ext4/hash.c` in
//! Linux.

use core::num::Wrapping as W;

type Word = W<u32>;

/// The kinds of hash, by their numbers in the root of a hash tree.
const LEGACY: u8 = 0;
const HALF_MD4: u8 = 1;
const TEA: u8 = 2;

/// What all folders of a file system have in common.
#[derive(Clone, Copy, Debug)]
pub struct Hasher {
    /// All zeros stand for MD4's own start.
    pub seed: [u32; 4],
    /// Whether bytes beyond ASCII count as positive numbers, as `char` did where the file system was made.
    pub is_unsigned: bool,
}

impl Hasher {
    /// The hash of a name; its lowest bit is 0. `None` for a kind that is not known.
    pub fn hash(&self, kind: u8, name: &[u8]) -> Option<u32> {
        let (kind, is_unsigned) =
            if kind > TEA { (kind.wrapping_sub(3), true) } else { (kind, self.is_unsigned) };
        let byte = |byte: u8| W(if is_unsigned { u32::from(byte) } else { byte.cast_signed() as u32 });
        let seed = match self.seed {
            [0, 0, 0, 0] => [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476],
            seed => seed,
        };
        let mut sum = seed.map(W);
        let hash = match kind {
            LEGACY => legacy(name, byte),
            HALF_MD4 => {
                pieces::<32>(name).for_each(|piece| half_md4(&mut sum, words(piece, byte)));
                sum[1]
            }
            TEA => {
                pieces::<16>(name).for_each(|piece| tea(&mut sum, words(piece, byte)));
                sum[0]
            }
            _ => return None,
        };
        // The largest means the end of a folder.
        Some(match hash.0 & !1 {
            0xffff_fffe => 0xffff_fffc,
            hash => hash,
        })
    }
}

/// The pieces of `N` bytes in which a name is hashed, each with all that is left from there on.
fn pieces<const N: usize>(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..name.len()).step_by(N).map(|at| name.get(at..).unwrap_or_default())
}

/// The words of a piece; what the name does not fill is filled with its length.
fn words<const N: usize>(rest: &[u8], byte: impl Fn(u8) -> Word) -> [Word; N] {
    let pad = W(rest.len() as u32) * W(0x0101_0101);
    let mut chunks = rest.chunks(4);
    [(); N]
        .map(|()| chunks.next().unwrap_or_default().iter().fold(pad, |word, &next| byte(next) + (word << 8)))
}

fn legacy(name: &[u8], byte: impl Fn(u8) -> Word) -> Word {
    let (mut last, mut before) = (W(0x12a3_fe2d), W(0x37ab_e8f9));
    for &next in name {
        let mut hash = before + (last ^ (byte(next) * W(7_152_373)));
        if hash.0 & 0x8000_0000 != 0 {
            hash -= W(0x7fff_ffff);
        }
        (before, last) = (last, hash);
    }
    last << 1
}

fn tea(sum: &mut [Word; 4], [a, b, c, d]: [Word; 4]) {
    let [mut x, mut y, ..] = *sum;
    let mut delta = W(0);
    for _ in 0..16 {
        delta += W(0x9e37_79b9);
        x += ((y << 4) + a) ^ (y + delta) ^ ((y >> 5) + b);
        y += ((x << 4) + c) ^ (x + delta) ^ ((x >> 5) + d);
    }
    sum[0] += x;
    sum[1] += y;
}

/// MD4 with half of its steps.
fn half_md4(sum: &mut [Word; 4], [i0, i1, i2, i3, i4, i5, i6, i7]: [Word; 8]) {
    let choose = |x: Word, y: Word, z: Word| z ^ (x & (y ^ z));
    let most = |x: Word, y: Word, z: Word| (x & y) + ((x ^ y) & z);
    let odd = |x: Word, y: Word, z: Word| x ^ y ^ z;
    let mut state = *sum;
    // After each step the words change places, so that the next one changes another.
    let mut round = |mix: fn(Word, Word, Word) -> Word, add: u32, turns: [u32; 4], input: [Word; 8]| {
        for (word, turn) in input.into_iter().zip(turns.into_iter().cycle()) {
            let [a, b, c, d] = state;
            let next = a + mix(b, c, d) + word + W(add);
            state = [d, W(next.0.rotate_left(turn)), b, c];
        }
    };
    round(choose, 0, [3, 7, 11, 19], [i0, i1, i2, i3, i4, i5, i6, i7]);
    round(most, 0x5a82_7999, [3, 5, 9, 13], [i1, i3, i5, i7, i0, i2, i4, i6]);
    round(odd, 0x6ed9_eba1, [3, 9, 11, 15], [i3, i7, i2, i6, i1, i5, i0, i4]);
    sum.iter_mut().zip(state).for_each(|(sum, word)| *sum += word);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["a", "exactly sixteen!", "a name of just thirty-two bytes.!", "größe ÿ"];
    const LONG: &str = "abcdefghijklmnopqrstuvwxyz-"; // nine times

    /// What `debugfs -R 'dx_hash -h KIND [-s d00dfeed-0123-4567-89ab-cdef00112233] NAME'` says.
    #[test]
    fn as_e2fsprogs_has_it() {
        let names: std::vec::Vec<_> = NAMES.map(Into::into).into_iter().chain([LONG.repeat(9)]).collect();
        let seeds = [[0; 4], [0xedfe_0dd0, 0x6745_2301, 0xefcd_ab89, 0x3322_1100]];
        #[rustfmt::skip]
        let table = [
            [[0xe74b53e2, 0x38a88f62, 0xe651869a, 0xd9996868, 0x65a135ac],
             [0xe74b53e2, 0x38a88f62, 0xe651869a, 0xd9996868, 0x65a135ac]],
            [[0xd5fa7d7a, 0xed6b609a, 0x15a44b98, 0xe45bedc8, 0xe0decce6],
             [0x720374fc, 0x7d660c9e, 0x0af04896, 0x366a4514, 0x5766bd4a]],
            [[0x6d0ea4c0, 0xce293266, 0x46d18412, 0xab39f8a0, 0xae088842],
             [0xc5c939e0, 0xafca7f46, 0xb8c601c6, 0x5d80252a, 0x25040720]],
            [[0xe74b53e2, 0x38a88f62, 0xe651869a, 0xa11b6a3c, 0x65a135ac],
             [0xe74b53e2, 0x38a88f62, 0xe651869a, 0xa11b6a3c, 0x65a135ac]],
            [[0xd5fa7d7a, 0xed6b609a, 0x15a44b98, 0x5ac933b0, 0xe0decce6],
             [0x720374fc, 0x7d660c9e, 0x0af04896, 0x3e16b0aa, 0x5766bd4a]],
            [[0x6d0ea4c0, 0xce293266, 0x46d18412, 0x6b85c13a, 0xae088842],
             [0xc5c939e0, 0xafca7f46, 0xb8c601c6, 0x1c60095a, 0x25040720]],
        ];
        for (kind, by_seed) in (0..).zip(table) {
            for (seed, hashes) in seeds.into_iter().zip(by_seed) {
                for (name, hash) in names.iter().zip(hashes) {
                    let of = |kind, is_unsigned| Hasher { seed, is_unsigned }.hash(kind, name.as_bytes());
                    assert_eq!(of(kind, false), Some(hash), "{kind} {name}");
                    // The super block may say the same for the whole file system.
                    assert!(kind < 3 || of(kind - 3, true) == Some(hash), "{kind} {name}");
                }
            }
        }
        assert_eq!(Hasher { seed: [0; 4], is_unsigned: false }.hash(6, b"a"), None);
    }
}
