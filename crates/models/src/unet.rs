//! The conditional UNet of Stable Diffusion.

use crate::ConfigError;
use crate::attention::{SpatialTransformer, TransformerShape};
use crate::deep_features::DeepFeatures;
use crate::embeddings::{TimestepEmbedding, TimestepFeatures, guidance_features};
use crate::init::Init;
use crate::layers::{Conv2d, GroupNorm};
use crate::resnet::{Downsample, NormOptions, ResnetBlock, Upsample, activated_time};
use burn::module::Module;
use burn::tensor::Tensor;
use calotype_ops::{add, concat_channels, joined, recomputed};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// One number for all levels of a network, or one for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerLevel {
    /// The same everywhere.
    Same(usize),
    /// From the finest level to the coarsest.
    Each(Vec<usize>),
}

impl PerLevel {
    /// The number of one level; 0 for a level that is not there.
    pub fn at(&self, level: usize) -> usize {
        match self {
            Self::Same(number) => *number,
            Self::Each(numbers) => numbers.get(level).copied().unwrap_or(0),
        }
    }
}

/// Conditions that a UNet adds to its time embedding: a pooled text embedding beside sinusoidal features of sizes and crop
/// (Podell et al. 2023, section 2.2; `addition_embed_type` `text_time` of diffusers).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedConfig {
    /// Features of each of the numbers; even.
    pub time_features: usize,
    /// Channels of the text embedding and all features together.
    pub input_channels: usize,
}

impl AddedConfig {
    /// Numbers besides a pooled text of so many channels; a rest that is none counts for nothing.
    pub fn numbers(&self, pooled: usize) -> usize {
        self.input_channels.saturating_sub(pooled) / self.time_features.max(1)
    }
}

/// The shape of a UNet; defaults are Stable Diffusion 2's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UNetConfig {
    /// Channels of the latent going in.
    pub in_channels: usize,
    /// Channels of the prediction coming out.
    pub out_channels: usize,
    /// Channels of each level, from the finest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks in each level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// True for levels that have spatial transformers.
    pub attention_levels: Vec<bool>,
    /// Channels of one attention head in each level.
    pub head_channels: Vec<usize>,
    /// Transformer blocks in each spatial transformer; the middle has as many as the last level.
    pub transformer_depth: PerLevel,
    /// True if the spatial transformers' projections are stored as linear layers; 1x1 convolutions otherwise.
    pub linear_projection: bool,
    /// Channels of the text states.
    pub context_channels: usize,
    /// Groups of the residual blocks' norms (16 in the MLPerf variant).
    pub norm_groups: usize,
    /// Epsilon of the residual blocks' norms.
    pub norm_eps: f32,
    /// Groups of the spatial transformers' norms.
    pub transformer_norm_groups: usize,
    /// Epsilon of the spatial transformers' norms.
    pub transformer_norm_eps: f32,
    /// True if the cosines come first in the features of timesteps.
    pub flip_sin_to_cos: bool,
    /// Shift of the frequencies in the features of timesteps.
    pub freq_shift: f32,
    /// Sides of the latents it was trained on, in latent pixels; where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_size: Option<usize>,
    /// Conditions beside the text states (SDXL).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added: Option<AddedConfig>,
    /// Features of the guidance scale, for a network that was distilled with guidance and is told its scale (Luo et al. 2023;
    /// `time_cond_proj_dim` of diffusers); even and more than 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_features: Option<usize>,
}

impl Default for UNetConfig {
    fn default() -> Self {
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            attention_levels: vec![true, true, true, false],
            head_channels: vec![64; 4],
            transformer_depth: PerLevel::Same(1),
            linear_projection: true,
            context_channels: 1024,
            norm_groups: 32,
            norm_eps: 1e-5,
            transformer_norm_groups: 32,
            transformer_norm_eps: 1e-6,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            sample_size: None,
            added: None,
            guidance_features: None,
        }
    }
}

impl UNetConfig {
    /// Stable Diffusion 1.x (Rombach et al. 2022): eight heads in every level, CLIP ViT-L/14's text states. InstructPix2Pix
    /// is the same with 8 `in_channels`, inpainting with 9.
    pub fn stable_diffusion_1() -> Self {
        Self {
            head_channels: vec![40, 80, 160, 160],
            context_channels: 768,
            linear_projection: false,
            ..Self::default()
        }
    }

    /// Stable Diffusion 2.x: heads of 64 channels, OpenCLIP ViT-H/14's text states.
    pub fn stable_diffusion_2() -> Self {
        Self::default()
    }

    /// The variant of Stable Diffusion 2 that MLPerf Training measures: 16 groups in the residual blocks' norms.
    pub fn mlperf_stable_diffusion_2() -> Self {
        Self { norm_groups: 16, ..Self::default() }
    }

    /// Stable Diffusion XL base (Podell et al. 2023): three levels, transformers of depth 2 and 10 in the lower two, states
    /// of two text encoders, six numbers of size and crop.
    pub fn stable_diffusion_xl() -> Self {
        Self {
            block_out_channels: vec![320, 640, 1280],
            attention_levels: vec![false, true, true],
            head_channels: vec![64; 3],
            transformer_depth: PerLevel::Each(vec![1, 2, 10]),
            context_channels: 2048,
            sample_size: Some(128),
            added: Some(AddedConfig { time_features: 256, input_channels: 2816 }),
            ..Self::default()
        }
    }

    /// Stable Diffusion XL's refiner: the second text encoder's states, five numbers of size, crop and aesthetics.
    pub fn stable_diffusion_xl_refiner() -> Self {
        Self {
            block_out_channels: vec![384, 768, 1536, 1536],
            attention_levels: vec![false, true, true, false],
            head_channels: vec![64; 4],
            transformer_depth: PerLevel::Same(4),
            context_channels: 1280,
            sample_size: Some(128),
            added: Some(AddedConfig { time_features: 256, input_channels: 2560 }),
            ..Self::default()
        }
    }

    /// A network of Stable Diffusion's shape with 3.3 million parameters: 32 to 64 channels, eight heads in every level.
    pub fn tiny() -> Self {
        Self {
            block_out_channels: vec![32, 64, 64, 64],
            head_channels: vec![4, 8, 8, 8],
            context_channels: 64,
            ..Self::default()
        }
    }

    /// Checks that the levels agree and that groups and heads divide the channels.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let levels = self.block_out_channels.len();
        ConfigError::check(levels > 0, "block_out_channels", || "needs at least one level".into())?;
        ConfigError::check(self.attention_levels.len() == levels, "attention_levels", || {
            format!("needs {levels} entries, one for each level of block_out_channels")
        })?;
        ConfigError::check(self.head_channels.len() == levels, "head_channels", || {
            format!("needs {levels} entries, one for each level of block_out_channels")
        })?;
        if let PerLevel::Each(depths) = &self.transformer_depth {
            ConfigError::check(depths.len() == levels, "transformer_depth", || {
                format!("needs one number, or {levels}, one for each level of block_out_channels")
            })?;
        }
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            let mut divisors = vec![("norm_groups", self.norm_groups)];
            if self.attention_levels[level] || level + 1 == levels {
                divisors.push(("transformer_norm_groups", self.transformer_norm_groups));
                divisors.push(("head_channels", self.head_channels[level]));
            }
            for (field, divisor) in divisors {
                ConfigError::check(divisor > 0 && channels % divisor == 0, field, || {
                    format!("{divisor} does not divide a level's {channels} channels")
                })?;
            }
        }
        self.validate_features()
    }

    fn validate_features(&self) -> Result<(), ConfigError> {
        let even = |channels: usize| channels > 0 && channels.is_multiple_of(2);
        ConfigError::check(even(self.block_out_channels[0]), "block_out_channels", || {
            "the first level must have an even number of channels for the time features".into()
        })?;
        let told = self.guidance_features.is_none_or(|channels| even(channels) && channels > 2);
        ConfigError::check(told, "guidance_features", || "must be even and more than 2".into())?;
        let Some(added) = &self.added else { return Ok(()) };
        ConfigError::check(even(added.time_features), "added.time_features", || "must be even and not zero".into())?;
        ConfigError::check(added.input_channels > added.time_features, "added.input_channels", || {
            format!("must be more than the {} features of one number", added.time_features)
        })
    }

    /// Sides of a latent that are multiples of this are halved and doubled evenly; others work, with a last row or column
    /// that is left out on the way up.
    pub fn size_multiple(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// A UNet with random weights; the last layers of every branch start at zero as in the LDM
    /// reference.
    ///
    /// # Errors
    /// As [`UNetConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<UNet, ConfigError> {
        self.validate()?;
        let time_channels = 4 * self.block_out_channels[0];
        let first = self.block_out_channels[0];
        let last = *self.block_out_channels.last().unwrap_or(&first);
        let level = self.block_out_channels.len() - 1;
        let (down_blocks, skips) = self.down_blocks(init, time_channels);
        Ok(UNet {
            conv_in: Conv2d::same(init, self.in_channels, first, 3),
            time_embedding: self.time_embedding(init, time_channels),
            add_embedding: self.added.as_ref().map(|a| TimestepEmbedding::new(init, a.input_channels, time_channels)),
            down_blocks,
            mid_block: MidBlock {
                resnets: (0..2).map(|_| self.resnet(init, last, last, time_channels)).collect(),
                attentions: vec![self.transformer(init, level)],
            },
            up_blocks: self.up_blocks(init, time_channels, skips),
            conv_norm_out: GroupNorm::new(init, first, self.norm_groups, self.norm_eps),
            conv_out: Conv2d::zero(init, first, self.out_channels, 3),
            time_features: self.features(first),
            added: self.added.as_ref().map(|a| (self.features(a.time_features), a.input_channels)),
            guidance_features: self.guidance_features,
        })
    }

    fn time_embedding(&self, init: &mut Init, outputs: usize) -> TimestepEmbedding {
        let inputs = self.block_out_channels[0];
        let embedding = TimestepEmbedding::new(init, inputs, outputs);
        match self.guidance_features {
            Some(features) => embedding.conditioned(init, features, inputs),
            None => embedding,
        }
    }

    fn features(&self, channels: usize) -> TimestepFeatures {
        TimestepFeatures { channels, cosine_first: self.flip_sin_to_cos, frequency_shift: self.freq_shift }
    }

    /// The blocks on the way down, and the channels of every skip connection they leave.
    fn down_blocks(&self, init: &mut Init, time: usize) -> (Vec<DownBlock>, Vec<usize>) {
        let levels = self.block_out_channels.len();
        let mut channels = self.block_out_channels[0];
        let mut skips = vec![channels];
        let mut blocks = Vec::with_capacity(levels);
        for (level, &out) in self.block_out_channels.iter().enumerate() {
            let mut resnets = Vec::new();
            for _ in 0..self.layers_per_block {
                resnets.push(self.resnet(init, channels, out, time));
                channels = out;
                skips.push(out);
            }
            let attentions = self.transformers(init, level, self.layers_per_block);
            let last = level + 1 == levels;
            let downsamplers = (!last).then(|| vec![Downsample::symmetric(init, out)]);
            skips.extend((!last).then_some(out));
            blocks.push(DownBlock { resnets, attentions, downsamplers });
        }
        (blocks, skips)
    }

    fn up_blocks(&self, init: &mut Init, time: usize, mut skips: Vec<usize>) -> Vec<UpBlock> {
        let levels = self.block_out_channels.len();
        let mut channels = self.block_out_channels[levels - 1];
        let mut blocks = Vec::with_capacity(levels);
        for level in (0..levels).rev() {
            let out = self.block_out_channels[level];
            let mut resnets = Vec::new();
            for _ in 0..=self.layers_per_block {
                let skip = skips.pop().unwrap_or(0);
                resnets.push(self.resnet(init, channels + skip, out, time));
                channels = out;
            }
            let attentions = self.transformers(init, level, self.layers_per_block + 1);
            let upsamplers = (level > 0).then(|| vec![Upsample::new(init, out)]);
            blocks.push(UpBlock { resnets, attentions, upsamplers });
        }
        blocks
    }

    fn resnet(&self, init: &mut Init, inputs: usize, outputs: usize, time: usize) -> ResnetBlock {
        let norm = NormOptions { groups: self.norm_groups, eps: self.norm_eps };
        ResnetBlock::new(init, inputs, outputs, Some(time), norm).zero_last(init)
    }

    fn transformers(&self, init: &mut Init, level: usize, count: usize) -> Option<Vec<SpatialTransformer>> {
        self.attention_levels[level].then(|| (0..count).map(|_| self.transformer(init, level)).collect())
    }

    fn transformer(&self, init: &mut Init, level: usize) -> SpatialTransformer {
        let channels = self.block_out_channels[level];
        let shape = TransformerShape {
            channels,
            context: self.context_channels,
            heads: channels / self.head_channels[level],
            depth: self.transformer_depth.at(level),
            linear_projection: self.linear_projection,
            norm: NormOptions { groups: self.transformer_norm_groups, eps: self.transformer_norm_eps },
        };
        SpatialTransformer::new(init, shape)
    }
}

#[derive(Module, Debug)]
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Option<Vec<SpatialTransformer>>,
    downsamplers: Option<Vec<Downsample>>,
}

#[derive(Module, Debug)]
struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SpatialTransformer>,
}

#[derive(Module, Debug)]
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Option<Vec<SpatialTransformer>>,
    upsamplers: Option<Vec<Upsample>>,
}

/// The activations that residual blocks and transformers keep for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Everything that it needs.
    #[default]
    Activations,
    /// Their inputs; the rest is computed a second time, block by block. The same bits with less memory.
    Inputs,
}

/// A residual block with what is around it: the skip connection that is joined to its input, and the transformer after it.
type Unit = (ResnetBlock, Option<SpatialTransformer>);

/// The inputs that all units of a pass share.
struct Conditions {
    keep: Keep,
    time: Tensor<2>,
    context: Tensor<3>,
}

impl Conditions {
    fn unit(&self, resnet: &ResnetBlock, attention: Option<&SpatialTransformer>, h: Tensor<4>) -> Tensor<4> {
        let inputs = (h, self.time.clone(), self.context.clone());
        match self.keep {
            Keep::Activations => unit(resnet, attention, joined(inputs)),
            Keep::Inputs => {
                let block: Unit = (resnet.clone(), attention.cloned());
                recomputed(block, inputs, |block, inputs| unit(&block.0, block.1.as_ref(), inputs))
            }
        }
    }

    fn unit_with_skip(
        &self,
        resnet: &ResnetBlock,
        attention: Option<&SpatialTransformer>,
        h: Tensor<4>,
        skip: Tensor<4>,
    ) -> Tensor<4> {
        let inputs = (h, skip, self.time.clone(), self.context.clone());
        match self.keep {
            Keep::Activations => unit_with_skip(resnet, attention, joined(inputs)),
            Keep::Inputs => {
                let block: Unit = (resnet.clone(), attention.cloned());
                recomputed(block, inputs, |block, inputs| unit_with_skip(&block.0, block.1.as_ref(), inputs))
            }
        }
    }
}

fn unit(
    resnet: &ResnetBlock,
    attention: Option<&SpatialTransformer>,
    (h, time, context): (Tensor<4>, Tensor<2>, Tensor<3>),
) -> Tensor<4> {
    let h = resnet.forward(h, Some(time));
    match attention {
        Some(attention) => attention.forward(h, context),
        None => h,
    }
}

fn unit_with_skip(
    resnet: &ResnetBlock,
    attention: Option<&SpatialTransformer>,
    (h, skip, time, context): (Tensor<4>, Tensor<4>, Tensor<2>, Tensor<3>),
) -> Tensor<4> {
    unit(resnet, attention, (concat_channels(h, skip), time, context))
}

/// The values of [`AddedConfig`]'s conditions for one batch.
#[derive(Clone, Debug)]
pub struct AddedConditions {
    /// `[batch, channels]`: the pooled and projected text embeddings.
    pub text_embeds: Tensor<2>,
    /// `[batch, numbers]`, row after row: original height and width, top and left of the crop, target height and width for
    /// SDXL base.
    pub time_ids: Vec<f32>,
}

/// Inputs that do not fit a UNet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InputError {
    /// A size is not what the network or the other inputs ask for.
    #[error("{input} has {found} {what}, not {needed}")]
    Size {
        /// The argument.
        input: &'static str,
        /// The thing that was counted.
        what: &'static str,
        /// Their number.
        found: usize,
        /// The number there must be.
        needed: usize,
    },
    /// The network needs added conditions and got none, or the other way round.
    #[error("the network {}", if *.needed { "needs text_embeds and time_ids (SDXL)" } else { "takes no text_embeds and time_ids" })]
    Added {
        /// True if the network has an added embedding.
        needed: bool,
    },
    /// The network is told its guidance scale and was not, or the other way round.
    #[error("the network {}", if *.needed { "is told its guidance scale (LCM), and got none" } else { "is not told a guidance scale" })]
    Guidance {
        /// True if the network has features of the scale.
        needed: bool,
    },
}

/// What a pass does besides predicting; see [`UNet::forward_with`].
#[derive(Debug, Default)]
pub struct Pass<'a> {
    /// The activations that are kept for the backward pass.
    pub keep: Keep,
    /// `batch` guidance scales, for a network that is told them ([`UNetConfig::guidance_features`]), and only there.
    pub guidance: Option<&'a [f32]>,
    /// The features of the deep blocks: taken from here if they are there, else computed and left here.
    pub deep: Option<&'a mut DeepFeatures>,
}

/// The noise-predicting network (Rombach et al. 2022; `UNet2DConditionModel` of diffusers).
#[derive(Module, Debug)]
pub struct UNet {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    time_features: TimestepFeatures,
    /// Features of each added number, and the channels that go into the added embedding.
    #[module(skip)]
    added: Option<(TimestepFeatures, usize)>,
    #[module(skip)]
    guidance_features: Option<usize>,
}

impl UNet {
    /// Predicts noise, velocity or the clean latent, whichever the weights were trained for.
    ///
    /// # Shapes
    /// - `x`: `[batch, height, width, in]`; its dtype is the precision of the whole pass
    /// - `timesteps`: `batch` values, 0 is clean, fractions allowed
    /// - `context`: `[batch, tokens, context channels]`, the text encoder's states
    /// - `added`: where the configuration has it, and only there
    /// - returns `[batch, height, width, out]` in the dtype of `x`
    ///
    /// # Panics
    /// On inputs that [`UNet::check`] refuses.
    pub fn forward(
        &self,
        x: Tensor<4>,
        timesteps: &[f32],
        context: Tensor<3>,
        added: Option<&AddedConditions>,
    ) -> Tensor<4> {
        self.forward_keeping(Keep::Activations, x, timesteps, context, added)
    }

    /// [`UNet::forward`] with a choice of what is kept for the backward pass.
    ///
    /// # Panics
    /// As [`UNet::forward`].
    pub fn forward_keeping(
        &self,
        keep: Keep,
        x: Tensor<4>,
        timesteps: &[f32],
        context: Tensor<3>,
        added: Option<&AddedConditions>,
    ) -> Tensor<4> {
        self.forward_with(Pass { keep, ..Pass::default() }, x, timesteps, context, added)
    }

    /// [`UNet::forward`] with everything that a pass can do besides.
    ///
    /// # Panics
    /// As [`UNet::forward`], on scales that [`UNet::check_guidance`] refuses, and on deep features of another network.
    pub fn forward_with(
        &self,
        pass: Pass<'_>,
        x: Tensor<4>,
        timesteps: &[f32],
        context: Tensor<3>,
        added: Option<&AddedConditions>,
    ) -> Tensor<4> {
        let Pass { keep, guidance, deep } = pass;
        let checked = self.check(&x, timesteps, &context, added);
        if let Err(error) = checked.and_then(|()| self.check_guidance(guidance, timesteps.len())) {
            panic!("UNet: {error}");
        }
        let dtype = x.dtype();
        let time = activated_time(self.time(timesteps, guidance, added, &x));
        let conditions = Conditions { keep, time, context: context.cast(dtype) };
        let h = self.conv_in.forward(x);
        let h = match deep {
            None => self.whole(h, &conditions),
            Some(deep) => self.whole_or_shallow(h, &conditions, deep),
        };
        self.conv_out.forward(self.conv_norm_out.forward_silu(h))
    }

    /// All blocks.
    fn whole(&self, h: Tensor<4>, conditions: &Conditions) -> Tensor<4> {
        let (mut h, mut skips) = self.down_and_mid(h, conditions);
        for block in &self.up_blocks {
            h = block.forward(h, conditions, &mut skips);
        }
        h
    }

    fn down_and_mid(&self, mut h: Tensor<4>, conditions: &Conditions) -> (Tensor<4>, Vec<Tensor<4>>) {
        let mut skips = vec![h.clone()];
        for block in &self.down_blocks {
            h = block.forward(h, conditions, &mut skips);
        }
        h = conditions.unit(&self.mid_block.resnets[0], self.mid_block.attentions.first(), h);
        (conditions.unit(&self.mid_block.resnets[1], None, h), skips)
    }

    /// All blocks, leaving the deep features behind; or those above the deep features that are there.
    fn whole_or_shallow(&self, h: Tensor<4>, conditions: &Conditions, deep: &mut DeepFeatures) -> Tensor<4> {
        let branch = deep.branch();
        let last = self.up_blocks.len() - 1 - branch.level;
        let up = &self.up_blocks[last];
        let first = up.resnets.len().saturating_sub(branch.layer + 1);
        let (mut h, mut skips) = match deep.take() {
            Some(features) => {
                let mut skips = vec![h.clone()];
                let mut h = h;
                for block in &self.down_blocks[..branch.level] {
                    h = block.forward(h, conditions, &mut skips);
                }
                let block = &self.down_blocks[branch.level];
                let layers = branch.layer.min(block.resnets.len());
                // Its output is a skip connection only: what is below is known.
                block.layers(layers, h, conditions, &mut skips);
                (features, skips)
            }
            None => {
                let (mut h, mut skips) = self.down_and_mid(h, conditions);
                for block in &self.up_blocks[..last] {
                    h = block.forward(h, conditions, &mut skips);
                }
                (up.layers(0..first, h, conditions, &mut skips), skips)
            }
        };
        deep.put(h.clone());
        h = up.layers(first..up.resnets.len(), h, conditions, &mut skips);
        h = up.upsample(h, &skips);
        for block in &self.up_blocks[last + 1..] {
            h = block.forward(h, conditions, &mut skips);
        }
        h
    }

    /// A place for the features of the blocks below a skip connection, by DeepCache's number of it; none if there is no such
    /// connection. See [`DeepFeatures`].
    pub fn deep_features(&self, branch: usize) -> Option<DeepFeatures> {
        DeepFeatures::new(branch, self.down_blocks.len())
    }

    /// True if the network is told its guidance scale, so that one pass is guided.
    pub fn is_told_guidance(&self) -> bool {
        self.guidance_features.is_some()
    }

    /// Checks that guidance scales are there exactly where the network is told them, one for each row.
    ///
    /// # Errors
    /// [`InputError`].
    pub fn check_guidance(&self, guidance: Option<&[f32]>, batch: usize) -> Result<(), InputError> {
        match (self.is_told_guidance(), guidance) {
            (false, None) => Ok(()),
            (true, Some(scales)) if scales.len() == batch => Ok(()),
            (true, Some(scales)) => {
                let (input, what) = ("guidance_scale", "values");
                Err(InputError::Size { input, what, found: scales.len(), needed: batch })
            }
            (needed, _) => Err(InputError::Guidance { needed }),
        }
    }

    /// Checks that inputs fit the network and each other.
    ///
    /// # Errors
    /// [`InputError`] naming the first input that does not.
    pub fn check(
        &self,
        x: &Tensor<4>,
        timesteps: &[f32],
        context: &Tensor<3>,
        added: Option<&AddedConditions>,
    ) -> Result<(), InputError> {
        let [batch, _, _, channels] = x.dims();
        let [texts, _, width] = context.dims();
        let size = |input, what, found, needed| {
            if found == needed { Ok(()) } else { Err(InputError::Size { input, what, found, needed }) }
        };
        size("sample", "channels", channels, self.conv_in.inputs())?;
        size("timestep", "values", timesteps.len(), batch)?;
        size("encoder_hidden_states", "rows", texts, batch)?;
        if let Some(needed) = self.context_channels() {
            size("encoder_hidden_states", "channels", width, needed)?;
        }
        match (&self.added, added) {
            (None, None) => Ok(()),
            (Some((features, inputs)), Some(added)) => {
                let [texts, text_channels] = added.text_embeds.dims();
                size("text_embeds", "rows", texts, batch)?;
                let numbers = inputs.saturating_sub(text_channels) / features.channels;
                size("text_embeds", "channels", text_channels, inputs - numbers * features.channels)?;
                size("time_ids", "numbers", added.time_ids.len(), batch * numbers)
            }
            (needed, _) => Err(InputError::Added { needed: needed.is_some() }),
        }
    }

    /// Channels of the text states; none for a network without transformer blocks.
    fn context_channels(&self) -> Option<usize> {
        self.mid_block.attentions.first().and_then(SpatialTransformer::context_channels)
    }

    /// The embedding of timesteps, guidance scales and added conditions, in the dtype of `x`.
    fn time(
        &self,
        timesteps: &[f32],
        guidance: Option<&[f32]>,
        added: Option<&AddedConditions>,
        x: &Tensor<4>,
    ) -> Tensor<2> {
        let (dtype, device) = (x.dtype(), x.device());
        let told = self.guidance_features.zip(guidance);
        let told = told.map(|(channels, scales)| guidance_features(scales, channels, &device).cast(dtype));
        let time = self.time_embedding.forward_with(self.time_features.of(timesteps, &device).cast(dtype), told);
        let (Some(embedding), Some((features, inputs)), Some(added)) = (&self.add_embedding, self.added, added) else {
            return time;
        };
        let [batch, text_channels] = added.text_embeds.dims();
        let numbers = features.of(&added.time_ids, &device).reshape([batch, inputs - text_channels]);
        let joined = concat_channels(added.text_embeds.clone().cast(dtype), numbers.cast(dtype));
        add(time, embedding.forward(joined))
    }
}

impl DownBlock {
    fn forward(&self, h: Tensor<4>, conditions: &Conditions, skips: &mut Vec<Tensor<4>>) -> Tensor<4> {
        let mut h = self.layers(self.resnets.len(), h, conditions, skips);
        for downsample in self.downsamplers.iter().flatten() {
            h = downsample.forward(h);
            skips.push(h.clone());
        }
        h
    }

    /// The first `count` residual blocks, each with its transformer.
    fn layers(&self, count: usize, mut h: Tensor<4>, conditions: &Conditions, skips: &mut Vec<Tensor<4>>) -> Tensor<4> {
        for (i, resnet) in self.resnets[..count].iter().enumerate() {
            h = conditions.unit(resnet, self.attentions.as_ref().and_then(|a| a.get(i)), h);
            skips.push(h.clone());
        }
        h
    }
}

impl UpBlock {
    fn forward(&self, h: Tensor<4>, conditions: &Conditions, skips: &mut Vec<Tensor<4>>) -> Tensor<4> {
        let h = self.layers(0..self.resnets.len(), h, conditions, skips);
        self.upsample(h, skips)
    }

    /// Some of the residual blocks, each with its skip connection and its transformer.
    fn layers(
        &self,
        range: Range<usize>,
        mut h: Tensor<4>,
        conditions: &Conditions,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for i in range {
            let (resnet, attention) = (&self.resnets[i], self.attentions.as_ref().and_then(|a| a.get(i)));
            h = match skips.pop() {
                Some(skip) => conditions.unit_with_skip(resnet, attention, h, skip),
                None => conditions.unit(resnet, attention, h),
            };
        }
        h
    }

    /// To the size of the next skip connection, where there is a finer level.
    fn upsample(&self, mut h: Tensor<4>, skips: &[Tensor<4>]) -> Tensor<4> {
        for upsample in self.upsamplers.iter().flatten() {
            let [_, height, width, _] = h.dims();
            let size = skips.last().map_or([2 * height, 2 * width], |skip| [skip.dims()[1], skip.dims()[2]]);
            h = upsample.forward_to(h, size);
        }
        h
    }
}
/// Whether the weight of a key stays in `bf16` or `f32` where the UNet's layers are in 8 bits: the convolutions at both ends, whose few
/// channels are what the picture is made of, and what is made of the timestep and sizes, which is one row for an image. They take less
/// than a hundredth of the multiplications.
pub fn stays_wide(key: &str) -> bool {
    const BEGINNINGS: [&str; 4] = ["conv_in.", "conv_out.", "time_embedding.", "add_embedding."];
    BEGINNINGS.iter().any(|beginning| key.starts_with(beginning)) || key.contains(".time_emb_proj.")
}
