//! Shards on other machines: a real server with faults, the cache under limits, threads and kills.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Reply, Request, Server};
use calotype_data::source::{RemoteOptions, ShardSet, SourceOptions, open};
use calotype_data::{
    BoxError, Dataset, Error, Loader, LoaderConfig, OrderConfig, Quarantine, Result, Sample, SampleRef, ShardLimits,
    ShardWriter, Shuffle, Source,
};

const SAMPLES: usize = 20;
const SHARDS: usize = 4;

/// Four shards of five samples, some 55 kB each.
fn write(dir: &Path) {
    let mut writer = ShardWriter::create(dir, "x", ShardLimits { samples: SAMPLES / SHARDS, bytes: 1 << 20 }).unwrap();
    for i in 0..SAMPLES {
        writer.write(&sample(i)).unwrap();
    }
    writer.finish().unwrap();
}

fn sample(i: usize) -> Sample {
    let bytes: Vec<u8> = (0..10_000).map(|byte| (byte * (i + 1) % 251) as u8).collect();
    Sample::new(format!("{i:03}")).with("txt", i.to_string()).with("bin", bytes)
}

/// The files of a folder below `/data/`, each as `fault` makes of it.
fn serve(dir: &Path, fault: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let files: BTreeMap<String, Vec<u8>> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (format!("/data/{}", entry.file_name().to_string_lossy()), fs::read(entry.path()).unwrap()))
        .collect();
    Server::start(move |request| {
        let path = request.path.split('?').next().unwrap_or_default();
        match files.get(path) {
            Some(bytes) => {
                let reply = Reply::new(200, "application/x-tar", bytes.clone()).header("ETag", "\"v1\"");
                fault(request, reply.ranged(request))
            }
            None => Reply::new(404, "text/plain", "nothing here"),
        }
    })
}

fn whole(_: &Request, reply: Reply) -> Reply {
    reply
}

fn options(cache: &Path) -> SourceOptions {
    let remote =
        RemoteOptions { cache: Some(cache.to_path_buf()), attempts: 3, timeout: 10, ..RemoteOptions::default() };
    SourceOptions { remote, ..SourceOptions::default() }
}

/// Shards of a server, without an index beside them.
fn without_index(dir: &Path) {
    write(dir);
    fs::remove_file(dir.join("index.json")).unwrap();
}

fn pattern(server: &Server) -> String {
    server.url("/data/x-{000000..000003}.tar")
}

fn check_all(source: &dyn Source) {
    assert_eq!(source.len(), SAMPLES);
    for i in (0..SAMPLES).rev() {
        assert_eq!(source.get(i).unwrap().into_sample(), sample(i));
    }
    assert!(matches!(source.get(SAMPLES), Err(Error::OutOfRange { .. })));
}

fn asked(server: &Server, part: &str) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.path.contains(part)).collect()
}

#[test]
fn patterns_folders_and_local_names_hold_the_same_samples() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    let server = serve(dir.path(), whole);
    let digest = Dataset::open(dir.path()).unwrap().digest();
    let local = dir.path().display().to_string();
    for spec in [
        pattern(&server),
        server.url("/data/"),
        server.url("/data"),
        format!("{local}/x-{{000000..000003}}.tar"),
        format!("{local}/x-000000.tar::{}::{local}/x-00000{{2,3}}.tar", server.url("/data/x-000001.tar")),
        format!("file://{local}/x-{{000000..000003}}.tar"),
        local.clone(),
    ] {
        let source = open(&spec, &options(cache.path())).unwrap();
        check_all(source.as_ref());
        assert_eq!(source.blocks(), [5; 4], "{spec}");
        if !spec.contains("::") {
            assert_eq!(source.digest(), digest, "{spec}");
        }
    }
    // Each shard was fetched once for all of them.
    assert_eq!(asked(&server, ".tar").len(), SHARDS);
    let one = open(&format!("{local}/x-000002.tar"), &options(cache.path())).unwrap();
    assert_eq!((one.len(), one.get(0).unwrap().into_sample()), (5, sample(10)));
}

#[test]
fn shards_without_an_index_are_counted_once() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    without_index(dir.path());
    let server = serve(dir.path(), whole);
    check_all(&ShardSet::open(&pattern(&server), &options(cache.path())).unwrap());
    // The numbers outlive the shards.
    for entry in fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        fs::remove_file(entry).unwrap();
    }
    let before = asked(&server, ".tar").len();
    let again = ShardSet::open(&pattern(&server), &options(cache.path())).unwrap();
    assert_eq!((before, asked(&server, ".tar").len()), (SHARDS, SHARDS));
    check_all(&again);
    assert_eq!(asked(&server, ".tar").len(), 2 * SHARDS);
    assert!(matches!(open(&server.url("/data/"), &options(cache.path())).map(|_| ()), Err(Error::BadSource { .. })));
}

#[test]
fn numbers_of_samples_come_from_the_other_indices_too() {
    for (name, text) in [
        (
            "wdinfo.json",
            r#"{"tar_files": ["x-000000.tar", "x-000001.tar", "x-000002.tar", "x-000003.tar"],
            "chunk_size": 5, "total_key_count": 20}"#,
        ),
        ("sizes.json", r#"{"x-000000.tar": 5, "x-000001.tar": 5, "x-000002.tar": 5, "x-000003.tar": 5}"#),
    ] {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        without_index(dir.path());
        fs::write(dir.path().join(name), text).unwrap();
        let server = serve(dir.path(), whole);
        let source = open(&server.url("/data/"), &options(cache.path())).unwrap();
        assert_eq!(asked(&server, ".tar").len(), 0, "{name}");
        check_all(source.as_ref());
        fs::write(dir.path().join(name), text.replace("20}", "24}").replace("5,", "6,").replace("5}", "6}")).unwrap();
        let wrong =
            ShardSet::open(&format!("{}/x-{{000000..000003}}.tar", dir.path().display()), &options(cache.path()));
        assert!(
            matches!(wrong.unwrap().get(0), Err(Error::SampleCountMismatch { expected: 6, found: 5, .. })),
            "{name}"
        );
    }
}

#[test]
fn faults_on_the_way_are_got_over() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    let server = serve(dir.path(), |request, mut reply| match (request.path.as_str(), request.earlier) {
        ("/data/x-000000.tar", 0) => Reply::new(500, "text/plain", "not now"),
        ("/data/x-000001.tar", 0 | 1) => {
            reply.reset_after = Some(20_000);
            reply
        }
        // A server without ranges: the whole file again.
        ("/data/x-000002.tar", 0) => {
            reply.reset_after = Some(20_000);
            reply
        }
        ("/data/x-000002.tar", _) if reply.status == 206 => Reply::new(200, "application/x-tar", "no ranges here"),
        ("/data/x-000003.tar", 0) => Reply::new(503, "text/plain", "slow down"),
        ("/data/index.json", 0) => Reply::new(502, "text/plain", "bad gateway"),
        _ => reply,
    });
    check_all(&ShardSet::open(&pattern(&server), &options(cache.path())).unwrap());
    let ranges: Vec<_> =
        asked(&server, "x-000001.tar").iter().map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges[0], None);
    // A reset may swallow bytes that were sent, so how far it got is not certain.
    assert!(
        ranges.len() == 3 && ranges[1..].iter().all(|range| range.as_ref().is_none_or(|r| r.starts_with("bytes=")))
    );
}

#[test]
fn faults_at_the_source_are_named() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    type Fault = fn(&Request, Reply) -> Reply;
    let table: [(&str, Fault, &str); 6] = [
        ("absent", |_, _| Reply::new(404, "text/plain", ""), "cannot fetch"),
        ("forbidden", |_, _| Reply::new(403, "text/plain", ""), "cannot fetch"),
        ("always 500", |_, _| Reply::new(500, "text/plain", ""), "gave up after 3 attempts"),
        (
            "longer",
            |_, reply| Reply::new(200, "application/x-tar", [reply.body, vec![0; 512]].concat()),
            "its index says",
        ),
        (
            "damaged",
            |_, mut reply| {
                reply.body[700] ^= 1;
                reply
            },
            "blake3",
        ),
        (
            "always cut",
            |_, mut reply| {
                reply.reset_after = Some(0);
                reply
            },
            "gave up after 3 attempts",
        ),
    ];
    for (name, fault, part) in table {
        let server = serve(dir.path(), move |request, reply| match request.path.ends_with("x-000001.tar") {
            true => fault(request, reply),
            false => reply,
        });
        let source = ShardSet::open(&pattern(&server), &options(cache.path())).unwrap();
        let error = source.get(7).unwrap_err().to_string();
        assert!(error.contains("/data/x-000001.tar") && error.contains(part), "{name}: {error}");
        assert_eq!(source.get(0).unwrap().into_sample(), sample(0), "{name}");
        let kept = fs::read_dir(cache.path()).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name().to_string_lossy().into_owned();
            !name.starts_with('.') && name.ends_with("x-000001.tar")
        });
        assert_eq!(kept.count(), 0, "{name}");
    }
}

#[test]
fn damage_on_the_way_is_fetched_again() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    let server = serve(dir.path(), |request, mut reply| {
        if request.path.ends_with("x-000002.tar") && request.earlier == 0 {
            reply.body[600] ^= 255;
        }
        reply
    });
    check_all(&ShardSet::open(&pattern(&server), &options(cache.path())).unwrap());
    assert_eq!(asked(&server, "x-000002.tar").len(), 2);
}

fn shard_bytes(cache: &Path) -> u64 {
    let files = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap());
    files.filter_map(|entry| entry.metadata().ok().filter(|meta| meta.is_file())).map(|meta| meta.len()).sum()
}

#[test]
fn the_cache_stays_within_its_limit_and_keeps_what_was_used_last() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    let one = fs::metadata(dir.path().join("x-000000.tar")).unwrap().len();
    let server = serve(dir.path(), whole);
    let mut options = options(cache.path());
    options.remote.cache_bytes = 2 * one + 1000;
    let source = ShardSet::open(&pattern(&server), &options).unwrap();
    let held = source.get(0).unwrap();
    for i in [6, 1, 11, 0, 16, 2, 7] {
        assert_eq!(source.get(i).unwrap().into_sample(), sample(i));
        assert!(shard_bytes(cache.path()) <= options.remote.cache_bytes);
        std::thread::sleep(Duration::from_millis(15));
    }
    // A sample outlives its shard.
    assert_eq!(held.into_sample(), sample(0));
    options.remote.cache_bytes = one - 1;
    let small = ShardSet::open(&pattern(&server), &options).unwrap();
    assert!(matches!(small.get(15), Err(Error::InvalidArgument { what: "shard cache limit", .. })));
}

#[test]
fn threads_and_sources_that_share_a_cache_fetch_each_shard_once() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    let server = serve(dir.path(), |_, mut reply| {
        reply.delay = Duration::from_millis(30);
        reply
    });
    let sources: Vec<_> = (0..2).map(|_| ShardSet::open(&pattern(&server), &options(cache.path())).unwrap()).collect();
    std::thread::scope(|scope| {
        for source in sources.iter().chain(&sources) {
            scope.spawn(|| check_all(source));
        }
    });
    assert_eq!(asked(&server, ".tar").len(), SHARDS);
}

#[test]
fn quarantined_samples_are_left_out_of_remote_shards() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    let mut list = Quarantine::new();
    [("x-000000.tar", "000"), ("x-000001.tar", "007")].iter().for_each(|(shard, key)| list.insert(*shard, *key, "odd"));
    list.write(dir.path()).unwrap();
    let server = serve(dir.path(), whole);
    let remote = open(&pattern(&server), &options(cache.path())).unwrap();
    let local = open(&dir.path().display().to_string(), &options(cache.path())).unwrap();
    for source in [&remote, &local] {
        let keys: Vec<String> = (0..source.len()).map(|i| source.get(i).unwrap().into_sample().key).collect();
        let kept: Vec<String> = (0..SAMPLES).filter(|i| ![0, 7].contains(i)).map(|i| format!("{i:03}")).collect();
        assert_eq!(keys, kept);
        assert_eq!((source.blocks(), source.left_out()), (vec![4, 4, 5, 5], BTreeMap::from([("in quarantine", 2)])));
    }
    let all = SourceOptions { quarantine: false, ..options(cache.path()) };
    check_all(open(&pattern(&server), &all).unwrap().as_ref());
    // A part of the folder needs the part of the list that is about it.
    let part = open(&server.url("/data/x-00000{1,3}.tar"), &options(cache.path())).unwrap();
    assert_eq!((part.len(), part.left_out().into_values().sum::<usize>()), (9, 1));
}

type Item = (u64, usize);

fn decode(position: u64, sample: &SampleRef<'_>) -> std::result::Result<Item, BoxError> {
    Ok((position, sample.text("txt")?.parse()?))
}

#[test]
fn a_loader_has_the_next_shards_fetched_ahead() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    let server = serve(dir.path(), whole);
    let source = open(&pattern(&server), &options(cache.path())).unwrap();
    let config = OrderConfig { seed: 3, shuffle: Shuffle::Shards { buffer: 5 }, resampled: false };
    let order = Arc::new(source.order(&config).unwrap());
    let expected: Vec<Item> = (0..30).map(|position| (position, order.index(position).1)).collect();
    let loader_config = LoaderConfig { end: Some(30), prefetch: 1, ..LoaderConfig::new(5) };
    let mut loader = Loader::new(source, order, loader_config, decode).unwrap();
    let mut items = loader.next().unwrap().unwrap().items;
    // With one batch of one shard taken, the one in work and at least one more are fetched without being asked for.
    let started = Instant::now();
    while asked(&server, ".tar").len() < 3 && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(asked(&server, ".tar").len() >= 3);
    items.extend(loader.flat_map(|batch| batch.unwrap().items));
    assert_eq!(items, expected);
    assert_eq!(asked(&server, ".tar").len(), SHARDS);
}

#[test]
fn signatures_of_addresses_are_sent_but_not_shown() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    let server = serve(dir.path(), |request, reply| match request.path.ends_with("?sig=secret") {
        true if request.path.contains("x-000003") => Reply::new(404, "text/plain", ""),
        true => reply,
        false => Reply::new(403, "text/plain", ""),
    });
    let spec = server.url("/data/x-{000000..000003}.tar?sig=secret");
    let source = open(&spec, &options(cache.path())).unwrap();
    assert_eq!(source.get(4).unwrap().into_sample(), sample(4));
    let error = source.get(19).unwrap_err().to_string();
    assert!(error.contains("/data/x-000003.tar") && !error.contains("secret"), "{error}");
}

#[test]
fn buckets_are_read_and_listed() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    without_index(dir.path());
    let files: BTreeMap<String, Vec<u8>> = (0..SHARDS)
        .map(|i| format!("x-{i:06}.tar"))
        .map(|name| (format!("/bucket/data/{name}"), fs::read(dir.path().join(&name)).unwrap()))
        .collect();
    let server = Server::start(move |request| {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        if query.contains("list-type=2") {
            let contents: String = files
                .iter()
                .map(|(path, bytes)| {
                    let key = path.trim_start_matches("/bucket/");
                    let size = bytes.len();
                    format!("<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>{size}</Size><ETag>\"v\"</ETag></Contents>")
                })
                .collect();
            let body =
                format!("<?xml version=\"1.0\"?><ListBucketResult><Name>bucket</Name>{contents}</ListBucketResult>");
            return Reply::new(200, "application/xml", body);
        }
        match files.get(path) {
            Some(bytes) if request.earlier == 0 && path.ends_with("2.tar") => Reply {
                reset_after: Some(30_000),
                ..Reply::new(200, "application/x-tar", bytes.clone()).header("ETag", "\"v\"")
            },
            Some(bytes) => Reply::new(200, "application/x-tar", bytes.clone()).header("ETag", "\"v\"").ranged(request),
            // A bucket that may not be listed answers so for what is absent.
            None => Reply::new(403, "application/xml", "<Error><Code>AccessDenied</Code></Error>"),
        }
    });
    let mut options = options(cache.path());
    let settings = [
        ("aws_endpoint", server.url("")),
        ("aws_region", "here".to_owned()),
        ("aws_skip_signature", "true".to_owned()),
        ("allow_http", "true".to_owned()),
    ];
    options.remote.store = settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    for spec in ["s3://bucket/data/", "s3://bucket/data/x-{000000..000003}.tar"] {
        check_all(open(spec, &options).unwrap().as_ref());
    }
    options.remote.store.insert("aws_colour".to_owned(), "red".to_owned());
    let error = open("s3://bucket/data/", &options).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::BadSource { .. }) && error.to_string().contains("aws_colour"), "{error}");
}

#[test]
fn addresses_that_cannot_be_used_are_named() {
    let cache = tempfile::tempdir().unwrap();
    for (spec, part) in [
        ("pipe:curl https://example.org/x.tar", "commands are not run"),
        ("https://[h/x.tar", "is no address"),
        ("https://h/x-{1..2.tar", "without its `}`"),
        ("nowhere/x-{1..2}.tar", "is not there; check the path"),
        ("https://h/a.parquet", "fetch them first"),
    ] {
        let error = open(spec, &options(cache.path())).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(part), "{spec}: {error}");
        // What is named in a folder that is not there is wrong usage; a shard that is missed beside others is not.
        assert_eq!(error.is_usage(), spec.starts_with("nowhere/"), "{spec}: {error}");
    }
}

/// The other process of the test below: fetches one shard, and is killed on the way.
#[test]
#[ignore = "run by the test of kills as a process of its own"]
fn fetch_one_shard() {
    let (Ok(spec), Ok(cache)) = (std::env::var("FETCH_SPEC"), std::env::var("FETCH_CACHE")) else { return };
    let source = ShardSet::open(&spec, &options(Path::new(&cache))).unwrap();
    source.get(0).unwrap();
}

#[test]
fn a_killed_process_leaves_no_half_shard_and_the_next_goes_on() -> Result<()> {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path());
    // The first answer stops in the middle, and leaves the connection open.
    let server = serve(dir.path(), |request, mut reply| {
        if request.path.ends_with("x-000000.tar") && request.earlier == 0 {
            reply.stall_after = Some(30_000);
        }
        reply
    });
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "remote::fetch_one_shard", "--ignored"])
        .env("FETCH_SPEC", server.url("/data/x-000000.tar"))
        .env("FETCH_CACHE", cache.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while shard_bytes(cache.path()) < 30_000 && started.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let names: Vec<String> = fs::read_dir(cache.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(!names.is_empty() && names.iter().all(|name| name.starts_with('.')), "{names:?}");
    let source = ShardSet::open(&server.url("/data/x-000000.tar"), &options(cache.path()))?;
    assert_eq!(source.get(3)?.into_sample(), sample(3));
    let last = asked(&server, "x-000000.tar").pop().unwrap();
    assert_eq!(last.headers.get("range").map(String::as_str), Some("bytes=30000-"));
    Ok(())
}
