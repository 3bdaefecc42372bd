//! Memory that drawing takes, estimated from the networks' configurations before any of it is taken.

use crate::error::PipelineError;
use crate::pipeline::Pipeline;
use crate::request::{Request, Settings};
use burn::tensor::DType;
use calotype_models::{AutoencoderConfig, UNetConfig};

/// Feature maps in memory at once while a UNet runs, as multiples of the outputs of all its blocks: 4.5 were measured for a
/// tiny UNet of two levels, 7 for Stable Diffusion 1, with what the allocator keeps.
const UNET_MAPS: f64 = 6.0;

/// Feature maps of the largest level in memory at once while an autoencoder decodes, as measured: inputs, outputs and padded
/// copies of convolutions, with what the allocator keeps.
const DECODER_MAPS: f64 = 4.5;

/// Copies of a finished image in `f32` that are there at once.
const IMAGE_COPIES: f64 = 3.0;

impl Pipeline {
    /// Roughly the largest memory, in bytes, that drawing these requests takes: weights of UNet and autoencoder, and the
    /// feature maps of the largest batch. Text encoders are not counted. It is an estimate for refusing what cannot be: within
    /// a third of what was measured on CPUs for tiny and full-size networks.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] for sizes that cannot be drawn.
    pub fn memory(&self, requests: &[Request], settings: &Settings) -> Result<u64, PipelineError> {
        let together = requests.len().min(settings.batch.max(1));
        let is_last = requests.len() <= together;
        let element = bytes_of(self.dtype);
        let unet = self.unet.weight_bytes(element as usize)? as f64;
        let autoencoder = self.autoencoder.weight_bytes(element as usize)? as f64;
        let mut most = 0.0_f64;
        for request in requests {
            let size = self.image_size(request, settings)?;
            // A network that is told its guidance scale makes no second pass.
            let is_told = self.unet.config().guidance_features.is_some();
            let guided = request.guidance.unwrap_or(self.defaults.guidance) > 1.0 && !is_told;
            let rows = together * if guided { 2 } else { 1 };
            let by = self.autoencoder.config().downscale();
            let sample = element * rows as f64 * unet_maps(self.unet.config(), size.map(|side| side / by));
            let decode = element * decoder_maps(self.autoencoder.config(), size, self.tiled) + image_bytes(size);
            // With little memory, the UNet is gone when the last images are decoded.
            let beside = if self.low_memory && is_last { 0.0 } else { unet };
            most = most.max(autoencoder + (unet + sample).max(beside + decode));
        }
        let refined = self.refiner.as_ref().map(|refiner| refiner.pipeline.memory(requests, settings)).transpose()?;
        // A float as an integer saturates.
        Ok((most as u64).max(refined.unwrap_or(0)))
    }
}

fn bytes_of(dtype: DType) -> f64 {
    if dtype == DType::BF16 { 2.0 } else { 4.0 }
}

/// Elements of an UNet's feature maps for one latent of `[height, width]`.
fn unet_maps(config: &UNetConfig, [height, width]: [usize; 2]) -> f64 {
    let (pixels, levels) = (height as f64 * width as f64, config.block_out_channels.len());
    // Each level halves both sides: blocks on the way down, one more on the way up, and the resampling behind them.
    let of = |(level, &channels): (usize, &usize)| {
        let blocks = 2 * config.layers_per_block + 1;
        let resampled = if level + 1 < levels { 0.25 } else { 0.0 };
        channels as f64 * (blocks as f64 + resampled) / 4_f64.powi(level as i32)
    };
    let first = config.block_out_channels.first().copied().unwrap_or_default() as f64;
    UNET_MAPS * pixels * (first + config.block_out_channels.iter().enumerate().map(of).sum::<f64>())
}

/// Elements of a decoder's feature maps for one image of `[height, width]`, or the largest tile of it.
fn decoder_maps(config: &AutoencoderConfig, size: [usize; 2], tiled: bool) -> f64 {
    let tile = if tiled { config.tiling().image } else { usize::MAX };
    let pixels: f64 = size.iter().map(|&side| side.min(tile) as f64).product();
    // The level below comes to the image's size with its own channels.
    let channels = config.block_out_channels.iter().take(2).max().copied().unwrap_or_default();
    DECODER_MAPS * pixels * channels as f64
}

fn image_bytes(size: [usize; 2]) -> f64 {
    IMAGE_COPIES * 4.0 * 3.0 * size.iter().map(|&side| side as f64).product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Peaks of `bench generate` on a Zen 4 with two threads, less what the process had before the stage, in MiB.
    #[test]
    fn estimates_are_near_what_was_measured() {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let near = |estimate: f64, measured: f64| assert!((0.66..1.5).contains(&(estimate / measured)), "{estimate}");
        // Stable Diffusion 1, bf16, 768x768, guided: 2.95 GiB in all behind 1.87 GiB of weights and 256x256.
        near(mib(2.0 * 2.0 * unet_maps(&UNetConfig::stable_diffusion_1(), [96, 96])), 860.0);
        // The tiny family: 1024x1024.
        let unet =
            UNetConfig { block_out_channels: vec![32, 64], layers_per_block: 1, ..UNetConfig::stable_diffusion_1() };
        near(mib(4.0 * 2.0 * unet_maps(&unet, [128, 128])), 102.0);
        let vae = AutoencoderConfig { block_out_channels: vec![16, 16, 32, 32], ..AutoencoderConfig::default() };
        let decoded = |config: &AutoencoderConfig, tiled| decoder_maps(config, [1024, 1024], tiled);
        near(mib(4.0 * decoded(&vae, false) + image_bytes([1024, 1024])), 340.0);
        assert_eq!(decoded(&vae, true) * 4.0, decoded(&vae, false));
    }
}
