//! The sub-stages that judge: features of blocks of pictures, and figures of all of them.

use super::layout::{Layout, Point, make_folder, name_of};
use super::recipe::{JudgeSettings, SweepRecipe, setting};
use super::{Captions, SweepError};
use crate::features::inception;
use crate::metrics::{self, Metric};
use crate::pass::{self, Pass, PassOptions, wanted};
use crate::state::{self, Part, Reference, State, States};
use crate::{
    EvaluateError, FeatureKey, Figure, METRICS, MetricSettings, Metrics, NetworkFingerprint, Networks, Picture,
    Pictures,
};
use burn::tensor::Device;
use calotype_core::{StopFlag, absence, durable};
use calotype_data::Slice;
use calotype_metrics::retrieval::pair_cosines;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Digest of what is compared with, where this start looks at it: it may be replaced under its name.
    reference: Option<String>,
    /// What the networks are that are there, by the features that are taken of them.
    opened: BTreeMap<FeatureKey, NetworkFingerprint>,
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
    /// The point.
    #[serde(default)]
    pub of: String,
    /// Hash of everything in the recipe that they depend on.
    pub judged_by: String,
    /// Digest of what the pictures were compared with.
    #[serde(default)]
    pub reference: String,
    /// The figures, with the name of the metric that each is of.
    pub figures: Vec<(String, Figure)>,
    /// CLIP score (cosine) of each picture; empty if no metric needs it.
    pub clip_scores: Vec<f32>,
    /// Of all of this, so that changed figures are told.
    #[serde(default)]
    pub checksum: String,
}

impl Scores {
    fn found_checksum(&self) -> Result<String, SweepError> {
        let text = serde_json::to_string(&Self { checksum: String::new(), ..self.clone() });
        let text = text.map_err(|error| SweepError::io("hash", Path::new(&self.of))(error.into()))?;
        Ok(short_hash(&text))
    }

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
        Ok(Self { recipe, metrics, comparing, networks, reference: None, opened: BTreeMap::new() })
    }

    /// Finds out before anything is drawn that a network's file is not given, or not there.
    ///
    /// # Errors
    /// [`SweepError::Setting`] naming the key.
    pub fn check_networks(&self) -> Result<(), SweepError> {
        for metric in &self.metrics {
            let Some((key, file)) = self.file_of(&metric.needs().features) else { continue };
            match file {
                None => {
                    return Err(setting(
                        key,
                        format!("is missing, and {} needs it: name the network's file or folder", metric.name()),
                    ));
                }
                Some(path) if !path.exists() => {
                    return Err(setting(key, format!("there is nothing at {}{}", path.display(), absence(path))));
                }
                Some(_) => {}
            }
        }
        // Anything with a colon may be an address.
        match &self.recipe.judge.reference {
            Some(path) if !path.contains(':') && !path.contains('{') && !Path::new(path).exists() => {
                Err(setting("judge.reference", format!("there is nothing at {path}{}", absence(Path::new(path)))))
            }
            _ => Ok(()),
        }
    }

    /// The recipe's key of the network behind some features, and its file.
    fn file_of(&self, features: &FeatureKey) -> Option<(&'static str, Option<&Path>)> {
        let Networks { inception, clip, features: custom, .. } = &self.networks;
        let (key, file) = match features.network() {
            "inception" => ("judge.inception", inception),
            "clip" => ("judge.clip", clip),
            "custom" => ("judge.features", custom),
            _ => return None,
        };
        Some((key, file.as_deref()))
    }

    /// Opens the networks that are there, so that what they made before can be told from what others made, and compares them with
    /// statistics that say of which features they are. Figures that are all there need none of them.
    ///
    /// # Errors
    /// As of [`Networks::open`] and [`Reference::check`].
    pub fn open_networks(&mut self, reference: Option<&Reference>) -> Result<(), SweepError> {
        for key in wanted(&self.metrics).into_keys() {
            let is_there = |(_, file): (&str, Option<&Path>)| file.is_some_and(Path::exists);
            if !self.file_of(&key).is_some_and(is_there) {
                continue;
            }
            let features = self.networks.open(&key)?;
            let compares = self.comparing.iter().any(|metric| metric.needs().features == key);
            if let Some(reference) = reference.filter(|_| compares) {
                reference.check(&key, features.fingerprint(), features.width())?;
            }
            self.opened.insert(key, features.fingerprint().clone());
        }
        Ok(())
    }

    /// Finds out before anything is drawn that there are fewer pictures than a metric takes.
    ///
    /// # Errors
    /// [`SweepError::Setting`] naming the key.
    pub fn check_counts(&self) -> Result<(), SweepError> {
        let images = self.recipe.images;
        let references = self.recipe.judge.reference_images.unwrap_or(usize::MAX);
        for metric in &self.metrics {
            let fewest = metric.fewest();
            let too_few = [(images, "images", true), (references, "judge.reference_images", metric.needs().reference)];
            if let Some((count, key, _)) = too_few.into_iter().find(|(count, _, counts)| *counts && *count < fewest) {
                let (name, variant) = (metric.name(), metric.variant());
                return Err(setting(
                    key,
                    format!("is {count}, and {name} ({variant}) takes at least {fewest} pictures"),
                ));
            }
        }
        Ok(())
    }

    /// Refuses the features of a block that other networks gave than those that are there now.
    ///
    /// # Errors
    /// [`SweepError::Other`] naming the network and both hashes; [`SweepError::Evaluate`] for damaged features.
    pub fn check_block(&self, folder: &Path, of: &str) -> Result<(), SweepError> {
        let kept = state::networks_of(folder, of)?;
        kept.iter().try_for_each(|(key, network)| self.check_network(folder, key, network))
    }

    /// Refuses figures on the features of other networks.
    ///
    /// # Errors
    /// [`SweepError::Other`] naming the network and both hashes.
    pub fn check_scores(&self, path: &Path, scores: &Scores) -> Result<(), SweepError> {
        scores.figures.iter().try_for_each(|(_, Figure { fingerprint, .. })| {
            self.check_network(path, &fingerprint.features, &fingerprint.network)
        })
    }

    fn check_network(&self, path: &Path, key: &FeatureKey, kept: &NetworkFingerprint) -> Result<(), SweepError> {
        let Some(difference) = self.opened.get(key).and_then(|now| kept.difference(now)) else { return Ok(()) };
        let (name, file) = self.file_of(key).unwrap_or_default();
        let file = file.map(|file| file.display().to_string()).unwrap_or_default();
        let problem = format!(
            "this was judged by another network than `{name}` ({file}) is now: {difference}; put the former one back, or choose another \
             folder with --out"
        );
        Err(SweepError::Other { path: path.to_owned(), problem })
    }

    /// The names under which figures will be found. Those that are called by other names on other weights than the published ones
    /// have both, unless the file of `judge.inception` is there and tells.
    ///
    /// # Errors
    /// [`SweepError::Evaluate`] for a file that cannot be read.
    pub fn figure_names(&self) -> Result<BTreeSet<&'static str>, SweepError> {
        let network = self.networks.inception.as_ref().filter(|path| path.exists());
        let official = network.map(|path| inception::is_official(path)).transpose()?;
        let mut names = BTreeSet::new();
        for metric in &self.metrics {
            let known = metric.figure_names();
            let is_inception = metric.needs().features.network() == inception::ENTRY.network;
            match (official.filter(|_| is_inception), known.as_slice()) {
                (Some(true), [published, _]) => names.extend([*published]),
                (Some(false), [_, otherwise]) => names.extend([*otherwise]),
                _ => names.extend(known),
            }
        }
        Ok(names)
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
        // The version of what is kept: states of earlier ones are not looked at.
        let mut text = format!("2 {samples} {}", self.recipe.block_size);
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

    /// The features of a block of pictures, which are [`of`](features_of) a point, written aside and renamed; what a killed process has left of it is continued.
    ///
    /// # Errors
    /// [`SweepError::Interrupted`] when `stop` asks for it, with what there is saved; others as of reading pictures and of the networks.
    pub fn block(
        &self,
        side: Side,
        (folder, slice, of): &(PathBuf, Slice, String),
        range: Range<usize>,
        load: Load<'_>,
        stop: &StopFlag,
    ) -> Result<States, SweepError> {
        // Slices of different divisions may be done at the same time, and hold the same blocks.
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let aside = folder.with_file_name(format!(".{name}-{}.partial", name_of(*slice)));
        make_folder(&aside)?;
        let options = PassOptions { first: range.start, folder: Some(&aside), of, keep_rows: true };
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

    /// The statistics that all points are compared with, if the reference is such a file; if `tells`, says what nobody can check.
    ///
    /// # Errors
    /// As of reading them.
    pub fn statistics(&self, tells: bool) -> Result<Option<Reference>, SweepError> {
        let path =
            self.recipe.judge.reference.as_ref().filter(|path| is_statistics(path) && !self.comparing.is_empty());
        let Some(path) = path else { return Ok(None) };
        let found = Reference::read_statistics(Path::new(path))?;
        found.told().iter().filter(|_| tells).for_each(|sentence| tracing::warn!("reference: {sentence}"));
        Ok(Some(found))
    }

    /// Notes what figures of this start are compared with: the set of features of pictures, or else statistics.
    pub fn compare_with(&mut self, pictures: Option<&str>, reference: Option<&Reference>) {
        self.reference = Some(match (pictures, reference) {
            (Some(set), _) => set.to_owned(),
            (None, Some(Reference::Statistics(archive))) => archive.hash.clone(),
            (None, _) => String::new(),
        });
    }

    /// The figures of all pictures of a point.
    ///
    /// # Errors
    /// [`SweepError::Evaluate`] if a formula does not take the numbers.
    pub fn score(
        &self,
        folders: impl Iterator<Item = PathBuf>,
        point: &Point,
        reference: Option<&Reference>,
        set: &str,
    ) -> Result<Scores, SweepError> {
        let states = merged(folders, &features_of(set, &point.to_string()))?;
        let mut figures = Vec::new();
        for metric in &self.metrics {
            let found = pass::figures(std::slice::from_ref(metric), &states, reference)?;
            figures.extend(found.into_iter().map(|figure| (metric.name().to_owned(), figure)));
        }
        let (of, judged_by, clip_scores) = (point.to_string(), self.judged_by(set), self.clip_scores(&states)?);
        let reference = self.reference.clone().unwrap_or_default();
        let scores = Scores { of, judged_by, reference, figures, clip_scores, checksum: String::new() };
        Ok(Scores { checksum: scores.found_checksum()?, ..scores })
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

/// What the features in a folder are of: which they are, and of which point or of the reference.
pub(super) fn features_of(set: &str, of: &str) -> String {
    format!("{set}/{of}")
}

/// Reads the figures of a point, if they were made by the same settings and of the same reference.
///
/// # Errors
/// [`SweepError::Other`] if they are damaged or changed, or those of another point.
pub(super) fn scores_of(
    layout: &Layout,
    point: &Point,
    judge: &Judge<'_>,
    set: &str,
) -> Result<Option<Scores>, SweepError> {
    let judged_by = judge.judged_by(set);
    let path = layout.scores(point);
    let wrong = |problem: String| {
        let problem = format!("{problem}; remove the file, and the next start makes it anew of the features");
        SweepError::Other { path: path.clone(), problem }
    };
    let found: Option<Scores> = durable::read_json(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => wrong(format!("the file is damaged: {error}")),
        _ => SweepError::io("read", &path)(error),
    })?;
    let compared = |scores: &Scores| judge.reference.as_ref().is_none_or(|now| *now == scores.reference);
    let own = found.filter(|scores| scores.judged_by == judged_by && compared(scores));
    let Some(scores) = own else { return Ok(None) };
    let checksum = scores.found_checksum()?;
    if checksum != scores.checksum {
        return Err(wrong(format!(
            "the file is damaged or was changed: its checksum is {checksum}, and it says {}",
            scores.checksum
        )));
    }
    match scores.of == point.to_string() {
        true => Ok(Some(scores)),
        false => Err(wrong(format!("these are the figures of {}: files were exchanged", scores.of))),
    }
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

/// The states of blocks, which are [`of`](features_of) one point, as that of all pictures. Blocks are opened one after another: all at once would be more files than a process
/// may have open.
pub(super) fn merged(folders: impl Iterator<Item = PathBuf>, of: &str) -> Result<States, SweepError> {
    let mut merged: Option<States> = None;
    for folder in folders {
        let next = state::load(&folder, of)?;
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
