//! Where a run goes on in its log.

use crate::keys;
use crate::log::{Entry, Line};
use crate::value::Value;
use crate::writer::{LogError, io_error};
use calotype_core::durable;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

/// How far the lines of a log go.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Progress {
    pub cache_clear: bool,
    pub init_start: bool,
    pub init_stop: bool,
    pub run_start: bool,
    pub run_stop: bool,
    /// Samples at which the open block began.
    pub block: Option<u64>,
    pub epoch: bool,
    pub evaluation: Option<u64>,
    pub evaluated: BTreeSet<u64>,
    /// Most samples of a line.
    pub last: u64,
    /// Keys and values of the lines without samples, which are the run's beginning.
    pub beginning: Vec<(String, Value)>,
}

impl Progress {
    pub(crate) fn note(&mut self, key: &str, samples: Option<u64>) {
        self.last = self.last.max(samples.unwrap_or(0));
        match key {
            keys::CACHE_CLEAR => self.cache_clear = true,
            keys::INIT_START => self.init_start = true,
            keys::INIT_STOP => self.init_stop = true,
            keys::RUN_START => self.run_start = true,
            keys::RUN_STOP => self.run_stop = true,
            keys::BLOCK_START => self.block = Some(samples.unwrap_or(self.last)),
            keys::BLOCK_STOP => self.block = None,
            keys::EPOCH_START => self.epoch = true,
            keys::EPOCH_STOP => self.epoch = false,
            keys::EVAL_START => self.evaluation = samples,
            keys::EVAL_STOP => {
                self.evaluated.extend(self.evaluation.take());
            }
            _ => {}
        }
    }
}

/// Drops what a run that goes on from `samples` samples writes again, and a last line that was cut. Returns how far the rest goes,
/// also in bytes.
pub(crate) fn rewind(path: &Path, samples: u64) -> Result<(Progress, u64), LogError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            let source = io::Error::new(error.kind(), "a folder is at the place of the log; move it away");
            return Err(io_error(path, "read it", source));
        }
        Err(source) => return Err(io_error(path, "read it", source)),
    };
    let lines = whole_lines(path, &bytes)?;
    let end = lines.iter().position(|line| line.ends_what_stays(samples)).unwrap_or(lines.len());
    let end = without_open_evaluation(&lines[..end]);
    let mut progress = Progress::default();
    for (index, line) in lines[..end].iter().enumerate() {
        let Some(said) = &line.said else { continue };
        if said.key == keys::RUN_START && progress.run_start {
            return Err(LogError::TwoRuns { file: path.to_owned(), line: index + 1 });
        }
        if said.samples().is_none() {
            progress.beginning.push((said.key.clone(), said.value.clone()));
        }
        progress.note(&said.key, said.samples());
    }
    let starts = [
        (keys::RUN_START, progress.run_start),
        (keys::INIT_START, progress.init_start),
        (keys::INIT_STOP, progress.init_stop),
    ];
    if let Some((key, _)) = starts.into_iter().find(|(_, there)| samples > 0 && !there) {
        return Err(LogError::NoStart { file: path.to_owned(), key, samples });
    }
    let kept: usize = lines[..end].iter().map(|line| line.length).sum();
    if kept < bytes.len() {
        durable::write_bytes(path, &bytes[..kept]).map_err(|source| io_error(path, "shorten it", source))?;
    }
    Ok((progress, kept as u64))
}

/// A line of the file, and what it says if it is a line of the log.
struct Kept {
    length: usize,
    said: Option<Line>,
}

impl Kept {
    fn ends_what_stays(&self, samples: u64) -> bool {
        let Some(line) = &self.said else { return false };
        line.key == keys::RUN_STOP
            || line.samples().is_some_and(|later| later > samples)
            || (samples == 0 && (line.key == keys::INIT_START || line.key.contains(keys::SUBMISSION)))
    }
}

/// All lines but a last one that was cut.
fn whole_lines(path: &Path, bytes: &[u8]) -> Result<Vec<Kept>, LogError> {
    let mut lines = Vec::new();
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if !line.ends_with(b"\n") {
            break;
        }
        let said = Entry::parse(index + 1, &String::from_utf8_lossy(line)).map(|entry| entry.line).transpose();
        let said =
            said.map_err(|fault| LogError::Damaged { file: path.to_owned(), line: index + 1, problem: fault.problem })?;
        lines.push(Kept { length: line.len(), said });
    }
    Ok(lines)
}

/// Up to where lines stay if the last evaluation was not completed.
fn without_open_evaluation(lines: &[Kept]) -> usize {
    let last = |key: &str| lines.iter().rposition(|line| line.said.as_ref().is_some_and(|said| said.key == key));
    match (last(keys::EVAL_START), last(keys::EVAL_STOP)) {
        (Some(start), stop) if stop.is_none_or(|stop| stop < start) => start,
        _ => lines.len(),
    }
}
