use super::diffusers::{SchedulerFields, read_curve, read_last};
use super::settings::{SamplerSettings, Scheduler, SchedulerDefaults};
use super::sigmas::fractional;
use super::solver::{Solver, StepInput, clean_estimate, slope};
use super::timetable::{ScheduleContext, Timetable};
use super::{Curve, SamplerConfig, SamplerError, SigmaRange};
use crate::objective::Prediction;
use crate::schedule::Spacing;
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Euler's method in the noise level (Karras et al. 2022, algorithm 2 without churn); diffusers'
/// `EulerDiscreteScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Euler {
    /// The noise levels.
    pub sigmas: SigmaRange,
}

impl Scheduler for Euler {
    const CLASS: &'static str = "EulerDiscreteScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::ddpm(Spacing::Linspace).rescaling();

    fn read(fields: &mut Fields<'_>) -> Self {
        fields.fixed("interpolation_type", &[json!("linear")]);
        fields.fixed("timestep_type", &[json!("discrete")]);
        Self { sigmas: SigmaRange { last: read_last(fields), ..read_curve(fields) } }
    }
}

impl SamplerSettings for Euler {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        Box::new(EulerSolver { prediction: config.prediction, timetable, ancestral: false })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        let (timesteps, sigmas) = fractional(context, &self.sigmas);
        Ok(Timetable::of_deviations(context, timesteps, &sigmas))
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        self.sigmas.problem_at_fractions()
    }

    fn takes_timesteps(&self) -> bool {
        true
    }

    fn takes_sigmas(&self) -> bool {
        true
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put_curve(self.sigmas.curve);
        fields.put_ends(&self.sigmas);
        fields.put_last(self.sigmas.last);
    }

    fn curve_mut(&mut self) -> Option<&mut Curve> {
        Some(&mut self.sigmas.curve)
    }
}

/// Euler's steps, to less noise than the step leads to if ancestral.
pub(super) struct EulerSolver<'a> {
    pub prediction: Prediction,
    pub timetable: &'a Timetable,
    pub ancestral: bool,
}

impl Solver for EulerSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let [from, to] = [0, 1].map(|i| self.timetable.levels[input.call + i][1]);
        let clean = clean_estimate(self.prediction, &input.x, input.output, from);
        let up = if self.ancestral { (to * to * (from * from - to * to) / (from * from)).max(0.0).sqrt() } else { 0.0 };
        let down = (to * to - up * up).max(0.0).sqrt();
        let slope = slope(input.x.clone(), clean.clone(), from);
        let next = input.x + slope.mul_scalar(down - from);
        ((input.fresh)(next, up), clean)
    }
}
