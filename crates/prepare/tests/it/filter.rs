//! The filter stage on real files: what it keeps, as what, and what it says about tables that it cannot use.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_select::concat::concat_batches;
use calotype_data::Control;
use calotype_prepare::filter::{FilterArgs, run};
use calotype_prepare::{Account, Error};
use clap::Parser;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde::Deserialize;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: FilterArgs,
}

/// Runs the stage with the arguments of a command line.
fn filter(input: &Path, out: &Path, more: &[&str]) -> Result<Account, Error> {
    let paths = [Path::new("filter"), input, out].map(|path| path.to_str().unwrap());
    let line = Cli::try_parse_from(paths.iter().chain(more)).unwrap();
    run(&line.args, &mut Control::default())
}

/// 24 well mixed bits of a row number; see `golden/make_filter.py`.
fn scattered(row: u64, column: u64) -> u64 {
    ((row + 1) * (2_654_435_761 + 80_940 * column) % (1 << 32)) >> 8
}

/// The table of `golden/make_filter.py`, or its first rows.
fn table(rows: u64) -> RecordBatch {
    const LICENSES: [Option<&str>; 5] = [Some("?"), Some("CC-BY 2.0"), Some(""), None, Some("CC0 1.0")];
    const VERDICTS: [Option<&str>; 4] = [Some("UNLIKELY"), Some("UNSURE"), Some("NSFW"), None];
    const WORDS: [&str; 5] = ["toucan", "Zebra", "50% off", "élan", "snow_man"];
    let side = |row, column| 16 + (scattered(row, column) % 2000) as i32;
    let texts =
        (0..rows).map(|row| format!("a {} at {}", WORDS[(scattered(row, 6) % 5) as usize], scattered(row, 7) % 1000));
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("SAMPLE_ID", Arc::new(Int64Array::from_iter_values(0..rows as i64)), false),
        (
            "WIDTH",
            Arc::new(Int32Array::from_iter(
                (0..rows).map(|row| (!scattered(row, 9).is_multiple_of(50)).then(|| side(row, 1))),
            )),
            true,
        ),
        ("HEIGHT", Arc::new(Int32Array::from_iter_values((0..rows).map(|row| side(row, 2)))), true),
        (
            "similarity",
            Arc::new(Float64Array::from_iter_values(
                (0..rows).map(|row| (scattered(row, 3) % 10_000) as f64 / 20_000.0),
            )),
            true,
        ),
        (
            "LICENSE",
            Arc::new(StringArray::from_iter((0..rows).map(|row| LICENSES[(scattered(row, 4) % 5) as usize]))),
            true,
        ),
        (
            "NSFW",
            Arc::new(StringArray::from_iter((0..rows).map(|row| VERDICTS[(scattered(row, 5) % 4) as usize]))),
            true,
        ),
        ("TEXT", Arc::new(StringArray::from_iter_values(texts)), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn write(path: &Path, batch: &RecordBatch) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_column_compression("TEXT".into(), Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(30_000))
        .set_key_value_metadata(Some(vec![KeyValue::new("origin".to_owned(), "a test".to_owned())]))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn read(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

fn ids(batch: &RecordBatch) -> Vec<i64> {
    batch.column_by_name("SAMPLE_ID").unwrap().as_primitive::<Int64Type>().values().to_vec()
}

/// Content of every file below a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files =
        walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
    files.map(|file| (file.path().strip_prefix(folder).unwrap().to_owned(), fs::read(file.path()).unwrap())).collect()
}

#[test]
fn counts_and_rows_are_those_of_pandas() {
    #[derive(Deserialize)]
    struct Golden {
        condition: String,
        rows: u64,
        sum_of_ids: i64,
    }
    let golden: Vec<Golden> = serde_json::from_str(include_str!("../golden/filter.json")).unwrap();
    assert!(golden.len() >= 15);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("table.parquet");
    write(&input, &table(200_000));
    for (number, Golden { condition, rows, sum_of_ids }) in golden.into_iter().enumerate() {
        let out = folder.path().join(format!("{number}.parquet"));
        let account = filter(&input, &out, &["--where", &condition]).unwrap();
        assert_eq!((account.taken, account.written), (200_000, rows), "{condition}");
        assert_eq!(account.left_out_in_all(), 200_000 - rows, "{condition}");
        let kept = ids(&read(&out));
        assert_eq!((kept.len() as u64, kept.iter().sum::<i64>()), (rows, sum_of_ids), "{condition}");
        assert!(kept.is_sorted(), "{condition}");
    }
}

#[test]
fn short_hands_are_counted_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (folder.path().join("in.parquet"), folder.path().join("out"));
    write(&input, &table(50_000));
    let flags = [
        "--licensed",
        "--min-width",
        "256",
        "--min-height",
        "200",
        "--max-aspect",
        "2.5",
        "--min-similarity",
        "0.2",
        "--max-nsfw",
        "UNSURE",
        "--where",
        "TEXT like '%toucan%'",
    ];
    let account = filter(&input, &out, &flags).unwrap();
    let all = table(50_000);
    let text = |name: &str, row: usize| {
        let column = all.column_by_name(name).unwrap().as_string::<i32>();
        (!arrow_array::Array::is_null(column, row)).then(|| column.value(row))
    };
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    let mut kept = Vec::new();
    for row in 0..50_000_u64 {
        let width = (!scattered(row, 9).is_multiple_of(50)).then(|| 16 + scattered(row, 1) % 2000);
        let height = 16 + scattered(row, 2) % 2000;
        let width_or = width.unwrap_or(0);
        let reason = if text("LICENSE", row as usize) == Some("?") {
            "--licensed"
        } else if width.is_none() {
            "--min-width 256: null"
        } else if width_or < 256 {
            "--min-width 256"
        } else if height < 200 {
            "--min-height 200"
        } else if width_or.max(height) as f64 > 2.5 * width_or.min(height) as f64 {
            "--max-aspect 2.5"
        } else if ((scattered(row, 3) % 10_000) as f64 / 20_000.0) < 0.2 {
            "--min-similarity 0.2"
        } else if text("NSFW", row as usize).is_none() {
            "--max-nsfw UNSURE: null"
        } else if text("NSFW", row as usize) == Some("NSFW") {
            "--max-nsfw UNSURE"
        } else if !text("TEXT", row as usize).unwrap().contains("toucan") {
            "TEXT like '%toucan%'"
        } else {
            kept.push(row as i64);
            continue;
        };
        *expected.entry(reason).or_default() += 1;
    }
    let found: BTreeMap<&str, u64> = account.left_out.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    assert_eq!(found, expected);
    assert_eq!(ids(&read(&out.join("in.parquet"))), kept);
}

#[test]
fn tables_keep_schema_compression_and_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (folder.path().join("in.parquet"), folder.path().join("out.parquet"));
    write(&input, &table(70_000));
    filter(&input, &out, &["--where", "HEIGHT > 500", "--row-group-rows", "20000"]).unwrap();
    let open = |path: &Path| ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let (before, after) = (open(&input), open(&out));
    assert_eq!(before.schema().fields(), after.schema().fields());
    let (before, after) = (before.metadata(), after.metadata());
    assert_eq!(before.file_metadata().schema_descr().root_schema(), after.file_metadata().schema_descr().root_schema());
    let rows: Vec<i64> = after.row_groups().iter().map(|group| group.num_rows()).collect();
    assert!(rows.len() > 2 && rows[..rows.len() - 1].iter().all(|rows| *rows == 20_000), "{rows:?}");
    let compressions =
        |group: usize| after.row_group(group).columns().iter().map(|c| c.compression()).collect::<Vec<_>>();
    let expected: Vec<_> = before.row_group(0).columns().iter().map(|column| column.compression()).collect();
    assert_eq!(compressions(1), expected);
    let pairs = after.file_metadata().key_value_metadata().unwrap();
    assert!(pairs.iter().any(|pair| pair.key == "origin" && pair.value.as_deref() == Some("a test")));
}

#[test]
fn outputs_do_not_depend_on_slices_threads_or_an_earlier_run() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    for (number, rows) in [20_000, 1, 0, 31_000].into_iter().enumerate() {
        write(&input.join(format!("deep/{number}.parquet")), &table(rows));
    }
    fs::write(input.join(".hidden.parquet"), "no table").unwrap();
    fs::write(input.join("notes.txt"), "no table").unwrap();
    let [whole, sliced] = ["whole", "sliced"].map(|name| folder.path().join(name));
    let flags = ["--where", "WIDTH > 400", "--parts", "3"];
    let with = |more: &[&'static str]| [&flags[..], more].concat();
    let account = filter(&input, &whole, &with(&["--threads", "2"])).unwrap();
    assert_eq!(account.taken, 51_001);
    let files = contents(&whole);
    let names: Vec<_> = files.keys().map(|path| path.display().to_string()).collect();
    assert_eq!(names.len(), 12);
    assert_eq!(names[..3], [0, 1, 2].map(|part| format!("deep/0.parquet_parts/part.{part}.parquet")));
    let mut sum = Account::new("filter");
    for id in ["4", "0", "3", "2", "1"] {
        sum.add(&filter(&input, &sliced, &with(&["--threads", "1", "--task-count", "5", "--task-id", id])).unwrap());
    }
    assert_eq!(contents(&sliced), files);
    assert_eq!((sum.taken, sum.written, &sum.left_out), (account.taken, account.written, &account.left_out));
    // What is there is not written again, but counted; other settings are another matter.
    let times = |folder: &Path| -> Vec<_> {
        contents(folder).keys().map(|path| fs::metadata(folder.join(path)).unwrap().modified().unwrap()).collect()
    };
    let before = times(&whole);
    let again = filter(&input, &whole, &flags).unwrap();
    assert_eq!((again.written, &again.left_out, times(&whole)), (account.written, &account.left_out, before));
    let other = filter(&input, &whole, &["--where", "WIDTH > 500", "--parts", "3"]).unwrap();
    assert!(other.written < account.written);
    // So is another input of the same name.
    write(&input.join("deep/1.parquet"), &table(5));
    assert_eq!(filter(&input, &whole, &["--where", "WIDTH > 500", "--parts", "3"]).unwrap().taken, 51_005);
    // A folder to write inside of the input is no input.
    let inside = input.join("filtered");
    assert_eq!(filter(&input, &inside, &[]).unwrap().taken, 51_005);
    assert_eq!(filter(&input, &inside, &[]).unwrap().taken, 51_005);
    let pattern = folder.path().join("in/deep/[13].parquet");
    assert_eq!(filter(&pattern, &folder.path().join("some"), &[]).unwrap().taken, 31_005);
}

#[test]
fn a_filtered_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (folder.path().join("in.parquet"), folder.path().join("out.parquet"));
    write(&input, &table(5_000));
    let first = filter(&input, &out, &["--where", "WIDTH > 400"]).unwrap();
    let bytes = fs::read(&out).unwrap();
    let again = filter(&input, &out, &["--where", "WIDTH > 400"]).unwrap();
    assert_eq!((again.taken, again.written), (first.taken, first.written));
    assert_eq!(fs::read(&out).unwrap(), bytes);
    let other = filter(&input, &out, &["--where", "WIDTH > 1000"]).unwrap();
    assert!(other.written < first.written, "{other}");
    assert_eq!(ids(&read(&out)).len() as u64, other.written);
}

#[test]
fn killed_runs_are_continued_to_the_same_bytes() {
    let program = crate::program();
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    for number in 0..6 {
        write(&input.join(format!("{number}.parquet")), &table(60_000));
    }
    let [undisturbed, killed] = ["undisturbed", "killed"].map(|name| folder.path().join(name));
    let start = |out: &Path| {
        let command = Command::new(&program)
            .args(["filter", "--where", "WIDTH / HEIGHT > 1.1", "--threads", "1"])
            .args([&input, out])
            .stdout(Stdio::null())
            .spawn();
        command.unwrap()
    };
    assert!(start(&undisturbed).wait().unwrap().success());
    fs::create_dir(&killed).unwrap();
    for moment in [1, 15, 30, 45, 60] {
        let mut child = start(&killed);
        std::thread::sleep(Duration::from_millis(moment));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            contents(&killed)
                .keys()
                .filter(|path| !path.to_string_lossy().contains(".partial"))
                .all(|path| { fs::read(killed.join(path)).unwrap() == fs::read(undisturbed.join(path)).unwrap() })
        );
    }
    assert!(start(&killed).wait().unwrap().success());
    assert_eq!(contents(&killed), contents(&undisturbed));
}

#[test]
fn unusable_tables_and_settings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write(&path("good.parquet"), &table(5_000));
    let good = fs::read(path("good.parquet")).unwrap();
    let mut flipped = good.clone();
    // In the middle of the first column's pages.
    flipped[200..400].fill(0xff);
    let mut footer = good.clone();
    let end = footer.len();
    footer[end - 8..end - 4].fill(0xff);
    let short = RecordBatch::try_from_iter([("URL", Arc::new(StringArray::from(vec!["a"])) as ArrayRef)]).unwrap();
    write(&path("short.parquet"), &short);
    for (name, content) in [
        ("empty.parquet", &b""[..]),
        ("text.parquet", b"no parquet at all, but long enough to look at its end"),
        ("cut.parquet", &good[..good.len() / 2]),
        ("headless.parquet", &good[good.len() / 2..]),
        ("flipped.parquet", &flipped),
        ("footer.parquet", &footer),
    ] {
        fs::write(path(name), content).unwrap();
    }
    fs::create_dir(path("nothing")).unwrap();
    let cases: &[(&str, &[&str], bool, &str)] = &[
        ("empty.parquet", &[], false, "empty.parquet cannot be read as parquet"),
        ("text.parquet", &[], false, "text.parquet cannot be read as parquet"),
        ("cut.parquet", &[], false, "cut.parquet cannot be read as parquet"),
        ("headless.parquet", &[], false, "headless.parquet cannot be read as parquet"),
        ("flipped.parquet", &[], false, "flipped.parquet cannot be read as parquet"),
        ("footer.parquet", &[], false, "footer.parquet cannot be read as parquet"),
        ("short.parquet", &["--where", "WIDTH > 1"], true, "short.parquet: there is no column `WIDTH`; there are: URL"),
        (
            "short.parquet",
            &["--licensed"],
            true,
            "--licensed needs a column named LICENSE or license; the table has URL",
        ),
        ("short.parquet", &["--min-aesthetic", "5"], true, "--min-aesthetic 5 needs a column named AESTHETIC_SCORE"),
        ("good.parquet", &["--where", "WIDTH >"], true, "expected here, not the end"),
        ("good.parquet", &["--where", "TEXT > 1"], true, "these cannot be compared"),
        ("missing.parquet", &[], false, "cannot find "),
        ("nothing", &[], true, "nothing holds no parquet file"),
        ("nothing/*.parquet", &[], true, "holds no parquet file"),
    ];
    for (name, flags, usage, message) in cases {
        let out = path("out");
        fs::create_dir_all(&out).unwrap();
        let error = filter(&path(name), &out, flags).expect_err(name);
        assert!(error.to_string().contains(message), "{name} {flags:?}: {error}");
        assert_eq!(error.is_usage(), *usage, "{name} {flags:?}: {error}");
        assert!(contents(&out).is_empty(), "{name} leaves something behind");
    }
    // What the command line refuses itself.
    for (flag, value, message) in [
        ("--parts", "0", "a whole number of at least 1"),
        ("--row-group-rows", "0", "a whole number of at least 1"),
        ("--threads", "0", "a whole number of at least 1"),
        ("--min-similarity", "NaN", "NaN"),
    ] {
        let refused = Cli::try_parse_from(["filter", "in", "out", flag, value]).err().map(|error| error.to_string());
        assert!(refused.as_ref().is_some_and(|text| text.contains(message)), "{flag}: {refused:?}");
    }
    let onto = filter(&path("good.parquet"), folder.path(), &[]).unwrap_err();
    assert!(onto.is_usage() && onto.to_string().contains("input and output at once"), "{onto}");
    // A table of somebody else's stays.
    let raw = fs::read(path("short.parquet")).unwrap();
    let error = filter(&path("good.parquet"), &path("short.parquet"), &[]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("already that is not a filtered table"), "{error}");
    let error = filter(&path("good.parquet"), &path("short.parquet"), &["--parts", "2"]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("is a file, and what is written needs a folder"), "{error}");
    assert_eq!(fs::read(path("short.parquet")).unwrap(), raw);
    let onto = filter(&path("good.parquet"), &path("good.parquet"), &[]).unwrap_err();
    assert!(onto.is_usage() && onto.to_string().contains("input and output at once"), "{onto}");
    let stopped = run(
        &Cli::parse_from(["filter", path("good.parquet").to_str().unwrap(), path("out2").to_str().unwrap()]).args,
        &mut Control::default().with_stop(|| true),
    );
    // A small table may be done before anybody asks.
    assert!(stopped.is_ok() || stopped.is_err_and(|error| error.is_interrupted()));
}
