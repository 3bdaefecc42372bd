//! The benchmarks' output. Whether anything is fast is not a matter for tests.

use crate::common::{calotype, fail, succeed};
use serde_json::Value;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}

fn positive(row: &Value, keys: &[&str]) {
    for key in keys {
        assert!(row[key].as_f64().is_some_and(|figure| figure > 0.0), "{key} is not in {row}");
    }
}

#[test]
fn kernels_are_held_against_measured_peaks() {
    let arguments = ["bench", "kernels", "--filter", "64x128x32", "--precision", "f32", "--threads", "2"];
    let table = succeed(&mut calotype(&arguments)).stdout;
    for part in ["operation", "peak", "memory copy", "GB/s", "linear", "backward weight", "GFLOP/s", "%"] {
        assert!(table.contains(part), "`{part}` is not in:\n{table}");
    }

    let rows = lines(&succeed(calotype(&arguments).arg("--json")).stdout);
    let (peaks, operations): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row["operation"] == "peak");
    for row in &rows {
        positive(row, &["rate", "peak", "peak_fraction", "threads"]);
        assert!(row["unit"] == "GFLOP/s" || row["unit"] == "GB/s", "{row}");
    }
    let names: Vec<_> = peaks.iter().filter_map(|row| row["shape"].as_str()).collect();
    assert!(["memory read", "memory write", "memory copy"].iter().all(|name| names.contains(name)), "{names:?}");
    let passes: Vec<_> = operations.iter().filter_map(|row| row["pass"].as_str()).collect();
    assert_eq!(passes, ["forward", "backward input", "backward weight"]);
    for row in operations {
        positive(row, &["seconds"]);
        assert_eq!((&row["operation"], &row["precision"]), (&"linear".into(), &"f32".into()), "{row}");
        assert_eq!(row["threads"], 2, "{row}");
    }
}

#[test]
fn a_small_unet_is_measured_in_both_modes_and_precisions() {
    for (mode, precision) in [("forward", "bf16"), ("train", "bf16"), ("forward", "f32"), ("train", "f32")] {
        let mut command = calotype(&["bench", "unet", "--family", "tiny", "--resolution", "64", "--batch", "2"]);
        command.args(["--mode", mode, "--precision", precision, "--threads", "2", "--iterations", "3", "--json"]);
        let rows = lines(&succeed(&mut command).stdout);
        let [row] = &rows[..] else { panic!("{rows:?}") };
        positive(row, &["seconds", "best", "images_per_second", "tflops", "peak_fraction", "peak_rss_gib"]);
        assert!(row["page_faults"].as_f64().is_some_and(|faults| faults >= 0.0), "{row}");
        for (key, value) in [("family", "tiny"), ("mode", mode), ("precision", precision), ("engine", "calotype")] {
            assert_eq!(row[key], value, "{row}");
        }
        for (key, value) in [("resolution", 64), ("batch", 2), ("threads", 2), ("iterations", 3)] {
            assert_eq!(row[key], value, "{row}");
        }
        let [seconds, best, rate] = ["seconds", "best", "images_per_second"].map(|key| row[key].as_f64().unwrap());
        assert!(best <= seconds && (rate * seconds / 2.0 - 1.0).abs() < 1e-9, "{row}");
    }
}

#[test]
fn vision_models_are_measured_in_both_modes() {
    for (network, mode, precision) in
        [("vit", "forward", "bf16"), ("vit", "train", "f32"), ("clip", "forward", "f32"), ("clip", "train", "bf16")]
    {
        let mut command = calotype(&["bench", network, "--model", "tiny", "--batch", "2", "--mode", mode]);
        command.args(["--precision", precision, "--threads", "2", "--iterations", "3", "--json"]);
        let rows = lines(&succeed(&mut command).stdout);
        let [row] = &rows[..] else { panic!("{rows:?}") };
        positive(row, &["seconds", "best", "images_per_second", "tflops", "peak_fraction", "peak_rss_gib"]);
        for (key, value) in [("family", network), ("model", "tiny"), ("mode", mode), ("precision", precision)] {
            assert_eq!(row[key], value, "{row}");
        }
        for (key, value) in [("resolution", 32), ("batch", 2), ("threads", 2), ("iterations", 3)] {
            assert_eq!(row[key], value, "{row}");
        }
    }
    let told = succeed(&mut calotype(&["bench", "vit", "--model", "tiny", "--mode", "train", "--profile"])).stdout;
    for part in ["vit tiny 32x32, batch 16, train", "images/s", "TFLOP/s", "backward: ", "optimizer: "] {
        assert!(told.contains(part), "`{part}` is not in:\n{told}");
    }
}

#[test]
fn a_profile_names_operations_of_every_pass() {
    let arguments = ["bench", "unet", "--family", "tiny", "--resolution", "64", "--iterations", "2", "--mode", "train"];
    let told = succeed(calotype(&arguments).arg("--profile")).stdout;
    for part in
        ["images/s", "TFLOP/s", "page faults", "forward: ", "backward: ", "optimizer: ", "conv2d weight", "adamw"]
    {
        assert!(told.contains(part), "`{part}` is not in:\n{told}");
    }

    let rows = lines(&succeed(calotype(&arguments).args(["--profile", "--json"])).stdout);
    let profile: Vec<_> = rows.iter().filter(|row| row["profile"].is_string()).collect();
    assert_eq!(profile.len() + 1, rows.len(), "one line of figures");
    let share: f64 = profile.iter().map(|row| row["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-6, "the shares are {share} in all");
    for pass in ["forward", "backward", "optimizer"] {
        let of_pass = || profile.iter().filter(|row| row["profile"] == pass);
        assert!(of_pass().any(|row| row["operation"] == "between operations"), "{pass}");
        let seconds: Vec<_> = of_pass().map(|row| row["seconds"].as_f64().unwrap()).collect();
        assert!(seconds[..seconds.len() - 1].is_sorted_by(|a, b| a >= b), "{pass}: {seconds:?}");
    }
}

#[test]
fn training_with_less_memory_is_told() {
    let arguments = ["bench", "unet", "--family", "tiny", "--resolution", "64", "--iterations", "2", "--mode", "train"];
    let mut command = calotype(&arguments);
    command.args(["--recompute-blocks", "--optimizer-in-backward", "--profile", "--json"]);
    let rows = lines(&succeed(&mut command).stdout);
    assert_eq!((&rows[0]["recompute_blocks"], &rows[0]["optimizer_in_backward"]), (&true.into(), &true.into()));
    for (pass, operation) in [("recompute", "conv2d"), ("backward", "between operations"), ("optimizer", "adamw")] {
        let told = rows.iter().any(|row| row["profile"] == pass && row["operation"] == operation);
        assert!(told, "{operation} of {pass} is not in {rows:?}");
    }
    let share: f64 = rows[1..].iter().map(|row| row["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-6, "the shares are {share} in all");
}

#[test]
fn the_stages_of_drawing_are_measured() {
    let arguments = ["bench", "generate", "--family", "tiny", "--steps", "3", "--batch", "2", "--precision", "f32"];
    let table = succeed(&mut calotype(&arguments)).stdout;
    for part in ["tiny 64x64", "load text", "load unet", "load autoencoder", "sample", "decode", "s a step", "GiB"] {
        assert!(table.contains(part), "`{part}` is not in:\n{table}");
    }
    let rows = lines(&succeed(calotype(&arguments).args(["--json", "--keep"])).stdout);
    let [row] = &rows[..] else { panic!("{rows:?}") };
    positive(row, &["load_seconds", "step_seconds", "first_step_seconds", "seconds_per_image", "threads"]);
    assert_eq!(
        (&row["keep"], &row["precision"], &row["model"]),
        (&true.into(), &"f32".into(), &"tiny".into()),
        "{row}"
    );
    let stages: Vec<_> = row["stages"].as_array().unwrap().iter().map(|stage| stage["stage"].clone()).collect();
    assert_eq!(stages, ["load text", "text", "load unet", "load autoencoder", "sample", "decode"]);
}

/// The flags of MosaicML's diffusion-benchmark, in its own spelling too.
#[test]
fn training_is_measured_as_in_the_mosaic_benchmark() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("mds").display().to_string();
    let made = ["data", "synth", &shards, "--samples", "6", "--preset", "mosaic", "--resolution", "64", "--to", "mds"];
    succeed(&mut calotype(&made));
    let common = ["bench", "train", "--family", "tiny", "--precision", "f32", "--threads", "2", "--window", "2"];
    for (more, ema, data) in [
        (&["--use-synth-data", "--use-ema", "--batch-size", "4", "--image-size", "64"][..], true, "synthetic://"),
        (&["--remote", &shards, "--batch_size", "4", "--image_size", "64"], false, &shards),
        (
            &["--use_synth_data", "--batch-size=4", "--image-size=64", "--microbatch", "2", "--batches", "1"],
            false,
            "synthetic://",
        ),
    ] {
        let rows = lines(&succeed(calotype(&common).args(more).arg("--json")).stdout);
        let [row] = &rows[..] else { panic!("{rows:?}") };
        positive(row, &["images_per_second", "seconds", "loss", "peak_rss_gib", "threads"]);
        positive(&row["schedule"], &["days", "device_hours", "images_per_second"]);
        assert_eq!(
            (&row["use_ema"], &row["family"], &row["engine"]),
            (&ema.into(), &"tiny".into(), &"calotype".into())
        );
        assert!(row["data"].as_str().unwrap().starts_with(data) && row["schedule"]["cost"].is_null(), "{row}");
        let given = more.contains(&"--microbatch");
        assert_eq!(row["window"], if given { 1 } else { 2 }, "{row}");
        let micro = row["device_train_microbatch_size"].as_u64().unwrap();
        assert!(if given { micro == 2 } else { [1, 2, 4].contains(&micro) }, "{row}");
        assert_eq!(row["probes"].as_array().unwrap().is_empty(), given, "{row}");
        let [rate, seconds] = ["images_per_second", "seconds"].map(|key| row[key].as_f64().unwrap());
        let images = 4.0 * row["window"].as_f64().unwrap();
        assert!((rate * seconds / images - 1.0).abs() < 1e-9, "{row}");
    }
    let mut command = calotype(&common);
    command.args(["--use-synth-data", "--batch-size", "2", "--image-size", "64", "--price", "2.5", "--batches", "1"]);
    let table = succeed(&mut command).stdout;
    for part in [
        "tiny 64x64, batch 2",
        "images/s over the last 1 of 1 batches",
        "waiting for data",
        "this process",
        "256 A100",
        "those are of sd2 at 512x512; this is tiny at 64x64",
    ] {
        assert!(table.contains(part), "`{part}` is not in:\n{table}");
    }
}

#[test]
fn benchmarks_that_cannot_be() {
    let refused = |arguments: &[&str], parts: &[&str]| fail(calotype(&["bench"]).args(arguments), 2, parts);
    refused(&["kernels", "--filter", "winograd 7x7"], &["winograd 7x7", "without --filter"]);
    refused(&["kernels", "--precision", "f16"], &["f16", "--precision", "f32, bf16"]);
    refused(&["unet", "--family", "sd3"], &["sd3", "--family", "sd1, sd2, sdxl, tiny"]);
    refused(&["unet", "--mode", "inference"], &["inference", "--mode", "forward, train"]);
    refused(&["unet", "--resolution", "500"], &["--resolution", "500", "multiple of 64"]);
    refused(&["unet", "--resolution", "0"], &["--resolution", "at least 1"]);
    refused(&["unet", "--batch", "0"], &["--batch", "at least 1"]);
    refused(&["unet", "--iterations", "0"], &["--iterations", "at least 1"]);
    refused(&["unet", "--recompute-blocks"], &["--recompute-blocks", "--mode train"]);
    refused(&["unet", "--optimizer-in-backward"], &["--optimizer-in-backward", "--mode train"]);
    refused(&["generate", "--family", "sd3"], &["sd3", "--family", "sd1, sd2, sdxl, tiny"]);
    refused(&["generate", "--family", "tiny", "--steps", "1"], &["--steps", "at least 2"]);
    refused(&["unet", "--iterations", "many"], &["many", "--iterations"]);
    let train = |more: &[&str], parts: &[&str]| {
        let common = ["train", "--family", "tiny", "--use-synth-data", "--batch-size", "4", "--image-size", "64"];
        refused(&[&common, more].concat(), parts);
    };
    refused(&["train", "--family", "tiny"], &["--remote", "--use-synth-data"]);
    refused(
        &["train", "--family", "tiny", "--image-size", "100", "--use-synth-data"],
        &["--image-size", "multiple of 64"],
    );
    let nowhere = ["bench", "train", "--family", "tiny", "--image-size", "64", "--remote", "nowhere"];
    fail(&mut calotype(&nowhere), 2, &["nowhere"]);
    train(&["--remote", "x"], &["--remote", "--use-synth-data"]);
    train(&["--microbatch", "3"], &["--device-train-microbatch-size", "3 does not divide the 4"]);
    train(&["--microbatch", "0"], &["at least 1, or auto"]);
    train(&["--microbatch", "many"], &["at least 1, or auto"]);
    train(&["--memory-budget", "0"], &["--memory-budget"]);
    train(&["--memory-budget", "0.001"], &["--memory-budget", "not enough"]);
    train(&["--price", "nan"], &["--price"]);
}
