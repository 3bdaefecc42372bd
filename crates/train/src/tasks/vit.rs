//! Training of ViT classifiers (Dosovitskiy et al. 2021) on images with classes.

use crate::config::{SettingError, check, training_recipe};
use crate::export;
use crate::images::Images;
use crate::sources::open_source;
use crate::stages::{StageContext, StageError};
use crate::task::{BoxError, Decoder, Loss, StepContext, Task};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_checkpoints::{Component, Export};
use calotype_data::source::folder::META_CLASSES;
use calotype_data::{Batch, SampleRef};
use calotype_models::vit::Dropout;
use calotype_models::{ConfigError, Init, Vit, VitConfig};
use calotype_pipeline::batches::stack;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The classifier's loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VitObjective {
    /// Part of a sample that holds the number of its class, from 0, as text. Images in one folder for each class have it as
    /// `cls`, numbered by the folders' names.
    pub class: String,
    /// Share of the target probability that is spread evenly over all classes (Szegedy et al. 2016, section 7).
    pub label_smoothing: f64,
}

impl Default for VitObjective {
    fn default() -> Self {
        Self { class: "cls".to_owned(), label_smoothing: 0.0 }
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
    /// Names of the classes; empty where the dataset does not say them.
    names: Vec<String>,
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
        })
    }

    fn open(recipe: &VitRecipe, context: &StageContext<'_>) -> Result<Self, StageError> {
        let dataset = open_source(&recipe.data, None)?;
        let names = dataset.meta().get(META_CLASSES).and_then(|names| names.as_array());
        let names: Vec<String> = names.into_iter().flatten().filter_map(|n| n.as_str().map(str::to_owned)).collect();
        if !names.is_empty() && names.len() != recipe.model.labels {
            let problem = format!("the dataset has {} classes", names.len());
            return Err(ConfigError { field: "labels", problem }.into());
        }
        Ok(Self {
            images: Images::new(&recipe.data, recipe.model.image_size, recipe.run.seed)?,
            recipe: recipe.clone(),
            names,
            device: context.device.clone(),
        })
    }

    fn model(&self, init: &mut Init<'_>) -> Result<Vit, ConfigError> {
        self.recipe.model.init(init)
    }

    fn component(&self) -> Component {
        Component::Classifier
    }

    fn decoder(&self, counted: Range<u64>) -> Decoder<Labelled> {
        let (images, part, labels) =
            (self.images.clone(), self.recipe.objective.class.clone(), self.recipe.model.labels);
        Box::new(move |position, sample| -> Result<Labelled, BoxError> {
            let class = class_of(sample, &part, labels)?;
            Ok(Labelled { pixels: images.read_counting(counted.contains(&position), position, sample)?, class })
        })
    }

    fn loss(&self, model: &Vit, batch: Batch<Labelled>, step: &StepContext<'_>) -> Result<Loss, BoxError> {
        let (side, labels) = (self.recipe.model.image_size, self.recipe.model.labels);
        let rows = batch.items.iter().map(|item| item.pixels.as_slice());
        let images = stack(rows, &[side, side, 3], self.recipe.run.precision.dtype(&self.device), &self.device);
        let classes: Vec<usize> = batch.items.iter().map(|item| item.class).collect();
        step.record_images("pixel_values", &images);
        step.record_integers("labels", &[classes.len()], classes.iter().map(|&class| class as i64));
        let count = batch.items.len() as u64;
        let positions: Vec<u64> = (batch.first_position..batch.first_position + count).collect();
        let dropout = Dropout { seed: self.recipe.run.seed, positions: &positions };
        let logits = model.forward_training(images, dropout)?.cast(DType::F32);
        let target = targets(&classes, labels, self.recipe.objective.label_smoothing, &self.device);
        let loss = (log_softmax(logits, 1) * target).sum().mul_scalar(-1.0 / classes.len() as f64);
        Ok(Loss::of(loss))
    }

    fn notices(&self) -> Vec<String> {
        self.images.notices()
    }

    fn published(&self, model: &Vit) -> Result<Export<'static>, StageError> {
        export::vit(model, &self.recipe.model, &self.names, &self.recipe.data.augment)
    }
}

/// The number of a sample's class.
fn class_of(sample: &SampleRef<'_>, part: &str, labels: usize) -> Result<usize, BoxError> {
    let text = sample.text(part)?.trim();
    match text.parse::<usize>() {
        Ok(class) if class < labels => Ok(class),
        _ => Err(format!(
            "sample `{}` has `{text}` in `{part}`, which is no class from 0 to {}; model.labels is the number of classes",
            sample.key(),
            labels - 1
        )
        .into()),
    }
}

/// Target probabilities, `[batch, labels]`.
fn targets(classes: &[usize], labels: usize, smoothing: f64, device: &Device) -> Tensor<2> {
    let even = (smoothing / labels as f64) as f32;
    let mut values = vec![even; classes.len() * labels];
    for (row, &class) in values.chunks_exact_mut(labels).zip(classes) {
        row[class] = (1.0 - smoothing) as f32 + even;
    }
    Tensor::from_data(TensorData::new(values, [classes.len(), labels]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_data::Sample;

    #[test]
    fn classes_are_numbers_below_the_number_of_labels() {
        let class = |text: &str| class_of(&SampleRef::from(&Sample::new("a").with("cls", text)), "cls", 3);
        assert_eq!(class(" 2\n").unwrap(), 2);
        for text in ["3", "-1", "cat"] {
            let error = class(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`a` has `{text}`")) && error.contains("from 0 to 2"), "{error}");
        }
        assert!(class_of(&SampleRef::from(&Sample::new("a").with("txt", "")), "cls", 3).is_err());
    }

    #[test]
    fn smoothed_targets_sum_to_one() {
        let target = targets(&[1, 0], 4, 0.2, &Device::flex()).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(target[..4], [0.05, 0.85, 0.05, 0.05]);
        assert!((target[4..].iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
