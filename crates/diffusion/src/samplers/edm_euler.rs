use super::diffusers::SchedulerFields;
use super::edm::EdmLevels;
use super::settings::{SamplerSettings, Scheduler, SchedulerDefaults};
use super::solver::{Solver, StepInput};
use super::timetable::{ScheduleContext, Timetable};
use super::{SamplerConfig, SamplerError};
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Euler's method on EDM's noise levels (Karras et al. 2022, algorithm 2 without churn); diffusers' `EDMEulerScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdmEuler {
    /// The noise levels.
    pub levels: EdmLevels,
}

impl Scheduler for EdmEuler {
    const CLASS: &'static str = "EDMEulerScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::edm();

    fn read(fields: &mut Fields<'_>) -> Self {
        Self { levels: EdmLevels::read(fields) }
    }
}

impl SamplerSettings for EdmEuler {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        Box::new(EdmEulerSolver { levels: &self.levels, config, timetable })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        Ok(self.levels.timetable(context))
    }

    fn problem(&self, config: &SamplerConfig) -> Option<&'static str> {
        self.levels.problem(config)
    }

    fn write(&self, fields: &mut SchedulerFields) {
        self.levels.write(fields);
    }
}

struct EdmEulerSolver<'a> {
    levels: &'a EdmLevels,
    config: &'a SamplerConfig,
    timetable: &'a Timetable,
}

impl Solver for EdmEulerSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let [from, to] = [0, 1].map(|i| self.timetable.levels[input.call + i][1]);
        let estimate = self.levels.estimate(self.config.prediction, from, input.x.clone(), input.output);
        (input.x + estimate.noise.mul_scalar(to - from), estimate.clean)
    }
}
