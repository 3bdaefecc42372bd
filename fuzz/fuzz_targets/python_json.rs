#![no_main]
//! JSON as Python writes it: whatever is JSON is read as such, and nothing else brings the reader down.

use calotype_data::json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let found = json::from_slice(content);
    if let Ok(strict) = serde_json::from_slice::<serde_json::Value>(content) {
        assert_eq!(found.ok(), Some(strict));
    }
});
