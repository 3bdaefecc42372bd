//! The errors of fetching files.

use std::path::PathBuf;

use super::digest::{Digest, SumsError};

/// The reason for which something could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A name of no entry.
    #[error(
        "`{name}` is no entry, file or address{hint}. `fetch --list` prints the entries; for a repository write \
         models/{name} or datasets/{name}"
    )]
    UnknownName {
        /// As written.
        name: String,
        /// The entry that was probably meant.
        hint: String,
    },

    /// An address that cannot be fetched.
    #[error("`{url}`: {detail}")]
    BadAddress {
        /// As written.
        url: String,
        /// The reason.
        detail: String,
    },

    /// A server refuses access.
    #[error("{url} is refused (HTTP {status}): {hint}")]
    Refused {
        /// The address.
        url: String,
        /// The answer's status.
        status: u16,
        /// The remedy.
        hint: String,
    },

    /// A server does not have what was asked for.
    #[error("{url} does not exist (HTTP {status}): {hint}")]
    NotFound {
        /// The address.
        url: String,
        /// The answer's status.
        status: u16,
        /// The remedy.
        hint: String,
    },

    /// A server answers, but not with the file, however often it is asked.
    #[error("{url} failed {tries} times, the last time with HTTP {status}; try again later, what was fetched is kept")]
    ServerFailure {
        /// The address.
        url: String,
        /// The answer's status.
        status: u16,
        /// Number of attempts without progress.
        tries: u32,
    },

    /// No connection, or one that breaks again and again.
    #[error("{url} cannot be reached: {detail}; check the network and try again, what was fetched is kept")]
    Unreachable {
        /// The address.
        url: String,
        /// The network's error.
        detail: String,
    },

    /// A redirect that is not followed.
    #[error("{url} redirects to `{to}`, which is not followed: {why}")]
    Redirect {
        /// The address.
        url: String,
        /// Target of the redirect.
        to: String,
        /// The reason.
        why: &'static str,
    },

    /// A file whose checksum differs. It is removed.
    #[error(
        "{} has {} {found}, but {} was published: the copy is damaged or was exchanged, and was removed",
        path.display(), wanted.algorithm, wanted.hex
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Checksum that it should have.
        wanted: Digest,
        /// Checksum that it has.
        found: String,
    },

    /// A file of another length than published.
    #[error("{url} has {found} bytes, but {wanted} were published; it may have been exchanged")]
    WrongLength {
        /// The address.
        url: String,
        /// Length by the list.
        wanted: u64,
        /// Length by the server.
        found: u64,
    },

    /// The disk is too small.
    #[error("{} has {free} bytes free, {needed} are needed; make room, or choose another folder", folder.display())]
    TooLittleSpace {
        /// The folder to write.
        folder: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },

    /// A list of checksums that cannot be read.
    #[error("checksums of {list}: {source}")]
    BadSums {
        /// Path or address of the list.
        list: String,
        /// The fault.
        source: SumsError,
    },

    /// A list of checksums that does not fit the files.
    #[error("checksums of {list}: {detail}")]
    SumsDiffer {
        /// Path or address of the list.
        list: String,
        /// The contradiction, in words.
        detail: String,
    },

    /// A list of addresses that cannot be read.
    #[error("{list}, line {line}: {detail}")]
    BadList {
        /// Path of the list.
        list: String,
        /// Number of the line, from 1.
        line: usize,
        /// The fault, in words.
        detail: String,
    },

    /// An answer of a repository's server that makes no sense.
    #[error("{url} answers with something that is no list of files: {detail}")]
    BadListing {
        /// The address.
        url: String,
        /// The fault, in words.
        detail: String,
    },

    /// No file of a repository is wanted.
    #[error("none of the {files} files of {repository} matches {patterns}; `--pattern '*'` takes all")]
    NothingMatches {
        /// The repository.
        repository: String,
        /// Number of its files.
        files: usize,
        /// The patterns.
        patterns: String,
    },

    /// A file that is not in the cache while the network may not be used.
    #[error("{what} is not in the cache {}, and HF_HUB_OFFLINE forbids the network; unset it once to fetch", cache.display())]
    NotCached {
        /// Repository and revision, or file.
        what: String,
        /// The cache.
        cache: PathBuf,
    },

    /// An entry of which every source failed.
    #[error("no source of {name} works:{}", failures.iter().map(|failure| format!("\n  {failure}")).collect::<String>())]
    NoSource {
        /// The entry.
        name: String,
        /// The error of each source.
        failures: Vec<String>,
    },

    /// Some files could not be fetched; the others are there.
    #[error(
        "{failed} of {total} files could not be fetched; the others are complete, and a second run fetches only what \
         is missing:{}", failures.iter().map(|failure| format!("\n  {failure}")).collect::<String>()
    )]
    Incomplete {
        /// Number of files that failed.
        failed: usize,
        /// Number of files.
        total: usize,
        /// True if all of them failed because the server does not give them.
        unavailable: bool,
        /// The first errors.
        failures: Vec<String>,
    },
}

impl FetchError {
    /// True if the command line is to blame.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            FetchError::UnknownName { .. }
                | FetchError::BadAddress { .. }
                | FetchError::BadList { .. }
                | FetchError::NothingMatches { .. }
        )
    }
}
