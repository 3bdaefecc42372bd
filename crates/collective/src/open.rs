//! The processes of a run connected, as the launcher and the build allow.

use crate::net::meeting::MeetingError;
use crate::net::tcp::Tcp;
use crate::{Collective, Group, Launch, Local, Patience, Payload, Starter};

/// What carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// TCP, with nothing else installed.
    Tcp,
    /// MPI; the build needs the feature `mpi`.
    Mpi,
}

impl TransportKind {
    /// MPI where it started the processes and the build has it, else TCP.
    pub fn suits(launch: &Launch) -> Self {
        if launch.by_mpi && cfg!(feature = "mpi") { Self::Mpi } else { Self::Tcp }
    }
}

/// How processes are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// What carries messages; if nothing is said, [`TransportKind::suits`].
    pub transport: Option<TransportKind>,
    /// How numbers travel when they are summed.
    pub payload: Payload,
    /// How long is waited.
    pub patience: Patience,
}

/// Why processes are not connected.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// They did not come together.
    #[error(transparent)]
    Meeting(#[from] MeetingError),
    /// No variable says where rank 0 is.
    #[error(
        "{starter} started {world} processes, but nothing says where rank 0 is: set CALOTYPE_RENDEZVOUS=host:port, the same for all"
    )]
    NoRendezvous {
        /// Whose variables were read.
        starter: Starter,
        /// The number of processes.
        world: usize,
    },
    /// MPI is asked for, but not built in.
    #[error("this build has no MPI: build with `--features mpi`, or choose tcp")]
    NoMpi,
    /// MPI does not work, or does not know these processes.
    #[cfg(feature = "mpi")]
    #[error(transparent)]
    Mpi(#[from] crate::mpi::MpiError),
}

/// Connects this process with the others of its run; all must do so. A single process is [`Local`].
///
/// # Errors
/// [`OpenError`]: who did not come, what does not fit together, or what is missing.
pub fn open(launch: &Launch, options: &Options) -> Result<Box<dyn Collective>, OpenError> {
    if launch.world == 1 {
        return Ok(Box::new(Local));
    }
    let Options { transport, payload, patience } = *options;
    match transport.unwrap_or_else(|| TransportKind::suits(launch)) {
        TransportKind::Tcp => {
            let (starter, world) = (launch.started_by, launch.world);
            let rendezvous = launch.rendezvous.as_ref().ok_or(OpenError::NoRendezvous { starter, world })?;
            Ok(Box::new(Group::new(Tcp::connect(launch, rendezvous, patience)?, payload)))
        }
        TransportKind::Mpi => open_mpi(launch, payload, patience),
    }
}

#[cfg(feature = "mpi")]
fn open_mpi(launch: &Launch, payload: Payload, patience: Patience) -> Result<Box<dyn Collective>, OpenError> {
    Ok(Box::new(Group::new(crate::mpi::Mpi::connect(launch, patience)?, payload)))
}

#[cfg(not(feature = "mpi"))]
fn open_mpi(_: &Launch, _: Payload, _: Patience) -> Result<Box<dyn Collective>, OpenError> {
    Err(OpenError::NoMpi)
}
