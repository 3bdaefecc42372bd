use super::diffusers::{SchedulerFields, read_clip, refuse_thresholding};
use super::settings::{Named, SamplerSettings, Scheduler, SchedulerDefaults};
use super::solver::{Solver, StepInput, clip, combine};
use super::timetable::{ScheduleContext, Timetable};
use super::{SamplerConfig, SamplerError};
use crate::schedule::{ScheduleKind, Spacing};
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Multistep sampling of latent consistency models (Luo et al. 2023, algorithm 3); diffusers' `LCMScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lcm {
    /// Steps of the solver in distillation, of whose timesteps those of sampling are a part.
    pub original_steps: usize,
    /// Multiplies the timestep in the boundary condition's weights.
    pub timestep_scaling: f64,
    /// Clamp of the clean estimate's absolute value; none for latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl Default for Lcm {
    fn default() -> Self {
        Self { original_steps: 50, timestep_scaling: 10.0, clip: None }
    }
}

/// Standard deviation of the data in the boundary condition.
const SIGMA_DATA: f64 = 0.5;

impl Scheduler for Lcm {
    const CLASS: &'static str = "LCMScheduler";
    const DEFAULTS: SchedulerDefaults =
        SchedulerDefaults::ddpm(Spacing::Leading).with_latent_betas(ScheduleKind::ScaledLinear).rescaling();

    fn read(fields: &mut Fields<'_>) -> Self {
        refuse_thresholding(fields);
        Self {
            original_steps: fields.size("original_inference_steps", 50),
            timestep_scaling: fields.number("timestep_scaling", 10.0),
            clip: read_clip(fields, false),
        }
    }
}

impl SamplerSettings for Lcm {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        Box::new(LcmSolver { settings: self, config, timetable })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        Timetable::of_timesteps(context, distilled_timesteps(context, Self::NAME, self.original_steps)?)
    }

    fn takes_timesteps(&self) -> bool {
        true
    }

    fn is_stochastic(&self) -> bool {
        true
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put("original_inference_steps", self.original_steps);
        fields.put("timestep_scaling", self.timestep_scaling);
        fields.put_clip(self.clip);
    }

    fn clip_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.clip)
    }
}

/// The timesteps of sampling, from noise to image: evenly among those of the solver in distillation, `original` of them; or a
/// list that is given.
///
/// # Errors
/// [`SamplerError::Setting`] and [`SamplerError::ManySteps`] for the sampler `kind`.
pub(super) fn distilled_timesteps(
    context: &ScheduleContext<'_>,
    kind: &'static str,
    original: usize,
) -> Result<Vec<usize>, SamplerError> {
    if let Some(given) = context.given_timesteps() {
        return Ok(given);
    }
    let (steps, timesteps) = (context.steps, context.schedule.timesteps());
    if original == 0 || original > timesteps {
        let problem = "original_steps has to lie between 1 and the number of training timesteps";
        return Err(SamplerError::Setting { kind, problem });
    }
    if steps > original {
        return Err(SamplerError::ManySteps { kind, steps, most: original });
    }
    let stride = timesteps / original;
    // numpy.linspace without its end, from which floating point may leave a little less than a whole number.
    let spacing = original as f64 / steps as f64;
    let place = |i: usize| (i as f64 * spacing).floor() as usize;
    Ok((0..steps).map(|i| (original - place(i)) * stride - 1).collect())
}

struct LcmSolver<'a> {
    settings: &'a Lcm,
    config: &'a SamplerConfig,
    timetable: &'a Timetable,
}

impl Solver for LcmSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let (timetable, call) = (self.timetable, input.call);
        let t = timetable.index(call);
        let estimate = self.config.prediction.estimate(&timetable.schedule, input.x.clone(), input.output, t);
        let clean = clip(estimate.clean, self.settings.clip);
        // Song et al. 2023, appendix C: the boundary condition's weights of latent and estimate.
        let scaled = t as f64 * self.settings.timestep_scaling;
        let total = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let denoised = combine(scaled / total.sqrt(), clean, SIGMA_DATA * SIGMA_DATA / total, input.x);
        match timetable.levels.get(call + 1) {
            Some(&[signal, sigma]) => ((input.fresh)(denoised.clone().mul_scalar(signal), sigma), denoised),
            None => (denoised.clone(), denoised),
        }
    }
}
