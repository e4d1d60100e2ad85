//! What a benchmark found: a page for people, rows for programs.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::figures::{Estimate, Key, Row, figure, thousands};
use super::plot::Chart;
use super::{with_task, write};
use crate::qemu::Machine;

/// From here on a page is not for the terminal.
const REST: &str = "## All figures\n";

/// What is published of one benchmark.
pub struct Report<'a> {
    /// Names its files.
    pub name: &'static str,
    /// The page in Markdown, with `{NAME}` where a part belongs.
    pub page: &'static str,
    pub parts: Vec<(&'static str, String)>,
    /// By the names of their files.
    pub charts: Vec<(&'static str, Chart)>,
    pub rows: &'a [Row],
}

impl Report<'_> {
    /// Prints the page, and writes everything to files.
    pub fn publish(&self) -> Result<()> {
        let page = self.page()?;
        println!("\n{}", page.split(REST).next().unwrap_or_default());
        write(&format!("{}.json", self.name), &json(self.rows)?)?;
        write(&format!("{}.md", self.name), &page)?;
        self.charts.iter().try_for_each(|(name, chart)| write(&format!("{name}.svg"), &chart.svg()))
    }

    fn page(&self) -> Result<String> {
        let mut page = self.page.to_owned();
        for (name, text) in &self.parts {
            let place = format!("{{{name}}}");
            ensure!(page.contains(&place), "the page of {} has no place for {name}", self.name);
            page = page.replace(&place, text);
        }
        Ok(page)
    }
}

/// Things that were measured, with their estimates by column.
pub type Lines<L> = Vec<(L, Vec<Option<Estimate>>)>;

/// The estimates of `rows` by column: a line for each thing that `line` says they are about, in the order in
/// which these first come.
pub fn grid<'a, L: PartialEq, C: PartialEq>(
    rows: impl Iterator<Item = &'a Row>,
    columns: &[C],
    line: impl Fn(&'a Key) -> L,
    column: impl Fn(&'a Key) -> C,
) -> Lines<L> {
    let mut lines: Lines<L> = Vec::new();
    for Row { key, value } in rows {
        let name = line(key);
        let number = lines.iter().position(|(other, _)| *other == name).unwrap_or(lines.len());
        if number == lines.len() {
            lines.push((name, vec![None; columns.len()]));
        }
        if let Some(place) = columns.iter().position(|other| *other == column(key)) {
            lines[number].1[place] = Some(*value);
        }
    }
    lines
}

/// A table for people: its first column is text, the others are figures.
pub struct Table {
    pub heading: Vec<String>,
    pub lines: Vec<Vec<String>>,
}

impl Table {
    /// A table whose lines are what `line` says that `rows` are about, and its columns their depths.
    pub fn by_depth<'a>(
        corner: &str,
        rows: impl Iterator<Item = &'a Row> + Clone,
        line: impl Fn(&Key) -> String,
    ) -> Self {
        let depths: BTreeSet<u64> = rows.clone().filter_map(|row| row.key.depth).collect();
        let columns: Vec<_> = depths.iter().copied().map(Some).collect();
        let cell = |value: Option<Estimate>| value.as_ref().map_or("-".into(), estimate);
        let lines = grid(rows, &columns, line, |key| key.depth).into_iter();
        Self {
            heading: [corner.to_owned()].into_iter().chain(depths.iter().map(u64::to_string)).collect(),
            lines: lines
                .map(|(name, values)| [name].into_iter().chain(values.into_iter().map(cell)).collect())
                .collect(),
        }
    }
}

/// As Markdown, with columns that are as wide as on a terminal they must be.
impl Display for Table {
    fn fmt(&self, out: &mut Formatter) -> fmt::Result {
        let all = || [&self.heading].into_iter().chain(&self.lines);
        let width = |column: usize| all().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.heading.len()).map(width).collect();
        for (number, line) in all().enumerate() {
            write!(out, "| {:<1$} |", line[0], widths[0])?;
            line.iter()
                .zip(&widths)
                .skip(1)
                .try_for_each(|(cell, width)| write!(out, " {cell:>width$} |"))?;
            writeln!(out)?;
            if number == 0 {
                write!(out, "|-{:-<1$}-|", "", widths[0])?;
                widths.iter().skip(1).try_for_each(|width| write!(out, "-{:->width$}:|", ""))?;
                writeln!(out)?;
            }
        }
        Ok(())
    }
}

/// Tables by depth, one after the other, each under a heading.
pub struct Tables<'a> {
    corner: &'static str,
    rows: &'a [Row],
    pub text: String,
}

impl<'a> Tables<'a> {
    /// Those of `rows`, whose depth is called `corner`.
    pub fn new(corner: &'static str, rows: &'a [Row]) -> Self {
        Self { corner, rows, text: String::new() }
    }

    /// Adds a table of the rows that are `chosen`.
    pub fn add(&mut self, title: &str, chosen: impl Fn(&Key) -> bool, line: impl Fn(&Key) -> String) {
        let table = Table::by_depth(self.corner, self.rows.iter().filter(|row| chosen(&row.key)), line);
        self.text += &format!("### {title}\n\n{table}\n");
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
    command(&with_task(machine, &what.to_string()))
}

/// QEMU's command line for `machine`, as a person would type it.
pub fn command(machine: &Machine) -> String {
    let arguments = machine.arguments();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::Samples;
    use crate::bench::figures::parse_sample;

    #[test]
    fn a_line_for_each_guest_and_a_column_for_each_depth() {
        let mut samples = Samples::default();
        for line in ["a|w|32|m|u|200", "a|w|1|m|u|10", "a|w|1|m|u|30", "b|w|32|m|u|7", "c|w|32|m|u|9.5"] {
            let (key, value) = parse_sample(line).unwrap();
            samples.add(key, value);
        }
        let rows = samples.rows();
        let mut tables = Tables::new("m", &rows);
        tables.add("t", |key| key.guest != "c", |key| key.guest.clone());
        let expected =
            "| m |       1 |  32 |\n|---|--------:|----:|\n| a | 20 ±50% | 200 |\n| b |       - |   7 |\n";
        assert_eq!(tables.text, format!("### t\n\n{expected}\n"));
    }

    #[test]
    fn parts_go_where_the_page_says() {
        let report = |parts| {
            let rows = &[];
            Report { name: "n", page: "a {x}\n{y}", parts, charts: Vec::new(), rows }.page()
        };
        assert_eq!(report(vec![("x", "1".into()), ("y", "{2}".into())]).unwrap(), "a 1\n{2}");
        assert!(report(vec![("z", "1".into())]).is_err());
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
