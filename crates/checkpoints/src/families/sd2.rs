//! Stable Diffusion 2.0 and 2.1 (Stability AI, 2022), and the variant that MLPerf Training 3.1 to 5.0 trains.

use super::{Corrections, Facts, Family, Form, Numbers, PLAIN, TextFacts, TextKeys, UnetForm, schedulers};
use crate::kinds::{Component, Prediction};
use calotype_models::TextStates;
use calotype_models::tokenizer::TokenizerOptions;
use serde_json::Value;

/// Base and 768-v have the same tensors; only what they predict tells them apart.
const BY_PREDICTION: &[(Prediction, Family)] = &[(Prediction::Epsilon, Family::Sd2Base), (Prediction::V, Family::Sd2V)];

pub(super) const UNKNOWN: Facts = Facts {
    recognise: |seen| seen.is_unet(4, true) && !is_mlperf(seen),
    unet: Some(FORM),
    text_encoders: &[TEXT],
    by_prediction: BY_PREDICTION,
    doubt: Some(
        "MLPerf's variant of Stable Diffusion 2 has the same tensors with 16 norm groups: if this is one, say that the \
         family is mlperf-sd2",
    ),
    modelspec: Some("stable-diffusion-v2-512"),
    ..PLAIN
};

pub(super) const BASE: Facts =
    Facts { recognise: |_| false, prediction: Some(Prediction::Epsilon), doubt: None, ..UNKNOWN };

pub(super) const V: Facts = Facts {
    recognise: |_| false,
    scheduler: schedulers::ddim_v,
    prediction: Some(Prediction::V),
    size: 768,
    doubt: None,
    modelspec: Some("stable-diffusion-v2-768-v"),
    ..UNKNOWN
};

pub(super) const INPAINTING: Facts = Facts {
    recognise: |seen| seen.is_unet(9, true),
    unet: Some(UnetForm { channels: 9, ..FORM }),
    pipeline: "StableDiffusionInpaintPipeline",
    corrections: Corrections::INPAINTING,
    prediction: Some(Prediction::Epsilon),
    by_prediction: &[],
    doubt: None,
    modelspec: Some("stable-diffusion-v2-inpainting"),
    ..UNKNOWN
};

pub(super) const MLPERF: Facts = Facts {
    recognise: |seen| seen.is_unet(4, true) && is_mlperf(seen),
    scheduler: schedulers::ddim_v,
    prediction: Some(Prediction::V),
    by_prediction: &[],
    adjust_unet: Some(mlperf_groups),
    doubt: None,
    ..UNKNOWN
};

const FORM: UnetForm = UnetForm { channels: 4, linear: true, numbers: Numbers::None };

/// OpenCLIP ViT-H/14 without its last block in diffusers' layout.
const TEXT: TextFacts = TextFacts {
    component: Component::TextEncoder,
    tokenizer: "tokenizer",
    options: TokenizerOptions::TRANSFORMERS_EXCLAMATION,
    hidden_states: TextStates::LAST,
    single_file: TextKeys::OpenClip("cond_stage_model.model."),
};

/// Groups of the norms in MLPerf's residual blocks and in its transformers.
const MLPERF_GROUPS: [u64; 2] = [16, 32];

fn is_mlperf(seen: &Form<'_>) -> bool {
    let groups = |field: &str| seen.unet.and_then(|unet| unet[field].as_u64());
    [groups("norm_num_groups"), groups("transformer_norm_num_groups")] == MLPERF_GROUPS.map(Some)
}

fn mlperf_groups(unet: &mut Value) {
    unet["norm_num_groups"] = MLPERF_GROUPS[0].into();
    unet["transformer_norm_num_groups"] = MLPERF_GROUPS[1].into();
}
