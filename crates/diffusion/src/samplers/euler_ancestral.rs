use super::diffusers::SchedulerFields;
use super::euler::EulerSolver;
use super::settings::{SamplerSettings, Scheduler, SchedulerDefaults};
use super::sigmas::fractional;
use super::solver::Solver;
use super::timetable::{ScheduleContext, Timetable};
use super::{SamplerConfig, SamplerError, SigmaRange};
use crate::schedule::Spacing;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Euler's method to less noise than the step leads to, with fresh noise for the rest; diffusers'
/// `EulerAncestralDiscreteScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EulerAncestral {}

impl Scheduler for EulerAncestral {
    const CLASS: &'static str = "EulerAncestralDiscreteScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::ddpm(Spacing::Linspace).rescaling();

    fn read(_: &mut Fields<'_>) -> Self {
        Self {}
    }
}

impl SamplerSettings for EulerAncestral {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        Box::new(EulerSolver { prediction: config.prediction, timetable, ancestral: true })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        let (timesteps, sigmas) = fractional(context, &SigmaRange::default());
        Ok(Timetable::of_deviations(context, timesteps, &sigmas))
    }

    fn is_stochastic(&self) -> bool {
        true
    }

    fn write(&self, _: &mut SchedulerFields) {}
}
