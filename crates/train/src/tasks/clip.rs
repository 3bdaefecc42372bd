//! Contrastive training of both CLIP towers (Radford et al. 2021).
//!
//! The loss is always that of the whole batch of all processes. A batch that goes through the network in parts
//! (`optimizer.accumulate`) goes twice: first without gradients, for the features of all parts, of which the loss and its gradient are
//! computed; then part by part with its piece of that gradient (GradCache, Gao et al. 2021).

mod compare;
mod objective;

pub use objective::{Clamp, ClipLoss, ClipObjective, kept_patches};

use crate::captions::{CaptionReader, cut_captions};
use crate::config::sizes::{check_extents, check_layers, check_side};
use crate::config::{SettingError, StackMemory, check, training_recipe};
use crate::export;
use crate::images::Images;
use crate::optim::GroupRule;
use crate::sources::open_source;
use crate::stages::{StageContext, StageError};
use crate::task::{BoxError, Decoder, Loss, PartLoss, StepContext, Task};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use calotype_checkpoints::{Component, Export};
use calotype_data::Batch;
use calotype_models::tokenizer::Tokens;
use calotype_models::{Clip, ClipConfig, ClipTokenizer, ConfigError, Init, TensorParallel};
use calotype_pipeline::batches::{stack, token_ids};
use compare::{Comparison, Features, Temperature, outputs};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

training_recipe! {
    /// Contrastive training of both CLIP towers on images with captions.
    ClipRecipe {
        /// Both towers.
        model: ClipConfig,
        /// Time for memory.
        #[serde(default, skip_serializing_if = "crate::config::is_usual")]
        memory: StackMemory,
        /// How images and captions are compared.
        #[serde(default, skip_serializing_if = "crate::config::is_usual")]
        objective: ClipObjective,
    }
}

/// An image and its caption.
#[derive(Debug)]
pub struct Pair {
    pixels: Vec<f32>,
    tokens: Tokens,
}

/// Images told by their captions, and captions by their images, in the batch of all processes.
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
        // A decision for each pair has no such floor to speak of.
        if self.recipe.objective.loss == ClipLoss::Siglip {
            return;
        }
        let (different, floor) = repetition(batch);
        if floor >= NOTABLE_FLOOR && !self.repetition_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "only {different} of the {} captions of a batch are different, and the others count as wrong answers: the loss \
                 cannot fall below about {floor:.2}; a smaller run.batch_size or more captions help",
                batch.len()
            );
        }
    }

    /// Features of images and of texts.
    ///
    /// `kept` are the patches of each image that are looked at; all, if there is none.
    fn encode(
        &self,
        model: &Clip,
        images: Tensor<4>,
        tokens: &[Tokens],
        kept: Option<&[Vec<usize>]>,
    ) -> [Tensor<2>; 2] {
        let dtype = images.dtype();
        let (ids, ends) = token_ids(tokens, &self.device);
        let texts = model.text_features(ids, &ends, dtype);
        let images = match kept {
            Some(kept) => model.image_features_of(images, kept),
            None => model.image_features(images),
        };
        [images, texts]
    }

    /// The pixels of a batch.
    fn images(&self, batch: &Batch<Pair>) -> Tensor<4> {
        let side = self.recipe.model.vision.image_size;
        let dtype = self.recipe.run.precision.dtype(&self.device);
        stack(batch.items.iter().map(|pair| pair.pixels.as_slice()), &[side, side, 3], dtype, &self.device)
    }

    /// The patches that are looked at of each image of a batch, where training leaves some out. Evaluations, whose models have no
    /// autodiff, look at all.
    fn kept(&self, model: &Clip, batch: &Batch<Pair>) -> Option<Vec<Vec<usize>>> {
        let (vision, rate) = (&self.recipe.model.vision, self.recipe.objective.patch_dropout);
        if rate == 0.0 || !model.logits().0.is_autodiff() {
            return None;
        }
        let (seed, patches) = (self.recipe.run.seed, (vision.image_size / vision.patch_size).pow(2));
        let positions = batch.first_position..batch.first_position + batch.items.len() as u64;
        Some(positions.map(|position| kept_patches(seed, position, patches, rate)).collect())
    }

    /// Records what a loss computes with.
    fn record(&self, step: &StepContext<'_>, images: &Tensor<4>, tokens: &[Tokens]) {
        step.record_images("pixel_values", images);
        let shape = [tokens.len(), self.tokenizer.context_length()];
        step.record_integers("input_ids", &shape, tokens.iter().flat_map(|row| row.ids.iter().map(|&id| id.into())));
    }
}

fn tokens_of(batch: &Batch<Pair>) -> Vec<Tokens> {
    batch.items.iter().map(|pair| pair.tokens.clone()).collect()
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
        recipe.memory.validate()?;
        check(recipe.run.batch_size >= 2, "run.batch_size", || {
            "contrastive training needs at least 2 samples to tell apart".to_owned()
        })?;
        let size = recipe.model.text.vocab_size;
        check(size >= ClipTokenizer::VOCABULARY, "model.text.vocab_size", || {
            format!("is {size}, and captions are cut into CLIP's {} tokens", ClipTokenizer::VOCABULARY)
        })?;
        recipe.objective.validate(recipe.model.logit_bias)
    }

    fn check_model(recipe: &ClipRecipe) -> Result<(), ConfigError> {
        let (text, vision) = (&recipe.model.text, &recipe.model.vision);
        check_extents([
            ("projection", recipe.model.projection),
            ("text.vocab_size", text.vocab_size),
            ("text.context_length", text.context_length),
            ("text.channels", text.channels),
            ("text.heads", text.heads),
            ("vision.patch_size", vision.patch_size),
            ("vision.channels", vision.channels),
            ("vision.heads", vision.heads),
        ])?;
        check_side("vision.image_size", vision.image_size)?;
        // By default they are four times the channels.
        check_extents([
            ("text.mlp_channels", text.mlp_channels.unwrap_or(4 * text.channels)),
            ("vision.mlp_channels", vision.mlp_channels.unwrap_or(4 * vision.channels)),
        ])?;
        check_layers("text.layers", text.layers)?;
        check_layers("vision.layers", vision.layers)?;
        recipe.model.validate()
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
        let (logit_scale, logit_bias) = self.recipe.objective.begin();
        let model = self.recipe.model.init_at(init, logit_scale, logit_bias)?;
        Ok(model.recomputing(self.recipe.memory.recompute))
    }

    fn check_parts(recipe: &ClipRecipe, processes: usize) -> Result<(), StageError> {
        Ok(recipe.model.check_parts(processes)?)
    }

    fn part_of(&self, model: Clip, parallel: &TensorParallel) -> Clip {
        model.part_of(parallel)
    }

    fn groups(&self) -> Vec<GroupRule> {
        self.recipe.objective.groups()
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
        let (images, tokens, kept) = (self.images(&batch), tokens_of(&batch), self.kept(model, &batch));
        self.record(step, &images, &tokens);
        self.mind_repetition(&tokens);
        let [images, texts] = self.encode(model, images, &tokens, kept.as_deref());
        let objective = &self.recipe.objective;
        let differentiated = match objective.loss {
            ClipLoss::Full => true,
            ClipLoss::Local => step.collective.world() == 1,
            ClipLoss::Siglip => false,
        };
        if differentiated {
            let texts = step.gather_rows(texts)?;
            let images = step.gather_rows(images)?;
            return Ok(Loss::of(model.contrastive_loss_up_to(objective.largest_scale(), images, texts)));
        }
        let mut own = Features::default();
        own.add(&images, &texts);
        let found = Comparison::of(objective, own, Temperature::of(model), (step.collective, false), &self.device)?;
        let part = PartLoss { value: found.loss, gradients: found.gradients(0..tokens.len(), 1) };
        Ok(Loss::of(part.through(outputs(model, images, texts))))
    }

    const COMPARES_SAMPLES: bool = true;

    fn compare(
        &self,
        model: &Clip,
        parts: &[Batch<Pair>],
        step: &StepContext<'_>,
    ) -> Result<Option<Vec<PartLoss>>, BoxError> {
        let whole = self.recipe.distributed.same_for_all_worlds();
        let count = parts.len() * if whole { step.collective.world() } else { 1 };
        if count == 1 {
            return Ok(None);
        }
        let (plain, mut own) = (model.valid(), Features::default());
        for part in parts {
            let kept = self.kept(model, part);
            let [images, texts] = self.encode(&plain, self.images(part), &tokens_of(part), kept.as_deref());
            own.add(&images, &texts);
        }
        self.mind_repetition(&parts.iter().flat_map(tokens_of).collect::<Vec<_>>());
        let objective = &self.recipe.objective;
        let found = Comparison::of(objective, own, Temperature::of(model), (step.collective, whole), &self.device)?;
        let mut begin = 0;
        let of_part = |part: &Batch<Pair>| {
            let rows = begin..begin + part.items.len();
            begin = rows.end;
            PartLoss { value: found.loss, gradients: found.gradients(rows, parts.len()) }
        };
        Ok(Some(parts.iter().map(of_part).collect()))
    }

    fn part_loss(
        &self,
        model: &Clip,
        batch: Batch<Pair>,
        part: &PartLoss,
        step: &StepContext<'_>,
    ) -> Result<Loss, BoxError> {
        let (images, tokens, kept) = (self.images(&batch), tokens_of(&batch), self.kept(model, &batch));
        self.record(step, &images, &tokens);
        let [images, texts] = self.encode(model, images, &tokens, kept.as_deref());
        Ok(Loss::of(part.through(outputs(model, images, texts))))
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
