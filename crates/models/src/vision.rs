//! CLIP's image towers: B/32, B/16, L/14, H/14, g/14, bigG/14, and their like.

use crate::init::Init;
use crate::layers::{Conv2d, Embedding, LayerNorm, Linear};
use crate::parallel::TensorParallel;
use crate::recompute::Recompute;
use crate::text::projection;
use crate::transformer::{Encoder, HiddenActivation, Sizes};
use crate::transformers::{activation, has_architecture, is_whole_clip, without};
use crate::{ConfigError, InputError};
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use calotype_core::fields::{Fields, FieldsError};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The image tower; defaults are OpenCLIP ViT-H/14's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VisionConfig {
    /// Side of the square image in pixels.
    pub image_size: usize,
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Width of the states.
    pub channels: usize,
    /// Width between the two linear layers of a block; none: four times `channels`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_channels: Option<usize>,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Activation of the feed-forward layers.
    pub activation: HiddenActivation,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 14,
            channels: 1280,
            mlp_channels: None,
            layers: 32,
            heads: 16,
            activation: HiddenActivation::Gelu,
            norm_eps: 1e-5,
        }
    }
}

impl VisionConfig {
    /// Checks that heads divide channels and patches the image.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check(self.heads > 0 && self.channels.is_multiple_of(self.heads), "vision.heads", || {
            format!("{} heads do not divide {} channels", self.heads, self.channels)
        })?;
        check_patches("vision.patch_size", self.image_size, self.patch_size)
    }

    /// The tower with random weights, initialised as the CLIP reference does.
    ///
    /// # Errors
    /// As [`VisionConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<VisionModel, ConfigError> {
        self.validate()?;
        let patches = (self.image_size / self.patch_size).pow(2);
        let (channels, deviation) = (self.channels, (self.channels as f32).powf(-0.5));
        let sizes = Sizes {
            channels,
            mlp_channels: self.mlp_channels.unwrap_or(4 * channels),
            layers: self.layers,
            heads: self.heads,
            activation: self.activation,
            norm_eps: self.norm_eps,
        };
        Ok(VisionModel {
            embeddings: VisionEmbeddings {
                class_embedding: init.normal([channels], deviation),
                patch_embedding: Conv2d::patches(init, 3, channels, self.patch_size),
                position_embedding: Embedding::new(init, patches + 1, channels, deviation),
            },
            pre_layrnorm: LayerNorm::with_eps(init, channels, self.norm_eps),
            encoder: Encoder::new(init, sizes),
            post_layernorm: LayerNorm::with_eps(init, channels, self.norm_eps),
            image_size: self.image_size,
        })
    }

    /// From the fields of a `CLIPVisionConfig` of transformers.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is malformed, absurdly large, or would change results and is not supported.
    pub fn from_transformers(config: &serde_json::Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new("CLIPVisionModel", config);
        fields.kind("model_type", &["clip_vision_model"]);
        let vision = Self::read(&mut fields);
        fields.finish_checked(vision, Self::validate)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Self {
        without(fields, &["attention_dropout"]);
        fields.fixed("num_channels", &[json!(3)]);
        Self {
            image_size: fields.square("image_size", 224),
            patch_size: fields.square("patch_size", 32),
            channels: fields.size("hidden_size", 768),
            mlp_channels: Some(fields.size("intermediate_size", 3072)),
            layers: fields.count("num_hidden_layers", 12),
            heads: fields.size("num_attention_heads", 12),
            activation: activation(fields, HiddenActivation::QuickGelu),
            norm_eps: fields.number("layer_norm_eps", 1e-5) as f32,
        }
    }
}

/// Checks that square patches tile a square image.
pub(crate) fn check_patches(field: &'static str, image: usize, patch: usize) -> Result<(), ConfigError> {
    ConfigError::check(patch > 0 && image > 0 && image.is_multiple_of(patch), field, || {
        format!("{patch} does not divide the image's {image} pixels")
    })
}

/// Checks that images have the side that a model's positions were made for.
pub(crate) fn check_images(images: &Tensor<4>, side: usize) -> Result<(), InputError> {
    let [_, height, width, channels] = images.dims();
    let fits = [height, width, channels] == [side, side, 3];
    if fits { Ok(()) } else { Err(InputError::Image { found: [height, width, channels], side }) }
}

/// Outputs of an image tower.
#[derive(Debug)]
pub struct VisionOutput {
    /// The states behind the last layer, not normalised, class token first: `[batch, 1 + patches, channels]`.
    pub last_hidden_state: Tensor<3>,
    /// The normalised state of the class token, `[batch, channels]`.
    pub pooler_output: Tensor<2>,
    /// The pooled output in the space common with texts, not normalised, `[batch, projection]`; where there is a
    /// projection.
    pub image_embeds: Option<Tensor<2>>,
}

#[derive(Module, Debug)]
struct VisionEmbeddings {
    class_embedding: Param<Tensor<1>>,
    patch_embedding: Conv2d,
    position_embedding: Embedding,
}

/// The image tower (`CLIPVisionModel` of transformers).
#[derive(Module, Debug)]
pub struct VisionModel {
    embeddings: VisionEmbeddings,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    #[module(skip)]
    image_size: usize,
}

impl VisionModel {
    pub(crate) fn part_of(self, parallel: &TensorParallel) -> Self {
        Self { encoder: self.encoder.part_of(parallel), ..self }
    }

    /// The same tower, of which training computes some blocks twice.
    #[must_use]
    pub fn recomputing(self, recompute: Option<Recompute>) -> Self {
        Self { encoder: self.encoder.recomputing(recompute), ..self }
    }

    /// The normalised state of the class token.
    ///
    /// # Shapes
    /// `[batch, size, size, 3]` in `-1..1` to `[batch, channels]`
    ///
    /// # Panics
    /// If the images do not have the configured size; [`VisionModel::forward`] checks that.
    pub fn pooled(&self, images: Tensor<4>) -> Tensor<2> {
        self.pool(self.encoder.forward(self.embed(images), false, self.encoder.depth()))
    }

    /// [`VisionModel::pooled`] of some of each image's patches, for training (FLIP, Li et al. 2023, section 3; `PatchDropout` of
    /// open_clip): the class token and, of image `i`, the patches `kept[i]`, counted by rows of the image, as many of each image.
    ///
    /// # Panics
    /// As [`VisionModel::pooled`], and if there are not as many lists as images, of one length and of patches that there are.
    pub fn pooled_of(&self, images: Tensor<4>, kept: &[Vec<usize>]) -> Tensor<2> {
        let states = with_patches(self.embed(images), kept);
        self.pool(self.encoder.forward(states, false, self.encoder.depth()))
    }

    /// All outputs but the projected one. The images' dtype is the precision of the pass; their values are what the
    /// tower was trained with, that is normalised by its mean and deviation.
    ///
    /// # Shapes
    /// `images`: `[batch, size, size, 3]`
    ///
    /// # Errors
    /// [`InputError`] if the images do not have the configured size: position embeddings are not interpolated.
    pub fn forward(&self, images: Tensor<4>) -> Result<VisionOutput, InputError> {
        check_images(&images, self.image_size)?;
        let last_hidden_state = self.encoder.forward(self.embed(images), false, self.encoder.depth());
        let pooler_output = self.pool(last_hidden_state.clone());
        Ok(VisionOutput { last_hidden_state, pooler_output, image_embeds: None })
    }

    fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let e = &self.embeddings;
        let patches = e.patch_embedding.forward(images);
        let positions = e.position_embedding.weight.val().unsqueeze();
        let class = e.class_embedding.val().unsqueeze();
        self.pre_layrnorm.forward(with_class_token(patches, class, positions))
    }

    fn pool(&self, states: Tensor<3>) -> Tensor<2> {
        let [batch, _, channels] = states.dims();
        self.post_layernorm.forward(states.narrow(1, 0, 1).reshape([batch, channels]))
    }
}

/// The states of the class token and of some patches of each image.
///
/// # Shapes
/// `[batch, 1 + patches, channels]` to `[batch, 1 + kept patches, channels]`
fn with_patches(states: Tensor<3>, kept: &[Vec<usize>]) -> Tensor<3> {
    let [batch, tokens, channels] = states.dims();
    let of_image = |(image, patches): (usize, &Vec<usize>)| {
        let places: Vec<i32> = patches.iter().map(|patch| (image * tokens + 1 + patch) as i32).collect();
        std::iter::once((image * tokens) as i32).chain(places)
    };
    let places: Vec<i32> = kept.iter().enumerate().flat_map(of_image).collect();
    let count = places.len() / batch;
    let index = Tensor::<1, Int>::from_data(places.as_slice(), &states.device());
    states.reshape([batch * tokens, channels]).select(0, index).reshape([batch, count, channels])
}

/// The class tokens, then the patches by rows, each with the embedding of its position.
///
/// # Shapes
/// `patches`: `[batch, rows, columns, channels]`, `class`: `[1, class tokens, channels]`, `positions`: `[1, tokens,
/// channels]`, with `tokens = class tokens + rows · columns`; to `[batch, tokens, channels]` of the patches' dtype
pub(crate) fn with_class_token(patches: Tensor<4>, class: Tensor<3>, positions: Tensor<3>) -> Tensor<3> {
    let ([batch, rows, columns, channels], dtype) = (patches.dims(), patches.dtype());
    let [_, tokens, _] = class.dims();
    let class = class.cast(dtype).expand([batch, tokens, channels]);
    let patches = patches.reshape([batch, rows * columns, channels]);
    Tensor::cat(vec![class, patches], 1) + positions.cast(dtype)
}

/// An image tower as an application uses it, with its projection where there is one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageEncoderConfig {
    /// The tower.
    pub vision: VisionConfig,
    /// Dimension of the space common with texts; none where the tower has no projection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection: Option<usize>,
}

impl ImageEncoderConfig {
    /// From the `config.json` of a `CLIPVisionModel`, a `CLIPVisionModelWithProjection` (told by `architectures`) or a
    /// whole `CLIPModel`, as transformers writes them.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is malformed, absurdly large, or would change results and is not supported.
    pub fn from_transformers(config: &serde_json::Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new("CLIPVisionModel", config);
        fields.kind("model_type", &["clip_vision_model", "clip"]);
        let projection = fields.size("projection_dim", 512);
        let encoder = if is_whole_clip(&mut fields) {
            Self { vision: fields.nested("vision_config", VisionConfig::read), projection: Some(projection) }
        } else {
            let projected = has_architecture(&mut fields, "CLIPVisionModelWithProjection");
            Self { vision: VisionConfig::read(&mut fields), projection: projected.then_some(projection) }
        };
        fields.finish_checked(encoder, |encoder| encoder.vision.validate())
    }

    /// The encoder with random weights, initialised as the CLIP reference does.
    ///
    /// # Errors
    /// As [`VisionConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<ClipImageEncoder, ConfigError> {
        let vision_model = self.vision.init(init)?;
        let visual_projection = self.projection.map(|n| projection(init, self.vision.channels, n));
        Ok(ClipImageEncoder { vision_model, visual_projection })
    }
}

/// An image tower with or without projection (`CLIPVisionModelWithProjection`, or `CLIPVisionModel` under the keys of
/// its published checkpoints, which begin with `vision_model.`).
#[derive(Module, Debug)]
pub struct ClipImageEncoder {
    /// The tower.
    pub vision_model: VisionModel,
    visual_projection: Option<Linear>,
}

impl ClipImageEncoder {
    /// All outputs; see [`VisionModel::forward`].
    ///
    /// # Shapes
    /// `images`: `[batch, size, size, 3]`
    ///
    /// # Errors
    /// [`InputError`] if the images do not have the configured size.
    pub fn forward(&self, images: Tensor<4>) -> Result<VisionOutput, InputError> {
        let mut output = self.vision_model.forward(images)?;
        output.image_embeds = self.visual_projection.as_ref().map(|p| p.forward(output.pooler_output.clone()));
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::values_of;
    use burn::tensor::{Device, TensorData};

    #[test]
    fn kept_patches_stand_behind_the_class_token() {
        let device = Device::flex();
        let states = TensorData::new((0..8).map(|i| i as f32).collect::<Vec<_>>(), [2, 4, 1]);
        let kept = with_patches(Tensor::from_data(states, &device), &[vec![0, 2], vec![1, 2]]);
        assert_eq!(kept.dims(), [2, 3, 1]);
        assert_eq!(values_of(kept), [0.0, 1.0, 3.0, 4.0, 6.0, 7.0]);
    }

    #[test]
    fn with_all_patches_nothing_changes() {
        let device = Device::flex();
        let config =
            VisionConfig { image_size: 8, patch_size: 4, channels: 8, layers: 1, heads: 2, ..VisionConfig::default() };
        let tower = config.init(&mut Init::new(1, &device)).unwrap();
        let pixels = (0..2 * 8 * 8 * 3).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
        let images = Tensor::<4>::from_data(TensorData::new(pixels, [2, 8, 8, 3]), &device);
        let all = vec![vec![0, 1, 2, 3]; 2];
        assert_eq!(values_of(tower.pooled_of(images.clone(), &all)), values_of(tower.pooled(images.clone())));
        let some = tower.pooled_of(images.clone(), &[vec![0, 1], vec![2, 3]]);
        assert!(values_of(some) != values_of(tower.pooled(images)));
    }
}
