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
