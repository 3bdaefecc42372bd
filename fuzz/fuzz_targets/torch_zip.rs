#![no_main]
//! Torch's zip archives. Inputs that are none get the first bytes of one.

use calotype_fuzz::{input_file, options, read_all};
use calotype_weights::TorchFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let mut content = content.to_vec();
    if let Some(start) = content.first_chunk_mut() {
        *start = *b"PK\x03\x04";
    }
    let path = input_file("torch_zip", &content);
    for options in options() {
        if let Ok(mut file) = TorchFile::open(&path, options) {
            let _ = file.verify_checksums();
            for root in file.roots().to_vec() {
                let _ = file.select_root(&root.path);
                read_all(&file);
            }
        }
    }
});
