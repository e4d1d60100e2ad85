//! Names in folders that do not tell capital letters from small ones (`chattr +F`).
//!
//! Linux compares them by Unicode's full case folding, after decomposition. The folding is here, made of what
//! `core` knows of letters. Decomposition is not: where a name has `é` as one character, a request that has
//! it as `e` and an accent does not find it.

/// Whether two names are the same but for their case. Those that are no UTF-8 must be equal.
pub fn is_same(a: &[u8], b: &[u8]) -> bool {
    match (str::from_utf8(a), str::from_utf8(b)) {
        _ if a == b => true,
        (Ok(a), Ok(b)) => a.chars().flat_map(fold).eq(b.chars().flat_map(fold)),
        _ => false,
    }
}

/// The small letters of a character's capital ones: but for two characters this tells apart what case folding
/// tells apart.
fn fold(letter: char) -> impl Iterator<Item = char> {
    let known = if letter == 'ẞ' { 'ß' } else { letter };
    let small = known.to_uppercase().flat_map(char::to_lowercase);
    small.map(move |small| if letter == 'ı' { letter } else { small })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples of Unicode's `CaseFolding.txt`, and what is not the same.
    #[test]
    fn as_unicode_has_it() {
        for (a, b) in [
            ("README.txt", "readme.TXT"),
            ("GRÖSSE", "größe"),
            ("ẞ", "ss"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
            ("\u{212a}", "k"),
            ("ſ", "S"),
            ("\u{1fb3}", "αι"),
            ("İ", "i\u{307}"),
            ("ꭰ", "Ꭰ"),
            ("ﬃ", "ffi"),
            ("Ǆ", "ǅ"),
        ] {
            assert!(is_same(a.as_bytes(), b.as_bytes()), "{a} {b}");
        }
        for (a, b) in [("ı", "i"), ("ı", "I"), ("a", "ä"), ("aa", "a"), ("o", "ø"), ("", "a")] {
            assert!(!is_same(a.as_bytes(), b.as_bytes()), "{a} {b}");
        }
        assert!(is_same(b"\xffA", b"\xffA") && !is_same(b"\xffA", b"\xffa"));
    }
}
