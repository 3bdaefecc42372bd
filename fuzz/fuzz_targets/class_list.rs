#![no_main]
//! Lists of class names and of templates, as text and as JSON.

use calotype_evaluate::vision::lists::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    if let Ok(names) = parse(content) {
        assert!(!names.is_empty());
    }
});
