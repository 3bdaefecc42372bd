#![no_main]
//! `.nemo` archives, plain and compressed.

use calotype_fuzz::{input_file, options, read_all};
use calotype_weights::NemoFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let path = input_file("nemo", content);
    for options in options() {
        if let Ok(file) = NemoFile::open(&path, options) {
            let _ = calotype_weights::Yaml::parse(file.config());
            read_all(&file);
        }
    }
});
