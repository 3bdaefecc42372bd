//! MDS datasets: Streaming's read, ours byte for byte the same, interruption, damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calotype_core::{Purpose, Stream};
use calotype_data::image::RgbaImage;
use calotype_data::mds::{
    Compression, HASHES, INDEX_FILE, MdsColumn, MdsDataset, MdsOptions, MdsReadOptions, MdsWriter, read_shard,
};
use calotype_data::{Error, Sample};
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mds").join(name)
}

fn columns(list: &[(&str, &str)]) -> Vec<MdsColumn> {
    let column =
        |(name, encoding): &(&str, &str)| MdsColumn { name: (*name).to_owned(), encoding: encoding.parse().unwrap() };
    list.iter().map(column).collect()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// All samples of a dataset.
fn all(dir: &Path) -> Result<Vec<Sample>, Error> {
    MdsDataset::open(dir)?.iter().collect()
}

/// Compares a part with what Python put in.
fn check_part(what: &str, found: &[u8], expected: &Value) {
    if let Some(bytes) = expected["bytes"].as_str().or(expected["npy"].as_str()) {
        assert_eq!(found, hex(bytes), "{what}");
    } else if let Some(pixels) = expected["pixels"].as_str() {
        check_image(what, found, expected, &hex(pixels));
    } else if let Value::Object(_) = &expected["value"] {
        assert_eq!(serde_json::from_slice::<Value>(found).unwrap(), expected["value"], "{what}");
    } else {
        let (found, expected) = (std::str::from_utf8(found).unwrap(), expected["value"].as_str().unwrap());
        // Python writes 1e+300 where Rust writes 1e300, and 16 digits of a number of 16 or 32 bits.
        let narrow = what.ends_with("f16") || what.ends_with("f32");
        let same = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan() || narrow && a as f32 == b as f32;
        let numbers = found.parse::<f64>().ok().zip(expected.parse::<f64>().ok());
        assert!(found == expected || numbers.is_some_and(|(a, b)| same(a, b)), "{what}: {found}");
    }
}

fn check_image(what: &str, png: &[u8], expected: &Value, pixels: &[u8]) {
    let image = RgbaImage::decode(what, png).unwrap();
    let (width, mode) = (image.width(), expected["mode"].as_str().unwrap());
    assert_eq!(json!([width, image.height()]), expected["size"], "{what}");
    for (number, found) in image.data().chunks_exact(4).enumerate() {
        let of = |n: usize| &pixels[n * number..n * (number + 1)];
        let wanted = match mode {
            "RGB" => [of(3), &[255]].concat(),
            "RGBA" => of(4).to_vec(),
            "L" => [of(1), of(1), of(1), &[255]].concat(),
            "LA" => [&of(2)[..1], &of(2)[..1], of(2)].concat(),
            _ => {
                let (x, row) = (number % width, number / width * width.div_ceil(8));
                let level = 255 * (pixels[row + x / 8] >> (7 - x % 8) & 1);
                vec![level, level, level, 255]
            }
        };
        assert_eq!(found, wanted, "{what}, mode {mode}, pixel {number}");
    }
}

#[test]
fn streamings_datasets_are_read() {
    let expected: Vec<BTreeMap<String, Value>> =
        serde_json::from_slice(&fs::read(golden("expected.json")).unwrap()).unwrap();
    let sets = [("plain", 5), ("odd", 5), ("zstd", 5), ("gz", 3), ("br", 3), ("snappy", 3)];
    for (name, samples) in sets {
        let dataset = MdsDataset::open(golden(name)).unwrap();
        assert_eq!(dataset.len(), samples, "{name}");
        for i in (0..samples).rev() {
            let sample = dataset.get(i).unwrap();
            let keyed = name == "odd";
            assert_eq!(sample.key, if keyed { format!("dir/{i}") } else { format!("{i:09}") });
            let parts = sample.parts.iter().filter(|(part, _)| !part.contains('.'));
            for (part, found) in parts {
                check_part(&format!("{name} {i} {part}"), found, &expected[i][part]);
            }
            for column in ["jpegs", "pngs", "pils"].into_iter().filter(|_| name == "plain") {
                let elements = expected[i][column].as_array().unwrap();
                for (number, element) in elements.iter().enumerate() {
                    let part = sample.part(&format!("{column}.{number:04}")).unwrap();
                    match element["pixels"].as_str() {
                        Some(pixels) => check_image(column, part, element, &hex(pixels)),
                        None => check_part(column, part, element),
                    }
                }
                assert!(sample.part(&format!("{column}.{:04}", elements.len())).is_err());
            }
            let lists = sample.parts.keys().filter(|part| part.contains('.')).count();
            let columns = dataset.columns().iter().filter(|column| column.name != "__key__").count();
            assert!(name != "plain" || sample.parts.len() - lists + 3 == columns);
        }
        assert!(matches!(dataset.get(samples), Err(Error::OutOfRange { .. })));
    }
}

#[test]
fn files_are_those_of_streaming_byte_for_byte() {
    let source = MdsDataset::open(golden("plain")).unwrap();
    let options = MdsOptions {
        hashes: vec!["xxh64".to_owned(), "md5".to_owned()],
        size_limit: Some(9000),
        ..MdsOptions::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut columns = source.columns().to_vec();
    columns.reverse();
    let mut writer = MdsWriter::create(dir.path(), columns, options).unwrap();
    source.iter().for_each(|sample| writer.write(&sample.unwrap()).unwrap());
    let index = writer.finish().unwrap();
    assert!(index.shards.len() > 1);
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(dir.path()), names(&golden("plain")));
    for name in names(dir.path()) {
        let (ours, theirs) =
            (fs::read(dir.path().join(&name)).unwrap(), fs::read(golden("plain").join(&name)).unwrap());
        // The PNG of a list were compressed by Pillow, and are kept as they are; those of `pil` go through pixels.
        assert!(ours == theirs, "{}", name.to_string_lossy());
    }
}

fn caption(i: usize) -> Sample {
    let text = format!("caption {i} ").repeat(1 + i % 5);
    Sample::new(format!("k{i}")).with("caption", text).with("n", format!("{i}"))
}

fn caption_columns() -> Vec<MdsColumn> {
    columns(&[("caption", "str"), ("n", "uint16"), ("__key__", "str")])
}

#[test]
fn every_compression_and_hash_comes_back_in_any_order_within_little_memory() {
    for compression in ["zstd:1", "gz", "br:3", "snappy"] {
        let dir = tempfile::tempdir().unwrap();
        let options = MdsOptions {
            compression: Some(compression.parse::<Compression>().unwrap()),
            hashes: HASHES.split(", ").map(str::to_owned).collect(),
            samples: Some(7),
            ..MdsOptions::default()
        };
        let mut writer = MdsWriter::create(dir.path(), caption_columns(), options).unwrap();
        (0..50).for_each(|i| writer.write(&caption(i)).unwrap());
        assert_eq!(writer.finish().unwrap().shards.len(), 8);
        let unpacked = dir.path().join("unpacked");
        let least = MdsReadOptions { memory: 1, ..MdsReadOptions::default() };
        let kept = MdsReadOptions { unpacked: Some(unpacked.clone()), ..MdsReadOptions::default() };
        for options in [least, kept.clone(), kept] {
            let dataset = MdsDataset::open_with(dir.path(), options).unwrap();
            for i in (0..50).map(|i| i * 17 % 50) {
                assert_eq!(dataset.get(i).unwrap(), caption(i), "{compression}");
            }
        }
        assert_eq!(fs::read_dir(unpacked).unwrap().count(), 8);
    }
}

#[test]
fn an_interrupted_writer_is_continued() {
    let write = |writer: &mut MdsWriter, range: std::ops::Range<usize>| {
        range.for_each(|i| writer.write(&caption(i)).unwrap());
    };
    let options = || MdsOptions { size_limit: Some(700), ..MdsOptions::default() };
    let whole = tempfile::tempdir().unwrap();
    let mut writer = MdsWriter::create(whole.path(), caption_columns(), options()).unwrap();
    write(&mut writer, 0..40);
    let index = writer.finish().unwrap();
    for end in [0, 1, 13, 39] {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = MdsWriter::create(dir.path(), caption_columns(), options()).unwrap();
        write(&mut writer, 0..end);
        drop(writer);
        assert!(matches!(MdsDataset::open(dir.path()), Err(Error::Mds(_))), "no index yet");
        let other = MdsOptions { size_limit: Some(800), ..MdsOptions::default() };
        let refused = MdsWriter::resume(dir.path(), caption_columns(), other).unwrap_err();
        assert!(matches!(refused, Error::ProgressMismatch { .. }), "{refused}");
        let mut writer = MdsWriter::resume(dir.path(), caption_columns(), options()).unwrap();
        let done = writer.samples_done();
        assert!(done <= end);
        write(&mut writer, done..40);
        assert_eq!(writer.finish().unwrap(), index);
        assert_eq!(all(dir.path()).unwrap(), (0..40).map(caption).collect::<Vec<_>>());
        let refused = MdsWriter::create(dir.path(), caption_columns(), options()).unwrap_err();
        assert!(matches!(refused, Error::FolderInUse { .. }), "{refused}");
    }
}

#[test]
fn parts_that_do_not_fit_their_column_are_named() {
    let table = [
        ("uint8", "256", "`256` is no value of this column"),
        ("int32", "1.5", "`1.5` is no value of this column"),
        ("float32", "wide", "`wide` is no value of this column"),
        ("str_int", "12x", "`12x` is no number"),
        ("str_decimal", "", "`` is no number"),
        ("json", "{1}", "no JSON"),
        ("ndarray", "x", "not a .npy array"),
        ("pil", "x", "image cannot be decoded"),
        ("pkl", "x", "pickles are not written"),
    ];
    for (encoding, part, expected) in table {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = MdsWriter::create(dir.path(), columns(&[("c", encoding)]), MdsOptions::default()).unwrap();
        let error = writer.write(&Sample::new("k").with("c", part)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("sample k, column `c`"), "{encoding}: {error}");
        let missing = writer.write(&Sample::new("k").with("d", part)).unwrap_err().to_string();
        assert!(encoding == "pkl" || missing.contains("no such part"), "{missing}");
    }
    let bytes = Sample::new("k").with("c", vec![0xff]);
    let dir = tempfile::tempdir().unwrap();
    let mut writer = MdsWriter::create(dir.path(), columns(&[("c", "str")]), MdsOptions::default()).unwrap();
    assert!(writer.write(&bytes).unwrap_err().to_string().contains("not UTF-8"));
    for wrong in
        ["ndarray:float99", "ndarray:float32:0", "ndarray:float32:99999999999,99999999999", "list[int]", "Str", ""]
    {
        assert!(wrong.parse::<calotype_data::mds::Encoding>().is_err(), "{wrong}");
    }
}

/// Damage that is done to a dataset, and the error that follows.
type Case = (&'static str, fn(&mut Value), fn(&mut Vec<u8>), &'static str);

fn same(_: &mut Vec<u8>) {}

fn keep(_: &mut Value) {}

fn set(bytes: &mut [u8], place: usize, value: u32) {
    bytes[4 * place..4 * place + 4].copy_from_slice(&value.to_le_bytes());
}

/// Sets a field of the first shard's entry.
macro_rules! field {
    ($($key:literal)/+ = $value:expr) => {
        |index: &mut Value| index["shards"][0]$([$key])+ = json!($value)
    };
}

/// Cases for `plain`: the changes go to the index and to the first shard, whose length and hashes are then corrected.
const SHARD_CASES: [Case; 17] = [
    ("empty", keep, |b| b.clear(), "the shard has only 0 bytes"),
    ("count", keep, |b| set(b, 0, 77), "holds 77 samples, the index says 3"),
    ("count in the index", field!("samples" = 1), same, "holds 3 samples, the index says 1"),
    ("count beyond memory", field!("samples" = u32::MAX), |b| set(b, 0, u32::MAX), "take a table of 17179869188 bytes"),
    ("first offset", keep, |b| set(b, 1, 3), "entry 0 points to byte 3"),
    ("offsets backwards", keep, |b| set(b, 2, 20), "entry 1 points to byte 20"),
    ("offset past the end", keep, |b| set(b, 2, 1 << 30), "entry 1 points to byte 1073741824"),
    (
        "end before the end",
        keep,
        |b| {
            let n = b.len() as u32 - 1;
            set(b, 4, n)
        },
        "the last sample ends at byte",
    ),
    ("cut", keep, |b| b.truncate(b.len() - 10), "points to byte"),
    (
        "size in a sample",
        keep,
        |b| {
            let at = first_sample(b);
            b[at + 3] = 0x7f
        },
        "of a sample of",
    ),
    (
        "smaller size",
        keep,
        |b| {
            let at = first_sample(b);
            b[at + 4] -= 1
        },
        "sample 0, column",
    ),
    (
        "text",
        keep,
        |b| {
            let at = find(b, "läuft");
            b[at] = 0xff
        },
        "column `a_str`: not UTF-8",
    ),
    (
        "json",
        keep,
        |b| {
            let at = find(b, "{\"n\"");
            b[at] = b'}'
        },
        "column `json`: no JSON",
    ),
    (
        "array type",
        keep,
        |b| {
            let at = find(b, "\u{9}\u{8}\u{2}\u{2}");
            b[at] = 99
        },
        "column `nd`: 99 is no type of array",
    ),
    (
        "array shape",
        keep,
        |b| {
            let at = find(b, "\u{9}\u{8}\u{2}\u{2}");
            b[at + 2] = 3
        },
        "takes 6 bytes, 4 are there",
    ),
    (
        "array rank",
        keep,
        |b| {
            let at = find(b, "\u{9}\u{8}\u{2}\u{2}");
            b[at + 1] = 0xff
        },
        "cut inside the lengths of 63 axes",
    ),
    (
        "image",
        keep,
        |b| {
            let at = find(b, "\u{3}\0\0\0RGB");
            b[at - 8] = 6
        },
        "6x4 pixels of mode RGB from 60 bytes",
    ),
];

/// Cases in which the index contradicts itself or the files.
const INDEX_CASES: [Case; 24] = [
    ("no shards", |i| *i = json!({"version": 2, "shards": []}), same, "holds no samples"),
    ("version 1", |i| i["version"] = json!(1), same, "the index has version 1; version 2 is read"),
    ("version 3 of a shard", field!("version" = 3), same, "shard shard.00000.mds has version 3"),
    ("no version", |i| *i = json!({"shards": []}), same, "missing field `version`"),
    ("format", field!("format" = "csv"), same, "is of format `csv`"),
    ("a list", |i| *i = json!([1]), same, "not an index of MDS shards"),
    ("samples below zero", field!("samples" = -1), same, "invalid value"),
    (
        "samples overflow",
        |i| {
            for n in 0..2 {
                i["shards"][n]["samples"] = json!(u64::MAX)
            }
        },
        same,
        "numbers of samples overflow",
    ),
    (
        "names",
        |i| {
            i["shards"][0]["column_names"].as_array_mut().unwrap().pop();
        },
        same,
        "names, 27 encodings, 27 sizes",
    ),
    ("name twice", field!("column_names" / 0 = "a_int"), same, "`a_int` is there twice"),
    (
        "encoding",
        field!("column_encodings" / 0 = "video"),
        same,
        "column `a_bytes` has encoding `video`, which is not known",
    ),
    ("size", field!("column_sizes" / 1 = 4), same, "`a_int` is 4 bytes by the index, int is 8 bytes"),
    (
        "size of any length",
        field!("column_sizes" / 0 = 4),
        same,
        "`a_bytes` is 4 bytes by the index, bytes is of any length",
    ),
    ("other columns", |i| i["shards"][1]["column_encodings"][0] = json!("str"), same, "two datasets in one index"),
    (
        "other width",
        |i| {
            for n in 0..3 {
                i["shards"][n]["column_encodings"][1] = json!("uint64")
            }
        },
        same,
        "",
    ),
    ("path", field!("raw_data" / "basename" = "../shard.00000.mds"), same, "no path inside of the dataset's folder"),
    ("absent", field!("raw_data" / "basename" = "shard.00009.mds"), same, "named by the index but absent"),
    ("length", field!("raw_data" / "bytes" = 5), same, "the index says 5"),
    ("md5", field!("raw_data" / "hashes" / "md5" = "00"), same, "md5 is "),
    ("xxh64", field!("raw_data" / "hashes" / "xxh64" = "00"), same, "the index says 00; the file is damaged"),
    ("hash algorithm", field!("raw_data" / "hashes" / "crc" = "00"), same, "hash algorithm `crc` is not known"),
    (
        "one bit",
        keep,
        |b| {
            let n = b.len();
            b[n - 1] ^= 1
        },
        "md5 is ",
    ),
    (
        "zip_data alone",
        field!("zip_data" = json!({"basename": "x", "bytes": 1, "hashes": {}})),
        same,
        "only come together",
    ),
    ("compression alone", field!("compression" = "zstd"), same, "only come together"),
];

/// Cases for `zstd`; the changes go to the index and to the compressed shard, whose length is corrected.
const ZIP_CASES: [Case; 7] = [
    ("compression", field!("compression" = "bz2"), same, "compression `bz2` is not known; known are zstd"),
    ("wrong compression", field!("compression" = "gz"), same, "cannot be decompressed (gz)"),
    (
        "truncated",
        field!("zip_data" / "hashes" = json!({})),
        |b| b.truncate(b.len() / 2),
        "cannot be decompressed (zstd:7)",
    ),
    ("garbage", field!("zip_data" / "hashes" = json!({})), |b| b.fill(7), "cannot be decompressed (zstd:7)"),
    (
        "hash of the zip",
        keep,
        |b| {
            let n = b.len();
            b[n - 9] ^= 1
        },
        "shard.00000.mds.zstd: blake2b is",
    ),
    ("bomb", field!("raw_data" / "bytes" = 10), same, "decompresses to more than 10 bytes, the index says 10"),
    ("less than promised", field!("raw_data" / "bytes" = 1u64 << 40), same, "the index says 1099511627776; refused"),
];

fn find(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
}

fn first_sample(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize
}

/// Copies a golden dataset, damages it, and reads all of it.
fn damaged(name: &str, case: &Case, data: &str, correct_hashes: bool) -> Result<Vec<Sample>, Error> {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join(INDEX_FILE);
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let shard = dir.path().join(index["shards"][0][data]["basename"].as_str().unwrap());
    let mut bytes = fs::read(&shard).unwrap();
    case.2(&mut bytes);
    fs::write(&shard, &bytes).unwrap();
    if correct_hashes {
        index["shards"][0][data]["hashes"] = json!({});
    }
    index["shards"][0][data]["bytes"] = json!(bytes.len());
    case.1(&mut index);
    fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
    all(dir.path())
}

#[test]
fn damage_is_named() {
    let mut wrong = Vec::new();
    let runs = SHARD_CASES.iter().map(|case| ("plain", "raw_data", true, case));
    let runs = runs.chain(INDEX_CASES.iter().map(|case| ("plain", "raw_data", false, case)));
    for (name, data, correct, case) in runs.chain(ZIP_CASES.iter().map(|case| ("zstd", "zip_data", false, case))) {
        match damaged(name, case, data, correct) {
            Err(error) if !case.3.is_empty() && error.to_string().contains(case.3) => {}
            Ok(_) if case.3.is_empty() => {}
            other => wrong.push(format!("{}: {:?}", case.0, other.map(|_| "no error").map_err(|e| e.to_string()))),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_folder_without_index_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = all(dir.path()).unwrap_err().to_string();
    assert!(error.contains("index.json: there is no such file"), "{error}");
    assert!(matches!(all(&dir.path().join("nowhere")), Err(Error::MissingFolder { .. })));
    fs::write(dir.path().join(INDEX_FILE), b"{").unwrap();
    assert!(all(dir.path()).unwrap_err().to_string().contains("not an index of MDS shards"));
}

#[test]
fn pickles_are_data() {
    let index = |length: usize| {
        let mut index: Value = serde_json::from_slice(&fs::read(golden("odd").join(INDEX_FILE)).unwrap()).unwrap();
        let shard = &mut index["shards"][0];
        shard["column_names"] = json!(["pkl"]);
        shard["column_encodings"] = json!(["pkl"]);
        shard["column_sizes"] = json!([null]);
        shard["samples"] = json!(1);
        shard["raw_data"]["bytes"] = json!(length);
        serde_json::to_vec(&index).unwrap()
    };
    let read = |pickle: &[u8]| {
        let head = [1u32, 12, 16 + pickle.len() as u32, pickle.len() as u32].map(u32::to_le_bytes).concat();
        let bytes = [head.as_slice(), pickle].concat();
        read_shard(&index(bytes.len()), &bytes)
            .map(|samples| samples[0].parts["pkl"].clone())
            .map_err(|e| e.to_string())
    };
    assert_eq!(read(b"\x80\x02}U\x01a](K\x01NG?\xf8\0\0\0\0\0\0es.").unwrap(), br#"{"a":[1,null,1.5]}"#);
    let table: [(&[u8], &str); 5] = [
        (b"cos\nsystem\n(S'true'\ntR.", "`os.system`, which is not on the list"),
        (b"\x80\x02]q\0h\0a.", "too often"),
        (b"\x80\x02}K\x01K\x02s.", "a dictionary's key is no text"),
        (b"\x80\x02G\x7f\xf8\0\0\0\0\0\0.", "NaN has no JSON form"),
        (b"junk", "pickle at byte 0"),
    ];
    for (pickle, expected) in table {
        let error = read(pickle).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn random_damage_is_an_error_or_another_value() {
    for name in ["plain", "odd"] {
        let text = fs::read(golden(name).join(INDEX_FILE)).unwrap();
        let bytes = fs::read(golden(name).join("shard.00000.mds")).unwrap();
        assert!(read_shard(&text, &bytes).is_ok());
        for number in 0..600 {
            let mut random = Stream::new(1841, Purpose::Noise, number);
            let (mut text, mut bytes) = (text.clone(), bytes.clone());
            let target = if number % 3 == 0 { &mut text } else { &mut bytes };
            for _ in 0..=random.below(3) {
                let place = random.below(target.len() as u64) as usize;
                target[place] = random.next_u32() as u8;
            }
            if number % 10 == 0 {
                target.truncate(random.below(target.len() as u64) as usize);
            }
            // What comes out does not matter, that something does: no panic, no endless loop, no memory beyond measure.
            let _ = read_shard(&text, &bytes);
        }
    }
}
