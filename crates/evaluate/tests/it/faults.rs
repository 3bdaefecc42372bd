//! Degenerate input, as docs/evaluation.md tells it.

use crate::support::{networks, picture, write_pictures};
use calotype_data::Control;
use calotype_data::image::PngEffort;
use calotype_data::npz::FeatureStatistics;
use calotype_evaluate::metrics::{self, MetricSettings, Metrics};
use calotype_evaluate::{
    EvaluateError, FeatureKey, Figure, Pass, PassOptions, Picture, Pictures, Reference, figures, states_of, statistics,
};
use std::fs;
use std::path::Path;

fn opened(names: &[&str]) -> Metrics {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    metrics::open(&names, &MetricSettings { subset_size: 4, ..MetricSettings::default() }).unwrap()
}

/// Figures of one folder against another.
fn judged(metrics: &Metrics, folder: &Path, reference: &Path) -> Result<Vec<Figure>, EvaluateError> {
    let networks = networks();
    let states = |folder: &Path| {
        let pictures = Pictures::open(folder.to_str().unwrap())?;
        states_of(&pictures, metrics, &networks, None, &mut Control::default())
    };
    let reference = Reference::Pictures(states(reference)?);
    figures(metrics, &states(folder)?, Some(&reference))
}

#[test]
fn few_equal_and_absent_pictures() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let make = |name: &str, count: usize| {
        let names: Vec<String> = (0..count).map(|n| format!("{n}")).collect();
        write_pictures(&at(name), names.iter().map(|n| (&**n, format!("{name}.{n}"), (30, 40))));
    };
    make("one", 1);
    make("few", 5);
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("texts")).unwrap();
    fs::write(at("texts").join("a.txt"), "no picture").unwrap();

    let fid = opened(&["fid"]);
    // Fewer pictures than features: covariances are singular, the distance of equal sets is zero all the same.
    let same = judged(&fid, &at("few"), &at("few")).unwrap()[0].value;
    assert!((0.0..1e-9).contains(&same), "{same}");
    let error = judged(&fid, &at("one"), &at("few")).unwrap_err().to_string();
    assert!(error.contains("one holds 1 picture") && error.contains("at least 2"), "{error}");
    for (name, expected) in [("empty", "images"), ("texts", "images"), ("nowhere", "nowhere")] {
        let error = judged(&fid, &at(name), &at("few")).unwrap_err();
        assert!(matches!(error, EvaluateError::Data(_)), "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains(expected), "{error}");
    }
    // A subset of four needs four pictures on both sides.
    let error = judged(&opened(&["kid"]), &at("one"), &at("few")).unwrap_err().to_string();
    assert!(error.starts_with("kid (torch-fidelity)"), "{error}");
    let found = judged(&opened(&["kid"]), &at("few"), &at("few")).unwrap();
    assert!(found[0].value.is_finite() && found[0].deviation.is_some());
}

#[test]
fn damaged_files_are_named() {
    let root = tempfile::tempdir().unwrap();
    let png = picture("damaged", 30, 20).encode_png(PngEffort::Fast).unwrap();
    for (name, bytes) in [("cut", &png[..png.len() / 2]), ("text", b"no picture"), ("nothing", b"")] {
        let folder = root.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.png"), &png).unwrap();
        fs::write(folder.join("damaged-one.png"), bytes).unwrap();
        let error = judged(&opened(&["fid"]), &folder, &folder).unwrap_err();
        assert!(matches!(error, EvaluateError::Data(_)), "{error}");
        let told = error.to_string();
        assert!(told.contains("damaged-one") && told.contains(folder.to_str().unwrap()), "{told}");
    }
}

#[test]
fn captions_are_matched_or_missed() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("pictures");
    write_pictures(&folder, [("a", "a".to_owned(), (9, 9)), ("b.c", "b".to_owned(), (9, 9))]);
    let open = |file: &str, text: &str| {
        let path = root.path().join(file);
        fs::write(&path, text).unwrap();
        Pictures::open(folder.to_str().unwrap()).unwrap().with_captions(&path)
    };
    let captions = |pictures: &Pictures| (0..2).map(|n| pictures.get(n).unwrap().caption).collect::<Vec<_>>();
    let both = [Some("one".to_owned()), Some("two, too".to_owned())];
    assert_eq!(captions(&open("lines.txt", "one\ntwo, too\n").unwrap()), both);
    assert_eq!(captions(&open("table.csv", "file_name,caption\nb.c.png,\"two, too\"\na.png,one\n").unwrap()), both);
    let rows = "{\"file_name\": \"a.png\", \"text\": \"one\"}\n{\"file_name\": \"b.c.png\", \"text\": \"two, too\"}\n";
    assert_eq!(captions(&open("table.jsonl", rows).unwrap()), both);
    for (file, text, expected) in [
        ("short.txt", "one\n", "1 lines for 2 pictures"),
        ("long.txt", "one\ntwo\nthree\n", "3 lines for 2 pictures"),
        ("no.csv", "file,words\na.png,one\n", "`file_name` and `caption`"),
        ("twice.csv", "file_name,caption\na.png,one\na.png,two\n", "row 2: `a.png` has a caption already"),
    ] {
        let error = open(file, text).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains(file), "{error}");
    }
    let partly = open("partly.csv", "file_name,caption\na.png,one\n").unwrap();
    assert_eq!(captions(&partly), [Some("one".to_owned()), None]);
    assert_ne!(partly.digest(), Pictures::open(folder.to_str().unwrap()).unwrap().digest());
}

#[test]
fn empty_captions_and_those_of_no_picture_are_told() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("pictures");
    write_pictures(&folder, [("a", "a".to_owned(), (9, 9)), ("b", "b".to_owned(), (9, 9))]);
    let open = || Pictures::open(folder.to_str().unwrap()).unwrap();
    let told = |file: &str, text: &str| {
        let path = root.path().join(file);
        fs::write(&path, text).unwrap();
        open().with_captions(&path).unwrap().told_of_captions().unwrap()
    };
    assert!(told("full.txt", "one\ntwo\n").is_empty());
    assert!(told("full.csv", "file_name,caption\na.png,one\nb.png,two\n").is_empty());
    assert_eq!(told("half.txt", "one\n \n"), ["1 empty, such as that of b; it is judged as any other"]);
    assert_eq!(
        told("more.csv", "file_name,caption\na.png,one\nb.png,\nc.png,three\nd.png,four\n"),
        ["1 empty, such as that of b; it is judged as any other", "2 of no picture, such as that of `c`"]
    );
    fs::write(folder.join("a.txt"), "").unwrap();
    fs::write(folder.join("b.txt"), "two").unwrap();
    assert_eq!(open().told_of_captions().unwrap(), ["1 empty, such as that of a; it is judged as any other"]);
}

#[cfg(unix)]
#[test]
fn what_is_no_file_or_has_no_name_is_counted() {
    use std::os::unix::ffi::OsStrExt;
    let root = tempfile::tempdir().unwrap();
    write_pictures(root.path(), [("a", "a".to_owned(), (9, 9))]);
    let at = |name: &[u8]| root.path().join(std::ffi::OsStr::from_bytes(name));
    std::os::unix::fs::symlink("/dev/zero", at(b"zero.png")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at(b"socket.jpg")).unwrap();
    std::os::unix::fs::symlink("/dev/null", at(b"notes.txt")).unwrap();
    fs::copy(at(b"a.png"), at(b"\xff.png")).unwrap();
    let pictures = Pictures::open(root.path().to_str().unwrap()).unwrap();
    assert_eq!(pictures.len(), 1);
    let told = pictures.left_out().join("\n");
    assert!(told.contains("left out: 2 that are no files, but pipes, sockets or devices"), "{told}");
    assert!(told.contains("left out: 1 file name is not UTF-8"), "{told}");
    assert_eq!(pictures.told(), pictures.left_out());
}

fn clean_fid() -> MetricSettings {
    MetricSettings { variants: vec!["clean-fid".to_owned()], ..MetricSettings::default() }
}

#[test]
fn statistics_in_files() {
    let root = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..5).map(|n| format!("{n}")).collect();
    let folder = root.path().join("pictures");
    write_pictures(&folder, names.iter().map(|n| (&**n, format!("npz.{n}"), (30, 40))));
    let fid = opened(&["fid"]);
    let pictures = Pictures::open(folder.to_str().unwrap()).unwrap();
    let states = states_of(&pictures, &fid, &networks(), None, &mut Control::default()).unwrap();
    let path = root.path().join("stats.npz");
    let key = FeatureKey::new("inception", "pytorch-fid");
    statistics::write_state(&states[&key], &path).unwrap();
    let reference = Reference::read_statistics(&path).unwrap();
    let figure = &figures(&fid, &states, Some(&reference)).unwrap()[0];
    assert!((0.0..1e-9).contains(&figure.value));
    assert_eq!(figure.fingerprint.reference.len(), 64);
    assert_eq!(reference.told(), None, "our own say of which features they are");
    let clean = metrics::open(&["fid".to_owned()], &clean_fid()).unwrap();
    let other = states_of(&pictures, &clean, &networks(), None, &mut Control::default()).unwrap();
    let error = figures(&clean, &other, Some(&reference)).unwrap_err().to_string();
    assert!(error.contains("stats.npz") && error.contains("inception/pytorch-fid"), "{error}");
    assert!(error.contains("inception/clean-fid") && error.contains("or the pictures themselves"), "{error}");
    let network = states[&key].network();
    let mut exchanged = network.clone();
    exchanged.weights = "00".to_owned();
    let error = reference.check(&key, &exchanged, 2048).unwrap_err().to_string();
    assert!(error.contains("another network") && error.contains(&network.weights), "{error}");
    let error = reference.check(&key, network, 64).unwrap_err().to_string();
    assert!(error.contains("of 2048 features") && error.contains("has 64"), "{error}");
    // What other programs write cannot say it, which is told.
    FeatureStatistics::read(&path).unwrap().write(&path).unwrap();
    let foreign = Reference::read_statistics(&path).unwrap();
    assert!(foreign.told().unwrap().contains("stats.npz does not say"));
    assert_eq!(figures(&clean, &other, Some(&foreign)).unwrap()[0].variant, "clean-fid");
    // Rows are wanted, an archive has none.
    let kid = opened(&["kid"]);
    let states = states_of(&pictures, &kid, &networks(), None, &mut Control::default()).unwrap();
    let error = figures(&kid, &states, Some(&reference)).unwrap_err().to_string();
    assert!(error.contains("needs its pictures"), "{error}");
    let error = figures(&kid, &states, None).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("--reference"), "{error}");

    let bad = |mean: Vec<f64>, covariance: Vec<f64>| {
        FeatureStatistics { mean, covariance }.write(&path).unwrap();
        Reference::read_statistics(&path).err().map(|error| error.to_string())
    };
    let error = bad(vec![1.0, f64::NAN], vec![0.0; 4]).unwrap();
    assert!(error.contains("`mu`: value 1 is NaN") && error.contains("stats.npz"), "{error}");
    assert!(bad(vec![1.0, 2.0], vec![0.0; 4]).is_none());
    for (mean, covariance, expected) in [
        ([1e300, 0.0], [1.0, 0.0, 0.0, 1.0], "too large"),
        ([1.0, 0.0], [1.0, 0.5, 0.25, 1.0], "not symmetric"),
        ([1.0, 0.0], [1.0, 2.0, 2.0, 1.0], "not positive semidefinite"),
        ([1.0, 0.0], [1.0, 0.0, 0.0, f64::INFINITY], "`sigma`: value 3 is inf"),
    ] {
        let error = bad(mean.to_vec(), covariance.to_vec()).unwrap();
        assert!(error.contains(expected) && error.contains("stats.npz"), "{error}");
    }
    let two = FeatureStatistics { mean: vec![1.0, 2.0], covariance: vec![0.0; 4] };
    two.write_with(&path, Some(("fingerprint.json", "{}".to_owned()))).unwrap();
    let error = Reference::read_statistics(&path).err().unwrap().to_string();
    assert!(error.contains("fingerprint.json") && error.contains("stats.npz"), "{error}");
    fs::write(&path, "no archive").unwrap();
    assert!(Reference::read_statistics(&path).err().unwrap().to_string().contains("stats.npz"));
}

#[test]
fn unknown_names_are_refused_with_those_that_there_are() {
    let settings = |variant: &str| MetricSettings { variants: vec![variant.to_owned()], ..MetricSettings::default() };
    let error = metrics::open(&["fit".to_owned()], &MetricSettings::default()).err().unwrap();
    assert!(error.is_usage() && error.to_string().contains("fid, kid"), "{error}");
    let error = metrics::open(&["fid".to_owned()], &settings("tensorflow")).err().unwrap();
    assert!(error.is_usage() && error.to_string().contains("clean-fid"), "{error}");
    // KID has no variant of this name, and takes its usual one.
    let found = metrics::open(&["kid".to_owned(), "fid".to_owned(), "fid".to_owned()], &settings("nemo")).unwrap();
    let variants: Vec<&str> = found.iter().map(|metric| metric.variant()).collect();
    assert_eq!(variants, ["torch-fidelity", "nemo"]);
    let mut networks = networks();
    networks.inception = None;
    let error = Pass::open(&found, &networks, &PassOptions::default()).err().unwrap();
    assert!(error.is_usage() && error.to_string().contains("--inception"), "{error}");
    let error = networks.open(&FeatureKey::new("resnet", "pytorch-fid")).err().unwrap();
    assert!(error.to_string().contains("resnet"), "{error}");
}

#[test]
fn a_picture_of_a_pixel_is_judged() {
    let metrics = opened(&["fid"]);
    let mut pass = Pass::open(&metrics, &networks(), &PassOptions::default()).unwrap();
    let image = |key: &str| picture(key, 1, 1);
    let picture = |key: &str| Picture { name: key.to_owned(), image: image(key), caption: None };
    pass.push(&[picture("x"), picture("y")]).unwrap();
    let states = pass.finish().unwrap();
    let statistics = states.values().next().unwrap().gaussian().unwrap();
    assert!(statistics.mean.iter().all(|value| value.is_finite()));
}
