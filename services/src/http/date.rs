//! Dates of HTTP (RFC 9110 section 5.6.7). Own code: the crates that read all three forms want `std`, or
//! resolve the two-digit years of the oldest form without asking what year it is.

/// Days of a week that begins on the day of 1970-01-01.
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// 9999-12-31T23:59:59: HTTP's years have four digits.
const LAST: u64 = 253_402_300_799;

/// A moment taken apart; in UTC, from 1970 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Civil {
    /// Year, from 1970.
    pub year: u64,
    /// Month, from 1.
    pub month: u64,
    /// Day of the month, from 1.
    pub day: u64,
    /// Hour, up to 23.
    pub hour: u64,
    /// Minute, up to 59.
    pub minute: u64,
    /// Second, up to 59; a leap second is 60.
    pub second: u64,
}

#[allow(clippy::arithmetic_side_effects, reason = "years are within 1970 and 9999, all else within a year")]
impl Civil {
    /// What a clock shows `seconds` after 1970-01-01T00:00:00; later moments than the last are the last.
    pub fn at(seconds: u64) -> Self {
        let seconds = seconds.min(LAST);
        let (days, time) = (seconds / 86_400, seconds % 86_400);
        // Years that begin in March, so that a leap day is the last, in eras of 400 years.
        let shifted = days + 719_468;
        let (era, day) = (shifted / 146_097, shifted % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
        Self { year: era * 400 + year + carry, month, day, hour, minute, second }
    }

    /// Seconds since 1970-01-01T00:00:00; `None` if there is no such moment.
    pub fn seconds(self) -> Option<u64> {
        let Self { year, month, day, hour, minute, second } = self;
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let length = match month {
            2 => 28 + u64::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        let exists = (1970..=9999).contains(&year)
            && (1..=length).contains(&day)
            && hour < 24
            && minute < 60
            && second <= 60;
        if !exists {
            return None;
        }
        let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let of_year = (153 * month + 2) / 5 + day - 1;
        let days = year / 400 * 146_097 + year % 400 * 365 + year % 400 / 4 - year % 400 / 100 + of_year;
        Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
    }
}

/// An IMF-fixdate: always of one length.
pub type Fixdate = [u8; 29];

/// `seconds` since 1970 as an IMF-fixdate, e.g. `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn fixdate(seconds: u64) -> Fixdate {
    let civil = Civil::at(seconds);
    let mut date = *b"Ddd, DD Mmm YYYY HH:MM:SS GMT";
    let days = usize::try_from(seconds.min(LAST) / 86_400 % 7).unwrap_or(0);
    let months = usize::try_from(civil.month.saturating_sub(1)).unwrap_or(0);
    let mut put = |at: usize, text: &[u8]| {
        let rest = date.get_mut(at..).unwrap_or_default();
        rest.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    };
    put(0, WEEKDAYS.get(days).and_then(|day| day.as_bytes().get(..3)).unwrap_or_default());
    put(5, &digits(civil.day));
    put(8, MONTHS.get(months).map_or(&[], |month| month.as_bytes()));
    put(12, &digits(civil.year / 100));
    put(14, &digits(civil.year % 100));
    put(17, &digits(civil.hour));
    put(20, &digits(civil.minute));
    put(23, &digits(civil.second));
    date
}

/// The last two decimal digits.
pub fn digits(number: u64) -> [u8; 2] {
    let digit = |number: u64| u8::try_from(number % 10).unwrap_or(0) | b'0';
    [digit(number / 10), digit(number)]
}

/// Reads a date in any of the three forms, as seconds since 1970; `None` for anything else. The years of RFC
/// 850 have two digits: one that would be more than 50 years after `now` was in the century before. Without a
/// clock the century is that of 1970 to 2069.
pub fn parse(text: &str, now: Option<u64>) -> Option<u64> {
    let (weekday, rest) = match text.split_once(", ") {
        Some(parts) => parts,
        None => return asctime(text),
    };
    let civil = match weekday.len() {
        3 => imf_fixdate(rest)?,
        _ => rfc850(rest, now)?,
    };
    WEEKDAYS.iter().any(|day| *day == weekday || day.get(..3) == Some(weekday)).then_some(())?;
    civil.seconds()
}

/// `06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &str) -> Option<Civil> {
    let (date, time) = text.strip_suffix(" GMT")?.split_at_checked(12)?;
    let (day, rest) = date.split_once(' ')?;
    let (month_name, year) = rest.strip_suffix(' ')?.split_once(' ')?;
    clock(time, number(year, 4)?, month(month_name)?, number(day, 2)?)
}

/// `06-Nov-94 08:49:37 GMT`
fn rfc850(text: &str, now: Option<u64>) -> Option<Civil> {
    let (date, time) = text.strip_suffix(" GMT")?.split_once(' ')?;
    let (day, rest) = date.split_once('-')?;
    let (month_name, year) = rest.split_once('-')?;
    let (month, day, year) = (month(month_name)?, number(day, 2)?, number(year, 2)?);
    // The last moment of the hundred years in which it lies.
    let last = now.map_or(Civil { year: 2069, ..Civil::at(LAST) }, |now| {
        let now = Civil::at(now);
        Civil { year: now.year.saturating_add(50), ..now }
    });
    let century = last.year.checked_sub(last.year % 100)?;
    let date = clock(time, century.saturating_add(year), month, day)?;
    Some(if date > last { Civil { year: date.year.saturating_sub(100), ..date } } else { date })
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &str) -> Option<u64> {
    let (weekday, rest) = text.split_at_checked(4)?;
    let (month_name, rest) = rest.split_at_checked(4)?;
    let (day, rest) = rest.split_at_checked(3)?;
    let (time, year) = rest.split_once(' ')?;
    let weekday = weekday.strip_suffix(' ')?;
    WEEKDAYS.iter().any(|day| day.get(..3) == Some(weekday)).then_some(())?;
    let day = day.strip_suffix(' ')?;
    let day = day.strip_prefix(' ').map_or_else(|| number(day, 2), |day| number(day, 1))?;
    clock(time, number(year, 4)?, month(month_name.strip_suffix(' ')?)?, day)?.seconds()
}

/// `08:49:37` of a day.
fn clock(time: &str, year: u64, month: u64, day: u64) -> Option<Civil> {
    let (hour, rest) = time.split_once(':')?;
    let (minute, second) = rest.split_once(':')?;
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    Some(Civil { year, month, day, hour, minute, second })
}

fn month(name: &str) -> Option<u64> {
    let index = MONTHS.iter().position(|month| *month == name)?;
    u64::try_from(index).ok()?.checked_add(1)
}

fn number(text: &str, digits: usize) -> Option<u64> {
    let is_number = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;

    /// Expected values from `date -u -R -d @N`.
    const DATES: [(u64, &str); 7] = [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
        (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        (13_574_649_599, "Tue, 29 Feb 2400 23:59:59 GMT"),
        (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
    ];

    #[test]
    fn dates() {
        for (seconds, text) in DATES {
            assert_eq!(str::from_utf8(&fixdate(seconds)).unwrap(), text);
            assert_eq!(parse(text, None), Some(seconds), "{text}");
        }
        assert_eq!(fixdate(u64::MAX), fixdate(253_402_300_799));
    }

    #[test]
    fn the_other_two_forms() {
        // Expected values from `date -u -d TEXT +%s`.
        const NOW: Option<u64> = Some(1_795_000_000);
        for (text, now, seconds) in [
            ("Sunday, 06-Nov-94 08:49:37 GMT", NOW, 784_111_777),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None, 784_111_777),
            ("Sun Nov  6 08:49:37 1994", NOW, 784_111_777),
            ("Wed Feb 29 00:00:00 2012", NOW, 1_330_473_600),
            // It is 2026-11-18T11:06:40: what follows is 50 years ahead, and a second more.
            ("Wednesday, 18-Nov-76 11:06:40 GMT", NOW, 3_372_923_200),
            ("Thursday, 18-Nov-76 11:06:41 GMT", NOW, 217_163_201),
            ("Saturday, 01-Jan-77 00:00:00 GMT", NOW, 220_924_800),
            ("Tuesday, 01-Jan-69 00:00:00 GMT", None, 3_124_224_000),
            ("Thursday, 01-Jan-70 00:00:00 GMT", None, 0),
            // On the first day of 2080, 30 is 2130, and 31 was 2031.
            ("Sunday, 01-Jan-30 00:00:00 GMT", Some(3_471_292_800), 5_049_129_600),
            ("Wednesday, 01-Jan-31 00:00:00 GMT", Some(3_471_292_800), 1_924_992_000),
        ] {
            assert_eq!(parse(text, now), Some(seconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_date() {
        for text in [
            "",
            "now",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 EST",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun,  06 Nov 1994 08:49:37 GMT",
            "Son, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 nov 1994 08:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 29 Feb 1900 08:49:37 GMT",
            "Wed, 31 Dec 1969 23:59:59 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:00 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 06 Nov 1994 +8:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sunday, 6-Nov-94 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
            "Sun Nov  6 08:49:37 1994 GMT",
            "Sun Nov 06 08:49 1994",
            "784111777",
            "é, 06 Nov 1994 08:49:37 GMT",
            "Sun Nové 6 08:49:37 1994",
        ] {
            assert_eq!(parse(text, None), None, "{text}");
        }
    }

    proptest! {
        /// Against counting the days one by one.
        #[test]
        fn every_moment_comes_back(seconds in 0..=253_402_300_799_u64) {
            let text = String::from_utf8(fixdate(seconds).to_vec()).unwrap();
            prop_assert_eq!(parse(&text, None), Some(seconds));
            let (mut year, mut days) = (1970, seconds / 86_400);
            let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
            let length = |y| 365 + u64::from(leap(y));
            while days >= length(year) {
                days -= length(year);
                year += 1;
            }
            prop_assert_eq!(Civil::at(seconds).year, year);
        }

        #[test]
        fn any_text(text in "[A-Za-z0-9 ,:é-]{0,32}") {
            parse(&text, Some(0));
        }
    }
}
