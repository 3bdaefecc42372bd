//! The caption of a sample among several, and rows as parts of samples.

use calotype_core::{Purpose, Stream};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::metadata::{as_text, kind_of};
use super::{CAPTION_COLUMNS, LABEL_COLUMNS, SourceOptions};
use crate::Sample;

/// The caption that a sample gets where a table has several for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptionChoice {
    /// The first.
    #[default]
    First,
    /// Any, by the seed and the row's number.
    Random {
        /// The seed.
        seed: u64,
    },
}

impl CaptionChoice {
    /// One of `captions`, for row `row` of its table; none is the empty text.
    pub fn of(self, mut captions: Vec<String>, row: u64) -> String {
        match (self, captions.len()) {
            (_, 0) => String::new(),
            (CaptionChoice::First, _) => captions.swap_remove(0),
            (CaptionChoice::Random { seed }, count) => {
                let chosen = Stream::new(seed, Purpose::CaptionChoice, row).below(count as u64);
                captions.swap_remove(chosen as usize)
            }
        }
    }
}

/// Treatment of a table's columns.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    caption: Option<String>,
    choice: CaptionChoice,
}

impl Columns {
    pub fn new(options: &SourceOptions) -> Self {
        Columns { caption: options.caption_column.clone(), choice: options.captions }
    }

    /// The caption column that was asked for.
    pub fn caption(&self) -> Option<&String> {
        self.caption.as_ref()
    }

    /// Adds the fields of row `row` to a sample: caption, label, and the rest as JSON. Of several captions one becomes the
    /// caption, and all stay in the JSON.
    ///
    /// # Errors
    /// In words, for a caption or label that is no text.
    pub fn add(&self, mut sample: Sample, mut fields: Map<String, Value>, row: u64) -> Result<Sample, String> {
        let caption = match &self.caption {
            Some(column) => Some(column.as_str()),
            None => CAPTION_COLUMNS.into_iter().find(|column| fields.contains_key(*column)),
        };
        if let Some((column, value)) = caption.and_then(|column| fields.remove_entry(column)) {
            let of_column = |fault: String| format!("column `{column}` {fault}");
            let text = match &value {
                Value::Array(items) => Some(self.choice.of(texts(items).map_err(of_column)?, row)),
                single => as_text(single).map_err(of_column)?,
            };
            if let Some(text) = text {
                sample = sample.with("txt", text);
            }
            if value.as_array().is_some_and(|items| items.len() > 1) {
                fields.insert(column, value);
            }
        }
        // Labels that are no single one stay in the JSON.
        let is_one = |column: &&str| fields.get(*column).is_some_and(|value| as_text(value).is_ok());
        let label = LABEL_COLUMNS.into_iter().find(is_one);
        if let Some(Ok(Some(text))) = label.and_then(|column| fields.remove(column)).map(|value| as_text(&value)) {
            sample = sample.with("cls", text);
        }
        Ok(match fields.is_empty() {
            true => sample,
            false => sample.with("json", Value::Object(fields).to_string()),
        })
    }
}

/// The captions of a list, nulls left out.
fn texts(items: &[Value]) -> Result<Vec<String>, String> {
    let text = |item: &Value| as_text(item).map_err(|_| format!("is a list with {}, not of texts", kind_of(item)));
    items.iter().filter_map(|item| text(item).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parts(choice: CaptionChoice, fields: Value, row: u64) -> Result<Sample, String> {
        let columns = Columns { caption: None, choice };
        columns.add(Sample::new("k"), fields.as_object().unwrap().clone(), row)
    }

    #[test]
    fn one_of_several_captions_is_taken_and_all_are_kept() {
        let first = |captions: Value| parts(CaptionChoice::First, json!({ "text": captions, "n": 1 }), 0);
        for (captions, text, kept) in [
            (json!("a"), Some("a"), json!({"n": 1})),
            (json!([]), Some(""), json!({"n": 1})),
            (json!(["a"]), Some("a"), json!({"n": 1})),
            (json!(["a", "b"]), Some("a"), json!({"n": 1, "text": ["a", "b"]})),
            (json!([null, "b"]), Some("b"), json!({"n": 1, "text": [null, "b"]})),
            (json!(7), Some("7"), json!({"n": 1})),
            (json!(null), None, json!({"n": 1})),
        ] {
            let sample = first(captions.clone()).unwrap();
            assert_eq!(sample.text("txt").ok(), text, "{captions}");
            assert_eq!(serde_json::from_str::<Value>(sample.text("json").unwrap()).unwrap(), kept);
        }
        let labels = parts(CaptionChoice::First, json!({ "label": [1, 2], "cls": 3 }), 0).unwrap();
        assert_eq!((labels.text("cls").unwrap(), labels.text("json").unwrap()), ("3", r#"{"label":[1,2]}"#));
        for (captions, part) in [(json!({}), "`text` is an object"), (json!([["a"]]), "a list with a list")] {
            assert!(first(captions).unwrap_err().contains(part));
        }
    }

    #[test]
    fn random_captions_depend_on_seed_and_row_alone() {
        let captions = json!({ "captions": ["a", "b", "c"] });
        let of = |seed, row| {
            let sample = parts(CaptionChoice::Random { seed }, captions.clone(), row).unwrap();
            sample.text("txt").unwrap().to_owned()
        };
        let all = |seed| (0..300).map(|row| of(seed, row)).collect::<Vec<_>>();
        let (one, other) = (all(1), all(2));
        assert_eq!(one, all(1));
        assert_ne!(one, other);
        for caption in ["a", "b", "c"] {
            let count = one.iter().filter(|found| *found == caption).count();
            assert!((70..130).contains(&count), "{caption}: {count}");
        }
    }
}
