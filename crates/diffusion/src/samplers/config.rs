use super::diffusers::ReadScheduler;
use super::{Ddim, SamplerError, SamplerKind, diffusers, visits};
use crate::objective::Prediction;
use crate::schedule::{ScheduleConfig, Spacing};
use serde::{Deserialize, Serialize};

/// The configuration of a sampler: from a recipe, or from a checkpoint's `scheduler_config.json`.
///
/// The default is Stable Diffusion's: DDIM on its schedule, in leading timesteps with an offset of 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplerConfig {
    /// The sampler.
    pub kind: SamplerKind,
    /// The schedule that the network was trained on.
    pub schedule: ScheduleConfig,
    /// The quantity that the network predicts.
    pub prediction: Prediction,
    /// The timesteps that are visited; the singlestep solvers and LCM have spacings of their own.
    pub spacing: Spacing,
    /// Added to the timesteps of the leading spacing.
    pub steps_offset: usize,
    /// The timesteps that are visited, in descending order, in place of all spacings; empty: those of the spacing. There are as
    /// many steps then. Only for samplers whose diffusers scheduler takes `timesteps`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timesteps: Vec<f64>,
    /// The noise levels that are visited, and the one after the last step, in descending order, in place of all spacings;
    /// empty: those of the timesteps. Only for samplers whose diffusers scheduler takes `sigmas`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sigmas: Vec<f64>,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            kind: SamplerKind::Ddim(Ddim::default()),
            schedule: ScheduleConfig::default(),
            prediction: Prediction::Epsilon,
            spacing: Spacing::Leading,
            steps_offset: 1,
            timesteps: Vec::new(),
            sigmas: Vec::new(),
        }
    }
}

impl SamplerConfig {
    /// Reads a `scheduler_config.json` of diffusers. Fields that are not there have the default of
    /// the scheduler that it names, as in diffusers.
    ///
    /// # Errors
    /// [`SamplerError::Class`] for an unknown scheduler, or for a sampler that does not fit the noise levels of the one that the
    /// file names; [`SamplerError::Fields`] with every field that is
    /// unknown, impossible, or would change the results and is not supported; [`SamplerError::Setting`] for
    /// settings that exclude each other.
    pub fn from_diffusers(config: &serde_json::Value) -> Result<Self, SamplerError> {
        diffusers::read(config, None).map(|read| read.config)
    }

    /// The same for another sampler on the same checkpoint: what the file says holds for it too, and
    /// where it says nothing, this sampler's own defaults hold. Fields of other schedulers have no effect.
    ///
    /// `name` is a [`SamplerKind::name`] or the name of a diffusers scheduler.
    ///
    /// # Errors
    /// As of [`SamplerConfig::from_diffusers`].
    pub fn from_diffusers_as(config: &serde_json::Value, name: &str) -> Result<Self, SamplerError> {
        diffusers::read(config, Some(name)).map(|read| read.config)
    }

    /// Either of both, with notes on what was passed over: fields that have no effect.
    ///
    /// # Errors
    /// As of [`SamplerConfig::from_diffusers`].
    pub fn read_diffusers(config: &serde_json::Value, name: Option<&str>) -> Result<ReadScheduler, SamplerError> {
        diffusers::read(config, name)
    }

    /// The same configuration as a `scheduler_config.json`, with every field of its scheduler spelled out.
    ///
    /// # Errors
    /// [`SamplerError::Setting`] for settings that exclude each other; [`SamplerError::Fields`] for one that the scheduler
    /// has no field for, such as DDIM's `eta`, which is an argument of the pipeline there.
    pub fn to_diffusers(&self) -> Result<serde_json::Value, SamplerError> {
        diffusers::write(self)
    }

    /// A `scheduler_config.json` as text: what [`parse_diffusers`](Self::parse_diffusers) reads, and Python.
    pub fn diffusers_text(config: &serde_json::Value) -> String {
        diffusers::text(config)
    }

    /// The text of a `scheduler_config.json` as a value. Python writes `-Infinity` bare, which JSON does
    /// not know; it becomes a text.
    ///
    /// # Errors
    /// [`SamplerError::Json`].
    pub fn parse_diffusers(text: &str) -> Result<serde_json::Value, SamplerError> {
        diffusers::parse(text)
    }

    /// Steps of a list of timesteps or noise levels; none without one.
    pub fn listed_steps(&self) -> Option<usize> {
        match (self.timesteps.len(), self.sigmas.len()) {
            (0, 0) => None,
            (0, levels) => Some(levels - 1),
            (steps, _) => Some(steps),
        }
    }

    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// [`SamplerError::Setting`]; [`SamplerError::Visits`] for a list of timesteps or noise levels that the sampler cannot visit.
    pub fn check(&self) -> Result<(), SamplerError> {
        if let Some(problem) = self.kind.settings().problem(self) {
            return Err(SamplerError::Setting { kind: self.kind.name(), problem });
        }
        visits::check(self)
    }
}
