//! `bench memory`: what memory operations cost among few and many live mappings, in small and large guests,
//! and how memory fragments.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::figures::{Estimate, Row};
use super::plot::{Chart, Panel, Series, Style};
use super::report::{self, Table, figure, thousands};
use super::{machine, run, versions, write};
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
/// For one operation, the largest figure over all guests and depths may be this many times the smallest, in
/// percent.
const MOST: u64 = 125;
/// Instructions that a step of the audit may take, whatever there is to look at. QEMU's TCG does 300 in a
/// microsecond even on a slow machine: two thirds of a millisecond.
const LONGEST_STEP: u64 = 200_000;
/// Nanoseconds that it may take: from there on other tasks would notice.
const LONGEST_TIME: u64 = 1_000_000;
/// Its row, which depends on the number of mappings up to that.
const STEP: &str = "longest step";
/// Guests, by RAM in MiB and live mappings, in which the steps are timed; and the one in which a test counts
/// them.
const TIMED: [(u32, u64); 4] = [(4096, 10), (4096, 100_000), (16384, 10), (16384, 100_000)];
const COUNTED: (u32, u64) = (4096, 10_000);
/// Figures of the smallest guest, by what they are of, as measured when they were last looked at.
const BASELINE: &str = include_str!("baseline.json");

const WHAT: &str = "\
An operation is done by the kernel's ordinary interface, among so many live mappings of 4 KiB each, which a `Vec` owns; a \
third of them was freed in random order and made again before, and one is replaced before each round. `allocate` takes \
pages and frames, `map` is `AddressSpace::map_allocated_pages_to`, `unmap and free` drops the mapping, TLB flush included; \
`whole cycle` is `AddressSpace::allocate` and the drop. `map, 8 in a row` is `AddressSpace::allocate` eight times, after \
which `free, 8 in random order` drops them; these figures are the mean of the eight. \
The other rows take again what was freed last, the allocator's fast path; these two split and merge blocks. Memory is mapped, not touched, but for \
the zeroing of DMA memory, which has a row of its own and is in no other. `protect 512` gives as many leaves another \
protection. `DMA arena` takes and gives back runs of 1 to 64 pages at random, up to 32 at a time; \
`size / largest use` is the arena in the end, in permille of the most pages asked for at a time. `MMIO` reads and \
writes a register of the high-precision timer: a `Register`, checked once, and through an `MmioRegion`, which \
checks each access. `longest step` is the longest stretch for which an audit of everything keeps other tasks \
waiting. Figures are guest instructions: the median of all \
rounds (201; 101 for DMA of 2 MiB; 5 audits); the spread is the width of the middle 95 %. `n/a`: the guest has no such block of RAM.";

const FRAGMENTATION: &str = "\
A million steps with a fixed seed: each picks a place at random and frees what is there, or else asks for 1 to 512 pages, \
each size as likely; on average 80 % of free memory would be in use. `mapped` asks for mappings, which may consist of \
several runs of frames; `adjacent frames` asks for one run. The largest free block is a power of two of frames at a multiple \
of its size, the largest that can still be taken.";

const TIMES: &str = "\
The longest step of an audit in time, without counting: of each step the least that it took in 15 audits, so that \
what the host did meanwhile is left out; the longest of these.";

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
    let columns = configurations().map(|(mebibytes, depth)| (guest_name(mebibytes), depth)).collect();
    let operations = Operations::new(columns, &rows);

    let times = time_steps(&elf)?;
    eprintln!("{}, fragmentation: about a minute", guest_name(FRAGMENTED));
    let fragmentation = run(&machine(elf, FRAGMENTED), "fragmentation", &guest_name(FRAGMENTED), LIMIT)?.rows;

    let markdown = format!(
        "# Memory benchmark\n\n{}\n## Operations\n\n{WHAT}\n\n{}\n![Instructions by live mappings](memory.svg)\n\n\
         {TIMES}\n\n{}\n## Fragmentation, {}\n\n{FRAGMENTATION}\n\n{}",
        report::verbatim(&setup),
        operations.table().markdown(),
        report::list(&times),
        guest_name(FRAGMENTED),
        report::list(&fragmentation),
    );
    println!(
        "\n{WHAT}\n\n{}\n{TIMES}\n\n{}\n{FRAGMENTATION}\n\n{}",
        operations.table().text(),
        report::list(&times),
        report::list(&fragmentation)
    );
    let longest = times.iter().map(|row| row.value.median as u64).max().unwrap_or_default();
    rows.extend(times);
    rows.extend(fragmentation);
    write("memory.json", &report::json(&rows)?)?;
    write("memory.md", &markdown)?;
    write("memory.svg", &operations.chart().svg())?;
    if longest > LONGEST_TIME {
        println!("FAILED: a step of the audit takes {longest} ns; at most {LONGEST_TIME} are allowed");
    }
    Ok(judge(&operations).max((longest > LONGEST_TIME).into()))
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
struct Operations {
    columns: Vec<(String, u64)>,
    lines: Vec<Line>,
}

/// One operation in every guest that can do it.
struct Line {
    workload: String,
    metric: String,
    /// By column.
    values: Vec<Option<Estimate>>,
    smallest: f64,
    largest: f64,
}

impl Line {
    /// Largest over smallest.
    fn ratio(&self) -> f64 {
        self.largest / self.smallest
    }
}

impl Operations {
    fn new(columns: Vec<(String, u64)>, rows: &[Row]) -> Self {
        let mut names: Vec<(&str, &str)> = Vec::new();
        // The last guest is the largest and can do everything: its order is that of the table.
        for row in rows.iter().rev() {
            let name = (row.key.workload.as_str(), row.key.metric.as_str());
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let line = |(workload, metric): (&str, &str)| {
            let rows = rows.iter().filter(|row| row.key.workload == workload && row.key.metric == metric);
            let value = |(guest, depth): &(String, u64)| {
                rows.clone()
                    .find(|row| row.key.guest == *guest && row.key.depth == Some(*depth))
                    .map(|row| row.value)
            };
            let values: Vec<_> = columns.iter().map(value).collect();
            let medians = || values.iter().flatten().map(|value: &Estimate| value.median);
            Line {
                workload: workload.into(),
                metric: metric.into(),
                smallest: medians().fold(f64::INFINITY, f64::min),
                largest: medians().fold(0.0, f64::max),
                values,
            }
        };
        Self { lines: names.into_iter().rev().map(line).collect(), columns }
    }

    /// A line for each operation, a column for each guest and depth.
    fn table(&self) -> Table {
        let column = |(guest, depth): &(String, u64)| {
            format!("{} {}", guest.trim_start_matches("ringfence "), thousands(*depth))
        };
        let heading = ["instructions".into()].into_iter().chain(self.columns.iter().map(column));
        let line = |line: &Line| {
            let medians =
                line.values.iter().map(|value| value.map_or("n/a".into(), |value| figure(value.median)));
            let spread = line.values.iter().flatten().map(Estimate::spread).fold(0.0, f64::max);
            let last = [format!("{:.3}", line.ratio()), figure(spread)];
            [format!("{}, {}", line.workload, line.metric)].into_iter().chain(medians).chain(last).collect()
        };
        Table {
            heading: heading.chain(["largest / smallest".into(), "widest spread".into()]).collect(),
            lines: self.lines.iter().map(line).collect(),
        }
    }

    /// A panel for each workload, a colour for each metric, a mark for each guest. Zeroing, which is far off
    /// the scale of the rest, is left out.
    fn chart(&self) -> Chart {
        let lines = || self.lines.iter().filter(|line| line.metric != "zero" && line.metric != STEP);
        let (metrics, workloads) =
            (distinct(lines().map(|line| &line.metric)), distinct(lines().map(|line| &line.workload)));
        let guests = distinct(self.columns.iter().map(|(guest, _)| guest));
        let colour = |metric: &String| metrics.iter().position(|other| *other == metric).unwrap_or(0);
        let series = |(line, mark): (&Line, usize)| Series {
            style: Style { colour: colour(&line.metric), mark },
            shift: 10.0 * (mark as f64 - 1.0),
            points: self
                .columns
                .iter()
                .zip(&line.values)
                .filter(|((guest, _), _)| guest == guests[mark])
                .filter_map(|((_, depth), value)| Some((*depth, (*value)?)))
                .collect(),
        };
        let panel = |workload: &&String| Panel {
            title: workload.to_string(),
            logarithmic: false,
            series: lines()
                .filter(|line| line.workload == **workload)
                .flat_map(|line| (0..guests.len()).map(move |mark| (line, mark)))
                .map(series)
                .collect(),
            limits: Vec::new(),
        };
        let metrics_legend =
            metrics.iter().map(|metric| (Style { colour: colour(metric), mark: 0 }, metric.to_string()));
        let guests_legend =
            guests.iter().enumerate().map(|(mark, guest)| (Style { colour: 7, mark }, guest.to_string()));
        Chart {
            title: "Guest instructions by live mappings".into(),
            legend: metrics_legend.chain(guests_legend).collect(),
            size: (300.0, 220.0),
            across: 4,
            depth: "live mappings".into(),
            panels: workloads.iter().map(panel).collect(),
        }
    }
}

/// The names in `all`, each once, in the order they first come.
fn distinct<'a>(all: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut found = Vec::new();
    all.for_each(|name| {
        if !found.contains(&name) {
            found.push(name)
        }
    });
    found
}

/// Says whether the largest ratio is small enough; returns the exit code for this program.
fn judge(operations: &Operations) -> u8 {
    let step = operations.lines.iter().filter(|line| line.metric == STEP).map(|line| line.largest);
    let longest = step.fold(0.0, f64::max);
    if longest > LONGEST_STEP as f64 {
        println!(
            "FAILED: a step of the audit takes {longest} instructions; at most {LONGEST_STEP} are allowed"
        );
    }
    let compared = || operations.lines.iter().filter(|line| line.metric != STEP);
    let bad: Vec<_> = compared().filter(|line| line.largest * 100.0 > line.smallest * MOST as f64).collect();
    for line in &bad {
        println!(
            "FAILED: {}, {}: {} to {} instructions, a ratio of {:.2}; at most {:.2} is allowed",
            line.workload,
            line.metric,
            line.smallest,
            line.largest,
            line.ratio(),
            MOST as f64 / 100.0,
        );
    }
    if let Some(worst) = compared().max_by(|a, b| a.ratio().total_cmp(&b.ratio())) {
        println!("largest ratio: {:.3} ({}, {})", worst.ratio(), worst.workload, worst.metric);
    }
    (!bad.is_empty() || longest > LONGEST_STEP as f64).into()
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
    check(&count(mebibytes, &depth.to_string())?, &serde_json::from_str(BASELINE)?)?;
    let (mebibytes, depth) = COUNTED;
    check_step(&count(mebibytes, &format!("audit-{depth}"))?)
}

fn check(rows: &[Row], baseline: &BTreeMap<String, u64>) -> Result<()> {
    for (name, expected) in baseline {
        let row = rows.iter().find(|row| format!("{}, {}", row.key.workload, row.key.metric) == *name);
        let found = row.with_context(|| format!("{name} was not measured"))?.value.median as u64;
        ensure!(
            found.abs_diff(*expected) <= (expected / 10).max(1),
            "{name}: {found}; recorded are {expected}"
        );
    }
    Ok(())
}

fn check_step(rows: &[Row]) -> Result<()> {
    let row = rows.iter().find(|row| row.key.metric == STEP).context("no step was measured")?;
    let found = row.value.high as u64;
    ensure!(found <= LONGEST_STEP, "a step of the audit takes {found} instructions, not {LONGEST_STEP}");
    Ok(())
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
        let columns = vec![("a".into(), 10), ("b".into(), 10)];
        let judged = |large| {
            judge(&Operations::new(columns.clone(), &[row("a", 10, "map", 100), row("b", 10, "map", large)]))
        };
        assert_eq!((judged(125), judged(126), judged(80), judged(79)), (0, 1, 0, 1));
    }

    #[test]
    fn the_self_check_allows_a_tenth() {
        let baseline = BTreeMap::from([("4 KiB, whole cycle".to_owned(), 1000)]);
        let checked =
            |count| check(&[row("a", 10, "whole cycle", count), row("a", 10, "map", 1)], &baseline).is_ok();
        assert_eq!([899, 900, 1100, 1101].map(checked), [false, true, true, false]);
        assert!(check(&[], &baseline).is_err());
        let few = BTreeMap::from([("4 KiB, whole cycle".to_owned(), 5)]);
        let checked = |count| check(&[row("a", 10, "whole cycle", count)], &few).is_ok();
        assert_eq!([3, 4, 6, 7].map(checked), [false, true, true, false]);
    }

    #[test]
    fn a_longer_step_fails() {
        let checked = |high: u64| check_step(&[row("a", 10, STEP, high - 3)]).is_ok();
        assert_eq!([LONGEST_STEP, LONGEST_STEP + 1].map(checked), [true, false]);
        assert!(check_step(&[row("a", 10, "map", 1)]).is_err());
    }

    #[test]
    fn what_a_guest_cannot_do_is_not_there() {
        let columns = vec![("ringfence 1 GiB".into(), 10), ("b".into(), 10), ("c".into(), 10)];
        let operations = Operations::new(columns, &[row("b", 10, "map", 4000), row("c", 10, "map", 5000)]);
        let last = "| 4 KiB, map | n/a | 4,000 | 5,000 | 1.250 | 3 |\n";
        assert!(operations.table().markdown().ends_with(last), "{}", operations.table().markdown());
        assert_eq!(
            operations.chart().panels[0].series.iter().map(|series| series.points.len()).sum::<usize>(),
            2
        );
    }
}
