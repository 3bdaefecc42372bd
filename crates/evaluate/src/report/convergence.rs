//! Results of evaluations over the samples seen in training, over MLPerf's published reference runs.

use super::count;
use calotype_metrics::plot::{Axis, Chart, Point, Role};
use calotype_mlperf::{Basis, Benchmark, Metric, Rcp, RcpSet, Rcps, ReferenceRun, Ruleset, Scores};

/// From this ratio of the largest to the smallest result on, a distance or loss has a logarithmic axis.
const WIDE: f64 = 4.0;
/// Up to this ratio of batches, reference runs of another batch are worth looking at.
const NEAR: u64 = 4;

/// The evaluations of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingRun {
    /// Its name in the legend.
    pub name: String,
    /// By ascending samples.
    pub evaluations: Vec<Scores>,
}

/// What stands behind the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Whose metrics and targets.
    pub benchmark: Benchmark,
    /// The round of the reference point; `None` for the benchmark's last one.
    pub ruleset: Option<Ruleset>,
    /// The batch of the reference runs that are drawn; `None` for none.
    pub runs: Option<u64>,
    /// The batch of the reference point that is drawn; `None` for none.
    pub point: Option<u64>,
}

impl Behind {
    /// What suits a run of a batch: the reference runs of the nearest batch, if it is near, and the reference point of its own.
    pub fn of(benchmark: Benchmark, ruleset: Option<Ruleset>, batch: u64) -> Self {
        let nearest = ReferenceRun::nearest_batch(benchmark, batch);
        let near = |other: &u64| batch <= NEAR * other && *other <= NEAR * batch;
        Self { benchmark, ruleset, runs: nearest.filter(near), point: Some(batch) }
    }

    /// Nothing.
    pub fn nothing(benchmark: Benchmark) -> Self {
        Self { benchmark, ruleset: None, runs: None, point: None }
    }

    fn round(&self) -> Option<Ruleset> {
        self.ruleset.or_else(|| self.benchmark.rulesets().last().copied())
    }

    fn reference_runs(&self) -> Vec<ReferenceRun> {
        let of_batch = |run: &ReferenceRun| Some(run.batch) == self.runs;
        ReferenceRun::published(self.benchmark).into_iter().filter(of_batch).collect()
    }

    /// The reference convergence point, as the rules interpolate it; `None` outside of the published batches.
    fn reference_point(&self) -> Option<Rcp> {
        match Rcps::published(self.round()?, self.benchmark)?.basis(self.point?, RcpSet::Full) {
            Basis::Found(point) | Basis::Interpolated(point) => Some(point),
            Basis::Smallest(_) | Basis::Missing => None,
        }
    }

    /// Whether nothing of the reference is drawn.
    pub fn is_nothing(&self) -> bool {
        self.reference_runs().is_empty() && self.reference_point().is_none()
    }

    /// What is to be seen behind the runs, in words.
    pub fn caption(&self) -> String {
        let runs = self.reference_runs();
        let pale = runs
            .first()
            .map(|first| format!("Pale: MLPerf's {} published reference runs of batch {}.", runs.len(), first.batch));
        let band = self.reference_point().map(|point| {
            let (round, batch, fastest) = (self.round().map_or("", Ruleset::name), point.batch, point.fastest.ceil());
            format!(
                "Shaded: where the reference point of round {round} for batch {batch} reaches the targets, mean \u{b1} standard \
                 deviation; a submission may do so in the mean after {} samples, not before.",
                count(fastest as usize)
            )
        });
        pale.into_iter().chain(band).collect::<Vec<_>>().join(" ")
    }
}

/// A chart for each metric of the benchmark that some run has.
pub fn charts(runs: &[TrainingRun], behind: &Behind) -> Vec<(Metric, Chart)> {
    let has = |metric: Metric| runs.iter().any(|run| !points(&run.evaluations, metric).is_empty());
    let metrics = behind.benchmark.metrics().iter().copied().filter(|metric| has(*metric));
    metrics.map(|metric| (metric, chart(runs, behind, metric))).collect()
}

fn chart(runs: &[TrainingRun], behind: &Behind, metric: Metric) -> Chart {
    let reference = behind.reference_runs();
    let curves = runs.iter().map(|run| points(&run.evaluations, metric));
    let pale = reference.iter().map(|run| points(&run.evaluations, metric));
    let (curves, pale): (Vec<_>, Vec<_>) = (curves.collect(), pale.collect());
    let values = || curves.iter().chain(&pale).flatten().map(|point| point.y);
    let (low, high) = values().fold((f64::MAX, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    let log = metric != Metric::Clip && low > 0.0 && high / low >= WIDE;
    let (name, unit) = match metric {
        Metric::Fid => ("FID", "lower is better"),
        Metric::Clip => ("CLIP score", "cosine, higher is better"),
        Metric::ValidationLoss => ("Validation loss", "lower is better"),
    };
    let scale = if log { ", logarithmic" } else { "" };
    let mut chart =
        Chart::new(format!("{name} over samples seen"), "samples seen in training", format!("{name} ({unit}{scale})"));
    chart.log_y = log;
    chart.alt = in_words(runs, metric);
    for (run, points) in runs.iter().zip(curves) {
        chart = chart.curve(&run.name, Role::Main, points);
    }
    for (run, points) in reference.iter().zip(pale) {
        chart = chart.curve(format!("reference runs, batch {}", run.batch), Role::Background, points);
    }
    if let Some(point) = behind.reference_point() {
        let round = behind.round().map_or("", Ruleset::name);
        let name = format!("reference point {round}, batch {}", point.batch);
        chart = chart.band(name, point.mean - point.deviation, point.mean + point.deviation, Some(point.mean));
    }
    // A run that is far from the reference's samples is not held to its targets.
    if !behind.is_nothing() {
        let side = if metric == Metric::Clip { "least" } else { "most" };
        chart = chart.target(format!("target: at {side} {}", metric.target()), Axis::Y, metric.target());
    }
    chart
}

fn points(evaluations: &[Scores], metric: Metric) -> Vec<Point> {
    let result = |scores: &Scores| scores.results.iter().rev().find(|(of, _)| *of == metric).map(|(_, value)| *value);
    let point = |scores: &Scores| Some(Point::new(scores.samples as f64, result(scores)?));
    evaluations.iter().filter_map(point).collect()
}

fn in_words(runs: &[TrainingRun], metric: Metric) -> String {
    let told = runs.iter().filter_map(|run| {
        let points = points(&run.evaluations, metric);
        let (first, last) = (points.first()?, points.last()?);
        let (start, end) = (super::digits(first.y), super::digits(last.y));
        Some(format!(
            "{}: {start} at {} samples, {end} at {}",
            run.name,
            count(first.x as usize),
            count(last.x as usize)
        ))
    });
    told.collect::<Vec<_>>().join("; ")
}
