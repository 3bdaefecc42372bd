//! Encoding a dataset once: contract, restart, identity.

use std::cell::Cell;
use std::path::Path;

use calotype_data::npy::NpyArray;
use calotype_data::precache::{PrecacheLayout, Precached, SampleEncoder, precache};
use calotype_data::{BoxError, Control, Dataset, Error, Sample, ShardLimits, ShardWriter, Slice};
use serde_json::{Map, Value, json};

const LIMITS: ShardLimits = ShardLimits { samples: 6, bytes: 1 << 20 };
const LAYOUT: PrecacheLayout = PrecacheLayout { batch: 4, shard_samples: 5 };

fn run(
    data: &Dataset,
    encoder: &mut dyn SampleEncoder,
    out: &Path,
    slice: Slice,
    control: &mut Control<'_>,
) -> Result<Precached, Error> {
    precache(data, encoder, out, LAYOUT, slice, control)
}

/// Writes each caption's length, and the size of the batch it came in.
struct Lengths {
    identity: &'static str,
    calls: usize,
}

impl SampleEncoder for Lengths {
    fn identity(&self) -> String {
        self.identity.to_owned()
    }

    fn encode(&mut self, batch: &[Sample]) -> Result<Vec<Sample>, BoxError> {
        self.calls += 1;
        let encode = |sample: &Sample| -> Result<Sample, BoxError> {
            let length = sample.text("txt")?.len() as i64;
            let array = NpyArray::from_i64(&[2], vec![length, batch.len() as i64])?;
            Ok(Sample::new(&sample.key).with("length.npy", array.to_bytes()))
        };
        batch.iter().map(encode).collect()
    }
}

fn encoder(identity: &'static str) -> Lengths {
    Lengths { identity, calls: 0 }
}

fn source(dir: &Path) -> Dataset {
    let mut writer = ShardWriter::create(dir, "x", LIMITS).unwrap();
    (0..17).for_each(|i| writer.write(&Sample::new(format!("{i}")).with("txt", "a".repeat(i))).unwrap());
    writer.finish().unwrap();
    Dataset::open(dir).unwrap()
}

#[test]
fn every_sample_is_encoded_under_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (source(&dir.path().join("in")), dir.path().join("out"));
    let done = run(&data, &mut encoder("v1"), &out, Slice::ALL, &mut Control::default()).unwrap();
    assert_eq!((done.samples, done.encoded, done.index.unwrap().samples), (17, 17, 17));
    let encoded = Dataset::open(&out).unwrap();
    encoded.require_encoder("v1").unwrap();
    for i in 0..17 {
        let sample = encoded.get(i).unwrap();
        assert_eq!(sample.key(), data.get(i).unwrap().key());
        // Shards of 5 in batches of 4: the last sample of a shard is alone.
        let size = match i {
            15 | 16 => 2,
            _ if i % 5 == 4 => 1,
            _ => 4,
        };
        assert_eq!(sample.array("length.npy").unwrap().as_i64().unwrap(), [i as i64, size]);
    }
    let error = encoded.require_encoder("v2").unwrap_err().to_string();
    assert!(error.contains("v1") && error.contains("v2"), "{error}");
    assert!(matches!(data.require_encoder("v1"), Err(Error::EncoderMismatch { found, .. }) if found == "no encoder"));
}

/// All files of a folder.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let content = if path.is_dir() { b"a folder".to_vec() } else { std::fs::read(&path).unwrap() };
        (path.file_name().unwrap().to_string_lossy().into_owned(), content)
    };
    let mut files: Vec<_> = entries.map(read).collect();
    files.sort();
    files
}

/// Samples in the whole shards of a dataset that is not finished.
fn samples_of_records(out: &Path) -> usize {
    let records = std::fs::read_dir(out.join(".precache")).unwrap().map(|entry| std::fs::read(entry.unwrap().path()));
    let samples =
        |bytes: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["samples"].as_u64().unwrap();
    records.map(|bytes| samples(bytes.unwrap()) as usize).sum()
}

#[test]
fn an_interrupted_run_goes_on_and_ends_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (source(&dir.path().join("in")), dir.path().join("out"));
    let whole = dir.path().join("whole");
    run(&data, &mut encoder("v1"), &whole, Slice::ALL, &mut Control::default()).unwrap();
    let mut calls = 0;
    let mut interruptions = 0;
    let mut saved = 0;
    loop {
        let mut part = encoder("v1");
        // Each attempt may look at the flag three times: it encodes a shard, and one batch of the next.
        let looks = Cell::new(0);
        let first = Cell::new(None);
        let mut control = Control::default()
            .with_progress(|_, done, _| first.set(first.get().or(Some(done))))
            .with_stop(|| looks.replace(looks.get() + 1) == 3);
        let result = run(&data, &mut part, &out, Slice::ALL, &mut control);
        calls += part.calls;
        assert_eq!(first.get(), Some(saved), "what is there is told first");
        match result {
            Ok(done) => {
                assert!(done.index.is_some() && done.encoded < done.samples);
                break;
            }
            Err(Error::Interrupted { done, .. }) => {
                interruptions += 1;
                saved = samples_of_records(&out);
                assert_eq!(done, saved, "only whole shards are saved");
                assert!(matches!(Dataset::open(&out), Err(Error::Unfinished { .. })), "half a dataset is none");
            }
            Err(other) => panic!("{other}"),
        }
        assert!(interruptions < 10, "no progress between interruptions");
    }
    assert!(interruptions >= 2);
    assert!(calls <= 7 + interruptions, "{calls} calls, {interruptions} interruptions");
    assert_eq!(files(&out), files(&whole));
}

#[test]
fn slices_make_the_same_dataset_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let data = source(&dir.path().join("in"));
    let whole = dir.path().join("whole");
    run(&data, &mut encoder("v1"), &whole, Slice::ALL, &mut Control::default()).unwrap();
    for order in [&[0, 1, 2][..], &[2, 0, 1], &[1, 0, 1, 2], &[6, 2, 0, 1, 3, 4, 5]] {
        let (out, of) = (dir.path().join(format!("{order:?}")), order.iter().max().unwrap() + 1);
        let last = order.len() - 1;
        for (at, &number) in order.iter().enumerate() {
            let slice = Slice { id: number, count: of };
            let done = run(&data, &mut encoder("v1"), &out, slice, &mut Control::default()).unwrap();
            let again = order[..at].contains(&number);
            assert_eq!(done.encoded, if again { 0 } else { done.samples });
            // Of more slices than shards, some are empty, so that the dataset may be whole before the last.
            assert!(done.index.is_some() || at < last);
        }
        assert_eq!(files(&out), files(&whole), "{order:?}");
    }
    let bad = Slice { id: 3, count: 3 };
    let error = run(&data, &mut encoder("v1"), &dir.path().join("bad"), bad, &mut Control::default());
    assert!(matches!(error, Err(Error::InvalidArgument { .. })));
}

#[test]
fn shards_that_were_damaged_meanwhile_are_encoded_again() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (source(&dir.path().join("in")), dir.path().join("out"));
    let whole = dir.path().join("whole");
    run(&data, &mut encoder("v1"), &whole, Slice::ALL, &mut Control::default()).unwrap();
    let half = Slice { id: 0, count: 2 };
    run(&data, &mut encoder("v1"), &out, half, &mut Control::default()).unwrap();
    let shard = out.join("encoded-000001.tar");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[700] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let done = run(&data, &mut encoder("v1"), &out, Slice::ALL, &mut Control::default()).unwrap();
    assert_eq!(done.encoded, 12);
    assert_eq!(files(&out), files(&whole));
}

#[test]
fn a_finished_dataset_is_not_encoded_again_nor_mixed_up() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (source(&dir.path().join("in")), dir.path().join("out"));
    let call = |encoder: &mut Lengths| run(&data, encoder, &out, Slice::ALL, &mut Control::default());
    let first = call(&mut encoder("v1")).unwrap();
    let mut again = encoder("v1");
    let second = call(&mut again).unwrap();
    assert_eq!((second.index, second.encoded, again.calls), (first.index, 0, 0));
    assert!(matches!(call(&mut encoder("v2")), Err(Error::EncoderMismatch { .. })));
    let half = dir.path().join("half");
    let mut stop = Control::default().with_stop(|| true);
    let stopped = run(&data, &mut encoder("v1"), &half, Slice::ALL, &mut stop);
    assert!(matches!(stopped, Err(Error::Interrupted { done: 0, total: 17, .. })));
    let other = run(&data, &mut encoder("v2"), &half, Slice::ALL, &mut Control::default());
    assert!(matches!(other, Err(Error::ProgressMismatch { what: "encoder", .. })));
    let layout = PrecacheLayout { batch: 3, ..LAYOUT };
    let other = precache(&data, &mut encoder("v1"), &half, layout, Slice::ALL, &mut Control::default());
    assert!(matches!(other, Err(Error::ProgressMismatch { what: "layout of shards", .. })));
    let foreign = run(&data, &mut encoder("v1"), data.dir(), Slice::ALL, &mut Control::default());
    let foreign = foreign.unwrap_err();
    assert!(matches!(&foreign, Error::EncoderMismatch { found, .. } if found == "no encoder"));
    assert!(foreign.to_string().contains("holds samples as they are"), "{foreign}");
}

/// An encoder with a setting, which may look for images.
struct Described {
    caption: &'static str,
    of_images: bool,
}

impl SampleEncoder for Described {
    fn identity(&self) -> String {
        format!("described {}", self.caption)
    }

    fn description(&self) -> Map<String, Value> {
        let facts =
            json!({ "long": "x".repeat(5000), "transform": { "caption": self.caption, "long": vec![7; 2000] } });
        facts.as_object().unwrap().clone()
    }

    fn setting(&self, path: &str) -> String {
        path.trim_start_matches("transform.").to_owned()
    }

    fn encode(&mut self, batch: &[Sample]) -> Result<Vec<Sample>, BoxError> {
        let (key, part, present) = (batch[0].key.clone(), "png or jpg".to_owned(), "txt".to_owned());
        if self.of_images { Err(Error::MissingPart { key, part, present }.into()) } else { Ok(batch.to_vec()) }
    }
}

#[test]
fn other_settings_are_named_and_a_failed_try_is_not_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let data = source(&at("in"));
    let refused = |data: &Dataset, caption: &'static str, of_images: bool, out: &str, slice: Slice| -> String {
        let mut encoder = Described { caption, of_images };
        let error = run(data, &mut encoder, &at(out), slice, &mut Control::default()).unwrap_err().to_string();
        assert!(error.len() < 700, "{error}");
        error
    };
    let error = refused(&data, "{fil}", true, "out", Slice::ALL);
    assert!(error.contains("no sample of this batch has it") && !error.contains("mend"), "{error}");
    assert!(!at("out").exists(), "nothing is left of a try without a shard");
    // Of several slices, others may be at work.
    refused(&data, "{fil}", true, "slices", Slice { id: 0, count: 2 });
    assert!(at("slices/progress.json").is_file());
    let error = refused(&data, "{file}", false, "slices", Slice::ALL);
    assert!(error.contains("another setting (there: `caption` = \"{fil}\"; now: `caption` = \"{file}\")"), "{error}");

    let mut other = ShardWriter::create(at("other"), "x", LIMITS).unwrap();
    other.write(&Sample::new("one").with("txt", "a")).unwrap();
    other.finish().unwrap();
    let other = Dataset::open(at("other")).unwrap();
    let error = refused(&other, "{fil}", false, "slices", Slice::ALL);
    assert!(error.contains("another source (there: of the checksum "), "{error}");

    let mut encoder = Described { caption: "{file}", of_images: false };
    run(&data, &mut encoder, &at("done"), Slice::ALL, &mut Control::default()).unwrap();
    let error = refused(&data, "{class}", false, "done", Slice::ALL);
    assert!(error.contains("with `caption` = \"{file}\", this run needs") && error.contains("\"{class}\""), "{error}");
    // What encoders have made is no source of images.
    let error = refused(&Dataset::open(at("done")).unwrap(), "{file}", true, "again", Slice::ALL);
    assert!(error.contains("what encoders made of images (described {file})") && !error.contains("mend"), "{error}");
}

/// Breaks the contract in one of several ways.
struct Broken(&'static str);

impl SampleEncoder for Broken {
    fn identity(&self) -> String {
        "broken".to_owned()
    }

    fn encode(&mut self, batch: &[Sample]) -> Result<Vec<Sample>, BoxError> {
        match self.0 {
            "count" => Ok(batch[1..].to_vec()),
            "keys" => Ok(batch.iter().rev().cloned().collect()),
            _ => Err("out of memory".into()),
        }
    }
}

#[test]
fn a_broken_encoder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = source(&dir.path().join("in"));
    let fail = |how: &'static str| {
        run(&data, &mut Broken(how), &dir.path().join(how), Slice::ALL, &mut Control::default()).unwrap_err()
    };
    assert!(matches!(fail("count"), Error::EncoderContract { .. }));
    assert!(matches!(fail("keys"), Error::EncoderContract { .. }));
    let failed = fail("fails");
    assert!(matches!(failed, Error::Encode { first: 0, .. }));
    let text = failed.to_string();
    assert!(text.contains("out of memory") && text.contains("calotype data check --quarantine"), "{text}");
    assert!(text.starts_with(&calotype_data::Source::file_of(&data, 0)), "{text}");
}
