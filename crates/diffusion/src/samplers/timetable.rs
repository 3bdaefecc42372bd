//! The timesteps and noise levels that a sampler visits.

use super::SamplerConfig;
use super::SamplerError;
use super::solver::Level;
use super::visits::check_steps;
use crate::objective::Prediction;
use crate::schedule::{NoiseSchedule, ScheduleError, Spacing};
use burn::tensor::Tensor;

/// The calls of the denoiser that a sampler makes.
#[derive(Clone, Debug)]
pub(super) struct Timetable {
    /// Steps in all.
    pub steps: usize,
    /// Training timestep of each call.
    pub timesteps: Vec<f64>,
    /// Weights of image and noise in the latent before each call, and after the last one if it has a level.
    pub levels: Vec<[f64; 2]>,
    /// The deviation of clean latents, where latents keep the image's scale under the noise, so that inputs have to be scaled
    /// to unit variance.
    pub exploding: Option<f64>,
    /// Deviation of the first latent.
    pub init_noise_sigma: f64,
    /// The schedule.
    pub schedule: NoiseSchedule,
}

/// The configuration, the schedule and the number of steps that a timetable is made from.
pub(super) struct ScheduleContext<'a> {
    /// Schedule, spacing, offset and prediction.
    pub config: &'a SamplerConfig,
    /// `alpha_bar` of every timestep.
    pub schedule: &'a NoiseSchedule,
    /// Steps asked for.
    pub steps: usize,
}

impl Timetable {
    /// Plans `steps` steps of the configuration's sampler.
    ///
    /// # Errors
    /// [`SamplerError`] for impossible numbers of steps or timesteps.
    pub fn new(config: &SamplerConfig, schedule: &NoiseSchedule, steps: usize) -> Result<Self, SamplerError> {
        check_steps(config, steps)?;
        let timesteps = schedule.timesteps();
        if steps == 0 || steps > timesteps {
            return Err(ScheduleError::Steps { steps, timesteps }.into());
        }
        let context = ScheduleContext { config, schedule, steps };
        config.kind.settings().timetable(&context)
    }

    /// A timetable over training timesteps themselves, whose levels are the schedule's.
    ///
    /// # Errors
    /// [`SamplerError::Timestep`] beyond the schedule; [`SamplerError::NoSignal`] where noise alone says
    /// nothing of the image.
    pub fn of_timesteps(context: &ScheduleContext<'_>, timesteps: Vec<usize>) -> Result<Self, SamplerError> {
        let schedule = context.schedule;
        let last = schedule.timesteps() - 1;
        for &t in &timesteps {
            if t > last {
                return Err(SamplerError::Timestep { timestep: t as f64, last });
            }
            if schedule.alpha_bar(t) == 0.0 && context.config.prediction == Prediction::Epsilon {
                return Err(SamplerError::NoSignal { timestep: t as f64 });
            }
        }
        Ok(Self {
            steps: context.steps,
            levels: timesteps.iter().map(|&t| schedule.signal_and_noise(t)).collect(),
            timesteps: timesteps.into_iter().map(|t| t as f64).collect(),
            exploding: None,
            init_noise_sigma: 1.0,
            schedule: schedule.clone(),
        })
    }

    /// A timetable over ratios `sigma` of noise to image, in latents of unit variance; one ratio more than timesteps.
    pub fn of_ratios(context: &ScheduleContext<'_>, timesteps: Vec<f64>, sigmas: &[f64]) -> Self {
        let level = |sigma: &f64| {
            let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
            [signal, sigma * signal]
        };
        let levels = sigmas.iter().map(level).collect();
        let (steps, schedule) = (context.steps, context.schedule.clone());
        Self { steps, timesteps, levels, exploding: None, init_noise_sigma: 1.0, schedule }
    }

    /// A timetable over noise deviations `sigma` that are added to the image; one more than timesteps.
    pub fn of_deviations(context: &ScheduleContext<'_>, timesteps: Vec<f64>, sigmas: &[f64]) -> Self {
        let largest = sigmas.iter().copied().fold(0.0, f64::max);
        let init_noise_sigma = match context.config.spacing {
            Spacing::Leading => (largest * largest + 1.0).sqrt(),
            Spacing::Trailing | Spacing::Linspace => largest,
        };
        let levels = sigmas.iter().map(|&sigma| [1.0, sigma]).collect();
        let (steps, schedule) = (context.steps, context.schedule.clone());
        Self { steps, timesteps, levels, exploding: Some(1.0), init_noise_sigma, schedule }
    }

    /// The network's input of a call: the latent at unit variance.
    pub fn scale_input(&self, x: Tensor<4>, call: usize) -> Tensor<4> {
        let Some(clean) = self.exploding else { return x };
        let sigma = self.levels[call][1];
        x.div_scalar((sigma * sigma + clean * clean).sqrt())
    }

    /// The level before a call, for the exponential integrators.
    pub fn level(&self, call: usize) -> Level {
        Level::new(self.levels[call])
    }

    /// The timestep of a call as an index of the schedule.
    pub fn index(&self, call: usize) -> usize {
        self.timesteps[call] as usize
    }

    /// `alpha_bar` at a timestep; `last` before the first one.
    pub fn alpha_bar(&self, t: isize, last: f64) -> f64 {
        usize::try_from(t).map_or(last, |t| self.schedule.alpha_bar(t))
    }

    /// Timesteps in a step, rounded down.
    pub fn stride(&self) -> isize {
        (self.schedule.timesteps() / self.steps) as isize
    }
}

impl ScheduleContext<'_> {
    /// A list of training timesteps that is given, which is whole where it is taken as whole.
    pub fn given_timesteps(&self) -> Option<Vec<usize>> {
        let given = &self.config.timesteps;
        (!given.is_empty()).then(|| given.iter().map(|&t| t as usize).collect())
    }

    /// Training timesteps, from noise to image.
    pub fn whole_timesteps(&self) -> Vec<usize> {
        if let Some(given) = self.given_timesteps() {
            return given;
        }
        let (n, steps) = (self.schedule.timesteps(), self.steps);
        match self.config.spacing {
            Spacing::Leading => self.leading(n / steps, steps),
            Spacing::Trailing => self.trailing(n),
            Spacing::Linspace => even(n - 1, steps).map(|t| t.round_ties_even() as usize).rev().collect(),
        }
    }

    /// The same without rounding, as fractions of the `f32` in which diffusers keeps them.
    pub fn fractional_timesteps(&self) -> Vec<f64> {
        if !self.config.timesteps.is_empty() {
            return self.config.timesteps.iter().map(|&t| f64::from(t as f32)).collect();
        }
        match self.config.spacing {
            Spacing::Linspace => {
                even(self.schedule.timesteps() - 1, self.steps).map(|t| f64::from(t as f32)).rev().collect()
            }
            Spacing::Leading | Spacing::Trailing => self.whole_timesteps().into_iter().map(|t| t as f64).collect(),
        }
    }

    /// The timesteps of the exponential integrators, from noise to image: of one step more, the last of
    /// which is left out. They begin with the last of `timesteps`.
    pub fn inner_timesteps(&self, spacing: Spacing, timesteps: usize) -> Vec<usize> {
        if let Some(given) = self.given_timesteps() {
            return given;
        }
        let points = self.steps + 1;
        match spacing {
            Spacing::Leading => {
                let mut out = self.leading(timesteps / points, points);
                out.pop();
                out
            }
            Spacing::Trailing => self.trailing(timesteps),
            Spacing::Linspace => {
                let mut out: Vec<usize> =
                    even(timesteps - 1, points).map(|t| t.round_ties_even() as usize).rev().collect();
                out.pop();
                out
            }
        }
    }

    fn leading(&self, stride: usize, points: usize) -> Vec<usize> {
        (0..points).rev().map(|i| i * stride + self.config.steps_offset).collect()
    }

    /// From `from - 1` downwards, in strides of the whole schedule.
    fn trailing(&self, from: usize) -> Vec<usize> {
        // The increment of numpy.arange, which is not quite the stride.
        let stride = (from as f64 - self.schedule.timesteps() as f64 / self.steps as f64) - from as f64;
        (0..self.steps)
            .map(|i| (from as f64 + i as f64 * stride).round_ties_even() as usize)
            .take_while(|&t| t > 0)
            .map(|t| t - 1)
            .collect()
    }
}

/// `points` values evenly from 0 to `end`, as numpy.linspace computes them.
pub(super) fn even(end: usize, points: usize) -> impl DoubleEndedIterator<Item = f64> + ExactSizeIterator {
    let step = end as f64 / (points.max(2) - 1) as f64;
    (0..points).map(move |i| if i + 1 == points && i > 0 { end as f64 } else { i as f64 * step })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleConfig;

    fn timesteps(spacing: Spacing, steps: usize) -> Result<Vec<f64>, SamplerError> {
        let config = SamplerConfig { spacing, ..Default::default() };
        let schedule = NoiseSchedule::new(&ScheduleConfig::default()).unwrap();
        Ok(Timetable::new(&config, &schedule, steps)?.timesteps)
    }

    #[test]
    fn spacings() {
        let leading = timesteps(Spacing::Leading, 50).unwrap();
        assert_eq!((leading[0], leading[49], leading.len()), (981.0, 1.0, 50));
        assert_eq!(timesteps(Spacing::Trailing, 4).unwrap(), [999.0, 749.0, 499.0, 249.0]);
        assert_eq!(timesteps(Spacing::Linspace, 3).unwrap(), [999.0, 500.0, 0.0]);
        // The stride of 1000 / 61 lands just above 0 after 61 steps.
        assert_eq!(timesteps(Spacing::Trailing, 61).unwrap().len(), 61);
    }

    #[test]
    fn impossible_steps_are_named() {
        let error = timesteps(Spacing::Leading, 1001).unwrap_err();
        assert_eq!(error, ScheduleError::Steps { steps: 1001, timesteps: 1000 }.into());
        let error = timesteps(Spacing::Leading, 1000).unwrap_err();
        assert_eq!(error, SamplerError::Timestep { timestep: 1000.0, last: 999 });
    }
}
