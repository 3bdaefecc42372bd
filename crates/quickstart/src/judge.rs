use crate::generate::{picture_path, read_png};
use crate::{EvaluationRecipe, QuickstartError};
use burn::tensor::{DType, Device, Tensor};
use calotype_data::emoji::{self, BACKGROUNDS, Split};
use calotype_data::image::RgbImage;
use calotype_kernels::{Purpose, Stream};
use calotype_metrics::{GaussianStatistics, clip_score, frechet_distance, retrieval_top1};
use calotype_models::state::values_of;
use calotype_train::batches::stack;
use calotype_train::clip::TextEncoder;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How good a set of pictures is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Fréchet distance to all real held-out pictures, on the project's own CLIP picture features.
    pub frechet_distance: f64,
    /// Mean cosine of picture and caption in CLIP's space.
    pub clip_score: f64,
    /// Share of pictures whose own caption is the nearest among the candidates.
    pub retrieval_top1: f64,
    /// Share of pictures whose background, measured from pixels, is the caption's.
    pub background_accuracy: f64,
}

/// Figures of the trained model with what to compare them to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The UNet before training.
    pub untrained: Figures,
    /// The UNet after training.
    pub trained: Figures,
    /// Real held-out pictures of the same captions: the ceiling.
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

/// Judges pictures by CLIP and by their pixels.
pub(crate) struct Judge<'a> {
    pub text: &'a TextEncoder,
    pub recipe: &'a EvaluationRecipe,
    pub device: &'a Device,
    /// Side of the pictures that CLIP takes.
    pub side: usize,
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

/// Pictures or captions encoded at a time.
const BATCH: usize = 64;

impl Judge<'_> {
    /// Unit picture features, `[pictures, width]`.
    pub(crate) fn picture_features(&self, pictures: &[RgbImage]) -> Result<Vec<f32>, QuickstartError> {
        let mut features = Vec::new();
        for batch in pictures.chunks(BATCH) {
            let pixels = batch
                .iter()
                .map(|image| calotype_train::batches::fit(image.clone(), self.side))
                .collect::<Result<Vec<_>, _>>()?;
            let rows = pixels.iter().map(Vec::as_slice);
            let tensor: Tensor<4> = stack(rows, &[self.side, self.side, 3], DType::F32, self.device);
            features.extend(values_of(self.text.clip().picture_features(tensor)));
        }
        Ok(features)
    }

    fn text_features(&self, captions: &[String]) -> Vec<f32> {
        let mut features = Vec::new();
        for batch in captions.chunks(BATCH) {
            let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
            features.extend(values_of(self.text.features(&batch)));
        }
        features
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

    /// Encodes captions and candidates, and the statistics of all real held-out pictures.
    pub(crate) fn yardstick(&self, real: &[RgbImage]) -> Result<Yardstick, QuickstartError> {
        let features = self.picture_features(real)?;
        let width = features.len() / real.len().max(1);
        let captions: Vec<String> = self.chosen.iter().map(|c| c.caption()).collect();
        let candidates: Vec<String> =
            self.chosen.iter().enumerate().flat_map(|(i, &c)| self.candidates(i, c)).collect();
        Ok(Yardstick {
            real: GaussianStatistics::from_features(&features, width)?,
            captions: self.text_features(&captions),
            candidates: self.text_features(&candidates),
            width,
        })
    }

    /// Judges one picture for each chosen combination.
    pub(crate) fn figures(&self, pictures: &[RgbImage], yardstick: &Yardstick) -> Result<Figures, QuickstartError> {
        let Yardstick { real, captions, candidates, width } = yardstick;
        let features = self.picture_features(pictures)?;
        let right = vec![0; pictures.len()];
        let backgrounds =
            pictures.iter().zip(self.chosen).filter(|(image, c)| emoji::background_of(image) == c.colour).count();
        Ok(Figures {
            frechet_distance: frechet_distance(&GaussianStatistics::from_features(&features, *width)?, real)?,
            clip_score: clip_score(&features, captions, *width)?,
            retrieval_top1: retrieval_top1(&features, candidates, &right, *width, self.recipe.candidates)?,
            background_accuracy: backgrounds as f64 / pictures.len().max(1) as f64,
        })
    }
}

/// The first `count` pictures of a folder.
pub(crate) fn read_pictures(folder: &Path, count: usize) -> Result<Vec<RgbImage>, QuickstartError> {
    (0..count).map(|i| read_png(&picture_path(folder, i))).collect()
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
