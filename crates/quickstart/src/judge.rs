use crate::draw::{image_path, read_png};
use crate::{EvaluationRecipe, QuickstartError};
use burn::tensor::{DType, Device};
use calotype_checkpoints::Checkpoint;
use calotype_core::{Purpose, Stream};
use calotype_data::emoji::{self, BACKGROUNDS, Split};
use calotype_data::image::RgbImage;
use calotype_evaluate::EvaluateError;
use calotype_evaluate::vision::{self, Clip, Placing};
use calotype_metrics::{GaussianStatistics, clip_score, frechet_distance, retrieval_top1};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How good a set of images is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Fréchet distance to all real held-out images, on the project's own CLIP image features.
    pub frechet_distance: f64,
    /// Mean cosine of image and caption in CLIP's space.
    pub clip_score: f64,
    /// Share of images whose own caption is the nearest among the candidates.
    pub retrieval_top1: f64,
    /// Share of images whose background, measured from pixels, is the caption's.
    pub background_accuracy: f64,
}

/// Figures of the trained model with what to compare them to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The UNet before training.
    pub untrained: Figures,
    /// The UNet after training.
    pub trained: Figures,
    /// Real held-out images of the same captions: the ceiling.
    pub real: Figures,
}

/// One held-out combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Combination {
    /// Number of the drawing.
    pub drawing: usize,
    /// Number of the background.
    pub colour: usize,
}

impl Combination {
    pub(crate) fn caption(self) -> String {
        emoji::caption(emoji::pairs()[self.drawing].name, BACKGROUNDS[self.colour].0)
    }
}

/// All held-out combinations of the drawings in use.
pub(crate) fn held_out(drawings: Option<usize>) -> Result<Vec<Combination>, QuickstartError> {
    let all = emoji::combinations(Split::HeldOut, drawings)?;
    Ok(all.into_iter().map(|(drawing, colour)| Combination { drawing, colour }).collect())
}

/// `count` of the combinations, evenly chosen.
pub(crate) fn choose(all: &[Combination], count: usize) -> Vec<Combination> {
    (0..count).map(|i| all[i * all.len() / count]).collect()
}

/// The CLIP model of a folder, in `f32`.
///
/// # Errors
/// [`EvaluateError`] naming the model.
pub(crate) fn open_clip(folder: &Path, device: &Device) -> Result<Clip, QuickstartError> {
    let placing = Placing { device: device.clone(), dtype: DType::F32 };
    let checkpoint = Checkpoint::open(folder).map_err(|error| EvaluateError::Encoder(error.into()))?;
    Ok(vision::open_clip(&checkpoint, &placing)?)
}

/// Judges images by CLIP and by their pixels.
pub(crate) struct Judge<'a> {
    pub clip: &'a Clip,
    pub recipe: &'a EvaluationRecipe,
    /// The combinations that were drawn.
    pub chosen: &'a [Combination],
    /// Drawings that captions to choose from are taken from.
    pub drawings: &'a [usize],
}

/// Features of one set of captions and candidates, which all judged sets share.
pub(crate) struct Yardstick {
    real: GaussianStatistics,
    captions: Vec<f32>,
    candidates: Vec<f32>,
    width: usize,
}

/// Images encoded at a time.
const BATCH: usize = 64;

impl Judge<'_> {
    /// Unit image features, `[images, width]`.
    pub(crate) fn image_features(&self, images: &[RgbImage]) -> Result<Vec<f32>, QuickstartError> {
        let mut features = Vec::new();
        for batch in images.chunks(BATCH) {
            features.extend(self.clip.images(&batch.iter().collect::<Vec<_>>())?);
        }
        Ok(features)
    }

    fn text_features(&self, captions: &[String]) -> Result<Vec<f32>, QuickstartError> {
        Ok(self.clip.texts(&captions.iter().map(String::as_str).collect::<Vec<_>>())?)
    }

    /// The right caption first, then others that share its background.
    fn candidates(&self, number: usize, right: Combination) -> Vec<String> {
        let mut stream = Stream::new(self.recipe.seed, Purpose::Evaluation, number as u64);
        let mut chosen = vec![right.drawing];
        while chosen.len() < self.recipe.candidates {
            let other = self.drawings[stream.below(self.drawings.len() as u64) as usize];
            if !chosen.contains(&other) {
                chosen.push(other);
            }
        }
        chosen.into_iter().map(|drawing| Combination { drawing, ..right }.caption()).collect()
    }

    /// Encodes captions and candidates, and the statistics of all real held-out images.
    pub(crate) fn yardstick(&self, real: &[RgbImage]) -> Result<Yardstick, QuickstartError> {
        let features = self.image_features(real)?;
        let width = features.len() / real.len().max(1);
        let captions: Vec<String> = self.chosen.iter().map(|c| c.caption()).collect();
        let candidates: Vec<String> =
            self.chosen.iter().enumerate().flat_map(|(i, &c)| self.candidates(i, c)).collect();
        Ok(Yardstick {
            real: GaussianStatistics::from_features(&features, width)?,
            captions: self.text_features(&captions)?,
            candidates: self.text_features(&candidates)?,
            width,
        })
    }

    /// Judges one image for each chosen combination.
    pub(crate) fn figures(&self, images: &[RgbImage], yardstick: &Yardstick) -> Result<Figures, QuickstartError> {
        let Yardstick { real, captions, candidates, width } = yardstick;
        let features = self.image_features(images)?;
        let right = vec![0; images.len()];
        let backgrounds =
            images.iter().zip(self.chosen).filter(|(image, c)| emoji::background_of(image) == c.colour).count();
        Ok(Figures {
            frechet_distance: frechet_distance(&GaussianStatistics::from_features(&features, *width)?, real)?,
            clip_score: clip_score(&features, captions, *width)?,
            retrieval_top1: retrieval_top1(&features, candidates, &right, *width, self.recipe.candidates)?,
            background_accuracy: backgrounds as f64 / images.len().max(1) as f64,
        })
    }
}

/// The first `count` images of a folder.
pub(crate) fn read_images(folder: &Path, count: usize) -> Result<Vec<RgbImage>, QuickstartError> {
    (0..count).map(|i| read_png(&image_path(folder, i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_combinations_are_held_out_and_distinct() {
        let all = held_out(None).unwrap();
        let chosen = choose(&all, 160);
        assert_eq!(chosen.len(), 160);
        for (i, c) in chosen.iter().enumerate() {
            assert_eq!(emoji::held_out_colour(c.drawing), Some(c.colour));
            assert!(!chosen[..i].contains(c));
        }
    }
}
