#![no_main]
//! Pickled dictionaries of arrays; what was read is written and read again.

use calotype_data::pickled::{read_arrays, write_arrays};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    if let Ok(arrays) = read_arrays("fuzz", content) {
        let values: usize = arrays.values().map(|array| array.data().len()).sum();
        assert!(values <= 4 * content.len());
        let written = write_arrays(&arrays);
        let again = read_arrays("fuzz", &written).expect("what was written");
        // Compared as bytes: NaN is not equal to itself.
        assert!(write_arrays(&again) == written);
    }
});
