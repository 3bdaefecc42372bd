//! The download stage against a server with faults: what it counts, what it writes, and what is left of it when killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::support::{Reply, Request, Server};
use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use calotype_core::{Purpose, Stream};
use calotype_data::image::{DecodeOptions, Filter, RgbImage, RgbaImage};
use calotype_data::{Control, Dataset, emoji};
use calotype_prepare::download::list::{Holds, ListError, ListFormat, Wanted, read_text_list};
use calotype_prepare::download::{self, DownloadArgs, DownloadError, FailureKind};
use calotype_prepare::{Account, Error};
use clap::Parser;
use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageFormat};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: DownloadArgs,
}

fn run(list: &Path, out: &Path, options: &[&str]) -> Result<Account, Error> {
    let words = ["download", list.to_str().unwrap(), out.to_str().unwrap()];
    let line = Line::try_parse_from(words.iter().chain(options)).map_err(|error| Error::Usage(error.to_string()))?;
    download::run(&line.args, &mut Control::default())
}

/// An embedded drawing, 72 pixels wide.
fn drawing(index: usize) -> &'static [u8] {
    emoji::pairs()[index].png
}

fn rgb(index: usize) -> RgbImage {
    RgbaImage::decode("drawing", drawing(index)).unwrap().over([255; 3])
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (width, height) = (image.width() as u32, image.height() as u32);
    JpegEncoder::new_with_quality(&mut bytes, 90).encode(image.data(), width, height, ExtendedColorType::Rgb8).unwrap();
    bytes
}

fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let (width, height) = (image.width() as u32, image.height() as u32);
    let mut bytes = Vec::new();
    match format {
        ImageFormat::Jpeg => return jpeg(image),
        ImageFormat::WebP => {
            WebPEncoder::new_lossless(&mut bytes).encode(image.data(), width, height, ExtendedColorType::Rgb8).unwrap();
        }
        ImageFormat::Gif => {
            GifEncoder::new(&mut bytes).encode(image.data(), width, height, ExtendedColorType::Rgb8).unwrap();
        }
        _ => {
            let mut out = Cursor::new(&mut bytes);
            image::write_buffer_with_format(&mut out, image.data(), width, height, ExtendedColorType::Rgb8, format)
                .unwrap();
        }
    }
    bytes
}

fn image_reply(bytes: Vec<u8>) -> Reply {
    Reply::new(200, "image/jpeg", bytes)
}

/// The members of a tar by their names, in order.
fn members(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let read = |entry: std::io::Result<tar::Entry<'_, fs::File>>| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    };
    archive.entries().unwrap().map(read).collect()
}

fn json(bytes: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(bytes).unwrap()
}

fn table(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap().build().unwrap();
    let batches: Vec<_> = reader.map(Result::unwrap).collect();
    arrow_select::concat::concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn column(table: &RecordBatch, name: &str) -> Vec<Value> {
    let column = table.column_by_name(name).unwrap();
    (0..table.num_rows()).map(|row| download::list::json_value(column, row)).collect()
}

/// All files of the dataset itself by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn left_out(account: &Account) -> BTreeMap<String, u64> {
    account.left_out.clone()
}

/// The account of a run that failed because not one image came, and the message.
fn nothing(result: Result<Account, Error>) -> (Account, String) {
    let error = result.unwrap_err();
    let told = error.to_string();
    assert!(!error.is_usage());
    match error {
        Error::Download(error) => match *error {
            DownloadError::Nothing { account, .. } => (*account, told),
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
}

/// Answers of a faulty server. Paths may be behind a host's name, as a proxy is asked.
fn faulty(request: &Request) -> Reply {
    let path = request.path.strip_prefix("http://images.example").unwrap_or(&request.path);
    let good = || jpeg(&rgb(3));
    match path {
        "/fine.jpg" => image_reply(good()),
        "/fine.png" => Reply::new(200, "application/octet-stream", drawing(1)),
        "/fine.webp" => Reply::new(200, "image/webp; x=y", encoded(&rgb(4), ImageFormat::WebP)),
        "/fine.gif" => Reply::new(200, "image/gif", encoded(&rgb(5), ImageFormat::Gif)),
        "/fine.bmp" => Reply::new(200, "image/bmp", encoded(&rgb(6), ImageFormat::Bmp)),
        "/endless-fine.jpg" => Reply { without_length: true, ..image_reply(good()) },
        "/moved.jpg" => Reply::redirect("/moved/again.jpg#part"),
        "/moved/again.jpg" => Reply::redirect("../fine.jpg"),
        "/flaky.jpg" if request.earlier == 0 => Reply::new(500, "text/plain", "come back"),
        "/busy.jpg" if request.earlier == 0 => Reply::new(429, "text/plain", "").header("Retry-After", "0"),
        "/flaky.jpg" | "/busy.jpg" => image_reply(good()),
        "/reset-once.jpg" if request.earlier == 0 => Reply { reset_after: Some(50), ..image_reply(good()) },
        "/reset-once.jpg" => image_reply(good()),
        "/other-robot.jpg" => image_reply(good()).header("X-Robots-Tag", "otherbot: noai"),
        "/500.jpg" => Reply::new(500, "text/plain", ""),
        "/403.jpg" => Reply::new(403, "image/jpeg", good()),
        "/slow.jpg" => Reply { delay: Duration::from_secs(60), ..image_reply(good()) },
        "/reset.jpg" => Reply { reset_after: Some(100), ..image_reply(good()) },
        "/page.html" => Reply::new(200, "Text/HTML; charset=utf-8", "<html>gone</html>"),
        "/loop.jpg" => Reply::redirect("/pool.jpg"),
        "/pool.jpg" => Reply::redirect("/loop.jpg"),
        "/self.jpg" => Reply::redirect("/self.jpg"),
        "/nowhere.jpg" => Reply::new(302, "text/plain", ""),
        "/file.jpg" => Reply::redirect("file:///etc/passwd"),
        "/inside.jpg" => Reply::redirect("http://10.1.2.3/secret"),
        "/metadata.jpg" => Reply::redirect("http://[::ffff:169.254.169.254]/latest/meta-data"),
        "/huge.jpg" => image_reply(vec![7; 50 << 20]),
        "/huge-endless.jpg" => Reply { without_length: true, ..image_reply(vec![7; 50 << 20]) },
        "/cut.jpg" => image_reply(good()[..good().len() * 2 / 3].to_vec()),
        "/cut.png" => image_reply(drawing(1)[..drawing(1).len() / 2].to_vec()),
        "/cut.webp" => image_reply(encoded(&rgb(4), ImageFormat::WebP)[..300].to_vec()),
        "/cut-early.jpg" => image_reply(good()[..30].to_vec()),
        "/damaged.png" => image_reply(damaged(drawing(1))),
        "/text.jpg" => image_reply(b"no image".to_vec()),
        "/empty.jpg" => image_reply(Vec::new()),
        "/svg.jpg" => Reply::new(200, "image/svg+xml", "<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "/bomb.png" => image_reply(bomb()),
        "/opted-out.jpg" => image_reply(good()).header("X-Robots-Tag", "nofollow, noai"),
        "/opted-out-us.jpg" => image_reply(good()).header("X-Robots-Tag", "calotype: noindex"),
        path if path.starts_with("/chain/") => {
            let number: usize = path["/chain/".len()..].parse().unwrap();
            Reply::redirect(&format!("/chain/{}", number + 1))
        }
        _ => Reply::new(404, "text/plain", "not here"),
    }
}

/// A PNG with a wrong byte among those of its pixels.
fn damaged(png: &[u8]) -> Vec<u8> {
    let pixels = png.windows(4).position(|kind| kind == b"IDAT").unwrap();
    let mut bytes = png.to_vec();
    bytes[pixels + 40] ^= 0xff;
    bytes
}

/// The head of a PNG that promises 60,000 x 60,000 pixels.
fn bomb() -> Vec<u8> {
    let mut bytes = drawing(1).to_vec();
    bytes[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    bytes
}

/// Paths, and the failure that each leads to.
const FAULTS: [(&str, Option<FailureKind>); 41] = {
    use FailureKind::*;
    [
        ("/fine.jpg", None),
        ("/404.jpg", Some(Http(404))),
        ("/fine.png", None),
        ("/gone.jpg", Some(Http(404))),
        ("/fine.webp", None),
        ("/fine.gif", None),
        ("/fine.bmp", None),
        ("/endless-fine.jpg", None),
        ("/moved.jpg", None),
        ("/flaky.jpg", None),
        ("/busy.jpg", None),
        ("/reset-once.jpg", None),
        ("/other-robot.jpg", None),
        ("/500.jpg", Some(Http(500))),
        ("/403.jpg", Some(Http(403))),
        ("/reset.jpg", Some(Broken)),
        ("/page.html", Some(WrongType)),
        ("/loop.jpg", Some(RedirectLoop)),
        ("/self.jpg", Some(RedirectLoop)),
        ("/chain/0", Some(TooManyRedirects)),
        ("/nowhere.jpg", Some(BadRedirect)),
        ("/file.jpg", Some(Scheme)),
        ("/huge.jpg", Some(TooLarge)),
        ("/huge-endless.jpg", Some(TooLarge)),
        ("/cut.jpg", Some(Truncated)),
        ("/cut.png", Some(Truncated)),
        ("/cut.webp", Some(Truncated)),
        ("/cut-early.jpg", Some(Truncated)),
        ("/damaged.png", Some(Undecodable)),
        ("/text.jpg", Some(NotAnImage)),
        ("/empty.jpg", Some(NotAnImage)),
        ("/svg.jpg", Some(NotAnImage)),
        ("/bomb.png", Some(TooManyPixels)),
        ("/opted-out.jpg", Some(OptedOut)),
        ("/opted-out-us.jpg", Some(OptedOut)),
        ("http://", Some(BadUrl)),
        ("no address", Some(BadUrl)),
        ("", Some(BadUrl)),
        ("ftp://images.example/fine.jpg", Some(Scheme)),
        ("http://host.invalid/fine.jpg", Some(Dns)),
        ("https://[::1/fine.jpg", Some(BadUrl)),
    ]
};

/// Nothing here is to fail for the time that a busy machine takes.
const QUICK: [&str; 5] =
    ["--timeout=100", "--connect-timeout=100", "--retries=1", "--backoff=0.01", "--max-bytes=1000000"];

#[test]
fn failures_are_counted_by_kind_and_nothing_else_is_lost() {
    let server = Server::start(faulty);
    let dir = tempfile::tempdir().unwrap();
    // A port where nobody listens, and one where somebody does not speak TLS.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain_at = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in plain.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    let mut rows: Vec<(String, Option<FailureKind>)> = FAULTS
        .iter()
        .map(|(path, kind)| (if path.starts_with('/') { server.url(path) } else { (*path).to_owned() }, *kind))
        .collect();
    rows.push((format!("http://{closed}/a.jpg"), Some(FailureKind::Connect)));
    rows.push((format!("https://{plain_at}/a.jpg"), Some(FailureKind::Tls)));
    let list = dir.path().join("list.csv");
    let lines = rows.iter().enumerate().map(|(row, (url, _))| format!("{row},\"{url}\",\"caption, {row}\"\n"));
    fs::write(&list, format!("id,link,text\n{}", lines.collect::<String>())).unwrap();

    let out = dir.path().join("out");
    let options = [&QUICK[..], &["--allow-private", "--url-col=link", "--caption-col=text", "--memory=4"]].concat();
    let options = [&options[..], &["--save-additional-columns=id", "--number-sample-per-shard=10"]].concat();
    let account = run(&list, &out, &options).unwrap();

    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for kind in rows.iter().filter_map(|(_, kind)| *kind) {
        *expected.entry(kind.label().into_owned()).or_default() += 1;
    }
    assert_eq!(left_out(&account), expected);
    let good = rows.iter().filter(|(_, kind)| kind.is_none()).count() as u64;
    assert_eq!((account.taken, account.written), (rows.len() as u64, good));
    assert_bounded(&account, 4.0 * 1.048_576 + 2.0 * 1.0);

    let mut row = 0;
    for shard in 0..rows.len().div_ceil(10) {
        let name = |ending: &str| out.join(format!("{shard:05}{ending}"));
        let table = table(&name(".parquet"));
        let members: BTreeMap<String, Vec<u8>> = members(&name(".tar")).into_iter().collect();
        let (keys, statuses, messages) =
            (column(&table, "key"), column(&table, "status"), column(&table, "error_message"));
        for at in 0..table.num_rows() {
            let (url, kind) = &rows[row];
            assert_eq!(keys[at], format!("{shard:05}{at:01}"), "{url}");
            let status = kind.map_or("success", FailureKind::status);
            assert_eq!(statuses[at], status, "{url}");
            let message = messages[at].as_str().unwrap_or_default();
            assert!(kind.map_or(message.is_empty(), |kind| message.starts_with(&*kind.label())), "{url}: {message}");
            let key = keys[at].as_str().unwrap();
            assert_eq!(members.contains_key(&format!("{key}.jpg")), kind.is_none(), "{url}");
            if kind.is_none() {
                let facts = json(&members[&format!("{key}.json")]);
                assert_eq!((&facts["url"], &facts["id"]), (&Value::from(url.as_str()), &Value::from(row)));
                assert_eq!(members[&format!("{key}.txt")], format!("caption, {row}").into_bytes());
                assert_eq!((&facts["width"], &facts["original_height"]), (&Value::from(256), &Value::from(72)));
                let image = RgbImage::decode(key, &members[&format!("{key}.jpg")]).unwrap();
                assert_eq!((image.width(), image.height()), (256, 256));
            }
            row += 1;
        }
        let stats = json(&fs::read(name("_stats.json")).unwrap());
        let sum: u64 = stats["status_dict"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        assert_eq!(stats["count"], sum);
    }
    assert_eq!(row, rows.len());
    // The reader of training takes the folder as it is.
    assert_eq!(Dataset::open(&out).unwrap().len() as u64, good);
    // What may pass was tried again, what does not pass was not.
    let asked = |path: &str| server.requests().iter().filter(|request| request.path == path).count();
    assert_eq!([asked("/500.jpg"), asked("/reset.jpg"), asked("/404.jpg"), asked("/loop.jpg")], [2, 2, 1, 1]);
}

#[test]
fn servers_that_do_not_answer_are_given_up() {
    let server = Server::start(faulty);
    // The whole answer has to come in time, not each of its pieces.
    let dripping = TcpListener::bind("127.0.0.1:0").unwrap();
    let dripping_at = dripping.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in dripping.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
                while stream.write_all(b"x").is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.txt");
    fs::write(&list, format!("{}\nhttp://{dripping_at}/\n", server.url("/slow.jpg"))).unwrap();
    let options = ["--allow-private", "--timeout=0.5", "--retries=1", "--backoff=0.01"];
    let out = dir.path().join("out");
    let (account, told) = nothing(run(&list, &out, &options));
    assert_eq!(left_out(&account), BTreeMap::from([("timed out".to_owned(), 2)]));
    assert!(told.contains("2  timed out\n") && told.contains("not one of 2 images could be used"), "{told}");
    // A second start finds the same, and asks nobody.
    assert_eq!(left_out(&nothing(run(&list, &out, &options)).0), left_out(&account));
    // A shard without samples is one all the same.
    assert_eq!(members(&dir.path().join("out/00000.tar")), []);
    assert_eq!(table(&dir.path().join("out/00000.parquet")).num_rows(), 2);
}

#[test]
fn a_run_that_is_stopped_keeps_its_shards() {
    let server = Server::start(|request| {
        let reply = image_reply(drawing(2).to_vec());
        // The second shard waits until the first one is done and the stage is stopped.
        Reply { delay: Duration::from_secs(if *request.path >= *"/5" { 60 } else { 0 }), ..reply }
    });
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.txt");
    fs::write(&list, (0..9).map(|n| server.url(&format!("/{n}\n"))).collect::<String>()).unwrap();
    let out = dir.path().join("out");
    let words = ["download", list.to_str().unwrap(), out.to_str().unwrap(), "--allow-private"];
    let line = Line::parse_from(words.iter().chain(&["--number-sample-per-shard=5", "--timeout=100"]));
    let first = out.join("00000_stats.json");
    let seen = std::cell::RefCell::new(Vec::new());
    let mut control = Control::default()
        .with_progress(|_, done, total| seen.borrow_mut().push((done, total)))
        .with_stop(|| first.exists());
    let error = download::run(&line.args, &mut control).unwrap_err();
    assert!(error.is_interrupted(), "{error}");
    assert_eq!(seen.borrow().last(), Some(&(5, 9)));
    assert!(!out.join("00001.tar").exists());
}

/// The report tells the most bytes that were in memory at once.
fn assert_bounded(account: &Account, megabytes: f64) {
    let note = account.notes.iter().find_map(|note| note.split("at most ").nth(1)).unwrap();
    let peak: f64 = note.split(' ').next().unwrap().parse().unwrap();
    assert!(peak > 0.0 && peak <= megabytes + 0.1, "{note}");
}

#[test]
fn private_addresses_are_refused_also_behind_names_and_redirects() {
    let server = Server::start(faulty);
    let dir = tempfile::tempdir().unwrap();
    let port = server.url("").rsplit(':').next().unwrap().to_owned();
    let list = dir.path().join("list.txt");
    let private = ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]"];
    let lines: String = private.iter().map(|host| format!("http://{host}:{port}/fine.jpg\n")).collect();
    fs::write(&list, lines).unwrap();
    let (account, _) = nothing(run(&list, &dir.path().join("direct"), &QUICK));
    assert_eq!(left_out(&account), BTreeMap::from([("private address".to_owned(), 6)]));
    assert_eq!(server.requests().len(), 0);

    // Through a proxy, names are the proxy's matter, but no literal address goes to it.
    let names =
        ["/fine.jpg", "/inside.jpg", "/metadata.jpg", "/moved.jpg"].map(|p| format!("http://images.example{p}\n"));
    fs::write(&list, names.concat() + "http://192.168.1.1/fine.jpg\n").unwrap();
    let proxy = format!("--proxy={}", server.url(""));
    let account = run(&list, &dir.path().join("proxy"), &[&QUICK[..], &[&proxy]].concat()).unwrap();
    assert_eq!(left_out(&account), BTreeMap::from([("private address".to_owned(), 3)]));
    assert_eq!(account.written, 2);
    assert!(server.requests().iter().all(|request| request.path.starts_with("http://images.example/")));
}

/// The stage as a process of its own.
fn child(list: &Path, out: &Path, options: &[&str]) -> Child {
    let mut command = Command::new(crate::program());
    command.arg("download").arg(list).arg(out).args(options).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.spawn().unwrap()
}

#[test]
fn killed_runs_continue_to_the_same_shards_whatever_the_slices() {
    let image = |index: usize| jpeg(&rgb(index % 40));
    // Requests beyond the limit wait, so that a run is killed in its middle however fast the machine is.
    let (asked, limit) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
    let (turns, gate) = (asked.clone(), limit.clone());
    let server = Server::start(move |request| {
        let number: usize = request.path[1..].parse().unwrap();
        let turn = turns.fetch_add(1, SeqCst);
        while turn >= gate.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let reply = match number % 11 {
            3 => Reply::new(404, "text/plain", ""),
            7 => image_reply(image(number)[..200].to_vec()),
            _ => image_reply(image(number)),
        };
        // Answers come in another order than they are asked for.
        Reply { delay: Duration::from_millis((number * 7 % 13) as u64), ..reply }
    });
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    fs::create_dir(&list).unwrap();
    for (file, range) in [("a", 0..110), ("b", 110..240)] {
        let line = |number| format!("{{\"url\": \"{}\", \"n\": {number}}}\n", server.url(&format!("/{number}")));
        fs::write(list.join(format!("{file}.jsonl")), range.map(line).collect::<String>()).unwrap();
    }
    let options = ["--allow-private", "--number-sample-per-shard=20", "--thread-count=8", "--retries=0"];
    let options =
        [&options[..], &["--resize-mode=center_crop", "--image-size=48", "--save-additional-columns=n"]].concat();

    let whole = dir.path().join("whole");
    let account = run(&list, &whole, &options).unwrap();
    let expected = files(&whole);
    // Shards of 110 and of 130 rows, each of three files.
    assert_eq!(expected.len(), 3 * (6 + 7));
    assert_eq!((account.taken, account.left_out_in_all()), (240, 22 + 22));

    let killed = dir.path().join("killed");
    let mut random = Stream::new(5, Purpose::DatasetOrder, 0);
    for _ in 0..5 {
        // Five times 44 are fewer than 240: no run comes to the end.
        let moment = 5 + random.next_u32() as usize % 40;
        asked.store(0, SeqCst);
        limit.store(moment, SeqCst);
        let mut run = child(&list, &killed, &options);
        while asked.load(SeqCst) <= moment {
            assert!(run.try_wait().unwrap().is_none(), "the run ended before it was killed");
            std::thread::sleep(Duration::from_millis(1));
        }
        run.kill().unwrap();
        run.wait().unwrap();
        limit.store(usize::MAX, SeqCst);
    }
    assert!(files(&killed) != expected, "the killed runs were complete");
    assert!(child(&list, &killed, &options).wait().unwrap().success());
    let found = files(&killed);
    let differing: Vec<_> =
        found.iter().filter(|(name, bytes)| expected.get(*name) != Some(*bytes)).map(|(name, _)| name).collect();
    assert!(found == expected, "shards differ after kills: {differing:?}, {} files of {}", found.len(), expected.len());
    // A finished folder is recognised without a request, and its account is the same.
    let before = server.requests().len();
    let again = run(&list, &killed, &options).unwrap();
    assert_eq!(server.requests().len(), before);
    assert_eq!((again.taken, again.written, again.bytes), (account.taken, account.written, account.bytes));
    assert_eq!(again.left_out, account.left_out);

    let sliced = dir.path().join("sliced");
    for task in ["2", "0", "1"] {
        run(&list, &sliced, &[&options[..], &["--task-id", task, "--task-count=3"]].concat()).unwrap();
    }
    assert!(files(&sliced) == expected, "shards differ by slices");

    let error = run(&list, &whole, &[&options[..], &["--resize-only-if-bigger"]].concat()).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("image.only_if_bigger"), "{error}");
    fs::write(list.join("c.jsonl"), "{\"url\": \"http://127.0.0.1/\", \"n\": 1}\n").unwrap();
    assert!(run(&list, &whole, &options).unwrap_err().to_string().contains("list is"));
}

#[test]
fn memory_is_bounded_by_the_settings() {
    const BODY: usize = 8 << 20;
    let server = Server::start(|request| {
        let reply = image_reply(vec![7; BODY]);
        Reply { without_length: request.path.ends_with('1'), ..reply }
    });
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.txt");
    fs::write(&list, (0..24).map(|n| server.url(&format!("/{n}")) + "\n").collect::<String>()).unwrap();
    let options = ["--allow-private", "--memory=16", "--max-bytes=9000000", "--retries=0", "--decode-threads=1"];
    let mut run = child(&list, &dir.path().join("out"), &[&options[..], &["--disable-all-reencoding"]].concat());
    let status = PathBuf::from(format!("/proc/{}/status", run.id()));
    let mut peak = 0;
    while run.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
        peak = peak.max(kilobytes.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(run.wait().unwrap().success());
    // 24 bodies are 192 MiB, those of unknown length twice that while their vectors grow; two of them may grow at once.
    assert!(peak > 0 && peak < 150 << 10, "{peak} kB");
    assert_eq!(members(&dir.path().join("out/00000.tar")).iter().filter(|(name, _)| name.ends_with("jpg")).count(), 24);
}

#[test]
fn bytes_stay_untouched_where_nothing_is_to_be_done() {
    let originals =
        [jpeg(&rgb(3)), encoded(&rgb(4), ImageFormat::WebP), drawing(5).to_vec(), encoded(&rgb(6), ImageFormat::Png)];
    let served = originals.clone();
    let server = Server::start(move |request| image_reply(served[request.path[1..].parse::<usize>().unwrap()].clone()));
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.txt");
    fs::write(&list, (0..4).map(|n| server.url(&format!("/{n}\n"))).collect::<String>()).unwrap();
    // Format, other options, and which of the images keep their bytes. The third one is transparent.
    for (format, options, kept) in [
        ("jpg", &["--resize-mode=no"][..], [true, false, false, false]),
        ("webp", &["--resize-mode=no"], [false, true, false, false]),
        ("png", &["--resize-mode=no"], [false, false, false, true]),
        (
            "png",
            &["--resize-mode=keep_ratio", "--image-size=72", "--resize-only-if-bigger"],
            [false, false, false, true],
        ),
        ("png", &["--resize-mode=keep_ratio", "--image-size=72"], [false; 4]),
        ("jpg", &["--resize-mode=no", "--skip-reencode=false"], [false; 4]),
        ("jpg", &["--disable_all_reencoding", "--compute_hash=none"], [true; 4]),
    ] {
        let out = tempfile::tempdir().unwrap();
        let format_option = format!("--encode-format={format}");
        run(&list, out.path(), &[&["--allow-private", &format_option], options].concat()).unwrap();
        let members: BTreeMap<_, _> = members(&out.path().join("00000.tar")).into_iter().collect();
        for (index, original) in originals.iter().enumerate() {
            let stored = &members[&format!("00000000{index}.{format}")];
            assert_eq!(stored == original, kept[index], "{index} as {format} with {options:?}");
        }
        if format == "png" {
            // Without loss, and what is transparent on white.
            let image = RgbImage::decode("png", &members["000000002.png"]).unwrap();
            assert_eq!(image, rgb(5));
        }
    }
}

/// What is encoded anew is turned upright, and nothing says any more that it should be.
#[test]
fn pixels_are_turned_where_they_are_encoded_anew() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/images/orientation_6.jpg");
    let original = fs::read(golden).unwrap();
    let bytes = original.clone();
    let server = Server::start(move |_| image_reply(bytes.clone()));
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.txt");
    fs::write(&list, server.url("/a")).unwrap();
    let get = |options: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let options = [&["--allow-private", "--resize-mode=no"], options].concat();
        let account = run(&list, out.path(), &options).unwrap();
        let members: BTreeMap<_, _> = members(&out.path().join("00000.tar")).into_iter().collect();
        let facts = json(&members["000000000.json"]);
        (members, facts, account.notes.join("; "))
    };
    let upright = RgbImage::decode("x", &original).unwrap();
    let stored = RgbImage::decode_with("x", &original, &DecodeOptions::as_stored()).unwrap();
    assert_eq!((stored.width(), stored.height()), (upright.height(), upright.width()));
    let (members, facts, notes) = get(&["--encode-format=png"]);
    assert_eq!(RgbImage::decode("x", &members["000000000.png"]).unwrap(), upright);
    assert_eq!((&facts["width"], &facts["height"]), (&upright.width().into(), &upright.height().into()));
    assert!(!facts["exif"].as_str().unwrap().contains("Orientation"), "{facts:?}");
    assert!(notes.contains("1 image turned upright"), "{notes}");
    let (members, facts, notes) = get(&["--encode-format=png", "--as-stored"]);
    assert_eq!(RgbImage::decode("x", &members["000000000.png"]).unwrap(), stored);
    assert_eq!(facts["width"], stored.width());
    assert!(facts["exif"].as_str().unwrap().contains("\"Image Orientation\":\"6\""), "{facts:?}");
    assert!(notes.contains("1 image left as stored"), "{notes}");
    // Bytes that are kept keep their tag; their sides are those that readers see.
    let (members, facts, _) = get(&["--encode-format=jpg"]);
    assert_eq!(members["000000000.jpg"], original);
    assert_eq!(facts["width"], upright.width());
    assert!(facts["exif"].as_str().unwrap().contains("\"Image Orientation\":\"6\""), "{facts:?}");
}

#[test]
fn transparent_images_are_encoded_on_a_background() {
    let server = Server::start(|_| image_reply(drawing(5).to_vec()));
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.txt");
    fs::write(&list, server.url("/a")).unwrap();
    let original = RgbaImage::decode("x", drawing(5)).unwrap();
    for (background, expected) in [("white", original.over([255; 3])), ("#c0ffee", original.over([0xc0, 0xff, 0xee]))] {
        let out = tempfile::tempdir().unwrap();
        let option = format!("--background={background}");
        let options = ["--allow-private", "--resize-mode=no", "--encode-format=png", &option];
        let account = run(&list, out.path(), &options).unwrap();
        let members = members(&out.path().join("00000.tar"));
        let png = &members.iter().find(|(name, _)| name.ends_with(".png")).unwrap().1;
        assert_eq!(RgbImage::decode("x", png).unwrap(), expected, "{background}");
        let notes = account.notes.join("; ");
        assert!(notes.contains(&format!("1 image with transparent pixels laid on {background}")), "{notes}");
    }
}

#[test]
fn images_are_brought_to_size_by_pillows_arithmetic() {
    let original = rgb(8).crop(0, 9, 72, 31).unwrap();
    let bytes = encoded(&original, ImageFormat::Png);
    let server = Server::start(move |_| image_reply(bytes.clone()));
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.txt");
    fs::write(&list, server.url("/a")).unwrap();
    let resized = |width, height, filter| original.resize(width, height, filter).unwrap();
    let bordered = {
        let small = resized(40, 17, Filter::Bicubic);
        let mut data = vec![255; 3 * 40 * 40];
        data[3 * 40 * 11..3 * 40 * 28].copy_from_slice(small.data());
        RgbImage::new(40, 40, data).unwrap()
    };
    for (mode, size, options, expected) in [
        ("no", "40", &[][..], original.clone()),
        ("keep_ratio", "20", &[], resized(46, 20, Filter::Box)),
        ("keep_ratio", "40", &[], resized(93, 40, Filter::Lanczos3)),
        ("keep_ratio", "40", &["--resize-only-if-bigger=true"], original.clone()),
        ("keep_ratio", "40", &["--upscale-interpolation=linear"], resized(93, 40, Filter::Bilinear)),
        ("keep_ratio_largest", "40", &["--downscale-interpolation=nearest"], resized(40, 17, Filter::Nearest)),
        ("center_crop", "20", &[], resized(46, 20, Filter::Box).crop(13, 0, 20, 20).unwrap()),
        ("border", "40", &["--downscale-interpolation=bicubic"], bordered),
    ] {
        let out = tempfile::tempdir().unwrap();
        let (mode, size) = (format!("--resize-mode={mode}"), format!("--image-size={size}"));
        run(&list, out.path(), &[&["--allow-private", "--encode-format=png", &mode, &size], options].concat()).unwrap();
        let members = members(&out.path().join("00000.tar"));
        assert_eq!(RgbImage::decode(&mode, &members[1].1).unwrap(), expected, "{mode} {size} {options:?}");
    }
}

#[test]
fn limits_of_size_and_checksums_leave_images_out() {
    let server = Server::start(|request| match request.path.as_str() {
        "/wide" => image_reply(encoded(&rgb(8).crop(0, 0, 72, 20).unwrap(), ImageFormat::Png)),
        "/line" => image_reply(encoded(&RgbImage::filled(60_000, 1, [9; 3]).unwrap(), ImageFormat::Png)),
        _ => image_reply(drawing(2).to_vec()),
    });
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.tsv");
    let sum = "a".repeat(64);
    let rows = ["/square", "/wide", "/line"].map(|path| format!("{}\t{sum}\n", server.url(path)));
    fs::write(&list, format!("url\tsum\n{}", rows.concat())).unwrap();
    for (options, expected) in [
        (&["--min-image-size=30"][..], [("image too small", 2)]),
        (&["--max-image-area=60000", "--min-image-size=0"], [("none", 0)]),
        (&["--max-image-area=59999"], [("image area too large", 1)]),
        (&["--max-aspect-ratio=3.6"], [("aspect ratio too large", 1)]),
        (&["--max-aspect-ratio=3.5"], [("aspect ratio too large", 2)]),
        // Brought to 256 by its shorter side, a line of 60,000 pixels would take 12 GB.
        (&["--resize-mode=keep_ratio"], [("too many pixels", 1)]),
        (&["--verify-hash", "sum", "sha256"], [("hash mismatch", 3)]),
    ] {
        let out = tempfile::tempdir().unwrap();
        let result = run(&list, out.path(), &[&["--allow-private"], options].concat());
        // What leaves all images out is an error.
        let account = if expected[0].1 == 3 { nothing(result).0 } else { result.unwrap() };
        let expected: BTreeMap<String, u64> = expected
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| (kind.to_owned(), count))
            .collect();
        assert_eq!(left_out(&account), expected, "{options:?}");
    }
}

/// `golden/make_download.py` has run img2dataset on the same images.
#[test]
fn names_keys_facts_and_tables_are_those_of_img2dataset() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/download");
    let images = golden.clone();
    let server = Server::start(move |request| {
        let name = request.path.rsplit('/').next().unwrap();
        Reply::new(200, "application/octet-stream", fs::read(images.join(name)).unwrap())
    });
    let expected = json(&fs::read(golden.join("expected.json")).unwrap());
    let proxy = format!("--proxy={}", server.url(""));
    let common = ["--url_col=URL", "--caption_col=TEXT", "--image_size=40", "--number_sample_per_shard=6", &proxy];
    let common = [&common[..], &["--save_additional_columns=SAMPLE_ID,similarity,LICENSE,tags,good"]].concat();
    for (mode, options) in [
        ("no", &[][..]),
        ("border", &[]),
        ("keep_ratio", &["--resize_only_if_bigger", "--compute_hash=md5"]),
        ("keep_ratio_largest", &["--extract_exif=False"]),
        ("center_crop", &["--min_image_size=20", "--max_aspect_ratio=2", "--compute_hash=none"]),
    ] {
        let out = tempfile::tempdir().unwrap();
        let mode_option = format!("--resize_mode={mode}");
        run(&golden.join("list.parquet"), out.path(), &[&common[..], &[&mode_option], options].concat()).unwrap();
        let expected = &expected[mode];
        let names: Vec<String> = files(out.path()).into_keys().collect();
        assert_eq!(serde_json::to_value(names).unwrap(), expected["files"], "{mode}");
        compare_samples(mode, out.path(), &expected["samples"]);
        compare_stats_and_columns(mode, out.path(), expected);
    }
}

fn compare_samples(mode: &str, out: &Path, expected: &Value) {
    let all: Vec<_> = ["00000.tar", "00001.tar"].iter().flat_map(|tar| members(&out.join(tar))).collect();
    let keys: Vec<_> = all.iter().filter_map(|(name, _)| name.strip_suffix(".json")).collect();
    let expected = expected.as_object().unwrap();
    assert_eq!(keys, expected.keys().collect::<Vec<_>>(), "{mode}");
    for key in keys {
        let expected = &expected[key];
        let own: Vec<_> = all.iter().filter(|(name, _)| name.starts_with(&format!("{key}."))).collect();
        let extensions: Vec<_> = own.iter().map(|(name, _)| &name[key.len() + 1..]).collect();
        assert_eq!(serde_json::to_value(extensions).unwrap(), expected["members"], "{mode} {key}");
        let text = own.iter().find(|(name, _)| name.ends_with(".txt")).unwrap();
        assert_eq!(String::from_utf8_lossy(&text.1), expected["text"].as_str().unwrap());
        let facts = &own.iter().find(|(name, _)| name.ends_with(".json")).unwrap().1;
        let facts_text = String::from_utf8_lossy(facts);
        let facts = json(facts);
        let mut last = 0;
        for pair in expected["json"].as_array().unwrap() {
            let name = pair[0].as_str().unwrap();
            let at = facts_text.find(&format!("\n    \"{name}\": ")).unwrap_or_else(|| panic!("{mode} {key}: {name}"));
            assert!(at >= last, "{mode} {key}: {name} comes too early");
            last = at;
            match name {
                "exif" => assert_eq!(exif(&facts[name]), exif(&pair[1]), "{mode} {key}"),
                _ => assert_eq!(facts[name], pair[1], "{mode} {key}: {name}"),
            }
        }
        assert_eq!(facts.len(), expected["json"].as_array().unwrap().len(), "{mode} {key}");
    }
}

/// The fields without the place of the next table, which is no fact of the image.
fn exif(text: &Value) -> Option<Map<String, Value>> {
    let mut fields = json(text.as_str()?.as_bytes());
    fields.remove("Image ExifOffset");
    Some(fields)
}

fn compare_stats_and_columns(mode: &str, out: &Path, expected: &Value) {
    for (name, counts) in expected["stats"].as_object().unwrap() {
        let stats = json(&fs::read(out.join(name)).unwrap());
        for (what, count) in counts.as_object().unwrap() {
            assert_eq!(&stats[what], count, "{mode} {name} {what}");
        }
    }
    let table = table(&out.join("00000.parquet"));
    let names: Vec<Value> = table.schema().fields().iter().map(|field| field.name().as_str().into()).collect();
    let expected: Vec<Value> = expected["columns"].as_array().unwrap().iter().map(|column| column[0].clone()).collect();
    assert_eq!(names, expected, "{mode}");
}

fn wanted(holds: Holds) -> Vec<Wanted> {
    let one = |column: &str, name: &str, holds| Wanted { column: column.to_owned(), name: name.to_owned(), holds };
    vec![one("x", "x", holds), one("url", "url", Holds::Text)]
}

#[test]
fn columns_of_text_lists_get_the_types_of_their_cells() {
    for (format, list, expected) in [
        (ListFormat::Csv, "url,x\na,1\nb,-2\n", "[1,-2]"),
        (ListFormat::Csv, "url,x\na,1\nb,2.5\nc,\n", "[1.0,2.5,null]"),
        (ListFormat::Csv, "url,x\na,nan\nb,2.5\n", "[null,2.5]"),
        (ListFormat::Csv, "\u{feff}url,x\r\na,True\r\n\r\nb,false\r\n", "[true,false]"),
        (ListFormat::Csv, "url,x\na,1\nb,one\nc,\n", r#"["1","one",""]"#),
        (ListFormat::Csv, "url,x\na,\"1\n2, \"\"3\"\"\"\n", r#"["1\n2, \"3\""]"#),
        (ListFormat::Csv, "url,x\na,99999999999999999999\n", "[1e+20]"),
        (ListFormat::Csv, "url,x\na,\nb,NA\n", "[null,null]"),
        (ListFormat::Tsv, "x\turl\n1,5\ta\n", r#"["1,5"]"#),
        (ListFormat::Jsonl, "{\"url\":\"a\",\"x\":1}\n\n {\"x\":2.5} \n{\"url\":null}\n", "[1.0,2.5,null]"),
        (ListFormat::Jsonl, "\u{feff}{\"url\":\"a\",\"x\":\"007\"}", r#"["007"]"#),
        (ListFormat::Jsonl, "{\"url\":\"a\",\"x\":true}", "[true]"),
    ] {
        let batch = read_text_list("list", list.as_bytes(), format, &wanted(Holds::Anything)).unwrap();
        assert_eq!(Value::from(column(&batch, "x")).to_string(), expected, "{list}");
    }
    // Spreadsheets save UTF-16 with a mark; without one it is refused by name.
    for (format, list) in [(ListFormat::Csv, "url,x\na,1\nb,-2\n"), (ListFormat::Txt, "a\r\nb\r\n")] {
        let utf16 = |mark: &str| format!("{mark}{list}").encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        let wanted = &wanted(Holds::Anything)[usize::from(format == ListFormat::Txt)..];
        let batch = read_text_list("list", &utf16("\u{feff}"), format, wanted).unwrap();
        assert_eq!(column(&batch, "url"), ["a", "b"]);
        let error = read_text_list("list", &utf16(""), format, wanted).unwrap_err().to_string();
        assert!(error.contains("UTF-16 text without a byte-order mark"), "{error}");
    }
    // What looks like a number stays as it is written where text is wanted.
    let batch = read_text_list("list", b"x,url\n007,8.50\n", ListFormat::Csv, &wanted(Holds::Caption)).unwrap();
    assert_eq!((column(&batch, "x"), column(&batch, "url")), (vec!["007".into()], vec!["8.50".into()]));
}

#[test]
fn damaged_lists_end_in_rows_or_errors() {
    let seeds = [
        "url,x\na,1\nb,\"2\"\n",
        "x\turl\n1.5\ta\n",
        "{\"url\":\"a\",\"x\":1}\n{\"url\":null}\n",
        "{\"url\":\"\\ud83d\\ude00\",\"x\":[{}]}",
    ];
    let formats = [ListFormat::Csv, ListFormat::Tsv, ListFormat::Jsonl, ListFormat::Txt];
    let mut random = Stream::new(6, Purpose::DatasetOrder, 0);
    let mut good = 0;
    for round in 0..4000 {
        let mut list = seeds[round % seeds.len()].as_bytes().to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(list.len() as u64) as usize;
            match random.below(3) {
                0 => list[at] = random.next_u32() as u8,
                1 => list.truncate(at + 1),
                _ => list.insert(at, b",\"\n\t\r{}\xff"[random.below(8) as usize]),
            }
        }
        let format = formats[random.below(4) as usize];
        let wanted =
            if format == ListFormat::Txt { wanted(Holds::Anything)[1..].to_vec() } else { wanted(Holds::Anything) };
        good += u32::from(read_text_list("list", &list, format, &wanted).is_ok_and(|rows| rows.num_rows() < 20));
    }
    assert!(good > 500, "{good}");
}

/// A parquet file with these columns.
fn parquet(columns: &[(&str, ArrayRef)]) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns.iter().map(|(name, array)| (*name, array.clone()))).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn lists_of_captions_give_one_and_keep_all() {
    let server = Server::start(|_| image_reply(jpeg(&rgb(3))));
    let dir = tempfile::tempdir().unwrap();
    let captions = [r#"["a","b","c"]"#, "[]", r#""d""#, "null", r#"[null,"e"]"#, "7"];
    let lines = captions.iter().enumerate().map(|(i, caption)| {
        let url = server.url(&format!("/{i}.jpg"));
        format!(r#"{{"url":"{url}","caption":{caption},"far":1e400}}"#) + "\n"
    });
    let jsonl = dir.path().join("list.jsonl");
    fs::write(&jsonl, lines.collect::<String>()).unwrap();
    let common = ["--allow-private", "--caption-col=caption"];
    let texts = |list: &Path, out: &str, more: &[&str]| {
        let out = dir.path().join(out);
        run(list, &out, &[&QUICK[..], &common, more].concat()).unwrap();
        let parts = members(&out.join("00000.tar"));
        let of = |ending: &str| -> Vec<String> {
            let fitting = parts.iter().filter(|(name, _)| name.ends_with(ending));
            fitting.map(|(_, bytes)| String::from_utf8(bytes.clone()).unwrap()).collect()
        };
        let facts = of(".json").iter().map(|text| json(text.as_bytes())["caption"].clone()).collect::<Vec<_>>();
        (of(".txt"), facts)
    };
    let (first, facts) = texts(&jsonl, "first", &["--save-additional-columns=far"]);
    assert_eq!(first, ["a", "", "d", "", "e", "7"]);
    assert_eq!(Value::from(facts), serde_json::json!([["a", "b", "c"], [], ["d"], null, [null, "e"], ["7"]]));
    let seeds: Vec<String> = (0..12).map(|seed| format!("--caption-seed={seed}")).collect();
    let random: Vec<Vec<String>> =
        seeds.iter().map(|seed| texts(&jsonl, seed, &["--captions=random", seed]).0).collect();
    assert!(random.iter().any(|texts| texts[0] != "a") && random.iter().all(|texts| texts[1..] == first[1..]));
    let refused = run(&jsonl, &dir.path().join(&seeds[0]), &[&QUICK[..], &common].concat()).unwrap_err().to_string();
    assert!(refused.contains(r#"there, captions is {"random""#), "{refused}");
    // Parquet has lists in its own form, which this stage's tables keep.
    let of_stage = dir.path().join("first/00000.parquet");
    assert_eq!(texts(&of_stage, "parquet", &[]).0, first);
}

#[test]
fn lists_that_cannot_be_used_are_refused_by_name() {
    let text = || -> ArrayRef { std::sync::Arc::new(StringArray::from(vec!["http://127.0.0.1/"])) };
    let numbers: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![1]));
    let binary: ArrayRef = std::sync::Arc::new(BinaryArray::from_vec(vec![b"http://a/"]));
    let mut lists = ListBuilder::new(StringBuilder::new());
    lists.values().append_value("http://a/");
    lists.append(true);
    let lists: ArrayRef = Arc::new(lists.finish());
    let good = parquet(&[("url", text()), ("caption", text())]);
    let mut damaged = good.clone();
    damaged[4..40].fill(0xff);
    let gz = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let caption = ["--caption-col=caption"];
    let extra = ["--save-additional-columns=x"];
    let open_quote = [&b"url\n\"http://a/"[..], &vec![b'x'; 5 << 20]].concat();
    let cases: [(&str, &[u8], &[&str], &str); 40] = [
        ("a.csv", b"", &[], "has no column `url`; it has: none|holds no rows"),
        ("a.txt", b"", &[], "holds no rows"),
        ("a.txt", b"\n \n\r\n", &[], "holds no rows"),
        ("a.jsonl", b"", &[], "holds no rows"),
        ("a.csv", b"url\n", &[], "holds no rows"),
        ("a.csv", b"link,text\na,b\n", &[], "has no column `url`; it has: `link`, `text`"),
        ("a.csv", b"url;caption\na;b\n", &[], "has no column `url`; it has: `url;caption`"),
        ("a.csv", b"url,text\na,b\n", &caption, "has no column `caption`"),
        ("a.csv", b"url,url\na,b\n", &[], "two columns `url`"),
        ("a.csv", b"url,caption\na,b\nc\n", &[], "row 2: 1 cells where 2 are due"),
        ("a.csv", b"url,caption\na,b\nc,d,e\n", &[], "row 2: 3 cells where 2 are due"),
        ("a.csv", b"url,caption\na,b\nc,\"d\n", &[], ""),
        ("a.csv", b"url,caption\na,b\nc,\"d\ne,f\n", &[], "a quote that opens in line 3 is left open"),
        ("a.csv", b"url,caption\na,\"b\nc,\"d\"\n", &["--skip-bad"], "a quote that opens in line 2 is left open"),
        ("a.csv", b"url\na\n\xff\xfe\n", &[], "row 2: not UTF-8"),
        ("a.csv", b"\xff\xfeu\0r\0l\0\n", &[], "is UTF-16 text"),
        ("a.csv", &open_quote, &[], "row 1: longer than 4 MiB"),
        ("a.tsv", b"url,caption\na,b\n", &[], "has no column `url`"),
        ("a.txt", b"http://a/\n\xc3\x28\n", &[], "row 2: not UTF-8"),
        ("a.txt", b"http://a/\n", &caption, "has no column `caption`"),
        ("a.jsonl", b"{\"url\":\"a\"}\n{\"url\":\n", &[], "row 2: not a JSON object"),
        ("a.jsonl", b"[\"a\"]\n", &[], "row 1: a list where an object"),
        ("a.jsonl", b"{\"url\":1}\n", &[], "row 1: column `url` holds 1, not text"),
        (
            "a.jsonl",
            b"{\"url\":\"a\",\"caption\":[[1]]}\n",
            &caption,
            "`caption` holds [[1]], not text or a list of texts",
        ),
        ("a.jsonl", b"{\"url\":\"a\",\"x\":1e400}\n{\"url\":\"b\",\"x\":-Infinity}\n", &extra, ""),
        ("a.jsonl", b"{\"url\":\"a\",\"x\":[1]}\n{\"url\":\"a\",\"x\":{}}\n", &extra, ""),
        ("a.jsonl", b"{\"url\":\"a\",\"x\":1}\n{\"x\":\"1\"}\n", &extra, ""),
        ("a.jsonl", b"{\"url\":\"\xff\"}\n", &[], "row 1: not UTF-8"),
        ("a.csv.gz", b"url\na\nb\n", &[], ""),
        ("a.csv.gz", &gz(b"url\nhttp://a/\n")[..20], &[], "row |cannot read list"),
        ("a.parquet", b"", &[], "is no parquet file"),
        ("a.parquet", b"PAR1PAR1", &[], "is no parquet file"),
        ("a.parquet", b"url,caption\na,b\n", &[], "is no parquet file"),
        ("a.parquet", &good[..good.len() / 2], &[], "is no parquet file"),
        ("a.parquet", &damaged, &[], "is no parquet file"),
        ("a.parquet", &parquet(&[("link", text())]), &[], "has no column `url`; it has: `link`"),
        ("a.parquet", &parquet(&[("url", numbers.clone())]), &[], "column `url` holds whole numbers, not text"),
        ("a.parquet", &parquet(&[("url", binary)]), &[], "column `url` holds bytes, not text"),
        ("a.parquet", &parquet(&[("url", lists)]), &[], "column `url` holds lists of text, not text"),
        ("a.xlsx", b"url\n", &[], "does not tell its format"),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (case, (name, content, options, expected)) in cases.iter().enumerate() {
        let folder = dir.path().join(case.to_string());
        fs::create_dir(&folder).unwrap();
        let list = folder.join(name);
        fs::write(&list, content).unwrap();
        let result = run(&list, &folder.join("out"), &[&["--retries=0"], *options].concat());
        if expected.is_empty() {
            // A quote that the end of the file closes; columns of several kinds; gzip by its name alone.
            assert_eq!(nothing(result).0.taken, 2, "case {case}");
            continue;
        }
        let error = result.unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Download(inner) if matches!(*inner, DownloadError::List(_))), "case {case}");
        assert!(expected.split('|').any(|part| message.contains(part)), "case {case}: {message}");
        assert!(message.contains(name), "case {case}: {message}");
    }
    let folder_of = |names: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| fs::write(folder.path().join(name), "url\nhttp://127.0.0.1/\n").unwrap());
        folder
    };
    let refused = |folder: &Path| match run(folder, &dir.path().join("out"), &[]).unwrap_err() {
        Error::Download(error) => match *error {
            DownloadError::List(error) => *error,
            error => panic!("{error}"),
        },
        error => panic!("{error}"),
    };
    assert!(matches!(refused(folder_of(&["readme.md"]).path()), ListError::NoFiles { .. }));
    assert!(matches!(refused(folder_of(&["a.csv", "b.txt"]).path()), ListError::Mixed { .. }));
    assert!(matches!(refused(Path::new("/no/such/list")), ListError::Missing { .. }));
}

#[test]
fn the_benchmark_downloads_what_it_serves() {
    for (options, width) in [(&[][..], 32), (&["--resize-mode=border".to_owned(), "--image-size=8".to_owned()], 8)] {
        let dir = tempfile::tempdir().unwrap();
        let account = download::bench::bench_download(dir.path(), 70, 32, options).unwrap();
        assert_eq!((account.taken, account.written), (70, 70));
        let members = members(&dir.path().join("shards/00000.tar"));
        assert_eq!(RgbImage::decode("bench", &members[0].1).unwrap().width(), width);
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(download::bench::bench_download(dir.path(), 1, 32, &["--nonsense".to_owned()]).unwrap_err().is_usage());
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.csv");
    fs::write(&list, "url,md5,x\nhttp://127.0.0.1/,0,0\n").unwrap();
    for options in [
        &["--save-additional-columns=status"][..],
        &["--save-additional-columns=x,x"],
        &["--save-additional-columns=x", "--caption-col=x"],
        &["--verify-hash", "md5", "md5"],
        &["--verify-hash", "md5", "crc32", "--compute-hash=none"],
        &["--encode-format=webp", "--encode-quality=90"],
        &["--encode-format=png", "--encode-quality=95"],
        &["--encode-quality=0"],
        &["--max-aspect-ratio=0.5"],
        &["--timeout=-1"],
        &["--timeout=inf"],
        &["--backoff=1e9"],
        &["--proxy=not a proxy"],
        &["--user-agent=a\nb"],
        &["--task-id=0"],
    ] {
        let error = run(&list, &dir.path().join("out"), options).unwrap_err();
        assert!(error.is_usage(), "{options:?}: {error}");
    }
    let used = dir.path().join("used");
    fs::create_dir(&used).unwrap();
    fs::write(used.join("00000.tar"), "someone's").unwrap();
    let error = run(&list, &used, &[]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("00000.tar"), "{error}");
}

#[test]
fn captions_of_images_are_no_lists_of_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, out) = (dir.path().join("pictures"), dir.path().join("out"));
    fs::create_dir(&pictures).unwrap();
    fs::write(pictures.join("0.png"), "").unwrap();
    fs::write(pictures.join("0.txt"), "a red cat").unwrap();
    let error = run(&pictures, &out, &[]).unwrap_err();
    let told = error.to_string();
    assert!(
        error.is_usage() && told.contains("holds images (0.png)") && told.contains("calotype data convert"),
        "{told}"
    );
}
