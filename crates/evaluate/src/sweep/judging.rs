//! The sub-stages that judge: features of blocks of pictures, and figures of all of them.

use super::layout::{Layout, Point, make_folder, name_of};
use super::recipe::{JudgeSettings, SweepRecipe, setting};
use super::{Captions, SweepError};
use crate::metrics::{self, Metric};
use crate::pass::{self, Pass, PassOptions, wanted};
use crate::state::{self, Part, Reference, State, States};
use crate::{EvaluateError, Figure, METRICS, MetricSettings, Metrics, Networks, Picture, Pictures};
use burn::tensor::Device;
use calotype_core::{StopFlag, durable};
use calotype_data::Slice;
use calotype_metrics::retrieval::pair_cosines;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Pictures that go through the networks at a time. Features do not depend on it.
const BATCH: usize = 16;

/// The metric whose scores of single pictures are kept.
const CLIP_SCORE: &str = "clip_score";

/// Networks and metrics of a sweep.
pub(super) struct Judge<'a> {
    recipe: &'a SweepRecipe,
    metrics: Metrics,
    /// Those of the metrics that compare with a reference, whose pictures need no features of captions.
    comparing: Metrics,
    networks: Networks,
}

/// Whose features are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The pictures that are judged.
    Judged,
    /// Those that they are compared with.
    Reference,
}

/// Gives the pictures of a range.
pub(super) type Load<'a> = &'a dyn Fn(Range<usize>) -> Result<Vec<Picture>, EvaluateError>;

/// The figures of a point, with what they were computed by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Scores {
    /// Hash of everything in the recipe that they depend on.
    pub judged_by: String,
    /// The figures, with the name of the metric that each is of.
    pub figures: Vec<(String, Figure)>,
    /// CLIP score (cosine) of each picture; empty if no metric needs it.
    pub clip_scores: Vec<f32>,
}

impl Scores {
    /// The first figure of a metric.
    pub fn of(&self, metric: &str) -> Option<&Figure> {
        self.figures.iter().find(|(name, _)| name == metric).map(|(_, figure)| figure)
    }
}

impl<'a> Judge<'a> {
    /// Opens the metrics. Networks are read when the first picture is there.
    ///
    /// # Errors
    /// [`SweepError::Evaluate`] for unknown metrics; [`SweepError::Setting`] for one that compares with a reference, which is not
    /// given.
    pub fn open(recipe: &'a SweepRecipe, device: &Device) -> Result<Self, SweepError> {
        let settings = &recipe.judge;
        let metrics = all_metrics(settings)?;
        let mut comparing = all_metrics(settings)?;
        comparing.retain(|metric| metric.needs().reference);
        if let (Some(metric), None) = (comparing.first(), &settings.reference) {
            let problem = format!(
                "is missing, and {} compares with other pictures: name a folder, shards or statistics (.npz)",
                metric.name()
            );
            return Err(setting("judge.reference", problem));
        }
        let path = |path: &Option<String>| path.as_ref().map(PathBuf::from);
        let mut networks = Networks::new(device.clone());
        networks.inception = path(&settings.inception);
        networks.clip = path(&settings.clip);
        networks.features = path(&settings.features);
        networks.precision = settings.precision.dtype(device);
        Ok(Self { recipe, metrics, comparing, networks })
    }

    /// Finds out before anything is drawn that a network's file is not given, or not there.
    ///
    /// # Errors
    /// [`SweepError::Setting`] naming the key.
    pub fn check_networks(&self) -> Result<(), SweepError> {
        let files = [
            ("inception", "judge.inception", &self.networks.inception),
            ("clip", "judge.clip", &self.networks.clip),
            ("custom", "judge.features", &self.networks.features),
        ];
        for metric in &self.metrics {
            let needed = metric.needs().features;
            let Some((_, key, file)) = files.iter().find(|(network, ..)| *network == needed.network()) else {
                continue;
            };
            match file {
                None => {
                    return Err(setting(
                        key,
                        format!("is missing, and {} needs it: name the network's file or folder", metric.name()),
                    ));
                }
                Some(path) if !path.exists() => {
                    return Err(setting(key, format!("there is nothing at {}", path.display())));
                }
                Some(_) => {}
            }
        }
        // Anything with a colon may be an address.
        match &self.recipe.judge.reference {
            Some(path) if !path.contains(':') && !path.contains('{') && !Path::new(path).exists() => {
                Err(setting("judge.reference", format!("there is nothing at {path}")))
            }
            _ => Ok(()),
        }
    }

    fn metrics(&self, side: Side) -> &[Box<dyn Metric>] {
        match side {
            Side::Judged => &self.metrics,
            Side::Reference => &self.comparing,
        }
    }

    /// Which features are kept of pictures with this list of samples, as a part of a path: a hash of networks, kinds of rows and list.
    pub fn set(&self, side: Side, samples: &str) -> String {
        let settings = &self.recipe.judge;
        let mut text = format!("{samples} {}", self.recipe.block_size);
        for (key, wanted) in wanted(self.metrics(side)) {
            text.push_str(&format!(" {key} {:?}", wanted.rows));
        }
        text.push_str(&format!(" {:?} {:?} {:?}", settings.inception, settings.clip, settings.features));
        text.push_str(&format!(" {:?}", self.networks.precision));
        short_hash(&text)
    }

    /// A hash of everything that figures depend on besides the pictures.
    pub fn judged_by(&self, set: &str) -> String {
        short_hash(&format!("{set} {:?}", self.recipe.judge))
    }

    /// Whether the reference is pictures, which need features too.
    pub fn reference_pictures(&self) -> Result<Option<Pictures>, SweepError> {
        match &self.recipe.judge.reference {
            Some(path) if !is_statistics(path) && !self.comparing.is_empty() => Ok(Some(Pictures::open(path)?)),
            _ => Ok(None),
        }
    }

    /// The features of a block of pictures, written aside and renamed; what a killed process has left of it is continued.
    ///
    /// # Errors
    /// [`SweepError::Interrupted`] when `stop` asks for it, with what there is saved; others as of reading pictures and of the networks.
    pub fn block(
        &self,
        side: Side,
        (folder, slice): (&Path, Slice),
        range: Range<usize>,
        load: Load<'_>,
        stop: &StopFlag,
    ) -> Result<States, SweepError> {
        // Slices of different divisions may be done at the same time, and hold the same blocks.
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let aside = folder.with_file_name(format!(".{name}-{}.partial", name_of(slice)));
        make_folder(&aside)?;
        let options = PassOptions { first: range.start, folder: Some(&aside), keep_rows: true };
        let mut pass = Pass::open(self.metrics(side), &self.networks, &options)?;
        for first in (range.start + pass.done()..range.end).step_by(BATCH) {
            if stop.is_set() {
                pass.save()?;
                return Err(SweepError::Interrupted { pictures: 0 });
            }
            pass.push(&load(first..(first + BATCH).min(range.end))?)?;
        }
        let states = pass.finish()?;
        match fs::rename(&aside, folder) {
            Ok(()) => sync_parent(folder)?,
            // Another process was faster, with the same result.
            Err(_) if folder.is_dir() => fs::remove_dir_all(&aside).map_err(SweepError::io("remove", &aside))?,
            Err(error) => return Err(SweepError::io("rename", &aside)(error)),
        }
        Ok(states)
    }

    /// Sum and number of the CLIP scores of a block; none if no metric needs them.
    pub fn running(&self, states: &States) -> Result<Option<(f64, usize)>, SweepError> {
        let scores = self.clip_scores(states)?;
        let sum = scores.iter().map(|score| f64::from(*score)).sum();
        Ok((!scores.is_empty()).then_some((sum, scores.len())))
    }

    /// Cosines of pictures and captions.
    fn clip_scores(&self, states: &States) -> Result<Vec<f32>, SweepError> {
        let metric = self.metrics.iter().find(|metric| metric.name() == CLIP_SCORE);
        match metric.and_then(|metric| states.get(&metric.needs().features)) {
            Some(state) => cosines(state),
            None => Ok(Vec::new()),
        }
    }

    /// The statistics that all points are compared with, if the reference is such a file.
    ///
    /// # Errors
    /// As of reading them.
    pub fn statistics(&self) -> Result<Option<Reference>, SweepError> {
        let path =
            self.recipe.judge.reference.as_ref().filter(|path| is_statistics(path) && !self.comparing.is_empty());
        path.map(|path| Ok(Reference::read_statistics(Path::new(path))?)).transpose()
    }

    /// The figures of all pictures of a point.
    ///
    /// # Errors
    /// [`SweepError::Evaluate`] if a formula does not take the numbers.
    pub fn score(
        &self,
        folders: impl Iterator<Item = PathBuf>,
        reference: Option<&Reference>,
        set: &str,
    ) -> Result<Scores, SweepError> {
        let states = merged(folders)?;
        let mut figures = Vec::new();
        for metric in &self.metrics {
            let found = pass::figures(std::slice::from_ref(metric), &states, reference)?;
            figures.extend(found.into_iter().map(|figure| (metric.name().to_owned(), figure)));
        }
        Ok(Scores { judged_by: self.judged_by(set), figures, clip_scores: self.clip_scores(&states)? })
    }
}

fn all_metrics(settings: &JudgeSettings) -> Result<Metrics, SweepError> {
    let opened = settings.metrics.iter().map(|name| metrics_of(name, &settings.settings));
    Ok(opened.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// Opens a metric by its name, or by name and variant (`fid:clean-fid`), where the settings' variants do not count.
///
/// # Errors
/// [`SweepError::Evaluate`] for a name that is none; [`SweepError::Setting`] for a variant that the metric does not have.
fn metrics_of(name: &str, settings: &MetricSettings) -> Result<Metrics, SweepError> {
    let Some((name, variant)) = name.split_once(':') else {
        return Ok(metrics::open(&[name.to_owned()], settings)?);
    };
    let settings = MetricSettings { variants: vec![variant.to_owned()], ..settings.clone() };
    let opened = metrics::open(&[name.to_owned()], &settings)?;
    match opened.iter().all(|metric| metric.variant() == variant) {
        true => Ok(opened),
        false => {
            let entry = METRICS.iter().find(|entry| entry.name == name.replace('-', "_"));
            let known: Vec<&str> =
                entry.into_iter().flat_map(|entry| entry.variants).map(|variant| variant.name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(setting("judge.metrics", format!("names `{name}:{variant}`; the variants of {name} are {known}")))
        }
    }
}

/// The place of the reference's features among those of points.
pub(super) const REFERENCE: &str = "reference";

/// Reads the figures of a point, if they were made by the same settings.
pub(super) fn scores_of(layout: &Layout, point: &Point, judged_by: &str) -> Result<Option<Scores>, SweepError> {
    let path = layout.scores(point);
    let found: Option<Scores> = durable::read_json(&path).map_err(SweepError::io("read", &path))?;
    Ok(found.filter(|scores| scores.judged_by == judged_by))
}

/// Pictures that the sweep drew.
pub(super) fn drawn(
    layout: &Layout,
    point: &Point,
    captions: &Captions,
    range: Range<usize>,
) -> Result<Vec<Picture>, EvaluateError> {
    use calotype_data::image::{DecodeOptions, RgbImage};
    use rayon::prelude::*;
    let picture = |index: usize| -> Result<Picture, EvaluateError> {
        let path = layout.picture(point, index);
        let bytes = fs::read(&path).map_err(EvaluateError::io("read", &path))?;
        let image = RgbImage::decode_with(&path.display().to_string(), &bytes, &DecodeOptions::as_stored())?;
        let caption = &captions.list[index];
        Ok(Picture { name: caption.name.clone(), image, caption: Some(caption.text.clone()) })
    };
    let found: Vec<_> = range.into_par_iter().map(picture).collect();
    found.into_iter().collect()
}

/// The states of blocks as that of all pictures. Blocks are opened one after another: all at once would be more files than a process
/// may have open.
pub(super) fn merged(folders: impl Iterator<Item = PathBuf>) -> Result<States, SweepError> {
    let mut merged: Option<States> = None;
    for folder in folders {
        let next = state::load(&folder)?;
        merged = Some(match merged.take() {
            None => next,
            Some(before) => state::merge(vec![before, next])?,
        });
    }
    Ok(merged.unwrap_or_default())
}

/// The cosine of each picture's features and its caption's.
fn cosines(state: &State) -> Result<Vec<f32>, SweepError> {
    let (images, captions) = (state.rows(Part::Features)?, state.rows(Part::Captions)?);
    let cosines = pair_cosines(images.values()?, captions.values()?, images.width());
    let cosines = cosines.map_err(EvaluateError::metric(CLIP_SCORE))?;
    Ok(cosines.into_iter().map(|cosine| cosine as f32).collect())
}

fn is_statistics(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npz"))
}

fn sync_parent(path: &Path) -> Result<(), SweepError> {
    let parent = durable::parent_folder(path);
    durable::sync_folder(parent).map_err(SweepError::io("synchronise", parent))
}

/// The beginning of a SHA-256, in hexadecimal.
fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
