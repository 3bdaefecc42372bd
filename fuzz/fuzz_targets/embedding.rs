#![no_main]
//! Files of learned words.

use calotype_fuzz::input_file;
use calotype_weights::read_embeddings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let path = input_file("embedding", content);
    for word in [None, Some("<w>")] {
        for embedding in read_embeddings(&path, word).into_iter().flatten() {
            assert!(embedding.vectors.values().all(|vectors| vectors.count() * vectors.width == vectors.values.len()));
        }
    }
});
