//! Stable Diffusion XL (Podell et al. 2023).

use super::{Facts, Form, PLAIN, SizeNumbers, TextFacts, TextKeys};
use crate::kinds::{Component, Prediction};
use calotype_models::TextStates;
use calotype_models::tokenizer::TokenizerOptions;
use serde_json::{Value, json};

pub(super) const BASE: Facts = Facts {
    recognise: |seen| takes_sizes(seen) && !is_refiner(seen),
    pipeline: "StableDiffusionXLPipeline",
    index: || json!({ "force_zeros_for_empty_prompt": true }),
    text_encoders: &[TEXT, TEXT_2],
    scheduler: euler,
    prediction: Some(Prediction::Epsilon),
    guidance: 5.0,
    size: 1024,
    size_numbers: SizeNumbers::OriginalCropTarget,
    zeros_for_empty_prompt: true,
    preview: PREVIEW,
    modelspec: Some("stable-diffusion-xl-v1-base"),
    ..PLAIN
};

pub(super) const REFINER: Facts = Facts {
    recognise: |seen| takes_sizes(seen) && is_refiner(seen),
    pipeline: "StableDiffusionXLImg2ImgPipeline",
    index: || json!({ "force_zeros_for_empty_prompt": false, "requires_aesthetics_score": true }),
    // The pipeline lists the first encoder, too: as absent.
    text_encoders: &[TEXT, TextFacts { single_file: TextKeys::OpenClip("conditioner.embedders.0.model."), ..TEXT_2 }],
    size_numbers: SizeNumbers::OriginalCropScore { score: 6.0, negative_score: 2.5 },
    zeros_for_empty_prompt: false,
    modelspec: Some("stable-diffusion-xl-v1-refiner"),
    ..BASE
};

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

/// Width of the refiner's added conditions: the pooled text and five numbers of 256 features each; the base has six.
const REFINER_ADDED: u64 = 2560;

fn takes_sizes(seen: &Form<'_>) -> bool {
    seen.unet.is_some_and(|unet| unet["addition_embed_type"] == "text_time")
}

fn is_refiner(seen: &Form<'_>) -> bool {
    let added = seen.unet.is_some_and(|unet| unet["projection_class_embeddings_input_dim"] == REFINER_ADDED);
    added || (seen.has(Component::TextEncoder2) && !seen.has(Component::TextEncoder))
}

/// `scheduler/scheduler_config.json` of SDXL base 1.0.
fn euler() -> Value {
    json!({
        "_class_name": "EulerDiscreteScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
        "use_karras_sigmas": false,
    })
}
