//! Shards and tables as other people's programs write them: long names, gzip, members sorted by kind, columns of all types.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, Int64Builder, ListBuilder, MapBuilder, StringBuilder};
use arrow_array::types::{Float16Type, Int32Type};
use arrow_array::{
    ArrayRef, BinaryArray, Date32Array, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Float32Array,
    Float64Array, LargeListArray, PrimitiveArray, RecordBatch, StringArray, StructArray, Time64MicrosecondArray,
    TimestampMicrosecondArray, TimestampNanosecondArray, UInt64Array,
};
use arrow_schema::{DataType, Field};
use calotype_data::source::{CaptionChoice, ParquetSource, ShardSet, SourceOptions, open};
use calotype_data::webdataset::{TarShard, is_storable};
use calotype_data::{
    Control, Dataset, Error, Loader, LoaderConfig, OrderConfig, Sample, SampleRef, ShardLimits, ShardWriter, Source,
    emoji,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar of `members` (name, bytes), as GNU tar writes it.
fn tar(members: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn open_default(path: &Path) -> calotype_data::Result<Arc<dyn Source>> {
    open(&path.display().to_string(), &SourceOptions::default())
}

fn samples(source: &dyn Source) -> Vec<Sample> {
    (0..source.len()).map(|i| source.get(i).unwrap().into_sample()).collect()
}

#[test]
fn no_sample_is_refused_for_its_name() {
    let keys = [
        "日本語の写真".repeat(6),
        "絵".repeat(34),
        format!("{}/{}", "フォルダ".repeat(30), "名前".repeat(60)),
        format!("{}/a", "d".repeat(155)),
        "x".repeat(5000),
        "a//b".to_owned(),
        "./here".to_owned(),
        " space \n line".to_owned(),
        "b".repeat(96),
        "c".repeat(97),
    ];
    let dir = tempfile::tempdir().unwrap();
    let all: Vec<Sample> = keys
        .iter()
        .map(|key| Sample::new(key).with("jpg", vec![7; 700]).with("", "empty").with("seg.png", "x"))
        .collect();
    let write = |folder: &Path| {
        let mut writer = ShardWriter::create(folder, "x", ShardLimits { samples: 100, bytes: 20_000 }).unwrap();
        all.iter().for_each(|sample| writer.write(sample).unwrap());
        writer.finish().unwrap()
    };
    let index = write(&dir.path().join("one"));
    assert_eq!(index, write(&dir.path().join("two")));
    for shard in &index.shards {
        // The index's lengths are those of the files, headers of long names included.
        let path = dir.path().join("one").join(&shard.file);
        assert_eq!(fs::metadata(&path).unwrap().len(), shard.bytes);
        assert!(shard.samples == 1 || shard.bytes <= 20_000);
    }
    let dataset = Dataset::open(dir.path().join("one")).unwrap();
    dataset.verify(&mut Control::default()).unwrap();
    assert_eq!(samples(&dataset), all);
    assert!(all.iter().all(|sample| sample.parts.keys().all(|part| is_storable(&sample.key, part))));
    for (key, part) in
        [("", "jpg"), ("a.b", "jpg"), ("a", "JPG"), ("a\0", "jpg"), ("__a", "x__"), ("../a", "jpg"), ("/a", "jpg")]
    {
        assert!(!is_storable(key, part), "{key}.{part}");
        let mut writer = ShardWriter::create(dir.path().join("bad"), "x", ShardLimits::default()).unwrap();
        let error = writer.write(&Sample::new(key).with(part, "x")).unwrap_err();
        assert!(matches!(error, Error::InvalidName { .. }), "{error}");
    }
}

#[test]
fn damaged_extended_headers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("good");
    let mut writer = ShardWriter::create(&folder, "x", ShardLimits::default()).unwrap();
    writer.write(&Sample::new("絵".repeat(60)).with("txt", "caption")).unwrap();
    writer.finish().unwrap();
    let good = fs::read(folder.join("x-000000.tar")).unwrap();
    let path = dir.path().join("x.tar");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        ShardSet::open(&path.display().to_string(), &SourceOptions::default())
    };
    assert_eq!(open(&good).unwrap().len(), 1);
    // Cut inside of the extended header, its record, the header and the data.
    for cut in [0, 100, 511, 512, 600, 1024, 1300, 1536, 1540] {
        let error = open(&good[..cut]).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("x.tar"), "{cut}: {error}");
    }
    // No damage of a byte ends the program; a record that cannot be read leaves the short name, or is an error.
    for at in 0..1536 {
        for value in [0, b'9', 0xff] {
            let mut damaged = good.clone();
            damaged[at] = value;
            if let Ok(shards) = open(&damaged) {
                assert!(shards.len() <= 1);
            }
        }
    }
}

#[test]
fn gzipped_shards_are_read_whatever_they_are_called() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    let mut writer = ShardWriter::create(&plain, "x", ShardLimits { samples: 7, bytes: 1 << 30 }).unwrap();
    let all: Vec<Sample> =
        (0..100).map(|i| Sample::new(format!("{i:03}")).with("txt", format!("caption {i}"))).collect();
    all.iter().for_each(|sample| writer.write(sample).unwrap());
    let index = writer.finish().unwrap();
    // gzip under three names, in several streams, beside a shard that is not compressed.
    let packed = dir.path().join("packed");
    fs::create_dir(&packed).unwrap();
    for (number, shard) in index.shards.iter().enumerate() {
        let bytes = fs::read(plain.join(&shard.file)).unwrap();
        let (ending, bytes) = match number % 4 {
            0 => ("tar.gz", gzip(&bytes)),
            1 => ("tgz", [gzip(&bytes[..1000]), gzip(&bytes[1000..])].concat()),
            2 => ("tar", gzip(&bytes)),
            _ => ("tar", bytes),
        };
        fs::write(packed.join(format!("{number:03}.{ending}")), bytes).unwrap();
    }
    let source = open_default(&packed).unwrap();
    assert_eq!(samples(source.as_ref()), all);
    assert_eq!(source.blocks(), [vec![7; 14], vec![2]].concat());
    // A file by its name, a pattern, and the loader's threads.
    let one = format!("{}/{{000..000}}.tar.gz::{}/001.tgz", packed.display(), packed.display());
    assert_eq!(samples(open(&one, &SourceOptions::default()).unwrap().as_ref()), all[..14]);
    assert_eq!(samples(open_default(&packed.join("002.tar")).unwrap().as_ref()), all[14..21]);
    let text = |_: u64, sample: &SampleRef<'_>| sample.text("txt").map(str::to_owned);
    let config = LoaderConfig { end: Some(100), threads: 4, ..LoaderConfig::new(10) };
    let order = Arc::new(source.order(&OrderConfig::default()).unwrap());
    let mut seen: Vec<String> =
        Loader::new(Arc::clone(&source), order, config, text).unwrap().flat_map(|batch| batch.unwrap().items).collect();
    seen.sort();
    let mut expected: Vec<String> = (0..100).map(|i| format!("caption {i}")).collect();
    expected.sort();
    assert_eq!(seen, expected);
    // Beside images, a compressed tar is what they came in.
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    fs::write(images.join("a.png"), emoji::pairs()[0].png).unwrap();
    fs::write(images.join("all.tar.gz"), gzip(b"")).unwrap();
    assert_eq!(open_default(&images).unwrap().get(0).unwrap().sample().key(), "a");
}

#[test]
fn compressed_shards_that_cannot_be_read_say_how_they_are_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let whole = gzip(&tar(&[("a.txt", "one"), ("b.txt", "two")]));
    for (name, bytes, part) in [
        ("cut.tar", whole[..whole.len() / 2].to_vec(), "its gzip stream is cut or damaged"),
        ("cut.tar.gz", whole[..whole.len() - 3].to_vec(), "its gzip stream is cut or damaged"),
        ("more.tgz", [&whole[..], b"\x07\x08\x09"].concat(), "3 bytes behind its gzip stream"),
        ("none.tar.gz", gzip(b"\x1b[31m\x00\xff no tar".repeat(99).as_slice()), "is no tar;"),
        ("twice.tar.gz", gzip(&whole), "inside of gzip, a file that is compressed by gzip once more"),
        ("zstd.tar.gz", gzip(b"\x28\xb5\x2f\xfd\x00\x00"), "inside of gzip, a file that is compressed by zstd"),
        ("method.tar.gz", [&b"\x1f\x8b"[..], &[b'x'; 500]].concat(), "its gzip stream is cut or damaged"),
        ("page.tar", b"<!DOCTYPE html>\n<p>404</p>".to_vec(), "is no tar (it begins with `<!DOCTYPE html>"),
        ("lfs.tar", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(), "a pointer of Git LFS"),
        ("a.tar.xz", b"\xfd7zXZ\0\0\0".to_vec(), "is compressed by xz, which is not read in place"),
        ("all.zip", b"PK\x03\x04".to_vec(), "is compressed by zip"),
        ("z.tar", b"\x28\xb5\x2f\xfd\x00\x00".to_vec(), "is compressed by zstd"),
        ("x.tar", b"\xfd7zXZ\0\0\0".to_vec(), "is compressed by xz"),
        ("b.tar", b"BZh91AY".to_vec(), "is compressed by bzip2"),
        ("p.tar", b"PK\x03\x04".to_vec(), "is compressed by zip"),
        ("raw.tar", b"\x1b[2J\x07\x00\x9b".repeat(200), "is no tar;"),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = open_default(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(part), "{name}: {error}");
        assert!(!error.contains(char::is_control), "{name}: {error:?}");
    }
    // A folder of nothing else says so, too.
    for name in ["a.tar.zst", "B.TXZ", "c.tar.bz2", "d.tar.lz4"] {
        let folder = dir.path().join(format!("folder of {name}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(name), b"?").unwrap();
        let error = open_default(&folder).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("which is not read in place (gzip is); unpack it: "), "{error}");
    }
    // The stages that repair take what lies in front of the damage.
    let cut = TarShard::open(&dir.path().join("cut.tar.gz")).unwrap();
    assert!(cut.damage().unwrap().to_string().contains("gzip") && cut.len() <= 1);
    // A dataset keeps its shards open, and says what to do instead.
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.tar"), &whole).unwrap();
    let error = Dataset::open(&folder).unwrap_err().to_string();
    assert!(error.contains("compressed by gzip") && error.contains("convert"), "{error}");
}

#[test]
fn members_that_are_sorted_by_kind_are_called_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    fs::write(&path, tar(&[("a.jpg", "A"), ("b.jpg", "B"), ("a.txt", "one"), ("b.txt", "two")])).unwrap();
    let error = open_default(&path).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Scattered { member, .. } if member == "a.txt"), "{error}");
    assert!(error.to_string().contains("sorted by kind") && error.to_string().contains("reorganize"), "{error}");
    let shard = TarShard::open(&path).unwrap();
    assert_eq!((shard.len(), shard.scattered()), (2, 2));
    assert_eq!(shard.get(1).unwrap().to_sample(), Sample::new("b").with("jpg", "B").with("txt", "two"));
    // A sample that comes again is a duplicate.
    fs::write(&path, tar(&[("a.jpg", "A"), ("a.txt", "one"), ("b.jpg", "B"), ("a.jpg", "A"), ("a.txt", "one")]))
        .unwrap();
    let error = open_default(&path).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::DuplicateKey { key, .. } if key == "a"), "{error}");
    let shard = TarShard::open(&path).unwrap();
    assert_eq!((shard.len(), shard.scattered()), (3, 0));
}

fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)));
    let batch = batch.unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Two images; the second row is null in the column that is not asked for.
fn images(second: bool) -> ArrayRef {
    let png = |i: usize| Some(emoji::pairs()[i].png);
    let bytes = BinaryArray::from_iter([png(0), if second { png(1) } else { None }]);
    let paths = StringArray::from(vec![Some("0.png"), second.then_some("1.png")]);
    let sides = Float32Array::from(vec![1.5, 2.5]);
    let field = |name: &str, kind: DataType| Arc::new(Field::new(name, kind, true));
    Arc::new(StructArray::from(vec![
        (field("bytes", DataType::Binary), Arc::new(bytes) as ArrayRef),
        (field("path", DataType::Utf8), Arc::new(paths) as ArrayRef),
        (field("weight", DataType::Float32), Arc::new(sides) as ArrayRef),
    ]))
}

#[test]
fn columns_of_all_types_are_carried() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let mut map = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
    for (key, value) in [("one", 1), ("two", 2)] {
        map.keys().append_value(key);
        map.values().append_value(value);
    }
    map.append(true).unwrap();
    map.append(false).unwrap();
    let png = emoji::pairs()[2].png;
    let mut frames = ListBuilder::new(BinaryBuilder::new());
    [png, b"??"].into_iter().for_each(|bytes| frames.values().append_value(bytes));
    frames.append(true);
    frames.append(true);
    let half = |value: f32| half::f16::from_f32(value);
    let numbers = [Some(vec![Some(1)]), None];
    write_parquet(
        &path,
        vec![
            ("image", images(true)),
            ("conditioning_image", images(false)),
            ("text", Arc::new(BinaryArray::from_iter_values([b"one", b"two"]))),
            ("made", Arc::new(TimestampMicrosecondArray::from(vec![Some(1_709_164_800_500_000), None]))),
            ("seen", Arc::new(TimestampNanosecondArray::from(vec![0, 1]).with_timezone("UTC"))),
            ("day", Arc::new(Date32Array::from(vec![19_782, -1]))),
            ("at", Arc::new(Time64MicrosecondArray::from(vec![45_000_000_000, 1]))),
            (
                "price",
                Arc::new(
                    Decimal128Array::from(vec![12_345_678_901_234_567_890, -5])
                        .with_precision_and_scale(30, 2)
                        .unwrap(),
                ),
            ),
            ("score", Arc::new(PrimitiveArray::<Float16Type>::from(vec![half(0.5), half(f32::NAN)]))),
            ("exact", Arc::new(Float64Array::from(vec![0.1, f64::INFINITY]))),
            ("large", Arc::new(UInt64Array::from(vec![u64::MAX, 0]))),
            ("tags", Arc::new(map.finish())),
            ("hash", Arc::new(FixedSizeBinaryArray::try_from_iter([[1u8, 2], [3, 4]].into_iter()).unwrap())),
            ("style", Arc::new(DictionaryArray::<Int32Type>::from_iter(["flat", "flat"]))),
            ("frames", Arc::new(frames.finish())),
            ("long", Arc::new(LargeListArray::from_iter_primitive::<Int32Type, _, _>(numbers))),
        ],
    );
    let source = open_default(&path).unwrap();
    let all = samples(source.as_ref());
    let parts = |i: usize| all[i].parts.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
    assert_eq!(parts(0), "conditioning_image.png frames.0.png frames.1.bin json png txt");
    assert_eq!(parts(1), "json png txt");
    assert_eq!(all[0].text("txt").unwrap(), "one");
    assert_eq!((all[0].part("frames.0.png").unwrap(), all[0].part("frames.1.bin").unwrap()), (png, &b"??"[..]));
    let facts = |i: usize| serde_json::from_str::<Value>(all[i].text("json").unwrap()).unwrap();
    // The same texts as Python's isoformat() and str(decimal); pandas and json write not-a-number as NaN, which JSON lacks.
    assert_eq!(
        facts(0),
        json!({
            "image": {"weight": 1.5}, "conditioning_image": {"weight": 1.5},
            "made": "2024-02-29T00:00:00.500", "seen": "1970-01-01T00:00:00Z", "day": "2024-02-29", "at": "12:30:00",
            "price": "123456789012345678.90", "score": 0.5, "exact": 0.1, "large": u64::MAX,
            "tags": {"one": 1, "two": 2}, "hash": "AQI=", "style": "flat", "long": [1],
        })
    );
    assert_eq!(
        facts(1),
        json!({
            "image": {"weight": 2.5}, "conditioning_image": {"bytes": null, "path": null, "weight": 2.5},
            "made": null, "seen": "1970-01-01T00:00:00.000000001Z", "day": "1969-12-31", "at": "00:00:00.000001",
            "price": "-0.05", "score": null, "exact": null, "large": 0, "tags": null, "hash": "AwQ=", "style": "flat",
            "long": null,
        })
    );
    let note = |column: &str| {
        format!("column `{column}`: null for values that are infinite or not a number, which JSON does not have: 1")
    };
    assert_eq!(source.notes(), [note("exact"), note("score")]);
}

#[test]
fn images_that_are_none_stop_with_their_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let png = emoji::pairs()[0].png;
    write_parquet(&path, vec![("image", Arc::new(BinaryArray::from_iter_values([png, b"xxx", b"", b"II*\0"])))]);
    let source = open_default(&path).unwrap();
    let error = |row: usize| source.get(row).map(|_| ()).unwrap_err();
    assert!(error(1).concerns_one_sample() && error(1).to_string().contains("row 2: its image is none of PNG"));
    assert!(error(2).to_string().contains("row 3: its image is empty"), "{}", error(2));
    assert_eq!(source.get(3).unwrap().sample().part("tif").unwrap(), b"II*\0");
}

#[test]
fn lists_of_captions_give_one_and_keep_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let mut captions = ListBuilder::new(StringBuilder::new());
    for list in [&["a", "b", "c"][..], &[], &["d"]] {
        list.iter().for_each(|caption| captions.values().append_value(caption));
        captions.append(true);
    }
    let pngs = BinaryArray::from_iter_values((0..3).map(|i| emoji::pairs()[i].png));
    write_parquet(&path, vec![("image", Arc::new(pngs)), ("captions", Arc::new(captions.finish()))]);
    let of = |choice: CaptionChoice| {
        let options = SourceOptions { captions: choice, ..SourceOptions::default() };
        samples(&ParquetSource::open(&path, &options).unwrap())
    };
    let first = of(CaptionChoice::First);
    let texts = |all: &[Sample]| all.iter().map(|sample| sample.text("txt").unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(texts(&first), ["a", "", "d"]);
    assert_eq!(first[0].text("json").unwrap(), r#"{"captions":["a","b","c"]}"#);
    assert!(first[1].part("json").is_err());
    let random: Vec<Vec<String>> = (0..20).map(|seed| texts(&of(CaptionChoice::Random { seed }))).collect();
    assert!(random.iter().any(|texts| texts[0] != "a") && random.iter().all(|texts| texts[1..] == ["", "d"]));
    assert_eq!(texts(&of(CaptionChoice::Random { seed: 3 })), random[3]);
}

#[test]
fn bad_rows_of_metadata_are_left_out_and_counted_on_request() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png", "c.png"] {
        fs::write(dir.path().join(name), emoji::pairs()[0].png).unwrap();
    }
    // Python's json.dumps writes NaN.
    let rows = "{\"file_name\": \"a.png\", \"text\": \"one\", \"score\": NaN}\n{\"file_name\": \"b.png\", \"text\": \n\
                {\"file_name\": \"gone.png\", \"text\": \"x\"}\n{\"file_name\": \"c.png\", \"text\": NaN, \"score\": -Infinity}\n";
    fs::write(dir.path().join("metadata.jsonl"), rows).unwrap();
    let error = open_default(dir.path()).map(|_| ()).unwrap_err();
    assert!(error.concerns_one_sample() && error.to_string().contains("row 2"), "{error}");
    let options = SourceOptions { skip_bad: true, ..SourceOptions::default() };
    let source = open(&dir.path().display().to_string(), &options).unwrap();
    let all = samples(source.as_ref());
    assert_eq!(all.iter().map(|sample| sample.key.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(all[0].text("json").unwrap(), r#"{"score":null}"#);
    assert!(all[1].text("txt").is_err());
    let left_out = source.left_out();
    assert_eq!(left_out["rows of the metadata that cannot be used"], 2);
    assert_eq!(left_out["without a row in the metadata"], 1);
}
