//! Files that are there compressed as well: `x.html.br` and `x.html.gz` beside `x.html`, by what the client
//! accepts (RFC 9110 section 12.5.3).

/// How the bytes of a representation are coded; the best first, where the client has no preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Coding {
    Brotli,
    Gzip,
    Identity,
}

impl Coding {
    const ALL: [Self; 3] = [Self::Brotli, Self::Gzip, Self::Identity];

    /// As the value of `Content-Encoding`; `None` where there is none.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Brotli => Some("br"),
            Self::Gzip => Some("gzip"),
            Self::Identity => None,
        }
    }

    /// What is behind the name of the file that has it.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Gzip => ".gz",
            Self::Identity => "",
        }
    }
}

/// What a client accepts, in thousandths: 0 for what it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    brotli: u16,
    gzip: u16,
    identity: u16,
}

impl Accepted {
    /// Reads `Accept-Encoding`. What is no weight is as good as not there.
    pub(super) fn of(list: &[&str]) -> Self {
        let (mut brotli, mut gzip, mut identity, mut rest) = (None, None, None, None);
        for item in list.iter().flat_map(|part| part.split(',')) {
            let (name, parameter) = item.split_once(';').unwrap_or((item, "q=1"));
            let Some(weight) = weight(parameter) else { continue };
            let is = |known: &str| name.trim().eq_ignore_ascii_case(known);
            let place = match () {
                () if is("br") => &mut brotli,
                () if is("gzip") || is("x-gzip") => &mut gzip,
                () if is("identity") => &mut identity,
                () if is("*") => &mut rest,
                () => continue,
            };
            *place = Some(weight);
        }
        let coded = |weight: Option<u16>| weight.or(rest).unwrap_or(0);
        // It is accepted unless it is said not to be, but what is listed comes first.
        let identity = identity.or(rest.filter(|weight| *weight == 0)).unwrap_or(1);
        Self { brotli: coded(brotli), gzip: coded(gzip), identity }
    }

    /// Whether the plain file will do.
    pub(super) fn takes_plain(self) -> bool {
        self.identity > 0
    }

    /// What is accepted, the best first.
    pub(super) fn in_order(self) -> impl Iterator<Item = Coding> {
        let weight = move |coding: Coding| match coding {
            Coding::Brotli => self.brotli,
            Coding::Gzip => self.gzip,
            Coding::Identity => self.identity,
        };
        let mut order = Coding::ALL;
        order.sort_unstable_by_key(|coding| (core::cmp::Reverse(weight(*coding)), *coding));
        order.into_iter().filter(move |coding| weight(*coding) > 0)
    }
}

/// `q=0.5` in thousandths.
fn weight(parameter: &str) -> Option<u16> {
    let value = parameter.trim().strip_prefix(['q', 'Q'])?.trim_start().strip_prefix('=')?.trim_start();
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let valid = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let scale = [1000_u16, 100, 10, 1].get(fraction.len()).copied().filter(|_| valid)?;
    let fraction = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    match (whole, scale.checked_mul(fraction)?) {
        ("0", thousandths) => Some(thousandths),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Coding::{Brotli, Gzip, Identity};
    use super::*;
    use std::vec::Vec;

    #[test]
    fn preferences() {
        for (list, order) in [
            (&[][..], &[Identity][..]),
            (&[""], &[Identity]),
            (&["gzip"], &[Gzip, Identity]),
            (&["gzip, deflate, br, zstd"], &[Brotli, Gzip, Identity]),
            (&["GZIP", "br;q=0.5"], &[Gzip, Brotli, Identity]),
            (&["x-gzip"], &[Gzip, Identity]),
            (&["*"], &[Brotli, Gzip, Identity]),
            (&["*;q=0.1, br;q=0"], &[Gzip, Identity]),
            (&["identity;q=0"], &[]),
            (&["identity;q=0, gzip"], &[Gzip]),
            (&["*;q=0"], &[]),
            (&["*;q=0, identity"], &[Identity]),
            (&["br;q=0.4, gzip;q=0.6, identity;q=0.5"], &[Gzip, Identity, Brotli]),
            (&["br;q=0.001"], &[Brotli, Identity]),
            (&["br ; q = 1.000"], &[Brotli, Identity]),
            (&["br;q=1.001", "gzip;q=2"], &[Identity]),
            (&["br;q=0.1234", "gzip;level=9"], &[Identity]),
            (&["br;q=", "gzip;q=-1"], &[Identity]),
        ] {
            assert_eq!(Accepted::of(list).in_order().collect::<Vec<_>>(), order, "{list:?}");
        }
    }
}
