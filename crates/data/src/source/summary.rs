//! A dataset in a few lines, for people and for programs.

use super::Source;
use crate::Result;
use crate::error::printable;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// A dataset in a few lines; it serialises, and displays as text.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Its name in messages.
    pub dataset: String,
    /// Number of samples.
    pub samples: usize,
    /// Number of shards, files or row groups.
    pub blocks: usize,
    /// Samples that are left out, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
    /// The first sample.
    pub first: FirstSample,
    /// Free-form facts about the samples.
    pub meta: Map<String, Value>,
}

/// The first sample of a [`Summary`].
#[derive(Clone, Debug, Serialize)]
pub struct FirstSample {
    /// Its key.
    pub key: String,
    /// Its parts with their lengths in bytes.
    pub part_bytes: Map<String, Value>,
}

impl Summary {
    /// Reads the first sample of a dataset and sums the rest up.
    ///
    /// # Errors
    /// As [`Source::get`] of the first sample.
    pub fn of(dataset: &dyn Source) -> Result<Self> {
        let first = dataset.get(0)?;
        let first = first.sample();
        Ok(Self {
            dataset: dataset.name(),
            samples: dataset.len(),
            blocks: dataset.blocks().len(),
            left_out: dataset.left_out(),
            first: FirstSample {
                key: first.key().to_owned(),
                part_bytes: first.parts().map(|(name, bytes)| (name.to_owned(), bytes.len().into())).collect(),
            },
            meta: dataset.meta().clone(),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "dataset    {}", self.dataset)?;
        let blocks = if self.blocks == 1 { "shard, file or row group" } else { "shards, files or row groups" };
        writeln!(formatter, "samples    {} in {} {blocks}", self.samples, self.blocks)?;
        for (reason, count) in &self.left_out {
            writeln!(formatter, "left out   {count}, {reason}")?;
        }
        let parts = self.first.part_bytes.iter().map(|(name, bytes)| format!("{name} ({bytes} bytes)"));
        write!(formatter, "first      `{}`: {}", self.first.key, parts.collect::<Vec<_>>().join(", "))?;
        // Facts may be long: the configurations of encoders. All of them are in what is serialised.
        let shown = |value: &Value| printable(&value.to_string());
        self.meta.iter().try_for_each(|(name, value)| write!(formatter, "\n{name:<10} {}", shown(value)))
    }
}
