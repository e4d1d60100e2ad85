//! Paths: from a request target to a path on the disk and back, and text safe inside HTML.

use alloc::vec::Vec;
use core::fmt::Write;

use thiserror::Error;

use crate::text::NoMemory;

/// Why a target gives no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PathError {
    /// It is not one that can name a file: bad percent-encoding, NUL, a `..` in any disguise.
    #[error("not a path")]
    Invalid,
    /// There is no memory for the path.
    #[error("no memory")]
    NoMemory,
}

impl From<NoMemory> for PathError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// A decoded path: absolute, single slashes, no `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPath {
    /// As [`Files::lookup`](super::Files::lookup) wants it.
    pub path: Vec<u8>,
    /// Whether the target ended with a slash, which asks for a directory.
    pub slash: bool,
}

impl DiskPath {
    /// Decodes the path part of a target (without the query). `..` is refused and never resolved. To the disk
    /// a backslash is a letter like others.
    pub fn decode(target: &str) -> Result<Self, PathError> {
        let mut path = percent_decode(target.as_bytes())?;
        if !path.starts_with(b"/") || path.contains(&0) {
            return Err(PathError::Invalid);
        }
        let slash = path.ends_with(b"/") || path.ends_with(b"/.");
        let length = normalize(&mut path)?;
        path.truncate(length);
        Ok(Self { path, slash })
    }

    /// The path of `name` in this directory.
    pub fn child(&self, name: &[u8]) -> Result<Vec<u8>, NoMemory> {
        let mut path = empty(self.path.len().saturating_add(1).saturating_add(name.len()))?;
        path.extend_from_slice(&self.path);
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Ok(path)
    }
}

/// Moves the names of a path together, with one slash before each and without those that are `.`. Returns how
/// long it is then.
fn normalize(path: &mut [u8]) -> Result<usize, PathError> {
    // What is kept never reaches beyond what was read.
    let (mut kept, mut at) = (0_usize, 0_usize);
    while at < path.len() {
        // Behind the slash.
        at = at.saturating_add(1);
        let rest = path.get(at..).unwrap_or_default();
        let end = at.saturating_add(rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len()));
        match path.get(at..end).unwrap_or_default() {
            b"" | b"." => {}
            b".." => return Err(PathError::Invalid),
            name => {
                let length = name.len().saturating_add(1);
                path.copy_within(at.saturating_sub(1)..end, kept);
                kept = kept.saturating_add(length);
            }
        }
        at = end;
    }
    // The root is the slash that every path begins with.
    Ok(kept.max(1))
}

/// Room for `bytes` bytes.
fn empty(bytes: usize) -> Result<Vec<u8>, NoMemory> {
    let mut empty = Vec::new();
    empty.try_reserve_exact(bytes).map_err(|_| NoMemory)?;
    Ok(empty)
}

fn percent_decode(encoded: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut out = empty(encoded.len())?;
    let plain = encoded.iter().position(|&byte| byte == b'%').unwrap_or(encoded.len());
    let (plain, mut rest) = encoded.split_at_checked(plain).unwrap_or_default();
    out.extend_from_slice(plain);
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or(PathError::Invalid)?;
        let digit = |b: u8| char::from(b).to_digit(16).ok_or(PathError::Invalid);
        let mut value = 0_u32;
        for &b in digits {
            value = (value << 4) | digit(b)?;
        }
        out.push(u8::try_from(value).map_err(|_| PathError::Invalid)?);
        rest = tail;
    }
    Ok(out)
}

/// Appends `bytes` so that they are one path of a URL: everything but unreserved characters and `/` is
/// encoded. Errors of `out` are its own business.
pub fn percent_encode(bytes: &[u8], out: &mut impl Write) {
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                let _ = out.write_char(char::from(byte));
            }
            _ => {
                let digit =
                    |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0').to_ascii_uppercase();
                let _ = ['%', digit(byte >> 4), digit(byte & 15)].map(|c| out.write_char(c));
            }
        }
    }
}

/// Appends `bytes` as HTML text or as a quoted attribute value. What is not UTF-8 becomes U+FFFD. Errors of
/// `out` are its own business.
pub fn html_escape(bytes: &[u8], out: &mut impl Write) {
    for chunk in bytes.utf8_chunks() {
        let invalid = if chunk.invalid().is_empty() { "" } else { "\u{fffd}" };
        for c in chunk.valid().chars().chain(invalid.chars()) {
            let _ = match c {
                '&' => out.write_str("&amp;"),
                '<' => out.write_str("&lt;"),
                '>' => out.write_str("&gt;"),
                '"' => out.write_str("&quot;"),
                '\'' => out.write_str("&#39;"),
                c if c.is_control() => out.write_char('\u{fffd}'),
                c => out.write_char(c),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::{String, ToString};

    fn decoded(target: &str) -> Option<(Vec<u8>, bool)> {
        DiskPath::decode(target).ok().map(|p| (p.path, p.slash))
    }

    #[test]
    fn paths_decode() {
        for (target, path, slash) in [
            ("/", "/", true),
            ("//", "/", true),
            ("/a/b", "/a/b", false),
            ("//a///b/", "/a/b", true),
            ("/./a/.", "/a", true),
            ("/a%20b%2Fc", "/a b/c", false),
            ("/...", "/...", false),
            ("/..a/b..", "/..a/b..", false),
            ("/%c3%a9", "/é", false),
            ("/a\\b", "/a\\b", false),
            ("/..%5ca", "/..\\a", false),
            ("/%2e%2e%5c/..%5C..%5C", "/..\\/..\\..\\", false),
            ("/a\\..", "/a\\..", false),
            ("/.//./", "/", true),
            ("/a/./b/.c//", "/a/b/.c", true),
        ] {
            assert_eq!(decoded(target), Some((path.as_bytes().to_vec(), slash)), "{target}");
        }
    }

    #[test]
    fn traversal_and_bad_encoding_are_refused() {
        for target in [
            "",
            "a",
            "*",
            "/..",
            "/../a",
            "/a/..",
            "/a/../b",
            "/%2e%2e",
            "/%2E.",
            "/.%2e/a",
            "/..%2f",
            "/..%2fa",
            "/a%2f..",
            "/%00",
            "/a%00.txt",
            "/%",
            "/%2",
            "/%zz",
            "/%+1",
            "/a%2",
        ] {
            assert_eq!(decoded(target), None, "{target}");
        }
    }

    proptest! {
        #[test]
        fn encode_then_decode_gives_the_name_back(name in proptest::collection::vec(1_u8..=255, 1..40)) {
            prop_assume!(!name.contains(&b'/') && name != b"." && name != b"..");
            let mut url = "/".to_string();
            percent_encode(&name, &mut url);
            prop_assert!(url.bytes().all(|b| b.is_ascii_graphic()));
            let path = DiskPath::decode(&url).unwrap();
            prop_assert_eq!(&path.path[1..], &name[..]);
        }

        #[test]
        fn decoded_paths_are_normal(target in "/[a./%25\\\\]{0,30}") {
            if let Ok(path) = DiskPath::decode(&target) {
                let text = &path.path;
                prop_assert!(text.starts_with(b"/"));
                prop_assert!(text == b"/" || !text.ends_with(b"/"));
                prop_assert!(!text.windows(2).any(|w| w == b"//"));
                prop_assert!(!text.split(|&b| b == b'/').any(|p| p == b"." || p == b".."));
            }
        }

        #[test]
        fn escaped_text_has_no_markup(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut out = String::new();
            html_escape(&bytes, &mut out);
            prop_assert!(!out.contains(['<', '>', '"', '\'', '\0', '\n']));
        }
    }
}
