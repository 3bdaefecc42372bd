//! Evaluations of the reference runs, as far as they are published.

use crate::offline::Scores;
use crate::ruleset::{Benchmark, Metric};
use serde::Deserialize;

/// A run of the reference implementation.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceRun {
    /// Samples of an optimizer step.
    pub batch: u64,
    /// Its evaluations, by ascending samples.
    pub evaluations: Vec<Scores>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    runs: Vec<PublishedRuns>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishedRuns {
    batch: u64,
    samples: Vec<u64>,
    fid: Vec<Vec<f64>>,
    clip: Vec<Vec<f64>>,
}

impl PublishedRuns {
    fn runs(&self) -> impl Iterator<Item = ReferenceRun> {
        self.fid.iter().zip(&self.clip).map(|(fid, clip)| {
            let scores = |((samples, fid), clip): ((&u64, &f64), &f64)| Scores {
                samples: *samples,
                results: vec![(Metric::Fid, *fid), (Metric::Clip, *clip)],
            };
            ReferenceRun {
                batch: self.batch,
                evaluations: self.samples.iter().zip(fid).zip(clip).map(scores).collect(),
            }
        })
    }
}

impl ReferenceRun {
    /// The published runs of a benchmark, by ascending batch; none of Flux.1. Source: the README of the reference implementation
    /// (mlcommons/training, `stable_diffusion`).
    pub fn published(benchmark: Benchmark) -> Vec<Self> {
        match benchmark {
            Benchmark::StableDiffusion => {
                let text = include_str!("../../rcps/stable_diffusion_runs.toml");
                let published: Published = toml::from_str(text).expect("the embedded tables are tested");
                published.runs.iter().flat_map(PublishedRuns::runs).collect()
            }
            Benchmark::Flux1 => Vec::new(),
        }
    }

    /// The batch among those with published runs that is nearest, by ratio; `None` if there are none.
    pub fn nearest_batch(benchmark: Benchmark, batch: u64) -> Option<u64> {
        let ratio = |other: u64| (other.max(1) as f64 / batch.max(1) as f64).ln().abs();
        let batches = Self::published(benchmark).into_iter().map(|run| run.batch);
        batches.min_by(|a, b| ratio(*a).total_cmp(&ratio(*b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_runs_are_those_of_the_reference_points() {
        let benchmark = Benchmark::StableDiffusion;
        let mut counts: BTreeMap<(u64, u64), usize> = BTreeMap::new();
        for run in ReferenceRun::published(benchmark) {
            assert!(run.evaluations.is_sorted_by(|a, b| a.samples < b.samples));
            let interval = benchmark.evaluation_interval(run.batch);
            assert!(
                run.evaluations
                    .iter()
                    .all(|scores| scores.samples.is_multiple_of(interval) && scores.results.len() == 2)
            );
            let reached = run.evaluations.iter().find(|scores| benchmark.reached(&scores.results)).unwrap();
            *counts.entry((run.batch, reached.samples)).or_default() += 1;
        }
        // rcps_stable_diffusion.json of round 4.0 has the same, but for batch 1024: 6 at 2,560,000 and 7 at 3,072,000.
        let expected = [
            ((512, 2_560_000), 13),
            ((512, 3_072_000), 1),
            ((1024, 2_560_000), 5),
            ((1024, 3_072_000), 7),
            ((1024, 3_584_000), 1),
            ((2048, 3_584_000), 4),
            ((2048, 4_096_000), 7),
            ((2048, 4_608_000), 2),
        ];
        assert_eq!(counts, BTreeMap::from(expected));
        let first = &ReferenceRun::published(benchmark)[0].evaluations[0];
        assert_eq!((first.samples, first.results[0].1), (512_000, 240.307753187222));
    }

    #[test]
    fn the_nearest_batch_is_found_by_ratio() {
        let nearest = |batch| ReferenceRun::nearest_batch(Benchmark::StableDiffusion, batch);
        let found = [0, 4, 512, 700, 750, 1024, 1400, 1500, 1 << 20].map(nearest);
        assert_eq!(found, [512, 512, 512, 512, 1024, 1024, 1024, 2048, 2048].map(Some));
        assert_eq!(ReferenceRun::nearest_batch(Benchmark::Flux1, 512), None);
    }
}
