#![no_main]
//! Texts inside PNG files, compressed ones too; and the settings of web interfaces.

use calotype_data::image::text::{Parameters, read_png_text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let png = [b"\x89PNG\r\n\x1a\n", content].concat();
    for text in read_png_text("fuzz", &png).unwrap_or_default() {
        assert!(text.text.len() <= 2 << 20 && !text.keyword.is_empty());
    }
    if let Ok(text) = std::str::from_utf8(content) {
        let parameters = Parameters::parse(text);
        assert!(parameters.settings.is_empty() || parameters.settings.len() >= 3);
    }
});
