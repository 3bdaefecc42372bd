//! Runs that are watched, their trackers, and checkpoints that are kept.

use super::*;
use std::fs;

const SKIP: &str = "watch={ on_non_finite = \"skip\" }";

fn not_a_number() -> LineTask {
    LineTask::with(Incident::NotANumber(21))
}

#[test]
fn an_update_that_is_not_finite_is_left_out_where_the_recipe_says_so() {
    let world = World::new();
    let left_out = world.train("skip", &not_a_number(), &[SKIP]).summary();
    assert_eq!((left_out.updates_skipped, left_out.steps, left_out.samples_seen), (1, 11, 48));
    let metrics = world.metrics("skip");
    let told: Vec<_> = metrics.iter().filter_map(|line| line.get("watch/skipped_updates")).collect();
    assert_eq!(told, [&1.0]);
    let losses: Vec<f64> = metrics.iter().filter_map(|line| line.get("loss").copied()).collect();
    assert!(losses.len() == 6 && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    assert!(world.tensors("skip").values().flatten().all(|value| value.is_finite()));
    // The count comes back from the checkpoint.
    assert_eq!(world.train("skip", &LineTask::default(), &[SKIP]).summary().updates_skipped, 1);

    let stopped = world.train("stop", &not_a_number(), &["watch={}"]).outcome.unwrap_err();
    assert!(matches!(&stopped, TrainError::NotFinite { what, .. } if what.contains("gradient of `")), "{stopped}");
    let every_step = ["watch={ on_non_finite = \"skip\", skips_in_a_row = 1 }", "optimizer.learning_rate=1e30"];
    let error = world.train("diverges", &LineTask::default(), &every_step).outcome.unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
}

#[test]
fn an_entry_of_the_logs_without_an_update_has_no_loss() {
    let world = World::new();
    let task = LineTask::with(Incident::NotANumber(9));
    world.train("run", &task, &[SKIP, "run.log_every=4"]).summary();
    let metrics = world.metrics("run");
    let at: Vec<_> = metrics.iter().filter(|line| line["samples"] == 12.0).collect();
    assert_eq!(at.len(), 2, "{at:?}");
    assert!(at[1].contains_key("learning_rate") && !at[1].contains_key("loss"), "{at:?}");
}

#[test]
fn leaps_are_the_same_after_a_restart() {
    let world = World::new();
    let settings = ["run.samples=480", "watch={ window = 16, z_limit = 0.5 }"];
    world.train("whole", &LineTask::default(), &settings).summary();
    let stop = StopFlag::new_unhooked();
    let task = LineTask::with(Incident::Stop(201, stop.clone()));
    assert_eq!(world.train_as("parts", &task, &settings, &Local, &stop).interrupted_at(), 204);
    world.train("parts", &LineTask::default(), &settings).summary();
    let metrics = world.metrics("whole");
    assert_eq!(world.metrics("parts"), metrics);
    assert!(metrics.iter().any(|line| line.get("watch/loss_z").is_some_and(|z| *z > 0.5)));
    assert!(world.tensors("parts") == world.tensors("whole"));
}

/// The rows of the table without what depends on the clock: names and cells.
fn table(folder: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(folder.join("metrics.csv")).unwrap();
    let rows = reader.deserialize::<BTreeMap<String, String>>();
    let timed = |name: &str| name.contains("second") || name == "data_wait";
    rows.map(|row| row.unwrap().into_iter().filter(|(name, _)| !timed(name)).collect()).collect()
}

#[test]
fn all_trackers_go_on_after_a_restart() {
    let world = World::new();
    let settings = ["trackers={ csv = true, wandb = { project = \"p\" } }"];
    world.train("whole", &LineTask::default(), &settings).summary();
    let stop = StopFlag::new_unhooked();
    let task = LineTask::with(Incident::Stop(21, stop.clone()));
    world.train_as("parts", &task, &settings, &Local, &stop).interrupted_at();
    world.train("parts", &LineTask::default(), &settings).summary();
    let rows = table(&world.path("whole"));
    assert_eq!(table(&world.path("parts")), rows);
    assert_eq!(rows.len(), world.metrics("whole").len());
    let value = |name: &str| rows[0][name].parse::<f64>().unwrap();
    assert_eq!([value("samples"), value("loss")], ["samples", "loss"].map(|name| world.metrics("whole")[0][name]));
    for (run, processes) in [("whole", 1), ("parts", 2)] {
        let folders: Vec<PathBuf> =
            fs::read_dir(world.path(run).join("wandb")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(folders.len(), processes, "{folders:?}");
        for folder in folders {
            let id = folder.to_str().unwrap().rsplit('-').next().unwrap().to_owned();
            let log = fs::read(folder.join(format!("run-{id}.wandb"))).unwrap();
            assert!(crate::trackers::wandb::check_log(&log).unwrap() > 5);
        }
    }

    let none = ["trackers={ json_lines = false, tensorboard = false }"];
    world.train("none", &LineTask::default(), &none).summary();
    let mut files: Vec<_> = fs::read_dir(world.path("none")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.retain(|name| !name.to_str().unwrap().starts_with('.'));
    files.sort();
    assert_eq!(files, ["checkpoints", "data.json", "encoders.json", "recipe.toml"]);
}

#[test]
fn checkpoints_are_kept_for_later_besides_the_newest() {
    let world = World::new();
    let kept = |run: &str, settings: &[&str]| {
        let settings: Vec<&str> = settings.iter().copied().chain(["run.keep_checkpoints=1"]).collect();
        world.train(run, &LineTask::default(), &settings).summary();
        let store = CheckpointStore::open(world.path(run).join(CHECKPOINTS), CHECKPOINT_PREFIX).unwrap();
        store.list().unwrap().into_iter().map(|(samples, _)| samples).collect::<Vec<_>>()
    };
    let forty = ["run.samples=96", "run.keep_every=40"];
    assert_eq!(kept("kept", &forty), [40, 80, 96]);
    assert_eq!(kept("none", &["run.samples=96"]), [96]);
    let threes = ["run.batch_size=3", "run.checkpoint_every=1000", "run.keep_every=10"];
    assert_eq!(kept("threes", &threes), [12, 21, 30, 42, 48], "behind the first step that passes a multiple");
    assert!(world.tensors("kept") == world.tensors("none"));
}
