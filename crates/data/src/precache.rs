//! Running an encoder over a dataset once: pictures to latents, captions to embeddings.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{BoxError, Control, Dataset, DatasetIndex, Error, Result, Sample, ShardLimits, ShardWriter};

/// Key of the encoder's identity in a precached dataset's `meta`.
pub const META_ENCODER: &str = "encoder";

/// Key of the source dataset's digest ([`Dataset::digest`]) in a precached dataset's `meta`.
pub const META_SOURCE: &str = "source";

/// Key of the source dataset's own `meta`.
pub const META_SOURCE_META: &str = "source_meta";

/// Prefix of precached shards.
const PREFIX: &str = "encoded";

/// What turns samples into encoded samples.
pub trait SampleEncoder {
    /// A hash of everything that shapes the output: weights, transform, precision. Datasets whose encoders have the
    /// same identity are interchangeable.
    fn identity(&self) -> String;

    /// Encodes a batch: one output for each input, in order, with the same keys.
    ///
    /// # Errors
    /// The encoder's own; they end the stage.
    fn encode(&mut self, batch: &[Sample]) -> std::result::Result<Vec<Sample>, BoxError>;
}

/// Encodes all samples of `dataset`, `batch` at a time, into a new dataset in `out_dir`.
///
/// It may be ended at any instant and called again: finished shards are recognised by `progress.json`, checked by their
/// checksums, and not encoded again; the batches are the same as in an uninterrupted run. If `out_dir` already holds the
/// finished dataset of this encoder and source, its index is returned and nothing is done.
///
/// # Errors
/// [`Error::EncoderMismatch`] or [`Error::FolderInUse`] if `out_dir` holds another finished dataset,
/// [`Error::ProgressMismatch`] if it holds another unfinished one, [`Error::EncoderContract`] if keys or counts do not
/// match, [`Error::Encode`], [`Error::Interrupted`], and those of [`Dataset::get`] and [`ShardWriter::resume`].
pub fn precache(
    dataset: &Dataset,
    encoder: &mut dyn SampleEncoder,
    out_dir: impl AsRef<Path>,
    batch: usize,
    limits: ShardLimits,
    control: &mut Control<'_>,
) -> Result<DatasetIndex> {
    let out_dir = out_dir.as_ref();
    if batch == 0 {
        return Err(Error::InvalidArgument { what: "encoder batch", detail: "must be at least 1".to_owned() });
    }
    let meta = meta(dataset, encoder);
    if let Some(index) = finished(out_dir, &meta)? {
        return Ok(index);
    }
    let mut writer = ShardWriter::resume(out_dir, PREFIX, limits, meta)?;
    let done = writer.samples_done();
    // Batches keep their borders when a run goes on, since an encoder's rounding may depend on what shares a batch.
    for first in (done / batch * batch..dataset.len()).step_by(batch) {
        control.checkpoint("precache", writer.samples_written(), dataset.len())?;
        let outputs = encode_batch(dataset, encoder, first, batch)?;
        for sample in &outputs[done.saturating_sub(first).min(outputs.len())..] {
            writer.write(sample)?;
        }
    }
    let index = writer.finish()?;
    if index.samples != dataset.len() {
        let detail = format!("{} samples in, {} out", dataset.len(), index.samples);
        return Err(Error::EncoderContract { detail });
    }
    // The work is done and whole: a stop that is asked for now changes nothing.
    let _ = control.checkpoint("precache", index.samples, dataset.len());
    Ok(index)
}

fn meta(dataset: &Dataset, encoder: &dyn SampleEncoder) -> Map<String, Value> {
    let mut meta = Map::new();
    meta.insert(META_ENCODER.to_owned(), Value::String(encoder.identity()));
    meta.insert(META_SOURCE.to_owned(), Value::String(dataset.digest()));
    meta.insert(META_SOURCE_META.to_owned(), Value::Object(dataset.meta().clone()));
    meta
}

/// The index of a finished dataset in `out_dir`, if it is the one that is to be made.
fn finished(out_dir: &Path, meta: &Map<String, Value>) -> Result<Option<DatasetIndex>> {
    let Some(index) = DatasetIndex::read(out_dir)? else { return Ok(None) };
    if index.meta == *meta {
        // Opening checks that the shards are all there.
        Dataset::open(out_dir)?;
        return Ok(Some(index));
    }
    let text = |meta: &Map<String, Value>| match meta.get(META_ENCODER) {
        Some(Value::String(identity)) => identity.clone(),
        _ => "no encoder".to_owned(),
    };
    let (expected, found) = (text(meta), text(&index.meta));
    if expected == found {
        let found = "a dataset encoded from another source".to_owned();
        return Err(Error::FolderInUse { path: out_dir.to_path_buf(), found });
    }
    Err(Error::EncoderMismatch { path: out_dir.to_path_buf(), expected, found })
}

fn encode_batch(dataset: &Dataset, encoder: &mut dyn SampleEncoder, first: usize, batch: usize) -> Result<Vec<Sample>> {
    let end = (first + batch).min(dataset.len());
    let inputs = (first..end).map(|i| Ok(dataset.get(i)?.to_sample())).collect::<Result<Vec<_>>>()?;
    let outputs = encoder.encode(&inputs).map_err(|source| Error::Encode { first, source })?;
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
