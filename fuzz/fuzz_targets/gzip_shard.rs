#![no_main]
//! Shards that are compressed by gzip: the bytes as a gzip file, and as the content of one.

use std::io::Write;

use calotype_data::Source;
use calotype_data::source::{ShardSet, SourceOptions};
use calotype_data::webdataset::{TarShard, unpack_all};
use calotype_fuzz::input_file;
use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;

/// Most bytes that are unpacked from an input.
const MOST: usize = 1 << 20;

fuzz_target!(|content: &[u8]| {
    // A small stream may stand for gigabytes, which would fill the disk.
    if !unpack_all(content, MOST).is_err_and(|fault| fault.contains("more than")) {
        let path = input_file("x.tar.gz", content);
        let _ = TarShard::open(&path);
    }
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(content).expect("memory");
    let packed = packed.finish().expect("memory");
    assert_eq!(unpack_all(&packed, content.len()).as_deref(), Ok(content));
    let path = input_file("y.tar", &packed);
    let Ok(shards) = ShardSet::open(&path.display().to_string(), &SourceOptions::default()) else { return };
    for i in 0..shards.len() {
        let held = shards.get(i).expect("a shard that could be scanned has its samples");
        assert!(held.sample().parts().all(|(_, bytes)| bytes.len() <= content.len()));
    }
});
