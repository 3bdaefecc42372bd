#![no_main]
//! LoadGen's detail log and report, of any program.

use calotype_mlperf::Value;
use calotype_mlperf::inference::{Detail, Summary};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|content: &str| {
    let detail = Detail::parse(Path::new("mlperf_log_detail.txt"), content);
    let lines = content.lines().count();
    for message in &detail.messages {
        assert!((1..=lines).contains(&message.line));
        let first = detail.first(&message.key).expect("a key that is there is found");
        let written = first.to_string();
        assert_eq!(Value::parse(&written).expect("what is written can be read").to_string(), written);
    }
    if let Some((line, problem)) = &detail.fault {
        assert!((1..=lines).contains(line) && !problem.is_empty());
    }
    if let Ok(summary) = Summary::parse(content) {
        assert_eq!(summary.get("Result is"), Some(summary.result.as_str()));
    }
});
