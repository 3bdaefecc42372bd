//! What is kept of pictures: the state of a pass, which can be saved, continued and merged.

use crate::features::{FeatureKey, Features, ImageRows, NetworkFingerprint, hex};
use crate::figure::{Figure, Fingerprint};
use crate::metrics::{METRICS, Metric};
use crate::pass::Wanted;
use crate::pictures::Picture;
use crate::rows::{Rows, anew, damaged, lost};
use crate::statistics::Archive;
use crate::{EvaluateError, Result};
use calotype_core::durable::{read_json, write_bytes, write_json};
use calotype_data::image::RgbImage;
use calotype_metrics::{GaussianAccumulator, GaussianStatistics};
use serde::{Deserialize, Serialize};
use serde_json::Value;
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
    /// Sum over samples of the hash of number and pixels, of lists of pictures.
    pixels: [u64; 4],
}

impl SampleList {
    /// An empty list that goes on with sample `first`.
    pub fn starting_at(first: usize) -> Self {
        Self { first, count: 0, sum: [0; 4], pixels: [0; 4] }
    }

    /// Adds the next sample.
    pub fn push(&mut self, name: &str) {
        let number = (self.first + self.count) as u64;
        let hash = Sha256::new().chain_update(number.to_le_bytes()).chain_update(name.as_bytes()).finalize();
        add(&mut self.sum, words(&hash));
        self.count += 1;
    }

    /// Adds the next sample, which is a picture with this hash of its pixels.
    fn push_picture(&mut self, name: &str, pixels: &PixelHash) {
        let number = (self.first + self.count) as u64;
        let hash = blake3::Hasher::new().update(&number.to_le_bytes()).update(pixels.as_bytes()).finalize();
        add(&mut self.pixels, words(hash.as_bytes()));
        self.push(name);
    }

    /// Adds the list that follows.
    fn append(&mut self, next: &Self) {
        self.count += next.count;
        add(&mut self.sum, next.sum);
        add(&mut self.pixels, next.pixels);
    }

    /// The list's hash, in hexadecimal.
    pub fn hash(&self) -> String {
        self.hash_of(&self.sum)
    }

    /// The hash of the list and of the pictures' pixels, in hexadecimal.
    pub fn hash_with_pixels(&self) -> String {
        self.hash_of(&[self.sum, self.pixels].concat())
    }

    fn hash_of(&self, sums: &[u64]) -> String {
        let mut hasher = Sha256::new();
        let words = [self.first as u64, self.count as u64];
        words.iter().chain(sums).for_each(|word| hasher.update(word.to_le_bytes()));
        hex(&hasher.finalize())
    }
}

/// The hash of a picture's pixels.
pub(crate) type PixelHash = blake3::Hash;

/// Hashes size and pixels of a picture.
pub(crate) fn pixel_hash(image: &RgbImage) -> PixelHash {
    let mut hasher = blake3::Hasher::new();
    [image.width(), image.height()].iter().for_each(|side| _ = hasher.update(&(*side as u64).to_le_bytes()));
    hasher.update(image.data()).finalize()
}

fn add(sum: &mut [u64; 4], words: [u64; 4]) {
    sum.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(word));
}

/// 32 bytes as numbers.
fn words(hash: &[u8]) -> [u64; 4] {
    let (words, _) = hash.as_chunks::<8>();
    std::array::from_fn(|at| u64::from_le_bytes(words[at]))
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
        if let Some(difference) = next.network.difference(&self.network) {
            return Err(
                self.lacks(format!("a slice is of another network or preparation than those before: {difference}"))
            );
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
        self.samples.append(&next.samples);
        Ok(())
    }

    fn lacks(&self, detail: String) -> EvaluateError {
        EvaluateError::State { key: self.key.to_string(), detail }
    }

    /// Adds pictures with the hashes of their pixels and their rows.
    pub(crate) fn push(
        &mut self,
        pictures: &[Picture],
        pixels: &[PixelHash],
        found: &ImageRows,
        captions: &[f32],
    ) -> Result<()> {
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
        for (picture, pixels) in pictures.iter().zip(pixels) {
            self.samples.push_picture(picture.caption.as_ref().unwrap_or(&picture.name), pixels);
        }
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
    of: String,
    index: BTreeMap<FeatureKey, Saved>,
}

/// What [`INDEX`] says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    /// What the folder is of, in the words of whoever keeps it.
    of: String,
    features: BTreeMap<FeatureKey, Saved>,
    /// Of the other fields.
    checksum: String,
}

/// What of a state is saved.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    network: NetworkFingerprint,
    samples: SampleList,
    rows: BTreeMap<Part, SavedRows>,
    /// Checksum of the sums for mean and covariance, if they are in a file of their own.
    sums: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRows {
    width: usize,
    checksum: String,
}

impl Index {
    fn new(of: &str, features: BTreeMap<FeatureKey, Saved>) -> serde_json::Result<Self> {
        let text = serde_json::to_string(&(of, &features))?;
        Ok(Self { of: of.to_owned(), features, checksum: blake3::hash(text.as_bytes()).to_hex().to_string() })
    }

    /// That of a folder; none if there is none. `of` says what it has to be of.
    fn read(folder: &Path, of: &str) -> Result<Option<Self>> {
        let path = folder.join(INDEX);
        let wrong =
            |detail: String| EvaluateError::File { path: path.clone(), detail: format!("{detail}; {}", anew(&path)) };
        let found: Option<Value> = match read_json(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(wrong(format!("the file is damaged: {error}")));
            }
            found => found.map_err(EvaluateError::io("read", &path))?,
        };
        let Some(found) = found else { return Ok(None) };
        if found.get("features").is_none() {
            return Err(wrong("it is of an earlier version, without checksums".to_owned()));
        }
        let found = Self::deserialize(found).map_err(|error| wrong(format!("the file is damaged: {error}")))?;
        let again = Self::new(&found.of, found.features.clone()).map_err(|error| wrong(error.to_string()))?;
        if again.checksum != found.checksum {
            return Err(damaged(&path, &found.checksum, &again.checksum));
        }
        match found.of == of {
            true => Ok(Some(found)),
            false => Err(wrong(format!("it is of `{}`, and `{of}` is looked for: folders were exchanged", found.of))),
        }
    }
}

/// The networks whose features a pass saved in a folder that is of `of`; no rows are read.
///
/// # Errors
/// As of [`load`].
pub(crate) fn networks_of(path: &Path, of: &str) -> Result<BTreeMap<FeatureKey, NetworkFingerprint>> {
    let saved = saved_in(path, of)?.into_iter();
    Ok(saved.map(|(key, saved)| (key, saved.network)).collect())
}

fn saved_in(path: &Path, of: &str) -> Result<BTreeMap<FeatureKey, Saved>> {
    let found = Index::read(path, of)?.map(|index| index.features).filter(|features| !features.is_empty());
    found.ok_or_else(|| {
        let detail =
            format!("no saved states: there is no {INDEX}, which is written last; {}", anew(&path.join(INDEX)));
        EvaluateError::File { path: path.to_owned(), detail }
    })
}

/// The states that a pass saved in a folder, which is of `of`, as [`PassOptions`](crate::PassOptions) had it.
///
/// # Errors
/// [`EvaluateError::File`] if there are none, if they are damaged, or of something else; [`EvaluateError::Io`].
pub fn load(path: &Path, of: &str) -> Result<States> {
    let folder = StateFolder { path: path.to_owned(), of: of.to_owned(), index: saved_in(path, of)? };
    let state = |(key, saved): (&FeatureKey, &Saved)| {
        let rows = saved.rows.iter().map(|(part, SavedRows { width, checksum })| {
            let rows = Rows::read(&folder.rows_file(key, *part), *width, saved.samples.count)?;
            Ok((*part, rows.verified(checksum)?))
        });
        let rows = rows.collect::<Result<BTreeMap<_, _>>>()?;
        let moments = match (&saved.sums, rows.contains_key(&Part::Features)) {
            (Some(_), _) => folder.sums(key, saved)?,
            (None, true) => Moments::OfRows(OnceLock::new()),
            (None, false) => Moments::Unwanted,
        };
        let state = State { key: key.clone(), network: saved.network.clone(), samples: saved.samples, moments, rows };
        Ok((key.clone(), state))
    };
    folder.index.iter().map(state).collect()
}

impl StateFolder {
    /// The folder at `path`, which is made if it is not there. Without an index, what else is in it does not count.
    pub(crate) fn open(path: &Path, of: &str) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(EvaluateError::io("make", path))?;
        let index = Index::read(path, of)?.map(|index| index.features).unwrap_or_default();
        Ok(Self { path: path.to_owned(), of: of.to_owned(), index })
    }

    /// The state of some features, as it was saved, or new.
    pub(crate) fn state(&self, features: &dyn Features, wanted: &Wanted, first: usize) -> Result<State> {
        let key = features.key();
        let Some(saved) = self.index.get(key) else { return self.new_state(features, wanted, first) };
        self.check(features, wanted, first, saved)?;
        let rows = wanted.rows.iter().map(|part| {
            let width = width_of(features, *part);
            let rows = Rows::open(&self.rows_file(key, *part), width, saved.samples.count)?;
            let checksum = saved.rows.get(part).map_or("", |saved| saved.checksum.as_str());
            Ok((*part, rows.verified(checksum)?))
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
        if let Some(difference) = saved.network.difference(features.fingerprint()) {
            return Err(self.refusal(format!("its {key} is of another network or preparation: {difference}")));
        }
        if saved.samples.first != first {
            let detail = format!("it begins with picture {}, not with {first}", saved.samples.first);
            return Err(self.refusal(detail));
        }
        let sums = wanted.gaussian && !wanted.rows.contains(&Part::Features);
        let lacks = wanted.rows.iter().any(|part| !saved.rows.contains_key(part)) || (sums && saved.sums.is_none());
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
        let bytes = std::fs::read(&path).map_err(lost("read", &path))?;
        let (found, checksum) = (blake3::hash(&bytes).to_hex().to_string(), saved.sums.as_deref().unwrap_or_default());
        if found != checksum {
            return Err(damaged(&path, checksum, &found));
        }
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
                    let bytes = sums.to_bytes();
                    write_bytes(&path, &bytes).map_err(EvaluateError::io("write", &path))?;
                    Some(blake3::hash(&bytes).to_hex().to_string())
                }
                _ => None,
            };
            let saved = |rows: &Rows| SavedRows { width: rows.width(), checksum: rows.checksum() };
            let rows = state.rows.iter().map(|(part, rows)| (*part, saved(rows))).collect();
            let saved = Saved { network: state.network.clone(), samples: state.samples, rows, sums };
            index.insert(key.clone(), saved);
        }
        let file = self.path.join(INDEX);
        let index = Index::new(&self.of, index).map_err(|error| EvaluateError::io("write", &file)(error.into()))?;
        write_json(&file, &index).map_err(EvaluateError::io("write", &file))?;
        let mut with_sums = index.features.iter().filter(|(_, saved)| saved.sums.is_some());
        with_sums.try_for_each(|(key, saved)| self.remove_old(key, saved))
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
    /// Mean and covariance out of a file.
    Statistics(Box<Archive>),
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
            Self::Statistics(archive) => Ok(archive.statistics.clone()),
            Self::Pictures(_) => self.state(key)?.gaussian(),
        }
    }

    /// The hash of what is compared with: of pictures, with their pixels.
    pub fn hash(&self, key: &FeatureKey) -> String {
        match self {
            Self::Statistics(archive) => archive.hash.clone(),
            Self::Pictures(states) => states.get(key).map(|state| state.samples.hash_with_pixels()).unwrap_or_default(),
        }
    }

    /// Refuses statistics that are not of these features; pictures are.
    ///
    /// # Errors
    /// [`EvaluateError::File`] naming the archive, if it has another number of features, or says that it is of another preparation or
    /// another network.
    pub fn check(&self, key: &FeatureKey, network: &NetworkFingerprint, width: usize) -> Result<()> {
        match self {
            Self::Statistics(archive) => archive.check(key, network, width),
            Self::Pictures(_) => Ok(()),
        }
    }

    /// What of it nobody can check, in a sentence.
    pub fn told(&self) -> Option<String> {
        match self {
            Self::Statistics(archive) if archive.origin.is_none() => Some(format!(
                "{} does not say of which network and preparation it is; the distance means something if these are the same as of \
                 the pictures",
                archive.path.display()
            )),
            _ => None,
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
