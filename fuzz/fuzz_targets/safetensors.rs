#![no_main]
//! Safetensors files.

use calotype_fuzz::{input_file, read_all};
use calotype_weights::TensorFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    if let Ok(file) = TensorFile::open(input_file("safetensors", content)) {
        read_all(&file);
    }
});
