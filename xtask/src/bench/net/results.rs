//! What `bench net` found, for people and for programs.

use anyhow::Result;

use super::{PACKED, SPLIT, Setting};
use crate::bench::figures::{Estimate, Row, Samples, ratio};
use crate::bench::plot::{Chart, Panel, Series, Style};
use crate::bench::report::{self, Table};
use crate::bench::targets::{self, Bound, Target};
use crate::bench::{Found, write};

/// Most instructions that a frame of 60 bytes may take, sent and received, in batches of 32.
const INSTRUCTIONS: [(Setting, f64); 2] = [(SPLIT, 75.0), (PACKED, 110.0)];
/// Lengths of frames, and most instructions that copying one may take for a byte.
const COPYING: [(u32, f64); 2] = [(60, 1.0), (1514, 0.3)];
/// The least share of the ceiling's frames. With one batch on its way QEMU's thread runs out of work after each;
/// whether it falls asleep before the next one comes decides the figure, by a factor of 2, and that hangs on a
/// few microseconds: what the rings cost is seen with two.
const SHARE: f64 = 0.92;
const SHARED: &str = "60 B, hub, two batches";
const WORKLOADS: [&str; 8] = [
    "60 B, hub",
    "1514 B, hub",
    SHARED,
    "1514 B, hub, two batches",
    "60 B, send to the host",
    "1514 B, send to the host",
    "60 B, receive from the host",
    "1514 B, receive from the host",
];
const TRIPS: [&str; 2] = ["60 B, hub, there and back", "60 B, host, there and back"];
const LATENCIES: [&str; 2] = ["latency, median", "latency, 99th percentile"];

const WHAT: &str = "\
Guests: **ours**, the public interface of the drivers, which writes each frame into the buffer that it sends and, as a stack \
that parses in place would, does not copy what it receives; **ceiling**, the smallest ring loop there can be: buffers go \
round, descriptors and frames are written beforehand, no feature but the ring format is used; **virtio-drivers**, that crate in our kernel, with frames written \
beforehand, split rings only.

*Hub*: two network cards of one guest on one hub in QEMU, no process of the host in the way. A batch is sent by the one \
card, then received by the other, whose buffers are given back as a batch, before the next one is sent. QEMU's thread has \
nothing to do then: whether it goes to sleep, and has to be woken for the next batch, depends on a few microseconds. *Two \
batches*: as many are on their way, so that it always has work; the next one is sent when the first of them has arrived. \
*Host*: a card on a unix datagram socket, whose other end takes frames and, when asked to, sends some. Guests poll.

All machines are started several times, in turns. A round is 5 ms for each guest, workload and batch, guests one after the \
other, the device reset in between. Figures are medians, ± half of the 95 % interval; ratios compare round with round.";

const COUNTS: &str = "\
From runs of their own under `-icount`. Instructions are the guest's, for sending a frame and receiving it; waiting is not in \
them. Copying is not, but in the line *with both copies*, where each frame is copied when it is sent and again when it is \
received. A kick is one write to a register, and the only access to one. Counting begins when each buffer was used once; \
before that QEMU interrupts once for each queue with EVENT_IDX, at its first completion, whatever the driver asks for.";

/// Prints everything and writes it to files.
pub fn publish(setup: &[String], found: &Found) -> Result<()> {
    let rows = found.samples.rows();
    let targets = targets::table(&targets(&found.samples));
    let tables = tables(&rows);

    println!("\n{WHAT}\n");
    tables.iter().for_each(|(title, table)| println!("{title}\n{}", table.text()));
    println!("Targets\n{}", targets.text());

    let mut page = format!(
        "# Network benchmark\n\n{WHAT}\n\n## Targets\n\n{}\n![Throughput](net-throughput.svg)\n\
         ![Latency](net-latency.svg)\n![Instructions](net-instructions.svg)\n\n",
        targets.markdown()
    );
    for (title, table) in &tables {
        page += &format!("## {title}\n\n{}\n", table.markdown());
    }
    page += &format!(
        "{COUNTS}\n\n## Features and machines\n\n{}\n{}",
        report::verbatim(&found.info),
        report::verbatim(setup)
    );
    write("net.json", &report::json(&rows)?)?;
    write("net.md", &page)?;
    write("net-throughput.svg", &throughput(&rows).svg())?;
    write("net-latency.svg", &latency(&rows).svg())?;
    write("net-instructions.svg", &instructions(&rows).svg())
}

fn is_counted(row: &Row) -> bool {
    row.key.guest.ends_with("counted")
}

/// Titles and tables.
fn tables(rows: &[Row]) -> Vec<(String, Table)> {
    let table = |title: String, chosen: &dyn Fn(&Row) -> bool, name: &dyn Fn(&Row) -> String| {
        let rows: Vec<&Row> = rows.iter().filter(|row| chosen(row)).collect();
        (title, Table::by_depth("batch", &rows, name))
    };
    let guest = |row: &Row| row.key.guest.clone();
    let mut tables = Vec::new();
    for workload in WORKLOADS {
        for (metric, unit) in [("throughput", "frames/s"), ("cycles", "cycles per frame")] {
            let chosen = |row: &Row| row.key.metric == metric && row.key.workload == workload;
            tables.push(table(format!("{workload}, {unit}"), &chosen, &guest));
        }
    }
    for trip in TRIPS {
        let chosen = |row: &Row| row.key.workload == trip;
        let name = |row: &Row| format!("{}: {}", row.key.guest, row.key.metric);
        tables.push(table(format!("{trip}, ns"), &chosen, &name));
    }
    for metric in ["kicks", "receive interrupts", "transmit interrupts"] {
        let chosen =
            |row: &Row| row.key.metric == metric && row.key.workload == WORKLOADS[0] && !is_counted(row);
        tables.push(table(format!("{}, {metric} per frame", WORKLOADS[0]), &chosen, &guest));
    }
    let name = |row: &Row| {
        let guest = row.key.guest.trim_end_matches(", counted");
        format!("{guest}, {}: {}", row.key.workload, row.key.metric)
    };
    tables.push(table("Counts per frame".into(), &is_counted, &name));
    tables
}

/// The targets, and what was found of them.
fn targets(samples: &Samples) -> Vec<Target> {
    let mut targets = Vec::new();
    for (setting, instructions) in INSTRUCTIONS {
        let (ours, ceiling) = (setting.name("ours"), setting.name("ceiling"));
        for (workload, batch) in
            [WORKLOADS[0], SHARED].into_iter().flat_map(|workload| [(workload, 32), (workload, 128)])
        {
            let frames = |guest: &str| samples.get(guest, workload, batch, "throughput");
            let what = format!("{ours}, {workload}, batches of {batch}: frames/s / ceiling");
            targets.push(Target::new(what, Bound::AtLeast(SHARE), ratio(frames(&ours), frames(&ceiling))));
        }
        for (metric, most) in
            [("instructions", instructions), ("transmit interrupts", 0.0), ("allocations", 0.0)]
        {
            let rounds = samples.get(&setting.counted("ours"), WORKLOADS[0], 32, metric);
            let found = (!rounds.is_empty()).then(|| Estimate::of(rounds));
            let what = format!("{ours}, 60 B, batches of 32: {metric} per frame");
            targets.push(Target::new(what, Bound::AtMost(most), found));
        }
        for (length, most) in COPYING {
            let what = format!("{ours}, {length} B, batches of 32: instructions to copy a byte");
            targets.push(Target::new(what, Bound::AtMost(most), copying(samples, setting, length)));
        }
    }
    targets
}

/// Instructions to copy one byte of a frame of `length` bytes: the copies are one in and one out.
fn copying(samples: &Samples, setting: Setting, length: u32) -> Option<Estimate> {
    let counted = |metric| {
        samples.get(&setting.counted("ours"), &format!("{length} B, hub"), 32, metric).iter().copied()
    };
    let both = counted("instructions with both copies").zip(counted("instructions"));
    let each: Vec<f64> = both.map(|(with, without)| (with - without) / f64::from(2 * length)).collect();
    (!each.is_empty()).then(|| Estimate::of(&each))
}

/// The guests that charts show, and how.
fn guests() -> [(String, Style); 5] {
    [
        (SPLIT.name("ours"), 0, 0),
        (PACKED.name("ours"), 6, 1),
        (SPLIT.name("ceiling"), 3, 2),
        (PACKED.name("ceiling"), 7, 2),
        (SPLIT.name("virtio-drivers"), 1, 3),
    ]
    .map(|(guest, colour, mark)| (guest, Style { colour, mark }))
}

/// A chart with a panel for each workload and metric in `panels`.
fn chart(
    rows: &[Row],
    title: &str,
    panels: &[(&str, &str)],
    suffix: &str,
    limits: &[(f64, String)],
) -> Chart {
    let guests = guests();
    let panel = |(workload, metric): &(&str, &str)| {
        let series = |(number, (guest, style)): (usize, &(String, Style))| {
            let guest = format!("{guest}{suffix}");
            let key = (guest.as_str(), *workload, *metric);
            let chosen = rows.iter().filter(|row| {
                (row.key.guest.as_str(), row.key.workload.as_str(), row.key.metric.as_str()) == key
            });
            Series {
                style: *style,
                shift: 4.0 * (number as f64 - 2.0),
                points: chosen.filter_map(|row| Some((row.key.depth?, row.value))).collect(),
            }
        };
        Panel {
            title: if metric.starts_with("latency") {
                format!("{workload}, {}", metric.trim_start_matches("latency, "))
            } else {
                (*workload).into()
            },
            logarithmic: limits.is_empty(),
            series: guests.iter().enumerate().map(series).collect(),
            limits: limits.into(),
        }
    };
    Chart {
        title: title.into(),
        legend: guests.iter().map(|(guest, style)| (*style, guest.clone())).collect(),
        size: (560.0, 340.0),
        across: 2,
        depth: "frames in a batch".into(),
        panels: panels.iter().map(panel).collect(),
    }
}

fn throughput(rows: &[Row]) -> Chart {
    chart(rows, "Frames per second", &WORKLOADS.map(|workload| (workload, "throughput")), "", &[])
}

fn latency(rows: &[Row]) -> Chart {
    let panels: Vec<_> = TRIPS.iter().flat_map(|trip| LATENCIES.map(|metric| (*trip, metric))).collect();
    chart(rows, "Time for an answer in ns", &panels, "", &[])
}

fn instructions(rows: &[Row]) -> Chart {
    let panels = [(WORKLOADS[0], "instructions"), (WORKLOADS[1], "instructions")];
    let limits = INSTRUCTIONS.map(|(setting, most)| {
        (most, format!("target for {}, 60 B, batches of 32: {most}", setting.name("ours")))
    });
    chart(rows, "Guest instructions per frame, sent and received", &panels, ", counted", &limits)
}

#[cfg(test)]
mod tests {
    use super::super::SETTINGS;
    use super::*;
    use crate::bench::figures::parse_sample;

    /// Figures of every guest at every workload, ours so much slower than the ceiling.
    fn samples(share: f64) -> Samples {
        let mut samples = Samples::default();
        let mut add = |line: String| {
            let (key, value) = parse_sample(&line).unwrap();
            samples.add(key, value);
        };
        for setting in SETTINGS {
            for guest in setting.guests().split('+') {
                let frames = if guest == "ours" { 1000.0 * share } else { 1000.0 };
                let (name, counted) = (setting.name(guest), setting.counted(guest));
                for batch in [1, 32, 128] {
                    for workload in WORKLOADS {
                        add(format!("{name}|{workload}|{batch}|throughput|frames/s|{frames}"));
                    }
                    for (length, copies) in [(60, 110.0), (1514, 820.0)] {
                        let counted = format!("{counted}|{length} B, hub|{batch}");
                        add(format!("{counted}|instructions|per frame|{}", 69.0 / share));
                        let with = (69.0 + copies) / share;
                        add(format!("{counted}|instructions with both copies|per frame|{with}"));
                    }
                    add(format!("{counted}|60 B, hub|{batch}|transmit interrupts|per frame|0"));
                    add(format!("{counted}|60 B, hub|{batch}|allocations|per frame|0"));
                }
                for metric in LATENCIES {
                    add(format!("{name}|{}|1|{metric}|ns|40000", TRIPS[0]));
                }
            }
        }
        samples
    }

    #[test]
    fn targets_are_judged() {
        let missed = |share: f64| {
            let text = targets::table(&targets(&samples(share))).text();
            assert!(!text.contains("not measured"), "{text}");
            text.matches("missed").count()
        };
        // At a half both formats miss four shares, the instructions, and both lengths' copies.
        assert_eq!((missed(0.92), missed(0.5)), (0, 14));
        assert_eq!(targets::table(&targets(&Samples::default())).text().matches("not measured").count(), 18);
    }

    #[test]
    fn everything_measured_is_shown() {
        let rows = samples(1.0).rows();
        let lines: usize = tables(&rows).iter().map(|(_, table)| table.lines.len()).sum();
        // 8 guests on 3 machines: 8 workloads, 2 latencies, 2 counts and 2 of either length.
        assert_eq!(lines, 8 * (8 + 2 + 2 + 2 * 2));
        for chart in [throughput(&rows), instructions(&rows)] {
            assert!(chart.panels[0].series.iter().all(|series| series.points.len() == 3));
        }
        assert!(latency(&rows).panels[0].series.iter().all(|series| series.points.len() == 1));
    }
}
