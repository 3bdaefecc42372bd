//! Threads of this process that draw what the queue holds.

use crate::draw::Artist;
use crate::error::InferenceError;
use crate::queue::{Job, Queue};
use crate::samples::Samples;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// How threads take samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandSettings {
    /// Threads.
    pub workers: usize,
    /// How long a batch that is not full waits.
    pub wait: Duration,
}

/// Where the captions of samples are found.
pub(crate) trait Captioned: Send + Sync {
    /// The caption of a sample, as long as it is in work.
    fn caption(&self, job: Job) -> Option<String>;
}

impl Captioned for Samples {
    fn caption(&self, job: Job) -> Option<String> {
        self.caption(job.sample).map(str::to_owned)
    }
}

/// Threads that draw until the queue ends.
#[derive(Debug)]
pub struct Hands(Vec<JoinHandle<()>>);

impl Hands {
    /// Starts them.
    ///
    /// # Errors
    /// [`InferenceError::Process`] if the system gives no more threads.
    pub fn start(
        settings: HandSettings,
        artist: &Artist,
        samples: &Arc<Samples>,
        queue: &Arc<Queue>,
    ) -> Result<Self, InferenceError> {
        let captions: Arc<dyn Captioned> = Arc::<Samples>::clone(samples);
        Self::start_with(settings, artist, &captions, queue)
    }

    pub(crate) fn start_with(
        settings: HandSettings,
        artist: &Artist,
        captions: &Arc<dyn Captioned>,
        queue: &Arc<Queue>,
    ) -> Result<Self, InferenceError> {
        let mut threads = Vec::new();
        for number in 0..settings.workers {
            let (artist, captions, taken_from) = (artist.clone(), Arc::clone(captions), Arc::clone(queue));
            queue.join();
            let work = move || {
                // Burn's tensors cannot be seen half changed: each batch makes its own.
                let outcome = catch_unwind(AssertUnwindSafe(|| draw(&artist, &*captions, &taken_from, settings.wait)));
                if outcome.is_err() {
                    taken_from.fail("a thread that draws panicked, as it says above; this is a fault of the program");
                }
                taken_from.leave("the threads of this process have ended");
            };
            let thread = Builder::new().name(format!("hand-{number}")).spawn(work);
            threads.push(thread.map_err(|error| InferenceError::Process(format!("cannot start a thread: {error}")))?);
        }
        Ok(Self(threads))
    }

    /// Waits until all have ended, which they do when the queue does.
    pub fn join(self) {
        // Their panics are caught above.
        self.0.into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// Draws batches until the queue gives no more.
fn draw(artist: &Artist, captions: &dyn Captioned, queue: &Queue, wait: Duration) {
    loop {
        let jobs = queue.take(artist.batch(), wait, &|| true);
        if jobs.is_empty() {
            return;
        }
        let texts: Option<Vec<String>> = jobs.iter().map(|job| captions.caption(*job)).collect();
        let Some(texts) = texts else {
            queue.fail("a sample without a caption was taken; this is a fault of the program");
            return;
        };
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut answered = vec![false; jobs.len()];
        let outcome = artist.draw(&texts, &|| queue.goes_on(), &mut |row, pixels| {
            answered[row] = true;
            queue.answer(jobs[row], pixels);
        });
        match outcome {
            Ok(()) => {}
            Err(error) if error.is_stopped() => return,
            Err(error) => {
                let open = jobs.iter().zip(&answered).filter(|(_, answered)| !**answered);
                let numbers: Vec<String> = open.map(|(job, _)| job.sample.to_string()).collect();
                queue.fail(format!("drawing of sample {} failed: {error}", numbers.join(", ")));
                return;
            }
        }
    }
}
