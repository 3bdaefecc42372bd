//! Latent diffusion: noise schedules, training objectives, guidance, samplers, pipelines.
//!
//! A sampler is one pure function over a [`Denoiser`] and a sequence of timesteps; schedules and
//! timestep spacings are functions of their own, and guidance is a [`Denoiser`] around a model.

pub mod guidance;
pub mod objective;
pub mod pipeline;
pub mod sampler;
pub mod schedule;

pub use guidance::GuidedUNet;
pub use objective::Prediction;
pub use pipeline::{GenerateOptions, TextToImage, initial_latents};
pub use sampler::{DdimOptions, Denoiser, Estimate, Progress, ddim};
pub use schedule::{NoiseSchedule, ScheduleConfig, ScheduleError, ScheduleKind, Spacing};
