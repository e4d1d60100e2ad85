//! Plots of `bench blk`.

use super::{CEILING_SHARE, PACKED, SPLIT, Setting, WORKLOADS};
use crate::bench::figures::{Samples, ratio};
use crate::bench::plot::{Chart, Panel, Shown, styled};

/// Names of files and plots.
pub fn all(samples: &Samples) -> Vec<(&'static str, Chart)> {
    let (timed, counted) = (timed(), counted());
    let by_depth = |metric: &'static str, factor: f64| {
        let panel = |(workload, title): (&'static str, &str)| {
            Panel::new(title, &timed, &[], |guest| {
                let points = samples.by_depth(guest, workload, metric).into_iter();
                points.map(|(depth, value)| (depth, value.scaled(factor))).collect()
            })
        };
        WORKLOADS.map(panel).into_iter()
    };
    let relative = WORKLOADS[..2].iter().map(|(workload, title)| relative(samples, workload, title, &timed));
    let limits = [SPLIT, PACKED].map(|setting| {
        let most = setting.most_instructions(32);
        (most, format!("target for {} from depth 32 on: {most}", setting.name("ours")))
    });
    let instructions = WORKLOADS[..2].iter().map(|(workload, title)| {
        Panel::new(*title, &counted, &limits, |guest| samples.by_depth(guest, workload, "instructions"))
    });
    let chart = |title, shown, panels| Chart::new(title, "requests in flight", shown, panels);
    let throughput = by_depth("throughput", 1.0).chain(relative).collect();
    vec![
        ("blk-throughput", chart("Requests per second", &timed, throughput)),
        ("blk-latency", chart("Mean latency in µs", &timed, by_depth("latency", 1e-3).collect())),
        ("blk-instructions", chart("Guest instructions per request", &counted, instructions.collect())),
    ]
}

/// The guests that matter most.
pub fn timed() -> Shown {
    let interrupts = Setting { interrupts: true, ..SPLIT };
    styled([
        (SPLIT.name("ours"), 0, 0),
        (PACKED.name("ours"), 6, 1),
        (SPLIT.name("ceiling"), 3, 2),
        (PACKED.name("ceiling"), 7, 2),
        (interrupts.name("ours"), 2, 0),
        (SPLIT.name("virtio-drivers"), 1, 3),
        ("linux".into(), 5, 1),
        ("linux-stripped".into(), 4, 1),
    ])
}

/// Those that count.
fn counted() -> Shown {
    let counted = |setting, guest| Setting { polling: false, ..setting }.counted(guest);
    styled([
        (counted(SPLIT, "ours"), 0, 0),
        (counted(PACKED, "ours"), 6, 1),
        (counted(SPLIT, "ceiling"), 3, 2),
        (counted(PACKED, "ceiling"), 7, 2),
        (counted(SPLIT, "virtio-drivers"), 1, 3),
    ])
}

/// Throughput in units of the ceiling of split rings.
fn relative(samples: &Samples, workload: &str, title: &str, timed: &Shown) -> Panel {
    let limits = [(CEILING_SHARE, format!("target from depth 32 on: {CEILING_SHARE}"))];
    let ceiling = SPLIT.name("ceiling");
    let get = |guest: &str, depth| samples.get(guest, workload, depth, "throughput");
    Panel::new(format!("{title}: share of the split ring's ceiling"), timed, &limits, |guest| {
        let depths = samples.by_depth(guest, workload, "throughput").into_iter().map(|(depth, _)| depth);
        depths.filter_map(|depth| Some((depth, ratio(get(guest, depth), get(&ceiling, depth))?))).collect()
    })
}
