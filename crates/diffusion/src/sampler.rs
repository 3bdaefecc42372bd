//! Samplers: pure functions from noise to a latent.

use crate::schedule::NoiseSchedule;
use burn::tensor::Tensor;

/// What a denoiser believes about a noisy latent; both `[batch, height, width, channels]`.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// The clean latent.
    pub clean: Tensor<4>,
    /// The noise that was added to it.
    pub noise: Tensor<4>,
}

/// Anything that can tell picture and noise apart.
pub trait Denoiser {
    /// The estimate for a noisy latent `[batch, height, width, channels]` at training timestep `t`.
    fn estimate(&self, noisy: Tensor<4>, t: usize) -> Estimate;
}

/// What a sampler reports after each step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Steps done, from 1.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// The timestep just left.
    pub timestep: usize,
    /// The current belief about the clean latent.
    pub clean: &'a Tensor<4>,
}

/// Settings of [`ddim`].
pub struct DdimOptions<'a> {
    /// 0 is deterministic, 1 has DDPM's variance (Song et al. 2021, eq. 16).
    pub eta: f64,
    /// Clamp of the clean estimate's absolute value; none for latents.
    pub clip: Option<f64>,
    /// Standard normal noise for step `i`; needed only where `eta > 0`.
    pub noise: Option<&'a dyn Fn(usize) -> Tensor<4>>,
}

impl Default for DdimOptions<'_> {
    fn default() -> Self {
        Self { eta: 0.0, clip: None, noise: None }
    }
}

/// Denoising diffusion implicit models (Song et al. 2021, eq. 12).
///
/// `timesteps` run from noise to picture. The `alpha_bar` after the last step is that of timestep 0,
/// as in Stable Diffusion (`set_alpha_to_one = false`).
///
/// # Shapes
/// `x`: `[batch, height, width, channels]`, standard normal; returns the clean latent, likewise.
pub fn ddim(
    denoiser: &dyn Denoiser,
    schedule: &NoiseSchedule,
    timesteps: &[usize],
    mut x: Tensor<4>,
    options: &DdimOptions<'_>,
    callback: &mut dyn FnMut(Progress<'_>),
) -> Tensor<4> {
    for (i, &t) in timesteps.iter().enumerate() {
        let Estimate { mut clean, mut noise } = denoiser.estimate(x.clone(), t);
        let alpha = schedule.alpha_bar(t);
        if let Some(limit) = options.clip {
            clean = clean.clamp(-limit, limit);
            noise = (x - clean.clone().mul_scalar(alpha.sqrt())).div_scalar((1.0 - alpha).sqrt().max(1e-8));
        }
        let next = timesteps.get(i + 1).copied().unwrap_or(0);
        let alpha_next = schedule.alpha_bar(next);
        // Eq. 16: the share of the variance that is drawn anew.
        let sigma = options.eta * ((1.0 - alpha_next) / (1.0 - alpha) * (1.0 - alpha / alpha_next)).max(0.0).sqrt();
        let direction = (1.0 - alpha_next - sigma * sigma).max(0.0).sqrt();
        x = clean.clone().mul_scalar(alpha_next.sqrt()) + noise.mul_scalar(direction);
        if sigma > 0.0
            && let Some(fresh) = options.noise
        {
            x = x + fresh(i).mul_scalar(sigma);
        }
        callback(Progress { step: i + 1, steps: timesteps.len(), timestep: t, clean: &clean });
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{ScheduleConfig, Spacing};
    use burn::tensor::{Device, TensorData};

    /// Knows the picture: every estimate is exact.
    struct Oracle<'a> {
        clean: Tensor<4>,
        schedule: &'a NoiseSchedule,
    }

    impl Denoiser for Oracle<'_> {
        fn estimate(&self, noisy: Tensor<4>, t: usize) -> Estimate {
            let [signal, sigma] = self.schedule.signal_and_noise(t);
            let clean = self.clean.clone();
            let noise = (noisy - clean.clone().mul_scalar(signal)).div_scalar(sigma);
            Estimate { clean, noise }
        }
    }

    #[test]
    fn an_oracle_leads_to_its_picture() {
        let device = Device::default();
        let schedule = NoiseSchedule::new(&ScheduleConfig::default()).unwrap();
        let clean = Tensor::from_data(TensorData::new(vec![0.5f32, -1.0, 0.25, 2.0], [1, 2, 2, 1]), &device);
        let x = Tensor::from_data(TensorData::new(vec![1.0f32, 0.3, -0.7, -1.2], [1, 2, 2, 1]), &device);
        let denoiser = Oracle { clean: clean.clone(), schedule: &schedule };
        for spacing in [Spacing::Leading, Spacing::Trailing, Spacing::Linspace] {
            let timesteps = spacing.timesteps(&schedule, 10, 1).unwrap();
            let mut steps = 0;
            let options = DdimOptions::default();
            let mut count = |p: Progress<'_>| steps = p.step;
            let out = ddim(&denoiser, &schedule, &timesteps, x.clone(), &options, &mut count);
            // The last alpha_bar is that of timestep 0, so a trace of noise (3 %) remains.
            let error: f32 = (out - clean.clone()).abs().max().into_scalar();
            assert!(error < 0.06 && steps == 10, "{spacing:?}: {error} after {steps} steps");
        }
    }
}
