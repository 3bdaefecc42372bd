//! Running encoders over a dataset once: images to latents, captions to embeddings.
//!
//! Shard `i` of the output holds the encoded samples `i · n .. (i + 1) · n` of the source, whichever process writes it. The
//! work can therefore be divided among any number of processes and ended at any instant, and the result is the same, byte
//! for byte. Until all shards are there, the folder holds `progress.json`, which describes the dataset, and a record
//! for each finished shard in `.precache/`; the process that finds the last record writes `index.json`.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use calotype_core::durable;
use calotype_core::folders::{Content, IMAGE_EXTENSIONS, content};

use crate::difference::{Difference, difference};
use crate::files::{read_json, write_json};
use crate::webdataset::{INDEX_FILE, PROGRESS_FILE, ShardFile, ShardRecord, is_shard_as_recorded};
use crate::{BoxError, Control, Dataset, DatasetIndex, Error, Result, Sample, Slice, Source};

/// Key of the encoders' identity in a precached dataset's `meta`.
pub const META_ENCODER: &str = "encoder";

/// Key of the facts behind the identity: models, their weights' hashes, transforms.
pub const META_ENCODERS: &str = "encoders";

/// Key of the source's digest ([`Source::digest`]) in a precached dataset's `meta`.
pub const META_SOURCE: &str = "source";

/// Key of the source's own `meta`.
pub const META_SOURCE_META: &str = "source_meta";

/// What stands for the identity of the encoders of a dataset that none has encoded.
pub const NO_ENCODER: &str = "no encoder";

/// Identity of the encoders that made a dataset with this `meta`, if any did ([`SampleEncoder::identity`]).
pub fn encoder_of(meta: &Map<String, Value>) -> Option<&str> {
    meta.get(META_ENCODER)?.as_str()
}

/// Fails unless the dataset `name` was encoded by encoders whose identity, or one of them by weights whose hash, begins
/// with `wanted`.
///
/// # Errors
/// [`Error::EncoderMismatch`] if none begins with `wanted`, or `wanted` is empty.
pub fn require_encoder(name: &str, meta: &Map<String, Value>, wanted: &str) -> Result<()> {
    let encoders = meta.get(META_ENCODERS).and_then(Value::as_object);
    let weights = encoders.into_iter().flat_map(Map::values).filter_map(|facts| facts.get("weights")?.as_str());
    if !wanted.is_empty() && encoder_of(meta).into_iter().chain(weights).any(|known| known.starts_with(wanted)) {
        return Ok(());
    }
    Err(Error::EncoderMismatch {
        path: PathBuf::from(name),
        expected: wanted.to_owned(),
        found: encoder_of(meta).unwrap_or(NO_ENCODER).to_owned(),
    })
}

/// Prefix of precached shards.
const PREFIX: &str = "encoded";

/// Folder of the records of finished shards, while some are not.
const RECORDS: &str = ".precache";

/// Version of the progress file.
const VERSION: u32 = 2;

/// An encoder of samples.
pub trait SampleEncoder {
    /// A text that depends on everything that shapes the output: weights, transform, precision. Datasets whose encoders
    /// have the same identity are interchangeable.
    fn identity(&self) -> String;

    /// Facts behind the identity, for people and for checks of single facts.
    fn description(&self) -> Map<String, Value> {
        Map::new()
    }

    /// The setting that a fact of the description comes from, as its user writes it; `path` has dots in front of keys inside of others.
    fn setting(&self, path: &str) -> String {
        path.to_owned()
    }

    /// Encodes a batch: one output for each input, in order, with the same keys.
    ///
    /// # Errors
    /// The encoder's own; they end the stage.
    fn encode(&mut self, batch: &[Sample]) -> std::result::Result<Vec<Sample>, BoxError>;
}

/// Layout of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrecacheLayout {
    /// Samples that are encoded at once; the last ones of a shard are fewer.
    pub batch: usize,
    /// Samples of a shard; those of the last one are fewer.
    pub shard_samples: usize,
}

impl fmt::Display for PrecacheLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batches of {} in shards of {} samples", self.batch, self.shard_samples)
    }
}

/// Outcome of a call of [`precache`].
#[derive(Clone, Debug, PartialEq)]
pub struct Precached {
    /// Samples of the slice.
    pub samples: usize,
    /// Samples of it that this call encoded; the others were there.
    pub encoded: usize,
    /// Length of the slice's shards, in bytes.
    pub bytes: u64,
    /// The index of the whole dataset, if all slices are done.
    pub index: Option<DatasetIndex>,
}

/// Content of the progress file.
#[derive(Serialize, Deserialize)]
struct ProgressFile {
    version: u32,
    layout: PrecacheLayout,
    samples: usize,
    meta: Map<String, Value>,
}

/// Encodes a slice of `dataset` into a new dataset in `out_dir`.
///
/// It may be ended at any instant and called again: finished shards are recognised by their records, compared with
/// their checksums, and not encoded again. Several processes may work on different slices at once. If `out_dir` already
/// holds the finished dataset of this encoder and source, nothing is done.
///
/// # Errors
/// [`Error::EncoderMismatch`] or [`Error::FolderInUse`] if `out_dir` holds another finished dataset,
/// [`Error::ProgressMismatch`] if it holds another unfinished one, [`Error::EncoderContract`] if keys or counts do not
/// match, [`Error::Encode`], [`Error::DuplicateKey`] within a shard, [`Error::Interrupted`] with the samples of whole shards as
/// done, [`Error::InvalidArgument`], [`Error::Io`], and those of [`Source::get`].
pub fn precache(
    dataset: &dyn Source,
    encoder: &mut dyn SampleEncoder,
    out_dir: impl AsRef<Path>,
    layout: PrecacheLayout,
    slice: Slice,
    control: &mut Control<'_>,
) -> Result<Precached> {
    check_arguments(layout, slice)?;
    let stage = Stage {
        dataset,
        out: out_dir.as_ref(),
        plan: ProgressFile { version: VERSION, layout, samples: dataset.len(), meta: meta(dataset, encoder) },
    };
    let range = slice.range(stage.shards());
    let total = range.clone().map(|shard| stage.samples_of(shard).len()).sum();
    let mut done = Precached { samples: total, encoded: 0, bytes: 0, index: None };
    if let Some(index) = stage.finished(encoder)? {
        done.bytes = index.shards[range].iter().map(|shard| shard.bytes).sum();
        return Ok(Precached { index: Some(index), ..done });
    }
    stage.claim(encoder)?;
    let kept = range.clone().map(|shard| stage.kept(shard)).collect::<Result<Vec<_>>>()?;
    let mut saved = kept.iter().flatten().map(|record| record.samples).sum();
    // The first report says what was there before.
    control.report("precache", saved, total);
    for (shard, kept) in range.zip(kept) {
        let record = match kept {
            Some(record) => record,
            None => {
                let encoded = stage.encode_shard(shard, encoder, (saved, total), control);
                let record = encoded.inspect_err(|error| stage.give_back(slice, error))?;
                done.encoded += record.samples;
                saved += record.samples;
                record
            }
        };
        done.bytes += record.bytes;
    }
    done.index = stage.conclude(encoder)?;
    // The work is done and whole: a stop that is asked for now changes nothing.
    control.report("precache", total, total);
    Ok(done)
}

fn check_arguments(layout: PrecacheLayout, slice: Slice) -> Result<()> {
    let bad = |what: &'static str, detail: String| Err(Error::InvalidArgument { what, detail });
    if layout.batch == 0 || layout.shard_samples == 0 {
        return bad("encoder batch or samples of a shard", "must be at least 1".to_owned());
    }
    if slice.id >= slice.count {
        return bad("slice", format!("number {} of {}", slice.id, slice.count));
    }
    Ok(())
}

fn meta(dataset: &dyn Source, encoder: &dyn SampleEncoder) -> Map<String, Value> {
    let mut meta = Map::new();
    meta.insert(META_ENCODER.to_owned(), Value::String(encoder.identity()));
    meta.insert(META_ENCODERS.to_owned(), Value::Object(encoder.description()));
    meta.insert(META_SOURCE.to_owned(), Value::String(dataset.digest()));
    meta.insert(META_SOURCE_META.to_owned(), Value::Object(dataset.meta().clone()));
    meta
}

fn identity_in(meta: &Map<String, Value>) -> String {
    encoder_of(meta).unwrap_or(NO_ENCODER).to_owned()
}

/// The beginning of the source's checksum.
fn source_in(meta: &Map<String, Value>) -> String {
    let digest = meta.get(META_SOURCE).and_then(Value::as_str).unwrap_or_default();
    format!("of the checksum {}…", digest.chars().take(12).collect::<String>())
}

/// What to say where images are looked for in a dataset of what encoders made of them; none of other faults and datasets.
pub fn encoded_instead(meta: &Map<String, Value>, fault: &BoxError) -> Option<String> {
    let Some(Error::MissingPart { part, .. }) = fault.downcast_ref::<Error>() else { return None };
    let is_image = part.split(Error::OR).any(|part| IMAGE_EXTENSIONS.contains(&part));
    let encoder = encoder_of(meta).filter(|_| is_image)?;
    Some(format!(
        "the samples are what encoders made of images ({encoder}), and the images are not among them; take the dataset that they were \
         made of"
    ))
}

/// What to do about a batch that could not be encoded.
fn advice(meta: &Map<String, Value>, fault: &BoxError, batch: &[Sample]) -> String {
    if let Some(advice) = encoded_instead(meta, fault) {
        return advice;
    }
    let has = |sample: &Sample, part: &str| part.split(Error::OR).any(|part| sample.parts.contains_key(part));
    match fault.downcast_ref::<Error>() {
        Some(Error::MissingPart { part, .. }) if !batch.iter().any(|sample| has(sample, part)) => {
            "no sample of this batch has it: correct the recipe, if none of the dataset has, or leave such samples out of shards with \
             `calotype data check --quarantine`"
                .to_owned()
        }
        _ => "mend a sample that is at fault, or leave it out of shards with `calotype data check --quarantine`".to_owned(),
    }
}

struct Stage<'a> {
    dataset: &'a dyn Source,
    out: &'a Path,
    plan: ProgressFile,
}

impl Stage<'_> {
    fn shards(&self) -> usize {
        self.plan.samples.div_ceil(self.plan.layout.shard_samples)
    }

    /// Numbers of the source's samples in a shard.
    fn samples_of(&self, shard: usize) -> Range<usize> {
        let size = self.plan.layout.shard_samples;
        shard * size..((shard + 1) * size).min(self.plan.samples)
    }

    fn file_of(&self, shard: usize) -> String {
        format!("{PREFIX}-{shard:06}.tar")
    }

    fn record_path(&self, shard: usize) -> PathBuf {
        self.out.join(RECORDS).join(format!("{PREFIX}-{shard:06}.json"))
    }

    /// The index of a finished dataset in the folder, if it is the one that is to be made.
    fn finished(&self, encoder: &dyn SampleEncoder) -> Result<Option<DatasetIndex>> {
        let Some(index) = DatasetIndex::read(self.out)? else { return Ok(None) };
        let (mut expected, mut found) = (identity_in(&self.plan.meta), identity_in(&index.meta));
        let folder = self.out.to_path_buf();
        if expected != found {
            if let Some([there, now]) = self.setting(&index.meta, encoder) {
                (expected, found) = (format!("{expected}, with {now}"), format!("{found}, with {there}"));
            }
            return Err(Error::EncoderMismatch { path: folder, expected, found });
        }
        if index.meta != self.plan.meta {
            return Err(Error::FolderInUse { path: folder, found: "a dataset encoded from another source".to_owned() });
        }
        if index.shards.len() != self.shards() || index.samples != self.plan.samples {
            let found = "the same dataset in shards of another size".to_owned();
            return Err(Error::FolderInUse { path: folder, found });
        }
        // Opening checks that the shards are all there.
        Dataset::open(self.out)?;
        self.clean();
        Ok(Some(index))
    }

    /// Claims the folder for this dataset, or checks that it is claimed.
    fn claim(&self, encoder: &dyn SampleEncoder) -> Result<()> {
        let records = self.out.join(RECORDS);
        let path = self.out.join(PROGRESS_FILE);
        if let Some(plan) = read_json::<ProgressFile>(&path)? {
            self.compare(&plan, encoder)?;
        } else if !records.is_dir() {
            self.refuse_foreign_shards()?;
        }
        fs::create_dir_all(&records).map_err(Error::io("create folder", &records))?;
        write_json(&path, &self.plan)
    }

    /// Refuses what a folder was begun with if it is something else.
    fn compare(&self, there: &ProgressFile, encoder: &dyn SampleEncoder) -> Result<()> {
        let now = &self.plan;
        let same = |key: &str| there.meta.get(key) == now.meta.get(key);
        let (what, [found, expected]) = match () {
            () if there.version != now.version => ("version", [there, now].map(|plan| plan.version.to_string())),
            () if !same(META_ENCODER) || !same(META_ENCODERS) => match self.setting(&there.meta, encoder) {
                Some(both) => ("setting", both),
                None => ("encoder", [there, now].map(|plan| identity_in(&plan.meta))),
            },
            () if !same(META_SOURCE) => ("source", [there, now].map(|plan| source_in(&plan.meta))),
            () if there.meta != now.meta => {
                let differs = difference(&there.meta, &now.meta);
                ("source", differs.map(|difference| difference.both()).unwrap_or_default())
            }
            () if there.layout != now.layout => ("layout of shards", [there, now].map(|plan| plan.layout.to_string())),
            () => return Ok(()),
        };
        Err(Error::ProgressMismatch { path: self.out.to_path_buf(), what, expected, found })
    }

    /// The first setting of the encoders that differs from what a folder has, with its value there and now.
    fn setting(&self, there: &Map<String, Value>, encoder: &dyn SampleEncoder) -> Option<[String; 2]> {
        let facts = |meta: &'_ Map<String, Value>| meta.get(META_ENCODERS)?.as_object().cloned();
        let found = difference(&facts(there)?, &facts(&self.plan.meta)?)?;
        Some(Difference { path: encoder.setting(&found.path), ..found }.both())
    }

    /// Leaves nothing of a try that failed before it had a shard, so that other settings may follow. Of several slices, others may be
    /// at work.
    fn give_back(&self, slice: Slice, error: &Error) {
        let records = fs::read_dir(self.out.join(RECORDS));
        let has_none = records.is_ok_and(|mut records| records.next().is_none());
        if has_none && slice == Slice::ALL && !matches!(error, Error::Interrupted { .. }) {
            self.clean();
            // Unless something else is in it.
            let _ = fs::remove_dir(self.out);
        }
    }

    fn refuse_foreign_shards(&self) -> Result<()> {
        if let Some(found) = content(self.out).filter(|found| found.content != Content::Shards) {
            return Err(Error::FolderInUse { path: self.out.to_path_buf(), found: found.to_string() });
        }
        let entries = match fs::read_dir(self.out) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::io("list", self.out))?,
        };
        for entry in entries {
            let found = entry.map_err(Error::io("list", self.out))?.file_name().to_string_lossy().into_owned();
            if found.ends_with(".tar") {
                return Err(Error::FolderInUse { path: self.out.to_path_buf(), found });
            }
        }
        Ok(())
    }

    /// The record of a shard that is finished and as it was left.
    fn kept(&self, shard: usize) -> Result<Option<ShardRecord>> {
        let Some(record) = read_json::<ShardRecord>(&self.record_path(shard))? else { return Ok(None) };
        let known = record.file == self.file_of(shard) && record.samples == self.samples_of(shard).len();
        if known && is_shard_as_recorded(self.out, &record)? {
            return Ok(Some(record));
        }
        tracing::warn!(shard = %self.out.join(&record.file).display(), "shard is not as it was left: encoded again");
        Ok(None)
    }

    /// Writes a shard and its record. `saved` is the number of samples in shards that are there, `total` that of all.
    fn encode_shard(
        &self,
        shard: usize,
        encoder: &mut dyn SampleEncoder,
        (saved, total): (usize, usize),
        control: &mut Control<'_>,
    ) -> Result<ShardRecord> {
        let path = self.out.join(self.file_of(shard));
        let range = self.samples_of(shard);
        let mut file = ShardFile::create(&path)?;
        let mut keys = HashSet::new();
        for first in range.clone().step_by(self.plan.layout.batch) {
            let looked = control.checkpoint("precache", saved + file.samples(), total);
            looked.map_err(|error| with_done(error, saved))?;
            let batch = first..(first + self.plan.layout.batch).min(range.end);
            for sample in encode_batch(self.dataset, encoder, batch)? {
                file.write(&sample)?;
                if let Some(key) = keys.replace(sample.key) {
                    return Err(Error::DuplicateKey { key, first: path.clone(), second: path });
                }
            }
        }
        let record = file.finish()?;
        write_json(&self.record_path(shard), &record)?;
        Ok(record)
    }

    /// Writes the index if all shards are there.
    fn conclude(&self, encoder: &dyn SampleEncoder) -> Result<Option<DatasetIndex>> {
        let mut records = Vec::new();
        for shard in 0..self.shards() {
            match read_json::<ShardRecord>(&self.record_path(shard))? {
                Some(record) => records.push(record),
                // Still in work elsewhere, or another process has concluded meanwhile.
                None => return self.finished(encoder),
            }
        }
        let index = DatasetIndex::new(records, self.plan.meta.clone());
        if index.samples != self.plan.samples {
            let detail = format!("{} samples in, {} out", self.plan.samples, index.samples);
            return Err(Error::EncoderContract { detail });
        }
        // Other processes may be writing the same content at the same time.
        write_json(&self.out.join(INDEX_FILE), &index)?;
        self.clean();
        Ok(Some(index))
    }

    /// Removes the files that a finished dataset does not need. Another process may do the same; files that stay do no harm.
    fn clean(&self) {
        let _ = fs::remove_file(self.out.join(PROGRESS_FILE));
        for name in [PROGRESS_FILE, INDEX_FILE] {
            durable::remove_leftovers(&self.out.join(name));
        }
        let _ = fs::remove_dir_all(self.out.join(RECORDS));
    }
}

/// A stop loses the shard that is being written: done are those before it.
fn with_done(error: Error, saved: usize) -> Error {
    match error {
        Error::Interrupted { stage, total, .. } => Error::Interrupted { stage, done: saved, total },
        other => other,
    }
}

fn encode_batch(dataset: &dyn Source, encoder: &mut dyn SampleEncoder, batch: Range<usize>) -> Result<Vec<Sample>> {
    let first = batch.start;
    let numbers = batch.clone();
    let inputs = batch.map(|i| Ok(dataset.get(i)?.into_sample())).collect::<Result<Vec<_>>>()?;
    let outputs = encoder.encode(&inputs).map_err(|source| {
        let text = source.to_string();
        let named = inputs.iter().position(|sample| text.contains(&format!("`{}`", sample.key)));
        let file = dataset.file_of(numbers.start + named.unwrap_or(0));
        let advice = advice(dataset.meta(), &source, &inputs);
        Error::Encode { file, first, source, advice }
    })?;
    if outputs.len() != inputs.len() {
        let detail = format!("{} samples in, {} out, from sample {first} on", inputs.len(), outputs.len());
        return Err(Error::EncoderContract { detail });
    }
    match inputs.iter().zip(&outputs).find(|(input, output)| input.key != output.key) {
        Some((input, output)) => {
            let detail = format!("sample `{}` came back as `{}`", input.key, output.key);
            Err(Error::EncoderContract { detail })
        }
        None => Ok(outputs),
    }
}
