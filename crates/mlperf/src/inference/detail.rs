//! LoadGen's detail log: a line `:::MLLOG {…}` for each setting, event and result.

use crate::log::{ReadError, shortened};
use crate::value::Value;
use std::io;
use std::path::{Path, PathBuf};

/// What a line begins with. LoadGen's readers ask for no blank behind it.
const MARK: &str = ":::MLLOG";
/// How many errors LoadGen met, as it says itself.
pub(crate) const COUNTED: &str = "num_errors";

/// A line of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The file's line, from 1.
    pub line: usize,
    /// What it is about.
    pub key: String,
    /// Its value; `null` where it has none.
    pub value: Value,
    /// Whether LoadGen calls it an error; none where the line does not say.
    pub is_error: Option<bool>,
}

/// A detail log.
#[derive(Clone, Debug, PartialEq)]
pub struct Detail {
    /// Its file.
    pub path: PathBuf,
    /// Its lines, in their order.
    pub messages: Vec<Message>,
    /// The first line that a reader breaks off at, from 1, and what is wrong with it.
    pub fault: Option<(usize, String)>,
    /// Whether the first line is one of LoadGen's, as the readers since v6.0 want it.
    pub begins_marked: bool,
}

impl Detail {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ReadError`], also for a file that is no UTF-8. Lines that are not as they should be are no error: [`Detail::fault`].
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError { file: path.to_owned(), source };
        if calotype_core::is_special(path) {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
        }
        Ok(Self::parse(path, &std::fs::read_to_string(path).map_err(failed)?))
    }

    /// Reads a file's content.
    ///
    /// ```
    /// use calotype_mlperf::inference::Detail;
    /// let line = r#":::MLLOG {"key": "effective_min_duration_ms", "value": 600000, "metadata": {"is_error": false}}"#;
    /// let detail = Detail::parse("mlperf_log_detail.txt".as_ref(), line);
    /// assert_eq!(detail.number("effective_min_duration_ms"), Some(600_000.0));
    /// ```
    pub fn parse(path: &Path, content: &str) -> Self {
        let mut found = Self { path: path.to_owned(), messages: Vec::new(), fault: None, begins_marked: true };
        for (index, line) in content.lines().enumerate() {
            match line.trim_end().strip_prefix(MARK) {
                Some(text) => match message(index + 1, text) {
                    Ok(message) => found.messages.push(message),
                    Err(problem) => {
                        found.fault.get_or_insert((index + 1, problem));
                    }
                },
                None => found.begins_marked &= index > 0,
            }
        }
        found
    }

    /// The value of a key's first line.
    pub fn first(&self, key: &str) -> Option<&Value> {
        self.message(key).map(|message| &message.value)
    }

    /// The first line of a key.
    pub fn message(&self, key: &str) -> Option<&Message> {
        self.messages.iter().find(|message| message.key == key)
    }

    /// The first value of a key as a number.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.first(key)?.number()
    }

    /// The first value of a key as a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.first(key)?.text()
    }

    /// Lines that LoadGen calls errors.
    pub fn errors(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(|message| message.is_error == Some(true))
    }

    /// How many errors the readers up to v5.1 count: what LoadGen itself says, which it does at the end of performance runs, and else the
    /// lines that it calls errors.
    pub(crate) fn counted_errors(&self) -> f64 {
        self.first(COUNTED).map_or(self.errors().count() as f64, |counted| counted.number().unwrap_or(1.0))
    }

    /// The line of a key, from 1, where there is one.
    pub(crate) fn line(&self, key: &str) -> Option<usize> {
        self.message(key).map(|message| message.line)
    }
}

fn message(line: usize, text: &str) -> Result<Message, String> {
    let value = Value::parse(text.trim()).map_err(|reason| format!("`{}` is not JSON: {reason}", shortened(text)))?;
    let field =
        |name: &str| value.get(name).cloned().ok_or_else(|| format!("`{name}` is missing in {}", shortened(text)));
    let key = match field("key")? {
        Value::Text(key) => key,
        other => return Err(format!("`key` is {other}, where a text is needed")),
    };
    let is_error = value.get("metadata").and_then(|metadata| metadata.get("is_error")).map(Value::is_true);
    Ok(Message { line, key, value: field("value").unwrap_or(Value::Null), is_error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_line_is_named() {
        for (line, part) in [
            (":::MLLOG", "is not JSON"),
            (":::MLLOG {", "is not JSON"),
            (":::MLLOG []", "`key` is missing"),
            (":::MLLOG {\"value\": 1}", "`key` is missing"),
            (":::MLLOG {\"key\": 1, \"value\": 1}", "a text is needed"),
            (":::MLLOG {\"key\": \"a\", \"value\": 1} x", "is not JSON"),
        ] {
            let found =
                Detail::parse(Path::new("a.txt"), &format!(":::MLLOG {{\"key\": \"b\", \"value\": 2}}\n{line}\n"));
            let (number, problem) = found.fault.clone().unwrap();
            assert!(number == 2 && problem.contains(part), "{line}: {problem}");
            assert_eq!((found.messages.len(), found.begins_marked), (1, true));
        }
        let other = Detail::parse(Path::new("a.txt"), "text\n:::MLLOG {\"key\": \"b\", \"value\": NaN}\r\n");
        assert!(!other.begins_marked && other.fault.is_none() && other.number("b").unwrap().is_nan());
        assert_eq!(other.messages[0].is_error, None);
        assert!(Detail::parse(Path::new("a.txt"), "").begins_marked);
    }
}
