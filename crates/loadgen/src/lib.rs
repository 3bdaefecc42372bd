//! MLPerf Inference's load generator (MLCommons' LoadGen 6.0.17), called safely.
//!
//! [`run`] hands LoadGen a [`System`] under test and a [`Library`] of samples. LoadGen issues queries; the system answers each
//! sample through its [`Responder`], once. What LoadGen reads as configuration is read here first, in the same way but strictly
//! ([`UserConf`], [`Effective`]): LoadGen passes over what it does not understand.
//!
//! LoadGen itself is compiled and linked with the feature `official`. Without it, [`run`] is an error that says how to build it, and
//! everything else works.

mod conf;
mod error;
#[cfg(feature = "official")]
mod official;
mod responder;
mod settings;

pub use conf::{ConfError, Effective, UserConf};
pub use error::LoadgenError;
pub use responder::{AnswerError, Responder};
pub use settings::{MODEL, Mode, Scenario, Seeds, Settings};

use std::sync::Arc;
use std::time::Duration;

/// The files that LoadGen writes into a run's folder.
pub const LOG_FILES: [&str; 4] =
    ["mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json", "mlperf_log_trace.json"];

/// A sample of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sample {
    /// What it is answered by; no other outstanding sample has it.
    pub id: u64,
    /// Its number in the library.
    pub index: u64,
}

/// What is measured. Its methods are called on LoadGen's thread.
pub trait System: Send + Sync {
    /// Its name in the logs.
    fn name(&self) -> &str;

    /// Takes the samples of a query and returns soon; they are answered later, from any thread, through the responder.
    fn issue(&self, samples: &[Sample], responder: &Arc<Responder>);

    /// No query follows before all samples are answered.
    fn flush(&self);

    /// Asked every few milliseconds on the thread that called [`run`]: the place to notice a stop and to call
    /// [`Responder::fail`].
    fn watch(&self, _responder: &Arc<Responder>) {}
}

/// The samples that queries name by number.
pub trait Library: Send + Sync {
    /// Its name in the logs.
    fn name(&self) -> &str;

    /// The number of samples.
    fn total(&self) -> usize;

    /// Samples that performance runs take.
    fn performance(&self) -> usize;

    /// Samples that are about to be issued; what it takes is not measured.
    fn load(&self, _samples: &[u64]) {}

    /// Samples that are not issued any more.
    fn unload(&self, _samples: &[u64]) {}
}

/// A run that LoadGen ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    /// Samples that were answered.
    pub answered: u64,
    /// Answers that were refused, as the sample had one already.
    pub refused: u64,
    /// The time from the first query to the last answer.
    pub measured: Duration,
}

/// Runs LoadGen once. A process does that once: LoadGen counts the configurations that it has read, and holds the second one
/// against the run.
///
/// When the responder is told of a failure, every outstanding sample and all that follow are answered with nothing, and LoadGen is left
/// as soon as it lets go; it has no abortion that works ([`LoadgenError::Failed`]). Where it waits for its schedule longer than
/// [`Settings::grace`], it is left behind: the process must then end by [`leave`] ([`LoadgenError::Abandoned`]).
///
/// # Errors
/// [`LoadgenError`], which says what to do.
pub fn run(settings: &Settings, system: &Arc<dyn System>, library: &Arc<dyn Library>) -> Result<Ended, LoadgenError> {
    #[cfg(feature = "official")]
    return official::run(settings, system, library);
    #[cfg(not(feature = "official"))]
    {
        let _ = (settings, system, library);
        Err(LoadgenError::NotBuilt)
    }
}

/// The release and the commit of LoadGen that this build has.
pub fn version() -> Option<String> {
    #[cfg(feature = "official")]
    return Some(official::version());
    #[cfg(not(feature = "official"))]
    None
}

/// Ends the process at once, without C++'s destructors, which end a process whose LoadGen still runs with SIGABRT.
pub fn leave(code: u8) -> ! {
    use std::io::Write;
    let _ = (std::io::stdout().flush(), std::io::stderr().flush());
    #[cfg(feature = "official")]
    official::leave(code.into());
    std::process::exit(code.into())
}
