#![no_main]
//! Metadata and images that a filter of samples looks at.

use std::collections::BTreeMap;

use calotype_data::source::SampleFilter;
use calotype_data::{Sample, SampleRef};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let limits = || BTreeMap::from([("aesthetic_score".to_owned(), 0.5)]);
    let filter = SampleFilter { min_side: 8, min_area: 80, at_least: limits(), at_most: limits() };
    for part in ["json", "png", "jpg", "width"] {
        let sample = Sample::new("a").with(part, content).with("height", "9");
        let reason = filter.reason(SampleRef::from(&sample));
        assert_eq!(reason, filter.reason(SampleRef::from(&sample)));
    }
});
