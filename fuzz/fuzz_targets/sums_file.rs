#![no_main]
//! Lists of checksums, whose paths have to stay within their folder.

use std::path::Component;

use calotype_prepare::fetch::digest::{Digest, parse_sums, safe_path};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    for sum in parse_sums(content).unwrap_or_default() {
        let path = (!sum.path.is_empty()).then(|| safe_path(&sum.path).expect("a path within the folder"));
        assert!(path.is_none_or(|path| path.components().all(|part| matches!(part, Component::Normal(_)))));
        assert_eq!(Digest::parse(&sum.digest.to_string()).as_ref(), Some(&sum.digest));
    }
});
