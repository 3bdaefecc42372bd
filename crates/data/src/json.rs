//! JSON as Python writes it.
//!
//! Python's `json` writes `NaN`, `Infinity` and `-Infinity`, which JSON does not have, and halves of surrogate pairs; pandas
//! and datasets in use hold both. Here the former are null, and so are numbers beyond the range of `f64`, which Python reads
//! as infinities (`1e400`); the latter become the mark for what is no character (U+FFFD): a row is not lost for a number or
//! letter that nobody asks for. A byte order mark in front is passed over.

use serde::de::IgnoredAny;
use serde_json::Value;

/// Reads a JSON text of any kind.
///
/// # Errors
/// What is wrong with a text that is not JSON, by its line and column.
pub fn from_slice(text: &[u8]) -> Result<Value, serde_json::Error> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    // Text of other programs, which is most, is read once.
    serde_json::from_slice(text).or_else(|error| match plain(text) {
        Some(plain) => serde_json::from_slice(&plain),
        None => Err(error),
    })
}

/// Checks that a text is JSON, as [`from_slice`] reads it, whatever the size of its numbers.
///
/// # Errors
/// As [`from_slice`].
pub fn check(text: &[u8]) -> Result<(), serde_json::Error> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    serde_json::from_slice::<IgnoredAny>(text).or_else(|error| match plain(text) {
        Some(plain) => serde_json::from_slice::<IgnoredAny>(&plain),
        None => Err(error),
    })?;
    Ok(())
}

/// The words that Python writes for numbers that JSON does not have; the longer one first.
const NUMBERS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// The text with what Python alone writes replaced; `None` if there is nothing of that.
fn plain(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut changed = false;
    let mut in_string = false;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let (length, instead): (usize, Option<&[u8]>) = match (in_string, rest[0]) {
            (true, b'\\') => escape(rest),
            (_, b'"') => {
                in_string = !in_string;
                (1, None)
            }
            (false, b'N' | b'I' | b'-' | b'0'..=b'9') => match NUMBERS.iter().find(|word| is_word(rest, word)) {
                Some(word) => (word.len(), Some(b"null")),
                None => number(rest),
            },
            _ => (1, None),
        };
        changed |= instead.is_some();
        out.extend_from_slice(instead.unwrap_or(&rest[..length]));
        at += length;
    }
    changed.then_some(out)
}

/// Length of the number that `text` may begin with (1 at least), and what stands for it if it is beyond `f64`.
fn number(text: &[u8]) -> (usize, Option<&'static [u8]>) {
    let is_of_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let length = text.iter().take_while(|byte| is_of_number(byte)).count().max(1);
    let number = &text[..length];
    // What is no number of JSON stays as it is, for the reader to refuse.
    let is_json = serde_json::from_slice::<IgnoredAny>(number).is_ok();
    let value = std::str::from_utf8(number).ok().and_then(|number| number.parse::<f64>().ok());
    let is_beyond = is_json && value.is_some_and(f64::is_infinite);
    (length, is_beyond.then_some(b"null"))
}

fn is_word(text: &[u8], word: &[u8]) -> bool {
    text.starts_with(word) && !text.get(word.len()).is_some_and(u8::is_ascii_alphanumeric)
}

/// Length of the escape that `text` begins with, and what stands for it if it is half of a surrogate pair.
fn escape(text: &[u8]) -> (usize, Option<&'static [u8]>) {
    let unit = |text: &[u8]| -> Option<u16> {
        let digits = text.strip_prefix(b"\\u")?.get(..4)?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    match unit(text) {
        Some(0xd800..=0xdbff) if matches!(unit(&text[6..]), Some(0xdc00..=0xdfff)) => (12, None),
        Some(0xd800..=0xdfff) => (6, Some(b"\\ufffd")),
        _ => (text.len().min(2), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_writes_is_read() {
        // Written by Python 3.11: json.dumps(...), ensure_ascii for the surrogates.
        for (text, expected) in [
            (r#"{"a": NaN, "b": [Infinity, -Infinity], "c": -1}"#, r#"{"a": null, "b": [null, null], "c": -1}"#),
            (r#"{"NaN": "Infinity \" NaN", "x": NaN}"#, r#"{"NaN": "Infinity \" NaN", "x": null}"#),
            (
                r#"["broken \ud83d emoji", "\udc00", "\ud83d\ude00", "\\ud83d"]"#,
                "[\"broken \u{fffd} emoji\", \"\u{fffd}\", \"😀\", \"\\\\ud83d\"]",
            ),
            ("\u{feff}{\"a\": 1}", r#"{"a": 1}"#),
            ("NaN", "null"),
            (
                r#"{"a": 1e400, "b": [-1E+400, 1.5e3], "c": "1e400", "d": 0e999}"#,
                r#"{"a": null, "b": [null, 1500.0], "c": "1e400", "d": 0.0}"#,
            ),
        ] {
            let expected: Value = serde_json::from_str(expected).unwrap();
            assert_eq!(from_slice(text.as_bytes()).unwrap(), expected, "{text}");
            check(text.as_bytes()).unwrap();
        }
        check("1".repeat(999).as_bytes()).unwrap();
        assert_eq!(from_slice(format!("[{}, -1]", "1".repeat(999)).as_bytes()).unwrap(), serde_json::json!([null, -1]));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            "{",
            "Nan",
            "NaNs",
            "-Infinit",
            "{\"a\": NaN",
            "{NaN: 1}",
            "\"\\ud83d",
            "\"\\u12",
            "\"\\",
            "nan",
            "+Infinity",
            "[NaN NaN]",
            "01e400",
            "[1e400 1]",
            "1e400x",
            "-1e",
        ] {
            assert!(from_slice(text.as_bytes()).is_err() && check(text.as_bytes()).is_err(), "{text}");
        }
    }
}
