//! The plots of an evaluation.

use super::convergence::{self, Behind, TrainingRun};
use super::{Evaluation, ReferenceCurve, ReportOptions, Setting, digits};
use crate::{Figure, Result};
use calotype_metrics::Drawing;
use calotype_metrics::plot::{Chart, Point, Role};
use calotype_mlperf::{Benchmark, Metric, Scores};

/// Name of the plot of both figures.
const FID_CLIP: &str = "fid_clip_plot";
/// Size of plots that stand beside other things.
const SIZE: (f64, f64) = (640.0, 400.0);
/// The reference runs that stand behind those whose batch is not known.
const REFERENCE_BATCH: u64 = 512;

/// A plot with the name of its files.
pub(super) struct Plot {
    pub(super) name: &'static str,
    pub(super) drawing: Drawing,
    pub(super) caption: String,
}

impl Plot {
    pub(super) fn is_over_training(&self) -> bool {
        self.name != FID_CLIP
    }
}

/// All plots that the figures allow.
pub(super) fn all(evaluation: &Evaluation, options: &ReportOptions<'_>) -> Result<Vec<Plot>> {
    let baseline = options.baseline.map(|baseline| baseline.evaluation.with_intervals(options.seed)).transpose()?;
    let mut plots = Vec::new();
    plots.extend(fid_clip_plot(evaluation, baseline.as_ref(), options.reference).map(|drawing| {
        let labels = match evaluation.varied.is_empty() {
            true => String::new(),
            false => format!(" Labels: {}.", evaluation.varied),
        };
        let intervals = "Down and to the right is better. Bars: 95\u{a0}% of what chance does, where it was measured.";
        Plot { name: FID_CLIP, drawing, caption: format!("{intervals}{labels}") }
    }));
    plots.extend(over_training(evaluation, baseline.as_ref()));
    Ok(plots)
}

/// FID over CLIP score, a point for each setting, with a baseline's and a reference curve beside them; `None` if fewer than two
/// settings have both figures.
pub fn fid_clip_plot(
    evaluation: &Evaluation,
    baseline: Option<&Evaluation>,
    reference: Option<&ReferenceCurve>,
) -> Option<Drawing> {
    let points = points(evaluation);
    let (distance, score) =
        evaluation.settings.iter().find_map(|setting| setting.distance().zip(setting.clip_score()))?;
    if points.len() < 2 {
        return None;
    }
    let mut chart = Chart::new(
        title(evaluation, distance),
        format!("{} (higher is better)", score.full_title()),
        format!("{} (lower is better)", distance.full_title()),
    )
    .size(SIZE.0, SIZE.1)
    .alt(in_words(evaluation, distance))
    .curve(name(evaluation), Role::Main, points);
    // Figures of another kind have other axes.
    let like = |other: &&Evaluation| {
        let first = other.settings.iter().find_map(|setting| setting.distance().zip(setting.clip_score()));
        first.is_some_and(|(d, s)| {
            (&d.metric, &d.variant, &s.metric, &s.variant)
                == (&distance.metric, &distance.variant, &score.metric, &score.variant)
        })
    };
    if let Some(baseline) = baseline.filter(like) {
        chart = chart.curve(format!("baseline: {}", name(baseline)), Role::Main, self::points(baseline));
    }
    if let Some(reference) = reference {
        let points = reference.points.iter().map(|(label, fid, clip)| Point::new(*clip, *fid).label(label));
        chart = chart.curve(&reference.name, Role::Reference, points);
    }
    Some(chart.drawing())
}

fn points(evaluation: &Evaluation) -> Vec<Point> {
    let ends = |figure: &Figure| figure.interval.map(|[low, high]| (low, high));
    let point = |setting: &Setting| {
        let (distance, score) = (setting.distance()?, setting.clip_score()?);
        let (x_interval, y_interval) = (ends(score), ends(distance));
        Some(Point {
            x_interval,
            y_interval,
            ..Point::new(score.value, distance.value).label(super::label(&setting.label))
        })
    };
    evaluation.settings.iter().filter_map(point).collect()
}

fn name(evaluation: &Evaluation) -> &str {
    if evaluation.title.is_empty() { "this evaluation" } else { &evaluation.title }
}

fn title(evaluation: &Evaluation, distance: &Figure) -> String {
    let by = if evaluation.varied.is_empty() { String::new() } else { format!(" by {}", evaluation.varied) };
    format!("{} and CLIP score{by}", distance.title())
}

fn in_words(evaluation: &Evaluation, distance: &Figure) -> String {
    let best = &evaluation.settings[evaluation.best()];
    let value = best.distance().map_or(f64::NAN, |figure| figure.value);
    let score =
        best.clip_score().map_or(String::new(), |score| format!(", where the CLIP score is {}", digits(score.value)));
    format!("The smallest {} is {} at {}{score}.", distance.title(), digits(value), best.label)
}

/// FID and CLIP score over the samples that checkpoints have seen. Over the length of MLPerf's reference runs, these stand behind.
fn over_training(evaluation: &Evaluation, baseline: Option<&Evaluation>) -> Vec<Plot> {
    let run = training_run(evaluation, name(evaluation));
    if run.evaluations.len() < 2 {
        return Vec::new();
    }
    let official = evaluation.settings.iter().any(|setting| setting.distance().is_some_and(|f| f.metric == "fid"));
    let last = run.evaluations.iter().map(|scores| scores.samples).max().unwrap_or(0);
    let benchmark = Benchmark::StableDiffusion;
    let behind = match official && last >= benchmark.evaluation_interval(1) {
        true => Behind::of(benchmark, None, REFERENCE_BATCH),
        false => Behind::nothing(benchmark),
    };
    let mut runs = vec![run];
    let baseline = baseline.map(|baseline| training_run(baseline, &format!("baseline: {}", name(baseline))));
    runs.extend(baseline.filter(|run| !run.evaluations.is_empty()));
    let plot = |(metric, chart): (Metric, Chart)| {
        let name = match metric {
            Metric::Clip => "convergence_clip",
            _ if official => "convergence_fid",
            _ => "convergence_fd",
        };
        let (caption, mut chart) = (behind.caption(), chart.size(SIZE.0, SIZE.1));
        if metric == Metric::Fid && !official {
            chart.title = chart.title.replace("FID", "Fréchet distance");
            chart.y_label = chart.y_label.replace("FID", "Fréchet distance");
        }
        Plot { name, drawing: chart.drawing(), caption }
    };
    convergence::charts(&runs, &behind).into_iter().map(plot).collect()
}

fn training_run(evaluation: &Evaluation, name: &str) -> TrainingRun {
    let scores = |setting: &Setting| {
        let (distance, score) = (setting.distance(), setting.clip_score());
        // Some definitions count in hundredths.
        let cosine = |figure: &Figure| if figure.value.abs() > 1.0 { figure.value / 100.0 } else { figure.value };
        let results = [(Metric::Fid, distance.map(|figure| figure.value)), (Metric::Clip, score.map(cosine))];
        let results = results.into_iter().filter_map(|(metric, value)| Some((metric, value?))).collect();
        Some(Scores { samples: setting.samples_seen?, results })
    };
    let mut evaluations: Vec<Scores> = evaluation.settings.iter().filter_map(scores).collect();
    evaluations.sort_by_key(|scores| scores.samples);
    TrainingRun { name: name.to_owned(), evaluations }
}
