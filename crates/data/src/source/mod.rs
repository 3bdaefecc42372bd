//! Sources of samples: one interface to folders of images, tables and shards, here and on other machines.
//!
//! [`open`] recognises the kind of a folder, file, pattern or address by its content:
//!
//! | kind | what it is | module |
//! |---|---|---|
//! | webdataset | a folder of tar shards, a list or pattern of them, here or on other machines | [`crate::webdataset`], [`shards`], [`remote`] |
//! | imagefolder | images with a metadata table, caption files, or in folders by class | [`folder`] |
//! | parquet | tables with embedded images | `parquet` |
//! | mds | a folder of MosaicML Streaming's shards | [`crate::mds`] |
//! | synthetic | made-up samples, by an address alone (`synthetic://…`) | [`synthetic`] |
//!
//! A source numbers its samples from 0; [`crate::order`] tells when each is seen. Several
//! sources with weights are a [`Mixture`].

mod beside;
pub mod braces;
mod captions;
#[cfg(feature = "parquet")]
pub mod cells;
mod filter;
pub mod folder;
mod idle;
pub mod metadata;
mod mixture;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod remote;
mod removed;
pub mod shards;
mod summary;
pub mod synthetic;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calotype_core::folders::{Content, Found, content};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::mds::MdsDataset;
use crate::order::OrderConfig;
use crate::sample::HeldSample;
use crate::webdataset::{
    DatasetIndex, FORMAT, INDEX_FILE, PROGRESS_FILE, is_gzip, is_gzip_file, is_shard_name, peek, refuse_others,
    refuse_packed, tar_names,
};
use crate::{Dataset, Error, GlobalOrder, Result};

#[cfg(feature = "parquet")]
pub use self::parquet::ParquetSource;
pub use beside::tell_beside;
pub use captions::CaptionChoice;
pub use filter::{Filtered, SampleFilter};
pub use folder::FolderSource;
pub use idle::{Idle, idle, refuse_idle};
pub use mixture::Mixture;
pub use remote::RemoteOptions;
pub(crate) use removed::Removed;
pub use shards::ShardSet;
pub use summary::{FirstSample, Summary};
pub use synthetic::SyntheticSource;

/// A set of samples with numbers from 0.
///
/// All methods are cheap except [`Source::get`] and [`Source::prepare`], which may read or fetch whole shards.
pub trait Source: Send + Sync {
    /// Name in messages: a path, pattern or address.
    fn name(&self) -> String;

    /// Number of samples, those that are left out not counted.
    fn len(&self) -> usize;

    /// True if there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sample `i`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; an error of which [`Error::concerns_one_sample`] is true if that sample alone cannot be
    /// read; others if its whole file cannot.
    fn get(&self, i: usize) -> Result<HeldSample<'_>>;

    /// Free-form facts about the samples: encoder identity, class names, licence.
    fn meta(&self) -> &Map<String, Value>;

    /// A checksum: sources with equal ones hold equal samples in equal order.
    fn digest(&self) -> String;

    /// The sources that this one is mixed of; itself alone if it is no mixture.
    fn members(&self) -> Vec<Member> {
        vec![Member { name: self.name(), samples: self.len(), digest: self.digest() }]
    }

    /// The file that holds sample `i`, where that is known, else the whole source: for messages.
    fn file_of(&self, i: usize) -> String {
        let _ = i;
        self.name()
    }

    /// Numbers of samples that lie together (in a shard, a row group), in order; their sum is [`Source::len`]. Reading
    /// a block's samples one soon after the other is cheaper than reading them far apart.
    fn blocks(&self) -> Vec<usize>;

    /// Number of samples that are left out, by reason.
    fn left_out(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::new()
    }

    /// What of the source no sample holds, a sentence each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Order in which its samples are seen.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], as [`GlobalOrder::of`].
    fn order(&self, config: &OrderConfig) -> Result<GlobalOrder> {
        GlobalOrder::of(config, &self.blocks())
    }

    /// Fetches the shard of sample `i`, as its first [`Source::get`] would; true if anything had to be fetched.
    ///
    /// # Errors
    /// As [`Source::get`].
    fn prepare(&self, i: usize) -> Result<bool> {
        let _ = i;
        Ok(false)
    }

    /// Number of blocks that a loader's background thread may prepare ahead of the samples that it delivers; 0 if
    /// preparing does nothing.
    fn read_ahead(&self) -> usize {
        0
    }
}

/// What one source of samples is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name in messages: [`Source::name`].
    pub name: String,
    /// Its number of samples.
    pub samples: usize,
    /// Its checksum: [`Source::digest`]; of a folder of images with the content of some of them.
    pub digest: String,
}

/// The kinds of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Tar shards.
    Webdataset,
    /// A folder of images.
    Imagefolder,
    /// Parquet files with embedded images.
    Parquet,
    /// MosaicML Streaming's shards.
    Mds,
}

/// Settings for opening a source. The default tells everything by the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceOptions {
    /// Kind of the source; by content if absent.
    pub kind: Option<SourceKind>,
    /// Column of images in a parquet file; by type and name if absent.
    pub image_column: Option<String>,
    /// Column of captions in tables; the first of [`CAPTION_COLUMNS`] if absent.
    pub caption_column: Option<String>,
    /// Column of unique keys in a parquet file; the file's name and the row's number if absent.
    pub key_column: Option<String>,
    /// Extensions of caption files beside images.
    pub caption_extensions: Vec<String>,
    /// The caption that becomes a sample's where a table has a list of them; all stay in part `json`.
    pub captions: CaptionChoice,
    /// True if rows of metadata tables that cannot be used are left out, and counted, instead of ending the opening.
    pub skip_bad: bool,
    /// True if samples of `quarantine.json` are left out.
    pub quarantine: bool,
    /// Fetching and keeping of shards on other machines.
    pub remote: RemoteOptions,
}

impl Default for SourceOptions {
    fn default() -> Self {
        SourceOptions {
            kind: None,
            image_column: None,
            caption_column: None,
            key_column: None,
            caption_extensions: usual_extensions(),
            captions: CaptionChoice::default(),
            skip_bad: false,
            quarantine: true,
            remote: RemoteOptions::default(),
        }
    }
}

/// Extensions of caption files that are looked for if none are asked for.
fn usual_extensions() -> Vec<String> {
    ["txt", "caption"].map(str::to_owned).to_vec()
}

/// Columns that are taken for captions, the first one that a table has.
pub const CAPTION_COLUMNS: [&str; 8] =
    ["text", "caption", "prompt", "TEXT", "CAPTION", "captions", "label_text", "txt"];

/// Columns that are taken for class labels, the first one that a table has.
pub const LABEL_COLUMNS: [&str; 3] = ["label", "cls", "class"];

/// Bytes of a file that are looked at to tell its kind: enough for a tar's first header inside of a gzip stream.
const PEEKED: u64 = 4096;

/// Opens a source: a folder, a file, an address, a pattern of shards (`data/x-{000..831}.tar`), or several of these that
/// are of one kind, joined by `::`; or made-up samples (`synthetic://…`, see [`synthetic`]).
///
/// # Errors
/// [`Error::BadSource`] if it cannot be told what it is, [`Error::MissingFolder`], [`Error::BadPattern`], and those of
/// the kinds' own functions: [`Dataset::open`], [`ShardSet::open`], [`FolderSource::open`], `ParquetSource::open`,
/// [`SyntheticSource::open`].
pub fn open(spec: &str, options: &SourceOptions) -> Result<Arc<dyn Source>> {
    if synthetic::is_synthetic(spec) {
        return Ok(Arc::new(SyntheticSource::open(spec, options)?));
    }
    let path = Path::new(spec);
    if !path.exists() {
        refuse_scheme(spec)?;
    }
    // A name with braces that is there is that, and no pattern.
    if !path.exists() && (remote::is_remote(spec) || spec.contains(':') || braces::is_pattern(spec)) {
        return open_names(spec, options);
    }
    let kind = match options.kind {
        Some(kind) => kind,
        None => {
            let kind = kind_of(spec, path)?;
            tell_beside(path, kind);
            kind
        }
    };
    match kind {
        SourceKind::Webdataset if path.is_file() => Ok(Arc::new(ShardSet::open(&escaped(spec), options)?)),
        SourceKind::Webdataset => open_dataset(path, options),
        SourceKind::Imagefolder => Ok(Arc::new(FolderSource::open(metadata_folder(path), options)?)),
        SourceKind::Parquet => open_parquet(path, options),
        SourceKind::Mds => open_mds(path, options),
    }
}

/// Refuses addresses of kinds that nothing is read from: they would be taken for names of shards.
fn refuse_scheme(spec: &str) -> Result<()> {
    let bad = |detail: String| Err(Error::BadSource { spec: spec.to_owned(), detail });
    let Some((scheme, rest)) = spec.split_once(':') else { return Ok(()) };
    let lower = scheme.to_ascii_lowercase();
    if synthetic::SCHEME.strip_suffix("://") == Some(lower.as_str()) {
        return bad(format!("made-up samples are written as {}, such as {}", synthetic::SCHEME, synthetic::EXAMPLE));
    }
    let is_address = rest.starts_with("//") && lower.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_address || lower == "file" || remote::is_remote(spec) {
        return Ok(());
    }
    match remote::is_remote(&format!("{lower}://")) {
        true => bad(format!("write {lower}:// in small letters")),
        false => {
            bad(format!("nothing is read from {scheme}:// addresses, only from http, https, s3, gs, az and abfs ones"))
        }
    }
}

/// Recognises a local folder or file by its content; none for patterns and addresses.
///
/// # Errors
/// [`Error::BadSource`] if the content is of no kind that is known; [`Error::BadIndex`] for an `index.json` that is no
/// JSON; [`Error::Io`] if the file or folder cannot be read.
pub fn detect(spec: &str) -> Result<Option<SourceKind>> {
    let path = Path::new(spec);
    if path.exists() { kind_of(spec, path).map(Some) } else { Ok(None) }
}

/// Opens what patterns and addresses stand for: parquet files by their names, else shards.
fn open_names(spec: &str, options: &SourceOptions) -> Result<Arc<dyn Source>> {
    let names = braces::expand_all(spec)?;
    let parquet = names.iter().all(|name| extension_of(Path::new(name)).as_deref() == Some("parquet"));
    match options.kind {
        Some(SourceKind::Imagefolder) => {
            let detail = "a folder of images is read by its path alone".to_owned();
            Err(Error::BadSource { spec: spec.to_owned(), detail })
        }
        Some(SourceKind::Mds) => {
            let detail = "MDS shards are read by their folder's path, on this machine; fetch them first".to_owned();
            Err(Error::BadSource { spec: spec.to_owned(), detail })
        }
        Some(SourceKind::Parquet) => open_tables(spec, names, options),
        None if parquet => open_tables(spec, names, options),
        Some(SourceKind::Webdataset) | None => Ok(Arc::new(ShardSet::open(spec, options)?)),
    }
}

fn open_tables(spec: &str, names: Vec<String>, options: &SourceOptions) -> Result<Arc<dyn Source>> {
    if names.iter().any(|name| remote::is_remote(name)) {
        let detail = "parquet files are read from this machine; fetch them first".to_owned();
        return Err(Error::BadSource { spec: spec.to_owned(), detail });
    }
    open_parquet_files(spec, names.into_iter().map(PathBuf::from).collect(), options)
}

#[cfg(feature = "parquet")]
fn open_parquet(path: &Path, options: &SourceOptions) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(ParquetSource::open(path, options)?))
}

#[cfg(feature = "parquet")]
fn open_parquet_files(spec: &str, paths: Vec<PathBuf>, options: &SourceOptions) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(ParquetSource::open_files(spec, PathBuf::new(), paths, options)?))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(path: &Path, _: &SourceOptions) -> Result<Arc<dyn Source>> {
    Err(lacks("parquet", &path.display().to_string()))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet_files(spec: &str, _: Vec<PathBuf>, _: &SourceOptions) -> Result<Arc<dyn Source>> {
    Err(lacks("parquet", spec))
}

/// The error of a source whose reader was left out of this build.
#[cfg(not(all(feature = "parquet", feature = "remote")))]
fn lacks(feature: &str, spec: &str) -> Error {
    let detail = format!("this build cannot read it; build with the cargo feature `{feature}` of calotype-data");
    Error::BadSource { spec: spec.to_owned(), detail }
}

/// A file's name as a pattern that stands for it.
fn escaped(name: &str) -> String {
    name.chars().flat_map(|c| matches!(c, '{' | '}' | ',' | '\\').then_some('\\').into_iter().chain([c])).collect()
}

fn open_dataset(path: &Path, options: &SourceOptions) -> Result<Arc<dyn Source>> {
    if has_packed_shards(path)? {
        let names = shards_of_folder(path)?.iter().map(|shard| shard.display().to_string()).collect();
        return Ok(Arc::new(ShardSet::open_all(&path.display().to_string(), names, options)?));
    }
    let dataset = Dataset::open(path)?;
    Ok(Arc::new(if options.quarantine { dataset.without_quarantined()? } else { dataset }))
}

/// True if `path` is a folder of tar shards of which some are compressed by gzip. [`open`] reads those, [`Dataset::open`]
/// does not.
///
/// # Errors
/// [`Error::BadIndex`], [`Error::Unfinished`], [`Error::Io`].
pub fn has_packed_shards(path: &Path) -> Result<bool> {
    Ok(path.is_dir() && shards_of_folder(path)?.iter().any(|shard| is_gzip_file(shard)))
}

/// The shards of a folder, by its index or its files.
fn shards_of_folder(dir: &Path) -> Result<Vec<PathBuf>> {
    let names = match DatasetIndex::read(dir)? {
        Some(index) => index.shards.into_iter().map(|record| record.file).collect(),
        None => tar_names(dir)?,
    };
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

fn open_mds(path: &Path, options: &SourceOptions) -> Result<Arc<dyn Source>> {
    let dataset = MdsDataset::open(path)?;
    Ok(Arc::new(if options.quarantine { dataset.without_quarantined()? } else { dataset }))
}

/// The folder of a metadata table; other paths as they are.
fn metadata_folder(path: &Path) -> &Path {
    match (path.is_file(), path.parent()) {
        (true, Some(folder)) if metadata::is_metadata(path) && folder.as_os_str().is_empty() => Path::new("."),
        (true, Some(folder)) if metadata::is_metadata(path) => folder,
        _ => path,
    }
}

/// Kind of a local path, by its content.
fn kind_of(spec: &str, path: &Path) -> Result<SourceKind> {
    let bad = |detail: &str| Error::BadSource { spec: spec.to_owned(), detail: detail.to_owned() };
    if path.is_file() {
        let kind = kind_of_file(path)?;
        if kind.is_none() {
            refuse_others(path, &head_of(path)?)?;
        }
        return kind.ok_or_else(|| {
            bad("is neither a tar shard (also of gzip), a parquet file, nor a metadata table; give the folder, or the kind")
        });
    }
    if !path.is_dir() {
        return Err(match spec.contains(['*', '?', '[']) {
            true => bad(
                "is no file or folder, and * and ? stand for nothing here: give the folder, or a pattern such as shards/{000000..000005}.tar",
            ),
            false => Error::MissingFolder { path: path.to_path_buf() },
        });
    }
    if let Some(kind) = kind_of_index(path)? {
        return Ok(kind);
    }
    let kind = kind_of_folder(path)?;
    if kind.is_none() {
        refuse_packed(path)?;
    }
    let others = |found: &Found| !matches!(found.content, Content::Shards | Content::Images | Content::Drawn);
    if let (None, Some(found)) = (kind, content(path).filter(others)) {
        return Err(bad(&format!("holds {found}, and no samples; name a folder of shards, parquet files or images")));
    }
    kind.ok_or_else(|| {
        bad("holds no shards (*.tar, *.tar.gz, index.json), no parquet files and no images that are read (png, jpg, webp, gif, bmp); check the path, or give the kind")
    })
}

/// True if `path` is a folder of tar shards on this machine, with or without an index of this program.
///
/// # Errors
/// [`Error::BadIndex`] for an `index.json` that is no JSON; [`Error::Io`] if the folder cannot be read.
pub fn is_shard_folder(path: &Path) -> Result<bool> {
    if !path.is_dir() {
        return Ok(false);
    }
    match kind_of_index(path)? {
        Some(kind) => Ok(kind == SourceKind::Webdataset),
        None => Ok(kind_of_folder(path)? == Some(SourceKind::Webdataset)),
    }
}

/// True if a folder itself holds files whose names `fits`.
fn holds(dir: &Path, fits: impl Fn(&str) -> bool) -> Result<bool> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        if fits(&entry.map_err(Error::io("list", dir))?.file_name().to_string_lossy()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn kind_of_file(path: &Path) -> Result<Option<SourceKind>> {
    if metadata::is_metadata(path) {
        return Ok(Some(SourceKind::Imagefolder));
    }
    let mut head = head_of(path)?;
    if is_gzip(&head) {
        head = peek(&head[..], 512);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let tar = head.get(257..262) == Some(b"ustar") || is_shard_name(&name);
    Ok(match () {
        () if head.starts_with(b"PAR1") => Some(SourceKind::Parquet),
        () if tar => Some(SourceKind::Webdataset),
        () => None,
    })
}

/// The first bytes of a file.
fn head_of(path: &Path) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let file = calotype_core::open_input(path).map_err(Error::io("open", path))?;
    file.take(PEEKED).read_to_end(&mut head).map_err(Error::io("read", path))?;
    Ok(head)
}

/// By the index.
fn kind_of_index(dir: &Path) -> Result<Option<SourceKind>> {
    if dir.join(PROGRESS_FILE).is_file() {
        return Ok(Some(SourceKind::Webdataset));
    }
    let index: Option<Value> = crate::files::read_json(&dir.join(INDEX_FILE))?;
    let Some(index) = index else { return Ok(None) };
    let ours = index.get("format").and_then(Value::as_str) == Some(FORMAT);
    // Streaming's index says its format shard by shard.
    let streaming = index.get("format").is_none() && index.get("shards").is_some_and(Value::is_array);
    Ok(ours.then_some(SourceKind::Webdataset).or(streaming.then_some(SourceKind::Mds)))
}

/// By the files: shards in the folder itself, else parquet files or images in it or below it. Compressed tars are shards
/// where there is nothing else: beside images lies what they were unpacked from.
fn kind_of_folder(dir: &Path) -> Result<Option<SourceKind>> {
    if holds(dir, |name| name.to_ascii_lowercase().ends_with(".tar"))? {
        return Ok(Some(SourceKind::Webdataset));
    }
    let mut found = None;
    for path in files_below(dir)?.files {
        match extension_of(&path).as_deref() {
            Some("parquet") => return Ok(Some(SourceKind::Parquet)),
            Some(extension) if folder::IMAGE_EXTENSIONS.contains(&extension) => found = Some(SourceKind::Imagefolder),
            _ => {}
        }
    }
    if found.is_none() && holds(dir, is_shard_name)? {
        return Ok(Some(SourceKind::Webdataset));
    }
    Ok(found)
}

/// Extension in lower case.
fn extension_of(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// What lies in a folder and those below it, hidden things left out, in the order of their names.
#[derive(Debug, Default)]
struct Below {
    files: Vec<PathBuf>,
    /// Links to what is not there, and to folders around them.
    dangling: Vec<PathBuf>,
    /// Pipes, sockets and devices, and links to such.
    special: Vec<PathBuf>,
}

/// Lists what lies in a folder and those below it.
fn files_below(dir: &Path) -> Result<Below> {
    let mut below = Below::default();
    let shown = |entry: &walkdir::DirEntry| entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.');
    let walk = walkdir::WalkDir::new(dir).follow_links(true).sort_by_file_name();
    for entry in walk.into_iter().filter_entry(shown) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => below.files.push(entry.into_path()),
            Ok(entry) if entry.file_type().is_dir() => {}
            Ok(entry) => below.special.push(entry.into_path()),
            Err(error) if leads_nowhere(&error) => below.dangling.extend(error.path().map(Path::to_path_buf)),
            Err(error) => {
                let path = error.path().unwrap_or(dir).to_path_buf();
                return Err(Error::Io { action: "list", path, source: error.into() });
            }
        }
    }
    Ok(below)
}

/// True if an entry of a folder is a link whose end is not there, or which leads to a folder around it.
fn leads_nowhere(error: &walkdir::Error) -> bool {
    let absent = error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    let link = error.depth() > 0 && error.path().is_some_and(Path::is_symlink);
    link && (absent || error.loop_ancestor().is_some())
}

/// Count of a source's samples in quarantine, for [`Source::left_out`].
pub(crate) fn quarantined(samples: usize) -> BTreeMap<&'static str, usize> {
    BTreeMap::from_iter((samples > 0).then_some(("in quarantine", samples)))
}
