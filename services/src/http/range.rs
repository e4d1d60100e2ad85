//! The `Range` header, RFC 9110 section 14.

use super::few::Few;

/// Ranges in one request; who asks for more gets all of the file.
const MAX_RANGES: usize = 16;

/// Bytes of a file: never empty and within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset behind the last byte.
    pub end: u64,
}

/// Parts of a file that do not overlap, in the order in which they were asked for.
pub type Parts = Few<Part, MAX_RANGES>;

const NO_PARTS: Parts = Parts::new(Part { start: 0, end: 0 });

/// Applies a `Range` value to a file of `size` bytes. No parts are all of it: there is no range, or one that
/// this server does not serve (too many, or overlapping ranges, other units, bad syntax). `None` if all
/// ranges lie outside the file: 416.
pub fn select(header: Option<&str>, size: u64) -> Option<Parts> {
    header.and_then(|header| parts(header, size)).unwrap_or(Some(NO_PARTS))
}

/// What a list of ranges selects, or `None` if the header is to be ignored.
fn parts(header: &str, size: u64) -> Option<Option<Parts>> {
    let (unit, list) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut parts = NO_PARTS;
    let mut ranges = 0_usize;
    for spec in list.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        ranges = ranges.saturating_add(1);
        if let Some(part) = parse(spec)?.of(size) {
            // Who asks for the same bytes twice may mean ill, and else is served as well with all of them.
            let overlaps = |other: &Part| part.start < other.end && other.start < part.end;
            if parts.iter().any(overlaps) || !parts.push(part) {
                return None;
            }
        }
    }
    if ranges == 0 { None } else { Some(Some(parts).filter(|parts| !parts.is_empty())) }
}

enum Range {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

/// One range in bytes.
fn parse(spec: &str) -> Option<Range> {
    let (first, last) = spec.split_once('-')?;
    match (first, last) {
        ("", last) => Some(Range::Last(number(last)?)),
        (first, "") => Some(Range::From(number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Range::Between(first, last))
        }
    }
}

/// Digits only; a number too large for a file is as good as the largest.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

impl Range {
    /// The part of a file of `size` bytes, if there is any.
    fn of(self, size: u64) -> Option<Part> {
        let (start, end) = match self {
            Self::From(first) => (first, size),
            Self::Between(first, last) => (first, last.saturating_add(1).min(size)),
            Self::Last(count) => (size.saturating_sub(count), size),
        };
        (start < end).then_some(Part { start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    #[test]
    fn ranges() {
        const WHOLE: Option<Vec<(u64, u64)>> = Some(Vec::new());
        const UNSATISFIABLE: Option<Vec<(u64, u64)>> = None;
        let all = |parts: &[(u64, u64)]| Some(parts.to_vec());
        let part = |start, length| all(&[(start, start + length)]);
        let many = |n: u64| format!("bytes={}", (0..n).map(|n| format!("{n}-{n},")).collect::<String>());
        for (header, size, expected) in [
            ("bytes=0-0", 10, part(0, 1)),
            ("bytes=0-", 10, part(0, 10)),
            ("bytes=9-", 10, part(9, 1)),
            ("bytes=10-", 10, UNSATISFIABLE),
            ("bytes=2-5", 10, part(2, 4)),
            ("bytes=2-500", 10, part(2, 8)),
            ("bytes=-1", 10, part(9, 1)),
            ("bytes=-10", 10, part(0, 10)),
            ("bytes=-11", 10, part(0, 10)),
            ("bytes=-0", 10, UNSATISFIABLE),
            ("bytes=0-", 0, UNSATISFIABLE),
            ("bytes=-1", 0, UNSATISFIABLE),
            ("BYTES=0-1", 10, part(0, 2)),
            ("bytes=5-2", 10, WHOLE),
            ("bytes=0-1,3-4", 10, all(&[(0, 2), (3, 5)])),
            ("bytes= 3-4 ,, 0-1\t", 10, all(&[(3, 5), (0, 2)])),
            ("bytes=0-1,-2", 10, all(&[(0, 2), (8, 10)])),
            ("bytes=0-1,2-", 10, all(&[(0, 2), (2, 10)])),
            ("bytes=0-1,10-", 10, part(0, 2)),
            ("bytes=10-,11-12", 10, UNSATISFIABLE),
            ("bytes=0-5,5-9", 10, WHOLE),
            ("bytes=5-9,0-", 10, WHOLE),
            ("bytes=-3,-2", 10, WHOLE),
            ("bytes=0-1,x", 10, WHOLE),
            ("bytes=0-1 3-4", 10, WHOLE),
            ("bytes=,", 10, WHOLE),
            (&*many(16), 20, all(&[0; 16].iter().zip(0..).map(|(_, n)| (n, n + 1)).collect::<Vec<_>>())),
            (&*many(17), 20, WHOLE),
            ("bytes=", 10, WHOLE),
            ("bytes=-", 10, WHOLE),
            ("bytes=a-b", 10, WHOLE),
            ("bytes=+1-2", 10, WHOLE),
            ("bytes=1--2", 10, WHOLE),
            ("lines=0-1", 10, WHOLE),
            ("bytes=0-18446744073709551615", 10, part(0, 10)),
            ("bytes=0-99999999999999999999999", 10, part(0, 10)),
            ("bytes=99999999999999999999999-", 10, UNSATISFIABLE),
            ("bytes=-99999999999999999999999", 10, part(0, 10)),
        ] {
            let parts = select(Some(header), size);
            let parts = parts.map(|parts| parts.iter().map(|part| (part.start, part.end)).collect());
            assert_eq!(parts, expected, "{header} of {size}");
        }
        assert_eq!(select(None, 10), Some(NO_PARTS));
    }

    #[test]
    fn every_range_of_a_small_file_matches_slicing() {
        let file: Vec<u64> = (0..6).collect();
        for a in 0..9_usize {
            for b in a..9 {
                let expected = file.get(a..(b + 1).min(6)).filter(|s| !s.is_empty());
                let got = match select(Some(&format!("bytes={a}-{b}")), 6) {
                    Some(parts) => file.get(parts[0].start as usize..parts[0].end as usize),
                    _ => None,
                };
                assert_eq!(got, expected, "{a}-{b}");
            }
        }
    }
}
