//! The conditional UNet of Stable Diffusion.

use crate::ConfigError;
use crate::attention::SpatialTransformer;
use crate::embeddings::{TimestepEmbedding, timestep_features};
use crate::init::Init;
use crate::layers::{Conv2d, GroupNorm};
use crate::resnet::{Downsample, NormOptions, ResnetBlock, Upsample, activated_time};
use burn::module::Module;
use burn::tensor::Tensor;
use calotype_ops::{concat_channels, joined, recomputed};
use serde::{Deserialize, Serialize};

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
    /// Which levels have spatial transformers.
    pub attention_levels: Vec<bool>,
    /// Channels of one attention head in each level.
    pub head_channels: Vec<usize>,
    /// Transformer blocks in each spatial transformer.
    pub transformer_depth: usize,
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
            transformer_depth: 1,
            context_channels: 1024,
            norm_groups: 32,
            norm_eps: 1e-5,
            transformer_norm_groups: 32,
            transformer_norm_eps: 1e-6,
        }
    }
}

impl UNetConfig {
    /// Stable Diffusion 1.x (Rombach et al. 2022): eight heads in every level, CLIP ViT-L/14's text states.
    pub fn stable_diffusion_1() -> Self {
        Self { head_channels: vec![40, 80, 160, 160], context_channels: 768, ..Self::default() }
    }

    /// Stable Diffusion 2.x: heads of 64 channels, OpenCLIP ViT-H/14's text states.
    pub fn stable_diffusion_2() -> Self {
        Self::default()
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
        for (&channels, &head) in self.block_out_channels.iter().zip(&self.head_channels) {
            for (field, groups) in [
                ("norm_groups", self.norm_groups),
                ("transformer_norm_groups", self.transformer_norm_groups),
                ("head_channels", head),
            ] {
                ConfigError::check(groups > 0 && channels % groups == 0, field, || {
                    format!("{groups} does not divide a level's {channels} channels")
                })?;
            }
        }
        ConfigError::check(self.block_out_channels[0].is_multiple_of(2), "block_out_channels", || {
            "the first level must have an even number of channels for the time features".into()
        })
    }

    /// How far apart the latent's sides may be divided: they must be multiples of this.
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
            time_embedding: TimestepEmbedding::new(init, first, time_channels),
            down_blocks,
            mid_block: MidBlock {
                resnets: (0..2).map(|_| self.resnet(init, last, last, time_channels)).collect(),
                attentions: vec![self.transformer(init, level)],
            },
            up_blocks: self.up_blocks(init, time_channels, skips),
            conv_norm_out: GroupNorm::new(init, first, self.norm_groups, self.norm_eps),
            conv_out: Conv2d::zero(init, first, self.out_channels, 3),
            time_features: first,
        })
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
        let heads = channels / self.head_channels[level];
        let norm = NormOptions { groups: self.transformer_norm_groups, eps: self.transformer_norm_eps };
        let (context, depth) = (self.context_channels, self.transformer_depth);
        SpatialTransformer::new(init, channels, context, heads, depth, norm)
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

/// What the residual blocks and transformers keep for the backward pass.
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

/// What all units of a pass share.
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

/// The noise-predicting network (Rombach et al. 2022; `UNet2DConditionModel` of diffusers).
#[derive(Module, Debug)]
pub struct UNet {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    time_features: usize,
}

impl UNet {
    /// Predicts noise, velocity or the clean latent, whichever the weights were trained for.
    ///
    /// # Shapes
    /// - `x`: `[batch, height, width, in]`; its dtype is the precision of the whole pass
    /// - `timesteps`: `batch` values, 0 is clean
    /// - `context`: `[batch, tokens, context channels]`, the text encoder's states
    /// - returns `[batch, height, width, out]` in the dtype of `x`
    pub fn forward(&self, x: Tensor<4>, timesteps: &[f32], context: Tensor<3>) -> Tensor<4> {
        self.forward_keeping(Keep::Activations, x, timesteps, context)
    }

    /// [`UNet::forward`] with a choice of what is kept for the backward pass.
    pub fn forward_keeping(&self, keep: Keep, x: Tensor<4>, timesteps: &[f32], context: Tensor<3>) -> Tensor<4> {
        let (dtype, device) = (x.dtype(), x.device());
        let features = timestep_features(timesteps, self.time_features, &device).cast(dtype);
        let time = activated_time(self.time_embedding.forward(features));
        let conditions = Conditions { keep, time, context: context.cast(dtype) };
        let mut h = self.conv_in.forward(x);
        let mut skips = vec![h.clone()];
        for block in &self.down_blocks {
            h = block.forward(h, &conditions, &mut skips);
        }
        h = conditions.unit(&self.mid_block.resnets[0], self.mid_block.attentions.first(), h);
        h = conditions.unit(&self.mid_block.resnets[1], None, h);
        for block in &self.up_blocks {
            h = block.forward(h, &conditions, &mut skips);
        }
        self.conv_out.forward(self.conv_norm_out.forward_silu(h))
    }
}

impl DownBlock {
    fn forward(&self, mut h: Tensor<4>, conditions: &Conditions, skips: &mut Vec<Tensor<4>>) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            h = conditions.unit(resnet, self.attentions.as_ref().and_then(|a| a.get(i)), h);
            skips.push(h.clone());
        }
        for downsample in self.downsamplers.iter().flatten() {
            h = downsample.forward(h);
            skips.push(h.clone());
        }
        h
    }
}

impl UpBlock {
    fn forward(&self, mut h: Tensor<4>, conditions: &Conditions, skips: &mut Vec<Tensor<4>>) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let attention = self.attentions.as_ref().and_then(|a| a.get(i));
            h = match skips.pop() {
                Some(skip) => conditions.unit_with_skip(resnet, attention, h, skip),
                None => conditions.unit(resnet, attention, h),
            };
        }
        for upsample in self.upsamplers.iter().flatten() {
            h = upsample.forward(h);
        }
        h
    }
}
