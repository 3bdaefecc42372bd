//! Model configurations in the form of transformers' `config.json`.
//!
//! The readers stand beside each configuration (`from_transformers`). What the library cannot say is an error that names
//! the field: a written model must not load as something that it is not.

use crate::transformer::HiddenActivation;
use crate::vit::{OWN_TYPE, Reads};
use crate::{ClipConfig, ConfigError, ImageEncoderConfig, TextConfig, TextEncoderConfig, VisionConfig, VitConfig};
use serde_json::{Value, json};

/// Logarithm of the inverse temperature that CLIP's training starts with, as the library rounds it.
const LOGIT_SCALE: f64 = 2.6592;
/// Padding token of a `CLIPTextConfig` in the library; no computation reads it.
const PADDING: u32 = 1;

impl HiddenActivation {
    /// The name that transformers' `hidden_act` has.
    pub(crate) fn to_transformers(self) -> &'static str {
        match self {
            Self::QuickGelu => "quick_gelu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }
}

/// The number with the decimals that an `f32` has, not those of the `f64` next to it.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

impl ClipConfig {
    /// The same model as the `config.json` of a `CLIPModel`.
    ///
    /// # Errors
    /// [`ConfigError`] as of [`ClipConfig::validate`]: what cannot be built is not written.
    pub fn to_transformers(&self) -> Result<Value, ConfigError> {
        self.validate()?;
        let mut config = json!({
            "architectures": ["CLIPModel"],
            "initializer_factor": 1.0,
            "logit_scale_init_value": LOGIT_SCALE,
            "model_type": "clip",
            "projection_dim": self.projection,
            "text_config": text(&self.text, self.projection),
            "vision_config": vision(&self.vision, self.projection),
        });
        if self.logit_bias {
            // The library has no such number: features are the same with and without.
            config["logit_bias"] = true.into();
        }
        Ok(config)
    }
}

impl TextEncoderConfig {
    /// The same tower as the `config.json` of a `CLIPTextModel`, or of a `CLIPTextModelWithProjection` where it has a
    /// projection.
    ///
    /// # Errors
    /// [`ConfigError`] as of [`TextConfig::validate`]: what cannot be built is not written.
    pub fn to_transformers(&self) -> Result<Value, ConfigError> {
        self.text.validate()?;
        let class = if self.projection.is_some() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
        let mut config = text(&self.text, self.projection.unwrap_or(self.text.channels));
        config["architectures"] = json!([class]);
        Ok(config)
    }
}

impl ImageEncoderConfig {
    /// The same tower as the `config.json` of a `CLIPVisionModel`, or of a `CLIPVisionModelWithProjection` where it has
    /// a projection.
    ///
    /// # Errors
    /// [`ConfigError`] as of [`VisionConfig::validate`]: what cannot be built is not written.
    pub fn to_transformers(&self) -> Result<Value, ConfigError> {
        self.vision.validate()?;
        let class = if self.projection.is_some() { "CLIPVisionModelWithProjection" } else { "CLIPVisionModel" };
        let mut config = vision(&self.vision, self.projection.unwrap_or(self.vision.channels));
        config["architectures"] = json!([class]);
        Ok(config)
    }
}

impl VitConfig {
    /// The same model as the `config.json` of a `ViTForImageClassification`.
    ///
    /// # Errors
    /// [`ConfigError`] naming `class_tokens`, `reads` or `pooling` where the library has no such model, and as of
    /// [`VitConfig::validate`].
    pub fn to_transformers(&self) -> Result<Value, ConfigError> {
        ConfigError::check(self.reads == Reads::FirstToken, "reads", || {
            format!("is {}: transformers' ViT reads its class token", self.reads)
        })?;
        ConfigError::check(self.class_tokens == 1, "class_tokens", || {
            format!("is {}: transformers' ViT has one class token", self.class_tokens)
        })?;
        ConfigError::check(!self.pooling, "pooling", || {
            "is on: transformers' ViTForImageClassification has no layer in front of its classifier".into()
        })?;
        self.written()
    }

    /// The same as [`VitConfig::to_transformers`], with fields for what only Calotype reads: then `model_type` is `calotype_vit`,
    /// so that the library refuses it instead of reading another model.
    ///
    /// # Errors
    /// As of [`VitConfig::validate`].
    pub fn to_calotype(&self) -> Result<Value, ConfigError> {
        self.to_transformers().or_else(|_| {
            let mut config = self.written()?;
            config["model_type"] = OWN_TYPE.into();
            config["class_tokens"] = self.class_tokens.into();
            config["reads"] = self.reads.name().into();
            config["add_pooling_layer"] = self.pooling.into();
            Ok(config)
        })
    }

    fn written(&self) -> Result<Value, ConfigError> {
        self.validate()?;
        let names = |part: &dyn Fn(usize) -> (String, Value)| (0..self.labels).map(part).collect::<Value>();
        let label = |class: usize| format!("LABEL_{class}");
        Ok(json!({
            "architectures": ["ViTForImageClassification"],
            "attention_probs_dropout_prob": 0.0,
            "hidden_act": self.activation.to_transformers(),
            "hidden_dropout_prob": shortest(self.dropout),
            "hidden_size": self.channels,
            // The library counts the classes by their names.
            "id2label": names(&|class| (class.to_string(), label(class).into())),
            "image_size": self.image_size,
            "initializer_range": 0.02,
            "intermediate_size": self.mlp_channels,
            "label2id": names(&|class| (label(class), class.into())),
            "layer_norm_eps": shortest(self.norm_eps),
            "model_type": "vit",
            "num_attention_heads": self.heads,
            "num_channels": 3,
            "num_hidden_layers": self.layers,
            "patch_size": self.patch_size,
            "qkv_bias": self.qkv_bias,
        }))
    }
}

/// The fields of a `CLIPTextConfig`.
fn text(config: &TextConfig, projection: usize) -> Value {
    // Start and end of text are the last two tokens of CLIP's vocabulary. Configurations that mark the end otherwise have
    // the library's old default.
    let start = if config.end_token > 2 { config.end_token - 1 } else { 0 };
    json!({
        "attention_dropout": 0.0,
        "bos_token_id": start,
        "eos_token_id": config.end_token,
        "hidden_act": config.activation.to_transformers(),
        "hidden_size": config.channels,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": config.mlp_channels.unwrap_or(4 * config.channels),
        "layer_norm_eps": shortest(config.norm_eps),
        "max_position_embeddings": config.context_length,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": PADDING,
        "projection_dim": projection,
        "vocab_size": config.vocab_size,
    })
}

/// The fields of a `CLIPVisionConfig`.
fn vision(config: &VisionConfig, projection: usize) -> Value {
    json!({
        "attention_dropout": 0.0,
        "hidden_act": config.activation.to_transformers(),
        "hidden_size": config.channels,
        "image_size": config.image_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": config.mlp_channels.unwrap_or(4 * config.channels),
        "layer_norm_eps": shortest(config.norm_eps),
        "model_type": "clip_vision_model",
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "num_hidden_layers": config.layers,
        "patch_size": config.patch_size,
        "projection_dim": projection,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_configurations_are_read_again() {
        let hidden = |channels: usize| Some(4 * channels);
        for name in ["ViT-B-32-quickgelu", "ViT-H-14", "ViT-bigG-14"] {
            let mut clip = ClipConfig::open_clip(name).unwrap();
            clip.text.mlp_channels = hidden(clip.text.channels);
            assert_eq!(ClipConfig::from_transformers(&clip.to_transformers().unwrap()).unwrap(), clip);
            for projection in [None, Some(512)] {
                let text = TextEncoderConfig { text: clip.text.clone(), projection };
                assert_eq!(TextEncoderConfig::from_transformers(&text.to_transformers().unwrap()).unwrap(), text);
                let image = ImageEncoderConfig { vision: clip.vision.clone(), projection };
                assert_eq!(ImageEncoderConfig::from_transformers(&image.to_transformers().unwrap()).unwrap(), image);
            }
        }
        let vit = VitConfig { labels: 10, dropout: 0.1, ..VitConfig::named("L_16").unwrap() };
        assert_eq!(VitConfig::from_transformers(&vit.to_transformers().unwrap()).unwrap(), vit);
    }

    #[test]
    fn what_the_library_cannot_say_is_named() {
        for (config, field) in [
            (VitConfig { class_tokens: 2, ..VitConfig::default() }, "class_tokens"),
            (VitConfig { pooling: true, ..VitConfig::default() }, "pooling"),
            (VitConfig { reads: Reads::Patches, ..VitConfig::default() }, "reads"),
            (VitConfig { heads: 5, ..VitConfig::default() }, "heads"),
        ] {
            assert_eq!(config.to_transformers().unwrap_err().field, field);
        }
        let usual = VitConfig { labels: 3, ..VitConfig::default() };
        assert_eq!(usual.to_calotype().unwrap()["model_type"], "vit");
        for own in [
            VitConfig { class_tokens: 8, pooling: true, ..usual.clone() },
            VitConfig { class_tokens: 2, reads: Reads::ClassTokens, ..usual.clone() },
            VitConfig { class_tokens: 0, reads: Reads::Patches, ..usual },
        ] {
            let written = own.to_calotype().unwrap();
            assert_eq!(
                (written["model_type"].as_str(), VitConfig::from_transformers(&written)),
                (Some(OWN_TYPE), Ok(own))
            );
        }
    }
}
