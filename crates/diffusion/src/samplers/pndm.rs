use super::diffusers::SchedulerFields;
use super::settings::{Named, SamplerSettings, Scheduler, SchedulerDefaults};
use super::solver::{History, Solver, StepInput, combine};
use super::timetable::{ScheduleContext, Timetable};
use super::{SamplerConfig, SamplerError};
use crate::objective::Prediction;
use crate::schedule::Spacing;
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// Pseudo numerical methods for diffusion models (Liu et al. 2022); diffusers' `PNDMScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pndm {
    /// PLMS: no Runge-Kutta steps at the start, but one call of the denoiser more (Stable Diffusion's way).
    pub skip_prk: bool,
    /// True: the last step leads to `alpha_bar = 1`; otherwise, as in Stable Diffusion, to that of timestep 0.
    pub alpha_to_one: bool,
}

impl Default for Pndm {
    fn default() -> Self {
        Self { skip_prk: true, alpha_to_one: false }
    }
}

/// Steps that begin with Runge-Kutta, and calls of the denoiser in them.
const PRK_STEPS: usize = 3;
const PRK_CALLS: usize = 4 * PRK_STEPS;

impl Scheduler for Pndm {
    const CLASS: &'static str = "PNDMScheduler";
    const DEFAULTS: SchedulerDefaults = SchedulerDefaults::ddpm(Spacing::Leading);

    fn read(fields: &mut Fields<'_>) -> Self {
        Self { skip_prk: fields.flag("skip_prk_steps", false), alpha_to_one: fields.flag("set_alpha_to_one", false) }
    }
}

impl SamplerSettings for Pndm {
    fn solver<'a>(&'a self, config: &'a SamplerConfig, timetable: &'a Timetable) -> Box<dyn Solver + 'a> {
        let prk_calls = if self.skip_prk { 0 } else { PRK_CALLS };
        let (history, start) = (History::new(4), None);
        Box::new(PndmSolver { settings: self, config, timetable, prk_calls, done: 0, history, start, sum: None })
    }

    fn timetable(&self, context: &ScheduleContext<'_>) -> Result<Timetable, SamplerError> {
        let visited = context.whole_timesteps();
        let timesteps = if self.skip_prk {
            // The second timestep is called twice: the second call corrects the first step.
            let repeated = visited.get(1).into_iter();
            visited.iter().take(2).chain(repeated).chain(visited.iter().skip(2)).copied().collect()
        } else if visited.len() <= PRK_STEPS {
            // The same without its beginning, which recipes and command lines know by this name alone.
            let (least, instead) = (PRK_STEPS + 1, "plms");
            return Err(SamplerError::FewSteps { kind: Self::NAME, steps: context.steps, least, instead });
        } else {
            let half = context.schedule.timesteps() / context.steps / 2;
            let runge_kutta = (0..PRK_STEPS).flat_map(|i| {
                let middle = visited[i + 1] + half;
                [visited[i], middle, middle, visited[i + 1]]
            });
            runge_kutta.chain(visited[PRK_STEPS..].iter().copied()).collect()
        };
        Timetable::of_timesteps(context, timesteps)
    }

    fn problem(&self, config: &SamplerConfig) -> Option<&'static str> {
        if config.prediction == Prediction::Sample {
            return Some("the prediction `sample` is not defined; take `ddim`");
        }
        let zero = config.schedule.zero_terminal_snr;
        zero.then_some("zero_terminal_snr is not defined, for it divides by the signal; take `ddim`")
    }

    fn write(&self, fields: &mut SchedulerFields) {
        fields.put("skip_prk_steps", self.skip_prk);
        fields.put("set_alpha_to_one", self.alpha_to_one);
    }
}

struct PndmSolver<'a> {
    settings: &'a Pndm,
    config: &'a SamplerConfig,
    timetable: &'a Timetable,
    prk_calls: usize,
    /// Calls done in this run, which may begin in the middle of the timetable.
    done: usize,
    history: History,
    /// The latent that several calls set out from.
    start: Option<Tensor<4>>,
    /// Weighted sum of a Runge-Kutta step's outputs.
    sum: Option<Tensor<4>>,
}

impl Solver for PndmSolver<'_> {
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>) {
        let t = self.timetable.index(input.call);
        let StepInput { output, x, .. } = input;
        let clean = self.config.prediction.estimate(&self.timetable.schedule, x.clone(), output.clone(), t).clean;
        let next = if self.done < self.prk_calls {
            self.runge_kutta(t as isize, output, x)
        } else {
            self.multistep(t as isize, output, x)
        };
        self.done += 1;
        (next, clean)
    }
}

impl PndmSolver<'_> {
    /// One of the four calls of a Runge-Kutta step (Liu et al. 2022, eq. 13).
    fn runge_kutta(&mut self, t: isize, output: Tensor<4>, x: Tensor<4>) -> Tensor<4> {
        let half = if self.done.is_multiple_of(2) { self.timetable.stride() / 2 } else { 0 };
        let from = self.timetable.index(self.done / 4 * 4) as isize;
        let output = match (self.done % 4, self.sum.take()) {
            (0, _) => {
                self.sum = Some(output.clone().mul_scalar(1.0 / 6.0));
                self.history.push(output.clone());
                self.start = Some(x.clone());
                output
            }
            (3, Some(sum)) => sum + output.mul_scalar(1.0 / 6.0),
            (_, sum) => {
                let third = output.clone().mul_scalar(1.0 / 3.0);
                self.sum = Some(sum.map_or(third.clone(), |sum| sum + third));
                output
            }
        };
        let start = self.start.clone().unwrap_or(x);
        self.transfer(start, from, t - half, output)
    }

    /// Linear multistep (Liu et al. 2022, eq. 12), of as high an order as there are outputs.
    fn multistep(&mut self, t: isize, output: Tensor<4>, x: Tensor<4>) -> Tensor<4> {
        let (mut x, mut from, mut to) = (x, t, t - self.timetable.stride());
        if self.done == 1 {
            // The second call of PLMS: the first step again, with the mean of both outputs.
            (from, to) = (t + self.timetable.stride(), t);
            x = self.start.take().unwrap_or(x);
            let mean = combine(0.5, output, 0.5, self.history.get(0));
            return self.transfer(x, from, to, mean);
        }
        if self.done == 0 {
            self.start = Some(x.clone());
        }
        self.history.push(output);
        let weights: &[f64] = match self.history.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let mut sum = self.history.get(0).mul_scalar(weights[0]);
        for (age, &weight) in weights.iter().enumerate().skip(1) {
            sum = sum + self.history.get(age).mul_scalar(weight);
        }
        self.transfer(x, from, to, sum)
    }

    /// The transfer part (Liu et al. 2022, eq. 11).
    fn transfer(&self, x: Tensor<4>, from: isize, to: isize, output: Tensor<4>) -> Tensor<4> {
        let schedule = &self.timetable.schedule;
        let last = if self.settings.alpha_to_one { 1.0 } else { schedule.alpha_bar(0) };
        // Image-to-image starts can correct a step that began before the schedule's end.
        let end = schedule.timesteps() as isize - 1;
        let alpha = |t: isize| self.timetable.alpha_bar(t.min(end), last);
        let (a, a_next) = (alpha(from), alpha(to));
        let noise = match self.config.prediction {
            Prediction::V => combine(a.sqrt(), output, (1.0 - a).sqrt(), x.clone()),
            Prediction::Epsilon | Prediction::Sample => output,
        };
        let divisor = a * (1.0 - a_next).sqrt() + (a * (1.0 - a) * a_next).sqrt();
        combine((a_next / a).sqrt(), x, -(a_next - a) / divisor, noise)
    }
}
