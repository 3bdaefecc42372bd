#![no_main]
//! Conditions of the filter stage: reading them, and binding what can be read to the columns of a table.

use std::sync::{Arc, LazyLock};

use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use calotype_prepare::filter::{Condition, Expression};
use libfuzzer_sys::fuzz_target;

static TABLE: LazyLock<RecordBatch> = LazyLock::new(|| {
    let columns: [(&str, ArrayRef); 4] = [
        ("a", Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(0), None]))),
        ("b", Arc::new(Float64Array::from(vec![Some(f64::NAN), Some(-0.0), None]))),
        ("c", Arc::new(StringArray::from(vec![Some("é%_"), Some(""), None]))),
        ("d", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
    ];
    RecordBatch::try_from_iter(columns).expect("columns of one length")
});

fuzz_target!(|text: &str| {
    match Expression::parse(text) {
        Ok(expression) => {
            if let Ok(condition) = Condition::new(&expression, &TABLE.schema()) {
                assert_eq!(condition.judge(&TABLE).len(), 3);
            }
        }
        Err(error) => assert!(error.to_string().contains("^ character ")),
    }
});
