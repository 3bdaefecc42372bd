//! The work on shards: rows to requests, bytes to images, rows back into shards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use calotype_data::Control;
use calotype_data::image::{DecodeNotes, DecodeOptions};
use md5::Md5;
use sha2::{Digest, Sha256, Sha512};
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::budget::Budget;
use super::client::{Body, FetchError, FetchOptions, Fetcher};
use super::exif::exif_text;
use super::failure::{Failure, FailureKind};
use super::image::{self, ImageOptions};
use super::list::ImageList;
use super::shard::{Facts, Layout, OpenShard, Outcome, Stats};
use super::{DownloadError, HashKind, STAGE, download_error};
use crate::{Account, Error, Result};

/// Rows under way, waiting ones included, per request that may be under way: while some wait for a host or for another
/// try, others go on.
const WAITING: usize = 4;

/// Shards that are begun at once, so that the last images of one do not hold up the next.
const OPEN_SHARDS: usize = 4;

/// Time between two reports of progress, and between two lines of the log.
const TICK: Duration = Duration::from_millis(100);
const LOG: Duration = Duration::from_secs(10);

/// Longest text of EXIF fields that is kept, in bytes.
const LONGEST_EXIF: usize = 1 << 16;

/// The stage's work without its division into slices.
pub(super) struct Job<'a> {
    pub list: &'a ImageList,
    pub layout: Layout,
    pub image: &'a ImageOptions,
    pub fetch: &'a FetchOptions,
    pub hash: HashKind,
    pub threads: usize,
}

/// The rows that a shard is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    id: usize,
    file: usize,
    first: usize,
    rows: usize,
}

/// State that all tasks share.
struct Shared {
    fetcher: Fetcher,
    image: ImageOptions,
    hash: HashKind,
    exif: bool,
    verify: Option<&'static str>,
    /// Threads that decode.
    decoders: Arc<Semaphore>,
    /// Memory for decoded images.
    pixels: Budget,
    /// Images that were turned, and transparent ones.
    notes: DecodeNotes,
}

/// State of the work under way.
struct Progress {
    started: Instant,
    logged: Instant,
    done: usize,
    kept: usize,
    stored: usize,
    total: usize,
}

impl Job<'_> {
    /// All shards: the rows of each file in pieces.
    pub fn plan(&self) -> Vec<Plan> {
        let mut plans = Vec::new();
        for (file, of) in self.list.files().iter().enumerate() {
            for first in (0..of.rows).step_by(self.layout.samples) {
                let rows = self.layout.samples.min(of.rows - first);
                plans.push(Plan { id: plans.len(), file, first, rows });
            }
        }
        plans
    }

    /// Makes the shards of `plans` that are not there yet.
    ///
    /// # Errors
    /// [`Error::Download`], [`Error::Io`], and [`Error::Data`] if stopped on request; finished shards stay.
    pub fn run(&self, plans: &[Plan], control: &mut Control<'_>) -> Result<Account> {
        let mut account = Account::new(STAGE);
        let mut missing = Vec::new();
        for plan in plans {
            match self.layout.finished(plan.id)? {
                Some((stats, bytes)) => stats.add_to(bytes, &mut account),
                None => missing.push(*plan),
            }
        }
        let kept = account.taken as usize;
        if kept > 0 {
            tracing::info!(shards = plans.len() - missing.len(), rows = kept, "shards are done already");
        }
        let total = kept + missing.iter().map(|plan| plan.rows).sum::<usize>();
        let now = Instant::now();
        let mut progress = Progress { started: now, logged: now, done: kept, kept, stored: 0, total };
        let runtime = Builder::new_multi_thread()
            .worker_threads(self.threads.min(8))
            .max_blocking_threads(self.threads + 256)
            .enable_all()
            .build()
            .map_err(|e| DownloadError::Stopped { detail: format!("no threads: {e}") })?;
        let result = runtime.block_on(self.drive(&missing, &mut progress, control, &mut account));
        // Requests under way are dropped; what decodes ends by itself.
        runtime.shutdown_background();
        result.map(|()| account)
    }

    async fn drive(
        &self,
        plans: &[Plan],
        progress: &mut Progress,
        control: &mut Control<'_>,
        account: &mut Account,
    ) -> Result<()> {
        let shared = Arc::new(self.shared()?);
        let layout = Arc::new(self.layout.clone());
        let mut reader = self.list.reader();
        let mut plans = plans.iter();
        let mut current: Option<(Arc<OpenShard>, usize)> = None;
        let mut rows: JoinSet<Result<(Arc<OpenShard>, bool, bool)>> = JoinSet::new();
        let mut finishing: JoinSet<Result<(Stats, u64)>> = JoinSet::new();
        let mut open = 0;
        let mut tick = tokio::time::interval(TICK);
        loop {
            while rows.len() < WAITING * self.fetch.concurrency {
                if current.as_ref().is_none_or(|(shard, next)| *next == shard.rows()) {
                    let Some(plan) = (if open < OPEN_SHARDS { plans.next() } else { None }) else { break };
                    let batch = reader.rows(plan.file, plan.first, plan.rows).map_err(download_error)?;
                    current = Some((Arc::new(OpenShard::new(&layout, plan.id, batch)?), 0));
                    open += 1;
                }
                if let Some((shard, next)) = &mut current {
                    rows.spawn(one(Arc::clone(&shared), Arc::clone(shard), *next));
                    *next += 1;
                }
            }
            if rows.is_empty() && finishing.is_empty() {
                break;
            }
            tokio::select! {
                Some(row) = rows.join_next() => {
                    let (shard, is_stored, is_last) = row.map_err(panicked)??;
                    progress.done += 1;
                    progress.stored += usize::from(is_stored);
                    if is_last {
                        finishing.spawn_blocking(move || shard.finish());
                    }
                }
                Some(shard) = finishing.join_next() => {
                    let (stats, bytes) = shard.map_err(panicked)??;
                    stats.add_to(bytes, account);
                    open -= 1;
                }
                _ = tick.tick() => {
                    progress.log(&shared.fetcher);
                    control.checkpoint(STAGE, progress.done, progress.total)?;
                }
            }
        }
        control.checkpoint(STAGE, progress.done, progress.total)?;
        account.notes.push(format!(
            "{:.1} MB downloaded; at most {:.1} MB of it in memory at once",
            shared.fetcher.received() as f64 / 1e6,
            shared.fetcher.peak_memory() as f64 / 1e6
        ));
        let (orient, background) = (self.image.orient, self.image.background);
        let options = DecodeOptions { orient, background, ..DecodeOptions::default() };
        account.notes.extend(shared.notes.sentences(&options));
        Ok(())
    }

    fn shared(&self) -> Result<Shared> {
        Ok(Shared {
            fetcher: Fetcher::new(self.fetch.clone())?,
            image: self.image.clone(),
            hash: self.hash,
            exif: self.layout.exif,
            verify: self.layout.hash.filter(|_| self.layout.verifies),
            decoders: Arc::new(Semaphore::new(self.threads)),
            pixels: Budget::new(self.fetch.memory),
            notes: DecodeNotes::default(),
        })
    }
}

impl Progress {
    /// Tells rates of this run, now and then.
    fn log(&mut self, fetcher: &Fetcher) {
        if self.logged.elapsed() < LOG {
            return;
        }
        self.logged = Instant::now();
        let seconds = self.started.elapsed().as_secs_f64();
        let done = self.done - self.kept;
        tracing::info!(
            done = self.done,
            of = self.total,
            images_per_second = (done as f64 / seconds).round(),
            success_percent = (1000.0 * self.stored as f64 / done.max(1) as f64).round() / 10.0,
            megabytes_per_second = (fetcher.received() as f64 / seconds / 1e5).round() / 10.0,
            "downloading"
        );
    }
}

fn panicked(error: JoinError) -> Error {
    DownloadError::Stopped { detail: error.to_string() }.into()
}

/// One row: gets the image, works on it, and settles the row. Says whether an image was stored, and whether the
/// row was the shard's last.
async fn one(shared: Arc<Shared>, shard: Arc<OpenShard>, row: usize) -> Result<(Arc<OpenShard>, bool, bool)> {
    let outcome = match fetch(&shared, &shard, row).await {
        Ok(body) => develop(Arc::clone(&shared), Arc::clone(&shard), row, body).await?,
        Err(FetchError::Failed(failure)) => Outcome::Failed(failure),
        Err(FetchError::Fatal(error)) => return Err(error.into()),
    };
    let is_stored = matches!(outcome, Outcome::Stored(_));
    let is_last = shard.settle(row, outcome);
    Ok((shard, is_stored, is_last))
}

async fn fetch(shared: &Shared, shard: &OpenShard, row: usize) -> std::result::Result<Body, FetchError> {
    match shard.text("url", row) {
        Some(url) => shared.fetcher.fetch(&url).await,
        None => Err(FailureKind::BadUrl.into()),
    }
}

/// Works on the bytes in a thread that may take its time.
async fn develop(shared: Arc<Shared>, shard: Arc<OpenShard>, row: usize, body: Body) -> Result<Outcome> {
    let permit = Arc::clone(&shared.decoders).acquire_owned().await;
    let permit = permit.map_err(|e| DownloadError::Stopped { detail: e.to_string() })?;
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let handle = Handle::current();
        match finish_image(&shared, &shard, row, &body.bytes, &handle) {
            Ok((encoded, facts)) => shard.store(encoded.as_deref().unwrap_or(&body.bytes), facts),
            Err(failure) => Ok(Outcome::Failed(failure)),
        }
    });
    match work.await {
        // A decoder that an image brings down is that image's failure.
        Err(error) if error.is_panic() => Ok(Outcome::Failed(Failure::new(FailureKind::Undecodable, "decoder failed"))),
        result => result.map_err(panicked)?,
    }
}

/// The bytes for the shard, if they are not those that came, and the facts about the image.
fn finish_image(
    shared: &Shared,
    shard: &OpenShard,
    row: usize,
    bytes: &[u8],
    handle: &Handle,
) -> std::result::Result<(Option<Vec<u8>>, Facts), Failure> {
    let hash = checksum(shared.hash, bytes);
    if let Some(column) = shared.verify {
        let promised = shard.text(column, row).unwrap_or_default();
        if !hash.as_ref().is_some_and(|hash| hash.eq_ignore_ascii_case(promised.trim())) {
            return Err(FailureKind::HashMismatch.into());
        }
    }
    let (encoded, sizes, upright) = match shared.image.disable_all_reencoding {
        true => (None, None, false),
        false => {
            let opened = image::open(bytes, &shared.image)?;
            // This thread may wait: those that hold memory need nothing more to end.
            let _held = handle.block_on(shared.pixels.take(opened.memory(&shared.image)));
            let image = opened.finish(&shared.image)?;
            image.changed.iter().for_each(|changed| shared.notes.add(changed));
            (image.encoded, image.sizes, shared.image.orient && image.changed.is_some_and(|changed| changed.tagged))
        }
    };
    let exif = shared.exif.then(|| exif_text(bytes, upright)).filter(|text| text.len() <= LONGEST_EXIF);
    Ok((encoded, Facts { sizes, hash, exif }))
}

/// In hexadecimal.
fn checksum(kind: HashKind, bytes: &[u8]) -> Option<String> {
    fn hex(digest: impl AsRef<[u8]>) -> Option<String> {
        Some(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
    match kind {
        HashKind::None => None,
        HashKind::Md5 => hex(Md5::digest(bytes)),
        HashKind::Sha256 => hex(Sha256::digest(bytes)),
        HashKind::Sha512 => hex(Sha512::digest(bytes)),
    }
}
