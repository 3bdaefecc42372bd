//! Pictures with all their captions.

use crate::{EvaluateError, Result};
use calotype_data::image::{DecodeNotes, DecodeOptions, RgbImage};
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use calotype_data::source::{CAPTION_COLUMNS, SourceOptions, open};
use calotype_data::{SampleRef, Source};
use rayon::prelude::*;
use serde_json::Value;
use std::ops::Range;
use std::sync::Arc;

/// A picture with its captions, of which there is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionedPicture {
    /// Its name.
    pub name: String,
    /// Its pixels.
    pub image: RgbImage,
    /// Its captions.
    pub captions: Vec<String>,
}

/// Pictures with captions, in the order of their source. Pixels are taken as they are stored.
///
/// The captions of a picture are the list in the caption column of its row or part `json`, where it has several; else each
/// line of its part `txt` that is not empty (so that `x.txt` beside `x.jpg` may hold five).
pub struct Captioned {
    source: Arc<dyn Source>,
    decode: DecodeOptions,
    notes: DecodeNotes,
}

impl Captioned {
    /// Opens what samples are read from.
    ///
    /// # Errors
    /// [`EvaluateError::Data`], among others if there are no pictures.
    pub fn open(path: &str) -> Result<Self> {
        let source = open(path, &SourceOptions::default())?;
        Ok(Self { source, decode: DecodeOptions::as_stored(), notes: DecodeNotes::default() })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of the pictures, decoded by all threads.
    ///
    /// # Errors
    /// [`EvaluateError::Data`] for a picture that cannot be read, [`EvaluateError::File`] for one without a caption; both name
    /// it.
    pub fn pictures(&self, numbers: Range<usize>) -> Result<Vec<CaptionedPicture>> {
        numbers.into_par_iter().map(|number| self.picture(number)).collect()
    }

    fn picture(&self, number: usize) -> Result<CaptionedPicture> {
        let held = self.source.get(number)?;
        let sample = held.sample();
        let captions = captions_of(&sample);
        if captions.is_empty() {
            let detail = format!("picture `{}` has no caption", sample.key());
            return Err(EvaluateError::File { path: self.source.name().into(), detail });
        }
        // Without any, the error of the usual one names the parts that there are.
        let bytes =
            IMAGE_EXTENSIONS.iter().find_map(|part| sample.part(part).ok()).map_or_else(|| sample.part("png"), Ok)?;
        let (image, found) = RgbImage::decode_noting(sample.key(), bytes, &self.decode)?;
        self.notes.add(&found);
        Ok(CaptionedPicture { name: sample.key().to_owned(), image, captions })
    }

    /// What was left out, and what decoding changed, in sentences.
    pub fn notices(&self) -> Vec<String> {
        let left_out = self.source.left_out();
        let left_out = left_out.iter().map(|(reason, count)| format!("{count} images: {reason}"));
        left_out.chain(self.notes.sentences(&self.decode)).collect()
    }
}

fn captions_of(sample: &SampleRef<'_>) -> Vec<String> {
    let lists: Option<Value> = sample.text("json").ok().and_then(|text| serde_json::from_str(text).ok());
    let list =
        lists.as_ref().and_then(|fields| CAPTION_COLUMNS.iter().find_map(|column| fields.get(column)?.as_array()));
    let texts: Vec<&str> = match list {
        Some(list) => list.iter().filter_map(Value::as_str).collect(),
        None => sample.text("txt").map(|text| text.lines().collect()).unwrap_or_default(),
    };
    texts.into_iter().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_data::image::PngEffort;

    #[test]
    fn captions_come_from_tables_and_from_files_beside() {
        let folder = tempfile::tempdir().unwrap();
        let png = RgbImage::filled(3, 2, [7; 3]).unwrap().encode_png(PngEffort::Fast).unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let captions = || {
            let captioned = Captioned::open(folder.path().to_str().unwrap())?;
            Ok(captioned.pictures(0..captioned.len())?.into_iter().map(|picture| picture.captions).collect::<Vec<_>>())
        };
        write("a.png", &png);
        write("b.png", &png);
        write("a.txt", b"one\n\n two \r\n");
        write("b.txt", b"\xef\xbb\xbfthree");
        let found: Result<Vec<Vec<String>>> = captions();
        assert_eq!(found.unwrap(), [vec!["one", "two"], vec!["three"]]);
        write("b.txt", b" \n");
        let error = captions().unwrap_err().to_string();
        assert!(
            error.contains("picture `b` has no caption") && error.contains(folder.path().to_str().unwrap()),
            "{error}"
        );
        let rows = "{\"file_name\": \"a.png\", \"captions\": [\"x\", \"y\"]}\n{\"file_name\": \"b.png\", \"captions\": [\"z\"]}\n";
        write("metadata.jsonl", rows.as_bytes());
        assert_eq!(captions().unwrap(), [vec!["x", "y"], vec!["z"]]);
    }
}
