#![no_main]
//! Messages of readers of TOML and JSON.

use calotype_core::words::plain;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &str| {
    let words = plain(message);
    assert!(words.len() <= 8 * message.len() + 64, "{words}");
    // Text without a remark of serde's stays as it is.
    if !message.contains(['`', '"']) && !message.contains("expected") && !message.contains("line") && !message.contains("EOF") {
        assert!(words == message || message.contains("untagged"), "{words}");
    }
});
