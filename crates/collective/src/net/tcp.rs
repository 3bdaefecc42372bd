//! Messages over TCP, with nothing else installed.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::control::{Control, Shared, spawn};
use super::frame::{self, Kind};
use super::meeting::{self, Hello, MeetingError, Member};
use super::ring;
use crate::failure::{Cause, Failure, Health, locked};
use crate::launch::{Launch, Rendezvous};
use crate::transport::{Channel, Missing, Patience, Pool, Transport, waited};

/// Channel and length of a message.
const HEAD: usize = 9;
/// Instead of a channel: memory is offered, and the content says which.
const OFFER: u8 = 255;
/// Added to a channel: the content is in the memory that was offered.
const SHARED: u8 = 128;
/// The longest offer.
const LONGEST_OFFER: u64 = 1 << 10;
/// Time for the answer to an offer.
const ANSWER: Duration = Duration::from_secs(10);
/// Memory that is set aside before a message has come; a longer one gets more while it comes.
const AT_ONCE: u64 = 64 << 20;
/// Between two looks at the run's health while a message does not move.
const LOOK: Duration = Duration::from_millis(200);

/// A process among others, connected by TCP.
///
/// A connection carries messages in one direction and is opened by the first of them. A thread for each takes messages
/// in, so that senders need not wait until somebody asks. Between processes of one host, long messages go through memory
/// that both share, where the system allows it, and only their heads through the connection.
#[derive(Debug)]
pub struct Tcp {
    control: Control,
    own: Hello,
    members: Vec<Member>,
    outgoing: Vec<Mutex<Option<Outgoing>>>,
    incoming: Arc<Incoming>,
    listener_thread: Option<JoinHandle<()>>,
    /// Where this process takes connections, seen from itself.
    door: SocketAddr,
}

/// A connection to another process.
#[derive(Debug)]
struct Outgoing {
    stream: TcpStream,
    ring: Option<ring::Sender>,
}

/// Connections that others opened.
#[derive(Debug, Default)]
struct Incoming {
    streams: Mutex<Vec<TcpStream>>,
    readers: Mutex<Vec<JoinHandle<()>>>,
    closed: AtomicBool,
}

impl Tcp {
    /// Waits until all processes of the run have come together.
    ///
    /// # Errors
    /// [`MeetingError`], which names who did not come or does not fit.
    pub fn connect(launch: &Launch, rendezvous: &Rendezvous, patience: Patience) -> Result<Self, MeetingError> {
        let loopback = meeting::is_loopback(rendezvous);
        let listener = meeting::listen(loopback, 0)?;
        let port = listener.local_addr()?.port();
        let own =
            Hello { job: launch.job.clone(), rank: launch.rank, world: launch.world, host: launch.host.clone(), port };
        let met = match launch.rank {
            0 => {
                let place = meeting::listen_at(rendezvous)?;
                let elsewhere = if meeting::is_here(rendezvous) { "" } else { " (no address of this machine)" };
                let told = meeting::place(rendezvous) + elsewhere;
                meeting::host(&place, &own, &told, patience.meeting)?
            }
            _ => meeting::join(rendezvous, &own, patience.meeting, launch.local_rank == 0)?,
        };
        let hosts = met.members.iter().map(|member| member.host.clone()).collect();
        let control = Control::start(launch.rank, hosts, met.lines, patience)?;
        let door = door_of(&listener)?;
        let incoming = Arc::new(Incoming::default());
        let (shared, doorman, name) = (Arc::clone(&control.shared), Arc::clone(&incoming), own.clone());
        let listener_thread = Some(spawn("door", move || doorman.serve(&listener, &name, &shared))?);
        let outgoing = met.members.iter().map(|_| Mutex::new(None)).collect();
        Ok(Self { control, own, members: met.members, outgoing, incoming, listener_thread, door })
    }

    fn shared(&self) -> &Shared {
        &self.control.shared
    }

    /// Sends on the connection to a process, which is opened if there is none.
    fn deliver(&self, to: usize, channel: Channel, message: &[u8]) -> Result<(), Undelivered> {
        let mut line = locked(&self.outgoing[to]);
        let line = match &mut *line {
            Some(line) => line,
            empty => empty.insert(self.call(to)?),
        };
        let inside = message.len() >= ring::SHORT && line.ring.as_mut().is_some_and(|ring| ring.put(message));
        let kind = channel as u8 + if inside { SHARED } else { 0 };
        self.write(&mut line.stream, &head(kind, message.len()))?;
        match inside {
            true => Ok(()),
            false => self.write(&mut line.stream, message),
        }
    }

    /// Opens the connection to a process, with memory that both share if it is on this host.
    fn call(&self, to: usize) -> io::Result<Outgoing> {
        let mut stream = meeting::open_data(self.members[to].address, &self.own)?;
        let neighbours = self.members.iter().filter(|member| member.host == self.own.host).count();
        let ring = match self.members[to].host == self.own.host {
            true => ring::Sender::create(neighbours).ok(),
            false => None,
        };
        let ring = match ring {
            Some(ring) => offer(&mut stream, &ring)?.then_some(ring),
            None => None,
        };
        stream.set_write_timeout(Some(LOOK))?;
        Ok(Outgoing { stream, ring })
    }

    /// Writes everything, however slow the receiver is, for as long as the run works.
    fn write(&self, stream: &mut TcpStream, bytes: &[u8]) -> Result<(), Undelivered> {
        let (mut rest, mut moved) = (bytes, Instant::now());
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(length) => (rest, moved) = (&rest[length..], Instant::now()),
                Err(error) if frame::passes(&error) => {
                    if self.shared().health.failure().is_some() || moved.elapsed() > self.shared().patience.call {
                        return Err(Undelivered::Stopped);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Why a message was not sent.
enum Undelivered {
    Broken(io::Error),
    Stopped,
}

impl From<io::Error> for Undelivered {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// What stands before a message.
fn head(kind: u8, length: usize) -> [u8; HEAD] {
    let mut head = [kind; HEAD];
    head[1..].copy_from_slice(&(length as u64).to_le_bytes());
    head
}

/// Whether the process at the other end takes the memory.
fn offer(stream: &mut TcpStream, ring: &ring::Sender) -> io::Result<bool> {
    let content = ring.offer();
    stream.write_all(&head(OFFER, content.len()))?;
    stream.write_all(&content)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut answer = [0];
    match stream.read_exact(&mut answer) {
        Ok(()) => Ok(answer == [1]),
        Err(error) if frame::passes(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A listener's address for calls from the same machine.
fn door_of(listener: &TcpListener) -> io::Result<SocketAddr> {
    let mut door = listener.local_addr()?;
    if door.ip().is_unspecified() {
        door.set_ip(if door.is_ipv6() { std::net::Ipv6Addr::LOCALHOST.into() } else { [127, 0, 0, 1].into() });
    }
    Ok(door)
}

impl Incoming {
    /// Lets connections in until the end.
    fn serve(self: &Arc<Self>, listener: &TcpListener, own: &Hello, shared: &Arc<Shared>) {
        for stream in listener.incoming() {
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let Ok(copy) = stream.try_clone() else { continue };
            let (own, shared) = (own.clone(), Arc::clone(shared));
            if let Ok(reader) = spawn("reader", move || read(stream, &own, &shared)) {
                locked(&self.streams).push(copy);
                locked(&self.readers).push(reader);
            }
        }
    }

    fn close(&self) {
        for stream in locked(&self.streams).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let readers = std::mem::take(&mut *locked(&self.readers));
        for reader in readers {
            let _ = reader.join();
        }
    }
}

/// Takes all messages of a connection in.
fn read(mut stream: TcpStream, own: &Hello, shared: &Shared) {
    let Some(sender) = meeting::hello_of(&mut stream, Kind::Data) else { return };
    if sender.job != own.job || sender.rank >= own.world || stream.set_read_timeout(None).is_err() {
        return;
    }
    let mut incoming = Messages { stream, ring: None };
    let error = loop {
        match incoming.next(&shared.inbox.pool) {
            Ok((channel, message)) => shared.inbox.put(sender.rank, channel, message),
            Err(error) => break error,
        }
    };
    let detail = format!("its connection to rank {} broke ({error})", own.rank);
    shared.inbox.gone(sender.rank, Cause::Died, detail);
}

/// What comes on a connection.
struct Messages {
    stream: TcpStream,
    ring: Option<ring::Receiver>,
}

impl Messages {
    fn next(&mut self, pool: &Pool) -> io::Result<(Channel, Vec<u8>)> {
        loop {
            let mut head = [0; HEAD];
            self.stream.read_exact(&mut head)?;
            let [kind, length @ ..] = head;
            let length = u64::from_le_bytes(length);
            if kind == OFFER {
                self.answer(length)?;
                continue;
            }
            let channel = Channel::of(kind & !SHARED).ok_or_else(foreign)?;
            let mut message = pool.take(length.min(AT_ONCE) as usize);
            message.clear();
            match (kind & SHARED != 0, &mut self.ring) {
                (true, Some(ring)) => ring.take(usize::try_from(length).map_err(|_| foreign())?, &mut message)?,
                (true, None) => return Err(foreign()),
                (false, _) => self.read(length, &mut message)?,
            }
            return Ok((channel, message));
        }
    }

    fn read(&mut self, length: u64, into: &mut Vec<u8>) -> io::Result<()> {
        (&mut self.stream).take(length).read_to_end(into)?;
        match into.len() as u64 == length {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Takes memory that is offered, or says that it cannot.
    fn answer(&mut self, length: u64) -> io::Result<()> {
        if length > LONGEST_OFFER {
            return Err(foreign());
        }
        let mut content = Vec::new();
        self.read(length, &mut content)?;
        self.ring = ring::Receiver::open(&content).ok();
        self.stream.write_all(&[u8::from(self.ring.is_some())])
    }
}

fn foreign() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it sent something else than messages")
}

impl Transport for Tcp {
    fn rank(&self) -> usize {
        self.own.rank
    }

    fn hosts(&self) -> &[String] {
        &self.shared().hosts
    }

    fn send(&self, to: usize, channel: Channel, message: Vec<u8>) -> Result<(), Failure> {
        if let Some(failure) = self.health().failure() {
            return Err(failure.clone());
        }
        let delivered = self.deliver(to, channel, &message);
        self.recycle(message);
        delivered.map_err(|undelivered| match undelivered {
            Undelivered::Broken(error) => {
                let detail = format!("rank {} could not send to it ({error})", self.own.rank);
                self.shared().accuse(to, Cause::Died, detail)
            }
            Undelivered::Stopped => self.shared().accuse(to, Cause::Stuck, waited(self.shared().patience.call)),
        })
    }

    fn receive(&self, from: usize, channel: Channel) -> Result<Vec<u8>, Failure> {
        let shared = self.shared();
        shared.inbox.take(from, channel, &shared.health, shared.patience.call).map_err(|missing| match missing {
            Missing::Failed(failure) => failure,
            Missing::Sender(cause, detail) => self.raise(self.failure_of(from, cause, detail)),
        })
    }

    fn health(&self) -> &Health {
        &self.shared().health
    }

    fn raise(&self, failure: Failure) -> Failure {
        self.shared().raise(failure)
    }

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        let mut message = self.shared().inbox.pool.take(bytes);
        message.clear();
        message
    }

    fn recycle(&self, message: Vec<u8>) {
        self.shared().inbox.pool.give(message);
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        // Messages that are still on their way arrive: a connection is closed behind what was written.
        // So does what is in shared memory, which lives as long as the receiver maps it.
        for line in self.outgoing.iter().filter_map(|line| locked(line).take()) {
            let _ = line.stream.shutdown(Shutdown::Write);
        }
        self.control.close();
        self.incoming.closed.store(true, Ordering::SeqCst);
        // The door opens once more, for us, and sees that it is closed.
        let woken = TcpStream::connect_timeout(&self.door, LOOK).is_ok();
        if let Some(thread) = self.listener_thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
        self.incoming.close();
    }
}
