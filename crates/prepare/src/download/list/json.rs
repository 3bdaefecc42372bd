//! Cells of Arrow columns as JSON.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrowPrimitiveType};
use arrow_schema::DataType;
use serde_json::{Map, Value};

/// True if JSON has the like of a type.
pub(super) fn has_json(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) | DataType::LargeList(item) => has_json(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| has_json(field.data_type())),
        kind => is_single(kind),
    }
}

/// True if it is a single value that JSON has.
pub(super) fn is_single(kind: &DataType) -> bool {
    use DataType::*;
    let is_number =
        matches!(kind, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 | Float16 | Float32 | Float64);
    is_number || is_text(kind) || matches!(kind, Null | Boolean)
}

/// True if it is text.
pub(super) fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// The value in row `row`. What JSON does not have (not-a-number, infinities, types of dates and bytes) is null; lists
/// are refused before, if a column's type is of that kind.
pub fn json_value(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => number::<Int8Type>(array, row),
        DataType::Int16 => number::<Int16Type>(array, row),
        DataType::Int32 => number::<Int32Type>(array, row),
        DataType::Int64 => number::<Int64Type>(array, row),
        DataType::UInt8 => number::<UInt8Type>(array, row),
        DataType::UInt16 => number::<UInt16Type>(array, row),
        DataType::UInt32 => number::<UInt32Type>(array, row),
        DataType::UInt64 => number::<UInt64Type>(array, row),
        DataType::Float16 => f64::from(array.as_primitive::<Float16Type>().value(row)).into(),
        // Through f64, as Python's floats are.
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(row)).into(),
        DataType::Float64 => number::<Float64Type>(array, row),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::List(_) => list(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row)),
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns().iter();
            let cells = fields.iter().zip(columns).map(|(field, cells)| (field.name().clone(), json_value(cells, row)));
            Value::Object(cells.collect::<Map<_, _>>())
        }
        _ => Value::Null,
    }
}

fn number<T: ArrowPrimitiveType>(array: &dyn Array, row: usize) -> Value
where
    Value: From<T::Native>,
{
    array.as_primitive::<T>().value(row).into()
}

fn list(items: &dyn Array) -> Value {
    (0..items.len()).map(|row| json_value(items, row)).collect()
}
