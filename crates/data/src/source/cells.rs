//! Cells of Arrow columns as JSON.
//!
//! | type | becomes |
//! |---|---|
//! | numbers of any width | a number; not-a-number and infinities are null |
//! | decimal | its digits as text, exactly |
//! | date, time, timestamp | text as in ISO 8601: `2024-02-29`, `12:30:00.500`, `2024-02-29T12:30:00.500`, with `Z` where the column is in UTC |
//! | duration, interval | text as in ISO 8601: `PT1.5S`, `P1M2DT3S` |
//! | binary | base64 (RFC 4648) as text |
//! | list, of any kind | an array |
//! | struct | an object |
//! | map | an object if its keys are texts, else an array of `[key, value]` |
//! | dictionary | its value |

use arrow_array::cast::AsArray;
use arrow_array::temporal_conversions::{as_date, as_datetime, as_time};
use arrow_array::types::{
    ArrowTemporalType, Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type,
    DecimalType, DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType, DurationSecondType,
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, IntervalDayTimeType,
    IntervalMonthDayNanoType, IntervalYearMonthType, Time32MillisecondType, Time32SecondType, Time64MicrosecondType,
    Time64NanosecondType, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrowPrimitiveType, MapArray};
use arrow_schema::{DataType, IntervalUnit, TimeUnit};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

/// True if values of a type have a form in JSON here: all but unions and run-ends, which parquet does not have.
pub fn has_json(kind: &DataType) -> bool {
    use DataType::*;
    match kind {
        List(item) | LargeList(item) | FixedSizeList(item, _) | ListView(item) | LargeListView(item) | Map(item, _) => {
            has_json(item.data_type())
        }
        Struct(fields) => fields.iter().all(|field| has_json(field.data_type())),
        Dictionary(_, values) => has_json(values),
        Union(..) | RunEndEncoded(..) => false,
        _single => true,
    }
}

/// A type in words, for messages.
pub fn in_words(kind: &DataType) -> String {
    use DataType::*;
    match kind {
        Null => "nothing".to_owned(),
        Boolean => "true and false".to_owned(),
        kind if kind.is_integer() => "whole numbers".to_owned(),
        kind if kind.is_numeric() => "numbers".to_owned(),
        kind if is_text(kind) => "text".to_owned(),
        kind if is_binary(kind) => "bytes".to_owned(),
        Date32 | Date64 => "dates".to_owned(),
        Time32(_) | Time64(_) | Timestamp(..) => "times".to_owned(),
        Duration(_) | Interval(_) => "spans of time".to_owned(),
        List(item) | LargeList(item) | FixedSizeList(item, _) | ListView(item) | LargeListView(item) => {
            format!("lists of {}", in_words(item.data_type()))
        }
        Struct(_) => "objects".to_owned(),
        Map(..) => "maps".to_owned(),
        Dictionary(_, values) => in_words(values),
        _other => kind.to_string(),
    }
}

/// True if it is text, or a dictionary of texts.
pub fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// True if it is bytes.
pub fn is_binary(kind: &DataType) -> bool {
    use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary};
    matches!(kind, Binary | LargeBinary | BinaryView | FixedSizeBinary(_))
}

/// The bytes in row `row` of a binary column; `None` for null and for columns of other types.
pub fn bytes_at(array: &dyn Array, row: usize) -> Option<&[u8]> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Binary => Some(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => Some(array.as_binary::<i64>().value(row)),
        DataType::BinaryView => Some(array.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => Some(array.as_fixed_size_binary().value(row)),
        _ => None,
    }
}

/// The text in row `row`; `None` for null and for columns of other types, dictionaries of texts among them.
pub fn text_at(array: &dyn Array, row: usize) -> Option<&str> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(array.as_string_view().value(row)),
        _ => None,
    }
}

/// The value in row `row`; null for what JSON does not have: not-a-number, infinities, and the types that [`has_json`]
/// refuses.
pub fn json_value(array: &dyn Array, row: usize) -> Value {
    use DataType::*;
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        Null | Union(..) | RunEndEncoded(..) => Value::Null,
        Boolean => array.as_boolean().value(row).into(),
        Int8 => number::<Int8Type>(array, row),
        Int16 => number::<Int16Type>(array, row),
        Int32 => number::<Int32Type>(array, row),
        Int64 => number::<Int64Type>(array, row),
        UInt8 => number::<UInt8Type>(array, row),
        UInt16 => number::<UInt16Type>(array, row),
        UInt32 => number::<UInt32Type>(array, row),
        UInt64 => number::<UInt64Type>(array, row),
        Float16 => f64::from(array.as_primitive::<Float16Type>().value(row)).into(),
        // Through f64, as Python's floats are.
        Float32 => f64::from(array.as_primitive::<Float32Type>().value(row)).into(),
        Float64 => number::<Float64Type>(array, row),
        Decimal32(..) => decimal::<Decimal32Type>(array, row),
        Decimal64(..) => decimal::<Decimal64Type>(array, row),
        Decimal128(..) => decimal::<Decimal128Type>(array, row),
        Decimal256(..) => decimal::<Decimal256Type>(array, row),
        Date32 => date::<Date32Type>(array, row),
        Date64 => date::<Date64Type>(array, row),
        Time32(TimeUnit::Second) => time::<Time32SecondType>(array, row),
        Time32(_milliseconds) => time::<Time32MillisecondType>(array, row),
        Time64(TimeUnit::Nanosecond) => time::<Time64NanosecondType>(array, row),
        Time64(_microseconds) => time::<Time64MicrosecondType>(array, row),
        Timestamp(unit, zone) => {
            let utc = if zone.is_some() { "Z" } else { "" };
            match unit {
                TimeUnit::Second => timestamp::<TimestampSecondType>(array, row, utc),
                TimeUnit::Millisecond => timestamp::<TimestampMillisecondType>(array, row, utc),
                TimeUnit::Microsecond => timestamp::<TimestampMicrosecondType>(array, row, utc),
                TimeUnit::Nanosecond => timestamp::<TimestampNanosecondType>(array, row, utc),
            }
        }
        Duration(unit) => {
            let (count, digits) = match unit {
                TimeUnit::Second => (array.as_primitive::<DurationSecondType>().value(row), 0),
                TimeUnit::Millisecond => (array.as_primitive::<DurationMillisecondType>().value(row), 3),
                TimeUnit::Microsecond => (array.as_primitive::<DurationMicrosecondType>().value(row), 6),
                TimeUnit::Nanosecond => (array.as_primitive::<DurationNanosecondType>().value(row), 9),
            };
            format!("PT{}S", seconds(count, digits)).into()
        }
        Interval(unit) => interval(array, row, *unit).into(),
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => bytes_at(array, row).map(|b| BASE64.encode(b)).into(),
        Utf8 | LargeUtf8 | Utf8View => text_at(array, row).into(),
        List(_) => list(&array.as_list::<i32>().value(row)),
        LargeList(_) => list(&array.as_list::<i64>().value(row)),
        FixedSizeList(..) => list(&array.as_fixed_size_list().value(row)),
        ListView(_) => list(&array.as_list_view::<i32>().value(row)),
        LargeListView(_) => list(&array.as_list_view::<i64>().value(row)),
        Struct(fields) => {
            let columns = array.as_struct().columns().iter();
            let cells = fields.iter().zip(columns).map(|(field, cells)| (field.name().clone(), json_value(cells, row)));
            Value::Object(cells.collect())
        }
        Map(..) => map(array.as_map(), row),
        Dictionary(..) => {
            // Of one row, for all keys of an array are made at once.
            let one = array.slice(row, 1);
            let dictionary = one.as_any_dictionary();
            let value = dictionary.normalized_keys().first().copied();
            value.map_or(Value::Null, |value| json_value(dictionary.values().as_ref(), value))
        }
    }
}

/// Values of a column, also inside of lists and structs, that are infinite or not a number, for which [`json_value`] puts
/// null.
pub fn not_finite(array: &dyn Array) -> usize {
    use DataType::*;
    let count = |values: &mut dyn Iterator<Item = f64>| values.filter(|value| !value.is_finite()).count();
    match array.data_type() {
        Float16 => count(&mut array.as_primitive::<Float16Type>().iter().flatten().map(f64::from)),
        Float32 => count(&mut array.as_primitive::<Float32Type>().iter().flatten().map(f64::from)),
        Float64 => count(&mut array.as_primitive::<Float64Type>().iter().flatten()),
        List(_) => not_finite(array.as_list::<i32>().values()),
        LargeList(_) => not_finite(array.as_list::<i64>().values()),
        FixedSizeList(..) => not_finite(array.as_fixed_size_list().values()),
        Struct(_) => array.as_struct().columns().iter().map(|column| not_finite(column)).sum(),
        Map(..) => not_finite(array.as_map().values()),
        _ => 0,
    }
}

fn number<T: ArrowPrimitiveType>(array: &dyn Array, row: usize) -> Value
where
    Value: From<T::Native>,
{
    array.as_primitive::<T>().value(row).into()
}

fn decimal<T: DecimalType + ArrowPrimitiveType>(array: &dyn Array, row: usize) -> Value {
    array.as_primitive::<T>().value_as_string(row).into()
}

fn date<T: ArrowTemporalType>(array: &dyn Array, row: usize) -> Value
where
    i64: From<T::Native>,
{
    let days = i64::from(array.as_primitive::<T>().value(row));
    as_date::<T>(days).map_or_else(|| days.into(), |date| format!("{date:?}").into())
}

fn time<T: ArrowTemporalType>(array: &dyn Array, row: usize) -> Value
where
    i64: From<T::Native>,
{
    let count = i64::from(array.as_primitive::<T>().value(row));
    as_time::<T>(count).map_or_else(|| count.into(), |time| format!("{time:?}").into())
}

fn timestamp<T: ArrowTemporalType>(array: &dyn Array, row: usize, utc: &str) -> Value
where
    i64: From<T::Native>,
{
    let count = i64::from(array.as_primitive::<T>().value(row));
    // A time that no calendar has stays the number that it is.
    as_datetime::<T>(count).map_or_else(|| count.into(), |time| format!("{time:?}{utc}").into())
}

/// `count` of a unit of 10^-digits seconds as decimal seconds.
fn seconds(count: i64, digits: u32) -> String {
    let sign = if count < 0 { "-" } else { "" };
    let unit = 10u64.pow(digits);
    let (whole, rest) = (count.unsigned_abs() / unit, count.unsigned_abs() % unit);
    match rest {
        0 => format!("{sign}{whole}"),
        rest => format!("{sign}{whole}.{}", format!("{rest:0width$}", width = digits as usize).trim_end_matches('0')),
    }
}

fn interval(array: &dyn Array, row: usize, unit: IntervalUnit) -> String {
    match unit {
        IntervalUnit::YearMonth => format!("P{}M", array.as_primitive::<IntervalYearMonthType>().value(row)),
        IntervalUnit::DayTime => {
            let value = array.as_primitive::<IntervalDayTimeType>().value(row);
            format!("P{}DT{}S", value.days, seconds(value.milliseconds.into(), 3))
        }
        IntervalUnit::MonthDayNano => {
            let value = array.as_primitive::<IntervalMonthDayNanoType>().value(row);
            format!("P{}M{}DT{}S", value.months, value.days, seconds(value.nanoseconds, 9))
        }
    }
}

fn list(items: &dyn Array) -> Value {
    (0..items.len()).map(|row| json_value(items, row)).collect()
}

fn map(array: &MapArray, row: usize) -> Value {
    let entries = array.value(row);
    let (Some(keys), Some(values)) = (entries.columns().first(), entries.columns().get(1)) else { return Value::Null };
    let pairs = (0..entries.len()).map(|row| (json_value(keys, row), json_value(values, row)));
    if !is_text(keys.data_type()) {
        return pairs.map(|(key, value)| Value::from(vec![key, value])).collect();
    }
    // Keys of maps are never null.
    let text = |key: Value| key.as_str().map(str::to_owned).unwrap_or_default();
    Value::Object(pairs.map(|(key, value)| (text(key), value)).collect::<Map<_, _>>())
}
