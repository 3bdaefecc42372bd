//! What gives pictures a score for each class: a network with a head of classes, or CLIP with texts for them.

use super::clip::Clip;
use super::figures::Judged;
use super::lists::filled;
use crate::features::Features;
use crate::{EvaluateError, Result};
use calotype_data::image::RgbImage;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A classifier of pictures.
pub trait Classifier {
    /// The names of its classes, by number.
    fn names(&self) -> &[String];

    /// Logits of pictures, `[pictures, classes]`.
    ///
    /// # Errors
    /// A picture cannot be prepared, or its features have no direction.
    fn logits(&self, images: &[&RgbImage]) -> Result<Vec<f32>>;

    /// The network that looks at the pictures.
    fn network(&self) -> &dyn Features;

    /// What its logits depend on besides that network, for fingerprints.
    fn settings(&self) -> BTreeMap<String, Value>;
}

/// The head of classes that a network was trained with.
pub struct Head {
    network: Box<dyn Features>,
    names: Vec<String>,
}

impl Head {
    /// A network with a head, whose classes have `names`.
    ///
    /// # Errors
    /// [`EvaluateError::Usage`] if the network has no head, or another number of classes.
    pub fn new(network: Box<dyn Features>, names: Vec<String>) -> Result<Self> {
        let (classes, named) = (network.classes(), names.len());
        match classes {
            0 => Err(EvaluateError::Usage(format!("{} has no head of classes", network.key()))),
            _ if classes != named => Err(EvaluateError::Usage(format!(
                "{named} classes are named, and the head of {} tells {classes} apart: give a list of {classes} names, in the order \
                 that it was trained with",
                network.key()
            ))),
            _ => Ok(Self { network, names }),
        }
    }
}

impl Classifier for Head {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn logits(&self, images: &[&RgbImage]) -> Result<Vec<f32>> {
        Ok(self.network.images(images)?.logits)
    }

    fn network(&self) -> &dyn Features {
        &*self.network
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        BTreeMap::new()
    }
}

/// What cosines are multiplied by for logits, as in CLIP's and open_clip's evaluations.
pub const ZERO_SHOT_SCALE: f32 = 100.0;

/// CLIP with the texts of classes in the place of a head (Radford et al. 2021, section 3.1.4): the mean of the unit features
/// of a class's name in all templates, of unit length again, is the class's direction.
pub struct ZeroShot {
    clip: Clip,
    scale: f32,
    names: Vec<String>,
    templates: Vec<String>,
    /// `[classes, width]`.
    directions: Vec<f32>,
}

impl ZeroShot {
    /// Reads the texts of all classes. Logits are cosines times `scale`, which decides the probabilities, and no rank:
    /// [`ZERO_SHOT_SCALE`], or the model's own.
    ///
    /// # Errors
    /// [`EvaluateError::Usage`] for a text that is longer than the model's context, naming class and template, and for
    /// texts without a direction.
    pub fn new(clip: Clip, scale: f32, names: Vec<String>, templates: Vec<String>) -> Result<Self> {
        let mut directions = Vec::new();
        for name in &names {
            let texts: Vec<String> = templates.iter().map(|template| filled(template, name)).collect();
            refuse_long(&clip, name, &texts)?;
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            directions.extend(mean_direction(&clip.texts(&texts)?, clip.width(), name)?);
        }
        Ok(Self { clip, scale, names, templates, directions })
    }
}

/// A class whose sentences are cut would be told apart by half of them.
fn refuse_long(clip: &Clip, name: &str, texts: &[String]) -> Result<()> {
    match texts.iter().find_map(|text| Some((text, clip.cut(text)?))) {
        None => Ok(()),
        Some((text, tokens)) => Err(EvaluateError::Usage(format!(
            "class `{name}`: the text `{text}` is {tokens} tokens longer than the {} that the model reads; shorten the name or the \
             template",
            clip.context()
        ))),
    }
}

/// The mean of unit vectors, `[rows, width]`, at unit length.
fn mean_direction(rows: &[f32], width: usize, name: &str) -> Result<Vec<f32>> {
    let mut mean = vec![0.0f64; width];
    for row in rows.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let length = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
    if !(length > 0.0 && length.is_finite()) {
        return Err(EvaluateError::Usage(format!(
            "the texts of class `{name}` have no common direction in the model's space"
        )));
    }
    Ok(mean.iter().map(|value| (value / length) as f32).collect())
}

impl Classifier for ZeroShot {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn logits(&self, images: &[&RgbImage]) -> Result<Vec<f32>> {
        let images = self.clip.images(images)?;
        Ok(products(&images, &self.directions, self.clip.width()).map(|cosine| self.scale * cosine).collect())
    }

    fn network(&self) -> &dyn Features {
        self.clip.features()
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([("templates".to_owned(), json!(Judged::hash(self.templates.iter().cloned())))])
    }
}

/// Products of each row of `left` with all rows of `right`, of equal width, summed in `f64`.
pub(crate) fn products<'a>(left: &'a [f32], right: &'a [f32], width: usize) -> impl Iterator<Item = f32> + 'a {
    left.chunks_exact(width).flat_map(move |row| {
        right
            .chunks_exact(width)
            .map(move |other| row.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32)
    })
}
