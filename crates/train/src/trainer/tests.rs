//! The loop with a model of a few numbers: how runs end, go on, and are shared between processes.

mod dataset;
mod mllog;
mod ranks;

use super::*;
use crate::config::{SettingError, training_recipe};
use crate::optim::Optimizer;
use crate::recipe::{RecipeLoader, Resolved};
use crate::stages::StageError;
use crate::task::Decoder;
use crate::trackers::{Tracker, TrackerError};
use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_checkpoints::{Component, Export};
use calotype_collective::{Collective, Group, Local, Memory, Payload};
use calotype_core::stop::StopFlag;
use calotype_data::npy::NpyArray;
use calotype_data::{Quarantine, Sample, ShardLimits, ShardWriter};
use calotype_models::{ConfigError, Init};
use std::cell::RefCell;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

mod watching;

training_recipe! {
    /// Nothing of its own.
    LineRecipe {}
}

/// `y = weight x + bias`.
#[derive(Module, Debug)]
struct Line {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Line {
    fn new() -> Self {
        let device = Device::flex().autodiff();
        let weight = [[0.5f32, -0.25, 0.125, 1.0], [1.0, 0.5, -0.5, 0.25]];
        Self {
            weight: Param::from_tensor(Tensor::from_data(weight, &device)),
            bias: Param::from_tensor(Tensor::from_data([0.1f32, -0.1], &device)),
        }
    }
}

/// What goes wrong, and when, by the position of a sample.
#[derive(Debug, Default)]
enum Incident {
    #[default]
    None,
    /// The loss fails.
    Error(u64),
    /// The loss is not a number.
    NotANumber(u64),
    /// Somebody asks for a stop during the step.
    Stop(u64, StopFlag),
    /// The step takes for ever: it says so in the folder, and says when a stop is asked for.
    Wait(u64, StopFlag, PathBuf),
}

/// Learns to give the sum and the number of a sample's four values.
#[derive(Debug, Default)]
struct LineTask {
    incident: Incident,
    /// Positions and first values of all samples, in the order in which losses saw them.
    seen: Mutex<Vec<(u64, f32)>>,
}

impl LineTask {
    fn with(incident: Incident) -> Self {
        Self { incident, ..Self::default() }
    }

    fn happen(&self, positions: std::ops::Range<u64>) -> Result<(), BoxError> {
        match &self.incident {
            Incident::Error(at) if positions.contains(at) => Err(format!("no loss at {at}").into()),
            Incident::Stop(at, flag) if positions.contains(at) => {
                flag.request();
                Ok(())
            }
            Incident::Wait(at, flag, folder) if positions.contains(at) => {
                std::fs::write(folder.join("waiting"), "")?;
                for _ in 0..4000 {
                    if flag.is_set() {
                        std::fs::write(folder.join("asked"), "")?;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Task for LineTask {
    const KIND: &'static str = "line";
    const ABOUT: &'static str = "a line";

    type Recipe = LineRecipe;
    type Model = Line;
    type Item = Vec<f32>;

    fn check(_: &LineRecipe) -> Result<(), SettingError> {
        Ok(())
    }

    fn open(_: &LineRecipe, _: &StageContext<'_>) -> Result<Self, StageError> {
        Ok(Self::default())
    }

    fn model(&self, _: &mut Init<'_>) -> Result<Line, ConfigError> {
        Ok(Line::new())
    }

    fn component(&self) -> Component {
        Component::Unet
    }

    fn decoder(&self, _: std::ops::Range<u64>) -> Decoder<Vec<f32>> {
        Box::new(|_, sample| Ok(sample.array("npy")?.to_f32()?))
    }

    fn loss(&self, model: &Line, batch: Batch<Vec<f32>>, _: &StepContext<'_>) -> Result<Loss, BoxError> {
        let count = batch.items.len();
        let positions = batch.first_position..batch.first_position + count as u64;
        self.seen.lock().unwrap().extend(positions.clone().zip(batch.items.iter().map(|item| item[0])));
        self.happen(positions.clone())?;
        let device = model.bias.val().device();
        let targets: Vec<f32> = batch.items.iter().flat_map(|item| [item.iter().sum::<f32>(), 1.0]).collect();
        let inputs = Tensor::<2>::from_data(TensorData::new(batch.items.concat(), [count, 4]), &device);
        let targets = Tensor::<2>::from_data(TensorData::new(targets, [count, 2]), &device);
        let output = inputs.matmul(model.weight.val().transpose()) + model.bias.val().unsqueeze();
        let error = (output - targets).powf_scalar(2.0).mean();
        let part = f64::from(error.clone().inner().into_scalar::<f32>());
        let spoiled = matches!(&self.incident, Incident::NotANumber(at) if positions.contains(at));
        let value = if spoiled { error.mul_scalar(f32::NAN) } else { error };
        Ok(Loss { value, parts: vec![("squares", part)] })
    }

    fn published(&self, _: &Line) -> Result<Export<'static>, StageError> {
        unreachable!("the trainer writes no models")
    }
}

static RECIPES: &[(&str, &str)] = &[(
    "line",
    "kind = \"line\"\n[data]\n[optimizer]\nlearning_rate = 0.05\n[ema]\nhalf_life = 8\n[run]\nseed = 5\nsamples = 48\n\
     batch_size = 4\nprecision = \"f32\"\nlog_every = 8\ncheckpoint_every = 16\n",
)];

/// What a tracker is told, but for numbers.
#[derive(Debug, Default)]
struct Told(Vec<String>);

impl Tracker for Told {
    fn event(&mut self, event: &Event<'_>) -> Result<(), TrackerError> {
        match event {
            Event::RunStart { samples, .. } => self.0.push(format!("start {samples}")),
            Event::CheckpointSaved { samples, path } => {
                assert!(path.join("manifest.json").is_file(), "{}", path.display());
                self.0.push(format!("checkpoint {samples}"));
            }
            Event::Evaluation { samples, .. } => self.0.push(format!("evaluation {samples}")),
            Event::RunEnd { samples, outcome } => self.0.push(format!("end {samples} {outcome:?}")),
            _ => {}
        }
        Ok(())
    }
}

/// A dataset and folders for runs.
struct World(tempfile::TempDir);

impl World {
    /// With so many samples; those named in `broken` are no arrays.
    fn with(samples: usize, broken: &[usize]) -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        let mut writer = ShardWriter::create(world.path("data"), "x", ShardLimits::default()).unwrap();
        for number in 0..samples {
            let values = (0..4).map(|i| if i == 0 { number as f32 } else { ((number + i) as f32).sin() }).collect();
            let bytes = match broken.contains(&number) {
                true => b"broken".to_vec(),
                false => NpyArray::from_f32(&[4], values).unwrap().to_bytes(),
            };
            writer.write(&Sample::new(format!("{number:03}")).with("npy", bytes)).unwrap();
        }
        writer.finish().unwrap();
        world
    }

    fn new() -> Self {
        Self::with(12, &[])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn recipe(&self, overrides: &[&str]) -> Resolved<LineRecipe> {
        let mut all = vec![format!("data.path={:?}", self.path("data"))];
        all.extend(overrides.iter().map(|text| (*text).to_owned()));
        RecipeLoader::new().embedded(RECIPES).load("line", &all).unwrap_or_else(|error| panic!("{error}"))
    }

    fn train(&self, run: &str, task: &LineTask, overrides: &[&str]) -> Ended {
        self.train_as(run, task, overrides, &Local, &StopFlag::new_unhooked())
    }

    fn train_as(
        &self,
        run: &str,
        task: &LineTask,
        overrides: &[&str],
        collective: &dyn Collective,
        stop: &StopFlag,
    ) -> Ended {
        let (recipe, folder, device) = (self.recipe(overrides), self.path(run), Device::flex());
        let told = RefCell::new(Told::default());
        let context = StageContext { tracker: Some(&told), collective, ..StageContext::new(&folder, &device, stop) };
        let outcome = train(task, Line::new(), recipe.as_recipe(), &context);
        Ended { outcome, told: told.into_inner().0 }
    }

    /// The newest checkpoint's tensors by name.
    fn tensors(&self, run: &str) -> BTreeMap<String, Vec<f32>> {
        let store = CheckpointStore::open(self.path(run).join(CHECKPOINTS), CHECKPOINT_PREFIX).unwrap();
        let newest = store.newest().unwrap().unwrap();
        let names: Vec<String> = newest.tensors.names().map(str::to_owned).collect();
        let values = |name: &String| newest.tensors.get(name).unwrap().to_f32_vec().unwrap();
        names.iter().map(|name| (name.clone(), values(name))).collect()
    }

    /// The lines of the metrics, without what depends on the clock.
    fn metrics(&self, run: &str) -> Vec<BTreeMap<String, f64>> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let parse = |line: &str| serde_json::from_str::<BTreeMap<String, f64>>(line).unwrap();
        let mut lines: Vec<_> = text.lines().map(parse).collect();
        let timed = |name: &str| name.contains("second") || name == "data_wait";
        lines.iter_mut().for_each(|line| line.retain(|key, _| !timed(key)));
        lines
    }
}

#[derive(Debug)]
struct Ended {
    outcome: Result<Outcome<Line>, TrainError>,
    told: Vec<String>,
}

impl Ended {
    fn summary(self) -> TrainingSummary {
        match self.outcome.unwrap_or_else(|error| panic!("{error}")) {
            Outcome::Finished(_, summary) => summary,
            Outcome::Interrupted { samples, .. } => panic!("stopped after {samples}"),
        }
    }

    fn interrupted_at(&self) -> u64 {
        match &self.outcome {
            Ok(Outcome::Interrupted { samples, .. }) => *samples,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_a_recipe_does_already_is_no_remedy() {
    for (clip, proposed) in [(0.0, true), (0.5, false), (1.0, false), (10.0, true)] {
        let remedies = remedies(clip);
        assert_eq!(remedies.contains("optimizer.gradient_clip = 1.0"), proposed, "{clip}: {remedies}");
        assert!(remedies.contains("optimizer.learning_rate") && remedies.ends_with("usually helps"), "{remedies}");
    }
}

#[test]
fn every_ending_is_told_to_the_trackers() {
    let world = World::new();
    let done = world.train("done", &LineTask::default(), &[]);
    assert_eq!(done.told, ["start 0", "checkpoint 16", "checkpoint 32", "checkpoint 48", "end 48 Finished"]);

    let stop = StopFlag::new_unhooked();
    let task = LineTask::with(Incident::Stop(21, stop.clone()));
    let stopped = world.train_as("stopped", &task, &[], &Local, &stop);
    assert_eq!(stopped.interrupted_at(), 24, "the step that is being done is done");
    assert_eq!(stopped.told, ["start 0", "checkpoint 16", "checkpoint 24", "end 24 Interrupted"]);
    let resumed = world.train("stopped", &LineTask::default(), &[]);
    assert_eq!(resumed.told, ["start 24", "checkpoint 32", "checkpoint 48", "end 48 Finished"]);
    assert!(world.tensors("stopped") == world.tensors("done"));
    assert_eq!(world.metrics("stopped"), world.metrics("done"));

    for (name, incident) in [("error", Incident::Error(21)), ("nan", Incident::NotANumber(21))] {
        let failed = world.train(name, &LineTask::with(incident), &[]);
        assert!(failed.outcome.is_err());
        assert_eq!(failed.told, ["start 0", "checkpoint 16", "end 20 Failed"], "{name}");
        let resumed = world.train(name, &LineTask::default(), &[]);
        assert_eq!(resumed.told, ["start 16", "checkpoint 32", "checkpoint 48", "end 48 Finished"], "{name}");
        assert!(world.tensors(name) == world.tensors("done"), "{name}");
    }
}

/// Positions 0 to 7 are the first batches of training, which are not looked at again, and those of every evaluation.
#[test]
fn a_stop_in_an_evaluation_ends_it_and_it_is_made_when_the_run_goes_on() {
    let world = World::new();
    let evaluate = format!("hooks.evaluate={{ path = {:?}, every = 24, samples = 12 }}", world.path("data"));
    let settings = [evaluate.as_str(), "hooks.target={ metric = \"validation/loss\", at_most = -1.0 }"];
    let whole = world.train("whole", &LineTask::default(), &settings);
    assert_eq!(whole.told.iter().filter(|event| event.starts_with("evaluation")).count(), 2);
    let stop = StopFlag::new_unhooked();
    world.train("run", &LineTask::default(), &[&settings[..], &["run.samples=20"]].concat()).summary();
    let extended = |task: &LineTask, stop: &StopFlag| {
        let recipe = world.recipe(&settings);
        let (folder, device) = (world.path("run"), Device::flex());
        let told = RefCell::new(Told::default());
        let context = StageContext { tracker: Some(&told), extend: true, ..StageContext::new(&folder, &device, stop) };
        let outcome = train(task, Line::new(), recipe.as_recipe(), &context);
        Ended { outcome, told: told.into_inner().0 }
    };
    // The evaluation at 24 samples looks at the positions 0 to 11.
    let task = LineTask::with(Incident::Stop(5, stop.clone()));
    let stopped = extended(&task, &stop);
    assert_eq!(stopped.interrupted_at(), 24);
    assert_eq!(stopped.told, ["start 20", "checkpoint 24", "end 24 Interrupted"]);
    let positions: Vec<u64> = task.seen.into_inner().unwrap().into_iter().map(|(position, _)| position).collect();
    assert_eq!(positions, [20, 21, 22, 23, 0, 1, 2, 3, 4, 5, 6, 7], "the batch in which it was asked for is the last");
    // Asked again: as before.
    let again = StopFlag::new_unhooked();
    again.request();
    assert_eq!(extended(&LineTask::default(), &again).interrupted_at(), 24);
    let resumed = extended(&LineTask::default(), &StopFlag::new_unhooked());
    assert_eq!(resumed.told[..3], ["start 24", "evaluation 24", "checkpoint 24"]);
    assert_eq!(world.metrics("run"), world.metrics("whole"));
    assert!(world.tensors("run") == world.tensors("whole"));
}

#[test]
fn samples_of_an_evaluation_that_come_twice_are_told() {
    let world = World::new();
    let remarks = |samples: usize| {
        let evaluate = format!("hooks.evaluate={{ path = {:?}, every = 8, samples = {samples} }}", world.path("data"));
        let recipe = world.recipe(&[&evaluate]);
        let hooks = hooks::open_all::<LineTask>(&recipe.value).unwrap();
        hooks::check_all(&hooks, &recipe.value).unwrap()
    };
    assert_eq!(remarks(12), Vec::<String>::new());
    assert!(remarks(13)[0].contains("looks at 16 samples") && remarks(13)[0].ends_with("has 12"), "{:?}", remarks(13));
}

#[test]
fn a_run_that_does_not_begin_is_not_told() {
    let world = World::new();
    assert!(world.train("run", &LineTask::default(), &[]).outcome.is_ok());
    let other = world.train("run", &LineTask::default(), &["run.seed=6"]);
    assert!(matches!(other.outcome, Err(TrainError::OtherRecipe { .. })) && other.told.is_empty());
}

#[test]
fn a_stop_before_the_first_step_leaves_a_run_that_goes_on() {
    let world = World::new();
    let stop = StopFlag::new_unhooked();
    stop.request();
    let task = LineTask::default();
    let ended = world.train_as("run", &task, &[], &Local, &stop);
    assert_eq!((ended.interrupted_at(), task.seen.into_inner().unwrap().len()), (0, 0));
    assert_eq!(ended.told, ["start 0", "checkpoint 0", "end 0 Interrupted"]);
    // Asked again before anything was done: as before.
    assert_eq!(world.train_as("run", &LineTask::default(), &[], &Local, &stop).interrupted_at(), 0);
    world.train("run", &LineTask::default(), &[]).summary();
    world.train("whole", &LineTask::default(), &[]).summary();
    assert!(world.tensors("run") == world.tensors("whole"));
}

#[test]
fn a_target_ends_a_run_for_good() {
    let world = World::new();
    let target = ["hooks.target={ metric = \"loss\", at_most = 1e9 }"];
    let ended = world.train("run", &LineTask::default(), &target);
    assert_eq!(ended.told, ["start 0", "checkpoint 8", "end 8 Finished"], "at the first entry of the logs");
    let summary = ended.summary();
    assert!(summary.samples_seen == 8 && summary.target.unwrap().contains("loss = "));
    let task = LineTask::default();
    let again = world.train("run", &task, &target);
    assert_eq!(again.told, ["start 8", "end 8 Finished"]);
    assert!(again.summary().target.is_some() && task.seen.into_inner().unwrap().is_empty());
}

#[test]
fn a_run_that_is_finished_twice_has_one_end_in_its_logs() {
    // The last entry of the logs comes with the end, as 48 is no multiple of 32, while a checkpoint is due there.
    let (world, settings) = (World::new(), ["run.log_every=32"]);
    let first = world.train("run", &LineTask::default(), &settings).summary();
    let metrics = world.metrics("run");
    assert_eq!(metrics.iter().map(|line| line["samples"]).collect::<Vec<_>>(), [32.0, 48.0]);
    let second = world.train("run", &LineTask::default(), &settings).summary();
    assert_eq!(world.metrics("run"), metrics);
    assert_eq!((first.loss_last, first.steps), (second.loss_last, second.steps));
}

#[test]
fn hooks_are_due_by_samples_whatever_the_batch() {
    let world = World::new();
    let evaluate = format!("hooks.evaluate={{ path = {:?}, every = 8, samples = 6 }}", world.path("data"));
    let told = |run: &str, stop: &StopFlag, task: &LineTask| {
        let settings = ["run.batch_size=3", "run.checkpoint_every=1000", evaluate.as_str()];
        let ended = world.train_as(run, task, &settings, &Local, stop);
        ended.told.into_iter().filter(|event| event.starts_with("evaluation")).collect::<Vec<_>>()
    };
    let never = StopFlag::new_unhooked();
    let whole = told("whole", &never, &LineTask::default());
    let due = [9, 18, 24, 33, 42, 48].map(|samples| format!("evaluation {samples}"));
    assert_eq!(whole, due, "behind the first step that passes a multiple of 8");
    let stop = StopFlag::new_unhooked();
    let mut parts = told("parts", &stop, &LineTask::with(Incident::Stop(19, stop.clone())));
    assert_eq!(parts, due[..2]);
    parts.extend(told("parts", &never, &LineTask::default()));
    assert_eq!(parts, due, "a restart between two of them changes nothing");
    assert_eq!(world.metrics("parts"), world.metrics("whole"));
    assert!(
        hooks::crossed(0, 3, 3) && !hooks::crossed(3, 5, 3) && hooks::crossed(5, 20, 3) && !hooks::crossed(6, 8, 3)
    );
}

#[test]
fn frozen_parameters_have_no_gradient_moments_and_average() {
    let world = World::new();
    let frozen = ["optimizer.groups=[{ names = [\"bias\"], frozen = true }]", "optimizer.weight_decay=0.5"];
    world.train("run", &LineTask::default(), &frozen).summary();
    let tensors = world.tensors("run");
    let kept: Vec<&str> = tensors.keys().map(String::as_str).collect();
    let expected =
        ["adamw.first_moment.weight", "adamw.second_moment.weight", "ema.weight", "model.bias", "model.weight"];
    assert_eq!(kept, expected);
    assert_eq!(tensors["model.bias"], [0.1, -0.1], "no step and no decay");
    assert_ne!(tensors["model.weight"][0], 0.5);

    let recipe = world.recipe(&frozen);
    let line = Line::new();
    let optimizer = Optimizer::new(&line, &recipe.value.config()).unwrap();
    let line = optimizer.freeze(line);
    let loss = (line.weight.val().sum() + line.bias.val().sum()).reshape([1]);
    let gradients = loss.backward();
    assert!(line.weight.val().grad(&gradients).is_some() && line.bias.val().grad(&gradients).is_none());
}

/// A frozen line, and what is added to its weight as a product of two thin matrices.
#[derive(Debug)]
struct LowRank(Line);

#[derive(Module, Debug)]
struct Factors {
    down: Param<Tensor<2>>,
    up: Param<Tensor<2>>,
}

impl LowRank {
    fn factors() -> Factors {
        let device = Device::flex().autodiff();
        let down = Tensor::from_data([[0.5f32, -0.5, 0.25, 1.0]], &device);
        Factors { down: Param::from_tensor(down), up: Param::from_tensor(Tensor::zeros([2, 1], &device)) }
    }

    fn line(&self, factors: &Factors) -> Line {
        let added = factors.up.val().matmul(factors.down.val());
        let (id, weight, mapper) = self.0.weight.clone().consume();
        Line { weight: Param::from_mapped_value(id, weight.detach() + added, mapper), bias: self.0.bias.clone() }
    }
}

impl Trainable<Line> for LowRank {
    type Parameters = Factors;

    fn with_model<R>(&self, parameters: &Factors, body: impl FnOnce(&Line) -> R) -> R {
        body(&self.line(parameters))
    }

    fn model_of(&self, parameters: Factors) -> Line {
        self.line(&parameters)
    }
}

#[test]
fn an_adapter_is_trained_saved_and_resumed_in_place_of_the_model() {
    let world = World::new();
    let recipe = world.recipe(&["run.samples=480"]);
    let device = Device::flex();
    let train = |run: &str, task: &LineTask, stop: &StopFlag| {
        let folder = world.path(run);
        let context = StageContext::new(&folder, &device, stop);
        train_with(task, &LowRank(Line::new()), LowRank::factors(), recipe.as_recipe(), &context).unwrap()
    };
    let stop = StopFlag::new_unhooked();
    let Outcome::Finished(merged, summary) = train("whole", &LineTask::default(), &stop) else { panic!("not stopped") };
    assert!(summary.loss_last < 0.9 * summary.loss_first, "{summary:?}");
    let tensors = world.tensors("whole");
    assert_eq!((tensors.len(), tensors["model.down"].len(), tensors["ema.up"].len()), (8, 4, 2), "nothing of the base");

    // The result is the base with the product of the averaged factors added.
    let (weights, base) = (state::collect(&merged), state::collect(&Line::new()));
    assert_eq!(weights[1], base[1], "the bias is nobody's to change");
    let (up, down) = (&tensors["ema.up"], &tensors["ema.down"]);
    for (i, value) in weights[0].values.iter().enumerate() {
        let expected = base[0].values[i] + up[i / 4] * down[i % 4];
        assert!((value - expected).abs() < 1e-6, "{i}: {value} and {expected}");
    }
    let stopped = train("parts", &LineTask::with(Incident::Stop(40, stop.clone())), &stop);
    assert!(matches!(stopped, Outcome::Interrupted { samples: 44, .. }));
    train("parts", &LineTask::default(), &StopFlag::new_unhooked());
    assert!(world.tensors("parts") == tensors);
}

/// How each process of a run ends, with what its tracker was told: a thread for each task, in the order of their ranks.
fn all_of(world: &World, run: &str, overrides: &[&str], tasks: &[(&LineTask, &StopFlag)]) -> Vec<Ended> {
    let members = Memory::members(tasks.len(), Duration::from_secs(60));
    let groups = members.into_iter().map(|member| Group::new(member, Payload::F32));
    std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for (group, (task, stop)) in groups.zip(tasks.iter().copied()) {
            handles.push(scope.spawn(move || world.train_as(run, task, overrides, &group, stop)));
        }
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

/// How each of two processes ends.
fn both(world: &World, run: &str, overrides: &[&str], incidents: [Incident; 2], stops: [&StopFlag; 2]) -> [Ended; 2] {
    let tasks = incidents.map(LineTask::with);
    let ended = all_of(world, run, overrides, &[(&tasks[0], stops[0]), (&tasks[1], stops[1])]);
    ended.try_into().unwrap()
}

#[test]
fn two_processes_do_what_one_does() {
    let (world, never) = (World::new(), StopFlag::new_unhooked());
    let alone = world.train("alone", &LineTask::default(), &[]).summary();
    let [first, second] = both(&world, "both", &[], [Incident::None, Incident::None], [&never, &never]);
    assert_eq!(first.told, ["start 0", "checkpoint 16", "checkpoint 32", "checkpoint 48", "end 48 Finished"]);
    assert!(second.told.is_empty(), "one process writes");
    let models = [&first, &second].map(|ended| match &ended.outcome {
        Ok(Outcome::Finished(model, _)) => state::collect(model),
        other => panic!("{other:?}"),
    });
    assert!(models[0] == models[1], "the processes have different weights");
    let (one, two) = (world.tensors("alone"), world.tensors("both"));
    for (name, values) in &one {
        let worst = values.iter().zip(&two[name]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst < 1e-5, "{name} differs by {worst}");
    }
    let summary = first.summary();
    assert_eq!((summary.samples_seen, summary.steps), (alone.samples_seen, alone.steps));
    // Losses, also the named parts, are those of the whole batch and not of the first process's half.
    for (one, two) in world.metrics("alone").iter().zip(&world.metrics("both")) {
        for name in ["loss", "squares", "gradient_norm"] {
            assert!((one[name] - two[name]).abs() < 1e-4 * one[name].abs().max(1.0), "{name}: {one:?} {two:?}");
        }
    }
}

#[test]
fn a_stop_of_one_process_stops_both_at_the_same_step() {
    let (world, never, stop) = (World::new(), StopFlag::new_unhooked(), StopFlag::new_unhooked());
    // The second process's part of the step from 20 to 24 are the positions 22 and 23.
    let incidents = [Incident::None, Incident::Stop(23, stop.clone())];
    let ended = both(&world, "run", &[], incidents, [&never, &stop]);
    assert_eq!([ended[0].interrupted_at(), ended[1].interrupted_at()], [24, 24]);
    assert_eq!(ended[0].told, ["start 0", "checkpoint 16", "checkpoint 24", "end 24 Interrupted"]);
    let [first, _] = both(&world, "run", &[], [Incident::None, Incident::None], [&never, &never]);
    first.summary();
    let [whole, _] = both(&world, "whole", &[], [Incident::None, Incident::None], [&never, &never]);
    whole.summary();
    assert!(world.tensors("run") == world.tensors("whole"));
}

#[test]
fn a_process_that_fails_ends_the_run_of_the_others() {
    let (world, never) = (World::new(), StopFlag::new_unhooked());
    let incidents = [Incident::None, Incident::Error(23)];
    let [first, second] = both(&world, "run", &[], incidents, [&never, &never]);
    assert!(matches!(first.outcome, Err(TrainError::Collective(_))), "{:?}", first.outcome);
    assert!(matches!(second.outcome, Err(TrainError::Loss { .. })), "{:?}", second.outcome);
    assert_eq!(first.told, ["start 0", "checkpoint 16", "end 20 Failed"]);
}

#[test]
fn corrupt_samples_of_all_processes_are_counted() {
    let (world, never) = (World::with(12, &[3, 8]), StopFlag::new_unhooked());
    let fails = world.train("fails", &LineTask::default(), &[]);
    assert!(matches!(&fails.outcome, Err(TrainError::Data(_))), "{:?}", fails.outcome);
    assert!(fails.told.last().unwrap().ends_with("Failed"), "{:?}", fails.told);
    let skip = ["data.on_error=\"skip\""];
    let alone = world.train("alone", &LineTask::default(), &skip).summary();
    // Four epochs of 12 samples; a corrupt one in the place of another counts again.
    assert!(alone.samples_skipped >= 8, "{}", alone.samples_skipped);
    let [first, _] = both(&world, "both", &skip, [Incident::None, Incident::None], [&never, &never]);
    assert_eq!(first.summary().samples_skipped, alone.samples_skipped);
}

#[test]
fn samples_are_seen_in_the_order_of_positions_without_those_in_quarantine() {
    let world = World::with(12, &[]);
    let task = LineTask::default();
    world.train("all", &task, &["data.threads=3"]).summary();
    let seen = task.seen.into_inner().unwrap();
    assert!(seen.iter().map(|(position, _)| *position).eq(0..48));
    for epoch in seen.chunks(12) {
        let mut numbers: Vec<u32> = epoch.iter().map(|(_, number)| *number as u32).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..12), "every sample once an epoch");
    }
    let mut quarantine = Quarantine::new();
    let shard = std::fs::read_dir(world.path("data")).unwrap().map(|entry| entry.unwrap().file_name());
    let shard = shard.map(|name| name.into_string().unwrap()).find(|name| name.ends_with(".tar")).unwrap();
    for key in ["002", "007"] {
        quarantine.insert(&*shard, key, "for the test");
    }
    quarantine.write(&world.path("data")).unwrap();
    let task = LineTask::default();
    world.train("fewer", &task, &[]).summary();
    let seen = task.seen.into_inner().unwrap();
    assert!(seen.len() == 48 && seen.iter().all(|(_, number)| *number != 2.0 && *number != 7.0));
    let first: std::collections::BTreeSet<u32> = seen[..10].iter().map(|(_, number)| *number as u32).collect();
    assert_eq!(first.len(), 10, "an epoch is the samples that are left");
}

#[test]
fn a_batch_may_be_larger_than_the_dataset() {
    let world = World::with(3, &[]);
    let task = LineTask::default();
    world.train("run", &task, &["run.batch_size=8"]).summary();
    for epoch in task.seen.into_inner().unwrap().chunks(3) {
        assert_eq!(epoch.iter().map(|(_, number)| *number).sum::<f32>(), 3.0, "0, 1 and 2, whatever their order");
    }
    let world = World::with(3, &[0, 1, 2]);
    let none = world.train("run", &LineTask::default(), &["data.on_error=\"skip\""]);
    let error = none.outcome.unwrap_err().to_string();
    assert!(matches!(none.told.last().map(String::as_str), Some("end 0 Failed")), "{:?}", none.told);
    assert!(error.contains("sample"), "a dataset without a good sample ends the run: {error}");
}

#[test]
fn settings_that_are_seldom_meant_are_remarked() {
    let world = World::with(3, &[]);
    let said = |overrides: &[&str]| remarks(&world.recipe(overrides).value.config(), 1150, 2);
    assert!(said(&["run.batch_size=4", "run.samples=8"]).is_empty());
    assert!(said(&["optimizer.in_backward=true"])[0].contains("has no effect on 2 processes"));
    let odd = said(&["run.batch_size=2000", "run.samples=3000", "optimizer.learning_rate=0"]);
    assert!(odd[0].contains("3,000 becomes 4,000") && odd[1].contains("2,000: every batch repeats samples"), "{odd:?}");
    assert!(odd[1].contains("1,150") && odd[2].contains("learning_rate is 0") && odd.len() == 3, "{odd:?}");
}

/// The losses of a run's first and last step, where its logs have one entry.
#[test]
fn a_short_run_has_a_loss_at_first_and_one_at_last() {
    let world = World::new();
    let long = world.train("long", &LineTask::default(), &["run.log_every=4"]).summary();
    for log_every in ["run.log_every=48", "run.log_every=1000"] {
        let short = world.train(log_every, &LineTask::default(), &[log_every]).summary();
        assert_eq!(world.metrics(log_every).len(), 1);
        assert_eq!((short.loss_first, short.loss_last), (long.loss_first, long.loss_last), "{log_every}");
        let again = world.train(log_every, &LineTask::default(), &[log_every]).summary();
        assert_eq!((short.loss_first, short.loss_last), (again.loss_first, again.loss_last));
    }
}

#[test]
fn a_loss_that_rises_is_told_from_noise() {
    assert!(has_risen(5.2, 1.4e13) && has_risen(0.5, 2.1));
    assert!(!has_risen(0.5, 0.9) && !has_risen(f64::NAN, 1.0) && !has_risen(1.0, 0.1));
}

#[test]
fn samples_are_counted_once() {
    for (start, end, counted) in [
        (0, 100, 0..10),
        (0, 7, 0..7),
        (35, 100, 40..50),
        (40, 100, 40..50),
        (35, 44, 35..40),
        (39, 44, 40..44),
        (100, 100, 100..100),
    ] {
        assert_eq!(counted_once(start, end, 10), counted, "{start} to {end}");
    }
}

#[test]
fn a_run_goes_on_in_a_folder_that_was_moved_with_its_data() {
    let world = World::new();
    std::fs::create_dir(world.path("old")).unwrap();
    std::fs::rename(world.path("data"), world.path("old/data")).unwrap();
    let start = |place: &str, stop: Option<StopFlag>| {
        let recipe = world.recipe(&[&format!("data.path={:?}", world.path(place).join("data"))]);
        let (folder, device) = (world.path(place).join("run"), Device::flex());
        let task = LineTask::with(stop.clone().map_or(Incident::None, |stop| Incident::Stop(21, stop)));
        let stop = stop.unwrap_or_default();
        train(&task, Line::new(), recipe.as_recipe(), &StageContext::new(&folder, &device, &stop)).unwrap()
    };
    assert!(matches!(start("old", Some(StopFlag::new_unhooked())), Outcome::Interrupted { samples: 24, .. }));
    std::fs::rename(world.path("old"), world.path("new")).unwrap();
    assert!(matches!(start("new", None), Outcome::Finished(..)));
    let begun = std::fs::read_to_string(world.path("new/run").join(RECIPE)).unwrap();
    assert!(begun.contains("new/data") && !begun.contains("old/data"), "{begun}");
}

const CHILD: &str = "CALOTYPE_TRAINER_TEST_CHILD";

/// The body of the child process of the next test: trains until a step takes for ever.
#[test]
fn child_that_trains() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let folder = Path::new(&folder);
    let stop = StopFlag::install().unwrap();
    let task = LineTask::with(Incident::Wait(21, stop.clone(), folder.to_owned()));
    let text = std::fs::read_to_string(folder.join("child.toml")).unwrap();
    let value: LineRecipe = toml::from_str(&text).unwrap();
    let (run, device) = (folder.join("run"), Device::flex());
    let context = StageContext::new(&run, &device, &stop);
    let _ = train(&task, Line::new(), Recipe { value: &value, text: &text }, &context);
}

#[test]
fn a_second_signal_ends_the_process_and_the_run_goes_on_from_its_checkpoint() {
    let world = World::new();
    std::fs::write(world.path("child.toml"), &world.recipe(&[]).text).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "trainer::tests::child_that_trains"])
        .env(CHILD, world.0.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let wait_for = |name: &str| {
        while !world.path(name).exists() {
            assert!(started.elapsed() < Duration::from_secs(60), "`{name}` did not appear");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let signal = |id: u32| assert!(Command::new("kill").args(["-TERM", &id.to_string()]).status().unwrap().success());
    wait_for("waiting");
    signal(child.id());
    wait_for("asked");
    assert!(child.try_wait().unwrap().is_none(), "the first signal lets the step be done");
    signal(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let resumed = world.train("run", &LineTask::default(), &[]);
    assert_eq!(resumed.told, ["start 16", "checkpoint 32", "checkpoint 48", "end 48 Finished"]);
    world.train("whole", &LineTask::default(), &[]).summary();
    assert!(world.tensors("run") == world.tensors("whole"));
    assert_eq!(world.metrics("run"), world.metrics("whole"));
}
