//! The captions of a library of samples, by `qsl_idx`.

use super::error::{AccuracyError, Result};
use calotype_core::{Quotes, read_text};
use calotype_evaluate::sweep::parse_lines;
use std::path::Path;

/// The column of the captions, in the reference's `captions_source.tsv` and what `calotype data coco` writes.
const COLUMN: &str = "caption";

/// The captions of a table with tabs between its columns (`.tsv`, column `caption`), or of a text file with one on each line that is
/// not empty. Row `n` is that of `qsl_idx` `n`, word for word: blanks at its ends stay, as they do in pandas.
///
/// # Errors
/// [`AccuracyError::Evaluate`], which names file and line.
pub fn read(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path).map_err(AccuracyError::io("read", path))?;
    let captions = match path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt")) {
        true => parse_lines(&text).into_iter().map(|caption| caption.text).collect(),
        false => parse_table(&text).map_err(|problem| AccuracyError::file(path, problem))?,
    };
    match captions.is_empty() {
        true => Err(AccuracyError::file(path, "no captions in it; give the table that the run drew")),
        false => Ok(captions),
    }
}

fn parse_table(text: &str) -> std::result::Result<Vec<String>, String> {
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_reader(Quotes::new(text.as_bytes(), Some(b'\t')));
    let header = reader.headers().map_err(|error| error.to_string())?;
    let Some(column) = header.iter().position(|name| name == COLUMN) else {
        let known = header.iter().collect::<Vec<_>>().join(", ");
        return Err(format!(
            "line 1: there is no column `{COLUMN}`, only {known}; give a table as `calotype data coco` writes it"
        ));
    };
    let caption = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(|error| match error.is_io_error() {
            true => error.to_string(),
            false => format!("{error}; give a table with tabs between its columns"),
        })?;
        match record.get(column) {
            Some(caption) if !caption.trim().is_empty() => Ok(caption.to_owned()),
            _ => {
                let line = record.position().map_or(0, csv::Position::line);
                Err(format!("line {line}: the caption is empty, and a picture is compared with it"))
            }
        }
    };
    reader.records().map(caption).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_those_of_pandas() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("captions.tsv");
        // pandas 3.1.1, to_csv(sep="\t", index=False), and what read_csv(sep="\t") makes of it.
        std::fs::write(
            &table,
            "id\tcaption\tfile_name\n7\ta red kite \tx.jpg\n8\t\"two \"\"fast\"\" dogs\n\"\ty.jpg\n",
        )
        .unwrap();
        assert_eq!(read(&table).unwrap(), ["a red kite ", "two \"fast\" dogs\n"]);
        let lines = folder.path().join("captions.txt");
        std::fs::write(&lines, "\u{feff}a cat\n\na dog\n").unwrap();
        assert_eq!(read(&lines).unwrap(), ["a cat", "a dog"]);
        for (text, problem) in [
            ("", "no column `caption`"),
            ("id\ttext\n1\ta\n", "line 1: there is no column `caption`, only id, text"),
            ("id\tcaption\n", "no captions in it"),
            ("id\tcaption\n1\ta\n2\t \n", "line 3: the caption is empty"),
            ("id\tcaption\n1\ta\tb\n", "line: 2"),
            ("id\tcaption\n1\t\"a\n2\tb\n", "a quote that opens in line 2 is left open"),
        ] {
            std::fs::write(&table, text).unwrap();
            let error = read(&table).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("captions.tsv"), "{text:?}: {error}");
        }
        assert!(read(&folder.path().join("none.tsv")).unwrap_err().to_string().contains("none.tsv"));
    }
}
