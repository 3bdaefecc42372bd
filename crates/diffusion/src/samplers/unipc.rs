use super::diffusers::{SchedulerFields, read_curve, read_last, refuse_flow, refuse_thresholding};
use super::settings::{SamplerSettings, Scheduler, SchedulerDefaults};
use super::sigmas::WholeTimesteps;
use super::solver::{History, Solver, StepInput};
use super::timetable::{ScheduleContext, Timetable};
use super::{Curve, FinalSigma, SamplerConfig, SamplerError, SigmaRange};
use crate::schedule::Spacing;
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Unified predictor-corrector (Zhao et al. 2023); diffusers' `UniPCMultistepScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UniPc {
    /// Order of the method, 1 to 3.
    pub order: usize,
    /// The function `B(h)`.
    pub step: UniPcStep,
    /// True: the clean estimate is integrated; otherwise the noise.
    pub predict_clean: bool,
    /// True: the last steps are of lower order.
    pub lower_order_final: bool,
    /// Steps, from 0, whose outcome is not corrected after the next call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uncorrected: Vec<usize>,
    /// The noise levels.
    pub sigmas: SigmaRange,
}

impl Default for UniPc {
    fn default() -> Self {
        Self {
            order: 2,
            step: UniPcStep::Bh2,
            predict_clean: true,
            lower_order_final: true,
            uncorrected: Vec::new(),
            sigmas: SigmaRange::default(),
        }
    }
}

/// The function `B(h)` of Zhao et al. 2023, section 3.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UniPcStep {
    /// `h`.
    Bh1,
    /// `exp(h) - 1`.
    #[default]
    #[serde(alias = "midpoint", alias = "heun", alias = "logrho")]
    Bh2,
}

impl Scheduler for UniPc {
    const CLASS: &'static str = "UniPCMultistepScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::ddpm(Spacing::Linspace).rescaling();

    fn read(fields: &mut Fields<'_>) -> Self {
        refuse_thresholding(fields);
        refuse_flow(fields);
        fields.fixed("solver_p", &[json!(null)]);
        fields.fixed("shift_terminal", &[json!(null)]);
        Self {
            order: fields.whole("solver_order", 2, 1..=3),
            step: fields.get("solver_type", UniPcStep::default()),
            predict_clean: fields.flag("predict_x0", true),
            lower_order_final: fields.flag("lower_order_final", true),
            uncorrected: fields.get("disable_corrector", Vec::new()),
            sigmas: SigmaRange { last: read_last(fields), ..read_curve(fields) },
        }
    }
}

impl SamplerSettings for UniPc {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        Box::new(UniPcSolver { settings: self, config, timetable, history: History::new(self.order + 1), last: None })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        let timesteps = context.inner_timesteps(context.config.spacing, context.schedule.timesteps());
        let levels = WholeTimesteps { timesteps, nearest: true, last_of_curve: true };
        let (timesteps, sigmas) = levels.visit(context, &self.sigmas);
        Ok(Timetable::of_ratios(context, timesteps, &sigmas))
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        if !(1..=3).contains(&self.order) {
            return Some("order has to be 1, 2 or 3");
        }
        if !self.predict_clean && self.sigmas.last == FinalSigma::Zero {
            return Some("predict_clean = false cannot end at no noise: take sigmas.last = \"sigma_min\"");
        }
        if self.sigmas.curve == Curve::LogSnr {
            return Some("the curve `log_snr` belongs to `dpm_multistep`; take `exponential`, which is much the same");
        }
        self.sigmas.problem()
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put("solver_order", self.order);
        fields.put("solver_type", self.step);
        fields.put("predict_x0", self.predict_clean);
        fields.put("lower_order_final", self.lower_order_final);
        fields.put("disable_corrector", &self.uncorrected);
        fields.put_curve(self.sigmas.curve);
        fields.put_ends(&self.sigmas);
        fields.put_last(self.sigmas.last);
    }

    fn curve_mut(&mut self) -> Option<&mut Curve> {
        Some(&mut self.sigmas.curve)
    }
}

/// The step that the next call corrects.
struct Last {
    x: Tensor<4>,
    order: usize,
}

struct UniPcSolver<'a> {
    settings: &'a UniPc,
    config: &'a SamplerConfig,
    timetable: &'a Timetable,
    history: History,
    last: Option<Last>,
}

impl Solver for UniPcSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let StepInput { call, output, x, .. } = input;
        let settings = self.settings;
        let estimate = self.config.prediction.estimate_at(self.timetable.levels[call], x.clone(), output);
        self.history.push(if settings.predict_clean { estimate.clean.clone() } else { estimate.noise });
        let x = match self.last.take() {
            Some(last) if !settings.uncorrected.contains(&(call - 1)) => self.correct(call, last),
            _ => x,
        };
        let left = self.timetable.timesteps.len() - call;
        // To no noise, the quotients of higher orders are not defined.
        let to_zero = self.timetable.levels[call + 1][1] == 0.0;
        let most = if to_zero {
            1
        } else if settings.lower_order_final {
            left
        } else {
            settings.order
        };
        let order = settings.order.min(most).min(self.history.len());
        self.last = Some(Last { x: x.clone(), order });
        (self.predict(call, x, order), estimate.clean)
    }
}

/// A step's weights: those of Zhao et al. 2023, eq. 3 and 9, in the variables of either integrated quantity.
struct Parts {
    /// Of the latent and of the integrated quantity at the step's start.
    latent: f64,
    value: f64,
    /// `-B(h)` times the level's weight, for the sum of difference quotients.
    quotients: f64,
    /// Places of the outputs, the last one 1, relative to the step.
    places: Vec<f64>,
    /// Right-hand sides of the order conditions.
    sides: Vec<f64>,
}

impl UniPcSolver<'_> {
    /// The parts of a step of `order` from call `from` to the next one.
    fn parts(&self, from: usize, order: usize) -> Parts {
        let (start, end) = (self.timetable.level(from), self.timetable.level(from + 1));
        let h = end.lambda - start.lambda;
        let place = |i: usize| (self.timetable.level(from - i).lambda - start.lambda) / h;
        let (latent, scale, hh) = match self.settings.predict_clean {
            true => (end.sigma / start.sigma, end.alpha, -h),
            false => (end.alpha / start.alpha, end.sigma, h),
        };
        let b = match self.settings.step {
            UniPcStep::Bh1 => hh,
            UniPcStep::Bh2 => hh.exp_m1(),
        };
        let (mut phi, mut factorial) = (hh.exp_m1() / hh - 1.0, 1.0);
        let mut sides = Vec::with_capacity(order);
        for i in 1..=order {
            sides.push(phi * factorial / b);
            factorial *= (i + 1) as f64;
            phi = phi / hh - 1.0 / factorial;
        }
        let places = (1..order).map(place).chain([1.0]).collect();
        Parts { latent, value: -scale * hh.exp_m1(), quotients: -scale * b, places, sides }
    }

    /// UniP: the next latent.
    fn predict(&self, call: usize, x: Tensor<4>, order: usize) -> Tensor<4> {
        let parts = self.parts(call, order);
        if parts.value == 0.0 {
            // A step between equal levels.
            return x;
        }
        let weights = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => solve(&parts.places[..order - 1], &parts.sides[..order - 1]),
        };
        let base = x.mul_scalar(parts.latent) + self.history.get(0).mul_scalar(parts.value);
        match self.quotients(0, &weights, &parts.places) {
            Some(sum) => base + sum.mul_scalar(parts.quotients),
            None => base,
        }
    }

    /// UniC: the latent that the last step led to, once more with the output there.
    fn correct(&self, call: usize, last: Last) -> Tensor<4> {
        let parts = self.parts(call - 1, last.order);
        let mut weights = match last.order {
            1 => vec![0.5],
            _ => solve(&parts.places, &parts.sides),
        };
        let weight = weights.pop().unwrap_or(0.5);
        let newest = (self.history.get(0) - self.history.get(1)).mul_scalar(weight);
        let sum = match self.quotients(1, &weights, &parts.places) {
            Some(sum) => sum + newest,
            None => newest,
        };
        let base = last.x.mul_scalar(parts.latent) + self.history.get(1).mul_scalar(parts.value);
        base + sum.mul_scalar(parts.quotients)
    }

    /// The weighted sum of difference quotients of outputs older than the one of age `age`.
    fn quotients(&self, age: usize, weights: &[f64], places: &[f64]) -> Option<Tensor<4>> {
        weights
            .iter()
            .zip(places)
            .enumerate()
            .map(|(i, (&weight, &place))| self.history.slope(age + i + 1, age, place).mul_scalar(weight))
            .reduce(|sum, quotient| sum + quotient)
    }
}

/// Solves `sum_k places[k]^i · w[k] = sides[i]`, by elimination with pivots.
fn solve(places: &[f64], sides: &[f64]) -> Vec<f64> {
    let n = places.len();
    let row = |i: usize| places.iter().map(|place| place.powi(i as i32)).chain([sides[i]]).collect::<Vec<f64>>();
    let mut rows: Vec<Vec<f64>> = (0..n).map(row).collect();
    for column in 0..n {
        let size = |row: usize| rows[row][column].abs();
        let pivot = (column..n).max_by(|&a, &b| size(a).total_cmp(&size(b))).unwrap_or(column);
        rows.swap(column, pivot);
        for other in (0..n).filter(|&other| other != column) {
            let factor = rows[other][column] / rows[column][column];
            for k in column..=n {
                rows[other][k] -= factor * rows[column][k];
            }
        }
    }
    (0..n).map(|i| rows[i][n] / rows[i][i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_conditions_are_solved() {
        let (places, sides) = ([-1.2, -0.5, 1.0], [0.3, -0.2, 0.7]);
        let weights = solve(&places, &sides);
        for (i, side) in sides.iter().enumerate() {
            let sum: f64 = places.iter().zip(&weights).map(|(place, weight)| place.powi(i as i32) * weight).sum();
            assert!((sum - side).abs() < 1e-12, "row {i}: {sum}, expected {side}");
        }
    }
}
