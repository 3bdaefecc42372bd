//! Encoding a dataset once: contract, restart, identity.

use std::cell::Cell;
use std::path::Path;

use calotype_data::npy::NpyArray;
use calotype_data::precache::{SampleEncoder, precache};
use calotype_data::{BoxError, Control, Dataset, Error, Sample, ShardLimits, ShardWriter};

const LIMITS: ShardLimits = ShardLimits { samples: 5, bytes: 1 << 20 };

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
    let index = precache(&data, &mut encoder("v1"), &out, 4, LIMITS, &mut Control::default()).unwrap();
    assert_eq!(index.samples, 17);
    let encoded = Dataset::open(&out).unwrap();
    encoded.require_encoder("v1").unwrap();
    for i in 0..17 {
        let sample = encoded.get(i).unwrap();
        assert_eq!(sample.key(), data.get(i).unwrap().key());
        let size = if i == 16 { 1 } else { 4 };
        assert_eq!(sample.array("length.npy").unwrap().as_i64().unwrap(), [i as i64, size]);
    }
    let error = encoded.require_encoder("v2").unwrap_err().to_string();
    assert!(error.contains("v1") && error.contains("v2"), "{error}");
    assert!(matches!(data.require_encoder("v1"), Err(Error::EncoderMismatch { found, .. }) if found == "no encoder"));
}

#[test]
fn an_interrupted_run_goes_on_and_ends_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (source(&dir.path().join("in")), dir.path().join("out"));
    let whole =
        precache(&data, &mut encoder("v1"), dir.path().join("whole"), 4, LIMITS, &mut Control::default()).unwrap();
    let mut calls = 0;
    let mut interruptions = 0;
    loop {
        let mut part = encoder("v1");
        // Each attempt may look at the flag three times: it encodes two batches.
        let looks = Cell::new(0);
        let mut control = Control::default().with_stop(|| looks.replace(looks.get() + 1) == 2);
        let result = precache(&data, &mut part, &out, 4, LIMITS, &mut control);
        calls += part.calls;
        match result {
            Ok(index) => {
                assert_eq!(index, whole);
                break;
            }
            Err(Error::Interrupted { .. }) => interruptions += 1,
            Err(other) => panic!("{other}"),
        }
        assert!(interruptions < 10, "no progress between interruptions");
    }
    assert!(interruptions >= 2);
    assert!(calls <= 5 + interruptions, "{calls} calls, {interruptions} interruptions");
}

#[test]
fn a_finished_dataset_is_not_encoded_again_nor_mixed_up() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (source(&dir.path().join("in")), dir.path().join("out"));
    let run = |encoder: &mut Lengths| precache(&data, encoder, &out, 4, LIMITS, &mut Control::default());
    let index = run(&mut encoder("v1")).unwrap();
    let mut again = encoder("v1");
    assert_eq!(run(&mut again).unwrap(), index);
    assert_eq!(again.calls, 0);
    assert!(matches!(run(&mut encoder("v2")), Err(Error::EncoderMismatch { .. })));
    let half = dir.path().join("half");
    let mut stop = Control::default().with_stop(|| true);
    let stopped = precache(&data, &mut encoder("v1"), &half, 4, LIMITS, &mut stop);
    assert!(matches!(stopped, Err(Error::Interrupted { done: 0, total: 17, .. })));
    let other = precache(&data, &mut encoder("v2"), &half, 4, LIMITS, &mut Control::default());
    assert!(matches!(other, Err(Error::ProgressMismatch { what: "meta", .. })));
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
    let run = |how: &'static str| {
        precache(&data, &mut Broken(how), dir.path().join(how), 4, LIMITS, &mut Control::default()).unwrap_err()
    };
    assert!(matches!(run("count"), Error::EncoderContract { .. }));
    assert!(matches!(run("keys"), Error::EncoderContract { .. }));
    assert!(matches!(run("fails"), Error::Encode { first: 0, .. }));
}
