//! Runs of bits in a flat bitmap.

/// The words that `start..end` touches: index and mask of the bits inside.
fn masks(start: usize, end: usize) -> impl Iterator<Item = (usize, u64)> {
    (start / 64..end.div_ceil(64)).map(move |word| {
        let low = if word == start / 64 { u64::MAX << (start % 64) } else { u64::MAX };
        let high = if word == end / 64 { !(u64::MAX << (end % 64)) } else { u64::MAX };
        (word, low & high)
    })
}

/// The first bit in `start..end` that is `wanted`, or `end`.
pub(crate) fn find(words: &[u64], start: usize, end: usize, wanted: bool) -> usize {
    let flip = if wanted { 0 } else { u64::MAX };
    masks(start, end)
        .find_map(|(word, mask)| {
            let hit = (words[word] ^ flip) & mask;
            (hit != 0).then(|| word * 64 + hit.trailing_zeros() as usize)
        })
        .unwrap_or(end)
}

/// Sets `start..end`.
pub(crate) fn set(words: &mut [u64], start: usize, end: usize) {
    masks(start, end).for_each(|(word, mask)| words[word] |= mask);
}

/// Clears `start..end`.
pub(crate) fn clear(words: &mut [u64], start: usize, end: usize) {
    masks(start, end).for_each(|(word, mask)| words[word] &= !mask);
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    /// Against single bits, for runs that begin and end around the edges of words.
    #[test]
    fn runs_are_those_of_single_bits() {
        let words = [0x8000_0000_ffff_0001, 0x0123_4567_89ab_cdef, 0x7fff_ffff_0000_fffe];
        let bits =
            |words: [u64; 3]| (0..192).map(|at| words[at / 64] >> (at % 64) & 1 != 0).collect::<Vec<_>>();
        let old = bits(words);
        for start in [0, 1, 16, 62, 63, 64, 65, 127, 128, 129, 191, 192] {
            for end in start..=192 {
                let [mut set, mut clear] = [words; 2];
                super::set(&mut set, start, end);
                super::clear(&mut clear, start, end);
                let [mut expected_set, mut expected_clear] = [old.clone(), old.clone()];
                expected_set[start..end].fill(true);
                expected_clear[start..end].fill(false);
                assert_eq!((bits(set), bits(clear)), (expected_set, expected_clear), "{start}..{end}");
                for wanted in [false, true] {
                    let found = (start..end).find(|at| old[*at] == wanted).unwrap_or(end);
                    assert_eq!(super::find(&words, start, end, wanted), found, "{start}..{end}");
                }
            }
        }
    }
}
