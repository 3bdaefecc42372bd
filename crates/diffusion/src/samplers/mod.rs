//! Samplers: from noise to a latent, in a number of calls of a [`Denoiser`].
//!
//! A [`Sampler`] is a configuration with its plan: the timesteps and noise levels that it visits. Its
//! [`Sampler::sample`] is a pure function of the denoiser, the first latent and the noise of each call. Each
//! family has a file of its own with its settings and one step of it; the results equal those of the
//! diffusers scheduler that is named there.

mod beta;
mod config;
mod ddim;
mod ddpm;
mod diffusers;
mod dpm;
mod dpm_singlestep;
mod error;
mod euler;
mod heun;
mod inpaint;
mod lcm;
mod plan;
mod pndm;
mod sigmas;
mod solver;
mod unipc;

pub use config::{SamplerConfig, SamplerKind};
pub use ddim::Ddim;
pub use ddpm::{Ddpm, Variance};
pub use dpm::{DpmAlgorithm, DpmMultistep, DpmRule};
pub use dpm_singlestep::DpmSinglestep;
pub use error::SamplerError;
pub use euler::{Euler, EulerAncestral};
pub use heun::Heun;
pub use inpaint::Inpainting;
pub use lcm::Lcm;
pub use pndm::Pndm;
pub use sigmas::{Curve, FinalSigma, SigmaRange};
pub use unipc::{UniPc, UniPcStep};

use crate::schedule::NoiseSchedule;
use burn::tensor::Tensor;
use plan::Plan;
use solver::Moment;
use std::ops::ControlFlow;

/// Anything that can tell picture and noise apart.
pub trait Denoiser {
    /// The network's raw output, which is what the sampler's [`crate::Prediction`] says.
    ///
    /// `input` is the noisy latent at unit variance, `[batch, height, width, channels]`; `t` is the
    /// training timestep, whole for most samplers, a fraction where noise levels lie between two of them.
    fn predict(&self, input: Tensor<4>, t: f64) -> Tensor<4>;
}

/// What a sampler reports after each call of the denoiser.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Calls done, from 1.
    pub step: usize,
    /// Calls in all.
    pub steps: usize,
    /// The timestep just left.
    pub timestep: f64,
    /// The current belief about the clean latent.
    pub clean: &'a Tensor<4>,
    /// The noisy latent that the next call starts from.
    pub latent: &'a Tensor<4>,
}

/// What surrounds a run of a sampler; see [`Run::new`] for the plain case.
pub struct Run<'a> {
    /// The call of the denoiser to begin with: 0, or what [`Sampler::first_call`] says.
    pub first: usize,
    /// Standard normal noise of the latent's shape for a call; needed where [`SamplerKind::is_stochastic`].
    pub noise: Option<&'a dyn Fn(usize) -> Tensor<4>>,
    /// Replaces the latent after a call, as inpainting does; see [`Inpainting`].
    pub edit: Option<&'a dyn Fn(usize, Tensor<4>) -> Tensor<4>>,
    /// Hears of each call, and may end the run.
    pub progress: &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
}

impl<'a> Run<'a> {
    /// From pure noise, without fresh noise or edits.
    pub fn new(progress: &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>) -> Self {
        Self { first: 0, noise: None, edit: None, progress }
    }
}

/// A sampler with the timesteps and noise levels that it visits.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    plan: Plan,
}

impl Sampler {
    /// Plans `steps` steps on the configuration's own schedule, in the single precision of published
    /// checkpoints' tables.
    ///
    /// # Errors
    /// [`SamplerError`] for impossible schedules, settings or numbers of steps.
    pub fn new(config: &SamplerConfig, steps: usize) -> Result<Self, SamplerError> {
        Self::with_schedule(config, &NoiseSchedule::in_single_precision(&config.schedule)?, steps)
    }

    /// The same on another schedule; the configuration's is used for the shape of `beta` only.
    ///
    /// # Errors
    /// As of [`Sampler::new`].
    pub fn with_schedule(config: &SamplerConfig, schedule: &NoiseSchedule, steps: usize) -> Result<Self, SamplerError> {
        config.check()?;
        Ok(Self { plan: Plan::new(config, schedule, steps)?, config: config.clone() })
    }

    /// The configuration.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// The training timestep of each call of the denoiser, from noise to picture.
    pub fn timesteps(&self) -> &[f64] {
        &self.plan.timesteps
    }

    /// Multiplies standard normal noise to give the first latent.
    pub fn init_noise_sigma(&self) -> f64 {
        self.plan.init_noise_sigma
    }

    /// The call that image-to-image of a strength in `0..=1` begins with: the last `strength` of the steps are done.
    ///
    /// # Errors
    /// [`SamplerError::Strength`] outside `0..=1` or when no step would be left.
    pub fn first_call(&self, strength: f64) -> Result<usize, SamplerError> {
        let steps = self.plan.steps;
        let done = (steps as f64 * strength) as usize;
        if !(0.0..=1.0).contains(&strength) || done == 0 {
            return Err(SamplerError::Strength { strength, steps });
        }
        Ok((steps - done.min(steps)) * self.config.kind.calls_per_step())
    }

    /// A clean latent with the noise that it has before a call; likewise `[batch, height, width, channels]`.
    ///
    /// # Errors
    /// [`SamplerError::Call`] beyond the last call.
    pub fn add_noise(&self, clean: Tensor<4>, noise: Tensor<4>, call: usize) -> Result<Tensor<4>, SamplerError> {
        let [signal, sigma] = *self.level(call)?;
        Ok(clean.mul_scalar(signal) + noise.mul_scalar(sigma))
    }

    fn level(&self, call: usize) -> Result<&[f64; 2], SamplerError> {
        let calls = self.plan.timesteps.len();
        self.plan.levels[..calls].get(call).ok_or(SamplerError::Call { call, calls })
    }

    /// Draws: the latent after the last call.
    ///
    /// # Shapes
    /// `x`: `[batch, height, width, channels]`, standard normal noise times
    /// [`Sampler::init_noise_sigma`], or the outcome of [`Sampler::add_noise`] at `run.first`; returns the
    /// clean latent, likewise.
    ///
    /// # Errors
    /// [`SamplerError::Stopped`] when the progress callback asks for it; [`SamplerError::NoNoise`] when fresh
    /// noise is needed and not given; [`SamplerError::Call`] for a first call beyond the last one.
    pub fn sample(&self, denoiser: &dyn Denoiser, mut x: Tensor<4>, run: Run<'_>) -> Result<Tensor<4>, SamplerError> {
        let Run { first, noise, edit, progress: hear } = run;
        self.level(first)?;
        if self.config.kind.is_stochastic() && noise.is_none() {
            return Err(SamplerError::NoNoise { kind: self.config.kind.name() });
        }
        let mut solver = self.config.kind.solver(&self.config, &self.plan);
        let calls = self.plan.timesteps.len();
        for call in first..calls {
            let timestep = self.plan.timesteps[call];
            let output = denoiser.predict(self.plan.scale_input(x.clone(), call), timestep);
            let fresh = |x: Tensor<4>, scale: f64| match noise {
                Some(noise) if scale != 0.0 => x + noise(call).mul_scalar(scale),
                _ => x,
            };
            let (next, clean) = solver.step(Moment { call, output, x, fresh: &fresh });
            x = match edit {
                Some(edit) => edit(call, next),
                None => next,
            };
            let (step, steps) = (call + 1 - first, calls - first);
            let progress = Progress { step, steps, timestep, clean: &clean, latent: &x };
            if hear(progress).is_break() {
                return Err(SamplerError::Stopped { step, steps });
            }
        }
        Ok(x)
    }
}
