//! The stage that makes the evaluation set of the text-to-image benchmarks from COCO-2014's validation set: the list of
//! captions, exact to the row, and the images in one size.
//!
//! Two lists are in use. Both give each image one caption and choose images by pandas'
//! `DataFrame.sample(frac=1, random_state=seed)`:
//!
//! - MLPerf Training's (Stable Diffusion v2): rows as in the annotations, shuffled; the first row of each image; the
//!   first 30,000; sorted by id. Columns `id`, `image_id`, `caption`, as they are in the annotations.
//! - MLPerf Inference's (SDXL): the first row of each image; sorted by id; shuffled; the first 5,000; joined with the
//!   images' sizes and addresses; sorted by id. It is also published ready-made (`captions_source.tsv`), and can be
//!   given.
//!
//! The shuffle is NumPy's legacy one: `RandomState(seed).permutation(n)`, which pandas 0.x to 3.x calls through
//! `choice`. From the last row to the second, a row changes places with one drawn uniformly from those up to itself; the
//! draw takes as many low bits of a word of MT19937 as the number needs, and draws again while it is too large.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use calotype_core::{NumpyRandomState, decode_text, open_input, read_input};
use calotype_data::Control;
use calotype_data::files::{read_json, write_bytes, write_json};
use calotype_data::image::{Filter, RgbImage};
use calotype_weights::archive::{ArchiveFault, ZipFile};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::paths::check_out;
use crate::slices::{SliceArgs, run_slices};
use crate::{Account, Error, Result};

/// SHA-256 of MLPerf Inference's published `captions_source.tsv`.
pub const SDXL_LIST_SHA256: &str = "2eeb95637b30fe5af26dd644bafa7affe4e5472ad0bda32d0feb1bd261280d5e";

/// The annotations inside of `annotations_trainval2014.zip`.
const CAPTIONS_ENTRY: &str = "annotations/captions_val2014.json";

/// File, in the output, of the settings that it was made with.
const SETTINGS_FILE: &str = "coco.json";

/// Images between two looks at the stop flag.
const CHUNK: usize = 64;

/// A published list of captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum List {
    /// MLPerf Training, Stable Diffusion v2: 30,000 captions, `val2014_30k.tsv`.
    Training,
    /// MLPerf Inference, SDXL: 5,000 captions, `captions.tsv`.
    Sdxl,
}

/// Method of bringing an image to size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Both sides to the size, whatever the shape: MLPerf's.
    Stretch,
    /// The shorter side to the size, and the middle cut out: NeMo's (with --size 256 --quality 95).
    Crop,
}

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct CocoArgs {
    /// The captions: captions_val2014.json, or annotations_trainval2014.zip as it is published.
    pub annotations: PathBuf,
    /// Folder to write.
    pub out: PathBuf,
    /// The images: the folder val2014, or val2014.zip as it is published [default: only the list is written].
    #[arg(long, value_name = "PATH")]
    pub images: Option<PathBuf>,
    /// List of captions.
    #[arg(long, value_enum, default_value = "training")]
    pub list: List,
    /// Length of the list [default: 30000 for training, 5000 for sdxl].
    #[arg(long, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub count: Option<usize>,
    /// Seed of the choice; the benchmarks' is 2023.
    #[arg(long, default_value_t = 2023)]
    pub seed: u32,
    /// Take this published list (captions_source.tsv of MLPerf Inference, checked by its SHA-256) instead of making it.
    #[arg(long, value_name = "TSV")]
    pub published: Option<PathBuf>,
    /// Side of the images in pixels; MLPerf's is 512, NeMo's 256.
    #[arg(long, default_value_t = 512, value_name = "PIXELS", value_parser = calotype_core::numbers::count::<usize>)]
    pub size: usize,
    /// Method of bringing images to that size.
    #[arg(long, value_enum, default_value = "stretch")]
    pub fit: Fit,
    /// JPEG quality of the images; Pillow's default is 75.
    #[arg(long, default_value_t = 75, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: u8,
    /// Split of the images over jobs.
    #[command(flatten)]
    pub slices: SliceArgs,
}

/// Settings that the output depends on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    /// SHA-256 of the list.
    list: String,
    size: usize,
    fit: Fit,
    quality: u8,
}

/// The reason for which the list could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CocoError {
    /// Annotations that are no COCO captions.
    #[error("{}: no COCO captions: {detail}; expected captions_val2014.json or annotations_trainval2014.zip", path.display())]
    Annotations {
        /// The file.
        path: PathBuf,
        /// The fault, in words.
        detail: String,
    },
    /// A zip archive without the captions.
    #[error("{} holds no {CAPTIONS_ENTRY}; is it annotations_trainval2014.zip?", path.display())]
    NoCaptions {
        /// The archive.
        path: PathBuf,
    },
    /// Fewer images than the list needs.
    #[error("{} has captions of {found} images, the list needs {needed}; say --count for a shorter one", path.display())]
    TooFew {
        /// The file.
        path: PathBuf,
        /// Images with captions.
        found: usize,
        /// Length of the list.
        needed: usize,
    },
    /// A caption of an image that is not described.
    #[error("{}: caption {id} is of image {image_id}, which `images` does not describe", path.display())]
    UnknownImage {
        /// The file.
        path: PathBuf,
        /// The caption's id.
        id: u64,
        /// The image's.
        image_id: u64,
    },
    /// A published list with another checksum.
    #[error("{} has SHA-256 {found}, the published list has {SDXL_LIST_SHA256}; get it again", path.display())]
    Published {
        /// The file.
        path: PathBuf,
        /// Its checksum.
        found: String,
    },
    /// A list that cannot be read.
    #[error("{}, line {line}: {detail}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// The fault, in words.
        detail: String,
    },
    /// An archive that cannot be read.
    #[error("{}: {source}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: Box<calotype_weights::TensorFileError>,
    },
    /// An output that was made with other settings.
    #[error("{} was made with other settings ({SETTINGS_FILE} tells which); choose another folder, or remove it", path.display())]
    OtherSettings {
        /// The folder.
        path: PathBuf,
    },
}

/// `captions_val2014.json`, as far as it is used.
#[derive(Deserialize)]
struct Captions {
    #[serde(default)]
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

/// One caption.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Annotation {
    /// The image's id.
    pub image_id: u64,
    /// The caption's id.
    pub id: u64,
    /// The text.
    pub caption: String,
}

/// One image's description.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Image {
    id: u64,
    height: u64,
    width: u64,
    file_name: String,
    coco_url: String,
}

/// `numpy.random.RandomState(seed).permutation(n)`, which is the order of pandas' `sample(frac=1, random_state=seed)`.
pub fn pandas_order(seed: u32, n: usize) -> Vec<usize> {
    NumpyRandomState::new(seed).permutation(n).into_iter().map(|i| i as usize).collect()
}

/// The captions that MLPerf Training evaluates on: see the top of this file. `count` images, or all if there are
/// fewer.
pub fn training_subset(annotations: &[Annotation], seed: u32, count: usize) -> Vec<Annotation> {
    let shuffled = pandas_order(seed, annotations.len()).into_iter().map(|i| &annotations[i]);
    let mut seen = HashSet::new();
    let mut subset: Vec<_> = shuffled.filter(|row| seen.insert(row.image_id)).take(count).map(stripped).collect();
    subset.sort_by_key(|row| row.id);
    subset
}

/// The captions that MLPerf Inference's SDXL benchmark draws: see the top of this file.
pub fn sdxl_subset(annotations: &[Annotation], seed: u32, count: usize) -> Vec<Annotation> {
    let mut seen = HashSet::new();
    let mut rows: Vec<&Annotation> = annotations.iter().filter(|row| seen.insert(row.image_id)).collect();
    rows.sort_by_key(|row| row.id);
    let order = pandas_order(seed, rows.len());
    let mut subset: Vec<_> = order.into_iter().take(count).map(|i| stripped(rows[i])).collect();
    subset.sort_by_key(|row| row.id);
    subset
}

/// The caption without line feeds, and without what Python's `str.strip` removes at its ends.
fn stripped(row: &Annotation) -> Annotation {
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let caption = row.caption.replace('\n', "").trim_matches(space).to_owned();
    Annotation { caption, ..*row }
}

/// A field as pandas' `to_csv(sep="\t")` writes it: in quotes where it holds a tab, a quote or the end of a line.
fn field(text: &str) -> Cow<'_, str> {
    if text.contains(['\t', '"', '\n', '\r']) {
        Cow::Owned(format!("\"{}\"", text.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(text)
    }
}

/// The list as pandas writes it.
fn training_tsv(rows: &[Annotation]) -> String {
    let mut text = "image_id\tid\tcaption\n".to_owned();
    for row in rows {
        text.push_str(&format!("{}\t{}\t{}\n", row.image_id, row.id, field(&row.caption)));
    }
    text
}

/// The list with its images' sizes and addresses.
///
/// # Errors
/// [`CocoError::UnknownImage`] for a caption of an image that `images` does not describe.
fn sdxl_tsv(rows: &[Annotation], images: &[Image], path: &Path) -> std::result::Result<String, CocoError> {
    let by_id: HashMap<u64, &Image> = images.iter().map(|image| (image.id, image)).collect();
    let mut text = "id\timage_id\tcaption\theight\twidth\tfile_name\tcoco_url\n".to_owned();
    for row in rows {
        let Some(image) = by_id.get(&row.image_id) else {
            return Err(CocoError::UnknownImage { path: path.to_owned(), id: row.id, image_id: row.image_id });
        };
        let Image { height, width, file_name, coco_url, .. } = image;
        let (caption, file_name, coco_url) = (field(&row.caption), field(file_name), field(coco_url));
        let line = format!("{}\t{}\t{caption}\t{height}\t{width}\t{file_name}\t{coco_url}\n", row.id, row.image_id);
        text.push_str(&line);
    }
    Ok(text)
}

/// Reads captions from JSON, or from the archive that holds it.
fn read_captions(path: &Path) -> Result<Captions> {
    let bad = |detail: String| CocoError::Annotations { path: path.to_owned(), detail };
    let parse = |bytes: &[u8]| {
        let text = decode_text(bytes).map_err(|fault| bad(fault.to_string()))?;
        serde_json::from_str(&text).map_err(|e| Error::from(bad(e.to_string())))
    };
    if !is_zip(path)? {
        return parse(&read_input(path).map_err(Error::io("read", path))?);
    }
    let archive = open_zip(path)?;
    match archive.content(CAPTIONS_ENTRY).map_err(|fault| bad(fault.to_string()))? {
        Some(content) => parse(&content),
        None => Err(CocoError::NoCaptions { path: path.to_owned() }.into()),
    }
}

fn is_zip(path: &Path) -> Result<bool> {
    let mut start = [0; 4];
    let mut file = open_input(path).map_err(Error::io("open", path))?;
    Ok(file.read(&mut start).map_err(Error::io("read", path))? == 4 && &start == b"PK\x03\x04")
}

fn open_zip(path: &Path) -> Result<ZipFile> {
    let fault = |source| CocoError::Archive { path: path.to_owned(), source: Box::new(source) };
    Ok(ZipFile::open(path).map_err(fault)?)
}

/// The list's text, and the ids of its images.
fn make_list(args: &CocoArgs) -> Result<(String, Vec<u64>)> {
    if let Some(path) = &args.published {
        return published_list(path, args.count);
    }
    let captions = read_captions(&args.annotations)?;
    let needed = args.count.unwrap_or(match args.list {
        List::Training => 30_000,
        List::Sdxl => 5_000,
    });
    let rows = match args.list {
        List::Training => training_subset(&captions.annotations, args.seed, needed),
        List::Sdxl => sdxl_subset(&captions.annotations, args.seed, needed),
    };
    if rows.len() < needed {
        let path = args.annotations.clone();
        return Err(CocoError::TooFew { path, found: rows.len(), needed }.into());
    }
    let text = match args.list {
        List::Training => training_tsv(&rows),
        List::Sdxl => sdxl_tsv(&rows, &captions.images, &args.annotations)?,
    };
    Ok((text, rows.into_iter().map(|row| row.image_id).collect()))
}

/// The published list of the SDXL benchmark, or its first `count` rows.
fn published_list(path: &Path, count: Option<usize>) -> Result<(String, Vec<u64>)> {
    let bytes = read_input(path).map_err(Error::io("read", path))?;
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != SDXL_LIST_SHA256 {
        return Err(CocoError::Published { path: path.to_owned(), found }.into());
    }
    let text = String::from_utf8_lossy(&bytes);
    let take = count.map_or(usize::MAX, |count| count.saturating_add(1));
    let lines: Vec<&str> = text.split_inclusive('\n').take(take).collect();
    let ids = lines.iter().enumerate().skip(1).map(|(i, line)| image_id(path, i + 1, line)).collect::<Result<_>>()?;
    Ok((lines.concat(), ids))
}

/// The second field of a line of the published list, whose captions hold no line ends.
fn image_id(path: &Path, line: usize, text: &str) -> Result<u64> {
    let detail = "the second field is no number".to_owned();
    let number = text.split('\t').nth(1).and_then(|id| id.parse().ok());
    number.ok_or_else(|| CocoError::Line { path: path.to_owned(), line, detail }.into())
}

/// Source of the images.
enum Images {
    Folder(PathBuf),
    Zip(ZipFile),
}

impl Images {
    fn open(path: &Path) -> Result<Self> {
        if path.is_dir() { Ok(Images::Folder(path.to_owned())) } else { Ok(Images::Zip(open_zip(path)?)) }
    }

    /// An image's file; `None` if there is none.
    fn get(&self, name: &str) -> std::result::Result<Option<Cow<'_, [u8]>>, ImageFault> {
        match self {
            Images::Folder(dir) => match fs::read(dir.join(name)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(_) => Err(ImageFault::Unreadable),
            },
            Images::Zip(archive) => Ok(archive.content(&format!("val2014/{name}"))?),
        }
    }
}

/// Reason for which an image was left out.
#[derive(Clone, Copy, Debug)]
enum ImageFault {
    Missing,
    Unreadable,
    Undecodable,
}

impl From<ArchiveFault> for ImageFault {
    fn from(_: ArchiveFault) -> Self {
        ImageFault::Unreadable
    }
}

impl ImageFault {
    fn reason(self) -> &'static str {
        match self {
            ImageFault::Missing => "image not there",
            ImageFault::Unreadable => "image cannot be read",
            ImageFault::Undecodable => "image cannot be decoded",
        }
    }
}

/// Name of an image's file.
pub fn file_name(image_id: u64) -> String {
    format!("COCO_val2014_{image_id:012}.jpg")
}

/// Writes the list, and, if images are given, those of it in one size.
///
/// # Errors
/// [`CocoError`], and those of reading and writing.
pub fn run(args: &CocoArgs, control: &mut Control<'_>) -> Result<Account> {
    if args.published.is_some() && args.list != List::Sdxl {
        return Err(Error::Usage("--published is the list of --list sdxl".to_owned()));
    }
    if args.size == 0 || args.size > usize::from(u16::MAX) {
        return Err(Error::Usage(format!("--size {}: a JPEG has 1 to 65535 pixels a side", args.size)));
    }
    let started = Instant::now();
    let (text, ids) = make_list(args)?;
    check_out(&args.out)?;
    fs::create_dir_all(&args.out).map_err(Error::io("create folder", &args.out))?;
    let list: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let settings = Settings { list, size: args.size, fit: args.fit, quality: args.quality };
    claim(&args.out, &settings)?;
    let name = match args.list {
        List::Training => "val2014_30k.tsv",
        List::Sdxl => "captions.tsv",
    };
    write_bytes(&args.out.join(name), text.as_bytes())?;
    let note = format!("{} captions in {}", ids.len(), args.out.join(name).display());
    let Some(images) = &args.images else {
        let count = ids.len() as u64;
        let seconds = started.elapsed().as_secs_f64();
        return Ok(Account { taken: count, written: count, seconds, notes: vec![note], ..Account::new("coco") });
    };
    let images = Images::open(images)?;
    let folder = args.out.join(format!("images_{}", args.size));
    fs::create_dir_all(&folder).map_err(Error::io("create folder", &folder))?;
    let mut account = run_slices(&args.slices, "coco", &args.out, &settings, control, |slice, control| {
        resize_all(args, &images, &folder, &ids[slice.range(ids.len())], control)
    })?;
    account.notes.push(note);
    Ok(account)
}

/// Makes the output's settings known, or finds that they are the same.
fn claim(out: &Path, settings: &Settings) -> Result<()> {
    let path = out.join(SETTINGS_FILE);
    match read_json::<Settings>(&path)? {
        Some(found) if found == *settings => Ok(()),
        Some(_) => Err(CocoError::OtherSettings { path: out.to_owned() }.into()),
        None => Ok(write_json(&path, settings)?),
    }
}

/// Resizes the images of `ids`; those that are there already are kept.
fn resize_all(
    args: &CocoArgs,
    images: &Images,
    folder: &Path,
    ids: &[u64],
    control: &mut Control<'_>,
) -> Result<Account> {
    let started = Instant::now();
    let mut account = Account::new("coco");
    for (number, chunk) in ids.chunks(CHUNK).enumerate() {
        control.checkpoint("coco", number * CHUNK, ids.len())?;
        let made: Vec<_> = chunk.par_iter().map(|id| resize_one(args, images, folder, *id)).collect();
        for result in made {
            account.taken += 1;
            match result? {
                Ok(bytes) => {
                    account.written += 1;
                    account.bytes += bytes;
                }
                Err(fault) => account.leave_out(fault.reason()),
            }
        }
    }
    control.report("coco", ids.len(), ids.len());
    account.seconds = started.elapsed().as_secs_f64();
    Ok(account)
}

/// Resizes an image, and returns the length of its file.
fn resize_one(
    args: &CocoArgs,
    images: &Images,
    folder: &Path,
    id: u64,
) -> Result<std::result::Result<u64, ImageFault>> {
    let name = file_name(id);
    let path = folder.join(&name);
    // Files get their names when they are whole, and the settings were found to be the same.
    if let Ok(status) = fs::metadata(&path) {
        return Ok(Ok(status.len()));
    }
    let made = images.get(&name).and_then(|bytes| {
        let bytes = bytes.ok_or(ImageFault::Missing)?;
        resized_jpeg(args, &name, &bytes).map_err(|_| ImageFault::Undecodable)
    });
    match made {
        Ok(jpeg) => {
            write_bytes(&path, &jpeg)?;
            Ok(Ok(jpeg.len() as u64))
        }
        Err(fault) => {
            tracing::warn!(image = %name, reason = fault.reason(), "left out");
            Ok(Err(fault))
        }
    }
}

/// An image in its new size. As the reference's script never leaves the image's mode, a grey one stays grey.
fn resized_jpeg(args: &CocoArgs, name: &str, bytes: &[u8]) -> calotype_data::Result<Vec<u8>> {
    let image = RgbImage::decode(name, bytes)?;
    let resized = match args.fit {
        Fit::Stretch => image.resize(args.size, args.size, Filter::Bicubic)?,
        Fit::Crop => image.resize_shorter(args.size, Filter::Bicubic)?.center_crop(args.size, args.size)?,
    };
    if resized.is_grey() { resized.encode_grey_jpeg(args.quality) } else { resized.encode_jpeg(args.quality) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_as_pandas_does() {
        for (text, expected) in [
            ("A plain, one.", "A plain, one."),
            ("", ""),
            ("a \"b\"", "\"a \"\"b\"\"\""),
            ("a\tb", "\"a\tb\""),
            ("a\rb", "\"a\rb\""),
            (" a ", " a "),
        ] {
            assert_eq!(field(text), expected);
        }
        let row = Annotation { image_id: 1, id: 2, caption: "\u{1f} a\n b\u{3000}\n".to_owned() };
        assert_eq!(stripped(&row).caption, "a b");
    }

    #[test]
    fn small_permutations_are_permutations() {
        for n in 0..20 {
            let mut order = pandas_order(2023, n);
            order.sort_unstable();
            assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
    }
}
