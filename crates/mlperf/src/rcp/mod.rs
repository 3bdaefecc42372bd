//! Reference convergence points (RCPs): how many samples the reference needs to its targets, by batch size, and whether a
//! submission needs believably many.
//!
//! Of a reference point's runs, and of a submission's, the fastest and the slowest are left out and the others averaged. A submission
//! passes if its mean is not below the reference's by more than chance: by a t-test on one side at 5 %, with the reference's
//! standard deviation for both. A faster mean within that is accepted, and the score is multiplied by their ratio. Between two
//! batch sizes mean and deviation are interpolated. By default only *pruned* points count: those below which no other point
//! and no line between two others lies. Source: MLPerf training rules; `rcp_checker` of mlcommons/logging (`mlperf-logging` 4.1.68).

mod check;
mod convergence;
mod runs;

pub use check::{RcpReport, check_rcp};
pub(crate) use check::{compare, record_scaling, result_files};
pub use convergence::Convergence;
pub use runs::ReferenceRun;

use crate::ruleset::{Benchmark, Ruleset};
use serde::Deserialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Chance of refusing a submission that converges as the reference does.
const CHANCE: f64 = 0.05;

calotype_core::names! {
    /// Which reference points count.
    RcpSet, "set of reference points" {
        /// Those that no other point and no line between two others undercuts; what a submission is judged by.
        Pruned = "pruned",
        /// All that were published.
        Full = "full",
    }
}

/// A reference point.
#[derive(Clone, Debug, PartialEq)]
pub struct Rcp {
    /// Samples of an optimizer step.
    pub batch: u64,
    /// Learning rate of the reference's runs, in the benchmark's unit (per sample for Stable Diffusion); none between two points.
    pub learning_rate: Option<f64>,
    /// Over how many steps it rose; none between two points.
    pub warmup_steps: Option<u64>,
    /// Mean samples to convergence, without the fastest and the slowest run.
    pub mean: f64,
    /// Standard deviation of all runs (divided by their number).
    pub deviation: f64,
    /// The smallest mean of a submission that passes.
    pub fastest: f64,
}

/// The reference points of a benchmark in a round.
#[derive(Clone, Debug, PartialEq)]
pub struct Rcps {
    benchmark: Benchmark,
    /// By ascending batch.
    points: Vec<Rcp>,
}

/// What stands in the data files.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    points: Vec<PublishedPoint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishedPoint {
    rulesets: Vec<Ruleset>,
    batch: u64,
    learning_rate: f64,
    warmup_steps: u64,
    samples: Vec<(u64, usize)>,
}

impl PublishedPoint {
    /// Samples to convergence of each run, ascending.
    fn runs(&self) -> Vec<f64> {
        self.samples.iter().flat_map(|(samples, runs)| std::iter::repeat_n(*samples as f64, *runs)).collect()
    }
}

/// Where a submission's batch lies among the reference points.
#[derive(Clone, Debug, PartialEq)]
pub enum Basis {
    /// There is a point of this batch.
    Found(Rcp),
    /// Between two points.
    Interpolated(Rcp),
    /// Below all points: the smallest one has to be reached.
    Smallest(Rcp),
    /// Above all points.
    Missing,
}

impl Basis {
    /// The point that a submission is compared with.
    pub fn point(&self) -> Option<&Rcp> {
        match self {
            Self::Found(point) | Self::Interpolated(point) | Self::Smallest(point) => Some(point),
            Self::Missing => None,
        }
    }

    /// Its kind in one word: found, interpolated, smallest or missing.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Found(_) => "found",
            Self::Interpolated(_) => "interpolated",
            Self::Smallest(_) => "smallest",
            Self::Missing => "missing",
        }
    }
}

impl Rcps {
    /// The published points; `None` if the round does not have the benchmark.
    pub fn published(ruleset: Ruleset, benchmark: Benchmark) -> Option<Self> {
        let text = match benchmark {
            Benchmark::StableDiffusion => include_str!("../../rcps/stable_diffusion.toml"),
            Benchmark::Flux1 => include_str!("../../rcps/flux1.toml"),
        };
        let published: Published = toml::from_str(text).expect("the embedded tables are tested");
        let of_round = published.points.iter().filter(|point| point.rulesets.contains(&ruleset));
        let mut points: Vec<_> = of_round.map(|point| measured(benchmark, point)).collect();
        points.sort_by_key(|point| point.batch);
        (!points.is_empty()).then_some(Self { benchmark, points })
    }

    /// The points of a set, by ascending batch.
    pub fn points(&self, set: RcpSet) -> Vec<Rcp> {
        match set {
            RcpSet::Full => self.points.clone(),
            RcpSet::Pruned => self.pruned(),
        }
    }

    /// Points with a smaller batch than the fastest's go; then, from the left, each that lies above the line between its
    /// neighbours. That is one pass: what is left need not be convex.
    fn pruned(&self) -> Vec<Rcp> {
        let mut left = self.points.clone();
        let Some(fastest) = left.iter().min_by(|a, b| a.mean.total_cmp(&b.mean)).map(|point| point.batch) else {
            return left;
        };
        left.retain(|point| point.batch >= fastest);
        let mut middle = 1;
        while middle + 1 < left.len() {
            let batch = left[middle].batch;
            let line = interpolate(batch, [&left[middle - 1], &left[middle + 1]], |point| point.mean);
            if left[middle].mean > line {
                left.remove(middle);
            } else {
                middle += 1;
            }
        }
        left
    }

    /// What a submission of this batch is compared with.
    pub fn basis(&self, batch: u64, set: RcpSet) -> Basis {
        let points = self.points(set);
        let behind = points.partition_point(|point| point.batch < batch);
        match (behind.checked_sub(1).map(|below| &points[below]), points.get(behind)) {
            (_, Some(point)) if point.batch == batch => Basis::Found(point.clone()),
            (Some(below), Some(above)) => Basis::Interpolated(self.between(batch, [below, above])),
            (None, Some(smallest)) => Basis::Smallest(smallest.clone()),
            (_, None) => Basis::Missing,
        }
    }

    /// Such a point counts as one of twice the runs of a submission.
    fn between(&self, batch: u64, ends: [&Rcp; 2]) -> Rcp {
        let mean = interpolate(batch, ends, |point| point.mean);
        let deviation = interpolate(batch, ends, |point| point.deviation);
        let fastest = fastest_accepted(mean, deviation, 2 * self.benchmark.runs(), self.benchmark.runs());
        Rcp { batch, learning_rate: None, warmup_steps: None, mean, deviation, fastest }
    }
}

fn measured(benchmark: Benchmark, point: &PublishedPoint) -> Rcp {
    let runs = point.runs();
    let count = runs.len() as f64;
    let mean_of_all = runs.iter().sum::<f64>() / count;
    let variance = runs.iter().map(|samples| (samples - mean_of_all).powi(2)).sum::<f64>() / count;
    let (mean, deviation) = (olympic_mean(&runs).unwrap_or(f64::NAN), variance.sqrt());
    let fastest = fastest_accepted(mean, deviation, runs.len().saturating_sub(2), benchmark.runs());
    let (learning_rate, warmup_steps) = (Some(point.learning_rate), Some(point.warmup_steps));
    Rcp { batch: point.batch, learning_rate, warmup_steps, mean, deviation, fastest }
}

fn interpolate(batch: u64, [below, above]: [&Rcp; 2], of: impl Fn(&Rcp) -> f64) -> f64 {
    let share = (batch as f64 - below.batch as f64) / (above.batch as f64 - below.batch as f64);
    of(below) + share * (of(above) - of(below))
}

/// The mean without the smallest and the largest; `None` for fewer than three.
fn olympic_mean(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let kept = sorted.get(1..sorted.len().checked_sub(1)?)?;
    (!kept.is_empty()).then(|| kept.iter().sum::<f64>() / kept.len() as f64)
}

/// The smallest mean that Student's t-test does not tell from the reference's: with equal deviations, one side, 5 %.
/// `reference` are the reference's runs that were averaged, `runs` all of a submission.
fn fastest_accepted(mean: f64, deviation: f64, reference: usize, runs: usize) -> f64 {
    let (reference, submission) = (reference as f64, runs as f64 - 2.0);
    match StudentsT::new(0.0, 1.0, reference + submission - 2.0) {
        Ok(distribution) if deviation > 0.0 => {
            let quantile = distribution.inverse_cdf(1.0 - CHANCE);
            mean - quantile * deviation * (1.0 / reference + 1.0 / submission).sqrt()
        }
        _ => mean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_points_are_judged_as_the_official_checker_does() {
        // rcp_checker.RCP_Checker of mlperf-logging 4.1.68: batch, mean, deviation, fastest accepted mean (by bisection to 1e-4).
        let sd = Benchmark::StableDiffusion;
        for (ruleset, benchmark, batch, mean, deviation, fastest) in [
            (Ruleset::V4_0, sd, 384, 2561280.0, 323979.1410174426, 2309548.02723689),
            (Ruleset::V4_1, sd, 256, 2048000.0, 228973.36089597846, 1881539.7800505161),
            (Ruleset::V5_0, sd, 256, 1706666.6666666667, 244208.43556273807, 1529130.774488052),
            (Ruleset::V5_0, sd, 384, 2049024.0, 229087.84757642646, 1882480.5499405414),
            (Ruleset::V5_0, sd, 512, 2104888.888888889, 275720.4381252866, 1904444.2406785158),
            (Ruleset::V5_0, sd, 1024, 2839272.727272727, 255241.4798142173, 2632954.4055468645),
            (Ruleset::V5_0, sd, 2048, 4002909.090909091, 338799.27205583267, 3729048.8340725955),
            (Ruleset::V4_0, sd, 512, 2560000.0, 131860.16093125448, 2455634.248070419),
            (Ruleset::V5_1, Benchmark::Flux1, 512, 8170154.666666667, 252462.50151782937, 7986618.1916457815),
            (Ruleset::V5_1, Benchmark::Flux1, 1024, 8752696.888888888, 577163.4633946954, 8333107.65505298),
            (Ruleset::V5_1, Benchmark::Flux1, 2048, 10733340.444444444, 600504.3331835, 10296782.746180695),
            (Ruleset::V5_1, Benchmark::Flux1, 4096, 15626695.111111112, 479085.64192453097, 15278406.991336636),
            (Ruleset::V6_0, Benchmark::Flux1, 512, 7223523.555555556, 152854.90535223266, 7112400.31802114),
            (Ruleset::V6_0, Benchmark::Flux1, 1024, 8490552.888888888, 240258.9445957007, 8315888.2178383395),
            (Ruleset::V6_1, Benchmark::Flux1, 2048, 10296433.777777778, 700959.5271215022, 9786846.6510946),
            (Ruleset::V6_1, Benchmark::Flux1, 4096, 15379114.666666666, 500653.863856617, 15015146.771095276),
        ] {
            let rcps = Rcps::published(ruleset, benchmark).unwrap();
            let point = rcps.points(RcpSet::Full).into_iter().find(|point| point.batch == batch).unwrap();
            let near = |a: f64, b: f64, by: f64| assert!((a - b).abs() < by, "{ruleset} {batch}: {a} for {b}");
            near(point.mean, mean, 1e-6);
            near(point.deviation, deviation, 1e-6);
            near(point.fastest, fastest, 1e-3);
        }
    }

    #[test]
    fn undercut_points_are_pruned() {
        for (ruleset, benchmark, batches) in [
            (Ruleset::V4_0, Benchmark::StableDiffusion, &[512, 1024, 2048][..]),
            (Ruleset::V4_1, Benchmark::StableDiffusion, &[256, 1024, 2048]),
            (Ruleset::V5_0, Benchmark::StableDiffusion, &[256, 2048]),
            (Ruleset::V5_1, Benchmark::Flux1, &[512, 1024, 2048, 4096]),
            (Ruleset::V6_0, Benchmark::Flux1, &[512, 2048, 4096]),
            (Ruleset::V6_1, Benchmark::Flux1, &[512, 2048, 4096]),
        ] {
            let rcps = Rcps::published(ruleset, benchmark).unwrap();
            let left: Vec<_> = rcps.points(RcpSet::Pruned).iter().map(|point| point.batch).collect();
            assert_eq!(left, batches, "{ruleset}");
        }
        for ruleset in Ruleset::ALL {
            let sd = Rcps::published(*ruleset, Benchmark::StableDiffusion).is_some();
            assert_eq!(
                (sd, !sd),
                (
                    Benchmark::StableDiffusion.rulesets().contains(ruleset),
                    Rcps::published(*ruleset, Benchmark::Flux1).is_some()
                )
            );
        }
    }

    #[test]
    fn a_batch_between_two_points_is_interpolated() {
        let rcps = Rcps::published(Ruleset::V5_0, Benchmark::StableDiffusion).unwrap();
        // The official checker's, with pruned and with all points.
        let Basis::Interpolated(point) = rcps.basis(320, RcpSet::Pruned) else { panic!("not interpolated") };
        assert_eq!((point.mean.round(), point.fastest.round()), (1_788_675.0, 1_612_019.0));
        let Basis::Interpolated(point) = rcps.basis(320, RcpSet::Full) else { panic!("not interpolated") };
        assert!((point.mean - 1_877_845.333).abs() < 1e-3);
        assert_eq!(rcps.basis(128, RcpSet::Pruned).name(), "smallest");
        assert_eq!(rcps.basis(512, RcpSet::Full).name(), "found");
        assert_eq!(rcps.basis(4096, RcpSet::Full), Basis::Missing);
    }
}
