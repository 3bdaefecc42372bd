//! Pictures that a diffusion run draws while it trains: the network of the moment between the text encoder and the autoencoder
//! that it belongs with.

use crate::config::{SettingError, check};
use crate::export::{DiffusionExport, DiffusionParts, scheduler};
use crate::hooks::PreviewSettings;
use crate::task::BoxError;
use burn::tensor::Device;
use calotype_checkpoints::loading::whole;
use calotype_checkpoints::{Checkpoint, Component, Facts};
use calotype_data::image::RgbImage;
use calotype_diffusion::samplers::SamplerConfig;
use calotype_diffusion::{Prediction, Sampler, ScheduleConfig};
use calotype_models::AutoencoderConfig;
use calotype_ops::Precision;
use calotype_pipeline::encoders::TextEncoder;
use calotype_pipeline::network::{Network, Placement};
use calotype_pipeline::{Defaults, LoadOptions, Parts, Pipeline, Request, Settings};
use std::sync::Arc;

/// Sampling steps where the recipe says none.
const STEPS: usize = 25;
/// Classifier-free guidance where the recipe says none: that of Stable Diffusion 1 and 2.
const GUIDANCE: f32 = 7.5;

/// Refuses settings that nothing can be drawn by.
///
/// # Errors
/// [`SettingError`] naming the key.
pub(crate) fn check_settings(settings: &PreviewSettings) -> Result<(), SettingError> {
    check(!settings.prompts.is_empty(), "hooks.preview.prompts", || {
        "are what a run of this kind draws: name at least one, such as [\"a red circle\"]".to_owned()
    })
}

/// Refuses a number of steps that the sampler cannot take on the run's schedule.
///
/// # Errors
/// [`SettingError`] naming the key.
pub(crate) fn check_steps(
    settings: &PreviewSettings,
    schedule: &ScheduleConfig,
    prediction: Prediction,
) -> Result<(), SettingError> {
    let steps = settings.steps.unwrap_or(STEPS);
    let sampler = SamplerConfig::from_diffusers(&scheduler(schedule, prediction)).map_err(|error| error.to_string());
    let sampler = sampler.and_then(|config| Sampler::new(&config, steps).map_err(|error| error.to_string()));
    sampler.map(drop).map_err(|problem| SettingError { key: "hooks.preview.steps", problem })
}

/// Refuses a run whose text encoder or autoencoder is not at hand, which the table `key` draws with. `side`: of an image in pixels.
///
/// # Errors
/// [`SettingError`] saying what is missing.
pub(crate) fn check_parts(
    key: &'static str,
    parts: &DiffusionParts,
    device: &Device,
    side: usize,
) -> Result<(), SettingError> {
    networks(parts, device, side).map(drop).map_err(|problem| SettingError { key, problem })
}

/// Draws the prompts, each named by itself. The images of a prompt at all previews of a run begin with the same noise.
///
/// # Errors
/// Those of opening the networks and of drawing.
pub(crate) fn draw(
    run: &DiffusionExport<'_>,
    settings: &PreviewSettings,
    precision: Precision,
    device: &Device,
) -> Result<Vec<(String, RgbImage)>, BoxError> {
    let pipeline = pipeline(run, precision, device)?;
    let request = |(number, prompt): (usize, &String)| Request {
        seed: settings.seed.unwrap_or(0),
        number: number as u64,
        guidance: Some(settings.guidance.unwrap_or(GUIDANCE)),
        ..Request::new(prompt)
    };
    let requests: Vec<Request> = settings.prompts.iter().enumerate().map(request).collect();
    let sampling = Settings { steps: settings.steps.unwrap_or(STEPS), ..Settings::default() };
    let images = pipeline.images(&requests, &sampling)?;
    let names = settings.prompts.iter().map(|prompt| format!("preview/{prompt}"));
    Ok(names.zip(images).collect())
}

/// The network in a pipeline that lives as long as one preview: what is read for it does not stay in memory beside the training.
fn pipeline(run: &DiffusionExport<'_>, precision: Precision, device: &Device) -> Result<Pipeline, BoxError> {
    let [height, width, _] = run.latent;
    let (text, checkpoint) = networks(run.parts, device, height * 8)?;
    let placement = Placement { device: device.clone(), dtype: precision.dtype(device), adapters: None };
    Ok(Pipeline::from_parts(Parts {
        name: checkpoint.path().to_owned(),
        defaults: Defaults {
            sampler: Ok(SamplerConfig::from_diffusers(&scheduler(run.schedule, run.prediction))?),
            guidance: GUIDANCE,
            latent_size: [height, width],
            zeros_for_no_negative: false,
            latent_colours: Facts::of(None).preview,
            notes: Vec::new(),
        },
        text_encoders: vec![text],
        unet: Network::loaded(checkpoint.path(), run.config.clone(), run.model.clone()),
        autoencoder: autoencoder(&checkpoint, run.scale_factor, &placement)?,
        options: LoadOptions {
            device: device.clone(),
            precision,
            start_images: false,
            low_memory: true,
            ..LoadOptions::default()
        },
    }))
}

/// The autoencoder's decoder with the scaling factor of training.
fn autoencoder(
    checkpoint: &Checkpoint,
    scale_factor: f64,
    placement: &Placement,
) -> Result<Network<AutoencoderConfig>, BoxError> {
    let build = AutoencoderConfig::init_decoder;
    let own: Network<AutoencoderConfig> = Network::open_as(checkpoint, Component::Vae, build, placement)?;
    let config = AutoencoderConfig { scaling_factor: Some(scale_factor as f32), ..own.config().clone() };
    let source = Arc::new(whole(checkpoint, Component::Vae)?);
    Ok(Network::from_source(checkpoint.path(), Component::Vae, config, source, build, placement)?)
}

/// The text encoder, and the checkpoint of the autoencoder; or what is missing.
fn networks(parts: &DiffusionParts, device: &Device, side: usize) -> Result<(TextEncoder, Checkpoint), String> {
    let mut notes = parts.notes.clone();
    let text = parts.open_text(device, &mut notes).and(parts.text.as_ref());
    let autoencoder = parts.open_autoencoder(device, side, &mut notes);
    match (text, autoencoder) {
        (Some(text), Some(autoencoder)) => {
            let encoder = TextEncoder::open(&text.settings, device).map_err(|error| error.to_string())?;
            Ok((encoder, autoencoder))
        }
        (text, _) => {
            let (missing, key) =
                if text.is_none() { ("text encoder", "text.model") } else { ("autoencoder", "autoencoder") };
            let why: Vec<String> = notes.iter().map(|note| format!(" ({note})")).collect();
            Err(format!(
                "draws with the run's text encoder and autoencoder, and its {missing} is not at hand{}; name it by the recipe's \
                 {key}, or train on a precached dataset whose encoders.json names it",
                why.concat()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_draws_needs_prompts() {
        let settings = |text: &str| toml::from_str::<PreviewSettings>(text).unwrap();
        assert_eq!(check_settings(&settings("every = 8")).unwrap_err().key, "hooks.preview.prompts");
        let drawing = settings("every = 8\nprompts = [\"a cat\", \"a boat\"]\nsteps = 4\nguidance = 3.0\nseed = 7");
        assert!(check_settings(&drawing).is_ok() && drawing.validate().is_ok());
        assert_eq!(drawing.without_drawing().unwrap_err().key, "hooks.preview");
        assert!(settings("every = 8").without_drawing().is_ok());
        let twice = settings("every = 8\nprompts = [\"a cat\", \"a cat\"]").validate().unwrap_err();
        assert!(twice.key == "hooks.preview.prompts" && twice.problem.contains("`a cat` twice"), "{twice}");
        assert_eq!(settings("every = 8\nsteps = 0").validate().unwrap_err().key, "hooks.preview.steps");
        for guidance in ["nan", "inf", "-1e300"] {
            let error = settings(&format!("every = 8\nguidance = {guidance}")).validate().unwrap_err();
            assert_eq!(error.key, "hooks.preview.guidance", "{guidance}");
        }
    }

    #[test]
    fn more_steps_than_the_schedule_has_are_refused() {
        let check = |steps: usize| {
            let settings: PreviewSettings = toml::from_str(&format!("every = 8\nsteps = {steps}")).unwrap();
            check_steps(&settings, &ScheduleConfig::default(), Prediction::Epsilon)
        };
        assert!(check(25).is_ok());
        let error = check(1001).unwrap_err();
        assert!(error.key == "hooks.preview.steps" && error.problem.contains("1000"), "{error}");
    }
}
