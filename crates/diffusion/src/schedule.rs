//! Noise schedules and the timesteps that samplers visit.
//!
//! Notation of DDPM (Ho et al. 2020): `beta_t` is the variance added at step `t`, and
//! `alpha_bar_t = prod_{s <= t} (1 - beta_s)`, so that eq. 4 reads
//! `x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps`.

use calotype_core::fields::MOST;
use serde::{Deserialize, Serialize};

/// The shape of `beta` over the training steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// `beta` linear between its ends (DDPM, section 4).
    Linear,
    /// `sqrt(beta)` linear between the roots of its ends (Stable Diffusion).
    ScaledLinear,
    /// `alpha_bar` a squared cosine (Nichol & Dhariwal 2021, eq. 17); ignores the ends of `beta`.
    #[serde(alias = "squaredcos_cap_v2")]
    Cosine,
}

/// A noise schedule as a recipe states it; defaults are Stable Diffusion's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Shape of `beta`.
    pub kind: ScheduleKind,
    /// Number of training timesteps.
    pub timesteps: usize,
    /// First `beta`.
    pub beta_start: f64,
    /// Last `beta`.
    pub beta_end: f64,
    /// Shifts and stretches `sqrt(alpha_bar)` so that it ends at 0 (Lin et al. 2024, algorithm 1).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub zero_terminal_snr: bool,
    /// Every `beta`, instead of a shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_betas: Option<Vec<f64>>,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::ScaledLinear,
            timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            zero_terminal_snr: false,
            trained_betas: None,
        }
    }
}

/// A schedule or step count that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ScheduleError {
    /// No timesteps, or more than a table holds.
    #[error("schedule.timesteps = {timesteps}: needs 1 to {MOST}")]
    Timesteps {
        /// Training timesteps.
        timesteps: usize,
    },
    /// `beta` outside `0..1` or not increasing.
    #[error(
        "schedule.beta_start = {start} and schedule.beta_end = {end}: \
         needs 0 < beta_start <= beta_end < 1"
    )]
    Betas {
        /// First beta.
        start: f64,
        /// Last beta.
        end: f64,
    },
    /// One of the trained `beta`s lies outside `0..1`.
    #[error("schedule.trained_betas[{index}] = {value}: needs to lie between 0 and 1")]
    TrainedBeta {
        /// Its place.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// The trained `beta`s are not one for each timestep.
    #[error("schedule.trained_betas has {count} values for schedule.timesteps = {timesteps}; needs as many")]
    TrainedBetas {
        /// Values given.
        count: usize,
        /// Training timesteps.
        timesteps: usize,
    },
    /// More or fewer sampling steps than the schedule offers.
    #[error("{steps} sampling steps; this schedule offers 1 to {timesteps}")]
    Steps {
        /// Steps asked for.
        steps: usize,
        /// Training timesteps.
        timesteps: usize,
    },
}

/// `alpha_bar` of every training timestep.
///
/// ```
/// use calotype_diffusion::{NoiseSchedule, ScheduleConfig};
///
/// let schedule = NoiseSchedule::new(&ScheduleConfig::default())?;
/// let [signal, noise] = schedule.signal_and_noise(999);
/// assert_eq!(schedule.timesteps(), 1000);
/// assert!((signal * signal + noise * noise - 1.0).abs() < 1e-12 && signal < 0.07);
/// # Ok::<(), calotype_diffusion::ScheduleError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
}

/// Largest `beta` of the cosine schedule, which would otherwise reach 1 at the end
/// (Nichol & Dhariwal 2021, below eq. 17).
const COSINE_MAX_BETA: f64 = 0.999;

impl NoiseSchedule {
    /// Builds the schedule, in `f64`.
    ///
    /// # Errors
    /// [`ScheduleError`] for an empty schedule or impossible `beta`s.
    pub fn new(config: &ScheduleConfig) -> Result<Self, ScheduleError> {
        Self::in_precision(config, Precision::Double)
    }

    /// The same with every intermediate value rounded to `f32`, as diffusers keeps its tables.
    ///
    /// Where `alpha_bar` comes close to 0 (cosine, zero terminal SNR), the rounding of `1 - beta` is
    /// visible in the samples, so that the tables of published checkpoints are these.
    ///
    /// # Errors
    /// [`ScheduleError`], as of [`NoiseSchedule::new`].
    pub fn in_single_precision(config: &ScheduleConfig) -> Result<Self, ScheduleError> {
        Self::in_precision(config, Precision::Single)
    }

    fn in_precision(config: &ScheduleConfig, precision: Precision) -> Result<Self, ScheduleError> {
        let mut betas = betas(config, precision)?;
        if config.zero_terminal_snr {
            rescale_to_zero_terminal_snr(&mut betas, precision);
        }
        Ok(Self { alphas_cumprod: alphas_cumprod(&betas, precision) })
    }

    /// Number of training timesteps.
    pub fn timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// `alpha_bar` at a timestep.
    ///
    /// # Panics
    /// If `t` is not below [`NoiseSchedule::timesteps`].
    pub fn alpha_bar(&self, t: usize) -> f64 {
        self.alphas_cumprod[t]
    }

    /// `[sqrt(alpha_bar), sqrt(1 - alpha_bar)]`: the weights of image and noise at `t`.
    ///
    /// # Panics
    /// As of [`NoiseSchedule::alpha_bar`].
    pub fn signal_and_noise(&self, t: usize) -> [f64; 2] {
        let a = self.alpha_bar(t);
        [a.sqrt(), (1.0 - a).sqrt()]
    }
}

/// The precision to which the intermediate values of a table are rounded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Precision {
    Double,
    Single,
}

impl Precision {
    /// An `f64` operation on two `f32`s, rounded, is the `f32` operation.
    fn round(self, x: f64) -> f64 {
        match self {
            Precision::Double => x,
            Precision::Single => f64::from(x as f32),
        }
    }

    /// `n` values evenly from `start` to `end`.
    fn line(self, start: f64, end: f64, n: usize) -> Vec<f64> {
        if self == Precision::Double {
            return (0..n).map(|i| lerp(start, end, i, n)).collect();
        }
        // torch.linspace counts from both ends towards the middle.
        let r = |x| self.round(x);
        let (start, end) = (r(start), r(end));
        let step = r(r(end - start) / (n.max(2) - 1) as f64);
        let from_start = |i: usize| r(start + r(step * i as f64));
        let from_end = |i: usize| r(end - r(step * (n - 1 - i) as f64));
        (0..n).map(|i| if i < n / 2 || n == 1 { from_start(i) } else { from_end(i) }).collect()
    }
}

fn betas(config: &ScheduleConfig, precision: Precision) -> Result<Vec<f64>, ScheduleError> {
    let n = config.timesteps;
    if !(1..=MOST).contains(&n) {
        return Err(ScheduleError::Timesteps { timesteps: n });
    }
    if let Some(trained) = &config.trained_betas {
        return trained_betas(trained, n, precision);
    }
    let (start, end) = (config.beta_start, config.beta_end);
    if !(start > 0.0 && start <= end && end < 1.0) && config.kind != ScheduleKind::Cosine {
        return Err(ScheduleError::Betas { start, end });
    }
    Ok(match config.kind {
        ScheduleKind::Linear => precision.line(start, end, n),
        ScheduleKind::ScaledLinear => {
            let roots = precision.line(start.sqrt(), end.sqrt(), n);
            roots.into_iter().map(|root| precision.round(root.powi(2))).collect()
        }
        ScheduleKind::Cosine => {
            let beta = |t| (1.0 - cosine_alpha_bar(t + 1, n) / cosine_alpha_bar(t, n)).min(COSINE_MAX_BETA);
            (0..n).map(|t| precision.round(beta(t))).collect()
        }
    })
}

fn trained_betas(betas: &[f64], timesteps: usize, precision: Precision) -> Result<Vec<f64>, ScheduleError> {
    if betas.len() != timesteps {
        return Err(ScheduleError::TrainedBetas { count: betas.len(), timesteps });
    }
    if let Some((index, &value)) = betas.iter().enumerate().find(|(_, beta)| !(**beta > 0.0 && **beta < 1.0)) {
        return Err(ScheduleError::TrainedBeta { index, value });
    }
    Ok(betas.iter().map(|&beta| precision.round(beta)).collect())
}

fn alphas_cumprod(betas: &[f64], precision: Precision) -> Vec<f64> {
    let mut product = 1.0;
    let mut next = |beta: &f64| {
        // The running product is f64 in either precision, as in torch.cumprod on processors.
        product *= precision.round(1.0 - beta);
        precision.round(product)
    };
    betas.iter().map(&mut next).collect()
}

/// Lin et al. 2024, algorithm 1: `sqrt(alpha_bar)` keeps its first value and ends at 0.
fn rescale_to_zero_terminal_snr(betas: &mut [f64], precision: Precision) {
    let r = |x| precision.round(x);
    let roots: Vec<f64> = alphas_cumprod(betas, precision).into_iter().map(|a| r(a.sqrt())).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    if first == last {
        return;
    }
    let stretch = r(first / r(first - last));
    let bars: Vec<f64> = roots.into_iter().map(|root| r(r(r(root - last) * stretch).powi(2))).collect();
    for (t, beta) in betas.iter_mut().enumerate() {
        let alpha = if t == 0 { bars[0] } else { r(bars[t] / bars[t - 1]) };
        *beta = r(1.0 - alpha);
    }
}

fn lerp(start: f64, end: f64, i: usize, n: usize) -> f64 {
    if n == 1 { start } else { start + (end - start) * i as f64 / (n - 1) as f64 }
}

/// `f(t) = cos²((t/T + s) / (1 + s) · π/2)` with `s = 0.008` (Nichol & Dhariwal 2021, eq. 17).
fn cosine_alpha_bar(t: usize, n: usize) -> f64 {
    let s = 0.008;
    ((t as f64 / n as f64 + s) / (1.0 + s) * std::f64::consts::FRAC_PI_2).cos().powi(2)
}

/// The training timesteps that a sampler with few steps visits (Lin et al. 2024, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Multiples of `timesteps / steps`, plus an offset (1 in Stable Diffusion).
    Leading,
    /// From the last timestep downwards.
    Trailing,
    /// Evenly from first to last, both included.
    Linspace,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> NoiseSchedule {
        NoiseSchedule::new(&ScheduleConfig { kind, ..Default::default() }).unwrap()
    }

    // Golden values: diffusers 0.42.1, `DDIMScheduler(beta_schedule=...).alphas_cumprod` in f64.
    #[test]
    fn known_alpha_bars() {
        let cases = [
            (ScheduleKind::ScaledLinear, 0, 0.99915),
            (ScheduleKind::ScaledLinear, 999, 0.0046600),
            (ScheduleKind::Linear, 0, 0.99915),
            (ScheduleKind::Linear, 999, 0.0015915),
        ];
        for (kind, t, expected) in cases {
            let got = schedule(kind).alpha_bar(t);
            assert!((got - expected).abs() < 2e-5, "{kind:?} at {t}: {got}, expected {expected}");
        }
        let cosine = schedule(ScheduleKind::Cosine);
        assert!(cosine.alpha_bar(0) > 0.9999 && cosine.alpha_bar(999) < 1e-6);
    }

    #[test]
    fn alpha_bar_falls() {
        for kind in [ScheduleKind::Linear, ScheduleKind::ScaledLinear, ScheduleKind::Cosine] {
            let s = schedule(kind);
            for t in 1..s.timesteps() {
                assert!(s.alpha_bar(t) < s.alpha_bar(t - 1), "{kind:?} at {t}");
            }
        }
    }

    #[test]
    fn impossible_counts_of_timesteps_are_named() {
        for timesteps in [0, MOST + 1, usize::MAX] {
            let error = NoiseSchedule::new(&ScheduleConfig { timesteps, ..Default::default() }).unwrap_err();
            assert_eq!(error, ScheduleError::Timesteps { timesteps });
        }
    }

    #[test]
    fn impossible_betas_are_named() {
        let config = ScheduleConfig { beta_start: 0.5, beta_end: 0.1, ..Default::default() };
        let error = NoiseSchedule::new(&config).unwrap_err().to_string();
        assert!(error.contains("beta_start") && error.contains("0.5"), "{error}");
    }

    #[test]
    fn zero_terminal_snr_ends_without_signal() {
        let config = ScheduleConfig { zero_terminal_snr: true, ..Default::default() };
        for schedule in [NoiseSchedule::new(&config), NoiseSchedule::in_single_precision(&config)] {
            let schedule = schedule.unwrap();
            assert_eq!(schedule.alpha_bar(999), 0.0);
            assert!((schedule.alpha_bar(0) - 0.99915).abs() < 1e-6);
        }
    }

    #[test]
    fn trained_betas_replace_the_shape() {
        let with =
            |betas: &[f64]| ScheduleConfig { timesteps: 2, trained_betas: Some(betas.to_vec()), ..Default::default() };
        let schedule = NoiseSchedule::new(&with(&[0.5, 0.25])).unwrap();
        assert_eq!([schedule.alpha_bar(0), schedule.alpha_bar(1)], [0.5, 0.375]);
        let error = |betas| NoiseSchedule::new(&with(betas)).unwrap_err();
        assert_eq!(error(&[0.5]), ScheduleError::TrainedBetas { count: 1, timesteps: 2 });
        assert_eq!(error(&[0.5, 1.5]), ScheduleError::TrainedBeta { index: 1, value: 1.5 });
    }

    #[test]
    fn rounding_stays_small() {
        let [double, single] = [NoiseSchedule::new, NoiseSchedule::in_single_precision]
            .map(|make| make(&ScheduleConfig::default()).unwrap());
        for t in 0..1000 {
            let ratio = single.alpha_bar(t) / double.alpha_bar(t);
            assert!((ratio - 1.0).abs() < 5e-6, "at {t}: {ratio}");
        }
    }
}
