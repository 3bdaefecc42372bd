//! Classifier-free guidance around a UNet.

use crate::objective::Prediction;
use crate::sampler::{Denoiser, Estimate};
use crate::schedule::NoiseSchedule;
use burn::tensor::{DType, Tensor};
use calotype_models::UNet;

/// A UNet with its prompts, as a denoiser (Ho & Salimans 2022, eq. 6): the output is
/// `uncond + scale * (cond - uncond)`, from one doubled batch.
pub struct GuidedUNet<'a> {
    /// The network, without autodiff.
    pub unet: &'a UNet,
    /// The schedule it was trained on.
    pub schedule: &'a NoiseSchedule,
    /// What it predicts.
    pub prediction: Prediction,
    /// `[batch, tokens, context]`: the states of each picture's prompt.
    pub context: Tensor<3>,
    /// `[batch, tokens, context]`: the states of the empty or negative prompt.
    pub uncond: Tensor<3>,
    /// Guidance scale; at 1 the second half of the batch is left out.
    pub scale: f32,
    /// Precision of the UNet's activations.
    pub dtype: DType,
}

impl GuidedUNet<'_> {
    fn output(&self, noisy: Tensor<4>, t: usize) -> Tensor<4> {
        let [batch, _, _, _] = noisy.dims();
        let noisy = noisy.cast(self.dtype);
        if self.scale == 1.0 {
            let y = self.unet.forward(noisy, &vec![t as f32; batch], self.context.clone(), None);
            return y.cast(DType::F32);
        }
        let doubled = Tensor::cat(vec![noisy.clone(), noisy], 0);
        let context = Tensor::cat(vec![self.uncond.clone(), self.context.clone()], 0);
        let y = self.unet.forward(doubled, &vec![t as f32; 2 * batch], context, None).cast(DType::F32);
        let uncond = y.clone().narrow(0, 0, batch);
        let cond = y.narrow(0, batch, batch);
        uncond.clone() + (cond - uncond).mul_scalar(self.scale)
    }
}

impl Denoiser for GuidedUNet<'_> {
    fn estimate(&self, noisy: Tensor<4>, t: usize) -> Estimate {
        let output = self.output(noisy.clone(), t);
        self.prediction.estimate(self.schedule, noisy, output, t)
    }
}
