//! Datasets on disk: round trips, Python's tars, damage, interruption.

use std::fs;
use std::path::Path;

use calotype_data::webdataset::{INDEX_FILE, PROGRESS_FILE, index_folder};
use calotype_data::{Control, Dataset, DatasetIndex, Error, Quarantine, Sample, ShardLimits, ShardWriter};
use serde_json::{Map, json};

const LIMITS: ShardLimits = ShardLimits { samples: 4, bytes: 1 << 30 };

fn sample(i: usize) -> Sample {
    Sample::new(format!("dir/{i:04}"))
        .with("txt", format!("caption {i}"))
        .with("seg.png", vec![i as u8; 100 * i % 1400])
}

fn write(dir: &Path, count: usize) -> DatasetIndex {
    let mut writer = ShardWriter::create(dir, "train", LIMITS).unwrap();
    writer.set_meta(Map::from_iter([("made by".to_owned(), json!("a test"))])).unwrap();
    (0..count).for_each(|i| writer.write(&sample(i)).unwrap());
    writer.finish().unwrap()
}

fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Opens, reads and verifies; the first error.
fn first_error(dir: &Path) -> Error {
    let all = || {
        let dataset = Dataset::open(dir)?;
        dataset.verify(&mut Control::default())?;
        dataset.iter().try_for_each(|sample| sample.map(|_| ()))
    };
    all().unwrap_err()
}

#[test]
fn samples_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let index = write(dir.path(), 10);
    assert_eq!(index.shards.iter().map(|s| s.samples).collect::<Vec<_>>(), [4, 4, 2]);
    assert!(!dir.path().join(PROGRESS_FILE).exists());
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!((dataset.len(), dataset.index()), (10, &index));
    assert_eq!(dataset.meta()["made by"], "a test");
    for i in [9, 0, 5, 3, 4] {
        assert_eq!(dataset.get(i).unwrap().to_sample(), sample(i));
    }
    let report = dataset.verify(&mut Control::default()).unwrap();
    assert_eq!((report.shards, report.samples, report.without_checksum), (3, 10, 0));
    assert!(matches!(dataset.get(10), Err(Error::OutOfRange { index: 10, len: 10 })));
    let missing = dataset.get(1).unwrap().part("jpg").unwrap_err();
    assert_eq!(missing.to_string(), "sample `dir/0001` has no part `jpg`; it has: seg.png, txt");
}

#[test]
fn shards_are_the_same_every_time_and_carry_no_time() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(write(a.path(), 6), write(b.path(), 6));
    let bytes = fs::read(a.path().join("train-000000.tar")).unwrap();
    assert_eq!(&bytes[100..108], b"0000644\0");
    assert_eq!(&bytes[136..148], b"00000000000\0", "mtime");
    assert_eq!(&bytes[257..265], b"ustar\x0000");
}

#[test]
fn byte_limits_close_shards() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ShardLimits { samples: 1000, bytes: 5 * 1024 };
    let mut writer = ShardWriter::create(dir.path(), "x", limits).unwrap();
    for i in 0..9 {
        writer.write(&Sample::new(format!("{i}")).with("bin", vec![0; 500])).unwrap();
    }
    writer.write(&Sample::new("large").with("bin", vec![0; 9000])).unwrap();
    let index = writer.finish().unwrap();
    assert_eq!(index.shards.iter().map(|s| s.samples).collect::<Vec<_>>(), [4, 4, 1, 1]);
    assert!(index.shards[..3].iter().all(|s| s.bytes <= limits.bytes));
    Dataset::open(dir.path()).unwrap().verify(&mut Control::default()).unwrap();
}

#[test]
fn shards_of_pythons_tarfile_are_read() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/python");
    let dataset = Dataset::open(&golden).unwrap();
    assert_eq!(dataset.len(), 6);
    for shard in 0..2 {
        let image = dataset.get(3 * shard).unwrap();
        assert_eq!(image.key(), format!("dir{shard}/a"));
        assert_eq!(image.part("jpg").unwrap(), b"picture a");
        assert_eq!(image.text("txt").unwrap(), "caption a");
        let long = dataset.get(3 * shard + 1).unwrap();
        assert_eq!(long.key(), format!("dir{shard}/{}", "long".repeat(70)));
        assert_eq!(long.part("seg.png").unwrap(), [b'x'; 513]);
        assert_eq!(long.text("txt").unwrap(), "Grüße");
        let empty = dataset.get(3 * shard + 2).unwrap();
        assert_eq!((empty.key(), empty.part("cls").unwrap()), (format!("v1.{shard}/üml").as_str(), &b""[..]));
    }
    let report = dataset.verify(&mut Control::default()).unwrap();
    assert_eq!(report.without_checksum, 2);
}

#[test]
fn a_foreign_folder_gets_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let index = write(dir.path(), 6);
    fs::remove_file(dir.path().join(INDEX_FILE)).unwrap();
    let scanned = Dataset::open(dir.path()).unwrap();
    assert_eq!(scanned.len(), 6);
    let made = index_folder(dir.path(), Map::new(), &mut Control::default()).unwrap();
    assert_eq!((made.shards, made.samples), (index.shards.clone(), 6));
    assert_eq!(Dataset::open(dir.path()).unwrap().index().digest(), index.digest());
}

#[test]
fn absent_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Dataset::open(dir.path().join("no")).map(|_| ()).unwrap_err();
    assert!(matches!(missing, Error::MissingFolder { .. }) && missing.is_usage(), "{missing}");
    assert!(matches!(Dataset::open(dir.path()), Err(Error::EmptyDataset { .. })));
    write(dir.path(), 6);
    fs::remove_file(dir.path().join("train-000001.tar")).unwrap();
    let error = first_error(dir.path());
    assert!(matches!(&error, Error::MissingShard { path } if path.ends_with("train-000001.tar")), "{error}");
}

#[test]
fn a_truncated_shard_is_named_with_and_without_index() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 4);
    let path = dir.path().join("train-000000.tar");
    let whole = fs::read(&path).unwrap();
    // Inside data, inside a header, between two members, inside the end marker, and all of it.
    for length in [whole.len() - 1024 - 100, 700, 1024, 1536, whole.len() - 1024, 0] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(first_error(dir.path()), Error::TruncatedTar { .. }), "{length} with index");
        let index = fs::read(dir.path().join(INDEX_FILE)).unwrap();
        fs::remove_file(dir.path().join(INDEX_FILE)).unwrap();
        let error = first_error(dir.path());
        assert!(matches!(error, Error::TruncatedTar { .. }), "{length} without index: {error}");
        fs::write(dir.path().join(INDEX_FILE), index).unwrap();
    }
    fs::write(&path, [whole.clone(), vec![0; 512]].concat()).unwrap();
    assert!(matches!(first_error(dir.path()), Error::SizeMismatch { .. }));
}

#[test]
fn flipped_bytes_are_found() {
    // The first sample: an empty seg.png (header at 0), then a txt (header at 512, data at 1024).
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 4);
    let path = dir.path().join("train-000000.tar");
    damage(&path, |bytes| bytes[1024 + 3] ^= 1);
    assert!(matches!(first_error(dir.path()), Error::ChecksumMismatch { .. }));
    // Without an index the data cannot be checked, but headers are.
    fs::remove_file(dir.path().join(INDEX_FILE)).unwrap();
    Dataset::open(dir.path()).unwrap();
    damage(&path, |bytes| bytes[512 + 3] ^= 1);
    let error = first_error(dir.path());
    assert!(matches!(error, Error::BadHeader { offset, .. } if offset % 512 == 0), "{error}");
    fs::write(&path, vec![b'x'; 5000]).unwrap();
    assert!(matches!(first_error(dir.path()), Error::NotTar { .. }));
}

#[test]
fn duplicates_are_refused_when_writing_and_reading() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path().join("w"), "a", LIMITS).unwrap();
    writer.write(&sample(1)).unwrap();
    assert!(matches!(writer.write(&sample(1)), Err(Error::DuplicateKey { .. })));
    drop(writer);
    // The same keys in two shards, as a copied file makes them.
    write(dir.path(), 3);
    fs::copy(dir.path().join("train-000000.tar"), dir.path().join("train-000001.tar")).unwrap();
    fs::remove_file(dir.path().join(INDEX_FILE)).unwrap();
    let error = Dataset::open(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("`calotype data reorganize`, which keeps the first of equal keys"), "{error}");
    let names = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
    match error {
        Error::DuplicateKey { key, first, second } => {
            assert_eq!(
                (key.as_str(), names(&first), names(&second)),
                ("dir/0000", "train-000000.tar".to_owned(), "train-000001.tar".to_owned())
            );
        }
        other => panic!("{other}"),
    }
    // What a check has listed is left out.
    let mut list = Quarantine::new();
    (0..3).for_each(|i| list.insert("train-000001.tar", sample(i).key, "duplicate key"));
    list.write(dir.path()).unwrap();
    assert_eq!(Dataset::open(dir.path()).unwrap().without_quarantined().unwrap().len(), 3);
}

#[test]
fn names_that_would_not_come_back_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path(), "a", LIMITS).unwrap();
    for (key, extension) in
        [("a.b", "txt"), ("", "txt"), ("dir/", "txt"), ("a", "PNG"), ("a", "x/y"), ("a\0", "txt"), ("__a", "b__")]
    {
        let result = writer.write(&Sample::new(key).with(extension, *b"1"));
        assert!(matches!(result, Err(Error::InvalidName { .. })), "{key:?} {extension:?} {result:?}");
    }
    assert!(matches!(writer.write(&Sample::new("a")), Err(Error::MissingPart { .. })));
    writer.write(&Sample::new(format!("{}/{}", "d".repeat(120), "k".repeat(90))).with("txt", *b"1")).unwrap();
    writer.finish().unwrap();
    assert_eq!(Dataset::open(dir.path()).unwrap().get(0).unwrap().key().len(), 211);
}

#[test]
fn a_bad_index_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let index = write(dir.path(), 2);
    let edits: [fn(&mut DatasetIndex); 4] = [
        |index| index.version = 99,
        |index| index.format = "other".to_owned(),
        |index| index.shards[0].file = "../train-000000.tar".to_owned(),
        |index| index.samples = 3,
    ];
    for edit in edits {
        let mut bad = index.clone();
        edit(&mut bad);
        bad.write(dir.path()).unwrap();
        assert!(matches!(Dataset::open(dir.path()), Err(Error::BadIndex { .. })));
    }
    fs::write(dir.path().join(INDEX_FILE), "{").unwrap();
    assert!(matches!(Dataset::open(dir.path()), Err(Error::BadIndex { .. })));
    let mut other = index;
    (other.samples, other.shards[0].samples) = (3, 3);
    other.write(dir.path()).unwrap();
    let error = Dataset::open(dir.path()).unwrap().get(0).unwrap_err();
    assert!(matches!(error, Error::SampleCountMismatch { expected: 3, found: 2, .. }));
}

#[test]
fn writers_do_not_touch_what_is_not_theirs() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 2);
    assert!(matches!(ShardWriter::create(dir.path(), "other", LIMITS), Err(Error::FolderInUse { .. })));
    fs::remove_file(dir.path().join(INDEX_FILE)).unwrap();
    assert!(matches!(ShardWriter::create(dir.path(), "train", LIMITS), Err(Error::FolderInUse { .. })));
    assert!(dir.path().join("train-000000.tar").exists());
    let bad = ShardLimits { samples: 0, bytes: 1 };
    assert!(matches!(ShardWriter::create(dir.path(), "x", bad), Err(Error::InvalidArgument { .. })));
    assert!(matches!(ShardWriter::create(dir.path(), "../x", LIMITS), Err(Error::InvalidArgument { .. })));
}

#[test]
fn an_interrupted_dataset_is_resumed_or_replaced() {
    let (dir, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let interrupt = || {
        let mut writer = ShardWriter::resume(dir.path(), "train", LIMITS, Map::new()).unwrap();
        (writer.samples_done()..6).for_each(|i| writer.write(&sample(i)).unwrap());
    };
    interrupt();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "one shard and the progress file: {left:?}");
    let unfinished = Dataset::open(dir.path()).map(|_| ()).unwrap_err();
    assert!(matches!(unfinished, Error::Unfinished { .. }) && !unfinished.is_usage(), "{unfinished}");
    let parts = ["is not finished, as progress.json in it says", "run the command that writes it again"];
    assert!(parts.iter().all(|part| unfinished.to_string().contains(part)), "{unfinished}");
    let other = ShardLimits { samples: 5, ..LIMITS };
    let mismatch = ShardWriter::resume(dir.path(), "train", other, Map::new()).map(|_| ());
    assert!(matches!(mismatch, Err(Error::ProgressMismatch { what: "shard limit", .. })));

    let mut writer = ShardWriter::resume(dir.path(), "train", LIMITS, Map::new()).unwrap();
    assert_eq!(writer.samples_done(), 4);
    assert!(matches!(writer.write(&sample(2)), Err(Error::DuplicateKey { .. })));
    (4..10).for_each(|i| writer.write(&sample(i)).unwrap());
    let resumed = writer.finish().unwrap();
    assert_eq!(resumed.shards, write(whole.path(), 10).shards);

    fs::remove_dir_all(dir.path()).unwrap();
    interrupt();
    assert_eq!(write(dir.path(), 6).samples, 6);

    fs::remove_dir_all(dir.path()).unwrap();
    interrupt();
    damage(&dir.path().join("train-000000.tar"), |bytes| bytes[600] ^= 1);
    let damaged = ShardWriter::resume(dir.path(), "train", LIMITS, Map::new()).map(|_| ());
    assert!(matches!(damaged, Err(Error::ChecksumMismatch { .. })));
}
