//! `data precache`: killed, shared out, and refused; `data fid-stats`.

use crate::common::{CLIP, calotype, data_path, fail, finished, start, succeed, text, with_more, write_inception};
use burn::tensor::{Device, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_data::image::{PngEffort, RgbImage};
use calotype_data::npz::FeatureStatistics;
use calotype_models::state;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Seed of the moments at which the stage is killed. Any other will do.
const KILL_SEED: u64 = 7_301;

fn precache(out: &Path, more: &[&str]) -> Command {
    let run = finished().out();
    let path = |key: &str, path: &Path| format!("{key}={:?}", text(path));
    let settings = [
        path("source", &finished().pictures()),
        path("out", out),
        path("encoders.moments.model", &run.join("autoencoder/model")),
        path("encoders.states.model", &run.join("clip/model")),
        "resolution=32".to_owned(),
    ];
    let mut command = calotype(&["data", "precache", "data/precache/quickstart", "shard_samples=10", "batch_size=4"]);
    command.args(with_more(&settings, more));
    command
}

/// All files of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn shards(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "tar")).count()
}

#[test]
fn killed_at_random_moments_and_shared_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let ended = succeed(&mut precache(&at("undisturbed"), &[]));
    assert!(ended.stdout.contains("the dataset is complete"), "{ended}");
    let expected = files(&at("undisturbed"));
    let count = shards(&at("undisturbed"));
    assert!(count >= 10, "{count} shards");

    let mut random = Stream::new(KILL_SEED, Purpose::Noise, 0);
    let killed = at("killed");
    for kill in 0..5 {
        let wanted = kill * count / 6;
        let mut child = start(&mut precache(&killed, &[]));
        let started = Instant::now();
        while shards(&killed) < wanted && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(120), "no {wanted} shards");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.below(30)));
        // On Unix this is SIGKILL. A run that has ended already is none of the five, and harms nothing.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeed(&mut precache(&killed, &[]));
    assert!(files(&killed) == expected, "{:?}", files(&killed).keys());

    let shared = at("shared");
    let mut children: Vec<_> = ["2", "0", "1"]
        .into_iter()
        .map(|id| start(&mut precache(&shared, &["--task-id", id, "--task-count", "3"])))
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert!(files(&shared) == expected, "{:?}", files(&shared).keys());
    let again = succeed(&mut precache(&shared, &["--task-count", "3", "--tasks", "0-1"]));
    assert!(again.stdout.contains("were there already"), "{again}");
}

#[test]
fn refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fail(&mut precache(&out, &["--task-id", "3", "--task-count", "3"]), 2, &["task 3 of 3"]);
    fail(&mut precache(&out, &["encoders.states.modle=1"]), 2, &["encoders.states.modle", "model"]);
    fail(&mut precache(&out, &["encoders.moments.without_padding=true"]), 2, &["`moments`", "without_padding"]);
    fail(&mut precache(&out, &["encoders.moments.model=/nowhere"]), 2, &["/nowhere"]);
    for (recipe, parts) in [
        ("training/clip/quickstart", ["a training recipe (kind `clip`)", "calotype train training/clip/quickstart"]),
        ("data/emoji/quickstart", ["no recipe of encoders", "those below data/precache/"]),
    ] {
        fail(&mut calotype(&["data", "precache", recipe]), 2, &parts);
    }
    succeed(&mut precache(&out, &[]));
    let parts = ["was encoded by", "this run needs", "with `encoders.states.dtype` = \"f32\""];
    fail(&mut precache(&out, &["encoders.states.dtype=f32"]), 1, &parts);
    // A try that encoded nothing is not in the way of the next one.
    let next = folder.path().join("next");
    let parts = ["key `caption` asks for it by {fil}", "did you mean {file}?"];
    fail(&mut precache(&next, &["caption={fil}"]), 1, &parts);
    succeed(&mut precache(&next, &["caption={file}"]));
    // What encoders have made holds no images.
    let parts = ["what encoders made of images", "take the dataset that they were made of"];
    fail(&mut precache(&folder.path().join("twice"), &[&format!("source={:?}", text(&out))]), 1, &parts);
    let mut train = calotype(&["train", "training/clip/quickstart_smoke"]);
    train.args(CLIP).arg(data_path(&out)).arg("--out").arg(folder.path().join("clip"));
    fail(&mut train, 1, &parts);
}

#[test]
fn statistics_of_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let device = Device::flex();
    let network = write_inception(&at("inception.safetensors"));

    let mut features = Vec::new();
    fs::create_dir(at("pictures")).unwrap();
    for (number, (width, height)) in [(40, 32), (40, 32), (33, 50)].into_iter().enumerate() {
        let levels = (0..3 * width * height).map(|i| (i * (37 + number) % 256) as u8).collect();
        let image = RgbImage::new(width, height, levels).unwrap();
        let png = image.encode_png(PngEffort::Fast).unwrap();
        fs::write(at("pictures").join(format!("{number}.png")), png).unwrap();
        let pixels = TensorData::new(image.to_f32_hwc(0.0, 1.0), [1, height, width, 3]);
        let output = network.folded().forward(Tensor::<4>::from_data(pixels, &device)).unwrap();
        features.push(state::values_of(output.features));
    }
    let mut command = calotype(&["data", "fid-stats"]);
    command.arg(at("pictures")).arg(at("stats.npz")).arg("--inception").arg(at("inception.safetensors"));
    succeed(&mut command);
    let found = FeatureStatistics::read(&at("stats.npz")).unwrap();
    assert_eq!((found.mean.len(), found.covariance.len()), (2048, 2048 * 2048));
    for (i, mean) in found.mean.iter().enumerate() {
        let column: Vec<f64> = features.iter().map(|row| f64::from(row[i])).collect();
        let expected = column.iter().sum::<f64>() / 3.0;
        let variance = column.iter().map(|value| (value - expected).powi(2)).sum::<f64>() / 2.0;
        assert!((mean - expected).abs() <= 1e-4 * expected.abs().max(1e-3), "{mean} instead of {expected}");
        let found = found.covariance[i * 2049];
        assert!((found - variance).abs() <= 1e-2 * variance + 1e-7, "{found} instead of {variance}");
    }
}
