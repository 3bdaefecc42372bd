//! The program under test, small recipes for it, and a small finished quickstart that many tests read.

use burn::tensor::Device;
use calotype_models::state::{self, NamedValues};
use calotype_models::{Inception, InceptionConfig, Init};
use calotype_weights::{NamedTensor, write_safetensors};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Recipe of the diffusion stage that the tests train.
pub const DIFFUSION: &str = "training/stable_diffusion/quickstart_smoke";
/// Recipe of the autoencoder that the tests train.
pub const AUTOENCODER: &str = "training/autoencoder/quickstart_smoke";

/// A UNet that makes a step in a few milliseconds.
pub const UNET: [&str; 10] = [
    "model.block_out_channels=[16, 32]",
    "model.in_channels=4",
    "model.out_channels=4",
    "model.head_channels=[8, 8]",
    "model.context_channels=32",
    "model.norm_groups=4",
    "model.transformer_norm_groups=4",
    "run.batch_size=8",
    "run.log_every=16",
    "run.checkpoint_every=16",
];

/// An autoencoder of the same kind, for images of 32x32 pixels.
const SMALL_AUTOENCODER: [&str; 8] = [
    "model.block_out_channels=[8, 8, 16, 16]",
    "model.norm_groups=4",
    "model.latent_channels=4",
    "objective.resolution=32",
    "run.samples=32",
    "run.batch_size=8",
    "run.log_every=16",
    "run.checkpoint_every=32",
];

pub const CLIP: [&str; 13] = [
    "model.projection=16",
    "model.text.channels=32",
    "model.text.layers=1",
    "model.text.heads=2",
    "model.vision.image_size=32",
    "model.vision.channels=32",
    "model.vision.layers=1",
    "model.vision.heads=2",
    "run.samples=64",
    "run.batch_size=16",
    "run.log_every=16",
    "run.checkpoint_every=32",
    "data.threads=1",
];

const DATA: [&str; 2] = ["precache.resolution=32", "precache.batch_size=16"];

const EVALUATION: [&str; 4] = [
    "evaluation.images=4",
    "evaluation.grid=4",
    "evaluation.sampler.steps=2",
    "evaluation.prompts=[\"a cat on a red background\"]",
];

/// Overrides that make the whole quickstart a matter of seconds.
pub fn tiny_stages() -> Vec<String> {
    let of = |stage: &str, overrides: &[&str]| -> Vec<String> {
        overrides.iter().map(|text| format!("{stage}.{text}")).collect()
    };
    [
        of("dataset", &["drawings=40", "resolution=32"]),
        of("clip", &CLIP),
        of("autoencoder", &SMALL_AUTOENCODER),
        of("diffusion", &UNET),
        of("diffusion", &["run.samples=64"]),
        DATA.iter().chain(&EVALUATION).map(ToString::to_string).collect(),
    ]
    .concat()
}

/// Overrides, without those whose key is set by `more`, and behind them `more`: a command line gives each key once.
pub fn with_more(overrides: &[String], more: &[&str]) -> Vec<String> {
    let key = |text: &str| text.split_once('=').map(|(key, _)| key.to_owned());
    let kept = overrides.iter().filter(|text| !more.iter().any(|other| key(other) == key(text)));
    kept.cloned().chain(more.iter().map(ToString::to_string)).collect()
}

/// `train` by a recipe on a dataset.
fn train(recipe: &str, settings: &[&str], data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut overrides: Vec<String> = settings.iter().map(ToString::to_string).collect();
    overrides.push(data_path(data));
    let mut command = calotype(&["train", recipe]);
    command.args(with_more(&overrides, more)).arg("--out").arg(out);
    command
}

/// `train` with a small UNet on a precached dataset.
pub fn train_unet(precached: &Path, out: &Path, more: &[&str]) -> Command {
    train(DIFFUSION, &UNET, precached, out, more)
}

/// `train` with a small autoencoder on a dataset of images.
pub fn train_autoencoder(images: &Path, out: &Path, more: &[&str]) -> Command {
    train(AUTOENCODER, &SMALL_AUTOENCODER, images, out, more)
}

pub fn data_path(folder: &Path) -> String {
    format!("data.path={:?}", folder.to_str().expect("temporary folders have Unicode names"))
}

/// `quickstart` at its smallest.
pub fn quickstart(out: &Path, more: &[&str]) -> Command {
    let mut command = calotype(&["quickstart", "--preset", "smoke"]);
    command.args(with_more(&tiny_stages(), more)).arg("--out").arg(out);
    command
}

/// The program, in a folder without recipes, so that the built-in ones are used.
pub fn calotype(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
    command.args(arguments).current_dir(std::env::temp_dir()).env_remove("CALOTYPE_LOG").stdin(Stdio::null());
    command
}

/// Waits until something is so, for two minutes at most.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < Duration::from_secs(120), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {:?}\n{}\n{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs to the end.
pub fn run(command: &mut Command) -> Ended {
    command.output().expect("the program starts").into()
}

/// Runs to the end, which must be a good one.
pub fn succeed(command: &mut Command) -> Ended {
    let ended = run(command);
    assert_eq!(ended.code, Some(0), "{command:?}: {ended}");
    ended
}

/// Runs to the end, which must be an error: the exit code, and one message, the last thing on standard error, that holds
/// all of `parts`. Gives the message, which may show a piece of a file on lines of its own.
pub fn fail(command: &mut Command, code: i32, parts: &[&str]) -> String {
    let ended = run(command);
    assert_eq!(ended.code, Some(code), "{command:?}: {ended}");
    let beginnings = ended.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(beginnings, 1, "{ended}");
    let message = &ended.stderr[ended.stderr.find("error: ").unwrap_or(0)..];
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!ended.stderr.contains("panicked"), "{ended}");
    message.trim_end().to_owned()
}

/// Starts in the background, mute.
pub fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have Unicode names")
}

/// A finished small quickstart, made once for all tests that only read it. Its folder goes with the test process.
pub struct Finished {
    folder: TempDir,
}

impl Finished {
    pub fn out(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn precached(&self) -> PathBuf {
        self.out().join("precache")
    }

    pub fn pictures(&self) -> PathBuf {
        self.out().join("dataset").join("train")
    }
}

/// Seed of [`finished`].
pub const SEED: &str = "5";

/// The shared quickstart of seed [`SEED`]. Statics are never dropped: what it leaves is in the system's folder for
/// temporary files, a few megabytes at most.
pub fn finished() -> &'static Finished {
    static FINISHED: LazyLock<Finished> = LazyLock::new(|| {
        let finished = Finished { folder: tempfile::tempdir().expect("a temporary folder") };
        succeed(&mut quickstart(&finished.out(), &["--seed", SEED]));
        finished
    });
    &FINISHED
}

/// Writes an Inception network of random weights, under the keys of pytorch-fid's file.
pub fn write_inception(path: &Path) -> Inception {
    let network = InceptionConfig::default().init(&mut Init::new(3, &Device::flex()));
    let named = |t: &NamedValues| NamedTensor::from_f32(t.name.clone(), t.shape.clone(), &t.values).into_owned();
    let named: Vec<_> = state::collect(&network).iter().map(named).collect();
    write_safetensors(path, &named, &BTreeMap::new()).expect("the weights are written");
    network
}

/// Copies a folder with everything below it.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// Changes the last byte of a file.
pub fn change_last_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().expect("the file is not empty") ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Copies a folder of files.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// The only shard of a dataset.
pub fn shard(dataset: &Path) -> PathBuf {
    let paths = fs::read_dir(dataset).unwrap().map(|entry| entry.unwrap().path());
    let shards: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "tar")).collect();
    assert_eq!(shards.len(), 1, "{shards:?}");
    shards[0].clone()
}

/// Checkpoint folders of a run by the samples they stand for.
pub fn checkpoints(run: &Path) -> BTreeMap<u64, PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((name.strip_prefix("checkpoint-")?.parse().ok()?, entry.path()))
    });
    numbered.collect()
}
