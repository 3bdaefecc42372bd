//! TEST01's comparison of responses: those that a performance run logged with those of the accuracy run.

use super::PASS;
use crate::accuracy::{AccuracyError, Result};
use calotype_core::durable::replace_file;
use calotype_mlperf::inference::accuracy_log::{self, AccuracyLog, AccuracyLogError, Response};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

/// What is kept of a response.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Known {
    first: Option<u8>,
    digest: [u8; 32],
}

impl Known {
    fn of(response: &Response) -> Self {
        Self { first: response.data.first().copied(), digest: Sha256::digest(&response.data).into() }
    }
}

/// The counts of `verify_accuracy.py`, under its names, and what it does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Responses {
    acc_log_entries: usize,
    acc_log_duplicate_keys: usize,
    acc_log_data_mismatch: usize,
    perf_log_entries: usize,
    perf_log_qsl_idx_match: usize,
    perf_log_data_mismatch: usize,
    missing_qsl_idxs: usize,
    /// Responses that differ anywhere.
    unlike: usize,
    /// The samples of the performance run.
    samples: HashSet<u64>,
}

impl Responses {
    /// Compares the log of a performance run with that of the accuracy run, as the script does with `--dtype byte`: whether the
    /// first bytes of two responses are the same, or both have none. A response is compared with the last one of its sample that
    /// stood in the performance run's log, or else with the first one of the accuracy run's.
    ///
    /// # Errors
    /// [`AccuracyError::Log`].
    pub(super) fn compare(accuracy: &Path, performance: &Path) -> Result<Self> {
        let mut counts = Self::default();
        let mut known: HashMap<u64, Known> = HashMap::new();
        for response in AccuracyLog::open(accuracy)? {
            let response = response?;
            let found = Known::of(&response);
            counts.acc_log_entries += 1;
            let first = *known.entry(response.qsl_idx).or_insert(found);
            counts.acc_log_data_mismatch += usize::from(first != found);
        }
        counts.acc_log_duplicate_keys = counts.acc_log_entries - known.len();
        for response in AccuracyLog::open(performance)? {
            let response = response?;
            let found = Known::of(&response);
            counts.perf_log_entries += 1;
            counts.samples.insert(response.qsl_idx);
            match known.insert(response.qsl_idx, found) {
                None => counts.missing_qsl_idxs += 1,
                Some(before) => {
                    counts.perf_log_qsl_idx_match += 1;
                    counts.perf_log_data_mismatch += usize::from(before.first != found.first);
                    counts.unlike += usize::from(before != found);
                }
            }
        }
        Ok(counts)
    }

    /// True if the script passes it.
    pub(super) fn passes(&self) -> bool {
        self.perf_log_data_mismatch == 0 && self.perf_log_qsl_idx_match > 0
    }

    /// `verify_accuracy.txt`.
    pub(super) fn text(&self) -> String {
        let verdict = if self.passes() { PASS } else { "TEST FAIL" };
        format!(
            "Verifying accuracy. This might take a while...\n\
             Reading accuracy mode results...\n\
             Reading performance mode results...\n\
             num_acc_log_entries = {}\n\
             num_acc_log_duplicate_keys = {}\n\
             num_acc_log_data_mismatch = {}\n\
             num_perf_log_entries = {}\n\
             num_perf_log_qsl_idx_match = {}\n\
             num_perf_log_data_mismatch = {}\n\
             num_missing_qsl_idxs = {}\n\
             {verdict}\n\n",
            self.acc_log_entries,
            self.acc_log_duplicate_keys,
            self.acc_log_data_mismatch,
            self.perf_log_entries,
            self.perf_log_qsl_idx_match,
            self.perf_log_data_mismatch,
            self.missing_qsl_idxs
        )
    }

    /// What the script does not say.
    pub(super) fn note(&self) -> Option<String> {
        (self.unlike > self.perf_log_data_mismatch).then(|| {
            format!(
                "{} of {} responses differ from the accuracy run's, {} of them in the first byte, which is all that the official \
                 script compares (with --unixmode it compares all bytes)",
                self.unlike, self.perf_log_qsl_idx_match, self.perf_log_data_mismatch
            )
        })
    }

    /// Writes the accuracy run's responses of the performance run's samples, as `create_accuracy_baseline.sh` does.
    ///
    /// # Errors
    /// [`AccuracyError`].
    pub(super) fn write_baseline(&self, accuracy: &Path, baseline: &Path) -> Result<()> {
        let log = AccuracyLog::open(accuracy)?;
        let is_wanted = |response: &std::result::Result<Response, AccuracyLogError>| match response {
            Ok(response) => self.samples.contains(&response.qsl_idx),
            Err(_) => true,
        };
        let wanted = log.filter(is_wanted).map(|response| response.map_err(io::Error::other));
        replace_file(baseline, |writer| accuracy_log::write(writer, wanted))
            .map_err(AccuracyError::io("write", baseline))
    }
}
