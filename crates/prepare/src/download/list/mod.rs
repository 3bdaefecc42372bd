//! Lists of images: parquet, csv, tsv, jsonl, or plain text with a URL a line; one file or a folder of them.
//!
//! The rows of each file make shards of their own, as with img2dataset. Nothing of a list is kept in memory but the
//! rows of the shards that are being worked on.

mod columns;
mod table;
mod text;

use std::fmt;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use calotype_core::absence;
use calotype_core::folders::{Content, Found, content};
use serde::Serialize;

pub use calotype_data::source::cells::json_value;
use text::TextRows;

/// Formats of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ListFormat {
    /// A URL a line.
    Txt,
    /// Columns with a header, divided by commas.
    Csv,
    /// Columns with a header, divided by tabs.
    Tsv,
    /// A JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}

impl fmt::Display for ListFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ListFormat::Txt => "txt",
            ListFormat::Csv => "csv",
            ListFormat::Tsv => "tsv",
            ListFormat::Jsonl => "jsonl",
            ListFormat::Parquet => "parquet",
        })
    }
}

/// A fault of a list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// There is no such file or folder.
    #[error("list {} does not exist{}; check the path", path.display(), absence(path))]
    Missing {
        /// The list.
        path: PathBuf,
    },

    /// A folder without files of a known format.
    #[error(
        "folder {} holds no lists (*.parquet, *.csv, *.tsv, *.jsonl, *.txt, also with .gz); \
         give --input-format if they are named otherwise", path.display()
    )]
    NoFiles {
        /// The folder.
        path: PathBuf,
    },

    /// A folder of images, whose texts are captions and no addresses.
    #[error(
        "folder {} holds images ({image}), and a list is a file of addresses; `calotype data convert` makes shards of images with their \
         captions; if addresses lie there too, name their file, or its kind by --input-format", path.display()
    )]
    Images {
        /// The folder.
        path: PathBuf,
        /// One of them.
        image: String,
    },

    /// Files of several formats in one folder.
    #[error("folder {} holds lists of several formats ({found}); choose one with --input-format", path.display())]
    Mixed {
        /// The folder.
        path: PathBuf,
        /// The formats.
        found: String,
    },

    /// A name that does not tell the format.
    #[error("the name of {} does not tell its format; give --input-format", path.display())]
    UnknownFormat {
        /// The list.
        path: PathBuf,
    },

    /// A list without rows.
    #[error("list {} holds no rows", path.display())]
    Empty {
        /// The list.
        path: PathBuf,
    },

    /// A column that was asked for is not there.
    #[error("list {} has no column `{column}`; it has: {present}", path.display())]
    MissingColumn {
        /// The list.
        path: PathBuf,
        /// The column.
        column: String,
        /// Names of the columns that are there.
        present: String,
    },

    /// A header that names a column twice.
    #[error("list {} has two columns `{column}`; rename one of them", path.display())]
    DuplicateColumn {
        /// The list.
        path: PathBuf,
        /// The column.
        column: String,
    },

    /// A column of a type that cannot serve.
    #[error("list {}: column `{column}` holds {found}, not {needed}", path.display())]
    WrongType {
        /// The list.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// Content that it is needed for.
        needed: &'static str,
    },

    /// A row that cannot be read.
    #[error("list {}, row {row}: {detail}; --skip-bad leaves such rows out and counts them", path.display())]
    BadRow {
        /// The list.
        path: PathBuf,
        /// Number of the row, from 1, without the header.
        row: u64,
        /// The fault, in words.
        detail: String,
    },

    /// A text list that cannot be read any further.
    #[error("list {}, row {row}: {detail}", path.display())]
    Unreadable {
        /// The list.
        path: PathBuf,
        /// Number of the row, from 1, without the header.
        row: u64,
        /// The fault, in words.
        detail: String,
    },

    /// A parquet file that cannot be read.
    #[error("list {} is no parquet file that can be read: {detail}; copy it again from its source", path.display())]
    Parquet {
        /// The list.
        path: PathBuf,
        /// The fault, in words.
        detail: String,
    },

    /// A list that changed while it was read.
    #[error("list {} has changed while it was read", path.display())]
    Changed {
        /// The list.
        path: PathBuf,
    },

    /// The operating system refused something.
    #[error("cannot read list {}: {source}", path.display())]
    Io {
        /// The list.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl ListError {
    /// True if the command line is to blame.
    pub fn is_usage(&self) -> bool {
        use ListError::*;
        matches!(
            self,
            Missing { .. }
                | NoFiles { .. }
                | Images { .. }
                | Mixed { .. }
                | UnknownFormat { .. }
                | MissingColumn { .. }
        )
    }
}

type Result<T> = std::result::Result<T, ListError>;

/// A column to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// Its name in the list.
    pub column: String,
    /// Its name in the samples.
    pub name: String,
    /// Content that it has to hold.
    pub holds: Holds,
}

/// Content that a column has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// Text; whatever looks like a number in a csv stays as it is written.
    Text,
    /// Captions: text, or other single values, or lists of such.
    Caption,
    /// Any value that JSON has.
    Anything,
}

/// Ways of reading text lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// True if rows that cannot be read are left out.
    pub skip_bad: bool,
    /// True if quotes in csv and tsv are letters like others.
    pub no_quotes: bool,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A file of a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListFile {
    /// Path of the file.
    #[serde(skip)]
    pub path: PathBuf,
    /// File name, for the record.
    pub name: String,
    /// Length, in bytes.
    pub bytes: u64,
    /// Number of rows, those that are left out not counted.
    pub rows: usize,
    /// Number of rows that cannot be read and are left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub bad_rows: u64,
    format: ListFormat,
    #[serde(skip)]
    kinds: Vec<columns::Kind>,
}

/// A list that was looked through: its files are there, have the columns, and each of their rows can be read.
#[derive(Clone, Debug)]
pub struct ImageList {
    files: Vec<ListFile>,
    wanted: Vec<Wanted>,
    reading: Reading,
}

impl ImageList {
    /// Looks through `path`: a file, or a folder whose files of one format are read in the order of their names. Text
    /// lists are read to their end, for the types of their columns; of parquet the footers are enough.
    ///
    /// # Errors
    /// [`ListError`] if the file cannot be read, is malformed, or lacks a wanted column.
    pub fn open(path: &Path, format: Option<ListFormat>, wanted: &[Wanted], reading: Reading) -> Result<Self> {
        let files = find_files(path, format)?
            .into_iter()
            .map(|(path, format)| survey(path, format, wanted, reading))
            .collect::<Result<Vec<_>>>()?;
        if files.iter().all(|file| file.rows == 0) {
            return Err(ListError::Empty { path: path.to_path_buf() });
        }
        Ok(ImageList { files, wanted: wanted.to_vec(), reading })
    }

    /// The files, in order.
    pub fn files(&self) -> &[ListFile] {
        &self.files
    }

    /// A reader that stands at the beginning.
    pub fn reader(&self) -> ListReader<'_> {
        ListReader { list: self, text: None }
    }
}

/// Reads rows of a list; quick if they are asked for in ascending order.
pub struct ListReader<'a> {
    list: &'a ImageList,
    /// The text file that is open, and the row that comes next.
    text: Option<(usize, TextRows, usize)>,
}

impl ListReader<'_> {
    /// Rows `first .. first + count` of file number `file`, with the wanted columns by their names in samples.
    ///
    /// # Errors
    /// [`ListError`]; [`ListError::Changed`] if there are fewer rows than were counted.
    pub fn rows(&mut self, file: usize, first: usize, count: usize) -> Result<RecordBatch> {
        let of = &self.list.files[file];
        let batch = match of.format {
            ListFormat::Parquet => table::rows(&of.path, &self.list.wanted, first, count)?,
            _ => {
                let (mut rows, mut next) = match self.text.take() {
                    Some((open, rows, next)) if open == file && next <= first => (rows, next),
                    _ => (TextRows::open(&of.path, of.format, &self.list.wanted, self.list.reading)?, 0),
                };
                while next < first && rows.next_row()?.is_some() {
                    next += 1;
                }
                let batch = columns::batch(&of.path, &mut rows, &of.kinds, &self.list.wanted, count)?;
                self.text = Some((file, rows, next + batch.num_rows()));
                batch
            }
        };
        match batch.num_rows() == count {
            true => Ok(batch),
            false => Err(ListError::Changed { path: of.path.clone() }),
        }
    }
}

/// All rows of a text list (not of parquet) that `input` holds; `name` stands for it in errors.
///
/// # Errors
/// [`ListError`] if the bytes are malformed, or lack a wanted column.
pub fn read_text_list(name: &str, input: &[u8], format: ListFormat, wanted: &[Wanted]) -> Result<RecordBatch> {
    let path = Path::new(name);
    let open =
        || TextRows::new(path, Box::new(std::io::Cursor::new(input.to_vec())), format, wanted, Reading::default());
    let (kinds, rows) = columns::survey(&mut open()?, wanted, format)?;
    columns::batch(path, &mut open()?, &kinds, wanted, rows)
}

fn survey(path: PathBuf, format: ListFormat, wanted: &[Wanted], reading: Reading) -> Result<ListFile> {
    let bytes = std::fs::metadata(&path).map_err(|source| ListError::Io { path: path.clone(), source })?.len();
    let (kinds, rows, bad_rows) = match format {
        ListFormat::Parquet => (Vec::new(), table::count_rows(&path, wanted)?, 0),
        ListFormat::Txt | ListFormat::Csv | ListFormat::Tsv | ListFormat::Jsonl => {
            let mut text = TextRows::open(&path, format, wanted, reading)?;
            let (kinds, rows) = columns::survey(&mut text, wanted, format)?;
            (kinds, rows, text.skipped())
        }
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(ListFile { path, name, bytes, rows, bad_rows, format, kinds })
}

/// The files of a list with their formats.
fn find_files(path: &Path, format: Option<ListFormat>) -> Result<Vec<(PathBuf, ListFormat)>> {
    let io = |source| ListError::Io { path: path.to_path_buf(), source };
    let kind = match std::fs::metadata(path) {
        Ok(kind) => kind,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(ListError::Missing { path: path.to_path_buf() });
        }
        Err(e) => return Err(io(e)),
    };
    if !kind.is_dir() {
        let format = format.or_else(|| format_of(path));
        let format = format.ok_or_else(|| ListError::UnknownFormat { path: path.to_path_buf() })?;
        return Ok(vec![(path.to_path_buf(), format)]);
    }
    let images = content(path).filter(|found| matches!(found.content, Content::Images | Content::Drawn));
    if let (Some(Found { name, .. }), None) = (images, format) {
        return Err(ListError::Images { path: path.to_path_buf(), image: name });
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if let Some(named) = format_of(&file).filter(|named| format.is_none_or(|format| format == *named)) {
            found.push((file, named));
        }
    }
    found.sort();
    let mut formats: Vec<String> = found.iter().map(|(_, format)| format.to_string()).collect();
    formats.sort();
    formats.dedup();
    match formats.len() {
        0 => Err(ListError::NoFiles { path: path.to_path_buf() }),
        1 => Ok(found),
        _ => Err(ListError::Mixed { path: path.to_path_buf(), found: formats.join(", ") }),
    }
}

/// The format by the name; text may be compressed by gzip.
fn format_of(path: &Path) -> Option<ListFormat> {
    let name = path.file_name()?.to_str()?.to_lowercase();
    if name.starts_with('.') {
        return None;
    }
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    let format = match plain.rsplit_once('.')?.1 {
        "txt" => ListFormat::Txt,
        "csv" => ListFormat::Csv,
        "tsv" => ListFormat::Tsv,
        "jsonl" => ListFormat::Jsonl,
        "parquet" if plain.len() == name.len() => ListFormat::Parquet,
        _ => return None,
    };
    Some(format)
}

/// Names for a message, no more than a line or two of them.
fn enumerate(names: impl Iterator<Item = impl fmt::Display>) -> String {
    let names: Vec<String> = names.take(50).map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
