//! The side that has LoadGen: takes workers in, and hands each of them batches.

use super::wire::{Message, WireError, Work, read_message, write_message};
use super::{BEAT, VERSION};
use crate::error::InferenceError;
use crate::queue::{Job, Queue};
use crate::recipe::{LostWorker, ProcessSettings};
use crate::samples::Samples;
use calotype_core::StopFlag;
use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

/// How long a connection may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);
/// How long a worker may take to hear of the end.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long is slept between two looks.
const GLANCE: Duration = Duration::from_millis(50);

/// A worker that belongs to this run.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    /// Its host and number.
    pub name: String,
    batch: usize,
    capacity: usize,
}

/// Takes in as many workers as the run has, which connect to us.
///
/// # Errors
/// [`InferenceError::Process`] naming how many did not come in time, or one that draws with something else.
pub fn gather(
    listener: &TcpListener,
    count: usize,
    digest: &str,
    settings: &ProcessSettings,
    stop: &StopFlag,
) -> Result<Vec<Peer>, InferenceError> {
    let broken = |error: io::Error| InferenceError::Process(format!("cannot wait for the other processes: {error}"));
    listener.set_nonblocking(true).map_err(broken)?;
    let begun = Instant::now();
    let mut peers = Vec::new();
    while peers.len() < count {
        match listener.accept() {
            // A stranger that knocks at the port is none of ours, and holds nothing up for long.
            Ok((stream, from)) => match greet(stream, digest, settings) {
                Ok(peer) => peers.push(peer),
                Err(Greeting::Strange(error)) => tracing::warn!("{from} connected, and is no worker: {error}"),
                Err(Greeting::Other(error)) => return Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_on(begun, settings, stop, || {
                    format!("{} of {count} other processes did not come", count - peers.len())
                })?;
            }
            Err(error) => return Err(broken(error)),
        }
    }
    Ok(peers)
}

/// Connects to workers that listen, in the order in which they are named.
///
/// # Errors
/// [`InferenceError::Process`] naming the address that does not answer, or the worker that draws with something else.
pub fn connect_to(
    addresses: &[String],
    digest: &str,
    settings: &ProcessSettings,
    stop: &StopFlag,
) -> Result<Vec<Peer>, InferenceError> {
    let connect = |address: &String| {
        let begun = Instant::now();
        loop {
            let problem = match connected(address) {
                Ok(stream) => match greet(stream, digest, settings) {
                    Ok(peer) => return Ok(peer),
                    Err(Greeting::Other(error)) => return Err(error),
                    Err(Greeting::Strange(error)) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            wait_on(begun, settings, stop, || format!("the worker at {address} does not answer ({problem})"))?;
        }
    };
    addresses.iter().map(connect).collect()
}

/// A connection to an address, tried once.
pub(super) fn connected(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name is not known");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, HELLO) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sleeps a little, if there is still time.
pub(crate) fn wait_on(
    begun: Instant,
    settings: &ProcessSettings,
    stop: &StopFlag,
    problem: impl FnOnce() -> String,
) -> Result<(), InferenceError> {
    if stop.is_set() {
        return Err(InferenceError::Stopped("stopped while the processes of the run came together".to_owned()));
    }
    if begun.elapsed() > settings.start() {
        let seconds = settings.start_seconds;
        return Err(InferenceError::Process(format!("{} within {seconds} s (processes.start_seconds)", problem())));
    }
    sleep(GLANCE);
    Ok(())
}

enum Greeting {
    /// Not one of ours.
    Strange(WireError),
    /// One of ours that does not fit.
    Other(InferenceError),
}

impl<E: Into<WireError>> From<E> for Greeting {
    fn from(error: E) -> Self {
        Self::Strange(error.into())
    }
}

fn greet(mut stream: TcpStream, digest: &str, settings: &ProcessSettings) -> Result<Peer, Greeting> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO))?;
    stream.set_write_timeout(Some(settings.silence()))?;
    let Message::Hello { version, digest: theirs, name, batch, capacity } = read_message(&mut stream)? else {
        return Err(WireError::Strange("no greeting").into());
    };
    let fault = match (version == VERSION, theirs == digest) {
        (false, _) => Some("it is another version of Calotype"),
        (_, false) => Some(
            "it draws with something else: model, precision, sizes, steps, guidance, sampler and latents must be the same for all",
        ),
        _ => None,
    };
    if let Some(fault) = fault {
        write_message(&mut stream, &Message::Refused(fault.to_owned()))?;
        return Err(Greeting::Other(InferenceError::Process(format!("{name} is no part of this run: {fault}"))));
    }
    write_message(&mut stream, &Message::Welcome)?;
    stream.set_read_timeout(Some(settings.silence()))?;
    let (batch, capacity) = (batch.max(1) as usize, capacity.max(1) as usize);
    Ok(Peer { stream, name, batch, capacity: capacity.max(batch) })
}

impl Peer {
    /// Says that we live. Whether it hears it is found out by who reads from it.
    pub(crate) fn beat(&self) {
        let _ = write_message(&mut &self.stream, &Message::Alive);
    }

    /// Waits until its networks are loaded.
    ///
    /// # Errors
    /// [`InferenceError::Process`] if it is gone or cannot load them.
    pub fn wait_ready(&self) -> Result<(), InferenceError> {
        let gone = |problem: String| InferenceError::Process(format!("{}: {problem}", self.name));
        loop {
            match read_message(&mut &self.stream) {
                Ok(Message::Ready) => return Ok(()),
                Ok(Message::Alive) => {}
                Ok(Message::Failed(why)) => return Err(gone(why)),
                Ok(_) => return Err(gone(WireError::Strange("another message than it should").to_string())),
                Err(error) => return Err(gone(error.to_string())),
            }
        }
    }
}

/// Does something while all peers hear that we live.
pub(crate) fn beating<T>(peers: &[Peer], work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut said = Instant::now();
            while !over.load(Ordering::SeqCst) {
                sleep(GLANCE);
                if said.elapsed() >= BEAT {
                    peers.iter().for_each(Peer::beat);
                    said = Instant::now();
                }
            }
        });
        let outcome = work();
        over.store(true, Ordering::SeqCst);
        outcome
    })
}

/// What a connection's threads share.
struct Shared {
    in_work: Mutex<HashMap<u64, Job>>,
    changed: Condvar,
    gone: AtomicBool,
    why: Mutex<String>,
}

impl Shared {
    fn lose(&self, why: &str) {
        if !self.gone.swap(true, Ordering::SeqCst) {
            why.clone_into(&mut self.why.lock().unwrap_or_else(PoisonError::into_inner));
        }
        self.changed.notify_all();
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

/// Hands a worker batches until the queue ends, and tells it the end. When it is gone, its samples are drawn by others or the run
/// fails, as the settings say.
///
/// # Errors
/// [`InferenceError::Process`] if the system gives no more threads.
pub fn tend(
    peer: Peer,
    queue: &Arc<Queue>,
    samples: &Arc<Samples>,
    settings: &ProcessSettings,
    wait: Duration,
) -> Result<JoinHandle<()>, InferenceError> {
    let (queue, samples, settings) = (Arc::clone(queue), Arc::clone(samples), settings.clone());
    queue.join();
    let work = move || tend_here(peer, &queue, &samples, &settings, wait);
    let thread = Builder::new().name("worker".to_owned()).spawn(work);
    thread.map_err(|error| InferenceError::Process(format!("cannot start a thread: {error}")))
}

fn tend_here(peer: Peer, queue: &Queue, samples: &Samples, settings: &ProcessSettings, wait: Duration) {
    let shared = Shared {
        in_work: Mutex::default(),
        changed: Condvar::new(),
        gone: AtomicBool::new(false),
        why: Mutex::default(),
    };
    let mut lost = false;
    std::thread::scope(|scope| {
        let hearing = match peer.stream.try_clone() {
            Ok(stream) => scope.spawn(|| hear(stream, &peer.name, &shared, queue)),
            Err(error) => {
                lost = true;
                return shared.lose(&format!("its connection cannot be used: {error}"));
            }
        };
        let mut out = &peer.stream;
        if let Err(error) = hand(&mut out, &peer, &shared, queue, samples, wait) {
            shared.lose(&error.to_string());
        }
        lost = shared.is_gone() && queue.goes_on();
        // Whoever is gone hears nothing. Whoever lives is given time to hear it: an answer that comes to a closed connection breaks it,
        // and what was not read yet is lost.
        let failed = queue.failure().is_some();
        let _ = write_message(&mut out, &Message::End { failed });
        let _ = peer.stream.shutdown(Shutdown::Write);
        let told = Instant::now();
        while !hearing.is_finished() && told.elapsed() < FAREWELL {
            sleep(GLANCE / 10);
        }
        let _ = peer.stream.shutdown(Shutdown::Both);
        drop(hearing.join());
    });
    let why = shared.why.into_inner().unwrap_or_else(PoisonError::into_inner);
    let left: Vec<Job> = shared.in_work.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect();
    if !lost {
        return queue.leave("the run has ended");
    }
    let told = format!("{} is lost: {why}", peer.name);
    match settings.lost_worker {
        LostWorker::Fail => {
            queue.fail(format!("{told}; with processes.lost_worker=resend, others would draw its samples"))
        }
        LostWorker::Resend => {
            tracing::warn!("{told}; its {} samples are drawn by others", left.len());
            queue.give_back(left);
        }
    }
    queue.leave(&told);
}

/// Sends batches, and signs of life.
fn hand(
    out: &mut &TcpStream,
    peer: &Peer,
    shared: &Shared,
    queue: &Queue,
    samples: &Samples,
    wait: Duration,
) -> Result<(), WireError> {
    let mut said = Instant::now();
    loop {
        {
            let in_work = shared.in_work.lock().unwrap_or_else(PoisonError::into_inner);
            // Whole batches: what is sent one by one is drawn one by one.
            if in_work.len() + peer.batch > peer.capacity {
                drop(shared.changed.wait_timeout(in_work, GLANCE));
            }
        }
        if shared.is_gone() || !queue.goes_on() {
            return Ok(());
        }
        if said.elapsed() >= BEAT {
            write_message(out, &Message::Alive)?;
            said = Instant::now();
        }
        let free = shared.in_work.lock().unwrap_or_else(PoisonError::into_inner).len() + peer.batch <= peer.capacity;
        if !free {
            continue;
        }
        // A sign of life is due while nothing is there to be drawn.
        let asked = Instant::now();
        let jobs = queue.take(peer.batch, wait, &|| !shared.is_gone() && asked.elapsed() < BEAT / 2);
        if jobs.is_empty() {
            continue;
        }
        let work = jobs.iter().map(|job| Work {
            id: job.id,
            sample: job.sample as u64,
            caption: samples.caption(job.sample).unwrap_or_default().to_owned(),
        });
        let message = Message::Work(work.collect());
        shared.in_work.lock().unwrap_or_else(PoisonError::into_inner).extend(jobs.iter().map(|job| (job.id, *job)));
        write_message(out, &message)?;
    }
}

/// Takes answers until the connection ends.
fn hear(mut stream: TcpStream, name: &str, shared: &Shared, queue: &Queue) {
    loop {
        match read_message(&mut stream) {
            Ok(Message::Alive) => {}
            Ok(Message::Done { id, pixels }) => {
                let job = shared.in_work.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                match job {
                    Some(job) => drop(queue.answer(job, pixels)),
                    None => return shared.lose("it answered a sample twice, or one that it was not given"),
                }
                shared.changed.notify_all();
            }
            Ok(Message::Failed(why)) => {
                queue.fail(format!("{name}: {why}"));
                shared.changed.notify_all();
            }
            Ok(_) => return shared.lose("it says something that it should not"),
            Err(error) => return shared.lose(&error.to_string()),
        }
    }
}
