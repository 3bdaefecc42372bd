#![no_main]
//! Messages between the processes of a run of MLPerf Inference.

use calotype_inference::remote::{read_message, write_message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let mut rest = content;
    while let Ok(message) = read_message(&mut rest) {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &message).expect("what was read can be written");
        assert_eq!(read_message(&mut &bytes[..]).ok(), Some(message));
    }
});
