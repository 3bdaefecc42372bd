#![no_main]
//! Files of figures.

use calotype_evaluate::figure::{compare, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(figures) = parse(text) {
        // What is read can be written, and read again; figures compare with themselves.
        let text = serde_json::to_string(&figures).expect("JSON");
        assert_eq!(parse(&text).expect("own figures").len(), figures.len());
        assert!(compare(&figures, &figures).1.is_empty());
    }
});
