//! Groups of threads and of processes, against sums made in one place.

mod failures;
mod groups;
mod launch;
mod processes;
mod reductions;
mod sums;
mod support;
