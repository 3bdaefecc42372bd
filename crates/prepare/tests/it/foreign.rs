//! The stages on other people's data: names in any script, gzip, members sorted by kind, rows that Python wrote, servers that
//! say the wrong type.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, DictionaryArray, RecordBatch, StringArray};
use calotype_data::webdataset::TarShard;
use calotype_data::{Control, Dataset, Sample, emoji};
use calotype_prepare::{Account, DataStage, Error};
use clap::Parser;
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use serde_json::Value;

use crate::support::{Reply, Request, Server};

#[derive(Debug, Parser)]
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
    let cli = Cli::try_parse_from(std::iter::once("data".to_owned()).chain(words)).unwrap();
    cli.stage.run(&mut Control::default())
}

fn samples_of(dir: &Path) -> Vec<Sample> {
    Dataset::open(dir).unwrap().iter().map(|sample| sample.unwrap().to_sample()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tar(members: &[(String, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn convert_and_reorganize_keep_samples_of_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("images")).unwrap();
    // 34 characters of three bytes do not fit into 100; a file name has at most 255 bytes.
    let names = ["日本語の写真のとても長い名前".repeat(3), "写".repeat(34), "v".repeat(200)];
    for name in &names {
        fs::write(at("images").join(format!("{name}.png")), emoji::pairs()[0].png).unwrap();
        fs::write(at("images").join(format!("{name}.txt")), name).unwrap();
    }
    let account = run("convert {} {}", &[&at("images"), &at("shards")]).unwrap();
    assert_eq!((account.taken, account.written, account.left_out_in_all()), (3, 3, 0));
    for sample in samples_of(&at("shards")) {
        assert_eq!(sample.text("txt").unwrap(), sample.key);
    }
    // Shards in front of the keys make them longer still, and folders that USTAR cannot divide.
    let deep = format!("{}/x", "フォルダ".repeat(40));
    fs::write(at("deep.tar"), tar(&[(format!("{deep}.txt"), b"deep")])).unwrap();
    let account = run("reorganize {} {} {} --prefix-keys", &[&at("shards"), &at("deep.tar"), &at("sorted")]).unwrap();
    assert_eq!((account.written, account.left_out_in_all()), (4, 0), "{account}");
    let shard = TarShard::open(&at("sorted").join("shard-000000.tar")).unwrap();
    assert!(shard.samples().any(|sample| sample.key() == format!("deep.tar/{deep}")));
    let account = run("check {}", &[&at("sorted")]).unwrap();
    assert_eq!((account.taken, account.left_out_in_all()), (4, 0), "{account}");
}

#[test]
fn shards_of_gzip_pass_through_all_stages() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("packed")).unwrap();
    let members = |first: usize| -> Vec<(String, &[u8])> {
        (first..first + 3)
            .flat_map(|i| [(format!("{i}.png"), emoji::pairs()[i].png), (format!("{i}.txt"), &b"a"[..])])
            .collect()
    };
    fs::write(at("packed/a.tar.gz"), gzip(&tar(&members(0)))).unwrap();
    fs::write(at("packed/b.tar"), gzip(&tar(&members(3)))).unwrap();
    let expected: Vec<String> = (0..6).map(|i| i.to_string()).collect();
    let keys = |folder: &Path| samples_of(folder).into_iter().map(|sample| sample.key).collect::<Vec<_>>();
    for (words, out) in [("convert {} {}", "converted"), ("convert {} {} --from webdataset --prefix x", "again")] {
        let account = run(words, &[&at("packed"), &at(out)]).unwrap();
        assert_eq!((account.taken, account.written), (6, 6));
        assert_eq!(keys(&at(out)), expected);
    }
    let account = run("check {}", &[&at("packed")]).unwrap();
    assert_eq!((account.taken, account.left_out_in_all()), (6, 0), "{account}");
    run("reorganize {} {} --samples-per-shard 4", &[&at("packed"), &at("sorted")]).unwrap();
    assert_eq!(keys_of_tars(&at("sorted")), expected);
    // With an index beside them, too.
    run("index {}", &[&at("packed")]).unwrap();
    run("convert {} {}", &[&at("packed"), &at("indexed")]).unwrap();
    assert_eq!(keys(&at("indexed")), expected);
}

fn keys_of_tars(folder: &Path) -> Vec<String> {
    let mut tars: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    tars.retain(|path| path.extension().is_some_and(|extension| extension == "tar"));
    tars.sort();
    let keys = |path: &std::path::PathBuf| {
        let shard = TarShard::open(path).unwrap();
        shard.samples().map(|sample| sample.key().to_owned()).collect::<Vec<_>>()
    };
    tars.iter().flat_map(keys).collect()
}

#[test]
fn members_sorted_by_kind_are_named_and_put_together() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("by-kind")).unwrap();
    let images = (0..3).map(|i| (format!("{i}.png"), emoji::pairs()[i].png));
    let texts = (0..3).map(|i| (format!("{i}.txt"), &b"caption"[..]));
    fs::write(at("by-kind/x.tar"), tar(&images.chain(texts).collect::<Vec<_>>())).unwrap();
    let error = run("check {}", &[&at("by-kind")]).unwrap_err().to_string();
    assert!(error.contains("members of 3 samples lie apart") && !error.contains("duplicate key"), "{error}");
    let error = run("convert {} {}", &[&at("by-kind"), &at("out")]).unwrap_err().to_string();
    assert!(error.contains("sorted by kind") && error.contains("reorganize"), "{error}");
    let account = run("reorganize {} {}", &[&at("by-kind"), &at("sorted")]).unwrap();
    assert_eq!((account.written, account.left_out_in_all()), (3, 0));
    assert!(account.notes.iter().any(|note| note.starts_with("3 samples, whose members")), "{account}");
    let account = run("check {}", &[&at("sorted")]).unwrap();
    assert_eq!((account.taken, account.left_out_in_all()), (3, 0), "{account}");
}

#[test]
fn one_bad_row_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("images")).unwrap();
    (0..3).for_each(|i| fs::write(at("images").join(format!("{i}.png")), emoji::pairs()[i].png).unwrap());
    let rows = "{\"file_name\": \"0.png\", \"text\": {}}\n{\"file_name\": \"1.png\", \"text\": []}\n{\"file_name\": \"2.png\", \
                \"text\": \"two\", \"score\": NaN}\n";
    fs::write(at("images/metadata.jsonl"), rows).unwrap();
    let error = run("convert {} {}", &[&at("images"), &at("out")]).unwrap_err().to_string();
    assert!(error.contains("row 1") && error.contains("--skip-bad"), "{error}");
    let account = run("convert {} {} --skip-bad", &[&at("images"), &at("out")]).unwrap();
    assert_eq!((account.taken, account.written, account.left_out["cannot be read"]), (3, 2, 1));
    let texts: Vec<String> =
        samples_of(&at("out")).iter().map(|sample| sample.text("txt").unwrap().to_owned()).collect();
    assert_eq!(texts, ["", "two"]);
    // A key part that a sample lacks is no key.
    let error = run("convert {} {} --key-part txt --from mds", &[&at("out"), &at("no")]).map(|_| ()).unwrap_err();
    assert!(!error.to_string().is_empty());
    let error = run("convert {} {} --key-part json", &[&at("out"), &at("keys")]).unwrap_err().to_string();
    assert!(error.contains("no part `json`"), "{error}");
}

#[test]
fn captions_of_a_list_are_chosen_by_a_setting() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("images")).unwrap();
    let rows: String =
        (0..8).map(|i| format!("{{\"file_name\": \"{i}.png\", \"text\": [\"a\", \"b\", \"c\"]}}\n")).collect();
    (0..8).for_each(|i| fs::write(at("images").join(format!("{i}.png")), emoji::pairs()[i].png).unwrap());
    fs::write(at("images/metadata.jsonl"), rows).unwrap();
    let texts = |words: &str, out: &str| -> Vec<String> {
        run(words, &[&at("images"), &at(out)]).unwrap();
        let all = samples_of(&at(out));
        assert!(all.iter().all(|sample| sample.text("json").unwrap() == r#"{"text":["a","b","c"]}"#));
        all.iter().map(|sample| sample.text("txt").unwrap().to_owned()).collect()
    };
    assert_eq!(texts("convert {} {}", "first"), ["a"; 8]);
    let random = texts("convert {} {} --captions random --caption-seed 5", "random");
    assert_eq!(random, texts("convert {} {} --captions random --caption-seed 5 --shard-samples 3", "again"));
    assert_ne!(random, ["a"; 8]);
}

fn answer(request: &Request) -> Reply {
    let png = emoji::pairs()[3].png;
    let brotli = || {
        let mut out = Vec::new();
        brotli::CompressorReader::new(png, 4096, 5, 22).read_to_end(&mut out).unwrap();
        out
    };
    let path = request.path.split('?').next().unwrap_or_default();
    match path {
        "/image.php" => Reply::new(200, "text/html; charset=UTF-8", png),
        "/plain" => Reply::new(200, "text/plain", png),
        "/json" => Reply::new(200, "application/json", png),
        "/page" => Reply::new(200, "text/html", b"<!doctype html>".repeat(1000)),
        "/page.gz" => Reply::new(200, "text/html", gzip(b"<!doctype html>")).header("Content-Encoding", "gzip"),
        "/image.gz" => Reply::new(200, "image/png", gzip(png)).header("Content-Encoding", "gzip"),
        "/text.gz" => Reply::new(200, "text/plain", gzip(png)).header("Content-Encoding", "x-gzip"),
        "/image.br" => Reply::new(200, "image/png", brotli()).header("Content-Encoding", "br"),
        // Says what is not so, as caches do that have undone it.
        "/liar" => Reply::new(200, "image/png", png).header("Content-Encoding", "gzip"),
        "/cut.gz" => Reply::new(200, "image/png", &gzip(png)[..40]).header("Content-Encoding", "gzip"),
        "/odd" => Reply::new(200, "image/png", &b"??"[..]).header("Content-Encoding", "exi"),
        "/bomb.gz" => Reply::new(200, "image/png", gzip(&[0; 2_000_000])).header("Content-Encoding", "gzip"),
        _ => Reply::new(404, "text/plain", ""),
    }
}

const DOWNLOAD: &str = "download {} {} --allow-private --retries=0 --max-bytes=1000000 --number-sample-per-shard=100";

#[test]
fn the_bytes_decide_whether_a_body_is_an_image() {
    let server = Server::start(answer);
    let dir = tempfile::tempdir().unwrap();
    let (list, out) = (dir.path().join("list.txt"), dir.path().join("out"));
    let paths = [
        "/image.php",
        "/plain",
        "/json",
        "/image.gz",
        "/text.gz",
        "/image.br",
        "/liar",
        "/page",
        "/page.gz",
        "/cut.gz",
        "/odd",
        "/bomb.gz",
    ];
    fs::write(&list, paths.map(|path| server.url(path) + "\n").concat()).unwrap();
    let account = run(&format!("{DOWNLOAD} --resize-mode=no --encode-format=png"), &[&list, &out]).unwrap();
    let count = |reason: &str| account.left_out.get(reason).copied().unwrap_or_default();
    assert_eq!((account.taken, account.written), (12, 7), "{account}");
    assert_eq!(
        [count("content type of no image"), count("content encoding that cannot be undone"), count("body too large")],
        [2, 2, 1],
        "{account}"
    );
    let all = samples_of(&out);
    for sample in &all {
        assert_eq!(sample.part("png").unwrap(), all[0].part("png").unwrap(), "{}", sample.key);
    }
}

#[test]
fn lists_of_python_are_read_and_bad_rows_say_how_to_go_on() {
    let server = Server::start(answer);
    let dir = tempfile::tempdir().unwrap();
    let url = server.url("/plain");
    let at = |name: &str| dir.path().join(name);
    let columns = "--url-col=url --caption-col=caption --save-additional-columns=score";
    let texts = |out: &str| -> Vec<String> {
        samples_of(&at(out)).iter().map(|sample| sample.text("txt").unwrap().to_owned()).collect()
    };
    // Values that JSON does not have, halves of characters, and columns that change their minds.
    let lines = format!(
        "{{\"url\": \"{url}\", \"caption\": \"one\", \"score\": NaN}}\n\
         {{\"url\": \"{url}?2\", \"caption\": NaN, \"score\": Infinity}}\n\
         {{\"url\": \"{url}?3\", \"caption\": \"broken \\ud83d emoji\", \"score\": [1]}}\n"
    );
    fs::write(at("lines.jsonl"), &lines).unwrap();
    let account = run(&format!("{DOWNLOAD} {columns}"), &[&at("lines.jsonl"), &at("lines")]).unwrap();
    assert_eq!((account.taken, account.written), (3, 3), "{account}");
    assert_eq!(texts("lines"), ["one", "", "broken \u{fffd} emoji"]);
    let scores: Vec<Value> = samples_of(&at("lines"))
        .iter()
        .map(|sample| serde_json::from_str::<Value>(sample.text("json").unwrap()).unwrap()["score"].clone())
        .collect();
    assert_eq!(scores, [Value::Null, Value::Null, "[1]".into()]);
    // A row without a caption that is text, a row that is none, and a list of another shape.
    fs::write(at("bad.jsonl"), format!("{lines}{{\"url\": \"{url}?4\", \"caption\": {{}}}}\n{{\"url\"\n[1]\n"))
        .unwrap();
    let error = run(&format!("{DOWNLOAD} {columns}"), &[&at("bad.jsonl"), &at("bad")]).unwrap_err().to_string();
    assert!(error.contains("row 4: column `caption` holds {}") && error.contains("--skip-bad"), "{error}");
    let account = run(&format!("{DOWNLOAD} {columns} --skip-bad"), &[&at("bad.jsonl"), &at("bad")]).unwrap();
    assert_eq!((account.taken, account.written), (3, 3), "{account}");
    assert!(account.notes.iter().any(|note| note.starts_with("3 rows of the list cannot be read")), "{account}");
    // A quote that never ends, as Conceptual Captions has.
    let tsv = format!("caption\turl\n\"a quote that never ends\t{url}\ntwo\t{url}?2\n");
    fs::write(at("quote.tsv"), tsv).unwrap();
    let words = format!("{DOWNLOAD} --caption-col=caption");
    let error = run(&words, &[&at("quote.tsv"), &at("quote")]).unwrap_err().to_string();
    assert!(error.contains("a quote that opens in line 2 is left open") && error.contains("--no-quotes"), "{error}");
    run(&format!("{words} --no-quotes"), &[&at("quote.tsv"), &at("quote")]).unwrap();
    assert_eq!(texts("quote"), ["\"a quote that never ends", "two"]);
    let utf16: Vec<u8> = format!("\u{feff}url\n{url}\n").encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(at("utf16.csv"), utf16).unwrap();
    let account = run(DOWNLOAD, &[&at("utf16.csv"), &at("utf16")]).unwrap();
    assert_eq!(account.written, 1, "{account}");
    // gzip by its content, not by the name.
    fs::write(at("packed.csv"), gzip(format!("url,caption\n{url},packed\n").as_bytes())).unwrap();
    run(&words, &[&at("packed.csv"), &at("packed")]).unwrap();
    assert_eq!(texts("packed"), ["packed"]);
}

#[test]
fn dictionaries_of_texts_are_lists_like_others() {
    let server = Server::start(answer);
    let dir = tempfile::tempdir().unwrap();
    let (list, out) = (dir.path().join("list.parquet"), dir.path().join("out"));
    let url = server.url("/plain");
    // As pandas writes categories: pyarrow keeps the type in the file's notes.
    let texts = |values: [&str; 2]| Arc::new(values.into_iter().collect::<DictionaryArray<Int32Type>>()) as ArrayRef;
    let batch = RecordBatch::try_from_iter([
        ("url", texts([&url, &url])),
        ("caption", texts(["one", "two"])),
        ("style", texts(["flat", "flat"])),
        ("id", Arc::new(StringArray::from(vec!["x", "y"])) as ArrayRef),
    ])
    .unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(&list).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let words = format!("{DOWNLOAD} --caption-col=caption --save-additional-columns=style,id");
    run(&words, &[&list, &out]).unwrap();
    let all = samples_of(&out);
    assert_eq!(all.iter().map(|sample| sample.text("txt").unwrap()).collect::<Vec<_>>(), ["one", "two"]);
    assert!(all[1].text("json").unwrap().contains("\"style\": \"flat\""));
}

#[test]
fn captions_that_are_empty_or_alone_are_counted_and_foreign_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("images")).unwrap();
    for name in ["1", "2", "3", "4", "5"] {
        fs::write(at("images").join(format!("{name}.png")), emoji::pairs()[0].png).unwrap();
        fs::write(at("images").join(format!("{name}.txt")), " \n").unwrap();
    }
    fs::write(at("images/5.txt"), "a caption").unwrap();
    fs::write(at("images/6.txt"), "of an image that is not there").unwrap();
    let account = run("convert {} {}", &[&at("images"), &at("shards")]).unwrap();
    let notes = account.notes.join("\n");
    assert!(notes.contains("4 captions are empty") && notes.contains("data check"), "{notes}");
    assert!(notes.contains("1 with a caption file and no image of its name"), "{notes}");
    let checked = run("check {} --examples 3", &[&at("shards")]).unwrap().notes.join("\n");
    assert!(checked.contains("and 1 more, which --findings FILE lists"), "{checked}");

    fs::create_dir(at("photos")).unwrap();
    fs::write(at("photos/cat.jpg"), "cat").unwrap();
    for words in ["convert {} {}", "reorganize {} {}"] {
        let error = run(words, &[&at("shards"), &at("photos")]).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("photos holds images (cat.jpg)"), "{words}: {error}");
    }
    let error = run("check {} --findings {}", &[&at("shards"), &at("photos/cat.jpg")]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("cat.jpg: something is there already"), "{error}");
    assert_eq!(fs::read(at("photos/cat.jpg")).unwrap(), b"cat");
    assert_eq!(fs::read_dir(at("photos")).unwrap().count(), 1);
}
