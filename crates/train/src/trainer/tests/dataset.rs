//! Runs whose samples are exchanged while they rest.

use super::*;

/// Writes the dataset of a world again, with so many samples.
fn rewrite(world: &World, samples: usize, broken: &[usize]) {
    std::fs::remove_dir_all(world.path("data")).unwrap();
    let other = World::with(samples, broken);
    std::fs::rename(other.path("data"), world.path("data")).unwrap();
}

fn stopped(world: &World, run: &str) {
    let stop = StopFlag::new_unhooked();
    let task = LineTask::with(Incident::Stop(21, stop.clone()));
    assert_eq!(world.train_as(run, &task, &[], &Local, &stop).interrupted_at(), 24);
}

#[test]
fn a_run_goes_on_with_the_samples_that_it_was_begun_with() {
    let world = World::new();
    ["run", "same", "earlier"].iter().for_each(|run| stopped(&world, run));
    // Of an earlier program.
    std::fs::remove_file(world.path("earlier/data.json")).unwrap();

    // The same bytes again.
    rewrite(&world, 12, &[]);
    world.train("same", &LineTask::default(), &[]).summary();

    let refused = |overrides: &[&str]| {
        let (recipe, folder) = (world.recipe(overrides), world.path("run"));
        let (device, stop) = (Device::flex(), StopFlag::new_unhooked());
        let context = StageContext { extend: true, ..StageContext::new(&folder, &device, &stop) };
        let error = train(&LineTask::default(), Line::new(), recipe.as_recipe(), &context).unwrap_err();
        assert!(matches!(error, TrainError::OtherData { .. }) && error.is_usage(), "{error}");
        error.to_string()
    };
    rewrite(&world, 12, &[11]);
    let others = refused(&[]);
    assert!(others.contains("holds as many, 12 samples, but not the same"), "{others}");
    rewrite(&world, 11, &[]);
    let fewer = refused(&[]);
    for part in ["held 12 samples, and now holds 11 samples", "put the former ones back", "--from ", "run/data.json"] {
        assert!(fewer.contains(part), "`{part}` is not in {fewer}");
    }
    // Nor is it extended, and nothing of it has changed.
    assert_eq!(refused(&["run.samples=96"]), fewer);
    let recipe = std::fs::read_to_string(world.path("run").join(RECIPE)).unwrap();
    assert!(recipe.contains("samples = 48"), "{recipe}");

    // The way on that is told.
    let (recipe, from, folder) = (world.recipe(&[]), world.path("run"), world.path("new"));
    let (device, stop) = (Device::flex(), StopFlag::new_unhooked());
    let context = StageContext { from: Some(&from), ..StageContext::new(&folder, &device, &stop) };
    let ended = train(&LineTask::default(), Line::new(), recipe.as_recipe(), &context).unwrap();
    assert!(matches!(ended, Outcome::Finished(..)));

    world.train("earlier", &LineTask::default(), &[]).summary();
    assert!(world.path("earlier/data.json").is_file());
}

#[test]
fn a_run_that_has_saved_nothing_takes_other_samples() {
    let world = World::with(12, &[3]);
    let failed = world.train("run", &LineTask::default(), &[]);
    assert!(matches!(failed.outcome, Err(TrainError::Data(_))), "{:?}", failed.outcome);
    assert!(world.path("run/data.json").is_file());
    rewrite(&world, 12, &[]);
    world.train("run", &LineTask::default(), &[]).summary();
    let record = std::fs::read_to_string(world.path("run/data.json")).unwrap();
    world.train("whole", &LineTask::default(), &[]).summary();
    assert_eq!(record, std::fs::read_to_string(world.path("whole/data.json")).unwrap());
}
