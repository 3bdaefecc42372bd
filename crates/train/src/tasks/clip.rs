//! Contrastive training of both CLIP towers (Radford et al. 2021).

use crate::config::{SettingError, check, training_recipe};
use crate::export;
use crate::images::Images;
use crate::stages::{StageContext, StageError};
use crate::task::{BoxError, Decoder, Loss, StepContext, Task};
use burn::tensor::Device;
use calotype_checkpoints::{Component, Export};
use calotype_data::Batch;
use calotype_models::tokenizer::Tokens;
use calotype_models::{Clip, ClipConfig, ClipTokenizer, ConfigError, Init};
use calotype_pipeline::batches::{stack, token_ids};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

training_recipe! {
    /// Contrastive training of both CLIP towers on images with captions.
    ClipRecipe {
        /// Both towers.
        model: ClipConfig,
    }
}

/// An image and its caption.
#[derive(Debug)]
pub struct Pair {
    pixels: Vec<f32>,
    tokens: Tokens,
}

/// Symmetric InfoNCE over the batch of all processes.
#[derive(Debug)]
pub struct ClipTask {
    recipe: ClipRecipe,
    images: Images,
    device: Device,
    tokenizer: Arc<ClipTokenizer>,
    truncated: Arc<AtomicU64>,
}

impl Task for ClipTask {
    const KIND: &'static str = "clip";
    const ABOUT: &'static str = "a CLIP model on images with captions";

    type Recipe = ClipRecipe;
    type Model = Clip;
    type Item = Pair;

    fn check(recipe: &ClipRecipe) -> Result<(), SettingError> {
        check(recipe.run.batch_size >= 2, "run.batch_size", || {
            "contrastive training needs at least 2 samples to tell apart".to_owned()
        })?;
        check(recipe.optimizer.accumulate == 1, "optimizer.accumulate", || {
            let (batch, parts) = (recipe.run.batch_size, recipe.optimizer.accumulate);
            format!(
                "{parts} parts would compare each sample with its own part alone, and not with all {batch} of the batch, \
                 which is another loss; use 1, and a smaller run.batch_size if memory does not suffice"
            )
        })
    }

    fn open(recipe: &ClipRecipe, context: &StageContext<'_>) -> Result<Self, StageError> {
        Ok(Self {
            recipe: recipe.clone(),
            images: Images::new(&recipe.data, recipe.model.vision.image_size, recipe.run.seed)?,
            device: context.device.clone(),
            tokenizer: Arc::new(export::clip_tokenizer(recipe.model.text.context_length)),
            truncated: Arc::default(),
        })
    }

    fn model(&self, init: &mut Init<'_>) -> Result<Clip, ConfigError> {
        self.recipe.model.init(init)
    }

    fn component(&self) -> Component {
        Component::Clip
    }

    fn decoder(&self) -> Decoder<Pair> {
        let (tokenizer, truncated) = (Arc::clone(&self.tokenizer), Arc::clone(&self.truncated));
        let (images, caption) = (self.images.clone(), self.recipe.data.caption.clone());
        Box::new(move |position, sample| -> Result<Pair, BoxError> {
            let tokens = tokenizer.encode(sample.text(&caption)?.trim());
            truncated.fetch_add(u64::from(tokens.truncated > 0), Ordering::Relaxed);
            Ok(Pair { pixels: images.read(position, sample)?, tokens })
        })
    }

    fn loss(&self, model: &Clip, batch: Batch<Pair>, step: &StepContext<'_>) -> Result<Loss, BoxError> {
        let side = self.recipe.model.vision.image_size;
        let dtype = self.recipe.run.precision.dtype(&self.device);
        let rows = batch.items.iter().map(|pair| pair.pixels.as_slice());
        let images = stack(rows, &[side, side, 3], dtype, &self.device);
        step.record_images("pixel_values", &images);
        let tokens: Vec<Tokens> = batch.items.into_iter().map(|pair| pair.tokens).collect();
        let (ids, ends) = token_ids(&tokens, &self.device);
        let shape = [tokens.len(), self.tokenizer.context_length()];
        step.record_integers("input_ids", &shape, tokens.iter().flat_map(|row| row.ids.iter().map(|&id| id.into())));
        let texts = step.gather_rows(model.text_features(ids, &ends, dtype))?;
        let images = step.gather_rows(model.image_features(images))?;
        Ok(Loss::of(model.contrastive_loss(images, texts)))
    }

    fn published(&self, model: &Clip) -> Result<Export<'static>, StageError> {
        export::clip(model, &self.recipe.model, &self.recipe.data.augment)
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
