//! Figures of merit: one file and one row of [`METRICS`] each.

pub mod clip_fid;
pub mod clip_score;
pub mod cmmd;
pub mod fd;
pub mod fid;
mod frechet;
mod inception_rows;
pub mod inception_score;
pub mod kid;
pub mod neighbours;

use crate::features::FeatureKey;
use crate::figure::Figure;
use crate::state::{Part, Reference, State};
use crate::{EvaluateError, Result};
use calotype_core::UnknownName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a metric is computed of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The features.
    pub features: FeatureKey,
    /// True if their mean and covariance are wanted.
    pub gaussian: bool,
    /// The rows that are wanted themselves.
    pub rows: Vec<Part>,
    /// True if there has to be a reference.
    pub reference: bool,
}

/// A figure of merit in one definition.
pub trait Metric: Send + Sync {
    /// Its name in [`METRICS`].
    fn name(&self) -> &'static str;

    /// Whose definition it is.
    fn variant(&self) -> &str;

    /// What it is computed of.
    fn needs(&self) -> Needs;

    /// Pictures that it takes at least.
    fn fewest(&self) -> usize {
        1
    }

    /// What its figures are called: on published weights, and on others.
    fn figure_names(&self) -> Vec<&'static str> {
        let entry = METRICS.iter().find(|entry| entry.name == self.name());
        vec![self.name(), entry.map_or(self.name(), |entry| entry.otherwise)]
    }

    /// The figures of pictures, all of whose needs are in `judged` (and in `reference`).
    ///
    /// # Errors
    /// [`crate::EvaluateError::Metric`] if the formula does not take these numbers: too few, not finite.
    fn figures(&self, judged: &State, reference: Option<&Reference>) -> Result<Vec<Figure>>;
}

/// Metrics, each in one definition.
pub type Metrics = Vec<Box<dyn Metric>>;

/// Choices that metrics are opened with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricSettings {
    /// Definitions by name, for metrics that have several; empty: each metric's usual one.
    pub variants: Vec<String>,
    /// Preparation of pictures for CLIP.
    pub clip: String,
    /// Seed of subsets and of the order of splits.
    pub seed: u64,
    /// Subsets of a KID.
    pub subsets: usize,
    /// Pictures in a subset of a KID.
    pub subset_size: usize,
    /// Parts of an Inception score.
    pub splits: usize,
    /// Neighbours of precision, recall, density and coverage.
    pub neighbours: usize,
    /// Resamples of intervals of confidence; 0 for none.
    pub resamples: usize,
}

impl Default for MetricSettings {
    /// Those of torch-fidelity 0.4.0, and no intervals.
    fn default() -> Self {
        let (variants, clip) = (Vec::new(), "open_clip".to_owned());
        Self { variants, clip, seed: 2020, subsets: 100, subset_size: 1000, splits: 10, neighbours: 3, resamples: 0 }
    }
}

/// Somebody's definition of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// Its name in options and figures.
    pub name: &'static str,
    /// The preparation of pictures that it takes; empty if it does not decide it.
    pub features: &'static str,
}

/// A row of the table of metrics.
pub struct MetricEntry {
    /// Name in options and, on published weights, in figures.
    pub name: &'static str,
    /// Name of its figures on other weights.
    pub otherwise: &'static str,
    /// What it is, for help texts.
    pub about: &'static str,
    /// Its definitions, the usual one first; none if there is only one.
    pub variants: &'static [Variant],
    /// Keys of [`MetricSettings`] that it follows, beside `variants`.
    pub settings: &'static [&'static str],
    /// Opens it, in each of the chosen definitions that it has.
    pub open: fn(&MetricSettings) -> Result<Metrics>,
}

/// The metrics.
pub const METRICS: &[MetricEntry] = &[
    fid::ENTRY,
    kid::ENTRY,
    inception_score::ENTRY,
    neighbours::ENTRY,
    clip_score::ENTRY,
    clip_fid::ENTRY,
    cmmd::ENTRY,
    fd::ENTRY,
];

/// The row of a metric (`-` and `_` are the same).
fn entry(name: &str) -> Option<&'static MetricEntry> {
    METRICS.iter().find(|entry| entry.name == name.replace('-', "_"))
}

/// The key of the first setting that is not the `usual` one, and that none of the named metrics follows.
pub fn idle(names: &[String], settings: &MetricSettings, usual: &MetricSettings) -> Option<&'static str> {
    let entries: Vec<&MetricEntry> = names.iter().filter_map(|name| entry(name)).collect();
    let has = |variant: &String| entries.iter().any(|entry| entry.variants.iter().any(|own| own.name == *variant));
    if !settings.variants.iter().all(has) {
        return Some("variants");
    }
    let follows = |key: &str| entries.iter().any(|entry| entry.settings.contains(&key));
    let said = [
        ("clip", settings.clip != usual.clip),
        ("seed", settings.seed != usual.seed),
        ("subsets", settings.subsets != usual.subsets),
        ("subset_size", settings.subset_size != usual.subset_size),
        ("splits", settings.splits != usual.splits),
        ("neighbours", settings.neighbours != usual.neighbours),
        ("resamples", settings.resamples != usual.resamples),
    ];
    said.into_iter().find(|(key, is_said)| *is_said && !follows(key)).map(|(key, _)| key)
}

/// Opens metrics by name (`-` and `_` are the same), each once.
///
/// # Errors
/// [`crate::EvaluateError::Unknown`] for a name of a metric or a variant that is in no table.
pub fn open(names: &[String], settings: &MetricSettings) -> Result<Metrics> {
    check_variants(settings)?;
    check_counts(settings)?;
    let mut entries: Vec<&MetricEntry> = Vec::new();
    for name in names {
        let entry = entry(name).ok_or_else(|| unknown("metric", name, METRICS.iter().map(|entry| entry.name)))?;
        if !entries.iter().any(|other| other.name == entry.name) {
            entries.push(entry);
        }
    }
    let metrics = entries.into_iter().map(|entry| (entry.open)(settings));
    Ok(metrics.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Refuses a variant that no metric has.
fn check_variants(settings: &MetricSettings) -> Result<()> {
    let known: BTreeSet<&str> = METRICS.iter().flat_map(|entry| entry.variants).map(|variant| variant.name).collect();
    match settings.variants.iter().find(|name| !known.contains(name.as_str())) {
        None => Ok(()),
        Some(name) => Err(unknown("variant of a metric", name, known.into_iter()).into()),
    }
}

/// Refuses numbers that nobody waits for, and that no memory holds.
fn check_counts(settings: &MetricSettings) -> Result<()> {
    const MOST: usize = 1_000_000;
    let MetricSettings { subsets, splits, neighbours, resamples, .. } = *settings;
    let named = [("subsets", subsets), ("splits", splits), ("neighbours", neighbours), ("resamples", resamples)];
    match named.into_iter().find(|(_, count)| *count > MOST) {
        None => Ok(()),
        Some((name, count)) => Err(EvaluateError::Usage(format!("{name} is {count}; take at most {MOST}"))),
    }
}

fn unknown<'a>(what: &'static str, name: &str, known: impl Iterator<Item = &'a str>) -> UnknownName {
    UnknownName { what, name: name.to_owned(), known: known.collect::<Vec<_>>().join(", ") }
}

/// The chosen definitions of a metric; its usual one if none of the chosen is its own.
fn chosen<'a>(entry: &'a MetricEntry, settings: &'a MetricSettings) -> impl Iterator<Item = &'a Variant> {
    let is_chosen = |variant: &&Variant| settings.variants.iter().any(|name| name == variant.name);
    let own: Vec<&Variant> = entry.variants.iter().filter(is_chosen).collect();
    let usual = if own.is_empty() { entry.variants.first() } else { None };
    own.into_iter().chain(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_those_of_some_metric() {
        let usual = MetricSettings::default();
        let key = |names: &[&str], change: fn(&mut MetricSettings)| {
            let mut settings = usual.clone();
            change(&mut settings);
            idle(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), &settings, &usual)
        };
        type Change = fn(&mut MetricSettings);
        let changes: [(&str, Change, &str); 7] = [
            ("subsets", |s| s.subsets = 5, "kid"),
            ("subset_size", |s| s.subset_size = 5, "kid"),
            ("splits", |s| s.splits = 5, "inception-score"),
            ("neighbours", |s| s.neighbours = 5, "neighbours"),
            ("seed", |s| s.seed = 5, "inception_score"),
            ("resamples", |s| s.resamples = 5, "clip-score"),
            ("clip", |s| s.clip = "cmmd".to_owned(), "clip_fid"),
        ];
        for (name, change, metric) in changes {
            assert_eq!(key(&["fd", "cmmd"], change), Some(name));
            assert_eq!(key(&["fd", metric], change), None, "{name}");
        }
        let variants: Change = |s| s.variants = vec!["clean-fid".to_owned(), "nemo".to_owned()];
        assert_eq!(key(&["fid"], variants), None);
        assert_eq!(key(&["kid", "clip_score"], variants), None);
        assert_eq!(key(&["kid"], variants), Some("variants"));
    }

    #[test]
    fn counts_that_nobody_waits_for_are_refused() {
        for settings in [
            MetricSettings { resamples: usize::MAX, ..MetricSettings::default() },
            MetricSettings { subsets: 1_000_001, ..MetricSettings::default() },
            MetricSettings { neighbours: usize::MAX, ..MetricSettings::default() },
        ] {
            let error = open(&["fd".to_owned()], &settings).err().expect("too many");
            assert!(error.is_usage() && error.to_string().contains("at most 1000000"), "{error}");
        }
    }
}
