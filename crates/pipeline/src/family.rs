//! Defaults of a checkpoint's family that stand in none of its files.

use crate::error::PipelineError;
use crate::preview::LatentColours;
use calotype_checkpoints::{Checkpoint, Component, Corrections, Facts, PASS_OVER, SizeNumbers};
use calotype_diffusion::samplers::{SamplerConfig, SamplerError, SamplerKind};
use serde_json::Value;

/// A checkpoint's usual sampler, guidance and image size.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// The sampler that the checkpoint asks for, or why there is none.
    pub sampler: Result<SamplerConfig, String>,
    /// The usual guidance scale.
    pub guidance: f32,
    /// Height and width of the latents of the usual image.
    pub latent_size: [usize; 2],
    /// True if zeros stand for a negative prompt that is not given, instead of an empty prompt's hidden states.
    pub zeros_for_no_negative: bool,
    /// Colours of the latent's channels, for previews.
    pub latent_colours: LatentColours,
    /// What was corrected, in full sentences; what concerns the sampler is told with it ([`sampler_of`]).
    pub notes: Vec<String>,
}

impl Defaults {
    /// Of a checkpoint.
    ///
    /// `downscale`: pixels of an image's side to one of the latent's.
    pub fn of(checkpoint: &Checkpoint, downscale: usize) -> Self {
        let facts = Facts::of(checkpoint.family());
        let mut notes = Vec::new();
        Self {
            sampler: sampler_of(checkpoint, None).map(|found| found.config).map_err(|error| error.to_string()),
            guidance: facts.guidance,
            latent_size: latent_size(checkpoint, downscale, &mut notes),
            zeros_for_no_negative: zeros_for_no_negative(checkpoint),
            latent_colours: facts.preview,
            notes,
        }
    }
}

/// A checkpoint's sampler, and what its reader should know.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointSampler {
    /// The sampler.
    pub config: SamplerConfig,
    /// What was passed over or corrected, in full sentences.
    pub notes: Vec<String>,
}

/// The sampler that a checkpoint asks for; without a scheduler configuration, its family's usual one. `name` chooses another
/// sampler on the same schedule. Settings that diffusers' pipelines correct are corrected, as in a pipeline that is made with
/// that scheduler.
///
/// # Errors
/// [`PipelineError::Sampler`] for a configuration that is not supported; [`PipelineError::Setting`] where there is no UNet, it is
/// not known what it predicts, or fields of the configuration are not known.
pub fn sampler_of(checkpoint: &Checkpoint, name: Option<&str>) -> Result<CheckpointSampler, PipelineError> {
    let path = checkpoint.path().display();
    if !checkpoint.components().contains(&Component::Unet) {
        return Err(PipelineError::Setting(without_unet(checkpoint)));
    }
    if checkpoint.prediction().is_none() {
        return Err(PipelineError::Setting(format!(
            "{path}: what the UNet predicts is not known ({}); say it with --prediction epsilon or v_prediction",
            checkpoint.prediction_source()
        )));
    }
    let read = match SamplerConfig::read_diffusers(&checkpoint.scheduler()?, name) {
        Err(SamplerError::Fields(fields)) if !fields.unknown().is_empty() => {
            return Err(PipelineError::Setting(format!("{path}: scheduler: {fields}; {PASS_OVER}")));
        }
        read => read?,
    };
    let mut sampler = CheckpointSampler { config: read.config, notes: read.notes };
    correct(&mut sampler, Facts::of(checkpoint.family()));
    Ok(sampler)
}

/// Why a checkpoint that has no UNet draws nothing, and what does.
fn without_unet(checkpoint: &Checkpoint) -> String {
    let (path, held) = (checkpoint.path().display(), checkpoint.components());
    let what = match held[..] {
        [Component::Vae] => "this is an autoencoder: it makes images of latents, and cannot draw by itself",
        [Component::Clip] => "this is a CLIP model: it compares images with texts, and cannot draw",
        [Component::TextEncoder | Component::TextEncoder2] => "this is a text encoder, which cannot draw by itself",
        [
            Component::ImageEncoder
            | Component::Classifier
            | Component::Inception
            | Component::KerasInception
            | Component::Dinov2
            | Component::EfficientNetLite,
        ] => "this is a network that looks at images, and cannot draw",
        _ => {
            let names: Vec<&str> = held.iter().map(|component| component.name()).collect();
            return format!(
                "{path}: there is no UNet, which draws, only {}; put its folder `unet` beside them, or name another checkpoint",
                names.join(", ")
            );
        }
    };
    format!(
        "{path}: {what}; name a checkpoint with a UNet, such as the folder of a run that trained one (calotype recipes lists \
         recipes for that)"
    )
}

/// Corrects what diffusers' pipeline of the family corrects when it is made with this scheduler.
fn correct(sampler: &mut CheckpointSampler, facts: &Facts) {
    let Corrections { steps_offset, clip_sample, skip_prk_steps, .. } = facts.corrections;
    let CheckpointSampler { config, notes } = sampler;
    if config.kind.is_edm() {
        return;
    }
    let mut note = |what: String| notes.push(format!("the scheduler's {what}, as diffusers' {} does", facts.pipeline));
    if steps_offset && config.steps_offset != 1 {
        note(format!("`steps_offset` of {} is taken as 1", config.steps_offset));
        config.steps_offset = 1;
    }
    if let Some(clip) = config.kind.clip_mut().filter(|clip| clip_sample && clip.is_some()) {
        note("`clip_sample` is taken as false".to_owned());
        *clip = None;
    }
    if let SamplerKind::Pndm(pndm) = &mut config.kind
        && skip_prk_steps
        && !pndm.skip_prk
    {
        note("`skip_prk_steps` is taken as true".to_owned());
        pndm.skip_prk = true;
    }
}

/// Height and width of the latents that the checkpoint was trained with.
fn latent_size(checkpoint: &Checkpoint, downscale: usize, notes: &mut Vec<String>) -> [usize; 2] {
    /// The side that takes the place of a wrong one.
    const SIDE: usize = 64;
    let facts = Facts::of(checkpoint.family());
    let usual = [facts.size / downscale; 2];
    let Ok(unet) = checkpoint.component(Component::Unet) else { return usual };
    let side = |value: &Value| value.as_u64().and_then(|side| usize::try_from(side).ok());
    let sample = &unet.config["sample_size"];
    let sides = match sample.as_array().map(Vec::as_slice) {
        Some([height, width]) => side(height).zip(side(width)).map(<[usize; 2]>::from),
        _ => side(sample).map(|side| [side; 2]),
    };
    let old = unet.config["_diffusers_version"].as_str().is_some_and(|version| is_before(version, [0, 9]));
    match (facts.corrections.sample_size && old, side(sample)) {
        (true, Some(side)) if side < SIDE => {
            notes.push(format!(
                "the UNet's `sample_size` of {side} is taken as {SIDE}, as diffusers' {} does with files of before 0.9",
                facts.pipeline
            ));
            [SIDE; 2]
        }
        _ => sides.unwrap_or(usual),
    }
}

/// Whether a version of diffusers (such as `0.6.0.dev0`) is below another one, by its first two numbers.
fn is_before(version: &str, other: [u32; 2]) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|(major, minor)| [major, minor] < other)
}

/// SDXL base was trained with zeros for empty prompts; `model_index.json` may say otherwise. Where there is an index that
/// says nothing, the default of all of diffusers' pipelines of SDXL holds, the refiner's too.
fn zeros_for_no_negative(checkpoint: &Checkpoint) -> bool {
    let facts = Facts::of(checkpoint.family());
    let index = checkpoint.files().get("model_index.json");
    let index = index.and_then(|text| serde_json::from_str::<Value>(text).ok());
    match index.map(|index| index["force_zeros_for_empty_prompt"].as_bool()) {
        Some(said) => said.unwrap_or(facts.size_numbers != SizeNumbers::None),
        None => facts.zeros_for_empty_prompt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (version, before) in [("0.6.0", true), ("0.8.1.dev0", true), ("0.9.0.dev0", false), ("0.10.0", false)] {
            assert_eq!(is_before(version, [0, 9]), before, "{version}");
        }
        assert!(!is_before("1.0", [0, 9]) && !is_before("new", [0, 9]) && !is_before("0", [0, 9]));
    }
}
