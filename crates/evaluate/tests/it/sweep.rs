//! Sweeps that draw: whoever draws, and however often it was begun, the pictures are the same.

use burn::tensor::Device;
use calotype_checkpoints::Checkpoint;
use calotype_collective::{Collective, Group, Local, Memory, Payload};
use calotype_core::StopFlag;
use calotype_data::{BoxError, Slice};
use calotype_evaluate::sweep::{KeptCheckpoints, SeedRule, SubStage, Sweep, SweepEnd, SweepError, SweepRecipe};
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_pipeline::{NoiseKind, belonging};
use serde_json::Value;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CAPTIONS: &str =
    "image_id\tid\tcaption\n3\t1\tA cat.\n5\t2\tTwo dogs.\n8\t3\tA boat.\n9\t4\tA red bus.\n12\t5\tAn apple.\n";

/// A folder with a tiny checkpoint of random weights and a list of captions.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        RandomCheckpoint::new(RandomFamily::Tiny).write(&folder.path().join("model")).unwrap();
        fs::write(folder.path().join("captions.tsv"), CAPTIONS).unwrap();
        Self { folder }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A recipe of five pictures in blocks of two, with two guidance scales.
    pub fn recipe(&self, change: impl FnOnce(&mut SweepRecipe)) -> SweepRecipe {
        let text = format!(
            "kind = \"text_to_image\"\nmodel = {:?}\nseed = 7\nimages = 5\nbatch_size = 2\nblock_size = 2\nsize = 32\n\
             precision = \"f32\"\n[captions]\npath = {:?}\n[sampler]\nname = \"ddim\"\nsteps = 2\nguidance = [1.5, 4]\n[judge]\n\
             metrics = [\"fid\"]\nreference = \"statistics.npz\"\n",
            self.at("model"),
            self.at("captions.tsv")
        );
        let mut recipe = toml::from_str(&text).unwrap();
        change(&mut recipe);
        recipe
    }
}

/// How a test departs from one process that draws everything.
struct With<'a> {
    slices: &'a [Slice],
    stop: StopFlag,
    collective: &'a dyn Collective,
    run: Option<&'a dyn KeptCheckpoints>,
    follow: bool,
}

impl Default for With<'_> {
    fn default() -> Self {
        Self { slices: &[Slice::ALL], stop: StopFlag::new_unhooked(), collective: &Local, run: None, follow: false }
    }
}

fn generate(recipe: &SweepRecipe, out: &Path, with: &With<'_>) -> Result<SweepEnd, SweepError> {
    run(recipe, out, with, &[SubStage::Generate])
}

/// Does everything.
pub fn evaluate(recipe: &SweepRecipe, out: &Path) -> Result<SweepEnd, SweepError> {
    run(recipe, out, &With::default(), SubStage::ALL)
}

fn run(recipe: &SweepRecipe, out: &Path, with: &With<'_>, stages: &[SubStage]) -> Result<SweepEnd, SweepError> {
    let sweep = Sweep {
        recipe,
        text: "kind = \"text_to_image\"\n",
        out,
        device: &Device::flex(),
        stop: &with.stop,
        collective: with.collective,
        slices: with.slices,
        stages: stages.iter().copied().collect(),
        run: with.run,
        follow: with.follow,
    };
    sweep.run()
}

/// The pictures below a folder.
fn pictures(out: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![out.join("pictures")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false if path.extension().is_some_and(|extension| extension == "png") => {
                    found.insert(path.strip_prefix(out).unwrap().to_owned(), fs::read(&path).unwrap());
                }
                false => {}
            }
        }
    }
    found
}

#[test]
fn pictures_do_not_depend_on_slices_ranks_batches_and_what_is_there() {
    let place = Place::new();
    let recipe = place.recipe(|_| {});
    let one = place.at("one");
    let end = generate(&recipe, &one, &With::default()).unwrap();
    assert_eq!((end.scored, end.waiting), (0, 2), "there are no features");
    let expected = pictures(&one);
    assert_eq!(expected.len(), 10);
    assert!(expected.contains_key(Path::new("pictures/1.5/image000000.png")));
    assert!(expected.contains_key(Path::new("pictures/4/image000004.png")));
    let distinct: BTreeSet<&Vec<u8>> = expected.values().collect();
    assert_eq!(distinct.len(), 10, "each picture has its own caption, noise and guidance");

    for count in [2, 3, 7] {
        let out = place.at(&format!("slices-{count}"));
        for id in (0..count).rev() {
            generate(&recipe, &out, &With { slices: &[Slice { id, count }], ..With::default() }).unwrap();
        }
        assert!(pictures(&out) == expected, "{count} slices");
    }
    let out = place.at("ranks");
    let members = Memory::members(2, Duration::from_secs(60));
    std::thread::scope(|scope| {
        for member in members {
            let (recipe, out) = (&recipe, &out);
            scope.spawn(move || {
                let group = Group::new(member, Payload::F32);
                generate(recipe, out, &With { collective: &group, ..With::default() }).unwrap();
            });
        }
    });
    assert!(pictures(&out) == expected, "two ranks");
    let out = place.at("batches");
    generate(&place.recipe(|recipe| (recipe.batch_size, recipe.block_size) = (1, 5)), &out, &With::default()).unwrap();
    assert!(pictures(&out) == expected, "another batch, another block");
    for lost in ["1.5/image000003.png", "4/image000000.png"] {
        fs::remove_file(one.join("pictures").join(lost)).unwrap();
    }
    generate(&recipe, &one, &With::default()).unwrap();
    assert!(pictures(&one) == expected, "what was lost is drawn again");
}

#[test]
fn seeds_follow_the_recipes_rule() {
    let place = Place::new();
    let drawn = |name: &str, seeds: SeedRule, generator: NoiseKind| {
        let recipe = place.recipe(|recipe| {
            (recipe.noise.seeds, recipe.noise.generator) = (seeds, generator);
            recipe.sampler.guidance = vec![1.0];
            fs::write(place.at("captions.tsv"), "caption\nA cat.\nA cat.\nA cat.\nA cat.\nA cat.\n").unwrap();
        });
        let out = place.at(name);
        generate(&recipe, &out, &With::default()).unwrap();
        pictures(&out).into_values().collect::<Vec<_>>()
    };
    let own = drawn("picture", SeedRule::Picture, NoiseKind::Philox);
    assert_eq!(own.iter().collect::<BTreeSet<_>>().len(), 5);
    let fixed = drawn("fixed", SeedRule::Fixed, NoiseKind::TorchCpu);
    assert_eq!(fixed.iter().collect::<BTreeSet<_>>().len(), 1, "one latent and one caption are one picture");
    // Eight tasks and five pictures: the last task draws them all, from one generator or from generators whose seeds are a thousand
    // apart. The first numbers are the same.
    let task = drawn("nemo", SeedRule::Nemo, NoiseKind::TorchCpu);
    let picture = drawn("nemo-picture", SeedRule::NemoPicture, NoiseKind::TorchCpu);
    for pictures in [&task, &picture] {
        assert_eq!(pictures.iter().collect::<BTreeSet<_>>().len(), 5);
        assert_ne!(pictures[0], fixed[0]);
    }
    assert!(task[0] == picture[0] && task[1] != picture[1]);
}

#[test]
fn a_folder_is_of_one_choice_of_pictures() {
    let place = Place::new();
    let out = place.at("out");
    generate(&place.recipe(|_| {}), &out, &With::default()).unwrap();
    type Change = fn(&mut SweepRecipe);
    let changes: [(Change, &str); 5] = [
        (|r| r.seed = 8, "seed is 7 there, and 8 now"),
        (|r| r.sampler.steps = 3, "sampler.steps is 2 there"),
        (|r| r.noise.seeds = SeedRule::Fixed, "noise.seeds"),
        (|r| r.images = 4, "captions"),
        (|r| r.size = None, "size is 32 there, and null now"),
    ];
    for (change, part) in changes {
        let error = generate(&place.recipe(change), &out, &With::default()).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(part), "{error}");
        assert!(error.to_string().contains("--out"), "{error}");
    }
    // Another scale, other batches and other figures are welcome.
    let more = place.recipe(|r| (r.sampler.guidance, r.batch_size) = (vec![1.5, 4.0, 8.0], 4));
    generate(&more, &out, &With::default()).unwrap();
    assert_eq!(pictures(&out).len(), 15);
    // Another model at the same place is noticed, whether or not something is to be drawn.
    let own = belonging::hashes(&Checkpoint::open(place.at("model")).unwrap()).unwrap();
    RandomCheckpoint { seed: 1, ..RandomCheckpoint::new(RandomFamily::Tiny) }.write(&place.at("model")).unwrap();
    let other = belonging::hashes(&Checkpoint::open(place.at("model")).unwrap()).unwrap();
    let refused = || {
        let error = generate(&more, &out, &With::default()).unwrap_err();
        let told = error.to_string();
        assert!(error.is_usage() && told.contains("networks.text_encoder") && told.contains("drawing.json"), "{told}");
        assert!(told.contains(&own["text_encoder"]) && told.contains(&other["text_encoder"]), "{told}");
    };
    refused();
    // What an earlier version wrote has the hashes beside the pictures alone.
    let drawing = out.join("drawing.json");
    let mut older: Value = serde_json::from_slice(&fs::read(&drawing).unwrap()).unwrap();
    older.as_object_mut().unwrap().remove("networks").unwrap();
    fs::write(&drawing, older.to_string()).unwrap();
    refused();
    RandomCheckpoint::new(RandomFamily::Tiny).write(&place.at("model")).unwrap();
    generate(&more, &out, &With::default()).unwrap();
    assert!(fs::read_to_string(&drawing).unwrap().contains(&own["unet"]));
    // A sweep that is drawn needs no model.
    fs::remove_dir_all(place.at("model")).unwrap();
    generate(&more, &out, &With::default()).unwrap();
    assert!(fs::read_to_string(&drawing).unwrap().contains(&own["unet"]));
}

#[test]
fn wrong_input_is_told() {
    let place = Place::new();
    type Change = fn(&mut SweepRecipe);
    let cases: [(Change, &str); 9] = [
        (|r| r.images = 6, "holds 5 captions, and `images` asks for 6"),
        (|r| r.captions.path = "absent.tsv".to_owned(), "absent.tsv"),
        (|r| r.captions.column = Some("text".to_owned()), "no column `text`"),
        (|r| r.model = None, "`model`"),
        (|r| r.model = Some("/nowhere/at/all".to_owned()), "/nowhere/at/all"),
        (|r| r.judge.metrics = vec!["fidd".to_owned()], "`fidd` is no metric"),
        (|r| r.judge.reference = None, "`judge.reference`"),
        (|r| r.sampler.name = Some("dimd".to_owned()), "dimd"),
        (|r| r.size = Some(30), "multiples of 8"),
    ];
    for (number, (change, part)) in cases.into_iter().enumerate() {
        let error = generate(&place.recipe(change), &place.at(&format!("out{number}")), &With::default()).unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[test]
fn a_stop_leaves_whole_pictures_and_is_gone_on_from() {
    let place = Place::new();
    let (recipe, out) = (place.recipe(|_| {}), place.at("out"));
    let stop = StopFlag::new_unhooked();
    stop.request();
    let error = generate(&recipe, &out, &With { stop, ..With::default() }).unwrap_err();
    assert!(error.is_interrupted(), "{error}");
    generate(&recipe, &out, &With::default()).unwrap();
    let one = place.at("one");
    generate(&recipe, &one, &With::default()).unwrap();
    assert!(pictures(&out) == pictures(&one));
}

/// A run whose checkpoints are copies of models; a new one is there at each look.
struct Grows {
    folder: PathBuf,
    looks: Cell<u64>,
    written: Cell<usize>,
    last: u64,
}

impl KeptCheckpoints for Grows {
    fn saved(&self) -> Result<Vec<(u64, PathBuf)>, BoxError> {
        self.looks.set(self.looks.get() + 1);
        let seen = 1..=self.looks.get().min(self.last);
        Ok(seen.map(|number| (number * 512, self.folder.clone())).collect())
    }

    fn is_finished(&self) -> bool {
        self.looks.get() >= self.last
    }

    fn write_model(&self, samples: u64, averaged: bool, out: &Path) -> Result<(), BoxError> {
        assert!(averaged && samples.is_multiple_of(512) && !out.exists());
        self.written.set(self.written.get() + 1);
        // Each checkpoint is another model.
        let seed = self.written.get() as u64;
        RandomCheckpoint { seed, ..RandomCheckpoint::new(RandomFamily::Tiny) }.write(out)?;
        Ok(belonging::record(out)?)
    }
}

#[test]
fn checkpoints_of_a_run_are_judged_once_each_until_it_ends() {
    let place = Place::new();
    let grows = |last| Grows { folder: place.at("model"), looks: Cell::new(0), written: Cell::new(0), last };
    let recipe = place.recipe(|r| (r.run, r.sampler.guidance) = (Some("a run".to_owned()), vec![2.0]));
    let out = place.at("out");
    let run = grows(3);
    generate(&recipe, &out, &With { run: Some(&run), follow: true, ..With::default() }).unwrap();
    assert_eq!(run.written.get(), 3);
    let drawn = pictures(&out);
    assert_eq!(drawn.len(), 15);
    let of = |samples: u64| drawn[Path::new(&format!("pictures/{samples}/2/image000000.png"))].clone();
    assert!(of(512) != of(1024) && of(1024) != of(1536));
    assert!(fs::read_dir(out.join(".models")).unwrap().next().is_none(), "models go once they have drawn");
    // All is drawn: nothing is written again.
    let again = grows(1);
    generate(&recipe, &out, &With { run: Some(&again), ..With::default() }).unwrap();
    assert_eq!(again.written.get(), 0);

    let error = generate(&recipe, &place.at("x"), &With { run: Some(&grows(0)), ..With::default() }).unwrap_err();
    assert!(error.to_string().contains("there is no checkpoint"), "{error}");
    let at = place.recipe(|r| (r.run, r.at) = (Some("a run".to_owned()), vec![512, 999]));
    let error = generate(&at, &place.at("y"), &With { run: Some(&grows(1)), ..With::default() }).unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("999 samples") && error.to_string().contains("512"),
        "{error}"
    );
}
