//! The fetch stage as a process: against a server with the Hub's API, with faults, kills, and lists of checksums.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Reply, Request, Server};
use sha2::Digest;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(content: &[u8]) -> String {
    hex(sha2::Sha256::digest(content))
}

fn git_blob(content: &[u8]) -> String {
    hex(sha1::Sha1::digest([format!("blob {}\0", content.len()).as_bytes(), content].concat()))
}

/// Bytes that do not repeat.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u64 / 8 + 1)
        .flat_map(|n| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .take(length)
        .collect()
}

/// A run of the stage, with nothing of the user's environment.
fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(crate::program());
    command.env_clear().env("HOME", folder).current_dir(folder).arg("fetch").args(args);
    if !args.contains(&"--pause") {
        command.args(["--pause", "0.01"]);
    }
    command
}

/// Exit code, standard output and standard error.
fn finish(mut command: Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn fetch(folder: &Path, args: &[&str]) -> (i32, String, String) {
    finish(command(folder, args))
}

fn good(folder: &Path, args: &[&str]) -> String {
    let (code, out, error) = fetch(folder, args);
    assert_eq!(code, 0, "{args:?}: {out}{error}");
    out
}

fn bad(folder: &Path, args: &[&str], code: i32, messages: &[&str]) {
    let (found, out, error) = fetch(folder, args);
    assert_eq!(found, code, "{args:?}: {out}{error}");
    for message in messages {
        assert!(error.contains(message), "{args:?} does not say {message:?}: {error}");
    }
}

/// Files below a folder, but for the journal.
fn files(folder: &Path) -> Vec<String> {
    let walk = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().map(Result::unwrap);
    let names = walk
        .filter(|entry| !entry.file_type().is_dir())
        .map(|entry| entry.path().strip_prefix(folder).unwrap().display().to_string());
    names.filter(|name| name != ".fetched.jsonl").collect()
}

/// Starts a run, waits until `path` has `length` bytes, and kills it.
fn kill_at(mut command: Command, path: &Path, length: u64) {
    let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while fs::metadata(path).map_or(0, |file| file.len()) < length {
        assert!(started.elapsed() < Duration::from_secs(60), "{} does not grow", path.display());
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Requests of the log for paths that begin like this, as method and range.
fn asked(server: &Server, prefix: &str) -> Vec<String> {
    let requests = server.requests().into_iter().filter(|request| request.path.starts_with(prefix));
    requests.map(|r| format!("{} {}", r.method, r.headers.get("range").map_or("all", String::as_str))).collect()
}

// ---- repositories ----

/// A dataset repository: small files as they are, large ones by a redirect to another place.
struct Hub {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// Only with this token.
    token: Option<&'static str>,
    /// Address of large files.
    storage: String,
    /// Breaks off the first transfer of large files after so many bytes.
    reset_after: Option<usize>,
}

fn is_large(path: &str) -> bool {
    path.ends_with(".parquet")
}

impl Hub {
    fn new(storage: &str) -> Self {
        let files = [
            ("README.md", b"# A dataset\n".to_vec()),
            ("data/a.parquet", noise(300_000)),
            ("data/deep/b c.parquet", noise(70_001)),
            ("empty.txt", Vec::new()),
        ];
        Hub { files: files.into(), token: None, storage: storage.to_owned(), reset_after: None }
    }

    fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap();
        if let Some(hash) = path.strip_prefix("/storage/") {
            return self.large(hash, request);
        }
        let token = request.headers.get("authorization").map(String::as_str);
        if self.token.is_some_and(|wanted| token != Some(&format!("Bearer {wanted}"))) {
            return Reply::new(401, "text/plain", "no").header("X-Error-Code", "RepoNotFound");
        }
        let json = |text: String| Reply::new(200, "application/json", text);
        if let Some(rest) = path.strip_prefix("/api/datasets/org/set/") {
            return match rest {
                "revision/main" | "revision/v%2F1" => json(format!("{{\"sha\": \"{COMMIT}\", \"private\": false}}")),
                _ if rest.starts_with("tree/") => self.page(request),
                _ => Reply::new(404, "text/plain", "no").header("X-Error-Code", "RevisionNotFound"),
            };
        }
        match path.strip_prefix(&format!("/datasets/org/set/resolve/{COMMIT}/")) {
            Some(name) => self.file(&name.replace("%20", " ")),
            None if path.contains("gated") => Reply::new(403, "text/plain", "no").header("X-Error-Code", "GatedRepo"),
            None => Reply::new(404, "text/plain", "no").header("X-Error-Code", "RepoNotFound"),
        }
    }

    /// A page of the listing has two entries.
    fn page(&self, request: &Request) -> Reply {
        let page: usize = request.path.split("cursor=").nth(1).map_or(0, |text| text.parse().unwrap());
        let mut entries = vec![r#"{"type": "directory", "path": "data", "oid": "x", "size": 0}"#.to_owned()];
        for (path, content) in &self.files {
            let (size, oid) = (content.len(), git_blob(content));
            entries.push(match is_large(path) {
                true => format!(
                    r#"{{"type": "file", "path": "{path}", "oid": "{oid}", "size": {size},
                        "lfs": {{"oid": "{}", "size": {size}, "pointerSize": 130}}}}"#,
                    sha256(content)
                ),
                false => format!(r#"{{"type": "file", "path": "{path}", "oid": "{oid}", "size": {size}}}"#),
            });
        }
        let text = entries.chunks(2).nth(page).unwrap_or_default().join(", ");
        let reply = Reply::new(200, "application/json", format!("[{text}]"));
        match (page + 1) * 2 < entries.len() {
            true => reply.header(
                "Link",
                &format!("</api/datasets/org/set/tree/{COMMIT}?recursive=true&cursor={}>; rel=\"next\"", page + 1),
            ),
            false => reply,
        }
    }

    fn file(&self, name: &str) -> Reply {
        let Some(content) = self.files.get(name) else { return Reply::new(404, "text/plain", "no") };
        let reply = match is_large(name) {
            true => Reply::redirect(&format!("{}/storage/{}", self.storage, sha256(content)))
                .header("X-Linked-Etag", &format!("\"{}\"", sha256(content)))
                .header("X-Linked-Size", &content.len().to_string()),
            false => {
                Reply::new(200, "text/plain", content.clone()).header("ETag", &format!("\"{}\"", git_blob(content)))
            }
        };
        reply.header("X-Repo-Commit", COMMIT)
    }

    fn large(&self, hash: &str, request: &Request) -> Reply {
        let Some(content) = self.files.values().find(|content| sha256(content) == hash) else {
            return Reply::new(404, "text/plain", "no");
        };
        let mut reply = Reply::new(200, "application/octet-stream", content.clone()).ranged(request);
        reply.reset_after = self.reset_after.filter(|after| request.earlier == 0 && *after < content.len());
        reply
    }
}

#[test]
fn repositories_go_to_the_cache_as_python_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::new("");
    let contents = hub.files.clone();
    let server = Server::start(move |request| hub.answer(request));
    let run = |offline: bool, args: &[&str]| {
        let mut command = command(folder.path(), args);
        command.env("HF_ENDPOINT", server.url("")).env("HF_HOME", folder.path().join("hf"));
        if offline {
            command.env("HF_HUB_OFFLINE", "1");
        }
        finish(command)
    };
    let (code, out, error) = run(false, &["datasets/org/set"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("4 in, 4 out") && out.contains(COMMIT), "{out}");
    let storage = folder.path().join("hf/hub/datasets--org--set");
    assert_eq!(fs::read_to_string(storage.join("refs/main")).unwrap(), COMMIT);
    let snapshot = storage.join("snapshots").join(COMMIT);
    for (name, content) in &contents {
        let blob = if is_large(name) { sha256(content) } else { git_blob(content) };
        let link = fs::read_link(snapshot.join(name)).unwrap();
        let up = "../".repeat(2 + name.matches('/').count());
        assert_eq!(link, PathBuf::from(format!("{up}blobs/{blob}")));
        assert_eq!(fs::read(snapshot.join(name)).unwrap(), *content);
    }
    assert_eq!(files(&storage).len(), 4 + 4 + 1, "{:?}", files(&storage));
    // Nothing is transferred twice, and without the network the cache is enough.
    let before = server.requests().len();
    let (code, out, _) = run(false, &["hf://datasets/org/set", "--revision", "v/1"]);
    assert!(code == 0 && out.contains("4 files were there already"), "{out}");
    let later = server.requests().split_off(before);
    assert!(later.iter().all(|request| request.path.starts_with("/api/")), "{later:?}");
    assert_eq!(fs::read_to_string(storage.join("refs/v/1")).unwrap(), COMMIT);
    let before = server.requests().len();
    let (code, out, error) = run(true, &["datasets/org/set", "--pattern", "*.parquet"]);
    assert!(code == 0 && out.contains("2 in, 2 out"), "{out}{error}");
    let (code, _, error) = run(true, &["datasets/org/other"]);
    assert!(code == 1 && error.contains("datasets/org/other is not in the cache"), "{error}");
    fs::remove_file(storage.join("blobs").join(sha256(&contents["data/a.parquet"]))).unwrap();
    let (code, _, error) = run(true, &["datasets/org/set"]);
    assert!(code == 1 && error.contains("data/a.parquet of datasets/org/set is not in the cache"), "{error}");
    assert_eq!(server.requests().len(), before);
    // A missing file is made good, and a damaged one found when asked for.
    assert_eq!(run(false, &["datasets/org/set"]).0, 0);
    let small = storage.join("blobs").join(git_blob(&contents["README.md"]));
    fs::write(&small, b"# A dataseT\n").unwrap();
    let (code, out, _) = run(false, &["datasets/org/set", "--verify"]);
    assert!(code == 0 && out.contains("README.md was there with another git-blob"), "{out}");
    assert_eq!(fs::read(small).unwrap(), contents["README.md"]);
}

#[test]
fn repositories_go_to_a_folder_by_pattern() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Server::start({
        let hub = Hub::new("");
        move |request| hub.answer(request)
    });
    let hub = Hub { token: Some("hf_secret"), ..Hub::new(&storage.url("")) };
    let contents = hub.files.clone();
    let server = Server::start(move |request| hub.answer(request));
    let run = |token: Option<&str>, args: &[&str]| {
        let mut command = command(folder.path(), args);
        command.env("HF_ENDPOINT", server.url("/")).envs(token.map(|token| ("HF_TOKEN", token)));
        finish(command)
    };
    let args = ["datasets/org/set", "out", "--pattern", "data/", "--exclude", "*/deep/*"];
    let (code, _, error) = run(None, &args);
    assert!(code == 1 && error.contains("HTTP 401") && error.contains("set HF_TOKEN"), "{error}");
    let (code, out, error) = run(Some("hf_secret"), &args);
    assert!(code == 0 && out.contains("1 in, 1 out"), "{out}{error}");
    assert_eq!(files(&folder.path().join("out")), ["data/a.parquet"]);
    assert_eq!(fs::read(folder.path().join("out/data/a.parquet")).unwrap(), contents["data/a.parquet"]);
    // The token is for the Hub, not for the host that it redirects to.
    let seen = storage.requests();
    assert!(!seen.is_empty() && seen.iter().all(|request| !request.headers.contains_key("authorization")), "{seen:?}");
    // A token file does as well.
    fs::create_dir_all(folder.path().join(".cache/huggingface")).unwrap();
    fs::write(folder.path().join(".cache/huggingface/token"), "hf_secret\n").unwrap();
    assert_eq!(run(None, &args).0, 0);
    let (code, _, error) = run(None, &["datasets/org/set", "out", "--pattern", "*.tar"]);
    assert!(code == 2 && error.contains("none of the 4 files of datasets/org/set matches *.tar"), "{error}");
    for (what, code, message) in [
        ("datasets/org/gated", 1, "accept the conditions of datasets/org/gated on http"),
        ("datasets/org/set@nowhere", 1, "exists, but not this revision"),
        ("models/org/none", 1, "check the name models/org/none"),
        ("org/none", 2, "write models/org/none or datasets/org/none"),
        ("mlperf/sd-chekpoint", 2, "did you mean mlperf/sd-checkpoint?"),
    ] {
        let (found, _, error) = run(None, &[what, "out"]);
        assert!(found == code && error.contains(message), "{what}: {found} {error}");
    }
}

#[test]
fn large_files_of_repositories_are_continued_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub { reset_after: Some(100_000), ..Hub::new("") };
    let contents = hub.files["data/a.parquet"].clone();
    let server = Server::start(move |request| hub.answer(request));
    let run = |pause: &str| {
        let args = ["datasets/org/set", "--pattern", "*a.parquet", "--tries", "2", "--pause", pause];
        let mut command = command(folder.path(), &args);
        command.env("HF_ENDPOINT", server.url("")).env("HF_HUB_CACHE", folder.path().join("hub"));
        command
    };
    let blob = folder.path().join("hub/datasets--org--set/blobs").join(sha256(&contents));
    let partial = blob.with_extension("incomplete");
    kill_at(run("60"), &partial, 1);
    let length = fs::metadata(&partial).unwrap().len();
    let (code, out, error) = finish(run("0.01"));
    assert!(code == 0 && out.contains("1 files were continued"), "{out}{error}");
    assert_eq!(fs::read(&blob).unwrap(), contents);
    assert_eq!(asked(&server, "/storage/"), ["GET all".to_owned(), format!("GET bytes={length}-")]);
    assert!(!partial.exists());
}

// ---- addresses ----

#[test]
fn transfers_are_continued_after_resets_and_kills() {
    let folder = tempfile::tempdir().unwrap();
    let content = noise(2_000_000);
    let broken = Arc::new(AtomicBool::new(true));
    let server = Server::start({
        let (content, broken) = (content.clone(), Arc::clone(&broken));
        move |request| {
            let mut reply = Reply::new(200, "a/b", content.clone()).header("ETag", "\"v1\"").ranged(request);
            if broken.load(Ordering::SeqCst) {
                reply.reset_after = Some(300_000);
            }
            reply
        }
    });
    let partial = folder.path().join("out/.a.bin.partial");
    let url = server.url("/a.bin");
    for part in 1..=3 {
        let command = command(folder.path(), &[&url, "out", "--pause", "60"]);
        // A reset may lose what is still on its way.
        let before = fs::metadata(&partial).map_or(0, |file| file.len());
        kill_at(command, &partial, before + 1);
        assert_eq!(asked(&server, "/a.bin").len(), part);
    }
    broken.store(false, Ordering::SeqCst);
    let before = fs::metadata(&partial).unwrap().len();
    let out = good(folder.path(), &[&url, "out"]);
    assert!(out.contains("1 files were continued"), "{out}");
    assert_eq!(fs::read(folder.path().join("out/a.bin")).unwrap(), content);
    assert_eq!(asked(&server, "/a.bin").last().unwrap(), &format!("GET bytes={before}-"));
    assert_eq!(server.requests().last().unwrap().headers["if-range"], "\"v1\"");
    assert_eq!(files(&folder.path().join("out")), ["a.bin"]);
    // Every other request breaks off, and it goes on all the same.
    let server = Server::start({
        let content = content.clone();
        move |request| {
            let mut reply = Reply::new(200, "a/b", content.clone()).header("ETag", "\"v1\"").ranged(request);
            reply.reset_after = Some(1_200_000).filter(|_| request.earlier % 2 == 0);
            reply
        }
    });
    good(folder.path(), &[&server.url("/b.bin"), "out", "--tries", "3"]);
    assert_eq!(fs::read(folder.path().join("out/b.bin")).unwrap(), content);
}

#[test]
fn files_that_changed_in_between_start_over() {
    for (name, honours_if_range) in [("honest", true), ("careless", false)] {
        let folder = tempfile::tempdir().unwrap();
        let changed = Arc::new(AtomicBool::new(false));
        let (old, new) = (noise(500_000), noise(600_000).into_iter().rev().collect::<Vec<u8>>());
        let server = Server::start({
            let (new, changed) = (new.clone(), Arc::clone(&changed));
            move |request| {
                let later = changed.load(Ordering::SeqCst);
                let (tag, content) = if later { ("\"v2\"", new.clone()) } else { ("\"v1\"", old.clone()) };
                let mut reply = Reply::new(200, "a/b", content).header("ETag", tag);
                let same = request.headers.get("if-range").is_none_or(|wanted| wanted == tag);
                if same || !honours_if_range {
                    reply = reply.ranged(request);
                }
                reply.reset_after = Some(200_000).filter(|_| !later);
                reply
            }
        });
        let url = server.url("/a.bin");
        kill_at(command(folder.path(), &[&url, "out", "--pause", "60"]), &folder.path().join("out/.a.bin.partial"), 1);
        changed.store(true, Ordering::SeqCst);
        good(folder.path(), &[&url, "out"]);
        assert!(fs::read(folder.path().join("out/a.bin")).unwrap() == new, "{name}");
    }
}

#[test]
fn parts_of_files_without_a_version_are_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let content = noise(400_000);
    let server = Server::start({
        let content = content.clone();
        move |request| {
            let mut reply = Reply::new(200, "a/b", content.clone()).ranged(request);
            reply.reset_after = Some(100_000).filter(|_| request.earlier == 0);
            reply
        }
    });
    let url = server.url("/a.bin");
    good(folder.path(), &[&url, "out"]);
    assert_eq!(asked(&server, "/a.bin"), ["GET all", "GET all"]);
    // With a checksum they are, for it would tell.
    fs::write(folder.path().join("sums"), sha256(&content)).unwrap();
    fs::create_dir_all(folder.path().join("with")).unwrap();
    fs::write(folder.path().join("with/.a.bin.partial"), &content[..1000]).unwrap();
    good(folder.path(), &[&url, "with", "--checksums", "sums"]);
    fs::create_dir_all(folder.path().join("wrong")).unwrap();
    fs::write(folder.path().join("wrong/.a.bin.partial"), &content[1..1001]).unwrap();
    good(folder.path(), &[&url, "wrong", "--checksums", "sums"]);
    assert_eq!(asked(&server, "/a.bin")[2..], ["GET bytes=1000-", "GET bytes=1000-", "GET all"]);
    for out in ["out", "with", "wrong"] {
        assert_eq!(fs::read(folder.path().join(out).join("a.bin")).unwrap(), content);
    }
}

#[test]
fn checksums_decide() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|request| match request.path.as_str() {
        "/d/sums.txt" => Reply::new(
            200,
            "text/plain",
            format!("{}  a.bin\n{}  deep/b%20.bin\n", sha256(b"alpha"), hex(md5::Md5::digest(b"beta"))),
        ),
        "/d/a.bin" => Reply::new(200, "a/b", "alpha"),
        "/d/deep/b%2520.bin" => Reply::new(200, "a/b", "beta"),
        _ => Reply::new(404, "a/b", "no"),
    });
    let (base, sums) = (server.url("/d/"), server.url("/d/sums.txt"));
    let out = good(folder.path(), &[&base, "out", "--checksums", &sums]);
    assert!(out.contains("2 in, 2 out"), "{out}");
    assert_eq!(files(&folder.path().join("out")), ["a.bin", "deep/b%20.bin"]);
    // A second run only reads the list; a changed file is found and made good.
    let before = server.requests().len();
    good(folder.path(), &[&base, "out", "--checksums", &sums]);
    assert_eq!(server.requests().len(), before + 1);
    fs::write(folder.path().join("out/a.bin"), "alphA").unwrap();
    let out = good(folder.path(), &[&base, "out", "--checksums", &sums]);
    assert!(out.contains("a.bin was there with another sha256, and was fetched again"), "{out}");
    assert_eq!(fs::read(folder.path().join("out/a.bin")).unwrap(), b"alpha");
    // A wrong one is refused, removed and named.
    let bsd = format!("SHA256 (a.bin) = {}\n", sha256(b"other"));
    fs::write(folder.path().join("bsd"), bsd).unwrap();
    let url = server.url("/d/a.bin");
    let messages = ["fresh/a.bin has sha256", &sha256(b"alpha"), &sha256(b"other"), "was removed"];
    bad(folder.path(), &[&url, "fresh", "--checksums", "bsd"], 1, &messages);
    assert!(files(&folder.path().join("fresh")).is_empty());
    for (name, content, message) in [
        ("page", "<html>", "checksums of page: line 1: it is no checksum"),
        ("others", &format!("{}  b.bin", sha256(b"")), "checksums of others: there is none of a.bin"),
        ("missing", "", "checksums of missing: there is none of a.bin"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
        bad(folder.path(), &[&url, "fresh", "--checksums", name], 1, &[message]);
    }
    let algorithms =
        [hex(md5::Md5::digest(b"alpha")), hex(sha1::Sha1::digest(b"alpha")), hex(sha2::Sha512::digest(b"alpha"))];
    for sum in algorithms {
        fs::write(folder.path().join("sum"), format!("{sum} *a.bin\n")).unwrap();
        good(folder.path(), &[&url, &sum[..8], "--checksums", "sum"]);
    }
}

#[test]
fn lists_are_fetched_as_far_as_possible_and_completed_later() {
    let folder = tempfile::tempdir().unwrap();
    let complete = Arc::new(AtomicBool::new(false));
    let active = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let server = Server::start({
        let complete = Arc::clone(&complete);
        let (active, most) = (Arc::clone(&active), Arc::clone(&most));
        move |request| {
            most.fetch_max(active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
            active.fetch_sub(1, Ordering::SeqCst);
            match request.path.contains("07") && !complete.load(Ordering::SeqCst) {
                true => Reply::new(404, "a/b", "no"),
                false => Reply::new(200, "a/b", format!("content of {}", request.path)).header("ETag", "\"1\""),
            }
        }
    });
    fs::write(
        folder.path().join("list"),
        format!("# files\n{}\n{} renamed/x.bin\n", server.url("/{00..11}.bin"), server.url("/x")),
    )
    .unwrap();
    let args = ["@list", "out", "--parallel", "3"];
    bad(folder.path(), &args, 1, &["1 of 13 files could not be fetched", "/07.bin does not exist (HTTP 404)"]);
    assert_eq!(files(&folder.path().join("out")).len(), 12);
    assert!((2..=3).contains(&most.load(Ordering::SeqCst)), "{most:?} at once");
    complete.store(true, Ordering::SeqCst);
    let before = server.requests().len();
    let out = good(folder.path(), &args);
    assert!(out.contains("12 files were there already"), "{out}");
    assert_eq!(server.requests().len(), before + 1);
    assert_eq!(fs::read(folder.path().join("out/renamed/x.bin")).unwrap(), b"content of /x");
    // As an array of jobs.
    for id in ["0", "1", "2"] {
        let out = good(folder.path(), &["@list", "array", "--task-count", "3", "--task-id", id]);
        assert!(out.contains("4 in, 4 out") || out.contains("5 in, 5 out"), "{out}");
    }
    assert_eq!(files(&folder.path().join("array")), files(&folder.path().join("out")));
    fs::write(folder.path().join("list"), "nonsense").unwrap();
    bad(folder.path(), &args, 2, &["list, line 1: `nonsense`: it is no address"]);
    bad(folder.path(), &["@missing", "out"], 1, &["cannot read missing"]);
}

#[test]
fn failures_that_pass_are_waited_for_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|request| match request.path.as_str() {
        "/busy" if request.earlier < 2 => Reply::new(503, "a/b", "").header("Retry-After", "0"),
        "/busy" => Reply::new(200, "a/b", "fine"),
        "/down" => Reply::new(500, "a/b", ""),
        "/loop" => Reply::redirect("/loop"),
        "/local" => Reply::redirect("file:///etc/hostname"),
        "/nowhere" => Reply::new(302, "a/b", ""),
        "/forbidden" => Reply::new(403, "a/b", ""),
        "/short" => {
            let mut reply = Reply::new(200, "a/b", noise(1000));
            reply.headers.push(("Content-Range".to_owned(), "bytes 7-9/10".to_owned()));
            reply
        }
        "/part" => Reply { status: 206, ..Reply::new(206, "a/b", "xyz").header("Content-Range", "bytes 7-9/10") },
        path if path.starts_with("/chain") => {
            let number: usize = path[6..].parse().unwrap();
            if number == 0 { Reply::new(200, "a/b", "end") } else { Reply::redirect(&format!("chain{}", number - 1)) }
        }
        _ => Reply::new(404, "a/b", ""),
    });
    good(folder.path(), &[&server.url("/busy"), "out"]);
    good(folder.path(), &[&server.url("/short"), "out"]);
    good(folder.path(), &[&server.url("/chain9"), "out"]);
    assert_eq!(fs::read(folder.path().join("out/chain9")).unwrap(), b"end");
    for (path, message) in [
        ("/down", "failed 3 times, the last time with HTTP 500"),
        ("/loop", "more than 10 redirects"),
        ("/chain12", "more than 10 redirects"),
        ("/local", "redirects to `file:///etc/hostname`, which is not followed: only http and https"),
        ("/nowhere", "the server does not say where to"),
        ("/forbidden", "is refused (HTTP 403)"),
        ("/part", "the server sent another part than the one asked for"),
        ("/none", "does not exist (HTTP 404)"),
    ] {
        bad(folder.path(), &[&server.url(path), "out", "--tries", "3"], 1, &[message]);
    }
    assert_eq!(asked(&server, "/down").len(), 3);
    assert_eq!(files(&folder.path().join("out")), ["busy", "chain9", "short"]);
    let gone = server.url("/a");
    drop(server);
    bad(folder.path(), &[&gone, "out", "--tries", "2"], 1, &["cannot be reached"]);
}

#[test]
fn two_processes_fetch_a_file_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|_| {
        let mut reply = Reply::new(200, "a/b", noise(100_000)).header("ETag", "\"v\"");
        reply.delay = Duration::from_millis(400);
        reply
    });
    let url = server.url("/a.bin");
    fs::write(folder.path().join("sums"), sha256(&noise(100_000))).unwrap();
    let start = || command(folder.path(), &[&url, "out", "--checksums", "sums"]).stdout(Stdio::null()).spawn().unwrap();
    let mut both = [start(), start()];
    assert!(both.iter_mut().all(|child| child.wait().unwrap().success()));
    assert_eq!(asked(&server, "/a.bin"), ["GET all"]);
    assert_eq!(files(&folder.path().join("out")), ["a.bin"]);
}

#[test]
fn local_files_are_copied_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let content = noise(3_000_000);
    fs::write(folder.path().join("source.bin"), &content).unwrap();
    fs::write(folder.path().join("sums"), format!("{}  source.bin", sha256(&content))).unwrap();
    let url = format!("file://{}", folder.path().join("source.bin").display());
    for (what, out) in [("source.bin", "a"), (&*url, "b")] {
        let text = good(folder.path(), &[what, out, "--checksums", "sums"]);
        assert!(text.contains("1 in, 1 out, 3.0 MB"), "{text}");
        assert_eq!(fs::read(folder.path().join(out).join("source.bin")).unwrap(), content);
    }
    good(folder.path(), &[&format!("file://{}/", folder.path().display()), "c", "--checksums", "sums"]);
    fs::write(folder.path().join("source.bin"), "other").unwrap();
    bad(folder.path(), &["source.bin", "d", "--checksums", "sums"], 1, &["d/source.bin has sha256"]);
    assert!(files(&folder.path().join("d")).is_empty());
}

// ---- MLCommons' storage, entries ----

#[test]
fn datasets_of_mlcommons_are_a_folder_and_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let base = Arc::new(std::sync::Mutex::new(String::new()));
    let server = Server::start({
        let base = Arc::clone(&base);
        move |request| match request.path.as_str() {
            "/metadata/set.uri" => Reply::new(200, "a/b", format!("{}/store/the-set\n", base.lock().unwrap())),
            "/metadata/set.md5" => Reply::new(
                200,
                "a/b",
                format!(
                    "{}  ./00000.tar\n{}  deep/x.txt\n",
                    hex(md5::Md5::digest(b"tar")),
                    hex(md5::Md5::digest(b"text"))
                ),
            ),
            "/store/the-set/00000.tar" => Reply::new(200, "a/b", "tar"),
            "/store/the-set/deep/x.txt" => Reply::new(200, "a/b", "text"),
            "/metadata/page.uri" => Reply::new(200, "a/b", "<html>"),
            "/metadata/login.uri" if request.headers.get("cf-access-client-id").is_some_and(|id| id == "me") => {
                Reply::new(200, "a/b", format!("{}/store/the-set\n", base.lock().unwrap()))
            }
            "/metadata/login.uri" => Reply::redirect("https://login.example/cdn-cgi/access/login"),
            "/metadata/login.md5" => Reply::new(200, "a/b", format!("{}  00000.tar\n", hex(md5::Md5::digest(b"tar")))),
            _ => Reply::new(404, "a/b", ""),
        }
    });
    *base.lock().unwrap() = server.url("");
    let out = good(folder.path(), &[&server.url("/metadata/set.uri")]);
    assert!(out.contains("2 in, 2 out"), "{out}");
    assert_eq!(files(&folder.path().join("the-set")), ["00000.tar", "deep/x.txt"]);
    bad(folder.path(), &[&server.url("/metadata/page.uri"), "out"], 1, &["should hold the address of a folder"]);
    bad(folder.path(), &[&server.url("/metadata/none.uri"), "out"], 1, &["does not exist (HTTP 404)"]);
    bad(folder.path(), &[&server.url("/metadata/login.uri"), "out"], 1, &["asks for a login", "CF_ACCESS_CLIENT_ID"]);
    let mut with_login = command(folder.path(), &[&server.url("/metadata/login.uri"), "out"]);
    with_login.env("CF_ACCESS_CLIENT_ID", "me").env("CF_ACCESS_CLIENT_SECRET", "secret");
    assert_eq!(finish(with_login).0, 0);
}

#[test]
fn entries_are_listed_and_fall_back_to_other_sources() {
    let folder = tempfile::tempdir().unwrap();
    let table = good(folder.path(), &["--list"]);
    for name in ["mlperf/sd-checkpoint", "mlperf/laion400m-moments", "laion2B-en", "stable-diffusion-xl-base"] {
        assert!(table.contains(name), "{table}");
    }
    bad(folder.path(), &[], 2, &["required"]);
    // A Hub that has the repository of an entry.
    let config = b"{}".to_vec();
    let server = Server::start(move |request| match request.path.as_str() {
        path if path.contains("/revision/") => Reply::new(200, "a/b", format!("{{\"sha\": \"{COMMIT}\"}}")),
        path if path.contains("/tree/") => Reply::new(
            200,
            "a/b",
            format!(
                r#"[{{"type": "file", "path": "open_clip_config.json", "oid": "{}", "size": 2}}]"#,
                git_blob(b"{}")
            ),
        ),
        _ => Reply::new(200, "a/b", config.clone()),
    });
    let mut command = command(folder.path(), &["mlperf/clip"]);
    command.env("HF_ENDPOINT", server.url(""));
    let (code, out, error) = finish(command);
    assert_eq!(code, 0, "{error}");
    assert!(
        out.contains("open_clip_pytorch_model.bin, of which a checksum was published, is not among the files"),
        "{out}"
    );
    assert_eq!(files(&folder.path().join("checkpoints/clip")), ["open_clip_config.json"]);
}

#[test]
fn listings_that_make_no_sense_are_refused() {
    let oid = git_blob(b"x");
    let entry =
        move |path: &str, oid: &str| format!(r#"[{{"type": "file", "path": "{path}", "oid": "{oid}", "size": 1}}]"#);
    let cases = [
        ("{}".to_owned(), "[]".to_owned(), "missing field `sha`"),
        ("<html>".to_owned(), "[]".to_owned(), "expected value"),
        (r#"{"sha": "../../x"}"#.to_owned(), "[]".to_owned(), "`../../x` is no commit"),
        (format!("{{\"sha\": \"{COMMIT}\"}}"), "{}".to_owned(), "expected a sequence"),
        (format!("{{\"sha\": \"{COMMIT}\"}}"), entry("../x", &oid), "`../x`, which is no path within a folder"),
        (format!("{{\"sha\": \"{COMMIT}\"}}"), entry("/etc/x", &oid), "no path within a folder"),
        (format!("{{\"sha\": \"{COMMIT}\"}}"), entry("x", "../../x"), "`x` without a checksum"),
        (format!("{{\"sha\": \"{COMMIT}\"}}"), "[]".to_owned(), "none of the 0 files"),
        (format!("{{\"sha\": \"{COMMIT}\"}}"), entry("x", &git_blob(b"yy")), "has git-blob"),
    ];
    for (revision, tree, message) in cases {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(move |request| match request.path.as_str() {
            path if path.contains("/revision/") => Reply::new(200, "a/b", revision.clone()),
            path if path.contains("/tree/") => Reply::new(200, "a/b", tree.clone()),
            _ => Reply::new(200, "a/b", "x"),
        });
        let mut command = command(folder.path(), &["models/org/name"]);
        command.env("HF_ENDPOINT", server.url(""));
        let (code, _, error) = finish(command);
        assert!(code != 0 && error.contains(message), "{message}: {error}");
        assert!(!files(folder.path()).iter().any(|name| name.ends_with('x')), "{message}: {:?}", files(folder.path()));
    }
}
