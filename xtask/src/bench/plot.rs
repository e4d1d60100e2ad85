//! Plots as SVG.

use std::fmt::Write;

use super::report::{Line, Report, thousands};

/// Size of one panel and of its margins, in pixels.
const PANEL: (f64, f64) = (300.0, 250.0);
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 40.0;
/// Panels in a row, and the height of the heading above all.
const ACROSS: usize = 4;
const HEADING: f64 = 64.0;
/// Colours that differ for colour-blind people too (Okabe and Ito), by metric.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#e69f00"];

/// One panel for each workload: medians by depth, a colour for each metric, a mark for each guest. Zeroing, which is far off
/// the scale of the rest, is left out.
pub fn by_depth(title: &str, report: &Report) -> String {
    let mut workloads: Vec<&str> = report.lines.iter().map(|line| line.workload.as_str()).collect();
    workloads.dedup();
    let mut guests: Vec<&str> = report.columns.iter().map(|(guest, _)| guest.as_str()).collect();
    guests.dedup();
    let mut depths: Vec<u64> = report.columns.iter().map(|(_, depth)| *depth).collect();
    depths.sort_unstable();
    depths.dedup();

    let (width, height) =
        (ACROSS as f64 * PANEL.0, HEADING + workloads.len().div_ceil(ACROSS) as f64 * PANEL.1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"18\" font-weight=\"bold\">{title}</text>\n"
    );
    for (number, guest) in guests.iter().enumerate() {
        let x = 20.0 + 150.0 * number as f64;
        svg += &mark(number, x, 46.0, "#555555");
        svg += &text(x + 10.0, 50.0, "start", "#000000", guest);
    }
    for (number, workload) in workloads.iter().enumerate() {
        let (x, y) = ((number % ACROSS) as f64 * PANEL.0, HEADING + (number / ACROSS) as f64 * PANEL.1);
        let lines = report.lines.iter().filter(|line| line.workload == *workload && line.metric != "zero");
        let panel = Panel { report, guests: &guests, depths: &depths, lines: lines.collect() };
        _ = writeln!(svg, "<g transform=\"translate({x} {y})\">\n{}</g>", panel.draw(workload));
    }
    svg + "</svg>\n"
}

struct Panel<'a> {
    report: &'a Report,
    guests: &'a [&'a str],
    depths: &'a [u64],
    lines: Vec<&'a Line>,
}

impl Panel<'_> {
    fn draw(&self, title: &str) -> String {
        let largest = self.lines.iter().map(|line| line.largest).max().unwrap_or(0);
        let step = step(largest);
        let top = largest.div_ceil(step).max(1) * step;
        let y = |count: u64| PANEL.1 - BOTTOM - (PANEL.1 - TOP - BOTTOM) * count as f64 / top as f64;
        let x = |depth: u64| {
            let place = self.depths.iter().position(|other| *other == depth).unwrap_or(0);
            LEFT + (PANEL.0 - LEFT - RIGHT) * (place as f64 + 0.5) / self.depths.len() as f64
        };

        let mut svg =
            format!("<text x=\"12\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n");
        for count in (0..=top).step_by(step as usize) {
            let (y, end) = (y(count), PANEL.0 - RIGHT);
            _ = writeln!(svg, "<path d=\"M{LEFT} {y:.1}H{end}\" stroke=\"#dddddd\"/>");
            svg += &text(LEFT - 5.0, y + 4.0, "end", "#555555", &thousands(count));
        }
        for depth in self.depths {
            svg += &text(x(*depth), PANEL.1 - BOTTOM + 16.0, "middle", "#555555", &thousands(*depth));
        }
        svg += &text(
            (LEFT + PANEL.0 - RIGHT) / 2.0,
            PANEL.1 - BOTTOM + 31.0,
            "middle",
            "#555555",
            "live mappings",
        );
        for (number, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let (column, row) = ((number % 2) as f64, (number / 2) as f64);
            svg += &text(12.0 + 118.0 * column, 32.0 + 12.0 * row, "start", colour, &line.metric);
            for (guest, name) in self.guests.iter().enumerate() {
                let points: Vec<_> = self
                    .report
                    .columns
                    .iter()
                    .zip(&line.medians)
                    .filter(|((other, _), _)| other == name)
                    // Side by side, so that equal figures are all seen.
                    .filter_map(|((_, depth), median)| {
                        Some((x(*depth) + 10.0 * (guest as f64 - 1.0), y((*median)?)))
                    })
                    .collect();
                let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
                if !path.is_empty() {
                    _ = writeln!(
                        svg,
                        "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" opacity=\"0.5\"/>",
                        path.join("L")
                    );
                }
                points.iter().for_each(|(x, y)| svg += &mark(guest, *x, *y, colour));
            }
        }
        svg
    }
}

/// Distance of grid lines, 1, 2 or 5 times a power of ten, for at most five of them.
fn step(largest: u64) -> u64 {
    let steps = (0..19).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power)));
    steps.into_iter().find(|step| largest.div_ceil(*step) <= 5).unwrap_or(u64::MAX)
}

/// The mark of a guest: a disc, a square, a triangle.
fn mark(guest: usize, x: f64, y: f64, colour: &str) -> String {
    match guest % 3 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n"),
        1 => format!("<path d=\"M{:.1} {:.1}h6v6h-6z\" fill=\"{colour}\"/>\n", x - 3.0, y - 3.0),
        _ => format!("<path d=\"M{x:.1} {:.1}l4 7h-8z\" fill=\"{colour}\"/>\n", y - 4.0),
    }
}

fn text(x: f64, y: f64, anchor: &str, colour: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        let cases =
            [(0, 1), (5, 1), (6, 2), (39, 10), (907, 200), (2400, 500), (7236, 2000), (360_471, 100_000)];
        cases.into_iter().for_each(|(largest, expected)| assert_eq!(step(largest), expected, "{largest}"));
    }
}
