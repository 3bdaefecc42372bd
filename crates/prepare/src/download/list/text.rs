//! Rows of text lists, one after the other.

use std::cell::Cell as Shared;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use calotype_core::text::utf8_reader;
use calotype_core::{OpenQuote, Quotes};
use calotype_data::json;
use flate2::read::MultiGzDecoder;
use serde_json::Value;

use super::{Holds, ListError, ListFormat, Reading, Result, Wanted, enumerate};

/// Longest row, in bytes. A quote that is never closed would otherwise take the whole list into memory.
const LONGEST_ROW: u64 = 4 << 20;

/// What lists want that were written without quoting.
const NO_QUOTES: &str = "--no-quotes takes quotes for letters like others";

/// What most probably made a row swallow others.
const LEFT_OPEN: &str = "is a quote left open?";

type Input = BufReader<Metered<Box<dyn Read>>>;

/// The wanted cells of each row: text from txt, csv and tsv; values from jsonl.
pub(super) struct TextRows {
    path: PathBuf,
    left: Rc<Shared<u64>>,
    source: Source,
    row: u64,
    reading: Reading,
    skipped: u64,
}

enum Source {
    Lines(Input),
    Objects { input: Input, wanted: Vec<Wanted> },
    Table { reader: Box<csv::Reader<Quotes<Input>>>, record: csv::StringRecord, columns: Vec<usize> },
}

/// A fault of a row, in words.
enum Fault {
    /// Of this row alone.
    Row(String),
    /// Nothing can be read after it.
    Input(String),
}

impl TextRows {
    /// Opens a file, which is decompressed if it is compressed by gzip.
    pub fn open(path: &Path, format: ListFormat, wanted: &[Wanted], reading: Reading) -> Result<Self> {
        let file =
            calotype_core::open_input(path).map_err(|source| ListError::Io { path: path.to_path_buf(), source })?;
        let mut file = BufReader::new(file);
        let head = file.fill_buf().map_err(|source| ListError::Io { path: path.to_path_buf(), source })?;
        let is_compressed = head.starts_with(b"\x1f\x8b");
        let input: Box<dyn Read> = if is_compressed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        TextRows::new(path, input, format, wanted, reading)
    }

    /// Rows of `input`; `path` is for messages.
    pub fn new(
        path: &Path,
        input: Box<dyn Read>,
        format: ListFormat,
        wanted: &[Wanted],
        reading: Reading,
    ) -> Result<Self> {
        let left = Rc::new(Shared::new(LONGEST_ROW));
        let input = utf8_reader(input).map_err(|source| ListError::Io { path: path.to_path_buf(), source })?;
        let input = BufReader::with_capacity(1 << 16, Metered { input, left: Rc::clone(&left) });
        let source = match format {
            ListFormat::Txt => {
                // There is one column, and it has no name.
                if let Some(other) = wanted.iter().find(|wanted| wanted.name != "url") {
                    let (path, column) = (path.to_path_buf(), other.column.clone());
                    let present = "nothing but a URL a line".to_owned();
                    return Err(ListError::MissingColumn { path, column, present });
                }
                Source::Lines(input)
            }
            ListFormat::Csv => table(path, input, b',', wanted, reading)?,
            ListFormat::Tsv => table(path, input, b'\t', wanted, reading)?,
            ListFormat::Jsonl => Source::Objects { input, wanted: wanted.to_vec() },
            ListFormat::Parquet => return Err(ListError::UnknownFormat { path: path.to_path_buf() }),
        };
        Ok(TextRows { path: path.to_path_buf(), left, source, row: 0, reading, skipped: 0 })
    }

    /// The next row's cells in the order of the wanted columns; `None` at the end. Empty lines are no rows.
    pub fn next_row(&mut self) -> Result<Option<Vec<Value>>> {
        loop {
            let (path, row) = (self.path.clone(), self.row + 1);
            match self.read_row() {
                Ok(cells) => return Ok(cells),
                Err(Fault::Row(detail)) if self.reading.skip_bad => {
                    tracing::warn!(list = %path.display(), row, "left out: {detail}");
                    self.skipped += 1;
                }
                Err(Fault::Row(detail)) => return Err(ListError::BadRow { path, row, detail }),
                Err(Fault::Input(detail)) => return Err(ListError::Unreadable { path, row, detail }),
            }
        }
    }

    fn read_row(&mut self) -> std::result::Result<Option<Vec<Value>>, Fault> {
        self.left.set(LONGEST_ROW);
        self.row += 1;
        match &mut self.source {
            Source::Lines(input) => Ok(next_line(input)?.map(|line| vec![Value::String(line)])),
            Source::Objects { input, wanted } => match next_line(input)? {
                Some(line) => object(&line, wanted).map(Some).map_err(Fault::Row),
                None => Ok(None),
            },
            Source::Table { reader, record, columns } => next_record(reader, record, columns),
        }
    }

    /// Number of rows that were left out so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Number of the row that was read last, from 1.
    pub fn row(&self) -> u64 {
        self.row
    }
}

fn table(path: &Path, input: Input, delimiter: u8, wanted: &[Wanted], reading: Reading) -> Result<Source> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(!reading.no_quotes)
        .buffer_capacity(1 << 16)
        .from_reader(Quotes::new(input, (!reading.no_quotes).then_some(delimiter)));
    let bad =
        |error: csv::Error| ListError::Unreadable { path: path.to_path_buf(), row: 0, detail: csv_detail(&error) };
    let header = reader.headers().map_err(bad)?.clone();
    if header.is_empty() {
        return Err(ListError::Empty { path: path.to_path_buf() });
    }
    let columns =
        wanted.iter().map(|wanted| find_column(path, header.iter(), &wanted.column)).collect::<Result<_>>()?;
    Ok(Source::Table { reader: Box::new(reader), record: csv::StringRecord::new(), columns })
}

/// A hint for a header that other letters separate.
fn other_separator<'a>(mut names: impl Iterator<Item = &'a str>) -> &'static str {
    match names.any(|name| name.contains([';', '\t'])) {
        true => "; columns are separated by commas (tsv: by tabs), and these are not",
        false => "",
    }
}

/// Number of a column.
pub(super) fn find_column<'a>(
    path: &Path,
    names: impl Iterator<Item = &'a str> + Clone,
    column: &str,
) -> Result<usize> {
    let mut found = names.clone().enumerate().filter(|(_, name)| *name == column).map(|(index, _)| index);
    match (found.next(), found.next()) {
        (Some(index), None) => Ok(index),
        (Some(_), Some(_)) => Err(ListError::DuplicateColumn { path: path.to_path_buf(), column: column.to_owned() }),
        (None, _) => Err(ListError::MissingColumn {
            path: path.to_path_buf(),
            column: column.to_owned(),
            present: format!("{}{}", enumerate(names.clone()), other_separator(names)),
        }),
    }
}

/// The next line that is not blank, without its end.
fn next_line(input: &mut Input) -> std::result::Result<Option<String>, Fault> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).map_err(|e| Fault::Input(e.to_string()))? == 0 {
            return Ok(None);
        }
        let text = std::str::from_utf8(&line).map_err(|_| Fault::Row("not UTF-8 text".to_owned()))?;
        let text = text.trim();
        if !text.is_empty() {
            return Ok(Some(text.to_owned()));
        }
        // Any number of blank lines may follow each other.
        input.get_ref().left.set(LONGEST_ROW);
    }
}

/// The cells of a JSON object; absent ones are null.
fn object(line: &str, wanted: &[Wanted]) -> std::result::Result<Vec<Value>, String> {
    let mut object = match json::from_slice(line.as_bytes()) {
        Ok(Value::Object(object)) => object,
        Ok(Value::Array(_)) => return Err("a list where an object in a line of its own is due".to_owned()),
        Ok(_) => return Err("not a JSON object".to_owned()),
        Err(error) => return Err(format!("not a JSON object: {error}")),
    };
    // Two wanted columns may be the same one.
    let take = |(index, Wanted { column, holds, .. }): (usize, &Wanted)| {
        let cell = match wanted[index + 1..].iter().any(|other| other.column == *column) {
            true => object.get(column).cloned().unwrap_or_default(),
            false => object.remove(column).unwrap_or_default(),
        };
        let fits = match holds {
            Holds::Text => matches!(cell, Value::Null | Value::String(_)),
            Holds::Caption => match &cell {
                Value::Array(captions) => captions.iter().all(is_single),
                single => is_single(single),
            },
            Holds::Anything => true,
        };
        match fits {
            true => Ok(cell),
            false => {
                let needed = if *holds == Holds::Caption { "text or a list of texts" } else { "text" };
                Err(format!("column `{column}` holds {}, not {needed}", short(&cell)))
            }
        }
    };
    wanted.iter().enumerate().map(take).collect()
}

/// True for what is no list and no object.
fn is_single(value: &Value) -> bool {
    !matches!(value, Value::Array(_) | Value::Object(_))
}

/// A value for a message.
fn short(cell: &Value) -> String {
    const LONGEST: usize = 60;
    let text = cell.to_string();
    let shown: String = text.chars().take(LONGEST).collect();
    if shown.len() < text.len() { format!("{shown}…") } else { shown }
}

fn next_record(
    reader: &mut csv::Reader<Quotes<Input>>,
    record: &mut csv::StringRecord,
    columns: &[usize],
) -> std::result::Result<Option<Vec<Value>>, Fault> {
    match reader.read_record(record) {
        // The reader sees to it that rows have as many cells as the header.
        Ok(true) => {
            Ok(Some(columns.iter().map(|at| Value::String(record.get(*at).unwrap_or_default().into())).collect()))
        }
        Ok(false) => Ok(None),
        Err(error) if error.is_io_error() => Err(Fault::Input(csv_detail(&error))),
        Err(error) => Err(Fault::Row(csv_detail(&error))),
    }
}

fn csv_detail(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "not UTF-8 text".to_owned(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => match len < expected_len {
            true => format!("{len} cells where {expected_len} are due; {LEFT_OPEN} {NO_QUOTES}"),
            false => format!("{len} cells where {expected_len} are due; a cell with the divider in it needs quotes"),
        },
        csv::ErrorKind::Io(error) => match error.get_ref().is_some_and(|inner| inner.is::<OpenQuote>()) {
            true => format!("{error}; {NO_QUOTES}"),
            false => error.to_string(),
        },
        // Of writing and of conversions, which do not happen here.
        _ => error.to_string(),
    }
}

/// Input that ends in an error when a row gets too long.
struct Metered<R> {
    input: R,
    left: Rc<Shared<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            let detail = format!("longer than {} MiB; {LEFT_OPEN} {NO_QUOTES}", LONGEST_ROW >> 20);
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        let count = self.input.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(count as u64));
        Ok(count)
    }
}
