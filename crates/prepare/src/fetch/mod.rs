//! The stage that fetches checkpoints and datasets: repositories, MLCommons' datasets, lists of addresses.
//!
//! Every file is written aside, continued where a killed run left it, verified against every checksum that was
//! published, and gets its name last. A second run looks at what is there and fetches the rest.

pub mod digest;
mod download;
mod entries;
mod error;
mod http;
mod hub;
mod journal;
mod lists;
mod mlcommons;

pub use error::FetchError;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use calotype_data::Control;
use url::Url;

use crate::names::nearest;
use crate::slices::SliceArgs;
use crate::{Account, Error, Result};
use digest::Digest;
use download::{How, Item, Plan, download, is_unavailable};
use entries::{Entry, Source};
use http::{Client, plain_hint};
use hub::{Hub, Repository, Wanted};

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct FetchArgs {
    /// Files to fetch: an entry of `--list`; a repository as models/ORG/NAME or datasets/ORG/NAME; an address of a file,
    /// in which {000..031} stands for numbers; an address of a folder (it ends in /) with --checksums; an address of
    /// MLCommons' that ends in .uri; @FILE, a list of addresses, one a line, each with an optional path to write.
    #[arg(required_unless_present = "list")]
    pub what: Option<String>,
    /// Folder to write [default: the entry's folder; for repositories the cache that Python tools share, see HF_HOME;
    /// else the present folder].
    pub out: Option<PathBuf>,
    /// Print the entries that can be fetched by name.
    #[arg(long)]
    pub list: bool,
    /// Branch, tag or commit of a repository [default: main].
    #[arg(long)]
    pub revision: Option<String>,
    /// Fetch only the files of a repository that match, as in '*.parquet'. Can be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub pattern: Vec<String>,
    /// Pass by the files of a repository that match. Can be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// File or address with checksums, as written by md5sum, sha1sum, sha256sum, sha512sum or BSD's tools.
    #[arg(long, value_name = "FILE")]
    pub checksums: Option<String>,
    /// Files that are fetched at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = calotype_core::numbers::count::<usize>)]
    pub parallel: usize,
    /// Requests without progress after which a file is given up.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = calotype_core::numbers::count::<u32>)]
    pub tries: u32,
    /// Seconds to wait after a first failure; each further one doubles them.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = calotype_core::numbers::not_negative)]
    pub pause: f64,
    /// Compute the checksums of files that are there already, even if they did not change since they were fetched.
    #[arg(long)]
    pub verify: bool,
    /// This process's slices of the files.
    #[command(flatten)]
    pub slices: SliceArgs,
}

/// Settings and clients that all sources of files need.
struct Context<'a> {
    args: &'a FetchArgs,
    hub: Hub,
    env: &'a dyn Fn(&str) -> Option<String>,
}

/// Fetches.
///
/// # Errors
/// [`Error::Fetch`], [`Error::Io`], and [`Error::Data`] if stopped.
pub fn run(args: &FetchArgs, control: &mut Control<'_>) -> Result<Account> {
    if args.list {
        return Ok(Account { notes: entries::table(), ..Account::new("fetch") });
    }
    let started = Instant::now();
    let what = args.what.as_deref().unwrap_or_default();
    if args.parallel == 0 || args.tries == 0 {
        return Err(Error::Usage("--parallel and --tries have to be at least 1".to_owned()));
    }
    let env = |name: &str| std::env::var(name).ok();
    let context = Context { args, hub: Hub::from_env(&env)?, env: &env };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(args.parallel.clamp(1, 16))
        .build()
        .map_err(Error::io("start threads to fetch", Path::new(what)))?;
    let mut account = runtime.block_on(context.fetch(what, control))?;
    account.seconds = started.elapsed().as_secs_f64();
    Ok(account)
}

/// Waits for `future`, but not any longer when the stage should stop.
async fn until_stopped<T>(future: impl Future<Output = Result<T>>, control: &mut Control<'_>) -> Result<T> {
    tokio::pin!(future);
    loop {
        tokio::select! {
            result = &mut future => return result,
            () = tokio::time::sleep(Duration::from_millis(200)) => control.checkpoint("fetch", 0, 0)?,
        }
    }
}

impl Context<'_> {
    fn client(&self) -> Result<Client> {
        let pause = Duration::try_from_secs_f64(self.args.pause)
            .map_err(|_| Error::Usage(format!("--pause {} is no time", self.args.pause)))?;
        Ok(Client::new(self.args.tries, pause)?)
    }

    async fn fetch(&self, what: &str, control: &mut Control<'_>) -> Result<Account> {
        let out = self.args.out.as_deref();
        if let Some(entry) = entries::entries().iter().find(|entry| entry.name == what) {
            return self.entry(entry, control).await;
        }
        if let Some(repository) = Repository::parse(what, &self.hub.endpoint) {
            let wanted = Wanted::new(&self.args.pattern, &self.args.exclude)?;
            let repository = repository.at(self.args.revision.as_deref())?;
            return self.repository(&repository, &wanted, out, &[], control).await;
        }
        if let Some(url) = uri(what) {
            return self.mlcommons(&url, out, &[], control).await;
        }
        if !what.contains("://") && !what.starts_with('@') && !Path::new(what).exists() {
            let near = nearest(what, entries::entries().iter().map(|entry| entry.name.as_str()));
            let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            return Err(FetchError::UnknownName { name: what.to_owned(), hint }.into());
        }
        self.addresses(what, out.unwrap_or(Path::new(".")), control).await
    }

    /// The first source of an entry that works.
    async fn entry(&self, entry: &Entry, control: &mut Control<'_>) -> Result<Account> {
        let own = entry.folder.as_deref().map(Path::new);
        let out = self.args.out.as_deref().or(own);
        let parse = |(path, digest): (&String, &String)| Some((path.clone(), Digest::parse(digest)?));
        let checks: Vec<(String, Digest)> = entry.checks.iter().filter_map(parse).collect();
        let mut failures = Vec::new();
        for source in &entry.source {
            match self.source(source, out, &checks, control).await {
                Ok(mut account) => {
                    account
                        .notes
                        .extend(failures.iter().map(|failure| format!("another source did not work: {failure}")));
                    return Ok(account);
                }
                Err(error) if is_unavailable(&error) => {
                    tracing::warn!("{error}");
                    failures.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Err(FetchError::NoSource { name: entry.name.clone(), failures }.into())
    }

    async fn source(
        &self,
        source: &Source,
        out: Option<&Path>,
        checks: &[(String, Digest)],
        control: &mut Control<'_>,
    ) -> Result<Account> {
        if let Some(repository) =
            source.repository.as_deref().and_then(|text| Repository::parse(text, &self.hub.endpoint))
        {
            let revision = self.args.revision.as_deref().or(source.revision.as_deref());
            let include = if self.args.pattern.is_empty() { &source.include } else { &self.args.pattern };
            let exclude = [source.exclude.as_slice(), &self.args.exclude].concat();
            let wanted = Wanted::new(include, &exclude)?;
            return self.repository(&repository.at(revision)?, &wanted, out, checks, control).await;
        }
        if let Some(url) = source.uri.as_deref().and_then(uri) {
            return self.mlcommons(&url, out, checks, control).await;
        }
        let out = out.unwrap_or(Path::new("."));
        let mut items = Vec::new();
        for file in &source.files {
            for url in lists::expand(&file.url)? {
                items.push(Item { size: file.size, ..lists::item(&url, file.path.as_deref(), out)? });
            }
        }
        self.files(self.hub.authorize(self.client()?), items, out, checks, control).await
    }

    async fn repository(
        &self,
        repository: &Repository,
        wanted: &Wanted,
        out: Option<&Path>,
        checks: &[(String, Digest)],
        control: &mut Control<'_>,
    ) -> Result<Account> {
        if let Some(account) = self.hub.offline(repository, wanted) {
            return account;
        }
        let plan = until_stopped(self.hub.plan(self.client()?, repository, wanted, out), control).await?;
        self.download(plan, checks, control).await
    }

    async fn mlcommons(
        &self,
        url: &Url,
        out: Option<&Path>,
        checks: &[(String, Digest)],
        control: &mut Control<'_>,
    ) -> Result<Account> {
        let client = mlcommons::prepare(self.client()?, url, self.env);
        let (items, out) = until_stopped(mlcommons::list(&client, url, out), control).await?;
        self.files(client, items, &out, checks, control).await
    }

    /// Single addresses, lists of them, and local files.
    async fn addresses(&self, what: &str, out: &Path, control: &mut Control<'_>) -> Result<Account> {
        let client = self.hub.authorize(self.client()?);
        let sums = match &self.args.checksums {
            Some(list) => Some((list, until_stopped(lists::read_sums(&client, list), control).await?)),
            None => None,
        };
        let mut items = match (what.strip_prefix('@'), &sums) {
            (Some(list), _) => lists::read_list(Path::new(list), out)?,
            (None, Some((list, sums))) if what.ends_with('/') => lists::listed(what, list, sums, out)?,
            (None, _) => {
                let addresses = lists::expand(what)?;
                addresses.iter().map(|address| lists::item(address, None, out)).collect::<Result<_>>()?
            }
        };
        if let Some((list, sums)) = sums.as_ref().filter(|_| !what.ends_with('/')) {
            lists::apply_sums(&mut items, list, sums)?;
        }
        self.files(client, items, out, &[], control).await
    }

    async fn files(
        &self,
        client: Client,
        items: Vec<Item>,
        out: &Path,
        checks: &[(String, Digest)],
        control: &mut Control<'_>,
    ) -> Result<Account> {
        let (folder, explain) = (out.to_path_buf(), std::sync::Arc::new(plain_hint));
        let notes = vec![format!("written to {}", folder.display())];
        self.download(Plan { client, items, folder, journal: true, explain, notes }, checks, control).await
    }

    /// Fetches this job's part of a plan.
    async fn download(
        &self,
        mut plan: Plan,
        checks: &[(String, Digest)],
        control: &mut Control<'_>,
    ) -> Result<Account> {
        for (path, digest) in checks {
            match plan.items.iter_mut().find(|item| item.name == *path) {
                Some(item) if item.digests.contains(digest) => {}
                Some(item) => item.digests.push(digest.clone()),
                None => plan.notes.push(format!("{path}, of which a checksum was published, is not among the files")),
            }
        }
        let without = plan.items.iter().filter(|item| item.digests.is_empty()).count();
        if without > 0 {
            plan.notes.push(format!("{without} files have no published checksum: their lengths alone were compared"));
        }
        let count = plan.items.len();
        let mine: Vec<bool> = {
            let mut mine = vec![false; count];
            for slice in self.args.slices.slices()? {
                mine[slice.range(count)].fill(true);
            }
            mine
        };
        let mut mine = mine.into_iter();
        plan.items.retain(|_| mine.next().unwrap_or(false));
        let how = How { parallel: self.args.parallel, verify: self.args.verify };
        download(plan, how, control).await
    }
}

/// The address of a dataset of MLCommons'.
fn uri(what: &str) -> Option<Url> {
    Url::parse(what).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.path().ends_with(".uri"))
}
