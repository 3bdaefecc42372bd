#![no_main]
//! The indices and lists beside shards: `index.json`, `wdinfo.json`, `sizes.json`, `quarantine.json`.

use std::path::Path;

use calotype_data::source::shards::parse_counts;
use calotype_data::{DatasetIndex, Quarantine};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let path = Path::new("x.json");
    if let Ok(index) = DatasetIndex::parse(path, content) {
        index.digest();
    }
    if let Ok(counts) = parse_counts(path, content) {
        counts.values().sum::<usize>();
    }
    if let Ok(list) = Quarantine::parse(path, content) {
        assert_eq!(
            list.records().map(|record| list.contains(&record.shard, &record.key)).filter(|found| !found).count(),
            0
        );
        list.digest();
    }
});
