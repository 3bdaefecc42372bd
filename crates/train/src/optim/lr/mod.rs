//! Learning-rate schedules, one file each: pure functions of the samples seen.

mod constant;
mod cosine;
mod inverse_sqrt;
mod lambda_linear;
mod linear;
mod multi_step;
mod polynomial;
mod step;
mod warmup_hold;

pub use constant::Constant;
pub use cosine::{Cosine, CosineVariant};
pub use inverse_sqrt::InverseSqrt;
pub use lambda_linear::LambdaLinear;
pub use linear::Linear;
pub use multi_step::MultiStep;
pub use polynomial::Polynomial;
pub use step::Step;
pub use warmup_hold::WarmupHold;

use super::position::{Position, Span};
use super::table::table;
use crate::config::{SettingError, check};

/// How the learning rate goes through a run.
pub trait Schedule {
    /// The learning rate of the step that ends at a position, where `peak` is the recipe's `optimizer.learning_rate`.
    fn rate(&self, peak: f64, at: &Position) -> f64;

    /// Checks the settings.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    fn validate(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

table! {
    /// The learning rate as a function of the samples seen; `optimizer.schedule` of a recipe.
    ///
    /// ```
    /// use calotype_train::optim::{LrSchedule, Position};
    /// let schedule: LrSchedule = toml::from_str("name = 'linear'\nwarmup = { steps = 10 }").unwrap();
    /// let rate = |samples| schedule.get().rate(1e-3, &Position { samples, batch_size: 4, total: 1040 });
    /// assert_eq!((rate(20), rate(40), rate(540), rate(1040)), (5e-4, 1e-3, 5e-4, 0.0));
    /// ```
    LrSchedule: dyn Schedule {
        /// Stays at its peak.
        Constant(Constant) = "constant",
        /// Half a cosine from the peak down, once or several times.
        Cosine(Cosine) = "cosine",
        /// A straight line from the peak down.
        Linear(Linear) = "linear",
        /// A power of the share of the run that is left.
        Polynomial(Polynomial) = "polynomial",
        /// Straight warm-up and decay of latent-diffusion.
        LambdaLinear(LambdaLinear) = "lambda_linear",
        /// One over the square root of the samples seen.
        InverseSqrt(InverseSqrt) = "inverse_sqrt",
        /// Multiplied by a factor at equal intervals.
        Step(Step) = "step",
        /// Multiplied by a factor at given points of the run.
        MultiStep(MultiStep) = "multi_step",
        /// NeMo's warm-up, then the peak.
        WarmupHold(WarmupHold) = "warmup_hold",
    }
}

impl Default for LrSchedule {
    fn default() -> Self {
        Self::Constant(Constant::default())
    }
}

/// The rate during a warm-up that rises from zero in a straight line; none after it.
fn warming(warmup: Span, peak: f64, at: &Position) -> Option<f64> {
    let warmup = warmup.samples(at.batch_size);
    (at.samples < warmup).then(|| peak * at.samples as f64 / warmup as f64)
}

/// The share done of what lies between the warm-up and the end: of `length`, which includes the warm-up, or of the run.
fn share_done(warmup: Span, length: Option<Span>, at: &Position) -> f64 {
    let warmup = warmup.samples(at.batch_size);
    let end = length.map_or(at.total, |length| length.samples(at.batch_size));
    let rest = end.saturating_sub(warmup).max(1);
    (at.samples.saturating_sub(warmup) as f64 / rest as f64).min(1.0)
}

/// Checks a share of the peak rate.
fn check_share(key: &'static str, share: f64) -> Result<(), SettingError> {
    check(share >= 0.0 && share.is_finite(), key, || format!("{share} is no share of the peak; use 0 or more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates of a schedule with peak 1 in a run of 100 steps of 10 samples.
    pub(super) fn rates(schedule: &dyn Schedule, steps: &[u64]) -> Vec<f64> {
        let at = |&step: &u64| Position { samples: 10 * step, batch_size: 10, total: 1000 };
        steps.iter().map(|step| schedule.rate(1.0, &at(step))).collect()
    }

    pub(super) fn near(got: &[f64], want: &[f64]) {
        let close = got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 1e-12 * want.abs().max(1e-3));
        assert!(got.len() == want.len() && close, "{got:?} instead of {want:?}");
    }

    /// Made by `tests/golden/make_schedules.py`. Schedules of torch give the rate behind n steps; the others that of step n + 1.
    #[test]
    fn golden_values_of_the_originals() {
        const GOLDEN: &str = include_str!("../../../tests/golden/schedules.txt");
        let steps = Span::Steps;
        let open_clip = Cosine { warmup: steps(10), variant: CosineVariant::OpenClip, ..Cosine::default() };
        let nemo = Cosine { final_share: 0.1, variant: CosineVariant::Nemo, ..open_clip.clone() };
        let schedules: [(&str, &dyn Schedule, u64); 12] = [
            ("torch_constant", &Constant::default(), 0),
            ("torch_linear", &Linear { final_share: 0.2, length: Some(steps(50)), ..Linear::default() }, 0),
            ("torch_polynomial", &Polynomial::default(), 0),
            ("torch_step", &Step { every: steps(30), gamma: 0.5, ..Step::default() }, 0),
            (
                "torch_multi_step",
                &MultiStep { milestones: vec![steps(30), steps(80)], gamma: 0.5, ..MultiStep::default() },
                0,
            ),
            ("torch_cosine", &Cosine { final_share: 0.1, ..Cosine::default() }, 0),
            ("ldm_mlperf", &LambdaLinear { warmup: steps(10), ..LambdaLinear::default() }, 1),
            (
                "ldm_falling",
                &LambdaLinear { warmup: steps(10), f_min: 0.1, cycle: Some(steps(120)), ..LambdaLinear::default() },
                1,
            ),
            ("nemo_hold", &WarmupHold { warmup: steps(10), ..WarmupHold::default() }, 1),
            (
                "nemo_ending",
                &WarmupHold { warmup: steps(10), hold: Some(steps(20)), length: Some(steps(60)), final_share: 0.1 },
                1,
            ),
            ("open_clip_cosine", &open_clip, 1),
            ("nemo_cosine", &nemo, 1),
        ];
        assert_eq!(GOLDEN.lines().count(), schedules.len());
        for (line, (name, schedule, first)) in GOLDEN.lines().zip(schedules) {
            let numbers = line.strip_prefix(name).expect("the lines are in this order").split_whitespace();
            let want: Vec<f64> = numbers.map(|number| number.parse().expect("a number")).collect();
            let at: Vec<u64> = (first..).take(want.len()).collect();
            near(&rates(schedule, &at), &want);
        }
    }

    #[test]
    fn every_schedule_reads_what_it_writes_and_stays_finite() {
        for schedule in LrSchedule::all() {
            assert!(LrSchedule::NAMES.contains(&schedule.name()));
            let text = toml::to_string(&schedule).unwrap();
            assert_eq!(toml::from_str::<LrSchedule>(&text).unwrap(), schedule, "{text}");
            assert_eq!(schedule.get().validate(), Ok(()));
            for rate in rates(schedule.get(), &[0, 1, 50, 100, 10_000]) {
                assert!((0.0..=1.0).contains(&rate), "{schedule:?}: {rate}");
            }
            let wrong = format!("warm = 3\n{text}");
            let error = toml::from_str::<LrSchedule>(&wrong).unwrap_err().to_string();
            assert!(error.contains("unknown field `warm`"), "{error}");
        }
    }
}
