//! Several sources as one, each with a weight.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Member, Source};
use crate::order::OrderConfig;
use crate::sample::HeldSample;
use crate::webdataset::starts;
use crate::{Error, GlobalOrder, Result};

/// Sources whose samples are numbered through. The weights tell the share of each source in the stream
/// ([`Source::order`]), not its size.
pub struct Mixture {
    sources: Vec<(Arc<dyn Source>, f64)>,
    /// Number of the first sample of each source.
    starts: Vec<usize>,
    len: usize,
    meta: Map<String, Value>,
}

impl Mixture {
    /// Mixes sources; weights need not add up to one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is none, or more than 2⁶⁴ samples.
    pub fn new(sources: Vec<(Arc<dyn Source>, f64)>) -> Result<Self> {
        let bad = |detail: &str| Error::InvalidArgument { what: "mixture", detail: detail.to_owned() };
        if sources.is_empty() {
            return Err(bad("no sources"));
        }
        let lengths = sources.iter().map(|(source, _)| source.len());
        let len = lengths.clone().try_fold(0usize, |sum, len| sum.checked_add(len)).ok_or_else(|| bad("too large"))?;
        let starts = starts(lengths);
        // Facts that all sources agree on are facts about the mixture: an encoder's identity among others.
        let mut meta = sources[0].0.meta().clone();
        meta.retain(|key, value| sources.iter().all(|(source, _)| source.meta().get(key) == Some(value)));
        Ok(Mixture { sources, starts, len, meta })
    }

    /// The source of sample `i`, and its number there.
    fn place_of(&self, i: usize) -> Result<(&dyn Source, usize)> {
        if i >= self.len {
            return Err(Error::OutOfRange { index: i, len: self.len });
        }
        let number = self.starts.partition_point(|start| *start <= i) - 1;
        Ok((self.sources[number].0.as_ref(), i - self.starts[number]))
    }
}

impl Source for Mixture {
    fn name(&self) -> String {
        let names = self.sources.iter().map(|(source, weight)| format!("{} ({weight})", source.name()));
        names.collect::<Vec<_>>().join(" + ")
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, i: usize) -> Result<HeldSample<'_>> {
        let (source, i) = self.place_of(i)?;
        source.get(i)
    }

    fn meta(&self) -> &Map<String, Value> {
        &self.meta
    }

    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (source, weight) in &self.sources {
            hasher.update(format!("{}\t{weight}\n", source.digest()).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn members(&self) -> Vec<Member> {
        self.sources.iter().flat_map(|(source, _)| source.members()).collect()
    }

    fn file_of(&self, i: usize) -> String {
        self.place_of(i).map_or_else(|_| self.name(), |(source, i)| source.file_of(i))
    }

    fn blocks(&self) -> Vec<usize> {
        self.sources.iter().flat_map(|(source, _)| source.blocks()).collect()
    }

    fn left_out(&self) -> BTreeMap<&'static str, usize> {
        let mut all = BTreeMap::new();
        for (reason, count) in self.sources.iter().flat_map(|(source, _)| source.left_out()) {
            *all.entry(reason).or_default() += count;
        }
        all
    }

    fn order(&self, config: &OrderConfig) -> Result<GlobalOrder> {
        let sources: Vec<_> = self.sources.iter().map(|(source, weight)| (source.blocks(), *weight)).collect();
        GlobalOrder::mixture(config, &sources)
    }

    fn prepare(&self, i: usize) -> Result<bool> {
        let (source, i) = self.place_of(i)?;
        source.prepare(i)
    }

    fn read_ahead(&self) -> usize {
        self.sources.iter().map(|(source, _)| source.read_ahead()).sum()
    }
}
