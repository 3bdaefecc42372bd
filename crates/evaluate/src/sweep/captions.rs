//! The captions that pictures are drawn for.

use super::SweepError;
use super::recipe::CaptionSettings;
use calotype_core::{Quotes, is_special, read_text};
use calotype_data::source::{CAPTION_COLUMNS, SourceOptions, open};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// A caption with the name of what it describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caption {
    /// The image's number in a table, a file's name, or the number of a line.
    pub name: String,
    /// The caption.
    pub text: String,
}

/// Captions in the order in which pictures are numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captions {
    /// The captions.
    pub list: Vec<Caption>,
    /// SHA-256 of names and texts, in hexadecimal.
    pub sha256: String,
}

impl Captions {
    /// Reads the first `count` captions of
    ///
    /// - a table with tabs between its columns (`.tsv`), as MLPerf's `val2014_30k.tsv`: column `caption`, names by `image_id` or
    ///   `id`;
    /// - a text file with a caption on each line that is not empty;
    /// - a folder of text files, each with one caption (NeMo's `captions/`), in the order of their names;
    /// - shards, a folder of images, or whatever else is a source of samples ([`calotype_data::source`]).
    ///
    /// # Errors
    /// [`SweepError::Captions`] for a file that is no such list, naming its line, and for too few; [`SweepError::Data`] for a source
    /// that cannot be read.
    pub fn read(settings: &CaptionSettings, count: usize) -> Result<Self, SweepError> {
        let path = Path::new(&settings.path);
        let mut list = list(settings, count)?;
        if list.len() < count {
            let problem = format!("holds {} captions, and `images` asks for {count}; take fewer images", list.len());
            return Err(SweepError::Captions { path: path.to_owned(), problem });
        }
        list.truncate(count);
        let empty: Vec<&Caption> = list.iter().filter(|caption| caption.text.is_empty()).collect();
        if let Some(first) = empty.first() {
            let (path, count, name) = (path.display(), empty.len(), &first.name);
            tracing::warn!(
                "{path}: {count} empty captions, such as that of {name}; they are drawn and judged as any other"
            );
        }
        Ok(Self::new(list))
    }

    /// All captions, of what [`read`](Self::read) reads.
    ///
    /// # Errors
    /// As of [`read`](Self::read); [`SweepError::Captions`] if there are none.
    pub fn read_all(settings: &CaptionSettings) -> Result<Self, SweepError> {
        let list = list(settings, usize::MAX)?;
        if list.is_empty() {
            let problem = "holds no captions".to_owned();
            return Err(SweepError::Captions { path: PathBuf::from(&settings.path), problem });
        }
        Ok(Self::new(list))
    }

    /// Captions that are at hand.
    pub fn new(list: Vec<Caption>) -> Self {
        let mut hasher = Sha256::new();
        for Caption { name, text } in &list {
            // Lengths keep apart what would read the same.
            hasher.update(format!("{} {}\n{name}\n{text}\n", name.len(), text.len()));
        }
        let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { list, sha256 }
    }
}

/// Whether there is a file, or what is none and must not be read, which is told then.
fn is_there(path: &Path) -> bool {
    path.is_file() || is_special(path)
}

/// The captions of a path; of a folder and a source no more than `count`.
fn list(settings: &CaptionSettings, count: usize) -> Result<Vec<Caption>, SweepError> {
    let path = Path::new(&settings.path);
    let column = settings.column.as_deref();
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("tsv") if is_there(path) => of_file(path, |text| parse_table(text, column)),
        Some("txt") if is_there(path) => of_file(path, |text| Ok(parse_lines(text))),
        _ => match text_files(path)? {
            Some(files) => files.iter().take(count).map(|file| of_text_file(file)).collect(),
            None => of_source(settings, count),
        },
    }
}

/// Reads a text file and what it lists.
fn of_file(path: &Path, parse: impl FnOnce(&str) -> Result<Vec<Caption>, String>) -> Result<Vec<Caption>, SweepError> {
    let fault = |problem: String| SweepError::Captions { path: path.to_owned(), problem };
    let text = read_text(path).map_err(|error| fault(format!("cannot be read: {error}")))?;
    parse(&text).map_err(fault)
}

/// A file with one caption.
fn of_text_file(path: &Path) -> Result<Caption, SweepError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let lines = of_file(path, |text| Ok(parse_lines(text)))?;
    match <[Caption; 1]>::try_from(lines) {
        Ok([caption]) => Ok(Caption { name, ..caption }),
        Err(lines) => {
            let problem = format!("holds {} lines with text; in a folder of captions each file has one", lines.len());
            Err(SweepError::Captions { path: path.to_owned(), problem })
        }
    }
}

/// The files of a folder that holds nothing but text files, in the order of their names; hidden files are passed over.
fn text_files(folder: &Path) -> Result<Option<Vec<PathBuf>>, SweepError> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let fault = |error: std::io::Error| SweepError::Captions {
        path: folder.to_owned(),
        problem: format!("cannot be listed: {error}"),
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "txt") || !path.is_file() {
            return Ok(None);
        }
        files.push(path);
    }
    files.sort();
    Ok((!files.is_empty()).then_some(files))
}

/// The captions of a source of samples.
fn of_source(settings: &CaptionSettings, count: usize) -> Result<Vec<Caption>, SweepError> {
    let options = SourceOptions { caption_column: settings.column.clone(), ..SourceOptions::default() };
    let source = open(&settings.path, &options)?;
    let caption = |number: usize| -> Result<Caption, SweepError> {
        let held = source.get(number)?;
        let sample = held.sample();
        Ok(Caption { name: sample.key().to_owned(), text: sample.text("txt")?.trim().to_owned() })
    };
    (0..source.len().min(count)).map(caption).collect()
}

/// The lines of a text that are not empty; names are the lines' numbers, from 1.
pub fn parse_lines(text: &str) -> Vec<Caption> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| Caption { name: (number + 1).to_string(), text: line.trim().to_owned() }).collect()
}

/// A table with tabs between its columns and quotes around fields that hold tabs, quotes or line breaks, as pandas writes and reads
/// it (`sep="\t"`). The first line names the columns.
///
/// # Errors
/// What is wrong, in words, with the number of the line.
pub fn parse_table(text: &str, column: Option<&str>) -> Result<Vec<Caption>, String> {
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_reader(Quotes::new(text.as_bytes(), Some(b'\t')));
    let header = reader.headers().map_err(|error| in_words(&error))?.clone();
    let at = |name: &str| header.iter().position(|column| column == name);
    let caption = match column {
        Some(name) => at(name).ok_or_else(|| lacks(name, &header))?,
        None => {
            let known = CAPTION_COLUMNS.into_iter().find_map(at);
            known.ok_or_else(|| lacks("caption", &header))?
        }
    };
    let name = ["image_id", "id", "file_name"].into_iter().find_map(at);
    let mut list = Vec::new();
    for (number, record) in reader.records().enumerate() {
        let record = record.map_err(|error| in_words(&error))?;
        let text = record.get(caption).unwrap_or_default().trim();
        if text.is_empty() {
            let line = record.position().map_or(0, csv::Position::line);
            return Err(format!("line {line}: the caption is empty; remove the line, or write one"));
        }
        let name = name.and_then(|name| record.get(name)).map_or_else(|| (number + 1).to_string(), str::to_owned);
        list.push(Caption { name, text: text.to_owned() });
    }
    Ok(list)
}

fn lacks(column: &str, header: &csv::StringRecord) -> String {
    let known = header.iter().collect::<Vec<_>>().join(", ");
    format!("line 1: there is no column `{column}`, only {known}; name the captions' column with captions.column")
}

/// The reader's error with the number of its line.
fn in_words(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            format!("line {line}: {len} fields, and the first line names {expected_len} columns")
        }
        // A quote that is left open.
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => format!("is no table: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caption(name: &str, text: &str) -> Caption {
        Caption { name: name.to_owned(), text: text.to_owned() }
    }

    /// As pandas 2.3 reads them with `read_csv(sep="\t")`, but for the spaces around captions, which tokenizers drop.
    #[test]
    fn tables_are_read_as_by_pandas() {
        for (text, expected) in [
            (
                "image_id\tid\tcaption\n42\t1\tA cat.\n7\t2\tTwo dogs.\n",
                vec![caption("42", "A cat."), caption("7", "Two dogs.")],
            ),
            ("id\timage_id\tcaption\theight\n1\t42\tA cat.\t480\n", vec![caption("42", "A cat.")]),
            ("image_id\tid\tcaption\r\n42\t1\tA \"cat\".\r\n", vec![caption("42", "A \"cat\".")]),
            (
                "image_id\tid\tcaption\n42\t1\t\"A \"\"big\"\" cat,\ton a mat\"\n",
                vec![caption("42", "A \"big\" cat,\ton a mat")],
            ),
            ("caption\nA cat. \nA dog.", vec![caption("1", "A cat."), caption("2", "A dog.")]),
            ("image_id\tid\tcaption\n", vec![]),
        ] {
            assert_eq!(parse_table(text, None).unwrap(), expected, "{text}");
        }
        assert_eq!(parse_table("a\tb\n1\tx\n", Some("b")).unwrap(), [caption("1", "x")]);
    }

    #[test]
    fn what_is_no_table_is_told_with_its_line() {
        for (text, part) in [
            ("", "there is no column `caption`"),
            ("A cat.\nA dog.\n", "line 1: there is no column `caption`, only A cat."),
            ("image_id\tid\tcaption\n42\t1\n", "line 2: 2 fields, and the first line names 3 columns"),
            ("image_id\tid\tcaption\n42\t1\tA\tcat\n", "line 2: 4 fields"),
            ("image_id\tid\tcaption\n42\t1\tA cat.\n43\t2\t \n", "line 3: the caption is empty"),
            ("image_id\tid\tcaption\n42\t1\t\"A cat.\n43\t2\tA dog.\n", "a quote that opens in line 2 is left open"),
        ] {
            let error = parse_table(text, None).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(parse_table("caption\nx\n", Some("text")).unwrap_err().contains("no column `text`"));
    }

    #[test]
    fn captions_come_from_files_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("list.txt"), "\u{feff}A cat.\r\n\r\nA dog.\n").unwrap();
        fs::write(at("list.tsv"), "image_id\tid\tcaption\n42\t1\tA cat.\n").unwrap();
        fs::create_dir(at("captions")).unwrap();
        fs::write(at("captions/000000000042.txt"), "Two dogs.\n").unwrap();
        fs::write(at("captions/000000000007.txt"), "A cat.").unwrap();
        let read = |name: &str, count| {
            Captions::read(&CaptionSettings { path: at(name).display().to_string(), column: None }, count)
        };
        assert_eq!(read("list.txt", 2).unwrap().list, [caption("1", "A cat."), caption("3", "A dog.")]);
        assert_eq!(read("list.tsv", 1).unwrap().list, [caption("42", "A cat.")]);
        let nemo = [caption("000000000007", "A cat."), caption("000000000042", "Two dogs.")];
        assert_eq!(read("captions", 2).unwrap().list, nemo);
        assert_eq!(read("captions", 1).unwrap().list, nemo[..1]);
        let error = read("list.txt", 3).unwrap_err().to_string();
        assert!(error.contains("list.txt") && error.contains("holds 2 captions"), "{error}");
        fs::write(at("captions/000000000001.txt"), "A cat.\nA dog.\n").unwrap();
        let error = read("captions", 2).unwrap_err().to_string();
        assert!(error.contains("000000000001.txt") && error.contains("2 lines"), "{error}");
        assert!(read("absent", 1).is_err());
    }

    #[test]
    fn lists_are_told_apart() {
        let one = Captions::new(vec![caption("1", "a b")]);
        assert_eq!(one, Captions::new(vec![caption("1", "a b")]));
        for other in [vec![caption("1", "a")], vec![caption("1a", " b")], vec![caption("1", "a b"), caption("2", "")]] {
            assert_ne!(one.sha256, Captions::new(other).sha256);
        }
    }
}
