//! Figures: one JSON line each on standard output, and a table of all of them for people at the end.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::meter::Meter;
use crate::cli::output;

/// One figure. Lines of these are the output of the bench.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    /// Which mode measured it.
    mode: &'static str,
    /// What was measured.
    metric: String,
    /// Of the values below.
    unit: &'static str,
    /// The middle of the runs; of two in the middle their mean.
    median: f64,
    min: f64,
    max: f64,
    /// Every run, in order.
    runs: Vec<f64>,
    /// How many tasks, rows or samples one run took.
    n: u64,
    /// What an acknowledgement meant; absent where nothing is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    durability: Option<String>,
    /// What it is compared with, measured in the same process run.
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Baseline>,
    /// `median` ÷ the baseline's median.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    /// Processor cores that other processes used meanwhile; near 0 on a quiet machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    others_cores: Option<f64>,
    /// The database server and those of its settings that matter; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    /// The conditions, in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

/// What a figure is compared with.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Baseline {
    metric: String,
    median: f64,
}

impl Baseline {
    /// Of some runs, at least one.
    pub(super) fn new(metric: impl Into<String>, runs: &[f64]) -> Baseline {
        Baseline {
            metric: metric.into(),
            median: median(runs),
        }
    }

    /// True when this is the faster of two rates.
    pub(super) fn beats(&self, other: &Baseline) -> bool {
        self.median > other.median
    }
}

impl Figure {
    /// A figure of some runs, at least one.
    pub(super) fn new(
        mode: &'static str,
        metric: impl Into<String>,
        unit: &'static str,
        runs: &[f64],
        n: u64,
    ) -> Figure {
        let sorted = sorted(runs);
        Figure {
            mode,
            metric: metric.into(),
            unit,
            median: rounded(median(runs)),
            min: rounded(sorted.first().copied().unwrap_or_default()),
            max: rounded(sorted.last().copied().unwrap_or_default()),
            runs: runs.iter().copied().map(rounded).collect(),
            n,
            durability: None,
            baseline: None,
            ratio: None,
            others_cores: None,
            server: None,
            note: String::new(),
        }
    }

    pub(super) fn durability(mut self, durability: &str) -> Figure {
        self.durability = Some(durability.to_owned());
        self
    }

    pub(super) fn against(mut self, baseline: &Baseline) -> Figure {
        let Baseline { metric, median } = baseline.clone();
        self.ratio = (median > 0.0).then(|| rounded(self.median / median));
        self.baseline = Some(Baseline {
            metric,
            median: rounded(median),
        });
        self
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Figure {
        self.note = note.into();
        self
    }

    pub(super) fn machine(mut self, meter: &Meter) -> Figure {
        self.others_cores = meter.others().map(|cores| (cores * 100.0).round() / 100.0);
        self
    }
}

/// Prints figures as they come and keeps them for the table.
#[derive(Default)]
pub(super) struct Report {
    figures: Vec<Figure>,
    server: Option<String>,
}

impl Report {
    /// A report of what a database server was asked to do; `None` where there is none.
    pub(super) fn of(server: Option<String>) -> Report {
        Report {
            figures: Vec::new(),
            server,
        }
    }

    pub(super) fn add(&mut self, mut figure: Figure) -> anyhow::Result<()> {
        figure.server.clone_from(&self.server);
        output::println(&serde_json::to_string(&figure)?)?;
        self.figures.push(figure);
        Ok(())
    }

    /// All figures as a table, below what they were measured on.
    pub(super) fn table(&self) -> String {
        match &self.server {
            Some(server) => format!("{server}\n{}", self.rows()),
            None => self.rows(),
        }
    }

    fn rows(&self) -> String {
        let headers = vec![
            "mode", "metric", "median", "min", "max", "unit", "n", "baseline", "", "ratio",
        ];
        let right = [false, false, true, true, true, false, true, false, true, true];
        let rows = self.figures.iter().map(|f| {
            let (what, value) = match &f.baseline {
                Some(baseline) => (baseline.metric.clone(), readable(baseline.median)),
                None => (String::new(), String::new()),
            };
            let ratio = f.ratio.map(|r| format!("{r:.2}")).unwrap_or_default();
            let values = [f.median, f.min, f.max].map(readable);
            let [median, min, max] = values;
            let (mode, unit) = (f.mode.to_owned(), f.unit.to_owned());
            vec![
                mode,
                f.metric.clone(),
                median,
                min,
                max,
                unit,
                readable(f.n as f64),
                what,
                value,
                ratio,
            ]
        });
        output::aligned(headers, &right, rows.collect())
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The middle value; of two in the middle their mean; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => (a + b) / 2.0,
        _ => 0.0,
    }
}

/// Four significant digits below 1,000, whole numbers above.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 9);
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// A number with commas between thousands.
fn readable(value: f64) -> String {
    if value.abs() < 1000.0 {
        return format!("{value}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The longest duration that a [`Spread`] tells from longer ones, in nanoseconds: an hour.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Durations by percentile, to three significant digits.
pub(super) struct Spread(Histogram<u64>);

impl Spread {
    /// An empty one.
    pub(super) fn new() -> anyhow::Result<Spread> {
        Ok(Spread(Histogram::new_with_bounds(1, LONGEST_NS, 3)?))
    }

    pub(super) fn add(&mut self, duration: Duration) {
        self.0
            .saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn merge(&mut self, other: &Spread) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// The duration that this share of the samples does not exceed, in milliseconds.
    pub(super) fn ms(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn numbers_keep_four_significant_digits() {
        assert_eq!(
            [0.123456, 12.34567, 1234.567, 0.0].map(rounded),
            [0.1235, 12.35, 1235.0, 0.0]
        );
        assert_eq!(
            [12.35, 1235.0, 1_234_567.0].map(readable),
            ["12.35", "1,235", "1,234,567"]
        );
    }

    #[test]
    fn durations_come_back_by_percentile() {
        let mut spread = Spread::new().unwrap();
        (1..=100).for_each(|ms| spread.add(Duration::from_millis(ms)));
        assert!((spread.ms(0.5) - 50.0).abs() < 0.1 && (spread.ms(0.99) - 99.0).abs() < 0.1);
    }

    #[test]
    fn a_figure_is_one_json_line_with_its_ratio() {
        let figure = Figure::new("drain", "tasks", "tasks/s", &[100.0, 300.0, 200.0], 5)
            .against(&Baseline::new("raw", &[100.0]));
        let line: serde_json::Value = serde_json::from_str(&serde_json::to_string(&figure).unwrap()).unwrap();
        assert_eq!(
            (line["median"].as_f64(), line["ratio"].as_f64()),
            (Some(200.0), Some(2.0))
        );
    }
}
