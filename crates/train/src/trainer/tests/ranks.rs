//! Runs of several processes, which are threads here.

use super::*;
use crate::trainer::ranks::{check_alike, check_same_recipe, check_same_weights};
use std::collections::BTreeSet;

/// Any number of processes that divides 4 is to give the same bits.
const SAME: [&str; 2] = ["distributed.reproducible=\"ranks\"", "optimizer.accumulate=4"];
const SHARDED: &str = "distributed.shard_optimizer=true";

/// Trains to the end with some processes; the weights that each ends with.
fn train_all(world: &World, run: &str, overrides: &[&str], processes: usize) -> Vec<Vec<Vec<f32>>> {
    let (tasks, never): (Vec<LineTask>, _) =
        ((0..processes).map(|_| LineTask::default()).collect(), StopFlag::new_unhooked());
    let tasks: Vec<_> = tasks.iter().map(|task| (task, &never)).collect();
    let models = all_of(world, run, overrides, &tasks).into_iter().map(|ended| match ended.outcome {
        Ok(Outcome::Finished(model, _)) => state::collect(&model).into_iter().map(|tensor| tensor.values).collect(),
        other => panic!("{other:?}"),
    });
    models.collect()
}

/// Overrides of `base`, an evaluation every 8 samples, and more.
fn with_evaluation(world: &World, base: &[&str], more: &[&str]) -> Vec<String> {
    let evaluate = format!("hooks.evaluate={{ path = {:?}, every = 8, samples = 8 }}", world.path("data"));
    base.iter().chain(more).map(|text| (*text).to_owned()).chain([evaluate]).collect()
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

#[test]
fn any_number_of_processes_gives_the_same_bits() {
    let world = World::new();
    let same = with_evaluation(&world, &SAME, &["optimizer.gradient_clip=0.5"]);
    world.train("alone", &LineTask::default(), &borrowed(&same)).summary();
    for processes in [1, 2, 4] {
        for sharded in [false, true] {
            let run = format!("{processes} {sharded}");
            let more = format!("distributed.shard_optimizer={sharded}");
            let models = train_all(&world, &run, &[borrowed(&same), vec![more.as_str()]].concat(), processes);
            assert!(
                models.windows(2).all(|pair| pair[0] == pair[1]),
                "{run}: the processes end with different weights"
            );
            assert!(world.tensors(&run) == world.tensors("alone"), "{run}");
            assert_eq!(world.metrics(&run), world.metrics("alone"), "{run}");
        }
    }
}

#[test]
fn as_many_processes_repeat_bit_for_bit_and_others_agree_to_rounding() {
    let world = World::new();
    world.train("1", &LineTask::default(), &[]).summary();
    for processes in [2, 4] {
        let [run, again] = [format!("{processes}"), format!("{processes} again")];
        let models = [&run, &again].map(|run| train_all(&world, run, &[], processes));
        assert!(models[0] == models[1] && world.tensors(&run) == world.tensors(&again));
        assert_eq!(world.metrics(&run), world.metrics(&again));
        for (name, values) in world.tensors("1") {
            let found = &world.tensors(&run)[&name];
            let worst = values.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < 1e-5, "{name} differs by {worst} with {processes} processes");
        }
    }
}

#[test]
fn a_sharded_optimizer_has_the_bits_of_a_whole_one() {
    let world = World::new();
    let frozen = "optimizer.groups=[{ names = [\"bias\"], frozen = true }]";
    for (name, more) in [("all", vec![]), ("clipped", vec!["optimizer.gradient_clip=0.1"]), ("frozen", vec![frozen])] {
        let plain = with_evaluation(&world, &more, &[]);
        let sharded = with_evaluation(&world, &more, &[SHARDED]);
        let runs = [format!("{name} plain"), format!("{name} sharded")];
        // With four processes and two parameters, some have nothing to step.
        let models = [(&runs[0], &plain), (&runs[1], &sharded)]
            .map(|(run, overrides)| train_all(&world, run, &borrowed(overrides), 4));
        assert!(models[0] == models[1], "{name}");
        let whole = world.tensors(&runs[0]);
        assert!(world.tensors(&runs[1]) == whole, "{name}");
        assert!(whole.contains_key("adamw.second_moment.weight") && whole.contains_key("ema.weight"));
        assert_eq!(world.metrics(&runs[0]), world.metrics(&runs[1]), "{name}");
    }
}

/// Goes on with other numbers of processes at 12, 24 and 36 of 48 samples; the samples that each part has seen.
fn elastic(world: &World, run: &str, overrides: &[&str]) -> Vec<BTreeMap<u64, f32>> {
    let mut parts = Vec::new();
    for (processes, stop_in) in [(4, Some(9)), (2, Some(22)), (1, Some(35)), (4, None)] {
        let stop = StopFlag::new_unhooked();
        let incident = || stop_in.map_or(Incident::None, |at| Incident::Stop(at, stop.clone()));
        let tasks: Vec<LineTask> = (0..processes).map(|_| LineTask::with(incident())).collect();
        let members: Vec<_> = tasks.iter().map(|task| (task, &stop)).collect();
        let ended = all_of(world, run, overrides, &members);
        let stopped_at: BTreeSet<u64> = ended.iter().filter(|_| stop_in.is_some()).map(Ended::interrupted_at).collect();
        assert!(stopped_at.len() <= 1, "they stop at the same step");
        let seen = tasks.iter().flat_map(|task| task.seen.lock().unwrap().clone());
        parts.push(seen.collect());
    }
    parts
}

#[test]
fn a_run_goes_on_with_other_numbers_of_processes() {
    let world = World::new();
    let alone = LineTask::default();
    world.train("alone", &alone, &SAME).summary();
    let order: BTreeMap<u64, f32> = alone.seen.into_inner().unwrap().into_iter().collect();
    for sharded in [false, true] {
        let more = format!("distributed.shard_optimizer={sharded}");
        let run = format!("elastic {sharded}");
        let parts = elastic(&world, &run, &[&SAME[..], &[more.as_str()]].concat());
        let ends: Vec<u64> = parts.iter().filter_map(|part| part.last_key_value()).map(|(last, _)| last + 1).collect();
        assert_eq!(ends, [12, 24, 36, 48]);
        let all: BTreeMap<u64, f32> = parts.into_iter().flatten().collect();
        assert!(all == order, "every sample at its place, whoever sees it");
        assert!(world.tensors(&run) == world.tensors("alone") && world.metrics(&run) == world.metrics("alone"));
    }
    // Without equal bits, the order of the samples is the same, too.
    let all: BTreeMap<u64, f32> = elastic(&world, "rounded", &[]).into_iter().flatten().collect();
    assert!(all == order);
    for (name, values) in world.tensors("alone") {
        let found = &world.tensors("rounded")[&name];
        assert!(values.iter().zip(found).all(|(a, b)| (a - b).abs() < 1e-5), "{name}");
    }
}

#[test]
fn the_checkpoint_before_a_process_failed_is_gone_on_with() {
    let (world, never) = (World::new(), StopFlag::new_unhooked());
    let overrides = [&SAME[..], &[SHARDED]].concat();
    // Position 23 is in the last part of the step from 20 to 24, which the last process has.
    let tasks: Vec<LineTask> =
        (0..4).map(|rank| LineTask::with(if rank == 3 { Incident::Error(23) } else { Incident::None })).collect();
    let members: Vec<_> = tasks.iter().map(|task| (task, &never)).collect();
    let mut ended = all_of(&world, "run", &overrides, &members);
    let last = ended.pop().unwrap();
    assert!(matches!(last.outcome, Err(TrainError::Loss { .. })), "{:?}", last.outcome);
    for other in ended {
        let Err(TrainError::Collective(error)) = other.outcome else { panic!("{other:?}") };
        assert!(error.to_string().contains("rank 3"), "{error}");
    }
    let resumed = train_all(&world, "run", &overrides, 2);
    world.train("whole", &LineTask::default(), &SAME).summary();
    assert!(resumed[0] == resumed[1] && world.tensors("run") == world.tensors("whole"));
}

#[test]
fn processes_that_cannot_share_a_batch_are_told_the_key() {
    let world = World::new();
    let problem = |overrides: &[&str]| {
        let (tasks, never) = ([0, 1].map(|_| LineTask::default()), StopFlag::new_unhooked());
        let ended = all_of(&world, "run", overrides, &[(&tasks[0], &never), (&tasks[1], &never)]);
        let texts: BTreeSet<String> = ended.into_iter().map(|ended| ended.outcome.unwrap_err().to_string()).collect();
        assert_eq!(texts.len(), 1, "{texts:?}");
        texts.into_iter().next().unwrap()
    };
    assert!(problem(&["run.batch_size=3"]).starts_with("recipe key `run.batch_size`: 3 samples"));
    assert!(problem(&[SAME[0], "run.batch_size=3", "optimizer.accumulate=3"]).contains("`optimizer.accumulate`: 3"));
}

/// What two processes find when they compare something.
fn compare<R: Send>(work: impl Fn(&Group) -> R + Sync) -> Vec<R> {
    let members = Memory::members(2, Duration::from_secs(60));
    std::thread::scope(|scope| {
        let start = |member: Memory| {
            let (group, work) = (Group::new(member, Payload::F32), &work);
            scope.spawn(move || work(&group))
        };
        let threads: Vec<_> = members.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn processes_that_begin_differently_say_how() {
    let folder = Path::new("run");
    let recipe = |rank: usize| if rank == 0 { "[run]\nseed = 1" } else { "[run]\nseed = 2" };
    let found = compare(|group| check_same_recipe(group, folder, recipe(group.rank())).map_err(|e| e.to_string()));
    let expected = "rank 1 does not begin as rank 0: of its recipe, `run.seed` is 1 there and 2 now";
    assert_eq!(found, [Ok(()), Err(expected.to_owned())]);
    let found = compare(|group| check_alike(group, folder, 5 + group.rank(), 0).map_err(|e| e.to_string()));
    assert!(found[1].as_ref().unwrap_err().contains("its dataset has 6 samples, that of rank 0 has 5"), "{found:?}");
    let found = compare(|group| {
        let samples = if group.rank() == 0 { 16 } else { 0 };
        check_alike(group, folder, 5, samples).map_err(|error| error.to_string())
    });
    assert!(found[1].as_ref().unwrap_err().contains("goes on after 0 samples, rank 0 after 16"), "{found:?}");
}

#[test]
fn weights_that_differ_are_no_checkpoint() {
    let found = compare(|group| {
        let mut line = Line::new();
        if group.rank() == 1 {
            line.bias = Param::from_tensor(Tensor::from_data([0.1f32, 0.1], &Device::flex().autodiff()));
        }
        check_same_weights(group, &line).map_err(|error| error.to_string())
    });
    for problem in found {
        let problem = problem.unwrap_err();
        assert!(problem.contains("`model.bias` of rank 1") && problem.contains("last checkpoint"), "{problem}");
    }
    assert!(compare(|group| check_same_weights(group, &Line::new()).is_ok()).into_iter().all(|same| same));
}
