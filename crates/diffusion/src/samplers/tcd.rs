use super::diffusers::{SchedulerFields, refuse_thresholding};
use super::lcm::distilled_timesteps;
use super::settings::{Named, SamplerSettings, Scheduler, SchedulerDefaults};
use super::solver::{Solver, StepInput, combine};
use super::timetable::{ScheduleContext, Timetable};
use super::{SamplerConfig, SamplerError};
use crate::schedule::{ScheduleKind, Spacing};
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Strategic stochastic sampling of trajectory consistency distillation (Zheng et al. 2024, algorithm 4); diffusers'
/// `TCDScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tcd {
    /// Share of the way to the next timestep that is gone past it and back with fresh noise (gamma of the paper): 0 is
    /// deterministic, 1 goes to the clean latent each time. 0 unless it is asked for, as in diffusers' pipelines, though their
    /// scheduler alone has 0.3.
    pub eta: f64,
    /// Steps of the solver in distillation, of whose timesteps those of sampling are a part.
    pub original_steps: usize,
}

impl Default for Tcd {
    fn default() -> Self {
        Self { eta: 0.0, original_steps: 50 }
    }
}

impl Scheduler for Tcd {
    const CLASS: &'static str = "TCDScheduler";
    const DEFAULTS: SchedulerDefaults =
        SchedulerDefaults::ddpm(Spacing::Leading).with_latent_betas(ScheduleKind::ScaledLinear).rescaling();

    fn read(fields: &mut Fields<'_>) -> Self {
        refuse_thresholding(fields);
        Self { eta: 0.0, original_steps: fields.size("original_inference_steps", 50) }
    }
}

impl SamplerSettings for Tcd {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        Box::new(TcdSolver { eta: self.eta, config, timetable })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        Timetable::of_timesteps(context, distilled_timesteps(context, Self::NAME, self.original_steps)?)
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        (!(0.0..=1.0).contains(&self.eta)).then_some("eta has to lie between 0 and 1")
    }

    fn takes_timesteps(&self) -> bool {
        true
    }

    fn is_stochastic(&self) -> bool {
        self.eta > 0.0
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put("original_inference_steps", self.original_steps);
        if self.eta != 0.0 {
            fields.unsaid("eta", self.eta);
        }
    }

    fn eta_mut(&mut self) -> Option<&mut f64> {
        Some(&mut self.eta)
    }
}

struct TcdSolver<'a> {
    eta: f64,
    config: &'a SamplerConfig,
    timetable: &'a Timetable,
}

impl Solver for TcdSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let (timetable, call) = (self.timetable, input.call);
        let schedule = &timetable.schedule;
        let t = timetable.index(call);
        let last = call + 1 == timetable.timesteps.len();
        // The last step leads to timestep 0, not to no noise at all.
        let next = if last { 0 } else { timetable.index(call + 1) };
        // In the precision of diffusers, which decides what is rounded down.
        let beyond = ((1.0 - self.eta) as f32 * next as f32).floor() as usize;
        let estimate = self.config.prediction.estimate(schedule, input.x, input.output, t);
        let [signal, sigma] = schedule.signal_and_noise(beyond);
        let noised = combine(signal, estimate.clean.clone(), sigma, estimate.noise);
        if last || self.eta == 0.0 {
            return (noised, estimate.clean);
        }
        let share = schedule.alpha_bar(next) / schedule.alpha_bar(beyond);
        ((input.fresh)(noised.mul_scalar(share.sqrt()), (1.0 - share).max(0.0).sqrt()), estimate.clean)
    }
}
