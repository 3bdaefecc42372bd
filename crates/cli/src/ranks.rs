//! The processes of a run, as a launcher started them: this one finds its place, and one of them tells the user how it ended.

use crate::commands::{STOPPED, Told, Usage, exit_code, message};
use anyhow::{Context, Result};
use calotype_collective::{
    Cause, Collective, Failure, Launch, LaunchError, OpenError, Options, Patience, Reporter, TransportKind, open,
};
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// The variable that chooses what carries messages.
pub(crate) const TRANSPORT: &str = "CALOTYPE_TRANSPORT";

/// Time to end by itself after another process has failed: a process that computes hears of it, but does not stop.
const GRACE: Duration = Duration::from_secs(2);

/// The exit code of a process that does not end by itself in that time.
static CODE: AtomicU8 = AtomicU8::new(1);

/// Time for the first process to tell an error that all have.
const FIRST_SPEAKS: Duration = Duration::from_secs(1);

/// Whether variables say that this is a process of a run that another one speaks for.
pub(crate) fn is_mute() -> bool {
    Launch::from_environment().is_ok_and(|launch| launch.world > 1 && launch.rank > 0)
}

/// This process among those of its run.
pub(crate) struct Place {
    pub(crate) collective: Box<dyn Collective>,
    /// Which of its host's devices it computes on, where there are several processes.
    pub(crate) device: Option<usize>,
}

/// Connects this process with those that a launcher started beside it, and shares the cores with them unless `threads` says how many
/// threads it has. `call` is the time for which one waits for another that lives and has not come as far; the usual time if absent.
///
/// # Errors
/// [`Usage`] where variables contradict each other or do not suffice; the others do not come.
pub(crate) fn connect(threads: Option<usize>, call: Option<Duration>) -> Result<Place> {
    let launch = Launch::from_environment().map_err(|error: LaunchError| Usage(error.to_string()))?;
    if let Some(remark) = launch.remark.as_ref().filter(|_| launch.rank == 0) {
        eprintln!("warning: {remark}");
    }
    let transport = match std::env::var(TRANSPORT).unwrap_or_default().trim() {
        "tcp" => Some(TransportKind::Tcp),
        "mpi" => Some(TransportKind::Mpi),
        _ => None,
    };
    let usual = Patience::default();
    let patience = Patience { call: call.unwrap_or(usual.call), ..usual };
    let collective =
        open(&launch, &Options { transport, patience, ..Options::default() }).map_err(|error| match error {
            OpenError::NoRendezvous { .. } | OpenError::NoMpi => anyhow::Error::from(Usage(error.to_string())),
            other => other.into(),
        })?;
    let own_rank = launch.rank;
    collective.on_failure(Box::new(move |failure, reporter| {
        if reporter == Reporter::Here {
            tell(&words(failure, own_rank));
        }
        std::thread::spawn(|| {
            std::thread::sleep(GRACE);
            std::process::exit(CODE.load(Ordering::SeqCst).into());
        });
    }));
    if threads.is_none() {
        share_cores(&*collective, &launch.host)?;
    }
    let device = (launch.world > 1).then(|| launch.local_rank % visible_devices().unwrap_or(usize::MAX));
    Ok(Place { collective, device })
}

/// The number of devices that variables leave to this process; none if they say nothing.
fn visible_devices() -> Option<usize> {
    let listed = ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"].into_iter();
    let lists = listed.filter_map(|name| std::env::var(name).ok());
    lists.map(|list| list.split(',').filter(|device| !device.trim().is_empty()).count()).find(|count| *count > 0)
}

/// What the user reads of a process that failed. What was wrong here needs no rank.
fn words(failure: &Failure, own_rank: usize) -> String {
    if failure.cause == Cause::Aborted && failure.rank == own_rank {
        return format!("error: {}\n", failure.detail);
    }
    format!(
        "error: {failure}; the run has ended. Start it again, with as many processes or others, and it goes on from its last \
         checkpoint\n"
    )
}

/// In one piece, so that nothing of other processes comes between.
fn tell(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Shares the cores that this process may use with those of its run that may use the same ones.
///
/// # Errors
/// A process is gone.
fn share_cores(collective: &dyn Collective, host: &str) -> Result<()> {
    if collective.world() == 1 || std::env::var_os("CALOTYPE_THREADS").is_some_and(|threads| !threads.is_empty()) {
        return Ok(());
    }
    // Launchers bind processes to cores, or leave all of them the same ones.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let cores = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap_or_default();
    let own: Vec<f32> = format!("{host} {cores}").bytes().map(f32::from).collect();
    let all = collective.all_gather(&own).context("sharing out the cores")?;
    let sharing = all.iter().filter(|other| **other == own).count();
    let available = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    calotype_kernels::set_threads((available / sharing.max(1)).max(1));
    Ok(())
}

/// Ends this process's part: an error ends the run of all, and one process has told it.
pub(crate) fn end(collective: &dyn Collective, outcome: Result<()>) -> Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    if collective.world() == 1 {
        return Err(error);
    }
    let code = exit_code(&error);
    if code == STOPPED {
        return Err(if collective.is_first() { error } else { Told(code).into() });
    }
    CODE.store(code, Ordering::SeqCst);
    let asked = Instant::now();
    while !collective.is_first() && collective.failure().is_none() && asked.elapsed() < FIRST_SPEAKS {
        std::thread::sleep(Duration::from_millis(10));
    }
    if collective.failure().is_none() {
        collective.abort(&message(&error));
    }
    Err(Told(code).into())
}
