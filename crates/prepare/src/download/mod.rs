//! The stage that downloads the images of a list into webdataset shards, as img2dataset does.
//!
//! ```text
//! 00000.tar           000000000.jpg, 000000000.json, 000000000.txt, 000000001.jpg, ...
//! 00000.parquet       the same facts of every row of the shard, failures with their reasons included
//! 00000_stats.json    counts; written last, it marks the shard as done
//! .download/          settings.json; timings/00000.json: when, how long, how many bytes
//! ```
//!
//! Names, keys, columns and options are img2dataset's (github.com/rom1504/img2dataset, 1.41 to 1.47). Different are:
//!
//! - Samples are in the list's order, tar headers carry no time or user, and times are kept apart: the
//!   shards, tables and statistics are functions of list, settings and the servers' answers alone.
//! - An image that is not resized and has the format already keeps its bytes, unless told otherwise.
//! - Resizing is Pillow's; WebP is written without loss; grey images become RGB.
//! - Reasons of failures are a closed set of kinds ([`FailureKind`]), not the texts of a library.
//! - Private addresses, endless redirects, long bodies and image bombs are refused: a list is untrusted input.
//! - The bytes of a body decide whether it is an image, not the server's content type; content codings are undone.
//! - Captions and URLs that look like numbers stay text. JSON parts are UTF-8 without escapes, not-a-number is null.
//!
//! Shards are the unit of work and of restarts: a shard's images come in any order into a file aside; when the last
//! one is there, tar, table and statistics are written in the list's order and renamed.

mod address;
pub mod bench;
mod budget;
mod client;
pub mod coding;
mod exif;
mod failure;
mod image;
pub mod list;
mod robots;
mod shard;
mod work;

use std::path::{Path, PathBuf};
use std::time::Duration;

use calotype_data::Control;
use calotype_data::files::{read_json, write_json};
use calotype_data::source::CaptionChoice;
use clap::builder::BoolishValueParser;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use address::is_public;
pub use failure::{Failure, FailureKind};
pub use image::{EncodeFormat, Interpolation, ResizeMode};

use crate::convert::Captions;
use crate::paths::check_out;
use crate::pixels::PixelArgs;
use crate::slices::{SliceArgs, run_slices};
use crate::words::counted;
use crate::{Account, Error, Result};
use client::FetchOptions;
use image::ImageOptions;
use list::{Holds, ImageList, ListError, ListFormat, Reading, Wanted};

/// Name of the stage in accounts.
const STAGE: &str = "download";

/// Folder, in the output, of the files that are no part of the dataset.
const ASIDE: &str = ".download";

/// Names that samples use for their own facts.
const RESERVED: [&str; 13] = [
    "key",
    "caption",
    "url",
    "width",
    "height",
    "original_width",
    "original_height",
    "status",
    "error_message",
    "exif",
    "md5",
    "sha256",
    "sha512",
];

/// The reason for which the stage could not do its work. Faults of single images are no error, but counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The list cannot be used.
    #[error(transparent)]
    List(#[from] Box<ListError>),

    /// No HTTP client can be made of the settings.
    #[error("no HTTP client with these settings (user agent, proxy): {source}")]
    Client {
        /// The client's error.
        source: reqwest::Error,
    },

    /// The folder holds shards that were made from another list or with other settings.
    #[error(
        "folder {} holds shards of another run (there, {what} is {found}; now {expected}); \
         choose another folder, or remove it",
        path.display()
    )]
    OtherSettings {
        /// The folder.
        path: PathBuf,
        /// Name of the setting that differs.
        what: String,
        /// Value of this run.
        expected: String,
        /// Value there.
        found: String,
    },

    /// The folder holds shards that this stage has not written.
    #[error("folder {} holds {found}, which this stage has not written; choose another folder", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
        /// The file that is in the way.
        found: String,
    },

    /// No more sockets.
    #[error("too many open files ({detail}); raise the limit (`ulimit -n`) or lower --thread-count")]
    TooManyFiles {
        /// The system's error.
        detail: String,
    },

    /// Not one image came of the whole list.
    #[error(
        "{account}\nnot one of {} could be used: check the addresses and the network; the rows count as done, so remove {} to \
         ask for them again",
        counted(account.taken, "image"),
        out.display()
    )]
    Nothing {
        /// What was left out, by reason.
        account: Box<Account>,
        /// The output folder.
        out: PathBuf,
    },

    /// Part of the program ended too early.
    #[error("a part of the download stage stopped working: {detail}")]
    Stopped {
        /// The facts that are known of it.
        detail: String,
    },
}

impl DownloadError {
    /// True if the command line is to blame.
    pub fn is_usage(&self) -> bool {
        match self {
            DownloadError::List(error) => error.is_usage(),
            DownloadError::Client { .. } | DownloadError::OtherSettings { .. } | DownloadError::FolderInUse { .. } => {
                true
            }
            _ => false,
        }
    }
}

/// Checksums of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum HashKind {
    /// No checksum.
    None,
    /// MD5.
    Md5,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl HashKind {
    /// Name of the column; `None` if there is none.
    fn column(self) -> Option<&'static str> {
        match self {
            HashKind::None => None,
            HashKind::Md5 => Some("md5"),
            HashKind::Sha256 => Some("sha256"),
            HashKind::Sha512 => Some("sha512"),
        }
    }
}

/// Settings of the stage. Options have img2dataset's names; its spelling with underscores is understood as well.
#[derive(Clone, Debug, clap::Args)]
pub struct DownloadArgs {
    /// List of images: a parquet, csv, tsv, jsonl or txt file, or a folder of them.
    pub list: PathBuf,
    /// Folder for the shards.
    pub out: PathBuf,

    /// Format of the list [default: by the files' names].
    #[arg(long, alias = "input_format", value_enum, value_name = "FORMAT")]
    pub input_format: Option<ListFormat>,
    /// Column of the addresses.
    #[arg(long, alias = "url_col", default_value = "url", value_name = "COLUMN")]
    pub url_col: String,
    /// Column of the captions; without it, samples have no text.
    #[arg(long, alias = "caption_col", value_name = "COLUMN")]
    pub caption_col: Option<String>,
    /// Choice among several captions of an image (lists in jsonl and parquet): first; or random, by --caption-seed and the
    /// image's number. All of them stay in the samples' JSON and in the tables.
    #[arg(long, value_enum, default_value = "first", value_name = "CHOICE")]
    pub captions: Captions,
    /// Seed of --captions random.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub caption_seed: u64,
    /// Other columns to keep in the samples' JSON and in the tables, with commas between them.
    #[arg(long, alias = "save_additional_columns", value_delimiter = ',', value_name = "COLUMNS")]
    pub save_additional_columns: Vec<String>,

    /// Leave out rows of text lists that cannot be read, and count them, instead of stopping before anything is done.
    #[arg(long)]
    pub skip_bad: bool,
    /// Take quotes in csv and tsv lists for letters like others, as lists need that were written without quoting.
    #[arg(long)]
    pub no_quotes: bool,

    /// Method of bringing images to size.
    #[arg(long, alias = "resize_mode", value_enum, default_value = "border", value_name = "MODE")]
    pub resize_mode: ResizeMode,
    /// The size, in pixels.
    #[arg(long, alias = "image_size", default_value_t = 256, value_name = "PIXELS",
          value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub image_size: u32,
    /// Leave images that are not bigger than the size as they are.
    #[arg(long, alias = "resize_only_if_bigger", default_value_t = false, action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub resize_only_if_bigger: bool,
    /// Filter to enlarge with.
    #[arg(long, alias = "upscale_interpolation", value_enum, default_value = "lanczos", value_name = "FILTER")]
    pub upscale_interpolation: Interpolation,
    /// Filter to shrink with.
    #[arg(long, alias = "downscale_interpolation", value_enum, default_value = "area", value_name = "FILTER")]
    pub downscale_interpolation: Interpolation,
    /// Format of the images in the shards.
    #[arg(long, alias = "encode_format", value_enum, default_value = "jpg", value_name = "FORMAT")]
    pub encode_format: EncodeFormat,
    /// Quality of JPEG, 1 to 100 [default: 95], or compression of PNG, 0 to 9 [default: 6]. WebP is without loss.
    #[arg(long, alias = "encode_quality", value_name = "N")]
    pub encode_quality: Option<u8>,
    /// Keep an image's bytes where it is not resized and has the format already. `--skip-reencode=false` encodes
    /// everything anew, as img2dataset does unless told otherwise.
    #[arg(long, alias = "skip_reencode", default_value_t = true, action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub skip_reencode: bool,
    /// Keep all bytes as they come, without a look at them: not even whether they are an image.
    #[arg(long, alias = "disable_all_reencoding", default_value_t = false, action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub disable_all_reencoding: bool,
    /// Leave out images with a shorter side below this, in pixels.
    #[arg(long, alias = "min_image_size", default_value_t = 0, value_name = "PIXELS")]
    pub min_image_size: u32,
    /// Leave out images with more pixels than this [default: no limit but --max-image-pixels].
    #[arg(long, alias = "max_image_area", value_name = "PIXELS", value_parser = calotype_core::numbers::not_negative)]
    pub max_image_area: Option<f64>,
    /// Leave out images whose longer side is more than this many times the shorter one.
    #[arg(long, alias = "max_aspect_ratio", value_name = "RATIO", value_parser = calotype_core::numbers::not_negative)]
    pub max_aspect_ratio: Option<f64>,
    /// Do not even decode images with more pixels than this.
    #[arg(long, default_value_t = 89_478_485, value_name = "PIXELS",
          value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    pub max_image_pixels: u64,
    /// What is made of orientation and transparency where images are encoded anew.
    #[command(flatten)]
    pub pixels: PixelArgs,
    /// Keep the EXIF fields in the samples' JSON.
    #[arg(long, alias = "extract_exif", default_value_t = true, action = clap::ArgAction::Set,
          value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub extract_exif: bool,
    /// Checksum of the downloaded bytes to keep in the samples' JSON.
    #[arg(long, alias = "compute_hash", value_enum, default_value = "sha256", value_name = "KIND")]
    pub compute_hash: HashKind,
    /// Leave out images whose checksum is not that in a column of the list: `--verify-hash COLUMN sha256`. The kind
    /// has to be that of --compute-hash.
    #[arg(long, alias = "verify_hash", num_args = 2, value_names = ["COLUMN", "KIND"])]
    pub verify_hash: Option<Vec<String>>,

    /// Rows of the list in a shard.
    #[arg(long, alias = "number_sample_per_shard", default_value_t = 10_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub number_sample_per_shard: u32,
    /// Digits of a shard's number in names and keys.
    #[arg(long, alias = "oom_shard_count", default_value_t = 5, value_name = "DIGITS",
          value_parser = clap::value_parser!(u8).range(1..=10))]
    pub oom_shard_count: u8,

    /// Requests under way at once.
    #[arg(long, visible_alias = "concurrency", alias = "thread_count", default_value_t = 256, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub thread_count: u32,
    /// Requests under way at once at one host.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub per_host: u32,
    /// Threads that decode and encode [default: the processor's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub decode_threads: Option<u32>,
    /// Other tries after a failure that may pass: no answer, a broken connection, status 429 or 5xx.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub retries: u32,
    /// Wait before the second try, in seconds; it doubles with each, with some spread. What a server asks for by
    /// Retry-After goes before, up to a minute.
    #[arg(long, default_value_t = 0.5, value_name = "SECONDS", value_parser = calotype_core::numbers::not_negative)]
    pub backoff: f64,
    /// Time for one try, redirects and body included, in seconds.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = calotype_core::numbers::not_negative)]
    pub timeout: f64,
    /// Time for a connection to be made, in seconds.
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS", value_parser = calotype_core::numbers::not_negative)]
    pub connect_timeout: f64,
    /// Longest image file, in bytes.
    #[arg(long, default_value_t = 32 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    pub max_bytes: u64,
    /// Memory for downloaded files, and as much again for decoded images, in MiB.
    #[arg(long, default_value_t = 512, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub memory: u64,

    /// User-Agent of the requests.
    #[arg(long, default_value = concat!("Mozilla/5.0 (compatible; calotype/", env!("CARGO_PKG_VERSION"), ")"), value_name = "TEXT")]
    pub user_agent: String,
    /// Name by which a server's X-Robots-Tag may address this program.
    #[arg(long, alias = "user_agent_token", default_value = "calotype", value_name = "NAME")]
    pub user_agent_token: String,
    /// Directives of X-Robots-Tag that are honoured, with commas between them; "" honours none.
    #[arg(
        long,
        alias = "disallowed_header_directives",
        value_delimiter = ',',
        default_value = "noai,noimageai,noindex,noimageindex",
        value_name = "DIRECTIVES"
    )]
    pub disallowed_header_directives: Vec<String>,
    /// Also ask private, loopback and other special addresses. A list from elsewhere can then reach whatever this
    /// machine can.
    #[arg(long)]
    pub allow_private: bool,
    /// Proxy for all requests. It resolves the names, so it has to guard its own network. Without this, no proxy is
    /// used, whatever the environment says.
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,

    /// This process's slices of the shards.
    #[command(flatten)]
    pub slices: SliceArgs,
}

/// Settings that the shards depend on, besides the servers' answers: kept in the output folder, so that runs with other
/// settings do not mix.
#[derive(Serialize)]
struct Settings<'a> {
    list: &'a [list::ListFile],
    columns: &'a [Wanted],
    #[serde(skip_serializing_if = "is_usual")]
    captions: CaptionChoice,
    #[serde(skip_serializing_if = "is_usual")]
    reading: Reading,
    number_sample_per_shard: u32,
    oom_shard_count: u8,
    image: &'a ImageOptions,
    max_bytes: u64,
    extract_exif: bool,
    compute_hash: HashKind,
    verify_hash: bool,
    user_agent_token: &'a str,
    disallowed_header_directives: &'a [String],
    allow_private: bool,
}

/// Settings that came later are not recorded unless they are used, for the sake of older folders.
fn is_usual<T: Default + PartialEq>(setting: &T) -> bool {
    *setting == T::default()
}

/// The record of [`Settings`] in the output folder.
#[derive(Deserialize)]
struct Recorded(serde_json::Map<String, Value>);

/// Downloads.
///
/// # Errors
/// [`Error::Usage`] for settings that make no sense, [`Error::Download`] (among others because every image failed),
/// [`Error::Data`] (stopped on request), and [`Error::Io`] if the shards cannot be written.
pub fn run(args: &DownloadArgs, control: &mut Control<'_>) -> Result<Account> {
    let wanted = wanted_columns(args)?;
    let image = image_options(args)?;
    let fetch = fetch_options(args)?;
    let reading = Reading { skip_bad: args.skip_bad, no_quotes: args.no_quotes };
    let captions = args.captions.choice(args.caption_seed)?;
    if captions != CaptionChoice::First && args.caption_col.is_none() {
        return Err(Error::Usage("--captions random has no effect without --caption-col COLUMN".to_owned()));
    }
    let list = ImageList::open(&args.list, args.input_format, &wanted, reading).map_err(download_error)?;
    let settings = Settings {
        list: list.files(),
        columns: &wanted,
        captions,
        reading,
        number_sample_per_shard: args.number_sample_per_shard,
        oom_shard_count: args.oom_shard_count,
        image: &image,
        max_bytes: fetch.max_bytes,
        extract_exif: args.extract_exif,
        compute_hash: args.compute_hash,
        verify_hash: args.verify_hash.is_some(),
        user_agent_token: &fetch.robot,
        disallowed_header_directives: &fetch.directives,
        allow_private: fetch.allow_private,
    };
    claim_folder(&args.out, &settings)?;
    let layout = shard::Layout {
        folder: args.out.clone(),
        aside: args.out.join(ASIDE),
        samples: args.number_sample_per_shard as usize,
        shard_digits: usize::from(args.oom_shard_count),
        extension: image.format.extension(),
        hash: args.compute_hash.column(),
        verifies: args.verify_hash.is_some(),
        exif: args.extract_exif,
        captions: args.caption_col.as_ref().map(|_| captions),
    };
    let threads = args.decode_threads.map_or_else(processors, |threads| threads as usize);
    let job = work::Job { list: &list, layout, image: &image, fetch: &fetch, hash: args.compute_hash, threads };
    let shards = job.plan();
    let mut account = run_slices(&args.slices, STAGE, &args.out, &settings, control, |slice, control| {
        job.run(&shards[slice.range(shards.len())], control)
    })?;
    let bad = list.files().iter().map(|file| file.bad_rows).sum::<u64>();
    if bad > 0 {
        account.notes.push(format!("{} of the list cannot be read: left out", counted(bad, "row")));
    }
    match account.written == 0 && account.taken > 0 {
        true => Err(DownloadError::Nothing { account: Box::new(account), out: args.out.clone() }.into()),
        false => Ok(account),
    }
}

fn download_error(error: ListError) -> Error {
    DownloadError::List(Box::new(error)).into()
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The columns in img2dataset's order, by their names in samples.
fn wanted_columns(args: &DownloadArgs) -> Result<Vec<Wanted>> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for column in &args.save_additional_columns {
        if RESERVED.contains(&column.as_str()) {
            let detail = format!(
                "column `{column}` cannot be kept by --save-additional-columns: samples have a fact of that name"
            );
            return Err(Error::Usage(detail));
        }
        wanted.push(Wanted { column: column.clone(), name: column.clone(), holds: Holds::Anything });
    }
    if let Some(column) = &args.caption_col {
        wanted.push(Wanted { column: column.clone(), name: "caption".to_owned(), holds: Holds::Caption });
    }
    if let Some([column, kind]) = args.verify_hash.as_deref() {
        match args.compute_hash.column() {
            Some(computed) if computed == kind => {}
            _ => return Err(Error::Usage(format!("--verify-hash {column} {kind} needs --compute-hash {kind}"))),
        }
        wanted.push(Wanted { column: column.clone(), name: kind.clone(), holds: Holds::Text });
    }
    wanted.push(Wanted { column: args.url_col.clone(), name: "url".to_owned(), holds: Holds::Text });
    for (at, one) in wanted.iter().enumerate() {
        if wanted[..at].iter().any(|other| other.name == one.name || other.column == one.column) {
            return Err(Error::Usage(format!("column `{}` is named twice", one.column)));
        }
    }
    Ok(wanted)
}

fn image_options(args: &DownloadArgs) -> Result<ImageOptions> {
    let quality = match (args.encode_format, args.encode_quality) {
        (EncodeFormat::Jpg, quality) => quality.unwrap_or(95),
        (EncodeFormat::Png, quality) => quality.unwrap_or(6),
        (EncodeFormat::Webp, None) => 100,
        (EncodeFormat::Webp, Some(_)) => {
            return Err(Error::Usage("WebP is written without loss; leave --encode-quality out".to_owned()));
        }
    };
    let (range, name) = match args.encode_format {
        EncodeFormat::Png => (0..=9, "png"),
        _ => (1..=100, "jpg"),
    };
    if !range.contains(&quality) {
        let (low, high) = range.into_inner();
        return Err(Error::Usage(format!("--encode-quality {quality}: for {name} it is {low} to {high}")));
    }
    let max_area = args.max_image_area.unwrap_or(f64::MAX);
    let max_aspect = args.max_aspect_ratio.unwrap_or(f64::MAX);
    if !(max_area > 0.0 && max_aspect >= 1.0) {
        return Err(Error::Usage("--max-image-area has to be above 0, --max-aspect-ratio at least 1".to_owned()));
    }
    Ok(ImageOptions {
        mode: args.resize_mode,
        size: args.image_size,
        only_if_bigger: args.resize_only_if_bigger,
        upscale: args.upscale_interpolation,
        downscale: args.downscale_interpolation,
        format: args.encode_format,
        quality,
        skip_reencode: args.skip_reencode,
        disable_all_reencoding: args.disable_all_reencoding,
        min_size: args.min_image_size,
        max_area,
        max_aspect,
        max_pixels: args.max_image_pixels,
        orient: args.pixels.options().orient,
        background: args.pixels.options().background,
    })
}

fn fetch_options(args: &DownloadArgs) -> Result<FetchOptions> {
    let seconds = |name: &str, seconds: f64| match Duration::try_from_secs_f64(seconds) {
        Ok(time) if seconds <= 86_400.0 => Ok(time),
        _ => Err(Error::Usage(format!("{name} {seconds} is no time between 0 and a day"))),
    };
    let lower = |text: &String| text.trim().to_lowercase();
    let concurrency = args.thread_count as usize;
    raise_file_limit(concurrency);
    Ok(FetchOptions {
        user_agent: args.user_agent.clone(),
        robot: lower(&args.user_agent_token),
        directives: args.disallowed_header_directives.iter().map(lower).filter(|one| !one.is_empty()).collect(),
        concurrency,
        per_host: args.per_host as usize,
        retries: args.retries,
        backoff: seconds("--backoff", args.backoff)?,
        connect_timeout: seconds("--connect-timeout", args.connect_timeout)?,
        timeout: seconds("--timeout", args.timeout)?,
        max_bytes: args.max_bytes,
        memory: args.memory << 20,
        allow_private: args.allow_private,
        proxy: args.proxy.clone(),
    })
}

/// Each request has a socket, and connections wait for a few seconds for more of them; many systems begin with 1024.
fn raise_file_limit(concurrency: usize) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let wanted = 8 * concurrency as u64 + 256;
    let raise = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        match soft < wanted {
            true => setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard),
            false => Ok(()),
        }
    };
    if let Err(error) = raise() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Makes the folder, or makes sure that it belongs to a run of the same list and settings.
fn claim_folder(out: &Path, settings: &Settings<'_>) -> Result<()> {
    let aside = out.join(ASIDE);
    let path = aside.join("settings.json");
    let now = serde_json::to_value(settings).map_err(|e| Error::Usage(format!("settings: {e}")))?;
    let Some(Recorded(there)) = read_json::<Recorded>(&path)? else {
        check_out(out)?;
        refuse_foreign_shards(out)?;
        std::fs::create_dir_all(&aside).map_err(Error::io("create folder", &aside))?;
        return Ok(write_json(&path, &now)?);
    };
    let now = now.as_object().cloned().unwrap_or_default();
    // Usual settings are recorded in neither.
    let mut names = now.keys().chain(there.keys());
    match names.find(|name| now.get(*name) != there.get(*name)) {
        None => Ok(()),
        Some(what) => {
            let (what, expected, found) = difference(what, now.get(what), there.get(what));
            Err(DownloadError::OtherSettings { path: out.to_path_buf(), what, expected, found }.into())
        }
    }
}

/// The first difference inside of two values: its name, the value now, the value there.
fn difference(name: &str, now: Option<&Value>, there: Option<&Value>) -> (String, String, String) {
    match (now, there) {
        (Some(Value::Object(now)), Some(Value::Object(there))) => {
            let inner = now.iter().find(|(name, value)| there.get(*name) != Some(value));
            inner.map_or_else(
                || (name.to_owned(), "another".to_owned(), "another".to_owned()),
                |(inner, value)| difference(&format!("{name}.{inner}"), Some(value), there.get(inner)),
            )
        }
        (Some(Value::Array(now)), Some(Value::Array(there))) if now.len() == there.len() => {
            let inner = (0..now.len()).find(|at| now[*at] != there[*at]).unwrap_or_default();
            difference(&format!("{name}[{inner}]"), now.get(inner), there.get(inner))
        }
        (now, there) => {
            let text = |value: Option<&Value>| {
                value.map_or_else(
                    || "not set".to_owned(),
                    |value| {
                        // A list of a thousand files is no message.
                        value.to_string().chars().take(200).collect()
                    },
                )
            };
            (name.to_owned(), text(now), text(there))
        }
    }
}

fn refuse_foreign_shards(out: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("list", out)(e)),
    };
    for entry in entries {
        let name = entry.map_err(Error::io("list", out))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".tar") || name.ends_with("_stats.json") {
            return Err(DownloadError::FolderInUse { path: out.to_path_buf(), found: name }.into());
        }
    }
    Ok(())
}
