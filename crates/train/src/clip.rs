//! Contrastive training of CLIP.

use crate::artifacts::{ArtifactError, load_model};
use crate::batches::{Pictures, stack, token_ids};
use crate::settings::ClipRecipe;
use crate::trainer::{BoxError, Decoder, Loss, Objective};
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use calotype_data::Batch;
use calotype_models::tokenizer::Tokens;
use calotype_models::{Clip, ClipConfig, ClipTokenizer};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One picture and its caption.
#[derive(Debug)]
pub struct Pair {
    pixels: Vec<f32>,
    tokens: Tokens,
}

/// Symmetric InfoNCE over the batch.
#[derive(Debug)]
pub struct ClipObjective {
    recipe: ClipRecipe,
    pictures: Pictures,
    device: Device,
    tokenizer: Arc<ClipTokenizer>,
    truncated: Arc<AtomicU64>,
}

impl ClipObjective {
    /// For tensors on `device`, without autodiff.
    ///
    /// # Errors
    /// Those of [`Pictures::new`].
    pub fn new(recipe: &ClipRecipe, device: &Device) -> Result<Self, calotype_data::Error> {
        Ok(Self {
            recipe: recipe.clone(),
            pictures: Pictures::new(&recipe.data, recipe.model.vision.image_size, recipe.run.seed)?,
            device: device.clone(),
            tokenizer: Arc::new(ClipTokenizer::new(recipe.model.text.context_length)),
            truncated: Arc::default(),
        })
    }
}

/// A text tower with its tokenizer.
#[derive(Debug)]
pub struct TextEncoder {
    clip: Clip,
    tokenizer: ClipTokenizer,
    device: Device,
}

impl TextEncoder {
    /// Around a loaded model, without autodiff.
    pub fn new(clip: Clip, config: &ClipConfig, device: &Device) -> Self {
        let tokenizer = ClipTokenizer::new(config.text.context_length);
        Self { clip, tokenizer, device: device.clone() }
    }

    /// From a folder of a saved model.
    ///
    /// # Errors
    /// [`ArtifactError`] naming the file.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, ArtifactError> {
        let (clip, config) = load_model(folder, device, ClipConfig::init)?;
        Ok(Self::new(clip.valid(), &config, device))
    }

    /// The model with both towers.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    fn tokens(&self, prompts: &[&str]) -> Vec<Tokens> {
        prompts.iter().map(|prompt| self.tokenizer.encode(prompt)).collect()
    }

    /// Prompts of which some words do not fit the context length.
    pub fn truncated<'a>(&self, prompts: &[&'a str]) -> Vec<&'a str> {
        prompts.iter().copied().filter(|p| self.tokenizer.encode(p).truncated > 0).collect()
    }

    /// The states that condition a UNet, `[prompts, tokens, channels]`.
    pub fn states(&self, prompts: &[&str]) -> Tensor<3> {
        let (ids, _) = token_ids(&self.tokens(prompts), &self.device);
        self.clip.text_model.states(ids, DType::F32)
    }

    /// Unit vectors in CLIP's space, `[prompts, projection]`.
    pub fn features(&self, prompts: &[&str]) -> Tensor<2> {
        let (ids, ends) = token_ids(&self.tokens(prompts), &self.device);
        self.clip.text_features(ids, &ends, DType::F32)
    }
}

impl Objective for ClipObjective {
    type Model = Clip;
    type Item = Pair;

    fn decoder(&self) -> Decoder<Pair> {
        let (tokenizer, truncated) = (Arc::clone(&self.tokenizer), Arc::clone(&self.truncated));
        let (pictures, caption) = (self.pictures.clone(), self.recipe.data.caption.clone());
        Box::new(move |position, sample| -> Result<Pair, BoxError> {
            let tokens = tokenizer.encode(sample.text(&caption)?.trim());
            truncated.fetch_add(u64::from(tokens.truncated > 0), Ordering::Relaxed);
            Ok(Pair { pixels: pictures.read(position, sample)?, tokens })
        })
    }

    fn loss(&self, model: &Clip, batch: Batch<Pair>) -> Result<Loss, BoxError> {
        let side = self.recipe.model.vision.image_size;
        let dtype = self.recipe.run.precision.dtype(&self.device);
        let rows = batch.items.iter().map(|pair| pair.pixels.as_slice());
        let pictures = stack(rows, &[side, side, 3], dtype, &self.device);
        let tokens: Vec<Tokens> = batch.items.into_iter().map(|pair| pair.tokens).collect();
        let (ids, ends) = token_ids(&tokens, &self.device);
        let texts = model.text_features(ids, &ends, dtype);
        Ok(Loss::of(model.contrastive_loss(model.picture_features(pictures), texts)))
    }

    fn notices(&self) -> Vec<String> {
        match self.truncated.load(Ordering::Relaxed) {
            0 => Vec::new(),
            n => {
                let length = self.tokenizer.context_length();
                vec![format!("{n} captions were longer than {length} tokens and were cut")]
            }
        }
    }
}
