#![no_main]
//! Logs of compliance runs, captions and lists of samples: one kind of file is the input, beside others that are as they should be.

use calotype_fuzz::input_file;
use calotype_inference::accuracy::{captions, ids};
use calotype_inference::compliance::{Runs, Test, verify};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::Path;

const DETAIL: &str = ":::MLLOG {\"key\": \"effective_scenario\", \"value\": \"Offline\", \"time_ms\": 1, \"metadata\": {}}\n\
    :::MLLOG {\"key\": \"result_validity\", \"value\": \"VALID\", \"time_ms\": 1, \"metadata\": {}}\n\
    :::MLLOG {\"key\": \"result_samples_per_second\", \"value\": 2.5, \"time_ms\": 1, \"metadata\": {}}\n";
const SUMMARY: &str = "Scenario : Offline\nSamples per second: 2.5\nResult is : VALID\n";
const ACCURACY: &str = "[\n{ \"seq_id\" : 0, \"qsl_idx\" : 3, \"data\" : \"AB\" }\n]\n";

fuzz_target!(|content: &[u8]| {
    let Some((kind, content)) = content.split_first() else { return };
    let file = input_file("list.tsv", content);
    let (read, listed) = (captions::read(&file), ids::read(&file));
    assert!(read.map_or(true, |captions| captions.iter().all(|caption| !caption.trim().is_empty())));
    assert!(listed.map_or_else(|error| error.to_string().contains("list.tsv"), |_| true));
    let folder = file.with_file_name("compliance");
    let names = ["mlperf_log_detail.txt", "mlperf_log_summary.txt", "mlperf_log_accuracy.json"];
    for (at, below) in ["run/performance/run_1", "run/accuracy", "test"].into_iter().enumerate() {
        fs::create_dir_all(folder.join(below)).expect("a folder for the logs");
        for (name, whole) in names.into_iter().zip([DETAIL, SUMMARY, ACCURACY]) {
            let is_input = usize::from(*kind) % 9 == at * 3 + names.iter().position(|other| *other == name).unwrap_or(0);
            write(&folder.join(below).join(name), if is_input { content } else { whole.as_bytes() });
        }
    }
    let (submitted, compliance, out) = (folder.join("run"), folder.join("test"), folder.join("out"));
    for test in [Test::Test01, Test::Test04] {
        match verify(test, &Runs { submitted: &submitted, compliance: &compliance, out: &out }) {
            Ok(verdict) => assert!(!verdict.passes() || verdict.faults.is_empty()),
            Err(error) => assert!(error.to_string().contains("mlperf_log_")),
        }
    }
});

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("room for the log");
}
