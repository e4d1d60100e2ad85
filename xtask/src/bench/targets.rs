//! What the benchmarks are to show, and whether they do.

use super::figures::{Estimate, figure};
use super::report::Table;

/// On which side of its target a figure must be.
#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// From the first to the second.
    Within(f64, f64),
}

/// One target.
pub struct Target {
    pub what: String,
    pub bound: Bound,
    /// `None`: it was not measured.
    pub found: Option<Estimate>,
}

impl Target {
    /// A target and what was found of it.
    pub fn new(what: impl Into<String>, bound: Bound, found: Option<Estimate>) -> Self {
        Self { what: what.into(), bound, found }
    }

    /// By what share of its bound it was missed; `None`: it was not measured.
    fn missed(&self) -> Option<f64> {
        let found = self.found?.median;
        Some(match self.bound {
            Bound::AtLeast(least) | Bound::Within(least, _) if found < least => 1.0 - found / least,
            Bound::AtMost(most) | Bound::Within(_, most) if found > most => found / most - 1.0,
            _ => 0.0,
        })
    }

    /// Whether it was measured, and met.
    pub fn is_met(&self) -> bool {
        self.missed() == Some(0.0)
    }

    fn verdict(&self) -> String {
        match self.missed() {
            None => "not measured".into(),
            Some(0.0) => "met".into(),
            Some(f64::INFINITY) => "missed".into(),
            Some(missed) => format!("missed by {:.1} %", 100.0 * missed),
        }
    }
}

/// All of them as a table.
pub fn table(targets: &[Target]) -> Table {
    let line = |target: &Target| {
        let bound = match target.bound {
            Bound::AtLeast(least) => format!(">= {}", figure(least)),
            Bound::AtMost(most) => format!("<= {}", figure(most)),
            Bound::Within(least, most) => format!("{} to {}", figure(least), figure(most)),
        };
        let figures = target.found.map_or(["-".into(), "-".into()], |found| {
            let interval = format!("{} to {}", figure(found.low), figure(found.high));
            [figure(found.median), if found.rounds == 1 { "-".into() } else { interval }]
        });
        let [median, interval] = figures;
        vec![target.what.clone(), bound, median, interval, target.verdict()]
    };
    Table {
        heading: ["", "target", "found", "95 % interval", ""].map(String::from).to_vec(),
        lines: targets.iter().map(line).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_told() {
        let verdict = |bound, median| {
            let found = Estimate { median, low: median, high: median, rounds: 5 };
            Target::new("", bound, Some(found)).verdict()
        };
        for (bound, median, expected) in [
            (Bound::AtLeast(2.0), 2.0, "met"),
            (Bound::AtLeast(2.0), 1.9, "missed by 5.0 %"),
            (Bound::AtMost(120.0), 120.0, "met"),
            (Bound::AtMost(120.0), 132.0, "missed by 10.0 %"),
            (Bound::AtMost(0.0), 7.0, "missed"),
            (Bound::Within(1.0, 2.0), 1.5, "met"),
            (Bound::Within(1.0, 2.0), 0.9, "missed by 10.0 %"),
            (Bound::Within(1.0, 2.0), 3.0, "missed by 50.0 %"),
        ] {
            assert_eq!(verdict(bound, median), expected);
        }
        assert_eq!(Target::new("", Bound::AtMost(1.0), None).verdict(), "not measured");
    }
}
