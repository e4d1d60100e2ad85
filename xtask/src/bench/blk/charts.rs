//! Plots of `bench blk`.

use super::{CEILING_SHARE, DEPTHS, PACKED, SPLIT, Setting, WORKLOADS};
use crate::bench::figures::{Estimate, Samples, ratio};
use crate::bench::plot::{Chart, Panel, Series, Style};

/// A guest and how it looks in plots.
type Guest = (String, Style);

/// Names of files and plots.
pub fn all(samples: &Samples) -> [(&'static str, Chart); 3] {
    let throughput = WORKLOADS.map(|workload| by_depth(samples, workload, "throughput", 1.0, &timed()));
    let latency = WORKLOADS.map(|workload| by_depth(samples, workload, "latency", 1e-3, &timed()));
    let instructions =
        [0, 1].map(|number| by_depth(samples, WORKLOADS[number], "instructions", 1.0, &counted()));
    let relative = [0, 1].map(|number| relative(samples, WORKLOADS[number]));
    let panels =
        |panels: Vec<Panel>, logarithmic| panels.into_iter().map(move |panel| Panel { logarithmic, ..panel });
    let throughput = panels(throughput.into(), true).chain(panels(relative.into(), false)).collect();
    let limits = [SPLIT, PACKED].map(|setting| {
        let most = setting.most_instructions(32);
        (most, format!("target for {} from depth 32 on: {most}", setting.name("ours")))
    });
    let instructions =
        panels(instructions.into(), false).map(|panel| Panel { limits: limits.to_vec(), ..panel }).collect();
    [
        ("blk-throughput.svg", chart("Requests per second", &timed(), throughput)),
        ("blk-latency.svg", chart("Mean latency in µs", &timed(), panels(latency.into(), true).collect())),
        ("blk-instructions.svg", chart("Guest instructions per request", &counted(), instructions)),
    ]
}

/// The guests that matter most.
pub fn timed() -> Vec<Guest> {
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
fn counted() -> Vec<Guest> {
    let counted = |setting, guest| Setting { polling: false, ..setting }.counted(guest);
    styled([
        (counted(SPLIT, "ours"), 0, 0),
        (counted(PACKED, "ours"), 6, 1),
        (counted(SPLIT, "ceiling"), 3, 2),
        (counted(PACKED, "ceiling"), 7, 2),
        (counted(SPLIT, "virtio-drivers"), 1, 3),
    ])
}

fn styled<const N: usize>(guests: [(String, usize, usize); N]) -> Vec<Guest> {
    guests.map(|(guest, colour, mark)| (guest, Style { colour, mark })).into()
}

/// A guest's name without what says that it was counting.
pub fn without_count(guest: &str) -> &str {
    guest.trim_end_matches(", sleeping, counted")
}

fn chart(title: &str, guests: &[Guest], panels: Vec<Panel>) -> Chart {
    let legend = guests.iter().map(|(guest, style)| (*style, without_count(guest).to_owned()));
    Chart {
        title: title.into(),
        legend: legend.collect(),
        size: (560.0, 320.0),
        across: 2,
        depth: "requests in flight".into(),
        panels,
    }
}

/// What `value` gives for each of `guests` at each depth.
fn panel(title: String, guests: &[Guest], value: impl Fn(&str, u64) -> Option<Estimate>) -> Panel {
    let series = |(number, (guest, style)): (usize, &Guest)| Series {
        style: *style,
        shift: 4.0 * (number as f64 - (guests.len() - 1) as f64 / 2.0),
        points: DEPTHS.iter().filter_map(|depth| Some((*depth, value(guest, *depth)?))).collect(),
    };
    Panel {
        title,
        logarithmic: false,
        series: guests.iter().enumerate().map(series).collect(),
        limits: Vec::new(),
    }
}

/// A metric times `scale`.
fn by_depth(
    samples: &Samples,
    (workload, title): (&str, &str),
    metric: &str,
    scale: f64,
    guests: &[Guest],
) -> Panel {
    panel(title.into(), guests, |guest, depth| {
        let rounds = samples.get(guest, workload, depth, metric);
        let scaled: Vec<f64> = rounds.iter().map(|value| value * scale).collect();
        (!scaled.is_empty()).then(|| Estimate::of(&scaled))
    })
}

/// Throughput in units of the ceiling of split rings.
fn relative(samples: &Samples, (workload, title): (&str, &str)) -> Panel {
    let throughput = |guest: &str, depth| samples.get(guest, workload, depth, "throughput");
    let panel = panel(format!("{title}: share of the split ring's ceiling"), &timed(), |guest, depth| {
        ratio(throughput(guest, depth), throughput(&SPLIT.name("ceiling"), depth))
    });
    Panel { limits: vec![(CEILING_SHARE, format!("target from depth 32 on: {CEILING_SHARE}"))], ..panel }
}
