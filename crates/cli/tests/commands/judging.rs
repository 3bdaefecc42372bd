//! `evaluate pictures` and `evaluate compare`.

use crate::common::{calotype, fail, finished, succeed, text, write_inception};
use calotype_data::image::{PngEffort, RgbImage};
use calotype_data::npz::FeatureStatistics;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Pictures of noise around a level.
fn write_pictures(folder: &Path, count: usize, level: usize) {
    fs::create_dir(folder).unwrap();
    for number in 0..count {
        let (width, height) = (24 + number, 40);
        let noise = (0..3 * width * height).map(|i| (level + i * (37 + number) % 90) as u8).collect();
        let png = RgbImage::new(width, height, noise).unwrap().encode_png(PngEffort::Fast).unwrap();
        fs::write(folder.join(format!("{number}.png")), png).unwrap();
    }
}

fn figures(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn pictures_are_judged_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_pictures(&at("drawn"), 5, 20);
    write_pictures(&at("other"), 5, 60);
    write_pictures(&at("real"), 4, 100);
    write_inception(&at("inception.safetensors"));
    let judge = |pictures: &str, more: &[&str]| {
        let mut command = calotype(&["evaluate", "pictures"]);
        command.arg(at(pictures)).arg("--inception").arg(at("inception.safetensors")).args(more);
        command
    };
    let real = at("real");
    let real = text(&real);
    let both =
        ["--reference", real, "--metrics", "fid,kid", "--fid-variant", "pytorch-fid,clean-fid", "--subset-size", "3"];
    let kept = at("kept");
    let json = succeed(judge("drawn", &both).args(["--json", "--keep", text(&kept)])).stdout;
    let found = figures(&json);
    let named: Vec<_> = found.iter().map(|f| (f["metric"].as_str().unwrap(), f["variant"].as_str().unwrap())).collect();
    // The weights are no published ones.
    assert_eq!(named, [("fd", "pytorch-fid"), ("fd", "clean-fid"), ("kd", "clean-fid")]);
    for figure in &found {
        assert_eq!(figure["count"], 5);
        assert!(figure["value"].is_number());
        assert_eq!(figure["fingerprint"]["weights"].as_str().unwrap().len(), 64);
    }
    // What was kept is gone on with, and any number of threads gives the same bits.
    assert_eq!(succeed(judge("drawn", &both).args(["--json", "--keep", text(&kept)])).stdout, json);
    assert_eq!(succeed(judge("drawn", &both).args(["--json", "--threads", "1"])).stdout, json);
    let told = succeed(&mut judge("drawn", &both));
    assert!(told.stderr.contains("fd is not FID") && told.stdout.contains("of 5 pictures"), "{told}");

    let same = succeed(&mut judge("real", &["--reference", real])).stderr;
    assert!(same.contains("these are the pictures that are judged") && !told.stderr.contains("equal sets"), "{same}");

    let stats = at("real.npz");
    let save = || judge("real", &["--reference", real, "--save-statistics"]);
    let weights = at("inception.safetensors");
    let before = fs::read(&weights).unwrap();
    let parts = ["--save-statistics", "inception.safetensors: something is there already that is not an archive of mu"];
    fail(save().arg(&weights), 2, &parts);
    assert!(fs::read(&weights).unwrap() == before);
    fail(&mut judge("real", &["--reference", real, "--keep", real]), 2, &["holds images (0.png)", "--keep"]);
    for _ in 0..2 {
        succeed(save().arg(&stats));
    }
    let of_file = figures(&succeed(&mut judge("drawn", &["--reference", text(&stats), "--json"])).stdout);
    let (of_file, of_pictures) = (of_file[0]["value"].as_f64().unwrap(), found[0]["value"].as_f64().unwrap());
    assert!((of_file - of_pictures).abs() <= 1e-9 * of_pictures, "{of_file} {of_pictures}");

    fail(
        &mut judge("drawn", &["--reference", text(&stats), "--fid-variant", "clean-fid"]),
        1,
        &["real.npz", "inception/pytorch-fid", "inception/clean-fid"],
    );
    let plain = at("plain.npz");
    FeatureStatistics::read(&stats).unwrap().write(&plain).unwrap();
    let told = succeed(&mut judge("drawn", &["--reference", text(&plain)]));
    assert!(told.stderr.contains("plain.npz does not say of which network"), "{told}");

    fs::write(at("drawn.json"), &json).unwrap();
    fs::write(at("other.json"), succeed(judge("other", &both).arg("--json")).stdout).unwrap();
    let fewer =
        ["--reference", real, "--metrics", "fid,kid", "--fid-variant", "pytorch-fid,clean-fid", "--subset-size", "2"];
    fs::write(at("fewer.json"), succeed(judge("drawn", &fewer).arg("--json")).stdout).unwrap();
    let compare = |left: &str, right: &str| {
        let mut command = calotype(&["evaluate", "compare"]);
        command.arg(at(left)).arg(at(right));
        command
    };
    let compared = succeed(&mut compare("drawn.json", "other.json")).stdout;
    assert_eq!(compared.lines().count(), 3, "{compared}");
    fail(
        &mut compare("drawn.json", "fewer.json"),
        2,
        &["kd (clean-fid) does not compare", "settings.subset_size: `3` and `2`"],
    );
    let message = fail(&mut compare("drawn.json", "nothing.json"), 2, &["nothing.json"]);
    assert!(!message.contains("os error"), "{message}");
    fs::write(at("letter.txt"), "Dear all").unwrap();
    fail(&mut compare("drawn.json", "letter.txt"), 1, &["letter.txt: is no JSON (line 1, column 1)", "--json"]);
    fail(&mut compare("drawn.json", "real"), 2, &["real: a folder without figures.json"]);
    fail(&mut compare("drawn.json", "real.npz"), 1, &["real.npz"]);
}

#[test]
fn what_cannot_be_judged_is_told_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_pictures(&at("drawn"), 2, 20);
    fs::create_dir(at("empty")).unwrap();
    let drawn = at("drawn");
    let drawn = text(&drawn);
    let judge = |more: &[&str]| {
        let mut command = calotype(&["evaluate", "pictures"]);
        command.args(more);
        command
    };
    fail(&mut judge(&[drawn]), 2, &["fid compares with other pictures", "--reference"]);
    fail(&mut judge(&[drawn, "--reference", drawn]), 2, &["--inception", "pt_inception-2015-12-05-6726825d.pth"]);
    fail(&mut judge(&[drawn, "--metrics", "fit"]), 2, &["`fit` is no metric", "kid"]);
    fail(&mut judge(&[drawn, "--reference", drawn, "--fid-variant", "x"]), 2, &["`x` is no variant", "clean-fid"]);
    // What changes nothing, or is not there, is told, whatever the metrics look at.
    let network = at("network");
    fs::write(&network, "").unwrap();
    let fd = [drawn, "--reference", drawn, "--metrics", "fd", "--features", text(&network)];
    for (more, parts) in [
        (["--clip", "nope"], ["--clip nope", "there is no such file"]),
        (["--inception", "nope.pth"], ["--inception nope.pth", "there is no such file"]),
        (["--clip", text(&network)], ["--clip has no effect", "--metrics fd"]),
        (["--subsets", "5"], ["--subsets has no effect", "--metrics fd"]),
        (["--splits", "5"], ["--splits has no effect", "--metrics fd"]),
        (["--clip-preparation", "cmmd"], ["--clip-preparation has no effect", "--metrics fd"]),
        (["--fid-variant", "clean-fid"], ["--fid-variant has no effect", "--metrics fd"]),
        (["--captions", "c.txt"], ["--captions has no effect", "--metrics fd"]),
    ] {
        fail(judge(&fd).args(more), 2, &parts);
    }
    let score = [drawn, "--metrics", "clip-score", "--clip", text(&network), "--reference", drawn];
    fail(&mut judge(&score), 2, &["--reference has no effect", "--metrics clip-score"]);
    let absent = [drawn, "--reference", drawn, "--inception", "nope.pth"];
    fail(&mut judge(&absent), 2, &["--inception nope.pth", "there is no such file"]);
    fs::write(at("short.txt"), "one\n").unwrap();
    let (short, absent) = (at("short.txt"), at("absent.txt"));
    let captions = |file: &Path, parts: &[&str]| {
        fail(&mut judge(&[drawn, "--metrics", "clip-score", "--clip", drawn, "--captions", text(file)]), 2, parts);
    };
    captions(&short, &["short.txt: 1 lines for 2 pictures"]);
    captions(&absent, &["absent.txt"]);
    captions(Path::new(drawn), &["drawn: is a folder, and captions are in a file"]);
    write_pictures(&at("one"), 1, 20);
    let one = at("one");
    let few = [text(&one), "--reference", drawn, "--metrics", "fd", "--features", text(&network)];
    fail(&mut judge(&few), 2, &["holds 1 picture, and fd compares covariances"]);
    let vae = finished().out().join("vae");
    let message = fail(
        &mut judge(&[drawn, "--metrics", "clip-score", "--clip", text(&vae)]),
        2,
        &["vae: is no CLIP model", "holds vae"],
    );
    assert!(!message.contains("image_encoder"), "{message}");
    let empty = at("empty");
    fail(&mut judge(&[text(&empty), "--reference", drawn]), 1, &["empty"]);
    let two = ["--reference", "x.npz", "--fid-variant", "tf,clean-fid"];
    fail(judge(&[drawn]).args(two), 2, &["x.npz", "inception/clean-fid and inception/tf"]);
    let rows = ["--reference", "x.npz", "--metrics", "kid"];
    fail(judge(&[drawn]).args(rows), 2, &["x.npz", "kid needs the pictures"]);
}
