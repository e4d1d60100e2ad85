//! What `bench http` found, for people and for programs.

use anyhow::Result;

use super::plan::{AT_ONCE, CLOSED, CLOSING, IDLE, KEEP_ALIVE, KEPT, LARGE, SMALL, SMALL_START, START};
use super::{LINUX, LINUX_PLAIN, LINUX_TSC, OURS, counted};
use crate::bench::Found;
use crate::bench::figures::{Estimate, Samples, ratio};
use crate::bench::plot::{Chart, Panel, Shown, styled};
use crate::bench::report::{self, Report, Table, estimate};
use crate::bench::targets::{self, Bound, Target};

const GUESTS: [&str; 4] = [OURS, LINUX, LINUX_PLAIN, LINUX_TSC];
/// How many of them, from the first on, count instructions.
const COUNTING: usize = 3;

/// The least throughput in units of Linux's, by workload and clients. That of a warm large file is for a card
/// without segmentation offload; with it, it is to be 2.
const FASTER: [(&str, usize, f64); 11] = [
    (KEEP_ALIVE, 1, 6.0),
    (KEEP_ALIVE, 16, 9.0),
    (KEEP_ALIVE, 64, 10.0),
    (CLOSING, 1, 4.0),
    (CLOSING, 16, 8.0),
    (SMALL[1], 1, 4.0),
    (SMALL[0], 1, 3.5),
    (LARGE[1], 1, 0.8),
    (LARGE[0], 1, 1.2),
    (AT_ONCE[0], 16, 1.5),
    (AT_ONCE[1], 16, 1.0),
];
/// Most instructions of ours, by workload and clients.
const INSTRUCTIONS: [(&str, usize, f64); 8] = [
    (LARGE[0], 1, 2.5),
    (LARGE[1], 1, 2.0),
    (KEEP_ALIVE, 1, 20e3),
    (KEEP_ALIVE, 16, 20e3),
    (KEEP_ALIVE, 64, 20e3),
    (CLOSING, 1, 60e3),
    (CLOSING, 16, 60e3),
    (SMALL[1], 1, 40e3),
];
/// Most milliseconds to the first byte.
const MOST_TIME: f64 = 150.0;
/// Most KiB of the image.
const MOST_SIZE: f64 = 1024.0;

/// Prints everything and writes it to files.
pub fn publish(setup: &[String], functions: &str, found: &Found) -> Result<()> {
    let (rows, samples) = (found.samples.rows(), &found.samples);
    let functions: Vec<String> = functions.lines().map(String::from).collect();
    let parts = vec![
        ("targets", targets::table(&targets(samples)).to_string()),
        ("times", times(samples).to_string()),
        ("failed", failed(samples).to_string()),
        ("counts", counts(samples).to_string()),
        ("features", report::verbatim(&found.info)),
        ("setup", report::verbatim(setup)),
        ("functions", report::verbatim(&functions)),
    ];
    let (page, charts) = (include_str!("page.md"), charts(samples));
    Report { name: "http", page, parts, charts, rows: &rows }.publish()
}

/// Every workload that is timed, its clients, and what is measured of it.
fn timed() -> impl Iterator<Item = (&'static str, usize, &'static str)> {
    let bulk = [LARGE[0], LARGE[1]].map(|name| (name, 1, "throughput")).into_iter();
    let at_once = AT_ONCE.map(|name| (name, 16, "throughput"));
    let small = SMALL.map(|name| (name, 1, "throughput"));
    let kept = KEPT.map(|clients| (KEEP_ALIVE, clients, "throughput"));
    let closed = CLOSED.map(|clients| (CLOSING, clients, "throughput"));
    [(START, 1, "time")].into_iter().chain(bulk).chain(at_once).chain(small).chain(kept).chain(closed)
}

/// What each guest took, and ours in units of the others.
fn times(samples: &Samples) -> Table {
    let others = &GUESTS[1..];
    let cell = |value: Option<Estimate>| value.as_ref().map_or("-".into(), estimate);
    let line = |(name, clients, metric)| {
        let rounds = |guest: &str| samples.get(guest, name, clients as u64, metric);
        let unit =
            samples.rows().into_iter().find(|row| row.key.workload == name && row.key.metric == metric);
        let unit = unit.map_or_else(String::new, |row| row.key.unit);
        let own = GUESTS.iter().map(|guest| cell(samples.estimate(guest, name, clients as u64, metric)));
        let ratios = others.iter().map(|other| cell(ratio(rounds(OURS), rounds(other))));
        [title(name, clients), unit].into_iter().chain(own).chain(ratios).collect()
    };
    let own = GUESTS.iter().map(|guest| (*guest).to_owned());
    let heading = ["".into(), "unit".into()].into_iter().chain(own);
    let ratios = others.iter().map(|other| format!("ours / {other}"));
    Table { heading: heading.chain(ratios).collect(), lines: timed().map(line).collect() }
}

/// Percent of requests that were refused or broken off, by guest.
fn failed(samples: &Samples) -> Table {
    let line = |(name, clients, _)| {
        let found = |guest: &&str| samples.estimate(guest, name, clients as u64, "failed");
        let found = GUESTS.iter().map(|guest| found(guest).as_ref().map_or("-".into(), estimate));
        [title(name, clients)].into_iter().chain(found).collect()
    };
    let heading = [""].into_iter().chain(GUESTS).map(String::from).collect();
    Table { heading, lines: timed().filter(|(_, clients, _)| *clients > 1).map(line).collect() }
}

/// Instructions, by guest.
fn counts(samples: &Samples) -> Table {
    let guests = &GUESTS[..COUNTING];
    let workloads = timed().map(|(name, clients, _)| (name, clients)).chain([(IDLE, 1)]);
    let line = |(name, clients)| {
        let found = |guest: &&str| samples.estimate(&counted(guest), name, clients as u64, "instructions");
        let all: Vec<_> = guests.iter().map(found).collect();
        let rows = samples.rows();
        let row = rows.iter().find(|row| row.key.is_counted() && row.key.workload == name)?;
        all.iter().any(Option::is_some).then(|| {
            let cells = all.iter().map(|found| found.as_ref().map_or("-".into(), estimate));
            [title(name, clients), row.key.unit.clone()].into_iter().chain(cells).collect()
        })
    };
    let heading = ["", "unit"].into_iter().chain(guests.iter().copied()).map(String::from).collect();
    Table { heading, lines: workloads.filter_map(line).collect() }
}

fn title(name: &str, clients: usize) -> String {
    match clients {
        1 => name.to_owned(),
        clients => format!("{name}, {clients} clients"),
    }
}

/// The targets, and what was found of them.
fn targets(samples: &Samples) -> Vec<Target> {
    let mut targets = Vec::new();
    for (name, clients, most) in INSTRUCTIONS {
        let found = samples.estimate(&counted(OURS), name, clients as u64, "instructions");
        let what = format!("{}: instructions", title(name, clients));
        targets.push(Target::new(what, Bound::AtMost(most), found));
    }
    for other in [LINUX, LINUX_TSC] {
        for (name, clients, least) in FASTER {
            let rounds = |guest: &str| samples.get(guest, name, clients as u64, "throughput");
            let what = format!("{}: ours / {other}", title(name, clients));
            targets.push(Target::new(what, Bound::AtLeast(least), ratio(rounds(OURS), rounds(other))));
        }
    }
    for (what, name, clients, metric, most) in [
        ("1 byte, closing, 200 clients: % refused", CLOSING, 200, "failed", 0.0),
        ("start to first byte, ms", START, 1, "time", MOST_TIME),
        ("start to first byte, 16 MiB of RAM, ms", SMALL_START, 1, "time", MOST_TIME),
        ("image without symbols, KiB", "image", 1, "size", MOST_SIZE),
    ] {
        let found = samples.estimate(OURS, name, clients, metric);
        targets.push(Target::new(what, Bound::AtMost(most), found));
    }
    targets
}

/// Names of files and plots.
fn charts(samples: &Samples) -> Vec<(&'static str, Chart)> {
    let looks = [(0, 0), (1, 1), (5, 1), (2, 1)];
    let guests = |name: fn(&str) -> String| -> Shown {
        styled(GUESTS.iter().zip(looks).map(|(guest, (colour, mark))| (name(guest), colour, mark)))
    };
    let (timed, mut counted) = (guests(str::to_owned), guests(counted));
    counted.truncate(COUNTING);
    let throughput = |name: &&'static str| {
        Panel::new(*name, &timed, &[], |guest| samples.by_depth(guest, name, "throughput"))
    };
    let instructions = |name: &&'static str| {
        let limit = INSTRUCTIONS.iter().find(|(other, ..)| other == name);
        let limit: Vec<_> = limit.map(|(.., most)| (*most, format!("target: {most}"))).into_iter().collect();
        Panel::new(*name, &counted, &limit, |guest| samples.by_depth(guest, name, "instructions"))
    };
    let chart = |title, shown, panels| Chart::new(title, "clients", shown, panels);
    let (requests, files) = ([KEEP_ALIVE, CLOSING, SMALL[0], SMALL[1]], [LARGE, AT_ONCE].concat());
    let both = requests.iter().chain(&LARGE).map(instructions).collect();
    let title = "Guest instructions per request, and per byte of the large file";
    vec![
        ("http-requests", chart("Requests per second", &timed, requests.iter().map(throughput).collect())),
        ("http-files", chart("MiB per second", &timed, files.iter().map(throughput).collect())),
        ("http-instructions", chart(title, &counted, both)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::{files::FULL, key, plan};
    use super::*;

    /// Figures of every guest: ours so many times as fast as Linux, with that many instructions.
    fn samples(faster: f64, instructions: f64) -> Samples {
        let mut samples = Samples::default();
        for (guest, rate) in GUESTS.into_iter().zip([100.0 * faster, 100.0, 50.0, 100.0]) {
            for task in plan::timed(FULL) {
                samples.add(key(guest, task.name, task.clients, "throughput", "requests/s"), rate);
                samples.add(key(guest, task.name, task.clients, "failed", "%"), 0.0);
            }
            samples.add(key(guest, START, 1, "time", "ms"), 1e4 / rate);
            for task in plan::counted(FULL) {
                let metric = key(&counted(guest), task.name, task.clients, "instructions", "each");
                samples.add(metric, instructions);
            }
        }
        samples.add(key(OURS, SMALL_START, 1, "time", "ms"), 50.0);
        samples.add(key(OURS, "image", 1, "size", "KiB"), 700.0);
        samples
    }

    #[test]
    fn targets_are_judged() {
        let missed = |faster, instructions| {
            let text = targets::table(&targets(&samples(faster, instructions))).to_string();
            assert!(!text.contains("not measured"), "{text}");
            text.matches("missed").count()
        };
        assert_eq!((missed(10.0, 2.0), missed(10.0, 2.2)), (0, 1));
        // Twice as fast is enough for files that are not small, twice; but for requests it is not.
        assert_eq!((missed(2.0, 2.0), missed(0.5, 2.0)), (2 * 7, 2 * 11 + 1));
        assert_eq!(missed(10.0, 50e3), 2 + 3 + 1);
        let text = targets::table(&targets(&Samples::default())).to_string();
        assert_eq!(text.matches("not measured").count(), 8 + 2 * 11 + 4);
    }

    #[test]
    fn everything_measured_is_shown() {
        let samples = samples(2.0, 5.0);
        let lines = |table: Table| table.lines.iter().filter(|line| !line.contains(&"-".into())).count();
        let shown = [times(&samples), failed(&samples), counts(&samples)].map(lines);
        assert_eq!(shown, [1 + 2 + 2 + 2 + 3 + 3, 2 + 2 + 2, 2 + 2 + 3 + 2]);
        let line = times(&samples).lines.swap_remove(1);
        assert_eq!(line, ["large file, cold", "requests/s", "200", "100", "50", "100", "2", "4", "2"]);
        for (_, chart) in charts(&samples) {
            let points = |panel: &Panel| panel.series.iter().map(|series| series.points.len()).min();
            assert!(
                chart.panels.iter().all(|panel| points(panel) >= Some(1)) || chart.title.contains("Guest")
            );
        }
    }
}
