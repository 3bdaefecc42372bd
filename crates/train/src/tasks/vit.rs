//! Training of ViT classifiers (Dosovitskiy et al. 2021) on images with classes.

use crate::classes::{Classes, USUAL_PART, check_given};
use crate::config::sizes::{check_extents, check_layers, check_side, check_tokens};
use crate::config::{DataSettings, SettingError, StackMemory, TrainingRecipe, check, training_recipe};
use crate::export;
use crate::images::Images;
use crate::mixing::MixSettings;
use crate::sources::open_source;
use crate::stages::{StageContext, StageError};
use crate::start::Refit;
use crate::task::{BoxError, Decoder, Loss, StepContext, Task};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_checkpoints::{Component, Export};
use calotype_data::Batch;
use calotype_models::vit::Dropout;
use calotype_models::{ConfigError, Init, TensorParallel, Vit, VitConfig};
use calotype_pipeline::batches::stack;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The classifier's loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VitObjective {
    /// Part of a sample that holds the number of its class, from 0, or its name, as text; `json.FIELD` is a field of part `json`,
    /// and `key` what the sample's key begins with, as ImageNet names its images (`n01440764_10026`). Images in one folder for
    /// each class have it as `cls`, numbered by the folders' names.
    pub class: String,
    /// Names of the classes in the order of their numbers, where samples hold names, or where the dataset has another order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Share of the target probability that is spread evenly over all classes (Szegedy et al. 2016, section 7).
    pub label_smoothing: f64,
    /// Mixup and CutMix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<MixSettings>,
}

impl Default for VitObjective {
    fn default() -> Self {
        Self { class: USUAL_PART.to_owned(), classes: Vec::new(), label_smoothing: 0.0, mix: None }
    }
}

training_recipe! {
    /// Training of a ViT classifier on images with classes.
    VitRecipe {
        /// The classifier.
        model: VitConfig,
        /// Its loss.
        #[serde(default)]
        objective: VitObjective,
        /// Time for memory.
        #[serde(default, skip_serializing_if = "crate::config::is_usual")]
        memory: StackMemory,
    }
}

/// An image and its class.
#[derive(Debug)]
pub struct Labelled {
    pixels: Vec<f32>,
    class: usize,
}

/// Cross-entropy of the classes.
#[derive(Debug)]
pub struct VitTask {
    recipe: VitRecipe,
    images: Images,
    /// The same for samples that are evaluated, without augmentations.
    evaluated: Images,
    classes: Classes,
    evaluated_classes: Classes,
    device: Device,
}

impl Task for VitTask {
    const KIND: &'static str = "vit";
    const ABOUT: &'static str = "a ViT classifier on images with classes";

    type Recipe = VitRecipe;
    type Model = Vit;
    type Item = Labelled;

    fn check(recipe: &VitRecipe) -> Result<(), SettingError> {
        let smoothing = recipe.objective.label_smoothing;
        check((0.0..1.0).contains(&smoothing), "objective.label_smoothing", || {
            format!("{smoothing} is not a share from 0 to below 1")
        })?;
        recipe.memory.validate()?;
        recipe.objective.mix.map_or(Ok(()), |mix| {
            mix.validate()?;
            check_pairs(recipe, 1)
        })
    }

    fn check_model(recipe: &VitRecipe) -> Result<(), ConfigError> {
        let model = &recipe.model;
        check_given(&recipe.objective.classes, model.labels)?;
        check_side("image_size", model.image_size)?;
        check_extents([
            ("patch_size", model.patch_size),
            ("channels", model.channels),
            ("mlp_channels", model.mlp_channels),
            ("heads", model.heads),
            ("labels", model.labels),
        ])?;
        check_layers("layers", model.layers)?;
        check_tokens("class_tokens", model.class_tokens)?;
        model.validate()
    }

    fn open(recipe: &VitRecipe, context: &StageContext<'_>) -> Result<Self, StageError> {
        let (dataset, objective) = (open_source(&recipe.data, None)?, &recipe.objective);
        let (side, seed) = (recipe.model.image_size, recipe.run.seed);
        if objective.mix.is_some() {
            check_pairs(recipe, context.collective.world())?;
        }
        let still = DataSettings { augment: recipe.data.augment.without_chance(), ..recipe.data.clone() };
        let (part, given, labels) = (&objective.class, &objective.classes, recipe.model.labels);
        let classes = Classes::open(part, given, &recipe.data, dataset.as_ref(), labels)?;
        Ok(Self {
            images: Images::new(&recipe.data, side, seed)?,
            evaluated: Images::new(&still, side, seed)?,
            evaluated_classes: match &recipe.hooks.evaluate {
                Some(settings) => classes.in_other(&settings.path, &recipe.data)?,
                None => classes.clone(),
            },
            classes,
            recipe: recipe.clone(),
            device: context.device.clone(),
        })
    }

    fn model(&self, init: &mut Init<'_>) -> Result<Vit, ConfigError> {
        Ok(self.recipe.model.init(init)?.recomputing(self.recipe.memory.recompute))
    }

    fn check_parts(recipe: &VitRecipe, processes: usize) -> Result<(), StageError> {
        Ok(recipe.model.check_parts(processes)?)
    }

    fn part_of(&self, model: Vit, parallel: &TensorParallel) -> Vit {
        model.part_of(parallel)
    }

    fn component(&self) -> Component {
        Component::Classifier
    }

    fn refit(&self) -> Refit {
        Refit::Vit
    }

    fn decoder(&self, counted: Range<u64>) -> Decoder<Labelled> {
        decoder(self.images.clone(), self.classes.clone(), counted)
    }

    fn evaluation_decoder(&self) -> Decoder<Labelled> {
        decoder(self.evaluated.clone(), self.evaluated_classes.clone(), 0..0)
    }

    fn loss(&self, model: &Vit, batch: Batch<Labelled>, step: &StepContext<'_>) -> Result<Loss, BoxError> {
        let (side, labels) = (self.recipe.model.image_size, self.recipe.model.labels);
        let (objective, seed, first) = (&self.recipe.objective, self.recipe.run.seed, batch.first_position);
        // Evaluations see whole images, and networks without anything left out.
        let training = model.is_in_training();
        let (mut pixels, classes): (Vec<Vec<f32>>, Vec<usize>) =
            batch.items.into_iter().map(|item| (item.pixels, item.class)).unzip();
        let shares = match objective.mix.filter(|_| training) {
            Some(mix) => Some(mix.apply(seed, first, &mut pixels, side)?),
            None => None,
        };
        let dtype = self.recipe.run.precision.dtype(&self.device);
        let images = stack(pixels.iter().map(Vec::as_slice), &[side, side, 3], dtype, &self.device);
        let target = targets(&classes, shares.as_deref(), labels, objective.label_smoothing, &self.device);
        step.record_images("pixel_values", &images);
        match shares {
            Some(_) => step.record("labels", &target),
            None => step.record_integers("labels", &[classes.len()], classes.iter().map(|&class| class as i64)),
        }
        let positions: Vec<u64> = (first..first + classes.len() as u64).collect();
        let logits = match training {
            true => model.forward_training(images, Dropout { seed, positions: &positions })?,
            false => model.forward(images)?,
        };
        Ok(Loss::of(cross_entropy(logits, target)))
    }

    fn notices(&self) -> Vec<String> {
        self.images.notices()
    }

    fn published(&self, model: &Vit) -> Result<Export<'static>, StageError> {
        export::vit(model, &self.recipe.model, self.classes.names(), &self.recipe.data.augment)
    }
}

/// Refuses batches of which one who shares them out would have an odd number of samples at once, of which two each are mixed.
fn check_pairs(recipe: &VitRecipe, world: usize) -> Result<(), SettingError> {
    let distributed = &recipe.distributed;
    let world = if distributed.same_for_all_worlds() { 1 } else { world };
    let (groups, who) = (distributed.sharing_batches(world).max(1), distributed.batch_sharers(world));
    let part = recipe.config().micro_batch() / groups;
    check(part.is_multiple_of(2), "run.batch_size", || {
        format!(
            "{part} samples go through the network of each of {who} at once, of which two each are mixed \
             (objective.mix): use a multiple of {}",
            2 * groups * recipe.optimizer.accumulate
        )
    })
}

fn decoder(images: Images, classes: Classes, counted: Range<u64>) -> Decoder<Labelled> {
    Box::new(move |position, sample| -> Result<Labelled, BoxError> {
        let class = classes.of(sample)?;
        Ok(Labelled { pixels: images.read_counting(counted.contains(&position), position, sample)?, class })
    })
}

/// Mean cross-entropy of logits and target probabilities, in `f32`.
///
/// # Shapes
/// both `[batch, labels]`, to `[1]`
pub fn cross_entropy(logits: Tensor<2>, target: Tensor<2>) -> Tensor<1> {
    let [batch, _] = logits.dims();
    (log_softmax(logits.cast(DType::F32), 1) * target).sum().mul_scalar(-1.0 / batch as f64)
}

/// Target probabilities, `[batch, labels]`: smoothed, then mixed with those of another sample of the batch, where `shares` says
/// which and how much of the sample itself is left (timm 1.0, `mixup_target`).
pub fn targets(
    classes: &[usize],
    shares: Option<&[(usize, f64)]>,
    labels: usize,
    smoothing: f64,
    device: &Device,
) -> Tensor<2> {
    let even = (smoothing / labels as f64) as f32;
    let mut values = vec![even; classes.len() * labels];
    for (row, &class) in values.chunks_exact_mut(labels).zip(classes) {
        row[class] = (1.0 - smoothing) as f32 + even;
    }
    if let Some(shares) = shares {
        let own = values.clone();
        for (row, (at, &(other, share))) in values.chunks_exact_mut(labels).zip(shares.iter().enumerate()) {
            let (share, rest) = (share as f32, (1.0 - share) as f32);
            for (class, value) in row.iter_mut().enumerate() {
                *value = own[at * labels + class] * share + own[other * labels + class] * rest;
            }
        }
    }
    Tensor::from_data(TensorData::new(values, [classes.len(), labels]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(classes: &[usize], shares: Option<&[(usize, f64)]>, smoothing: f64) -> Vec<f32> {
        targets(classes, shares, 4, smoothing, &Device::flex()).into_data().try_to_vec::<f32>().unwrap()
    }

    #[test]
    fn smoothed_targets_sum_to_one() {
        let target = values(&[1, 0], None, 0.2);
        assert_eq!(target[..4], [0.05, 0.85, 0.05, 0.05]);
        assert!((target[4..].iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    /// `timm.data.mixup.mixup_target(torch.tensor([1, 0]), 4, 0.25, 0.2)`, timm 1.0.31.
    #[test]
    fn mixed_targets_are_those_of_timm() {
        let target = values(&[1, 0], Some(&[(1, 0.25), (0, 0.25)]), 0.2);
        let expected = [0.65, 0.25, 0.05, 0.05, 0.25, 0.65, 0.05, 0.05];
        assert!(target.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{target:?}");
        assert_eq!(values(&[1, 0], Some(&[(0, 1.0), (1, 1.0)]), 0.0), values(&[1, 0], None, 0.0));
    }
}
