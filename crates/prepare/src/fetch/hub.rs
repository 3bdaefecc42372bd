//! Repositories of models and datasets as the Hugging Face Hub serves them, and the cache that its Python library keeps.
//!
//! The cache has a folder for each repository: `blobs/` with files named by their checksum, `snapshots/COMMIT/` with
//! links to them under their names, and `refs/` with the commits of branches. What one tool fetches, the other finds.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calotype_data::files::write_bytes;
use regex::Regex;
use reqwest::header::{HeaderMap, HeaderName, LINK};
use serde::Deserialize;
use url::Url;
use walkdir::WalkDir;

use super::FetchError;
use super::digest::{Digest, safe_path};
use super::download::{Explain, Item, Origin, Place, Plan};
use super::http::Client;
use crate::names::{Star, pattern};
use crate::{Account, Error, Result};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Hosts whose addresses of repositories are understood.
const HOSTS: [&str; 2] = ["huggingface.co", "hf.co"];
/// Pages of a listing, of a thousand files each.
const MOST_PAGES: usize = 10_000;

/// Settings of the Hub from the environment.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    pub endpoint: Url,
    token: Option<String>,
    cache: PathBuf,
    offline: bool,
}

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repository {
    kind: Kind,
    id: String,
    revision: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Dataset,
}

/// The wanted files of a repository.
pub(super) struct Wanted {
    include: Vec<Regex>,
    exclude: Vec<Regex>,
    text: String,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Hub {
    /// Reads HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and their older names.
    ///
    /// # Errors
    /// [`FetchError::BadAddress`] if HF_ENDPOINT is none.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let text = |name: &str| env(name).filter(|value| !value.is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| text(name));
        let is_true = |name: &str| {
            text(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        let user = text("HOME").unwrap_or_default();
        let path = |text: String| match text.strip_prefix("~/") {
            Some(rest) => Path::new(&user).join(rest),
            None => PathBuf::from(text),
        };
        let home = text("HF_HOME").map(path).unwrap_or_else(|| {
            text("XDG_CACHE_HOME").map(path).unwrap_or_else(|| Path::new(&user).join(".cache")).join("huggingface")
        });
        let written = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = Url::parse(&written).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let bad = || FetchError::BadAddress { url: written, detail: "HF_ENDPOINT is no http address".to_owned() };
        let token = first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| {
            let file = text("HF_TOKEN_PATH").map_or_else(|| home.join("token"), path);
            fs::read_to_string(file).ok()
        });
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        Ok(Hub {
            endpoint: endpoint.ok_or_else(bad)?,
            token: token.filter(|_| !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            cache: first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map_or_else(|| home.join("hub"), path),
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
        })
    }

    /// `client` with the token, which goes to the endpoint's host alone.
    pub fn authorize(&self, client: Client) -> Client {
        match &self.token {
            Some(token) => client.with_token(&self.endpoint, token),
            None => client,
        }
    }

    /// An address of the endpoint.
    fn address<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // Fails for addresses like `mailto:`, which are not accepted as endpoints.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// The folder of a repository in the cache.
    fn storage(&self, repository: &Repository) -> PathBuf {
        self.cache.join(format!("{}--{}", repository.kind.plural(), repository.id.replace('/', "--")))
    }

    /// The files to fetch of a repository, into `out` or into the cache.
    ///
    /// # Errors
    /// [`FetchError`] if it cannot be listed, or none of its files is wanted.
    pub async fn plan(
        &self,
        client: Client,
        repository: &Repository,
        wanted: &Wanted,
        out: Option<&Path>,
    ) -> Result<Plan> {
        let client = self.authorize(client);
        let explain = self.explain(repository);
        let commit = self.commit(&client, repository, &explain).await?;
        let entries = self.list(&client, repository, &commit, &explain).await?;
        let files = entries.len();
        let entries: Vec<Entry> = entries.into_iter().filter(|entry| wanted.takes(&entry.path)).collect();
        if entries.is_empty() {
            let (repository, patterns) = (repository.name(), wanted.text.clone());
            return Err(FetchError::NothingMatches { repository, files, patterns }.into());
        }
        let storage = self.storage(repository);
        let mut items = Vec::new();
        for entry in &entries {
            items.push(self.item(repository, &commit, entry, out, &storage)?);
        }
        let mut notes = vec![format!("{} at commit {commit}", repository.name())];
        if let Some(out) = out {
            notes.push(format!("written to {}", out.display()));
        } else {
            self.keep_reference(repository, &commit, &storage)?;
            notes.push(format!("written to {}", storage.join("snapshots").join(&commit).display()));
        }
        let folder = out.map_or(storage, Path::to_path_buf);
        Ok(Plan { client, items, folder, journal: out.is_some(), explain, notes })
    }

    /// The commit that a revision stands for.
    async fn commit(&self, client: &Client, repository: &Repository, explain: &Explain) -> Result<String> {
        let parts = ["api", repository.kind.plural()];
        let end = ["revision", repository.revision.as_str()];
        let url = self.address(parts.into_iter().chain(repository.id.split('/')).chain(end));
        let (text, _) = client.text(&url, explain.as_ref()).await?;
        let bad = |detail: String| FetchError::BadListing { url: url.to_string(), detail };
        let found: Revision = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        let is_hash = found.sha.len() == 40 && found.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        match is_hash {
            true => Ok(found.sha),
            false => Err(bad(format!("`{}` is no commit", found.sha)).into()),
        }
    }

    /// The files of a commit, in order of their paths.
    async fn list(
        &self,
        client: &Client,
        repository: &Repository,
        commit: &str,
        explain: &Explain,
    ) -> Result<Vec<Entry>> {
        let parts = ["api", repository.kind.plural()];
        let mut url = self.address(parts.into_iter().chain(repository.id.split('/')).chain(["tree", commit]));
        url.set_query(Some("recursive=true"));
        let mut files: Vec<Entry> = Vec::new();
        for _ in 0..MOST_PAGES {
            let (text, headers) = client.text(&url, explain.as_ref()).await?;
            let bad = |detail: String| FetchError::BadListing { url: url.to_string(), detail };
            let page: Vec<Entry> = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
            files.extend(page.into_iter().filter(|entry| entry.kind == "file"));
            let Some(next) = next_page(&headers) else {
                files.sort_by(|a, b| a.path.cmp(&b.path));
                return Ok(files);
            };
            let next = url.join(&next).map_err(|error| bad(format!("next page `{next}`: {error}")))?;
            if next.origin() != self.endpoint.origin() {
                return Err(bad(format!("the next page is on another host: {next}")).into());
            }
            url = next;
        }
        let detail = format!("there are more than {MOST_PAGES} pages");
        Err(FetchError::BadListing { url: url.to_string(), detail }.into())
    }

    fn item(
        &self,
        repository: &Repository,
        commit: &str,
        entry: &Entry,
        out: Option<&Path>,
        storage: &Path,
    ) -> Result<Item> {
        let bad = |detail: String| FetchError::BadListing { url: repository.name(), detail };
        let path = safe_path(&entry.path)
            .ok_or_else(|| bad(format!("it lists `{}`, which is no path within a folder", entry.path)))?;
        let (digest, size) = match &entry.lfs {
            Some(lfs) => (Digest::parse(lfs.oid.trim_start_matches("sha256:")), lfs.size),
            None => (Digest::git_blob(&entry.oid), entry.size),
        };
        let digest = digest.ok_or_else(|| bad(format!("it lists `{}` without a checksum", entry.path)))?;
        let prefix = if repository.kind == Kind::Dataset { Some("datasets") } else { None };
        let parts = prefix.into_iter().chain(repository.id.split('/')).chain(["resolve", commit]);
        let url = self.address(parts.chain(entry.path.split('/')));
        let (target, place) = match out {
            Some(out) => (out.join(&path), Place::Folder),
            None => {
                let link = storage.join("snapshots").join(commit).join(&path);
                (storage.join("blobs").join(&digest.hex), Place::Blob(link))
            }
        };
        let promised = vec![
            (HeaderName::from_static("x-repo-commit"), commit.to_owned()),
            (HeaderName::from_static("x-linked-etag"), digest.hex.clone()),
        ];
        let (name, origin, digests) = (entry.path.clone(), Origin::Web(url), vec![digest]);
        Ok(Item { name, origin, target, place, size: Some(size), digests, promised })
    }

    /// Remembers the commit of a branch or tag.
    fn keep_reference(&self, repository: &Repository, commit: &str, storage: &Path) -> Result<()> {
        let path = storage.join("refs").join(&repository.revision);
        if repository.revision == commit || fs::read_to_string(&path).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create folder", folder))?;
        }
        Ok(write_bytes(&path, commit.as_bytes())?)
    }

    /// The cache's files of a repository, without the network. `None` if the network may be used.
    ///
    /// # Errors
    /// [`FetchError::NotCached`] if a file or the repository is not in the cache, [`FetchError::NothingMatches`] if no
    /// file is wanted.
    pub fn offline(&self, repository: &Repository, wanted: &Wanted) -> Option<Result<Account>> {
        self.offline.then(|| self.cached(repository, wanted))
    }

    fn cached(&self, repository: &Repository, wanted: &Wanted) -> Result<Account> {
        let storage = self.storage(repository);
        let not_cached = |what: String| FetchError::NotCached { what, cache: self.cache.clone() };
        let reference = fs::read_to_string(storage.join("refs").join(&repository.revision));
        let commit = reference.map_or_else(|_| repository.revision.clone(), |commit| commit.trim().to_owned());
        let snapshot = storage.join("snapshots").join(&commit);
        if safe_path(&commit).is_none() || !snapshot.is_dir() {
            return Err(not_cached(repository.name()).into());
        }
        let mut account = Account::new("fetch");
        let mut files = 0;
        for entry in WalkDir::new(&snapshot).sort_by_file_name().into_iter().filter_map(std::result::Result::ok) {
            let relative = entry.path().strip_prefix(&snapshot).unwrap_or(entry.path());
            let name = relative.to_string_lossy();
            if entry.file_type().is_dir() {
                continue;
            }
            files += 1;
            if wanted.takes(&name) {
                if !entry.path().exists() {
                    return Err(not_cached(format!("{} of {}", name, repository.name())).into());
                }
                account.taken += 1;
                account.written += 1;
            }
        }
        if account.taken == 0 {
            let (repository, patterns) = (repository.name(), wanted.text.clone());
            return Err(FetchError::NothingMatches { repository, files, patterns }.into());
        }
        account.notes.push(format!("{} files were there already in {}", account.taken, snapshot.display()));
        let note = "HF_HUB_OFFLINE is set: whether the repository has more or newer files was not looked up";
        account.notes.push(note.to_owned());
        Ok(account)
    }

    /// Words about the Hub's refusals of a repository.
    fn explain(&self, repository: &Repository) -> Explain {
        let (name, page) = (repository.name(), self.page(repository));
        let has_token = self.token.is_some();
        Arc::new(move |status, headers: &HeaderMap| {
            let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            match (header("x-error-code"), status) {
                ("GatedRepo", _) if has_token => {
                    format!("accept the conditions of {name} on {page} with the account of the token")
                }
                ("GatedRepo", _) => format!(
                    "accept the conditions of {name} on {page}, make a token in your account's settings, \
                     and set HF_TOKEN to it"
                ),
                ("RevisionNotFound", _) => format!("{name} exists, but not this revision; see {page}"),
                ("EntryNotFound", _) => format!("{name} does not have this file any more; start again"),
                (_, 401) | ("RepoNotFound", _) if has_token => {
                    format!("check the name {name}; if it is private, the token in use has to be allowed to read it")
                }
                (_, 401) | ("RepoNotFound", _) => {
                    format!("check the name {name}; if it is private, set HF_TOKEN to a token that may read it")
                }
                (_, 403) => format!("the token in use may not read {name}; see {page}"),
                (_, 404) => format!("check the name {name} and the revision; see {page}"),
                _ => format!("see {page}"),
            }
        })
    }

    fn page(&self, repository: &Repository) -> Url {
        let prefix = if repository.kind == Kind::Dataset { Some("datasets") } else { None };
        self.address(prefix.into_iter().chain(repository.id.split('/')))
    }
}

/// The address of the page after this one: `<URL>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(LINK)?.to_str().ok()?;
    links.split(',').find_map(|link| {
        let (address, relation) = link.trim().strip_prefix('<')?.split_once('>')?;
        relation.contains("rel=\"next\"").then(|| address.to_owned())
    })
}

impl Kind {
    fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }
}

impl Repository {
    /// Understands `models/ID`, `datasets/ID`, `hf://[models/|datasets/]ID`, each with `@REVISION`, and the addresses
    /// of repositories' pages.
    pub fn parse(text: &str, endpoint: &Url) -> Option<Self> {
        let (path, default) = match text.strip_prefix("hf://") {
            Some(path) => (path.to_owned(), Some(Kind::Model)),
            None => match Url::parse(text) {
                Ok(url) => {
                    let known =
                        url.host_str().is_some_and(|host| HOSTS.contains(&host)) || url.origin() == endpoint.origin();
                    let path = url.path().trim_matches('/').replacen("/tree/", "@", 1);
                    // Files of repositories are fetched as any other address.
                    let is_page =
                        known && !path.contains("/resolve/") && !path.contains("/raw/") && !path.contains("/blob/");
                    (is_page.then_some(path)?, Some(Kind::Model))
                }
                Err(_) => (text.to_owned(), None),
            },
        };
        let (kind, id) = match path.split_once('/') {
            Some(("datasets", id)) => (Some(Kind::Dataset), id),
            Some(("models", id)) => (Some(Kind::Model), id),
            _ => (default, path.as_str()),
        };
        let (id, revision) = id.split_once('@').unwrap_or((id, "main"));
        let is_name = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            part.chars().all(plain) && part.chars().any(|c| c.is_ascii_alphanumeric()) && !part.contains("..")
        };
        let valid = id.split('/').count() <= 2 && id.split('/').all(is_name) && safe_path(revision).is_some();
        valid.then_some(Repository { kind: kind?, id: id.to_owned(), revision: revision.to_owned() })
    }

    /// This repository at another revision.
    pub fn at(mut self, revision: Option<&str>) -> Result<Self> {
        if let Some(revision) = revision {
            if safe_path(revision).is_none() {
                return Err(Error::Usage(format!("`{revision}` is no revision; give a branch, a tag or a commit")));
            }
            self.revision = revision.to_owned();
        }
        Ok(self)
    }

    fn name(&self) -> String {
        match self.revision.as_str() {
            "main" => format!("{}/{}", self.kind.plural(), self.id),
            revision => format!("{}/{}@{revision}", self.kind.plural(), self.id),
        }
    }
}

impl Wanted {
    /// Files that match one of `include` (all, if there is none) and none of `exclude`.
    ///
    /// # Errors
    /// [`Error::Usage`] for patterns that are none.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let compile = |texts: &[String]| -> Result<Vec<Regex>> {
            let whole = |text: &String| match text.ends_with('/') {
                true => pattern(&format!("{text}*"), Star::Everywhere),
                false => pattern(text, Star::Everywhere),
            };
            texts.iter().map(whole).collect()
        };
        let mut text = if include.is_empty() { "*".to_owned() } else { include.join(", ") };
        if !exclude.is_empty() {
            text = format!("{text} without {}", exclude.join(", "));
        }
        Ok(Wanted { include: compile(include)?, exclude: compile(exclude)?, text })
    }

    fn takes(&self, path: &str) -> bool {
        let any = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(path));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_recognised_in_every_spelling() {
        let endpoint = Url::parse("http://mirror.example:8080/hub").unwrap();
        let parse = |text: &str| Repository::parse(text, &endpoint).map(|repository| repository.name());
        for (text, name) in [
            ("datasets/laion/laion2B-en", Some("datasets/laion/laion2B-en")),
            ("models/stabilityai/stable-diffusion-2-base", Some("models/stabilityai/stable-diffusion-2-base")),
            ("models/gpt2@refs/pr/1", Some("models/gpt2@refs/pr/1")),
            ("hf://datasets/a/b@v1.0", Some("datasets/a/b@v1.0")),
            ("hf://a/b", Some("models/a/b")),
            ("https://huggingface.co/a/b", Some("models/a/b")),
            ("https://huggingface.co/datasets/a/b/tree/main", Some("datasets/a/b")),
            ("https://huggingface.co/a/b/tree/v2", Some("models/a/b@v2")),
            ("https://huggingface.co/a/b/resolve/main/x.bin", None),
            ("https://example.com/a/b", None),
            ("a/b", None),
            ("models/a/b/c", None),
            ("models/../b", None),
            ("models/a/..", None),
            ("models/a b", None),
            ("models/a@../../x", None),
            ("datasets/", None),
        ] {
            assert_eq!(parse(text).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn the_environment_is_read_as_the_python_library_does() {
        let hub = |pairs: &[(&str, &str)]| {
            let pairs: Vec<(String, String)> =
                pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Hub::from_env(&move |name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.clone()))
        };
        let plain = hub(&[("HOME", "/home/ada")]).unwrap();
        assert_eq!(plain.cache, Path::new("/home/ada/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), ("https://huggingface.co/", None, false));
        let set = hub(&[
            ("HOME", "/home/ada"),
            ("HF_HOME", "~/hf"),
            ("HF_TOKEN", " hf_x \n"),
            ("HF_HUB_OFFLINE", "yes"),
            ("HF_ENDPOINT", "http://127.0.0.1:1/"),
        ]);
        let set = set.unwrap();
        assert_eq!(set.cache, Path::new("/home/ada/hf/hub"));
        assert_eq!((set.token.as_deref(), set.offline), (Some("hf_x"), true));
        let older = hub(&[("HUGGINGFACE_HUB_CACHE", "/c"), ("HUGGING_FACE_HUB_TOKEN", "t"), ("HF_HUB_OFFLINE", "0")]);
        let older = older.unwrap();
        assert_eq!((older.cache.as_path(), older.token.as_deref(), older.offline), (Path::new("/c"), Some("t"), false));
        let silent =
            hub(&[("HF_TOKEN", "t"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("XDG_CACHE_HOME", "/x")]).unwrap();
        assert_eq!((silent.cache.as_path(), silent.token), (Path::new("/x/huggingface/hub"), None));
        assert!(hub(&[("HF_ENDPOINT", "huggingface.co")]).unwrap_err().is_usage());
        assert!(hub(&[("HF_ENDPOINT", "file:///etc")]).unwrap_err().is_usage());
    }

    #[test]
    fn patterns_choose_files() {
        let text = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let wanted = Wanted::new(&text(&["*.parquet", "meta/"]), &text(&["test/*"])).unwrap();
        let taken =
            ["a.parquet", "data/b.parquet", "test/c.parquet", "meta/d.json", "e.json"].map(|path| wanted.takes(path));
        assert_eq!(taken, [true, true, false, true, false]);
        assert!(Wanted::new(&[], &[]).unwrap().takes("anything"));
    }
}
