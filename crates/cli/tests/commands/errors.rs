//! Whatever goes wrong ends in one message that names what and where and says what to do, and in the right exit code: 2
//! where the command line or a recipe is at fault, 1 where the work failed.

use crate::common::{
    self, AUTOENCODER, DIFFUSION, calotype, checkpoints, copy_folder, fail, finished, quickstart, shard, succeed, text,
    train_autoencoder, train_unet,
};
use calotype_data::{Dataset, ShardLimits, ShardWriter};
use calotype_weights::TensorFile;
use std::fs;
use std::path::Path;
use std::process::Command;

fn train(arguments: &[&str]) -> Command {
    let mut command = calotype(&["train"]);
    command.args(arguments);
    command
}

#[test]
fn recipes_that_cannot_be() {
    let typo = "training/stable_difusion/quickstart_smoke";
    fail(&mut train(&[typo]), 2, &[typo, "did you mean `training/stable_diffusion/quickstart_smoke`"]);
    fail(&mut train(&["nothing/like/it"]), 2, &["no recipe `nothing/like/it`", "pass a path ending in .toml"]);
    fail(&mut train(&["data/emoji/quickstart"]), 2, &["data/emoji/quickstart is not a training recipe", "`kind`"]);

    let refused = |argument: &str, parts: &[&str]| fail(&mut train(&[DIFFUSION, argument]), 2, parts);
    refused("run.sampels=3", &["run.sampels=3", "unknown key `run.sampels`", "did you mean `run.samples`?"]);
    refused("model.blocks=3", &["unknown key `model.blocks`", "`model."]);
    refused("run.samples=many", &["`run.samples`", "instead of \"many\" it takes a whole number, such as 4"]);
    refused("objective.prediction=\"w\"", &["`objective.prediction`", "`w`", "`v`"]);
    refused("run.samples", &["`run.samples`", "there is no `=`", "write it as"]);
    refused("run.samples=-5", &["`run.samples`", "instead of -5 it takes a whole number that is not negative"]);
    let both = |first: &str, second: &str| {
        let told = format!("`{first}` and `{second}` contradict each other");
        fail(&mut train(&[DIFFUSION, first, second]), 2, &[&told, "leave one of them out"]);
    };
    both("data.path=a", "data.path=b");
    both("data.path=a", "data.sources=[{ path = 'b' }]");
    let precache = ["data", "precache", "data/precache/quickstart", "batch_size=2", "batch_size=3"];
    fail(&mut calotype(&precache), 2, &["`batch_size=2` and `batch_size=3` contradict each other"]);
    fail(&mut train(&["quickstart"]), 2, &["quickstart is no training recipe", "`calotype quickstart`"]);
    fail(&mut train(&["quickstart/smoke"]), 2, &["`calotype quickstart --preset smoke`"]);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    fs::write(&file, format!("base = \"{DIFFUSION}\"\n\n[optimizer]\nlearning_rat = 1e-3\n")).unwrap();
    fail(&mut train(&[text(&file)]), 2, &["mine.toml line 4", "did you mean `optimizer.learning_rate`?"]);
    fs::write(&file, "[run\n").unwrap();
    fail(&mut train(&[text(&file)]), 2, &["mine.toml: not valid TOML", "line 1"]);
}

#[test]
fn settings_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |setting: &str, parts: &[&str]| {
        fail(&mut train_unet(&finished().precached(), &folder.path().join("run"), &[setting]), 2, parts);
    };
    refused("run.batch_size=0", &["`run.batch_size`", "at least 1"]);
    refused("run.batch_size=99999999999", &["`run.batch_size`", "use at most 16777216"]);
    refused("objective.caption_dropout=2.0", &["`objective.caption_dropout`", "2 is not a share in 0..1"]);
    refused("model.added={time_features=8,input_channels=20}", &["`model.added`", "leave this table out"]);
    refused("model.context_channels=48", &["context_channels", "text states have 32 channels"]);
    refused("hooks.target={ metric = 'validation/loss', at_most = 1.0 }", &["`hooks.target.metric`", "hooks.evaluate"]);
    refused("data.threads=100000", &["`data.threads`", "1 to 512 threads"]);
    refused("data.threads=0", &["`data.threads`", "1 to 512 threads"]);
    refused("inputs.resolution=1000000000", &["`inputs.resolution`", "at most 16384"]);
    assert!(!folder.path().join("run").exists(), "a refused run leaves nothing");
    let frozen = ["optimizer.groups=[{ names = ['*'], frozen = true }]"];
    let parts = ["`optimizer.groups`", "nothing is left to train"];
    fail(&mut train_unet(&finished().precached(), &folder.path().join("frozen"), &frozen), 2, &parts);
    let misspelt = ["hooks.target={ metric = 'los', at_most = 1.0 }"];
    let parts = ["no number `los`", "hooks.target.metric", "learning_rate, loss"];
    fail(&mut train_unet(&finished().precached(), &folder.path().join("other"), &misspelt), 1, &parts);
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    fs::write(images.join("a.PNG"), "").unwrap();
    fail(&mut train_unet(&finished().precached(), &images, &[]), 2, &["holds images (a.PNG)", "--out"]);
    assert_eq!(fs::read_dir(&images).unwrap().count(), 1);
}

/// Found out before anything is built or prepared.
#[test]
fn sizes_of_networks_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let refused = |recipe: &str, settings: &[&str], parts: &[&str]| {
        fail(train(&[recipe, "--out", text(&out)]).args(settings), 2, parts);
        assert!(!out.exists(), "{settings:?}: something was made");
    };
    let vit = "training/vit/b_16_mini";
    for (key, value) in [
        ("layers", "1000000000"),
        ("layers", "0"),
        ("channels", "0"),
        ("channels", "1000000000000"),
        ("mlp_channels", "0"),
        ("heads", "0"),
        ("patch_size", "0"),
        ("image_size", "0"),
        ("image_size", "1000000000"),
        ("class_tokens", "1000000000"),
    ] {
        refused(vit, &[&format!("model.{key}={value}")], &[&format!("`model.{key}`: is {value}; it takes")]);
    }
    let classes = ["objective.class=cls", "objective.classes=[\"cat\", \"dog\", \"eel\"]", "model.labels=0"];
    refused(vit, &classes, &["`model.labels`", "objective.classes names 3 classes"]);
    let clip = "training/clip/nemo_vit_B_32_mini";
    for key in ["projection", "text.channels", "text.heads", "text.layers", "text.context_length", "vision.channels"] {
        refused(clip, &[&format!("model.{key}=0")], &[&format!("`model.{key}`: is 0; it takes")]);
    }
    for key in ["text.layers", "text.vocab_size", "vision.layers", "vision.image_size", "vision.mlp_channels"] {
        refused(clip, &[&format!("model.{key}=10000000000")], &[&format!("`model.{key}`: is 10000000000; it takes")]);
    }
    for (recipe, setting, key) in [
        (AUTOENCODER, "model.block_out_channels=[]", "`model.block_out_channels`"),
        (AUTOENCODER, "model.latent_channels=0", "`model.latent_channels`"),
        (AUTOENCODER, "model.layers_per_block=1000000000", "`model.layers_per_block`"),
        (AUTOENCODER, "objective.resolution=1073741824", "`objective.resolution`"),
        (DIFFUSION, "model.context_channels=0", "`model.context_channels`"),
        (DIFFUSION, "model.layers_per_block=1000000000", "`model.layers_per_block`"),
        (DIFFUSION, "model.transformer_depth=1000000000", "`model.transformer_depth`"),
    ] {
        refused(recipe, &[setting], &[key]);
    }
}

/// Each size is within its bounds; all of them together are terabytes.
#[test]
fn networks_that_no_memory_holds() {
    let folder = tempfile::tempdir().unwrap();
    let large = ["model.channels=65536", "model.mlp_channels=65536", "model.layers=64"];
    let mut run = train(&["training/vit/b_16_mini", "--out", text(&folder.path().join("run"))]);
    fail(run.args(large), 2, &["[model]", "1,653,619,818,504 parameters", "TiB of memory", "this machine has"]);
}

#[test]
fn quickstart_overrides_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let refused = |argument: &str, parts: &[&str]| fail(&mut quickstart(&out, &[argument]), 2, parts);
    refused("difusion.run.samples=8", &["`difusion.run.samples=8`", "must begin with a stage", "diffusion"]);
    refused("run.samples=8", &["`run.samples=8`", "must begin with a stage"]);
    refused("clip.run.sampels=8", &["clip: ", "did you mean `run.samples`?"]);
    let twice = ["clip.run.samples=8", "clip.run.samples=9"];
    let mut command = calotype(&["quickstart", "--preset", "smoke", "--out", text(&out), twice[0], twice[1]]);
    fail(&mut command, 2, &["clip: ", "`run.samples=8` and `run.samples=9` contradict each other"]);
    refused("evaluation.images=\"x\"", &["evaluation: ", "`images`", "it takes a whole number"]);
    assert!(!out.exists(), "a refused quickstart leaves nothing");
}

#[test]
fn devices_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let message = fail(
        quickstart(&out, &[]).args(["--device", "gpu"]),
        2,
        &["'gpu'", "tip: a graphics processor is cuda (NVIDIA)"],
    );
    assert!(!message.contains("similar"), "{message}");
    fail(quickstart(&out, &[]).args(["--device", "tpu"]), 2, &["'tpu'", "--device", "possible values: cpu"]);
    fail(
        train_unet(&finished().precached(), &out, &[]).args(["--device", "cuda"]),
        2,
        &["`cuda`: needs a build with the feature of that name", "this build has cpu"],
    );
    assert!(!out.exists());
}

#[test]
fn folders_that_cannot_be_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    // Permission bits do not hold back the superuser; this holds back everyone.
    let out = Path::new("/proc/calotype");
    let parts = [text(out), "cannot write here", "choose another folder or correct its permissions"];
    fail(&mut quickstart(out, &[]), 1, &parts);
    fail(&mut train_unet(&finished().precached(), out, &[]), 1, &parts);
    for out in [file.clone(), file.join("run")] {
        let parts =
            [text(&out), "file is a file, and what is written needs a folder", "choose another folder with --out"];
        fail(&mut quickstart(&out, &[]), 2, &parts);
        fail(&mut train_unet(&finished().precached(), &out, &[]), 2, &parts);
    }
    assert_eq!(fs::read(&file).unwrap(), b"");
}

/// A file system in memory, unmounted in the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this user may not mount anything.
    fn new(size: &str) -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(disk.0.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(disk),
            _ => {
                // Not println: the test harness shows that only of tests that fail.
                use std::io::Write;
                let _ = writeln!(std::io::stderr(), "NOT RUN: a full disk; mounting a tmpfs needs the superuser");
                std::mem::forget(disk);
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_is_too_small() {
    let Some(disk) = SmallDisk::new("3m") else { return };
    let out = disk.path().join("run");
    let parts = [text(&out), " are needed and the disk has ", "MiB free; free some"];
    fail(&mut train_unet(&finished().precached(), &out, &[]), 1, &parts);
    fail(&mut quickstart(&out, &[]), 1, &parts);
    assert!(!out.join("dataset").exists(), "found out before any work");
}

#[test]
fn a_disk_that_becomes_full() {
    let Some(disk) = SmallDisk::new("32m") else { return };
    let out = disk.path().join("run");
    let run = |more: &[&str]| train_unet(&finished().precached(), &out, &[&["run.samples=96"], more].concat());
    let stopped_at = |samples: u64| assert_eq!(checkpoints(&out).into_keys().next_back(), Some(samples));
    // A run with a checkpoint or more behind it finds the disk filled by others.
    let mut child = common::start(&mut run(&[]));
    while checkpoints(&out).is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = checkpoints(&out).into_keys().next_back().expect("a checkpoint before the kill");
    let filler = disk.path().join("filler");
    let _ = fs::write(&filler, vec![1; 32 << 20]);
    let message = fail(&mut run(&[]), 1, &[text(&out)]);
    let (full, low) = (message.contains("no space left on the disk"), message.contains("free; free some"));
    assert!(full || low, "{message}");
    stopped_at(kept);
    fs::remove_file(filler).unwrap();
    succeed(&mut run(&[]));
    stopped_at(96);
}

#[test]
fn damaged_shards() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("precache");
    let mut run = train_unet(&data, &folder.path().join("run"), &["run.samples=16"]);
    let mut check = calotype(&["data", "check"]);
    check.arg(&data);

    fail(&mut run, 2, &[text(&data), "does not exist", "write the dataset first"]);
    copy_folder(&finished().precached(), &data);
    let shard = shard(&data);
    let whole = fs::read(&shard).unwrap();

    // A few bytes in the numbers of a latent, which look like any other numbers.
    let mut bytes = whole.clone();
    bytes[whole.len() / 2..][..8].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(&shard, &bytes).unwrap();
    fail(&mut run, 1, &[text(&shard), "has blake3", "the file is damaged: copy it again from its source"]);
    fail(&mut check, 1, &[text(&shard), "has blake3", "copy the shards again"]);
    fs::write(&shard, &whole[..whole.len() / 3]).unwrap();
    fail(&mut run, 1, &[text(&shard), "is truncated at offset", "copy it again from its source"]);
    fail(&mut check, 1, &[text(&shard), "is truncated at offset", "copy the shards again"]);
    fs::remove_file(&shard).unwrap();
    fail(&mut run, 1, &[text(&shard), "is not there; check the path", "copy it back"]);
    fail(&mut check, 1, &[text(&shard), "absent", "copy the shards again"]);
    fs::write(&shard, &whole).unwrap();
    succeed(&mut check);
    succeed(&mut run);
}

#[test]
fn an_unreadable_picture() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("pictures");
    let source = Dataset::open(finished().pictures()).unwrap();
    let mut writer = ShardWriter::create(&data, "pictures", ShardLimits::default()).unwrap();
    for number in 0..16 {
        let mut sample = source.get(number).unwrap().to_sample();
        if number == 11 {
            let png = sample.part("png").unwrap()[..100].to_vec();
            sample = sample_with_png(&sample, png);
        }
        writer.write(&sample).unwrap();
    }
    writer.finish().unwrap();
    let broken = source.get(11).unwrap().key().to_owned();

    let out = |name: &str| folder.path().join(name);
    let run = ["run.samples=16", "run.batch_size=4"];
    fail(&mut train_autoencoder(&data, &out("fails"), &run), 1, &[&broken, "image cannot be used"]);
    let skipping = [&run[..], &["data.on_error=skip"]].concat();
    let ended = succeed(&mut train_autoencoder(&data, &out("skips"), &skipping));
    assert!(ended.stderr.contains("1 corrupt samples were replaced"), "{ended}");

    // What the message advises can be followed: nothing was saved yet.
    let fails = out("fails");
    fail(train_autoencoder(&data, &out("new"), &skipping).arg("--from").arg(&fails), 2, &["has saved nothing yet"]);
    let told = succeed(train_autoencoder(&data, &fails, &skipping).arg("--dry-run")).stderr;
    assert!(told.contains("that has saved nothing: a start would begin a new run in its place"), "{told}");
    let told = succeed(&mut train_autoencoder(&data, &fails, &skipping)).stderr;
    assert!(told.contains("has saved nothing: this one begins in its place"), "{told}");
    let model = |name: &str| fs::read(out(name).join("model/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(model("fails") == model("skips"), "the runs differ");
    fail(&mut train_autoencoder(&data, &fails, &run), 2, &["holds a run of another recipe", "`data.on_error`"]);
}

fn sample_with_png(sample: &calotype_data::Sample, png: Vec<u8>) -> calotype_data::Sample {
    calotype_data::Sample::new(sample.key.clone()).with("png", png).with("txt", sample.text("txt").unwrap())
}

#[test]
fn a_loss_that_is_not_a_number() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let wild = ["optimizer.learning_rate=1e20", "optimizer.gradient_clip=0.0", "run.samples=256"];
    let often = ["run.checkpoint_every=8"];
    let mut run = train_unet(&finished().precached(), &out, &[&wild[..], &often].concat());
    let message = fail(&mut run, 1, &["diffusion: ", " is not finite after ", "optimizer.gradient_clip = 1.0"]);
    assert!(message.contains(" of `") || message.contains("parameter `"), "names a tensor: {message}");
    let (samples, kept) = checkpoints(&out).pop_last().expect("there was a step before");
    assert!(
        message.contains(&format!("the checkpoint of {samples} samples is kept in {}", kept.display())),
        "{message}"
    );
    for tensor in TensorFile::open(kept.join("tensors.safetensors")).unwrap().tensors() {
        tensor.to_f32_vec_finite().unwrap();
    }
    // The program takes it, hashes and all, and comes to the same end.
    let again = common::run(&mut run);
    assert!(again.stderr.contains(&format!("resumed at {samples} of 256 samples")), "{again}");
    assert!(again.stderr.contains(&message), "{again}");
    assert!(!out.join("model").exists());
}

#[test]
fn a_folder_of_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let precached = finished().precached();
    succeed(&mut train_unet(&precached, &out, &["run.samples=16"]));
    fail(
        &mut train_unet(&precached, &out, &["run.samples=16", "run.seed=9"]),
        2,
        &["holds a run of another recipe", "`run.seed` is 17 there and 9 now", "use another folder"],
    );
    fail(
        &mut train_autoencoder(&finished().pictures(), &out, &[]),
        2,
        &["holds a run of another recipe", AUTOENCODER_KIND],
    );
    fs::write(out.join("recipe.toml"), "gar bage\n").unwrap();
    let parts = ["recipe.toml: the recipe of the folder's run cannot be read", "line 1", "use another folder"];
    let message = fail(&mut train_unet(&precached, &out, &["run.samples=16"]), 1, &parts);
    assert!(!message.contains("another recipe"), "{message}");
}

/// The line in which a recipe of [`AUTOENCODER`] first differs from one of [`DIFFUSION`].
const AUTOENCODER_KIND: &str = "`kind` is \"diffusion\" there and \"autoencoder\" now";

#[test]
fn runs_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    let mut generate = calotype(&["generate", "a cat", "--model"]);
    fail(generate.arg(&absent).arg("--out").arg(folder.path()), 2, &[text(&absent)]);
    fail(calotype(&["data", "check"]).arg(&absent), 2, &[text(&absent), "does not exist"]);
    let source = format!("source={:?}", text(&absent));
    fail(
        &mut calotype(&["data", "precache", "data/precache/quickstart", &source]),
        2,
        &[text(&absent), "does not exist"],
    );
    let data = format!("data.path={:?}", text(&absent));
    fail(&mut train(&[AUTOENCODER, &data, "--out", text(folder.path())]), 2, &[text(&absent), "does not exist"]);
    // What was probably meant is proposed.
    fs::create_dir(folder.path().join("absence")).unwrap();
    let near = format!("did you mean {}?", text(&folder.path().join("absence")));
    fail(calotype(&["inspect"]).arg(&absent), 2, &[text(&absent), &near]);
    fail(calotype(&["data", "check"]).arg(&absent), 2, &[text(&absent), &near]);
}
