use super::diffusers::{SchedulerFields, read_clip, read_curve};
use super::settings::{SamplerSettings, Scheduler, SchedulerDefaults};
use super::sigmas::fractional;
use super::solver::{Solver, StepInput, clean_estimate, clip, slope};
use super::timetable::{ScheduleContext, Timetable};
use super::{Curve, FinalSigma, SamplerConfig, SamplerError, SigmaRange};
use crate::schedule::{ScheduleKind, Spacing};
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Heun's method in the noise level (Karras et al. 2022, algorithm 1); diffusers' `HeunDiscreteScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Heun {
    /// The noise levels; the last one is 0.
    pub sigmas: SigmaRange,
    /// Clamp of the clean estimate's absolute value; none for latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl Scheduler for Heun {
    const CLASS: &'static str = "HeunDiscreteScheduler";
    const DEFAULTS: SchedulerDefaults =
        SchedulerDefaults::ddpm(Spacing::Linspace).with_latent_betas(ScheduleKind::Linear);

    fn read(fields: &mut Fields<'_>) -> Self {
        Self { sigmas: read_curve(fields), clip: read_clip(fields, false) }
    }
}

impl SamplerSettings for Heun {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        Box::new(HeunSolver { settings: self, config, timetable, half: None })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        let (timesteps, sigmas) = fractional(context, &self.sigmas);
        // Each level but the first is called twice: at the end of a step, and at the start of the next one. The
        // last step, to no noise, is Euler's.
        let twice = |values: &[f64]| -> Vec<f64> {
            let rest = values[1..].iter().flat_map(|&value| [value, value]);
            values[..1].iter().copied().chain(rest).collect()
        };
        let mut levels = twice(&sigmas[..context.steps]);
        levels.push(sigmas[context.steps]);
        Ok(Timetable::of_deviations(context, twice(&timesteps), &levels))
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        if self.sigmas.last != FinalSigma::Zero {
            return Some("the last noise level is always `zero`");
        }
        self.sigmas.problem_at_fractions()
    }

    fn takes_timesteps(&self) -> bool {
        true
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put_curve(self.sigmas.curve);
        fields.put_no_ends(&self.sigmas);
        fields.put_clip(self.clip);
    }

    fn curve_mut(&mut self) -> Option<&mut Curve> {
        Some(&mut self.sigmas.curve)
    }

    fn calls_per_step(&self) -> usize {
        2
    }

    fn clip_mut(&mut self) -> Option<&mut Option<f64>> {
        Some(&mut self.clip)
    }
}

/// The state between the two calls of a step.
struct Half {
    x: Tensor<4>,
    slope: Tensor<4>,
    width: f64,
}

struct HeunSolver<'a> {
    settings: &'a Heun,
    config: &'a SamplerConfig,
    timetable: &'a Timetable,
    half: Option<Half>,
}

impl Solver for HeunSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let [sigma, next] = [0, 1].map(|i| self.timetable.levels[input.call + i][1]);
        let clean = clean_estimate(self.config.prediction, &input.x, input.output, sigma);
        let clean = clip(clean, self.settings.clip);
        let slope = slope(input.x.clone(), clean.clone(), sigma);
        if let Some(half) = self.half.take() {
            return (half.x + (half.slope + slope).mul_scalar(0.5).mul_scalar(half.width), clean);
        }
        let width = next - sigma;
        self.half = Some(Half { x: input.x.clone(), slope: slope.clone(), width });
        (input.x + slope.mul_scalar(width), clean)
    }
}
