//! How well pictures and texts go together.

use super::classifier::products;
use super::classify::softmax;
use super::clip::Clip;
use crate::Result;
use calotype_data::image::RgbImage;

/// Every picture with every text.
#[derive(Clone, Debug, PartialEq)]
pub struct Similarity {
    /// Cosines, `[pictures, texts]`.
    pub cosines: Vec<f32>,
    /// Probability of each text among all, given the picture, `[pictures, texts]`: the softmax of cosines times the model's
    /// scale, as transformers' `logits_per_image` and open_clip's example give it.
    pub probabilities: Vec<f64>,
}

/// Texts that pictures are compared with, which are read once.
pub struct Comparison<'a> {
    clip: &'a Clip,
    texts: Vec<&'a str>,
    /// `[texts, width]`.
    sentences: Vec<f32>,
}

impl<'a> Comparison<'a> {
    /// Reads the texts.
    ///
    /// # Errors
    /// The model cannot read them, or one has no direction.
    pub fn new(clip: &'a Clip, texts: Vec<&'a str>) -> Result<Self> {
        let sentences = clip.texts(&texts)?;
        Ok(Self { clip, texts, sentences })
    }

    /// Tokens that are cut from the end of each text.
    pub fn cut(&self) -> impl Iterator<Item = usize> {
        self.texts.iter().map(|text| self.clip.cut(text).unwrap_or(0))
    }

    /// Compares pictures with all texts; what is found of one does not depend on the others.
    ///
    /// # Errors
    /// A picture cannot be prepared, or its vector has no direction.
    pub fn with(&self, images: &[&RgbImage]) -> Result<Similarity> {
        let pictures = self.clip.images(images)?;
        let cosines: Vec<f32> = products(&pictures, &self.sentences, self.clip.width()).collect();
        let scale = f64::from(self.clip.scale());
        let rows = cosines.chunks_exact(self.texts.len().max(1));
        let probabilities = rows.flat_map(|row| softmax(row.iter().map(|cosine| scale * f64::from(*cosine)))).collect();
        Ok(Similarity { cosines, probabilities })
    }
}
