//! Noise schedules and the timesteps that samplers visit.
//!
//! Notation of DDPM (Ho et al. 2020): `beta_t` is the variance added at step `t`, and
//! `alpha_bar_t = prod_{s <= t} (1 - beta_s)`, so that eq. 4 reads
//! `x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps`.

use serde::{Deserialize, Serialize};

/// How `beta` runs over the training steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// `beta` linear between its ends (DDPM, section 4).
    Linear,
    /// `sqrt(beta)` linear between the roots of its ends (Stable Diffusion).
    ScaledLinear,
    /// `alpha_bar` a squared cosine (Nichol & Dhariwal 2021, eq. 17); ignores the ends of `beta`.
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
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::ScaledLinear, timesteps: 1000, beta_start: 0.00085, beta_end: 0.012 }
    }
}

/// A schedule or step count that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ScheduleError {
    /// No timesteps.
    #[error("schedule.timesteps is 0; a schedule needs at least one")]
    NoTimesteps,
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
        let n = config.timesteps;
        if n == 0 {
            return Err(ScheduleError::NoTimesteps);
        }
        let (start, end) = (config.beta_start, config.beta_end);
        if !(start > 0.0 && start <= end && end < 1.0) && config.kind != ScheduleKind::Cosine {
            return Err(ScheduleError::Betas { start, end });
        }
        let beta = |t: usize| match config.kind {
            ScheduleKind::Linear => lerp(start, end, t, n),
            ScheduleKind::ScaledLinear => lerp(start.sqrt(), end.sqrt(), t, n).powi(2),
            ScheduleKind::Cosine => (1.0 - cosine_alpha_bar(t + 1, n) / cosine_alpha_bar(t, n)).min(COSINE_MAX_BETA),
        };
        let mut product = 1.0;
        let alphas_cumprod = (0..n)
            .map(|t| {
                product *= 1.0 - beta(t);
                product
            })
            .collect();
        Ok(Self { alphas_cumprod })
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

    /// `[sqrt(alpha_bar), sqrt(1 - alpha_bar)]`: the weights of picture and noise at `t`.
    pub fn signal_and_noise(&self, t: usize) -> [f64; 2] {
        let a = self.alpha_bar(t);
        [a.sqrt(), (1.0 - a).sqrt()]
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

/// Which training timesteps a sampler with few steps visits (Lin et al. 2024, table 2).
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

impl Spacing {
    /// The timesteps in sampling order, from noise to picture.
    ///
    /// # Errors
    /// [`ScheduleError::Steps`] if there are more steps than timesteps, or none.
    pub fn timesteps(self, schedule: &NoiseSchedule, steps: usize, offset: usize) -> Result<Vec<usize>, ScheduleError> {
        let n = schedule.timesteps();
        if steps == 0 || steps > n {
            return Err(ScheduleError::Steps { steps, timesteps: n });
        }
        let last = n - 1;
        let mut out: Vec<usize> = match self {
            Spacing::Leading => (0..steps).map(|i| (i * (n / steps) + offset).min(last)).collect(),
            Spacing::Trailing => (0..steps)
                .map(|i| {
                    let t = n as f64 - i as f64 * n as f64 / steps as f64;
                    (t.round() as usize).saturating_sub(1)
                })
                .rev()
                .collect(),
            Spacing::Linspace => (0..steps).map(|i| lerp(0.0, last as f64, i, steps).round() as usize).collect(),
        };
        out.reverse();
        Ok(out)
    }
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
    fn spacings() {
        let s = schedule(ScheduleKind::ScaledLinear);
        let leading = Spacing::Leading.timesteps(&s, 50, 1).unwrap();
        assert_eq!((leading[0], leading[49], leading.len()), (981, 1, 50));
        assert_eq!(Spacing::Trailing.timesteps(&s, 4, 0).unwrap(), [999, 749, 499, 249]);
        assert_eq!(Spacing::Linspace.timesteps(&s, 3, 0).unwrap(), [999, 500, 0]);
        let error = Spacing::Leading.timesteps(&s, 1001, 1).unwrap_err();
        assert_eq!(error, ScheduleError::Steps { steps: 1001, timesteps: 1000 });
    }

    #[test]
    fn impossible_betas_are_named() {
        let config = ScheduleConfig { beta_start: 0.5, beta_end: 0.1, ..Default::default() };
        let error = NoiseSchedule::new(&config).unwrap_err().to_string();
        assert!(error.contains("beta_start") && error.contains("0.5"), "{error}");
    }
}
