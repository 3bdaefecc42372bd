//! The KL-regularised autoencoder of latent diffusion.

use crate::ConfigError;
use crate::attention::PixelAttention;
use crate::init::Init;
use crate::layers::{Conv2d, GroupNorm};
use crate::resnet::{Downsample, NormOptions, ResnetBlock, Upsample};
use burn::module::Module;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The shape of an autoencoder; defaults are Stable Diffusion's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoencoderConfig {
    /// Channels of the picture.
    pub in_channels: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Channels of each level, from the finest; every level but the last halves the picture.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks in each level of the encoder; one more in the decoder.
    pub layers_per_block: usize,
    /// Groups of all norms.
    pub norm_groups: usize,
    /// Whether the middle of encoder and decoder attends over all pixels.
    pub mid_attention: bool,
}

impl Default for AutoencoderConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_groups: 32,
            mid_attention: true,
        }
    }
}

impl AutoencoderConfig {
    /// Epsilon of all norms in the reference.
    const NORM_EPS: f32 = 1e-6;

    /// Checks that the groups divide every level's channels.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let levels = &self.block_out_channels;
        ConfigError::check(!levels.is_empty(), "block_out_channels", || "needs at least one level".into())?;
        for &channels in levels {
            let ok = self.norm_groups > 0 && channels % self.norm_groups == 0;
            ConfigError::check(ok, "norm_groups", || {
                format!("{} does not divide a level's {channels} channels", self.norm_groups)
            })?;
        }
        Ok(())
    }

    /// Pixels of the picture for one pixel of the latent, along each side.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// An autoencoder with random weights; every residual block starts as its shortcut (the reference starts it at
    /// random, which costs a short training much of its time).
    ///
    /// # Errors
    /// As [`AutoencoderConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<Autoencoder, ConfigError> {
        self.validate()?;
        let z = self.latent_channels;
        Ok(Autoencoder {
            encoder: self.encoder(init),
            decoder: self.decoder(init),
            quant_conv: Conv2d::same(init, 2 * z, 2 * z, 1).with_bias(init, &Self::initial_moments(z)),
            post_quant_conv: Conv2d::same(init, z, z, 1),
        })
    }

    /// Biases of means and log-variances at the start: with the random start's variance of one, a latent would be nearly
    /// all noise, and training would first spend its time on quietening it.
    fn initial_moments(latent_channels: usize) -> Vec<f32> {
        const LOG_VARIANCE: f32 = -6.0;
        [vec![0.0; latent_channels], vec![LOG_VARIANCE; latent_channels]].concat()
    }

    fn norm(&self) -> NormOptions {
        NormOptions { groups: self.norm_groups, eps: Self::NORM_EPS }
    }

    fn resnet(&self, init: &mut Init, inputs: usize, outputs: usize) -> ResnetBlock {
        ResnetBlock::new(init, inputs, outputs, None, self.norm()).zero_last(init)
    }

    fn mid(&self, init: &mut Init, channels: usize) -> MidBlock {
        MidBlock {
            resnets: (0..2).map(|_| self.resnet(init, channels, channels)).collect(),
            attentions: self.mid_attention.then(|| vec![PixelAttention::new(init, channels, self.norm())]),
        }
    }

    fn encoder(&self, init: &mut Init) -> Encoder {
        let levels = self.block_out_channels.len();
        let mut channels = self.block_out_channels[0];
        let conv_in = Conv2d::same(init, self.in_channels, channels, 3);
        let mut down_blocks = Vec::with_capacity(levels);
        for (level, &out) in self.block_out_channels.iter().enumerate() {
            let mut resnets = Vec::new();
            for _ in 0..self.layers_per_block {
                resnets.push(self.resnet(init, channels, out));
                channels = out;
            }
            let downsamplers = (level + 1 < levels).then(|| vec![Downsample::asymmetric(init, out)]);
            down_blocks.push(EncoderBlock { resnets, downsamplers });
        }
        Encoder {
            conv_in,
            down_blocks,
            mid_block: self.mid(init, channels),
            conv_norm_out: GroupNorm::new(init, channels, self.norm_groups, Self::NORM_EPS),
            conv_out: Conv2d::same(init, channels, 2 * self.latent_channels, 3),
        }
    }

    fn decoder(&self, init: &mut Init) -> Decoder {
        let levels = self.block_out_channels.len();
        let mut channels = self.block_out_channels[levels - 1];
        let conv_in = Conv2d::same(init, self.latent_channels, channels, 3);
        let mid_block = self.mid(init, channels);
        let mut up_blocks = Vec::with_capacity(levels);
        for (i, &out) in self.block_out_channels.iter().rev().enumerate() {
            let mut resnets = Vec::new();
            for _ in 0..=self.layers_per_block {
                resnets.push(self.resnet(init, channels, out));
                channels = out;
            }
            let upsamplers = (i + 1 < levels).then(|| vec![Upsample::new(init, out)]);
            up_blocks.push(DecoderBlock { resnets, upsamplers });
        }
        Decoder {
            conv_in,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::new(init, channels, self.norm_groups, Self::NORM_EPS),
            conv_out: Conv2d::same(init, channels, self.in_channels, 3),
        }
    }
}

#[derive(Module, Debug)]
struct EncoderBlock {
    resnets: Vec<ResnetBlock>,
    downsamplers: Option<Vec<Downsample>>,
}

#[derive(Module, Debug)]
struct DecoderBlock {
    resnets: Vec<ResnetBlock>,
    upsamplers: Option<Vec<Upsample>>,
}

#[derive(Module, Debug)]
struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Option<Vec<PixelAttention>>,
}

impl MidBlock {
    fn forward(&self, h: Tensor<4>) -> Tensor<4> {
        let mut h = self.resnets[0].forward(h, None);
        for attention in self.attentions.iter().flatten() {
            h = attention.forward(h);
        }
        self.resnets[1].forward(h, None)
    }
}

#[derive(Module, Debug)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<EncoderBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

#[derive(Module, Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<DecoderBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// The autoencoder (Rombach et al. 2022; `AutoencoderKL` of diffusers).
#[derive(Module, Debug)]
pub struct Autoencoder {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
}

impl Autoencoder {
    /// The distribution over latents of a picture in `-1..1`.
    ///
    /// # Shapes
    /// `[batch, height, width, in]` to moments `[batch, height / f, width / f, 2 * latent]`
    pub fn encode(&self, picture: Tensor<4>) -> LatentDistribution {
        let encoder = &self.encoder;
        let mut h = encoder.conv_in.forward(picture);
        for block in &encoder.down_blocks {
            for resnet in &block.resnets {
                h = resnet.forward(h, None);
            }
            for downsample in block.downsamplers.iter().flatten() {
                h = downsample.forward(h);
            }
        }
        h = encoder.mid_block.forward(h);
        h = encoder.conv_out.forward(encoder.conv_norm_out.forward_silu(h));
        LatentDistribution { moments: self.quant_conv.forward(h) }
    }

    /// The picture, in `-1..1` where the decoder is sure, of an unscaled latent.
    ///
    /// # Shapes
    /// `[batch, height / f, width / f, latent]` to `[batch, height, width, in]`
    pub fn decode(&self, latent: Tensor<4>) -> Tensor<4> {
        let decoder = &self.decoder;
        let mut h = decoder.conv_in.forward(self.post_quant_conv.forward(latent));
        h = decoder.mid_block.forward(h);
        for block in &decoder.up_blocks {
            for resnet in &block.resnets {
                h = resnet.forward(h, None);
            }
            for upsample in block.upsamplers.iter().flatten() {
                h = upsample.forward(h);
            }
        }
        decoder.conv_out.forward(decoder.conv_norm_out.forward_silu(h))
    }
}

/// A diagonal normal distribution over latents: mean and log-variance in one tensor.
#[derive(Clone, Debug)]
pub struct LatentDistribution {
    /// `[batch, height, width, 2 * latent]`: means, then log-variances.
    pub moments: Tensor<4>,
}

impl LatentDistribution {
    /// `[batch, height, width, latent]`
    pub fn mean(&self) -> Tensor<4> {
        let channels = self.moments.dims()[3] / 2;
        self.moments.clone().narrow(3, 0, channels)
    }

    /// `[batch, height, width, latent]`, clamped to `-30..20` as in the reference.
    pub fn log_variance(&self) -> Tensor<4> {
        let channels = self.moments.dims()[3] / 2;
        self.moments.clone().narrow(3, channels, channels).clamp(-30.0, 20.0)
    }

    /// `mean + exp(log_variance / 2) * noise` for standard normal `noise` of the mean's shape.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean() + self.log_variance().mul_scalar(0.5).exp() * noise
    }

    /// Kullback-Leibler divergence from the standard normal in nats, averaged over all latent
    /// elements (Kingma & Welling 2014, appendix B). Shape `[1]`, computed and given as `f32`.
    pub fn kl(&self) -> Tensor<1> {
        let [mean, log_variance] = [self.mean(), self.log_variance()].map(|t| t.cast(DType::F32));
        let terms = mean.powi_scalar(2) + log_variance.clone().exp() - log_variance;
        terms.mean().sub_scalar(1.0).mul_scalar(0.5)
    }
}
