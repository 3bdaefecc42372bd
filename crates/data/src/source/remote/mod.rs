//! Files on other machines: over HTTP(S), from S3, Google Cloud Storage and Azure, through a cache on this one.
//!
//! Addresses: `http://`, `https://`, `s3://bucket/…`, `gs://bucket/…`, `az://container/…`. Credentials and endpoints
//! come from the environment, by the names that the stores' own tools use (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
//! `AWS_SKIP_SIGNATURE=true` for public buckets, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`, ...), or from
//! [`RemoteOptions::store`]. One asynchronous runtime serves them all; its functions block.

mod cache;
#[cfg_attr(not(feature = "remote"), path = "absent.rs")]
mod file;

use std::collections::BTreeMap;
use std::path::PathBuf;
#[cfg(feature = "remote")]
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
#[cfg(feature = "remote")]
use tokio::runtime::Runtime;

#[cfg(feature = "remote")]
use crate::{Error, Result};
pub(crate) use cache::{Count, Expected, ShardCache};
pub(crate) use file::{RemoteFile, Stores};

/// Fetching and keeping of files on other machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteOptions {
    /// Folder of the cache, which several processes may share. If absent: `$CALOTYPE_CACHE`, else `calotype/shards` in
    /// the user's cache folder.
    pub cache: Option<PathBuf>,
    /// Most bytes that the cache takes on disk. The shards that are used least recently make room.
    pub cache_bytes: u64,
    /// Attempts without progress after which a fetch fails, with growing pauses between them.
    pub attempts: usize,
    /// Seconds without a byte after which an attempt fails.
    pub timeout: u64,
    /// Shards that a loader fetches ahead of the one that it reads.
    pub read_ahead: usize,
    /// Settings of the store beside those of the environment, by the names of the `object_store` crate:
    /// `aws_endpoint`, `aws_region`, `google_service_account`, ...
    pub store: BTreeMap<String, String>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        RemoteOptions {
            cache: None,
            cache_bytes: 64 << 30,
            attempts: 6,
            timeout: 60,
            read_ahead: 2,
            store: BTreeMap::new(),
        }
    }
}

impl RemoteOptions {
    /// The cache's folder by option, environment and custom, in this order.
    pub fn cache_folder(&self) -> PathBuf {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let user = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        let chosen = self.cache.clone().or_else(|| set("CALOTYPE_CACHE"));
        chosen.unwrap_or_else(|| user().unwrap_or_else(std::env::temp_dir).join("calotype").join("shards"))
    }
}

/// True for the address of a file on another machine.
pub(crate) fn is_remote(spec: &str) -> bool {
    ["http://", "https://", "s3://", "s3a://", "gs://", "az://", "azure://", "abfs://", "abfss://"]
        .iter()
        .any(|scheme| spec.starts_with(scheme))
}

/// The runtime that all fetches share.
#[cfg(feature = "remote")]
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        // Another part of the program may have chosen a provider; then that one serves here too.
        let _ = rustls::crypto::ring::default_provider().install_default();
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fetch")
            .enable_all()
            .build()
            .map_err(|e| e.to_string())
    });
    made.as_ref().map_err(|e| Error::InvalidArgument { what: "asynchronous runtime", detail: e.clone() })
}

/// Runs a future on the runtime and waits for it; unlike `block_on`, from any thread.
#[cfg(feature = "remote")]
fn wait<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Result<T> {
    let (done, result) = std::sync::mpsc::sync_channel(1);
    runtime()?.spawn(async move {
        // The receiver waits until it has the result.
        let _ = done.send(future.await);
    });
    result.recv().map_err(|_| Error::InvalidArgument {
        what: "asynchronous runtime",
        detail: "a fetch ended without a result".to_owned(),
    })
}
