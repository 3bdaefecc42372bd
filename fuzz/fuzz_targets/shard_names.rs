#![no_main]
//! Names of members: what a shard is told to hold comes back, whatever it is called.

use calotype_data::Sample;
use calotype_data::webdataset::{ShardFile, TarShard, is_storable};
use calotype_fuzz::input_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let Ok(text) = std::str::from_utf8(content) else { return };
    let (key, part) = text.split_once('\n').unwrap_or((text, "txt"));
    let path = input_file("x.tar", b"");
    let sample = Sample::new(key).with(part, content).with("json", "{}");
    let mut shard = ShardFile::create(&path).expect("a file");
    let storable = is_storable(key, part) && is_storable(key, "json");
    assert_eq!(shard.write(&sample).is_ok(), storable);
    if !storable {
        return;
    }
    let bytes = shard.finish().expect("a shard").bytes;
    let read = TarShard::open(&path).expect("a shard");
    assert!(read.damage().is_none());
    assert_eq!((read.bytes(), read.len()), (bytes, 1));
    assert_eq!(read.get(0).map(|sample| sample.to_sample()), Some(sample));
});
