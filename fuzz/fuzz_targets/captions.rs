#![no_main]
//! Lists of captions: tables with tabs, and lines.

use calotype_evaluate::sweep::{Captions, parse_lines, parse_table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let text = String::from_utf8_lossy(content);
    let lines = parse_lines(&text);
    assert!(lines.iter().all(|caption| !caption.text.trim().is_empty()));
    assert_eq!(Captions::new(lines.clone()), Captions::new(lines));
    for column in [None, Some("caption"), Some("text")] {
        match parse_table(&text, column) {
            Ok(list) => assert!(list.iter().all(|caption| !caption.text.is_empty())),
            Err(problem) => assert!(!problem.is_empty()),
        }
    }
});
