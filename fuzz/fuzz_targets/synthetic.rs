#![no_main]
//! Addresses of made-up samples.

use calotype_data::source::synthetic::SCHEME;
use calotype_data::source::{SyntheticSource, open};
use calotype_data::{Source, SourceOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|rest: &str| {
    let spec = format!("{SCHEME}{rest}");
    let Ok(source) = SyntheticSource::open(&spec, &SourceOptions::default()) else { return };
    assert!(source.len() > 0 && source.name() == spec);
    assert_eq!(open(&spec, &SourceOptions::default()).unwrap().digest(), source.digest());
    // Large samples are allowed, and too slow here.
    if spec.bytes().filter(u8::is_ascii_digit).count() <= 8 {
        assert_eq!(source.get(0).unwrap().into_sample(), source.get(0).unwrap().into_sample());
    }
});
