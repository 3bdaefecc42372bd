//! One file on another machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path as StorePath;
use object_store::{
    BackoffConfig, ClientOptions, Error as StoreError, GetOptions, GetRange, GetResult, ObjectStore, RetryConfig,
};
use url::Url;

use super::cache::{Facts, facts_path};
use super::{RemoteOptions, wait};
use crate::files::read_json;
use crate::{Error, Result};

/// First pause between attempts; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// The stores of a source, one for each host or bucket.
pub(crate) struct Stores {
    options: RemoteOptions,
    made: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

/// A file by its store and address.
#[derive(Clone)]
pub(crate) struct RemoteFile {
    store: Arc<dyn ObjectStore>,
    path: StorePath,
    url: Url,
    attempts: usize,
}

impl Stores {
    pub fn new(options: RemoteOptions) -> Self {
        Stores { options, made: Mutex::new(HashMap::new()) }
    }

    /// The file at an address.
    pub fn file(&self, address: &str) -> Result<RemoteFile> {
        let bad = |detail: String| Error::BadSource { spec: shown(address), detail };
        let url = Url::parse(address).map_err(|e| bad(format!("is no address: {e}")))?;
        let path = StorePath::from_url_path(url.path()).map_err(|e| bad(e.to_string()))?;
        let mut root = url.clone();
        root.set_path("");
        root.set_fragment(None);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let store = match made.get(root.as_str()) {
            Some(store) => Arc::clone(store),
            None => {
                let store = self.make(&root).map_err(|e| bad(e.to_string()))?;
                made.insert(root.to_string(), Arc::clone(&store));
                store
            }
        };
        Ok(RemoteFile { store, path, url, attempts: self.options.attempts.max(1) })
    }

    fn make(&self, root: &Url) -> object_store::Result<Arc<dyn ObjectStore>> {
        // Clients are made within the runtime's reach of the TLS provider.
        super::runtime().map_err(|e| StoreError::Generic { store: "runtime", source: Box::new(e) })?;
        // Attempts are counted here, where what was received stays.
        let retry = RetryConfig { max_retries: 0, backoff: BackoffConfig::default(), ..RetryConfig::default() };
        let client = ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_read_timeout(Duration::from_secs(self.options.timeout.max(1)));
        macro_rules! cloud {
            ($builder:ty) => {{
                let plain = self.options.store.get("allow_http").is_some_and(|value| value == "true");
                let mut builder = <$builder>::from_env().with_url(root.as_str()).with_retry(retry);
                builder = builder.with_client_options(client.with_allow_http(plain));
                for (key, value) in self.options.store.iter().filter(|(key, _)| *key != "allow_http") {
                    builder = builder.with_config(key.parse()?, value);
                }
                Arc::new(builder.build()?)
            }};
        }
        Ok(match root.scheme() {
            "s3" | "s3a" => cloud!(AmazonS3Builder),
            "gs" => cloud!(GoogleCloudStorageBuilder),
            "http" | "https" => {
                let client = client.with_allow_http(true);
                Arc::new(
                    HttpBuilder::new().with_url(root.as_str()).with_client_options(client).with_retry(retry).build()?,
                )
            }
            "az" | "azure" | "abfs" | "abfss" => cloud!(MicrosoftAzureBuilder),
            other => {
                let source = format!("addresses of `{other}` are not read").into();
                return Err(StoreError::Generic { store: "any", source });
            }
        })
    }
}

/// Outcome of an attempt that failed.
enum Failure {
    /// Another attempt would fail as well.
    Final(Error),
    /// Another attempt may succeed.
    Again(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Final(error)
    }
}

/// The half-fetched file.
struct Partial {
    path: PathBuf,
    file: File,
    written: u64,
    facts: Option<Facts>,
}

impl RemoteFile {
    /// The address without credentials and query, for messages.
    pub fn shown(&self) -> String {
        shown(self.url.as_str())
    }

    /// The whole address.
    pub fn address(&self) -> &str {
        self.url.as_str()
    }

    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.filename().unwrap_or("shard")
    }

    fn error(&self, detail: impl Into<String>) -> Error {
        Error::Fetch { url: self.shown(), detail: detail.into() }
    }

    /// The error down to its first cause, without the signatures that a query may hold.
    fn detail(&self, error: &StoreError) -> String {
        let mut text = error.to_string();
        let mut cause: &dyn std::error::Error = error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        match self.url.query() {
            Some(query) if !query.is_empty() => text.replace(query, "…"),
            _ => text,
        }
    }

    /// Reads a small file as a whole; `None` if there is none, or none that may be seen: stores that do not allow to
    /// list a bucket answer alike for both.
    pub fn read(&self, limit: u64) -> Result<Option<Bytes>> {
        self.persist(|| {
            let (store, path) = (Arc::clone(&self.store), self.path.clone());
            let answer = wait(async move { store.get_opts(&path, GetOptions::default()).await })?;
            let answer = match answer {
                Ok(answer) => answer,
                Err(StoreError::NotFound { .. } | StoreError::PermissionDenied { .. }) => return Ok((0, None)),
                Err(StoreError::Unauthenticated { .. }) => return Ok((0, None)),
                Err(error) => return Err(Failure::Again(self.detail(&error))),
            };
            if answer.meta.size > limit {
                let detail = format!("{} bytes, while {limit} are allowed for a file of this name", answer.meta.size);
                return Err(self.error(detail).into());
            }
            match wait(answer.bytes())? {
                Ok(bytes) => Ok((bytes.len() as u64, Some(bytes))),
                Err(error) => Err(Failure::Again(self.detail(&error))),
            }
        })
    }

    /// Names of the files in the folder that the address is of; only stores that can list have an answer.
    pub fn list(&self) -> Result<Vec<String>> {
        self.persist(|| {
            let (store, path) = (Arc::clone(&self.store), self.path.clone());
            match wait(async move { store.list_with_delimiter(Some(&path)).await })? {
                Ok(found) => {
                    let names = found.objects.iter().filter_map(|object| object.location.filename());
                    let mut names: Vec<String> = names.map(str::to_owned).collect();
                    names.sort();
                    Ok((0, names))
                }
                Err(error) => Err(Failure::Again(self.detail(&error))),
            }
        })
    }

    /// Fetches the file into `partial`, going on where an earlier attempt or process has stopped.
    ///
    /// `reserve(facts)` is called before the first byte is written, and after each restart; it makes room, and writes the
    /// facts to [`facts_path`]. `expected` is the length by an index.
    pub(super) fn fetch(
        &self,
        partial: &Path,
        expected: Option<u64>,
        mut reserve: impl FnMut(&Facts) -> Result<()>,
    ) -> Result<()> {
        let mut partial = Partial::open(partial)?;
        self.persist(|| {
            let result = self.fetch_on(&mut partial, expected, &mut reserve);
            result.map(|()| (partial.written, ())).map_err(|failure| (partial.written, failure))
        })
    }

    /// Repeats `attempt` until it succeeds, fails for good, or makes no progress too often. An attempt tells how many
    /// bytes there are now, of which only more than ever count as progress.
    fn persist<T, F: Into<(u64, Failure)>>(
        &self,
        mut attempt: impl FnMut() -> std::result::Result<(u64, T), F>,
    ) -> Result<T> {
        let (mut most, mut failures) = (0, 0);
        loop {
            let (bytes, detail) = match attempt().map_err(Into::into) {
                Ok((_, value)) => return Ok(value),
                Err((_, Failure::Final(error))) => return Err(error),
                Err((bytes, Failure::Again(detail))) => (bytes, detail),
            };
            failures = if bytes > most { 1 } else { failures + 1 };
            most = most.max(bytes);
            if failures >= self.attempts {
                return Err(self.error(format!("{detail} (gave up after {failures} attempts)")));
            }
            tracing::warn!(url = %self.shown(), error = %detail, failures, "fetching goes on after a pause");
            std::thread::sleep(FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_PAUSE));
        }
    }

    fn fetch_on(
        &self,
        partial: &mut Partial,
        expected: Option<u64>,
        reserve: &mut impl FnMut(&Facts) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        if partial.facts.as_ref().is_some_and(|facts| facts.size == partial.written && partial.written > 0) {
            return Ok(());
        }
        let answer = self.ask(partial)?;
        let facts = Facts { size: answer.meta.size, etag: answer.meta.e_tag.clone() };
        if let Some(expected) = expected.filter(|expected| *expected != facts.size) {
            return Err(Failure::Final(Error::SizeMismatch { path: self.shown().into(), expected, size: facts.size }));
        }
        if partial.written > 0 && (partial.facts.as_ref() != Some(&facts) || answer.range.start != partial.written) {
            partial.restart()?;
            return Err(Failure::Again("changed while it was fetched".to_owned()));
        }
        if partial.facts.is_none() {
            reserve(&facts)?;
            partial.facts = Some(facts.clone());
        }
        self.receive(partial, answer.into_stream(), facts.size)
    }

    /// Asks for the rest of the file.
    fn ask(&self, partial: &mut Partial) -> std::result::Result<GetResult, Failure> {
        let mut options = GetOptions::default();
        if partial.written > 0 {
            // Versions are compared in the answer: a condition would fail for weak marks, which many servers give.
            options.range = Some(GetRange::Offset(partial.written));
        }
        let (store, path) = (Arc::clone(&self.store), self.path.clone());
        match wait(async move { store.get_opts(&path, options).await })? {
            Ok(answer) => Ok(answer),
            Err(error @ (StoreError::NotFound { .. } | StoreError::PermissionDenied { .. })) => {
                Err(Failure::Final(self.error(self.detail(&error))))
            }
            Err(error @ StoreError::Unauthenticated { .. }) => Err(Failure::Final(self.error(self.detail(&error)))),
            Err(error) => {
                // A server that gives no ranges, or has another version by now, gives the whole file.
                if matches!(error, StoreError::NotSupported { .. } | StoreError::Precondition { .. }) {
                    partial.restart()?;
                }
                Err(Failure::Again(self.detail(&error)))
            }
        }
    }

    fn receive(
        &self,
        partial: &mut Partial,
        mut stream: BoxStream<'static, object_store::Result<Bytes>>,
        size: u64,
    ) -> std::result::Result<(), Failure> {
        let mut out = partial.file.try_clone().map_err(Error::io("write", &partial.path))?;
        let mut written = partial.written;
        let this = self.clone();
        let ended = wait(async move {
            let mut error = None;
            while let Some(chunk) = stream.next().await {
                let wrote = match chunk {
                    Ok(chunk) if written + chunk.len() as u64 > size => Err("sends more bytes than it said".to_owned()),
                    Ok(chunk) => match out.write_all(&chunk) {
                        Ok(()) => Ok(chunk.len() as u64),
                        Err(e) => return (written, Some(Err(e))),
                    },
                    Err(e) => Err(this.detail(&e)),
                };
                match wrote {
                    Ok(bytes) => written += bytes,
                    Err(e) => {
                        error = Some(Ok(e));
                        break;
                    }
                }
            }
            (written, error)
        })?;
        let error;
        (partial.written, error) = ended;
        match error {
            Some(Err(e)) => Err(Failure::Final(Error::io("write", &partial.path)(e))),
            Some(Ok(detail)) => Err(Failure::Again(format!("{detail} ({} of {size} bytes)", partial.written))),
            None if partial.written < size => {
                Err(Failure::Again(format!("ends after {} of {size} bytes", partial.written)))
            }
            None => Ok(()),
        }
    }
}

impl From<Failure> for (u64, Failure) {
    fn from(failure: Failure) -> Self {
        (0, failure)
    }
}

impl Partial {
    /// Opens or makes the file. A part that an earlier process left is used if its version is known.
    fn open(path: &Path) -> Result<Self> {
        let facts: Option<Facts> = read_json(&facts_path(path)).unwrap_or_default();
        let facts = facts.filter(|facts| facts.etag.is_some());
        let open = File::options().read(true).append(true).create(true).open(path);
        let file = open.map_err(Error::io("open", path))?;
        let written = file.metadata().map_err(Error::io("read", path))?.len();
        let mut partial = Partial { path: path.to_path_buf(), file, written, facts };
        if partial.facts.as_ref().is_none_or(|facts| partial.written > facts.size) {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::io("truncate", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io("truncate", &self.path))?;
        (self.written, self.facts) = (0, None);
        Ok(())
    }
}

/// An address without credentials, query and fragment.
pub(super) fn shown(address: &str) -> String {
    let Ok(mut url) = Url::parse(address) else { return address.to_owned() };
    url.set_query(None);
    url.set_fragment(None);
    // Fails only for addresses that can have neither.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    url.to_string()
}
