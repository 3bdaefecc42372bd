//! Fetching files: several at once, each continued where it was left, verified, and published whole.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use calotype_core::durable;
use calotype_data::Control;
use calotype_data::files::{partial_name, read_json, write_json};
use reqwest::header::{
    CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{Method, Response};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinSet, block_in_place};
use url::Url;

use super::FetchError;
use super::digest::{Digest, Hashers};
use super::http::{Client, Failure, check, unreachable};
use super::journal::Journal;
use crate::{Account, Error};

type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes left free on the disk.
const SPACE_MARGIN: u64 = 64 << 20;
/// Bytes that count as progress: a server that breaks off more often than that is given up.
const PROGRESS: u64 = 1 << 20;
/// Bytes that are copied or hashed at once.
const CHUNK: usize = 1 << 20;
/// Failures that are quoted.
const QUOTED: usize = 5;

/// Words on the remedy for a refusal, by status and headers.
pub(super) type Explain = Arc<dyn Fn(u16, &HeaderMap) -> String + Send + Sync>;

/// Origin of a file.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Web(Url),
    File(PathBuf),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Web(url) => url.fmt(f),
            Origin::File(path) => path.display().fmt(f),
        }
    }
}

/// Destination of a file.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Into a folder of the user's, with a journal beside it.
    Folder,
    /// Into a cache under the name of its content, with this link to it.
    Blob(PathBuf),
}

/// A file to fetch.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Short name, for messages and the journal.
    pub name: String,
    pub origin: Origin,
    pub target: PathBuf,
    pub place: Place,
    pub size: Option<u64>,
    pub digests: Vec<Digest>,
    /// Headers that have to have these values where the server sends them.
    pub promised: Vec<(HeaderName, String)>,
}

/// Files to fetch and how.
pub(super) struct Plan {
    pub client: Client,
    pub items: Vec<Item>,
    /// The folder that is written.
    pub folder: PathBuf,
    /// True if files in it are recorded by a journal.
    pub journal: bool,
    pub explain: Explain,
    /// Further notes.
    pub notes: Vec<String>,
}

/// Settings of fetching.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// Files at once.
    pub parallel: usize,
    /// True if checksums of files that are there are computed again.
    pub verify: bool,
}

/// Outcome of a file.
enum Outcome {
    Present,
    Fetched { bytes: u64, resumed: bool, note: Option<String> },
}

/// State that the transfers share.
struct Shared {
    client: Client,
    explain: Explain,
    journal: Option<Mutex<Journal>>,
    verify: bool,
    /// Bytes that are on the disk, and that are known to be wanted.
    done: AtomicU64,
    wanted: AtomicU64,
}

/// Marks of the version of a file of which a part is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Version {
    url: String,
    etag: Option<String>,
    last_modified: Option<String>,
}

impl Version {
    /// True if two parts with this version belong together.
    fn is_named(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }
}

/// Fetches the files of a plan.
///
/// # Errors
/// [`FetchError::Incomplete`] if files failed, the file's own error if there is only one; [`FetchError::TooLittleSpace`]
/// and [`Error::Io`] at once; [`Error::Data`] if stopped.
pub(super) async fn download(plan: Plan, how: How, control: &mut Control<'_>) -> Result<Account> {
    fs::create_dir_all(&plan.folder).map_err(Error::io("create folder", &plan.folder))?;
    let missing = plan.items.iter().filter(|item| !item.target.exists());
    require_space(&plan.folder, missing.map(|item| item.size.unwrap_or(0).saturating_sub(partial_length(item))).sum())?;
    let journal = if plan.journal { Some(Mutex::new(Journal::open(&plan.folder)?)) } else { None };
    let shared = Arc::new(Shared {
        client: plan.client,
        explain: plan.explain,
        journal,
        verify: how.verify,
        done: AtomicU64::new(0),
        wanted: AtomicU64::new(plan.items.iter().filter_map(|item| item.size).sum()),
    });
    let mut account = all(&shared, plan.items, how.parallel, control).await?;
    account.notes.extend(plan.notes);
    Ok(account)
}

async fn all(shared: &Arc<Shared>, items: Vec<Item>, parallel: usize, control: &mut Control<'_>) -> Result<Account> {
    let total = items.len();
    let mut account = Account { taken: total as u64, ..Account::new("fetch") };
    let (mut present, mut resumed) = (0, 0);
    let mut failures: Vec<Error> = Vec::new();
    let mut waiting = items.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < parallel
            && let Some(item) = waiting.next()
        {
            let shared = Arc::clone(shared);
            running.spawn(async move { shared.fetch(&item).await });
        }
        tokio::select! {
            result = running.join_next() => match result {
                None => break,
                Some(Ok(Ok(Outcome::Present))) => {
                    account.written += 1;
                    present += 1;
                }
                Some(Ok(Ok(Outcome::Fetched { bytes, resumed: continued, note }))) => {
                    account.written += 1;
                    account.bytes += bytes;
                    resumed += usize::from(continued);
                    account.notes.extend(note);
                }
                Some(Ok(Err(error))) if concerns_all(&error) => return Err(error),
                Some(Ok(Err(error))) => failures.push(error),
                Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            },
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
        let done = shared.done.load(Ordering::Relaxed);
        let wanted = shared.wanted.load(Ordering::Relaxed).max(done);
        if control.checkpoint("fetch", done as usize, wanted as usize).is_err() {
            running.shutdown().await;
            let done = account.written as usize;
            return Err(calotype_data::Error::Interrupted { stage: "fetch", done, total }.into());
        }
    }
    if present > 0 {
        account.notes.push(format!("{present} files were there already"));
    }
    if resumed > 0 {
        account.notes.push(format!("{resumed} files were continued where they had been left"));
    }
    match (failures.len(), total) {
        (0, _) => Ok(account),
        (1, 1) => Err(failures.remove(0)),
        (failed, _) => Err(FetchError::Incomplete {
            failed,
            total,
            unavailable: failures.iter().all(is_unavailable),
            failures: failures.iter().take(QUOTED).map(ToString::to_string).collect(),
        }
        .into()),
    }
}

/// True if an error would come with every file.
fn concerns_all(error: &Error) -> bool {
    match error {
        Error::Fetch(error) => matches!(**error, FetchError::TooLittleSpace { .. }),
        _ => true,
    }
}

/// True if another source may have what this one does not give.
pub(super) fn is_unavailable(error: &Error) -> bool {
    let Error::Fetch(error) = error else { return false };
    matches!(
        **error,
        FetchError::Refused { .. }
            | FetchError::NotFound { .. }
            | FetchError::ServerFailure { .. }
            | FetchError::Unreachable { .. }
            | FetchError::Redirect { .. }
            | FetchError::Incomplete { unavailable: true, .. }
    )
}

fn partial_path(item: &Item) -> PathBuf {
    match &item.place {
        Place::Folder => partial_name(&item.target),
        Place::Blob(_) => suffixed(&item.target, ".incomplete"),
    }
}

fn partial_length(item: &Item) -> u64 {
    fs::metadata(partial_path(item)).map_or(0, |file| file.len())
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn require_space(folder: &Path, needed: u64) -> Result<()> {
    let status = nix::sys::statvfs::statvfs(folder)
        .map_err(|errno| Error::io("find the free space of", folder)(errno.into()))?;
    // The types of both fields differ between systems.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    let free = (status.blocks_available() as u64).saturating_mul(status.fragment_size() as u64);
    let needed = needed.saturating_add(SPACE_MARGIN);
    match needed <= free {
        true => Ok(()),
        false => Err(FetchError::TooLittleSpace { folder: folder.to_path_buf(), needed, free }.into()),
    }
}

impl Shared {
    async fn fetch(self: Arc<Self>, item: &Item) -> Result<Outcome> {
        let mut note = None;
        let before = modified(&item.target);
        if self.present(item, &mut note).await? {
            self.link(item)?;
            return Ok(Outcome::Present);
        }
        if let Some(folder) = item.target.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create folder", folder))?;
        }
        let partial = partial_path(item);
        let file = block_in_place(|| open_locked(&partial))?;
        // Another process had it open; it may be done by now.
        if modified(&item.target) != before && self.present(item, &mut note).await? {
            let _ = fs::remove_file(&partial);
            self.link(item)?;
            return Ok(Outcome::Present);
        }
        let have = file.metadata().map_err(Error::io("read", &partial))?.len();
        let mut transfer = Transfer {
            shared: &self,
            item,
            version: version(item, &partial),
            partial,
            file,
            have,
            moved: 0,
            hashed: None,
        };
        let resumed = match &item.origin {
            Origin::Web(url) => transfer.run(url).await?,
            Origin::File(path) => block_in_place(|| transfer.copy(path)).map(|()| false)?,
        };
        let bytes = transfer.moved;
        transfer.publish()?;
        self.record(item)?;
        self.link(item)?;
        Ok(Outcome::Fetched { bytes, resumed, note })
    }

    /// True if the file is there, as far as can be known.
    async fn present(&self, item: &Item, note: &mut Option<String>) -> Result<bool> {
        let Ok(found) = fs::metadata(&item.target) else { return Ok(false) };
        if found.is_dir() {
            let is_folder = std::io::Error::from(std::io::ErrorKind::IsADirectory);
            return Err(Error::io("write", &item.target)(is_folder));
        }
        let again = |why: &str| Some(format!("{} was there with {why}, and was fetched again", item.name));
        if item.size.is_some_and(|size| size != found.len()) {
            *note = again("another length");
            return Ok(false);
        }
        // Names in a cache are checksums, and nothing gets a name without having it.
        let known = matches!(item.place, Place::Blob(_)) || self.recorded(item);
        if known && !self.verify {
            self.done.fetch_add(found.len(), Ordering::Relaxed);
            return Ok(true);
        }
        if item.digests.is_empty() {
            let same = known || self.server_length(item).await == Some(found.len());
            *note = if same { None } else { again("another length") };
            return Ok(same);
        }
        let mismatch = block_in_place(|| {
            let mut file = File::open(&item.target)?;
            let mut hashers = Hashers::new(&item.digests, Some(found.len()));
            hash(&mut file, found.len(), &mut hashers)?;
            std::io::Result::Ok(hashers.mismatch())
        });
        match mismatch.map_err(Error::io("read", &item.target))? {
            None => {
                self.record(item)?;
                self.done.fetch_add(found.len(), Ordering::Relaxed);
                Ok(true)
            }
            Some((wanted, _)) => {
                *note = again(&format!("another {}", wanted.algorithm));
                if matches!(item.place, Place::Blob(_)) {
                    fs::remove_file(&item.target).map_err(Error::io("remove", &item.target))?;
                }
                Ok(false)
            }
        }
    }

    /// The length that a server tells of a file, if it does.
    async fn server_length(&self, item: &Item) -> Option<u64> {
        let Origin::Web(url) = &item.origin else { return None };
        let answer = self.client.request(Method::HEAD, url, &HeaderMap::new()).await.ok()?;
        match answer.response.status().is_success() {
            // The length of the body, which an answer to HEAD does not have, is another matter.
            true => answer.response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok(),
            false => None,
        }
    }

    fn recorded(&self, item: &Item) -> bool {
        let journal = self.journal.as_ref().map(|journal| journal.lock().unwrap_or_else(|error| error.into_inner()));
        journal.is_some_and(|journal| journal.holds(&item.name, &item.origin.to_string(), &item.target, &item.digests))
    }

    fn record(&self, item: &Item) -> Result<()> {
        match &self.journal {
            Some(journal) => journal.lock().unwrap_or_else(|error| error.into_inner()).add(
                &item.name,
                &item.origin.to_string(),
                &item.target,
                &item.digests,
            ),
            None => Ok(()),
        }
    }

    /// Makes the link to a file of a cache.
    fn link(&self, item: &Item) -> Result<()> {
        let Place::Blob(link) = &item.place else { return Ok(()) };
        if link.exists() {
            return Ok(());
        }
        let (Some(folder), Some(blobs)) = (link.parent(), item.target.parent()) else { return Ok(()) };
        fs::create_dir_all(folder).map_err(Error::io("create folder", folder))?;
        // Relative, so that the cache can be moved: up to the repository's folder, then down to the blobs.
        let root = blobs.parent().unwrap_or(blobs);
        let levels = folder.strip_prefix(root).map_or(0, |path| path.components().count());
        let mut target: PathBuf = std::iter::repeat_n("..", levels).collect();
        target.push("blobs");
        target.extend(item.target.file_name());
        let partial = partial_name(link);
        let _ = fs::remove_file(&partial);
        std::os::unix::fs::symlink(&target, &partial).map_err(Error::io("link", &partial))?;
        fs::rename(&partial, link).map_err(Error::io("rename to", link))
    }
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// Opens a partial file that no other process has open, and waits where one has.
fn open_locked(path: &Path) -> Result<File> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io("create", path))?;
        if file.try_lock().is_err() {
            tracing::info!("another process fetches {}; waiting for it", path.display());
            file.lock().map_err(Error::io("lock", path))?;
        }
        // The other process has given it its final name, or removed it.
        use std::os::unix::fs::MetadataExt;
        let same = |a: &fs::Metadata, b: &fs::Metadata| a.ino() == b.ino() && a.dev() == b.dev();
        if let (Ok(here), Ok(there)) = (file.metadata(), fs::metadata(path))
            && same(&here, &there)
        {
            return Ok(file);
        }
    }
}

/// The file that tells which version of the file a partial one belongs to.
fn version_path(partial: &Path) -> PathBuf {
    suffixed(partial, ".json")
}

fn version(item: &Item, partial: &Path) -> Version {
    match item.place {
        // Without it, the file is fetched from its start.
        Place::Folder => read_json(&version_path(partial)).ok().flatten().unwrap_or_default(),
        Place::Blob(_) => Version::default(),
    }
}

/// Feeds the first `length` bytes of a file to `hashers`.
fn hash(file: &mut File, length: u64, hashers: &mut Hashers) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        let read = file.read(&mut buffer[..left.min(CHUNK as u64) as usize])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        hashers.update(&buffer[..read]);
        left -= read as u64;
    }
    Ok(())
}

/// A file on its way.
struct Transfer<'a> {
    shared: &'a Shared,
    item: &'a Item,
    partial: PathBuf,
    file: File,
    version: Version,
    /// Bytes of the file that are there.
    have: u64,
    /// Bytes that came over the network.
    moved: u64,
    /// Checksums of the first bytes, and how many those are.
    hashed: Option<(Hashers, u64)>,
}

impl Transfer<'_> {
    /// Fetches until the file is complete and verified. Tells whether it was continued from an earlier run.
    async fn run(&mut self, url: &Url) -> Result<bool> {
        let client = &self.shared.client;
        self.shared.done.fetch_add(self.have, Ordering::Relaxed);
        let earlier = self.have;
        let mut resumed = false;
        let mut again = true;
        let mut tries = 0;
        loop {
            tries += 1;
            let before = self.have;
            match self.attempt(url, tries).await {
                Ok(()) => {
                    resumed |= earlier > 0 && self.moved + earlier <= self.have;
                    match self.verify()? {
                        None => return Ok(resumed),
                        // The first part may have been of another version of the file.
                        Some(_) if earlier > 0 && again => {
                            again = false;
                            self.restart()?;
                            tries = 0;
                        }
                        Some((wanted, found)) => {
                            self.discard();
                            let path = self.item.target.clone();
                            return Err(FetchError::Mismatch { path, wanted, found }.into());
                        }
                    }
                }
                Err(Failure::Lasting(error)) => {
                    self.give_up();
                    return Err(error);
                }
                Err(Failure::Passing(error, wait)) => {
                    if self.have >= before + PROGRESS {
                        tries = 1;
                    }
                    if tries >= client.tries {
                        self.give_up();
                        return Err(error.into());
                    }
                    client.wait(tries, wait, &error).await;
                }
            }
        }
    }

    /// One request for what is missing.
    async fn attempt(&mut self, url: &Url, tries: u32) -> Result<(), Failure> {
        let size = self.item.size;
        let nameless = !self.version.is_named() && self.item.digests.is_empty();
        if size.is_some_and(|size| self.have > size) || nameless || self.is_of_another_address(url) {
            self.restart()?;
        }
        if self.have > 0 && size == Some(self.have) {
            return Ok(());
        }
        let answer = self.shared.client.request(Method::GET, url, &self.range()).await?;
        self.keeps_promises(url, &answer.first)?;
        let status = answer.response.status().as_u16();
        if status == 416 && self.have > 0 {
            return self.beyond_the_end(url, &answer.response);
        }
        let response = check(url, answer.response, tries, self.shared.explain.as_ref())?;
        let total = self.accept(url, &response)?;
        self.has_length(url, total)?;
        let folder = self.item.target.parent().unwrap_or(Path::new("."));
        require_space(folder, total.unwrap_or(0).saturating_sub(self.have))?;
        if size.is_none() {
            self.shared.wanted.fetch_add(total.unwrap_or(0), Ordering::Relaxed);
        }
        self.receive(url, response).await?;
        match total {
            Some(total) if self.have != total => {
                let detail = format!("the transfer ended after {} of {total} bytes", self.have);
                Err(Failure::Passing(FetchError::Unreachable { url: url.to_string(), detail }, None))
            }
            _ => Ok(()),
        }
    }

    fn is_of_another_address(&self, url: &Url) -> bool {
        // Where checksums are known, any server's copy will do.
        self.item.digests.is_empty() && !self.version.url.is_empty() && self.version.url != url.as_str()
    }

    /// Headers that ask for the rest of the same version as the part that is there.
    fn range(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.have > 0 {
            let value = HeaderValue::from_str(&format!("bytes={}-", self.have));
            headers.extend(value.map(|value| (RANGE, value)));
            let same = self.version.etag.as_ref().or(self.version.last_modified.as_ref());
            let value = same.and_then(|version| HeaderValue::from_str(version).ok());
            headers.extend(value.map(|value| (IF_RANGE, value)));
        }
        headers
    }

    fn keeps_promises(&self, url: &Url, first: &HeaderMap) -> Result<(), FetchError> {
        for (name, wanted) in &self.item.promised {
            let found = first.get(name).and_then(|value| value.to_str().ok()).map(plain_etag);
            if let Some(found) = found.filter(|found| found != wanted) {
                let detail = format!("the file was listed with {name} {wanted}, but now has {found}; start again");
                return Err(FetchError::BadListing { url: url.to_string(), detail });
            }
        }
        Ok(())
    }

    /// A range that begins where the file ends: it is complete, or another one.
    fn beyond_the_end(&mut self, url: &Url, response: &Response) -> Result<(), Failure> {
        let total = content_range(response.headers()).and_then(|(_, total)| total);
        if total == Some(self.have) {
            self.has_length(url, total)?;
            return Ok(());
        }
        self.restart()?;
        let detail = "the file became shorter while it was fetched".to_owned();
        Err(Failure::Passing(FetchError::Unreachable { url: url.to_string(), detail }, None))
    }

    /// Prepares for the body of `response`, and tells how long the whole file is.
    fn accept(&mut self, url: &Url, response: &Response) -> Result<Option<u64>, Failure> {
        let headers = response.headers();
        let text =
            |name: HeaderName| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
        let etag = text(ETAG).filter(|etag| !etag.starts_with("W/"));
        let version = Version { url: url.to_string(), etag, last_modified: text(LAST_MODIFIED) };
        let mut total = response.content_length();
        if response.status().as_u16() == 206 {
            let range = content_range(headers);
            // Servers without If-Range send the rest of whatever they have.
            let other = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
            let changed = other(&self.version.etag, &version.etag);
            total = match range {
                Some((start, total)) if start == self.have && !changed => total,
                _ => {
                    self.restart()?;
                    let detail = "the server sent another part than the one asked for".to_owned();
                    return Err(Failure::Passing(FetchError::Unreachable { url: url.to_string(), detail }, None));
                }
            };
        } else if self.have > 0 {
            tracing::warn!("{url} changed or cannot be continued; it is fetched from its start");
            self.restart()?;
        }
        if matches!(self.item.place, Place::Folder) && version != self.version {
            if version.is_named() {
                write_json(&version_path(&self.partial), &version).map_err(Error::from)?;
            }
            self.version = version;
        }
        Ok(total)
    }

    fn has_length(&self, origin: &dyn std::fmt::Display, total: Option<u64>) -> Result<(), FetchError> {
        match (self.item.size, total) {
            (Some(wanted), Some(found)) if wanted != found => {
                Err(FetchError::WrongLength { url: origin.to_string(), wanted, found })
            }
            _ => Ok(()),
        }
    }

    async fn receive(&mut self, url: &Url, mut response: Response) -> Result<(), Failure> {
        block_in_place(|| self.catch_up()).map_err(Error::io("read", &self.partial))?;
        while let Some(bytes) =
            response.chunk().await.map_err(|error| Failure::Passing(unreachable(url, &error), None))?
        {
            block_in_place(|| self.append(&bytes)).map_err(Error::io("write", &self.partial))?;
            self.moved += bytes.len() as u64;
        }
        Ok(())
    }

    /// Brings checksums and the place of writing to the end of what is there.
    fn catch_up(&mut self) -> std::io::Result<()> {
        if self.hashed.as_ref().is_none_or(|(_, length)| *length != self.have) {
            let mut hashers = Hashers::new(&self.item.digests, self.item.size);
            if !self.item.digests.is_empty() {
                hash(&mut self.file, self.have, &mut hashers)?;
            }
            self.hashed = Some((hashers, self.have));
        }
        self.file.seek(SeekFrom::Start(self.have)).map(drop)
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.have += bytes.len() as u64;
        if let Some((hashers, length)) = &mut self.hashed {
            hashers.update(bytes);
            *length += bytes.len() as u64;
        }
        self.shared.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Copies a file of this machine, from its start: that is quicker than to find out whether it has changed.
    fn copy(&mut self, from: &Path) -> Result<()> {
        let mut source = File::open(from).map_err(Error::io("open", from))?;
        let length = source.metadata().map_err(Error::io("read", from))?.len();
        self.has_length(&from.display(), Some(length))?;
        require_space(self.item.target.parent().unwrap_or(Path::new(".")), length)?;
        self.restart()?;
        self.catch_up().map_err(Error::io("read", &self.partial))?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = source.read(&mut buffer).map_err(Error::io("read", from))?;
            if read == 0 {
                break;
            }
            self.append(&buffer[..read]).map_err(Error::io("write", &self.partial))?;
        }
        self.moved = self.have;
        match self.verify()? {
            None => Ok(()),
            Some((wanted, found)) => {
                self.discard();
                Err(FetchError::Mismatch { path: self.item.target.clone(), wanted, found }.into())
            }
        }
    }

    /// The first checksum that is wrong.
    fn verify(&mut self) -> Result<Option<(Digest, String)>> {
        block_in_place(|| self.catch_up()).map_err(Error::io("read", &self.partial))?;
        Ok(self.hashed.take().and_then(|(hashers, _)| hashers.mismatch()))
    }

    fn restart(&mut self) -> Result<()> {
        self.shared.done.fetch_sub(self.have.min(self.shared.done.load(Ordering::Relaxed)), Ordering::Relaxed);
        self.file.set_len(0).map_err(Error::io("write", &self.partial))?;
        self.have = 0;
        self.hashed = None;
        self.version = Version::default();
        // Or it would name what is written from now on.
        let _ = fs::remove_file(version_path(&self.partial));
        Ok(())
    }

    /// Keeps a part that a later run can continue, and removes an empty one.
    fn give_up(&self) {
        if self.have == 0 {
            self.discard();
        }
    }

    fn discard(&self) {
        let _ = fs::remove_file(&self.partial);
        let _ = fs::remove_file(version_path(&self.partial));
    }

    fn publish(self) -> Result<()> {
        let target = &self.item.target;
        durable::publish(&self.file, &self.partial, target).map_err(Error::io("write", target))?;
        let _ = fs::remove_file(version_path(&self.partial));
        Ok(())
    }
}

/// An entity tag without its quotes.
fn plain_etag(text: &str) -> String {
    text.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// First byte and whole length of `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let start = if range == "*" { 0 } else { range.split_once('-')?.0.parse().ok()? };
    Some((start, total.parse().ok()))
}
