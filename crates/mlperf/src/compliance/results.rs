//! What the evaluations of a log have to reach.

use super::Checker;
use crate::finding::Severity;
use crate::keys;
use crate::rules::Target;
use crate::ruleset::{CLIP, FID, LOSS, Metric};
use crate::value::Value;

/// The lines of one Stable Diffusion evaluation.
#[derive(Debug)]
pub(super) struct Point {
    line: usize,
    samples: Value,
    results: Vec<(String, Value)>,
}

impl Point {
    fn result(&self, metric: Metric) -> Option<&Value> {
        self.results.iter().rev().find(|(name, _)| name == metric.name()).map(|(_, value)| value)
    }

    fn number(&self, metric: Metric) -> Option<f64> {
        self.result(metric).and_then(Value::number)
    }
}

impl Checker<'_> {
    /// Evaluations of Stable Diffusion: lines with a metric, gathered by sample count.
    pub(super) fn points(&mut self) -> Vec<Point> {
        let mut points: Vec<Point> = Vec::new();
        for (number, line) in self.lines(keys::EVAL_ACCURACY) {
            if line.metadata.holds(keys::METRIC) == Some(false) {
                continue;
            }
            // Whatever names a group: texts and numbers do.
            let name = |key| line.metadata.get(key).filter(|name| !matches!(name, Value::List(_) | Value::Object(_)));
            let (Some(metric), Some(samples)) = (name(keys::METRIC), name(keys::SAMPLES_COUNT)) else {
                let problem =
                    format!("`eval_accuracy` cannot be told by `metric` and `samples_count`: {}", line.metadata);
                let remedy = "log it with `metric` (FID or CLIP) and a number as `samples_count` in its metadata";
                let finding = self.finding(Severity::Fatal, problem, remedy);
                self.report.add(finding.at(number).of(keys::EVAL_ACCURACY));
                continue;
            };
            let metric = metric.text().map_or_else(|| metric.to_string(), str::to_owned);
            let result = (metric, line.value.clone());
            match points.iter_mut().find(|point| point.samples.same(samples)) {
                Some(point) => point.results.push(result),
                None => points.push(Point { line: number, samples: samples.clone(), results: vec![result] }),
            }
        }
        points
    }

    pub(super) fn target(&mut self, target: Target, points: &[Point]) {
        match target {
            Target::FidAndClip => self.fid_and_clip(points, |fid, clip| {
                Metric::Fid.reached(fid) && clip.is_none_or(|clip| Metric::Clip.reached(clip))
            }),
            Target::AnyFidAndClip => {
                self.fid_and_clip(points, |fid, clip| fid >= 0.0 && clip.is_none_or(|clip| clip <= 1.0));
            }
            Target::Loss(key) => self.loss(key),
        }
    }

    /// `reached` may be asked with the FID alone.
    fn fid_and_clip(&mut self, points: &[Point], reached: impl Fn(f64, Option<f64>) -> bool) {
        let mut any = points.is_empty();
        for point in points {
            let (fid, clip) = (point.number(Metric::Fid), point.number(Metric::Clip));
            match (fid, clip) {
                (Some(fid), Some(_)) => any |= reached(fid, clip),
                // Where the FID alone misses the target, the official checkers do not compare the CLIP score, and do not break off.
                (Some(fid), None) if !reached(fid, None) => {
                    let there = point.result(Metric::Clip).is_some();
                    self.incomplete(if there { Severity::Advice } else { Severity::Error }, point, Metric::Clip);
                }
                (Some(_), None) => self.incomplete(Severity::Fatal, point, Metric::Clip),
                (None, _) => self.incomplete(Severity::Fatal, point, Metric::Fid),
            }
        }
        if !any {
            let remedy = "train on, or log the run as aborted: one run of ten may miss the targets";
            self.report.add(self.finding(Severity::Error, missed(points), remedy));
        }
    }

    fn incomplete(&mut self, severity: Severity, point: &Point, missing: Metric) {
        let problem = format!("the evaluation at {} samples has no {missing} as a number", point.samples);
        let remedy = "log FID and CLIP of each evaluation with the same `samples_count`, both as numbers";
        let finding = self.finding(severity, problem, remedy);
        self.report.add(finding.at(point.line).of(keys::AGGREGATED_EVAL_ACCURACY));
    }

    fn loss(&mut self, key: &'static str) {
        let (mut best, mut reached, mut there) = (f64::INFINITY, false, false);
        for (number, line) in self.lines(key) {
            there = true;
            if let Some(loss) = line.value.number() {
                reached |= Metric::ValidationLoss.reached(loss);
                best = best.min(loss);
                continue;
            }
            let problem = format!("`{key}` is {}, where a number is needed", line.value);
            let finding = self.finding(Severity::Fatal, problem, "log the validation loss as a number");
            self.report.add(finding.at(number).of(key));
        }
        if !reached && there {
            let problem =
                format!("no evaluation reaches a validation loss above 0 and up to {LOSS}; the lowest is {best}");
            let remedy = "train on, or log the run as aborted: one run of ten may miss the target";
            self.report.add(self.finding(Severity::Error, problem, remedy));
        }
    }
}

/// The nearest that a run came to Stable Diffusion's targets.
fn missed(points: &[Point]) -> String {
    let fids =
        points.iter().filter_map(|point| Some((point.number(Metric::Fid).filter(|fid| fid.is_finite())?, point)));
    let nearest = match fids.min_by(|(a, _), (b, _)| a.total_cmp(b)) {
        None => "no FID is a number".to_owned(),
        Some((fid, point)) => {
            let clip = point.number(Metric::Clip).map_or("none".to_owned(), |clip| clip.to_string());
            format!("the lowest FID is {fid}, at {} samples, with CLIP score {clip}", point.samples)
        }
    };
    let percent = points.iter().filter_map(|point| point.number(Metric::Clip)).any(|clip| clip > 1.0);
    let scale = if percent { " (CLIP scores are cosines here, not percent)" } else { "" };
    format!(
        "no evaluation reaches FID of at most {FID} and CLIP score of {CLIP} to 1 at the same sample count: {nearest}{scale}"
    )
}
