//! Stable Diffusion XL (Podell et al. 2023).

use super::{
    AESTHETIC_SCORES, Corrections, Facts, Form, Numbers, PLAIN, SizeNumbers, TextFacts, TextKeys, UnetForm, schedulers,
};
use crate::kinds::{Component, Prediction};
use calotype_models::TextStates;
use calotype_models::tokenizer::TokenizerOptions;
use serde_json::json;

pub(super) const BASE: Facts = Facts {
    recognise: |seen| takes_sizes(seen) && !is_refiner(seen),
    unet: Some(FORM),
    pipeline: "StableDiffusionXLPipeline",
    index: || json!({ "force_zeros_for_empty_prompt": true }),
    text_encoders: &[TEXT, TEXT_2],
    scheduler: schedulers::euler,
    corrections: Corrections::NONE,
    prediction: Some(Prediction::Epsilon),
    guidance: 5.0,
    size: 1024,
    size_numbers: SizeNumbers::OriginalCropTarget,
    zeros_for_empty_prompt: true,
    preview: PREVIEW,
    modelspec: Some("stable-diffusion-xl-v1-base"),
    ..PLAIN
};

pub(super) const INPAINTING: Facts = Facts {
    recognise: |seen| takes_sizes(seen) && takes_channels(seen, 9),
    unet: Some(UnetForm { channels: 9, ..FORM }),
    pipeline: "StableDiffusionXLInpaintPipeline",
    index: || json!({ "force_zeros_for_empty_prompt": true, "requires_aesthetics_score": false }),
    modelspec: Some("stable-diffusion-xl-v1-inpainting"),
    ..BASE
};

pub(super) const INSTRUCT: Facts = Facts {
    recognise: |seen| takes_sizes(seen) && takes_channels(seen, 8),
    unet: Some(UnetForm { channels: 8, ..FORM }),
    pipeline: "StableDiffusionXLInstructPix2PixPipeline",
    modelspec: None,
    ..BASE
};

pub(super) const REFINER: Facts = Facts {
    recognise: |seen| takes_sizes(seen) && is_refiner(seen),
    unet: Some(UnetForm { numbers: Numbers::Scores, ..FORM }),
    pipeline: "StableDiffusionXLImg2ImgPipeline",
    index: || json!({ "force_zeros_for_empty_prompt": false, "requires_aesthetics_score": true }),
    // The pipeline lists the first encoder, too: as absent.
    text_encoders: &[TEXT, TextFacts { single_file: TextKeys::OpenClip("conditioner.embedders.0.model."), ..TEXT_2 }],
    size_numbers: SizeNumbers::OriginalCropScore { score: AESTHETIC_SCORES[0], negative_score: AESTHETIC_SCORES[1] },
    zeros_for_empty_prompt: false,
    modelspec: Some("stable-diffusion-xl-v1-refiner"),
    ..BASE
};

const FORM: UnetForm = UnetForm { channels: 4, linear: true, numbers: Numbers::Sizes };

/// OpenAI's CLIP ViT-L/14.
const TEXT: TextFacts = TextFacts {
    component: Component::TextEncoder,
    tokenizer: "tokenizer",
    options: TokenizerOptions::TRANSFORMERS,
    hidden_states: TextStates::PENULTIMATE,
    single_file: TextKeys::Transformers("conditioner.embedders.0.transformer."),
};

/// OpenCLIP ViT-bigG/14.
pub(super) const TEXT_2: TextFacts = TextFacts {
    component: Component::TextEncoder2,
    tokenizer: "tokenizer_2",
    options: TokenizerOptions::TRANSFORMERS_EXCLAMATION,
    hidden_states: TextStates::PENULTIMATE,
    single_file: TextKeys::OpenClip("conditioner.embedders.1.model."),
};

const PREVIEW: [[f32; 3]; 4] =
    [[0.3651, 0.4232, 0.4341], [-0.2533, -0.0042, 0.1068], [0.1076, 0.1111, -0.0362], [-0.3165, -0.2492, -0.2188]];

/// Width of the refiner's added conditions: the pooled text and five numbers of 256 features each.
const REFINER_ADDED: u64 = 2560;
/// The same of the base, which takes six.
const BASE_ADDED: u64 = 2816;

pub(super) fn takes_sizes(seen: &Form<'_>) -> bool {
    seen.unet.is_some_and(|unet| unet["addition_embed_type"] == "text_time")
}

fn takes_channels(seen: &Form<'_>, channels: u64) -> bool {
    seen.unet.is_some_and(|unet| unet["in_channels"].as_u64() == Some(channels))
}

fn adds(seen: &Form<'_>, width: u64) -> bool {
    seen.unet.is_some_and(|unet| unet["projection_class_embeddings_input_dim"] == width)
}

fn is_refiner(seen: &Form<'_>) -> bool {
    adds(seen, REFINER_ADDED) || (seen.has(Component::TextEncoder2) && !seen.has(Component::TextEncoder))
}

/// Whether a UNet that takes sizes is the refiner's; none where neither its weights nor its encoders show it.
pub(super) fn shows_scores(seen: &Form<'_>) -> Option<bool> {
    if adds(seen, BASE_ADDED) || adds(seen, REFINER_ADDED) {
        return Some(adds(seen, REFINER_ADDED));
    }
    let encoders = [Component::TextEncoder, Component::TextEncoder2].map(|component| seen.has(component));
    (encoders != [false; 2]).then_some(encoders == [false, true])
}
