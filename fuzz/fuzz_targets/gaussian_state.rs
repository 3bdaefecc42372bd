#![no_main]
//! Saved sums of features.

use calotype_metrics::GaussianAccumulator;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    if let Ok(accumulator) = GaussianAccumulator::from_bytes(content) {
        // What is read is written as the same bytes, whose rows cannot be merged a second time.
        assert_eq!(accumulator.to_bytes(), content);
        let mut twice = accumulator.clone();
        assert!(accumulator.count() == 0 || twice.merge(accumulator).is_err());
        let _ = twice.finish();
    }
});
