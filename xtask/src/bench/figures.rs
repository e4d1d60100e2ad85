//! Figures: the samples that guests print, and what they come to.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// A share of all error, on either side, that a 95 % interval may leave out.
const TAIL: f64 = 0.025;

/// What was measured, and in which guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Which guest, on which machine.
    pub guest: String,
    /// What it did.
    pub workload: String,
    /// Among how many live mappings, with how many requests in flight, or in batches of how many.
    pub depth: Option<u64>,
    /// What was measured of it.
    pub metric: String,
    pub unit: String,
}

impl Key {
    /// Whether it was counted, not timed.
    pub fn is_counted(&self) -> bool {
        self.guest.ends_with(COUNTED)
    }

    /// Its guest, and what was measured there.
    pub fn counted(&self) -> String {
        format!("{}, {}: {}", plain(&self.guest), self.workload, self.metric)
    }
}

/// Ends the name of a guest that counts.
pub const COUNTED: &str = ", counted";

/// A guest's name without what says that it was counting, on a device that sleeps.
pub fn plain(guest: &str) -> &str {
    guest.strip_suffix(COUNTED).map_or(guest, |guest| guest.trim_end_matches(", sleeping"))
}

/// Several rounds of one measurement in short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub median: f64,
    /// The interval that holds the median with at least 95 %.
    pub low: f64,
    pub high: f64,
    pub rounds: u64,
}

/// One figure of a benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub key: Key,
    pub value: Estimate,
}

impl Estimate {
    /// The median of `rounds`, with the interval that order statistics give whatever the distribution. Fewer
    /// than six rounds cannot give 95 %: then it is the whole range, which for five holds the median with
    /// 93.75 %.
    ///
    /// # Panics
    /// If there are no rounds.
    pub fn of(rounds: &[f64]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        // The chance that fewer than `outside + 1` of the rounds are below the median.
        let (mut outside, mut chance) = (0, 0.5_f64.powi(sorted.len() as i32));
        let mut tail = chance;
        loop {
            chance *= (sorted.len() - outside) as f64 / (outside + 1) as f64;
            tail += chance;
            if tail > TAIL {
                break;
            }
            outside += 1;
        }
        Self {
            median: (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0,
            low: sorted[outside],
            high: sorted[last - outside],
            rounds: sorted.len() as u64,
        }
    }

    /// The same in another unit, of which one is `1 / factor` of this.
    pub fn scaled(self, factor: f64) -> Self {
        let [median, low, high] = [self.median, self.low, self.high].map(|value| value * factor);
        Self { median, low, high, ..self }
    }

    /// Width of the interval.
    pub fn spread(&self) -> f64 {
        self.high - self.low
    }
}

/// The ratio `over / under` of two measurements that were made in turns. Round is compared with round, so
/// that what slows the machine down for a while cancels out; where one has more rounds, several in a row, by
/// their median, make one.
pub fn ratio(over: &[f64], under: &[f64]) -> Option<Estimate> {
    let count = over.len().min(under.len());
    let group = |rounds: &[f64], number: usize| {
        let part = &rounds[rounds.len() * number / count..rounds.len() * (number + 1) / count];
        Estimate::of(part).median
    };
    let ratios: Vec<f64> = (0..count).map(|number| group(over, number) / group(under, number)).collect();
    (count > 0).then(|| Estimate::of(&ratios))
}

/// Every round of every measurement, measurements in the order they first came in.
#[derive(Debug, Default)]
pub struct Samples(Vec<(Key, Vec<f64>)>);

impl Samples {
    /// Adds the next round of `key`.
    pub fn add(&mut self, key: Key, value: f64) {
        match self.0.iter_mut().find(|(other, _)| *other == key) {
            Some((_, rounds)) => rounds.push(value),
            None => self.0.push((key, vec![value])),
        }
    }

    /// The rounds of one measurement, none if there are none.
    pub fn get(&self, guest: &str, workload: &str, depth: u64, metric: &str) -> &[f64] {
        let found = self.0.iter().find(|(key, _)| {
            (key.guest.as_str(), key.workload.as_str(), key.depth, key.metric.as_str())
                == (guest, workload, Some(depth), metric)
        });
        found.map_or(&[], |(_, rounds)| rounds)
    }

    /// What one measurement comes to.
    pub fn estimate(&self, guest: &str, workload: &str, depth: u64, metric: &str) -> Option<Estimate> {
        let rounds = self.get(guest, workload, depth, metric);
        (!rounds.is_empty()).then(|| Estimate::of(rounds))
    }

    /// What `guest` measured of `metric`, by depth.
    pub fn by_depth(&self, guest: &str, workload: &str, metric: &str) -> Vec<(u64, Estimate)> {
        let wanted = |key: &Key| (&*key.guest, &*key.workload, &*key.metric) == (guest, workload, metric);
        let found = self.0.iter().filter(|(key, _)| wanted(key));
        let mut points: Vec<_> =
            found.filter_map(|(key, rounds)| Some((key.depth?, Estimate::of(rounds)))).collect();
        points.sort_unstable_by_key(|(depth, _)| *depth);
        points
    }

    /// What all of it comes to.
    pub fn rows(&self) -> Vec<Row> {
        let row = |(key, rounds): &(Key, Vec<f64>)| Row { key: key.clone(), value: Estimate::of(rounds) };
        self.0.iter().map(row).collect()
    }
}

/// Makes sure that `find` finds all that `baseline` has, values by name in JSON, and that it is the same
/// within a tenth, or `least` where that is more. Of several rounds the lowest is taken: what disturbs a
/// guest adds to its counts.
pub fn compare(baseline: &str, least: f64, find: impl Fn(&str) -> Result<Option<Estimate>>) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, expected) in serde_json::from_str::<BTreeMap<String, f64>>(baseline)? {
        match find(&name)?.map(|found| found.low) {
            None => wrong.push(format!("{name} was not measured")),
            Some(found) if (found - expected).abs() > (expected / 10.0).max(least) => {
                wrong.push(format!("{name} is {found}; recorded is {expected}"));
            }
            Some(_) => {}
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// [`compare`] for a baseline whose names are `GUEST|WORKLOAD|DEPTH|METRIC`.
pub fn compare_samples(baseline: &str, samples: &Samples) -> Result<()> {
    compare(baseline, 0.0, |name| {
        let parts: Vec<&str> = name.split('|').collect();
        let [guest, workload, depth, metric] = parts[..] else {
            bail!("{name} in the baseline: not 4 parts")
        };
        Ok(samples.estimate(guest, workload, depth.parse()?, metric))
    })
}

/// Reads a sample: `GUEST|WORKLOAD|DEPTH|METRIC|UNIT|VALUE`.
pub fn parse_sample(line: &str) -> Result<(Key, f64)> {
    let parts: Vec<&str> = line.split('|').collect();
    let [guest, workload, depth, metric, unit, value] = parts[..] else { bail!("not 6 parts") };
    let value: f64 = value.parse()?;
    if !value.is_finite() || value < 0.0 {
        bail!("{value} cannot be measured");
    }
    Ok((key(guest, workload, Some(depth.parse()?), metric, unit), value))
}

/// Reads a row that the guest `guest` has computed itself: `WORKLOAD|METRIC|UNIT|MEDIAN|LOW|HIGH|ROUNDS`.
pub fn parse_row(line: &str, guest: &str, depth: Option<u64>) -> Result<Row> {
    let parts: Vec<&str> = line.split('|').collect();
    let [workload, metric, unit, median, low, high, rounds] = parts[..] else { bail!("not 7 parts") };
    let count = |text: &str| text.parse::<u64>().map(|count| count as f64);
    let (median, low, high) = (count(median)?, count(low)?, count(high)?);
    (low <= high).then_some(()).context("its bounds are the wrong way round")?;
    let value = Estimate { median, low, high, rounds: rounds.parse()? };
    Ok(Row { key: key(guest, workload, depth, metric, unit), value })
}

fn key(guest: &str, workload: &str, depth: Option<u64>, metric: &str, unit: &str) -> Key {
    let [guest, workload, metric, unit] = [guest, workload, metric, unit].map(String::from);
    Key { guest, workload, depth, metric, unit }
}

/// A number with three digits that count, or, from 100 on, all before the point.
pub fn figure(value: f64) -> String {
    match value {
        _ if value.fract() == 0.0 => thousands(value as u64),
        100.0.. => thousands(value.round() as u64),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// With a comma between thousands.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_between_thousands() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (100_000, "100,000"), (1_234_567, "1,234,567")];
        cases.into_iter().for_each(|(number, text)| assert_eq!(thousands(number), text));
    }

    #[test]
    fn three_digits_count() {
        let cases = [(0.01234, "0.012"), (1.0, "1"), (2.345, "2.35"), (99.96, "100.0"), (1234.5, "1,235")];
        cases.into_iter().for_each(|(value, text)| assert_eq!(figure(value), text));
    }

    #[test]
    fn intervals_are_those_of_the_sign_test() {
        // The rank of the lower end, from tables of the sign test at 5 %, two-sided.
        for (count, rank) in [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (25, 8), (50, 18)] {
            let rounds: Vec<f64> = (1..=count).rev().map(f64::from).collect();
            let found = Estimate::of(&rounds);
            let (low, high) = (f64::from(rank), f64::from(count + 1 - rank));
            let expected = (f64::from(count + 1) / 2.0, low, high, count as u64);
            assert_eq!((found.median, found.low, found.high, found.rounds), expected, "{count}");
        }
    }

    #[test]
    fn ratios_are_of_rounds_made_in_turns() {
        // Both halve their speed after the second round.
        let (fast, slow) = ([100.0, 104.0, 50.0, 52.0], [10.0, 10.4, 5.0, 5.2]);
        let found = ratio(&fast, &slow).unwrap();
        assert!((found.median - 10.0).abs() < 1e-9 && found.spread() < 1e-9, "{found:?}");
        let found = ratio(&fast, &[10.2, 5.1]).unwrap();
        assert!((found.median - 10.0).abs() < 1e-9 && found.rounds == 2, "{found:?}");
        assert_eq!(ratio(&fast, &[]), None);
    }

    #[test]
    fn samples_are_read_and_gathered() {
        let mut samples = Samples::default();
        for line in ["g|read4k|32|throughput|requests/s|10", "g|read4k|1|throughput|requests/s|1.5"] {
            (0..2).for_each(|_| {
                let (key, value) = parse_sample(line).unwrap();
                samples.add(key, value);
            });
        }
        assert_eq!(samples.get("g", "read4k", 1, "throughput"), [1.5, 1.5]);
        assert!(samples.get("g", "read4k", 4, "throughput").is_empty());
        assert_eq!(samples.rows().iter().map(|row| row.value.median).collect::<Vec<_>>(), [10.0, 1.5]);
        for line in ["", "g|w|1|m|u", "g|w|x|m|u|1", "g|w|1|m|u|NaN", "g|w|1|m|u|-1", "g|w|1|m|u|1|2"] {
            assert!(parse_sample(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_tenth_more_or_less_is_the_same() {
        let checked = |value: f64| {
            let mut samples = Samples::default();
            samples.add(key("g", "w", Some(4), "m", "u"), value);
            samples.add(key("g", "w", Some(4), "allocations", "u"), 0.0);
            compare_samples(r#"{ "g|w|4|m": 100, "g|w|4|allocations": 0 }"#, &samples).is_ok()
        };
        assert_eq!([89.0, 90.0, 110.0, 111.0].map(checked), [false, true, true, false]);
        assert!(compare_samples(r#"{ "g|w|4|m": 1 }"#, &Samples::default()).is_err());
        let few = |found| compare(r#"{ "x": 5 }"#, 1.0, |_| Ok(Some(Estimate::of(&[found])))).is_ok();
        assert_eq!([3.0, 4.0, 6.0, 7.0].map(few), [false, true, true, false]);
    }

    #[test]
    fn rows_are_read() {
        let row = parse_row("4 KiB|map|instructions|70|65|81|201", "g", Some(10)).unwrap();
        assert_eq!(row.key, key("g", "4 KiB", Some(10), "map", "instructions"));
        assert_eq!(row.value, Estimate { median: 70.0, low: 65.0, high: 81.0, rounds: 201 });
        for line in
            ["", "4 KiB|map|instructions|70|65|81", "a|b|c|x|1|2|3", "a|b|c|2|3|1|9", "a|b|c|1|1|1|1|1"]
        {
            assert!(parse_row(line, "g", None).is_err(), "{line}");
        }
    }
}
