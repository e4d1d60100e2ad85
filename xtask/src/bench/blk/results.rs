//! What `bench blk` found, for people and for programs.

use anyhow::Result;

use super::{CEILING_SHARE, PACKED, SPLIT, Setting, WORKLOADS, charts};
use crate::bench::figures::{Estimate, Row, Samples, ratio};
use crate::bench::report::{self, Table};
use crate::bench::targets::{self, Bound, Target};
use crate::bench::{Found, write};

/// What the first measurements on the target machine gave for `virtio-drivers` in units of the ceiling,
/// cycles per request at depth 1: 9,600 to 10,300 against 4,880. The ceiling here may be off by a tenth.
const CEILING: Bound = Bound::Within(0.9 * 9600.0 / 4880.0, 1.1 * 10_300.0 / 4880.0);
/// Depths of `virtio-drivers`, of which the best counts.
const THEIR_DEPTHS: [u64; 3] = [1, 4, 16];

const WHAT: &str = "\
Guests: **ours**, the public interface of the drivers; **ceiling**, the smallest ring loop there can be, with prebuilt \
descriptors and no features but its ring format; **virtio-drivers**, that crate in our kernel, by its blocking call at \
depth 1 and by its other calls, with indirect descriptors, up to depth 16; **linux**, Debian's kernel with fio and io_uring, no \
I/O scheduler, on the device as it is by default; **linux-stripped**, the same with `mitigations=off` on a device without \
EVENT_IDX, INDIRECT_DESC, request merging and RING_RESET.

The device, `null-co`, answers at once, in a thread of its own that looks for requests for a while before it sleeps; where it \
is called *sleeping*, it always sleeps and has to be woken. Guests poll; with *interrupts* they halt when \
nothing is ready.

All machines are started several times, in turns. A round is 20 ms for each guest, workload and depth (Linux: 500 ms), guests \
one after the other. Figures are medians, ± half of the 95 % interval; ratios compare round with round.";

const COUNTS: &str = "\
From runs of their own under `-icount`, with a sleeping device. Instructions are the guest's, for submitting and completing a \
request; waiting for the device is not in them.";

/// Prints the most important of it, and writes all to files.
pub fn publish(setup: &[String], found: &Found) -> Result<()> {
    let rows = found.samples.rows();
    let targets = targets::table(&targets(&found.samples));
    println!("\n{WHAT}\n\nFeatures that were negotiated");
    found.info.iter().for_each(|line| println!("{line}"));
    println!();
    for (title, table) in summary(&rows) {
        println!("{title}\n{}", table.text());
    }
    println!("Targets\n{}", targets.text());

    let mut page = format!(
        "# Block benchmark\n\n{WHAT}\n\n## Targets\n\n{}\n![Throughput](blk-throughput.svg)\n![Latency](blk-latency.svg)\n\
         ![Instructions](blk-instructions.svg)\n\n",
        targets.markdown()
    );
    for (title, table) in tables(&rows) {
        page += &format!("## {title}\n\n{}\n", table.markdown());
    }
    page += &format!(
        "{COUNTS}\n\n## Features and machines\n\n{}\n{}",
        report::verbatim(&found.info),
        report::verbatim(setup)
    );
    write("blk.json", &report::json(&rows)?)?;
    write("blk.md", &page)?;
    for (name, chart) in charts::all(&found.samples) {
        write(name, &chart.svg())?;
    }
    Ok(())
}

/// What a person wants to know first.
fn summary(rows: &[Row]) -> Vec<(&'static str, Table)> {
    let main: Vec<String> = charts::timed().into_iter().map(|(guest, _)| guest).collect();
    let main = |row: &Row| main.contains(&row.key.guest);
    let read = |row: &Row, metric| row.key.metric == metric && row.key.workload == "read4k";
    let variant = |row: &Row| {
        read(row, "throughput")
            && row.key.guest.starts_with("ours")
            && [1, 32, 64].map(Some).contains(&row.key.depth)
    };
    vec![
        ("4 KiB random read, requests/s", table(rows, |row| main(row) && read(row, "throughput"), guest)),
        (
            "4 KiB random read, mean latency in ns",
            table(rows, |row| main(row) && read(row, "latency"), guest),
        ),
        ("4 KiB random read, requests/s on every machine", table(rows, variant, guest)),
        (
            "4 KiB random read, counts per request",
            table(rows, |row| is_counted(row) && row.key.workload == "read4k", counted),
        ),
    ]
}

/// All of it.
fn tables(rows: &[Row]) -> Vec<(String, Table)> {
    let mut tables = Vec::new();
    for (workload, title) in WORKLOADS {
        for (metric, unit) in [
            ("throughput", "requests/s"),
            ("latency", "mean latency in ns"),
            ("latency p99", "99th percentile of latency in ns"),
        ] {
            let chosen = |row: &Row| row.key.metric == metric && row.key.workload == workload;
            tables.push((format!("{title}, {unit}"), table(rows, chosen, guest)));
        }
    }
    for metric in ["kicks", "interrupts", "halts"] {
        let chosen = |row: &Row| row.key.metric == metric && row.key.workload == "read4k" && !is_counted(row);
        tables.push((format!("4 KiB random read, {metric} per request"), table(rows, chosen, guest)));
    }
    tables.push(("Counts per request".into(), table(rows, is_counted, counted)));
    tables
}

fn table(rows: &[Row], chosen: impl Fn(&Row) -> bool, name: impl Fn(&Row) -> String) -> Table {
    let rows: Vec<&Row> = rows.iter().filter(|row| chosen(row)).collect();
    Table::by_depth("in flight", &rows, name)
}

fn guest(row: &Row) -> String {
    row.key.guest.clone()
}

/// The guest of a row that was counted, and what was counted.
fn counted(row: &Row) -> String {
    format!("{}, {}: {}", charts::without_count(&row.key.guest), row.key.workload, row.key.metric)
}

fn is_counted(row: &Row) -> bool {
    row.key.guest.ends_with("counted")
}

/// The targets, and what was found of them.
fn targets(samples: &Samples) -> Vec<Target> {
    let throughput = |guest: &str, depth| samples.get(guest, "read4k", depth, "throughput");
    let over = |guest: &str, depth, other: &str, other_depth| {
        ratio(throughput(guest, depth), throughput(other, other_depth))
    };
    let median = |guest: &str, depth| {
        let rounds = throughput(guest, depth);
        if rounds.is_empty() { 0.0 } else { Estimate::of(rounds).median }
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
            let rounds = samples.get(&counted, "read4k", depth, metric);
            let found = (!rounds.is_empty()).then(|| Estimate::of(rounds));
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
        let text = targets::table(&targets(&samples)).text();
        let verdict = |what: &str| {
            let line =
                text.lines().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{what}: {text}"));
            line.split("  ").last().unwrap().trim().to_owned()
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
