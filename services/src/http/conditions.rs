//! Conditional requests, RFC 9110 section 13.

use super::clock::Clock;
use super::{Request, date};

/// What tells one version of what is served from another. Its disk does not change, so both are strong.
pub(super) struct Validators<'a> {
    /// An entity tag, with its quotes.
    pub etag: Option<&'a str>,
    /// Seconds since 1970.
    pub modified: Option<u64>,
    /// Dates of RFC 850 depend on what time it is.
    pub clock: &'a Clock,
}

/// What the conditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// They hold, or there are none.
    Send,
    /// The client has this version: 304.
    NotModified,
    /// It is not the version that the client wants: 412.
    Failed,
}

impl Validators<'_> {
    /// Looks at the conditions of GET or HEAD in the order of section 13.2.2.
    pub(super) fn check(&self, request: &Request<'_>) -> Outcome {
        let has_same = |tag: Tag<'_>| self.etag == Some(tag.text) && !tag.is_weak;
        let has_like = |tag: Tag<'_>| self.etag == Some(tag.text);
        let wanted = match &request.if_match[..] {
            [] => self.not_after(request.if_unmodified_since).unwrap_or(true),
            tags => names(tags, has_same),
        };
        if !wanted {
            return Outcome::Failed;
        }
        let known = match &request.if_none_match[..] {
            [] => self.not_after(request.if_modified_since).unwrap_or(false),
            tags => names(tags, has_like),
        };
        if known { Outcome::NotModified } else { Outcome::Send }
    }

    /// Whether a range may be served: no `If-Range`, or one that names exactly this version.
    pub(super) fn allows_range(&self, request: &Request<'_>) -> bool {
        request.if_range.is_none_or(|known| {
            let same_date =
                || date::parse(known, self.clock.now()).is_some_and(|date| Some(date) == self.modified);
            self.etag == Some(known) || same_date()
        })
    }

    /// Whether this was last modified at a date or before. `None` where one of the two is not known: such a
    /// condition is ignored.
    fn not_after(&self, date: Option<&str>) -> Option<bool> {
        let (modified, date) = (self.modified?, date::parse(date?, self.clock.now())?);
        Some(modified <= date)
    }
}

/// Whether a list names what is there: by `*`, or by a tag.
fn names(list: &[&str], is_it: impl Fn(Tag<'_>) -> bool) -> bool {
    list.iter().any(|part| part.trim() == "*" || tags(part).any(&is_it))
}

struct Tag<'a> {
    is_weak: bool,
    /// With its quotes.
    text: &'a str,
}

/// The entity tags of a list, up to the first thing that is none. A tag may have commas in it.
fn tags(list: &str) -> impl Iterator<Item = Tag<'_>> {
    let mut rest = list;
    core::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let strong = rest.strip_prefix("W/").unwrap_or(rest);
        let is_weak = strong.len() < rest.len();
        let end = strong.strip_prefix('"')?.find('"')?.checked_add(2)?;
        let (text, behind) = strong.split_at_checked(end)?;
        rest = behind;
        Some(Tag { is_weak, text })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn lists_of_tags() {
        for (list, expected) in [
            ("", &[][..]),
            ("\"a\"", &["\"a\""]),
            ("W/\"a\" ,, \"b,c\",\"\"", &["W/\"a\"", "\"b,c\"", "\"\""]),
            ("\"a\", b, \"c\"", &["\"a\""]),
            ("w/\"a\"", &[]),
            ("\"a", &[]),
        ] {
            let found: Vec<_> = tags(list)
                .map(|tag| std::format!("{}{}", if tag.is_weak { "W/" } else { "" }, tag.text))
                .collect();
            assert_eq!(found, expected, "{list}");
        }
    }
}
