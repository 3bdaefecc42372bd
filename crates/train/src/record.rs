//! `--record`: the first steps of a run as a file that anybody can replay.
//!
//! The file holds, for each step, what the loss saw under the argument names of the reference implementation, channels
//! first (`step0.sample`, `step0.timestep`, …; with `optimizer.accumulate`, `step0.part1.sample`, …), the loss, the learning
//! rate and the norm of the whole gradient (`step0.loss`, `step0.learning_rate`, `step0.gradient_norm`), and all weights
//! under checkpoint keys in front of the first step (`initial.*`) and behind the last (`final.*`). Metadata: `kind`,
//! `recipe` (TOML) and `steps`. `scripts/replay.py` replays such a file with PyTorch.

use crate::trainer::TrainError;
use calotype_core::durable;
use calotype_models::state::NamedValues;
use calotype_weights::{Dtype, NamedTensor, TensorFile, TensorFileError, write_safetensors};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to record and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordOptions {
    /// The file to write.
    pub path: PathBuf,
    /// Steps to record, from the first on.
    pub steps: u64,
}

impl RecordOptions {
    /// Refuses a place where something else is than an earlier recording of the same run, which comes out the same again. Gives
    /// whether there is one.
    pub(crate) fn check(&self, recipe: &str) -> Result<bool, TrainError> {
        let refuse = |problem: String| Err(TrainError::Record { path: self.path.clone(), problem });
        let folder = durable::parent_folder(&self.path);
        if !folder.is_dir() {
            return refuse(format!("there is no folder {}; make it first", folder.display()));
        }
        if self.path.symlink_metadata().is_err() {
            return Ok(false);
        }
        let Ok(file) = TensorFile::open(&self.path) else {
            return refuse("something is there already that is no recording; choose another file".to_owned());
        };
        let said = |key: &str| file.metadata().get(key).map(String::as_str).unwrap_or_default();
        let steps: Option<u64> = said("steps").parse().ok();
        match said("recipe") == recipe && steps.is_some_and(|steps| steps <= self.steps) {
            true => Ok(true),
            false => {
                refuse("a recording of another run, or of more steps, is there already; choose another file".to_owned())
            }
        }
    }
}

/// What one call of a loss saw.
#[derive(Debug, Default)]
pub struct StepRecord(RefCell<Vec<NamedTensor<'static>>>);

impl StepRecord {
    pub(crate) fn tensor(&self, name: &str, shape: Vec<usize>, values: Vec<f32>) {
        self.0.borrow_mut().push(NamedTensor::from_f32(name.to_owned(), shape, &values).into_owned());
    }

    pub(crate) fn integers(&self, name: &str, shape: Vec<usize>, values: impl IntoIterator<Item = i64>) {
        let data = Cow::Owned(values.into_iter().flat_map(i64::to_le_bytes).collect());
        self.0.borrow_mut().push(NamedTensor { name: name.to_owned(), dtype: Dtype::I64, shape, data });
    }
}

/// Figures of a recorded step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepFigures {
    pub(crate) loss: f64,
    pub(crate) learning_rate: f64,
    pub(crate) gradient_norm: f64,
}

/// A recording in the making.
#[derive(Debug)]
pub(crate) struct Recording<'a> {
    path: &'a Path,
    steps: u64,
    done: u64,
    tensors: Vec<NamedTensor<'static>>,
}

impl<'a> Recording<'a> {
    pub(crate) fn begin(options: &'a RecordOptions, initial: Vec<NamedValues>) -> Self {
        let mut recording = Self { path: &options.path, steps: options.steps, done: 0, tensors: Vec::new() };
        recording.weights("initial", initial);
        recording
    }

    /// Takes what the parts of a step saw, and what came of it.
    pub(crate) fn step(&mut self, parts: Vec<StepRecord>, figures: StepFigures) {
        let step = format!("step{}", self.done);
        let several = parts.len() > 1;
        for (number, part) in parts.into_iter().enumerate() {
            for tensor in part.0.into_inner() {
                let name = match several {
                    true => format!("{step}.part{number}.{}", tensor.name),
                    false => format!("{step}.{}", tensor.name),
                };
                self.tensors.push(NamedTensor { name, ..tensor });
            }
        }
        let StepFigures { loss, learning_rate, gradient_norm } = figures;
        for (name, value) in [("loss", loss), ("learning_rate", learning_rate), ("gradient_norm", gradient_norm)] {
            let data = Cow::Owned(value.to_le_bytes().to_vec());
            let name = format!("{step}.{name}");
            self.tensors.push(NamedTensor { name, dtype: Dtype::F64, shape: Vec::new(), data });
        }
        self.done += 1;
    }

    /// Whether all steps that were asked for are recorded.
    pub(crate) fn is_complete(&self) -> bool {
        self.done >= self.steps
    }

    /// Writes the file, atomically.
    pub(crate) fn finish(
        mut self,
        last: Vec<NamedValues>,
        mut metadata: BTreeMap<String, String>,
    ) -> Result<(), TensorFileError> {
        self.weights("final", last);
        metadata.insert("steps".to_owned(), self.done.to_string());
        write_safetensors(self.path, &self.tensors, &metadata)
    }

    fn weights(&mut self, when: &str, values: Vec<NamedValues>) {
        let named =
            |t: NamedValues| NamedTensor::from_f32(format!("{when}.{}", t.name), t.shape, &t.values).into_owned();
        self.tensors.extend(values.into_iter().map(named));
    }
}
