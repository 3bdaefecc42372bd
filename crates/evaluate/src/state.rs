//! What is kept of pictures: the state of a pass, which can be saved, continued and merged.

use crate::features::{FeatureKey, Features, ImageRows, NetworkFingerprint, hex};
use crate::figure::{Figure, Fingerprint};
use crate::metrics::{METRICS, Metric};
use crate::pass::Wanted;
use crate::pictures::Picture;
use crate::rows::Rows;
use crate::{EvaluateError, Result};
use calotype_core::durable::{read_json, write_bytes, write_json};
use calotype_metrics::{GaussianAccumulator, GaussianStatistics};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Kinds of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Features of pictures.
    Features,
    /// Logits of classes.
    Logits,
    /// Features of the pictures' captions.
    Captions,
}

impl Part {
    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Logits => "logits",
            Self::Captions => "captions",
        }
    }
}

/// What is kept of pictures for the features of one key.
pub struct State {
    key: FeatureKey,
    network: NetworkFingerprint,
    samples: SampleList,
    moments: Moments,
    rows: BTreeMap<Part, Rows>,
}

/// How mean and covariance are found.
enum Moments {
    /// They are not wanted.
    Unwanted,
    /// Of the rows of features, once, when they are asked for.
    OfRows(OnceLock<GaussianStatistics>),
    /// Summed up on the way, for the rows are not kept.
    Running(Box<GaussianAccumulator>),
}

/// The states of a pass, by key.
pub type States = BTreeMap<FeatureKey, State>;

/// A list of samples by hash. Lists of consecutive slices can be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleList {
    /// Number of the first sample in the whole list.
    pub first: usize,
    /// Number of samples.
    pub count: usize,
    /// Sum over samples of the hash of number and name.
    sum: [u64; 4],
}

impl SampleList {
    /// An empty list that goes on with sample `first`.
    pub fn starting_at(first: usize) -> Self {
        Self { first, count: 0, sum: [0; 4] }
    }

    /// Adds the next sample.
    pub fn push(&mut self, name: &str) {
        let number = (self.first + self.count) as u64;
        let hash = Sha256::new().chain_update(number.to_le_bytes()).chain_update(name.as_bytes()).finalize();
        let (words, _) = hash.as_slice().as_chunks::<8>();
        self.add(std::array::from_fn(|at| u64::from_le_bytes(words[at])));
        self.count += 1;
    }

    /// The list's hash, in hexadecimal.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        let words = [self.first as u64, self.count as u64];
        words.iter().chain(&self.sum).for_each(|word| hasher.update(word.to_le_bytes()));
        hex(&hasher.finalize())
    }

    fn add(&mut self, sum: [u64; 4]) {
        self.sum.iter_mut().zip(sum).for_each(|(sum, word)| *sum = sum.wrapping_add(word));
    }
}

impl State {
    /// No pictures yet, in memory and temporary files.
    ///
    /// # Errors
    /// [`EvaluateError::Io`].
    pub fn temporary(features: &dyn Features, wanted: &Wanted, first: usize) -> Result<Self> {
        let rows = wanted.rows.iter().map(|part| Ok((*part, Rows::temporary(width_of(features, *part))?)));
        let rows = rows.collect::<Result<BTreeMap<_, _>>>()?;
        Self::of(features, wanted, SampleList::starting_at(first), rows)
    }

    fn of(features: &dyn Features, wanted: &Wanted, samples: SampleList, rows: BTreeMap<Part, Rows>) -> Result<Self> {
        let moments = match (wanted.gaussian, rows.contains_key(&Part::Features)) {
            (_, true) => Moments::OfRows(OnceLock::new()),
            (true, false) => {
                let accumulator = GaussianAccumulator::starting_at(features.width(), samples.first as u64);
                Moments::Running(Box::new(accumulator.map_err(EvaluateError::metric(features.key().to_string()))?))
            }
            (false, false) => Moments::Unwanted,
        };
        Ok(Self { key: features.key().clone(), network: features.fingerprint().clone(), samples, moments, rows })
    }

    /// The features' key.
    pub fn key(&self) -> &FeatureKey {
        &self.key
    }

    /// What the features depend on besides the pictures.
    pub fn network(&self) -> &NetworkFingerprint {
        &self.network
    }

    /// The list of the pictures.
    pub fn samples(&self) -> &SampleList {
        &self.samples
    }

    /// Number of pictures.
    pub fn count(&self) -> usize {
        self.samples.count
    }

    /// True if rows of this kind are kept.
    pub fn keeps(&self, part: Part) -> bool {
        self.rows.contains_key(&part)
    }

    /// Rows of one kind, `[pictures, width]`.
    ///
    /// # Errors
    /// [`EvaluateError::State`] if they were not kept, because no metric asked for them.
    pub fn rows(&self, part: Part) -> Result<&Rows> {
        self.rows.get(&part).ok_or_else(|| self.lacks(format!("rows of {} were not kept", part.name())))
    }

    /// True if mean and covariance were wanted, or can be computed of the rows.
    pub fn has_gaussian(&self) -> bool {
        !matches!(self.moments, Moments::Unwanted)
    }

    /// Mean and covariance of the features.
    ///
    /// # Errors
    /// [`EvaluateError::State`] if they were not kept; [`EvaluateError::Metric`] for fewer than two pictures, or features
    /// that are not finite.
    pub fn gaussian(&self) -> Result<GaussianStatistics> {
        let wrong = || EvaluateError::metric(self.key.to_string());
        match &self.moments {
            Moments::Unwanted => Err(self.lacks("mean and covariance were not kept".to_owned())),
            Moments::Running(accumulator) => GaussianAccumulator::clone(accumulator).finish().map_err(wrong()),
            Moments::OfRows(found) => {
                if let Some(found) = found.get() {
                    return Ok(found.clone());
                }
                let rows = self.rows(Part::Features)?;
                let mut sums =
                    GaussianAccumulator::starting_at(rows.width(), self.samples.first as u64).map_err(wrong())?;
                sums.push(rows.values()?).map_err(wrong())?;
                let made = sums.finish().map_err(wrong())?;
                Ok(found.get_or_init(|| made).clone())
            }
        }
    }

    /// Adds the state of the pictures that follow.
    fn append(&mut self, next: State) -> Result<()> {
        let expected = self.samples.first + self.samples.count;
        if next.samples.first != expected {
            let detail = format!("picture {expected} comes next, a slice begins with {}", next.samples.first);
            return Err(self.lacks(detail));
        }
        if next.network != self.network {
            let detail = format!("slices of unlike networks: {:?} and {:?}", self.network, next.network);
            return Err(self.lacks(detail));
        }
        if next.rows.keys().ne(self.rows.keys()) {
            return Err(self.lacks("slices that keep unlike rows".to_owned()));
        }
        let wrong = EvaluateError::metric(self.key.to_string());
        match (&mut self.moments, next.moments) {
            (Moments::Unwanted, Moments::Unwanted) => {}
            (Moments::Running(sums), Moments::Running(others)) => sums.merge(*others).map_err(wrong)?,
            (Moments::OfRows(found), Moments::OfRows(_)) => *found = OnceLock::new(),
            _ => return Err(self.lacks("slices that keep unlike sums".to_owned())),
        }
        for (rows, others) in self.rows.values_mut().zip(next.rows.values()) {
            rows.make_temporary()?;
            rows.push(others.values()?)?;
        }
        self.samples.count += next.samples.count;
        self.samples.add(next.samples.sum);
        Ok(())
    }

    fn lacks(&self, detail: String) -> EvaluateError {
        EvaluateError::State { key: self.key.to_string(), detail }
    }

    /// Adds pictures with their rows.
    pub(crate) fn push(&mut self, pictures: &[Picture], found: &ImageRows, captions: &[f32]) -> Result<()> {
        match &mut self.moments {
            Moments::Unwanted => {}
            Moments::Running(sums) => {
                sums.push(&found.features).map_err(EvaluateError::metric(self.key.to_string()))?;
            }
            Moments::OfRows(found) => *found = OnceLock::new(),
        }
        for (part, rows) in &mut self.rows {
            rows.push(match part {
                Part::Features => &found.features,
                Part::Logits => &found.logits,
                Part::Captions => captions,
            })?;
        }
        let name = |picture: &'_ Picture| picture.caption.clone().unwrap_or_else(|| picture.name.clone());
        pictures.iter().for_each(|picture| self.samples.push(&name(picture)));
        Ok(())
    }

    /// A figure of these pictures, under the name that its network allows.
    pub fn figure(&self, metric: &dyn Metric, value: f64, reference: Option<&Reference>) -> Figure {
        let entry = METRICS.iter().find(|entry| entry.name == metric.name());
        let otherwise = entry.map_or(metric.name(), |entry| entry.otherwise);
        let fingerprint = Fingerprint {
            features: self.key.clone(),
            network: self.network.clone(),
            sums: "f64".to_owned(),
            samples: self.samples.hash(),
            reference: reference.map(|reference| reference.hash(&self.key)).unwrap_or_default(),
            settings: BTreeMap::new(),
        };
        Figure {
            metric: if self.network.official { metric.name() } else { otherwise }.to_owned(),
            variant: metric.variant().to_owned(),
            value,
            deviation: None,
            interval: None,
            count: self.count(),
            fingerprint,
        }
    }
}

fn width_of(features: &dyn Features, part: Part) -> usize {
    if part == Part::Logits { features.classes() } else { features.width() }
}

/// States of consecutive slices, in their order, as one. The result lies in memory and temporary files.
///
/// # Errors
/// [`EvaluateError::State`] if they do not follow one another, or are not of the same networks, or keep different things.
pub fn merge(slices: Vec<States>) -> Result<States> {
    let mut slices = slices.into_iter();
    let Some(mut merged) = slices.next() else { return Ok(States::new()) };
    for (number, slice) in slices.enumerate() {
        if slice.keys().ne(merged.keys()) {
            let names = |states: &States| states.keys().map(FeatureKey::to_string).collect::<Vec<_>>().join(", ");
            let detail =
                format!("slice {} has features {}, those before it {}", number + 1, names(&slice), names(&merged));
            return Err(EvaluateError::State { key: "merging".to_owned(), detail });
        }
        for (state, next) in merged.values_mut().zip(slice.into_values()) {
            state.append(next)?;
        }
    }
    Ok(merged)
}

/// Name of the file that says what of a folder counts.
const INDEX: &str = "state.json";

/// A folder in which states are saved.
pub(crate) struct StateFolder {
    path: PathBuf,
    index: BTreeMap<FeatureKey, Saved>,
}

/// What of a state is saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    network: NetworkFingerprint,
    samples: SampleList,
    /// Kinds of rows with their widths.
    rows: BTreeMap<Part, usize>,
    /// True if sums for mean and covariance are in a file of their own.
    sums: bool,
}

/// The states that a pass saved in a folder.
///
/// # Errors
/// [`EvaluateError::File`] if there are none, or if they are damaged; [`EvaluateError::Io`].
pub fn load(path: &Path) -> Result<States> {
    let folder = StateFolder::read(path)?;
    if folder.index.is_empty() {
        let detail = format!("no saved states: there is no {INDEX}; the pass over the pictures writes it");
        return Err(EvaluateError::File { path: path.to_owned(), detail });
    }
    let state = |(key, saved): (&FeatureKey, &Saved)| {
        let rows = saved
            .rows
            .iter()
            .map(|(part, width)| Ok((*part, Rows::read(&folder.rows_file(key, *part), *width, saved.samples.count)?)));
        let rows = rows.collect::<Result<BTreeMap<_, _>>>()?;
        let moments = match (saved.sums, rows.contains_key(&Part::Features)) {
            (true, _) => folder.sums(key, saved)?,
            (false, true) => Moments::OfRows(OnceLock::new()),
            (false, false) => Moments::Unwanted,
        };
        let state = State { key: key.clone(), network: saved.network.clone(), samples: saved.samples, moments, rows };
        Ok((key.clone(), state))
    };
    folder.index.iter().map(state).collect()
}

impl StateFolder {
    /// The folder at `path`, which is made if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(EvaluateError::io("make", path))?;
        Self::read(path)
    }

    fn read(path: &Path) -> Result<Self> {
        let file = path.join(INDEX);
        let index = read_json(&file).map_err(EvaluateError::io("read", &file))?.unwrap_or_default();
        Ok(Self { path: path.to_owned(), index })
    }

    /// The state of some features, as it was saved, or new.
    pub(crate) fn state(&self, features: &dyn Features, wanted: &Wanted, first: usize) -> Result<State> {
        let key = features.key();
        let Some(saved) = self.index.get(key) else { return self.new_state(features, wanted, first) };
        self.check(features, wanted, first, saved)?;
        let rows = wanted.rows.iter().map(|part| {
            let width = width_of(features, *part);
            Ok((*part, Rows::open(&self.rows_file(key, *part), width, saved.samples.count)?))
        });
        let mut state = State::of(features, wanted, saved.samples, rows.collect::<Result<_>>()?)?;
        if matches!(state.moments, Moments::Running(_)) {
            state.moments = self.sums(key, saved)?;
        }
        Ok(state)
    }

    fn new_state(&self, features: &dyn Features, wanted: &Wanted, first: usize) -> Result<State> {
        if let Some((other, _)) = self.index.iter().find(|(_, saved)| saved.samples.count > 0) {
            return Err(self.refusal(format!("it holds {other}, and nothing of {}", features.key())));
        }
        let rows = wanted
            .rows
            .iter()
            .map(|part| Ok((*part, Rows::open(&self.rows_file(features.key(), *part), width_of(features, *part), 0)?)));
        State::of(features, wanted, SampleList::starting_at(first), rows.collect::<Result<_>>()?)
    }

    /// Refuses to go on with what was saved of other pictures, networks or kinds of rows.
    fn check(&self, features: &dyn Features, wanted: &Wanted, first: usize, saved: &Saved) -> Result<()> {
        let key = features.key();
        if saved.network != *features.fingerprint() {
            let (now, then) = (features.fingerprint(), &saved.network);
            return Err(self.refusal(format!("its {key} is of another network or preparation: {then:?}, not {now:?}")));
        }
        if saved.samples.first != first {
            let detail = format!("it begins with picture {}, not with {first}", saved.samples.first);
            return Err(self.refusal(detail));
        }
        let sums = wanted.gaussian && !wanted.rows.contains(&Part::Features);
        let lacks = wanted.rows.iter().any(|part| !saved.rows.contains_key(part)) || (sums && !saved.sums);
        if lacks {
            return Err(self.refusal(format!("it lacks what the metrics need of {key}")));
        }
        Ok(())
    }

    fn refusal(&self, detail: String) -> EvaluateError {
        let detail = format!("{detail}; give the same metrics, networks and pictures, or another folder");
        EvaluateError::File { path: self.path.clone(), detail }
    }

    fn rows_file(&self, key: &FeatureKey, part: Part) -> PathBuf {
        self.path.join(format!("{}.{}.f32", key.file_stem(), part.name()))
    }

    /// The file of the sums over `count` pictures: each saving writes another, so that a killed one harms none.
    fn sums_file(&self, key: &FeatureKey, count: usize) -> PathBuf {
        self.path.join(format!("{}.sums.{count}", key.file_stem()))
    }

    fn sums(&self, key: &FeatureKey, saved: &Saved) -> Result<Moments> {
        let path = self.sums_file(key, saved.samples.count);
        let bytes = std::fs::read(&path).map_err(EvaluateError::io("read", &path))?;
        let sums = GaussianAccumulator::from_bytes(&bytes);
        let sums = sums.map_err(|fault| EvaluateError::File { path: path.clone(), detail: fault.to_string() })?;
        if sums.count() != saved.samples.count {
            let detail = format!("sums of {} pictures, where {INDEX} says {}", sums.count(), saved.samples.count);
            return Err(EvaluateError::File { path, detail });
        }
        Ok(Moments::Running(Box::new(sums)))
    }

    pub(crate) fn save(&self, states: &States) -> Result<()> {
        let mut index = BTreeMap::new();
        for (key, state) in states {
            for rows in state.rows.values() {
                rows.sync()?;
            }
            let sums = match &state.moments {
                Moments::Running(sums) => {
                    let path = self.sums_file(key, state.count());
                    write_bytes(&path, &sums.to_bytes()).map_err(EvaluateError::io("write", &path))?;
                    true
                }
                _ => false,
            };
            let rows = state.rows.iter().map(|(part, rows)| (*part, rows.width())).collect();
            let saved = Saved { network: state.network.clone(), samples: state.samples, rows, sums };
            index.insert(key.clone(), saved);
        }
        let file = self.path.join(INDEX);
        write_json(&file, &index).map_err(EvaluateError::io("write", &file))?;
        index.iter().filter(|(_, saved)| saved.sums).try_for_each(|(key, saved)| self.remove_old(key, saved))
    }

    /// Removes the sums of earlier savings.
    fn remove_old(&self, key: &FeatureKey, saved: &Saved) -> Result<()> {
        let beginning = format!("{}.sums.", key.file_stem());
        let kept = self.sums_file(key, saved.samples.count);
        let entries = std::fs::read_dir(&self.path).map_err(EvaluateError::io("list", &self.path))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&beginning) && path != kept {
                std::fs::remove_file(&path).map_err(EvaluateError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// What pictures are compared with.
pub enum Reference {
    /// Mean and covariance out of a file, and the file's hash.
    Statistics(GaussianStatistics, String),
    /// Other pictures.
    Pictures(States),
}

impl Reference {
    /// The state of a key.
    ///
    /// # Errors
    /// [`EvaluateError::State`] if there is none: only pictures have more than mean and covariance.
    pub fn state(&self, key: &FeatureKey) -> Result<&State> {
        let missing = |detail: &str| EvaluateError::State { key: key.to_string(), detail: detail.to_owned() };
        match self {
            Self::Statistics(..) => {
                Err(missing("the reference is a file of mean and covariance; this metric needs its pictures"))
            }
            Self::Pictures(states) => states.get(key).ok_or_else(|| missing("the reference has no such features")),
        }
    }

    /// Mean and covariance of a key's features.
    ///
    /// # Errors
    /// As [`State::gaussian`] and [`Reference::state`].
    pub fn gaussian(&self, key: &FeatureKey) -> Result<GaussianStatistics> {
        match self {
            Self::Statistics(statistics, _) => Ok(statistics.clone()),
            Self::Pictures(_) => self.state(key)?.gaussian(),
        }
    }

    /// The hash of what is compared with.
    pub fn hash(&self, key: &FeatureKey) -> String {
        match self {
            Self::Statistics(_, hash) => hash.clone(),
            Self::Pictures(states) => states.get(key).map(|state| state.samples.hash()).unwrap_or_default(),
        }
    }
}

/// The reference of a metric that needs one.
///
/// # Errors
/// [`EvaluateError::Usage`] if there is none.
pub fn compared_with<'a>(metric: &dyn Metric, reference: Option<&'a Reference>) -> Result<&'a Reference> {
    reference.ok_or_else(|| {
        EvaluateError::Usage(format!("{} compares with other pictures: give them by --reference", metric.name()))
    })
}
