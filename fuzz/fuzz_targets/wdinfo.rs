#![no_main]
//! Lists of shards, as pickles and as JSON.

use calotype_data::WdInfo;
use calotype_fuzz::input_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    if let Ok(info) = WdInfo::from_pickle(content) {
        assert_eq!(WdInfo::from_pickle(&info.to_pickle()).as_ref(), Ok(&info));
    }
    if let Ok(info) = WdInfo::read(&input_file("wdinfo.json", content)) {
        assert!(info.tar_files.iter().all(|name| !name.starts_with('/')));
    }
});
