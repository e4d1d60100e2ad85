//! Rows as tables and as JSON.

use std::fmt::Display;

use anyhow::Result;
use serde_json::{Value, json};

use super::figures::{Estimate, Row};
use super::with_task;
use crate::qemu::Machine;

/// A table for people: its first column is text, the others are figures.
pub struct Table {
    pub heading: Vec<String>,
    pub lines: Vec<Vec<String>>,
}

impl Table {
    /// A table whose lines are the guests and workloads of `rows`, and its columns their depths.
    pub fn by_depth(corner: &str, rows: &[&Row], name: impl Fn(&Row) -> String) -> Self {
        let mut depths: Vec<u64> = rows.iter().filter_map(|row| row.key.depth).collect();
        depths.sort_unstable();
        depths.dedup();
        let mut names: Vec<String> = Vec::new();
        rows.iter().map(|row| name(row)).for_each(|name| {
            if !names.contains(&name) {
                names.push(name);
            }
        });
        let cell = |line: &str, depth: u64| {
            let found = rows.iter().find(|row| row.key.depth == Some(depth) && name(row) == line);
            found.map_or("-".into(), |row| estimate(&row.value))
        };
        let line = |name: &String| {
            [name.clone()].into_iter().chain(depths.iter().map(|depth| cell(name, *depth))).collect()
        };
        Self {
            lines: names.iter().map(line).collect(),
            heading: [corner.to_owned()].into_iter().chain(depths.iter().map(u64::to_string)).collect(),
        }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.all() {
            for (column, cell) in line.iter().enumerate() {
                let width = self.all().map(|line| line[column].chars().count()).max().unwrap_or(0);
                text += &if column == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
            }
            text.push('\n');
        }
        text
    }

    /// For a page.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, line) in self.all().enumerate() {
            text += &format!("| {} |\n", line.join(" | "));
            if number == 0 {
                text += &format!("|---|{}\n", "---:|".repeat(line.len() - 1));
            }
        }
        text
    }

    fn all(&self) -> impl Iterator<Item = &Vec<String>> {
        [&self.heading].into_iter().chain(&self.lines)
    }
}

/// A median, and half the width of its interval in percent of it.
pub fn estimate(value: &Estimate) -> String {
    let percent = 50.0 * value.spread() / value.median;
    match value.rounds {
        1 => figure(value.median),
        _ if value.spread() == 0.0 => figure(value.median),
        _ => format!("{} ±{percent:.0}%", figure(value.median)),
    }
}

/// Rows as a Markdown list.
pub fn list(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let value = match row.key.unit.as_str() {
            "permille" => format!("{:.1} %", row.value.median / 10.0),
            unit => format!("{} {unit}", figure(row.value.median)),
        };
        let rounds = match row.value.rounds {
            1 => String::new(),
            rounds => format!(" (median of {})", thousands(rounds)),
        };
        format!("- {}: {}: {value}{rounds}\n", row.key.workload, row.key.metric)
    };
    rows.iter().map(line).collect()
}

/// Rows for programs.
pub fn json(rows: &[Row]) -> Result<String> {
    // A whole number is written as one.
    let number = |value: f64| match value.fract() {
        0.0 => Value::from(value as u64),
        _ => Value::from(value),
    };
    let object = |row: &Row| {
        json!({
            "guest": row.key.guest, "workload": row.key.workload, "depth": row.key.depth,
            "metric": row.key.metric, "unit": row.key.unit,
            "median": number(row.value.median), "spread": number(row.value.spread()), "rounds": row.value.rounds,
        })
    };
    let rows: Vec<_> = rows.iter().map(object).collect();
    Ok(serde_json::to_string_pretty(&rows)? + "\n")
}

/// QEMU's command line for the benchmark `what` on `machine`, as a person would type it.
pub fn command_line(machine: &Machine, what: impl Display) -> String {
    let arguments = with_task(machine, &what.to_string()).arguments();
    let words = arguments.iter().map(|word| match word.to_string_lossy() {
        word if word.contains(' ') => format!("\"{word}\"").into(),
        word => word,
    });
    let words: Vec<_> = words.collect();
    format!("qemu-system-x86_64 {}", words.join(" "))
}

/// Lines as Markdown shows them unchanged.
pub fn verbatim(lines: &[String]) -> String {
    lines.iter().map(|line| format!("    {line}\n")).collect()
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
    use crate::bench::figures::Samples;
    use crate::bench::figures::parse_sample;

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
    fn a_line_for_each_guest_and_a_column_for_each_depth() {
        let mut samples = Samples::default();
        for line in ["a|w|32|m|u|200", "a|w|1|m|u|10", "a|w|1|m|u|30", "b|w|32|m|u|7", "c|w|32|m|u|9.5"] {
            let (key, value) = parse_sample(line).unwrap();
            samples.add(key, value);
        }
        let rows = samples.rows();
        let chosen: Vec<&Row> = rows.iter().filter(|row| row.key.guest != "c").collect();
        let table = Table::by_depth("m", &chosen, |row| row.key.guest.clone());
        let expected = "| m | 1 | 32 |\n|---|---:|---:|\n| a | 20 ±50% | 200 |\n| b | - | 7 |\n";
        assert_eq!(table.markdown(), expected);
        assert_eq!(table.text(), "m        1   32\na  20 ±50%  200\nb        -    7\n");
    }

    #[test]
    fn programs_read_whole_numbers_as_such() {
        let (key, _) = parse_sample("g|w|4|m|u|1").unwrap();
        let value = Estimate { median: 2.0, low: 1.5, high: 2.0, rounds: 9 };
        let json = json(&[Row { key, value }]).unwrap();
        let found: Value = serde_json::from_str(&json).unwrap();
        let expected = r#"[{"guest":"g","workload":"w","depth":4,"metric":"m","unit":"u","median":2,"spread":0.5,"rounds":9}]"#;
        assert_eq!(found, serde_json::from_str::<Value>(expected).unwrap());
    }
}
