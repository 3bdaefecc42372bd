//! Metadata tables beside images: `metadata.jsonl` and `metadata.csv`, as Hugging Face's imagefolder has them.
//!
//! Rows are checked when a table is opened, and parsed again when they are asked for: a table of millions of rows costs
//! sixteen bytes a row beside its (memory-mapped) text.

use std::borrow::Cow;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use calotype_core::{Quotes, TextFault, decode_text};
use serde_json::{Map, Value};

use super::Removed;
use crate::webdataset::map_file;
use crate::{Error, Result, json, told};

/// Names of metadata tables.
pub const METADATA_FILES: [&str; 2] = ["metadata.jsonl", "metadata.csv"];

/// Columns that name a row's image, the first one that a table has.
pub const FILE_COLUMNS: [&str; 3] = ["file_name", "image_file_name", "image"];

/// What may lie between the fields of a CSV table. Spreadsheets write semicolons where a comma is the decimal mark.
const DELIMITERS: [u8; 3] = [b',', b';', b'\t'];

/// A metadata table.
#[derive(Clone, Debug)]
pub struct Table {
    path: PathBuf,
    text: Bytes,
    /// Names of a CSV table's columns; JSON lines carry theirs.
    header: Option<csv::StringRecord>,
    /// What lies between a CSV table's fields.
    delimiter: u8,
    rows: Vec<Range<usize>>,
    /// Rows that were left out, whose numbers are not counted.
    bad: Removed,
}

/// True if a path has the name of a metadata table.
pub fn is_metadata(path: &Path) -> bool {
    path.file_name().is_some_and(|name| METADATA_FILES.iter().any(|known| name == *known))
}

impl Table {
    /// Opens a table: CSV if its name ends in `.csv`, else JSON lines. With `skip_bad`, malformed rows are left out.
    ///
    /// # Errors
    /// [`Error::BadTable`] for a table that cannot be used at all, [`Error::BadRow`] for a malformed row,
    /// [`Error::Io`] if the file cannot be read.
    pub fn open(path: &Path, skip_bad: bool) -> Result<Self> {
        let empty = std::fs::metadata(path).map_err(Error::io("read", path))?.len() == 0;
        let text = if empty { Bytes::new() } else { Bytes::from_owner(map_file(path)?) };
        Table::parse(path, text, skip_bad)
    }

    /// Reads a table from its text; `path` tells the format, and is for messages. With `skip_bad`, malformed rows are left
    /// out.
    ///
    /// # Errors
    /// [`Error::BadTable`] for a table that cannot be used at all, [`Error::BadRow`] for a malformed row.
    pub fn parse(path: &Path, text: Bytes, skip_bad: bool) -> Result<Self> {
        let csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let bad = |fault: TextFault| Error::BadTable { path: path.to_path_buf(), detail: fault.to_string() };
        // Rows that are not UTF-8 are told by their numbers below.
        let text = match decode_text(&text) {
            Ok(Cow::Owned(decoded)) => decoded.into(),
            Err(fault) if !matches!(fault, TextFault::NotUtf8 { .. }) => return Err(bad(fault)),
            _ => text,
        };
        let (header, rows, bad) = Default::default();
        let mut table = Table { path: path.to_path_buf(), text, header, delimiter: DELIMITERS[0], rows, bad };
        match csv {
            true => table.find_csv_rows()?,
            false => table.find_lines()?,
        }
        let mut bad = Vec::new();
        for row in 0..table.len() {
            match table.row(row) {
                Err(error) if skip_bad => {
                    if told::first_time(&table.path, &error) {
                        tracing::warn!("left out: {error}");
                    }
                    bad.push(row);
                }
                other => drop(other?),
            }
        }
        table.leave_out(bad);
        Ok(table)
    }

    fn leave_out(&mut self, bad: Vec<usize>) {
        let mut number = 0..;
        self.rows.retain(|_| number.next().is_none_or(|row| bad.binary_search(&row).is_err()));
        self.bad = Removed::new(bad);
    }

    /// Number of malformed rows that were left out.
    pub fn left_out(&self) -> usize {
        self.bad.len()
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
            Some(header) => parse_record(header, self.delimiter, text),
            None => parse_object(text),
        };
        parsed.map_err(|detail| self.bad_row(row, detail))
    }

    /// Names of a CSV table's columns; nothing for JSON lines.
    pub(super) fn columns(&self) -> String {
        self.header.iter().flatten().map(|name| format!("{name}\n")).collect()
    }

    /// That a CSV table has a column that names images. JSON lines may differ in what they have.
    pub(super) fn check_file_column(&self) -> Result<()> {
        let Some(header) = &self.header else { return Ok(()) };
        if header.iter().any(|column| FILE_COLUMNS.contains(&column)) {
            return Ok(());
        }
        let (known, there) = (FILE_COLUMNS.join(", "), header.iter().collect::<Vec<_>>().join(", "));
        let detail = format!(
            "has no column of the images' names; it may be called {known}, and there are: {there}; commas, semicolons or tabs \
             separate columns"
        );
        Err(Error::BadTable { path: self.path.clone(), detail })
    }

    /// The bytes of row `row`, from 0; none past the end.
    pub(super) fn text(&self, row: usize) -> &[u8] {
        self.rows.get(row).map_or(&[], |range| &self.text[range.clone()])
    }

    /// An error of row `row`, from 0.
    pub fn bad_row(&self, row: usize, detail: impl Into<String>) -> Error {
        Error::BadRow { path: self.path.clone(), row: self.number(row), detail: detail.into() }
    }

    /// The number that row `row`, from 0, has in the file, from 1.
    pub fn number(&self, row: usize) -> u64 {
        self.bad.whole(row) as u64 + 1
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

    /// Where the rows begin and end. Whether each is good is seen when it is read.
    fn find_csv_rows(&mut self) -> Result<()> {
        let first = text_start(&self.text);
        let text = self.text.clone();
        self.delimiter = delimiter_of(&text[first..]);
        let checked = Quotes::new(&text[first..], Some(self.delimiter));
        let mut reader = csv_reader(checked, self.delimiter);
        let mut record = csv::ByteRecord::new();
        let mut starts = Vec::new();
        let bad = |detail: String| Error::BadTable { path: self.path.clone(), detail };
        while reader.read_byte_record(&mut record).map_err(|e| bad(e.to_string()))? {
            starts.push(first + record.position().map_or(0, |position| position.byte() as usize));
            if starts.len() == 1 {
                let header = csv::StringRecord::from_byte_record(record.clone());
                self.header = Some(header.map_err(|_| bad("bad header: is not UTF-8".to_owned()))?);
            }
        }
        if self.header.is_none() {
            return Err(bad("has no header line".to_owned()));
        }
        let ends = starts.iter().skip(2).copied().chain([self.text.len()]);
        self.rows = starts.iter().skip(1).zip(ends).map(|(start, end)| *start..end).collect();
        Ok(())
    }
}

/// A reader of rows of any number of fields.
fn csv_reader<R: Read>(text: R, delimiter: u8) -> csv::Reader<R> {
    csv::ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(text)
}

/// What lies between a table's fields: the first of [`DELIMITERS`] with which its header names a column of images.
fn delimiter_of(text: &[u8]) -> u8 {
    let names_images = |delimiter: &u8| {
        let mut header = csv::ByteRecord::new();
        let is_read = csv_reader(text, *delimiter).read_byte_record(&mut header).is_ok();
        is_read && header.iter().any(|column| FILE_COLUMNS.iter().any(|known| known.as_bytes() == column))
    };
    DELIMITERS.into_iter().find(names_images).unwrap_or(DELIMITERS[0])
}

/// Past a byte order mark, which spreadsheets write.
fn text_start(text: &[u8]) -> usize {
    if text.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 }
}

fn parse_record(
    header: &csv::StringRecord,
    delimiter: u8,
    text: &[u8],
) -> std::result::Result<Map<String, Value>, String> {
    let mut record = csv::ByteRecord::new();
    csv_reader(text, delimiter).read_byte_record(&mut record).map_err(|e| e.to_string())?;
    if record.len() != header.len() {
        let (fields, expected) = (record.len(), header.len());
        let delimiter = char::from(delimiter).escape_default();
        return Err(format!(
            "has {fields} fields, the header {expected}; a field with `{delimiter}` in it needs quotes"
        ));
    }
    let record = csv::StringRecord::from_byte_record(record).map_err(|_| "is not UTF-8".to_owned())?;
    let fields = header.iter().zip(record.iter());
    Ok(fields.map(|(column, field)| (column.to_owned(), Value::String(field.to_owned()))).collect())
}

fn parse_object(text: &[u8]) -> std::result::Result<Map<String, Value>, String> {
    match json::from_slice(text).map_err(|e| without_line(&e.to_string()))? {
        Value::Object(fields) => Ok(fields),
        other => Err(format!("is {}, where an object in a line of its own is due", kind_of(&other))),
    }
}

/// A reader's message about one row: the line that it names is the first one of the row, whose number stands in front.
fn without_line(message: &str) -> String {
    message.replace(" at line 1 column ", " at character ")
}

/// A value as the text of a caption or label; `None` for null, an error for what is no text.
pub(super) fn as_text(value: &Value) -> std::result::Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Number(number) => Ok(Some(number.to_string())),
        other => Err(format!("is {}, not a text", kind_of(other))),
    }
}

pub(super) fn kind_of(value: &Value) -> &'static str {
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
        Table::parse(Path::new(name), Bytes::from(text.to_owned()), false)
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
        for text in ["text;file_name\n\"a; b, c\";a.png\n", "text\tfile_name\na; b, c\ta.png\n"] {
            let row = table("m.csv", text).unwrap().row(0).unwrap();
            assert_eq!((row["file_name"].as_str(), row["text"].as_str()), (Some("a.png"), Some("a; b, c")), "{text}");
        }
    }

    #[test]
    fn bad_tables_are_named() {
        for (name, text, part) in [
            ("m.jsonl", "{\"a\": 1}\n[1]\n", "row 2: is a list, where an object"),
            ("m.jsonl", "{\"a\": 1\n", "row 1: EOF"),
            ("m.jsonl", "{\"a\": 1}\n{bad\n", "row 2: key must be a string at character 2"),
            ("m.jsonl", "{\"a\": 1} {}\n", "row 1: trailing"),
            ("m.csv", "", "no header"),
            ("m.csv", "a,b\n1,2\n1\n", "row 2: has 1 fields, the header 2"),
            ("m.csv", "a,b\n1,2,3\n", "row 1: has 3 fields"),
            ("m.csv", "a,b\n1,\"2\n3,4\n5,6\n", "a quote that opens in line 2 is left open"),
            ("m.csv", "\u{feff}a,b\n1,2\n3,\"4\n5,\"6\"\n", "a quote that opens in line 3 is left open"),
            ("m.csv", "file_name;b\n1;\"2\n3;4\n", "a quote that opens in line 2 is left open"),
        ] {
            let error = table(name, text).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(part), "{error}");
        }
        let bytes = Bytes::from_static(b"a,b\n1,\xff\n");
        let parse = |name: &str, bytes: Bytes| Table::parse(Path::new(name), bytes, false).unwrap_err().to_string();
        assert!(parse("m.csv", bytes).contains("row 1: is not UTF-8"));
        let utf16: Vec<u8> = "\u{feff}a,b\n1,2\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let utf16 = Table::parse(Path::new("m.csv"), utf16.into(), false).unwrap();
        assert_eq!(utf16.row(0).unwrap()["b"], "2");
    }

    #[test]
    fn bad_rows_can_be_left_out() {
        for (name, text, rows) in [
            ("m.jsonl", "{\"a\": 1}\n[1]\n{\"a\": NaN}\n{\"a\": \n{\"a\": 4}\n", 3),
            ("m.csv", "a,b\n1,2\n1\n3,\"x\ny\"\n1,2,3\n4,5\n", 3),
        ] {
            let skipping = Table::parse(Path::new(name), Bytes::from(text.to_owned()), true).unwrap();
            assert_eq!((skipping.len(), skipping.left_out()), (rows, 2), "{name}");
            assert!(skipping.row(2).unwrap()["a"].to_string().contains('4'));
            assert!(skipping.bad_row(2, "x").to_string().contains("row 5"));
            assert!(table(name, text).unwrap_err().to_string().contains("row 2"), "{name}");
        }
        // How many rows a quote has taken in is not known.
        let open = Bytes::from_static(b"a,b\n1,\"2\n3,4\n");
        assert!(Table::parse(Path::new("m.csv"), open, true).unwrap_err().to_string().contains("is left open"));
    }
}
