//! Noise levels between those of the training timesteps.

use super::beta::inverse_beta;
use super::timetable::ScheduleContext;
use crate::schedule::NoiseSchedule;
use serde::{Deserialize, Serialize};

/// The curve of the noise levels from the largest to the smallest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// Those of the timesteps of the spacing.
    #[default]
    Timesteps,
    /// The 7th root of sigma is linear (Karras et al. 2022, eq. 5).
    Karras,
    /// The logarithm of sigma is linear.
    Exponential,
    /// Quantiles of the beta distribution with both parameters 0.6 (Lee et al. 2024).
    Beta,
    /// The logarithm of sigma is linear over the whole schedule, at whole timesteps (Lu et al. 2022).
    LogSnr,
}

/// The noise level after the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// None.
    #[default]
    Zero,
    /// The smallest of the schedule.
    SigmaMin,
}

/// The noise levels that a sampler visits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SigmaRange {
    /// Their curve.
    pub curve: Curve,
    /// The smallest one; otherwise the schedule's. The curve of the timesteps ignores it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_min: Option<f64>,
    /// The largest one; otherwise the schedule's. The curve of the timesteps ignores it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// The one after the last step.
    pub last: FinalSigma,
}

/// Exponent of the Karras curve.
const RHO: f64 = 7.0;

/// The value that stands for an `alpha_bar` of 0, which would have no finite ratio of noise to image: the smallest
/// positive `f16`, as in diffusers.
const LEAST_ALPHA_BAR: f64 = 1.0 / 16_777_216.0;

impl SigmaRange {
    /// Says if its bounds are out of order.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let positive = |sigma: Option<f64>| sigma.is_none_or(|sigma| sigma > 0.0 && sigma.is_finite());
        let ordered = self.sigma_min.zip(self.sigma_max).is_none_or(|(min, max)| min <= max);
        (!(positive(self.sigma_min) && positive(self.sigma_max) && ordered))
            .then_some("sigma_min and sigma_max have to be positive, the one not above the other")
    }

    /// The same at fractional timesteps.
    pub(super) fn problem_at_fractions(&self) -> Option<&'static str> {
        if self.curve == Curve::LogSnr {
            return Some("the curve `log_snr` belongs to `dpm_multistep`; take `exponential`, which is much the same");
        }
        self.problem()
    }

    /// `points` noise levels from `largest` to `smallest`, unless this range says otherwise.
    fn levels(&self, largest: f64, smallest: f64, points: usize) -> Vec<f64> {
        let max = self.sigma_max.unwrap_or(largest);
        let min = self.sigma_min.unwrap_or(smallest);
        match self.curve {
            Curve::Karras => {
                let (from, to) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
                line(0.0, 1.0, points).map(|at| (from + at * (to - from)).powf(RHO)).collect()
            }
            Curve::Beta => line(0.0, 1.0, points).map(|at| min + inverse_beta(1.0 - at) * (max - min)).collect(),
            Curve::LogSnr | Curve::Exponential | Curve::Timesteps => {
                line(max.ln(), min.ln(), points).map(f64::exp).collect()
            }
        }
    }
}

/// `points` values evenly from `start` to `end`, as numpy.linspace computes them.
fn line(start: f64, end: f64, points: usize) -> impl Iterator<Item = f64> {
    let step = (end - start) / (points.max(2) - 1) as f64;
    (0..points).map(move |i| if i > 0 && i + 1 == points { end } else { i as f64 * step + start })
}

/// The ratio of noise to image at every training timestep, with `f32` precision as in diffusers.
pub(super) struct Table {
    sigmas: Vec<f64>,
    logs: Vec<f64>,
}

impl Table {
    /// Of a schedule.
    pub fn new(schedule: &NoiseSchedule) -> Self {
        let ratio = |t| {
            let alpha = match schedule.alpha_bar(t) {
                0.0 => LEAST_ALPHA_BAR,
                alpha => alpha,
            };
            single(single(single(1.0 - alpha) / alpha).sqrt())
        };
        let sigmas: Vec<f64> = (0..schedule.timesteps()).map(ratio).collect();
        let logs = sigmas.iter().map(|sigma| single(sigma.ln())).collect();
        Self { sigmas, logs }
    }

    /// The ratio at a fractional timestep, interpolated, constant beyond the ends.
    pub fn at(&self, t: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        if t >= last as f64 {
            return self.sigmas[last];
        }
        let (low, rest) = (t.floor() as usize, t.fract());
        (self.sigmas[low + 1] - self.sigmas[low]) * rest + self.sigmas[low]
    }

    /// The fractional timestep of a ratio, interpolated in its logarithm.
    fn timestep_of(&self, sigma: f64) -> f64 {
        self.timestep_of_log(sigma.max(1e-10).ln())
    }

    fn timestep_of_log(&self, log: f64) -> f64 {
        let last = self.logs.len() - 1;
        if last == 0 {
            return 0.0;
        }
        let low = self.logs.partition_point(|&other| other <= log).saturating_sub(1).min(last - 1);
        let (below, above) = (self.logs[low], self.logs[low + 1]);
        let weight = ((below - log) / single(below - above)).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }

    fn ends(&self) -> (f64, f64) {
        (self.sigmas[self.sigmas.len() - 1], self.sigmas[0])
    }
}

fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

/// Fractional timesteps and noise levels of Euler's and Heun's methods; one level more than timesteps.
///
/// The curves run between the levels of the spacing's own ends.
pub(super) fn fractional(context: &ScheduleContext<'_>, range: &SigmaRange) -> (Vec<f64>, Vec<f64>) {
    let table = Table::new(context.schedule);
    if let [visited @ .., last] = &context.config.sigmas[..] {
        // A list is `f32` in diffusers, and so are its logarithms.
        let log = |sigma: f64| single(single(sigma).max(1e-10).ln());
        let timesteps = visited.iter().map(|&sigma| single(table.timestep_of_log(log(sigma)))).collect();
        return (timesteps, closed(visited.to_vec(), *last));
    }
    let timesteps = context.fractional_timesteps();
    let sigmas: Vec<f64> = timesteps.iter().map(|&t| table.at(t)).collect();
    let last = match range.last {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => table.sigmas[0],
    };
    if range.curve == Curve::Timesteps {
        return (timesteps, closed(sigmas, last));
    }
    let sigmas = range.levels(sigmas[0], sigmas[sigmas.len() - 1], context.steps);
    let timesteps = sigmas.iter().map(|&sigma| single(table.timestep_of(sigma))).collect();
    (timesteps, closed(sigmas, last))
}

/// The differences between the noise levels of the exponential integrators.
pub(super) struct WholeTimesteps {
    /// The timesteps that the levels of [`Curve::Timesteps`] are those of.
    pub timesteps: Vec<usize>,
    /// True: the timesteps of Karras and logarithmic levels are rounded to the nearest one.
    pub nearest: bool,
    /// True: the smallest level is the curve's own, not the schedule's.
    pub last_of_curve: bool,
}

impl WholeTimesteps {
    /// Whole timesteps and noise levels; one level more than timesteps. The curves run over the whole schedule.
    pub fn visit(self, context: &ScheduleContext<'_>, range: &SigmaRange) -> (Vec<f64>, Vec<f64>) {
        let table = Table::new(context.schedule);
        let timesteps: Vec<f64> = self.timesteps.iter().map(|&t| t as f64).collect();
        if range.curve == Curve::Timesteps {
            let sigmas = timesteps.iter().map(|&t| table.at(t)).collect();
            return (timesteps, closed(sigmas, self.last(range, table.sigmas[0])));
        }
        let sigmas = self.curve_levels(context, range, &table);
        let nearest = self.nearest && matches!(range.curve, Curve::Karras | Curve::LogSnr);
        let whole = |t: f64| if nearest { t.round_ties_even() } else { t.trunc() };
        let timesteps = sigmas.iter().map(|&sigma| whole(table.timestep_of(sigma))).collect();
        let smallest = if self.last_of_curve { sigmas[sigmas.len() - 1] } else { table.sigmas[0] };
        (timesteps, closed(sigmas, self.last(range, smallest)))
    }

    fn curve_levels(&self, context: &ScheduleContext<'_>, range: &SigmaRange, table: &Table) -> Vec<f64> {
        if range.curve == Curve::LogSnr {
            let (last, first) = (table.logs[table.logs.len() - 1], table.logs[0]);
            return line(0.0, 1.0, context.steps).map(|at| (last + at * (first - last)).exp()).collect();
        }
        let (largest, smallest) = table.ends();
        range.levels(largest, smallest, context.steps)
    }

    fn last(&self, range: &SigmaRange, smallest: f64) -> f64 {
        match range.last {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => smallest,
        }
    }
}

/// The levels with the last one, in `f32` precision.
fn closed(mut sigmas: Vec<f64>, last: f64) -> Vec<f64> {
    sigmas.push(last);
    sigmas.into_iter().map(single).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleConfig;

    #[test]
    fn timesteps_and_levels_are_inverse() {
        let table = Table::new(&NoiseSchedule::new(&ScheduleConfig::default()).unwrap());
        for t in [0.0, 1.0, 333.0, 998.0, 999.0] {
            assert!((table.timestep_of(table.at(t)) - t).abs() < 1e-2, "at {t}");
        }
        assert_eq!(table.at(2000.0), table.at(999.0));
        assert_eq!(table.timestep_of(1e9), 999.0);
        assert_eq!(table.timestep_of(0.0), 0.0);
    }

    #[test]
    fn curves_run_from_the_largest_to_the_smallest() {
        for curve in [Curve::Karras, Curve::Exponential, Curve::Beta] {
            let levels = SigmaRange { curve, ..Default::default() }.levels(14.6, 0.03, 7);
            assert!((levels[0] - 14.6).abs() < 1e-9 && (levels[6] - 0.03).abs() < 1e-9, "{curve:?}: {levels:?}");
            assert!(levels.windows(2).all(|pair| pair[0] > pair[1]), "{curve:?}: {levels:?}");
        }
    }
}
