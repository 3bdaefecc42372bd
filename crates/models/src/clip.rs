//! CLIP: a text tower and an image tower in one space.

use crate::ConfigError;
use crate::init::Init;
use crate::layers::Linear;
use crate::text::{TextConfig, TextModel, pooled, projection};
use crate::transformer::HiddenActivation;
use crate::vision::{VisionConfig, VisionModel};
use burn::module::{Module, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};
use calotype_core::fields::{Fields, FieldsError};
use serde::{Deserialize, Serialize};

/// Both towers and their common space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipConfig {
    /// Dimension of the common space.
    pub projection: usize,
    /// The text tower.
    pub text: TextConfig,
    /// The image tower.
    pub vision: VisionConfig,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self { projection: 1024, text: TextConfig::default(), vision: VisionConfig::default() }
    }
}

/// A row of [`OPEN_CLIP`].
struct OpenClip {
    name: &'static str,
    projection: usize,
    /// Patch size, channels, channels between a block's linear layers, layers, heads.
    vision: [usize; 5],
    /// Channels, layers, heads.
    text: [usize; 3],
}

const fn row(name: &'static str, projection: usize, vision: [usize; 5], text: [usize; 3]) -> OpenClip {
    OpenClip { name, projection, vision, text }
}

/// The model configurations of open_clip 3.3. Images have 224 x 224 pixels.
const OPEN_CLIP: [OpenClip; 6] = [
    row("ViT-B-32", 512, [32, 768, 3072, 12, 12], [512, 12, 8]),
    row("ViT-B-16", 512, [16, 768, 3072, 12, 12], [512, 12, 8]),
    row("ViT-L-14", 768, [14, 1024, 4096, 24, 16], [768, 12, 12]),
    row("ViT-H-14", 1024, [14, 1280, 5120, 32, 16], [1024, 24, 16]),
    row("ViT-g-14", 1024, [14, 1408, 6144, 40, 16], [1024, 24, 16]),
    row("ViT-bigG-14", 1280, [14, 1664, 8192, 48, 16], [1280, 32, 20]),
];

/// The ending that open_clip appends to the names of models with OpenAI's activation.
const QUICK_GELU: &str = "-quickgelu";

impl ClipConfig {
    /// By open_clip's name, such as `ViT-H-14`; with `-quickgelu` appended, with the activation of OpenAI's weights.
    ///
    /// # Errors
    /// [`ConfigError`] that lists the known names.
    pub fn open_clip(name: &str) -> Result<Self, ConfigError> {
        let (base, activation) = match name.strip_suffix(QUICK_GELU) {
            Some(base) => (base, HiddenActivation::QuickGelu),
            None => (name, HiddenActivation::Gelu),
        };
        let row = OPEN_CLIP.iter().find(|row| row.name == base).ok_or_else(|| {
            let known = OPEN_CLIP.map(|row| row.name).join(", ");
            ConfigError { field: "open_clip model", problem: format!("`{name}` is not among {known}") }
        })?;
        let [patch_size, channels, mlp_channels, layers, heads] = row.vision;
        let mlp_channels = Some(mlp_channels);
        let vision =
            VisionConfig { patch_size, channels, mlp_channels, layers, heads, activation, ..VisionConfig::default() };
        let [channels, layers, heads] = row.text;
        let text = TextConfig { channels, layers, heads, activation, ..TextConfig::default() };
        Ok(Self { projection: row.projection, text, vision })
    }

    /// From the `config.json` of a `CLIPModel`, as transformers writes it.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is malformed, absurdly large, or would change results and is not supported.
    pub fn from_transformers(config: &serde_json::Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new("CLIPModel", config);
        fields.kind("model_type", &["clip"]);
        let clip = Self {
            projection: fields.size("projection_dim", 512),
            text: fields.nested("text_config", TextConfig::read),
            vision: fields.nested("vision_config", VisionConfig::read),
        };
        fields.finish_checked(clip, Self::validate)
    }

    /// Checks that heads divide channels and patches divide the image.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.text.validate()?;
        self.vision.validate()
    }

    /// Both towers with random weights, initialised as the CLIP reference does.
    ///
    /// # Errors
    /// As [`ClipConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<Clip, ConfigError> {
        self.validate()?;
        Ok(Clip {
            text_model: self.text.init(init)?,
            vision_model: self.vision.init(init)?,
            visual_projection: projection(init, self.vision.channels, self.projection),
            text_projection: projection(init, self.text.channels, self.projection),
            // ln(1 / 0.07), the reference's initial temperature.
            logit_scale: init.constant([1], (1.0f32 / 0.07).ln()),
        })
    }
}

/// Both towers with their projections (`CLIPModel` of transformers; Radford et al. 2021).
#[derive(Module, Debug)]
pub struct Clip {
    /// The text tower.
    pub text_model: TextModel,
    /// The image tower.
    pub vision_model: VisionModel,
    visual_projection: Linear,
    text_projection: Linear,
    logit_scale: Param<Tensor<1>>,
}

/// Largest inverse temperature of the contrastive loss, as in the reference.
const MAX_LOGIT_SCALE: f32 = 100.0;

impl Clip {
    /// Unit vectors of images in the common space, as `f32`.
    ///
    /// # Shapes
    /// `[batch, size, size, 3]` in `-1..1` to `[batch, projection]`
    pub fn image_features(&self, images: Tensor<4>) -> Tensor<2> {
        normalise(self.visual_projection.forward(self.vision_model.pooled(images)))
    }

    /// Unit vectors of prompts in the common space, read at the end-of-text token, as `f32`; computed with activations of
    /// type `dtype`.
    ///
    /// # Shapes
    /// `ids`: `[batch, tokens]`, `ends`: the position of each row's end token; to
    /// `[batch, projection]`
    pub fn text_features(&self, ids: Tensor<2, Int>, ends: &[usize], dtype: DType) -> Tensor<2> {
        let states = self.text_model.states(ids, dtype);
        normalise(self.text_projection.forward(pooled(states, ends)))
    }

    /// Symmetric InfoNCE with the learned temperature (Radford et al. 2021, figure 3), shape `[1]`.
    ///
    /// Row `i` of both belongs together; all other rows are negatives.
    pub fn contrastive_loss(&self, images: Tensor<2>, texts: Tensor<2>) -> Tensor<1> {
        let scale = self.logit_scale.val().exp().clamp_max(MAX_LOGIT_SCALE);
        let logits = images.matmul(texts.transpose()) * scale.unsqueeze();
        let rows = diagonal_mean(log_softmax(logits.clone(), 1));
        let columns = diagonal_mean(log_softmax(logits, 0));
        (rows + columns).mul_scalar(-0.5)
    }
}

fn normalise(x: Tensor<2>) -> Tensor<2> {
    let x = x.cast(DType::F32);
    let length = x.clone().powi_scalar(2).sum_dim(1).add_scalar(1e-12).sqrt();
    x / length
}

/// The mean of a square matrix's diagonal.
fn diagonal_mean(matrix: Tensor<2>) -> Tensor<1> {
    let [n, _] = matrix.dims();
    let eye = Tensor::<2>::eye(n, &matrix.device());
    (matrix * eye).sum().div_scalar(n as f32)
}
