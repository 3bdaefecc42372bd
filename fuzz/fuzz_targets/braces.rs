#![no_main]
//! Patterns of file names.

use calotype_data::source::braces::{expand_all, is_pattern};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pattern: &str| {
    let Ok(names) = expand_all(pattern) else { return };
    assert!(!names.is_empty());
    if !is_pattern(pattern) && !pattern.contains(['\\', '}']) {
        assert_eq!(names, [pattern]);
    }
});
