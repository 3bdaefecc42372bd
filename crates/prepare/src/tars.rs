//! Tools of the stages that read shards: finding tar files, and keeping a few of them open.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use calotype_data::source::{self, SourceKind};
use calotype_data::webdataset::{TarShard, is_shard_name, refuse_packed};
use walkdir::WalkDir;

use crate::{Error, Result};

/// The suffix that NeMo adds to the name of a shard, as an empty file beside it, to say that it is not full.
pub const INCOMPLETE: &str = ".INCOMPLETE";

/// A tar file that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundTar {
    /// Its name below the folder that was searched, with `/` between folders; the file's own name if it was given itself.
    pub name: String,
    /// Path of the file.
    pub path: PathBuf,
    /// Length, in bytes.
    pub bytes: u64,
}

impl FoundTar {
    /// The folders that may have lists about it, with its name below each: the one that was searched, and its own.
    pub fn homes(&self) -> [(&Path, &str); 2] {
        let mut searched = self.path.as_path();
        for _ in self.name.split('/') {
            searched = searched.parent().unwrap_or(Path::new(""));
        }
        let own = self.path.parent().unwrap_or(Path::new(""));
        [(searched, &self.name), (own, self.name.rsplit('/').next().unwrap_or(&self.name))]
    }

    /// True if NeMo's mark of shards that are not full lies beside it.
    pub fn is_marked(&self) -> bool {
        marker(&self.path).exists()
    }
}

/// NeMo's mark of a shard that is not full.
pub fn marker(shard: &Path) -> PathBuf {
    let mut name = shard.as_os_str().to_owned();
    name.push(INCOMPLETE);
    PathBuf::from(name)
}

/// The tar files, also those that are compressed by gzip, among `paths` and, with their subfolders, in those of them that are folders; in the order of `paths`, a
/// folder's sorted by name. Hidden files and folders are passed by.
///
/// # Errors
/// [`Error::Data`] for a path that does not exist, [`Error::Io`] for one that cannot be read.
pub fn find_tars(paths: &[PathBuf]) -> Result<Vec<FoundTar>> {
    let mut found = Vec::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => calotype_data::Error::MissingFolder { path: path.clone() }.into(),
            _ => Error::io("open", path)(error),
        })?;
        if metadata.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push(FoundTar { name, path: path.clone(), bytes: metadata.len() });
            continue;
        }
        let first = found.len();
        let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
        let entries = WalkDir::new(path).follow_links(true).into_iter();
        for entry in entries.filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name())) {
            let entry = entry.map_err(|e| walk_error(path, e))?;
            if entry.file_type().is_file() && is_shard_name(&entry.file_name().to_string_lossy()) {
                let inner = entry.path().strip_prefix(path).unwrap_or(entry.path());
                let name = inner.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
                let bytes = entry.metadata().map_err(|e| walk_error(path, e))?.len();
                found.push(FoundTar { name, path: entry.into_path(), bytes });
            }
        }
        found[first..].sort();
    }
    Ok(found)
}

/// Refuses a shard that two of a command's paths name: its samples would be taken twice, and each be a duplicate of itself.
/// `named` has each path with the shards that it names; links within one folder are left to it.
///
/// # Errors
/// [`Error::Usage`] with the shard and both paths; [`Error::Io`].
pub fn refuse_named_twice<'a>(named: impl IntoIterator<Item = (&'a Path, &'a [FoundTar])>) -> Result<()> {
    let mut namers: HashMap<PathBuf, (usize, &Path)> = HashMap::new();
    for (number, (path, shards)) in named.into_iter().enumerate() {
        for shard in shards {
            let file = shard.path.canonicalize().map_err(Error::io("open", &shard.path))?;
            let (first, other) = *namers.entry(file).or_insert((number, path));
            if first != number {
                return Err(Error::Usage(format!(
                    "{} is named twice, by {} and by {}: name each shard once",
                    shard.path.display(),
                    other.display(),
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

/// Refuses datasets of other kinds, for a stage that reads tar shards and found none; the way to shards is told. What is
/// of no kind is left to the stage.
///
/// # Errors
/// [`Error::Usage`] for images, parquet files and MDS shards, [`Error::Data`] for tars in a compression that is not read.
pub fn refuse_other_kinds(path: &Path, stage: &str) -> Result<()> {
    let kind = path.to_str().and_then(|spec| source::detect(spec).ok().flatten());
    let holds = match kind {
        Some(SourceKind::Imagefolder) => "images",
        Some(SourceKind::Parquet) => "parquet files",
        Some(SourceKind::Mds) => "MDS shards",
        None if path.is_dir() => return Ok(refuse_packed(path)?),
        Some(SourceKind::Webdataset) | None => return Ok(()),
    };
    let path = path.display();
    Err(Error::Usage(format!(
        "{path} holds {holds}, and `data {stage}` reads tar shards; `calotype data convert {path} OUT` makes them"
    )))
}

fn walk_error(folder: &Path, error: walkdir::Error) -> Error {
    let path = error.path().unwrap_or(folder).to_path_buf();
    let source = error.into_io_error().unwrap_or_else(|| std::io::Error::other("a loop of links"));
    Error::Io { action: "list", path, source }
}

/// An open shard, with its keys when they are asked for.
pub struct OpenTar {
    shard: TarShard,
    by_key: OnceLock<HashMap<String, usize>>,
}

impl OpenTar {
    /// The shard.
    pub fn shard(&self) -> &TarShard {
        &self.shard
    }

    /// The number of the first sample of this key.
    pub fn place(&self, key: &str) -> Option<usize> {
        let index = || {
            let mut index = HashMap::with_capacity(self.shard.len());
            for (i, sample) in self.shard.samples().enumerate() {
                index.entry(sample.key().to_owned()).or_insert(i);
            }
            index
        };
        self.by_key.get_or_init(index).get(key).copied()
    }
}

/// Shards that were used last, open: neighbouring outputs read the same ones, and headers need not be read again.
pub struct OpenTars {
    most: usize,
    kept: Mutex<Vec<(PathBuf, Arc<OpenTar>)>>,
}

impl OpenTars {
    /// Keeps up to `most` shards.
    pub fn new(most: usize) -> Self {
        OpenTars { most: most.max(1), kept: Mutex::new(Vec::new()) }
    }

    /// The shard at `path`.
    ///
    /// # Errors
    /// Those of [`TarShard::open`].
    pub fn open(&self, path: &Path) -> Result<Arc<OpenTar>> {
        // Entries are whole whatever happens to the thread that holds the lock.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(known, _)| known == path) {
            let entry = kept.remove(at);
            let shard = Arc::clone(&entry.1);
            kept.push(entry);
            return Ok(shard);
        }
        drop(kept);
        let shard = Arc::new(OpenTar { shard: TarShard::open(path)?, by_key: OnceLock::new() });
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= self.most {
            kept.remove(0);
        }
        kept.push((path.to_path_buf(), Arc::clone(&shard)));
        Ok(shard)
    }
}

/// The first few of some faults, for a message.
pub fn named(faults: &[String]) -> String {
    const SHOWN: usize = 8;
    faults.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ")
}

/// 128 bits of a text's BLAKE3: a billion keys collide with probability below 2⁻⁶⁸.
pub fn short_hash(text: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    short
}
