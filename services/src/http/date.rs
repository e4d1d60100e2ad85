//! HTTP dates (RFC 9110 section 5.6.7), written only: a condition is compared as text.

use core::fmt::Write;

/// Appends `seconds` since 1970 as an IMF-fixdate, e.g. `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn http_date(seconds: u64, out: &mut impl Write) {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // The format has four digits for the year: 9999-12-31T23:59:59.
    let seconds = seconds.min(253_402_300_799);
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let name = |names: &[&'static str], index: u64| {
        usize::try_from(index).ok().and_then(|i| names.get(i).copied()).unwrap_or("")
    };
    let (weekday, month) = (name(&WEEKDAYS, days % 7), name(&MONTHS, month));
    let (h, m, s) = (time / 3600, time / 60 % 60, time % 60);
    let _ = write!(out, "{weekday}, {day:02} {month} {year:04} {h:02}:{m:02}:{s:02} GMT");
}

/// Year, month from 0 and day from 1 of a day counted from 1970-01-01.
#[allow(clippy::arithmetic_side_effects, reason = "http_date bounds days to the year 9999")]
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    #[test]
    fn dates() {
        // Expected values from `date -u -R -d @N`.
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            let mut out = String::new();
            http_date(seconds, &mut out);
            assert_eq!(out, text);
        }
    }
}
