#![no_main]
//! Indices of MDS datasets, beside a shard that may or may not be theirs.

use calotype_data::mds::{MdsIndex, read_shard};
use libfuzzer_sys::fuzz_target;

const SHARD: &[u8] = include_bytes!("../../crates/data/tests/golden/mds/odd/shard.00000.mds");

fuzz_target!(|text: &[u8]| {
    if let Ok(index) = MdsIndex::parse(text) {
        assert_eq!(index.samples(), index.shards.iter().map(|shard| shard.samples).sum::<usize>());
        let _ = read_shard(text, SHARD);
    }
});
