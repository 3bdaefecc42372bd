//! Latent diffusion: noise schedules, training objectives, guidance, samplers.
//!
//! A sampler is one pure function over a [`Denoiser`] and a sequence of timesteps; schedules are functions of
//! their own, and guidance is a [`Denoiser`] around a model.

pub mod caching;
pub mod guidance;
pub mod objective;
pub mod samplers;
pub mod schedule;

pub use caching::{CachedRun, Caching};
pub use guidance::{Conditions, GuidedUNet, rescale_guidance};
pub use objective::{Estimate, Huber, HuberSchedule, LossShape, LossWeight, Prediction, PseudoHuber};
pub use samplers::{Denoiser, Run, Sampler, SamplerConfig, SamplerError, SamplerKind, SamplerStep};
pub use schedule::{NoiseSchedule, ScheduleConfig, ScheduleError, ScheduleKind, Spacing};
