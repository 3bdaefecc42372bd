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
    /// Tokens that were cut from the end of each text.
    pub cut: Vec<usize>,
}

/// Compares all pictures with all texts.
///
/// # Errors
/// A picture cannot be prepared, or a vector has no direction.
pub fn similarity(clip: &Clip, images: &[&RgbImage], texts: &[&str]) -> Result<Similarity> {
    let (pictures, sentences) = (clip.images(images)?, clip.texts(texts)?);
    let cosines: Vec<f32> = products(&pictures, &sentences, clip.width()).collect();
    let scale = f64::from(clip.scale());
    let rows = cosines.chunks_exact(texts.len().max(1));
    let probabilities = rows.flat_map(|row| softmax(row.iter().map(|cosine| scale * f64::from(*cosine)))).collect();
    let cut = texts.iter().map(|text| clip.cut(text).unwrap_or(0)).collect();
    Ok(Similarity { cosines, probabilities, cut })
}
