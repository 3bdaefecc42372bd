use crate::QuickstartError;
use calotype_diffusion::Spacing;
use calotype_ops::Precision;
use serde::{Deserialize, Serialize};

/// The names of the stages' recipes: one preset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuickstartRecipe {
    /// An [`EmojiRecipe`](calotype_train::prepare::EmojiRecipe).
    pub dataset: String,
    /// A CLIP training recipe.
    pub clip: String,
    /// An autoencoder training recipe.
    pub autoencoder: String,
    /// A precache recipe.
    pub precache: String,
    /// A diffusion training recipe.
    pub diffusion: String,
    /// An [`EvaluationRecipe`].
    pub evaluation: String,
}

/// What is drawn and how it is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationRecipe {
    /// Seed of initial noise and of the captions to choose from.
    pub seed: u64,
    /// Held-out combinations that are drawn, evenly chosen.
    pub images: usize,
    /// Captions to choose from in caption retrieval, the right one included.
    pub candidates: usize,
    /// Images drawn at a time.
    pub batch_size: usize,
    /// Images in the grid of held-out combinations.
    pub grid: usize,
    /// Precision of the UNet's and the decoder's activations.
    #[serde(default)]
    pub precision: Precision,
    /// How images are drawn.
    pub sampler: SamplingSettings,
    /// Prompts of the second grid.
    pub prompts: Vec<String>,
}

/// DDIM with classifier-free guidance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingSettings {
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale; 1 is none.
    pub guidance: f32,
    /// DDIM's share of fresh noise, 0 to 1.
    pub eta: f64,
    /// The timesteps that are visited.
    pub spacing: Spacing,
    /// Offset of the leading spacing.
    pub steps_offset: usize,
}

impl Default for SamplingSettings {
    fn default() -> Self {
        Self { steps: 50, guidance: 7.5, eta: 0.0, spacing: Spacing::Leading, steps_offset: 1 }
    }
}

impl EvaluationRecipe {
    /// Checks what the types cannot; `held_out` and `drawings` are what the dataset offers.
    pub(crate) fn validate(&self, held_out: usize, drawings: usize) -> Result<(), QuickstartError> {
        let check = |ok: bool, key, problem: String| {
            if ok { Ok(()) } else { Err(QuickstartError::Setting { key, problem }) }
        };
        check(
            (2..=held_out).contains(&self.images),
            "images",
            format!("{} is not in 2..={held_out}, the number of held-out combinations", self.images),
        )?;
        check(
            (2..=drawings).contains(&self.candidates),
            "candidates",
            format!("{} is not in 2..={drawings}, the number of drawings", self.candidates),
        )?;
        check(self.batch_size > 0, "batch_size", "must be at least 1".to_owned())?;
        let sampler = &self.sampler;
        check(sampler.steps > 0, "sampler.steps", "must be at least 1".to_owned())?;
        check(sampler.guidance.is_finite(), "sampler.guidance", format!("{} is no number", sampler.guidance))?;
        check(
            (0.0..=1.0).contains(&sampler.eta),
            "sampler.eta",
            format!("{} is not a share from 0 to 1", sampler.eta),
        )?;
        check(!self.prompts.is_empty(), "prompts", "is empty; it takes a list, such as [\"a cat\"]".to_owned())?;
        check(
            (1..=self.images).contains(&self.grid),
            "grid",
            format!("{} is not in 1..={}, the number of images drawn", self.grid, self.images),
        )
    }
}
