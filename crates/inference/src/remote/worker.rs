//! The side that draws.

use super::wire::{Message, WireError, read_message, write_message};
use super::{BEAT, VERSION};
use crate::draw::Artist;
use crate::error::InferenceError;
use crate::hands::{Captioned, HandSettings, Hands};
use crate::queue::{Answers, Job, Queue};
use crate::recipe::ProcessSettings;
use calotype_core::StopFlag;
use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often is looked whether to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// What a worker says of itself.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What its pictures depend on.
    pub digest: String,
    /// Its host and number.
    pub name: String,
    /// Samples that are drawn at once.
    pub batch: usize,
    /// How its threads take samples.
    pub hands: HandSettings,
    /// How long is waited.
    pub processes: ProcessSettings,
}

/// Answers on their way to the process that has LoadGen.
struct Outbox {
    stream: Mutex<TcpStream>,
    captions: Mutex<HashMap<u64, String>>,
    failed: AtomicBool,
}

impl Outbox {
    fn send(&self, message: &Message) -> Result<(), WireError> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        write_message(&mut *stream, message)
    }

    fn captions(&self) -> std::sync::MutexGuard<'_, HashMap<u64, String>> {
        self.captions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers for Outbox {
    fn answer(&self, id: u64, pixels: Vec<u8>) -> bool {
        // A connection that broke is noticed by who reads from it.
        self.captions().remove(&id).is_some() && self.send(&Message::Done { id, pixels }).is_ok()
    }

    fn fail(&self, message: &str) {
        if !self.failed.swap(true, Ordering::SeqCst) {
            drop(self.send(&Message::Failed(message.to_owned())));
        }
    }
}

impl Captioned for Outbox {
    fn caption(&self, job: Job) -> Option<String> {
        self.captions().get(&job.id).cloned()
    }
}

/// Draws for one run: says who we are, loads by `load`, and draws what comes until the end is told.
///
/// # Errors
/// [`InferenceError::Process`] if we are refused, or the other side is gone without a word; [`InferenceError::Told`] if it tells why the
/// run failed, as when `load` does; [`InferenceError::Stopped`].
pub fn serve(
    mut stream: TcpStream,
    terms: &Terms,
    load: impl FnOnce() -> Result<Artist, InferenceError>,
    stop: &StopFlag,
) -> Result<(), InferenceError> {
    let gone = |error: WireError| InferenceError::Process(format!("the process that has LoadGen is gone: {error}"));
    let set = stream
        .set_nodelay(true)
        // The other side may still be reading its checkpoint.
        .and_then(|()| stream.set_read_timeout(Some(terms.processes.start())))
        .and_then(|()| stream.set_write_timeout(Some(terms.processes.silence())));
    set.map_err(|error| gone(error.into()))?;
    let hello = Message::Hello {
        version: VERSION,
        digest: terms.digest.clone(),
        name: terms.name.clone(),
        batch: terms.batch as u32,
        capacity: (terms.batch * terms.hands.workers) as u32,
    };
    write_message(&mut stream, &hello).map_err(gone)?;
    match read_message(&mut stream).map_err(gone)? {
        Message::Welcome => {}
        Message::Refused(why) => {
            return Err(InferenceError::Process(format!("refused by the process that has LoadGen: {why}")));
        }
        _ => return Err(gone(WireError::Strange("no answer to a greeting"))),
    }
    stream.set_read_timeout(Some(terms.processes.silence())).map_err(|error| gone(error.into()))?;
    let outbox = Arc::new(Outbox {
        stream: Mutex::new(stream.try_clone().map_err(|error| gone(error.into()))?),
        captions: Mutex::default(),
        failed: AtomicBool::new(false),
    });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| beat(&outbox, &stream, &over, stop));
        let outcome = draw(&stream, terms, load, &outbox, stop);
        over.store(true, Ordering::SeqCst);
        let _ = stream.shutdown(Shutdown::Both);
        outcome
    })
}

/// Says that we live, and breaks the connection when we are to stop: the others draw our samples then.
fn beat(outbox: &Outbox, stream: &TcpStream, over: &AtomicBool, stop: &StopFlag) {
    let mut since = Duration::ZERO;
    while !over.load(Ordering::SeqCst) {
        if stop.is_set() {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
        std::thread::sleep(GLANCE);
        since += GLANCE;
        if since >= BEAT {
            since = Duration::ZERO;
            if outbox.send(&Message::Alive).is_err() {
                return;
            }
        }
    }
}

fn draw(
    mut stream: &TcpStream,
    terms: &Terms,
    load: impl FnOnce() -> Result<Artist, InferenceError>,
    outbox: &Arc<Outbox>,
    stop: &StopFlag,
) -> Result<(), InferenceError> {
    let artist = match load() {
        Ok(artist) => artist,
        Err(error) => {
            outbox.fail(&error.to_string());
            return Err(if stop.is_set() { error } else { InferenceError::Told });
        }
    };
    let queue = Arc::new(Queue::new(&StopFlag::new_unhooked()));
    let answers: Arc<dyn Answers> = Arc::<Outbox>::clone(outbox);
    // So that a failure finds its way before the first sample comes.
    queue.put([], &answers);
    let captions: Arc<dyn Captioned> = Arc::<Outbox>::clone(outbox);
    // Batches come whole: who sends them waits for them to be full.
    let hands = Hands::start_with(HandSettings { wait: Duration::ZERO, ..terms.hands }, &artist, &captions, &queue)?;
    let ready = outbox.send(&Message::Ready);
    let outcome = ready.and_then(|()| {
        loop {
            match read_message(&mut stream)? {
                Message::Work(all) => {
                    outbox.captions().extend(all.iter().map(|work| (work.id, work.caption.clone())));
                    queue.put(all.iter().map(|work| Job { id: work.id, sample: work.sample as usize }), &answers);
                    queue.flush();
                }
                Message::Alive => {}
                Message::End { failed } => {
                    // At once: who draws here may be in the middle of a step.
                    let _ = stream.shutdown(Shutdown::Both);
                    return Ok(failed);
                }
                _ => return Err(WireError::Strange("a message that is not for workers")),
            }
        }
    });
    queue.end();
    hands.join();
    match outcome {
        _ if stop.is_set() => Err(InferenceError::Stopped("stopped; the others draw what was in work here".to_owned())),
        Ok(false) => Ok(()),
        Ok(true) => Err(InferenceError::Told),
        Err(error) => Err(InferenceError::Process(format!("the process that has LoadGen is gone: {error}"))),
    }
}
