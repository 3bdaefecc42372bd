//! Answers on their way to LoadGen: each sample has one, and all are handed over by one thread.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// An answer that is refused, before LoadGen sees it: it would take a sample's second answer for a valid one and count it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The sample is not outstanding: it has its answer, or was never issued.
    #[error("sample {id:#x} is answered twice, or was never issued")]
    NotOutstanding {
        /// The sample's id.
        id: u64,
    },
}

/// What the thread that hands over is to do.
enum Item {
    Answer {
        id: u64,
        data: Vec<u8>,
    },
    /// Wait until LoadGen has written what it was handed.
    #[cfg(feature = "official")]
    Flush,
}

#[derive(Default)]
struct State {
    outstanding: HashSet<u64>,
    answered: u64,
    refused: u64,
    /// Answers that were sent and not handed over yet.
    pending: u64,
    failure: Option<String>,
    /// None: nothing is handed over any more.
    sender: Option<Sender<Item>>,
}

/// Takes answers from any thread. One thread hands all of them over, in the order in which they come: LoadGen's logger keeps a
/// buffer for each thread that calls it, and crashes where one of these ends before the run does.
pub struct Responder {
    state: Mutex<State>,
    idle: Condvar,
}

/// The other end, for the thread that hands over.
pub(crate) struct Deliveries(Receiver<Item>);

impl Responder {
    pub(crate) fn new() -> (Self, Deliveries) {
        let (sender, receiver) = channel();
        let state = State { sender: Some(sender), ..State::default() };
        (Self { state: Mutex::new(state), idle: Condvar::new() }, Deliveries(receiver))
    }

    /// A responder without LoadGen, whose answers `deliver` takes on a thread that ends with [`close`](Self::close) or the
    /// responder.
    pub fn to(mut deliver: impl FnMut(u64, &[u8]) + Send + 'static) -> std::sync::Arc<Self> {
        let (responder, deliveries) = Self::new();
        let responder = std::sync::Arc::new(responder);
        // Weak, so that the thread ends when nobody can answer any more.
        let weak = std::sync::Arc::downgrade(&responder);
        std::thread::spawn(move || {
            while let Ok(item) = deliveries.0.recv() {
                match item {
                    Item::Answer { id, data } => deliver(id, &data),
                    #[cfg(feature = "official")]
                    Item::Flush => {}
                }
                weak.upgrade().inspect(|responder| responder.handed_over());
            }
        });
        responder
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can stop half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Samples that have to be answered from now on. After a failure they are answered with nothing, at once.
    pub fn issued(&self, ids: impl IntoIterator<Item = u64>) {
        let mut state = self.lock();
        state.outstanding.extend(ids);
        if state.failure.is_some() {
            answer_with_nothing(&mut state);
        }
    }

    /// Answers a sample.
    ///
    /// # Errors
    /// [`AnswerError`] if it is not outstanding; the first answer stands.
    pub fn complete(&self, id: u64, data: Vec<u8>) -> Result<(), AnswerError> {
        let mut state = self.lock();
        if !state.outstanding.remove(&id) {
            // What comes after a failure is late, not wrong.
            state.refused += u64::from(state.failure.is_none());
            return Err(AnswerError::NotOutstanding { id });
        }
        state.answered += 1;
        send(&mut state, Item::Answer { id, data });
        Ok(())
    }

    /// Ends the run: what is outstanding, and what is issued from now on, is answered with nothing. The first failure stands.
    pub fn fail(&self, message: impl Into<String>) {
        let mut state = self.lock();
        state.failure.get_or_insert_with(|| message.into());
        answer_with_nothing(&mut state);
    }

    /// What ended the run, if something did.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Samples that wait for an answer.
    pub fn outstanding(&self) -> usize {
        self.lock().outstanding.len()
    }

    /// Samples that were answered, without those of a failure.
    pub fn answered(&self) -> u64 {
        self.lock().answered
    }

    /// Answers that were refused.
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// Hands over what was answered, and nothing after it; returns when that is done.
    pub fn close(&self) {
        self.close_behind(self.lock());
    }

    /// The same while LoadGen runs, which is left behind it: what it was handed is written first.
    #[cfg(feature = "official")]
    pub(crate) fn close_flushed(&self) {
        let mut state = self.lock();
        send(&mut state, Item::Flush);
        self.close_behind(state);
    }

    fn close_behind(&self, mut state: MutexGuard<'_, State>) {
        state.sender = None;
        while state.pending > 0 {
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn handed_over(&self) {
        self.lock().pending -= 1;
        self.idle.notify_all();
    }

    /// Hands over until the responder is closed.
    #[cfg(feature = "official")]
    pub(crate) fn hand_over(&self, deliveries: &Deliveries, mut deliver: impl FnMut(u64, &[u8]), flush: impl Fn()) {
        while let Ok(item) = deliveries.0.recv() {
            match item {
                Item::Answer { id, data } => deliver(id, &data),
                Item::Flush => flush(),
            }
            self.handed_over();
        }
    }
}

fn answer_with_nothing(state: &mut State) {
    for id in std::mem::take(&mut state.outstanding) {
        send(state, Item::Answer { id, data: Vec::new() });
    }
}

fn send(state: &mut State, item: Item) {
    // Closed, or nobody hands over any more: LoadGen has let go of its samples.
    let sent = state.sender.as_ref().is_some_and(|sender| sender.send(item).is_ok());
    state.pending += u64::from(sent);
}
