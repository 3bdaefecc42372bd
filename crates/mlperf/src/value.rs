//! Values of log lines: JSON as Python reads and writes it.
//!
//! Python's `json` has `NaN`, `Infinity` and `-Infinity`, which a run that diverged does log, and whole numbers of any size, which
//! seeds are. Comparisons are Python's, too, for the official checkers are Python: `true` counts as 1.

use std::fmt::{self, Write as _};

/// A value of a log line.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without point and exponent.
    Whole(i128),
    /// Any other number, also NaN and the infinities.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// Names and values. Written in their order; read in that of the file or of the names.
    Object(Vec<(String, Value)>),
}

/// What stands for NaN in front of the JSON reader: a text that no log holds.
const STAND_IN: char = '\u{0}';

/// Python's words for what JSON does not have; the longer one first.
const WORDS: [(&str, f64); 3] = [("-Infinity", f64::NEG_INFINITY), ("Infinity", f64::INFINITY), ("NaN", f64::NAN)];

impl Value {
    /// Reads JSON, with what Python adds to it.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = serde_json::from_str(text).or_else(|error| match standard(text) {
            Some(standard) => serde_json::from_str(&standard),
            None => Err(error),
        });
        found.map(Self::of_json).map_err(|error| calotype_core::words::plain(&error.to_string()))
    }

    fn of_json(value: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match value {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => match number.as_i128() {
                Some(whole) => Self::Whole(whole),
                None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::of_text(text),
            Json::Array(items) => Self::List(items.into_iter().map(Self::of_json).collect()),
            Json::Object(fields) => {
                Self::Object(fields.into_iter().map(|(name, value)| (name, Self::of_json(value))).collect())
            }
        }
    }

    fn of_text(text: String) -> Self {
        let word = text.strip_prefix(STAND_IN).and_then(|word| WORDS.iter().find(|(name, _)| *name == word));
        word.map_or(Self::Text(text), |(_, number)| Self::Float(*number))
    }

    /// As a number; `true` is 1 and `false` 0, as for Python.
    pub fn number(&self) -> Option<f64> {
        match *self {
            Self::Bool(value) => Some(f64::from(u8::from(value))),
            Self::Whole(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            _ => None,
        }
    }

    /// As a whole number that says how many.
    pub fn count(&self) -> Option<u64> {
        match *self {
            Self::Whole(value) => u64::try_from(value).ok(),
            Self::Float(value) if value >= 0.0 && value < u64::MAX as f64 && value.fract() == 0.0 => Some(value as u64),
            _ => None,
        }
    }

    /// As a text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Python's `bool(value)`.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Object(fields) => !fields.is_empty(),
            other => other.number().is_some_and(|number| number != 0.0),
        }
    }

    /// A field of an object.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(fields) => fields.iter().find(|(field, _)| field == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Python's `name in value`; `None` where Python has no answer.
    pub(crate) fn holds(&self, name: &str) -> Option<bool> {
        match self {
            Self::Object(_) => Some(self.get(name).is_some()),
            Self::List(items) => Some(items.iter().any(|item| item.text() == Some(name))),
            Self::Text(text) => Some(text.contains(name)),
            _ => None,
        }
    }

    /// Python's `==`: numbers by their value.
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::List(a), Self::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b)),
            (Self::Object(a), Self::Object(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(name, value)| other.get(name).is_some_and(|found| value.same(found)))
            }
            (Self::Null, Self::Null) => true,
            _ => self.number().zip(other.number()).is_some_and(|(a, b)| a == b),
        }
    }
}

/// The text with Python's words replaced by what JSON has; `None` if there are none.
fn standard(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 16);
    let (mut in_string, mut changed) = (false, false);
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let word = WORDS.iter().map(|(word, _)| *word).find(|word| !in_string && is_word(rest, word));
        let length = match (word, next) {
            (Some(word), _) => {
                changed = true;
                // The stand-in, escaped, for JSON has no control characters in texts.
                let _ = write!(out, "\"\\u0000{word}\"");
                rest = &rest[word.len()..];
                continue;
            }
            (None, '\\') if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, '"') => {
                in_string = !in_string;
                1
            }
            (None, other) => other.len_utf8(),
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    changed.then_some(out)
}

fn is_word(text: &str, word: &str) -> bool {
    let behind = text.strip_prefix(word).map(|behind| behind.chars().next());
    behind.is_some_and(|next| !next.is_some_and(char::is_alphanumeric))
}

impl fmt::Display for Value {
    /// As Python's `json.dumps` writes it: blanks behind commas and colons, nothing but ASCII.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Whole(value) => write!(f, "{value}"),
            Self::Float(value) if value.is_nan() => f.write_str("NaN"),
            Self::Float(value) if value.is_infinite() => {
                f.write_str(if *value > 0.0 { "Infinity" } else { "-Infinity" })
            }
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Text(text) => write_text(f, text),
            Self::List(items) => {
                f.write_char('[')?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
                }
                f.write_char(']')
            }
            Self::Object(fields) => {
                f.write_char('{')?;
                for (index, (name, value)) in fields.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    write_text(f, name)?;
                    write!(f, ": {value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

/// Readers of logs take bytes for Latin-1 letters, so everything but ASCII is escaped.
fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let quoted = serde_json::Value::from(text).to_string();
    for character in quoted.chars() {
        if character.is_ascii() {
            f.write_char(character)?;
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(f, "\\u{unit:04x}")?;
        }
    }
    Ok(())
}

macro_rules! from {
    ($($from:ty => $value:ident as $to:ty,)+) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$value(<$to>::from(value))
            }
        })+
    };
}

from! {
    bool => Bool as bool,
    u64 => Whole as i128,
    i64 => Whole as i128,
    f64 => Float as f64,
    &str => Text as String,
    String => Text as String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_writes_is_read_and_written_alike() {
        // Python 3.11's json.dumps of the values in the middle.
        for (text, value) in [
            ("null", Value::Null),
            ("true", Value::Bool(true)),
            ("-3", Value::Whole(-3)),
            ("18446744073709551615", Value::Whole(i128::from(u64::MAX))),
            ("0.999", Value::Float(0.999)),
            ("Infinity", Value::Float(f64::INFINITY)),
            ("-Infinity", Value::Float(f64::NEG_INFINITY)),
            (r#""caf\u00e9 \ud83d\udc31 \"NaN\" \\""#, Value::from("café 🐱 \"NaN\" \\")),
            (
                r#"{"a": [1, 2.5, -Infinity], "b": {}, "NaN": []}"#,
                Value::Object(vec![
                    (
                        "a".to_owned(),
                        Value::List(vec![Value::Whole(1), Value::Float(2.5), Value::Float(f64::NEG_INFINITY)]),
                    ),
                    ("b".to_owned(), Value::Object(vec![])),
                    ("NaN".to_owned(), Value::List(vec![])),
                ]),
            ),
        ] {
            let read = Value::parse(text).unwrap();
            assert!(read.same(&value), "{text}: {read:?}");
            assert_eq!(value.to_string(), text);
        }
        assert!(matches!(Value::parse(" NaN "), Ok(Value::Float(number)) if number.is_nan()));
        assert_eq!(Value::Float(f64::NAN).to_string(), "NaN");
        assert_eq!(Value::parse("[1e-08]").unwrap().to_string(), "[1e-8]");
    }

    #[test]
    fn other_text_is_refused_in_words() {
        for text in ["", "nan", "NaNa", "Infinity0", "[NaN", "{\"a\": NaN,}", "\"\\", "'a'", "01", "1 2", "\u{feff}1"] {
            let words = Value::parse(text).unwrap_err();
            assert!(words.contains("column"), "{text}: {words}");
        }
    }

    #[test]
    fn comparisons_are_pythons() {
        let parse = |text: &str| Value::parse(text).unwrap();
        for (a, b, same) in [
            ("1", "1.0", true),
            ("true", "1", true),
            ("1", "\"1\"", false),
            ("[1, {\"a\": 2}]", "[1.0, {\"a\": 2}]", true),
            ("NaN", "NaN", false),
            ("null", "null", true),
            ("9007199254740993", "9007199254740992", false),
        ] {
            assert_eq!(parse(a).same(&parse(b)), same, "{a} {b}");
        }
        assert_eq!(parse("{\"status\": 1}").holds("status"), Some(true));
        assert_eq!(parse("\"my status\"").holds("status"), Some(true));
        assert_eq!(parse("[\"stat\"]").holds("status"), Some(false));
        assert_eq!(parse("3").holds("status"), None);
        assert_eq!((parse("512000.0").count(), parse("-1").count(), parse("1.5").count()), (Some(512_000), None, None));
    }
}
