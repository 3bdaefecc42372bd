//! Classifier-free guidance around a UNet.

use crate::samplers::Denoiser;
use burn::tensor::{DType, Tensor};
use calotype_models::{AddedConditions, UNet};

/// What a UNet is told besides the noisy latents.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// `[batch, tokens, context]`: the states of each picture's prompt.
    pub context: Tensor<3>,
    /// SDXL's pooled text and sizes.
    pub added: Option<AddedConditions>,
}

impl Conditions {
    /// The rows of both, one batch behind the other.
    fn joined(&self, behind: &Self) -> Self {
        let added = self.added.as_ref().zip(behind.added.as_ref()).map(|(a, b)| AddedConditions {
            text_embeds: Tensor::cat(vec![a.text_embeds.clone(), b.text_embeds.clone()], 0),
            time_ids: [&a.time_ids[..], &b.time_ids].concat(),
        });
        Self { context: Tensor::cat(vec![self.context.clone(), behind.context.clone()], 0), added }
    }
}

/// A UNet with its prompts, as a denoiser (Ho & Salimans 2022, eq. 6): the output is
/// `uncond + scale * (cond - uncond)`, from one doubled batch.
pub struct GuidedUNet<'a> {
    /// The network, without autodiff.
    pub unet: &'a UNet,
    /// Each picture's prompt.
    pub cond: Conditions,
    /// The empty or negative prompt of each.
    pub uncond: Conditions,
    /// Guidance scale; at 1 and below the second half of the batch is left out.
    pub scale: f32,
    /// Share of [`rescale_guidance`]; 0 is none.
    pub rescale: f64,
    /// `[batch, height, width, channels]`: what the network takes behind the latent's channels, such as a mask and the picture
    /// around it.
    pub extra: Option<Tensor<4>>,
    /// Precision of the UNet's activations.
    pub dtype: DType,
}

impl GuidedUNet<'_> {
    fn call(&self, x: Tensor<4>, t: f32, conditions: &Conditions) -> Tensor<4> {
        let times = vec![t; x.dims()[0]];
        self.unet.forward(x, &times, conditions.context.clone(), conditions.added.as_ref()).cast(DType::F32)
    }
}

impl Denoiser for GuidedUNet<'_> {
    fn predict(&self, input: Tensor<4>, t: f64) -> Tensor<4> {
        let [batch, _, _, _] = input.dims();
        let x = match &self.extra {
            Some(extra) => Tensor::cat(vec![input, extra.clone()], 3),
            None => input,
        };
        let x = x.cast(self.dtype);
        if self.scale <= 1.0 {
            return self.call(x, t as f32, &self.cond);
        }
        let doubled = Tensor::cat(vec![x.clone(), x], 0);
        let y = self.call(doubled, t as f32, &self.uncond.joined(&self.cond));
        let uncond = y.clone().narrow(0, 0, batch);
        let cond = y.narrow(0, batch, batch);
        let guided = uncond.clone() + (cond.clone() - uncond).mul_scalar(self.scale);
        if self.rescale == 0.0 { guided } else { rescale_guidance(guided, cond, self.rescale) }
    }
}

/// Guidance rescale (Lin et al. 2024, section 3.4): `guided` with the deviation of the prompt's own output `cond`,
/// mixed by `share` (0.7 in the paper; 0 changes nothing) with `guided` itself.
///
/// # Shapes
/// both `[batch, height, width, channels]`; deviations are over all but the batch
pub fn rescale_guidance(guided: Tensor<4>, cond: Tensor<4>, share: f64) -> Tensor<4> {
    let deviation = |x: &Tensor<4>| {
        let [batch, height, width, channels] = x.dims();
        let rows = x.clone().reshape([batch, height * width * channels]);
        rows.var(1).sqrt().reshape([batch, 1, 1, 1])
    };
    let ratio = deviation(&cond) / deviation(&guided);
    guided * ratio.mul_scalar(share).add_scalar(1.0 - share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    // Golden values: diffusers 0.42.1, `rescale_noise_cfg(guided, cond, 0.7)`.
    #[test]
    fn rescaled_guidance() {
        let device = Device::default();
        let of = |f: fn(f32) -> f32| -> Tensor<4> {
            let data: Vec<f32> = (0..8).map(|i| f(i as f32)).collect();
            Tensor::from_data(TensorData::new(data, [2, 1, 2, 2]), &device)
        };
        let (guided, cond) = (of(|i| i * i / 8.0 - 1.0), of(|i| (i * 1.5).rem_euclid(2.0)));
        let got: Vec<f32> = rescale_guidance(guided, cond, 0.7).into_data().try_to_vec().unwrap();
        let expected = [-1.194427, -1.045124, -0.597214, 0.149303, 0.553708, 1.17663, 1.937979, 2.837754];
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "{got}, expected {expected}");
        }
    }
}
