//! Latent diffusion: noise schedules, training objectives, guidance, samplers, pipelines.
//!
//! A sampler is one pure function over a [`Denoiser`] and a sequence of timesteps; schedules are functions of
//! their own, and guidance is a [`Denoiser`] around a model.

pub mod guidance;
pub mod loading;
pub mod noise;
pub mod objective;
pub mod pipeline;
pub mod prompts;
pub mod samplers;
pub mod schedule;
pub mod stable_diffusion;

pub use guidance::{Conditions, GuidedUNet, rescale_guidance};
pub use noise::{NoiseKind, PictureNoise};
pub use objective::{Estimate, Prediction};
pub use pipeline::{GenerateOptions, TextToImage};
pub use samplers::{Denoiser, Progress, Run, Sampler, SamplerConfig, SamplerError, SamplerKind};
pub use schedule::{NoiseSchedule, ScheduleConfig, ScheduleError, ScheduleKind, Spacing};
