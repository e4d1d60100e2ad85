//! `bench memory`: what memory operations cost among few and many live mappings, in small and large guests,
//! and how memory fragments.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::figures::{Estimate, Key, Row, compare, figure, thousands};
use super::plot::{Chart, Panel, Series, Style, styled};
use super::report::{self, Lines, Report, Table};
use super::targets::{self, Bound, Target};
use super::{machine, run, versions};
use crate::kernel;
use crate::setup::{self, Toolchain};

/// Guests by RAM in MiB, with the numbers of live mappings.
const GUESTS: [(u32, &[u64]); 3] =
    [(64, &[10, 10_000]), (1024, &[10, 10_000, 100_000]), (16384, &[10, 10_000, 100_000])];
/// RAM in MiB of the guest that fragments its memory.
const FRAGMENTED: u32 = 256;
/// Makes the TSC count the guest's instructions.
const COUNTING: &str = "-icount shift=0,sleep=off";
/// How long one guest may take.
const LIMIT: Duration = Duration::from_secs(600);
/// For one operation, the largest figure over all guests and depths may be this many times the smallest.
const MOST: f64 = 1.25;
/// Instructions that a step of the audit may take, whatever there is to look at. QEMU's TCG does 300 in a
/// microsecond even on a slow machine: two thirds of a millisecond.
const LONGEST_STEP: f64 = 200_000.0;
/// Nanoseconds that it may take: from there on other tasks would notice.
const LONGEST_TIME: f64 = 1_000_000.0;
/// Its row, which depends on the number of mappings up to that.
const STEP: &str = "longest step";
/// Guests, by RAM in MiB and live mappings, in which the steps are timed; and the one in which a test counts
/// them.
const TIMED: [(u32, u64); 4] = [(4096, 10), (4096, 100_000), (16384, 10), (16384, 100_000)];
const COUNTED: (u32, u64) = (4096, 10_000);
/// Figures of the smallest guest, by what they are of, as measured when they were last looked at.
const BASELINE: &str = include_str!("baseline.json");

/// Runs it all; returns the exit code for this program.
pub fn bench(toolchain: &Toolchain) -> Result<u8> {
    let elf = kernel::build_bench(toolchain, "memory")?;
    let mut counting = machine(elf.clone(), GUESTS[0].0);
    counting.add(COUNTING);
    let mut setup = versions(toolchain)?;
    setup.push(report::command_line(&counting, GUESTS[0].1[0]));
    setup.push(format!(
        "and so for each guest and depth; fragmentation with -m {FRAGMENTED}M and without -icount"
    ));
    setup.iter().for_each(|line| println!("{line}"));

    let mut rows = Vec::new();
    for (mebibytes, depth) in configurations() {
        eprintln!("{}, {} live mappings", guest_name(mebibytes), thousands(depth));
        counting.memory = mebibytes;
        rows.extend(run(&counting, &depth.to_string(), &guest_name(mebibytes), LIMIT)?.rows);
    }
    let times = time_steps(&elf)?;
    eprintln!("{}, fragmentation: about a minute", guest_name(FRAGMENTED));
    let fragmentation = run(&machine(elf, FRAGMENTED), "fragmentation", &guest_name(FRAGMENTED), LIMIT)?.rows;
    publish(&setup, &rows, &times, &fragmentation)
}

/// Prints everything and writes it to files; returns the exit code: whether every target is met.
fn publish(setup: &[String], rows: &[Row], times: &[Row], fragmentation: &[Row]) -> Result<u8> {
    let operations = Operations::new(columns(), rows);
    let targets = targets(&operations, times);
    let parts = vec![
        ("setup", report::verbatim(setup)),
        ("targets", targets::table(&targets).to_string()),
        ("operations", operations.table().to_string()),
        ("times", report::list(times)),
        ("fragmentation", report::list(fragmentation)),
    ];
    let charts = vec![("memory", operations.chart())];
    let rows = [rows, times, fragmentation].concat();
    Report { name: "memory", page: include_str!("page.md"), parts, charts, rows: &rows }.publish()?;
    Ok((!targets.iter().all(Target::is_met)).into())
}

/// A row for each guest in [`TIMED`].
fn time_steps(elf: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (mebibytes, depth) in TIMED {
        let name = format!("{}, {} live mappings", guest_name(mebibytes), thousands(depth));
        eprintln!("{name}: timing");
        let found = run(&machine(elf.into(), mebibytes), &format!("time-{depth}"), &name, LIMIT)?.rows;
        rows.extend(found.into_iter().map(|mut row| {
            row.key.workload = format!("{}, {name}", row.key.workload);
            row
        }));
    }
    Ok(rows)
}

/// Every operation in every guest and depth.
struct Operations<'a> {
    columns: Vec<(String, Option<u64>)>,
    /// By workload and metric.
    lines: Lines<(&'a str, &'a str)>,
}

/// Largest over smallest.
fn spread(values: &[Option<Estimate>]) -> f64 {
    let medians = || values.iter().flatten().map(|value| value.median);
    medians().fold(0.0, f64::max) / medians().fold(f64::INFINITY, f64::min)
}

impl<'a> Operations<'a> {
    fn new(columns: Vec<(String, Option<u64>)>, rows: &'a [Row]) -> Self {
        let name = |key: &'a Key| (key.workload.as_str(), key.metric.as_str());
        // The last guest is the largest and can do everything: its order is that of the table.
        let mut lines = report::grid(rows.iter().rev(), &columns, name, |key| (key.guest.clone(), key.depth));
        lines.reverse();
        Self { columns, lines }
    }

    /// A line for each operation, a column for each guest and depth.
    fn table(&self) -> Table {
        let column = |(guest, depth): &(String, Option<u64>)| {
            format!("{} {}", guest.trim_start_matches("ringfence "), thousands(depth.unwrap_or_default()))
        };
        let heading = ["instructions".into()].into_iter().chain(self.columns.iter().map(column));
        let line = |((workload, metric), values): &((&str, &str), Vec<Option<Estimate>>)| {
            let medians = values.iter().map(|value| value.map_or("n/a".into(), |value| figure(value.median)));
            let widest = values.iter().flatten().map(Estimate::spread).fold(0.0, f64::max);
            let last = [format!("{:.3}", spread(values)), figure(widest)];
            [format!("{workload}, {metric}")].into_iter().chain(medians).chain(last).collect()
        };
        Table {
            heading: heading.chain(["largest / smallest".into(), "widest spread".into()]).collect(),
            lines: self.lines.iter().map(line).collect(),
        }
    }

    /// A panel for each workload, a colour for each metric, a mark for each guest. Zeroing, which is far off
    /// the scale of the rest, is left out.
    fn chart(&self) -> Chart {
        let lines = || self.lines.iter().filter(|((_, metric), _)| *metric != "zero" && *metric != STEP);
        let (metrics, workloads) =
            (distinct(lines().map(|(name, _)| name.1)), distinct(lines().map(|(name, _)| name.0)));
        let guests = distinct(self.columns.iter().map(|(guest, _)| guest.as_str()));
        let panel = |workload: &&str| {
            let lines = lines().filter(|((other, _), _)| other == workload);
            let series = lines.flat_map(|((_, metric), values)| {
                let colour = metrics.iter().position(|other| other == metric).unwrap_or(0);
                (0..guests.len()).map(move |mark| (colour, mark, values))
            });
            let series = series.map(|(colour, mark, values)| self.series(colour, mark, guests[mark], values));
            Panel {
                title: (*workload).into(),
                logarithmic: false,
                series: series.collect(),
                limits: Vec::new(),
            }
        };
        let metric_legend =
            metrics.iter().enumerate().map(|(colour, metric)| (metric.to_string(), colour, 0));
        let guest_legend = guests.iter().enumerate().map(|(mark, guest)| (guest.to_string(), 7, mark));
        Chart {
            title: "Guest instructions by live mappings".into(),
            legend: styled(metric_legend.chain(guest_legend)),
            size: (300.0, 220.0),
            across: 4,
            depth: "live mappings".into(),
            panels: workloads.iter().map(panel).collect(),
        }
    }

    /// What `guest` needed for one operation.
    fn series(&self, colour: usize, mark: usize, guest: &str, values: &[Option<Estimate>]) -> Series {
        let points = self.columns.iter().zip(values).filter(|((other, _), _)| other == guest);
        Series {
            style: Style { colour, mark },
            shift: 10.0 * (mark as f64 - 1.0),
            points: points.filter_map(|((_, depth), value)| Some(((*depth)?, (*value)?))).collect(),
        }
    }
}

/// The names in `all`, each once, in the order they first come.
fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    all.for_each(|name| {
        if !found.contains(&name) {
            found.push(name)
        }
    });
    found
}

/// The targets, and what was found of them: of operations, only the one that is furthest from it counts.
fn targets(operations: &Operations, times: &[Row]) -> Vec<Target> {
    let (steps, compared): (Vec<_>, Vec<_>) =
        operations.lines.iter().partition(|((_, metric), _)| *metric == STEP);
    let longest =
        |values: &mut dyn Iterator<Item = Estimate>| values.max_by(|a, b| a.median.total_cmp(&b.median));
    let worst = compared.iter().max_by(|(_, a), (_, b)| spread(a).total_cmp(&spread(b)));
    let name = worst.map(|((workload, metric), _)| format!("{workload}, {metric}")).unwrap_or_default();
    vec![
        Target::new(
            format!("largest / smallest, of {name}"),
            Bound::AtMost(MOST),
            worst.map(|(_, values)| Estimate::of(&[spread(values)])),
        ),
        Target::new(
            "a step of the audit, instructions",
            Bound::AtMost(LONGEST_STEP),
            longest(&mut steps.iter().flat_map(|(_, values)| values.iter().flatten().copied())),
        ),
        Target::new(
            "a step of the audit, ns",
            Bound::AtMost(LONGEST_TIME),
            longest(&mut times.iter().map(|row| row.value)),
        ),
    ]
}

/// The smallest guest with the fewest mappings: what is recorded takes as much as it did, give or take a
/// tenth, or one. And a large one: no step of an audit takes longer than it may.
pub fn self_check() -> Result<()> {
    let toolchain = setup::toolchain().context("there is no compiler for the kernel")?;
    let elf = kernel::build_bench(&toolchain, "memory")?;
    let count = |mebibytes, what: &str| -> Result<_> {
        let mut machine = machine(elf.clone(), mebibytes);
        machine.add(COUNTING);
        Ok(run(&machine, what, &guest_name(mebibytes), Duration::from_secs(30))?.rows)
    };
    let (mebibytes, depth) = configurations().next().context("no configuration")?;
    check(&count(mebibytes, &depth.to_string())?, BASELINE)?;
    let (mebibytes, depth) = COUNTED;
    check_step(&count(mebibytes, &format!("audit-{depth}"))?)
}

fn check(rows: &[Row], baseline: &str) -> Result<()> {
    compare(baseline, 1.0, |name| {
        let row = rows.iter().find(|row| format!("{}, {}", row.key.workload, row.key.metric) == name);
        Ok(row.map(|row| row.value))
    })
}

fn check_step(rows: &[Row]) -> Result<()> {
    let row = rows.iter().find(|row| row.key.metric == STEP).context("no step was measured")?;
    let found = row.value.high;
    ensure!(found <= LONGEST_STEP, "a step of the audit takes {found} instructions, not {LONGEST_STEP}");
    Ok(())
}

fn columns() -> Vec<(String, Option<u64>)> {
    configurations().map(|(mebibytes, depth)| (guest_name(mebibytes), Some(depth))).collect()
}

fn configurations() -> impl Iterator<Item = (u32, u64)> {
    GUESTS.into_iter().flat_map(|(mebibytes, depths)| depths.iter().map(move |depth| (mebibytes, *depth)))
}

fn guest_name(mebibytes: u32) -> String {
    match mebibytes {
        1024.. => format!("ringfence {} GiB", mebibytes / 1024),
        _ => format!("ringfence {mebibytes} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::parse_row;

    fn row(guest: &str, depth: u64, metric: &str, median: u64) -> Row {
        parse_row(
            &format!("4 KiB|{metric}|instructions|{median}|{median}|{}|9", median + 3),
            guest,
            Some(depth),
        )
        .unwrap()
    }

    #[test]
    fn a_ratio_above_the_limit_fails() {
        let met = |large, step| {
            let rows = [row("a", 10, "map", 100), row("b", 10, "map", large), row("b", 10, STEP, step)];
            let columns = ["a", "b"].map(|guest| (guest.into(), Some(10))).into();
            let targets = targets(&Operations::new(columns, &rows), &[row("c", 10, STEP, step)]);
            targets.iter().map(Target::is_met).collect::<Vec<_>>()
        };
        let ratio = |large| met(large, 9)[0];
        assert_eq!((ratio(125), ratio(126), ratio(80), ratio(79)), (true, false, true, false));
        assert_eq!(met(100, 200_000)[1..], [true, true]);
        assert_eq!(met(100, 200_001)[1..], [false, true]);
        assert_eq!(met(100, 1_000_001)[1..], [false, false]);
    }

    #[test]
    fn the_self_check_allows_a_tenth() {
        let rows = |count| [row("a", 10, "whole cycle", count), row("a", 10, "map", 1)];
        let checked = |count| check(&rows(count), r#"{ "4 KiB, whole cycle": 1000 }"#).is_ok();
        assert_eq!([899, 900, 1100, 1101].map(checked), [false, true, true, false]);
        assert!(check(&[], r#"{ "4 KiB, whole cycle": 1000 }"#).is_err());
    }

    #[test]
    fn a_longer_step_fails() {
        let checked = |high: u64| check_step(&[row("a", 10, STEP, high - 3)]).is_ok();
        assert_eq!([200_000, 200_001].map(checked), [true, false]);
        assert!(check_step(&[row("a", 10, "map", 1)]).is_err());
    }

    #[test]
    fn what_a_guest_cannot_do_is_not_there() {
        let columns = ["ringfence 1 GiB", "b", "c"].map(|guest| (guest.into(), Some(10))).into();
        let rows = [row("b", 10, "map", 4000), row("c", 10, "map", 5000)];
        let operations = Operations::new(columns, &rows);
        let table = operations.table();
        assert_eq!(table.lines, [["4 KiB, map", "n/a", "4,000", "5,000", "1.250", "3"]]);
        let series = operations.chart().panels.remove(0).series;
        assert_eq!(series.iter().map(|series| series.points.len()).sum::<usize>(), 2);
    }
}
