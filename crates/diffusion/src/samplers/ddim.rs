use super::diffusers::{SchedulerFields, read_clip, refuse_thresholding};
use super::settings::{SamplerSettings, Scheduler, SchedulerDefaults};
use super::solver::{Solver, StepInput, clip};
use super::timetable::{ScheduleContext, Timetable};
use super::{SamplerConfig, SamplerError};
use crate::schedule::Spacing;
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Denoising diffusion implicit models (Song et al. 2021, eq. 12); diffusers' `DDIMScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddim {
    /// Share of fresh noise: 0 is deterministic, 1 has DDPM's variance (Song et al. 2021, eq. 16).
    pub eta: f64,
    /// True: the last step leads to `alpha_bar = 1`; otherwise, as in Stable Diffusion, to that of timestep 0.
    pub alpha_to_one: bool,
    /// Clamp of the clean estimate's absolute value; none for latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl Scheduler for Ddim {
    const CLASS: &'static str = "DDIMScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::ddpm(Spacing::Leading).rescaling();

    fn read(fields: &mut Fields<'_>) -> Self {
        refuse_thresholding(fields);
        Self { eta: 0.0, alpha_to_one: fields.flag("set_alpha_to_one", true), clip: read_clip(fields, true) }
    }
}

impl SamplerSettings for Ddim {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        Box::new(DdimSolver { settings: self, config, timetable })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        Timetable::of_timesteps(context, context.whole_timesteps())
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        (!(0.0..=1.0).contains(&self.eta)).then_some("eta has to lie between 0 and 1")
    }

    fn is_stochastic(&self) -> bool {
        self.eta > 0.0
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put("set_alpha_to_one", self.alpha_to_one);
        fields.put_clip(self.clip);
        if self.eta != 0.0 {
            fields.unsaid("eta", self.eta);
        }
    }

    fn eta_mut(&mut self) -> Option<&mut f64> {
        Some(&mut self.eta)
    }

    fn clip_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.clip)
    }
}

struct DdimSolver<'a> {
    settings: &'a Ddim,
    config: &'a SamplerConfig,
    timetable: &'a Timetable,
}

impl Solver for DdimSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let timetable = self.timetable;
        let t = timetable.index(input.call);
        let estimate = self.config.prediction.estimate(&timetable.schedule, input.x, input.output, t);
        // The noise stays that of the unclipped estimate.
        let clean = clip(estimate.clean, self.settings.clip);
        let last = if self.settings.alpha_to_one { 1.0 } else { timetable.schedule.alpha_bar(0) };
        let (alpha, alpha_next) =
            (timetable.schedule.alpha_bar(t), timetable.alpha_bar(t as isize - timetable.stride(), last));
        // Eq. 16: the share of the variance that is drawn anew.
        let eta = self.settings.eta;
        let sigma = eta * ((1.0 - alpha_next) / (1.0 - alpha) * (1.0 - alpha / alpha_next)).max(0.0).sqrt();
        let direction = (1.0 - alpha_next - sigma * sigma).max(0.0).sqrt();
        let next = clean.clone().mul_scalar(alpha_next.sqrt()) + estimate.noise.mul_scalar(direction);
        ((input.fresh)(next, sigma), clean)
    }
}
