//! What the processes of a run do together beside its steps: they begin alike, and compare what must be the same.

use super::grid::Grid;
use super::{MODEL, TrainError, first_difference};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use calotype_collective::{Collective, CollectiveError, Counters, Fingerprint};
use calotype_models::state::Path;
use serde::{Deserialize, Serialize};

/// Does something at the first process, and then at the others: what a run's folder gets once is there when they look.
///
/// # Errors
/// Those of `work`; a process is gone.
pub(super) fn first_then_others<R>(
    collective: &dyn Collective,
    work: impl FnOnce() -> Result<R, TrainError>,
) -> Result<R, TrainError> {
    if !collective.is_first() {
        collective.barrier()?;
    }
    let done = work()?;
    if collective.is_first() {
        collective.barrier()?;
    }
    Ok(done)
}

/// Compares the recipe with that of the first process, before the run's folder is touched.
///
/// # Errors
/// [`TrainError::OtherRank`]; a process is gone.
pub(super) fn check_same_recipe(
    collective: &dyn Collective,
    folder: &std::path::Path,
    recipe: &str,
) -> Result<(), TrainError> {
    if collective.world() == 1 {
        return Ok(());
    }
    let mut bytes = recipe.as_bytes().to_vec();
    collective.broadcast(0, &mut bytes)?;
    match first_difference(&String::from_utf8_lossy(&bytes), recipe, folder) {
        None => Ok(()),
        Some(difference) => {
            let difference = format!("of its recipe, {difference}");
            Err(TrainError::OtherRank { rank: collective.rank(), difference })
        }
    }
}

/// What all processes begin with.
#[derive(Serialize, Deserialize)]
struct Beginning {
    dataset: usize,
    samples: u64,
}

/// Compares the number of samples in the dataset, and the samples seen, with those of the first process.
///
/// # Errors
/// [`TrainError::OtherRank`]; a process is gone.
pub(super) fn check_alike(
    collective: &dyn Collective,
    folder: &std::path::Path,
    dataset: usize,
    samples: u64,
) -> Result<(), TrainError> {
    if collective.world() == 1 {
        return Ok(());
    }
    let other = |difference: String| TrainError::OtherRank { rank: collective.rank(), difference };
    let own = Beginning { dataset, samples };
    let mut bytes = serde_json::to_vec(&own).map_err(|error| other(error.to_string()))?;
    collective.broadcast(0, &mut bytes)?;
    let first: Beginning = serde_json::from_slice(&bytes).map_err(|error| other(error.to_string()))?;
    if first.dataset != dataset {
        return Err(other(format!("its dataset has {dataset} samples, that of rank 0 has {}", first.dataset)));
    }
    match first.samples == samples {
        true => Ok(()),
        false => Err(other(format!(
            "it goes on after {samples} samples, rank 0 after {}: {} must be the same folder on all hosts",
            first.samples,
            folder.display()
        ))),
    }
}

/// Compares the weights of all processes.
///
/// # Errors
/// [`TrainError::Consistency`], the same at all processes.
pub(super) fn check_same_weights<M: Module>(collective: &dyn Collective, parameters: &M) -> Result<(), TrainError> {
    check_same_of(collective, parameters, &|_| true)
}

/// Compares the weights of the processes with the same part of a network, and among those that share it out what all have.
///
/// # Errors
/// [`TrainError::Consistency`], the same at all processes that were compared.
pub(super) fn check_weights_of_grid<M: Module>(grid: &Grid<'_>, parameters: &M) -> Result<(), TrainError> {
    check_same_weights(grid.data(), parameters)?;
    let Some(neighbours) = grid.neighbours() else { return Ok(()) };
    check_same_of(neighbours, parameters, &|name| grid.cut_of(name).is_none())
}

/// Compares the weights of these names.
fn check_same_of<M: Module>(
    collective: &dyn Collective,
    parameters: &M,
    compared: &dyn Fn(&str) -> bool,
) -> Result<(), TrainError> {
    struct Add<'a> {
        path: Path,
        fingerprint: Fingerprint,
        compared: &'a dyn Fn(&str) -> bool,
    }
    impl ModuleVisitor for Add<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.push(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = format!("{MODEL}{}", self.path.name());
            if (self.compared)(&name) {
                self.fingerprint.add(&name, param.val().inner().into_data().as_bytes());
            }
        }
    }
    if collective.world() == 1 {
        return Ok(());
    }
    let mut add = Add { path: Path::default(), fingerprint: Fingerprint::default(), compared };
    parameters.visit(&mut add);
    Ok(add.fingerprint.check_same(collective)?)
}

/// Sentences of all processes at the first one, each with its rank where there are several.
///
/// # Errors
/// A process is gone.
pub(super) fn notices(collective: &dyn Collective, own: Vec<String>) -> Result<Vec<String>, CollectiveError> {
    if collective.world() == 1 {
        return Ok(own);
    }
    let all = collective.gather_bytes(0, own.join("\n").as_bytes())?;
    let of = |(rank, text): (usize, &Vec<u8>)| {
        let text = String::from_utf8_lossy(text).into_owned();
        text.lines().map(|line| format!("{line} (rank {rank})")).collect::<Vec<_>>()
    };
    Ok(all.iter().enumerate().flat_map(of).collect())
}

/// What communication has cost, in one line; nothing without any.
pub(super) fn account(counters: &Counters) -> Option<String> {
    let hidden = counters.overlap()?;
    let (whole, waited) = (counters.communicating.as_secs_f64(), counters.waiting.as_secs_f64());
    let mib = counters.sent_bytes as f64 / f64::from(1 << 20);
    Some(format!(
        "communication took {whole:.1} s, {:.0} % of it while something was computed; {waited:.1} s were waited; {mib:.0} MiB sent",
        100.0 * hidden
    ))
}
