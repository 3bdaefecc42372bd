//! Other processes that draw: over TCP, each with one connection to the process that has LoadGen.
//!
//! The connections are the run's own, not those of [`calotype_collective`], which ends all processes when one dies: here the samples of
//! one that is gone are drawn by the others, or the run fails, as the recipe says. A process is gone when its connection breaks or when
//! nothing was heard of it for a while; one that computes says every second that it lives.

mod head;
mod meet;
mod wire;
mod worker;

pub use head::{Peer, connect_to, gather, tend};
pub(crate) use head::{beating, wait_on};
pub use meet::Meeting;
pub use wire::{Message, WireError, Work, read_message, write_message};
pub use worker::{Terms, serve};

use std::time::Duration;

/// How often a process says that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// The version of what is said; both sides must have the same.
const VERSION: u32 = 1;
