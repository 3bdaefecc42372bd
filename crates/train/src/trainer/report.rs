//! Events of a run for its trackers: the beginning, what happens, and the end, also of a run that fails.

use crate::stages::StageContext;
use crate::trackers::{Event, Mllog, MllogPlan, RunOutcome, Tracker, TrackerError, TrackerSettings, Trackers};
use std::cell::{Cell, RefCell};

/// The trackers of a run. They are kept outside of the run's own state, which a step that fails takes with it.
pub(super) struct Reporter<'a> {
    /// Those in the run's folder, from the run's beginning on; never in processes other than the first.
    own: RefCell<Option<Trackers>>,
    /// The log of an MLPerf benchmark that is to be among them.
    mllog: Option<MllogPlan>,
    context: &'a StageContext<'a>,
    /// Samples seen at the last event or step.
    samples: Cell<u64>,
    /// Whether the trackers were told of a beginning and not yet of an end.
    running: Cell<bool>,
}

impl<'a> Reporter<'a> {
    pub(super) fn new(context: &'a StageContext<'a>, mllog: Option<MllogPlan>) -> Self {
        Self { own: RefCell::new(None), mllog, context, samples: Cell::new(0), running: Cell::new(false) }
    }

    /// Opens the trackers of a run that has seen some samples, and tells that it goes on. Entries of more than `kept` samples
    /// are dropped.
    pub(super) fn begin(
        &self,
        settings: &TrackerSettings,
        samples: u64,
        kept: u64,
        config: &str,
    ) -> Result<(), TrackerError> {
        if self.context.collective.is_first() {
            let mut own = Trackers::open(self.context.folder, kept, settings)?;
            if let Some(plan) = &self.mllog {
                own.push(Box::new(Mllog::open(self.context.folder, plan, samples)?));
            }
            *self.own.borrow_mut() = Some(own);
        }
        self.samples.set(samples);
        self.running.set(true);
        self.tell(&Event::RunStart { samples, config })
    }

    /// Notes a step.
    pub(super) fn seen(&self, samples: u64) {
        self.samples.set(samples);
    }

    /// Gives an event to all trackers, where this process has them.
    pub(super) fn tell(&self, event: &Event<'_>) -> Result<(), TrackerError> {
        self.each(|tracker| tracker.event(event))
    }

    pub(super) fn sync(&self) -> Result<(), TrackerError> {
        self.each(|tracker| tracker.sync())
    }

    /// Calls all trackers, also behind one that fails, and gives the first error.
    fn each(&self, mut call: impl FnMut(&mut dyn Tracker) -> Result<(), TrackerError>) -> Result<(), TrackerError> {
        let mut own = self.own.borrow_mut();
        let Some(own) = own.as_mut() else { return Ok(()) };
        let first = call(own);
        let second = self.context.tracker.map_or(Ok(()), |more| call(&mut *more.borrow_mut()));
        first.and(second)
    }

    /// Tells that the run ends well, or is stopped.
    pub(super) fn end(&self, samples: u64, outcome: RunOutcome) -> Result<(), TrackerError> {
        self.running.set(false);
        self.tell(&Event::RunEnd { samples, outcome })
    }

    /// Tells that the run has failed, if it had begun. The run's own error is what the user has to see, so that errors of
    /// trackers are only logged.
    pub(super) fn fail(&self) {
        if !self.running.replace(false) {
            return;
        }
        let event = Event::RunEnd { samples: self.samples.get(), outcome: RunOutcome::Failed };
        if let Err(error) = self.tell(&event).and_then(|()| self.sync()) {
            tracing::warn!("the end of the run could not be recorded: {error}");
        }
    }
}
