use crate::images::StartImage;
use crate::noise::NoiseKind;
use crate::prompt_syntax::PromptSyntax;
use crate::prompts::PromptOptions;
use burn::tensor::Tensor;
use calotype_checkpoints::AESTHETIC_SCORES;
use calotype_diffusion::Caching;
use calotype_diffusion::samplers::SamplerConfig;
use serde::Serialize;
use std::sync::Arc;

/// One image to draw. What it looks like does not depend on the other requests of its batch.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt: what the image should show.
    pub prompt: String,
    /// The negative prompt: what the image should not show; SDXL takes none and an empty one for different things.
    pub negative: Option<String>,
    /// Seed of its random numbers.
    pub seed: u64,
    /// Its number among all images of the seed.
    pub number: u64,
    /// Classifier-free guidance scale; 1 and less is none. `None`: the checkpoint's usual one, 7.5 or 5 for SDXL.
    pub guidance: Option<f32>,
    /// The image to begin with. Requests that share one encode it once.
    pub start: Option<Arc<StartImage>>,
    /// Share of the steps by which the image to begin with is drawn anew, 0 to 1.
    pub strength: f64,
    /// Standard normal noise to begin with instead of the seed's, `[1, height, width, channels]` of a latent.
    pub noise: Option<Tensor<4>>,
}

impl Request {
    /// Image 0 of seed 0, with the usual guidance, from noise.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            negative: None,
            seed: 0,
            number: 0,
            guidance: None,
            start: None,
            strength: 0.8,
            noise: None,
        }
    }
}

/// Settings of all images of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Width in pixels; none: what the checkpoint was trained for. An image to begin with has its own.
    pub width: Option<usize>,
    /// Height in pixels, likewise.
    pub height: Option<usize>,
    /// Sampling steps.
    pub steps: usize,
    /// Share of the guidance rescale (Lin et al. 2024), 0 to 1.
    pub guidance_rescale: f64,
    /// The sampler; none: the checkpoint's own.
    pub sampler: Option<SamplerConfig>,
    /// Deep features of the UNet that are kept between steps; none: every step computes the whole network.
    pub caching: Option<Caching>,
    /// The generator of the random numbers.
    pub noise: NoiseKind,
    /// Layers of the text encoders to leave out.
    pub clip_skip: usize,
    /// Encode prompts over 75 tokens in several rows.
    pub long_prompts: bool,
    /// What brackets and signs in prompts mean.
    pub syntax: PromptSyntax,
    /// Images in one batch, at most; they do not depend on it.
    pub batch: usize,
    /// SDXL: height and width that the image is to look as if it had had; none: its own.
    pub original_size: Option<[usize; 2]>,
    /// SDXL: top and left of the crop that it is to look like.
    pub crop: [usize; 2],
    /// SDXL's refiner: the scores of beauty that it is told with the prompt and with the negative prompt, 1 to 10.
    pub aesthetic_scores: [f32; 2],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            width: None,
            height: None,
            steps: 50,
            guidance_rescale: 0.0,
            sampler: None,
            caching: None,
            noise: NoiseKind::default(),
            clip_skip: 0,
            long_prompts: false,
            syntax: PromptSyntax::default(),
            batch: 1,
            original_size: None,
            crop: [0, 0],
            aesthetic_scores: AESTHETIC_SCORES,
        }
    }
}

impl Settings {
    /// The options of encoding the prompts.
    pub fn prompts(&self) -> PromptOptions {
        PromptOptions { clip_skip: self.clip_skip, long_prompts: self.long_prompts, syntax: self.syntax }
    }
}

/// Seconds of a call by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// To encode the prompts.
    pub text: f64,
    /// To read networks that were not in memory.
    pub load: f64,
    /// To encode images to begin with.
    pub encode: f64,
    /// The sampler.
    pub sample: f64,
    /// To decode.
    pub decode: f64,
}

/// Runs `work` and adds the seconds that it takes to `sum`.
pub(crate) fn timed<T>(sum: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = std::time::Instant::now();
    let result = work();
    *sum += start.elapsed().as_secs_f64();
    result
}
