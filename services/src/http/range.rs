//! The `Range` header, RFC 9110 section 14.

/// What part of a file of known length to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it: no range, or one that this server does not serve (several ranges, other units, bad syntax).
    Whole,
    /// `length` bytes from `start`; never empty and within the file.
    Part {
        /// Offset of the first byte.
        start: u64,
        /// Number of bytes.
        length: u64,
    },
    /// The range lies outside the file: 416.
    Unsatisfiable,
}

/// Applies a `Range` value to a file of `size` bytes.
pub fn select(header: Option<&str>, size: u64) -> Selection {
    header.and_then(parse).map_or(Selection::Whole, |range| range.of(size))
}

enum Range {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

/// One range in bytes, or `None` if the header is to be ignored.
fn parse(header: &str) -> Option<Range> {
    let (unit, spec) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = spec.trim().split_once('-')?;
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
    fn of(self, size: u64) -> Selection {
        let (start, end) = match self {
            Self::From(first) => (first, size),
            Self::Between(first, last) => (first, last.saturating_add(1).min(size)),
            Self::Last(count) => (size.saturating_sub(count), size),
        };
        match end.checked_sub(start) {
            None | Some(0) => Selection::Unsatisfiable,
            Some(length) => Selection::Part { start, length },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Selection::{Part, Unsatisfiable, Whole};
    use super::*;
    use std::format;

    #[test]
    fn ranges() {
        let part = |start, length| Part { start, length };
        for (header, size, expected) in [
            ("bytes=0-0", 10, part(0, 1)),
            ("bytes=0-", 10, part(0, 10)),
            ("bytes=9-", 10, part(9, 1)),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=2-5", 10, part(2, 4)),
            ("bytes=2-500", 10, part(2, 8)),
            ("bytes=-1", 10, part(9, 1)),
            ("bytes=-10", 10, part(0, 10)),
            ("bytes=-11", 10, part(0, 10)),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-1", 0, Unsatisfiable),
            ("BYTES=0-1", 10, part(0, 2)),
            ("bytes=5-2", 10, Whole),
            ("bytes=0-1,3-4", 10, Whole),
            ("bytes=", 10, Whole),
            ("bytes=-", 10, Whole),
            ("bytes=a-b", 10, Whole),
            ("bytes=+1-2", 10, Whole),
            ("bytes=1--2", 10, Whole),
            ("lines=0-1", 10, Whole),
            ("bytes=0-18446744073709551615", 10, part(0, 10)),
            ("bytes=0-99999999999999999999999", 10, part(0, 10)),
            ("bytes=99999999999999999999999-", 10, Unsatisfiable),
            ("bytes=-99999999999999999999999", 10, part(0, 10)),
        ] {
            assert_eq!(select(Some(header), size), expected, "{header} of {size}");
        }
        assert_eq!(select(None, 10), Whole);
    }

    #[test]
    fn every_range_of_a_small_file_matches_slicing() {
        let file: std::vec::Vec<u64> = (0..6).collect();
        for a in 0..9_usize {
            for b in a..9 {
                let expected = file.get(a..(b + 1).min(6)).filter(|s| !s.is_empty());
                let got = match select(Some(&format!("bytes={a}-{b}")), 6) {
                    Part { start, length } => file.get(start as usize..(start + length) as usize),
                    _ => None,
                };
                assert_eq!(got, expected, "{a}-{b}");
            }
        }
    }
}
