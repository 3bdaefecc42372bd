//! Connections between processes: how they meet, how they watch each other, and messages over TCP.

pub(crate) mod control;
pub(crate) mod frame;
pub(crate) mod meeting;
mod ring;
pub(crate) mod tcp;
mod waiting;
