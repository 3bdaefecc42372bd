//! What the benchmark fixes: mlcommons/inference (b66003e), `text_to_image/` and `loadgen/mlperf.conf`; the Student Cluster
//! Competition's variants: mlperf-automations, `script/app-mlperf-inference/meta.yaml`.

use calotype_core::names;

/// What no picture should show (`backend_pytorch.py`).
pub const NEGATIVE: &str = "normal quality, low quality, worst quality, low res, blurry, nsfw, nude";
/// Steps of the sampler.
pub const STEPS: usize = 20;
/// Scale of the classifier-free guidance.
pub const GUIDANCE: f32 = 8.0;
/// Both sides of a picture in pixels.
pub const SIDE: usize = 1024;
/// Captions.
pub const SAMPLES: usize = 5000;
/// Pictures that are drawn before a run, with this text.
pub const WARM_UP: usize = 5;
/// Seed of the latent that all pictures begin with (`tools/latents.pt`: PyTorch's generator of the CPU).
pub const LATENT_SEED: u64 = 0;
/// SHA-256 of that latent as `tools/latents.npy`, [1, 4, 128, 128] of `f32`.
pub const LATENT_SHA256: &str = "78cac10a20ea287f88b5851382e21504a755338d3f8ba8ffd2bcf9e9bf2404f9";
/// SHA-256 of the list of captions, `coco2014/captions/captions_source.tsv`.
pub const CAPTIONS_SHA256: &str = "2eeb95637b30fe5af26dd644bafa7affe4e5472ad0bda32d0feb1bd261280d5e";

names! {
    /// How much of the benchmark is run.
    #[derive(Default)]
    Variant, "variant" {
        /// All 5,000 captions.
        #[default]
        Full = "full",
        /// Student Cluster Competition 2024, base: the first 50.
        Scc24Base = "scc24-base" | "scc24_base",
        /// Student Cluster Competition 2024, main: the first 500.
        Scc24Main = "scc24-main" | "scc24_main",
        /// Captions of one's own.
        Custom = "custom",
    }
}

impl Variant {
    /// Its number of samples; none for captions of one's own.
    pub fn samples(self) -> Option<usize> {
        match self {
            Self::Full => Some(SAMPLES),
            Self::Scc24Base => Some(50),
            Self::Scc24Main => Some(500),
            Self::Custom => None,
        }
    }
}
