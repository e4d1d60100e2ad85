//! What `bench blk` found, for people and for programs.

use anyhow::Result;

use super::{CEILING_SHARE, PACKED, SPLIT, Setting, WORKLOADS, charts};
use crate::bench::Found;
use crate::bench::figures::{Key, Row, Samples, ratio};
use crate::bench::report::{self, Report, Tables};
use crate::bench::targets::{self, Bound, Target};

/// What the first measurements on the target machine gave for `virtio-drivers` in units of the ceiling,
/// cycles per request at depth 1: 9,600 to 10,300 against 4,880. The ceiling here may be off by a tenth.
const CEILING: Bound = Bound::Within(0.9 * 9600.0 / 4880.0, 1.1 * 10_300.0 / 4880.0);
/// Depths of `virtio-drivers`, of which the best counts.
const THEIR_DEPTHS: [u64; 3] = [1, 4, 16];

/// Prints the most important of it, and writes all to files.
pub fn publish(setup: &[String], found: &Found) -> Result<()> {
    let rows = found.samples.rows();
    let parts = vec![
        ("targets", targets::table(&targets(&found.samples)).to_string()),
        ("summary", summary(&rows)),
        ("features", report::verbatim(&found.info)),
        ("setup", report::verbatim(setup)),
        ("tables", tables(&rows)),
    ];
    let (page, charts) = (include_str!("page.md"), charts::all(&found.samples));
    Report { name: "blk", page, parts, charts, rows: &rows }.publish()
}

/// What a person wants to know first.
fn summary(rows: &[Row]) -> String {
    let timed = charts::timed();
    let main = |key: &Key| timed.iter().any(|(guest, _)| *guest == key.guest);
    let read = |key: &Key, metric| key.metric == metric && key.workload == "read4k";
    let variant = |key: &Key| {
        let depth = [1, 32, 64].map(Some).contains(&key.depth);
        depth && read(key, "throughput") && key.guest.starts_with("ours")
    };
    let mut tables = Tables::new("in flight", rows);
    tables.add("4 KiB random read, requests/s", |key| main(key) && read(key, "throughput"), guest);
    tables.add("4 KiB random read, mean latency in ns", |key| main(key) && read(key, "latency"), guest);
    tables.add("4 KiB random read, requests/s on every machine", variant, guest);
    let counted = |key: &Key| key.is_counted() && key.workload == "read4k";
    tables.add("4 KiB random read, counts per request", counted, Key::counted);
    tables.text
}

/// All of it.
fn tables(rows: &[Row]) -> String {
    let mut tables = Tables::new("in flight", rows);
    for (workload, title) in WORKLOADS {
        for (metric, unit) in [
            ("throughput", "requests/s"),
            ("latency", "mean latency in ns"),
            ("latency p99", "99th percentile of latency in ns"),
        ] {
            let chosen = |key: &Key| key.metric == metric && key.workload == workload;
            tables.add(&format!("{title}, {unit}"), chosen, guest);
        }
    }
    for metric in ["kicks", "interrupts", "halts"] {
        let chosen = |key: &Key| key.metric == metric && key.workload == "read4k" && !key.is_counted();
        tables.add(&format!("4 KiB random read, {metric} per request"), chosen, guest);
    }
    tables.add("Counts per request", Key::is_counted, Key::counted);
    tables.text
}

fn guest(key: &Key) -> String {
    key.guest.clone()
}

/// The targets, and what was found of them.
fn targets(samples: &Samples) -> Vec<Target> {
    let throughput = |guest: &str, depth| samples.get(guest, "read4k", depth, "throughput");
    let over = |guest: &str, depth, other: &str, other_depth| {
        ratio(throughput(guest, depth), throughput(other, other_depth))
    };
    let median = |guest: &str, depth| {
        samples.estimate(guest, "read4k", depth, "throughput").map_or(0.0, |found| found.median)
    };
    let theirs = SPLIT.name("virtio-drivers");
    let best = THEIR_DEPTHS
        .into_iter()
        .max_by(|a, b| median(&theirs, *a).total_cmp(&median(&theirs, *b)))
        .unwrap_or(1);
    let ceiling = SPLIT.name("ceiling");

    let mut targets = vec![Target::new(
        "the ceiling is right: ceiling / virtio-drivers, depth 1",
        CEILING,
        over(&ceiling, 1, &theirs, 1),
    )];
    for setting in [SPLIT, PACKED] {
        let (ours, ceiling) = (setting.name("ours"), setting.name("ceiling"));
        let mut add = |what: String, bound, found| targets.push(Target::new(what, bound, found));
        add(format!("{ours}, depth 1 / ceiling"), Bound::AtLeast(0.97), over(&ours, 1, &ceiling, 1));
        add(format!("{ours}, depth 1 / virtio-drivers"), Bound::AtLeast(1.9), over(&ours, 1, &theirs, 1));
        for depth in [32, 64] {
            add(
                format!("{ours}, depth {depth} / ceiling"),
                Bound::AtLeast(CEILING_SHARE),
                over(&ours, depth, &ceiling, depth),
            );
            add(
                format!("{ours}, depth {depth} / virtio-drivers, depth {best}, its best"),
                Bound::AtLeast(5.0),
                over(&ours, depth, &theirs, best),
            );
            for linux in ["linux", "linux-stripped"] {
                add(
                    format!("{ours}, depth {depth} / {linux}"),
                    Bound::AtLeast(50.0),
                    over(&ours, depth, linux, depth),
                );
            }
        }
        let interrupts = Setting { interrupts: true, ..setting };
        add(
            format!("{ours}, depth 32, interrupts / polling"),
            Bound::AtLeast(0.85),
            over(&interrupts.name("ours"), 32, &ours, 32),
        );
        let counted = Setting { polling: false, ..setting }.counted("ours");
        for (metric, depth, most) in [
            ("instructions", 32, setting.most_instructions(32)),
            ("instructions", 1, setting.most_instructions(1)),
            ("allocations", 32, 0.0),
        ] {
            let found = samples.estimate(&counted, "read4k", depth, metric);
            add(format!("{ours}, depth {depth}, {metric} per request"), Bound::AtMost(most), found);
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::parse_sample;

    #[test]
    fn targets_compare_what_they_say() {
        let mut samples = Samples::default();
        for (guest, depth, throughput) in [
            ("ours, split", 1, 97),
            ("ceiling, split", 1, 100),
            ("virtio-drivers, split", 1, 50),
            ("virtio-drivers, split", 4, 60),
            ("virtio-drivers, split", 16, 55),
            ("ours, split", 32, 540),
            ("ceiling, split", 32, 600),
            ("linux", 32, 9),
            ("ours, split, interrupts", 32, 378),
        ] {
            let line = format!("{guest}|read4k|{depth}|throughput|requests/s|{throughput}");
            let (key, value) = parse_sample(&line).unwrap();
            samples.add(key, value);
        }
        for counted in ["1|instructions|u|210", "32|instructions|u|126", "32|allocations|u|0"] {
            let line = format!("ours, split, sleeping, counted|read4k|{counted}");
            let (key, value) = parse_sample(&line).unwrap();
            samples.add(key, value);
        }
        let text = targets::table(&targets(&samples)).to_string();
        let verdict = |what: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("| {what}")))
                .unwrap_or_else(|| panic!("{what}: {text}"));
            line.trim_end_matches([' ', '|']).rsplit('|').next().unwrap().trim().to_owned()
        };
        assert_eq!(verdict("the ceiling is right"), "met");
        assert_eq!(verdict("ours, split, depth 1 / ceiling"), "met");
        assert_eq!(verdict("ours, split, depth 1 / virtio-drivers"), "met");
        assert_eq!(verdict("ours, split, depth 32 / ceiling"), "missed by 5.3 %");
        assert_eq!(verdict("ours, split, depth 32 / virtio-drivers, depth 4, its best"), "met");
        assert_eq!(verdict("ours, split, depth 32 / linux "), "met");
        assert_eq!(verdict("ours, split, depth 32 / linux-stripped"), "not measured");
        assert_eq!(verdict("ours, split, depth 32, interrupts / polling"), "missed by 17.6 %");
        assert_eq!(verdict("ours, split, depth 32, instructions"), "missed by 20.0 %");
        assert_eq!(verdict("ours, split, depth 1, instructions"), "missed by 5.0 %");
        assert_eq!(verdict("ours, split, depth 32, allocations"), "met");
        assert_eq!(verdict("ours, packed, depth 1 / ceiling"), "not measured");
        assert_eq!(verdict("ours, packed, depth 1, instructions"), "not measured");
    }
}
