#![no_main]
//! Configurations in YAML.

use calotype_weights::Yaml;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Yaml::parse(text) {
        Ok(Yaml::Map(entries)) => {
            let whole = Yaml::Map(entries.clone());
            assert!(entries.iter().all(|(name, value)| whole.get(name).is_some_and(|found| same(found, value))));
        }
        Ok(_) => {}
        Err(fault) => assert!((1..=text.split('\n').count()).contains(&fault.line), "{fault}"),
    }
});

/// Equal, numbers that are none too.
fn same(a: &Yaml, b: &Yaml) -> bool {
    format!("{a:?}") == format!("{b:?}")
}
