//! The KL-regularised autoencoder of latent diffusion.

use crate::ConfigError;
use crate::attention::PixelAttention;
use crate::init::Init;
use crate::layers::{Conv2d, GroupNorm};
use crate::resnet::{Downsample, NormOptions, ResnetBlock, Upsample};
use crate::state;
use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// The shape of an autoencoder; defaults are Stable Diffusion's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoencoderConfig {
    /// Channels of the image.
    pub in_channels: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Channels of each level, from the finest; every level but the last halves the image.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks in each level of the encoder; one more in the decoder.
    pub layers_per_block: usize,
    /// Groups of all norms.
    pub norm_groups: usize,
    /// True if the middle of encoder and decoder attends over all pixels.
    pub mid_attention: bool,
    /// True if a 1x1 convolution makes the moments of what the encoder gives.
    pub use_quant_conv: bool,
    /// True if a 1x1 convolution makes the decoder's input of a latent.
    pub use_post_quant_conv: bool,
    /// Sides of the images it was trained on, in pixels: the size of tiles.
    pub sample_size: usize,
    /// True if the decoder is known to overflow in 16-bit floats with a range like IEEE 754's binary16.
    pub force_upcast: bool,
    /// Latents are multiplied by this for diffusion; where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<f32>,
    /// Mean of each channel of the latents, to be subtracted for diffusion together with a division by `latents_std`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latents_mean: Option<Vec<f32>>,
    /// Standard deviation of each channel of the latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latents_std: Option<Vec<f32>>,
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
            use_quant_conv: true,
            use_post_quant_conv: true,
            sample_size: 512,
            force_upcast: true,
            scaling_factor: None,
            latents_mean: None,
            latents_std: None,
        }
    }
}

impl AutoencoderConfig {
    /// Epsilon of all norms in the reference.
    const NORM_EPS: f32 = 1e-6;

    /// One over the deviation of Stable Diffusion's latents (Rombach et al. 2022, section D.1).
    pub(crate) const STABLE_DIFFUSION_SCALE: f32 = 0.18215;

    /// Stable Diffusion 1 and 2.
    pub fn stable_diffusion() -> Self {
        Self { scaling_factor: Some(Self::STABLE_DIFFUSION_SCALE), ..Self::default() }
    }

    /// Stable Diffusion XL (Podell et al. 2023, section 2.4).
    pub fn stable_diffusion_xl() -> Self {
        Self { scaling_factor: Some(0.13025), sample_size: 1024, ..Self::default() }
    }

    /// Checks that the groups divide every level's channels, and that there are tiles and statistics to work with.
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
        ConfigError::check(self.sample_size >= 4 * self.downscale(), "sample_size", || {
            format!("tiles of less than {} pixels do not overlap in the latent", 4 * self.downscale())
        })?;
        let z = self.latent_channels;
        for (field, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let ok = values.as_ref().is_none_or(|values| values.len() == z);
            ConfigError::check(ok, field, || format!("needs {z} numbers, one for each channel of the latent"))?;
        }
        let both = self.latents_mean.is_some() == self.latents_std.is_some();
        ConfigError::check(both, "latents_std", || "needs latents_mean, and the other way round".into())
    }

    /// Tiles as diffusers cuts them: of the size of the training images, a quarter of it shared with the next.
    pub fn tiling(&self) -> Tiling {
        Tiling { image: self.sample_size, latent: self.sample_size / self.downscale(), overlap: 0.25 }
    }

    /// The latent that diffusion works on, of a latent of the encoder: `(z - mean) * scale / deviation`.
    ///
    /// # Shapes
    /// `[batch, height, width, latent]` to the same
    pub fn scaled(&self, latent: Tensor<4>) -> Tensor<4> {
        let scale = self.scaling_factor.unwrap_or(1.0);
        match self.statistics(&latent) {
            Some([mean, deviation]) => (latent - mean).mul_scalar(scale) / deviation,
            None => latent.mul_scalar(scale),
        }
    }

    /// The inverse of [`AutoencoderConfig::scaled`]: a latent for the decoder.
    ///
    /// # Shapes
    /// `[batch, height, width, latent]` to the same
    pub fn unscaled(&self, latent: Tensor<4>) -> Tensor<4> {
        let scale = self.scaling_factor.unwrap_or(1.0);
        match self.statistics(&latent) {
            Some([mean, deviation]) => (latent * deviation).div_scalar(scale) + mean,
            None => latent.div_scalar(scale),
        }
    }

    /// Mean and deviation of the channels, in the dtype and on the device of a latent.
    fn statistics(&self, latent: &Tensor<4>) -> Option<[Tensor<4>; 2]> {
        let (mean, deviation) = self.latents_mean.as_ref().zip(self.latents_std.as_ref())?;
        let tensor = |values: &Vec<f32>| {
            let data = TensorData::new(values.clone(), [1, 1, 1, values.len()]);
            Tensor::<4>::from_data(data, &latent.device()).cast(latent.dtype())
        };
        Some([tensor(mean), tensor(deviation)])
    }

    /// Pixels of the image for one pixel of the latent, along each side.
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
            encoder: Some(self.encoder(init)),
            decoder: self.decoder(init),
            quant_conv: self
                .use_quant_conv
                .then(|| Conv2d::same(init, 2 * z, 2 * z, 1).with_bias(init, &Self::initial_moments(z))),
            post_quant_conv: self.post_quant_conv(init),
        })
    }

    /// An autoencoder that only decodes, as text-to-image needs it.
    ///
    /// # Errors
    /// As [`AutoencoderConfig::validate`].
    pub fn init_decoder(&self, init: &mut Init) -> Result<Autoencoder, ConfigError> {
        self.validate()?;
        let decoder = self.decoder(init);
        Ok(Autoencoder { encoder: None, decoder, quant_conv: None, post_quant_conv: self.post_quant_conv(init) })
    }

    fn post_quant_conv(&self, init: &mut Init) -> Option<Conv2d> {
        let z = self.latent_channels;
        self.use_post_quant_conv.then(|| Conv2d::same(init, z, z, 1))
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
    encoder: Option<Encoder>,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
}

/// The cut of a large image into tiles that are encoded or decoded on their own (`enable_tiling` of diffusers).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiling {
    /// Sides of a tile in pixels of the image.
    pub image: usize,
    /// Sides of a tile in pixels of the latent.
    pub latent: usize,
    /// Share of a tile that the next tile has too; over it, one is faded into the other.
    pub overlap: f64,
}

impl Tiling {
    /// Applies `f` to tiles of `x` with sides of `from` pixels, which become `to` pixels, and joins them.
    ///
    /// The last tiles are what is left of the image, however little; values are faded in `f32`.
    fn apply(&self, x: Tensor<4>, from: usize, to: usize, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let [_, height, width, _] = x.dims();
        let step = ((from as f64 * (1.0 - self.overlap)) as usize).max(1);
        let fade = (to as f64 * self.overlap) as usize;
        let keep = to - fade;
        let crop = |t: Tensor<4>, axis: usize| {
            let length = t.dims()[axis].min(keep);
            t.narrow(axis, 0, length)
        };
        let mut above: Vec<Tensor<4>> = Vec::new();
        let mut lines = Vec::new();
        for top in (0..height).step_by(step) {
            let strip = x.clone().narrow(1, top, from.min(height - top));
            let mut row: Vec<Tensor<4>> = Vec::new();
            for (i, left) in (0..width).step_by(step).enumerate() {
                let mut tile = f(strip.clone().narrow(2, left, from.min(width - left))).cast(DType::F32);
                if let Some(above) = above.get(i) {
                    tile = faded(above, tile, 1, fade);
                }
                if let Some(before) = row.last() {
                    tile = faded(before, tile, 2, fade);
                }
                row.push(tile);
            }
            lines.push(crop(Tensor::cat(row.iter().map(|tile| crop(tile.clone(), 2)).collect(), 2), 1));
            above = row;
        }
        Tensor::cat(lines, 1).cast(x.dtype())
    }
}

/// `after`, whose first `fade` lines along an axis come linearly out of the last lines of `before`.
fn faded(before: &Tensor<4>, after: Tensor<4>, axis: usize, fade: usize) -> Tensor<4> {
    let (first, length) = (before.dims()[axis], after.dims()[axis]);
    let fade = fade.min(first).min(length);
    if fade == 0 {
        return after;
    }
    let mut shape = [1; 4];
    shape[axis] = fade;
    let weights: Vec<f32> = (0..fade).map(|i| (i as f64 / fade as f64) as f32).collect();
    let share = Tensor::<4>::from_data(TensorData::new(weights, shape), &after.device());
    let out = before.clone().narrow(axis, first - fade, fade) * (-share.clone() + 1.0);
    let mixed = out + after.clone().narrow(axis, 0, fade) * share;
    if fade == length {
        return mixed;
    }
    Tensor::cat(vec![mixed, after.narrow(axis, fade, length - fade)], axis)
}

/// A decoder's output with values that are no numbers: those of the weights or the latent left the range of the precision.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the autoencoder gave {count} values of {total} that are not finite, in {dtype}: decode in f32, use weights made for \
     16-bit floats, or check that weights and latents are finite"
)]
pub struct NonFinite {
    /// Values that are infinite or not a number.
    pub count: usize,
    /// All values.
    pub total: usize,
    /// Precision of the pass.
    pub dtype: &'static str,
}

impl Autoencoder {
    /// The distribution over latents of an image in `-1..1`.
    ///
    /// # Shapes
    /// `[batch, height, width, in]` to moments `[batch, height / f, width / f, 2 * latent]`
    ///
    /// # Panics
    /// If it was made by [`AutoencoderConfig::init_decoder`].
    pub fn encode(&self, image: Tensor<4>) -> LatentDistribution {
        let encoder = self.encoder.as_ref().expect("an autoencoder that only decodes was asked to encode");
        let mut h = encoder.conv_in.forward(image);
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
        LatentDistribution {
            moments: match &self.quant_conv {
                Some(quant_conv) => quant_conv.forward(h),
                None => h,
            },
        }
    }

    /// [`Autoencoder::encode`] in tiles if the image is larger than one. The moments differ from those of the whole
    /// image, for no tile sees all of it.
    pub fn encode_tiled(&self, image: Tensor<4>, tiling: &Tiling) -> LatentDistribution {
        let [_, height, width, _] = image.dims();
        if height.max(width) <= tiling.image {
            return self.encode(image);
        }
        let moments = tiling.apply(image, tiling.image, tiling.latent, |tile| self.encode(tile).moments);
        LatentDistribution { moments }
    }

    /// The image, in `-1..1` where the decoder is sure, of an unscaled latent.
    ///
    /// # Shapes
    /// `[batch, height / f, width / f, latent]` to `[batch, height, width, in]`
    pub fn decode(&self, latent: Tensor<4>) -> Tensor<4> {
        let decoder = &self.decoder;
        let latent = match &self.post_quant_conv {
            Some(post_quant_conv) => post_quant_conv.forward(latent),
            None => latent,
        };
        let mut h = decoder.conv_in.forward(latent);
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

    /// [`Autoencoder::decode`] in tiles if the latent is larger than one.
    pub fn decode_tiled(&self, latent: Tensor<4>, tiling: &Tiling) -> Tensor<4> {
        let [_, height, width, _] = latent.dims();
        if height.max(width) <= tiling.latent {
            return self.decode(latent);
        }
        tiling.apply(latent, tiling.latent, tiling.image, |tile| self.decode(tile))
    }

    /// A decoded image, in tiles where `tiling` says so, that is known to have no infinities and no NaN; in `f32`.
    ///
    /// # Shapes
    /// As [`Autoencoder::decode`].
    ///
    /// # Errors
    /// [`NonFinite`], with what to do.
    pub fn decode_finite(&self, latent: Tensor<4>, tiling: Option<&Tiling>) -> Result<Tensor<4>, NonFinite> {
        let dtype = latent.dtype().name();
        let image = match tiling {
            Some(tiling) => self.decode_tiled(latent, tiling),
            None => self.decode(latent),
        };
        let image = image.cast(DType::F32);
        let values = state::values_of(image.clone());
        match values.iter().filter(|value| !value.is_finite()).count() {
            0 => Ok(image),
            count => Err(NonFinite { count, total: values.len(), dtype }),
        }
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
