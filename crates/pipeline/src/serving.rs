//! What a server of many images calls instead of [`Pipeline::generate`](crate::Pipeline::generate): texts that stay are encoded once,
//! and latents are decoded together.

use crate::error::PipelineError;
use crate::pipeline::Pipeline;
use crate::prompts::{EncodedPrompts, PromptOptions};
use burn::tensor::{DType, Tensor};

impl Pipeline {
    /// Encodes the prompts that are not among those before, which stay: a negative prompt that all images share is encoded once.
    ///
    /// # Errors
    /// As of [`encode_prompts`](Self::encode_prompts).
    pub fn encode_beside(
        &self,
        prompts: &[&str],
        options: &PromptOptions,
        before: &EncodedPrompts,
    ) -> Result<EncodedPrompts, PipelineError> {
        let fresh = prompts.iter().copied().filter(|prompt| before.get(prompt).is_none()).collect();
        let (by_text, cut) = self.encode_texts(fresh, options)?;
        // Tensors are shared, not copied.
        let mut all = before.clone();
        all.by_text.extend(by_text);
        all.cut.extend(cut);
        Ok(all)
    }

    /// Pixels of latents, all in one pass of the autoencoder.
    ///
    /// # Shapes
    /// `[images, height, width, channels]` to `[images, height, width, 3]` of pixels in `0..1`
    ///
    /// # Errors
    /// As of [`decode`](Self::decode), whose pixels these are; a decoder's output that is not finite is that of any of the images.
    pub fn decode_together(&self, latents: Tensor<4>) -> Result<Tensor<4>, PipelineError> {
        let (config, autoencoder) = (self.autoencoder.config(), self.autoencoder.get()?);
        let tiling = config.tiling();
        let pixels = autoencoder
            .decode_finite(config.unscaled(latents).cast(self.dtype), self.tiled.then_some(&tiling))?
            .cast(DType::F32);
        Ok(pixels.div_scalar(2.0).add_scalar(0.5).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random_checkpoint::{RandomCheckpoint, RandomFamily};
    use crate::{LoadOptions, Request, Settings};
    use calotype_checkpoints::Checkpoint;

    fn values(x: &Tensor<4>) -> Vec<f32> {
        x.to_data().iter::<f32>().collect()
    }

    #[test]
    fn a_server_draws_what_generate_draws() {
        let folder = tempfile::tempdir().unwrap();
        RandomCheckpoint::new(RandomFamily::TinySdxl).write(folder.path()).unwrap();
        let pipeline = Pipeline::load(&Checkpoint::open(folder.path()).unwrap(), &LoadOptions::default()).unwrap();
        let settings = Settings { steps: 1, batch: 2, width: Some(16), height: Some(16), ..Settings::default() };
        let of = |prompt: &str, seed| Request { negative: Some("blurry".to_owned()), seed, ..Request::new(prompt) };
        let requests = [of("a cat", 1), of("a boat", 2)];
        let whole = pipeline.encode_prompts(&["a cat", "a boat", "blurry"], &settings.prompts()).unwrap();
        let kept = pipeline.encode_prompts(&["blurry"], &settings.prompts()).unwrap();
        let beside = pipeline.encode_beside(&["a cat", "a boat"], &settings.prompts(), &kept).unwrap();
        assert!(kept.get("a cat").is_none() && beside.get("blurry").is_some());
        let latents = |prompts| pipeline.sample(&requests, prompts, &settings, &mut ()).unwrap();
        let (first, second) = (latents(&whole), latents(&beside));
        assert_eq!(values(&first), values(&second));
        let together = pipeline.decode_together(first.clone()).unwrap();
        assert_eq!(values(&together), values(&pipeline.decode(first).unwrap()));
    }
}
