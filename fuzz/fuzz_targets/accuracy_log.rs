#![no_main]
//! LoadGen's accuracy logs: read in pieces of any size, and written.

use calotype_mlperf::inference::accuracy_log::{AccuracyLog, Response, write};
use libfuzzer_sys::fuzz_target;
use std::io::{self, BufReader};
use std::path::Path;

fuzz_target!(|content: &[u8]| {
    let Some((at_once, content)) = content.split_first() else { return };
    let read = |content: &[u8], at_once: usize| -> Result<Vec<Response>, String> {
        let log = AccuracyLog::new(Path::new("log"), BufReader::with_capacity(at_once, content));
        log.map(|response| response.map_err(|error| error.to_string())).collect()
    };
    let found = read(content, 4096);
    assert_eq!(found, read(content, usize::from(*at_once).max(1)));
    let Ok(responses) = found else { return };
    let mut written = Vec::new();
    write::<io::Error>(&mut written, &mut responses.iter().cloned().map(Ok)).expect("memory can be written");
    assert_eq!(read(&written, 4096), Ok(responses));
});
