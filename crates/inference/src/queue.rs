//! The samples that wait, and who takes them. It knows neither LoadGen nor networks.

use crate::error::InferenceError;
use calotype_core::StopFlag;
use calotype_loadgen::{Responder, Sample, System};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A sample that is to be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// What it is answered by.
    pub id: u64,
    /// Its number among the samples.
    pub sample: usize,
}

/// Who gets the answers.
pub trait Answers: Send + Sync {
    /// Takes a picture, `[height, width, 3]` of 8 bits. Says whether it was the sample's first answer; another one is refused.
    fn answer(&self, id: u64, pixels: Vec<u8>) -> bool;

    /// Takes a failure, which ends the run.
    fn fail(&self, message: &str);
}

impl Answers for Responder {
    fn answer(&self, id: u64, pixels: Vec<u8>) -> bool {
        self.complete(id, pixels).is_ok()
    }

    fn fail(&self, message: &str) {
        Responder::fail(self, message);
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Taken, and not answered yet.
    taken: usize,
    /// No more samples come before these are answered.
    flushed: bool,
    ended: bool,
    failure: Option<String>,
    answers: Option<Arc<dyn Answers>>,
    /// Who takes samples: threads, and processes.
    hands: usize,
    /// Samples that were given back by who is gone.
    resent: u64,
}

/// Samples in the order in which they came. Every sample that is taken is answered, given back, or goes down with a failure.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    stop: StopFlag,
}

/// The name of the system under test in LoadGen's logs.
const NAME: &str = "calotype";

/// How long a taker sleeps at most before it looks whether it is wanted at all.
const GLANCE: Duration = Duration::from_millis(100);

/// What a stop on request is called in a failure.
pub(crate) const STOPPED: &str = "stopped on request";

impl Queue {
    /// An empty queue, which fails when `stop` asks for it.
    pub fn new(stop: &StopFlag) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), stop: stop.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can stop half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts samples behind those that wait.
    pub fn put(&self, jobs: impl IntoIterator<Item = Job>, answers: &Arc<dyn Answers>) {
        let mut state = self.lock();
        state.flushed = false;
        state.answers.get_or_insert_with(|| Arc::clone(answers));
        if state.failure.is_none() {
            state.waiting.extend(jobs);
        }
        self.changed.notify_all();
    }

    /// Says that no samples follow before those that are there are answered.
    pub fn flush(&self) {
        self.lock().flushed = true;
        self.changed.notify_all();
    }

    /// Takes up to `most` samples, at least one; waits for the first one, and then up to `wait` for a full batch while more may come.
    /// None: the queue has ended or failed, or `wanted` says no.
    pub fn take(&self, most: usize, wait: Duration, wanted: &dyn Fn() -> bool) -> Vec<Job> {
        let mut state = self.lock();
        let mut since: Option<Instant> = None;
        loop {
            if state.ended || state.failure.is_some() || !wanted() {
                return Vec::new();
            }
            let there = state.waiting.len();
            let waited = since.map_or(Duration::ZERO, |since| since.elapsed());
            if there > 0 && (there >= most || state.flushed || waited >= wait) {
                let jobs: Vec<Job> = state.waiting.drain(..there.min(most.max(1))).collect();
                state.taken += jobs.len();
                return jobs;
            }
            if there > 0 {
                since.get_or_insert_with(Instant::now);
            }
            let sleep = if there > 0 { (wait - waited).min(GLANCE) } else { GLANCE };
            state = self.changed.wait_timeout(state, sleep).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Answers a sample that was taken. Says whether it was its first answer: another one never reaches LoadGen.
    pub fn answer(&self, job: Job, pixels: Vec<u8>) -> bool {
        let answers = {
            let mut state = self.lock();
            state.taken = state.taken.saturating_sub(1);
            state.answers.clone()
        };
        answers.is_some_and(|answers| answers.answer(job.id, pixels))
    }

    /// Puts samples that were taken in front of those that wait: who took them is gone.
    pub fn give_back(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut state = self.lock();
        for job in jobs {
            state.taken = state.taken.saturating_sub(1);
            state.resent += 1;
            state.waiting.push_front(job);
        }
        self.changed.notify_all();
    }

    /// Ends the run: whoever takes gets nothing more, and what is outstanding is answered with nothing. The first failure stands.
    pub fn fail(&self, message: impl Into<String>) {
        let message = message.into();
        let answers = {
            let mut state = self.lock();
            state.failure.get_or_insert_with(|| message.clone());
            state.waiting.clear();
            state.answers.clone()
        };
        self.changed.notify_all();
        if let Some(answers) = answers {
            answers.fail(&message);
        }
    }

    /// What ended the run, if something did.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Ends the queue in good order.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Whether who draws should go on with what it has taken.
    pub fn goes_on(&self) -> bool {
        let state = self.lock();
        !state.ended && state.failure.is_none()
    }

    /// Samples that were given back so far.
    pub fn resent(&self) -> u64 {
        self.lock().resent
    }

    /// Somebody begins to take samples.
    pub fn join(&self) {
        self.lock().hands += 1;
    }

    /// Somebody takes no samples any more, because of `why`. With nobody left, the run fails.
    pub fn leave(&self, why: &str) {
        let last = {
            let mut state = self.lock();
            state.hands = state.hands.saturating_sub(1);
            state.hands == 0 && !state.ended
        };
        if last {
            self.fail(format!("{why}; nobody is left who draws"));
        }
    }

    /// Fails if a stop was asked for.
    pub(crate) fn glance(&self) {
        if self.stop.is_set() {
            self.fail(STOPPED);
        }
    }

    /// The sample's number, if it is one.
    fn jobs(samples: &[Sample], total: usize) -> Result<Vec<Job>, InferenceError> {
        let job = |sample: &Sample| {
            let number = usize::try_from(sample.index).ok().filter(|number| *number < total);
            let strange = || InferenceError::setting(format!("there is no sample {}, only {total}", sample.index));
            Ok(Job { id: sample.id, sample: number.ok_or_else(strange)? })
        };
        samples.iter().map(job).collect()
    }
}

/// A queue as LoadGen's system under test.
pub(crate) struct Served {
    pub queue: Arc<Queue>,
    /// The number of samples.
    pub total: usize,
}

impl System for Served {
    fn name(&self) -> &str {
        NAME
    }

    fn issue(&self, samples: &[Sample], responder: &Arc<Responder>) {
        let answers: Arc<dyn Answers> = Arc::<Responder>::clone(responder);
        match Queue::jobs(samples, self.total) {
            Ok(jobs) => self.queue.put(jobs, &answers),
            Err(error) => responder.fail(error.to_string()),
        }
        // What failed before the first sample came has told nobody yet.
        if let Some(failure) = self.queue.failure() {
            responder.fail(failure);
        }
    }

    fn flush(&self) {
        self.queue.flush();
    }

    fn watch(&self, responder: &Arc<Responder>) {
        self.queue.glance();
        if let Some(failure) = self.queue.failure() {
            responder.fail(failure);
        }
    }
}
