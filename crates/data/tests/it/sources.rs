//! Folders of images, parquet files, and how they are told apart.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, StringBuilder};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field};
use calotype_data::image::RgbImage;
use calotype_data::source::{FolderSource, ParquetSource, SourceKind, SourceOptions, open};
use calotype_data::{
    Error, Loader, LoaderConfig, OnError, Quarantine, Sample, SampleRef, ShardLimits, ShardWriter, Source, emoji,
};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

/// An image with its caption.
fn image(i: usize) -> (Vec<u8>, String) {
    let pair = &emoji::pairs()[i];
    (pair.png.to_vec(), pair.name.to_owned())
}

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let extension = Path::new(name).extension().unwrap_or_default().to_ascii_lowercase();
        match extension == "png" || extension == "jpg" {
            true => put(dir.path(), name, &image(0).0),
            false => put(dir.path(), name, text),
        }
    }
    dir
}

fn open_folder(dir: &Path) -> calotype_data::Result<FolderSource> {
    FolderSource::open(dir, &SourceOptions::default())
}

fn samples(source: &dyn Source) -> Vec<Sample> {
    (0..source.len()).map(|i| source.get(i).unwrap().into_sample()).collect()
}

/// Keys with the parts that are texts.
fn texts(source: &dyn Source) -> Vec<String> {
    let line = |sample: Sample| {
        let parts = sample.parts.iter().map(|(name, bytes)| match std::str::from_utf8(bytes) {
            Ok(text) if name != "png" && name != "jpg" => format!("{name}={text}"),
            _ => name.clone(),
        });
        format!("{}: {}", sample.key, parts.collect::<Vec<_>>().join(", "))
    };
    samples(source).into_iter().map(line).collect()
}

#[test]
fn metadata_tables_give_captions_labels_and_the_rest() {
    let lines = "{\"file_name\": \"b.png\", \"text\": \"a bee\", \"label\": 3, \"size\": [1, 2]}\n\
                 {\"file_name\": \"./deep/a.b.png\", \"text\": null, \"label\": null, \"size\": null}\n";
    let files =
        [("b.png", ""), ("deep/a.b.png", ""), ("unnamed.png", ""), ("notes.txt", ""), ("metadata.jsonl", lines)];
    let dir = folder(&files);
    let source = open_folder(dir.path()).unwrap();
    assert_eq!(
        texts(&source),
        [
            "b: cls=3, json={\"size\":[1,2]}, png, txt=a bee".to_owned(),
            "deep/a_b: json={\"size\":null}, png".to_owned(),
        ]
    );
    assert_eq!(source.left_out(), BTreeMap::from([("without a row in the metadata", 1)]));
    assert_eq!(source.get(0).unwrap().sample().part("png").unwrap(), image(0).0);
    // The same by CSV, in the folder of the images, the caption by another column; and by the table's own path.
    let dir = folder(&[("deep/x.png", ""), ("deep/metadata.csv", "file_name,name,text\nx.png,\"X, the\",no\n")]);
    let options = SourceOptions { caption_column: Some("name".to_owned()), ..SourceOptions::default() };
    for path in [dir.path().to_path_buf(), dir.path().join("deep/metadata.csv")] {
        let source = open(&path.display().to_string(), &options).unwrap();
        assert!(texts(source.as_ref())[0].ends_with("x: json={\"text\":\"no\"}, png, txt=X, the"));
    }
}

#[test]
fn an_image_with_rows_in_two_tables_is_told_with_both() {
    let csv = "file_name,text\na.png,one\nb.png,two\n";
    let jsonl = "{\"file_name\": \"b.png\", \"text\": \"two\"}\n";
    let dir = folder(&[("a.png", ""), ("b.png", ""), ("metadata.csv", csv), ("metadata.jsonl", jsonl)]);
    let error = open_folder(dir.path()).map(|_| ()).unwrap_err().to_string();
    let named = format!("row 2 of {} has named", dir.path().join("metadata.csv").display());
    assert!(error.contains("metadata.jsonl, row 1: names `b.png`") && error.contains(&named), "{error}");
}

#[test]
fn caption_files_and_class_folders_are_told_apart() {
    let kohya =
        folder(&[("1.png", ""), ("1.txt", "one"), ("2.JPG", ""), ("2.caption", "two"), ("3.png", ""), ("note.md", "")]);
    assert_eq!(texts(&open_folder(kohya.path()).unwrap()), ["1: png, txt=one", "2: jpg, txt=two", "3: png"]);
    assert!(open_folder(kohya.path()).unwrap().left_out().is_empty());
    let capital =
        folder(&[("1.PNG", ""), ("1.TXT", "one"), ("2.png", ""), ("2.TXT", "TWO"), ("2.txt", "two"), ("3.Txt", "x")]);
    let source = open_folder(capital.path()).unwrap();
    assert_eq!(texts(&source), ["1: png, txt=one", "2: png, txt=two"]);
    assert_eq!(source.left_out()["with a caption file and no image of its name"], 1, "{:?}", source.left_out());
    let alone =
        [("1.png", ""), ("1.txt", "one"), ("2.txt", "two"), ("2.caption", "two"), ("3.heic", ""), ("3.txt", "three")];
    let left_out = open_folder(folder(&alone).path()).unwrap().left_out();
    assert_eq!(left_out["with a caption file and no image of its name"], 1, "{left_out:?}");
    let classes = folder(&[("dog/1.png", ""), ("cat/x/1.png", ""), ("cat/2.png", ""), (".hidden/3.png", "")]);
    let source = open_folder(classes.path()).unwrap();
    assert_eq!(texts(&source), ["cat/2: cls=0, png", "cat/x/1: cls=0, png", "dog/1: cls=1, png"]);
    assert_eq!(source.meta()["classes"], serde_json::json!(["cat", "dog"]));
    let plain = folder(&[("1.png", ""), ("1.jpg", ""), ("sub/2.png", "")]);
    assert_eq!(texts(&open_folder(plain.path()).unwrap()), ["1: jpg", "1_png: png", "sub/2: png"]);
}

#[test]
fn names_that_are_not_their_files_are_told() {
    let dir = folder(&[("a.b.png", ""), ("c.png", ""), ("c.jpg", "")]);
    let notes = open_folder(dir.path()).unwrap().notes();
    assert!(notes.len() == 1 && notes[0].starts_with("`a.b.png` is sample `a_b`: dots of"), "{notes:?}");
    assert!(notes[0].ends_with(", and 1 more sample is named so"), "{notes:?}");
    assert!(open_folder(folder(&[("a.png", "")]).path()).unwrap().notes().is_empty());
}

#[test]
fn a_star_is_told_what_a_pattern_is() {
    let dir = folder(&[("a.png", "")]);
    for name in ["*.tar", "shards/part-?.tar"] {
        let spec = dir.path().join(name).display().to_string();
        let error = open(&spec, &SourceOptions::default()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("{000000..000005}.tar"), "{error}");
    }
}

#[test]
fn quarantined_images_are_left_out() {
    let dir = folder(&[("a/1.png", ""), ("a/2.png", ""), ("b/3.png", "")]);
    let before = open_folder(dir.path()).unwrap().digest();
    let mut list = Quarantine::new();
    list.insert("a/2.png", "a/2", "odd");
    list.write(dir.path()).unwrap();
    let source = open_folder(dir.path()).unwrap();
    assert_eq!(texts(&source), ["a/1: cls=0, png", "b/3: cls=1, png"]);
    assert_eq!(source.left_out(), BTreeMap::from([("in quarantine", 1)]));
    assert_ne!(source.digest(), before);
    list.insert("a/9.png", "a/9", "gone");
    list.write(dir.path()).unwrap();
    assert!(matches!(open_folder(dir.path()), Err(Error::BadIndex { .. })));
}

#[test]
fn links_that_lead_nowhere_are_counted() {
    let dir = folder(&[("1.png", ""), ("sub/2.png", "")]);
    let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, dir.path().join(name)).unwrap();
    link(Path::new("gone.png"), "3.png");
    link(Path::new("gone"), "album");
    link(dir.path(), "sub/circle");
    let source = open_folder(dir.path()).unwrap();
    assert_eq!(source.len(), 2);
    assert_eq!(source.left_out(), BTreeMap::from([("linked to nothing, or to a folder around the link", 3)]));
    let opened = open(dir.path().to_str().unwrap(), &SourceOptions::default()).unwrap();
    assert_eq!((opened.len(), opened.members()), (2, source.members()));
    // A table that is not there would be missed.
    link(Path::new("gone.parquet"), "x.parquet");
    let error = ParquetSource::open(dir.path(), &SourceOptions::default()).map(drop).unwrap_err().to_string();
    assert!(error.contains("x.parquet"), "{error}");
}

#[test]
fn a_folder_is_known_by_what_is_in_it_and_not_by_its_place() {
    let dir = folder(&[("1.png", ""), ("1.txt", "one"), ("2.png", "")]);
    let known = |dir: &Path| open_folder(dir).unwrap().members().remove(0);
    let before = known(dir.path());
    let moved = tempfile::tempdir().unwrap();
    for name in ["1.png", "1.txt", "2.png"] {
        put(moved.path(), name, fs::read(dir.path().join(name)).unwrap());
    }
    assert_eq!((before.samples, &known(moved.path()).digest), (2, &before.digest));
    // Repainted in as many bytes.
    let mut image = fs::read(dir.path().join("2.png")).unwrap();
    *image.last_mut().unwrap() ^= 1;
    put(dir.path(), "2.png", &image);
    assert_ne!(known(dir.path()).digest, before.digest);
    put(moved.path(), "1.txt", "three");
    assert_ne!(known(moved.path()).digest, before.digest);
}

#[test]
fn an_image_that_cannot_be_decoded_is_named_once_with_its_file() {
    let dir = folder(&[("1.png", "")]);
    put(dir.path(), "p36.png", "");
    let source: Arc<dyn Source> = Arc::new(open_folder(dir.path()).unwrap());
    let order = Arc::new(calotype_data::GlobalOrder::sequential(2).unwrap());
    let decode = |_: u64, sample: &SampleRef<'_>| RgbImage::decode(sample.key(), sample.part("png")?);
    let config = LoaderConfig { end: Some(2), ..LoaderConfig::new(2) };
    let error = Loader::new(source, order, config, decode).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(error.starts_with(&dir.path().join("p36.png").display().to_string()), "{error}");
    assert_eq!(error.matches("sample `p36`").count(), 1, "{error}");
    assert!(error.contains("(0 bytes); mend or remove it") && error.contains("data.on_error=skip"), "{error}");
}

#[test]
fn an_image_that_goes_away_is_one_bad_sample() {
    let dir = folder(&[("1.png", ""), ("2.png", ""), ("3.png", "")]);
    let source: Arc<dyn Source> = Arc::new(open_folder(dir.path()).unwrap());
    fs::remove_file(dir.path().join("2.png")).unwrap();
    let error = source.get(1).unwrap_err();
    assert!(matches!(&error, Error::BadSample { key, .. } if key == "2") && error.concerns_one_sample());
    let order = Arc::new(calotype_data::GlobalOrder::sequential(3).unwrap());
    let decode = |_: u64, sample: &SampleRef<'_>| Ok::<_, Error>(sample.key().to_owned());
    let config = LoaderConfig { end: Some(3), on_error: OnError::Skip, ..LoaderConfig::new(3) };
    let mut loader = Loader::new(Arc::clone(&source), Arc::clone(&order), config.clone(), decode).unwrap();
    assert_eq!(loader.next().unwrap().unwrap().items, ["1", "3", "3"]);
    assert_eq!(loader.skipped(), 1);
    let fails = LoaderConfig { on_error: OnError::Fail, ..config };
    assert!(matches!(Loader::new(source, order, fails, decode).unwrap().next(), Some(Err(Error::BadSample { .. }))));
}

#[test]
fn folders_that_cannot_be_used_are_named() {
    let table: &[(&[(&str, &str)], &str)] = &[
        (&[("notes.txt", "")], "no images"),
        (
            &[("a.png", ""), ("metadata.jsonl", "{\"file_name\": \"b.png\"}\n")],
            "row 1: names `b.png`, which is not among",
        ),
        (&[("a.png", ""), ("metadata.jsonl", "{\"file\": \"a.png\"}\n")], "row 1: has no column `file_name`"),
        (&[("a.png", ""), ("metadata.jsonl", "{\"file_name\": 3}\n")], "row 1: its file name is not a text"),
        (
            &[("a.png", ""), ("metadata.jsonl", "{\"file_name\": \"../a.png\"}\n")],
            "only paths into the table's own folder",
        ),
        (
            &[("a.png", ""), ("metadata.jsonl", "{\"file_name\": \"/etc/a.png\"}\n")],
            "only paths into the table's own folder",
        ),
        (
            &[("a.png", ""), ("metadata.csv", "file_name,text\na.png,x\na.png,y\n")],
            "row 2: names `a.png`, which an earlier",
        ),
        (&[("a.png", ""), ("metadata.csv", "file_name,text\na.png\n")], "row 1: has 1 fields, the header 2"),
        (&[("a.png", ""), ("metadata.csv", "")], "has no header"),
        (
            &[("a.png", ""), ("metadata.csv", "path;text\na.png;x\n")],
            "metadata.csv: has no column of the images' names; it may be called file_name, image_file_name, image, and there \
             are: path;text; commas, semicolons or tabs",
        ),
        (
            &[("a.heic", ""), ("b.HEIF", "")],
            "known extensions: png, jpg, jpeg, webp, gif, bmp; 2 in a format that is not read (HEIC)",
        ),
        (&[("a.png", ""), ("metadata.jsonl", "{\"file_name\"")], "row 1: EOF"),
        (&[("a.png", ""), ("metadata.jsonl", "")], "no images"),
        (
            &[("a.png", ""), ("a.jpg", ""), ("a_png.png", ""), ("a_png.jpg", ""), ("quarantine.json", "{}")],
            "expected a sequence",
        ),
    ];
    for (files, part) in table {
        let dir = folder(files);
        let error = open_folder(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(part), "{files:?}: {error}");
    }
    let dir = folder(&[("a.png", ""), ("metadata.csv", "file_name,text\na.png,x\n")]);
    let options = SourceOptions { caption_column: Some("words".to_owned()), ..SourceOptions::default() };
    let error = FolderSource::open(dir.path(), &options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("no column `words`; it has: file_name, text"), "{error}");
    let lines = folder(&[("a.png", ""), ("metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": {\"en\": 1}}\n")]);
    let error = open_folder(lines.path()).unwrap().get(0).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("row 1: column `text` is an object"), "{error}");
}

/// A table in the layout of Hugging Face's datasets: images as structs of bytes and path.
fn batch(rows: std::ops::Range<usize>, null: Option<usize>) -> RecordBatch {
    let (mut bytes, mut paths) = (BinaryBuilder::new(), StringBuilder::new());
    for i in rows.clone() {
        match null == Some(i) {
            true => bytes.append_null(),
            false => bytes.append_value(image(i).0),
        }
        paths.append_value(format!("{i}.png"));
    }
    let field = |name: &str, kind: DataType| Arc::new(Field::new(name, kind, true));
    let images = StructArray::from(vec![
        (field("bytes", DataType::Binary), Arc::new(bytes.finish()) as ArrayRef),
        (field("path", DataType::Utf8), Arc::new(paths.finish()) as ArrayRef),
    ]);
    let captions = StringArray::from_iter_values(rows.clone().map(|i| image(i).1));
    let labels = Int64Array::from_iter_values(rows.clone().map(|i| i as i64 % 3));
    let names = StringArray::from_iter_values(rows.map(|i| format!("id.{i}")));
    RecordBatch::try_from_iter([
        ("image", Arc::new(images) as ArrayRef),
        ("caption", Arc::new(captions) as ArrayRef),
        ("label", Arc::new(labels) as ArrayRef),
        ("name", Arc::new(names) as ArrayRef),
    ])
    .unwrap()
}

fn write_parquet(path: &Path, batch: &RecordBatch, group: usize) {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn parquet_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    write_parquet(&dir.path().join("data/train-0.parquet"), &batch(0..10, Some(4)), 4);
    write_parquet(&dir.path().join("data/train-1.parquet"), &batch(10..15, None), 100);
    dir
}

#[test]
fn parquet_rows_come_back() {
    let dir = parquet_folder();
    let source = open(&dir.path().display().to_string(), &SourceOptions::default()).unwrap();
    assert_eq!((source.len(), source.blocks()), (15, vec![4, 4, 2, 5]));
    for i in (0..15).rev().filter(|i| *i != 4) {
        let (file, row) = if i < 10 { (0, i) } else { (1, i - 10) };
        let expected = Sample::new(format!("data/train-{file}-{row:08}"))
            .with("png", image(i).0)
            .with("txt", image(i).1)
            .with("cls", (i % 3).to_string())
            .with("json", format!("{{\"name\":\"id.{i}\"}}"));
        assert_eq!(source.get(i).unwrap().into_sample(), expected);
    }
    let error = source.get(4).map(|_| ()).unwrap_err();
    assert!(error.concerns_one_sample());
    assert!(
        error.to_string().ends_with("train-0.parquet, row 5: its image is not embedded, only named: `4.png`"),
        "{error}"
    );
    // One file by its path, with keys of its own, and files by pattern.
    let options = SourceOptions { key_column: Some("name".to_owned()), ..SourceOptions::default() };
    let file = dir.path().join("data/train-1.parquet");
    let one = ParquetSource::open(&file, &options).unwrap();
    assert_eq!(one.get(2).unwrap().sample().key(), "id_12");
    assert!(one.get(2).unwrap().sample().part("json").is_err());
    let pattern = format!("{}/data/train-{{0..1}}.parquet", dir.path().display());
    assert_eq!(open(&pattern, &SourceOptions::default()).unwrap().len(), 15);
}

#[test]
fn tables_of_hugging_faces_writer_are_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pictures.parquet");
    let source = ParquetSource::open(&path, &SourceOptions::default()).unwrap();
    assert_eq!(source.meta()["classes"], serde_json::json!(["even", "odd"]));
    let colours = [("red", [215, 25, 30]), ("green", [30, 150, 60]), ("blue", [35, 85, 220]), ("white", [255; 3])];
    assert_eq!(source.len(), colours.len());
    for (i, (name, colour)) in colours.into_iter().enumerate() {
        let sample = source.get(i).unwrap().into_sample();
        assert_eq!(sample.key, format!("pictures-{i:08}"));
        assert_eq!(sample.text("txt").unwrap(), format!("a {name} picture"));
        assert_eq!(sample.text("cls").unwrap(), (i % 2).to_string());
        assert_eq!(sample.text("json").unwrap(), format!("{{\"weight\":{:?}}}", i as f64 / 4.0));
        let part = sample.part(if name == "white" { "jpg" } else { "png" }).unwrap();
        let image = calotype_data::image::RgbImage::decode(&sample.key, part).unwrap();
        assert_eq!((image.width(), image.height(), image.pixel(3, 3)), (16, 8, colour));
    }
}

#[test]
fn quarantined_rows_are_left_out() {
    let dir = parquet_folder();
    let mut list = Quarantine::new();
    list.insert("data/train-0.parquet", "data/train-0-00000004", "not embedded");
    list.insert("data/train-1.parquet", "data/train-1-00000000", "odd");
    list.write(dir.path()).unwrap();
    let source = ParquetSource::open(dir.path(), &SourceOptions::default()).unwrap();
    assert_eq!((source.len(), source.blocks()), (13, vec![4, 3, 2, 4]));
    let rows: Vec<String> = (0..13).map(|i| source.get(i).unwrap().sample().text("txt").unwrap().to_owned()).collect();
    assert_eq!(rows, (0..15).filter(|i| ![4, 10].contains(i)).map(|i| image(i).1).collect::<Vec<_>>());
    list.insert("data/train-1.parquet", "data/train-1-00000005", "no such row");
    list.write(dir.path()).unwrap();
    assert!(matches!(ParquetSource::open(dir.path(), &SourceOptions::default()), Err(Error::BadIndex { .. })));
}

#[test]
fn parquet_files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let open = |options: &SourceOptions| ParquetSource::open(&path, options).map(|_| ()).unwrap_err().to_string();
    let good = batch(0..6, None);
    write_parquet(&path, &good, 100);
    let bytes = fs::read(&path).unwrap();
    let column = |image: Option<&str>, caption: Option<&str>| SourceOptions {
        image_column: image.map(str::to_owned),
        caption_column: caption.map(str::to_owned),
        ..SourceOptions::default()
    };
    assert!(open(&column(Some("caption"), None)).contains("no column `caption` of images; columns that may be: image"));
    assert!(open(&column(None, Some("words"))).contains("no column `words`; it has: image, caption, label, name"));
    assert!(open(&column(None, Some("image"))).contains("column `image` holds objects, none of which is a caption"));
    let keyed = SourceOptions { key_column: Some("image".to_owned()), ..SourceOptions::default() };
    assert!(open(&keyed).contains("column `image` holds objects, none of which is a key"));
    for options in [column(Some("caption"), None), column(None, Some("words")), column(None, Some("image")), keyed] {
        assert!(ParquetSource::open(&path, &options).map(|_| ()).unwrap_err().is_usage(), "{options:?}");
    }
    for cut in [0, 4, 100, bytes.len() - 9, bytes.len() - 1] {
        fs::write(&path, &bytes[..cut]).unwrap();
        assert!(open(&SourceOptions::default()).contains("x.parquet: is no readable parquet file"), "{cut}");
    }
    let texts = good.project(&[1, 3]).unwrap();
    write_parquet(&path, &texts, 100);
    assert!(open(&SourceOptions::default()).contains("no column of embedded images"));
    write_parquet(&path, &good.slice(0, 0), 100);
    assert!(open(&SourceOptions::default()).contains("no rows"));
    // Damage between header and footer is found when rows are read, and never ends the program.
    for at in (4..bytes.len() - 500).step_by(401) {
        let mut damaged = bytes.clone();
        damaged[at..at + 8].copy_from_slice(&[0xff; 8]);
        fs::write(&path, &damaged).unwrap();
        if let Ok(source) = ParquetSource::open(&path, &SourceOptions::default()) {
            for i in 0..source.len() {
                if let Err(error) = source.get(i) {
                    assert!(error.to_string().contains("x.parquet"), "{error}");
                }
            }
        }
    }
}

#[test]
fn sources_are_told_apart_by_their_content() {
    let shards = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(shards.path(), "x", ShardLimits::default()).unwrap();
    writer.write(&Sample::new("a").with("txt", "x")).unwrap();
    writer.finish().unwrap();
    let images = folder(&[("a.png", ""), ("a.txt", "x")]);
    let tables = parquet_folder();
    let (text, model) = (folder(&[("a.txt", "x")]), tempfile::tempdir().unwrap());
    put(model.path(), "model_index.json", "{}");
    let path = |dir: &tempfile::TempDir, name: &str| dir.path().join(name).display().to_string();
    let keys = |spec: String, kind: Option<SourceKind>| {
        let options = SourceOptions { kind, ..SourceOptions::default() };
        open(&spec, &options).map(|source| source.get(0).unwrap().sample().key().to_owned())
    };
    assert_eq!(keys(path(&shards, ""), None).unwrap(), "a");
    assert_eq!(keys(path(&shards, "x-000000.tar"), None).unwrap(), "a");
    assert_eq!(keys(path(&images, ""), None).unwrap(), "a");
    assert_eq!(keys(path(&tables, ""), None).unwrap(), "data/train-0-00000000");
    assert_eq!(keys(path(&tables, "data/train-1.parquet"), None).unwrap(), "train-1-00000000");
    for (spec, kind, part) in [
        (path(&text, ""), None, "holds no shards"),
        (path(&model, ""), None, "holds a model (model_index.json), and no samples"),
        (path(&text, "a.txt"), None, "neither a tar shard"),
        (path(&text, "no"), None, "does not exist"),
        (path(&text, ""), Some(SourceKind::Webdataset), "holds no samples"),
        (path(&text, ""), Some(SourceKind::Parquet), "no rows"),
        (path(&text, ""), Some(SourceKind::Imagefolder), "no images"),
        (path(&text, "x{1..2}"), Some(SourceKind::Imagefolder), "by its path alone"),
        (path(&text, "x{1..2}.parquet"), None, "open"),
        ("Synthetic://100/txt=words:3".to_owned(), None, "are written as synthetic://"),
        ("synthetic:/100/txt=words:3".to_owned(), None, "are written as synthetic://"),
        ("HTTPS://a.example/{0..1}.tar".to_owned(), None, "write https:// in small letters"),
        ("ftp://a.example/{0..1}.tar".to_owned(), None, "nothing is read from ftp:// addresses"),
    ] {
        let error = keys(spec.clone(), kind).unwrap_err().to_string();
        assert!(error.contains(part), "{spec}: {error}");
    }
}

/// The text as UTF-16 with its mark, the low byte first.
fn utf16(text: &str) -> Vec<u8> {
    format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// What Windows' editors, spreadsheets and shells write: the mark is no part of a caption or of a column's name.
#[test]
fn captions_and_tables_are_read_with_marks_and_as_utf16() {
    let dir = folder(&[("a.png", ""), ("b.png", ""), ("c.png", "")]);
    put(dir.path(), "a.txt", "\u{feff}a cat");
    put(dir.path(), "b.txt", utf16("a caf\u{e9}"));
    put(dir.path(), "c.txt", "a dog");
    let source = open_folder(dir.path()).unwrap();
    assert_eq!(texts(&source), ["a: png, txt=a cat", "b: png, txt=a caf\u{e9}", "c: png, txt=a dog"]);
    // As long in UTF-8 as in UTF-16 with its mark.
    put(dir.path(), "b.txt", utf16("\u{7ea2}\u{8f66}"));
    assert_eq!(texts(&source)[1], "b: png, txt=\u{7ea2}\u{8f66}");
    put(dir.path(), "b.txt", b"a\0b\0c\0");
    let error = source.get(1).map(|_| ()).unwrap_err();
    assert!(error.concerns_one_sample() && error.to_string().contains("b.txt"), "{error}");
    assert!(error.to_string().contains("UTF-16 text without a byte-order mark"), "{error}");
    put(dir.path(), "b.txt", b"caf\xe9");
    assert!(source.get(1).map(|_| ()).unwrap_err().to_string().contains("is not UTF-8 text: byte 3 is 0xe9"));
    for (name, table) in [
        ("metadata.csv", "file_name,text\na.png,a cat\n"),
        ("metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"a cat\"}\n"),
    ] {
        let dir = folder(&[("a.png", "")]);
        for bytes in [utf16(table), format!("\u{feff}{table}").into_bytes()] {
            put(dir.path(), name, bytes);
            assert_eq!(texts(&open_folder(dir.path()).unwrap()), ["a: png, txt=a cat"], "{name}");
        }
        put(dir.path(), name, table.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>());
        let error = open_folder(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("UTF-16 text without"), "{error}");
    }
}

/// Parts of shards are handed out as they lie, without a mark.
#[test]
fn texts_of_samples_have_no_mark() {
    let sample = Sample::new("a").with("txt", "\u{feff}a cat").with("caption", utf16("a cat")).with("bad", b"\xff");
    assert_eq!(sample.text("txt").unwrap(), "a cat");
    let error = sample.text("caption").unwrap_err().to_string();
    assert!(error.contains("sample `a`: part `caption` is UTF-16 text"), "{error}");
    assert!(sample.text("bad").unwrap_err().to_string().contains("byte 0 is 0xff"));
}
