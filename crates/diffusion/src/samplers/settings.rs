//! The parts that make up a sampler, and the macro that lists the samplers.

use super::diffusers::SchedulerFields;
use super::solver::Solver;
use super::timetable::{ScheduleContext, Timetable};
use super::{Curve, SamplerConfig, SamplerError, SamplerKind};
use crate::schedule::{ScheduleKind, Spacing};
use calotype_core::Fields;

/// The settings of a sampler, and everything that follows from them.
pub(super) trait SamplerSettings {
    /// The timesteps and noise levels that the sampler visits.
    ///
    /// # Errors
    /// [`SamplerError`] for a number of steps or an offset that the sampler cannot take.
    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError>;

    /// The running state before the first call.
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a>;

    /// Writes the settings under diffusers' names.
    fn write(&self, fields: &mut SchedulerFields);

    /// Says which settings exclude each other, and what to do.
    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        None
    }

    /// True if a step draws fresh noise.
    fn is_stochastic(&self) -> bool {
        false
    }

    /// True if it can visit a list of timesteps; its diffusers scheduler takes `timesteps` then.
    fn takes_timesteps(&self) -> bool {
        false
    }

    /// True if it can visit a list of noise levels; its diffusers scheduler takes `sigmas` then.
    fn takes_sigmas(&self) -> bool {
        false
    }

    /// Calls of the denoiser in one step.
    fn calls_per_step(&self) -> usize {
        1
    }

    /// The curve of the noise levels, where it can be chosen.
    fn curve_mut(&mut self) -> Option<&mut Curve> {
        None
    }

    /// The share of fresh noise, where it can be chosen.
    fn eta_mut(&mut self) -> Option<&mut f64> {
        None
    }

    /// The clamp of the clean estimate, where there is one.
    fn clip_mut(&mut self) -> Option<&mut Option<f64>> {
        None
    }
}

/// The name that the table of samplers gives to settings.
pub(super) trait Named {
    /// The name in recipes and errors.
    const NAME: &'static str;
}

/// The scheduler of diffusers that a sampler equals, and how its settings are read from `scheduler_config.json`.
pub(super) trait Scheduler: SamplerSettings + Sized {
    /// The name of the class.
    const CLASS: &'static str;

    /// Defaults of the fields that all schedulers have.
    const DEFAULTS: SchedulerDefaults;

    /// Reads the fields of this scheduler alone, with its defaults.
    fn read(fields: &mut Fields<'_>) -> Self;
}

/// Defaults of the fields that all schedulers have.
#[derive(Clone, Copy, Debug)]
pub(super) struct SchedulerDefaults {
    /// `beta_start`, `beta_end`.
    pub betas: (f64, f64),
    /// `beta_schedule`.
    pub shape: ScheduleKind,
    /// `timestep_spacing`.
    pub spacing: Spacing,
    /// True if the scheduler has the field `rescale_betas_zero_snr`.
    pub rescales: bool,
    /// True if its noise levels are EDM's, and none of the fields above are its own.
    pub edm: bool,
}

impl SchedulerDefaults {
    /// DDPM's ends of a linear `beta`; no `rescale_betas_zero_snr`.
    pub const fn ddpm(spacing: Spacing) -> Self {
        Self { betas: (0.0001, 0.02), shape: ScheduleKind::Linear, spacing, rescales: false, edm: false }
    }

    /// Noise levels of EDM (Karras et al. 2022), which no `beta` says.
    pub const fn edm() -> Self {
        Self { edm: true, ..Self::ddpm(Spacing::Leading) }
    }

    /// The ends of `beta` of Stable Diffusion.
    pub const fn with_latent_betas(self, shape: ScheduleKind) -> Self {
        Self { betas: (0.00085, 0.012), shape, ..self }
    }

    /// The same for a scheduler with `rescale_betas_zero_snr`.
    pub const fn rescaling(self) -> Self {
        Self { rescales: true, ..self }
    }
}

/// A sampler's row of the table.
pub(super) struct Row {
    /// Its name in recipes.
    pub name: &'static str,
    /// The diffusers class.
    pub class: &'static str,
    /// Defaults of the class.
    pub defaults: SchedulerDefaults,
    /// Reads its settings.
    pub read: fn(&mut Fields<'_>) -> SamplerKind,
}

/// The table of samplers: each row is `module::Settings = "name";`, where the module is the sampler's file.
///
/// It declares the modules, [`SamplerKind`] with its names, and the dispatch to [`SamplerSettings`].
macro_rules! samplers {
    ($($(#[$doc:meta])* $module:ident::$settings:ident = $name:literal;)+) => {
        $(mod $module; pub use $module::*;)+

        /// A sampler with its settings.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name")]
        pub enum SamplerKind {
            $($(#[$doc])* #[serde(rename = $name)] $settings($settings),)+
        }

        $(impl settings::Named for $settings {
            const NAME: &'static str = $name;
        })+

        const ROWS: &[settings::Row] = &[$(settings::Row {
            name: $name,
            class: <$settings as settings::Scheduler>::CLASS,
            defaults: <$settings as settings::Scheduler>::DEFAULTS,
            read: |fields| SamplerKind::$settings(<$settings as settings::Scheduler>::read(fields)),
        }),+];

        impl SamplerKind {
            /// The names of all samplers, as recipes and options have them.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// Every sampler with its default settings.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$settings($settings::default())),+]
            }

            /// Its name in recipes.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$settings(_) => $name),+ }
            }

            fn settings(&self) -> &dyn settings::SamplerSettings {
                match self { $(Self::$settings(settings) => settings),+ }
            }

            fn settings_mut(&mut self) -> &mut dyn settings::SamplerSettings {
                match self { $(Self::$settings(settings) => settings),+ }
            }
        }
    };
}
pub(super) use samplers;
