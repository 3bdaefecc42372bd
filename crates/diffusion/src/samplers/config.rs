use super::plan::Plan;
use super::solver::Solver;
use super::{
    Ddim, Ddpm, DpmMultistep, DpmSinglestep, Euler, EulerAncestral, Heun, Lcm, Pndm, SamplerError, UniPc, diffusers,
};
use crate::objective::Prediction;
use crate::schedule::{ScheduleConfig, Spacing};
use serde::{Deserialize, Serialize};

/// A sampler with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum SamplerKind {
    /// Denoising diffusion implicit models.
    Ddim(Ddim),
    /// Ancestral sampling of denoising diffusion probabilistic models.
    Ddpm(Ddpm),
    /// Pseudo numerical methods; PLMS where the Runge-Kutta steps are skipped.
    Pndm(Pndm),
    /// Multistep DPM-Solver, DPM-Solver++ and their stochastic variants.
    DpmMultistep(DpmMultistep),
    /// Singlestep DPM-Solver and DPM-Solver++.
    DpmSinglestep(DpmSinglestep),
    /// Euler's method in the noise level.
    Euler(Euler),
    /// Euler's method with fresh noise.
    EulerAncestral(EulerAncestral),
    /// Heun's method in the noise level: two calls of the denoiser in a step.
    Heun(Heun),
    /// Unified predictor-corrector.
    #[serde(rename = "unipc")]
    UniPc(UniPc),
    /// Latent consistency models.
    Lcm(Lcm),
}

/// Runs an expression on the settings of whatever family it is.
macro_rules! on_family {
    ($kind:expr, $settings:ident => $body:expr) => {
        match $kind {
            $crate::samplers::SamplerKind::Ddim($settings) => $body,
            $crate::samplers::SamplerKind::Ddpm($settings) => $body,
            $crate::samplers::SamplerKind::Pndm($settings) => $body,
            $crate::samplers::SamplerKind::DpmMultistep($settings) => $body,
            $crate::samplers::SamplerKind::DpmSinglestep($settings) => $body,
            $crate::samplers::SamplerKind::Euler($settings) => $body,
            $crate::samplers::SamplerKind::EulerAncestral($settings) => $body,
            $crate::samplers::SamplerKind::Heun($settings) => $body,
            $crate::samplers::SamplerKind::UniPc($settings) => $body,
            $crate::samplers::SamplerKind::Lcm($settings) => $body,
        }
    };
}
pub(super) use on_family;

/// What a family is made of.
pub(super) trait Family {
    /// Its name in recipes.
    const NAME: &'static str;

    /// Its running state at the start.
    fn solver<'a>(&'a self, config: &'a SamplerConfig, plan: &'a Plan) -> Box<dyn Solver + 'a>;

    /// Where it goes.
    ///
    /// # Errors
    /// [`SamplerError`] for an impossible number of steps.
    fn plan(&self, ground: &super::plan::Ground<'_>) -> Result<Plan, SamplerError>;

    /// What of its settings excludes each other.
    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        None
    }

    /// Whether it draws fresh noise.
    fn is_stochastic(&self) -> bool {
        false
    }
}

impl SamplerKind {
    /// Every sampler with its default settings.
    pub fn all() -> [Self; 10] {
        [
            Self::Ddim(Ddim::default()),
            Self::Ddpm(Ddpm::default()),
            Self::Pndm(Pndm::default()),
            Self::DpmMultistep(DpmMultistep::default()),
            Self::DpmSinglestep(DpmSinglestep::default()),
            Self::Euler(Euler::default()),
            Self::EulerAncestral(EulerAncestral::default()),
            Self::Heun(Heun::default()),
            Self::UniPc(UniPc::default()),
            Self::Lcm(Lcm::default()),
        ]
    }

    /// The sampler of a [`SamplerKind::name`], with its default settings.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|kind| kind.name() == name)
    }

    /// Its name in recipes.
    pub fn name(&self) -> &'static str {
        fn of<F: Family>(_: &F) -> &'static str {
            F::NAME
        }
        on_family!(self, settings => of(settings))
    }

    /// Whether it draws fresh noise in each step.
    pub fn is_stochastic(&self) -> bool {
        on_family!(self, settings => settings.is_stochastic())
    }

    /// Calls of the denoiser in one step.
    pub fn calls_per_step(&self) -> usize {
        if matches!(self, Self::Heun(_)) { 2 } else { 1 }
    }

    pub(super) fn solver<'a>(&'a self, config: &'a SamplerConfig, plan: &'a Plan) -> Box<dyn Solver + 'a> {
        on_family!(self, settings => settings.solver(config, plan))
    }
}

/// How latents are drawn; from a recipe, or from a checkpoint's `scheduler_config.json`.
///
/// The default is Stable Diffusion's: DDIM on its schedule, in leading timesteps with an offset of 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplerConfig {
    /// The sampler.
    pub kind: SamplerKind,
    /// The schedule that the network was trained on.
    pub schedule: ScheduleConfig,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Which timesteps are visited; the singlestep solvers and LCM have spacings of their own.
    pub spacing: Spacing,
    /// Added to the timesteps of the leading spacing.
    pub steps_offset: usize,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            kind: SamplerKind::Ddim(Ddim::default()),
            schedule: ScheduleConfig::default(),
            prediction: Prediction::Epsilon,
            spacing: Spacing::Leading,
            steps_offset: 1,
        }
    }
}

impl SamplerConfig {
    /// Reads a `scheduler_config.json` of diffusers. Fields that are not there have the default of
    /// the scheduler that it names, as in diffusers.
    ///
    /// # Errors
    /// [`SamplerError::Class`] for an unknown scheduler; [`SamplerError::Field`] for a field that is
    /// unknown, impossible, or would change the results and is not supported.
    pub fn from_diffusers(config: &serde_json::Value) -> Result<Self, SamplerError> {
        diffusers::read(config, None)
    }

    /// The same for another sampler on the same checkpoint: what the file says holds for it too, and
    /// where it says nothing, this sampler's own defaults hold.
    ///
    /// `name` is a [`SamplerKind::name`] or the name of a diffusers scheduler.
    ///
    /// # Errors
    /// As of [`SamplerConfig::from_diffusers`].
    pub fn from_diffusers_as(config: &serde_json::Value, name: &str) -> Result<Self, SamplerError> {
        diffusers::read(config, Some(name))
    }

    /// The text of a `scheduler_config.json` as a value. Python writes `-Infinity` bare, which JSON does
    /// not know; it becomes a text.
    ///
    /// # Errors
    /// [`SamplerError::Json`].
    pub fn parse_diffusers(text: &str) -> Result<serde_json::Value, SamplerError> {
        diffusers::parse(text)
    }

    /// Whether the settings fit together.
    ///
    /// # Errors
    /// [`SamplerError::Setting`].
    pub fn check(&self) -> Result<(), SamplerError> {
        let problem = on_family!(&self.kind, settings => settings.problem(self));
        match problem {
            Some(problem) => Err(SamplerError::Setting { kind: self.kind.name(), problem }),
            None => Ok(()),
        }
    }
}
