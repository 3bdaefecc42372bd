//! One run: the networks loaded and warm, LoadGen, what it left, and what of it is unofficial.

use crate::draw::Artist;
use crate::drawing::{digest, drawing, model_of};
use crate::error::InferenceError;
use crate::hands::{HandSettings, Hands};
use crate::outcome::{Outcome, Said};
use crate::plan::Plan;
use crate::queue::{Queue, STOPPED, Served};
use crate::recipe::Recipe;
use crate::remote::{Meeting, Peer, beating, connect_to, gather, tend};
use burn::tensor::Device;
use calotype_collective::Launch;
use calotype_core::{StopFlag, durable, system};
use calotype_loadgen::{Ended, Library, LoadgenError, Settings, System};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Where the processes of a run are.
#[derive(Clone, Debug, Default)]
pub enum Processes {
    /// This one draws alone.
    #[default]
    Alone,
    /// Workers listen at these addresses, `host:port`.
    Workers(Vec<String>),
    /// A launcher started them all.
    Ranks(Box<Launch>),
}

/// What a run works with.
pub struct Work<'a> {
    /// The device to compute on.
    pub device: &'a Device,
    /// Asks for the end.
    pub stop: &'a StopFlag,
    /// The processes.
    pub processes: &'a Processes,
    /// Whether a run of this scenario and mode that is there may be replaced.
    pub replace: bool,
    /// The command line, as a shell takes it, for `run.json`.
    pub command: &'a str,
    /// Tells a person what is being done.
    pub tell: &'a dyn Fn(&str),
}

/// Runs the benchmark in the process that has LoadGen, and writes what came of it.
///
/// # Errors
/// [`InferenceError`]. LoadGen's files of a run that did not end well stay apart from those of good runs.
pub fn run(plan: &Plan, work: &Work<'_>) -> Result<Outcome, InferenceError> {
    if calotype_loadgen::version().is_none() {
        return Err(LoadgenError::NotBuilt.into());
    }
    let layout = &plan.layout;
    if layout.is_done() && !work.replace {
        return Err(InferenceError::setting(format!(
            "{}: a run of this scenario and mode is there; choose another --out, or replace it with --replace",
            layout.logs().display()
        )));
    }
    let model = model_of(&plan.recipe, layout, work.tell)?;
    let facts = facts(plan, &model, work.device)?;
    agrees(plan, &facts)?;
    let peers = companions(plan, &facts, work)?;
    let artist = beating(&peers, || {
        (work.tell)(&format!("loading {}", model.display()));
        let artist = Artist::load(&model, &plan.recipe, work.device)?;
        warm_up(&artist, &plan.recipe, work)?;
        peers.iter().try_for_each(Peer::wait_ready)?;
        Ok::<_, InferenceError>(artist)
    })?;
    let folder = layout.begin()?;
    let conf = layout.user_conf();
    durable::write_bytes(&conf, plan.conf.to_text().as_bytes()).map_err(InferenceError::io("write", &conf))?;
    let processes = 1 + peers.len();
    (work.tell)(&format!("{} mode of the scenario {} begins", plan.mode, plan.scenario.official()));
    let (ended, resent) = measure(plan, &artist, peers, work, &folder)
        .inspect_err(|error| leave_word(&folder, error))
        .map_err(|error| stopped(error, &folder))?;
    layout.finish()?;
    let said = Said::read(&layout.logs(), plan.scenario)?;
    let mut unofficial = plan.unofficial.clone();
    unofficial.extend(artist.notes.iter().cloned());
    let outcome = Outcome {
        scenario: plan.scenario.official(),
        mode: plan.mode.name(),
        loadgen: calotype_loadgen::version().unwrap_or_default(),
        result: said.result,
        metric: said.metric,
        remarks: said.remarks,
        samples: ended.answered,
        refused_answers: ended.refused,
        resent_samples: resent,
        seconds: ended.measured.as_secs_f64(),
        processes,
        precision: artist.precision().to_owned(),
        weights: artist.weights().to_owned(),
        command: work.command.to_owned(),
        peak_rss_gib: system::peak_rss_gib(),
        logs: layout.logs(),
        unofficial,
    };
    record(plan, facts, &outcome)?;
    Ok(outcome)
}

/// LoadGen with everybody at work.
fn measure(
    plan: &Plan,
    artist: &Artist,
    peers: Vec<Peer>,
    work: &Work<'_>,
    folder: &Path,
) -> Result<(Ended, u64), InferenceError> {
    let serve = &plan.recipe.serve;
    let queue = Arc::new(Queue::new(work.stop));
    let wait = Duration::from_millis(serve.batch_wait_ms);
    let mut tended = Vec::new();
    for peer in peers {
        tended.push(tend(peer, &queue, &plan.samples, &plan.recipe.processes, wait)?);
    }
    let hands = Hands::start(HandSettings { workers: serve.workers, wait }, artist, &plan.samples, &queue)?;
    let settings = Settings {
        scenario: plan.scenario,
        mode: plan.mode,
        user_conf: plan.layout.user_conf(),
        audit_conf: plan.audit_conf.clone(),
        seeds: plan.seeds(),
        out: folder.to_owned(),
        trace: plan.recipe.load.trace,
        grace: Duration::from_secs_f64(plan.recipe.processes.grace_seconds),
    };
    let served: Arc<dyn System> = Arc::new(Served { queue: Arc::clone(&queue), total: plan.samples.len() });
    let library: Arc<dyn Library> = Arc::<crate::Samples>::clone(&plan.samples);
    let outcome = calotype_loadgen::run(&settings, &served, &library);
    if let Err(error) = &outcome {
        // So that workers hear of it, too.
        queue.fail(error.to_string());
    }
    queue.end();
    // A failed run is left within the time that LoadGen was given; a batch in work may take longer, and is nobody's any more.
    if outcome.is_ok() {
        hands.join();
    }
    tended.into_iter().for_each(|thread| drop(thread.join()));
    Ok((outcome?, queue.resent()))
}

/// A stop on request is no failure.
fn stopped(error: InferenceError, folder: &Path) -> InferenceError {
    match error {
        InferenceError::Loadgen(LoadgenError::Failed(text)) if text == STOPPED => {
            let folder = folder.display();
            InferenceError::Stopped(format!(
                "stopped: a run that did not end counts for nothing; what there is lies in {folder}"
            ))
        }
        other => other,
    }
}

/// Says beside LoadGen's files why they count for nothing: some of them may call the run valid.
fn leave_word(folder: &Path, error: &InferenceError) {
    let text = format!("This run failed, and its files count for nothing: {error}\n");
    // The error itself is told in any case.
    let _ = durable::write_bytes(&folder.join("failure.txt"), text.as_bytes());
}

pub(crate) fn warm_up(artist: &Artist, recipe: &Recipe, work: &Work<'_>) -> Result<(), InferenceError> {
    let serve = &recipe.serve;
    if serve.warmup > 0 {
        (work.tell)(&format!("warming up with {} pictures, which are not measured", serve.warmup));
    }
    Ok(artist.warm_up(serve.warmup, serve.warmup_steps, &|| !work.stop.is_set())?)
}

/// The other processes of the run, which are loading.
fn companions(plan: &Plan, facts: &Value, work: &Work<'_>) -> Result<Vec<Peer>, InferenceError> {
    let (digest, settings) = (digest(&facts["drawing"]), &plan.recipe.processes);
    match work.processes {
        Processes::Alone => Ok(Vec::new()),
        Processes::Workers(addresses) => connect_to(addresses, &digest, settings, work.stop),
        Processes::Ranks(launch) => match Meeting::of(launch)? {
            Meeting::Here(listener) => gather(&listener, launch.world - 1, &digest, settings, work.stop),
            Meeting::There(_) => Err(InferenceError::Process("LoadGen is in rank 0".to_owned())),
        },
    }
}

/// What `run.json` says of all runs of a folder.
fn facts(plan: &Plan, model: &Path, device: &Device) -> Result<Value, InferenceError> {
    Ok(json!({
        "benchmark": calotype_loadgen::MODEL,
        "model": model,
        "round": plan.recipe.round,
        "variant": plan.recipe.variant,
        "samples": plan.samples.len(),
        "captions": plan.recipe.captions.path.as_ref().filter(|_| !plan.recipe.captions.made_up),
        "captions_sha256": plan.samples.captions().sha256,
        "drawing": drawing(&plan.recipe, model, device)?,
    }))
}

/// Fields of `run.json` that all runs of a folder share.
const SHARED: [&str; 5] = ["round", "variant", "samples", "captions_sha256", "drawing"];

/// Refuses a folder whose runs were drawn otherwise: a submission is made of one.
fn agrees(plan: &Plan, facts: &Value) -> Result<(), InferenceError> {
    let path = plan.layout.run_json();
    let Some(found) = durable::read_json::<Value>(&path).map_err(InferenceError::io("read", &path))? else {
        return Ok(());
    };
    let differs = |field: &&&str| found[**field] != facts[**field];
    let Some(field) = SHARED.iter().find(differs) else { return Ok(()) };
    let (there, here) = (&found[*field], &facts[*field]);
    let told = match (there.as_object(), here.as_object()) {
        (Some(there), Some(here)) => {
            here.iter().find(|(key, value)| there.get(*key) != Some(value)).map(|(key, value)| {
                format!("{field}.{key} is {} there, and {value} now", there.get(key).unwrap_or(&Value::Null))
            })
        }
        _ => Some(format!("{field} is {there} there, and {here} now")),
    };
    let problem = format!(
        "the runs of this folder were made otherwise: {}; choose another --out",
        told.unwrap_or_else(|| format!("{field} is another"))
    );
    Err(InferenceError::File { path, problem })
}

/// The command lines of all runs of a folder, in the order of the runs: those that are there without that of the replaced run, and ours.
fn commands(found: &Value, replaced: Option<&Value>, ours: &str) -> Vec<Value> {
    let gone = replaced.map(|run| &run["command"]);
    let there = found["commands"].as_array().into_iter().flatten();
    let kept = there.filter(|command| Some(*command) != gone && command.as_str() != Some(ours));
    kept.cloned().chain([ours.into()]).collect()
}

/// Writes `run.json` and the summaries.
fn record(plan: &Plan, facts: Value, outcome: &Outcome) -> Result<(), InferenceError> {
    let path = plan.layout.run_json();
    let found: Option<Value> = durable::read_json(&path).map_err(InferenceError::io("read", &path))?;
    let found = found.unwrap_or_default();
    let mut runs = found["runs"].as_object().cloned().unwrap_or_default();
    let said = serde_json::to_value(outcome).map_err(|error| InferenceError::io("write", &path)(error.into()))?;
    let replaced = runs.insert(format!("{}/{}", plan.scenario.name(), plan.mode), said.clone());
    let mut all = facts.as_object().cloned().unwrap_or_default();
    all.insert("recipe".to_owned(), plan.text.clone().into());
    all.insert("commands".to_owned(), commands(&found, replaced.as_ref(), &outcome.command).into());
    all.insert("runs".to_owned(), runs.into());
    durable::write_json(&path, &all).map_err(InferenceError::io("write", &path))?;
    let [text, json] = plan.layout.summaries();
    durable::write_bytes(&text, outcome.to_text().as_bytes()).map_err(InferenceError::io("write", &text))?;
    durable::write_json(&json, &said).map_err(InferenceError::io("write", &json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_knows_the_commands_of_the_runs_that_it_has() {
        let found = json!({"commands": ["a", "b", "c"]});
        let replaced = json!({"command": "b"});
        for (found, replaced, ours, expected) in [
            (&found, None, "d", json!(["a", "b", "c", "d"])),
            (&found, Some(&replaced), "d", json!(["a", "c", "d"])),
            (&found, None, "a", json!(["b", "c", "a"])),
            (&Value::Null, None, "a", json!(["a"])),
            (&json!({"commands": 3}), Some(&Value::Null), "a", json!(["a"])),
        ] {
            assert_eq!(Value::from(commands(found, replaced, ours)), expected);
        }
    }
}
