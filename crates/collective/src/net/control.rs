//! How processes watch each other: rank 0 has a line to every other, on which both give signs of life, say goodbye, and
//! tell of failures. What rank 0 hears it passes on, so that all end with the same message.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::frame::{self, FieldReader, Fields, Frames, Kind};
use super::meeting::Line;
use crate::failure::{Cause, Failure, Health, Reporter, locked};
use crate::transport::{Inbox, Patience};

/// Time for the process that reports a failure to do so.
const REPORT: Duration = Duration::from_millis(500);
/// Time for the other end to close its side, too.
const PARTING: Duration = Duration::from_secs(1);

/// What the threads of a process share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub rank: usize,
    pub hosts: Vec<String>,
    pub health: Health,
    pub inbox: Inbox,
    pub patience: Patience,
    /// Writing ends of the lines, with the rank at the other end.
    lines: Vec<(usize, Mutex<TcpStream>)>,
    closing: AtomicBool,
}

impl Shared {
    /// Notes a failure here and, if it is the first, tells it to everybody to whom there is a line. Returns the first.
    pub(crate) fn raise(&self, failure: Failure) -> Failure {
        let announce = |failure: &Failure| {
            self.tell(Kind::Failed, &failure.to_bytes(), None);
            if failure.reporter(self.rank, &self.hosts) == Reporter::Elsewhere {
                // Launchers kill the rest when one process ends: who reports goes first.
                thread::sleep(REPORT);
            }
        };
        let first = self.health.fail(failure, announce).clone();
        self.inbox.wake();
        first
    }

    /// Ends the run because of another process, whose connection broke or that stays away. The word of rank 0 goes
    /// before, if it comes soon.
    pub(crate) fn accuse(&self, rank: usize, cause: Cause, detail: String) -> Failure {
        let deadline = Instant::now() + crate::transport::VERDICT;
        while cause == Cause::Died && self.health.failure().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        self.raise(self.failure_of(rank, cause, detail))
    }

    pub(crate) fn failure_of(&self, rank: usize, cause: Cause, detail: String) -> Failure {
        let host = self.hosts.get(rank).cloned().unwrap_or_default();
        Failure { rank, host, cause, detail }
    }

    fn tell(&self, kind: Kind, content: &[u8], but: Option<usize>) {
        for (rank, stream) in &self.lines {
            if Some(*rank) != but {
                // Who cannot be told is gone, which the reader of its line notices.
                let _ = frame::write(&mut locked(stream), kind, content);
            }
        }
    }

    /// What is done with a message of a line. Returns whether more will come.
    fn heard(&self, line: usize, kind: Kind, content: &[u8]) -> bool {
        match kind {
            Kind::Failed => {
                if let Some(failure) = Failure::from_bytes(content, &self.hosts) {
                    self.raise(failure);
                }
                true
            }
            Kind::Goodbye => {
                let who = FieldReader(content).number().unwrap_or(line);
                self.inbox.gone(who, Cause::Left, "it has ended while we still wait for it".to_owned());
                if self.rank == 0 {
                    self.tell(Kind::Goodbye, content, Some(who));
                }
                who != line
            }
            _ => true,
        }
    }

    /// Reads a line until its end.
    fn watch(&self, line: Line) {
        let Line { rank, mut stream, mut frames } = line;
        match self.listen(rank, &mut stream, &mut frames) {
            Ok(()) => {
                // The other end waits for ours, so that what it sent last is not thrown away with the connection.
                let _ = stream.shutdown(Shutdown::Both);
            }
            Err(_) if self.closing.load(Ordering::SeqCst) || self.health.failure().is_some() => {}
            Err((cause, detail)) => {
                self.inbox.gone(rank, cause, detail.clone());
                self.raise(self.failure_of(rank, cause, detail));
            }
        }
    }

    fn listen(&self, rank: usize, stream: &mut TcpStream, frames: &mut Frames) -> Result<(), (Cause, String)> {
        let died =
            |error: std::io::Error| (Cause::Died, format!("its connection to rank {} broke ({error})", self.rank));
        stream.set_read_timeout(Some(self.patience.heartbeat / 2)).map_err(died)?;
        let (mut last, mut closing_since) = (Instant::now(), None);
        loop {
            let before = Instant::now();
            while let Some((kind, content)) = frames.next().map_err(died)? {
                last = before;
                if !self.heard(rank, kind, &content) {
                    return Ok(());
                }
            }
            frames.read_some(stream).map_err(died)?;
            if self.closing.load(Ordering::SeqCst) && closing_since.get_or_insert(before).elapsed() > PARTING {
                return Ok(());
            }
            if frames.is_empty() && last.elapsed() > self.patience.silence {
                let seconds = self.patience.silence.as_secs_f32();
                return Err((Cause::Silent, format!("no sign of life for {seconds} s")));
            }
        }
    }

    /// Gives signs of life until the end.
    fn beat(&self) {
        while !self.closing.load(Ordering::SeqCst) && self.health.failure().is_none() {
            self.tell(Kind::Beat, &[], None);
            thread::park_timeout(self.patience.heartbeat);
        }
    }
}

/// The watch of one process, with its threads.
#[derive(Debug)]
pub(crate) struct Control {
    pub shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    heart: Option<JoinHandle<()>>,
}

impl Control {
    /// Begins to watch.
    ///
    /// # Errors
    /// The system's, if it gives no threads.
    pub(crate) fn start(
        rank: usize,
        hosts: Vec<String>,
        lines: Vec<Line>,
        patience: Patience,
    ) -> std::io::Result<Self> {
        let mut ends = Vec::new();
        for line in &lines {
            line.stream.set_nonblocking(false)?;
            line.stream.set_nodelay(true)?;
            // Nobody is waited for who does not take a few bytes.
            line.stream.set_write_timeout(Some(patience.silence))?;
            ends.push((line.rank, Mutex::new(line.stream.try_clone()?)));
        }
        let shared = Arc::new(Shared {
            rank,
            hosts,
            health: Health::default(),
            inbox: Inbox::default(),
            patience,
            lines: ends,
            closing: AtomicBool::new(false),
        });
        let mut control = Self { shared, readers: Vec::new(), heart: None };
        for line in lines {
            let shared = Arc::clone(&control.shared);
            control.readers.push(spawn("watch", move || shared.watch(line))?);
        }
        let shared = Arc::clone(&control.shared);
        control.heart = Some(spawn("heartbeat", move || shared.beat())?);
        Ok(control)
    }

    /// Ends in good order: says goodbye, and waits until the others have heard it.
    pub(crate) fn close(&mut self) {
        let shared = &self.shared;
        if shared.closing.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(heart) = self.heart.take() {
            heart.thread().unpark();
            let _ = heart.join();
        }
        if shared.health.failure().is_none() {
            shared.tell(Kind::Goodbye, &Fields::default().number(shared.rank).0, None);
        }
        for (_, stream) in &shared.lines {
            let _ = locked(stream).shutdown(Shutdown::Write);
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.close();
    }
}

/// A thread with a name and little memory: there is one for each connection.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("collective {name}")).stack_size(256 << 10).spawn(work)
}
