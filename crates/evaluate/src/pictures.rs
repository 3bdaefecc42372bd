//! What is judged: pictures with their names and captions.

use crate::features::hex;
use crate::{EvaluateError, Result};
use calotype_core::read_text;
use calotype_data::image::{DecodeNotes, DecodeOptions, RgbImage};
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use calotype_data::source::metadata::{FILE_COLUMNS, Table};
use calotype_data::source::{CAPTION_COLUMNS, SourceOptions, open};
use calotype_data::{Error, SampleRef, Source};
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    /// What messages call the source; empty if it has no name.
    place: String,
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
        Ok(Self { place: spec.to_owned(), ..Self::of(open(spec, &SourceOptions::default())?) })
    }

    /// Those of a source.
    pub fn of(source: Arc<dyn Source>) -> Self {
        let (captions, decode, notes) = (Captions::OfSource, DecodeOptions::as_stored(), DecodeNotes::default());
        Self { source, place: String::new(), captions, decode, notes }
    }

    /// The same pictures with the captions of a file: a table (`.csv`, `.jsonl`) with the pictures' names in `file_name` and
    /// captions in a column that is called one (`caption`, `text`, …), or a text with a line for each picture, in order.
    ///
    /// # Errors
    /// [`EvaluateError::Usage`] for a folder, and for another number of lines than pictures; [`EvaluateError::File`] for no such
    /// columns, a name twice; [`EvaluateError::Io`], [`EvaluateError::Data`].
    pub fn with_captions(mut self, path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(EvaluateError::Usage(format!(
                "{}: is a folder, and captions are in a file: a text with a line for each picture, or a table (.csv, .jsonl)",
                path.display()
            )));
        }
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
            return Err(EvaluateError::Usage(format!(
                "{}: {} lines for {} pictures; give a line for each, in the order of the pictures' names, or a table (.csv, .jsonl) \
                 with the columns file_name and caption",
                path.display(),
                lines.len(),
                self.len()
            )));
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

    /// A checksum of the first `count` pictures too, where each is read by itself: files of a folder can be replaced under their names.
    /// Of shards and tables it is [`digest`](Self::digest), which knows their files.
    ///
    /// # Errors
    /// [`EvaluateError::Data`] for a picture that cannot be read.
    pub fn digest_of_contents(&self, count: usize) -> Result<String> {
        let digest = self.digest();
        if self.source.blocks().len() != self.len() {
            return Ok(digest);
        }
        let of_sample = |number: usize| -> Result<blake3::Hash> {
            let held = self.source.get(number)?;
            let mut hasher = blake3::Hasher::new();
            for (name, bytes) in held.sample().parts() {
                hasher.update(format!("{name} {}\n", bytes.len()).as_bytes()).update(bytes);
            }
            Ok(hasher.finalize())
        };
        let found: Vec<_> = (0..count.min(self.len())).into_par_iter().map(of_sample).collect();
        let mut hasher = Sha256::new().chain_update(digest);
        for found in found {
            hasher.update(found?.as_bytes());
        }
        Ok(hex(&hasher.finalize()))
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// Their source, for messages.
    pub fn name(&self) -> String {
        self.source.name()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Picture `number`.
    ///
    /// # Errors
    /// [`EvaluateError::Data`] or [`EvaluateError::Picture`], which name it.
    pub fn get(&self, number: usize) -> Result<Picture> {
        self.picture(number).map_err(|error| match error {
            EvaluateError::Data(source) if self.is_unnamed_in(&source) => {
                EvaluateError::Picture { place: self.place.clone(), source: Box::new(source) }
            }
            error => error,
        })
    }

    /// Whether an error does not say where the picture is.
    fn is_unnamed_in(&self, error: &calotype_data::Error) -> bool {
        let is_stop = matches!(error, calotype_data::Error::Interrupted { .. });
        !is_stop && !self.place.is_empty() && !error.to_string().contains(&self.place)
    }

    fn picture(&self, number: usize) -> Result<Picture> {
        let held = self.source.get(number)?;
        let sample = held.sample();
        // Without any, the error of the usual one names the parts that there are.
        let image = IMAGE_EXTENSIONS.iter().find_map(|part| sample.part(part).ok());
        let image = image
            .map_or_else(|| sample.part("png"), Ok)
            .and_then(|bytes| RgbImage::decode_noting(sample.key(), bytes, &self.decode));
        let (image, found) = image.map_err(|error| self.with_file(number, error))?;
        self.notes.add(&found);
        Ok(Picture { name: sample.key().to_owned(), image, caption: self.caption(number, &sample) })
    }

    /// An error of a sample with the file that it is in.
    fn with_file(&self, number: usize, error: Error) -> Error {
        let path = || self.source.file_of(number).into();
        match error {
            Error::BadImage { key, detail } => {
                Error::BadSample { path: path(), key, detail: format!("image cannot be used: {detail}") }
            }
            Error::MissingPart { key, part, present } => {
                let detail = format!("it has no part `{part}`; it has: {present}");
                Error::BadSample { path: path(), key, detail }
            }
            error => error,
        }
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
        self.left_out().into_iter().chain(self.notes.sentences(&self.decode)).collect()
    }

    /// What of the source is not judged, a sentence each.
    pub fn left_out(&self) -> Vec<String> {
        self.source.left_out().into_iter().map(|(reason, count)| format!("left out: {count} {reason}")).collect()
    }

    /// Which captions say nothing, and which are of no picture, a sentence each. Captions that are not in a text by lines need a look
    /// at every picture's file.
    ///
    /// # Errors
    /// [`EvaluateError::Data`], as [`Pictures::get`] but for images.
    pub fn told_of_captions(&self) -> Result<Vec<String>> {
        let mut unused: BTreeSet<&str> = match &self.captions {
            Captions::Named(captions) => captions.keys().map(String::as_str).collect(),
            Captions::OfSource | Captions::Lines(_) => BTreeSet::new(),
        };
        let mut empty: Vec<String> = Vec::new();
        for number in 0..self.len() {
            let held = self.source.get(number)?;
            let sample = held.sample();
            unused.remove(sample.key());
            if self.caption(number, &sample).is_some_and(|caption| caption.trim().is_empty()) {
                empty.push(sample.key().to_owned());
            }
        }
        let mut told = Vec::new();
        if let Some(first) = empty.first() {
            told.push(format!("{} empty, such as that of {first}; it is judged as any other", empty.len()));
        }
        if let Some(first) = unused.first() {
            told.push(format!("{} of no picture, such as that of `{first}`", unused.len()));
        }
        Ok(told)
    }

    /// The caption of picture `number`, which is this sample.
    fn caption(&self, number: usize, sample: &SampleRef<'_>) -> Option<String> {
        match &self.captions {
            Captions::OfSource => sample.text("txt").ok().map(|text| text.trim_end_matches(['\r', '\n']).to_owned()),
            Captions::Lines(lines) => lines.get(number).cloned(),
            Captions::Named(captions) => captions.get(sample.key()).cloned(),
        }
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
