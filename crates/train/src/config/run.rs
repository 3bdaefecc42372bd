//! The tables `[run]` and `[memory]`.

use super::{SettingError, check};
use crate::hooks::crossed;
use calotype_core::system::format_count;
use calotype_models::Recompute;
use calotype_ops::Precision;
use serde::{Deserialize, Serialize};

/// Length, seed and book-keeping of a run. All counts are in samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Samples to train on in all; the last batch is not shortened.
    pub samples: u64,
    /// Samples of one optimizer step.
    pub batch_size: usize,
    /// Precision of activations.
    #[serde(default)]
    pub precision: Precision,
    /// Samples between two entries in the logs.
    pub log_every: u64,
    /// Samples between two checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    #[serde(default = "two")]
    pub keep_checkpoints: usize,
    /// Samples between two checkpoints that are kept besides the newest ones, for evaluation after the fact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
}

/// Samples of a step at most: far above every published batch, and far below what overflows.
pub const LARGEST_BATCH: usize = 1 << 24;

fn two() -> usize {
    2
}

impl RunSettings {
    /// Optimizer steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.samples.div_ceil(self.batch_size as u64)
    }

    /// The length in steps and samples, in words.
    pub(crate) fn in_steps(&self) -> String {
        let (steps, batch) = (self.steps(), self.batch_size as u64);
        let [steps, batch, samples] = [steps, batch, steps.saturating_mul(batch)].map(format_count);
        format!("run of {steps} steps × {batch} = {samples} samples")
    }

    /// Whether the checkpoint behind so many samples is one that `keep_every` keeps: that of a step that reached or passed a
    /// multiple of it.
    pub fn keeps(&self, samples: u64) -> bool {
        let before = samples.saturating_sub(self.batch_size as u64);
        self.keep_every.is_some_and(|every| crossed(before, samples, every))
    }

    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.batch_size > 0, "run.batch_size", || "must be at least 1".to_owned())?;
        check(self.batch_size <= LARGEST_BATCH, "run.batch_size", || {
            format!("{} samples at once are more than any memory holds; use at most {LARGEST_BATCH}", self.batch_size)
        })?;
        check(self.samples > 0, "run.samples", || "must be at least 1".to_owned())?;
        check(self.log_every > 0, "run.log_every", || "must be at least 1".to_owned())?;
        check(self.checkpoint_every > 0, "run.checkpoint_every", || "must be at least 1".to_owned())?;
        check(self.keep_every != Some(0), "run.keep_every", || "must be at least 1".to_owned())?;
        check(self.keep_checkpoints > 0, "run.keep_checkpoints", || "must be at least 1".to_owned())
    }
}

/// Time for memory: what of a network's activations is kept for the backward pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySettings {
    /// Whether the forward pass keeps only the inputs of the network's blocks; the backward pass computes the rest
    /// again, for about a third more time. The results are the same bits. Devices other than the CPU keep everything.
    pub recompute_blocks: bool,
}

/// Time for memory, of transformers: which of their blocks keep only their inputs for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StackMemory {
    /// `{ uniform = N }`: all, in groups of N blocks; `{ block = N }`: the first N. The results are the same bits. Devices other
    /// than the CPU keep everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
}

impl StackMemory {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.recompute.is_none_or(Recompute::is_possible), "memory.recompute", || {
            "names 0 blocks: use 1 or more, or leave it out".to_owned()
        })
    }
}
