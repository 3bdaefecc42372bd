//! The key maps of all layouts, by component.

use crate::error::LayoutError;
use crate::kinds::Component;
use crate::map::KeyMap;
use crate::networks::{component_keys, reason};
use crate::rules::{self, Departures, NemoClip, Structure};
use calotype_core::FieldsError;
use calotype_models::{AutoencoderConfig, UNetConfig};
use serde_json::Value;

/// Layers and attention by level of a UNet.
fn structure(config: &Value) -> Result<Structure, LayoutError> {
    let unet = UNetConfig::from_diffusers(config).map_err(|error| refused(Component::Unet, &error))?;
    Ok(Structure { layers: unet.layers_per_block, attention: unet.attention_levels })
}

/// Levels of an autoencoder.
fn levels(config: &Value) -> Result<usize, LayoutError> {
    let vae = AutoencoderConfig::from_diffusers(config).map_err(|error| refused(Component::Vae, &error))?;
    Ok(vae.block_out_channels.len())
}

fn refused(component: Component, error: &FieldsError) -> LayoutError {
    LayoutError::Config { component, reason: reason(error) }
}

/// The key map of a UNet or an autoencoder of the given configuration in the LDM code's files; `None` for other components,
/// whose place depends on the family.
///
/// # Errors
/// [`LayoutError::Config`].
pub fn single_file(component: Component, config: &Value) -> Result<Option<KeyMap>, LayoutError> {
    component_keys(component, config)?;
    Ok(match component {
        Component::Unet => Some(rules::ldm_unet(&structure(config)?, rules::LDM_UNET, Departures::default())),
        Component::Vae => Some(rules::ldm_vae(levels(config)?, rules::LDM_VAE, &|_| false)),
        Component::TextEncoder
        | Component::TextEncoder2
        | Component::ImageEncoder
        | Component::Clip
        | Component::Classifier
        | Component::Inception
        | Component::KerasInception
        | Component::Dinov2
        | Component::EfficientNetLite => None,
    })
}

/// A whole CLIP model under open_clip's names.
pub fn open_clip() -> KeyMap {
    rules::open_clip("", "")
}

/// All maps of a UNet of the given configuration, with their names.
///
/// # Errors
/// [`LayoutError::Config`].
pub fn unets(config: &Value) -> Result<Vec<(&'static str, KeyMap)>, LayoutError> {
    let structure = structure(config)?;
    let ldm = |prefix: &str, departures| rules::ldm_unet(&structure, prefix, departures);
    let nemo = |fused_out, inner_norms| Departures { fused_resnets: true, fused_out, inner_norms };
    Ok(vec![
        ("diffusers", KeyMap::identity()),
        ("LDM", ldm(rules::LDM_UNET, Departures::default())),
        ("LDM, averaged", ldm(rules::LDM_UNET, Departures::default()).averaged()),
        ("NeMo, fused residual blocks", ldm("model.model.diffusion_model.", nemo(false, false))),
        ("NeMo, fused output", ldm("model.model.diffusion_model.", nemo(true, false))),
        ("NeMo, inner norms", ldm("model.model._orig_mod.diffusion_model.", nemo(true, true))),
    ])
}

/// All maps of an autoencoder of the given configuration, with their names.
///
/// # Errors
/// [`LayoutError::Config`].
pub fn vaes(config: &Value) -> Result<Vec<(&'static str, KeyMap)>, LayoutError> {
    let levels = levels(config)?;
    Ok(vec![
        ("diffusers", KeyMap::identity()),
        ("diffusers before 0.12", rules::old_diffusers_vae()),
        ("LDM", rules::ldm_vae(levels, rules::LDM_VAE, &|_| false)),
        ("LDM, new names of attention", rules::ldm_vae(levels, rules::LDM_VAE, &|key| key.contains(".to_"))),
        ("LDM, diffusers' attention", rules::ldm_vae(levels, "", &|key| key.contains("to_") || key.contains("group_"))),
        ("LDM, old names of attention", rules::ldm_vae(levels, "", &|key| key.contains("query"))),
        ("LDM, alone", rules::ldm_vae(levels, "", &|_| false)),
        ("NeMo", rules::ldm_vae(levels, "model.first_stage_model.", &|_| false)),
    ])
}

/// All maps of a CLIP text model with projection, with their names.
pub fn texts() -> Vec<(&'static str, KeyMap)> {
    vec![
        ("transformers", KeyMap::identity()),
        ("transformers from 5.6 on", rules::flat_text("")),
        ("LDM, NovelAI", rules::flat_text("cond_stage_model.transformer.")),
        ("LDM, Stable Diffusion 1", rules::prefixed("cond_stage_model.transformer.")),
        ("LDM, Stable Diffusion 2", rules::open_clip_text("cond_stage_model.model.")),
        ("LDM, SDXL", rules::open_clip_text("conditioner.embedders.1.model.")),
        ("NeMo", rules::nemo_clip_text("model.cond_stage_model.model.")),
    ]
}

/// All maps of a whole CLIP model, with their names.
pub fn clips() -> Vec<(&'static str, KeyMap)> {
    vec![
        ("transformers", KeyMap::identity()),
        ("open_clip", rules::open_clip("", "")),
        ("open_clip with its text tower apart", rules::open_clip("text.", "")),
        ("open_clip, trained in parallel", rules::open_clip("", "module.")),
        ("NeMo", rules::nemo_clip("model.", NemoClip::default())),
        ("NeMo 2", rules::nemo_clip("model.", NemoClip { conv_patches: true, vision_table: true, text_table: true })),
    ]
}

/// All maps of networks that give features of pictures and are of no other use, with their names.
pub fn feature_networks() -> Vec<(&'static str, KeyMap, Component)> {
    vec![
        ("facebookresearch/dinov2", rules::facebook_dinov2(), Component::Dinov2),
        ("transformers' DINOv2 below a classifier", rules::prefixed("dinov2."), Component::Dinov2),
        ("Keras' own classifier", rules::keras_inception("predictions"), Component::KerasInception),
        ("dense layers behind Keras' network", rules::keras_inception("dense_1"), Component::KerasInception),
        ("efficientnet-lite-pytorch", KeyMap::identity(), Component::EfficientNetLite),
    ]
}

/// All maps of a ViT classifier, with their names and whether they are for one with a pooling layer.
pub fn vits() -> Vec<(&'static str, KeyMap, bool)> {
    vec![
        ("transformers", KeyMap::identity(), true),
        ("transformers' modules from 5 on", rules::new_vit(), true),
        ("timm", rules::timm(false), false),
        ("timm, mean of the patches", rules::timm(true), false),
        ("NeMo, pre-trained", rules::nemo_vit("model.", true, true), true),
        ("NeMo, fine-tuned", rules::nemo_vit("model.", false, false), false),
    ]
}
