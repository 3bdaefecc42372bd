//! Progress reports and clean stopping of long stages.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

type Progress<'a> = Box<dyn FnMut(&'static str, usize, usize) + 'a>;
type Stop<'a> = Box<dyn Fn() -> bool + 'a>;

/// Observer of a long stage: it receives progress and may ask for a stop. The default does neither.
#[derive(Default)]
pub struct Control<'a> {
    progress: Option<Progress<'a>>,
    stop: Option<Stop<'a>>,
}

impl<'a> Control<'a> {
    /// Calls `report(stage, done, total)`, in samples, as work goes on.
    pub fn with_progress(mut self, report: impl FnMut(&'static str, usize, usize) + 'a) -> Self {
        self.progress = Some(Box::new(report));
        self
    }

    /// Ends the stage with [`Error::Interrupted`] at the next batch or shard boundary once `should_stop` is true.
    pub fn with_stop(mut self, should_stop: impl Fn() -> bool + 'a) -> Self {
        self.stop = Some(Box::new(should_stop));
        self
    }

    /// [`Control::with_stop`] for a flag, as a SIGTERM handler sets it.
    pub fn with_stop_flag(self, flag: &'a AtomicBool) -> Self {
        self.with_stop(|| flag.load(Ordering::Relaxed))
    }

    /// Reports progress of work that is done, so that a stop has nothing left to cut.
    pub fn report(&mut self, stage: &'static str, done: usize, total: usize) {
        if let Some(report) = &mut self.progress {
            report(stage, done, total);
        }
    }

    /// Reports progress, then fails if the stage should stop.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if a stop was asked for.
    pub fn checkpoint(&mut self, stage: &'static str, done: usize, total: usize) -> Result<()> {
        self.report(stage, done, total);
        match &self.stop {
            Some(stop) if stop() => Err(Error::Interrupted { stage, done, total }),
            _ => Ok(()),
        }
    }
}
