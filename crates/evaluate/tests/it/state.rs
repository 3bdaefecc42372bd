//! Saved states that were damaged, changed, exchanged or half deleted, and pictures that were replaced.

use crate::support::{Quick, write_pictures};
use calotype_data::Control;
use calotype_evaluate::metrics::{self, MetricSettings, Metrics};
use calotype_evaluate::{
    EvaluateError, Figure, Pass, PassOptions, Pictures, Reference, States, differences, figures, judge, state,
};
use std::fs;
use std::path::Path;

const PICTURES: usize = 6;

/// One that keeps sums, and one that keeps rows.
fn both() -> Metrics {
    let settings = MetricSettings { subsets: 2, subset_size: 3, ..MetricSettings::default() };
    metrics::open(&["fid", "kid"].map(str::to_owned), &settings).unwrap()
}

/// Pictures of these names, whose pixels are of `kind`.
fn pictures(folder: &Path, kind: &str) -> Pictures {
    let names: Vec<String> = (0..PICTURES).map(|number| format!("{number}")).collect();
    write_pictures(folder, names.iter().map(|name| (&**name, format!("{kind}.{name}"), (4, 5))));
    Pictures::open(folder.to_str().unwrap()).unwrap()
}

fn pass(pictures: &Pictures, folder: Option<&Path>, of: &str) -> Result<States, EvaluateError> {
    let metrics = both();
    let options = PassOptions { folder, of, ..PassOptions::default() };
    let mut pass = Pass::of(Quick::of(&metrics), &metrics, &options)?;
    judge(pictures, 0..PICTURES, &mut pass, &mut Control::default())?;
    pass.finish()
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_is_named_with_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let pictures = pictures(&root.path().join("pictures"), "a");
    let edit = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let other = text.replace("\"count\": 6", "\"count\": 5");
        assert_ne!(text, other);
        fs::write(path, other).unwrap();
    };
    let older = |path: &Path| fs::write(path, "{\"inception/pytorch-fid\": {}}").unwrap();
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let (rows, sums) = ("inception.torch-fidelity.features.f32", "inception.pytorch-fid.sums.6");
    type Damage<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Damage<'_>, &str); 8] = [
        (rows, &flip, "the file is damaged: its checksum is"),
        (rows, &remove, "the file is gone"),
        (rows, &|path| fs::write(path, "").unwrap(), "too few for 6 rows"),
        (sums, &flip, "the file is damaged: its checksum is"),
        (sums, &remove, "the file is gone"),
        ("state.json", &edit, "the file is damaged: its checksum is"),
        ("state.json", &older, "an earlier version"),
        ("state.json", &|path| fs::write(path, "{").unwrap(), "the file is damaged"),
    ];
    for (number, (file, damage, expected)) in cases.into_iter().enumerate() {
        let folder = root.path().join(format!("kept-{number}"));
        pass(&pictures, Some(&folder), "").unwrap();
        state::load(&folder, "").unwrap();
        damage(&folder.join(file));
        let remedy = format!("remove {}, and the next start", folder.display());
        for error in [state::load(&folder, "").err().unwrap(), pass(&pictures, Some(&folder), "").err().unwrap()] {
            let told = error.to_string();
            assert!(matches!(error, EvaluateError::File { .. }), "{told}");
            assert!(told.contains(file) && told.contains(expected) && told.contains(&remedy), "{told}");
        }
        fs::remove_dir_all(&folder).unwrap();
        pass(&pictures, Some(&folder), "").unwrap();
    }
    let folder = root.path().join("without an index");
    pass(&pictures, Some(&folder), "").unwrap();
    remove(&folder.join("state.json"));
    let told = state::load(&folder, "").err().unwrap().to_string();
    assert!(told.contains("no saved states") && told.contains("remove "), "{told}");
    // Whoever judges the pictures begins anew.
    pass(&pictures, Some(&folder), "").unwrap();
    state::load(&folder, "").unwrap();
}

#[test]
fn folders_are_not_exchanged() {
    let root = tempfile::tempdir().unwrap();
    let pictures = pictures(&root.path().join("pictures"), "a");
    let folder = root.path().join("kept");
    pass(&pictures, Some(&folder), "scale 2").unwrap();
    state::load(&folder, "scale 2").unwrap();
    for error in
        [state::load(&folder, "scale 4").err().unwrap(), pass(&pictures, Some(&folder), "scale 4").err().unwrap()]
    {
        let told = error.to_string();
        assert!(told.contains("`scale 2`") && told.contains("`scale 4`") && told.contains("exchanged"), "{told}");
    }
}

#[test]
fn references_of_other_pixels_are_unlike() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let judged = pass(&pictures(&at("judged"), "j"), None, "").unwrap();
    let metrics = both();
    let found = |folder: &str, kind: &str| -> Vec<Figure> {
        let reference = Reference::Pictures(pass(&pictures(&at(folder), kind), None, "").unwrap());
        figures(&metrics, &judged, Some(&reference)).unwrap()
    };
    let (first, same, other) = (found("first", "a"), found("same", "a"), found("first", "b"));
    assert_eq!(first, same);
    let fields: Vec<String> = differences(&first[0], &other[0]).into_iter().map(|found| found.field).collect();
    assert_eq!(fields, ["reference"]);
    // What is judged is another model's pictures each time, and compares by its names.
    let other = pass(&pictures(&at("other"), "o"), None, "").unwrap();
    let reference = Reference::Pictures(pass(&pictures(&at("same"), "a"), None, "").unwrap());
    assert!(differences(&first[0], &figures(&metrics, &other, Some(&reference)).unwrap()[0]).is_empty());
}

#[test]
fn files_that_were_replaced_have_another_digest() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
    let open = || Pictures::open(root.path().to_str().unwrap()).unwrap();
    let digests = || (open().digest(), open().digest_of_contents(1).unwrap(), open().digest_of_contents(2).unwrap());
    write("a.png", "one");
    write("a.txt", "cat");
    write("b.png", "two");
    let (names, first, both) = digests();
    assert_eq!(digests(), (names.clone(), first.clone(), both.clone()));
    assert_eq!(open().digest_of_contents(9).unwrap(), both);
    write("b.png", "six");
    let (names_now, first_now, both_now) = digests();
    assert_eq!((names_now, first_now.clone()), (names.clone(), first.clone()), "the second is not among the first");
    assert_ne!(both_now, both);
    write("a.txt", "dog");
    let (names_now, first_now, _) = digests();
    assert_eq!(names_now, names);
    assert_ne!(first_now, first);
}
