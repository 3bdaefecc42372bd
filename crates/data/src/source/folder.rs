//! Folders of pictures.
//!
//! Where captions come from is told by what lies in the folder:
//!
//! 1. `metadata.jsonl` or `metadata.csv`, in the folder or those below it (Hugging Face's imagefolder): a row's
//!    `file_name`, relative to the table, names its picture; the caption column becomes part `txt`, `label` becomes
//!    `cls`, the other columns part `json`. Pictures without a row are left out, and counted.
//! 2. `x.txt` or `x.caption` beside `x.png` (kohya's trainers): part `txt`.
//! 3. Neither, and all pictures in folders below: those are classes. Part `cls` is the number of the picture's
//!    top folder among all, in the order of their names, as text; the names are in `meta`, as `classes`.
//!
//! The picture itself is the part named by its extension in lower case. The key is the path without extension, in which
//! dots of the file name become `_`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::metadata::{FILE_COLUMNS, Table, as_text, is_metadata};
use super::{CAPTION_COLUMNS, LABEL_COLUMNS, Source, SourceOptions, extension_of, files_below};
use crate::quarantine::{QUARANTINE_FILE, Quarantine};
use crate::sample::HeldSample;
use crate::{Error, Result, Sample};

/// Extensions of pictures.
pub const PICTURES: [&str; 6] = ["png", "jpg", "jpeg", "webp", "gif", "bmp"];

/// Key of the class names in [`Source::meta`].
pub const META_CLASSES: &str = "classes";

/// A folder of pictures. Its files are listed when it is opened, and read when they are asked for.
#[derive(Debug)]
pub struct FolderSource {
    dir: PathBuf,
    pictures: Vec<Picture>,
    tables: Vec<Table>,
    caption_column: Option<String>,
    meta: Map<String, Value>,
    left_out: BTreeMap<&'static str, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Picture {
    /// Path below the folder, with slashes.
    file: String,
    key: String,
    about: About,
}

/// Where the other parts of a sample come from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum About {
    Nothing,
    /// Numbers of table and row.
    Row(usize, usize),
    /// Extension of the caption file.
    Caption(String),
    /// Number of the class.
    Class(usize),
}

impl FolderSource {
    /// Lists the folder.
    ///
    /// # Errors
    /// [`Error::MissingFolder`]; [`Error::BadSource`] if there are no pictures; [`Error::BadTable`] and
    /// [`Error::BadRow`] for tables that cannot be used, among others because a picture is absent, or named twice;
    /// [`Error::DuplicateKey`]; [`Error::BadIndex`] for a bad `quarantine.json`; [`Error::Io`].
    pub fn open(dir: &Path, options: &SourceOptions) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::MissingFolder { path: dir.to_path_buf() });
        }
        let mut listing = Listing::of(dir)?;
        let mut source = FolderSource {
            dir: dir.to_path_buf(),
            pictures: listing.pictures()?,
            tables: listing.tables.iter().map(|table| Table::open(&dir.join(table))).collect::<Result<_>>()?,
            caption_column: options.caption_column.clone(),
            meta: Map::new(),
            left_out: std::mem::take(&mut listing.left_out),
        };
        source.find_captions(&listing, options)?;
        if options.quarantine {
            source.leave_out_quarantined()?;
        }
        if source.pictures.is_empty() {
            let detail = format!("no pictures to use; known extensions: {}", PICTURES.join(", "));
            return Err(Error::BadSource { spec: source.name(), detail });
        }
        Ok(source)
    }

    fn find_captions(&mut self, listing: &Listing, options: &SourceOptions) -> Result<()> {
        if !self.tables.is_empty() {
            return self.assign_rows();
        }
        for picture in &mut self.pictures {
            let stem = picture.file.rsplit_once('.').map_or(picture.file.as_str(), |(stem, _)| stem);
            let found = options.caption_extensions.iter().find(|ext| listing.others.contains(&format!("{stem}.{ext}")));
            if let Some(extension) = found {
                picture.about = About::Caption(extension.clone());
            }
        }
        let without = self.pictures.iter().filter(|picture| picture.about == About::Nothing).count();
        if without == self.pictures.len() {
            self.assign_classes();
        } else if without > 0 {
            tracing::warn!(folder = %self.dir.display(), pictures = without, "pictures without a caption file");
        }
        Ok(())
    }

    /// Gives each picture its row; those without one are left out.
    fn assign_rows(&mut self) -> Result<()> {
        let numbers: HashMap<String, usize> =
            self.pictures.iter().enumerate().map(|(number, picture)| (picture.file.clone(), number)).collect();
        for (table_number, table) in self.tables.iter().enumerate() {
            let folder = table.path().parent().and_then(|folder| folder.strip_prefix(&self.dir).ok());
            for row in 0..table.len() {
                let fields = table.row(row)?;
                let file = picture_of(folder.unwrap_or(Path::new("")), &fields).map_err(|e| table.bad_row(row, e))?;
                let Some(number) = numbers.get(&file) else {
                    return Err(table.bad_row(row, format!("names `{file}`, which is not among the folder's pictures")));
                };
                let about = &mut self.pictures[*number].about;
                if *about != About::Nothing {
                    return Err(table.bad_row(row, format!("names `{file}`, which an earlier row has named")));
                }
                *about = About::Row(table_number, row);
            }
        }
        let before = self.pictures.len();
        self.pictures.retain(|picture| picture.about != About::Nothing);
        self.count("without a row in the metadata", before - self.pictures.len());
        self.check_caption_column()
    }

    /// A column that was asked for must be there.
    fn check_caption_column(&self) -> Result<()> {
        let Some(column) = &self.caption_column else { return Ok(()) };
        for table in self.tables.iter().filter(|table| !table.is_empty()) {
            let row = table.row(0)?;
            if !row.contains_key(column) {
                let columns: Vec<&str> = row.keys().map(String::as_str).collect();
                let detail = format!("has no column `{column}`; it has: {}", columns.join(", "));
                return Err(Error::BadTable { path: table.path().to_path_buf(), detail });
            }
        }
        Ok(())
    }

    fn assign_classes(&mut self) {
        let top = |picture: &Picture| picture.file.split_once('/').map(|(top, _)| top.to_owned());
        let Some(tops) = self.pictures.iter().map(top).collect::<Option<Vec<String>>>() else { return };
        let names: Vec<String> = tops.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        for (picture, top) in self.pictures.iter_mut().zip(&tops) {
            picture.about = names.binary_search(top).map_or(About::Nothing, About::Class);
        }
        self.meta.insert(META_CLASSES.to_owned(), Value::from(names));
    }

    fn leave_out_quarantined(&mut self) -> Result<()> {
        let list = Quarantine::read(&self.dir)?;
        let before = self.pictures.len();
        self.pictures.retain(|picture| !list.contains(&picture.file, &picture.key));
        let left_out = before - self.pictures.len();
        if left_out != list.len() {
            let detail = format!("names {} pictures, the folder has only {left_out} of them", list.len());
            return Err(Error::BadIndex { path: self.dir.join(QUARANTINE_FILE), detail });
        }
        self.count("in quarantine", left_out);
        Ok(())
    }

    fn count(&mut self, reason: &'static str, pictures: usize) {
        if pictures > 0 {
            tracing::warn!(folder = %self.dir.display(), pictures, reason, "pictures left out");
            *self.left_out.entry(reason).or_default() += pictures;
        }
    }

    fn add_row(&self, sample: Sample, table: usize, row: usize) -> Result<Sample> {
        let table = &self.tables[table];
        let mut fields = table.row(row)?;
        for column in FILE_COLUMNS {
            if fields.remove(column).is_some() {
                break;
            }
        }
        add_fields(sample, fields, self.caption_column.as_deref()).map_err(|e| table.bad_row(row, e))
    }

    fn read(&self, picture: &Picture, file: &str) -> Result<Vec<u8>> {
        let path = self.dir.join(file);
        std::fs::read(&path).map_err(|e| {
            let detail = format!("cannot be read: {e}");
            Error::BadSample { path, key: picture.key.clone(), detail }
        })
    }
}

impl Source for FolderSource {
    fn name(&self) -> String {
        self.dir.display().to_string()
    }

    fn len(&self) -> usize {
        self.pictures.len()
    }

    fn get(&self, i: usize) -> Result<HeldSample<'_>> {
        let picture = self.pictures.get(i).ok_or(Error::OutOfRange { index: i, len: self.len() })?;
        let (stem, extension) = picture.file.rsplit_once('.').unwrap_or((&picture.file, ""));
        let sample = Sample::new(&picture.key).with(extension.to_ascii_lowercase(), self.read(picture, &picture.file)?);
        let sample = match &picture.about {
            About::Nothing => sample,
            About::Row(table, row) => self.add_row(sample, *table, *row)?,
            About::Caption(extension) => sample.with("txt", self.read(picture, &format!("{stem}.{extension}"))?),
            About::Class(class) => sample.with("cls", class.to_string()),
        };
        Ok(sample.into())
    }

    fn meta(&self) -> &Map<String, Value> {
        &self.meta
    }

    /// Of the pictures' names and lengths, and the tables.
    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let length = |file: &Path| std::fs::metadata(file).map_or(0, |meta| meta.len());
        for picture in &self.pictures {
            hasher.update(format!("{}\t{}\n", picture.file, length(&self.dir.join(&picture.file))).as_bytes());
            if let About::Row(table, row) = picture.about {
                let fields = self.tables[table].row(row).unwrap_or_default();
                hasher.update(Value::Object(fields).to_string().as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    fn blocks(&self) -> Vec<usize> {
        // Each picture is a file of its own.
        vec![1; self.len()]
    }

    fn left_out(&self) -> BTreeMap<&'static str, usize> {
        self.left_out.clone()
    }
}

/// The files of a folder by what they are, as paths below it, in the order of their names.
struct Listing {
    pictures: Vec<String>,
    tables: Vec<String>,
    others: BTreeSet<String>,
    left_out: BTreeMap<&'static str, usize>,
}

impl Listing {
    fn of(dir: &Path) -> Result<Self> {
        let (pictures, tables, others) = Default::default();
        let mut listing = Listing { pictures, tables, others, left_out: BTreeMap::new() };
        for path in files_below(dir)? {
            let is_picture = extension_of(&path).is_some_and(|extension| PICTURES.contains(&extension.as_str()));
            let Some(file) = path.strip_prefix(dir).ok().and_then(slashed) else {
                if is_picture {
                    *listing.left_out.entry("file name is not UTF-8").or_default() += 1;
                }
                continue;
            };
            match () {
                () if is_picture => listing.pictures.push(file),
                () if is_metadata(&path) => listing.tables.push(file),
                () => drop(listing.others.insert(file)),
            }
        }
        Ok(listing)
    }

    /// The pictures with keys that differ.
    fn pictures(&mut self) -> Result<Vec<Picture>> {
        let mut files: HashMap<String, String> = HashMap::new();
        let mut pictures = Vec::with_capacity(self.pictures.len());
        for file in std::mem::take(&mut self.pictures) {
            let (folder, name) =
                file.rsplit_once('/').map_or(("", file.as_str()), |(_, name)| (&file[..file.len() - name.len()], name));
            let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
            let mut key = format!("{folder}{}", stem.replace('.', "_"));
            // `a.jpg` beside `a.png`: the extension tells them apart.
            if files.contains_key(&key) {
                key = format!("{folder}{}", name.replace('.', "_"));
            }
            if let Some(first) = files.insert(key.clone(), file.clone()) {
                return Err(Error::DuplicateKey { key, first: first.into(), second: file.into() });
            }
            pictures.push(Picture { file, key, about: About::Nothing });
        }
        Ok(pictures)
    }
}

/// A relative path with slashes; `None` if it is not UTF-8.
fn slashed(path: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = path.components().map(|part| part.as_os_str().to_str()).collect();
    Some(parts?.join("/"))
}

/// The picture that a row names, as a path below the source's folder; `folder` is the table's.
fn picture_of(folder: &Path, fields: &Map<String, Value>) -> std::result::Result<String, String> {
    let name = FILE_COLUMNS.iter().find_map(|column| fields.get(*column));
    let name = name.ok_or_else(|| format!("has no column `{}`", FILE_COLUMNS[0]))?;
    let name = name.as_str().ok_or("its file name is not a text")?;
    let path = Path::new(name);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain || name.is_empty() {
        return Err(format!("names `{name}`; only paths into the table's own folder are allowed"));
    }
    let path: PathBuf =
        folder.components().chain(path.components()).filter(|part| *part != Component::CurDir).collect();
    slashed(&path).ok_or_else(|| "its file name is not UTF-8".to_owned())
}

/// Adds a row's fields to a sample: caption, label, and the rest as JSON.
pub(super) fn add_fields(
    mut sample: Sample,
    mut fields: Map<String, Value>,
    caption_column: Option<&str>,
) -> std::result::Result<Sample, String> {
    let caption = match caption_column {
        Some(column) => Some(column),
        None => CAPTION_COLUMNS.into_iter().find(|column| fields.contains_key(*column)),
    };
    let label = LABEL_COLUMNS.into_iter().find(|column| fields.contains_key(*column));
    for (column, part) in [(caption, "txt"), (label, "cls")] {
        let Some(value) = column.and_then(|column| fields.remove(column)) else { continue };
        let text = as_text(&value).map_err(|e| format!("column `{}` {e}", column.unwrap_or_default()))?;
        if let Some(text) = text {
            sample = sample.with(part, text);
        }
    }
    Ok(match fields.is_empty() {
        true => sample,
        false => sample.with("json", Value::Object(fields).to_string()),
    })
}
