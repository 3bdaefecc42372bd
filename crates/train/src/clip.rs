//! Contrastive training of CLIP.

use crate::batches::{picture, stack, token_ids};
use crate::settings::ClipRecipe;
use crate::trainer::{BoxError, Decoder, Loss, Objective};
use burn::tensor::Device;
use calotype_data::Batch;
use calotype_models::tokenizer::Tokens;
use calotype_models::{Clip, ClipTokenizer};
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
    device: Device,
    tokenizer: Arc<ClipTokenizer>,
    truncated: Arc<AtomicU64>,
}

impl ClipObjective {
    /// For tensors on `device`, without autodiff.
    pub fn new(recipe: &ClipRecipe, device: &Device) -> Self {
        Self {
            recipe: recipe.clone(),
            device: device.clone(),
            tokenizer: Arc::new(ClipTokenizer::new(recipe.model.text.context_length)),
            truncated: Arc::default(),
        }
    }
}

impl Objective for ClipObjective {
    type Model = Clip;
    type Item = Pair;

    fn decoder(&self) -> Decoder<Pair> {
        let (tokenizer, truncated) = (Arc::clone(&self.tokenizer), Arc::clone(&self.truncated));
        let side = self.recipe.model.vision.image_size;
        Box::new(move |_, sample| -> Result<Pair, BoxError> {
            let tokens = tokenizer.encode(sample.text("txt")?.trim());
            truncated.fetch_add(u64::from(tokens.truncated > 0), Ordering::Relaxed);
            Ok(Pair { pixels: picture(sample, side)?, tokens })
        })
    }

    fn loss(&self, model: &Clip, batch: Batch<Pair>) -> Loss {
        let side = self.recipe.model.vision.image_size;
        let dtype = self.recipe.run.precision.dtype(&self.device);
        let rows = batch.items.iter().map(|pair| pair.pixels.as_slice());
        let pictures = stack(rows, &[side, side, 3], dtype, &self.device);
        let tokens: Vec<Tokens> = batch.items.into_iter().map(|pair| pair.tokens).collect();
        let (ids, ends) = token_ids(&tokens, &self.device);
        let texts = model.text_features(ids, &ends, dtype);
        Loss::of(model.contrastive_loss(model.picture_features(pictures), texts))
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
