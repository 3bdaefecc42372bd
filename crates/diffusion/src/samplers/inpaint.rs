use super::{Sampler, SamplerError};
use burn::tensor::Tensor;

/// Inpainting without a network made for it: after each call, what is to stay is put back in with the noise that
/// the next call expects; see [`super::Run::edit`].
#[derive(Clone, Debug)]
pub struct Inpainting {
    /// The clean latent of the image, `[batch, height, width, channels]`.
    pub clean: Tensor<4>,
    /// Standard normal noise, likewise: the one that the first latent was made of.
    pub noise: Tensor<4>,
    /// 1 where the image is drawn anew, 0 where it stays; `[batch or 1, height, width, 1]`.
    pub mask: Tensor<4>,
}

impl Inpainting {
    /// The latent after a call of the sampler, with the image put back in where it stays.
    ///
    /// # Errors
    /// [`SamplerError::Call`] beyond the last call.
    pub fn edit(&self, sampler: &Sampler, call: usize, latent: Tensor<4>) -> Result<Tensor<4>, SamplerError> {
        let calls = sampler.timesteps().len();
        let kept = match call + 1 {
            next if next == calls => self.clean.clone(),
            next => sampler.add_noise(self.clean.clone(), self.noise.clone(), next)?,
        };
        let stays = self.mask.clone().mul_scalar(-1.0).add_scalar(1.0);
        Ok(kept * stays + latent * self.mask.clone())
    }
}
