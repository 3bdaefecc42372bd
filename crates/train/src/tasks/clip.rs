//! Contrastive training of both CLIP towers (Radford et al. 2021).

use crate::captions::CaptionReader;
use crate::config::{SettingError, check, training_recipe};
use crate::export;
use crate::images::Images;
use crate::sources::open_source;
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
    captions: CaptionReader,
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
        let size = recipe.model.text.vocab_size;
        check(size >= ClipTokenizer::VOCABULARY, "model.text.vocab_size", || {
            format!("is {size}, and captions are cut into CLIP's {} tokens", ClipTokenizer::VOCABULARY)
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
        let (data, dataset) = (&recipe.data, open_source(&recipe.data, None)?);
        Ok(Self {
            captions: CaptionReader::new(&data.caption, &data.captions, dataset.meta(), recipe.run.seed)?,
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
        let (images, captions) = (self.images.clone(), self.captions.clone());
        Box::new(move |position, sample| -> Result<Pair, BoxError> {
            let tokens = tokenizer.encode(&captions.read(position, sample)?);
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

    fn forget_counts(&self) {
        self.truncated.store(0, Ordering::Relaxed);
    }

    fn notices(&self) -> Vec<String> {
        let mut notices = self.images.notices();
        let cut = self.truncated.load(Ordering::Relaxed);
        if cut > 0 {
            let length = self.tokenizer.context_length();
            notices.push(format!("{cut} captions were longer than {length} tokens and were cut"));
        }
        notices
    }
}
