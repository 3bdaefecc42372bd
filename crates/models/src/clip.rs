//! CLIP: a text tower and an image tower in one space.

use crate::ConfigError;
use crate::init::Init;
use crate::layers::Linear;
use crate::parallel::{TensorParallel, check_divides};
use crate::recompute::Recompute;
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
    /// True if a number is added to all logits, as the sigmoid loss needs one (Zhai et al. 2023, section 3.2).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub logit_bias: bool,
}

impl Default for ClipConfig {
    fn default() -> Self {
        let (text, vision) = (TextConfig::default(), VisionConfig::default());
        Self { projection: 1024, text, vision, logit_bias: false }
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
        Ok(Self { projection: row.projection, text, vision, logit_bias: false })
    }

    /// From the `config.json` of a `CLIPModel`, as transformers writes it. One more field says what open_clip's models may have:
    /// `logit_bias`.
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
            logit_bias: fields.get("logit_bias", false),
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

    /// Checks that processes can share the layers of both towers; see [`Clip::part_of`].
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field that they do not divide.
    pub fn check_parts(&self, processes: usize) -> Result<(), ConfigError> {
        let Self { text, vision, .. } = self;
        let hidden = |given: Option<usize>, channels: usize| given.unwrap_or(4 * channels);
        let text = [("text.heads", text.heads), ("text.mlp_channels", hidden(text.mlp_channels, text.channels))];
        let sides = hidden(vision.mlp_channels, vision.channels);
        let vision = [("vision.heads", vision.heads), ("vision.mlp_channels", sides)];
        check_divides(text, processes).and_then(|()| check_divides(vision, processes))
    }

    /// Both towers with random weights, initialised as the CLIP reference does.
    ///
    /// # Errors
    /// As [`ClipConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<Clip, ConfigError> {
        self.init_at(init, initial_logit_scale(), LOGIT_BIAS)
    }

    /// [`ClipConfig::init`] with other initial values of the inverse temperature's logarithm and of the logits' bias, which is without
    /// meaning where there is none.
    ///
    /// # Errors
    /// As [`ClipConfig::validate`].
    pub fn init_at(&self, init: &mut Init, logit_scale: f32, logit_bias: f32) -> Result<Clip, ConfigError> {
        self.validate()?;
        Ok(Clip {
            text_model: self.text.init(init)?,
            vision_model: self.vision.init(init)?,
            visual_projection: projection(init, self.vision.channels, self.projection),
            text_projection: projection(init, self.text.channels, self.projection),
            logit_scale: init.constant([1], logit_scale),
            logit_bias: self.logit_bias.then(|| init.constant([1], logit_bias)),
        })
    }
}

/// The logarithm of the initial inverse temperature, `1 / 0.07` (Radford et al. 2021, section 2.5).
pub fn initial_logit_scale() -> f32 {
    (1.0f32 / 0.07).ln()
}

/// The initial bias of logits of the sigmoid loss (Zhai et al. 2023, section 3.2).
pub const LOGIT_BIAS: f32 = -10.0;

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
    logit_bias: Option<Param<Tensor<1>>>,
}

/// Largest inverse temperature of the contrastive loss, as in the reference (Radford et al. 2021, section 2.5).
pub const MAX_LOGIT_SCALE: f32 = 100.0;

impl Clip {
    /// This process's part of the model, which computes what the whole does together with the others' parts: the blocks of both
    /// towers are shared out, embeddings and projections are not. [`ClipConfig::check_parts`] says whether the processes divide
    /// it.
    #[must_use]
    pub fn part_of(self, parallel: &TensorParallel) -> Self {
        Self {
            text_model: self.text_model.part_of(parallel),
            vision_model: self.vision_model.part_of(parallel),
            ..self
        }
    }

    /// The same model, of whose towers training computes some blocks twice.
    #[must_use]
    pub fn recomputing(self, recompute: Option<Recompute>) -> Self {
        Self {
            text_model: self.text_model.recomputing(recompute),
            vision_model: self.vision_model.recomputing(recompute),
            ..self
        }
    }

    /// Unit vectors of images in the common space, as `f32`.
    ///
    /// # Shapes
    /// `[batch, size, size, 3]` in `-1..1` to `[batch, projection]`
    pub fn image_features(&self, images: Tensor<4>) -> Tensor<2> {
        normalise(self.visual_projection.forward(self.vision_model.pooled(images)))
    }

    /// [`Clip::image_features`] of some of each image's patches; see [`VisionModel::pooled_of`].
    pub fn image_features_of(&self, images: Tensor<4>, kept: &[Vec<usize>]) -> Tensor<2> {
        normalise(self.visual_projection.forward(self.vision_model.pooled_of(images, kept)))
    }

    /// The logarithm of the inverse temperature, and the bias of logits where there is one, each of shape `[1]`.
    pub fn logits(&self) -> (Tensor<1>, Option<Tensor<1>>) {
        (self.logit_scale.val(), self.logit_bias.as_ref().map(Param::val))
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
    /// Row `i` of both belongs together; all other rows are negatives. The inverse temperature counts as [`MAX_LOGIT_SCALE`] at most.
    pub fn contrastive_loss(&self, images: Tensor<2>, texts: Tensor<2>) -> Tensor<1> {
        self.contrastive_loss_up_to(MAX_LOGIT_SCALE, images, texts)
    }

    /// [`Clip::contrastive_loss`] with another largest inverse temperature, which may be infinite.
    pub fn contrastive_loss_up_to(&self, largest: f32, images: Tensor<2>, texts: Tensor<2>) -> Tensor<1> {
        let scale = self.logit_scale.val().exp();
        let scale = if largest.is_finite() { scale.clamp_max(largest) } else { scale };
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
