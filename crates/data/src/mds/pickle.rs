//! Pickled values (encoding `pkl`) as JSON text, read as data: nothing in them is executed.

use calotype_weights::pickle::{self, Kind, ReadOptions, Value};
use serde_json::{Map, Number, Value as Json};

/// Deepest nesting that is followed: a pickled value may contain itself.
const DEPTH: usize = 64;

/// The pickled value as JSON: None, truth values, numbers, texts, lists, tuples, sets, and dictionaries by text.
pub(super) fn decode(source: &[u8]) -> Result<Vec<u8>, String> {
    let pickle = pickle::read(source, ReadOptions::default(), pickle::memory_limit(source.len()))
        .map_err(|e| format!("pickle {e}"))?;
    // A few shared values can stand for exponentially many: no more come out than the source has bytes.
    let mut left = source.len();
    let json = to_json(pickle.root(source), DEPTH, &mut left)?;
    serde_json::to_vec(&json).map_err(|e| e.to_string())
}

fn to_json(value: Value<'_>, depth: usize, left: &mut usize) -> Result<Json, String> {
    let text_length = |text: &str| text.len() / 8;
    let cost = 1 + value.as_str().map_or(0, text_length);
    *left = left.checked_sub(cost).ok_or("pickle: its values refer to each other too often for JSON")?;
    let depth = depth.checked_sub(1).ok_or("pickle: its values are nested too deeply for JSON")?;
    Ok(match value.kind() {
        Kind::None => Json::Null,
        Kind::Bool(value) => value.into(),
        Kind::Int(value) => value.into(),
        Kind::Float(value) => {
            Number::from_f64(value).ok_or_else(|| format!("pickle: {value} has no JSON form"))?.into()
        }
        Kind::Text(text) => text.into(),
        Kind::List | Kind::Tuple | Kind::Set => {
            value.items().map(|item| to_json(item, depth, left)).collect::<Result<_, _>>()?
        }
        Kind::Dict => {
            let pair = |(key, value): (Value<'_>, Value<'_>)| {
                let key = key.as_str().ok_or("pickle: a dictionary's key is no text")?.to_owned();
                Ok((key, to_json(value, depth, left)?))
            };
            Json::Object(value.pairs().map(pair).collect::<Result<Map<_, _>, String>>()?)
        }
        other => return Err(format!("pickle: {other:?} has no JSON form; store such columns as ndarray or bytes")),
    })
}
