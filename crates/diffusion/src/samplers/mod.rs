//! Samplers: from noise to a latent, in a number of calls of a [`Denoiser`].
//!
//! A [`Sampler`] is a configuration with the timesteps and noise levels that it visits. Its [`Sampler::sample`] is a pure
//! function of the denoiser, the first latent and the noise of each call.
//!
//! A sampler is one file and one row of the table below: the file holds its settings, the timesteps that it visits, one
//! step of it, and the fields of the diffusers scheduler whose results it equals. Format it with `rustfmt`: `cargo fmt`
//! does not see the modules that the table declares.

mod beta;
mod config;
mod diffusers;
mod dpm;
mod edm;
mod error;
mod foreign;
mod handover;
mod inpaint;
mod settings;
mod sigmas;
mod solver;
mod timetable;
mod visits;

pub use config::SamplerConfig;
pub use diffusers::ReadScheduler;
pub use dpm::{DpmAlgorithm, DpmRule};
pub use edm::{EdmCurve, EdmLevels};
pub use error::SamplerError;
pub use foreign::ForeignSampler;
pub use inpaint::Inpainting;
pub use sigmas::{Curve, FinalSigma, SigmaRange};

use crate::schedule::NoiseSchedule;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use solver::StepInput;
use std::ops::ControlFlow;
use timetable::Timetable;

settings::samplers! {
    /// Denoising diffusion implicit models.
    ddim::Ddim = "ddim";
    /// Ancestral sampling of denoising diffusion probabilistic models.
    ddpm::Ddpm = "ddpm";
    /// Pseudo numerical methods; PLMS where the Runge-Kutta steps are skipped.
    pndm::Pndm = "pndm";
    /// Multistep DPM-Solver, DPM-Solver++ and their stochastic variants.
    dpm_multistep::DpmMultistep = "dpm_multistep";
    /// Singlestep DPM-Solver and DPM-Solver++.
    dpm_singlestep::DpmSinglestep = "dpm_singlestep";
    /// Euler's method in the noise level.
    euler::Euler = "euler";
    /// Euler's method with fresh noise.
    euler_ancestral::EulerAncestral = "euler_ancestral";
    /// Heun's method in the noise level: two calls of the denoiser in a step.
    heun::Heun = "heun";
    /// Unified predictor-corrector.
    unipc::UniPc = "unipc";
    /// Latent consistency models.
    lcm::Lcm = "lcm";
    /// Trajectory consistency distillation.
    tcd::Tcd = "tcd";
    /// Euler's method on EDM's noise levels.
    edm_euler::EdmEuler = "edm_euler";
    /// Multistep DPM-Solver++ on EDM's noise levels.
    edm_dpm_multistep::EdmDpmMultistep = "edm_dpm_multistep";
}

impl SamplerKind {
    /// The sampler of a [`SamplerKind::name`], with its default settings.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|kind| kind.name() == name)
    }

    /// True if a step draws fresh noise.
    pub fn is_stochastic(&self) -> bool {
        self.settings().is_stochastic()
    }

    /// True if it takes EDM's noise levels, not those of discrete timesteps.
    pub fn is_edm(&self) -> bool {
        ROWS.iter().any(|row| row.name == self.name() && row.defaults.edm)
    }

    /// Calls of the denoiser in one step.
    pub fn calls_per_step(&self) -> usize {
        self.settings().calls_per_step()
    }

    /// The curve of the noise levels; none for samplers that visit the levels of the timesteps only.
    pub fn curve_mut(&mut self) -> Option<&mut Curve> {
        self.settings_mut().curve_mut()
    }

    /// The share of fresh noise, 0 to 1; none for samplers in which it cannot be chosen.
    pub fn eta_mut(&mut self) -> Option<&mut f64> {
        self.settings_mut().eta_mut()
    }

    /// The clamp of the clean estimate's absolute value; none for samplers that have none.
    pub fn clip_mut(&mut self) -> Option<&mut Option<f64>> {
        self.settings_mut().clip_mut()
    }
}

/// Anything that can tell image and noise apart.
pub trait Denoiser {
    /// The network's raw output: the quantity that the sampler's [`crate::Prediction`] names, likewise
    /// `[batch, height, width, channels]`.
    ///
    /// `input` is the noisy latent at unit variance, `[batch, height, width, channels]`; `t` is the
    /// training timestep, whole for most samplers, a fraction where noise levels lie between two of them.
    fn predict(&self, input: Tensor<4>, t: f64) -> Tensor<4>;
}

/// The state after a call of the denoiser, for observers.
#[derive(Debug)]
pub struct SamplerStep<'a> {
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

/// The surroundings of a run of a sampler; see [`Run::new`] for the plain case.
pub struct Run<'a> {
    /// The call of the denoiser to begin with: 0, or what [`Sampler::first_call`] or [`Sampler::taken_over_at`] says.
    pub first: usize,
    /// The call to end before, for [`Sampler::handed_over_at`]; none: all of them are made.
    pub end: Option<usize>,
    /// Standard normal noise of the latent's shape for a call; needed where [`SamplerKind::is_stochastic`].
    pub noise: Option<&'a dyn Fn(usize) -> Tensor<4>>,
    /// Replaces the latent after a call, as inpainting does; see [`Inpainting`].
    pub edit: Option<&'a dyn Fn(usize, Tensor<4>) -> Tensor<4>>,
    /// Is called after each call of the denoiser, and may end the run.
    pub observe: &'a mut dyn FnMut(SamplerStep<'_>) -> ControlFlow<()>,
}

impl<'a> Run<'a> {
    /// From pure noise, without fresh noise or edits.
    pub fn new(observe: &'a mut dyn FnMut(SamplerStep<'_>) -> ControlFlow<()>) -> Self {
        Self { first: 0, end: None, noise: None, edit: None, observe }
    }
}

/// A sampler with the timesteps and noise levels that it visits.
///
/// ```
/// use burn::tensor::{Device, Tensor, TensorData};
/// use calotype_diffusion::{Denoiser, Run, Sampler, SamplerConfig};
/// use std::ops::ControlFlow;
///
/// /// Believes that all of the latent is noise.
/// struct Pessimist;
///
/// impl Denoiser for Pessimist {
///     fn predict(&self, input: Tensor<4>, _t: f64) -> Tensor<4> {
///         input
///     }
/// }
///
/// let sampler = Sampler::new(&SamplerConfig::default(), 20)?;
/// let noise = Tensor::<4>::from_data(TensorData::new(vec![1f32, -1.0, 0.5, 0.0], [1, 2, 2, 1]), &Device::default());
/// let mut calls = 0;
/// let mut observe = |step: calotype_diffusion::SamplerStep<'_>| {
///     calls = step.step;
///     ControlFlow::Continue(())
/// };
/// let latent = sampler.sample(&Pessimist, noise.mul_scalar(sampler.init_noise_sigma()), Run::new(&mut observe))?;
/// assert_eq!((calls, latent.dims()), (20, [1, 2, 2, 1]));
/// # Ok::<(), calotype_diffusion::SamplerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    timetable: Timetable,
}

impl Sampler {
    /// Takes `steps` steps on the configuration's own schedule, in the single precision of published
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
        Ok(Self { timetable: Timetable::new(config, schedule, steps)?, config: config.clone() })
    }

    /// The configuration.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// The training timestep of each call of the denoiser, from noise to image.
    pub fn timesteps(&self) -> &[f64] {
        &self.timetable.timesteps
    }

    /// Multiplies standard normal noise to give the first latent.
    pub fn init_noise_sigma(&self) -> f64 {
        self.timetable.init_noise_sigma
    }

    /// The call that image-to-image of a strength in `0..=1` begins with: the last `strength` of the steps are done.
    ///
    /// # Errors
    /// [`SamplerError::Strength`] outside `0..=1` or when no step would be left.
    pub fn first_call(&self, strength: f64) -> Result<usize, SamplerError> {
        let steps = self.timetable.steps;
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
        let calls = self.timetable.timesteps.len();
        self.timetable.levels[..calls].get(call).ok_or(SamplerError::Call { call, calls })
    }

    /// Draws: the latent after the last call.
    ///
    /// # Shapes
    /// `x`: `[batch, height, width, channels]`, standard normal noise times
    /// [`Sampler::init_noise_sigma`], or the outcome of [`Sampler::add_noise`] at `run.first`; returns the
    /// clean latent, likewise; with `run.end` the noisy latent that the next call would have started from.
    ///
    /// # Errors
    /// [`SamplerError::Stopped`] when the observer asks for it; [`SamplerError::NoNoise`] when fresh
    /// noise is needed and not given; [`SamplerError::Call`] for a first call beyond the last one.
    pub fn sample(&self, denoiser: &dyn Denoiser, mut x: Tensor<4>, run: Run<'_>) -> Result<Tensor<4>, SamplerError> {
        let Run { first, end, noise, edit, observe } = run;
        self.level(first)?;
        if self.config.kind.is_stochastic() && noise.is_none() {
            return Err(SamplerError::NoNoise { kind: self.config.kind.name() });
        }
        let mut solver = self.config.kind.settings().solver(&self.config, &self.timetable);
        let calls = end.unwrap_or(usize::MAX).min(self.timetable.timesteps.len());
        for call in first..calls {
            let timestep = self.timetable.timesteps[call];
            let output = denoiser.predict(self.timetable.scale_input(x.clone(), call), timestep);
            let fresh = |x: Tensor<4>, scale: f64| match noise {
                Some(noise) if scale != 0.0 => x + noise(call).mul_scalar(scale),
                _ => x,
            };
            let (next, clean) = solver.step(StepInput { call, output, x, fresh: &fresh });
            x = match edit {
                Some(edit) => edit(call, next),
                None => next,
            };
            let (step, steps) = (call + 1 - first, calls - first);
            if observe(SamplerStep { step, steps, timestep, clean: &clean, latent: &x }).is_break() {
                return Err(SamplerError::Stopped { step, steps });
            }
        }
        Ok(x)
    }
}
