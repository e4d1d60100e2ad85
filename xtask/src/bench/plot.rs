//! Plots as SVG.

use std::fmt::Write;

use super::figures::{Estimate, figure, plain, thousands};

/// Margins of a panel, in pixels.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 40.0;
/// The heading above all panels: height of its title, and of each line of the legend.
const TITLE: f64 = 42.0;
const LEGEND: f64 = 20.0;
/// Average width of a character in the legend.
const CHARACTER: f64 = 6.4;
/// Colours that differ for colour-blind people too (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#e69f00", "#56b4e9", "#777777"];

/// How a series looks: numbers of a colour and of a mark.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    pub colour: usize,
    pub mark: usize,
}

/// What is shown, and how it looks.
pub type Shown = Vec<(String, Style)>;

/// A style for each name: the number of a colour, then that of a mark.
pub fn styled(names: impl IntoIterator<Item = (String, usize, usize)>) -> Shown {
    names.into_iter().map(|(name, colour, mark)| (name, Style { colour, mark })).collect()
}

/// A figure of several panels.
pub struct Chart {
    pub title: String,
    pub legend: Shown,
    /// Size of each panel in pixels, and how many are side by side.
    pub size: (f64, f64),
    pub across: usize,
    /// What depth counts.
    pub depth: String,
    pub panels: Vec<Panel>,
}

/// Figures by depth.
pub struct Panel {
    pub title: String,
    pub logarithmic: bool,
    pub series: Vec<Series>,
    /// Lines across, with their names.
    pub limits: Vec<(f64, String)>,
}

/// One line in a panel.
pub struct Series {
    pub style: Style,
    /// Pixels to the right, so that equal figures of several series are all seen.
    pub shift: f64,
    pub points: Vec<(u64, Estimate)>,
}

impl Panel {
    /// A panel of what `points` says of each of `shown`; logarithmic unless it has limits.
    pub fn new<'a>(
        title: impl Into<String>,
        shown: &'a Shown,
        limits: &[(f64, String)],
        points: impl Fn(&'a str) -> Vec<(u64, Estimate)>,
    ) -> Self {
        let middle = (shown.len() as f64 - 1.0) / 2.0;
        let series = shown.iter().enumerate().map(|(number, (name, style))| Series {
            style: *style,
            shift: 4.0 * (number as f64 - middle),
            points: points(name),
        });
        Self {
            title: title.into(),
            logarithmic: limits.is_empty(),
            series: series.collect(),
            limits: limits.into(),
        }
    }
}

impl Chart {
    /// A chart of large panels, two side by side.
    pub fn new(title: &str, depth: &str, shown: &Shown, panels: Vec<Panel>) -> Self {
        let legend = shown.iter().map(|(name, style)| (plain(name).to_owned(), *style)).collect();
        Self { title: title.into(), legend, size: (560.0, 330.0), across: 2, depth: depth.into(), panels }
    }

    /// Draws it.
    pub fn svg(&self) -> String {
        let rows = self.panels.len().div_ceil(self.across);
        let width = self.across as f64 * self.size.0;
        let (legend, legend_height) = self.legend(width);
        let height = TITLE + legend_height + rows as f64 * self.size.1;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"12\" y=\"26\" font-size=\"18\" font-weight=\"bold\">{}</text>\n{legend}",
            escaped(&self.title),
        );
        for (number, panel) in self.panels.iter().enumerate() {
            let x = (number % self.across) as f64 * self.size.0;
            let y = TITLE + legend_height + (number / self.across) as f64 * self.size.1;
            let drawn = Frame::new(panel, self.size).draw(panel, &self.depth);
            _ = writeln!(svg, "<g transform=\"translate({x} {y})\">\n{drawn}</g>");
        }
        svg + "</svg>\n"
    }

    /// The legend, in as many lines as it needs, and its height.
    fn legend(&self, width: f64) -> (String, f64) {
        let (mut svg, mut x, mut y) = (String::new(), 20.0, TITLE + 4.0);
        for (name, style) in &self.legend {
            let end = x + 30.0 + CHARACTER * name.len() as f64;
            if end > width && x > 20.0 {
                (x, y) = (20.0, y + LEGEND);
            }
            let colour = COLOURS[style.colour % COLOURS.len()];
            _ = writeln!(svg, "<path d=\"M{:.1} {y:.1}h16\" stroke=\"{colour}\"/>", x - 8.0);
            svg += &mark(style.mark, x, y, colour);
            svg += &text(x + 14.0, y + 4.0, "start", "#000000", name);
            x += 30.0 + CHARACTER * name.len() as f64;
        }
        (svg, y - TITLE + LEGEND)
    }
}

/// Where depths and figures are in a panel.
struct Frame {
    size: (f64, f64),
    depths: Vec<u64>,
    /// Figures at the lines of the grid, with the lower and upper end.
    grid: Vec<f64>,
    logarithmic: bool,
}

impl Frame {
    fn new(panel: &Panel, size: (f64, f64)) -> Self {
        let points = || panel.series.iter().flat_map(|series| &series.points);
        let mut depths: Vec<u64> = points().map(|(depth, _)| *depth).collect();
        depths.sort_unstable();
        depths.dedup();
        let limits = || panel.limits.iter().map(|(limit, _)| *limit);
        let highest = points().map(|(_, value)| value.high).chain(limits()).fold(0.0, f64::max);
        let lowest = points().map(|(_, value)| value.low).chain(limits()).fold(highest, f64::min);
        let grid = match panel.logarithmic {
            true => decades(lowest, highest),
            false => {
                let step = step(highest);
                (0..=(highest / step).ceil().max(1.0) as u64).map(|line| line as f64 * step).collect()
            }
        };
        Self { size, depths, grid, logarithmic: panel.logarithmic }
    }

    fn x(&self, depth: u64) -> f64 {
        let place = self.depths.iter().position(|other| *other == depth).unwrap_or(0);
        LEFT + (self.size.0 - LEFT - RIGHT) * (place as f64 + 0.5) / self.depths.len() as f64
    }

    fn y(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.log10() } else { value };
        let (low, high) = (scale(self.grid[0]), scale(self.grid[self.grid.len() - 1]));
        let share = (scale(value.max(self.grid[0])) - low) / (high - low);
        self.size.1 - BOTTOM - (self.size.1 - TOP - BOTTOM) * share
    }

    fn draw(&self, panel: &Panel, depth_label: &str) -> String {
        let (right, bottom) = (self.size.0 - RIGHT, self.size.1 - BOTTOM);
        let mut svg = format!(
            "<text x=\"12\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{}</text>\n",
            escaped(&panel.title)
        );
        for value in &self.grid {
            let y = self.y(*value);
            _ = writeln!(svg, "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#dddddd\"/>");
            svg += &text(LEFT - 5.0, y + 4.0, "end", "#555555", &short(*value));
        }
        for depth in &self.depths {
            svg += &text(self.x(*depth), bottom + 16.0, "middle", "#555555", &thousands(*depth));
        }
        svg += &text((LEFT + right) / 2.0, bottom + 31.0, "middle", "#555555", depth_label);
        for (limit, name) in &panel.limits {
            let y = self.y(*limit);
            _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#555555\" stroke-dasharray=\"4 3\"/>"
            );
            svg += &text(right, y + 13.0, "end", "#555555", name);
        }
        panel.series.iter().for_each(|series| svg += &self.line(series));
        svg
    }

    /// A line through the medians, with a mark and the interval at each.
    fn line(&self, series: &Series) -> String {
        let colour = COLOURS[series.style.colour % COLOURS.len()];
        let x = |depth| self.x(depth) + series.shift;
        let path = series
            .points
            .iter()
            .map(|(depth, value)| format!("{:.1} {:.1}", x(*depth), self.y(value.median)));
        let path = path.collect::<Vec<_>>().join("L");
        let mut svg = String::new();
        if !path.is_empty() {
            _ = writeln!(svg, "<path d=\"M{path}\" fill=\"none\" stroke=\"{colour}\" opacity=\"0.6\"/>");
        }
        for (depth, value) in &series.points {
            let (x, low, high) = (x(*depth), self.y(value.low), self.y(value.high));
            _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {low:.1}V{high:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            );
            svg += &mark(series.style.mark, x, self.y(value.median), colour);
        }
        svg
    }
}

/// Grid lines of a logarithmic scale around `lowest` to `highest`: powers of ten with 2 and 5 times them, or,
/// over more than three powers, powers alone.
fn decades(lowest: f64, highest: f64) -> Vec<f64> {
    let lowest = lowest.max(1e-3);
    let highest = highest.max(lowest);
    let (first, last) = (lowest.log10().floor() as i32, highest.log10().ceil() as i32 + 1);
    let digits: &[f64] = if last - first > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = (first..last).flat_map(|power| digits.iter().map(move |digit| digit * 10_f64.powi(power)));
    let all: Vec<f64> = all.collect();
    let start = all.iter().rposition(|line| *line <= lowest).unwrap_or(0);
    let end = all.iter().position(|line| *line >= highest).unwrap_or(all.len() - 1);
    all[start..=end.max(start + 1)].to_vec()
}

/// Distance of grid lines, 1, 2 or 5 times a power of ten, for at most five of them.
fn step(largest: f64) -> f64 {
    let steps = (-3..19).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
    steps.into_iter().find(|step| (largest / step).ceil() <= 5.0).unwrap_or(f64::MAX)
}

/// A number on an axis.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", value / 1e6),
        1e4.. => format!("{} k", value / 1e3),
        _ if value >= 1.0 => figure(value),
        _ => value.to_string(),
    }
}

/// A disc, a square, a triangle, a diamond.
fn mark(number: usize, x: f64, y: f64, colour: &str) -> String {
    match number % 4 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n"),
        1 => format!("<path d=\"M{:.1} {:.1}h6v6h-6z\" fill=\"{colour}\"/>\n", x - 3.0, y - 3.0),
        2 => format!("<path d=\"M{x:.1} {:.1}l4 7h-8z\" fill=\"{colour}\"/>\n", y - 4.0),
        _ => format!("<path d=\"M{x:.1} {:.1}l4.5 4.5l-4.5 4.5l-4.5 -4.5z\" fill=\"{colour}\"/>\n", y - 4.5),
    }
}

fn text(x: f64, y: f64, anchor: &str, colour: &str, text: &str) -> String {
    let text = escaped(text);
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        let cases = [(5.0, 1.0), (6.0, 2.0), (39.0, 10.0), (907.0, 200.0), (2400.0, 500.0), (0.4, 0.1)];
        cases.into_iter().for_each(|(largest, expected)| assert_eq!(step(largest), expected, "{largest}"));
    }

    #[test]
    fn numbers_on_axes_are_short() {
        let cases = [(0.0, "0"), (0.2, "0.2"), (5000.0, "5,000"), (20_000.0, "20 k"), (1e7, "10 M")];
        cases.into_iter().for_each(|(value, text)| assert_eq!(short(value), text));
    }

    #[test]
    fn decades_enclose_the_figures() {
        assert_eq!(decades(30.0, 450.0), [20.0, 50.0, 100.0, 200.0, 500.0]);
        assert_eq!(decades(3.0, 4e5), [1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0, 1_000_000.0]);
        assert_eq!(decades(100.0, 100.0), [100.0, 200.0]);
        assert!(decades(0.0, 0.0).len() > 1);
    }

    #[test]
    fn figures_stay_in_their_panel() {
        let value = |median: f64| Estimate { median, low: median / 2.0, high: median * 2.0, rounds: 5 };
        for logarithmic in [false, true] {
            let points = [1, 32].map(|depth| (depth, value(100.0 * depth as f64))).to_vec();
            let series = vec![Series { style: Style::default(), shift: 0.0, points }];
            let panel =
                Panel { title: "a < b".into(), logarithmic, series, limits: vec![(9000.0, "most".into())] };
            let frame = Frame::new(&panel, (400.0, 300.0));
            for value in [50.0, 100.0, 6400.0, 9000.0] {
                assert!((TOP..=300.0 - BOTTOM).contains(&frame.y(value)), "{value}");
            }
            assert!(frame.y(100.0) > frame.y(200.0) && frame.x(1) < frame.x(32));
            assert!(frame.draw(&panel, "depth").contains("a &lt; b"));
        }
    }
}
