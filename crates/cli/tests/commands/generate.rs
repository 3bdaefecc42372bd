//! `generate` as a newcomer meets it: sizes that are too large, stops, notes on prompts, paths that are no models.

use crate::common::{calotype, copy_tree, fail, finished, quickstart, run, start, succeed, text};
use calotype_data::image::{PngEffort, RgbImage};
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_weights::{NamedTensor, write_safetensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use tempfile::TempDir;

/// A small Stable Diffusion of random weights, which all tests read.
static MODEL: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(RandomFamily::Tiny).write(folder.path()).unwrap();
    folder
});

/// One step of the shared model, with images below `out`.
fn generate(out: &Path, more: &[&str]) -> Command {
    let mut command = calotype(&["generate", "--steps", "1", "--precision", "f32", "--model"]);
    command.arg(MODEL.path()).arg("--out").arg(out.join("drawn")).args(more);
    command
}

#[test]
fn an_image_that_memory_cannot_hold_is_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let large = ["a cat", "--width", "100000", "--height", "100000"];
    let parts = ["100000x100000 pixels need about ", " GiB of memory", "--tiled", "--ignore-memory"];
    fail(&mut generate(folder.path(), &large), 2, &parts);
    let sides = ["a cat", "--width", "9223372036854775800", "--height", "9223372036854775800"];
    fail(&mut generate(folder.path(), &sides), 2, &["a height of 9223372036854775800 pixels: sides go to 131072"]);
    let without_memory = ["a cat", "--width", "1000000000", "--height", "64", "--ignore-memory"];
    fail(&mut generate(folder.path(), &without_memory), 2, &["a width of 1000000000 pixels: sides go to 131072"]);
    // Nor is an image to begin with enlarged.
    let picture = folder.path().join("picture.png");
    fs::write(&picture, RgbImage::filled(8, 8, [1; 3]).unwrap().encode_png(PngEffort::Fast).unwrap()).unwrap();
    fail(&mut generate(folder.path(), &[&large[..], &["--image", text(&picture)]].concat()), 2, &parts);
    assert!(!folder.path().join("drawn").exists());
    let told = succeed(&mut generate(folder.path(), &["a cat", "--ignore-memory"])).stderr;
    assert!(
        told.contains("generate  1 image of 64x64 pixels, 1 step each, about ") && !told.contains("times the"),
        "{told}"
    );
    let told = succeed(&mut generate(folder.path(), &["a cat", "--width", "128", "--height", "128"])).stderr;
    assert!(!told.contains("times the"), "{told}",);
    let told = succeed(&mut generate(folder.path(), &["a cat", "--width", "192", "--height", "128"])).stderr;
    assert!(told.contains("note: 192x128 is 6 times the 64x64 pixels"), "{told}");
}

/// A step of this size takes minutes; nothing of it could be kept.
#[test]
fn a_signal_ends_a_long_step() {
    let folder = tempfile::tempdir().unwrap();
    let large = ["a cat", "--width", "3072", "--height", "3072", "--ignore-memory"];
    let mut child = start(&mut generate(folder.path(), &large));
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("generate  1 image") {
        line.clear();
        assert!(told.read_line(&mut line).unwrap() > 0, "it ended before the first step");
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("stopped after 0 of 1 images") && !rest.contains("error"), "{rest}");
    assert!(!rest.contains("saving first"), "nothing is saved: {rest}");
    assert_eq!(fs::read_dir(folder.path().join("drawn")).unwrap().count(), 0);
}

#[test]
fn what_changed_since_an_image_was_drawn_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    copy_tree(MODEL.path(), &at("model"));
    let picture = |level: u8| {
        let image = RgbImage::filled(64, 64, [level; 3]).unwrap();
        fs::write(at("start.png"), image.encode_png(PngEffort::Fast).unwrap()).unwrap();
    };
    picture(1);
    let mut command = calotype(&["generate", "a cat", "--steps", "2", "--precision", "f32", "--image"]);
    command.arg(at("start.png")).arg("--model").arg(at("model")).arg("--out").arg(at("drawn"));
    let drawn = succeed(&mut command).stdout;
    let again = |more: &[&str]| {
        let mut command = calotype(&["generate", "--from", drawn.trim()]);
        succeed(command.args(more).arg("--out").arg(at("again"))).stderr
    };
    assert!(!again(&[]).contains("not the same"));
    picture(9);
    let told = again(&[]);
    let note = format!("note: {}: not the same as when it was drawn: start image ", drawn.trim());
    assert!(told.contains(&note) && !told.contains("unet of"), "{told}");
    // Another image that is named is chosen.
    fs::copy(at("start.png"), at("other.png")).unwrap();
    let other = at("other.png");
    assert!(!again(&["--image", text(&other)]).contains("not the same"));
    RandomCheckpoint { seed: 7, ..RandomCheckpoint::new(RandomFamily::Tiny) }.write(&at("trained")).unwrap();
    let unet = "unet/diffusion_pytorch_model.safetensors";
    fs::copy(at("trained").join(unet), at("model").join(unet)).unwrap();
    let told = again(&["--image", text(&other)]);
    assert!(told.contains(&format!("drawn: unet of {};", at("model").display())), "{told}");
}

#[test]
fn a_prediction_type_that_the_checkpoint_contradicts_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let note = "the prediction type v_prediction was given (--prediction), and the checkpoint says epsilon (scheduler/";
    let told = succeed(&mut generate(folder.path(), &["a cat", "--prediction", "v_prediction"])).stderr;
    assert!(told.contains(note), "{told}");
    let told = succeed(&mut generate(folder.path(), &["a cat", "--prediction", "epsilon"])).stderr;
    assert!(!told.contains("the prediction type"), "{told}");
    let mut convert = calotype(&["convert", text(MODEL.path()), "--to", "diffusers", "--prediction", "v_prediction"]);
    let told = succeed(convert.arg(folder.path().join("converted"))).stdout;
    assert!(told.contains(note), "{told}");
    let mut inspect = calotype(&["inspect", text(MODEL.path()), "--prediction", "v_prediction"]);
    assert!(succeed(&mut inspect).stdout.contains(note));
}

#[test]
fn learned_words_draw_with_what_training_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let word = folder.path().join("moss.safetensors");
    let values = vec![0.25; 2 * 32];
    let vectors = NamedTensor::from_f32("emb_params", vec![2, 32], &values);
    write_safetensors(&word, &[vectors], &BTreeMap::new()).unwrap();
    let mut command = calotype(&["generate", "a moss cat", "--steps", "1", "--embedding", text(&word), "--model"]);
    let told = succeed(command.arg(finished().out()).arg("--out").arg(folder.path().join("drawn"))).stderr;
    assert!(told.contains("`moss` stands for 2 learned vectors"), "{told}");
}

#[test]
fn caption_files_that_are_not_read_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let png = RgbImage::filled(8, 8, [1; 3]).unwrap().encode_png(PngEffort::Fast).unwrap();
    fs::write(at("a.png"), &png).unwrap();
    fs::write(at("a.txt"), "one").unwrap();
    let inspect = || succeed(calotype(&["inspect"]).arg(folder.path())).stderr;
    assert!(!inspect().contains("not read"));
    fs::write(at("a.caption"), "two").unwrap();
    let told = inspect();
    assert!(told.contains("beside each is another of the same image") && told.contains("a.caption"), "{told}");
    fs::write(at("metadata.jsonl"), "{\"file_name\": \"a.png\", \"text\": \"three\"}\n").unwrap();
    let told = inspect();
    assert!(told.contains("captions are those of metadata.jsonl (such as a.txt)"), "{told}");
}

#[test]
fn json_is_one_object_that_names_the_images() {
    let folder = tempfile::tempdir().unwrap();
    let told = succeed(&mut generate(folder.path(), &["a cat", "two boats", "--json"])).stdout;
    let object: Value = serde_json::from_str(&told).unwrap();
    let images: Vec<PathBuf> = serde_json::from_value(object["images"].clone()).unwrap();
    assert!(images.len() == 2 && images.iter().all(|path| path.is_file()), "{told}");
    assert!(object["sample"].is_number(), "{told}");
}

#[test]
fn prompts_that_may_be_meant_otherwise_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.txt");
    fs::write(&file, "# comment\na cat (y:1.4)\n").unwrap();
    for (arguments, note) in [
        (
            &["a", "red", "circle"][..],
            "3 prompts of one word each; one prompt of several words is quoted: \"a red circle\"",
        ),
        (&["--prompts", text(&file)], "those that begin with # are drawn too (1 of them)"),
        (&["--prompts", text(&file)], "`(y:1.4)` is drawn as text; --prompt-syntax a1111"),
        (&["x <lora:foo:0.8>", "--prompt-syntax", "a1111"], "`<lora:foo:0.8>` is drawn as text; adapters"),
        (&["x", "--negative", "{a|b}"], "`{a|b}` is drawn as text"),
        (&["a cat AND a dog", "--prompt-syntax", "a1111"], "`AND` is drawn as text"),
        (
            &["x", "--negative", "blurry", "--guidance", "1"],
            "the negative prompt has no effect: a guidance of 1 is none",
        ),
        (&["x", "--guidance-rescale", "0.5", "--guidance", "0.5"], "--guidance-rescale has no effect"),
    ] {
        let told = succeed(&mut generate(folder.path(), arguments)).stderr;
        assert!(told.contains(note), "{note}: {told}");
    }
    let told = succeed(&mut generate(folder.path(), &["a red circle", "cat", "--count", "2"])).stderr;
    assert!(!told.contains("as text") && !told.contains("one word each"), "{told}");
    let told = succeed(&mut generate(folder.path(), &["x", "--negative", "blurry", "--guidance", "1.5"])).stderr;
    assert!(!told.contains("no effect"), "{told}");
    let long = "word ".repeat(100);
    let told = succeed(&mut generate(folder.path(), &[long.trim()])).stderr;
    let line = told.lines().find(|line| line.contains("tokens are not drawn")).unwrap();
    assert!(line.contains("prompt `word word") && line.contains("…`") && line.len() < long.len(), "{line}");
}

#[test]
fn what_cannot_draw_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let refused = |code: i32, model: &Path, parts: &[&str]| {
        let mut command = calotype(&["generate", "x", "--out", text(&at("drawn")), "--model"]);
        let message = fail(command.arg(model), code, parts);
        assert!(!message.contains("--prediction"), "{message}");
    };
    refused(2, &MODEL.path().join("vae"), &["this is an autoencoder", "a checkpoint with a UNet"]);
    refused(2, &finished().out().join("clip"), &["this is a CLIP model", "a checkpoint with a UNet"]);
    copy_tree(MODEL.path(), &at("without"));
    fs::rename(at("without/unet"), at("unet")).unwrap();
    refused(2, &at("without"), &["there is no UNet", "vae", "put its folder `unet` beside them"]);
    copy_tree(&finished().out().join("diffusion"), &at("stopped"));
    fs::remove_dir_all(at("stopped/model")).unwrap();
    fs::remove_file(at("stopped/result.json")).unwrap();
    refused(
        1,
        &at("stopped"),
        &["a training run that is not finished, with ", " samples saved", "the same command", "calotype export"],
    );
    fs::create_dir_all(at("run/checkpoints/checkpoint-000000000176")).unwrap();
    fs::write(at("run/recipe.toml"), "kind = \"diffusion\"\n").unwrap();
    refused(1, &at("run"), &["all 1 checkpoints are damaged", "manifest.json is missing"]);
    // A dataset is called one.
    refused(2, &finished().pictures(), &["a dataset and no model", "calotype inspect"]);
    refused(2, &finished().precached(), &["a dataset and no model", ".tar"]);
    fs::write(at("run/checkpoints/checkpoint-000000000176/state.json"), "{}").unwrap();
    fs::write(at("run/checkpoints/checkpoint-000000000176/tensors.safetensors"), "").unwrap();
    refused(1, &at("run/checkpoints/checkpoint-000000000176"), &["a training checkpoint", "init_from="]);
    fs::create_dir(at("curve")).unwrap();
    fs::write(at("curve/recipe.toml"), "kind = \"text_to_image\"\nmodel = \"sd\"\n").unwrap();
    // As an earlier version left it.
    fs::create_dir(at("curve/checkpoints")).unwrap();
    refused(1, &at("curve"), &["an evaluation, which holds pictures and figures of a model"]);
    let told = succeed(calotype(&["inspect"]).arg(at("curve"))).stdout;
    assert!(told.contains("an evaluation (text_to_image)") && told.contains("of the model sd"), "{told}");
    let mut export = calotype(&["export", text(&at("curve")), "--out", text(&at("exported"))]);
    fail(&mut export, 2, &["curve holds an evaluation (recipe.toml), and is no training run"]);
    fs::create_dir(at("begun")).unwrap();
    fs::write(at("begun/quickstart.json"), "{}").unwrap();
    refused(1, &at("begun"), &["a quickstart that is not finished"]);
    refused(2, Path::new("org/model-v1.5"), &["there is no such file", "calotype data fetch models/org/model-v1.5"]);
    fail(&mut calotype(&["inspect", "org/model-v1.5"]), 2, &["calotype data fetch models/org/model-v1.5"]);
    fail(&mut calotype(&["convert", "org/model-v1.5", "o", "--to", "diffusers"]), 2, &["models/org/model-v1.5"]);
    refused(2, Path::new("org/model.safetensors"), &["org/model.safetensors: there is no such file"]);
    // An autoencoder is missed where another one's can be taken, and where none can.
    fs::rename(at("unet"), at("without/unet")).unwrap();
    fs::remove_dir_all(at("without/vae")).unwrap();
    refused(2, &at("without"), &["the checkpoint holds no vae", "--vae PATH"]);
    let mut precache = calotype(&["data", "precache", "data/precache/quickstart"]);
    for (key, path) in [
        ("source", finished().pictures()),
        ("out", at("encoded")),
        ("encoders.moments.model", at("without")),
        ("encoders.states.model", finished().out().join("clip")),
    ] {
        precache.arg(format!("{key}={:?}", text(&path)));
    }
    let message = run(&mut precache).stderr;
    assert!(message.contains("the checkpoint holds no vae"), "{message}");
    assert!(!message.contains("--vae"), "{message}");
}

#[test]
fn flags_that_cannot_be_meant_so_are_told_before_loading() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("picture.png");
    let png = RgbImage::filled(8, 8, [1; 3]).unwrap().encode_png(PngEffort::Fast).unwrap();
    fs::write(&file, &png).unwrap();
    for out in [file.clone(), file.join("below")] {
        let mut command = calotype(&["generate", "x", "--model", "/nowhere", "--out"]);
        fail(command.arg(&out), 2, &["picture.png is a file", "choose another folder with --out"]);
    }
    fail(&mut generate(folder.path(), &["x", "--lora", "f.safetensors:0.5"]), 2, &["--lora f.safetensors=0.5"]);
    let convert = |output: &str, to: &str, parts: &[&str]| {
        let mut command = calotype(&["convert", text(MODEL.path())]);
        fail(command.arg(folder.path().join(output)).args(["--to", to]), 2, parts);
        assert!(!folder.path().join(output).exists());
    };
    convert("x.ckpt", "single-file", &["x.ckpt", "written as safetensors", "x.safetensors"]);
    convert("x.safetensors", "diffusers", &["--to diffusers writes a folder", "leave out its ending"]);
    // A preview takes the place of an earlier one only, and images lie among drawn ones only.
    let of = |option: &str, path: &Path, parts: &[&str]| {
        let mut command = calotype(&["generate", "x", "--model", "/nowhere", option]);
        fail(command.arg(path), 2, parts);
        assert_eq!(fs::read(&file).unwrap(), png);
    };
    of("--preview", &file, &["--preview", "picture.png: something is there already that is not a preview"]);
    of("--preview", folder.path(), &["--preview", "name a file"]);
    of("--out", folder.path(), &["holds images (picture.png)", "choose another folder with --out"]);
    of("--out", &finished().out(), &["holds a quickstart", "choose another folder with --out"]);
    of("--out", &finished().out().join("clip"), &["holds a training run (recipe.toml)"]);
    of("--out", MODEL.path(), &["holds a model (model_index.json)"]);
}

#[test]
fn inspect_tells_the_settings_of_images_and_folders_of_runs() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = succeed(&mut generate(folder.path(), &["a fox", "--seed", "41", "--negative", "blurry"])).stdout;
    let told = succeed(&mut calotype(&["inspect", drawn.trim()])).stdout;
    for part in ["drawn by calotype", "generate --from", "a fox", "blurry", "41", text(MODEL.path())] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let json = succeed(&mut calotype(&["inspect", "--json", drawn.trim()])).stdout;
    let record: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(record["record"]["request"]["prompt"], "a fox");
    let plain = folder.path().join("plain.png");
    fs::write(&plain, RgbImage::filled(8, 8, [1; 3]).unwrap().encode_png(PngEffort::Fast).unwrap()).unwrap();
    fail(calotype(&["inspect"]).arg(&plain), 1, &["plain.png: it holds no settings"]);
    let runs = finished().out();
    let told = succeed(calotype(&["inspect"]).arg(runs.parent().unwrap())).stdout;
    assert!(told.contains("a folder of runs") && told.contains("a quickstart, finished"), "{told}");
}

#[test]
fn a_quickstart_takes_no_folder_of_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("my-images");
    fs::create_dir(&out).unwrap();
    for name in ["d.jpg", "a.jpg", "c.jpg", "b.jpg"] {
        fs::write(out.join(name), "").unwrap();
    }
    let refused = |part: &str| fail(&mut quickstart(&out, &[]), 2, &[part, "no quickstart", "--out"]);
    refused("my-images holds images (a.jpg)");
    let letters = folder.path().join("letters");
    fs::create_dir(&letters).unwrap();
    fs::write(letters.join("a.odt"), "").unwrap();
    fail(&mut quickstart(&letters, &[]), 2, &["letters holds something else (a.odt)", "no quickstart"]);
    fs::write(out.join("recipe.toml"), "").unwrap();
    refused("my-images holds a training run (");
    let entries = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
    let shown = entries.filter(|name| !name.to_string_lossy().starts_with('.'));
    assert_eq!(shown.count(), 5, "nothing is left there");
    assert!(!out.join(".lock").exists(), "not even a lock");
}

/// What few-step students need is told, recorded, and drawn again.
#[test]
fn presets_say_their_values() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| -> (Value, String) {
        let mut command = calotype(&["generate", "a cat", "--precision", "f32", "--dry-run", "--model"]);
        let told = succeed(command.arg(MODEL.path()).arg("--out").arg(folder.path().join("drawn")).args(more));
        (serde_json::from_str(&told.stdout).unwrap(), told.stderr)
    };
    let (told, said) = plan(&["--preset", "dmd2"]);
    assert!(
        said.contains("preset    dmd2: sampler lcm, 4 steps at timesteps 999,749,499,249, guidance 1 (none)"),
        "{said}"
    );
    assert!(said.contains("generate  1 image of 64x64 pixels, 4 steps each"), "{said}");
    let (settings, visited) = (&told["settings"], serde_json::json!([999.0, 749.0, 499.0, 249.0]));
    assert_eq!((&settings["steps"], &settings["guidance"]), (&4.into(), &1.0.into()));
    assert_eq!((&settings["sampler"]["kind"]["name"], &told["timesteps"]), (&"lcm".into(), &visited));
    // Options hold in place of the preset's values.
    let (told, _) = plan(&["--preset", "lightning-8", "--steps", "2", "--guidance", "1.5", "--json"]);
    assert_eq!((&told["settings"]["guidance"], &told["timesteps"]), (&1.5.into(), &serde_json::json!([999.0, 499.0])));
    let (told, _) = plan(&["--sampler", "tcd", "--eta", "0.25", "--timesteps", "800, 400"]);
    assert_eq!((&told["settings"]["steps"], &told["settings"]["sampler"]["kind"]["eta"]), (&2.into(), &0.25.into()));
    let (told, _) = plan(&["--sampler", "euler", "--sigmas", "14.6,2,0"]);
    assert_eq!(told["settings"]["steps"], 2);
    let (told, said) = plan(&["--steps", "5", "--cache-interval", "2"]);
    assert_eq!(told["settings"]["caching"], serde_json::json!({ "interval": 2, "branch": 0 }));
    assert!(said.contains("cached    2 of 6 calls compute the whole UNet"), "{said}");
    assert!(!folder.path().join("drawn").exists(), "nothing is drawn");
}

#[test]
fn few_steps_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (more, parts) in [
        (&["--preset", "lightning"][..], &["there is no preset `lightning`", "lightning-4"][..]),
        (&["--preset", "dmd2", "--sampler", "euler"], &["cannot be used with"]),
        (&["--preset", "dmd2"], &["its list has 4 steps, and 1 were asked for"]),
        (&["--sampler", "ddim", "--timesteps", "999"], &["takes no list of timesteps", "lcm, tcd"]),
        (&["--sampler", "lcm", "--timesteps", "999,x"], &["`x`: it takes numbers with commas between them"]),
        (&["--sampler", "lcm", "--timesteps", "1000"], &["timestep 1000 of its list is none of the schedule's"]),
        (&["--cache-branch", "1"], &["--cache-branch has no effect without --cache-interval"]),
        (&["--cache-interval", "2", "--cache-branch", "6"], &["the UNet has the skip connections 0 to 5"]),
        (&["--cache-interval", "0"], &["at least 1"]),
    ] {
        fail(&mut generate(folder.path(), &[&["a cat"], more].concat()), 2, parts);
    }
    assert!(!folder.path().join("drawn").exists());
}

#[test]
fn cached_images_are_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let cached = ["a cat", "--steps", "4", "--cache-interval", "2", "--cache-branch", "1"];
    let mut command = calotype(&["generate", "--precision", "f32", "--model", text(MODEL.path()), "--out"]);
    let drawn = succeed(command.arg(folder.path().join("drawn")).args(cached)).stdout;
    let mut again = calotype(&["generate", "--from", drawn.trim(), "--out"]);
    let again = succeed(again.arg(folder.path().join("again"))).stdout;
    assert_eq!(fs::read(drawn.trim()).unwrap(), fs::read(again.trim()).unwrap());
    let mut whole = calotype(&["generate", "--from", drawn.trim(), "--cache-interval", "1", "--out"]);
    let whole = succeed(whole.arg(folder.path().join("whole"))).stdout;
    assert_ne!(fs::read(drawn.trim()).unwrap(), fs::read(whole.trim()).unwrap());
}

/// A checkpoint whose own scheduler is that of such students alone is drawn as one.
#[test]
fn a_latent_consistency_model_is_drawn_in_few_steps() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    RandomCheckpoint::new(RandomFamily::TinyLcm).write(&model).unwrap();
    let plan = |more: &[&str]| -> (Value, String) {
        let mut command =
            calotype(&["generate", "a cat", "--negative", "blurry", "--dry-run", "--model", text(&model)]);
        let told = succeed(command.args(more));
        (serde_json::from_str(&told.stdout).unwrap(), told.stderr)
    };
    let (told, said) = plan(&[]);
    assert!(
        said.contains("its scheduler is LCMScheduler") && said.contains("preset    lcm: sampler lcm, 4 steps"),
        "{said}"
    );
    assert!(said.contains("the negative prompt has no effect: this network is told its guidance scale"), "{said}");
    assert_eq!((&told["settings"]["steps"], &told["settings"]["guidance"]), (&4.into(), &8.5.into()));
    let (told, _) = plan(&["--steps", "6", "--guidance", "3"]);
    assert_eq!((&told["settings"]["steps"], &told["settings"]["guidance"]), (&6.into(), &3.0.into()));
    let (told, said) = plan(&["--sampler", "ddim"]);
    assert!(told["settings"]["steps"] == 50 && !said.contains("preset"), "{said}");
}
