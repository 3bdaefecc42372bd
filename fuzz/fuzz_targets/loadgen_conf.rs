#![no_main]
//! LoadGen's user.conf.

use calotype_loadgen::{Effective, Scenario, UserConf};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let text = String::from_utf8_lossy(content);
    match UserConf::parse(&text) {
        Ok(conf) => {
            // What is written again is read as the same.
            assert_eq!(UserConf::parse(&conf.to_text()), Ok(conf.clone()));
            for scenario in Scenario::ALL {
                Effective::of(*scenario, &conf).samples(*scenario);
            }
        }
        Err((line, problem)) => assert!(line >= 1 && line <= text.lines().count() && !problem.is_empty()),
    }
});
