#![no_main]
//! `.npz` archives, and those with the statistics of features.

use calotype_data::npz::{self, FeatureStatistics};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    if let Ok(arrays) = npz::from_bytes(content) {
        // What is read can be written, and read again.
        let named: Vec<_> = arrays.iter().map(|(name, array)| (name.as_str(), array)).collect();
        if let Ok(bytes) = npz::to_bytes(&named) {
            assert_eq!(npz::from_bytes(&bytes).expect("own archive").len(), arrays.len());
        }
    }
    if let Ok(statistics) = FeatureStatistics::from_bytes(content) {
        assert_eq!(statistics.covariance.len(), statistics.mean.len().pow(2));
        assert!(npz::file(content, "mu.npy").expect("the same archive").is_some());
    }
});
