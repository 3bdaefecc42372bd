//! What is judged: pictures with their names and captions.

use crate::features::hex;
use crate::{EvaluateError, Result};
use calotype_core::read_text;
use calotype_data::Source;
use calotype_data::image::{DecodeNotes, DecodeOptions, RgbImage};
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use calotype_data::source::metadata::{FILE_COLUMNS, Table};
use calotype_data::source::{CAPTION_COLUMNS, SourceOptions, open};
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A picture that is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Its name.
    pub name: String,
    /// Its pixels.
    pub image: RgbImage,
    /// Its caption.
    pub caption: Option<String>,
}

/// Pictures of a folder, of shards, or of what else samples are read from, in the order of their source.
pub struct Pictures {
    source: Arc<dyn Source>,
    captions: Captions,
    decode: DecodeOptions,
    notes: DecodeNotes,
}

/// Where captions are from.
enum Captions {
    /// The source itself.
    OfSource,
    /// A file, line by line.
    Lines(Vec<String>),
    /// A table, by name of the picture.
    Named(HashMap<String, String>),
}

impl Pictures {
    /// Opens what [`calotype_data::source::open`] opens: a folder (in the order of the paths), shards, parquet files. As all
    /// peers, it takes pixels as they are stored: not turned, and the hidden colours where they are transparent.
    ///
    /// # Errors
    /// [`EvaluateError::Data`], among others if there are no pictures.
    pub fn open(spec: &str) -> Result<Self> {
        Ok(Self::of(open(spec, &SourceOptions::default())?))
    }

    /// Those of a source.
    pub fn of(source: Arc<dyn Source>) -> Self {
        Self { source, captions: Captions::OfSource, decode: DecodeOptions::as_stored(), notes: DecodeNotes::default() }
    }

    /// The same pictures with the captions of a file: a table (`.csv`, `.jsonl`) with the pictures' names in `file_name` and
    /// captions in a column that is called one (`caption`, `text`, …), or a text with a line for each picture, in order.
    ///
    /// # Errors
    /// [`EvaluateError::File`] if it cannot be used: another number of lines than pictures, no such columns, a name twice;
    /// [`EvaluateError::Io`], [`EvaluateError::Data`].
    pub fn with_captions(mut self, path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        self.captions = match extension.as_str() {
            "csv" | "jsonl" => Captions::Named(named_captions(path)?),
            _ => Captions::Lines(self.caption_lines(path)?),
        };
        Ok(self)
    }

    fn caption_lines(&self, path: &Path) -> Result<Vec<String>> {
        let text = read_text(path).map_err(EvaluateError::io("read", path))?;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.len() != self.len() {
            let detail = format!(
                "{} lines for {} pictures; give a line for each, in the order of the pictures' names, or a table (.csv, .jsonl) \
                 with the columns file_name and caption",
                lines.len(),
                self.len()
            );
            return Err(EvaluateError::File { path: path.to_owned(), detail });
        }
        Ok(lines)
    }

    /// A checksum: pictures with equal ones are the same, in the same order and with the same captions.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new().chain_update(self.source.digest());
        match &self.captions {
            Captions::OfSource => {}
            Captions::Lines(lines) => lines.iter().for_each(|line| hasher.update(format!("\n{line}"))),
            Captions::Named(captions) => {
                let sorted: BTreeMap<_, _> = captions.iter().collect();
                sorted.iter().for_each(|(name, caption)| hasher.update(format!("\n{name}\t{caption}")));
            }
        }
        hex(&hasher.finalize())
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Picture `number`.
    ///
    /// # Errors
    /// [`EvaluateError::Data`], which names it.
    pub fn get(&self, number: usize) -> Result<Picture> {
        let held = self.source.get(number)?;
        let sample = held.sample();
        // Without any, the error of the usual one names the parts that there are.
        let bytes =
            IMAGE_EXTENSIONS.iter().find_map(|part| sample.part(part).ok()).map_or_else(|| sample.part("png"), Ok)?;
        let (image, found) = RgbImage::decode_noting(sample.key(), bytes, &self.decode)?;
        self.notes.add(&found);
        let caption = match &self.captions {
            Captions::OfSource => sample.text("txt").ok().map(|text| text.trim_end_matches(['\r', '\n']).to_owned()),
            Captions::Lines(lines) => lines.get(number).cloned(),
            Captions::Named(captions) => captions.get(sample.key()).cloned(),
        };
        Ok(Picture { name: sample.key().to_owned(), image, caption })
    }

    /// Some pictures, in order.
    ///
    /// # Errors
    /// As [`Pictures::get`], for the first that cannot be read.
    pub fn batch(&self, numbers: Range<usize>) -> Result<Vec<Picture>> {
        let found: Vec<Result<Picture>> = numbers.into_par_iter().map(|number| self.get(number)).collect();
        found.into_iter().collect()
    }

    /// What of the source is not judged, and what of the pictures was read so far that decoding changes, a sentence each.
    pub fn told(&self) -> Vec<String> {
        let left_out = self.source.left_out().into_iter().map(|(reason, count)| format!("left out: {count} {reason}"));
        left_out.chain(self.notes.sentences(&self.decode)).collect()
    }
}

/// Captions of a table by the name of the picture, without its extension.
fn named_captions(path: &Path) -> Result<HashMap<String, String>> {
    let wrong = |detail: String| EvaluateError::File { path: path.to_owned(), detail };
    let table = Table::open(path, false)?;
    let mut captions = HashMap::with_capacity(table.len());
    for number in 0..table.len() {
        let row = table.row(number)?;
        let field = |names: &[&str]| names.iter().find_map(|name| row.get(*name));
        let (Some(Value::String(file)), Some(Value::String(caption))) = (field(&FILE_COLUMNS), field(&CAPTION_COLUMNS))
        else {
            let (file, caption) = (FILE_COLUMNS[0], "caption");
            return Err(wrong(format!("row {}: needs the texts `{file}` and `{caption}`", number + 1)));
        };
        if captions.insert(key_of(file), caption.clone()).is_some() {
            return Err(wrong(format!("row {}: `{file}` has a caption already", number + 1)));
        }
    }
    Ok(captions)
}

/// The key that a source gives a picture's file: its path without extension, dots of its name as `_`.
fn key_of(file: &str) -> String {
    let (folder, name) = file.rsplit_once('/').map_or(("", file), |(folder, name)| (folder, name));
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem).replace('.', "_");
    if folder.is_empty() { stem } else { format!("{folder}/{stem}") }
}
