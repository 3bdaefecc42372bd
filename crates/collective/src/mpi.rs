//! Messages over MPI.
//!
//! MPI only carries messages. Its own collective operations are not used, as the order of their sums depends on sizes and
//! on the library. Processes watch each other on lines of TCP, as without MPI: `mpirun` ends a job whose process dies, but
//! none whose process is silent, and does not say it in our words.

mod raw;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use mpi::environment::{Threading, Universe, initialize_with_threading};
use mpi::traits::Communicator;

pub use self::raw::MpiFault;
use self::raw::{Receiving, Sending};
use crate::failure::{Cause, Failure, Health, locked};
use crate::launch::{Launch, Rendezvous};
use crate::net::control::{Control, Shared};
use crate::net::frame::{FieldReader, Fields};
use crate::net::meeting::{self, Hello, MeetingError};
use crate::transport::{Channel, Missing, Patience, Pool, Transport, VERDICT, waited};

/// Why MPI does not connect this process.
#[derive(Debug, thiserror::Error)]
pub enum MpiError {
    /// MPI was set up before, or cannot be.
    #[error("MPI is set up already in this process")]
    Again,
    /// The library was built without threads.
    #[error(
        "this MPI library allows calls of one thread only; install one with threads (Open MPI and MPICH have them)"
    )]
    NoThreads,
    /// MPI was not started by the launcher that started the processes.
    #[error(
        "{says} says rank {rank} of {world}, but MPI says rank {mpi_rank} of {mpi_world}: start the program by this MPI library's \
         mpirun, or by `srun --mpi=pmix`"
    )]
    Disagrees {
        /// Whose variables were read.
        says: crate::Starter,
        /// Our number, by the variables.
        rank: usize,
        /// The number of processes, by the variables.
        world: usize,
        /// Our number, by MPI.
        mpi_rank: usize,
        /// The number of processes, by MPI.
        mpi_world: usize,
    },
    /// An MPI call failed.
    #[error("MPI failed at the start: {0}")]
    Fault(#[from] MpiFault),
    /// The processes did not find each other.
    #[error(transparent)]
    Meeting(#[from] MeetingError),
}

/// Looks at once this many times for something to come, before sleeping between looks.
const EAGER: u32 = 200;
/// Sleeps between two looks for this share of the time that was waited, at most for [`LONGEST_NAP`]: who waits long leaves the
/// processor to those that compute.
const NAP_SHARE: u32 = 16;
const LONGEST_NAP: Duration = Duration::from_millis(1);
/// The tag of the message that tells where rank 0 is; it is no channel.
const PLACE: i32 = 100;

/// A process among others, connected by MPI.
///
/// Any thread may send and receive; their calls take turns, and whoever waits takes in what comes for all.
#[derive(Debug)]
pub struct Mpi {
    control: Control,
    arriving: Mutex<Arriving>,
    /// Ends MPI when it is dropped, which waits for all processes.
    universe: Option<UniverseOfAll>,
}

/// MPI, which prints nothing useful.
struct UniverseOfAll(#[expect(dead_code, reason = "it is kept until the end")] Universe);

impl std::fmt::Debug for UniverseOfAll {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Universe")
    }
}

/// Messages that are on their way to us.
#[derive(Debug, Default)]
struct Arriving {
    pieces: VecDeque<Receiving>,
    /// First pieces of messages that are longer than MPI can count.
    begun: HashMap<(usize, Channel), Vec<u8>>,
}

impl Mpi {
    /// Sets MPI up and waits until all processes of the run have come together. Can be done once in a process, on the thread
    /// that ends it.
    ///
    /// # Errors
    /// [`MpiError`], also where variables and MPI disagree.
    pub fn connect(launch: &Launch, patience: Patience) -> Result<Self, MpiError> {
        let (universe, threading) = initialize_with_threading(Threading::Serialized).ok_or(MpiError::Again)?;
        match begin(launch, &universe, threading, patience) {
            Ok(control) => Ok(Self { control, arriving: Mutex::default(), universe: Some(UniverseOfAll(universe)) }),
            Err(error) => {
                // The end of MPI waits for all processes, which may wait for this one. The launcher ends the job when it exits.
                std::mem::forget(universe);
                Err(error)
            }
        }
    }

    fn shared(&self) -> &Shared {
        &self.control.shared
    }

    /// Takes in what has come.
    fn progress(&self, arriving: &mut Arriving) -> Result<(), MpiFault> {
        while let Some(piece) = Receiving::start(&self.shared().inbox.pool)? {
            arriving.pieces.push_back(piece);
        }
        let mut waits = HashSet::new();
        let mut position = 0;
        while position < arriving.pieces.len() {
            let piece = &mut arriving.pieces[position];
            let key = (piece.source, piece.tag);
            // Messages of one channel stay in order.
            if waits.contains(&key) || !piece.is_done()? {
                waits.insert(key);
                position += 1;
            } else if let Some(piece) = arriving.pieces.remove(position) {
                self.arrived(&mut arriving.begun, piece);
            }
        }
        Ok(())
    }

    fn arrived(&self, begun: &mut HashMap<(usize, Channel), Vec<u8>>, piece: Receiving) {
        let (source, tag) = (piece.source, piece.tag);
        let (Some(bytes), Some(channel)) = (piece.into_bytes(), u8::try_from(tag).ok().and_then(Channel::of)) else {
            return;
        };
        let more = bytes.len() == raw::PIECE;
        let message = match begun.remove(&(source, channel)) {
            Some(mut message) => {
                message.extend_from_slice(&bytes);
                self.recycle(bytes);
                message
            }
            None => bytes,
        };
        match more {
            true => drop(begun.insert((source, channel), message)),
            false => self.shared().inbox.put(source, channel, message),
        }
    }

    /// Does something until it is done, and takes in meanwhile what comes. `try_it` has MPI for itself.
    fn until<T>(&self, other: usize, mut try_it: impl FnMut() -> Result<Option<T>, MpiFault>) -> Result<T, Failure> {
        let started = Instant::now();
        let mut looks = 0u32;
        loop {
            let tried = {
                let mut arriving = locked(&self.arriving);
                try_it().and_then(|done| match done {
                    Some(done) => Ok(Some(done)),
                    None => self.progress(&mut arriving).map(|()| None),
                })
            };
            match tried {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => {}
                Err(fault) => return Err(self.shared().accuse(other, Cause::Died, fault.to_string())),
            }
            let shared = self.shared();
            match shared.inbox.missing(other, &shared.health) {
                Some(Missing::Failed(failure)) => return Err(failure),
                // What it sent before may still be on its way through MPI.
                Some(Missing::Sender(cause, detail)) if started.elapsed() > VERDICT => {
                    return Err(self.raise(self.failure_of(other, cause, detail)));
                }
                _ => {}
            }
            if started.elapsed() > shared.patience.call {
                return Err(shared.accuse(other, Cause::Stuck, waited(shared.patience.call)));
            }
            looks = looks.saturating_add(1);
            match looks < EAGER {
                true => std::thread::yield_now(),
                false => std::thread::sleep((started.elapsed() / NAP_SHARE).min(LONGEST_NAP)),
            }
        }
    }

    fn send_piece(&self, to: usize, channel: Channel, bytes: Vec<u8>) -> Result<(), Failure> {
        let (mut bytes, mut sending) = (Some(bytes), None::<Sending>);
        let sent = self.until(to, || {
            if let Some(bytes) = bytes.take() {
                sending = Some(Sending::start(to, i32::from(channel as u8), bytes)?);
            }
            let done = sending.as_mut().map_or(Ok(true), Sending::is_done)?;
            Ok(done.then_some(()))
        });
        if let Some(bytes) = sending.and_then(Sending::into_bytes) {
            self.recycle(bytes);
        }
        sent
    }
}

/// Compares MPI with the variables, and lets the processes meet.
fn begin(launch: &Launch, universe: &Universe, threading: Threading, patience: Patience) -> Result<Control, MpiError> {
    if threading < Threading::Serialized {
        return Err(MpiError::NoThreads);
    }
    let (mpi_rank, mpi_world) = (universe.world().rank() as usize, universe.world().size() as usize);
    if (mpi_rank, mpi_world) != (launch.rank, launch.world) {
        let (says, rank, world) = (launch.started_by, launch.rank, launch.world);
        return Err(MpiError::Disagrees { says, rank, world, mpi_rank, mpi_world });
    }
    raw::return_errors()?;
    let met = meet(launch, patience)?;
    let hosts = met.members.into_iter().map(|member| member.host).collect();
    Ok(Control::start(launch.rank, hosts, met.lines, patience).map_err(MeetingError::System)?)
}

/// Rank 0 tells its place by MPI; the others call it there, for the lines on which they watch each other.
fn meet(launch: &Launch, patience: Patience) -> Result<meeting::Met, MpiError> {
    let deadline = Instant::now() + patience.meeting;
    if launch.rank != 0 {
        let place = hear_place(launch.rank, patience.meeting, deadline)?;
        let (own, rendezvous) = read_place(launch, &place);
        return Ok(meeting::join(&rendezvous, &own, patience.meeting, launch.local_rank == 0)?);
    }
    let loopback = launch.local_size == launch.world;
    let listener = meeting::listen(loopback, 0).map_err(MeetingError::System)?;
    let port = listener.local_addr().map_err(MeetingError::System)?.port();
    let mut place = Fields::default().text(&name_of_run()).number(usize::from(port));
    for host in if loopback { vec!["127.0.0.1".to_owned()] } else { own_addresses(&launch.host) } {
        place = place.text(&host);
    }
    // Who does not get it does not come, and is missed by name.
    let sent: Result<Vec<Sending>, MpiFault> =
        (1..launch.world).map(|rank| Sending::start(rank, PLACE, place.0.clone())).collect();
    let mut sent = sent?;
    let (own, rendezvous) = read_place(launch, &place.0);
    let met = meeting::host(&listener, &own, &meeting::place(&rendezvous), patience.meeting)?;
    for sending in &mut sent {
        sending.is_done()?;
    }
    Ok(met)
}

/// The message of rank 0 that tells its place. Nobody sends anything else before the processes have met.
fn hear_place(rank: usize, wait: Duration, deadline: Instant) -> Result<Vec<u8>, MpiError> {
    let mut coming: Option<Receiving> = None;
    while Instant::now() < deadline {
        if coming.is_none() {
            coming = Receiving::start(&Pool::default())?;
        }
        let done = coming.as_mut().map_or(Ok(false), Receiving::is_done)?;
        if let Some(place) = coming.take_if(|_| done).and_then(Receiving::into_bytes) {
            return Ok(place);
        }
        std::thread::sleep(LONGEST_NAP);
    }
    Err(MpiError::Meeting(MeetingError::NotFound {
        rank,
        place: "the other end of MPI".to_owned(),
        seconds: wait.as_secs_f32(),
        problem: "it sent no address".to_owned(),
    }))
}

/// How to present oneself, and where.
fn read_place(launch: &Launch, place: &[u8]) -> (Hello, Rendezvous) {
    let mut fields = FieldReader(place);
    let (job, port) = (fields.text().unwrap_or_default(), fields.number().unwrap_or_default() as u16);
    let hosts = std::iter::from_fn(|| fields.text()).collect();
    let own = Hello { job, rank: launch.rank, world: launch.world, host: launch.host.clone(), port: 0 };
    (own, Rendezvous { hosts, ports: vec![port] })
}

/// What no other run is called.
fn name_of_run() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("mpi {} {}", std::process::id(), now.as_nanos())
}

/// Where other machines may find this one: the addresses of its networks, and its name.
fn own_addresses(host: &str) -> Vec<String> {
    let mut addresses: Vec<String> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .filter(|address| !address.is_loopback() && !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .map(|address| address.to_string())
        .collect();
    addresses.push(host.to_owned());
    addresses
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.shared().rank
    }

    fn hosts(&self) -> &[String] {
        &self.shared().hosts
    }

    fn send(&self, to: usize, channel: Channel, message: Vec<u8>) -> Result<(), Failure> {
        if let Some(failure) = self.health().failure() {
            return Err(failure.clone());
        }
        if message.len() < raw::PIECE {
            return self.send_piece(to, channel, message);
        }
        // A piece that is not full is the last one, even if it is empty.
        let end = message.len() % raw::PIECE;
        let (full, rest) = message.split_at(message.len() - end);
        for piece in full.chunks(raw::PIECE).chain([rest]) {
            self.send_piece(to, channel, piece.to_vec())?;
        }
        Ok(())
    }

    fn receive(&self, from: usize, channel: Channel) -> Result<Vec<u8>, Failure> {
        self.until(from, || Ok(self.shared().inbox.try_take(from, channel)))
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

impl Drop for Mpi {
    fn drop(&mut self) {
        self.control.close();
        if self.health().failure().is_some() {
            // MPI cannot be ended where a process is gone: it would wait for it for ever. The launcher ends the job when
            // this process ends.
            std::mem::forget(self.universe.take());
        }
    }
}
