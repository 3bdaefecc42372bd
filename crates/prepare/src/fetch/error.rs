//! What can go wrong while files are fetched.

use std::path::PathBuf;

use super::digest::{Digest, SumsError};

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A name that stands for nothing.
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
        /// Why not.
        detail: String,
    },

    /// A server refuses access.
    #[error("{url} is refused (HTTP {status}): {hint}")]
    Refused {
        /// The address.
        url: String,
        /// The answer's status.
        status: u16,
        /// What to do.
        hint: String,
    },

    /// A server does not have what was asked for.
    #[error("{url} does not exist (HTTP {status}): {hint}")]
    NotFound {
        /// The address.
        url: String,
        /// The answer's status.
        status: u16,
        /// What to do.
        hint: String,
    },

    /// A server answers, but not with the file, however often it is asked.
    #[error("{url} failed {tries} times, the last time with HTTP {status}; try again later, what was fetched is kept")]
    ServerFailure {
        /// The address.
        url: String,
        /// The answer's status.
        status: u16,
        /// How often it was asked without progress.
        tries: u32,
    },

    /// No connection, or one that breaks again and again.
    #[error("{url} cannot be reached: {detail}; check the network and try again, what was fetched is kept")]
    Unreachable {
        /// The address.
        url: String,
        /// What the network says.
        detail: String,
    },

    /// A redirect that is not followed.
    #[error("{url} redirects to `{to}`, which is not followed: {why}")]
    Redirect {
        /// The address.
        url: String,
        /// Where to.
        to: String,
        /// Why not.
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
        /// What it should have.
        wanted: Digest,
        /// What it has.
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
        /// What is wrong with it.
        source: SumsError,
    },

    /// A list of checksums that does not fit the files.
    #[error("checksums of {list}: {detail}")]
    SumsDiffer {
        /// Path or address of the list.
        list: String,
        /// What does not fit.
        detail: String,
    },

    /// A list of addresses that cannot be read.
    #[error("{list}, line {line}: {detail}")]
    BadList {
        /// Path of the list.
        list: String,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },

    /// An answer of a repository's server that makes no sense.
    #[error("{url} answers with something that is no list of files: {detail}")]
    BadListing {
        /// The address.
        url: String,
        /// What is wrong with it.
        detail: String,
    },

    /// No file of a repository is wanted.
    #[error("none of the {files} files of {repository} matches {patterns}; `--pattern '*'` takes all")]
    NothingMatches {
        /// The repository.
        repository: String,
        /// How many files it has.
        files: usize,
        /// The patterns.
        patterns: String,
    },

    /// The cache does not have it, and the network may not be used.
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
        /// What each source says.
        failures: Vec<String>,
    },

    /// Some files could not be fetched; the others are there.
    #[error(
        "{failed} of {total} files could not be fetched; the others are complete, and a second run fetches only what \
         is missing:{}", failures.iter().map(|failure| format!("\n  {failure}")).collect::<String>()
    )]
    Incomplete {
        /// How many failed.
        failed: usize,
        /// How many there are.
        total: usize,
        /// Whether all of them failed because the server does not give them.
        unavailable: bool,
        /// What the first ones say.
        failures: Vec<String>,
    },
}

impl FetchError {
    /// Whether the command line is to blame.
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
