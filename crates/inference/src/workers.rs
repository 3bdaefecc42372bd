//! Processes that draw for a run whose LoadGen is in another one.

use crate::draw::Artist;
use crate::drawing::{digest, drawing, model_of};
use crate::error::InferenceError;
use crate::hands::HandSettings;
use crate::layout::Layout;
use crate::recipe::Recipe;
use crate::remote::{Meeting, Terms, serve, wait_on};
use crate::run::{Work, warm_up};
use calotype_collective::Launch;
use calotype_core::StopFlag;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Draws for a run whose LoadGen is in the process of rank 0.
///
/// # Errors
/// As of [`serve`]; [`InferenceError::Process`] if rank 0 cannot be reached.
pub fn rank(recipe: &Recipe, layout: &Layout, launch: &Launch, work: &Work<'_>) -> Result<(), InferenceError> {
    recipe.validate()?;
    let model = match (&recipe.model, recipe.random) {
        (None, Some(_)) => made_elsewhere(recipe, layout, work.stop)?,
        _ => model_of(recipe, layout, work.tell)?,
    };
    let name = format!("rank {} on {}", launch.rank, launch.host);
    draw_for(recipe, &model, &name, |stop| to_first(launch, recipe, stop), work)
}

/// Listens at an address, and draws for the runs that connect to it, one after another, until it is stopped; with `once`, for one run.
///
/// # Errors
/// As of [`serve`], of the only run; [`InferenceError::Process`] for an address that cannot be listened at.
pub fn listen(
    recipe: &Recipe,
    layout: &Layout,
    address: &str,
    once: bool,
    work: &Work<'_>,
) -> Result<(), InferenceError> {
    recipe.validate()?;
    let model = model_of(recipe, layout, work.tell)?;
    let failed = |error| InferenceError::Process(format!("cannot listen at {address}: {error}"));
    let listener = TcpListener::bind(address).map_err(failed)?;
    let at = listener.local_addr().map_or_else(|_| address.to_owned(), |at| at.to_string());
    (work.tell)(&format!("listening at {at}"));
    loop {
        let outcome = draw_for(recipe, &model, &format!("the worker at {at}"), |stop| accept(&listener, stop), work);
        match outcome {
            outcome if once => return outcome,
            Err(error) if error.is_stopped() => return Err(error),
            Ok(()) => (work.tell)("the run has ended; waiting for the next"),
            Err(error) => (work.tell)(&format!("{error}; waiting for the next run")),
        }
    }
}

/// The checkpoint of random weights that rank 0 makes.
fn made_elsewhere(recipe: &Recipe, layout: &Layout, stop: &StopFlag) -> Result<PathBuf, InferenceError> {
    let (folder, begun) = (layout.model(), Instant::now());
    while !folder.join("model_index.json").is_file() {
        wait_on(begun, &recipe.processes, stop, || format!("rank 0 did not make {}", folder.display()))?;
    }
    Ok(folder)
}

/// Draws for one run.
fn draw_for(
    recipe: &Recipe,
    model: &Path,
    name: &str,
    stream: impl FnOnce(&StopFlag) -> Result<TcpStream, InferenceError>,
    work: &Work<'_>,
) -> Result<(), InferenceError> {
    let digest = digest(&drawing(recipe, model, work.device)?);
    let hands = HandSettings { workers: recipe.serve.workers.max(1), wait: Duration::ZERO };
    let terms = Terms {
        digest,
        name: name.to_owned(),
        batch: recipe.serve.batch_size,
        hands,
        processes: recipe.processes.clone(),
    };
    let load = || {
        (work.tell)(&format!("loading {}", model.display()));
        let loaded = Artist::load(model, recipe, work.device).and_then(|artist| {
            warm_up(&artist, recipe, work)?;
            Ok(artist)
        });
        loaded.inspect_err(|error| (work.tell)(&error.to_string()))
    };
    serve(stream(work.stop)?, &terms, load, work.stop)
}

/// The connection of a launcher's process to rank 0.
fn to_first(launch: &Launch, recipe: &Recipe, stop: &StopFlag) -> Result<TcpStream, InferenceError> {
    match Meeting::of(launch)? {
        Meeting::There(rendezvous) => Meeting::reach(&rendezvous, &recipe.processes, stop),
        Meeting::Here(_) => Err(InferenceError::Process("rank 0 has LoadGen and connects to nobody".to_owned())),
    }
}

/// The next connection to a listener.
fn accept(listener: &TcpListener, stop: &StopFlag) -> Result<TcpStream, InferenceError> {
    let failed = |error: std::io::Error| InferenceError::Process(format!("cannot listen: {error}"));
    listener.set_nonblocking(true).map_err(failed)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(failed)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if stop.is_set() {
                    return Err(InferenceError::Stopped("stopped while waiting for a run".to_owned()));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(failed(error)),
        }
    }
}
