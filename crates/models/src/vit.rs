//! Vision transformers that classify images (Dosovitskiy et al. 2021).

use crate::init::Init;
use crate::layers::{Conv2d, LayerNorm, Linear};
use crate::parallel::{TensorParallel, check_divides};
use crate::recompute::{Recompute, Stacked, through};
use crate::transformer::{Block, HiddenActivation};
use crate::transformers::{activation, without};
use crate::vision::{check_images, check_patches, with_class_token};
use crate::{ConfigError, InputError};
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use calotype_core::fields::{Fields, FieldsError, MOST_LAYERS};
use calotype_core::{Purpose, Stream};
use calotype_ops::Conv2dGeometry;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

calotype_core::names! {
    /// The tokens that a ViT's classifier reads.
    Reads, "tokens that a classifier reads" {
        /// The first class token: all published ViTs but those of the next two, and NeMo's with several.
        FirstToken = "first_token",
        /// The mean of all class tokens.
        ClassTokens = "class_tokens",
        /// The mean of all patches, which is normalised then: timm's `global_pool = "avg"` with `fc_norm`. The states are not
        /// normalised before.
        Patches = "patches",
    }
}

/// A vision transformer with a classifier; defaults are ViT-B/16's.
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
    /// Share of the samples for which training leaves out a branch of the last block; of the blocks before, in proportion to
    /// their number, so that the first one's always stay (stochastic depth; Huang et al. 2016, section 3; timm's
    /// `drop_path_rate`). What stays grows so that the expectation does.
    #[serde(skip_serializing_if = "is_zero")]
    pub drop_path: f32,
    /// Tokens in front of the patches. NeMo trains with several.
    #[serde(skip_serializing_if = "is_one")]
    pub class_tokens: usize,
    /// What the classifier reads.
    #[serde(skip_serializing_if = "is_first_token")]
    pub reads: Reads,
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

/// Serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &f32) -> bool {
    *number == 0.0
}

/// Serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_first_token(reads: &Reads) -> bool {
    *reads == Reads::FirstToken
}

/// The field `model_type` of classifiers that transformers' ViT cannot be.
pub(crate) const OWN_TYPE: &str = "calotype_vit";

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
            drop_path: 0.0,
            class_tokens: 1,
            reads: Reads::FirstToken,
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

    /// From the `config.json` of a `ViTForImageClassification`, as transformers writes it. Three more fields say what
    /// other libraries' models have: `class_tokens`, `reads` and `add_pooling_layer`.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is malformed, absurdly large, or would change results and is not supported.
    pub fn from_transformers(config: &serde_json::Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new("ViTForImageClassification", config);
        fields.kind("model_type", &["vit", OWN_TYPE]);
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
            drop_path: 0.0,
            class_tokens: fields.whole("class_tokens", 1, 0..=MOST_LAYERS),
            reads: fields.get("reads", Reads::FirstToken),
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
        ConfigError::check((0.0..1.0).contains(&self.drop_path), "drop_path", || {
            format!("{} is not a share from 0 to below 1", self.drop_path)
        })?;
        ConfigError::check(self.class_tokens > 0 || self.reads == Reads::Patches, "class_tokens", || {
            "the classifier reads a class token: use 1 or more, or reads = \"patches\"".into()
        })?;
        check_patches("patch_size", self.image_size, self.patch_size)
    }

    /// Checks that processes can share the model's layers; see [`Vit::part_of`].
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field that they do not divide.
    pub fn check_parts(&self, processes: usize) -> Result<(), ConfigError> {
        check_divides([("heads", self.heads), ("mlp_channels", self.mlp_channels)], processes)
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
                cls_token: (self.class_tokens > 0).then(|| init.normal([1, self.class_tokens, channels], DEVIATION)),
                position_embeddings: init.normal([1, patches + self.class_tokens, channels], DEVIATION),
                patch_embeddings: PatchEmbeddings::new(init, channels, patch),
            },
            encoder: Layers { layer: (0..self.layers).map(|_| Layer::new(init, self)).collect() },
            layernorm: LayerNorm::with_eps(init, channels, self.norm_eps),
            pooler: self.pooling.then(|| Dense { dense: Linear::normal(init, channels, channels, DEVIATION) }),
        };
        let classifier = Linear::normal(init, channels, self.labels, DEVIATION);
        Ok(Vit {
            vit,
            classifier,
            image_size: self.image_size,
            dropout: self.dropout,
            drop_path: self.drop_path,
            reads: self.reads,
            recompute: None,
        })
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
    cls_token: Option<Param<Tensor<3>>>,
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
    #[module(skip)]
    parallel: Option<TensorParallel>,
}

impl Layer {
    /// The block of this number, from 0.
    fn forward(&self, x: Tensor<3>, number: usize, dropping: Option<&Dropping>) -> Tensor<3> {
        let Some(dropping) = dropping else { return self.block().forward(x, false, None) };
        let mut branch = 2 * number;
        let mut drop = |h| {
            let h = dropping.branch(dropping.states(h, branch + 1), branch);
            branch += 1;
            h
        };
        self.block().forward(x, false, Some(&mut drop))
    }

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
            parallel: None,
        }
    }

    /// This process's part of the block, whose heads and channels the processes divide.
    fn part_of(self, parallel: &TensorParallel) -> Self {
        let SelfAttention { attention: Projections { query, key, value }, output } = self.attention;
        let attention = Projections {
            query: query.with_outputs_of(parallel),
            key: key.with_outputs_of(parallel),
            value: value.with_outputs_of(parallel),
        };
        Self {
            attention: SelfAttention { attention, output: Dense { dense: output.dense.with_inputs_of(parallel) } },
            intermediate: Dense { dense: self.intermediate.dense.with_outputs_of(parallel) },
            output: Dense { dense: self.output.dense.with_inputs_of(parallel) },
            heads: self.heads / parallel.world(),
            parallel: Some(parallel.clone()),
            ..self
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
            parallel: self.parallel.as_ref(),
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

/// What a training pass drops: at each place a function of seed and position, so that a block that is computed again drops the
/// same.
#[derive(Clone, Debug)]
struct Dropping {
    seed: u64,
    positions: Arc<[u64]>,
    /// Share of the states.
    states: f32,
    /// Share of the last block's branches.
    path: f32,
    layers: usize,
}

impl Dropping {
    /// Zeros where the mask of a place says so; what is left grows so that the expectation stays. Place 0 is behind the
    /// embeddings, and each block has two.
    fn states(&self, x: Tensor<3>, place: usize) -> Tensor<3> {
        if self.states == 0.0 {
            return x;
        }
        let [_, tokens, channels] = x.dims();
        let size = tokens * channels;
        let mut keep = vec![0f32; self.positions.len() * size];
        for (&position, row) in self.positions.iter().zip(keep.chunks_exact_mut(size)) {
            let stream = Stream::new(self.seed, Purpose::Dropout, position);
            stream.skipping((place * size) as u64).fill_uniform(row);
            row.iter_mut().for_each(|u| *u = if *u < self.states { 0.0 } else { 1.0 / (1.0 - self.states) });
        }
        scaled(x, keep, [self.positions.len(), tokens, channels])
    }

    /// Leaves out the branch of some samples: `branch` counts the two of each block from 0.
    fn branch(&self, x: Tensor<3>, branch: usize) -> Tensor<3> {
        // timm's linspace from 0 to the rate.
        let rate = self.path * (branch / 2) as f32 / (self.layers.max(2) - 1) as f32;
        if rate == 0.0 {
            return x;
        }
        let drawn = |&position: &u64| {
            Stream::new(self.seed, Purpose::StochasticDepth, position).skipping(branch as u64).uniform()
        };
        let keep = |u: f32| if u < rate { 0.0 } else { 1.0 / (1.0 - rate) };
        let keep: Vec<f32> = self.positions.iter().map(drawn).map(keep).collect();
        let batch = keep.len();
        scaled(x, keep, [batch, 1, 1])
    }
}

/// States times factors, which are multiplied in `f32`.
fn scaled(x: Tensor<3>, factors: Vec<f32>, shape: [usize; 3]) -> Tensor<3> {
    let dtype = x.dtype();
    let factors = Tensor::<3>::from_data(TensorData::new(factors, shape), &x.device());
    (x.cast(DType::F32) * factors).cast(dtype)
}

/// A block with its number and what training drops in it.
#[derive(Module, Debug)]
struct StackedLayer {
    layer: Layer,
    #[module(skip)]
    number: usize,
    #[module(skip)]
    dropping: Option<Dropping>,
}

impl Stacked for StackedLayer {
    fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        self.layer.forward(x, self.number, self.dropping.as_ref())
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
    #[module(skip)]
    drop_path: f32,
    #[module(skip)]
    reads: Reads,
    /// The blocks that training computes twice.
    #[module(skip)]
    recompute: Option<Recompute>,
}

impl Vit {
    /// This process's part of the model, which computes what the whole does together with the others' parts.
    /// [`VitConfig::check_parts`] says whether the processes divide it.
    #[must_use]
    pub fn part_of(mut self, parallel: &TensorParallel) -> Self {
        self.vit.encoder.layer = self.vit.encoder.layer.into_iter().map(|layer| layer.part_of(parallel)).collect();
        self
    }

    /// The same model, of which training computes some blocks twice.
    #[must_use]
    pub fn recomputing(self, recompute: Option<Recompute>) -> Self {
        Self { recompute, ..self }
    }

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

    /// [`Vit::forward`] with the configured dropout and stochastic depth, for training.
    ///
    /// # Errors
    /// As [`Vit::forward`], or if there are not as many positions as images.
    pub fn forward_training(&self, images: Tensor<4>, dropout: Dropout) -> Result<Tensor<2>, InputError> {
        check_images(&images, self.image_size)?;
        let [batch, ..] = images.dims();
        if batch != dropout.positions.len() {
            return Err(InputError::Positions { images: batch, positions: dropout.positions.len() });
        }
        let dropping = (self.dropout > 0.0 || self.drop_path > 0.0).then(|| Dropping {
            seed: dropout.seed,
            positions: dropout.positions.into(),
            states: self.dropout,
            path: self.drop_path,
            layers: self.vit.encoder.layer.len(),
        });
        Ok(self.classify(self.states(images, dropping.as_ref())))
    }

    /// The states behind the last layer, class tokens first (`last_hidden_state`); normalised, but where the classifier reads
    /// the mean of the patches, which is normalised then.
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

    /// Whether the weights are being trained, and not only looked at.
    pub fn is_in_training(&self) -> bool {
        self.vit.layernorm.weight.val().is_autodiff()
    }

    fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let e = &self.vit.embeddings;
        let patches = e.patch_embeddings.projection.forward(images);
        let positions = e.position_embeddings.val();
        match &e.cls_token {
            Some(class) => with_class_token(patches, class.val(), positions),
            None => {
                let ([batch, rows, columns, channels], dtype) = (patches.dims(), patches.dtype());
                patches.reshape([batch, rows * columns, channels]) + positions.cast(dtype)
            }
        }
    }

    fn states(&self, images: Tensor<4>, dropping: Option<&Dropping>) -> Tensor<3> {
        let x = self.embed(images);
        let x = match dropping {
            None => x,
            Some(dropping) => dropping.states(x, 0),
        };
        let layers = &self.vit.encoder.layer;
        let keeping = |number: usize, x| layers[number].forward(x, number, dropping);
        let block = |number: usize| StackedLayer { layer: layers[number].clone(), number, dropping: dropping.cloned() };
        let x = through(self.recompute, layers.len(), x, keeping, block);
        match self.reads {
            Reads::Patches => x,
            Reads::FirstToken | Reads::ClassTokens => self.vit.layernorm.forward(x),
        }
    }

    /// What the classifier reads of the states ([`Vit::last_hidden_state`]), in front of its layers.
    ///
    /// # Shapes
    /// `[batch, class tokens + patches, channels]` to `[batch, channels]`
    pub fn read(&self, states: Tensor<3>) -> Tensor<2> {
        let [batch, tokens, channels] = states.dims();
        let class_tokens = self.vit.embeddings.cls_token.as_ref().map_or(0, |class| class.dims()[1]);
        let mean = |first: usize, count: usize| {
            let dtype = states.dtype();
            states.clone().narrow(1, first, count).cast(DType::F32).mean_dim(1).cast(dtype)
        };
        let read = match self.reads {
            Reads::FirstToken => states.narrow(1, 0, 1),
            Reads::ClassTokens => mean(0, class_tokens),
            Reads::Patches => self.vit.layernorm.forward(mean(class_tokens, tokens - class_tokens)),
        };
        read.reshape([batch, channels])
    }

    fn classify(&self, states: Tensor<3>) -> Tensor<2> {
        let read = self.read(states);
        let pooled = match &self.vit.pooler {
            Some(pooler) => pooler.dense.forward(read).tanh(),
            None => read,
        };
        self.classifier.forward(pooled)
    }
}
