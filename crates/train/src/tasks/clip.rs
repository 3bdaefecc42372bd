//! Contrastive training of both CLIP towers (Radford et al. 2021).

use crate::captions::{CaptionReader, cut_captions};
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
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// Whether it was said that captions are repeated in a batch.
    repetition_said: AtomicBool,
}

/// Floor of the loss that is worth a word.
const NOTABLE_FLOOR: f64 = 0.1;

impl ClipTask {
    /// Says once if so many captions of a batch are equal that the loss cannot become small: to each image, its caption's
    /// doubles are wrong answers.
    fn mind_repetition(&self, batch: &[Tokens]) {
        let (different, floor) = repetition(batch);
        if floor >= NOTABLE_FLOOR && !self.repetition_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "only {different} of the {} captions of a batch are different, and the others count as wrong answers: the loss \
                 cannot fall below about {floor:.2}; a smaller run.batch_size or more captions help",
                batch.len()
            );
        }
    }
}

/// The number of different captions, and the smallest mean loss that a model can have which cannot tell equal ones apart: of
/// `k` equal captions, each has probability `1 / k` at best.
fn repetition(batch: &[Tokens]) -> (usize, f64) {
    let mut counts: BTreeMap<&[i32], usize> = BTreeMap::new();
    for tokens in batch {
        *counts.entry(tokens.ids.as_slice()).or_default() += 1;
    }
    let sum: f64 = counts.values().map(|&count| count as f64 * (count as f64).ln()).sum();
    (counts.len(), sum / batch.len().max(1) as f64)
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
            repetition_said: AtomicBool::default(),
        })
    }

    fn model(&self, init: &mut Init<'_>) -> Result<Clip, ConfigError> {
        self.recipe.model.init(init)
    }

    fn component(&self) -> Component {
        Component::Clip
    }

    fn decoder(&self, counted: Range<u64>) -> Decoder<Pair> {
        let (tokenizer, truncated) = (Arc::clone(&self.tokenizer), Arc::clone(&self.truncated));
        let (images, captions) = (self.images.clone(), self.captions.clone());
        Box::new(move |position, sample| -> Result<Pair, BoxError> {
            let tokens = tokenizer.encode(&captions.read(position, sample)?);
            let counted = counted.contains(&position);
            truncated.fetch_add(u64::from(counted && tokens.truncated > 0), Ordering::Relaxed);
            Ok(Pair { pixels: images.read_counting(counted, position, sample)?, tokens })
        })
    }

    fn loss(&self, model: &Clip, batch: Batch<Pair>, step: &StepContext<'_>) -> Result<Loss, BoxError> {
        let side = self.recipe.model.vision.image_size;
        let dtype = self.recipe.run.precision.dtype(&self.device);
        let rows = batch.items.iter().map(|pair| pair.pixels.as_slice());
        let images = stack(rows, &[side, side, 3], dtype, &self.device);
        step.record_images("pixel_values", &images);
        let tokens: Vec<Tokens> = batch.items.into_iter().map(|pair| pair.tokens).collect();
        self.mind_repetition(&tokens);
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
        let mut notices = self.images.notices();
        notices.extend(cut_captions(self.truncated.load(Ordering::Relaxed), self.tokenizer.context_length()));
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_captions_of_a_batch_are_a_floor_of_its_loss() {
        let tokenizer = export::clip_tokenizer(8);
        let of =
            |captions: &[&str]| repetition(&captions.iter().map(|text| tokenizer.encode(text)).collect::<Vec<_>>());
        assert_eq!(of(&["a cat", "a dog", "a fox"]), (3, 0.0));
        let (different, floor) = of(&["a cat", "a cat", "a cat", "a cat", "a dog", "a dog", "a dog", "a dog"]);
        assert!(different == 2 && (floor - 4f64.ln()).abs() < 1e-12, "{floor}");
    }
}
