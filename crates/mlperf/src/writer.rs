//! Writes the log of a run while it trains.
//!
//! Lines are those of MLCommons' `mllog`, in the order of the Stable Diffusion v2 reference: cache_clear, submission_*, init_start,
//! seed and sizes, init_stop, opt_*, run_start; then blocks of training and evaluations; run_stop, with the status in its
//! metadata (which the reference leaves out, and the rules ask for). Every line carries the place of the source that logged it.
//!
//! A run that goes on after a kill goes on in the same file: lines of later samples than its checkpoint's are dropped, what stands in
//! front stays, and is not written again. So the log of an interrupted run is that of an uninterrupted one but for the times.

use crate::keys;
use crate::lines::{Event, epoch_num, log_line, now_ms, result_lines, samples_count};
use crate::rewind::{Progress, rewind};
use crate::ruleset::{Metric, RunStatus};
use crate::settings::{Settings, Submission};
use crate::value::Value;
use calotype_core::durable;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Why a log cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The file system refuses.
    #[error("{}: cannot {action}: {source}; check the permissions and the free space", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A line of the log is not as this program writes it.
    #[error("{} line {line}: {problem}; move the log away, or correct the line", file.display())]
    Damaged {
        /// The log.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The log does not begin where the run does.
    #[error(
        "{}: has no `{key}`, although the run has seen {samples} samples; a log has to begin with its run: start a new run, \
         or bring back the log that belongs to this one", file.display()
    )]
    NoStart {
        /// The log.
        file: PathBuf,
        /// What is missing.
        key: &'static str,
        /// Samples that the run has seen.
        samples: u64,
    },
    /// Lines of several runs.
    #[error(
        "{} line {line}: another run begins here, and a log is of one run: remove the lines of the other, or bring back the log that \
         belongs to this run", file.display()
    )]
    TwoRuns {
        /// The log.
        file: PathBuf,
        /// The line of the second `run_start`, from 1.
        line: usize,
    },
    /// The log begins otherwise than the run that is to go on in it.
    #[error(
        "{}: its beginning is not this run's: `{key}` is {found} there, and {wanted} now; bring back the log that belongs to this run",
        file.display()
    )]
    OtherBeginning {
        /// The log.
        file: PathBuf,
        /// What differs.
        key: &'static str,
        /// What the log says.
        found: String,
        /// What the run would say.
        wanted: String,
    },
    /// A setting that the rules do not allow.
    #[error("`{field}` of the submission is empty; name it, for the rules ask for it")]
    Empty {
        /// The field.
        field: &'static str,
    },
    /// Lines out of their order.
    #[error("{}: `{key}` cannot be logged {why}", file.display())]
    Order {
        /// The log.
        file: PathBuf,
        /// What was to be logged.
        key: &'static str,
        /// What stands against it.
        why: String,
    },
}

/// Writes the log of a run. One process of a run holds it.
///
/// ```
/// use calotype_mlperf::*;
///
/// let submission = Submission {
///     benchmark: Benchmark::StableDiffusion,
///     division: Division::Closed,
///     org: "org".to_owned(),
///     platform: "box".to_owned(),
///     status: SubmissionStatus::OnPremises,
///     poc_name: None,
///     poc_email: None,
/// };
/// let folder = tempfile::tempdir().unwrap();
/// let mut log = LogWriter::open(&folder.path().join("mlperf_compliance.log"), &submission, 0).unwrap();
/// log.init_start(true).unwrap();
/// assert!(log.run_start().unwrap_err().to_string().contains("before `init_stop`"));
/// ```
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines.
    length: u64,
    submission: Submission,
    progress: Progress,
    /// A block that begins if training goes on.
    follows: Option<Follows>,
    /// When it is, in milliseconds since 1970.
    clock: fn() -> i64,
}

/// The beginning of a block that is not written yet.
#[derive(Clone, Copy, Debug)]
struct Follows {
    samples: u64,
    time_ms: i64,
    place: &'static Location<'static>,
}

impl LogWriter {
    /// Opens the log of a run that has seen `samples` samples, 0 for a new one. Of a new run's file, what stands in front of
    /// `init_start` stays, for launchers log there, too; of another's, everything up to those samples, but for an evaluation that
    /// was not completed and the end of the run.
    ///
    /// # Errors
    /// [`LogError::Empty`], [`LogError::Io`], [`LogError::Damaged`]; [`LogError::NoStart`] if the file does not hold the
    /// run's beginning, [`LogError::TwoRuns`] if it holds two.
    pub fn open(path: &Path, submission: &Submission, samples: u64) -> Result<Self, LogError> {
        Self::open_with_clock(path, submission, samples, now_ms)
    }

    /// The same with another clock, which tells milliseconds since 1970.
    ///
    /// # Errors
    /// As [`LogWriter::open`].
    pub fn open_with_clock(
        path: &Path,
        submission: &Submission,
        samples: u64,
        clock: fn() -> i64,
    ) -> Result<Self, LogError> {
        if let Some(field) = submission.empty_field() {
            return Err(LogError::Empty { field });
        }
        let folder = durable::parent_folder(path);
        fs::create_dir_all(folder).map_err(|source| io_error(folder, "create this folder", source))?;
        let (progress, length) = rewind(path, samples)?;
        let opened = OpenOptions::new().append(true).create(true).open(path);
        let file = opened.map_err(|source| io_error(path, "open it", source))?;
        durable::sync_folder(folder).map_err(|source| io_error(folder, "synchronise it", source))?;
        Ok(Self { file, path: path.to_owned(), length, submission: submission.clone(), progress, follows: None, clock })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the log holds a complete evaluation at a sample count.
    pub fn evaluated(&self, samples: u64) -> bool {
        self.progress.evaluated.contains(&samples)
    }

    /// Samples at which the open block of training steps began; `None` outside of blocks.
    pub fn block(&self) -> Option<u64> {
        self.progress.block
    }

    /// Most samples that a line has; 0 before the first.
    pub fn last_samples(&self) -> u64 {
        self.progress.last
    }

    /// The process starts: `cache_clear` (whether the system's caches were cleared; left out if a launcher logged it), who submits
    /// what, `init_start`. Nothing for a run that goes on.
    ///
    /// # Errors
    /// [`LogError::OtherBeginning`] if a run that goes on said something else; [`LogError::Io`].
    #[track_caller]
    pub fn init_start(&mut self, cache_cleared: bool) -> Result<(), LogError> {
        if self.progress.init_start {
            return self.submission.lines().into_iter().try_for_each(|(key, value)| self.expect(key, Some(&value)));
        }
        let mut lines = Vec::new();
        if !self.progress.cache_clear {
            lines.push((keys::CACHE_CLEAR, Value::from(cache_cleared)));
        }
        lines.extend(self.submission.lines());
        self.points(lines)?;
        self.write(Event::Start, keys::INIT_START, Value::Null, &[])
    }

    /// Everything is ready and no data was touched: seed and sizes, `init_stop`, the optimizer's settings. Nothing for a run that
    /// goes on.
    ///
    /// # Errors
    /// [`LogError::Order`] before `init_start`; [`LogError::OtherBeginning`] if a run that goes on lacks one, or had another seed or
    /// batch; [`LogError::Io`].
    #[track_caller]
    pub fn init_stop(&mut self, settings: &Settings) -> Result<(), LogError> {
        if self.progress.init_stop {
            let lines = settings.before_init_stop(self.submission.benchmark).into_iter();
            // Others may differ: what a run is split into, and numbers by a digit.
            let whole = [keys::SEED, keys::GLOBAL_BATCH_SIZE];
            return lines
                .chain(settings.behind_init_stop())
                .try_for_each(|(key, value)| self.expect(key, whole.contains(&key).then_some(&value)));
        }
        self.needs(keys::INIT_STOP, self.progress.init_start, keys::INIT_START)?;
        self.points(settings.before_init_stop(self.submission.benchmark))?;
        self.write(Event::End, keys::INIT_STOP, Value::Null, &[])?;
        self.points(settings.behind_init_stop())
    }

    /// The clock of the benchmark starts. Nothing for a run that goes on.
    ///
    /// # Errors
    /// [`LogError::Order`] before `init_stop`; [`LogError::Io`].
    #[track_caller]
    pub fn run_start(&mut self) -> Result<(), LogError> {
        if self.progress.run_start {
            return Ok(());
        }
        self.needs(keys::RUN_START, self.progress.init_stop, keys::INIT_STOP)?;
        self.write(Event::Start, keys::RUN_START, Value::Null, &[])
    }

    /// A block of training steps begins, if none has; see [`LogWriter::block_follows`], too. Blocks are as long as the trainer likes; one has to end where a
    /// checkpoint is kept for evaluation.
    ///
    /// # Errors
    /// [`LogError::Order`] outside of the run; [`LogError::Io`].
    #[track_caller]
    pub fn block_start(&mut self, samples: u64) -> Result<(), LogError> {
        self.within_run(keys::BLOCK_START)?;
        if self.progress.block.is_some() {
            return Ok(());
        }
        self.write(Event::Start, keys::BLOCK_START, Value::from("training_step"), &[samples_count(samples)])
    }

    /// A block of training steps begins now, if none has and training goes on: the line stands in front of the first one of more
    /// samples, with the time of this call. So no empty block stands behind the last evaluation.
    ///
    /// # Errors
    /// [`LogError::Order`] outside of the run.
    #[track_caller]
    pub fn block_follows(&mut self, samples: u64) -> Result<(), LogError> {
        self.within_run(keys::BLOCK_START)?;
        if self.progress.block.is_none() {
            self.follows = Some(Follows { samples, time_ms: (self.clock)(), place: Location::caller() });
        }
        Ok(())
    }

    /// Writes the block's beginning that lies in front of a line of some samples.
    fn begin_block(&mut self, samples: u64) -> Result<(), LogError> {
        let Some(Follows { samples: start, time_ms, place }) = self.follows.filter(|follows| follows.samples < samples)
        else {
            return Ok(());
        };
        self.follows = None;
        let (value, metadata) = (Value::from("training_step"), [samples_count(start)]);
        self.put(log_line(time_ms, Event::Start, keys::BLOCK_START, &value, &metadata, place))?;
        self.progress.note(keys::BLOCK_START, Some(start));
        Ok(())
    }

    /// The block of training steps ends, if one has begun.
    ///
    /// # Errors
    /// [`LogError::Order`] outside of the run; [`LogError::Io`].
    #[track_caller]
    pub fn block_stop(&mut self, samples: u64) -> Result<(), LogError> {
        self.within_run(keys::BLOCK_STOP)?;
        self.begin_block(samples)?;
        if self.progress.block.is_none() {
            return Ok(());
        }
        self.write(Event::End, keys::BLOCK_STOP, Value::from("training_step"), &[samples_count(samples)])
    }

    /// An epoch begins, if none has; epochs are counted from 1. Benchmarks that count samples need no epochs beside their blocks.
    ///
    /// # Errors
    /// [`LogError::Order`] outside of the run; [`LogError::Io`].
    #[track_caller]
    pub fn epoch_start(&mut self, epoch: u64, samples: u64) -> Result<(), LogError> {
        self.within_run(keys::EPOCH_START)?;
        if self.progress.epoch {
            return Ok(());
        }
        self.write(Event::Start, keys::EPOCH_START, Value::Null, &epoch_num(epoch, samples))
    }

    /// The epoch ends, if one has begun.
    ///
    /// # Errors
    /// [`LogError::Order`] outside of the run; [`LogError::Io`].
    #[track_caller]
    pub fn epoch_stop(&mut self, epoch: u64, samples: u64) -> Result<(), LogError> {
        self.within_run(keys::EPOCH_STOP)?;
        if !self.progress.epoch {
            return Ok(());
        }
        self.write(Event::End, keys::EPOCH_STOP, Value::Null, &epoch_num(epoch, samples))
    }

    /// Loss and learning rate of training (`loss`, `lr_abs`).
    ///
    /// # Errors
    /// [`LogError::Order`] outside of the run; [`LogError::Io`].
    #[track_caller]
    pub fn training(&mut self, samples: u64, loss: f64, learning_rate: f64) -> Result<(), LogError> {
        self.within_run(keys::LOSS)?;
        for (key, value) in [(keys::LOSS, loss), (keys::LEARNING_RATE, learning_rate)] {
            self.write(Event::Point, key, Value::from(value), &[samples_count(samples)])?;
        }
        Ok(())
    }

    /// An evaluation begins.
    ///
    /// # Errors
    /// [`LogError::Order`] outside of the run, or within an evaluation; [`LogError::Io`].
    #[track_caller]
    pub fn eval_start(&mut self, samples: u64) -> Result<(), LogError> {
        self.within_run(keys::EVAL_START)?;
        if let Some(open) = self.progress.evaluation {
            return Err(self.order(keys::EVAL_START, format!("within the evaluation at {open} samples")));
        }
        self.write(Event::Start, keys::EVAL_START, Value::from(samples), &[samples_count(samples)])
    }

    /// A result of the evaluation that has begun: FID and CLIP score, or the validation loss. NaN is logged as it is.
    ///
    /// # Errors
    /// [`LogError::Order`] outside of an evaluation; [`LogError::Io`].
    #[track_caller]
    pub fn eval_accuracy(&mut self, metric: Metric, value: f64) -> Result<(), LogError> {
        let samples = self.evaluation(keys::EVAL_ACCURACY)?;
        for (key, metadata) in result_lines(metric, samples, self.submission.division) {
            self.write(Event::Point, key, Value::from(value), &metadata)?;
        }
        Ok(())
    }

    /// The evaluation ends.
    ///
    /// # Errors
    /// [`LogError::Order`] outside of an evaluation; [`LogError::Io`].
    #[track_caller]
    pub fn eval_stop(&mut self) -> Result<(), LogError> {
        let samples = self.evaluation(keys::EVAL_STOP)?;
        self.write(Event::End, keys::EVAL_STOP, Value::from(samples), &[samples_count(samples)])
    }

    /// The run ends now, and with it an open block. Runs whose checkpoints are evaluated afterwards are not ended here, but by
    /// [`finish_offline`](crate::finish_offline).
    ///
    /// # Errors
    /// [`LogError::Order`] outside of the run, or within an evaluation; [`LogError::Io`].
    #[track_caller]
    pub fn run_stop(&mut self, status: RunStatus, samples: u64) -> Result<(), LogError> {
        self.within_run(keys::RUN_STOP)?;
        if let Some(open) = self.progress.evaluation {
            return Err(self.order(keys::RUN_STOP, format!("within the evaluation at {open} samples")));
        }
        self.block_stop(samples)?;
        self.follows = None;
        let metadata = [(keys::STATUS, Value::from(status.name())), samples_count(samples)];
        self.write(Event::End, keys::RUN_STOP, Value::Null, &metadata)?;
        self.sync()
    }

    /// Any other line, such as figures of speed (`tracked_stats`): passed over by the checkers.
    ///
    /// # Errors
    /// [`LogError::Io`].
    #[track_caller]
    pub fn other(&mut self, key: &str, value: Value, samples: u64) -> Result<(), LogError> {
        self.write(Event::Point, key, value, &[samples_count(samples)])
    }

    /// Forces all lines onto the disk, so that they survive a power cut, too; to be called before a checkpoint is saved.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|source| io_error(&self.path, "synchronise it", source))
    }

    #[track_caller]
    fn points(&mut self, lines: Vec<(&'static str, Value)>) -> Result<(), LogError> {
        for (key, value) in lines {
            self.write(Event::Point, key, value, &[])?;
        }
        Ok(())
    }

    #[track_caller]
    fn write(&mut self, event: Event, key: &str, value: Value, metadata: &[(&str, Value)]) -> Result<(), LogError> {
        let samples = metadata.iter().find(|(name, _)| *name == keys::SAMPLES_COUNT);
        let samples = samples.and_then(|(_, value)| value.count());
        self.begin_block(samples.unwrap_or(0))?;
        if samples.is_none() {
            self.progress.beginning.push((key.to_owned(), value.clone()));
        }
        self.put(log_line((self.clock)(), event, key, &value, metadata, Location::caller()))?;
        self.progress.note(key, samples);
        Ok(())
    }

    /// One write call for the whole line: a kill leaves it complete or recognisably cut. What a full disk left of it goes, for the
    /// next line would stand behind.
    fn put(&mut self, line: String) -> Result<(), LogError> {
        if let Err(source) = self.file.write_all(line.as_bytes()) {
            // The first error is the one to report.
            let _ = self.file.set_len(self.length);
            return Err(io_error(&self.path, "write it", source));
        }
        self.length += line.len() as u64;
        Ok(())
    }

    fn evaluation(&self, key: &'static str) -> Result<u64, LogError> {
        self.progress.evaluation.ok_or_else(|| self.order(key, "outside of an evaluation".to_owned()))
    }

    fn within_run(&self, key: &'static str) -> Result<(), LogError> {
        self.needs(key, self.progress.run_start, keys::RUN_START)?;
        match self.progress.run_stop {
            true => Err(self.order(key, "after `run_stop`".to_owned())),
            false => Ok(()),
        }
    }

    /// Refuses a log that does not begin with a line of a key, and of a value where one is given.
    fn expect(&self, key: &'static str, wanted: Option<&Value>) -> Result<(), LogError> {
        let said = self.progress.beginning.iter().find(|(said, _)| said == key).map(|(_, value)| value);
        if said.is_some_and(|said| wanted.is_none_or(|wanted| said.same(wanted))) {
            return Ok(());
        }
        let [found, wanted] =
            [said, wanted].map(|value| value.map_or_else(|| "absent".to_owned(), ToString::to_string));
        let wanted = if wanted == "absent" { "logged by every run".to_owned() } else { wanted };
        Err(LogError::OtherBeginning { file: self.path.clone(), key, found, wanted })
    }

    fn needs(&self, key: &'static str, there: bool, other: &str) -> Result<(), LogError> {
        if there { Ok(()) } else { Err(self.order(key, format!("before `{other}`"))) }
    }

    fn order(&self, key: &'static str, why: String) -> LogError {
        LogError::Order { file: self.path.clone(), key, why }
    }
}

pub(crate) fn io_error(file: &Path, action: &'static str, source: io::Error) -> LogError {
    LogError::Io { file: file.to_owned(), action, source }
}
