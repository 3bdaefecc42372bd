#![no_main]
//! Pickles, with a walk over what they describe.

use calotype_fuzz::options;
use calotype_weights::pickle::{self, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    for options in options() {
        if let Ok(read) = pickle::read(content, options, pickle::memory_limit(content.len())) {
            assert!(read.length() <= content.len());
            let _ = read.skipped().count();
            walk(read.root(content), 0);
        }
    }
});

/// Looks at values to a depth: they may contain themselves.
fn walk(value: Value<'_>, depth: usize) {
    let _ = format!("{:?}", value.kind());
    if depth < 3 {
        value.items().take(8).for_each(|inner| walk(inner, depth + 1));
        for (key, inner) in value.pairs().take(8) {
            walk(key, depth + 1);
            walk(inner, depth + 1);
        }
        let _ = value.get("state_dict");
    }
}
