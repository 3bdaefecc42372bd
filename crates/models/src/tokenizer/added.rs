//! Tokens that were added to a vocabulary: found in a prompt before it is cut into words, as the library `tokenizers` does.

use super::{TokenizerError, TokenizerTexts, cleaning, parse_json};
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

/// A token that was added, and how it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddedToken {
    /// The text; if it is normalised, as cleaning leaves it.
    content: String,
    /// Its ids: one, or the vectors of a learned word.
    pub ids: Vec<i32>,
    /// True if it is looked for in the cleaned prompt, else in the prompt as it is.
    pub normalized: bool,
    /// Only where no letter or digit stands next to it.
    single_word: bool,
    /// White space before it belongs to it.
    lstrip: bool,
    /// White space behind it belongs to it.
    rstrip: bool,
}

impl AddedToken {
    /// One that is found wherever it stands, in the prompt as it is.
    pub(super) fn special(content: &str, id: i32) -> Self {
        let [normalized, single_word, lstrip, rstrip] = [false; 4];
        Self { content: content.into(), ids: vec![id], normalized, single_word, lstrip, rstrip }
    }

    /// A word of several ids, as `add_tokens` of transformers adds a text: found in the cleaned prompt.
    pub(super) fn word(content: &str, ids: Vec<i32>) -> Self {
        let [single_word, lstrip, rstrip] = [false; 3];
        Self { content: cleaning::transformers(content), ids, normalized: true, single_word, lstrip, rstrip }
    }

    /// True if it is this text.
    pub(super) fn is(&self, content: &str) -> bool {
        self.content == content || self.normalized && self.content == cleaning::transformers(content)
    }

    /// From its description in `tokenizer.json` or `tokenizer_config.json`; none without content.
    fn described(value: &Value, id: i32) -> Option<Self> {
        let content = value.get("content")?.as_str()?;
        let flag = |name: &str| value.get(name).and_then(Value::as_bool);
        let normalized = flag("normalized").unwrap_or(flag("special") != Some(true));
        let token = if normalized { Self::word(content, vec![id]) } else { Self::special(content, id) };
        let flag = |name: &str| flag(name) == Some(true);
        Some(Self { single_word: flag("single_word"), lstrip: flag("lstrip"), rstrip: flag("rstrip"), ..token })
    }
}

/// All added tokens in a tokenizer's files: those that the settings list, those of `tokenizer.json`, and of
/// `added_tokens.json`, which older versions wrote. What is named first counts.
pub(super) fn read(texts: &TokenizerTexts<'_>) -> Result<Vec<AddedToken>, TokenizerError> {
    let mut tokens: Vec<AddedToken> = Vec::new();
    let mut add = |path: &Path, content: &Value, id: Option<i64>, token: Option<AddedToken>| {
        let bad = |problem: &str| TokenizerError::AddedToken {
            path: path.into(),
            token: content.to_string(),
            problem: problem.into(),
        };
        let id = id.and_then(|id| i32::try_from(id).ok()).filter(|id| *id >= 0);
        let Some(mut token) = token else { return Err(bad("has no text")) };
        token.ids = vec![id.ok_or_else(|| bad("has no id that is a number from 0 on"))?];
        if token.content.is_empty() {
            return Err(bad("is empty"));
        }
        if tokens.iter().all(|known| known.content != token.content) {
            tokens.push(token);
        }
        Ok(())
    };
    let json = |name: &str, text: Option<&str>| {
        let path = texts.folder.join(name);
        let value = text.map(|text| parse_json::<Value>(&path, text)).transpose()?.unwrap_or(Value::Null);
        Ok((path, value))
    };
    let (path, config) = json(super::CONFIG, texts.config)?;
    for (id, value) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        add(&path, value, id.parse().ok(), AddedToken::described(value, 0))?;
    }
    let (path, tokenizer) = json("tokenizer.json", texts.tokenizer)?;
    for value in tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        add(&path, value, value.get("id").and_then(Value::as_i64), AddedToken::described(value, 0))?;
    }
    let (path, list) = json("added_tokens.json", texts.added_tokens)?;
    for (content, id) in list.as_object().into_iter().flatten() {
        add(&path, &content.as_str().into(), id.as_i64(), Some(AddedToken::word(content, Vec::new())))?;
    }
    Ok(tokens)
}

/// Where a text holds added tokens: ranges with the token's number, or none for what lies between.
pub(super) fn split(text: &str, tokens: &[AddedToken], normalized: bool) -> Vec<(Range<usize>, Option<usize>)> {
    let wanted: Vec<usize> = (0..tokens.len()).filter(|&at| tokens[at].normalized == normalized).collect();
    let mut parts = Vec::new();
    let (mut from, mut at) = (0, 0);
    while at < text.len() && !wanted.is_empty() {
        // The longest that begins here.
        let here = wanted.iter().copied().filter(|&token| text[at..].starts_with(&tokens[token].content));
        let found = here.max_by_key(|&token| tokens[token].content.len());
        let step = text[at..].chars().next().map_or(1, char::len_utf8);
        let Some(found) = found else {
            at += step;
            continue;
        };
        let token = &tokens[found];
        let end = at + token.content.len();
        if token.single_word && (ends_with_word(&text[..at]) || starts_with_word(&text[end..])) {
            at = end;
            continue;
        }
        let start = if token.lstrip { from + text[from..at].trim_end().len() } else { at };
        let stop = if token.rstrip { text.len() - text[end..].trim_start().len() } else { end };
        if start > from {
            parts.push((from..start, None));
        }
        parts.push((start..stop, Some(found)));
        (from, at) = (stop, stop);
    }
    if from < text.len() {
        parts.push((from..text.len(), None));
    }
    parts
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn ends_with_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word)
}
