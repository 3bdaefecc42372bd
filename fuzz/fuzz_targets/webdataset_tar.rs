#![no_main]
//! Tar shards without an index: found, scanned, and every part of every sample read.

use calotype_data::Source;
use calotype_data::source::{ShardSet, SourceOptions};
use calotype_fuzz::input_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let path = input_file("x.tar", content);
    let Ok(shards) = ShardSet::open(&path.display().to_string(), &SourceOptions::default()) else { return };
    for i in 0..shards.len() {
        let held = shards.get(i).expect("a shard that could be scanned has its samples");
        let bytes: usize = held.sample().parts().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= content.len());
    }
});
