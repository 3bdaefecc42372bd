#![no_main]
//! MLPerf logs of any program: read, judged by every round's rules, and continued.

use calotype_fuzz::input_file;
use calotype_mlperf::{
    Benchmark, Division, Log, LogWriter, Ruleset, Scores, Submission, SubmissionStatus, Value, check,
};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|content: &[u8]| {
    let Some((first, content)) = content.split_first() else { return };
    let log = Log::parse(Path::new("log"), content);
    for (_, line) in log.lines() {
        for value in [&line.value, &line.metadata] {
            let written = value.to_string();
            assert!(written.is_ascii());
            assert_eq!(Value::parse(&written).expect("what is written can be read").to_string(), written);
        }
    }
    for benchmark in Benchmark::ALL {
        let finite = |scores: &[Scores]| scores.iter().flat_map(|of| &of.results).all(|(_, value)| value.is_finite());
        assert!(log.finite_scores(*benchmark).map_or(true, |scores| finite(&scores)));
    }
    for ruleset in Ruleset::ALL {
        let report = check(&log, *ruleset);
        assert!(report.findings.iter().all(|finding| !finding.problem.is_empty() && !finding.remedy.is_empty()));
    }
    continued(u64::from(*first) * 1000, content);
});

/// Taking a run up twice leaves what taking it up once does; a log that cannot be continued stays as it is.
fn continued(samples: u64, content: &[u8]) {
    let submission = Submission {
        benchmark: Benchmark::StableDiffusion,
        division: Division::Closed,
        org: "org".to_owned(),
        platform: "box".to_owned(),
        status: SubmissionStatus::Research,
        poc_name: None,
        poc_email: None,
    };
    let path = input_file("mlperf.log", content);
    let open = || LogWriter::open(&path, &submission, samples).is_ok();
    let bytes = || std::fs::read(&path).expect("the file is there");
    if !open() {
        assert_eq!(bytes(), content);
        return;
    }
    let once = bytes();
    assert!(content.starts_with(&once) && open() && bytes() == once);
}
