//! Where the pictures of an evaluation are.

use crate::{EvaluateError, Result};
use calotype_data::image::{DecodeOptions, Filter, RgbImage};
use calotype_metrics::report::Image;
use std::io::ErrorKind;
use std::path::PathBuf;

/// Longer side of a picture in a report, in pixels: twice what it has on the page.
const SIDE: usize = 256;
/// Of the JPEG files in a report.
const QUALITY: u8 = 84;

/// The pictures of an evaluation. A report asks for some dozens of them, one at a time.
pub trait Pictures {
    /// The picture of a sample in a setting, both by their number; `None` if it was not kept.
    ///
    /// # Errors
    /// It is there and cannot be read.
    fn picture(&self, setting: usize, sample: usize) -> Result<Option<RgbImage>>;
}

/// Pictures in NeMo's layout: `root/LABEL/image000000.png`.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureFolder {
    /// The folder.
    pub root: PathBuf,
    /// Names of the settings' folders.
    pub labels: Vec<String>,
}

impl Pictures for PictureFolder {
    fn picture(&self, setting: usize, sample: usize) -> Result<Option<RgbImage>> {
        let Some(label) = self.labels.get(setting) else { return Ok(None) };
        let path = self.root.join(label).join(format!("image{sample:06}.png"));
        match std::fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(RgbImage::decode_with(&path.display().to_string(), &bytes, &DecodeOptions::as_stored())?))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EvaluateError::io("read", &path)(error)),
        }
    }
}

/// A picture as it stands in a report, small; `None` if it was not kept.
pub(super) fn shown(
    pictures: &dyn Pictures,
    setting: usize,
    sample: usize,
    figure: String,
    caption: String,
) -> Result<Option<Image>> {
    let Some(picture) = pictures.picture(setting, sample)? else { return Ok(None) };
    let longer = picture.width().max(picture.height());
    let side = |length: usize| (length * SIDE.min(longer) / longer).max(1);
    let small = match longer > SIDE {
        true => picture.resize(side(picture.width()), side(picture.height()), Filter::Lanczos3)?,
        false => picture,
    };
    let file = small.encode_jpeg(QUALITY)?;
    let alt = if caption.is_empty() { format!("picture {sample}") } else { format!("drawn for: {caption}") };
    Ok(Some(Image { file, alt, figure, caption, pixelated: longer < SIDE / 2 }))
}
