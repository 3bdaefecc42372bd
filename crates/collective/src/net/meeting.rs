//! How the processes of a run find each other: all call rank 0, which tells everybody when all are there.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::frame::{self, FieldReader, Fields, Frames, Kind};
use super::waiting::Waiting;
use crate::launch::Rendezvous;

/// What every first message begins with: the program and the version of its protocol.
pub(crate) const MAGIC: &str = "calotype 1";
/// Time for an answer of who is there.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two attempts to reach rank 0.
const PAUSE: Duration = Duration::from_millis(50);
/// Time for rank 0's name to be known: where machines are made for a run, names come with them.
const NAMED: Duration = Duration::from_secs(10);

/// Why processes did not come together.
#[derive(Debug, thiserror::Error)]
pub enum MeetingError {
    /// Rank 0 found no place to wait at.
    #[error("rank 0 cannot wait for the others at {place}: {source}; set CALOTYPE_RENDEZVOUS=host:port to a free one")]
    NoPlace {
        /// Host and ports.
        place: String,
        /// The system's error.
        source: io::Error,
    },
    /// Some did not come.
    #[error(
        "rank 0 waited {seconds:.0} s at {place}, but of {world} processes these did not come: {missing}{}",
        other_run(stranger)
    )]
    Missing {
        /// How long rank 0 waited.
        seconds: f32,
        /// Where it waited.
        place: String,
        /// The number of processes.
        world: usize,
        /// The ranks.
        missing: String,
        /// The job of a process that came and belongs to another run; both jobs.
        stranger: Option<(String, String)>,
    },
    /// Something else is where rank 0 should be.
    #[error(
        "at {place} another program answers, and not rank 0 ({problem}): set CALOTYPE_RENDEZVOUS=host:port to a free port, the same for all"
    )]
    Foreign {
        /// Where.
        place: String,
        /// What it did.
        problem: String,
    },
    /// Rank 0 was not found.
    #[error("rank {rank} did not find rank 0 at {place} within {seconds:.0} s: {problem}")]
    NotFound {
        /// Who looked.
        rank: usize,
        /// Where.
        place: String,
        /// For how long.
        seconds: f32,
        /// What happened at the last attempt.
        problem: String,
    },
    /// The processes say different things of the run.
    #[error("the processes of this run do not fit together: {0}")]
    Disagree(String),
    /// A connection broke.
    #[error("rank 0 ended while the processes came together: {0}")]
    Broken(io::Error),
    /// The system refused something else.
    #[error("no connection could be set up: {0}")]
    System(#[from] io::Error),
}

/// What is said of a process of another run: its job, and ours.
fn other_run(stranger: &Option<(String, String)>) -> String {
    let Some((job, own)) = stranger else { return String::new() };
    format!(
        "; a process of another run came ({job:?}, and this one is {own:?}): CALOTYPE_JOB has to be the same for all"
    )
}

/// Who wants to meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub job: String,
    pub rank: usize,
    pub world: usize,
    pub host: String,
    /// Where this process takes messages, 0 if it takes none.
    pub port: u16,
}

impl Hello {
    fn to_bytes(&self) -> Vec<u8> {
        let Self { job, rank, world, host, port } = self;
        let fields = Fields::default().text(MAGIC).text(job).number(*rank).number(*world);
        fields.text(host).number(usize::from(*port)).0
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = FieldReader(bytes);
        (fields.text()? == MAGIC).then_some(())?;
        Some(Self {
            job: fields.text()?,
            rank: fields.number()?,
            world: fields.number()?,
            host: fields.text()?,
            port: u16::try_from(fields.number()?).ok()?,
        })
    }
}

/// A process that takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub host: String,
    pub address: SocketAddr,
}

/// The result: all members by rank, and the lines to those whom this process watches. Rank 0 watches all others, they
/// watch it.
#[derive(Debug)]
pub(crate) struct Met {
    pub members: Vec<Member>,
    pub lines: Vec<Line>,
}

/// A connection on which two processes watch each other.
#[derive(Debug)]
pub(crate) struct Line {
    /// Who is at the other end.
    pub rank: usize,
    pub stream: TcpStream,
    /// What has come and is not yet read.
    pub frames: Frames,
}

/// How rank 0's place is written in messages.
pub(crate) fn place(rendezvous: &Rendezvous) -> String {
    let hosts = rendezvous.hosts.join(" or ");
    match rendezvous.ports[..] {
        [first, .., last] => format!("{hosts}, ports {first} to {last}"),
        [only] => format!("{hosts}:{only}"),
        [] => hosts,
    }
}

/// Listens on this machine only, if the address is its own loop, else on all its addresses.
pub(crate) fn listen(loopback: bool, port: u16) -> io::Result<TcpListener> {
    if loopback {
        return TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    }
    // One socket for both families, where the system has IPv6.
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(error) if error.kind() != ErrorKind::AddrInUse => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        other => other,
    }
}

/// Whether everybody is on one machine.
pub(crate) fn is_loopback(rendezvous: &Rendezvous) -> bool {
    let is_loop =
        |host: &String| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    rendezvous.hosts.iter().all(is_loop)
}

/// Rank 0's place: the first of the ports that is free.
pub(crate) fn listen_at(rendezvous: &Rendezvous) -> Result<TcpListener, MeetingError> {
    let mut last = io::Error::other("there is no port to try");
    for port in &rendezvous.ports {
        match listen(is_loopback(rendezvous), *port) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(MeetingError::NoPlace { place: place(rendezvous), source: last })
}

/// Whether rank 0's place has an address of this machine; also if its name is not known here.
pub(crate) fn is_here(rendezvous: &Rendezvous) -> bool {
    let elsewhere = |address: SocketAddr| {
        TcpListener::bind((address.ip(), 0)).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
    };
    let addresses = rendezvous.hosts.iter().filter_map(|host| (host.as_str(), 0).to_socket_addrs().ok()).flatten();
    let addresses: Vec<SocketAddr> = addresses.collect();
    addresses.is_empty() || !addresses.into_iter().all(elsewhere)
}

/// Rank 0's part.
///
/// # Errors
/// [`MeetingError`]: somebody did not come, or came with other numbers.
pub(crate) fn host(listener: &TcpListener, own: &Hello, where_: &str, wait: Duration) -> Result<Met, MeetingError> {
    let (mut waiting, world) = (Waiting::new(true), own.world);
    let mut guests: Vec<Option<(Hello, TcpStream)>> = (0..world).map(|_| None).collect();
    let mut stranger = None;
    listener.set_nonblocking(true)?;
    while guests.iter().skip(1).any(Option::is_none) {
        waiting.say(|| {
            let missing = missing(&guests);
            format!("rank 0 waits at {where_} for {missing} of {world} processes{}", other_run(&stranger))
        });
        if waiting.elapsed() > wait {
            let error = MeetingError::Missing {
                seconds: wait.as_secs_f32(),
                place: where_.to_owned(),
                world,
                missing: missing(&guests),
                stranger,
            };
            refuse(&mut guests, &error.to_string());
            return Err(error);
        }
        match listener.accept() {
            Ok((stream, _)) => stranger = admit(stream, own, &mut guests)?.or(stranger),
            Err(error) if frame::passes(&error) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error.into()),
        }
    }
    welcome(own, guests)
}

/// The ranks that have not come.
fn missing(guests: &[Option<(Hello, TcpStream)>]) -> String {
    let absent = guests.iter().enumerate().skip(1).filter(|(_, guest)| guest.is_none());
    let ranks: Vec<String> = absent.map(|(rank, _)| rank.to_string()).collect();
    format!("rank {}", ranks.join(", "))
}

/// Takes a caller in. Who is no process of this run is sent away; the result is the job of one of another run, and ours.
fn admit(
    mut stream: TcpStream,
    own: &Hello,
    guests: &mut [Option<(Hello, TcpStream)>],
) -> Result<Option<(String, String)>, MeetingError> {
    stream.set_nonblocking(false)?;
    let Some(hello) = hello_of(&mut stream, Kind::Hello) else { return Ok(None) };
    if hello.job != own.job {
        let reason = format!("this is another run ({:?}), not yours ({:?})", own.job, hello.job);
        let _ = frame::write(&mut stream, Kind::Refused, reason.as_bytes());
        return Ok(Some((hello.job, own.job.clone())));
    }
    if frame::write(&mut stream, Kind::Here, &[]).is_err() {
        return Ok(None);
    }
    if let Some(problem) = misfit(&hello, own, guests) {
        refuse(guests, &problem);
        let _ = frame::write(&mut stream, Kind::Refused, problem.as_bytes());
        return Err(MeetingError::Disagree(problem));
    }
    if let Some(guest) = guests.get_mut(hello.rank) {
        *guest = Some((hello, stream));
    }
    Ok(None)
}

/// Why a process cannot be one of this run, which all others hear.
fn misfit(hello: &Hello, own: &Hello, guests: &[Option<(Hello, TcpStream)>]) -> Option<String> {
    let Hello { rank, world, host, .. } = hello;
    if *world != own.world {
        return Some(format!("rank 0 on {} has {} processes, rank {rank} on {host} has {world}", own.host, own.world));
    }
    match guests.get(*rank) {
        None => Some(format!("there is no rank {rank} of {world}, as on {host}")),
        Some(_) if *rank == 0 => Some(format!("rank 0 is there twice, on {} and {host}", own.host)),
        // Who did not get our answer in time comes again.
        Some(Some((other, stream))) if !is_closed(stream) => {
            Some(format!("rank {rank} is there twice, on {} and {host}", other.host))
        }
        Some(_) => None,
    }
}

/// Whether the other end has closed a connection on which it sends nothing.
fn is_closed(stream: &TcpStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let open = looked.as_ref().map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |length| *length > 0);
    !open || stream.set_nonblocking(false).is_err()
}

/// The first message of a caller, if it is a process of ours. Reads not a byte more.
pub(crate) fn hello_of(stream: &mut TcpStream, kind: Kind) -> Option<Hello> {
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    let (found, content) = frame::read(stream).ok()?;
    (found == kind).then(|| Hello::from_bytes(&content)).flatten()
}

fn refuse(guests: &mut [Option<(Hello, TcpStream)>], reason: &str) {
    for (_, stream) in guests.iter_mut().flatten() {
        // Who does not hear it sees the connection end.
        let _ = frame::write(stream, Kind::Refused, reason.as_bytes());
    }
}

/// Tells everybody where everybody is. Loops of this machine mean nothing elsewhere; they are written as nothing, which
/// is read as rank 0's machine.
fn welcome(own: &Hello, guests: Vec<Option<(Hello, TcpStream)>>) -> Result<Met, MeetingError> {
    let mut table = Fields::default().text(&own.host).text("").number(usize::from(own.port));
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut members = vec![Member { host: own.host.clone(), address: SocketAddr::new(local, own.port) }];
    let mut lines = Vec::new();
    for (rank, (hello, stream)) in guests.into_iter().enumerate().filter_map(|(rank, guest)| Some((rank, guest?))) {
        let address = stream.peer_addr()?.ip().to_canonical();
        let text = if address.is_loopback() { String::new() } else { address.to_string() };
        table = table.text(&hello.host).text(&text).number(usize::from(hello.port));
        members.push(Member { host: hello.host, address: SocketAddr::new(address, hello.port) });
        lines.push(Line { rank, stream, frames: Frames::default() });
    }
    for line in &mut lines {
        // Who does not hear it is seen to be dead by the watch that begins now.
        let _ = frame::write(&mut line.stream, Kind::Welcome, &table.0);
    }
    Ok(Met { members, lines })
}

/// The part of all others. One of a host's processes `speaks` of what it waits for.
///
/// # Errors
/// [`MeetingError`]: rank 0 was not found, or says that the processes do not fit together.
pub(crate) fn join(rendezvous: &Rendezvous, own: &Hello, wait: Duration, speaks: bool) -> Result<Met, MeetingError> {
    let (mut waiting, deadline) = (Waiting::new(speaks), Instant::now() + wait);
    let mut refusal = None;
    loop {
        let error = match attempt(rendezvous, own) {
            Ok(found) => return be_welcomed(found, own, deadline),
            Err(error) => error,
        };
        let patience = match error.kind() {
            // Of several ports, others may be somebody else's.
            ErrorKind::InvalidData if rendezvous.hosts.len() == 1 && rendezvous.ports.len() == 1 => {
                return Err(MeetingError::Foreign { place: place(rendezvous), problem: error.to_string() });
            }
            NO_NAME => NAMED.min(wait),
            _ => wait,
        };
        if error.kind() == ErrorKind::PermissionDenied {
            refusal = Some(error.to_string());
        }
        // That somebody else was there tells more than that nobody is there now.
        let problem = || refusal.clone().unwrap_or_else(|| error.to_string());
        if waiting.elapsed() > patience {
            return Err(MeetingError::NotFound {
                rank: own.rank,
                place: place(rendezvous),
                seconds: patience.as_secs_f32(),
                problem: problem(),
            });
        }
        waiting.say(|| format!("rank {} waits for rank 0 at {} ({})", own.rank, place(rendezvous), problem()));
        std::thread::sleep(PAUSE);
    }
}

/// What a name is answered with that no address is known for; no connection fails so.
const NO_NAME: ErrorKind = ErrorKind::NotFound;

/// Looks for rank 0 once at all of its addresses and ports.
fn attempt(rendezvous: &Rendezvous, own: &Hello) -> io::Result<(TcpStream, Frames)> {
    let mut last = io::Error::new(NO_NAME, "the host has no address");
    let places =
        rendezvous.hosts.iter().flat_map(|host| rendezvous.ports.iter().map(move |port| (host.as_str(), *port)));
    for place in places {
        let addresses = match place.to_socket_addrs() {
            Ok(addresses) => addresses,
            // Of several hosts, one that has an address tells more.
            Err(error) if last.kind() == NO_NAME => {
                last = io::Error::new(NO_NAME, error);
                continue;
            }
            Err(_) => continue,
        };
        for address in addresses {
            match call(address, own) {
                Ok(found) => return Ok(found),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

fn call(address: SocketAddr, own: &Hello) -> io::Result<(TcpStream, Frames)> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_nodelay(true)?;
    frame::write(&mut stream, Kind::Hello, &own.to_bytes())?;
    let mut frames = Frames::default();
    match frames.read_until(&mut stream, Instant::now() + ANSWER)? {
        (Kind::Here, _) => Ok((stream, frames)),
        (_, reason) => Err(io::Error::new(ErrorKind::PermissionDenied, String::from_utf8_lossy(&reason).into_owned())),
    }
}

fn be_welcomed(found: (TcpStream, Frames), own: &Hello, deadline: Instant) -> Result<Met, MeetingError> {
    let (mut stream, mut frames) = found;
    let deadline = deadline + ANSWER;
    let table = match frames.read_until(&mut stream, deadline).map_err(MeetingError::Broken)? {
        (Kind::Welcome, table) => table,
        (_, reason) => return Err(MeetingError::Disagree(String::from_utf8_lossy(&reason).into_owned())),
    };
    let first = stream.peer_addr()?.ip().to_canonical();
    let members = members_of(&table, own.world, first)
        .ok_or_else(|| MeetingError::Disagree("rank 0 sent no list of processes; use one build for all".to_owned()))?;
    Ok(Met { members, lines: vec![Line { rank: 0, stream, frames }] })
}

/// The table of [`welcome`], seen from a process to which rank 0 is at `first`.
fn members_of(table: &[u8], world: usize, first: IpAddr) -> Option<Vec<Member>> {
    let mut fields = FieldReader(table);
    let mut member = || {
        let (host, address, port) = (fields.text()?, fields.text()?, u16::try_from(fields.number()?).ok()?);
        let address = if address.is_empty() { first } else { address.parse().ok()? };
        Some(Member { host, address: SocketAddr::new(address, port) })
    };
    (0..world).map(|_| member()).collect()
}

/// Opens a connection for messages.
pub(crate) fn open_data(address: SocketAddr, own: &Hello) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_nodelay(true)?;
    frame::write(&mut stream, Kind::Data, &own.to_bytes())?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(rank: usize, world: usize) -> Hello {
        Hello { job: "job".to_owned(), rank, world, host: format!("host{rank}"), port: 7000 + rank as u16 }
    }

    /// What rank 0 and each guest get.
    fn meet(guests: &[Hello], wait: Duration) -> (Result<Met, MeetingError>, Vec<Result<Met, MeetingError>>) {
        let listener = listen(true, 0).unwrap();
        let rendezvous =
            Rendezvous { hosts: vec!["127.0.0.1".to_owned()], ports: vec![listener.local_addr().unwrap().port()] };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                guests.iter().map(|guest| scope.spawn(|| join(&rendezvous, guest, wait, false))).collect();
            let first = host(&listener, &hello(0, 3), "here", wait);
            (first, threads.into_iter().map(|thread| thread.join().unwrap()).collect())
        })
    }

    #[test]
    fn all_know_all() {
        let (first, others) = meet(&[hello(2, 3), hello(1, 3)], Duration::from_secs(20));
        let first = first.unwrap();
        assert_eq!(first.lines.iter().map(|line| line.rank).collect::<Vec<_>>(), [1, 2]);
        for met in others {
            assert_eq!(met.unwrap().members, first.members);
        }
        let hosts: Vec<_> = first.members.iter().map(|member| member.host.as_str()).collect();
        assert_eq!(hosts, ["host0", "host1", "host2"]);
    }

    #[test]
    fn disagreement_is_told_to_all() {
        let cases = [
            ([hello(1, 3), hello(1, 3)], "rank 1 is there twice, on host1 and host1"),
            ([hello(1, 3), hello(2, 4)], "rank 0 on host0 has 3 processes, rank 2 on host2 has 4"),
            ([hello(1, 3), hello(0, 3)], "rank 0 is there twice, on host0 and host0"),
            ([hello(1, 3), hello(7, 3)], "there is no rank 7 of 3, as on host7"),
        ];
        for (guests, expected) in cases {
            let (first, others) = meet(&guests, Duration::from_secs(2));
            let expected = format!("the processes of this run do not fit together: {expected}");
            assert_eq!(first.unwrap_err().to_string(), expected);
            assert!(others.iter().any(|met| met.as_ref().is_err_and(|error| error.to_string() == expected)));
        }
    }

    #[test]
    fn who_does_not_come_is_named() {
        let (first, others) = meet(&[hello(1, 3)], Duration::from_millis(300));
        let error = first.unwrap_err().to_string();
        assert_eq!(error, "rank 0 waited 0 s at here, but of 3 processes these did not come: rank 2");
        assert!(others[0].as_ref().unwrap_err().to_string().contains("did not come: rank 2"));
        let nowhere = Rendezvous { hosts: vec!["127.0.0.1".to_owned()], ports: vec![1] };
        let error = join(&nowhere, &hello(1, 3), Duration::from_millis(100), false).unwrap_err().to_string();
        assert!(error.starts_with("rank 1 did not find rank 0 at 127.0.0.1:1 within 0 s: "), "{error}");
    }

    #[test]
    fn what_answers_and_is_no_process_of_ours_ends_the_search_at_once() {
        let listener = listen(true, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stranger = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
            // Until the other end has read it.
            let _ = io::Read::read_to_end(&mut stream, &mut Vec::new());
        });
        let rendezvous = Rendezvous { hosts: vec!["127.0.0.1".to_owned()], ports: vec![port] };
        let error = join(&rendezvous, &hello(1, 3), Duration::from_secs(300), false).unwrap_err().to_string();
        assert!(
            error.contains("another program answers, and not rank 0") && error.contains("CALOTYPE_RENDEZVOUS"),
            "{error}"
        );
        stranger.join().unwrap();
    }

    #[test]
    fn a_place_on_another_machine_is_known() {
        let at = |host: &str| Rendezvous { hosts: vec![host.to_owned()], ports: vec![4000] };
        assert!(is_here(&at("127.0.0.1")) && is_here(&at("localhost")));
        // Of the block for documentation (RFC 5737), which no machine has.
        assert!(!is_here(&at("192.0.2.1")));
    }

    #[test]
    fn who_comes_again_is_taken_in() {
        let listener = listen(true, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let rendezvous = Rendezvous { hosts: vec!["127.0.0.1".to_owned()], ports: vec![port] };
        let (own, wait) = (hello(1, 3), Duration::from_secs(20));
        let (first, [second, third]) = std::thread::scope(|scope| {
            let threads = [
                scope.spawn(|| {
                    drop(call(address, &own).unwrap());
                    join(&rendezvous, &own, wait, false)
                }),
                scope.spawn(|| {
                    // The last to come, so that the meeting waits for the one before.
                    std::thread::sleep(Duration::from_millis(300));
                    join(&rendezvous, &hello(2, 3), wait, false)
                }),
            ];
            (host(&listener, &hello(0, 3), "here", wait), threads.map(|thread| thread.join().unwrap()))
        });
        assert_eq!(first.unwrap().members, second.unwrap().members);
        assert!(third.is_ok());
    }

    #[test]
    fn another_run_is_sent_away() {
        let other = Hello { job: "other".to_owned(), ..hello(1, 3) };
        let (first, others) = meet(&[other], Duration::from_millis(300));
        let missing = first.unwrap_err().to_string();
        assert!(
            missing.contains("rank 1, 2; a process of another run came (\"other\", and this one is \"job\")"),
            "{missing}"
        );
        let error = others[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("this is another run (\"job\"), not yours (\"other\")"), "{error}");
    }

    proptest::proptest! {
        /// Whatever a stranger sends is read without harm.
        #[test]
        fn any_bytes_can_be_read(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), kind in 0u8..10) {
            let first = "10.0.0.1".parse().unwrap();
            let _ = (Hello::from_bytes(&bytes), members_of(&bytes, 3, first));
            let hosts = ["a".to_owned(), "b".to_owned()];
            let _ = crate::Failure::from_bytes(&bytes, &hosts);
            // A head that may be right.
            if let [first, _, second, third, fourth, ..] = &mut bytes[..] {
                (*first, *second, *third, *fourth) = (kind, 0, 0, 0);
            }
            let mut frames = Frames::default();
            frames.push(&bytes);
            while let Ok(Some(_)) = frames.next() {}
        }
    }

    #[test]
    fn greetings_are_read_as_they_were_written() {
        let own = hello(2, 3);
        assert_eq!(Hello::from_bytes(&own.to_bytes()), Some(own.clone()));
        let cut = (0..own.to_bytes().len()).map(|length| Hello::from_bytes(&own.to_bytes()[..length]));
        assert!(cut.into_iter().all(|hello| hello.is_none()));
        let other = Fields::default().text("calotype 0").0;
        assert_eq!(Hello::from_bytes(&other), None);
        let failure = crate::Failure {
            rank: 1,
            host: "host1".to_owned(),
            cause: crate::Cause::Silent,
            detail: "nothing heard".to_owned(),
        };
        let hosts = ["host0".to_owned(), "host1".to_owned()];
        assert_eq!(crate::Failure::from_bytes(&failure.to_bytes(), &hosts), Some(failure.clone()));
        assert_eq!(crate::Failure::from_bytes(&failure.to_bytes(), &hosts[..1]), None);
    }

    #[test]
    fn tables_that_are_cut_are_none() {
        let table = Fields::default().text("a").text("").number(1).text("b").text("10.0.0.2").number(2).0;
        let first = "10.0.0.1".parse().unwrap();
        let members = members_of(&table, 2, first).unwrap();
        let addresses = members.iter().map(|member| member.address.to_string()).collect::<Vec<_>>();
        assert_eq!(addresses, ["10.0.0.1:1", "10.0.0.2:2"]);
        assert!((0..table.len()).all(|length| members_of(&table[..length], 2, first).is_none()));
        let wrong = Fields::default().text("a").text("no address").number(1).0;
        assert!(members_of(&wrong, 1, first).is_none());
    }
}
