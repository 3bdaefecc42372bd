//! Stable Diffusion 1 (CompVis and Runway, 2022) and what was trained from it.

use super::{Facts, PLAIN, TextFacts, TextKeys};
use crate::kinds::{Component, Prediction};
use calotype_models::TextStates;
use calotype_models::tokenizer::TokenizerOptions;
use serde_json::{Value, json};

pub(super) const BASE: Facts = Facts {
    recognise: |seen| seen.is_unet(4, false),
    prediction: Some(Prediction::Epsilon),
    modelspec: Some("stable-diffusion-v1"),
    ..PLAIN
};

pub(super) const INPAINTING: Facts = Facts {
    recognise: |seen| seen.is_unet(9, false),
    pipeline: "StableDiffusionInpaintPipeline",
    scheduler: ddim,
    modelspec: Some("stable-diffusion-v1-inpainting"),
    ..BASE
};

pub(super) const INSTRUCT: Facts = Facts {
    recognise: |seen| seen.is_unet(8, false),
    pipeline: "StableDiffusionInstructPix2PixPipeline",
    modelspec: None,
    ..BASE
};

/// OpenAI's CLIP ViT-L/14.
pub(super) const TEXT: TextFacts = TextFacts {
    component: Component::TextEncoder,
    tokenizer: "tokenizer",
    options: TokenizerOptions::TRANSFORMERS,
    hidden_states: TextStates::LAST,
    single_file: TextKeys::Transformers("cond_stage_model.transformer."),
};

pub(super) const PREVIEW: [[f32; 3]; 4] =
    [[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350], [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177]];

/// `scheduler/scheduler_config.json` of Stable Diffusion 1.4 and 1.5.
pub(super) fn pndm() -> Value {
    json!({
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
    })
}

/// `scheduler/scheduler_config.json` of the inpainting models.
pub(super) fn ddim() -> Value {
    json!({
        "_class_name": "DDIMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": false,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
    })
}
