#![no_main]
//! Bytes of text files: the same text at once and piece by piece.

use std::io::Read;

use calotype_core::text::{decode_text, utf8_reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let mut streamed = Vec::new();
    let read = utf8_reader(content).and_then(|mut reader| reader.read_to_end(&mut streamed));
    if let Ok(text) = decode_text(content) {
        assert!(read.is_ok() && streamed == text.as_bytes());
    }
});
