#![no_main]
//! Indices of sharded checkpoints, beside two shards; and the recognition of any content.

use std::collections::BTreeMap;

use calotype_fuzz::{input_file, read_all};
use calotype_weights::{NamedTensor, open_tensors, write_safetensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        for name in ["a", "b"] {
            let tensor = NamedTensor::from_f32(name, [2], &[1.0, 2.0]);
            let path = input_file(name, b"");
            write_safetensors(&path, &[tensor], &BTreeMap::new()).expect("room for a shard");
        }
    },
    |content: &[u8]| {
        if let Ok(source) = open_tensors(input_file("index", content)) {
            read_all(&*source);
        }
    }
);
