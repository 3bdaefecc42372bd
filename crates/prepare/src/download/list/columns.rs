//! Types of text columns, and their cells as arrays.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, NullArray, RecordBatch, StringArray};
use arrow_schema::{Field, Schema};
use serde::Serialize;
use serde_json::Value;

use super::text::TextRows;
use super::{Holds, ListError, ListFormat, Result, Wanted};

/// Texts that stand for nothing in a csv column of numbers, as pyarrow reads it.
const NULLS: [&str; 17] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "N/A", "NA", "NULL",
    "NaN", "n/a", "nan", "null",
];

/// Type of a text column: the narrowest that holds all its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Kind {
    /// No cell holds anything.
    Null,
    Bool,
    Int,
    Float,
    Text,
    /// Lists of texts; a single value among them is a list of one.
    Texts,
}

impl Kind {
    /// The kind that holds both, if there is one.
    fn join(self, other: Kind) -> Option<Kind> {
        match (self, other) {
            (a, b) if a == b => Some(a),
            (Kind::Null, kind) | (kind, Kind::Null) => Some(kind),
            (Kind::Texts, _) | (_, Kind::Texts) => Some(Kind::Texts),
            (Kind::Int, Kind::Float) | (Kind::Float, Kind::Int) => Some(Kind::Float),
            _ => None,
        }
    }
}

/// Reads all rows for the types of their columns and their number.
pub(super) fn survey(rows: &mut TextRows, wanted: &[Wanted], format: ListFormat) -> Result<(Vec<Kind>, usize)> {
    let mut kinds: Vec<Kind> = wanted.iter().map(|_| Kind::Null).collect();
    let mut count = 0;
    while let Some(cells) = rows.next_row()? {
        count += 1;
        for ((kind, cell), wanted) in kinds.iter_mut().zip(&cells).zip(wanted) {
            let found = match format {
                ListFormat::Jsonl if wanted.holds == Holds::Caption && cell.is_array() => Kind::Texts,
                ListFormat::Jsonl => json_kind(cell),
                // What is not sure to be a number stays text. The first cell of a text column settles it.
                _ if wanted.holds != Holds::Anything || *kind == Kind::Text => Kind::Text,
                _ => csv_kind(cell.as_str().unwrap_or_default()),
            };
            // Values of several kinds are kept as text.
            *kind = kind.join(found).unwrap_or(Kind::Text);
        }
    }
    Ok((kinds, count))
}

fn csv_kind(cell: &str) -> Kind {
    let cell = cell.trim();
    if NULLS.contains(&cell) {
        return Kind::Null;
    }
    if cell.parse::<i64>().is_ok() {
        return Kind::Int;
    }
    if csv_bool(cell).is_some() {
        return Kind::Bool;
    }
    if cell.parse::<f64>().is_ok() { Kind::Float } else { Kind::Text }
}

fn csv_bool(cell: &str) -> Option<bool> {
    match cell {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Lists and objects are kept as JSON text, unless they are captions.
fn json_kind(cell: &Value) -> Kind {
    match cell {
        Value::Null => Kind::Null,
        Value::Bool(_) => Kind::Bool,
        Value::Number(number) if number.is_i64() => Kind::Int,
        Value::Number(_) => Kind::Float,
        Value::String(_) | Value::Array(_) | Value::Object(_) => Kind::Text,
    }
}

/// The next rows, `count` at most, as arrays of the surveyed kinds.
pub(super) fn batch(
    path: &Path,
    rows: &mut TextRows,
    kinds: &[Kind],
    wanted: &[Wanted],
    count: usize,
) -> Result<RecordBatch> {
    let mut cells: Vec<Vec<Value>> = wanted.iter().map(|_| Vec::new()).collect();
    for _ in 0..count {
        let Some(row) = rows.next_row()? else { break };
        cells.iter_mut().zip(row).for_each(|(column, cell)| column.push(cell));
    }
    let arrays: Vec<ArrayRef> = cells.into_iter().zip(kinds).map(|(cells, kind)| array(cells, *kind)).collect();
    let fields = wanted
        .iter()
        .zip(&arrays)
        .map(|(wanted, array)| Field::new(wanted.name.as_str(), arrow_array::Array::data_type(array).clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    // Columns of one length with their own types: nothing to go wrong but a name that is wanted twice.
    RecordBatch::try_new(schema, arrays).map_err(|e| ListError::BadRow {
        path: path.to_path_buf(),
        row: rows.row(),
        detail: e.to_string(),
    })
}

fn array(cells: Vec<Value>, kind: Kind) -> ArrayRef {
    match kind {
        Kind::Null => Arc::new(NullArray::new(cells.len())),
        Kind::Bool => Arc::new(cells.iter().map(boolean).collect::<BooleanArray>()),
        Kind::Int => Arc::new(cells.iter().map(int).collect::<Int64Array>()),
        Kind::Float => Arc::new(cells.iter().map(float).collect::<Float64Array>()),
        Kind::Text => Arc::new(cells.iter().map(text).collect::<StringArray>()),
        Kind::Texts => Arc::new(texts(&cells)),
    }
}

fn texts(cells: &[Value]) -> ListArray {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for cell in cells {
        let items = match cell {
            Value::Null => {
                lists.append(false);
                continue;
            }
            Value::Array(items) => items,
            single => std::slice::from_ref(single),
        };
        items.iter().for_each(|item| lists.values().append_option(text(item)));
        lists.append(true);
    }
    lists.finish()
}

fn text(cell: &Value) -> Option<Cow<'_, str>> {
    match cell {
        Value::Null => None,
        Value::String(text) => Some(Cow::Borrowed(text)),
        other => Some(Cow::Owned(other.to_string())),
    }
}

fn boolean(cell: &Value) -> Option<bool> {
    cell.as_bool().or_else(|| csv_bool(cell.as_str()?.trim()))
}

fn int(cell: &Value) -> Option<i64> {
    cell.as_i64().or_else(|| cell.as_str()?.trim().parse().ok())
}

fn float(cell: &Value) -> Option<f64> {
    // "nan" is a number to Rust, but nothing to pyarrow.
    cell.as_f64().or_else(|| cell.as_str().map(str::trim).filter(|text| !NULLS.contains(text))?.parse().ok())
}
