//! Vision transformers that classify images (Dosovitskiy et al. 2021).

use crate::init::Init;
use crate::layers::{Conv2d, LayerNorm, Linear};
use crate::transformer::{Block, HiddenActivation};
use crate::transformers::{activation, without};
use crate::vision::{check_images, check_patches, with_class_token};
use crate::{ConfigError, InputError};
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use calotype_core::fields::{Fields, FieldsError};
use calotype_core::{Purpose, Stream};
use calotype_ops::Conv2dGeometry;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A vision transformer with a classifier on its class token; defaults are ViT-B/16's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VitConfig {
    /// Side of the square image in pixels.
    pub image_size: usize,
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Width of the states.
    pub channels: usize,
    /// Width between the two linear layers of a block.
    pub mlp_channels: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Activation of the feed-forward layers.
    pub activation: HiddenActivation,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// True if queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Classes.
    pub labels: usize,
    /// Share of the states that training drops behind the embeddings and in front of every sum with the residual.
    pub dropout: f32,
    /// Tokens in front of the patches; the classifier reads the first. NeMo trains with several.
    #[serde(skip_serializing_if = "is_one")]
    pub class_tokens: usize,
    /// True if a layer with `tanh` stands in front of the classifier (Dosovitskiy et al. 2021, section 3.1: at
    /// pre-training time).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pooling: bool,
}

/// Serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(number: &usize) -> bool {
    *number == 1
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            channels: 768,
            mlp_channels: 3072,
            layers: 12,
            heads: 12,
            activation: HiddenActivation::Gelu,
            norm_eps: 1e-12,
            qkv_bias: true,
            labels: 1000,
            dropout: 0.0,
            class_tokens: 1,
            pooling: false,
        }
    }
}

/// Name, patch size, channels, channels between a block's linear layers, layers, heads; the sizes of Dosovitskiy et al.
/// 2021 and Zhai et al. 2022 as the training benchmarks for clusters configure them.
const NAMED: [(&str, [usize; 5]); 5] = [
    ("B_16", [16, 768, 3072, 12, 12]),
    ("L_16", [16, 1024, 4096, 24, 16]),
    ("H_14", [14, 1280, 5120, 32, 16]),
    ("g_14", [14, 1408, 6144, 40, 16]),
    ("bigG_14", [14, 1664, 8192, 48, 16]),
];

impl VitConfig {
    /// By the name of its size: `B_16`, `L_16`, `H_14`, `g_14` or `bigG_14`.
    ///
    /// # Errors
    /// [`ConfigError`] that lists the known names.
    pub fn named(name: &str) -> Result<Self, ConfigError> {
        let found = NAMED.iter().find(|(known, _)| *known == name).ok_or_else(|| {
            let known = NAMED.map(|(name, _)| name).join(", ");
            ConfigError { field: "ViT size", problem: format!("`{name}` is not among {known}") }
        })?;
        let [patch_size, channels, mlp_channels, layers, heads] = found.1;
        Ok(Self { patch_size, channels, mlp_channels, layers, heads, ..Self::default() })
    }

    /// From the `config.json` of a `ViTForImageClassification`, as transformers writes it. Two more fields say what
    /// other libraries' models have: `class_tokens` and `add_pooling_layer`.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is malformed, absurdly large, or would change results and is not supported.
    pub fn from_transformers(config: &serde_json::Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new("ViTForImageClassification", config);
        fields.kind("model_type", &["vit"]);
        fields.fixed("num_channels", &[json!(3)]);
        without(&mut fields, &["attention_probs_dropout_prob"]);
        let channels = fields.size("hidden_size", 768);
        let heads = fields.size("num_attention_heads", 12);
        fields.fixed("head_dim", &[json!(channels / heads)]);
        // The library keeps the number of classes as the number of their names; without names it assumes two.
        let names = fields.raw("id2label").and_then(Value::as_object).filter(|names| !names.is_empty());
        let labels = match names {
            Some(names) => names.len(),
            None => fields.size("num_labels", 2),
        };
        let vit = Self {
            image_size: fields.square("image_size", 224),
            patch_size: fields.square("patch_size", 16),
            channels,
            mlp_channels: fields.size("intermediate_size", 3072),
            layers: fields.count("num_hidden_layers", 12),
            heads,
            activation: activation(&mut fields, HiddenActivation::Gelu),
            norm_eps: fields.number("layer_norm_eps", 1e-12) as f32,
            qkv_bias: fields.get("qkv_bias", true),
            labels,
            dropout: fields.number("hidden_dropout_prob", 0.0) as f32,
            class_tokens: fields.count("class_tokens", 1),
            pooling: fields.get("add_pooling_layer", false),
        };
        fields.finish_checked(vit, Self::validate)
    }

    /// Checks that heads divide channels and patches the image.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check(self.heads > 0 && self.channels.is_multiple_of(self.heads), "heads", || {
            format!("{} heads do not divide {} channels", self.heads, self.channels)
        })?;
        ConfigError::check(self.labels > 0, "labels", || "a classifier needs classes".into())?;
        ConfigError::check((0.0..1.0).contains(&self.dropout), "dropout", || {
            format!("{} is not a share from 0 to below 1", self.dropout)
        })?;
        ConfigError::check(self.class_tokens > 0, "class_tokens", || "the classifier reads a class token".into())?;
        check_patches("patch_size", self.image_size, self.patch_size)
    }

    /// The model with random weights, initialised as transformers does: normal of deviation 0.02, biases zero.
    ///
    /// # Errors
    /// As [`VitConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<Vit, ConfigError> {
        self.validate()?;
        let patches = (self.image_size / self.patch_size).pow(2);
        let (channels, patch) = (self.channels, self.patch_size);
        let vit = VitModel {
            embeddings: Embeddings {
                cls_token: init.normal([1, self.class_tokens, channels], DEVIATION),
                position_embeddings: init.normal([1, patches + self.class_tokens, channels], DEVIATION),
                patch_embeddings: PatchEmbeddings::new(init, channels, patch),
            },
            encoder: Layers { layer: (0..self.layers).map(|_| Layer::new(init, self)).collect() },
            layernorm: LayerNorm::with_eps(init, channels, self.norm_eps),
            pooler: self.pooling.then(|| Dense { dense: Linear::normal(init, channels, channels, DEVIATION) }),
        };
        let classifier = Linear::normal(init, channels, self.labels, DEVIATION);
        Ok(Vit { vit, classifier, image_size: self.image_size, dropout: self.dropout })
    }
}

/// Deviation of initial weights.
pub(crate) const DEVIATION: f32 = 0.02;

#[derive(Module, Debug)]
pub(crate) struct PatchEmbeddings {
    pub(crate) projection: Conv2d,
}

impl PatchEmbeddings {
    pub(crate) fn new(init: &mut Init, channels: usize, patch: usize) -> Self {
        Self {
            projection: Conv2d::from_parameters(
                init.normal([channels, patch, patch, 3], DEVIATION),
                Some(init.constant([channels], 0.0)),
                Conv2dGeometry::patches(patch),
            ),
        }
    }
}

#[derive(Module, Debug)]
struct Embeddings {
    cls_token: Param<Tensor<3>>,
    position_embeddings: Param<Tensor<3>>,
    patch_embeddings: PatchEmbeddings,
}

#[derive(Module, Debug)]
pub(crate) struct Projections {
    query: Linear,
    key: Linear,
    value: Linear,
}

/// A linear layer where the checkpoints put another name in front of its own.
#[derive(Module, Debug)]
pub(crate) struct Dense {
    pub(crate) dense: Linear,
}

/// The linear layers of self-attention under the names of ViT's checkpoints.
#[derive(Module, Debug)]
pub(crate) struct SelfAttention {
    attention: Projections,
    pub(crate) output: Dense,
}

impl SelfAttention {
    pub(crate) fn new(init: &mut Init, channels: usize, qkv_bias: bool) -> Self {
        let mut linear = |bias: bool| {
            let linear = Linear::normal(init, channels, channels, DEVIATION);
            Linear { bias: linear.bias.filter(|_| bias), ..linear }
        };
        let attention = Projections { query: linear(qkv_bias), key: linear(qkv_bias), value: linear(qkv_bias) };
        Self { attention, output: Dense { dense: linear(true) } }
    }

    /// Queries, keys and values.
    pub(crate) fn project(&self, h: Tensor<3>) -> [Tensor<3>; 3] {
        let Projections { query, key, value } = &self.attention;
        [query.forward(h.clone()), key.forward(h.clone()), value.forward(h)]
    }
}

/// A block under the names of ViT's checkpoints.
#[derive(Module, Debug)]
struct Layer {
    attention: SelfAttention,
    intermediate: Dense,
    output: Dense,
    layernorm_before: LayerNorm,
    layernorm_after: LayerNorm,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    activation: HiddenActivation,
}

impl Layer {
    fn new(init: &mut Init, config: &VitConfig) -> Self {
        let (channels, hidden) = (config.channels, config.mlp_channels);
        Self {
            attention: SelfAttention::new(init, channels, config.qkv_bias),
            intermediate: Dense { dense: Linear::normal(init, channels, hidden, DEVIATION) },
            output: Dense { dense: Linear::normal(init, hidden, channels, DEVIATION) },
            layernorm_before: LayerNorm::with_eps(init, channels, config.norm_eps),
            layernorm_after: LayerNorm::with_eps(init, channels, config.norm_eps),
            heads: config.heads,
            activation: config.activation,
        }
    }

    fn block(&self) -> Block<'_> {
        let Projections { query, key, value } = &self.attention.attention;
        Block {
            norms: [&self.layernorm_before, &self.layernorm_after],
            query,
            key,
            value,
            out: &self.attention.output.dense,
            mlp: [&self.intermediate.dense, &self.output.dense],
            heads: self.heads,
            activation: self.activation,
            mask: None,
        }
    }
}

#[derive(Module, Debug)]
struct Layers {
    layer: Vec<Layer>,
}

#[derive(Module, Debug)]
struct VitModel {
    embeddings: Embeddings,
    encoder: Layers,
    layernorm: LayerNorm,
    pooler: Option<Dense>,
}

/// The states that a training step drops: a function of the seed and of each sample's position in the run, not of batches.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// The run's seed.
    pub seed: u64,
    /// Position in the run of every sample of the batch.
    pub positions: &'a [u64],
}

/// Draws the masks of one pass, one place after the other.
struct Masks<'a> {
    streams: Vec<Stream>,
    rate: f32,
    positions: &'a [u64],
}

impl<'a> Masks<'a> {
    fn new(dropout: Dropout<'a>, rate: f32) -> Self {
        let stream = |&position: &u64| Stream::new(dropout.seed, Purpose::Dropout, position);
        Self { streams: dropout.positions.iter().map(stream).collect(), rate, positions: dropout.positions }
    }

    /// Zeros where the mask says so; what is left grows so that the expectation stays.
    fn apply(&mut self, x: Tensor<3>) -> Tensor<3> {
        let [_, tokens, channels] = x.dims();
        let mut keep = vec![0f32; self.positions.len() * tokens * channels];
        for (stream, row) in self.streams.iter_mut().zip(keep.chunks_exact_mut(tokens * channels)) {
            stream.fill_uniform(row);
            row.iter_mut().for_each(|u| *u = if *u < self.rate { 0.0 } else { 1.0 / (1.0 - self.rate) });
        }
        let mask = Tensor::<3>::from_data(TensorData::new(keep, x.dims()), &x.device());
        let dtype = x.dtype();
        (x.cast(DType::F32) * mask).cast(dtype)
    }
}

/// An image classifier (`ViTForImageClassification` of transformers).
#[derive(Module, Debug)]
pub struct Vit {
    vit: VitModel,
    classifier: Linear,
    #[module(skip)]
    image_size: usize,
    #[module(skip)]
    dropout: f32,
}

impl Vit {
    /// Logits of the classes, without dropout. The images' dtype is the precision of the pass.
    ///
    /// # Shapes
    /// `[batch, size, size, 3]`, normalised as in training (usually to `-1..1`), to `[batch, labels]`
    ///
    /// # Errors
    /// [`InputError`] if the images do not have the configured size: position embeddings are not interpolated.
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>, InputError> {
        check_images(&images, self.image_size)?;
        Ok(self.classify(self.states(images, None)))
    }

    /// [`Vit::forward`] with the configured dropout, for training.
    ///
    /// # Errors
    /// As [`Vit::forward`], or if there are not as many positions as images.
    pub fn forward_training(&self, images: Tensor<4>, dropout: Dropout) -> Result<Tensor<2>, InputError> {
        check_images(&images, self.image_size)?;
        let [batch, ..] = images.dims();
        if batch != dropout.positions.len() {
            return Err(InputError::Positions { images: batch, positions: dropout.positions.len() });
        }
        let masks = (self.dropout > 0.0).then(|| Masks::new(dropout, self.dropout));
        Ok(self.classify(self.states(images, masks)))
    }

    /// The normalised states behind the last layer, class token first (`last_hidden_state`).
    ///
    /// # Shapes
    /// `[batch, size, size, 3]` to `[batch, class tokens + patches, channels]`
    ///
    /// # Errors
    /// As [`Vit::forward`].
    pub fn last_hidden_state(&self, images: Tensor<4>) -> Result<Tensor<3>, InputError> {
        check_images(&images, self.image_size)?;
        Ok(self.states(images, None))
    }

    fn states(&self, images: Tensor<4>, masks: Option<Masks>) -> Tensor<3> {
        let e = &self.vit.embeddings;
        let patches = e.patch_embeddings.projection.forward(images);
        let x = with_class_token(patches, e.cls_token.val(), e.position_embeddings.val());
        let x = match masks {
            None => self.vit.encoder.layer.iter().fold(x, |x, layer| layer.block().forward(x, false, None)),
            Some(mut masks) => {
                let x = masks.apply(x);
                let mut drop = |h| masks.apply(h);
                self.vit.encoder.layer.iter().fold(x, |x, layer| layer.block().forward(x, false, Some(&mut drop)))
            }
        };
        self.vit.layernorm.forward(x)
    }

    fn classify(&self, states: Tensor<3>) -> Tensor<2> {
        let [batch, _, channels] = states.dims();
        let first = states.narrow(1, 0, 1).reshape([batch, channels]);
        let pooled = match &self.vit.pooler {
            Some(pooler) => pooler.dense.forward(first).tanh(),
            None => first,
        };
        self.classifier.forward(pooled)
    }
}
