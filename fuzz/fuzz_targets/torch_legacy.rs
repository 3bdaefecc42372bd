#![no_main]
//! Torch's layout before 1.6, behind a magic number that every input gets, and bare pickles.

use calotype_fuzz::{input_file, options, read_all};
use calotype_weights::TorchFile;
use libfuzzer_sys::fuzz_target;

/// The pickles of magic number and version.
const START: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";

fuzz_target!(|content: &[u8]| {
    let with_start = [START, content].concat();
    for content in [content, &with_start] {
        let path = input_file("torch_legacy", content);
        for options in options() {
            if let Ok(file) = TorchFile::open(&path, options) {
                read_all(&file);
            }
        }
    }
});
