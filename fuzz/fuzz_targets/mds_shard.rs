#![no_main]
//! Shards of MDS datasets, under columns of every encoding; the number of samples is taken from the shard itself.

use calotype_data::mds::read_shard;
use libfuzzer_sys::fuzz_target;

/// One column each, by the first byte of the input.
const ENCODINGS: [&str; 20] = [
    "bytes",
    "str",
    "int",
    "uint8",
    "int16",
    "float16",
    "float64",
    "str_int",
    "str_float",
    "str_decimal",
    "ndarray",
    "ndarray:float32",
    "pil",
    "jpeg",
    "jpeg_array",
    "list[pil]",
    "list[jpeg]",
    "list[png]",
    "json",
    "pkl",
];

fuzz_target!(|input: &[u8]| {
    let Some((choice, shard)) = input.split_first() else { return };
    let encoding = ENCODINGS[usize::from(*choice) % ENCODINGS.len()];
    let size = match encoding {
        "int" | "float64" => "8",
        "uint8" => "1",
        "int16" | "float16" => "2",
        _ => "null",
    };
    let samples = shard.first_chunk().map_or(0, |count| u32::from_le_bytes(*count));
    let index = format!(
        r#"{{"version": 2, "shards": [{{"column_encodings": ["str", "{encoding}"], "column_names": ["__key__", "c"],
            "column_sizes": [null, {size}], "format": "mds", "raw_data": {{"basename": "s", "bytes": 0}},
            "samples": {samples}, "version": 2}}]}}"#
    );
    let _ = read_shard(index.as_bytes(), shard);
});
