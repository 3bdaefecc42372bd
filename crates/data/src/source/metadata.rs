//! Metadata tables beside images: `metadata.jsonl` and `metadata.csv`, as Hugging Face's imagefolder has them.
//!
//! Rows are checked when a table is opened, and parsed again when they are asked for: a table of millions of rows costs
//! sixteen bytes a row beside its (memory-mapped) text.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::webdataset::map_file;
use crate::{Error, Result};

/// Names of metadata tables.
pub const METADATA_FILES: [&str; 2] = ["metadata.jsonl", "metadata.csv"];

/// Columns that name a row's image, the first one that a table has.
pub const FILE_COLUMNS: [&str; 3] = ["file_name", "image_file_name", "image"];

/// A metadata table.
#[derive(Clone, Debug)]
pub struct Table {
    path: PathBuf,
    text: Bytes,
    /// Names of a CSV table's columns; JSON lines carry theirs.
    header: Option<csv::StringRecord>,
    rows: Vec<Range<usize>>,
}

/// True if a path has the name of a metadata table.
pub fn is_metadata(path: &Path) -> bool {
    path.file_name().is_some_and(|name| METADATA_FILES.iter().any(|known| name == *known))
}

impl Table {
    /// Opens a table: CSV if its name ends in `.csv`, else JSON lines.
    ///
    /// # Errors
    /// [`Error::BadTable`] for a table that cannot be used at all, [`Error::BadRow`] for a malformed row,
    /// [`Error::Io`] if the file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let empty = std::fs::metadata(path).map_err(Error::io("read", path))?.len() == 0;
        let text = if empty { Bytes::new() } else { Bytes::from_owner(map_file(path)?) };
        Table::parse(path, text)
    }

    /// Reads a table from its text; `path` tells the format, and is for messages.
    ///
    /// # Errors
    /// [`Error::BadTable`] for a table that cannot be used at all, [`Error::BadRow`] for a malformed row.
    pub fn parse(path: &Path, text: Bytes) -> Result<Self> {
        let csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let mut table = Table { path: path.to_path_buf(), text, header: None, rows: Vec::new() };
        match csv {
            true => table.find_csv_rows()?,
            false => table.find_lines()?,
        }
        for row in 0..table.len() {
            table.row(row)?;
        }
        Ok(table)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Row `row`, from 0, by column. The fields of a CSV table are all texts.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; none of the others for a table that could be opened.
    pub fn row(&self, row: usize) -> Result<Map<String, Value>> {
        let range = self.rows.get(row).ok_or(Error::OutOfRange { index: row, len: self.len() })?;
        let text = &self.text[range.clone()];
        let parsed = match &self.header {
            Some(header) => parse_record(header, text),
            None => serde_json::from_slice(text).map_err(|e| e.to_string()),
        };
        parsed.map_err(|detail| self.bad_row(row, detail))
    }

    /// An error of row `row`, from 0.
    pub fn bad_row(&self, row: usize, detail: impl Into<String>) -> Error {
        Error::BadRow { path: self.path.clone(), row: row as u64 + 1, detail: detail.into() }
    }

    fn find_lines(&mut self) -> Result<()> {
        let mut start = text_start(&self.text);
        let text = self.text.clone();
        for line in text[start..].split_inclusive(|byte| *byte == b'\n') {
            if !line.iter().all(u8::is_ascii_whitespace) {
                self.rows.push(start..start + line.len());
            }
            start += line.len();
        }
        Ok(())
    }

    fn find_csv_rows(&mut self) -> Result<()> {
        let first = text_start(&self.text);
        let text = self.text.clone();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&text[first..]);
        let mut record = csv::StringRecord::new();
        let mut starts = Vec::new();
        loop {
            let more = reader.read_record(&mut record).map_err(|e| match starts.len() {
                0 => Error::BadTable { path: self.path.clone(), detail: format!("bad header: {}", csv_detail(&e)) },
                row => self.bad_row(row - 1, csv_detail(&e)),
            })?;
            if !more {
                break;
            }
            starts.push(first + record.position().map_or(0, |position| position.byte() as usize));
            if self.header.is_none() {
                self.header = Some(record.clone());
            }
        }
        if self.header.is_none() {
            return Err(Error::BadTable { path: self.path.clone(), detail: "has no header line".to_owned() });
        }
        let ends = starts.iter().skip(2).copied().chain([self.text.len()]);
        self.rows = starts.iter().skip(1).zip(ends).map(|(start, end)| *start..end).collect();
        Ok(())
    }
}

/// Past a byte order mark, which spreadsheets write.
fn text_start(text: &[u8]) -> usize {
    if text.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 }
}

fn parse_record(header: &csv::StringRecord, text: &[u8]) -> std::result::Result<Map<String, Value>, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text);
    let mut record = csv::StringRecord::new();
    reader.read_record(&mut record).map_err(|e| csv_detail(&e))?;
    let fields = header.iter().zip(record.iter());
    Ok(fields.map(|(column, field)| (column.to_owned(), Value::String(field.to_owned()))).collect())
}

/// The fault, in words, without positions that are relative to a piece of the file.
fn csv_detail(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "is not UTF-8".to_owned(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("has {len} fields, the header {expected_len}; a field with commas needs quotes")
        }
        _ => error.to_string(),
    }
}

/// A value as the text of a caption or label; `None` for null, an error for what is no text.
pub(crate) fn as_text(value: &Value) -> std::result::Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Number(number) => Ok(Some(number.to_string())),
        // Tables of several captions an image: the first.
        Value::Array(items) if items.first().is_some_and(Value::is_string) => as_text(&items[0]),
        other => Err(format!("is {}, not a text", kind_of(other))),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, text: &str) -> Result<Table> {
        Table::parse(Path::new(name), Bytes::from(text.to_owned()))
    }

    #[test]
    fn rows_are_found_again() {
        let lines =
            table("m.jsonl", "\u{feff}{\"file_name\": \"a.png\", \"n\": 1}\r\n\n  {\"file_name\": \"b\"}").unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines.row(0).unwrap()["n"], 1);
        assert_eq!(lines.row(1).unwrap()["file_name"], "b");
        let text = "\u{feff}file_name,text\r\na.png,\"one, \"\"two\"\"\nthree\"\n\nb.png,ü\n";
        let rows = table("m.csv", text).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows.row(0).unwrap()["text"], "one, \"two\"\nthree");
        assert_eq!(rows.row(1).unwrap()["text"], "ü");
        assert_eq!((table("m.csv", "a,b\n").unwrap().len(), table("m.jsonl", "").unwrap().len()), (0, 0));
    }

    #[test]
    fn bad_tables_are_named() {
        for (name, text, part) in [
            ("m.jsonl", "{\"a\": 1}\n[1]\n", "row 2: invalid type"),
            ("m.jsonl", "{\"a\": 1\n", "row 1: EOF"),
            ("m.jsonl", "{\"a\": 1} {}\n", "row 1: trailing"),
            ("m.csv", "", "no header"),
            ("m.csv", "a,b\n1,2\n1\n", "row 2: has 1 fields, the header 2"),
            ("m.csv", "a,b\n1,2,3\n", "row 1: has 3 fields"),
        ] {
            let error = table(name, text).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(part), "{error}");
        }
        let bytes = Bytes::from_static(b"a,b\n1,\xff\n");
        assert!(Table::parse(Path::new("m.csv"), bytes).unwrap_err().to_string().contains("row 1: is not UTF-8"));
    }
}
