//! Rows as tables and as JSON.

use anyhow::Result;
use serde_json::json;

use super::Row;
use crate::qemu::Machine;

/// A table: a line for each workload and metric, a column for each guest and depth.
pub struct Report {
    pub columns: Vec<(String, u64)>,
    pub lines: Vec<Line>,
}

/// One operation in every guest that can do it.
pub struct Line {
    pub workload: String,
    pub metric: String,
    /// Medians, by column.
    pub medians: Vec<Option<u64>>,
    pub smallest: u64,
    pub largest: u64,
    /// The largest spread of any column.
    pub spread: u64,
}

impl Line {
    /// Largest over smallest.
    pub fn ratio(&self) -> f64 {
        self.largest as f64 / self.smallest as f64
    }
}

impl Report {
    /// Sorts `rows` into a table.
    pub fn new(columns: Vec<(String, u64)>, rows: &[Row]) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        let mut operations: Vec<(&str, &str)> = Vec::new();
        // The last guest is the largest and can do everything: its order is that of the table.
        for row in rows.iter().rev() {
            let operation = (row.workload.as_str(), row.metric.as_str());
            if !operations.contains(&operation) {
                operations.push(operation);
            }
        }
        for (workload, metric) in operations.into_iter().rev() {
            let rows = rows.iter().filter(|row| row.workload == workload && row.metric == metric);
            let median = |(guest, depth): &(String, u64)| {
                rows.clone()
                    .find(|row| row.guest == *guest && row.depth == Some(*depth))
                    .map(|row| row.median)
            };
            let medians: Vec<_> = columns.iter().map(median).collect();
            let known = || medians.iter().flatten().copied();
            lines.push(Line {
                workload: workload.into(),
                metric: metric.into(),
                smallest: known().min().unwrap_or(0),
                largest: known().max().unwrap_or(0),
                spread: rows.map(|row| row.spread).max().unwrap_or(0),
                medians,
            });
        }
        Self { columns, lines }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let cells = self.cells();
        let width = |column: usize| cells.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
        let mut text = String::new();
        for line in cells {
            for (column, cell) in line.iter().enumerate() {
                let width = widths[column];
                text += &if column == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
            }
            text.push('\n');
        }
        text
    }

    /// For a page.
    pub fn markdown(&self) -> String {
        let cells = self.cells();
        let mut text = String::new();
        for (number, line) in cells.iter().enumerate() {
            if number == 2 {
                text += &format!("|---|{}\n", "---:|".repeat(line.len() - 1));
            }
            if number == 0 {
                continue; // both lines of the heading in one
            }
            let heading = |(above, cell): (&String, &String)| match number {
                1 => format!("{above} {cell}").trim().to_owned(),
                _ => cell.clone(),
            };
            let line: Vec<String> = cells[0].iter().zip(line).map(heading).collect();
            text += &format!("| {} |\n", line.join(" | "));
        }
        text
    }

    /// Two lines of headings, then the table.
    fn cells(&self) -> Vec<Vec<String>> {
        let guests = self.columns.iter().map(|(guest, _)| guest.trim_start_matches("ringfence ").to_owned());
        let depths = self.columns.iter().map(|(_, depth)| thousands(*depth));
        let strings = |words: [&str; 2]| words.map(String::from);
        let mut cells = vec![
            [String::new()].into_iter().chain(guests).chain(strings(["largest", "widest"])).collect(),
            ["instructions".into()]
                .into_iter()
                .chain(depths)
                .chain(strings(["/ smallest", "spread"]))
                .collect(),
        ];
        for line in &self.lines {
            let medians = line.medians.iter().map(|median| median.map_or("n/a".into(), thousands));
            let last = [format!("{:.3}", line.ratio()), thousands(line.spread)];
            cells.push(
                [format!("{}, {}", line.workload, line.metric)]
                    .into_iter()
                    .chain(medians)
                    .chain(last)
                    .collect(),
            );
        }
        cells
    }
}

/// Rows as a Markdown list.
pub fn list(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let value = match row.unit.as_str() {
            "permille" => format!("{}.{} %", row.median / 10, row.median % 10),
            unit => format!("{} {unit}", thousands(row.median)),
        };
        let rounds =
            if row.rounds > 1 { format!(" (median of {})", thousands(row.rounds)) } else { String::new() };
        format!("- {}: {}: {value}{rounds}\n", row.workload, row.metric)
    };
    rows.iter().map(line).collect()
}

/// Rows for programs.
pub fn json(rows: &[Row]) -> Result<String> {
    let object = |row: &Row| {
        let Row { guest, workload, depth, metric, unit, median, spread, rounds } = row;
        json!({
            "guest": guest, "workload": workload, "depth": depth, "metric": metric, "unit": unit,
            "median": median, "spread": spread, "rounds": rounds,
        })
    };
    let rows: Vec<_> = rows.iter().map(object).collect();
    Ok(serde_json::to_string_pretty(&rows)? + "\n")
}

/// QEMU's command line for `machine`, as a person would type it.
pub fn command_line(machine: &Machine, what: impl std::fmt::Display) -> String {
    let arguments = machine.arguments();
    let words = arguments.iter().map(|word| word.to_string_lossy());
    let words: Vec<_> = words.collect();
    format!("qemu-system-x86_64 {} -fw_cfg name=opt/org.ringfence/bench,string={what}", words.join(" "))
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
    fn what_a_guest_cannot_do_is_not_there() {
        let row = |guest: &str, median| Row {
            guest: guest.into(),
            workload: "1 GiB".into(),
            depth: Some(10),
            metric: "map".into(),
            unit: "instructions".into(),
            median,
            spread: 3,
            rounds: 9,
        };
        let columns = vec![("ringfence 1 GiB".into(), 10), ("b".into(), 10), ("c".into(), 10)];
        let report = Report::new(columns, &[row("b", 4000), row("c", 5000)]);
        assert_eq!(report.lines[0].medians, [None, Some(4000), Some(5000)]);
        let last = "| 1 GiB, map | n/a | 4,000 | 5,000 | 1.250 | 3 |\n";
        assert!(report.markdown().ends_with(last), "{}", report.markdown());
        assert!(
            report.text().lines().last().unwrap().ends_with("  4,000  5,000       1.250       3"),
            "{}",
            report.text()
        );
    }
}
