use super::diffusers::{SchedulerFields, read_clip, refuse_thresholding};
use super::settings::{SamplerSettings, Scheduler, SchedulerDefaults};
use super::solver::{Solver, StepInput, clip, combine};
use super::timetable::{ScheduleContext, Timetable};
use super::{SamplerConfig, SamplerError};
use crate::schedule::Spacing;
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Ancestral sampling (Ho et al. 2020, algorithm 2 and eq. 7); diffusers' `DDPMScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddpm {
    /// Variance of the fresh noise.
    pub variance: Variance,
    /// Clamp of the clean estimate's absolute value; none for latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

/// The variance of the fresh noise: one of the two bounds of Ho et al. 2020, section 3.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// The posterior's, `beta~_t`.
    #[default]
    #[serde(alias = "fixed_small_log")]
    FixedSmall,
    /// The forward process's, `beta_t`.
    FixedLarge,
}

impl Scheduler for Ddpm {
    const CLASS: &'static str = "DDPMScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::ddpm(Spacing::Leading).rescaling();

    fn read(fields: &mut Fields<'_>) -> Self {
        refuse_thresholding(fields);
        Self { variance: fields.get("variance_type", Variance::default()), clip: read_clip(fields, true) }
    }
}

impl SamplerSettings for Ddpm {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        Box::new(DdpmSolver { settings: self, config, timetable })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        Timetable::of_timesteps(context, context.whole_timesteps())
    }

    fn takes_timesteps(&self) -> bool {
        true
    }

    fn is_stochastic(&self) -> bool {
        true
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put("variance_type", self.variance);
        fields.put_clip(self.clip);
    }

    fn clip_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.clip)
    }
}

struct DdpmSolver<'a> {
    settings: &'a Ddpm,
    config: &'a SamplerConfig,
    timetable: &'a Timetable,
}

impl Solver for DdpmSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let timetable = self.timetable;
        let t = timetable.index(input.call);
        let alpha_bar = timetable.schedule.alpha_bar(t);
        let last = input.call + 1 == timetable.timesteps.len();
        let alpha_bar_next = if last { 1.0 } else { timetable.schedule.alpha_bar(timetable.index(input.call + 1)) };
        let estimate = self.config.prediction.estimate(&timetable.schedule, input.x.clone(), input.output, t);
        let clean = clip(estimate.clean, self.settings.clip);
        // Ho et al. 2020, eq. 7, over the stride between two visited timesteps.
        let alpha = alpha_bar / alpha_bar_next;
        let beta = 1.0 - alpha;
        let noise = 1.0 - alpha_bar;
        let mean = combine(
            alpha_bar_next.sqrt() * beta / noise,
            clean.clone(),
            alpha.sqrt() * (1.0 - alpha_bar_next) / noise,
            input.x,
        );
        let variance = match self.settings.variance {
            _ if t == 0 => 0.0,
            Variance::FixedSmall => (1.0 - alpha_bar_next) / noise * beta,
            Variance::FixedLarge => beta,
        };
        ((input.fresh)(mean, variance.max(0.0).sqrt()), clean)
    }
}
