//! The errors of this crate. Each names the file, sample or offset concerned, and says what to do about it.

use std::path::{Path, PathBuf};

use calotype_core::absence;
use calotype_core::durable::parent_folder;

use crate::mds::{MdsError, MdsFault};
use crate::npy::NpyError;
use crate::pickled::PickledFault;
use crate::precache::NO_ENCODER;
use crate::webdataset::is_shard_name;

/// An error of any type, as closures and encoders of other crates return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The dataset folder does not exist, or is none.
    #[error("dataset folder {} {}", path.display(), no_folder(path))]
    MissingFolder {
        /// The folder.
        path: PathBuf,
    },

    /// A shard that the index names is absent.
    #[error("shard {} is not there; check the path, copy it back, or write the dataset again", path.display())]
    MissingShard {
        /// The shard.
        path: PathBuf,
    },

    /// A shard ends before its contents do.
    #[error(
        "shard {} is truncated at offset {offset}: {needed} bytes expected, the file has {size}; \
         copy it again from its source",
        path.display()
    )]
    TruncatedTar {
        /// The shard.
        path: PathBuf,
        /// Offset of the member that is cut, in bytes.
        offset: u64,
        /// File length that the contents need, in bytes.
        needed: u64,
        /// File length found, in bytes.
        size: u64,
    },

    /// A shard is longer than its index says.
    #[error(
        "shard {} has {size} bytes, its index says {expected}; index and shards do not belong together: \
         remove index.json to build it anew, or copy the dataset again",
        path.display()
    )]
    SizeMismatch {
        /// The shard.
        path: PathBuf,
        /// Length by the index, in bytes.
        expected: u64,
        /// Length found, in bytes.
        size: u64,
    },

    /// A shard's bytes are not those that were written.
    #[error(
        "shard {} has blake3 {found}, the index says {expected}; the file is damaged: copy it again from its source",
        path.display()
    )]
    ChecksumMismatch {
        /// The shard.
        path: PathBuf,
        /// Checksum by the index.
        expected: String,
        /// Checksum found.
        found: String,
    },

    /// A shard holds another number of samples than its index says.
    #[error(
        "shard {} holds {found} samples, its index says {expected}; remove index.json to build it anew",
        path.display()
    )]
    SampleCountMismatch {
        /// The shard.
        path: PathBuf,
        /// Number by the index.
        expected: usize,
        /// Number found.
        found: usize,
    },

    /// A tar header that cannot be read.
    #[error("shard {}: bad tar header at offset {offset}: {detail}; the file is damaged or is no tar", path.display())]
    BadHeader {
        /// The shard.
        path: PathBuf,
        /// Offset of the header, in bytes.
        offset: u64,
        /// The fault, in words.
        detail: String,
    },

    /// A shard that is something else than a tar.
    #[error("shard {}: {detail}", path.display())]
    NotTar {
        /// The file.
        path: PathBuf,
        /// What it is instead, and the remedy, in words.
        detail: String,
    },

    /// A shard that is compressed in a way that is not read, or damaged inside of its compression.
    #[error("shard {}: {detail}", path.display())]
    Compressed {
        /// The shard.
        path: PathBuf,
        /// The compression, the fault and the remedy, in words.
        detail: String,
    },

    /// The members of a sample do not lie beside each other.
    #[error(
        "shard {}: `{member}` comes apart from the other parts of its sample, as in a tar whose members are sorted by kind \
         (all images, then all captions); `calotype data reorganize` puts samples together, and so does `tar --sort=name`",
        path.display()
    )]
    Scattered {
        /// The shard.
        path: PathBuf,
        /// Name of the first member that lies apart.
        member: String,
    },

    /// `index.json` or a progress file that cannot be used.
    #[error("{}: {detail}; remove the file to build it anew", path.display())]
    BadIndex {
        /// The file.
        path: PathBuf,
        /// The fault, in words.
        detail: String,
    },

    /// Two samples (or two parts of one sample) have the same name.
    #[error(
        "duplicate key `{key}` in {}, first seen in {}; rename one of them{}",
        second.display(),
        first.display(),
        without_duplicates(first, second)
    )]
    DuplicateKey {
        /// Key of the sample, or `key.extension` of the part.
        key: String,
        /// Shard where it was first seen.
        first: PathBuf,
        /// Shard where it was seen again.
        second: PathBuf,
    },

    /// A dataset without samples.
    #[error("dataset {} holds no samples: there are no shards in it, or only empty ones; check the path, or write the dataset anew", path.display())]
    EmptyDataset {
        /// The dataset folder.
        path: PathBuf,
    },

    /// A sample lacks a part.
    #[error("sample `{key}` has no part `{part}`; it has: {present}")]
    MissingPart {
        /// Key of the sample.
        key: String,
        /// Extension asked for.
        part: String,
        /// Extensions present, comma separated.
        present: String,
    },

    /// A part that should be text is not UTF-8.
    #[error("sample `{key}`: part `{part}` {fault}")]
    NotText {
        /// Key of the sample.
        key: String,
        /// Extension of the part.
        part: String,
        /// What it is instead.
        fault: calotype_core::TextFault,
    },

    /// A key or extension that a webdataset shard cannot carry.
    #[error("`{name}` cannot name a webdataset member: {detail}")]
    InvalidName {
        /// The key or extension.
        name: String,
        /// Reason for which it cannot.
        detail: String,
    },

    /// A sample number past the end.
    #[error("sample {index} asked for, the dataset has {len}")]
    OutOfRange {
        /// Number asked for.
        index: usize,
        /// Number of samples.
        len: usize,
    },

    /// The output folder is in use.
    #[error("folder {} already holds {found}; choose another folder, or remove it", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
        /// The file that is in the way.
        found: String,
    },

    /// A dataset whose writing has not ended, where one is read.
    #[error(
        "dataset {} is not finished, as {} in it says: its writing was stopped or failed; run the command that writes it again, which \
         goes on there, or name another dataset",
        path.display(), crate::webdataset::PROGRESS_FILE
    )]
    Unfinished {
        /// The folder.
        path: PathBuf,
    },

    /// A half-written dataset that was made with other settings.
    #[error(
        "folder {} holds a half-written dataset with another {what} (there: {found}; now: {expected}); \
         choose another folder, or remove it",
        path.display()
    )]
    ProgressMismatch {
        /// The folder.
        path: PathBuf,
        /// Name of the setting that differs.
        what: &'static str,
        /// Value of this run.
        expected: String,
        /// Value in the progress file.
        found: String,
    },

    /// A precached dataset was made by another encoder.
    #[error(
        "dataset {} {}, this run needs {expected}; run the precache stage {}into another folder",
        path.display(),
        made(found),
        if found.as_str() == NO_ENCODER { "" } else { "again " }
    )]
    EncoderMismatch {
        /// The dataset folder.
        path: PathBuf,
        /// Identity needed.
        expected: String,
        /// Identity recorded, or `precache::NO_ENCODER`.
        found: String,
    },

    /// An encoder returned other samples than it was given.
    #[error("encoder broke its contract: {detail}")]
    EncoderContract {
        /// The difference, in words.
        detail: String,
    },

    /// An encoder failed.
    #[error("{file}: encoding samples {first}.. failed: {source}; {advice}")]
    Encode {
        /// The file that holds the sample that the error names, or the batch's first.
        file: String,
        /// First sample of the batch.
        first: usize,
        /// The encoder's error.
        source: BoxError,
        /// What to do about it.
        advice: String,
    },

    /// An image that cannot be decoded or encoded.
    #[error("sample `{key}`: image cannot be used: {detail}")]
    BadImage {
        /// Key of the sample.
        key: String,
        /// The fault, in words.
        detail: String,
    },

    /// A file that should be an image, and no sample.
    #[error("{}: image cannot be used: {detail}", path.display())]
    BadImageFile {
        /// The file.
        path: PathBuf,
        /// The fault, in words.
        detail: String,
    },

    /// A malformed `.npy` part.
    #[error("sample `{key}`: part `{part}`: {source}")]
    Npy {
        /// Key of the sample.
        key: String,
        /// Extension of the part.
        part: String,
        /// The fault.
        source: NpyError,
    },

    /// A `.npz` archive that cannot be used.
    #[error("{}: {source}", path.display())]
    Npz {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: Box<crate::npz::NpzError>,
    },

    /// A malformed pickled dictionary of arrays.
    #[error("sample `{key}`: pickled arrays: {fault}")]
    Pickled {
        /// Key of the sample.
        key: String,
        /// The fault.
        fault: Box<PickledFault>,
    },

    /// An MDS dataset that cannot be read or written.
    #[error(transparent)]
    Mds(#[from] Box<MdsError>),

    /// Decoding one sample in the loader failed.
    #[error(
        "{file} (position {position}): {}; mend or remove it, leave it out of shards with `calotype data check --quarantine`, or take \
         other samples in the place of such ones with data.on_error=skip (with other samples or settings, a run that has saved \
         something goes on in another folder, with --from)",
        with_key(key, source.as_ref())
    )]
    Decode {
        /// The file that holds it, or the whole source: [`Source::file_of`](crate::Source::file_of).
        file: String,
        /// Position in the stream.
        position: u64,
        /// Key of the sample.
        key: String,
        /// The decoder's error.
        source: BoxError,
    },

    /// No usable sample among the replacements of a corrupt one.
    #[error(
        "position {position}: {tries} samples in a row could not be decoded, the last: {last}; \
         check the dataset, or the decoder"
    )]
    TooManyBadSamples {
        /// Position in the stream.
        position: u64,
        /// Number of samples tried.
        tries: u64,
        /// Error of the last one.
        last: String,
    },

    /// A loader thread panicked.
    #[error("loader thread panicked: {message}")]
    LoaderPanicked {
        /// The panic's message.
        message: String,
    },

    /// One sample of a source that cannot be read, while its neighbours can.
    #[error("sample `{key}` of {}: {detail}", path.display())]
    BadSample {
        /// The file that holds the sample.
        path: PathBuf,
        /// Key of the sample.
        key: String,
        /// The fault, in words.
        detail: String,
    },

    /// A row of a table (metadata, parquet) that cannot be used.
    #[error("{}, row {row}: {detail}", path.display())]
    BadRow {
        /// The table.
        path: PathBuf,
        /// Number of the row, from 1, without the header.
        row: u64,
        /// The fault, in words.
        detail: String,
    },

    /// A table that cannot be used at all.
    #[error("{}: {detail}", path.display())]
    BadTable {
        /// The table.
        path: PathBuf,
        /// The fault and the remedy, in words.
        detail: String,
    },

    /// A column that was asked for, and that a table does not have, or of another type than it takes.
    #[error("{}: {detail}", path.display())]
    BadColumn {
        /// The table.
        path: PathBuf,
        /// The fault and what there is, in words.
        detail: String,
    },

    /// A pattern of file names that cannot be expanded.
    #[error("pattern `{pattern}`: {detail}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// The fault, in words.
        detail: String,
    },

    /// A source whose kind is not recognised, or that holds nothing usable.
    #[error("source `{spec}`: {detail}")]
    BadSource {
        /// The source, as given.
        spec: String,
        /// The fault and the remedy, in words.
        detail: String,
    },

    /// A file on another machine that cannot be fetched.
    #[error("cannot fetch {url}: {detail}")]
    Fetch {
        /// Its address, without credentials and query.
        url: String,
        /// The last failure, and after how many attempts.
        detail: String,
    },

    /// A setting that makes no sense.
    #[error("invalid {what}: {detail}")]
    InvalidArgument {
        /// Name of the setting.
        what: &'static str,
        /// The value and what is allowed, in words.
        detail: String,
    },

    /// The stage was asked to stop, and did so at a clean boundary.
    #[error("{stage} was interrupted after {done} of {total} samples")]
    Interrupted {
        /// Name of the stage.
        stage: &'static str,
        /// Samples done.
        done: usize,
        /// Samples in all.
        total: usize,
    },

    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Action that was tried ("open", "write", ...).
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Which encoders made a dataset.
fn made(found: &str) -> String {
    match found {
        NO_ENCODER => "holds samples as they are, which no encoder has encoded".to_owned(),
        _ => format!("was encoded by {found}"),
    }
}

/// What is wrong with the path of a folder, and what to do about it.
fn no_folder(path: &Path) -> String {
    match path.exists() {
        true => "is a file; name the folder that holds it".to_owned(),
        false => format!("does not exist{}; check the path, or write the dataset first", absence(path)),
    }
}

/// How to write shards without keys that come twice; nothing where they are no tar shards.
fn without_duplicates(first: &Path, second: &Path) -> &'static str {
    let is_shard = |path: &Path| path.file_name().is_some_and(|name| is_shard_name(&name.to_string_lossy()));
    match is_shard(first) && is_shard(second) {
        true => ", or write the shards anew with `calotype data reorganize`, which keeps the first of equal keys",
        false => "",
    }
}

/// Whether a shard is on another machine.
fn is_address(path: &Path) -> bool {
    path.to_string_lossy().contains("://")
}

/// What a decoder says of a sample, with the sample's name, once.
fn with_key(key: &str, error: &(dyn std::error::Error + 'static)) -> String {
    let (text, name) = (error.to_string(), format!("sample `{key}`"));
    if text.starts_with(&name) { text } else { format!("{name}: {text}") }
}

/// Text out of a file, for a message: one line of letters that every terminal shows, and no more than that.
pub(crate) fn printable(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown: String = text.chars().take(LONGEST).flat_map(shown_char).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// Control characters as escapes; what is no letter at all (bytes that are not UTF-8) stays the mark that stands for it.
fn shown_char(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control();
    let plain = (!escaped).then_some(c);
    let escape = escaped.then(|| c.escape_default()).into_iter().flatten();
    plain.into_iter().chain(escape)
}

impl Error {
    /// What stands between the parts of which a sample is to have one, in [`Error::MissingPart`].
    pub const OR: &'static str = " or ";

    /// True if the request is at fault, not the data: what it names is not there, or is there already. A shard that is missed in a
    /// folder that is there is the data's fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::MissingFolder { .. } | Error::BadColumn { .. } | Error::FolderInUse { .. } => true,
            Error::MissingShard { path } => !is_address(path) && !parent_folder(path).exists(),
            _ => false,
        }
    }

    /// True if the error is of one sample alone, so that a reader may go on without it.
    pub fn concerns_one_sample(&self) -> bool {
        match self {
            Error::BadSample { .. } | Error::BadRow { .. } | Error::BadImage { .. } | Error::BadImageFile { .. } => {
                true
            }
            Error::Mds(error) => matches!(error.fault, MdsFault::Value { .. }),
            _ => false,
        }
    }

    /// The same of an image that is a file by itself: it is no sample of anything.
    pub fn of_file(self, path: &Path) -> Self {
        match self {
            Error::BadImage { detail, .. } => Error::BadImageFile { path: path.to_owned(), detail },
            other => other,
        }
    }

    /// A closure for `map_err` on input and output.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}
