//! States of slices, merged; states of passes that were killed.

use crate::support::{Quick, write_pictures};
use calotype_data::{Control, Error};
use calotype_evaluate::metrics::{self, MetricSettings, Metrics};
use calotype_evaluate::{EvaluateError, Figure, Pass, PassOptions, Pictures, Reference, States, figures, judge, state};
use std::path::Path;

/// More than a block of the covariance.
const PICTURES: usize = 600;

fn pictures(folder: &Path) -> Pictures {
    let sizes = [(4, 4), (6, 5), (3, 9)];
    let names: Vec<String> = (0..PICTURES).map(|number| format!("{number:03}")).collect();
    let made = names.iter().enumerate().map(|(n, name)| (&**name, format!("slices.{n}"), sizes[n % 3]));
    write_pictures(folder, made);
    Pictures::open(folder.to_str().unwrap()).unwrap()
}

fn all_metrics(names: &[&str]) -> Metrics {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    metrics::open(&names, &MetricSettings { subsets: 3, subset_size: 5, splits: 2, ..MetricSettings::default() })
        .unwrap()
}

/// States of slices whose borders are these, each in a folder of its own or in none.
fn merged(pictures: &Pictures, metrics: &Metrics, borders: &[usize], folder: Option<&Path>) -> States {
    let slices = borders.windows(2).map(|border| {
        let own = folder.map(|folder| folder.join(format!("{}-{}", border[0], border[1])));
        let options = PassOptions { first: border[0], folder: own.as_deref(), ..PassOptions::default() };
        let mut pass = Pass::of(Quick::of(metrics), metrics, &options).unwrap();
        judge(pictures, border[0]..border[1], &mut pass, &mut Control::default()).unwrap();
        let states = pass.finish().unwrap();
        own.map_or(states, |own| state::load(&own, "").unwrap())
    });
    state::merge(slices.collect()).unwrap()
}

fn without_fingerprints(figures: Vec<Figure>) -> Vec<(String, u64)> {
    figures.into_iter().map(|figure| (figure.metric, figure.value.to_bits())).collect()
}

#[test]
fn figures_do_not_depend_on_slices() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pictures(&folder.path().join("pictures"));
    // Sums alone, and rows with everything that is computed of them.
    for names in [&["fid"][..], &["fid", "kid", "inception-score", "neighbours"]] {
        let metrics = all_metrics(names);
        let reference = Reference::Pictures(merged(&pictures, &metrics, &[0, 290], None));
        let whole = merged(&pictures, &metrics, &[0, PICTURES], None);
        let expected = figures(&metrics, &whole, Some(&reference)).unwrap();
        assert!(expected.iter().all(|figure| figure.value.is_finite() && figure.count == PICTURES));
        let cuts: [&[usize]; 4] =
            [&[0, 600], &[0, 256, 600], &[0, 1, 299, 600], &[0, 100, 200, 255, 257, 400, 512, 600]];
        for (number, borders) in cuts.iter().enumerate() {
            for kept in [None, Some(folder.path().join(format!("{}-{number}", names.len())))] {
                let states = merged(&pictures, &metrics, borders, kept.as_deref());
                let found = figures(&metrics, &states, Some(&reference)).unwrap();
                // The same bits, and the same fingerprints too.
                assert_eq!(found, expected, "{borders:?}");
            }
        }
    }
}

#[test]
fn a_pass_that_was_stopped_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pictures(&folder.path().join("pictures"));
    let metrics = all_metrics(&["fid", "kid"]);
    let whole = merged(&pictures, &metrics, &[0, PICTURES], None);
    let reference = Reference::Pictures(merged(&pictures, &metrics, &[0, 290], None));
    let expected = without_fingerprints(figures(&metrics, &whole, Some(&reference)).unwrap());

    let own = folder.path().join("own");
    let options = PassOptions { folder: Some(&own), ..PassOptions::default() };
    for end in [30, 256, 256, 519] {
        let mut pass = Pass::of(Quick::of(&metrics), &metrics, &options).unwrap();
        let from = pass.done();
        pass.push(&pictures.batch(from..end).unwrap()).unwrap();
        pass.save().unwrap();
        // What comes after the saving is lost with the process.
        pass.push(&pictures.batch(end..end + 2).unwrap()).unwrap();
        drop(pass);
    }
    let mut pass = Pass::of(Quick::of(&metrics), &metrics, &options).unwrap();
    assert_eq!(pass.done(), 519);
    let mut stopped = Control::default().with_stop(|| true);
    let error = judge(&pictures, 0..PICTURES, &mut pass, &mut stopped).unwrap_err();
    assert!(matches!(error, EvaluateError::Data(Error::Interrupted { done: 519, total: PICTURES, .. })), "{error}");
    judge(&pictures, 0..PICTURES, &mut pass, &mut Control::default()).unwrap();
    let found = figures(&metrics, &pass.finish().unwrap(), Some(&reference)).unwrap();
    assert_eq!(without_fingerprints(found), expected);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pictures(&folder.path().join("pictures"));
    let fid = all_metrics(&["fid"]);
    let slice = |metrics: &Metrics, first: usize, end: usize| {
        let mut pass = Pass::of(Quick::of(metrics), metrics, &PassOptions { first, ..PassOptions::default() }).unwrap();
        judge(&pictures, first..end, &mut pass, &mut Control::default()).unwrap();
        pass.finish().unwrap()
    };
    let message = |slices: Vec<States>| state::merge(slices).err().unwrap().to_string();
    assert!(message(vec![slice(&fid, 0, 2), slice(&fid, 3, 4)]).contains("picture 2 comes next"));
    assert!(message(vec![slice(&fid, 0, 2), slice(&all_metrics(&["kid"]), 2, 4)]).contains("inception/torch-fidelity"));

    let own = folder.path().join("own");
    let open = |names: &[&str], first: usize| {
        let metrics = all_metrics(names);
        Pass::of(Quick::of(&metrics), &metrics, &PassOptions { first, folder: Some(&own), ..PassOptions::default() })
    };
    let mut pass = open(&["fid"], 0).unwrap();
    pass.push(&pictures.batch(0..2).unwrap()).unwrap();
    pass.save().unwrap();
    for (names, first, expected) in [
        (&["fid"][..], 5, "begins with picture 0, not with 5"),
        (&["fid", "kid"], 0, "nothing of inception/torch-fidelity"),
    ] {
        let error = open(names, first).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("own"), "{error}");
    }
    std::fs::remove_file(own.join("inception.pytorch-fid.sums.2")).unwrap();
    let error = open(&["fid"], 0).err().unwrap().to_string();
    assert!(error.contains("inception.pytorch-fid.sums.2"), "{error}");
    std::fs::write(own.join("state.json"), "{").unwrap();
    let error = open(&["fid"], 0).err().unwrap().to_string();
    assert!(error.contains("state.json"), "{error}");
    let error = state::load(&folder.path().join("nothing"), "").err().unwrap().to_string();
    assert!(error.contains("no saved states"), "{error}");
}
