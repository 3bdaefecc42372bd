//! Retrieval: of all captions those of a picture, of all pictures that of a caption.

use super::batches::in_batches;
use super::captioned::{Captioned, CaptionedPicture};
use super::clip::Clip;
use super::figures::Judged;
use crate::figure::Figure;
use crate::{EvaluateError, Result};
use calotype_data::Control;
use calotype_metrics::{Ties, retrieval_recalls};
use serde_json::json;

/// Recalls in both directions.
pub struct Retrieval {
    /// `recall_at_1`, …, in the variants `image_to_text` and `text_to_image`.
    pub figures: Vec<Figure>,
    /// What is worth knowing besides, in sentences.
    pub notices: Vec<String>,
}

/// Recall at each of `ks`, by cosines of all pictures with all captions: the share of pictures one of whose captions is among
/// the k nearest captions, and the share of captions whose picture is among the k nearest pictures. `batch` pictures are
/// looked at at once. Ties stand in the order of `torch.topk` on CPU. `ks` beyond the number of pictures are left out.
///
/// # Errors
/// A picture cannot be read or has no caption, features have no direction, or `control` stops the work.
pub fn retrieval(
    clip: &Clip,
    pictures: &Captioned,
    (ks, batch): (&[usize], usize),
    control: &mut Control<'_>,
) -> Result<Retrieval> {
    let (ks, beyond): (Vec<usize>, Vec<usize>) = ks.iter().partition(|k| (1..=pictures.len()).contains(*k));
    if ks.is_empty() {
        let pictures = pictures.len();
        return Err(EvaluateError::Usage(format!("ks names no rank from 1 to the number of pictures, {pictures}")));
    }
    let mut found = Vectors::default();
    let take = |batch: Vec<CaptionedPicture>| found.add(clip, batch);
    in_batches(("pictures", pictures.len(), batch), |numbers| pictures.pictures(numbers), take, control)?;
    let Vectors { images, texts, of_picture, samples, cut } = found;

    let recalls = retrieval_recalls(&images, &texts, clip.width(), &of_picture, &ks, Ties::TopK);
    let recalls = recalls.map_err(EvaluateError::metric("retrieval"))?;
    let mut judged = Judged::of(clip.features(), samples.into_iter());
    judged.settings.insert("ties".to_owned(), json!(Ties::TopK.name()));
    let both = [
        ("image_to_text", &recalls.image_to_text, pictures.len()),
        ("text_to_image", &recalls.text_to_image, of_picture.len()),
    ];
    let figures = both.into_iter().flat_map(|(variant, recalls, count)| {
        ks.iter()
            .zip(recalls)
            .map(|(k, value)| judged.figure(&format!("recall_at_{k}"), variant, *value, count))
            .collect::<Vec<_>>()
    });
    let figures = figures.collect();
    let mut notices = pictures.notices();
    notices.extend(beyond.iter().map(|k| format!("recall at {k} is left out: there are {} pictures", pictures.len())));
    if cut > 0 {
        let (texts, context) = (of_picture.len(), clip.context());
        notices.push(format!("{cut} of {texts} captions are longer than {context} tokens; their ends are not read"));
    }
    Ok(Retrieval { figures, notices })
}

/// The vectors of pictures and captions.
#[derive(Default)]
struct Vectors {
    images: Vec<f32>,
    texts: Vec<f32>,
    /// Number of each caption's picture.
    of_picture: Vec<usize>,
    /// What identifies each picture.
    samples: Vec<String>,
    /// Captions that were cut.
    cut: usize,
}

impl Vectors {
    fn add(&mut self, clip: &Clip, batch: Vec<CaptionedPicture>) -> Result<()> {
        let images: Vec<_> = batch.iter().map(|picture| &picture.image).collect();
        self.images.extend(clip.images(&images)?);
        let captions: Vec<&str> = batch.iter().flat_map(|picture| &picture.captions).map(String::as_str).collect();
        self.texts.extend(clip.texts(&captions)?);
        self.cut += captions.iter().filter(|caption| clip.cut(caption).is_some()).count();
        for picture in batch {
            self.of_picture.extend(std::iter::repeat_n(self.samples.len(), picture.captions.len()));
            self.samples.push(format!("{}\t{}", picture.name, picture.captions.join("\n")));
        }
        Ok(())
    }
}
