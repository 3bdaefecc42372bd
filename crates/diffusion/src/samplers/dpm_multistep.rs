use super::diffusers::{SchedulerFields, read_curve, read_last};
use super::dpm::{check_timesteps_above, put_lambda_min, read_lambda_min, refuse_unsupported, timesteps_above};
use super::settings::{Named, SamplerSettings, Scheduler, SchedulerDefaults};
use super::sigmas::WholeTimesteps;
use super::solver::{History, Solver, StepInput};
use super::timetable::{ScheduleContext, Timetable};
use super::{Curve, DpmAlgorithm, DpmRule, FinalSigma, SamplerConfig, SamplerError, SigmaRange};
use crate::objective::Estimate;
use crate::schedule::{ScheduleKind, Spacing};
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Multistep DPM-Solver and DPM-Solver++ (Lu et al. 2022); diffusers' `DPMSolverMultistepScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpmMultistep {
    /// Order of the method, 1 to 3.
    pub order: usize,
    /// The integrated quantity.
    pub algorithm: DpmAlgorithm,
    /// The rule of the second order.
    pub rule: DpmRule,
    /// True: fewer than 15 steps end with lower orders.
    pub lower_order_final: bool,
    /// True: the last step is of first order. To no noise, it always is.
    pub euler_at_final: bool,
    /// The noise levels.
    pub sigmas: SigmaRange,
    /// Timesteps with less than this logarithm of image to noise are left out (-5.1 for cosine schedules).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_min: Option<f64>,
}

impl Default for DpmMultistep {
    fn default() -> Self {
        Self {
            order: 2,
            algorithm: DpmAlgorithm::PlusPlus,
            rule: DpmRule::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            sigmas: SigmaRange::default(),
            lambda_min: None,
        }
    }
}

impl Scheduler for DpmMultistep {
    const CLASS: &'static str = "DPMSolverMultistepScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::ddpm(Spacing::Linspace).rescaling();

    fn read(fields: &mut Fields<'_>) -> Self {
        refuse_unsupported(fields);
        let mut sigmas = SigmaRange { last: read_last(fields), ..read_curve(fields) };
        // Lu's levels come second to Karras'.
        if fields.flag("use_lu_lambdas", false) && sigmas.curve != Curve::Karras {
            sigmas.curve = Curve::LogSnr;
        }
        Self {
            order: fields.whole("solver_order", 2, 1..=3),
            algorithm: fields.get("algorithm_type", DpmAlgorithm::default()),
            rule: fields.get("solver_type", DpmRule::default()),
            lower_order_final: fields.flag("lower_order_final", true),
            euler_at_final: fields.flag("euler_at_final", false),
            sigmas,
            lambda_min: read_lambda_min(fields),
        }
    }
}

impl SamplerSettings for DpmMultistep {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        let estimate = |call: usize, x: Tensor<4>, output: Tensor<4>| {
            config.prediction.estimate_at(timetable.levels[call], x, output)
        };
        Box::new(MultistepSolver {
            order: self.order,
            algorithm: self.algorithm,
            rule: self.rule,
            lower_order_final: self.lower_order_final,
            euler_at_final: self.euler_at_final || self.sigmas.last == FinalSigma::Zero,
            estimate: Box::new(estimate),
            timetable,
            history: History::new(self.order),
        })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        let timesteps = timesteps_above(context.schedule, self.lambda_min);
        check_timesteps_above(Self::NAME, timesteps)?;
        let timesteps = context.inner_timesteps(context.config.spacing, timesteps);
        let nearest = context.config.schedule.kind != ScheduleKind::Cosine;
        let levels = WholeTimesteps { timesteps, nearest, last_of_curve: false };
        let (timesteps, sigmas) = levels.visit(context, &self.sigmas);
        Ok(Timetable::of_ratios(context, timesteps, &sigmas))
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        self.algorithm.problem(self.order, &self.sigmas)
    }

    fn takes_timesteps(&self) -> bool {
        true
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
        fields.put_curve(self.sigmas.curve);
        fields.put("use_lu_lambdas", self.sigmas.curve == Curve::LogSnr);
        fields.put_no_ends(&self.sigmas);
        fields.put_last(self.sigmas.last);
        put_lambda_min(fields, self.lambda_min);
    }

    fn curve_mut(&mut self) -> Option<&mut Curve> {
        Some(&mut self.sigmas.curve)
    }
}

/// What clean latent and noise an output of a call means: of the call, the latent and the output.
type EstimateAt<'a> = Box<dyn Fn(usize, Tensor<4>, Tensor<4>) -> Estimate + 'a>;

/// The multistep method over a timetable's levels, whatever they are.
pub(super) struct MultistepSolver<'a> {
    pub order: usize,
    pub algorithm: DpmAlgorithm,
    pub rule: DpmRule,
    pub lower_order_final: bool,
    /// True: the last step is of first order.
    pub euler_at_final: bool,
    pub estimate: EstimateAt<'a>,
    pub timetable: &'a Timetable,
    pub history: History,
}

impl MultistepSolver<'_> {
    /// The order of a call's step, of as many outputs as there are.
    fn order(&self, call: usize) -> usize {
        let calls = self.timetable.timesteps.len();
        let lower = self.lower_order_final && calls < 15;
        let most = match calls - call {
            1 if self.euler_at_final || lower => 1,
            2 if lower => 2,
            _ => 3,
        };
        self.history.len().min(self.order).min(most)
    }
}

impl Solver for MultistepSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let StepInput { call, output, x, fresh } = input;
        let algorithm = self.algorithm;
        let estimate = (self.estimate)(call, x.clone(), output);
        let integrated = if algorithm.is_of_clean() { estimate.clean.clone() } else { estimate.noise };
        self.history.push(integrated);
        let (from, to) = (self.timetable.level(call), self.timetable.level(call + 1));
        let weights = algorithm.weights(from, to);
        let h = to.lambda - from.lambda;
        // Steps between equal levels change nothing, whatever the quotients.
        let order = if h == 0.0 { 1 } else { self.order(call) };
        let mut next = x.mul_scalar(weights.latent) + self.history.get(0).mul_scalar(weights.value);
        let ratio =
            |age: usize| (self.timetable.level(call + 1 - age).lambda - self.timetable.level(call - age).lambda) / h;
        if order == 2 {
            let slope = self.history.slope(0, 1, ratio(1));
            next = next + slope.mul_scalar(weights.second_order(self.rule));
        } else if order == 3 {
            let (r0, r1) = (ratio(1), ratio(2));
            let (newer, older) = (self.history.slope(0, 1, r0), self.history.slope(1, 2, r1));
            let difference = newer.clone() - older;
            let slope = newer + difference.clone().mul_scalar(r0 / (r0 + r1));
            let curvature = difference.mul_scalar(1.0 / (r0 + r1));
            next = next + slope.mul_scalar(weights.slope) + curvature.mul_scalar(weights.curvature);
        }
        (fresh(next, weights.noise), estimate.clean)
    }
}
