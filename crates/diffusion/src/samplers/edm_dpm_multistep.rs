use super::diffusers::{SchedulerFields, refuse_thresholding};
use super::dpm_multistep::MultistepSolver;
use super::edm::EdmLevels;
use super::settings::{SamplerSettings, Scheduler, SchedulerDefaults};
use super::solver::{History, Solver};
use super::timetable::{ScheduleContext, Timetable};
use super::{DpmAlgorithm, DpmRule, FinalSigma, SamplerConfig, SamplerError};
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Multistep DPM-Solver++ (Lu et al. 2022) on EDM's noise levels; diffusers' `EDMDPMSolverMultistepScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdmDpmMultistep {
    /// Order of the method, 1 to 3.
    pub order: usize,
    /// The clean estimate is integrated, with fresh noise or without.
    pub algorithm: DpmAlgorithm,
    /// The rule of the second order.
    pub rule: DpmRule,
    /// True: fewer than 15 steps end with lower orders.
    pub lower_order_final: bool,
    /// True: the last step is of first order. To no noise, it always is.
    pub euler_at_final: bool,
    /// The noise levels.
    pub levels: EdmLevels,
}

impl Default for EdmDpmMultistep {
    fn default() -> Self {
        Self {
            order: 2,
            algorithm: DpmAlgorithm::PlusPlus,
            rule: DpmRule::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            levels: EdmLevels::default(),
        }
    }
}

impl Scheduler for EdmDpmMultistep {
    const CLASS: &'static str = "EDMDPMSolverMultistepScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::edm();

    fn read(fields: &mut Fields<'_>) -> Self {
        refuse_thresholding(fields);
        Self {
            order: fields.whole("solver_order", 2, 1..=3),
            algorithm: fields.get("algorithm_type", DpmAlgorithm::default()),
            rule: fields.get("solver_type", DpmRule::default()),
            lower_order_final: fields.flag("lower_order_final", true),
            euler_at_final: fields.flag("euler_at_final", false),
            levels: EdmLevels::read(fields),
        }
    }
}

impl SamplerSettings for EdmDpmMultistep {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        let estimate = |call: usize, x: Tensor<4>, output: Tensor<4>| {
            self.levels.estimate(config.prediction, timetable.levels[call][1], x, output)
        };
        Box::new(MultistepSolver {
            order: self.order,
            algorithm: self.algorithm,
            rule: self.rule,
            lower_order_final: self.lower_order_final,
            euler_at_final: self.euler_at_final || self.levels.last == FinalSigma::Zero,
            estimate: Box::new(estimate),
            timetable,
            history: History::new(self.order),
        })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        Ok(self.levels.timetable(context))
    }

    fn problem(&self, config: &SamplerConfig) -> Option<&'static str> {
        if !(1..=3).contains(&self.order) {
            return Some("order has to be 1, 2 or 3");
        }
        if !self.algorithm.is_of_clean() {
            return Some("EDM has only the algorithms dpmsolver++ and sde-dpmsolver++");
        }
        if self.algorithm == DpmAlgorithm::SdePlusPlus && self.order == 3 {
            return Some("sde-dpmsolver++ has no third order here: take order = 2");
        }
        self.levels.problem(config)
    }

    fn is_stochastic(&self) -> bool {
        self.algorithm.is_stochastic()
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put("solver_order", self.order);
        fields.put("algorithm_type", self.algorithm);
        fields.put("solver_type", self.rule);
        fields.put("lower_order_final", self.lower_order_final);
        fields.put("euler_at_final", self.euler_at_final);
        self.levels.write(fields);
    }
}
