//! Rows of text lists, one after the other.

use std::cell::Cell as Shared;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use super::{ListError, ListFormat, Result, Wanted, enumerate};

/// Longest row, in bytes. A quote that is never closed would otherwise take the whole list into memory.
const LONGEST_ROW: u64 = 4 << 20;

type Input = BufReader<Metered<Box<dyn Read>>>;

/// The wanted cells of each row: text from txt, csv and tsv; single values from jsonl.
pub(super) struct TextRows {
    path: PathBuf,
    left: Rc<Shared<u64>>,
    source: Source,
    row: u64,
}

enum Source {
    Lines(Input),
    Objects { input: Input, columns: Vec<String> },
    Table { reader: Box<csv::Reader<Input>>, record: csv::StringRecord, columns: Vec<usize> },
}

impl TextRows {
    /// Opens a file, which is decompressed if its name ends in `.gz`.
    pub fn open(path: &Path, format: ListFormat, wanted: &[Wanted]) -> Result<Self> {
        let file = File::open(path).map_err(|source| ListError::Io { path: path.to_path_buf(), source })?;
        let is_compressed = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
        let input: Box<dyn Read> = if is_compressed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        TextRows::new(path, input, format, wanted)
    }

    /// Rows of `input`; `path` is for messages.
    pub fn new(path: &Path, input: Box<dyn Read>, format: ListFormat, wanted: &[Wanted]) -> Result<Self> {
        let left = Rc::new(Shared::new(LONGEST_ROW));
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
            ListFormat::Csv => table(path, input, b',', wanted)?,
            ListFormat::Tsv => table(path, input, b'\t', wanted)?,
            ListFormat::Jsonl => {
                Source::Objects { input, columns: wanted.iter().map(|wanted| wanted.column.clone()).collect() }
            }
            ListFormat::Parquet => return Err(ListError::UnknownFormat { path: path.to_path_buf() }),
        };
        Ok(TextRows { path: path.to_path_buf(), left, source, row: 0 })
    }

    /// The next row's cells in the order of the wanted columns; `None` at the end. Empty lines are no rows.
    pub fn next_row(&mut self) -> Result<Option<Vec<Value>>> {
        self.left.set(LONGEST_ROW);
        self.row += 1;
        let cells = match &mut self.source {
            Source::Lines(input) => next_line(input).map(|line| line.map(|line| vec![Value::String(line)])),
            Source::Objects { input, columns } => next_line(input).and_then(|line| match line {
                Some(line) => object(&line, columns).map(Some),
                None => Ok(None),
            }),
            Source::Table { reader, record, columns } => next_record(reader, record, columns),
        };
        cells.map_err(|detail| ListError::BadRow { path: self.path.clone(), row: self.row, detail })
    }

    /// Number of the row that was read last, from 1.
    pub fn row(&self) -> u64 {
        self.row
    }
}

fn table(path: &Path, input: Input, delimiter: u8, wanted: &[Wanted]) -> Result<Source> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).buffer_capacity(1 << 16).from_reader(input);
    let bad = |error: csv::Error| ListError::BadRow { path: path.to_path_buf(), row: 0, detail: csv_detail(&error) };
    let header = reader.headers().map_err(bad)?.clone();
    if header.is_empty() {
        return Err(ListError::Empty { path: path.to_path_buf() });
    }
    let columns =
        wanted.iter().map(|wanted| find_column(path, header.iter(), &wanted.column)).collect::<Result<_>>()?;
    Ok(Source::Table { reader: Box::new(reader), record: csv::StringRecord::new(), columns })
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
            present: enumerate(names),
        }),
    }
}

/// The next line that is not blank, without its end and without a byte order mark.
fn next_line(input: &mut Input) -> std::result::Result<Option<String>, String> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).map_err(|e| e.to_string())? == 0 {
            return Ok(None);
        }
        let text = std::str::from_utf8(&line).map_err(|_| "not UTF-8 text".to_owned())?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
        if !text.is_empty() {
            return Ok(Some(text.to_owned()));
        }
        // Any number of blank lines may follow each other.
        input.get_ref().left.set(LONGEST_ROW);
    }
}

/// The cells of a JSON object; absent ones are null.
fn object(line: &str, columns: &[String]) -> std::result::Result<Vec<Value>, String> {
    match serde_json::from_str(line) {
        Ok(Value::Object(mut object)) => {
            // Two wanted columns may be the same one.
            let take = |(index, name): (usize, &String)| match columns[index + 1..].contains(name) {
                true => object.get(name).cloned().unwrap_or_default(),
                false => object.remove(name).unwrap_or_default(),
            };
            Ok(columns.iter().enumerate().map(take).collect())
        }
        Ok(_) => Err("not a JSON object".to_owned()),
        Err(error) => Err(format!("not a JSON object: {error}")),
    }
}

fn next_record(
    reader: &mut csv::Reader<Input>,
    record: &mut csv::StringRecord,
    columns: &[usize],
) -> std::result::Result<Option<Vec<Value>>, String> {
    match reader.read_record(record) {
        Ok(true) => {
            Ok(Some(columns.iter().map(|at| Value::String(record.get(*at).unwrap_or_default().into())).collect()))
        }
        Ok(false) => Ok(None),
        Err(error) => Err(csv_detail(&error)),
    }
}

fn csv_detail(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "not UTF-8 text".to_owned(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!("{len} cells where {expected_len} are due"),
        csv::ErrorKind::Io(error) => error.to_string(),
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
            let detail = format!("longer than {} MiB; is a quote left open?", LONGEST_ROW >> 20);
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        let count = self.input.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(count as u64));
        Ok(count)
    }
}
