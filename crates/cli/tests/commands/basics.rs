//! The commands that have no long work to do, and the traces of those that have.

use crate::common::{DIFFUSION, UNET, calotype, data_path, fail, finished, quickstart, run, succeed, text, train_unet};
use serde_json::Value;
use std::fs;
use std::path::Path;

#[test]
fn recipes_are_listed_and_shown() {
    let names = succeed(&mut calotype(&["recipes"])).stdout;
    let (head, names) = names.split_once('\n').unwrap();
    assert!(["RECIPE", "SIZE", "MEMORY", "TIME", "PURPOSE"].iter().all(|column| head.contains(column)), "{head}");
    for line in names.lines() {
        let columns: Vec<&str> = line.split("  ").filter(|column| !column.trim().is_empty()).collect();
        assert_eq!(columns.len(), 5, "every built-in recipe says all five: {line}");
    }
    let names: Vec<&str> = names.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for name in [DIFFUSION, "quickstart/default", "data/precache/quickstart"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    for name in names {
        let shown = succeed(&mut calotype(&["recipes", name])).stdout;
        assert!(toml::from_str::<toml::Table>(&shown).is_ok_and(|table| !table.is_empty()), "{name}:\n{shown}");
    }
    fail(&mut calotype(&["recipes", "quickstart/smoek"]), 2, &["quickstart/smoek", "did you mean `quickstart/smoke`"]);
}

#[test]
fn a_dry_run_prints_a_recipe_that_can_be_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let dry = |recipe: &str, overrides: &[&str]| {
        let mut command = calotype(&["train", recipe, "--dry-run", "--out"]);
        succeed(command.arg(&out).args(overrides)).stdout
    };
    let data = data_path(&finished().precached());
    let printed = dry(DIFFUSION, &[&UNET[..], &["run.samples=12345", &data]].concat());
    let table: toml::Table = toml::from_str(&printed).unwrap();
    assert_eq!(table["run"]["samples"].as_integer(), Some(12345));
    assert_eq!(table["optimizer"]["beta1"].as_float(), Some(0.9), "defaults are printed too");
    assert!(!table.contains_key("base"));
    let file = folder.path().join("recipe.toml");
    fs::write(&file, &printed).unwrap();
    assert_eq!(dry(text(&file), &[]), printed);
    assert!(!out.exists(), "a dry run leaves nothing");
}

#[test]
fn doctor_names_machine_and_build_and_gives_advice() {
    let told = succeed(&mut calotype(&["doctor", "--threads", "1"])).stdout;
    let of = |name: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        line.unwrap_or_else(|| panic!("`{name}` is not in:\n{told}"))
    };
    assert!(of("calotype").contains("(commit "), "{told}");
    assert!(of("processor").contains(" cores") && of("memory").contains("available"), "{told}");
    assert_eq!((of("threads"), of("devices")), ("1", "cpu"));
    for name in ["instructions", "kernels", "bf16", "recipes"] {
        assert!(!of(name).is_empty(), "{told}");
    }
    assert!(of("advice").len() > 10, "{told}");
}

#[test]
fn datasets_are_written_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("emoji");
    let emoji = ["--drawings", "20", "--resolution", "32", "--split", "held_out"];
    let written = succeed(calotype(&["data", "emoji"]).arg(&out).args(emoji)).stdout;
    let checked = succeed(calotype(&["data", "check"]).arg(&out)).stdout;
    assert!(written.starts_with("emoji: 18 in, 18 out, "), "{written}");
    assert!(checked.starts_with("check: 18 read, 18 good, "), "{checked}");
    assert!(!checked.contains("without a checksum"), "{checked}");
}

fn png_size(path: &Path) -> [u32; 2] {
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes[1..4], *b"PNG");
    [16, 20].map(|at| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()))
}

#[test]
fn prompts_are_drawn_and_drawn_alike() {
    let folder = tempfile::tempdir().unwrap();
    let generate = |out: &str, more: &[&str]| {
        let mut command = calotype(&["generate", "a red heart on a blue background", "rocket", "--steps", "2"]);
        command.arg("--model").arg(finished().out()).arg("--out").arg(folder.path().join(out)).args(more);
        let told = succeed(&mut command).stdout;
        let images: Vec<_> = told.lines().map(|line| line.split("  ").last().unwrap().to_owned()).collect();
        assert_eq!(images.len(), 2, "{told}");
        assert!(images.iter().all(|path| png_size(path.as_ref()) == [32, 32]), "{told}");
        fs::read(&images[0]).unwrap()
    };
    let first = generate("a", &["--seed", "1"]);
    assert_eq!(generate("b", &["--seed", "1"]), first);
    assert_ne!(generate("c", &["--seed", "2"]), first);
}

#[test]
fn the_quickstart_leaves_summary_report_and_pictures() {
    let out = finished().out();
    let summary: Value = serde_json::from_slice(&fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["seed"], &summary["samples_seen"]), (&Value::from(5), &Value::from(64)));
    assert_eq!(summary["device"], "cpu");
    for figure in [
        "loss_first",
        "loss_last",
        "frechet_distance/untrained",
        "frechet_distance/trained",
        "clip_score/untrained",
        "clip_score/trained",
        "retrieval_top1_of_16",
        "background_accuracy",
        "peak_rss_gib",
    ] {
        assert!(summary.pointer(&format!("/{figure}")).is_some_and(Value::is_number), "{figure} is not in {summary}");
    }
    for stage in ["dataset", "clip", "autoencoder", "precache", "diffusion", "generate", "judge"] {
        assert!(summary["seconds"][stage].as_f64().is_some_and(|seconds| seconds > 0.0), "{stage}: {summary}");
    }
    for path in summary["pictures"].as_array().unwrap() {
        assert!(Path::new(path.as_str().unwrap()).exists(), "{path}");
    }
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("data:image/png;base64,") && !report.contains("src=\"http"));
}

#[test]
fn a_second_start_of_what_is_done_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let train = || train_unet(&finished().precached(), &out, &["run.samples=16"]);
    let first = succeed(&mut train()).stdout;
    let weights =
        || fs::metadata(out.join("model/unet/diffusion_pytorch_model.safetensors")).unwrap().modified().unwrap();
    let written = weights();
    assert_eq!(succeed(&mut train()).stdout, first);
    assert_eq!(weights(), written);
}

#[test]
fn a_quickstart_that_failed_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    // The first start ends at a stage that cannot work; the second has the same recipes for the stages before it.
    fail(&mut quickstart(&out, &["--seed", "5", "diffusion.model.in_channels=3"]), 2, &["in_channels", "4 channels"]);
    let trained = fs::metadata(out.join("clip/model/model.safetensors")).unwrap().modified().unwrap();
    let ended = run(&mut quickstart(&out, &["--seed", "5"]));
    assert_eq!(ended.code, Some(0), "{ended}");
    assert!(!ended.stderr.contains("clip  16/64"), "CLIP was trained again: {ended}");
    assert_eq!(fs::metadata(out.join("clip/model/model.safetensors")).unwrap().modified().unwrap(), trained);
    let read = |out: &Path| fs::read(out.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(read(&out) == read(&finished().out()), "a run in two goes differs from one in one go");
}
