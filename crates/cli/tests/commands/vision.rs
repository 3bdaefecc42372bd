//! Vision models judged by recipes, and what they say of pictures of one's own.

use crate::common::{calotype, fail, finished, succeed, text};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use tempfile::TempDir;

fn evaluate(recipe: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = calotype(&["evaluate", recipe]);
    command.args(more).arg("--out").arg(out);
    command
}

/// Figures of an evaluation's folder, by variant and name.
fn figure(out: &Path, variant: &str, metric: &str) -> Value {
    let figures: Vec<Value> = serde_json::from_slice(&fs::read(out.join("figures.json")).unwrap()).unwrap();
    let found = figures.into_iter().find(|figure| figure["variant"] == variant && figure["metric"] == metric);
    found.unwrap_or_else(|| panic!("no {metric} of {variant} in {}", out.display()))
}

/// The finished mini evaluation of a ViT of random weights, and with it a classifier and pictures.
struct Vit {
    folder: TempDir,
    told: String,
}

impl Vit {
    fn out(&self) -> PathBuf {
        self.folder.path().join("vit")
    }

    fn classifier(&self) -> PathBuf {
        self.out().join("prepared/classifier")
    }
}

fn vit() -> &'static Vit {
    static VIT: LazyLock<Vit> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let done = succeed(&mut evaluate("vit/imagenet_val_mini", &folder.path().join("vit"), &[]));
        Vit { folder, told: done.stdout }
    });
    &VIT
}

/// The quickstart's CLIP.
fn clip() -> String {
    format!("model={:?}", text(&finished().out().join("clip")))
}

#[test]
fn a_classifier_is_judged_by_a_recipe_that_needs_nothing() {
    let Vit { told, .. } = vit();
    let out = vit().out();
    let top_1 = figure(&out, "classification", "top_1");
    let line = format!("ViT Imagenet 1K Evaluation Accuracy: {:.4}", top_1["value"].as_f64().unwrap());
    assert!(told.lines().any(|found| found == line), "{told}");
    assert!(figure(&out, "classification", "top_5")["value"].as_f64() >= top_1["value"].as_f64());
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("What classes are taken for") && page.contains("purple"), "{}", out.display());
    assert!(fs::read(out.join("confusion.png")).unwrap().starts_with(b"\x89PNG"));
    let rows = fs::read_to_string(out.join("predictions.csv")).unwrap().lines().count() - 1;
    assert_eq!(Some(rows as u64), top_1["count"].as_u64());
    assert_eq!(fs::read_to_string(out.join("classes.csv")).unwrap().lines().count(), 9);
    assert!(fs::read_to_string(out.join("recipe.toml")).unwrap().contains("kind = \"classification\""));

    // Again, with another number of threads and pictures at once: the same bytes.
    let names = ["figures.json", "predictions.csv", "classes.csv", "confusion.png", "report.html"];
    let before = names.map(|name| fs::read(out.join(name)).unwrap());
    succeed(&mut evaluate("vit/imagenet_val_mini", &out, &["batch_size=7", "--threads", "1"]));
    assert_eq!(names.map(|name| fs::read(out.join(name)).unwrap()), before);
    let resolved = succeed(&mut evaluate("vit/imagenet_val_mini", Path::new("x"), &["--dry-run"])).stdout;
    assert!(resolved.contains("path = \"x/prepared/held_out\""), "{resolved}");
}

#[test]
fn the_quickstarts_clip_is_judged_in_three_ways() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let small = "prepare.dataset.drawings=60";
    let zero_shot = at("zero_shot");
    let told = succeed(&mut evaluate("clip/imagenet_zeroshot_mini", &zero_shot, &[&clip(), small]));
    assert!(told.stdout.contains("Zero-shot CLIP accuracy Top-1: 0.") && told.stdout.contains("; Top-5: "), "{told}");
    assert!(figure(&zero_shot, "zero_shot", "top_5")["value"].as_f64() > Some(0.3));

    let retrieval = at("retrieval");
    succeed(&mut evaluate("clip/coco_retrieval_mini", &retrieval, &[&clip(), small]));
    for variant in ["image_to_text", "text_to_image"] {
        let recall = |k: usize| figure(&retrieval, variant, &format!("recall_at_{k}"))["value"].as_f64().unwrap();
        assert!(recall(1) <= recall(5) && recall(5) <= recall(10) && recall(10) <= 1.0, "{variant}");
    }
    assert!(!retrieval.join("predictions.csv").exists());

    let probe = at("probe");
    succeed(&mut evaluate(
        "clip/linear_probe_mini",
        &probe,
        &[&clip(), small, "train.class=json.colour", "data.class=json.colour"],
    ));
    assert!(figure(&probe, "linear_probe", "top_1")["value"].as_f64() > Some(0.2));
}

#[test]
fn evaluations_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refused = |recipe: &str, more: &[&str], code: i32, parts: &[&str]| {
        fail(&mut evaluate(recipe, &out, more), code, parts);
        assert!(!out.join("recipe.toml").exists(), "{recipe} {more:?} has taken the folder");
    };
    refused("vit/imagenet_vall", &[], 2, &["there is no recipe `evaluation/vit/imagenet_vall`", "imagenet_val"]);
    refused("training/clip/quickstart", &[], 2, &["no recipe that `evaluate` follows", "its `kind` is `clip`"]);
    refused("vit/imagenet_val", &[], 2, &["`model` is missing", "model=PATH"]);
    refused("vit/imagenet_val", &["--follow"], 2, &["--follow is of recipes that draw pictures"]);
    refused("vit/imagenet_val", &["ks=[0]"], 2, &["`ks`", "at least 1"]);
    refused("vit/imagenet_val", &["templates=[\"openai\"]"], 2, &["`templates`", "is of `zero_shot`"]);
    refused(
        "clip/imagenet_zeroshot",
        &["classes=[\"cat\"]", &clip()],
        2,
        &["`cat`", "no built-in list (imagenet) and no file"],
    );
    refused("clip/imagenet_zeroshot", &["line=\"{top_7}\""], 2, &["`line`", "{top_1}, {top_5}"]);
    refused("clip/imagenet_zeroshot", &["bach_size=3"], 2, &["did you mean `batch_size`?"]);
    let classifier = format!("model={:?}", text(&vit().classifier()));
    refused(
        "vit/imagenet_val_mini",
        &[&classifier, "classes=[\"a\", \"b\"]"],
        2,
        &["2 classes are named", "tells 8 apart"],
    );
    refused("clip/coco_retrieval_mini", &[&classifier], 2, &["is no CLIP model with both towers; it holds classifier"]);
    let one = folder.path().join("one");
    fs::create_dir_all(one.join("cat")).unwrap();
    refused(
        "vit/imagenet_val_mini",
        &[&classifier, &format!("data.path={:?}", text(&one)), "data.class=cls"],
        1,
        &["no images"],
    );
}

/// A folder of two pictures.
fn pictures() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let drawn = finished().out().join("pictures/trained");
    let mut files: Vec<PathBuf> = fs::read_dir(drawn).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for (name, file) in
        ["a.png", "b.PNG"].iter().zip(files.iter().filter(|file| file.extension().is_some_and(|e| e == "png")))
    {
        fs::copy(file, folder.path().join(name)).unwrap();
    }
    folder
}

#[test]
fn pictures_are_classified_by_a_head_and_by_clip() {
    let folder = pictures();
    let classify = |model: &Path, more: &[&str]| {
        let mut command = calotype(&["classify"]);
        command.arg(model).arg(folder.path()).args(more);
        command
    };
    let head = vit().classifier();
    let told = succeed(&mut classify(&head, &["--top", "3", "--json"])).stdout;
    let rows: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2, "{told}");
    assert_eq!(rows[0]["image"], text(&folder.path().join("a.png")));
    let probabilities: Vec<f64> =
        rows[0]["classes"].as_array().unwrap().iter().map(|guess| guess["probability"].as_f64().unwrap()).collect();
    assert!(probabilities.len() == 3 && probabilities.is_sorted_by(|a, b| a >= b), "{told}");

    let clip = finished().out().join("clip");
    let colours = ["--classes", "red", "--classes", "blue", "--template", "a picture on a {} background"];
    let told = succeed(&mut classify(&clip, &colours)).stdout;
    assert_eq!(told.lines().count(), 2 * 3, "{told}");
    assert!(told.contains("a.png\n  0.") && told.contains("  red") && told.contains("  blue"), "{told}");
    let table = folder.path().join("classes.csv");
    let to_table = |file: &Path| classify(&clip, &[&colours[..], &["--top", "1", "--csv", text(file)]].concat());
    let picture = folder.path().join("a.png");
    fail(&mut to_table(&picture), 2, &["--csv", "a.png: something is there already that is not a table of classes"]);
    // An earlier table is replaced.
    for _ in 0..2 {
        let told = succeed(&mut to_table(&table)).stdout;
        assert!(told.starts_with("2 pictures in "), "{told}");
    }
    let both = succeed(to_table(&table).arg("--json"));
    let rows = both.stdout.lines().filter(|line| line.starts_with("{\"image\":")).count();
    assert!(rows == 2 && both.stdout.lines().count() == 2 && both.stderr.contains("2 pictures in "), "{both}");
    let table = fs::read_to_string(table).unwrap();
    assert!(table.starts_with("image,rank,class,name,probability\n") && table.lines().count() == 3, "{table}");

    fail(&mut classify(&clip, &[]), 2, &["a CLIP model needs names of classes", "--classes imagenet"]);
    fail(
        &mut classify(&clip, &[&colours[..], &["--preparation", "nemo"]].concat()),
        2,
        &["--preparation is of classifiers"],
    );
    fail(&mut classify(&head, &["--template", "{}"]), 2, &["--template is of CLIP models"]);
    fail(&mut classify(&head, &["--classes", "none.txt"]), 2, &["`none.txt` is no list of class names"]);
    let parts = ["(ViT, EfficientNet-Lite), and no CLIP model with both towers; it holds unet"];
    fail(&mut classify(&finished().out().join("unet"), &[]), 2, &parts);
    fs::write(folder.path().join("c.jpg"), "no picture").unwrap();
    let message = fail(&mut classify(&head, &["--json"]), 1, &["1 of 3 pictures cannot be read"]);
    assert!(!message.contains("a.png"), "{message}");
    let empty = tempfile::tempdir().unwrap();
    let mut command = calotype(&["classify"]);
    fail(command.arg(&head).arg(empty.path()), 1, &["has no pictures; known extensions: png"]);
}

/// What the commands say of models in other layouts is what they say of the folder that training wrote.
#[test]
fn other_layouts_say_the_same() {
    let folder = pictures();
    let run = |command: &str, model: &Path, more: &[&str]| {
        let mut command = calotype(&[command]);
        command.arg(model).args(more);
        succeed(&mut command).stdout
    };
    let image = folder.path().join("a.png");
    let clip = finished().out().join("clip");
    let colours = ["--classes", "red", "--classes", "blue", "--json"];
    let texts = ["--image", text(&image), "--text", "a red book", "--text", "a cat", "--json"];
    for (model, name) in [(&clip, "clip.nemo"), (&vit().classifier(), "vit.nemo")] {
        let nemo = folder.path().join(name);
        let told = succeed(calotype(&["convert"]).arg(model).arg(&nemo).args(["--to", "nemo"])).stdout;
        assert!(told.contains("tensors") && told.contains(name), "{told}");
        let report = succeed(calotype(&["inspect"]).arg(&nemo)).stdout;
        assert!(report.contains("NeMo"), "{report}");
        let classes = |model: &Path| match name {
            "clip.nemo" => run("classify", model, &[&[text(&image)], &colours[..]].concat()),
            _ => run("classify", model, &[text(&image), "--json", "--batch", "1"]),
        };
        assert_eq!(classes(&nemo), classes(model));
    }
    assert_eq!(run("similarity", &folder.path().join("clip.nemo"), &texts), run("similarity", &clip, &texts));
    let mut wrong = calotype(&["convert"]);
    wrong.arg(finished().out().join("vae")).arg(folder.path().join("vae.nemo")).args(["--to", "nemo"]);
    fail(&mut wrong, 2, &["cannot be written as nemo", "ViT or a whole CLIP"]);
}

#[test]
fn pictures_and_texts_are_compared() {
    let folder = pictures();
    let similarity = |more: &[&str]| {
        let mut command = calotype(&["similarity"]);
        command.arg(finished().out().join("clip")).arg("--image").arg(folder.path()).args(more);
        command
    };
    let texts = ["--text", "a cat on a red background", "--text", "a blue book"];
    let told = succeed(&mut similarity(&[&texts[..], &["--json"]].concat())).stdout;
    let rows: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 4, "{told}");
    let one_by_one =
        succeed(&mut similarity(&[&texts[..], &["--json", "--batch", "1", "--threads", "1"]].concat())).stdout;
    assert_eq!(one_by_one, told);
    for pair in rows.chunks(2) {
        assert_eq!(pair[0]["image"], pair[1]["image"]);
        let sum: f64 = pair.iter().map(|row| row["probability"].as_f64().unwrap()).sum();
        assert!(
            (sum - 1.0).abs() < 1e-9 && pair.iter().all(|row| row["cosine"].as_f64().unwrap().abs() <= 1.0),
            "{told}"
        );
    }
    let file = folder.path().join("texts.txt");
    fs::write(&file, "a cat on a red background\n\na blue book\n").unwrap();
    let told = succeed(&mut similarity(&["--texts", text(&file)])).stdout;
    assert_eq!(told.lines().count(), 2 * 3, "{told}");
    assert!(told.contains("cosine") && told.contains("probability"), "{told}");
    let long = "very ".repeat(100);
    let told = succeed(&mut similarity(&["--text", &long]));
    assert!(told.stderr.contains("tokens of `very"), "{told}");
    fail(&mut similarity(&[]), 2, &["there is no text", "--text"]);
    let message = fail(&mut similarity(&["--texts", "none.txt"]), 2, &["cannot read none.txt"]);
    assert!(!message.contains("os error"), "{message}");
    let mut command = calotype(&["similarity"]);
    command.arg(vit().classifier()).arg("--image").arg(folder.path()).args(["--text", "x"]);
    fail(&mut command, 2, &["is no CLIP model with both towers; it holds classifier"]);
}
