//! Runs whose processes, threads here, share the layers of the network, the batches, or both: they are the runs of one process.

use crate::tasks::{World, here};
use burn::tensor::Device;
use calotype_collective::{Group, Local, Memory, Payload};
use calotype_train::record::RecordOptions;
use calotype_train::stages::{MODEL, StageContext, StageEnd, StageError};
use calotype_train::tasks;
use calotype_train::trainer::CHECKPOINTS;
use calotype_train::{RecipeLoader, StopFlag};
use calotype_weights::TensorFile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Processes, and how many of them compute layers together.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Layout(usize, usize);

const LAYOUTS: [Layout; 4] = [Layout(1, 1), Layout(2, 2), Layout(4, 4), Layout(4, 2)];

impl Layout {
    fn name(self, kind: &str) -> String {
        format!("{kind}-{}x{}", self.0 / self.1, self.1)
    }
}

/// Both tasks, with heads for four processes. Gradients of the keys' biases are zero but for rounding, which AdamW would divide by
/// itself: with a larger epsilon they move nothing.
const KINDS: [(&str, &[&str]); 2] = [
    ("vit", &["model.heads=4", "optimizer.eps=1e-5"]),
    ("clip", &["model.text.heads=4", "model.vision.heads=4", "optimizer.eps=1e-5"]),
];

/// Trains with the processes of a layout; how each ends, in the order of their ranks.
fn train(world: &World, kind: &str, out: &str, layout: Layout, more: &[&str]) -> Vec<Result<StageEnd, StageError>> {
    let Layout(processes, together) = layout;
    let loader = RecipeLoader::new().folder(here().join("recipes"));
    let of_kind = KINDS.iter().find(|(known, _)| *known == kind).map_or(&[][..], |(_, settings)| *settings);
    let mut overrides = vec![
        format!("data.path={:?}", world.path("images")),
        "ema={ half_life = 8 }".to_owned(),
        "run.log_every=4".to_owned(),
        format!("distributed.tensor_parallel={together}"),
    ];
    overrides.extend(of_kind.iter().chain(more).map(|text| (*text).to_owned()));
    let one = |collective: &dyn calotype_collective::Collective| {
        let run = tasks::load(&loader, kind, &overrides).unwrap_or_else(|error| panic!("{error}"));
        let (folder, device, stop) = (world.path(out), Device::flex(), StopFlag::new_unhooked());
        let context = StageContext { collective, ..StageContext::new(&folder, &device, &stop) };
        run.train(&context)
    };
    if processes == 1 {
        return vec![one(&Local)];
    }
    let members = Memory::members(processes, Duration::from_secs(120));
    std::thread::scope(|scope| {
        let one = &one;
        let start = |member: Memory| scope.spawn(move || one(&Group::new(member, Payload::F32)));
        let threads: Vec<_> = members.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn train_well(world: &World, kind: &str, out: &str, layout: Layout, more: &[&str]) {
    for (rank, end) in train(world, kind, out, layout, more).into_iter().enumerate() {
        match end {
            Ok(StageEnd::Done(_)) => {}
            other => panic!("{out}, rank {rank}: {other:?}"),
        }
    }
}

/// A number of each entry in the logs.
fn logged(world: &World, run: &str, name: &str) -> Vec<f64> {
    let text = fs::read_to_string(world.path(run).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line.get(name).and_then(Value::as_f64)).collect()
}

fn tensors_of(path: PathBuf) -> BTreeMap<String, Vec<f32>> {
    let file = TensorFile::open(path).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (name.clone(), file.get(&name).unwrap().to_f32_vec().unwrap())).collect()
}

/// The tensors of a run's last checkpoint.
fn tensors(world: &World, run: &str) -> BTreeMap<String, Vec<f32>> {
    let folders = fs::read_dir(world.path(run).join(CHECKPOINTS)).unwrap().map(|entry| entry.unwrap().path());
    tensors_of(folders.max().unwrap().join("tensors.safetensors"))
}

fn assert_near(run: &str, found: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Vec<f32>>, bound: f32) {
    assert!(found.keys().eq(expected.keys()), "{run}: {:?}", found.keys());
    for (name, expected) in expected {
        assert_eq!(found[name].len(), expected.len(), "{run}: {name}");
        let worst = found[name].iter().zip(expected).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst <= bound, "{run}: {name} differs by {worst}");
    }
}

fn assert_same_run(world: &World, run: &str, whole: &str) {
    for (name, bound) in [("loss", 1e-5), ("gradient_norm", 1e-4)] {
        let (found, expected) = (logged(world, run, name), logged(world, whole, name));
        assert_eq!((found.len(), expected.len()), (20, 20), "{run}: {name}");
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(error <= bound, "{run}, step {step}: {name} {found}, alone {expected}");
        }
    }
    assert_near(run, &tensors(world, run), &tensors(world, whole), 1e-4);
}

fn exported(world: &World, run: &str) -> BTreeMap<String, Vec<f32>> {
    tensors_of(world.path(run).join(MODEL).join("model.safetensors"))
}

#[test]
fn every_layout_trains_to_the_run_of_one_process_and_goes_on_in_any_other() {
    let world = World::new();
    for (kind, _) in KINDS {
        let alone = LAYOUTS[0].name(kind);
        for layout in LAYOUTS {
            let run = layout.name(kind);
            train_well(&world, kind, &run, layout, &[]);
            assert_same_run(&world, &run, &alone);
            assert_near(&run, &exported(&world, &run), &exported(&world, &alone), 1e-4);
        }
        for (from, to) in LAYOUTS.iter().flat_map(|from| LAYOUTS.map(|to| (*from, to))).filter(|(from, to)| from != to)
        {
            let resumed = format!("{}-{}", from.name(kind), to.name("then"));
            world.killed(&from.name(kind), &resumed);
            train_well(&world, kind, &resumed, to, &[]);
            assert_same_run(&world, &resumed, &alone);
        }
    }
}

#[test]
fn a_layout_repeats_bit_for_bit_and_shares_out_moments_without_a_trace() {
    let world = World::new();
    let sharded = ["distributed.shard_optimizer=true"];
    for layout in [Layout(2, 2), Layout(4, 2)] {
        let [first, again, shares] = ["first", "again", "shares"].map(|run| layout.name(run));
        train_well(&world, "vit", &first, layout, &[]);
        train_well(&world, "vit", &again, layout, &[]);
        train_well(&world, "vit", &shares, layout, &sharded);
        for run in [&again, &shares] {
            assert!(tensors(&world, run) == tensors(&world, &first), "{run}");
            assert_eq!(logged(&world, run, "gradient_norm"), logged(&world, &first, "gradient_norm"), "{run}");
            assert!(exported(&world, run) == exported(&world, &first), "{run}");
        }
        let resumed = layout.name("resumed");
        world.killed(&first, &resumed);
        train_well(&world, "vit", &resumed, layout, &[]);
        assert!(tensors(&world, &resumed) == tensors(&world, &first), "{resumed}");
    }
}

#[test]
fn parts_of_a_batch_evaluations_and_frozen_layers_are_shared_out_too() {
    let world = World::new();
    let evaluate = format!("hooks.evaluate={{ path = {:?}, every = 20, samples = 8 }}", world.path("images"));
    let frozen = "optimizer.groups=[{ names = [\"*.layer.0.*\"], frozen = true }]";
    let settings = [evaluate.as_str(), frozen, "optimizer.accumulate=2", "optimizer.in_backward=false"];
    for layout in [Layout(1, 1), Layout(2, 2), Layout(4, 2)] {
        let run = layout.name("vit");
        train_well(&world, "vit", &run, layout, &settings);
        assert_same_run(&world, &run, "vit-1x1");
        let (found, expected) = (logged(&world, &run, "validation/loss"), logged(&world, "vit-1x1", "validation/loss"));
        assert_eq!(found.len(), 4);
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} {expected:?}");
    }
    assert!(!tensors(&world, "vit-2x2").keys().any(|key| key.starts_with("ema.vit.encoder.layer.0.")));
}

#[test]
fn numbers_of_processes_with_the_same_parts_give_the_same_bits_where_asked() {
    let world = World::new();
    let same = ["distributed.reproducible=\"ranks\"", "optimizer.accumulate=2"];
    for layout in [Layout(2, 2), Layout(4, 2)] {
        train_well(&world, "vit", &layout.name("same"), layout, &same);
    }
    assert!(tensors(&world, "same-1x2") == tensors(&world, "same-2x2"));
}

#[test]
fn pairs_are_compared_once_in_evaluations_that_repeat_for_any_number_of_processes() {
    let world = World::new();
    let evaluate = format!("hooks.evaluate={{ path = {:?}, every = 20, samples = 8 }}", world.path("images"));
    let settings = [evaluate.as_str(), "distributed.reproducible=\"ranks\"", "optimizer.accumulate=2"];
    for layout in [Layout(1, 1), Layout(2, 2), Layout(4, 2)] {
        let run = layout.name("clip");
        train_well(&world, "clip", &run, layout, &settings);
        let (found, expected) =
            (logged(&world, &run, "validation/loss"), logged(&world, "clip-1x1", "validation/loss"));
        assert_eq!(found.len(), 4);
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{run}: {found:?} {expected:?}");
    }
}

#[test]
fn samples_are_mixed_in_twos_by_groups_not_by_processes() {
    let world = World::new();
    let mix = ["objective.mix={ mixup = 0.2 }"];
    for layout in [Layout(1, 1), Layout(2, 2), Layout(4, 2)] {
        train_well(&world, "vit", &layout.name("mixed"), layout, &mix);
    }
    assert_same_run(&world, "mixed-1x2", "mixed-1x1");
    let odd = refused(&world, "vit", Layout(4, 2), &[mix[0], "run.batch_size=2"]);
    assert!(
        odd.contains("`run.batch_size`: 1 samples go through the network of each of 2 groups of 2 processes"),
        "{odd}"
    );
}

#[test]
fn half_precision_is_near_to_that_of_one_process() {
    let world = World::new();
    for layout in [Layout(1, 1), Layout(2, 2)] {
        train_well(&world, "vit", &layout.name("half"), layout, &["run.precision=\"bf16\""]);
    }
    let (found, expected) = (logged(&world, "half-1x2", "loss"), logged(&world, "half-1x1", "loss"));
    assert!(
        found.len() == 20 && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 0.05),
        "{found:?} {expected:?}"
    );
}

/// The one error that all processes of a run have.
fn refused(world: &World, kind: &str, layout: Layout, more: &[&str]) -> String {
    let ends = train(world, kind, "refused", layout, more);
    let texts: Vec<String> = ends
        .into_iter()
        .map(|end| end.unwrap_err())
        .map(|error| {
            assert!(error.is_usage(), "{error}");
            error.to_string()
        })
        .collect();
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    texts[0].clone()
}

#[test]
fn what_cannot_be_shared_out_names_the_key() {
    let world = World::new();
    let heads = refused(&world, "vit", Layout(3, 3), &[]);
    assert!(heads.contains("`model.heads`: 4 cannot be shared out to 3 processes"), "{heads}");
    let text = refused(&world, "clip", Layout(4, 4), &["model.text.heads=2"]);
    assert!(text.contains("`model.text.heads`: 2 cannot"), "{text}");
    let groups = refused(&world, "vit", Layout(3, 2), &["run.batch_size=6"]);
    assert!(groups.contains("`distributed.tensor_parallel`: 3 processes do not make up groups of 2"), "{groups}");
    let batch = refused(&world, "vit", Layout(4, 2), &["run.batch_size=3"]);
    assert!(batch.contains("3 samples cannot be shared out to 2 groups of 2 processes"), "{batch}");
    let bits = refused(&world, "vit", Layout(2, 2), &["optimizer.state=\"8bit\""]);
    assert!(bits.contains("optimizer.state = \"8bit\""), "{bits}");
    let other = refused(&world, "autoencoder", Layout(2, 2), &[]);
    assert!(
        other.contains("`distributed.tensor_parallel`: is 2, and the network of a run of kind `autoencoder`"),
        "{other}"
    );
    assert!(!world.path("refused").exists());
}

#[test]
fn parts_of_a_network_are_not_recorded() {
    let world = World::new();
    let members = Memory::members(2, Duration::from_secs(120));
    let (path, stop) = (world.path("record.safetensors"), StopFlag::new_unhooked());
    let texts: Vec<String> = std::thread::scope(|scope| {
        let (world, path, stop) = (&world, &path, &stop);
        let start = |member: Memory| {
            scope.spawn(move || {
                let loader = RecipeLoader::new().folder(here().join("recipes"));
                let data = format!("data.path={:?}", world.path("images"));
                let run = tasks::load(&loader, "vit", &[data, "distributed.tensor_parallel=2".to_owned()]).unwrap();
                let (group, device) = (Group::new(member, Payload::F32), Device::flex());
                let record = RecordOptions { path: path.clone(), steps: 2 };
                let folder = world.path("recorded");
                let context = StageContext {
                    collective: &group,
                    record: Some(&record),
                    ..StageContext::new(&folder, &device, stop)
                };
                run.train(&context).unwrap_err().to_string()
            })
        };
        let threads: Vec<_> = members.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(texts.iter().all(|text| text.contains("record with one process")), "{texts:?}");
}
