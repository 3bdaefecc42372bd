#![no_main]
//! Results of evaluations in lines of JSON.

use calotype_mlperf::{Benchmark, Figures};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let text = String::from_utf8_lossy(content);
    let figures = match Figures::parse(&text) {
        Ok(figures) => figures,
        Err(problem) => return assert!(problem.starts_with("line ")),
    };
    for benchmark in Benchmark::ALL {
        if figures.check(*benchmark).is_err() {
            continue;
        }
        for scores in figures.scores(*benchmark) {
            assert_eq!(scores.results.len(), benchmark.metrics().len());
            assert_eq!(figures.at(scores.samples).map(|figure| figure.samples), Some(scores.samples));
        }
    }
});
