//! Measurements, what is made of them, and the table they are printed in.

use std::fmt::Write as _;

use serde::Serialize;

/// Measurements of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// These, in any order.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The smallest measurement that `percent` of all do not exceed (the
    /// nearest-rank method, so it is one that was measured). None of none.
    pub(crate) fn percentile(&self, percent: usize) -> Option<f64> {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied()
    }

    /// The one in the middle.
    pub(crate) fn median(&self) -> Option<f64> {
        self.percentile(50)
    }

    /// The smallest and the largest.
    pub(crate) fn spread(&self) -> Option<[f64; 2]> {
        Some([*self.0.first()?, *self.0.last()?])
    }
}

/// One line of results.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// What was measured, and in which unit.
    pub(crate) what: &'static str,
    /// The figure that counts; none where nothing could be measured.
    pub(crate) value: Option<f64>,
    /// The smallest and largest of the measurements behind it.
    pub(crate) spread: Option<[f64; 2]>,
    /// The most that it may be.
    pub(crate) budget: Option<f64>,
}

impl Line {
    /// The median of `samples`.
    pub(crate) fn median(what: &'static str, samples: &Samples, budget: Option<f64>) -> Self {
        Self { what, value: samples.median(), spread: samples.spread(), budget }
    }

    /// What it looks like beside its budget.
    fn verdict(&self) -> &'static str {
        match (self.value, self.budget) {
            (None, _) => "not measured",
            (_, None) => "",
            (Some(value), Some(budget)) if value <= budget => "within",
            _ => "OVER",
        }
    }
}

/// The table for people.
pub(crate) fn draw(lines: &[Line]) -> String {
    let figure = |value: Option<f64>| value.map_or("-".to_owned(), round);
    let spread = |spread: Option<[f64; 2]>| {
        spread.map_or("-".to_owned(), |[low, high]| format!("{} to {}", round(low), round(high)))
    };
    let mut text = format!("{:<36}{:>10}{:>22}{:>10}\n", "what", "measured", "spread", "budget");
    for line in lines {
        let _ = writeln!(
            text,
            "{:<36}{:>10}{:>22}{:>10}  {}",
            line.what,
            figure(line.value),
            spread(line.spread),
            figure(line.budget),
            line.verdict()
        );
    }
    text
}

/// Three figures are all that a measurement on a shared machine is worth.
fn round(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measurements() {
        let hundred = Samples::new((1..=100).rev().map(f64::from).collect());
        assert_eq!(hundred.median(), Some(50.0));
        assert_eq!(hundred.percentile(99), Some(99.0));
        assert_eq!(hundred.percentile(100), Some(100.0));
        assert_eq!(hundred.spread(), Some([1.0, 100.0]));
        let one = Samples::new(vec![7.0]);
        assert_eq!((one.median(), one.percentile(99)), (Some(7.0), Some(7.0)));
        assert_eq!(Samples::default().median(), None);
    }

    #[test]
    fn the_table_says_what_is_over_budget() {
        let line = |value, budget| Line { what: "CPU", value, spread: None, budget };
        assert!(draw(&[line(Some(0.4), Some(0.5))]).contains("within"));
        assert!(draw(&[line(Some(0.6), Some(0.5))]).contains("OVER"));
        assert!(draw(&[line(None, Some(0.5))]).contains("not measured"));
    }
}
