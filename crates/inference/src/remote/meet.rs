//! How the processes that a launcher started find each other: rank 0 listens, the others connect.

use super::head::{connected, wait_on};
use crate::error::InferenceError;
use crate::recipe::ProcessSettings;
use calotype_collective::{Launch, Options, Rendezvous, open};
use calotype_core::StopFlag;
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

/// Where rank 0 is.
#[derive(Debug)]
pub enum Meeting {
    /// Here: the others come to this listener.
    Here(TcpListener),
    /// There: names of the host, and ports.
    There(Rendezvous),
}

impl Meeting {
    /// The meeting of the processes of a launch. Where its variables do not say where rank 0 is, MPI carries the address, if this build
    /// has MPI; it is let go of before the run begins, so that one process may die without the others.
    ///
    /// # Errors
    /// [`InferenceError::Process`] if no port is free, or nothing says where rank 0 is.
    pub fn of(launch: &Launch) -> Result<Self, InferenceError> {
        match (&launch.rendezvous, launch.rank) {
            (Some(rendezvous), 0) => listen(&rendezvous.ports).map(Self::Here),
            (Some(rendezvous), _) => Ok(Self::There(rendezvous.clone())),
            (None, _) => told(launch),
        }
    }

    /// A connection to rank 0, as soon as it listens.
    ///
    /// # Errors
    /// [`InferenceError::Process`] if it does not in time.
    pub fn reach(
        rendezvous: &Rendezvous,
        settings: &ProcessSettings,
        stop: &StopFlag,
    ) -> Result<TcpStream, InferenceError> {
        let begun = Instant::now();
        loop {
            for host in &rendezvous.hosts {
                for port in &rendezvous.ports {
                    if let Ok(stream) = connected(&address(host, *port)) {
                        return Ok(stream);
                    }
                }
            }
            let hosts = rendezvous.hosts.join(", ");
            wait_on(begun, settings, stop, || format!("rank 0 does not listen at {hosts}"))?;
        }
    }
}

/// `host:port`, with brackets around an address of version 6.
fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn listen(ports: &[u16]) -> Result<TcpListener, InferenceError> {
    let mut problem = String::new();
    for port in ports {
        match TcpListener::bind(("0.0.0.0", *port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => problem = format!(": {error}"),
        }
    }
    let shown: Vec<String> = ports.iter().map(u16::to_string).collect();
    Err(InferenceError::Process(format!("cannot listen at port {}{problem}", shown.join(", "))))
}

/// Rank 0's address, told through the collective.
fn told(launch: &Launch) -> Result<Meeting, InferenceError> {
    let failed = |problem: String| InferenceError::Process(problem);
    let collective = open(launch, &Options::default()).map_err(|error| failed(error.to_string()))?;
    let listener = match launch.rank {
        0 => Some(listen(&[0])?),
        _ => None,
    };
    let mut text = Vec::new();
    if let Some(listener) = &listener {
        let port = listener.local_addr().map_err(|error| failed(error.to_string()))?.port();
        text = format!("{}\n{port}", launch.host).into_bytes();
    }
    collective.broadcast(0, &mut text).map_err(|error| failed(error.to_string()))?;
    collective.barrier().map_err(|error| failed(error.to_string()))?;
    if let Some(listener) = listener {
        return Ok(Meeting::Here(listener));
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let parts = text.split_once('\n').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    let (host, port) = parts.ok_or_else(|| failed("rank 0 told no address".to_owned()))?;
    Ok(Meeting::There(Rendezvous { hosts: vec![host], ports: vec![port] }))
}
