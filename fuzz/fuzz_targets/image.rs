#![no_main]
//! Image files of all kinds, with a limit of pixels, as they are stored and upright.

use calotype_data::image::{DecodeOptions, RgbImage, dimensions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let _ = dimensions("fuzz", content);
    for orient in [false, true] {
        let options = DecodeOptions { max_pixels: 1 << 20, orient, ..DecodeOptions::default() };
        if let Ok(image) = RgbImage::decode_with("fuzz", content, &options) {
            assert!(image.width() * image.height() <= 1 << 20);
            assert_eq!(image.data().len(), 3 * image.width() * image.height());
        }
    }
});
