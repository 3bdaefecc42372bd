//! Converting between layouts: nothing lost, nothing changed by slices or kills, everything left out counted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use calotype_data::image::{PngEffort, RgbImage};
use calotype_data::mds::MdsDataset;
use calotype_data::source::{idle, refuse_idle};
use calotype_data::{Control, Dataset, Sample, ShardLimits, ShardWriter, SourceOptions};
use calotype_prepare::{Account, DataStage, Error};
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    stage: DataStage,
}

/// Runs a stage as the command line does; `{}` in words are replaced by paths.
fn run(words: &str, paths: &[&Path]) -> Result<Account, Error> {
    let mut paths = paths.iter();
    let words = words.split(' ').map(|word| match word {
        "{}" => paths.next().unwrap().display().to_string(),
        other => other.to_owned(),
    });
    let cli = Cli::try_parse_from(std::iter::once("data".to_owned()).chain(words))
        .map_err(|error| Error::Usage(error.to_string()))?;
    cli.stage.run(&mut Control::default())
}

/// 60 samples; every fifth has no caption; keys with dots and folders.
fn source(dir: &Path) -> Vec<Sample> {
    let sample = |i: usize| {
        let sample =
            Sample::new(format!("dir/{i:03}")).with("jpg", vec![i as u8; 50 + 37 * i % 700]).with("cls", i.to_string());
        if i % 5 == 4 { sample } else { sample.with("txt", format!("caption {i}")) }
    };
    let samples: Vec<Sample> = (0..60).map(sample).collect();
    let mut writer = ShardWriter::create(dir, "source", ShardLimits { samples: 13, bytes: 1 << 20 }).unwrap();
    samples.iter().for_each(|sample| writer.write(sample).unwrap());
    writer.finish().unwrap();
    samples
}

fn samples_of(dir: &Path) -> Vec<Sample> {
    Dataset::open(dir).unwrap().iter().map(|sample| sample.unwrap().to_sample()).collect()
}

/// All files of a folder by name, but for the accounts and for the hidden ones that a kill may leave.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file() && !name(path).starts_with('.'));
    files.map(|path| (name(&path), fs::read(&path).unwrap())).collect()
}

struct Folders(tempfile::TempDir);

impl Folders {
    fn new() -> Self {
        Folders(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[test]
fn webdataset_to_mds_and_back_is_the_same() {
    let folders = Folders::new();
    let (start, mds, back) = (folders.at("start"), folders.at("mds"), folders.at("back"));
    let samples = source(&start);
    let account = run(
        "convert {} {} --to mds --map jpg=image,txt=caption --missing empty --shard-bytes 8kb --compression zstd --hashes sha1,xxh64",
        &[&start, &mds],
    )
    .unwrap();
    assert_eq!((account.taken, account.written, account.left_out_in_all()), (60, 60, 0));
    let dataset = MdsDataset::open(&mds).unwrap();
    assert!(dataset.index().shards.len() > 2);
    assert!(
        dataset.index().shards.iter().all(|shard| shard.raw_data.bytes <= 8 << 10 && shard.hashes == ["sha1", "xxh64"])
    );
    let columns: Vec<String> = dataset.columns().iter().map(|c| format!("{}:{}", c.name, c.encoding)).collect();
    assert_eq!(columns, ["__key__:str", "caption:str", "cls:int", "image:jpeg"]);
    let account = run("convert {} {} --map image=jpg,caption=txt --shard-samples 13", &[&mds, &back]).unwrap();
    assert_eq!((account.taken, account.written), (60, 60));
    for (found, expected) in samples_of(&back).into_iter().zip(samples) {
        let expected = if expected.parts.contains_key("txt") { expected } else { expected.with("txt", "") };
        assert_eq!(found, expected);
    }
}

#[test]
fn samples_without_a_part_are_refused_or_counted() {
    let folders = Folders::new();
    let (start, out) = (folders.at("start"), folders.at("out"));
    source(&start);
    let error = run("convert {} {} --to mds", &[&start, &out]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("cls (60), jpg (60), txt (48)"), "{error}");
    assert!(!out.exists(), "nothing is in the way of another try");
    let account = run("convert {} {} --to mds --missing leave-out", &[&start, &out]).unwrap();
    assert_eq!((account.taken, account.written), (60, 48));
    assert_eq!(account.left_out, BTreeMap::from([("without part `txt`".to_owned(), 12)]));
    let other = run("convert {} {} --to mds --parts jpg,cls", &[&start, &out]).unwrap_err();
    assert!(other.to_string().contains("other settings") || other.to_string().contains("already holds"), "{other}");
    let only = folders.at("only");
    let account = run("convert {} {} --parts txt --shard-samples 7", &[&start, &only]).unwrap();
    assert_eq!(account.left_out, BTreeMap::from([("without any part".to_owned(), 12)]));
    assert_eq!(samples_of(&only).len(), 48);
}

#[test]
fn values_that_do_not_fit_are_counted() {
    let folders = Folders::new();
    let (start, out) = (folders.at("start"), folders.at("out"));
    source(&start);
    let account =
        run("convert {} {} --to mds --parts cls --encoding cls=int8 --without-keys", &[&start, &out]).unwrap();
    assert_eq!(account.written, 60);
    // Of the images, those made of digits alone are JSON.
    let out = folders.at("digits");
    let account =
        run("convert {} {} --to mds --parts jpg,cls --encoding jpg=json --shard-bytes 1kb", &[&start, &out]).unwrap();
    assert_eq!((account.taken, account.written), (60, 9));
    assert_eq!(account.left_out, BTreeMap::from([("does not fit column `jpg`".to_owned(), 51)]));
    let out = folders.at("none");
    let account = run("convert {} {} --to mds --parts jpg,cls --encoding jpg=pil", &[&start, &out]);
    assert!(matches!(account, Err(Error::Data(calotype_data::Error::EmptyDataset { .. }))));
}

#[test]
fn names_that_are_not_there_are_usage_errors() {
    let folders = Folders::new();
    let start = folders.at("start");
    source(&start);
    let table = [
        ("--parts png", "no sample has a part `png`"),
        ("--map png=image", "no sample has a part `png`"),
        ("--map jpg=x,txt=x", "two parts would be called `x`"),
        ("--to mds --missing empty --encoding x=str", "there is no such column"),
        ("--to mds --missing empty --encoding txt=strange", "no encoding of MDS"),
        ("--hashes sha1", "--compression and --hashes are of MDS shards"),
        ("--to mds --hashes crc", "`crc` is not known"),
        ("--shard-samples 0", "at least 1"),
        ("--prefix a/b", "cannot begin a file name"),
    ];
    for (number, (words, expected)) in table.iter().enumerate() {
        let out = folders.at(&format!("out{number}"));
        let error = run(&format!("convert {{}} {{}} {words}"), &[&start, &out]).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(expected), "{words}: {error}");
    }
}

#[test]
fn keys_are_made_fit_and_unique() {
    let folders = Folders::new();
    let (start, mds, out) = (folders.at("start"), folders.at("mds"), folders.at("out"));
    let mut writer = ShardWriter::create(&start, "s", ShardLimits::default()).unwrap();
    for (i, name) in ["a", "b.c", "a", "./x//y", "", "b_c"].iter().enumerate() {
        writer.write(&Sample::new(format!("k{i}")).with("name", *name).with("txt", format!("{i}"))).unwrap();
    }
    writer.finish().unwrap();
    run("convert {} {} --to mds --without-keys --encoding name=str", &[&start, &mds]).unwrap();
    let account = run("convert {} {} --key-part name --parts txt", &[&mds, &out]).unwrap();
    let keys: Vec<String> = samples_of(&out).into_iter().map(|sample| sample.key).collect();
    assert_eq!(keys, ["a", "b_c", "a-2", "x/y", "_", "b_c-5"]);
    assert!(account.notes.iter().any(|note| note.starts_with("5 keys were changed, 2 of them")), "{:?}", account.notes);
    let numbered = folders.at("numbered");
    run("convert {} {}", &[&mds, &numbered]).unwrap();
    assert_eq!(samples_of(&numbered)[5].key, "000000005");
}

#[test]
fn slices_in_any_order_give_the_same_files() {
    let folders = Folders::new();
    let start = folders.at("start");
    source(&start);
    for words in ["--to mds --missing empty --shard-bytes 2kb", "--shard-bytes 10kb --prefix x"] {
        let (whole, parts) =
            (folders.at(&format!("whole{}", words.len())), folders.at(&format!("parts{}", words.len())));
        let account = run(&format!("convert {{}} {{}} {words}"), &[&start, &whole]).unwrap();
        let mut sum = Account::new("convert");
        for (number, slice) in ["--tasks 2", "--task-id 0", "--task-id 1"].iter().enumerate() {
            assert!(!parts.join("index.json").exists());
            let one = run(&format!("convert {{}} {{}} {words} {slice} --task-count 3"), &[&start, &parts]).unwrap();
            assert_eq!(one.notes[0].contains("left to other slices"), number < 2, "{:?}", one.notes);
            sum.add(&one);
        }
        assert_eq!((sum.taken, sum.written, sum.bytes), (account.taken, account.written, account.bytes));
        assert_eq!(files(&whole), files(&parts));
        let again = run(&format!("convert {{}} {{}} {words}"), &[&start, &whole]).unwrap();
        assert_eq!((again.taken, again.written), (60, 60));
    }
}

#[test]
fn damage_stops_the_stage_or_is_counted() {
    let folders = Folders::new();
    let (start, mds, out) = (folders.at("start"), folders.at("mds"), folders.at("out"));
    source(&start);
    run("convert {} {} --to mds --parts jpg,cls --shard-bytes 4kb", &[&start, &mds]).unwrap();
    let shard = mds.join("shard.00001.mds");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[8..12].fill(0xff);
    fs::write(&shard, bytes).unwrap();
    let lost = MdsDataset::open(&mds).unwrap().index().shards[1].samples as u64;
    let error = run("convert {} {}", &[&mds, &out]).unwrap_err().to_string();
    assert!(error.contains("shard.00001.mds: the table of samples is damaged"), "{error}");
    let account = run("convert {} {} --skip-bad", &[&mds, &out]).unwrap();
    assert_eq!((account.taken, account.written), (60, 60 - lost));
    assert_eq!(account.left_out, BTreeMap::from([("cannot be read".to_owned(), lost)]));
}

#[test]
fn folders_of_images_and_quarantined_samples() {
    let folders = Folders::new();
    let (start, tars, mds, back) = (folders.at("start"), folders.at("tars"), folders.at("mds"), folders.at("back"));
    for class in ["cat", "dog"] {
        fs::create_dir_all(start.join(class)).unwrap();
        for i in 0..4 {
            let image = RgbImage::filled(5 + i, 6, [i as u8, 0, 9]).unwrap().encode_png(PngEffort::Fast).unwrap();
            fs::write(start.join(class).join(format!("{i}.x.png")), image).unwrap();
        }
    }
    let account = run("convert {} {}", &[&start, &tars]).unwrap();
    assert_eq!((account.taken, account.written), (8, 8));
    let dataset = Dataset::open(&tars).unwrap();
    let last = dataset.get(7).unwrap();
    assert_eq!((last.key(), last.text("cls").unwrap()), ("dog/3_x", "1"));
    assert_eq!(dataset.meta()["classes"], serde_json::json!(["cat", "dog"]));
    fs::write(start.join("metadata.jsonl"), "{\"file_name\": \"dog/2.x.png\", \"text\": \"a dog\"}\n").unwrap();
    let account = run("convert {} {} --to mds", &[&start, &mds]).unwrap();
    assert_eq!((account.taken, account.written), (1, 1));
    assert!(account.notes.iter().any(|note| note.starts_with("not taken from the input: 7")), "{:?}", account.notes);
    assert_eq!(MdsDataset::open(&mds).unwrap().get(0).unwrap().text("txt").unwrap(), "a dog");

    let keyed = folders.at("keyed");
    run("convert {} {} --to mds --shard-samples 3", &[&tars, &keyed]).unwrap();
    let quarantine = r#"[{"shard": "shard.00001.mds", "key": "cat/3_x", "reason": "ugly"},
        {"shard": "shard.00002.mds", "key": "000000007", "reason": "late"}]"#;
    fs::write(keyed.join("quarantine.json"), quarantine).unwrap();
    let account = run("convert {} {}", &[&keyed, &back]).unwrap();
    assert_eq!(account.written, 6);
    assert!(account.notes.contains(&"not taken from the input: 2 in quarantine".to_owned()), "{:?}", account.notes);
    let keys: Vec<String> = samples_of(&back).into_iter().map(|sample| sample.key).collect();
    assert_eq!(keys, ["cat/0_x", "cat/1_x", "cat/2_x", "dog/0_x", "dog/1_x", "dog/2_x"]);
    assert_eq!(run("convert {} {} --with-quarantined", &[&keyed, &folders.at("all")]).unwrap().written, 8);
    fs::write(keyed.join("quarantine.json"), quarantine.replace("cat/3_x", "cat/9_x")).unwrap();
    let error = run("convert {} {}", &[&keyed, &folders.at("none")]).unwrap_err().to_string();
    assert!(error.contains("2 samples are listed, the dataset has 1 of them"), "{error}");
}

/// A folder with so many small images, and files of other names with their contents.
fn photos(dir: &Path, images: &[&str], files: &[(&str, &str)]) {
    fs::create_dir_all(dir).unwrap();
    for (i, name) in images.iter().enumerate() {
        let image = RgbImage::filled(5 + i, 6, [i as u8, 0, 9]).unwrap().encode_png(PngEffort::Fast).unwrap();
        fs::write(dir.join(name), image).unwrap();
    }
    files.iter().for_each(|(name, text)| fs::write(dir.join(name), text).unwrap());
}

#[test]
fn what_a_folder_of_images_loses_is_told() {
    let folders = Folders::new();
    let start = folders.at("start");
    photos(&start, &["a.png", "b c.d.png"], &[("a.tags", "a cat"), ("e.HEIC", ""), ("f.tiff", ""), ("g.md", "")]);
    let account = run("convert {} {}", &[&start, &folders.at("plain")]).unwrap();
    let told = account.to_string();
    for part in [
        "plain: 1 shard, all there",
        "none of the 2 images has a caption",
        "not taken from the input: 1 in a format that is not read (HEIC)",
        "not taken from the input: 1 in a format that is not read (TIFF)",
        "`b c.d.png` is sample `b c_d`: dots of file names become _",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // Extensions with and without their dot; the captions are a part of what is read.
    for (number, words) in ["tags", ".tags", "txt,.tags"].into_iter().enumerate() {
        let out = folders.at(&format!("out{number}"));
        let account = run(&format!("convert {{}} {{}} --caption-extensions {words}"), &[&start, &out]).unwrap();
        assert!(account.to_string().contains("1 of 2 images has no caption"), "{words}: {account}");
        assert_eq!(samples_of(&out)[0].text("txt").unwrap(), "a cat");
    }
    let error = run("convert {} {} --caption-extensions tags", &[&start, &folders.at("plain")]).unwrap_err();
    assert!(error.to_string().contains("already holds"), "other captions are another dataset: {error}");
}

/// What a flag would change is not there: who gives one expects another dataset.
#[test]
fn flags_without_effect_are_refused() {
    let folders = Folders::new();
    let [shards, images, table] = ["shards", "images", "table"].map(|name| folders.at(name));
    source(&shards);
    photos(&images, &["a.png"], &[("a.txt", "a cat")]);
    photos(&table, &["a.png"], &[("metadata.csv", "file_name,text\na.png,a cat\n")]);
    let plain = "a folder of images without a metadata table (--caption-extensions has one)";
    let tabled = "a folder of images with a metadata table (--caption-column and --captions have one)";
    for (input, flags, part) in [
        (&shards, "--caption-column foo", "--caption-column has no effect on tar shards"),
        (&shards, "--key-column foo", "--key-column has no effect on tar shards"),
        (&shards, "--captions random", "--captions has no effect on tar shards"),
        (&shards, "--caption-extensions foo", "--caption-extensions has no effect on tar shards"),
        (&shards, "--image-column foo --from webdataset", "--image-column has no effect on tar shards"),
        (&images, "--caption-column foo", plain),
        (&images, "--captions random", plain),
        (&images, "--key-column foo", plain),
        (&images, "--caption-extensions foo", "no caption file of the extensions that were asked for (foo)"),
        (&table, "--key-column foo", tabled),
        (&table, "--caption-extensions foo", tabled),
        (&table, "--caption-seed 3", "--caption-seed 3 has no effect without --captions random"),
        (&shards, "--missing empty", "--missing has no effect on tar shards"),
        (&shards, "--encoding jpg=bytes", "--encoding has no effect on tar shards"),
        (&shards, "--without-keys", "--without-keys has no effect on tar shards"),
    ] {
        let out = folders.at("out");
        let error = run(&format!("convert {{}} {{}} {flags}"), &[input, &out]).unwrap_err().to_string();
        assert!(error.contains(part), "{flags}: {error}");
        assert!(!out.exists(), "{flags}");
    }
    run("convert {} {} --caption-column text --captions random", &[&table, &folders.at("fits")]).unwrap();
    let made_up = SourceOptions { caption_column: Some("foo".to_owned()), ..SourceOptions::default() };
    let found = idle("synthetic://8/bmp=bmp:8x8", &made_up).unwrap().unwrap();
    assert_eq!((found.key, found.what), ("caption_column", "made-up samples"));
    // Of several sources, one that follows the setting is enough.
    let [shards, table, images] = [&shards, &table, &images].map(|path| path.to_str().unwrap());
    assert!(refuse_idle([shards, table], &made_up).is_ok());
    let both = SourceOptions { caption_extensions: vec!["tags".to_owned()], ..made_up.clone() };
    assert!(refuse_idle([images, table], &both).is_ok(), "each is followed by one of them");
    let error = refuse_idle([shards], &made_up).unwrap_err().to_string();
    assert!(error.contains("the setting `caption_column` has no effect on tar shards"), "{error}");
}

#[test]
fn a_stage_that_fails_leaves_nothing_in_the_way_of_another_input() {
    let folders = Folders::new();
    let (bad, good, out) = (folders.at("bad"), folders.at("good"), folders.at("out"));
    photos(&bad, &["a.png"], &[("metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": {}}\n")]);
    photos(&good, &["a.png"], &[]);
    let error = run("convert {} {}", &[&bad, &out]).unwrap_err();
    assert!(matches!(error, Error::OneSample { .. }), "{error}");
    assert_eq!(run("convert {} {}", &[&good, &out]).unwrap().written, 1);
    // So does a stage that sorts shards.
    let (damaged, whole, sorted) = (folders.at("damaged"), folders.at("whole"), folders.at("sorted"));
    source(&whole);
    fs::create_dir_all(&damaged).unwrap();
    fs::write(damaged.join("a.tar"), b"no tar").unwrap();
    assert!(run("reorganize {} {}", &[&damaged, &sorted]).is_err());
    assert_eq!(run("reorganize {} {}", &[&whole, &sorted]).unwrap().written, 60);
    let other = run("reorganize {} {}", &[&out, &sorted]).unwrap_err();
    assert!(other.is_usage() && other.to_string().contains("other inputs"), "{other}");
}

#[test]
fn the_input_is_not_written_into() {
    let folders = Folders::new();
    let start = folders.at("start");
    photos(&start, &["a.png"], &[("metadata.csv", "file_name;text\na.png;a cat, and more\n")]);
    for (input, out) in [("start", "start"), ("start", "start/out"), ("start/metadata.csv", "start/deep/out")] {
        let error = run("convert {} {}", &[&folders.at(input), &folders.at(out)]).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("lies in the input"), "{input} {out}: {error}");
    }
    assert!(!start.join("deep").exists());
    let out = folders.at("out");
    run("convert {} {}", &[&start.join("metadata.csv"), &out]).unwrap();
    assert_eq!(samples_of(&out)[0].text("txt").unwrap(), "a cat, and more");
}

#[test]
fn shards_of_another_dataset_are_not_replaced() {
    let folders = Folders::new();
    let (start, tars, made) = (folders.at("start"), folders.at("tars"), folders.at("made"));
    source(&start);
    fs::create_dir(&tars).unwrap();
    fs::write(tars.join("shard-000000.tar"), "no tar, and not of this program").unwrap();
    fs::create_dir(&made).unwrap();
    fs::write(made.join("shard.00000.mds"), "MDS").unwrap();
    let mds = "--to mds --missing empty";
    for (out, name) in [(&tars, "shard-000000.tar"), (&made, "shard.00000.mds")] {
        let before = files(out);
        for words in ["", mds, "--prefix other", "--task-id 0 --task-count 2"] {
            let words = format!("convert {{}} {{}} {words}");
            let error = run(words.trim_end(), &[&start, out]).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(&format!("already holds {name}")), "{error}");
        }
        assert_eq!(files(out), before);
        assert!(!out.join(".slices").exists(), "nothing is left there");
    }
    // A finished dataset of somebody else's, told by its index.
    run("convert {} {}", &[&start, &folders.at("other")]).unwrap();
    fs::remove_dir_all(folders.at("other/.slices")).unwrap();
    let error = run("convert {} {}", &[&start, &folders.at("other")]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("already holds index.json"), "{error}");
    // Drawings go into no folder of drawings either.
    let emoji = folders.at("emoji");
    run("emoji {} --drawings 2 --resolution 8", &[&emoji]).unwrap();
    fs::remove_file(emoji.join("index.json")).unwrap();
    let error = run("emoji {} --drawings 2 --resolution 8", &[&emoji]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("already holds emoji-000000.tar"), "{error}");
}

#[test]
fn shards_that_are_gone_are_made_anew() {
    let folders = Folders::new();
    let start = folders.at("start");
    source(&start);
    for (words, shards) in [
        ("--shard-samples 20", ["shard-000000.tar", "shard-000002.tar"]),
        ("--shard-samples 20 --to mds --missing empty", ["shard.00000.mds", "shard.00002.mds"]),
    ] {
        let out = folders.at(&format!("out{}", words.len()));
        let words = format!("convert {{}} {{}} {words}");
        run(&words, &[&start, &out]).unwrap();
        let whole = files(&out);
        fs::remove_file(out.join(shards[0])).unwrap();
        fs::write(out.join(shards[1]), "cut").unwrap();
        // Another slice does not say that all is there.
        let slice = run(&format!("{words} --task-id 1 --task-count 3"), &[&start, &out]).unwrap();
        assert!(slice.notes.iter().any(|note| note.contains("2 of 3 shards left to other slices")), "{slice}");
        let account = run(&words, &[&start, &out]).unwrap();
        assert_eq!((account.taken, account.written), (60, 60), "{account}");
        assert!(account.to_string().contains("3 shards, all there"), "{account}");
        assert_eq!(files(&out), whole);
    }
}

/// Columns that a command names, and that a table does not have as it needs them.
#[test]
fn columns_that_do_not_fit_are_usage_errors() {
    let folders = Folders::new();
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/pictures.parquet");
    let images = folders.at("images");
    photos(&images, &["a.png"], &[("metadata.csv", "file_name,text\na.png,a cat\n")]);
    for (input, flags, part) in [
        (&table, "--key-column nix", "has no column `nix`"),
        (&table, "--caption-column nix", "has no column `nix`"),
        (&table, "--caption-column image", "column `image` holds objects, none of which is a caption"),
        (&table, "--key-column image", "column `image` holds objects, none of which is a key"),
        (&table, "--image-column text", "has no column `text` of images"),
        (&images, "--caption-column nix", "has no column `nix`; it has: file_name, text"),
    ] {
        let out = folders.at("out");
        let error = run(&format!("convert {{}} {{}} {flags}"), &[input, &out]).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(part), "{flags}: {error}");
        assert!(!out.exists(), "{flags}");
    }
    run("convert {} {} --caption-column weight", &[&table, &folders.at("numbers")]).unwrap();
}

#[test]
fn progress_ends_with_all_samples() {
    let folders = Folders::new();
    let (start, out, sorted) = (folders.at("start"), folders.at("out"), folders.at("sorted"));
    source(&start);
    for (words, stage) in [
        (vec!["convert", start.to_str().unwrap(), out.to_str().unwrap()], "convert"),
        (vec!["reorganize", start.to_str().unwrap(), sorted.to_str().unwrap()], "reorganize"),
        (vec!["check", start.to_str().unwrap()], "check"),
    ] {
        let cli = Cli::try_parse_from(["data"].iter().chain(&words)).unwrap();
        let mut seen = Vec::new();
        let result =
            cli.stage.run(&mut Control::default().with_progress(|stage, done, all| seen.push((stage, done, all))));
        // The images of this dataset are none: the check finds that out at the end.
        assert_eq!(result.is_ok(), stage != "check");
        assert_eq!(seen.last(), Some(&(stage, 60, 60)), "{seen:?}");
    }
}

#[test]
fn killed_at_any_moment_it_goes_on_to_the_same_files() {
    let folders = Folders::new();
    let (start, whole, out) = (folders.at("start"), folders.at("whole"), folders.at("out"));
    run("synth {} --samples 400 --resolution 64", &[&start]).unwrap();
    let words = ["--to", "mds", "--shard-bytes", "40kb", "--compression", "zstd:1", "--hashes", "sha256"];
    run(&format!("convert {{}} {{}} {}", words.join(" ")), &[&start, &whole]).unwrap();
    let mut kills = 0;
    for delay in (0..).map(|n| Duration::from_millis(5 + 11 * n)) {
        let mut child = Command::new(crate::program())
            .args(["convert".as_ref(), start.as_os_str(), out.as_os_str()])
            .args(words)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(delay);
        if kills < 5 && child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        if child.wait().unwrap().success() {
            break;
        }
    }
    assert_eq!(files(&whole), files(&out));
    assert_eq!(MdsDataset::open(&out).unwrap().len(), 400);
}
