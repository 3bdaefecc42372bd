//! Stable Diffusion 1 (CompVis and Runway, 2022) and what was trained from it.

use super::{Corrections, Facts, Numbers, PLAIN, TextFacts, TextKeys, UnetForm, schedulers};
use crate::kinds::{Component, Prediction};
use calotype_models::TextStates;
use calotype_models::tokenizer::TokenizerOptions;

pub(super) const BASE: Facts = Facts {
    recognise: |seen| seen.is_unet(4, false),
    unet: Some(FORM),
    prediction: Some(Prediction::Epsilon),
    modelspec: Some("stable-diffusion-v1"),
    ..PLAIN
};

pub(super) const INPAINTING: Facts = Facts {
    recognise: |seen| seen.is_unet(9, false),
    unet: Some(UnetForm { channels: 9, ..FORM }),
    pipeline: "StableDiffusionInpaintPipeline",
    scheduler: schedulers::ddim,
    corrections: Corrections::INPAINTING,
    modelspec: Some("stable-diffusion-v1-inpainting"),
    ..BASE
};

pub(super) const INSTRUCT: Facts = Facts {
    recognise: |seen| seen.is_unet(8, false),
    unet: Some(UnetForm { channels: 8, ..FORM }),
    pipeline: "StableDiffusionInstructPix2PixPipeline",
    corrections: Corrections::NONE,
    modelspec: None,
    ..BASE
};

const FORM: UnetForm = UnetForm { channels: 4, linear: false, numbers: Numbers::None };

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
