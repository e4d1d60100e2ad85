//! HTTP dates (RFC 9110 section 5.6.7), written only: a condition is compared as text.

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
fn digits(number: u64) -> [u8; 2] {
    let digit = |number: u64| u8::try_from(number % 10).unwrap_or(0) | b'0';
    [digit(number / 10), digit(number)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        }
        assert_eq!(fixdate(u64::MAX), fixdate(253_402_300_799));
    }

    proptest! {
        /// Against counting the days one by one.
        #[test]
        fn years(seconds in 0..=253_402_300_799_u64) {
            let (mut year, mut days) = (1970, seconds / 86_400);
            let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
            let length = |y| 365 + u64::from(leap(y));
            while days >= length(year) {
                days -= length(year);
                year += 1;
            }
            prop_assert_eq!(Civil::at(seconds).year, year);
        }

    }
}
