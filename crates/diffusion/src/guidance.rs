//! Classifier-free guidance around a UNet.

use crate::caching::CachedRun;
use crate::samplers::Denoiser;
use burn::tensor::{DType, Tensor};
use calotype_models::{AddedConditions, DeepFeatures, Pass, UNet};

/// The conditions of a UNet besides the noisy latents.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// `[batch, tokens, context]`: the hidden states of each image's prompt.
    pub context: Tensor<3>,
    /// SDXL's pooled text and sizes.
    pub added: Option<AddedConditions>,
}

impl Conditions {
    /// Those of some images.
    fn rows(&self, images: &[usize]) -> Self {
        let added = self.added.as_ref().map(|added| {
            let numbers = added.time_ids.len() / self.context.dims()[0].max(1);
            let of = |&image: &usize| &added.time_ids[image * numbers..(image + 1) * numbers];
            AddedConditions {
                text_embeds: rows(&added.text_embeds, images),
                time_ids: images.iter().flat_map(of).copied().collect(),
            }
        });
        Self { context: rows(&self.context, images), added }
    }

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
/// `uncond + scale * (cond - uncond)`, from one batch with the prompts of all images and the empty or negative ones of those
/// that are guided. A scale of 1 or less means no guidance: the image's second half of the batch is left out. A network that
/// is told its scale ([`UNet::is_told_guidance`]) gets it instead, and no negative prompt.
///
/// The output of an image does not depend on the scales of the others.
pub struct GuidedUNet<'a> {
    unet: &'a UNet,
    /// The prompts of all images.
    cond: Conditions,
    /// In front of them, those that guided images are led away from.
    joined: Conditions,
    /// Images whose scale is above 1, in ascending order.
    guided: Vec<usize>,
    scales: Vec<f32>,
    /// Share of [`rescale_guidance`]; 0 is none. Images without guidance are not rescaled.
    pub rescale: f64,
    /// `[batch, height, width, channels]`: what the network takes behind the latent's channels, such as a mask and the image
    /// around it.
    pub extra: Option<Tensor<4>>,
    /// The deep features that calls share; none: every call computes the whole network.
    pub cached: Option<CachedRun>,
    /// Precision of the UNet's activations.
    pub dtype: DType,
}

impl<'a> GuidedUNet<'a> {
    /// A UNet (without autodiff) with each image's prompt `cond`, its empty or negative prompt `uncond`, and its guidance
    /// scale; activations are `f32`, unless [`dtype`](Self::dtype) is changed.
    ///
    /// # Panics
    /// If there are not as many scales as rows of `cond` and of `uncond`.
    pub fn new(unet: &'a UNet, cond: Conditions, uncond: &Conditions, scales: &[f32]) -> Self {
        let rows = [cond.context.dims()[0], uncond.context.dims()[0]];
        assert_eq!(rows, [scales.len(); 2], "one guidance scale, prompt and negative prompt for each image");
        let is_guided = |&row: &usize| scales[row] > 1.0 && !unet.is_told_guidance();
        let guided: Vec<usize> = (0..scales.len()).filter(is_guided).collect();
        let joined = if guided.is_empty() { cond.clone() } else { uncond.rows(&guided).joined(&cond) };
        Self {
            unet,
            cond,
            joined,
            guided,
            scales: scales.to_vec(),
            rescale: 0.0,
            extra: None,
            cached: None,
            dtype: DType::F32,
        }
    }

    fn call(&self, x: Tensor<4>, t: f64, conditions: &Conditions) -> Tensor<4> {
        match &self.cached {
            None => self.pass(x, t, conditions, None),
            Some(cached) => cached.pass(t, |deep| self.pass(x, t, conditions, Some(deep))),
        }
    }

    fn pass(&self, x: Tensor<4>, t: f64, conditions: &Conditions, deep: Option<&mut DeepFeatures>) -> Tensor<4> {
        let times = vec![t as f32; x.dims()[0]];
        // Nothing is guided by such a network: the rows are the images.
        let guidance = self.unet.is_told_guidance().then_some(&self.scales[..]);
        let pass = Pass { guidance, deep, ..Pass::default() };
        let Conditions { context, added } = conditions;
        self.unet.forward_with(pass, x, &times, context.clone(), added.as_ref()).cast(DType::F32)
    }

    /// `uncond + scale * (cond - uncond)` of the guided images.
    fn guide(&self, uncond: Tensor<4>, cond: Tensor<4>) -> Tensor<4> {
        let scales: Vec<f32> = self.guided.iter().map(|&row| self.scales[row]).collect();
        let scales = Tensor::<1>::from_floats(scales.as_slice(), &cond.device()).reshape([scales.len(), 1, 1, 1]);
        let guided = uncond.clone() + (cond.clone() - uncond) * scales;
        if self.rescale == 0.0 { guided } else { rescale_guidance(guided, cond, self.rescale) }
    }
}

impl Denoiser for GuidedUNet<'_> {
    fn predict(&self, input: Tensor<4>, t: f64) -> Tensor<4> {
        let [batch, _, _, _] = input.dims();
        let x = match &self.extra {
            Some(extra) => Tensor::cat(vec![input, extra.clone()], 3),
            None => input,
        };
        let (x, guided) = (x.cast(self.dtype), self.guided.len());
        if guided == 0 {
            return self.call(x, t, &self.cond);
        }
        let y = self.call(Tensor::cat(vec![rows(&x, &self.guided), x], 0), t, &self.joined);
        let (uncond, cond) = (y.clone().narrow(0, 0, guided), y.narrow(0, guided, batch));
        let led = self.guide(uncond, rows(&cond, &self.guided));
        if guided == batch {
            return led;
        }
        // Images without guidance keep the output for their own prompt.
        let row = |row: usize| match self.guided.binary_search(&row) {
            Ok(at) => led.clone().narrow(0, at, 1),
            Err(_) => cond.clone().narrow(0, row, 1),
        };
        Tensor::cat((0..batch).map(row).collect(), 0)
    }
}

/// Some rows of a tensor, in ascending order; the tensor itself if these are all.
fn rows<const D: usize>(x: &Tensor<D>, rows: &[usize]) -> Tensor<D> {
    if rows.len() == x.dims()[0] {
        return x.clone();
    }
    Tensor::cat(rows.iter().map(|&row| x.clone().narrow(0, row, 1)).collect(), 0)
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
