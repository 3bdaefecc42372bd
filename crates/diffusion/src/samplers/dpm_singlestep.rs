use super::diffusers::{SchedulerFields, read_curve, read_last};
use super::dpm::{check_timesteps_above, put_lambda_min, read_lambda_min, refuse_unsupported, timesteps_above};
use super::settings::{Named, SamplerSettings, Scheduler, SchedulerDefaults};
use super::sigmas::WholeTimesteps;
use super::solver::{History, Solver, StepInput};
use super::timetable::{ScheduleContext, Timetable};
use super::{Curve, DpmAlgorithm, DpmRule, FinalSigma, SamplerConfig, SamplerError, SigmaRange};
use crate::schedule::Spacing;
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Singlestep DPM-Solver and DPM-Solver++ (Lu et al. 2022): groups of up to `order` calls, each group set out from
/// one latent; diffusers' `DPMSolverSinglestepScheduler`. The timesteps are evenly spaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpmSinglestep {
    /// Order of the method, 1 to 3.
    pub order: usize,
    /// The integrated quantity.
    pub algorithm: DpmAlgorithm,
    /// The rule of the second and third order.
    pub rule: DpmRule,
    /// True: the last steps are of lower order; they are in any case when the steps are no multiple of the order,
    /// or end at no noise.
    pub lower_order_final: bool,
    /// The noise levels.
    pub sigmas: SigmaRange,
    /// Timesteps with less than this logarithm of image to noise are left out (-5.1 for cosine schedules).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_min: Option<f64>,
}

impl Default for DpmSinglestep {
    fn default() -> Self {
        Self {
            order: 2,
            algorithm: DpmAlgorithm::PlusPlus,
            rule: DpmRule::Midpoint,
            lower_order_final: false,
            sigmas: SigmaRange::default(),
            lambda_min: None,
        }
    }
}

impl Scheduler for DpmSinglestep {
    const CLASS: &'static str = "DPMSolverSinglestepScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::ddpm(Spacing::Linspace);

    fn read(fields: &mut Fields<'_>) -> Self {
        refuse_unsupported(fields);
        Self {
            order: fields.whole("solver_order", 2, 1..=3),
            algorithm: fields.get("algorithm_type", DpmAlgorithm::default()),
            rule: fields.get("solver_type", DpmRule::default()),
            lower_order_final: fields.flag("lower_order_final", false),
            sigmas: SigmaRange { last: read_last(fields), ..read_curve(fields) },
            lambda_min: read_lambda_min(fields),
        }
    }
}

impl SamplerSettings for DpmSinglestep {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        let (orders, history) = (self.orders(timetable.steps), History::new(self.order));
        Box::new(SinglestepSolver { settings: self, config, timetable, orders, history, start: None })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        let timesteps = timesteps_above(context.schedule, self.lambda_min);
        check_timesteps_above(Self::NAME, timesteps)?;
        let timesteps = context.inner_timesteps(Spacing::Linspace, timesteps);
        let levels = WholeTimesteps { timesteps, nearest: true, last_of_curve: false };
        let (timesteps, sigmas) = levels.visit(context, &self.sigmas);
        Ok(Timetable::of_ratios(context, timesteps, &sigmas))
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        if self.algorithm == DpmAlgorithm::SdeNoise {
            return Some("sde-dpmsolver is a multistep method: take `dpm_multistep`");
        }
        if self.sigmas.curve == Curve::LogSnr {
            return Some("the curve `log_snr` belongs to `dpm_multistep`; take `exponential`, which is much the same");
        }
        self.algorithm.problem(self.order, &self.sigmas)
    }

    fn is_stochastic(&self) -> bool {
        self.algorithm.is_stochastic()
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put("solver_order", self.order);
        fields.put("algorithm_type", self.algorithm);
        fields.put("solver_type", self.rule);
        fields.put("lower_order_final", self.lower_order_final);
        fields.put_curve(self.sigmas.curve);
        fields.put_no_ends(&self.sigmas);
        fields.put_last(self.sigmas.last);
        put_lambda_min(fields, self.lambda_min);
    }

    fn curve_mut(&mut self) -> Option<&mut Curve> {
        Some(&mut self.sigmas.curve)
    }
}

impl DpmSinglestep {
    /// The order of each step: 1 up to the method's, over and over.
    fn orders(&self, steps: usize) -> Vec<usize> {
        let mut orders: Vec<usize> = (0..steps).map(|i| i % self.order + 1).collect();
        let to_zero = self.sigmas.last == FinalSigma::Zero;
        let whole = steps.is_multiple_of(self.order);
        // A whole number of groups has its last one cut short by one.
        if whole && self.order > 1 && (self.lower_order_final || to_zero) {
            orders[steps - 1] = 1;
        }
        if to_zero {
            orders[steps - 1] = 1;
        }
        orders
    }
}

struct SinglestepSolver<'a> {
    settings: &'a DpmSinglestep,
    config: &'a SamplerConfig,
    timetable: &'a Timetable,
    orders: Vec<usize>,
    history: History,
    /// The latent that the group of calls set out from.
    start: Option<Tensor<4>>,
}

impl Solver for SinglestepSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let StepInput { call, output, x, fresh } = input;
        let algorithm = self.settings.algorithm;
        let estimate = self.config.prediction.estimate_at(self.timetable.levels[call], x.clone(), output);
        let integrated = if algorithm.is_of_clean() { estimate.clean.clone() } else { estimate.noise };
        self.history.push(integrated);
        // A run that begins in the middle of a group has fewer outputs.
        let order = self.orders[call].min(self.history.len());
        let start = match self.start.take() {
            Some(start) if order > 1 => start,
            _ => x,
        };
        self.start = Some(start.clone());
        let oldest = order - 1;
        let (from, to) = (self.timetable.level(call - oldest), self.timetable.level(call + 1));
        let weights = algorithm.weights(from, to);
        let h = to.lambda - from.lambda;
        let mut next = start.mul_scalar(weights.latent) + self.history.get(oldest).mul_scalar(weights.value);
        // The place of an older output on the way.
        let ratio = |age: usize| (self.timetable.level(call - age).lambda - from.lambda) / h;
        if order == 2 {
            let slope = self.history.slope(0, 1, ratio(0));
            next = next + slope.mul_scalar(weights.second_order(self.settings.rule));
        } else if order == 3 {
            let (r0, r1) = (ratio(0), ratio(1));
            let (near, far) = (self.history.slope(1, 2, r1), self.history.slope(0, 2, r0));
            next = next
                + match self.settings.rule {
                    DpmRule::Midpoint => far.mul_scalar(weights.slope),
                    DpmRule::Heun => {
                        let slope =
                            (near.clone().mul_scalar(r0) - far.clone().mul_scalar(r1)).mul_scalar(1.0 / (r0 - r1));
                        let curvature = (far - near).mul_scalar(2.0 / (r0 - r1));
                        slope.mul_scalar(weights.slope) + curvature.mul_scalar(weights.curvature)
                    }
                };
        }
        (fresh(next, weights.noise), estimate.clean)
    }
}
