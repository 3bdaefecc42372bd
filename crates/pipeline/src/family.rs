//! Defaults of a checkpoint's family that stand in none of its files.

use crate::error::PipelineError;
use crate::preview::LatentColours;
use calotype_checkpoints::{Checkpoint, Component, Facts};
use calotype_diffusion::samplers::SamplerConfig;

/// A checkpoint's usual sampler, guidance and image size.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// The sampler that the checkpoint asks for, or why there is none.
    pub sampler: Result<SamplerConfig, String>,
    /// The usual guidance scale.
    pub guidance: f32,
    /// Side of the latents of the usual image.
    pub latent_side: usize,
    /// True if zeros stand for a negative prompt that is not given, instead of an empty prompt's hidden states.
    pub zeros_for_no_negative: bool,
    /// Colours of the latent's channels, for previews.
    pub latent_colours: LatentColours,
}

impl Defaults {
    /// Of a checkpoint.
    ///
    /// `downscale`: pixels of an image's side to one of the latent's.
    pub fn of(checkpoint: &Checkpoint, downscale: usize) -> Self {
        let facts = Facts::of(checkpoint.family());
        Self {
            sampler: sampler_of(checkpoint, None).map_err(|error| error.to_string()),
            guidance: facts.guidance,
            latent_side: latent_side(checkpoint, downscale),
            zeros_for_no_negative: zeros_for_no_negative(checkpoint),
            latent_colours: facts.preview,
        }
    }
}

/// The sampler that a checkpoint asks for; without a scheduler configuration, its family's usual one. `name` chooses another
/// sampler on the same schedule.
///
/// # Errors
/// [`PipelineError::Sampler`] for a configuration that is not supported; [`PipelineError::Setting`] where it is not known what
/// the UNet predicts.
pub fn sampler_of(checkpoint: &Checkpoint, name: Option<&str>) -> Result<SamplerConfig, PipelineError> {
    let config = match checkpoint.files().get("scheduler/scheduler_config.json") {
        Some(text) => SamplerConfig::parse_diffusers(text)?,
        None => (Facts::of(checkpoint.family()).scheduler)(),
    };
    let mut sampler = match name {
        Some(name) => SamplerConfig::from_diffusers_as(&config, name)?,
        None => SamplerConfig::from_diffusers(&config)?,
    };
    sampler.prediction = checkpoint.prediction().ok_or_else(|| {
        PipelineError::Setting(format!(
            "{}: what the UNet predicts is not known ({}); say it with --prediction epsilon or v_prediction",
            checkpoint.path().display(),
            checkpoint.prediction_source()
        ))
    })?;
    Ok(sampler)
}

/// Side of the latents that the checkpoint was trained with.
fn latent_side(checkpoint: &Checkpoint, downscale: usize) -> usize {
    let config = checkpoint.component(Component::Unet).map(|unet| unet.config);
    let sample = config.ok().and_then(|config| config.get("sample_size")?.as_u64());
    sample.map_or(Facts::of(checkpoint.family()).size / downscale, |side| side as usize)
}

/// SDXL base was trained with zeros for empty prompts; `model_index.json` may say otherwise.
fn zeros_for_no_negative(checkpoint: &Checkpoint) -> bool {
    let index = checkpoint.files().get("model_index.json");
    let index = index.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let recorded = index.and_then(|index| index.get("force_zeros_for_empty_prompt")?.as_bool());
    recorded.unwrap_or(Facts::of(checkpoint.family()).zeros_for_empty_prompt)
}
