//! Both towers of a CLIP model: unit features of pictures and of texts in one space.

use crate::features::Features;
use crate::{EvaluateError, Result};
use calotype_data::image::RgbImage;
use calotype_metrics::normalize_rows;
use calotype_models::ClipTokenizer;

/// Texts that are encoded at once.
const TEXTS: usize = 64;

/// A CLIP model.
pub struct Clip {
    features: Box<dyn Features>,
    tokenizer: ClipTokenizer,
    scale: f32,
}

impl Clip {
    /// A model whose texts `tokenizer` cuts into tokens, and whose logits are cosines times `scale`.
    pub fn new(features: Box<dyn Features>, tokenizer: ClipTokenizer, scale: f32) -> Self {
        Self { features, tokenizer, scale }
    }

    /// The network, with its fingerprint.
    pub fn features(&self) -> &dyn Features {
        &*self.features
    }

    /// Values in a vector.
    pub fn width(&self) -> usize {
        self.features.width()
    }

    /// What the model multiplies cosines by: `exp(logit_scale)`.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Tokens of a text, start and end counted, that the model reads.
    pub fn context(&self) -> usize {
        self.tokenizer.context_length()
    }

    /// Tokens at the end of a text that the model does not read, if there are any.
    pub fn cut(&self, text: &str) -> Option<usize> {
        Some(self.tokenizer.encode(text).truncated).filter(|tokens| *tokens > 0)
    }

    /// Unit features of pictures, `[pictures, width]`.
    ///
    /// # Errors
    /// A picture cannot be prepared, or has features without a direction.
    pub fn images(&self, images: &[&RgbImage]) -> Result<Vec<f32>> {
        let mut rows = self.features.images(images)?.features;
        self.to_unit("features of pictures", &mut rows)?;
        Ok(rows)
    }

    /// Unit features of texts, `[texts, width]`. What is longer than the context is cut, as by the references; see
    /// [`Clip::cut`].
    ///
    /// # Errors
    /// The model cannot read them, or a text has features without a direction.
    pub fn texts(&self, texts: &[&str]) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(texts.len() * self.width());
        for some in texts.chunks(TEXTS) {
            rows.extend(self.features.captions(some)?);
        }
        self.to_unit("features of texts", &mut rows)?;
        Ok(rows)
    }

    fn to_unit(&self, what: &'static str, rows: &mut [f32]) -> Result<()> {
        normalize_rows(what, rows, self.width()).map_err(EvaluateError::metric(self.features.key().to_string()))
    }
}
