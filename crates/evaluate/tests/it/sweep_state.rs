//! What a sweep finds in its folder: networks and pictures that were exchanged, files that were damaged, changed or removed.

use crate::networks::clip_of_gain;
use crate::support::write_pictures;
use crate::sweep::{Place, evaluate};
use calotype_evaluate::sweep::{SweepError, SweepRecipe};
use calotype_evaluate::{Figure, differences};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A sweep of two scales, judged by a tiny CLIP against a folder of pictures.
struct Judged {
    place: Place,
}

impl Judged {
    fn new() -> Self {
        let judged = Self { place: Place::new() };
        fs::create_dir(judged.at("clip")).unwrap();
        clip_of_gain(&judged.at("clip"), 1.0);
        judged.write_reference("a");
        judged
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.at(name)
    }

    fn write_reference(&self, kind: &str) {
        let names: Vec<String> = (0..6).map(|number| format!("{number}")).collect();
        let made = names.iter().map(|name| (&**name, format!("{kind}.{name}"), (32, 32)));
        write_pictures(&self.at("reference"), made);
    }

    fn recipe(&self) -> SweepRecipe {
        self.place.recipe(|recipe| {
            let path = |name: &str| Some(self.at(name).to_str().unwrap().to_owned());
            recipe.sampler.guidance = vec![2.0, 4.0];
            recipe.judge.metrics = ["fd", "clip_score"].map(str::to_owned).to_vec();
            (recipe.judge.clip, recipe.judge.features) = (path("clip"), path("clip"));
            recipe.judge.reference = path("reference");
        })
    }

    fn out(&self) -> PathBuf {
        self.at("out")
    }

    /// The figures of the first scale.
    fn figures(&self) -> Vec<Figure> {
        let end = evaluate(&self.recipe(), &self.out()).unwrap();
        assert_eq!((end.scored, end.waiting), (2, 0));
        end.figures.into_iter().next().unwrap().1
    }

    fn refused(&self, parts: &[&str]) -> SweepError {
        let error = evaluate(&self.recipe(), &self.out()).unwrap_err();
        let told = error.to_string();
        parts.iter().for_each(|part| assert!(told.contains(part), "{part}: {told}"));
        error
    }

    /// The features of a point's block.
    fn block(&self, point: &str, block: &str) -> PathBuf {
        let sets = fs::read_dir(self.out().join("features")).unwrap().map(|entry| entry.unwrap().path());
        let mut found = sets.map(|set| set.join(point).join(block)).filter(|folder| folder.is_dir());
        found.next().unwrap()
    }

    fn scores(&self, point: &str) -> PathBuf {
        self.out().join(format!("scores/{point}.json"))
    }
}

fn exchange(left: &Path, right: &Path) {
    let aside = left.with_extension("aside");
    fs::rename(left, &aside).unwrap();
    fs::rename(right, left).unwrap();
    fs::rename(&aside, right).unwrap();
}

#[test]
fn a_judge_that_was_exchanged_is_refused() {
    let judged = Judged::new();
    let figures = judged.figures();
    let own = &figures[0].fingerprint.network.weights;
    clip_of_gain(&judged.at("clip"), 1.5);
    let error = judged.refused(&["judge.features", "weights", own, "put the former one back", "--out"]);
    assert!(error.is_usage());
    // Whether or not there are figures.
    fs::remove_dir_all(judged.out().join("scores")).unwrap();
    judged.refused(&["judge.features", own]);
    clip_of_gain(&judged.at("clip"), 1.0);
    assert_eq!(judged.figures(), figures);
    fs::rename(judged.at("clip"), judged.at("away")).unwrap();
    judged.refused(&["judge.features", "there is nothing at"]);
    // Another one under its own name judges all anew.
    let mut recipe = judged.recipe();
    clip_of_gain(&judged.at("away"), 1.5);
    let path = Some(judged.at("away").to_str().unwrap().to_owned());
    (recipe.judge.clip, recipe.judge.features) = (path.clone(), path);
    let end = evaluate(&recipe, &judged.out()).unwrap();
    assert_eq!(end.waiting, 0);
    assert!(end.figures.iter().all(|(_, figures)| figures[0].fingerprint.network.weights != *own));
}

#[test]
fn a_reference_that_was_replaced_is_compared_with_anew() {
    let judged = Judged::new();
    let before = judged.figures();
    judged.write_reference("b");
    let after = judged.figures();
    assert_ne!(before[0].value, after[0].value);
    let fields: Vec<String> = differences(&before[0], &after[0]).into_iter().map(|found| found.field).collect();
    assert_eq!(fields, ["reference"]);
    judged.write_reference("a");
    assert_eq!(judged.figures(), before);
}

#[test]
fn pictures_that_nothing_tells_of_are_refused() {
    let judged = Judged::new();
    judged.figures();
    let drawing = judged.out().join("drawing.json");
    let text = fs::read(&drawing).unwrap();
    fs::remove_file(&drawing).unwrap();
    let error = judged.refused(&["drawing.json", "this file is gone", "pictures", "copy it back", "--out"]);
    assert!(error.is_usage());
    fs::write(&drawing, "{").unwrap();
    judged.refused(&["drawing.json", "the file is damaged"]);
    fs::write(&drawing, text).unwrap();
    judged.figures();
    // And so are those of one point.
    for folder in ["features", "scores"] {
        fs::remove_dir_all(judged.out().join(folder)).unwrap();
    }
    fs::remove_file(judged.out().join("pictures/4.json")).unwrap();
    fs::remove_file(judged.out().join("pictures/4/image000001.png")).unwrap();
    judged.refused(&["4.json", "this file is gone", "copy it back, or remove them"]);
    fs::remove_dir_all(judged.out().join("pictures/4")).unwrap();
    judged.figures();
}

#[test]
fn figures_that_were_changed_are_refused() {
    let judged = Judged::new();
    judged.figures();
    let path = judged.scores("2");
    let text = fs::read(&path).unwrap();
    let mut scores: Value = serde_json::from_slice(&text).unwrap();
    scores["figures"][0][1]["value"] = 0.5.into();
    fs::write(&path, scores.to_string()).unwrap();
    let error = judged.refused(&["2.json", "was changed", "its checksum is", "remove the file"]);
    assert!(error.is_usage());
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    judged.refused(&["2.json", "the file is damaged", "remove the file"]);
    fs::remove_file(&path).unwrap();
    judged.figures();
    assert!(fs::read(&path).unwrap() == text);
    exchange(&path, &judged.scores("4"));
    judged.refused(&["2.json", "the figures of 4: files were exchanged"]);
    exchange(&path, &judged.scores("4"));
    judged.figures();
}

#[test]
fn features_that_were_damaged_exchanged_or_half_deleted_are_refused() {
    let judged = Judged::new();
    judged.figures();
    let text = fs::read(judged.scores("2")).unwrap();
    let (first, second) = (judged.block("2", "00000"), judged.block("4", "00000"));
    fs::remove_file(judged.scores("2")).unwrap();
    exchange(&first, &second);
    judged.refused(&["state.json", "folders were exchanged", "remove "]);
    exchange(&first, &second);
    let rows = first.join("custom.auto.features.f32");
    let kept = fs::read(&rows).unwrap();
    let mut flipped = kept.clone();
    flipped[5] ^= 1;
    fs::write(&rows, flipped).unwrap();
    judged.refused(&["custom.auto.features.f32", "the file is damaged", "remove "]);
    fs::write(&rows, kept).unwrap();
    fs::remove_file(first.join("state.json")).unwrap();
    judged.refused(&["00000", "no saved states", "remove "]);
    fs::remove_dir_all(&first).unwrap();
    judged.figures();
    assert!(fs::read(judged.scores("2")).unwrap() == text);
}
