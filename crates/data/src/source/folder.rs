//! Folders of images.
//!
//! Captions are taken from the first of these that the folder holds:
//!
//! 1. `metadata.jsonl` or `metadata.csv`, in the folder or those below it (Hugging Face's imagefolder): a row's
//!    `file_name`, relative to the table, names its image; the caption column becomes part `txt`, `label` becomes
//!    `cls`, the other columns part `json`. Images without a row are left out, and counted.
//! 2. `x.txt` or `x.caption` beside `x.png` (kohya's trainers), in capital letters too: part `txt`.
//! 3. Neither, and all images in folders below: those are classes. Part `cls` is the number of the image's
//!    top folder among all, in the order of their names, as text; the names are in `meta`, as `classes`.
//!
//! The image itself is the part named by its extension in lower case. The key is the path without extension, in which
//! dots of the file name become `_`. Images of formats that are not read, links to what is not there, and pipes or devices with an
//! image's name are counted as left out.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use calotype_core::decode_text;
use serde_json::{Map, Value};

use super::captions::Columns;
use super::metadata::{FILE_COLUMNS, Table, is_metadata};
use super::{Member, Source, SourceOptions, extension_of, files_below, usual_extensions};
use crate::quarantine::{QUARANTINE_FILE, Quarantine};
use crate::sample::HeldSample;
use crate::{Error, Result, Sample, told};

/// Extensions of images.
pub use calotype_core::folders::IMAGE_EXTENSIONS;

/// Extensions of images in formats that are not read, and what is said of those that are left out.
const UNREAD: [(&[&str], &str); 6] = [
    (&["heic", "heif"], "in a format that is not read (HEIC); save them as JPEG or PNG"),
    (&["avif"], "in a format that is not read (AVIF); save them as JPEG or PNG"),
    (&["tif", "tiff"], "in a format that is not read (TIFF); save them as JPEG or PNG"),
    (&["jxl"], "in a format that is not read (JPEG XL); save them as JPEG or PNG"),
    (&["jp2"], "in a format that is not read (JPEG 2000); save them as JPEG or PNG"),
    (&["jfif", "jpe"], "with an extension that is not read; call them .jpg"),
];

/// Images whose content is looked at where the folder is compared with what it was.
const LOOKED_INTO: usize = 16;

/// Reason for which rows are left out.
const BAD_ROWS: &str = "rows of the metadata that cannot be used";

/// Reason for which caption files are left out.
const CAPTION_ALONE: &str = "with a caption file and no image of its name";

/// Reason for which links are left out.
const DANGLING: &str = "linked to nothing, or to a folder around the link";

/// Reason for which pipes, sockets and devices are left out that have an image's name.
const SPECIAL: &str = "that are no files, but pipes, sockets or devices";

/// Key of the class names in [`Source::meta`].
pub const META_CLASSES: &str = "classes";

/// A folder of images. Its files are listed when it is opened, and read when they are asked for.
#[derive(Debug)]
pub struct FolderSource {
    dir: PathBuf,
    images: Vec<Image>,
    tables: Vec<Table>,
    columns: Columns,
    /// True if rows that cannot be used are left out.
    skip_bad: bool,
    meta: Map<String, Value>,
    left_out: BTreeMap<&'static str, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Image {
    /// Path below the folder, with slashes.
    file: String,
    key: String,
    about: About,
}

/// The origin of a sample's other parts.
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

impl Image {
    /// Path of the file of this extension beside the image.
    fn beside(&self, extension: &str) -> String {
        let stem = self.file.rsplit_once('.').map_or(self.file.as_str(), |(stem, _)| stem);
        format!("{stem}.{extension}")
    }

    /// True if the key is another than the path without its extension.
    fn is_renamed(&self) -> bool {
        self.file.rsplit_once('.').is_none_or(|(stem, _)| stem != self.key)
    }
}

impl FolderSource {
    /// Lists the folder.
    ///
    /// # Errors
    /// [`Error::MissingFolder`]; [`Error::BadSource`] if there are no images, or not one caption file of extensions that are not the
    /// usual ones; [`Error::BadColumn`] for a caption column that was asked for and is not there; [`Error::BadTable`] and
    /// [`Error::BadRow`] for tables that cannot be used, among others because an image is absent, or named twice;
    /// [`Error::DuplicateKey`]; [`Error::BadIndex`] for a bad `quarantine.json`; [`Error::Io`].
    pub fn open(dir: &Path, options: &SourceOptions) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::MissingFolder { path: dir.to_path_buf() });
        }
        let mut listing = Listing::of(dir)?;
        let mut source = FolderSource {
            dir: dir.to_path_buf(),
            images: listing.images()?,
            tables: (listing.tables.iter())
                .map(|table| Table::open(&dir.join(table), options.skip_bad))
                .collect::<Result<_>>()?,
            columns: Columns::new(options),
            skip_bad: options.skip_bad,
            meta: Map::new(),
            left_out: std::mem::take(&mut listing.left_out),
        };
        source.find_captions(&listing, options)?;
        if options.quarantine {
            source.leave_out_quarantined()?;
        }
        if source.images.is_empty() {
            let left_out = source.left_out.iter().map(|(reason, count)| format!("; {count} {reason}"));
            let left_out: String = left_out.collect();
            let detail = format!("no images to use; known extensions: {}{left_out}", IMAGE_EXTENSIONS.join(", "));
            return Err(Error::BadSource { spec: source.name(), detail });
        }
        Ok(source)
    }

    fn find_captions(&mut self, listing: &Listing, options: &SourceOptions) -> Result<()> {
        if !self.tables.is_empty() {
            self.assign_rows()?;
            self.tell_unread_captions(listing, options);
            return Ok(());
        }
        let alone = listing.captions_alone(&self.images, options);
        self.count(CAPTION_ALONE, alone.len());
        self.tell(alone.into_iter(), "caption files are left out: no image has their name");
        self.tell_second_captions(listing, options);
        for image in &mut self.images {
            let extension = listing.captions_of(image, options).next().map(str::to_owned);
            if let Some(extension) = extension {
                image.about = About::Caption(extension);
            }
        }
        let without = self.images.iter().filter(|image| image.about == About::Nothing).count();
        if without > 0 && without == self.images.len() && options.caption_extensions != usual_extensions() {
            let asked = options.caption_extensions.join(", ");
            let detail = format!(
                "no caption file of the extensions that were asked for ({asked}) lies beside an image; correct them, or leave them out"
            );
            return Err(Error::BadSource { spec: self.name(), detail });
        }
        if without == self.images.len() {
            self.assign_classes();
        } else if without > 0 && told::first_time(&self.dir, "without captions") {
            tracing::warn!(folder = %self.dir.display(), images = without, "images without a caption file");
        }
        Ok(())
    }

    /// Says which caption files are not read because a table has the captions.
    fn tell_unread_captions(&self, listing: &Listing, options: &SourceOptions) {
        let files =
            self.images.iter().filter_map(|image| Some(image.beside(listing.captions_of(image, options).next()?)));
        let tables = listing.tables.join(", ");
        self.tell(files, &format!("caption files are not read: captions are those of {tables}"));
    }

    /// Says which caption files are not read because another one of the same image is.
    fn tell_second_captions(&self, listing: &Listing, options: &SourceOptions) {
        let files =
            self.images.iter().filter_map(|image| Some(image.beside(listing.captions_of(image, options).nth(1)?)));
        self.tell(files, "caption files are not read: beside each is another of the same image, which goes before");
    }

    /// Warns of files, if there are any.
    fn tell(&self, mut files: impl Iterator<Item = String>, what: &str) {
        let Some(first) = files.next() else { return };
        if told::first_time(&self.dir, what) {
            let count = 1 + files.count();
            tracing::warn!(folder = %self.dir.display(), files = count, "{what} (such as {first})");
        }
    }

    /// Gives each image its row; those without one are left out.
    fn assign_rows(&mut self) -> Result<()> {
        self.tables.iter().try_for_each(Table::check_file_column)?;
        let numbers: HashMap<String, usize> =
            self.images.iter().enumerate().map(|(number, image)| (image.file.clone(), number)).collect();
        let mut bad = self.tables.iter().map(Table::left_out).sum();
        for (table_number, table) in self.tables.iter().enumerate() {
            for row in 0..table.len() {
                match self.image_of_row(table, row, &numbers) {
                    Ok(number) => self.images[number].about = About::Row(table_number, row),
                    Err(error) if self.skip_bad => {
                        if told::first_time(table.path(), &error) {
                            tracing::warn!("left out: {error}");
                        }
                        bad += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        self.count(BAD_ROWS, bad);
        let without = self.images.iter().filter(|image| image.about == About::Nothing);
        self.tell(without.map(|image| image.file.clone()), "images are left out: no row of the metadata names them");
        let before = self.images.len();
        self.images.retain(|image| image.about != About::Nothing);
        self.count("without a row in the metadata", before - self.images.len());
        self.check_caption_column()
    }

    /// Number of the image that a row is about.
    fn image_of_row(&self, table: &Table, row: usize, numbers: &HashMap<String, usize>) -> Result<usize> {
        let folder = table.path().parent().and_then(|folder| folder.strip_prefix(&self.dir).ok());
        let fields = table.row(row)?;
        let file = image_of(folder.unwrap_or(Path::new("")), &fields).map_err(|e| table.bad_row(row, e))?;
        let Some(number) = numbers.get(&file) else {
            return Err(table.bad_row(
                row,
                format!("names `{file}`, which is not among the folder's images ({})", IMAGE_EXTENSIONS.join(", ")),
            ));
        };
        match self.images[*number].about {
            About::Row(other, earlier) => {
                let detail = format!("names `{file}`, which {}", self.named_before(table, other, earlier));
                Err(table.bad_row(row, detail))
            }
            _ => Ok(*number),
        }
    }

    /// Which row has named an image before one of `table`, in words.
    fn named_before(&self, table: &Table, other: usize, earlier: usize) -> String {
        let other = &self.tables[other];
        match other.path() == table.path() {
            true => "an earlier row has named".to_owned(),
            false => format!(
                "row {} of {} has named; an image has its row in one table: leave the other out",
                other.number(earlier),
                other.path().display()
            ),
        }
    }

    /// A column that was asked for must be there.
    fn check_caption_column(&self) -> Result<()> {
        let Some(column) = self.columns.caption() else { return Ok(()) };
        for table in self.tables.iter().filter(|table| !table.is_empty()) {
            let row = table.row(0)?;
            if !row.contains_key(column) {
                let columns: Vec<&str> = row.keys().map(String::as_str).collect();
                let detail = format!("has no column `{column}`; it has: {}", columns.join(", "));
                return Err(Error::BadColumn { path: table.path().to_path_buf(), detail });
            }
        }
        Ok(())
    }

    fn assign_classes(&mut self) {
        let top = |image: &Image| image.file.split_once('/').map(|(top, _)| top.to_owned());
        let Some(tops) = self.images.iter().map(top).collect::<Option<Vec<String>>>() else { return };
        let names: Vec<String> = tops.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        for (image, top) in self.images.iter_mut().zip(&tops) {
            image.about = names.binary_search(top).map_or(About::Nothing, About::Class);
        }
        self.meta.insert(META_CLASSES.to_owned(), Value::from(names));
    }

    fn leave_out_quarantined(&mut self) -> Result<()> {
        let list = Quarantine::read(&self.dir)?;
        let before = self.images.len();
        self.images.retain(|image| !list.contains(&image.file, &image.key));
        let left_out = before - self.images.len();
        if left_out != list.len() {
            let detail = format!("names {} images, the folder has only {left_out} of them", list.len());
            return Err(Error::BadIndex { path: self.dir.join(QUARANTINE_FILE), detail });
        }
        self.count("in quarantine", left_out);
        Ok(())
    }

    fn count(&mut self, reason: &'static str, images: usize) {
        if images > 0 {
            *self.left_out.entry(reason).or_default() += images;
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
        self.columns.add(sample, fields, row as u64).map_err(|e| table.bad_row(row, e))
    }

    fn read(&self, image: &Image, file: &str) -> Result<Vec<u8>> {
        let path = self.dir.join(file);
        calotype_core::read_input(&path).map_err(|e| bad_file(path, image, format!("cannot be read: {e}")))
    }

    /// A caption file as UTF-8 without a byte-order mark.
    fn caption(&self, image: &Image, file: &str) -> Result<Vec<u8>> {
        let bytes = self.read(image, file)?;
        let found = match decode_text(&bytes) {
            // Two characters of UTF-16 and its mark can have as many bytes as they have in UTF-8.
            Ok(Cow::Borrowed(text)) if text.len() == bytes.len() => None,
            Ok(text) => Some(text.into_owned().into_bytes()),
            Err(fault) => return Err(bad_file(self.dir.join(file), image, fault.to_string())),
        };
        Ok(found.unwrap_or(bytes))
    }
}

fn bad_file(path: PathBuf, image: &Image, detail: String) -> Error {
    Error::BadSample { path, key: image.key.clone(), detail }
}

impl Source for FolderSource {
    fn name(&self) -> String {
        self.dir.display().to_string()
    }

    fn len(&self) -> usize {
        self.images.len()
    }

    fn get(&self, i: usize) -> Result<HeldSample<'_>> {
        let image = self.images.get(i).ok_or(Error::OutOfRange { index: i, len: self.len() })?;
        let extension = image.file.rsplit_once('.').map_or("", |(_, extension)| extension);
        let sample = Sample::new(&image.key).with(extension.to_ascii_lowercase(), self.read(image, &image.file)?);
        let sample = match &image.about {
            About::Nothing => sample,
            About::Row(table, row) => self.add_row(sample, *table, *row)?,
            About::Caption(extension) => sample.with("txt", self.caption(image, &image.beside(extension))?),
            About::Class(class) => sample.with("cls", class.to_string()),
        };
        Ok(sample.into())
    }

    fn meta(&self) -> &Map<String, Value> {
        &self.meta
    }

    /// Of the names and lengths of images and caption files, and the tables.
    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for table in &self.tables {
            hasher.update(table.columns().as_bytes());
        }
        let length = |file: &str| std::fs::metadata(self.dir.join(file)).map_or(0, |meta| meta.len());
        for image in &self.images {
            hasher.update(format!("{}\t{}\n", image.file, length(&image.file)).as_bytes());
            match &image.about {
                About::Row(table, row) => {
                    hasher.update(self.tables[*table].text(*row));
                }
                About::Caption(extension) => {
                    let length = length(&image.beside(extension));
                    hasher.update(format!("{extension}\t{length}\n").as_bytes());
                }
                About::Nothing | About::Class(_) => {}
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The content of some images is added to the checksum: repainted ones may have the same lengths.
    fn members(&self) -> Vec<Member> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.digest().as_bytes());
        let read = LOOKED_INTO.min(self.len());
        for image in (0..read).map(|i| &self.images[i * self.len() / read]) {
            // One that cannot be read has no content; whoever needs it says so.
            hasher.update(&std::fs::read(self.dir.join(&image.file)).unwrap_or_default());
        }
        vec![Member { name: self.name(), samples: self.len(), digest: hasher.finalize().to_hex().to_string() }]
    }

    fn file_of(&self, i: usize) -> String {
        self.images.get(i).map_or_else(|| self.name(), |image| self.dir.join(&image.file).display().to_string())
    }

    fn blocks(&self) -> Vec<usize> {
        // Each image is a file of its own.
        vec![1; self.len()]
    }

    fn left_out(&self) -> BTreeMap<&'static str, usize> {
        self.left_out.clone()
    }

    fn notes(&self) -> Vec<String> {
        let mut renamed = self.images.iter().filter(|image| image.is_renamed());
        let Some(Image { file, key, .. }) = renamed.next() else { return Vec::new() };
        let others = match renamed.count() {
            0 => String::new(),
            1 => ", and 1 more sample is named so".to_owned(),
            others => format!(", and {others} more samples are named so"),
        };
        vec![format!(
            "`{file}` is sample `{key}`: dots of file names become _, and where two images differ in their extension alone, it is \
             part of the name{others}"
        )]
    }
}

/// The files of a folder by what they are, as paths below it, in the order of their names.
struct Listing {
    images: Vec<String>,
    tables: Vec<String>,
    others: BTreeSet<String>,
    left_out: BTreeMap<&'static str, usize>,
}

impl Listing {
    fn of(dir: &Path) -> Result<Self> {
        let (images, tables, others) = Default::default();
        let mut listing = Listing { images, tables, others, left_out: BTreeMap::new() };
        let below = files_below(dir)?;
        if !below.dangling.is_empty() {
            listing.left_out.insert(DANGLING, below.dangling.len());
        }
        let is_image =
            |path: &Path| extension_of(path).is_some_and(|extension| IMAGE_EXTENSIONS.contains(&extension.as_str()));
        let special = below.special.iter().filter(|path| is_image(path)).count();
        if special > 0 {
            listing.left_out.insert(SPECIAL, special);
        }
        for path in below.files {
            let is_image = is_image(&path);
            let Some(file) = path.strip_prefix(dir).ok().and_then(slashed) else {
                if is_image {
                    *listing.left_out.entry("file name is not UTF-8").or_default() += 1;
                }
                continue;
            };
            match () {
                () if is_image => listing.images.push(file),
                () if is_metadata(&path) => listing.tables.push(file),
                () => {
                    listing.count_unread(&path);
                    listing.others.insert(file);
                }
            }
        }
        Ok(listing)
    }

    /// Extensions of the caption files beside an image, in the order in which they are taken.
    fn captions_of<'a>(&'a self, image: &'a Image, options: &'a SourceOptions) -> impl Iterator<Item = &'a str> {
        // Extensions may be written with their dot.
        let extensions = options.caption_extensions.iter().map(|ext| ext.trim_start_matches('.'));
        extensions.filter_map(|extension| self.spelled(&image.beside(""), extension))
    }

    /// The extension of a file as it is spelled, which begins with this and goes on with that extension in capital or small letters.
    fn spelled<'a>(&'a self, beginning: &str, extension: &'a str) -> Option<&'a str> {
        if self.others.contains(&format!("{beginning}{extension}")) {
            return Some(extension);
        }
        let mut following = self.others.range(beginning.to_owned()..).map_while(|file| file.strip_prefix(beginning));
        following.find(|found| found.eq_ignore_ascii_case(extension))
    }

    /// Caption files beside which no other file has the same name, but for more captions: one of each name.
    fn captions_alone(&self, images: &[Image], options: &SourceOptions) -> Vec<String> {
        let split = |file: &'_ String| file.rsplit_once('.').map(|(stem, ext)| (stem.to_owned(), ext.to_owned()));
        let is_caption = |ext: &str| {
            options.caption_extensions.iter().any(|it| it.trim_start_matches('.').eq_ignore_ascii_case(ext))
        };
        let (captions, others): (Vec<_>, Vec<_>) = images
            .iter()
            .map(|image| &image.file)
            .chain(&self.others)
            .filter_map(split)
            .partition(|(_, ext)| is_caption(ext));
        let named: BTreeSet<String> = others.into_iter().map(|(stem, _)| stem).collect();
        let alone: BTreeMap<String, String> = captions.into_iter().filter(|(stem, _)| !named.contains(stem)).collect();
        alone.into_iter().map(|(stem, extension)| format!("{stem}.{extension}")).collect()
    }

    /// Counts a file that is an image of a format that is not read.
    fn count_unread(&mut self, path: &Path) {
        let Some(extension) = extension_of(path) else { return };
        if let Some((_, reason)) = UNREAD.iter().find(|(extensions, _)| extensions.contains(&extension.as_str())) {
            *self.left_out.entry(reason).or_default() += 1;
        }
    }

    /// The images with keys that differ.
    fn images(&mut self) -> Result<Vec<Image>> {
        let mut files: HashMap<String, String> = HashMap::new();
        let mut images = Vec::with_capacity(self.images.len());
        for file in std::mem::take(&mut self.images) {
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
            images.push(Image { file, key, about: About::Nothing });
        }
        Ok(images)
    }
}

/// A relative path with slashes; `None` if it is not UTF-8.
fn slashed(path: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = path.components().map(|part| part.as_os_str().to_str()).collect();
    Some(parts?.join("/"))
}

/// The image that a row names, as a path below the source's folder; `folder` is the table's.
fn image_of(folder: &Path, fields: &Map<String, Value>) -> std::result::Result<String, String> {
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
