//! Checkpoints that are complete or absent.
//!
//! A checkpoint is a folder `<prefix>-<samples>` with `tensors.safetensors`, `state.json` and `manifest.json`; the
//! manifest holds lengths and BLAKE3 hashes of the other two files and of every tensor. It is written under a hidden
//! name, synchronised to disk and renamed at the end, so that a process killed at any instant leaves the checkpoints
//! before it as they were. Reading verifies every hash.

mod lazy;

pub use lazy::{LazyTensor, module_tensors};

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use calotype_core::durable;
use calotype_weights::stream::write_streamed;
use calotype_weights::tensor_file::hash_bytes;
use calotype_weights::{Dtype, TensorFile, TensorFileError, TensorInfo, TensorView};
use serde::{Deserialize, Serialize};

use calotype_core::system::format_bytes;

const FORMAT: u32 = 1;
const TENSORS: &str = "tensors.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
/// Free space asked for beyond the data: manifest, folder entries, the file system's own blocks.
const SPACE_MARGIN: u64 = 1 << 20;
/// Where the file system has no locks, an unfinished checkpoint untouched for so long is taken to be abandoned.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The prefix cannot be part of a folder name.
    #[error("checkpoint prefix `{prefix}` must consist of letters, digits, `-` and `_`, and start with a letter")]
    BadPrefix {
        /// The prefix.
        prefix: String,
    },
    /// The folder cannot be created or written to.
    #[error("{}: cannot write here: {source}; choose another folder or correct its permissions", folder.display())]
    NotWritable {
        /// The folder.
        folder: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Not enough free space, found out before writing.
    #[error(
        "{}: {} are needed and the disk has {} free; free some, keep fewer checkpoints or choose another folder",
        folder.display(), format_bytes(*needed), format_bytes(*free)
    )]
    TooLittleSpace {
        /// The folder.
        folder: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes available to this user.
        free: u64,
    },
    /// The disk, or the user's quota, became full while writing.
    #[error(
        "{}: no space left on the disk (or in the quota) while saving; earlier checkpoints are intact. Free some space \
         or keep fewer checkpoints, and resume",
        path.display()
    )]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Any other refusal of the file system.
    #[error("{}: cannot {action}: {source}; check the permissions and the disk", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process is saving the same checkpoint.
    #[error("{}: another process is writing this checkpoint; give every run a folder of its own", path.display())]
    InUse {
        /// The unfinished folder.
        path: PathBuf,
    },
    /// A number that is NaN or infinite: a run cannot go on from it.
    #[error(
        "tensor `{tensor}` holds a number that is not finite; the checkpoint was not saved, earlier ones are intact"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// The tensors cannot be written as given.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    /// The state is not representable as JSON.
    #[error("{}: cannot encode: {source}; report this as a fault of Calotype", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// The encoder's reason.
        source: serde_json::Error,
    },
    /// A checkpoint whose content is not what was written.
    #[error("{}: the checkpoint is damaged: {reason}; use another one", folder.display())]
    Damaged {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// Which file, and which tensor, and how.
        reason: String,
    },
    /// Checkpoints exist and none can be trusted. Starting anew must be the user's decision.
    #[error(
        "{}: all {count} checkpoints are damaged (the newest: {newest}); restore one from a backup, or remove them to \
         start from the beginning",
        folder.display()
    )]
    AllDamaged {
        /// The folder of checkpoints.
        folder: PathBuf,
        /// How many there are.
        count: usize,
        /// What is wrong with the newest.
        newest: String,
    },
}

impl CheckpointError {
    fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        if durable::is_disk_full(&source) {
            return Self::DiskFull { path: path.to_owned(), source };
        }
        Self::Io { path: path.to_owned(), action, source }
    }

    fn from_tensors(error: TensorFileError) -> Self {
        match error {
            TensorFileError::DiskFull { file, source } => Self::DiskFull { path: file, source },
            TensorFileError::Io { file, source, action } => Self::Io { path: file, action, source },
            other => Self::Tensors(other),
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    samples: u64,
    files: BTreeMap<String, FileEntry>,
    tensors: BTreeMap<String, TensorEntry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FileEntry {
    bytes: u64,
    blake3: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct TensorEntry {
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
    blake3: String,
}

impl TensorEntry {
    fn new(tensor: &TensorInfo, data: &[u8]) -> Self {
        Self {
            dtype: tensor.dtype.to_string(),
            shape: tensor.shape.clone(),
            bytes: data.len() as u64,
            blake3: hash_bytes(data).to_string(),
        }
    }

    fn matches(&self, view: &TensorView<'_>) -> bool {
        self.dtype == view.dtype().name()
            && self.shape == view.shape()
            && self.bytes == view.data().len() as u64
            && self.blake3 == view.blake3().to_string()
    }
}

/// One verified checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// Samples seen when it was saved.
    pub samples: u64,
    /// The tensors, memory-mapped.
    pub tensors: TensorFile,
    /// Everything that is not a tensor.
    pub state: serde_json::Value,
    /// The checkpoint's folder.
    pub path: PathBuf,
}

impl Checkpoint {
    /// Opens one checkpoint folder and verifies every hash. Needs no write permission.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`], which names the file and the tensor.
    pub fn load(folder: &Path) -> Result<Self, CheckpointError> {
        let damaged = |reason: String| CheckpointError::Damaged { folder: folder.to_owned(), reason };
        let manifest = read_manifest(folder).map_err(damaged)?;
        let tensors = verified_tensors(folder, &manifest).map_err(damaged)?;
        let state = verified_state(folder, &manifest).map_err(damaged)?;
        Ok(Self { samples: manifest.samples, tensors, state, path: folder.to_owned() })
    }

    /// The values of a tensor that must have the given shape. The memory that the file's pages took is given back, so
    /// that reading a whole checkpoint takes no more than what is made of it.
    ///
    /// # Errors
    /// [`TensorFileError`] for a tensor that is not there, has another shape, or is neither of floats nor of bytes (`U8`).
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TensorFileError> {
        let view = self.tensors.get_shaped(name, shape)?;
        let values = match view.dtype() {
            Dtype::U8 => Ok(view.data().iter().map(|&byte| f32::from(byte)).collect()),
            _ => view.to_f32_vec(),
        };
        self.tensors.release(name);
        values
    }
}

fn read_manifest(folder: &Path) -> Result<Manifest, String> {
    let bytes = fs::read(folder.join(MANIFEST)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{MANIFEST} is missing, so it was never completed"),
        _ => format!("{MANIFEST} cannot be read ({error})"),
    })?;
    let version: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| format!("{MANIFEST} is not valid JSON ({error})"))?;
    let format = version.get("format").and_then(serde_json::Value::as_u64);
    if format != Some(u64::from(FORMAT)) {
        let found = format.map_or("none".to_owned(), |format| format.to_string());
        return Err(format!("{MANIFEST} has format version {found}, this program reads {FORMAT}"));
    }
    serde_json::from_value(version).map_err(|error| format!("{MANIFEST} lacks something ({error})"))
}

fn entry<'m>(manifest: &'m Manifest, name: &str) -> Result<&'m FileEntry, String> {
    manifest.files.get(name).ok_or_else(|| format!("{MANIFEST} does not list {name}"))
}

fn check_length(name: &str, entry: &FileEntry, actual: u64) -> Result<(), String> {
    if entry.bytes == actual {
        return Ok(());
    }
    Err(format!("{name} has {actual} bytes instead of {}", entry.bytes))
}

fn verified_tensors(folder: &Path, manifest: &Manifest) -> Result<TensorFile, String> {
    let entry = entry(manifest, TENSORS)?;
    let tensors = TensorFile::open(folder.join(TENSORS)).map_err(|error| error.to_string())?;
    check_length(TENSORS, entry, tensors.file_bytes())?;
    let hash = file_hash(tensors.path()).map_err(|error| format!("{TENSORS} cannot be read ({error})"))?;
    if hash.to_string() != entry.blake3 {
        return Err(name_damage(&tensors, manifest));
    }
    if tensors.len() != manifest.tensors.len() || !tensors.names().all(|name| manifest.tensors.contains_key(name)) {
        return Err(format!("{MANIFEST} does not list the tensors of {TENSORS}"));
    }
    Ok(tensors)
}

/// The hash of a file, read piece by piece: through the memory map, all of its pages would count as this process's.
fn file_hash(path: &Path) -> io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 8 << 20];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(read) => drop(hasher.update_rayon(&piece[..read])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Which tensors differ, given that the file's hash does.
fn name_damage(tensors: &TensorFile, manifest: &Manifest) -> String {
    let differs = |view: &TensorView<'_>| !manifest.tensors.get(view.name()).is_some_and(|entry| entry.matches(view));
    let names: Vec<_> = tensors.tensors().filter(differs).map(|view| format!("`{}`", view.name())).collect();
    match names.len() {
        0 => format!("{TENSORS}: the header differs from what was written"),
        1..=3 => format!("{TENSORS}: tensor {} differs from what was written", names.join(", ")),
        count => format!("{TENSORS}: {count} tensors differ from what was written, the first {}", names[0]),
    }
}

fn verified_state(folder: &Path, manifest: &Manifest) -> Result<serde_json::Value, String> {
    let entry = entry(manifest, STATE)?;
    let bytes = fs::read(folder.join(STATE)).map_err(|error| format!("{STATE} cannot be read ({error})"))?;
    check_length(STATE, entry, bytes.len() as u64)?;
    if hash_bytes(&bytes).to_string() != entry.blake3 {
        return Err(format!("{STATE} differs from what was written"));
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("{STATE} is not valid JSON ({error})"))
}

/// The system calls of a save that change the disk. Tests replace them by ones that fail at a chosen byte.
trait Storage: fmt::Debug + Send + Sync {
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DurableFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
}

/// A file whose content can be forced onto the disk.
trait DurableFile: Write {
    fn sync(&mut self) -> io::Result<()>;
}

impl DurableFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

#[derive(Debug)]
struct Disk;

impl Storage for Disk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DurableFile>> {
        Ok(Box::new(File::create_new(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        durable::sync_folder(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}

/// Passes bytes on, counting and hashing them.
struct HashingWriter {
    inner: BufWriter<Box<dyn DurableFile>>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update_rayon(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The checkpoints of one run in one folder.
#[derive(Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    prefix: String,
    storage: Box<dyn Storage>,
}

impl CheckpointStore {
    /// Opens a folder of checkpoints named `<prefix>-<samples>`: creates it, proves by a trial file that it can be
    /// written to, and removes what earlier runs left unfinished.
    ///
    /// # Errors
    /// [`CheckpointError::BadPrefix`], [`CheckpointError::NotWritable`], [`CheckpointError::DiskFull`] or
    /// [`CheckpointError::Io`].
    pub fn open(folder: impl Into<PathBuf>, prefix: &str) -> Result<Self, CheckpointError> {
        Self::open_with(folder.into(), prefix, Box::new(Disk))
    }

    fn open_with(folder: PathBuf, prefix: &str, storage: Box<dyn Storage>) -> Result<Self, CheckpointError> {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
        if !prefix.chars().all(is_plain) || !prefix.starts_with(|first: char| first.is_ascii_alphabetic()) {
            return Err(CheckpointError::BadPrefix { prefix: prefix.to_owned() });
        }
        probe(&folder)?;
        let store = Self { folder, prefix: prefix.to_owned(), storage };
        store.recover()?;
        Ok(store)
    }

    /// The folder of checkpoints.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Checks that the disk has room for a checkpoint of `bytes`. [`save`](Self::save) does so too; calling this at
    /// the start of a run finds out hours earlier.
    ///
    /// # Errors
    /// [`CheckpointError::TooLittleSpace`], [`CheckpointError::Io`].
    pub fn preflight(&self, bytes: u64) -> Result<(), CheckpointError> {
        require_space(&self.folder, bytes)
    }

    /// Saves a checkpoint and returns its folder. It is on disk, complete, when this returns, and absent if it fails.
    /// An existing checkpoint of the same `samples` is left alone if it is the same and replaced if it is not.
    ///
    /// The data of each tensor are made when they are written, and dropped before the next one's are made. The numbers
    /// of `state` come back exactly; JSON has no NaN or infinity (serde_json makes them null).
    ///
    /// # Errors
    /// [`CheckpointError::NotFinite`] for a tensor of `F32` that a run could not go on from, and any other but the ones
    /// about damage. Earlier checkpoints are never touched.
    ///
    /// ```
    /// use calotype_train::checkpoint::{CheckpointStore, LazyTensor};
    /// let folder = tempfile::tempdir().unwrap();
    /// let store = CheckpointStore::open(folder.path(), "checkpoint").unwrap();
    /// let weight = LazyTensor::f32("weight", [2, 3], || vec![0.5; 6]);
    /// store.save(64, [weight], &serde_json::json!({ "steps": 8 })).unwrap();
    /// let newest = store.newest().unwrap().unwrap();
    /// assert_eq!((newest.samples, newest.values("weight", &[2, 3]).unwrap()), (64, vec![0.5; 6]));
    /// ```
    pub fn save<'a>(
        &self,
        samples: u64,
        tensors: impl IntoIterator<Item = LazyTensor<'a>>,
        state: &serde_json::Value,
    ) -> Result<PathBuf, CheckpointError> {
        let tensors: Vec<LazyTensor<'_>> = tensors.into_iter().collect();
        let name = self.name(samples);
        let partial = self.folder.join(format!(".partial-{name}-{}", std::process::id()));
        self.preflight(tensors.iter().map(LazyTensor::bytes).sum())?;
        let target = self.folder.join(name);
        let outcome = self.write_partial(&partial, samples, tensors, state).and_then(|manifest| {
            self.publish(&partial, &target, &manifest)?;
            Ok(target)
        });
        // Not this process's to remove while another writes it.
        if outcome.as_ref().is_err_and(|error| !matches!(error, CheckpointError::InUse { .. })) {
            self.discard(&partial);
        }
        outcome
    }

    /// The newest checkpoint that is complete and whose every hash is right. Damaged ones are skipped with a warning
    /// that names the file and tensor. `None` only if there is no checkpoint at all.
    ///
    /// # Errors
    /// [`CheckpointError::AllDamaged`] if there are checkpoints and none is right; [`CheckpointError::Io`].
    pub fn newest(&self) -> Result<Option<Checkpoint>, CheckpointError> {
        newest_right(&self.folder, &self.list()?)
    }

    /// All checkpoint folders with their samples, oldest first, unverified.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
        let mut found = Vec::new();
        for (name, path) in self.entries()? {
            let digits = name.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('-'));
            if let Some(samples) = digits.and_then(|digits| digits.parse().ok())
                && name == self.name(samples)
                && path.is_dir()
            {
                found.push((samples, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes all but the `keep` newest complete checkpoints (judged by manifest and file lengths) and returns what
    /// it removed. The newest complete one always stays, `keep = 0` counts as 1; so do damaged ones newer than the
    /// oldest that is kept, for inspection, and those of so many samples that `also` says yes to.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn prune(&self, keep: usize, also: impl Fn(u64) -> bool) -> Result<Vec<PathBuf>, CheckpointError> {
        let mut kept = 0;
        let mut removed = Vec::new();
        for (samples, path) in self.list()?.into_iter().rev() {
            if kept < keep.max(1) {
                kept += usize::from(looks_complete(&path));
                continue;
            }
            if also(samples) {
                continue;
            }
            // Renamed first: a half-removed checkpoint must not look like a damaged one.
            let doomed = self.folder.join(format!(".partial-{}-{}", self.name(samples), std::process::id()));
            self.storage
                .rename(&path, &doomed)
                .and_then(|()| self.storage.remove_folder(&doomed))
                .map_err(|source| CheckpointError::io(&path, "remove this old checkpoint", source))?;
            removed.push(path);
        }
        Ok(removed)
    }

    fn name(&self, samples: u64) -> String {
        folder_name(&self.prefix, samples)
    }

    fn write_partial(
        &self,
        partial: &Path,
        samples: u64,
        tensors: Vec<LazyTensor<'_>>,
        state: &serde_json::Value,
    ) -> Result<Manifest, CheckpointError> {
        if partial.exists() {
            self.remove_if_abandoned(partial)?;
        }
        self.storage
            .create_folder(partial)
            .map_err(|source| CheckpointError::io(partial, "create this folder", source))?;
        // Held until the save ends: tells other processes, and later ones, that this folder is alive.
        let _lock = lock_folder(partial)?;
        let mut files = BTreeMap::new();
        let path = partial.join(TENSORS);
        let mut entries = BTreeMap::new();
        let entry = self.write_file(&path, |writer| write_tensors(writer, &path, tensors, &mut entries))?;
        files.insert(TENSORS.to_owned(), entry);
        files.insert(STATE.to_owned(), self.write_json(&partial.join(STATE), state)?);
        let tensors = entries;
        let manifest = Manifest { format: FORMAT, samples, files, tensors };
        self.write_json(&partial.join(MANIFEST), &manifest)?;
        self.storage
            .sync_folder(partial)
            .map_err(|source| CheckpointError::io(partial, "synchronise this folder", source))?;
        Ok(manifest)
    }

    fn write_json<T: Serialize>(&self, path: &Path, value: &T) -> Result<FileEntry, CheckpointError> {
        let text = serde_json::to_vec_pretty(value)
            .map_err(|source| CheckpointError::Encode { path: path.to_owned(), source })?;
        self.write_file(path, |writer| {
            writer.write_all(&text).map_err(|source| CheckpointError::io(path, "write it", source))
        })
    }

    /// Writes one file through `fill`, synchronises it and returns its length and hash.
    fn write_file(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), CheckpointError>,
    ) -> Result<FileEntry, CheckpointError> {
        let failed = |source| CheckpointError::io(path, "write it", source);
        let file = self.storage.create_file(path).map_err(failed)?;
        let inner = BufWriter::with_capacity(1 << 20, file);
        let mut writer = HashingWriter { inner, hasher: blake3::Hasher::new(), bytes: 0 };
        fill(&mut writer)?;
        writer.flush().map_err(failed)?;
        let entry = FileEntry { bytes: writer.bytes, blake3: writer.hasher.finalize().to_string() };
        writer.inner.get_mut().sync().map_err(failed)?;
        Ok(entry)
    }

    /// Gives the finished folder its name.
    fn publish(&self, partial: &Path, target: &Path, manifest: &Manifest) -> Result<(), CheckpointError> {
        if target.exists() {
            // The hashes are in the manifest: equal manifests and a right checkpoint mean equal content.
            if read_manifest(target).is_ok_and(|old| old == *manifest) && Checkpoint::load(target).is_ok() {
                self.discard(partial);
                return Ok(());
            }
            return self.replace(partial, target);
        }
        let failed = |source| CheckpointError::io(target, "complete this checkpoint", source);
        self.storage.rename(partial, target).map_err(failed)?;
        self.storage.sync_folder(&self.folder).map_err(failed)
    }

    /// Puts the finished folder in the place of a different one of the same name. Between the two renames neither is
    /// there; `recover` puts the old one back if that is how the process ends.
    fn replace(&self, partial: &Path, target: &Path) -> Result<(), CheckpointError> {
        tracing::warn!("replacing the checkpoint {}, whose content differs", target.display());
        let failed = |source| CheckpointError::io(target, "replace this checkpoint", source);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let replaced = self.folder.join(format!(".replaced-{name}"));
        self.storage.rename(target, &replaced).map_err(failed)?;
        if let Err(source) = self.storage.rename(partial, target) {
            if let Err(error) = self.storage.rename(&replaced, target) {
                tracing::warn!("{}: cannot put it back: {error}; the next start does", target.display());
            }
            return Err(failed(source));
        }
        self.storage.sync_folder(&self.folder).map_err(failed)?;
        self.discard(&replaced);
        Ok(())
    }

    /// Removes a folder that is of no more use; that it stays is worth a warning only.
    fn discard(&self, path: &Path) {
        match self.storage.remove_folder(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{}: cannot remove it: {error}; remove it by hand", path.display());
            }
            _ => {}
        }
    }

    /// Cleans up after earlier runs that were killed.
    fn recover(&self) -> Result<(), CheckpointError> {
        let (partial, replaced) = (format!(".partial-{}-", self.prefix), format!(".replaced-{}-", self.prefix));
        for (name, path) in self.entries()? {
            if name.starts_with(&partial) {
                match self.remove_if_abandoned(&path) {
                    Ok(()) => tracing::info!("removed the unfinished checkpoint {}", path.display()),
                    Err(error) => tracing::warn!("left an unfinished checkpoint alone: {error}"),
                }
            } else if name.starts_with(&replaced) {
                self.recover_replaced(&path, &name)?;
            }
        }
        Ok(())
    }

    fn recover_replaced(&self, path: &Path, name: &str) -> Result<(), CheckpointError> {
        let target = self.folder.join(name.strip_prefix(".replaced-").unwrap_or(name));
        if target.exists() {
            self.discard(path);
            return Ok(());
        }
        tracing::info!("putting back the checkpoint {}, whose replacement was not completed", target.display());
        self.storage
            .rename(path, &target)
            .map_err(|source| CheckpointError::io(&target, "put back this checkpoint", source))
    }

    fn remove_if_abandoned(&self, path: &Path) -> Result<(), CheckpointError> {
        if !is_abandoned(path) {
            return Err(CheckpointError::InUse { path: path.to_owned() });
        }
        self.storage
            .remove_folder(path)
            .map_err(|source| CheckpointError::io(path, "remove this unfinished checkpoint", source))
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>, CheckpointError> {
        let failed = |source| CheckpointError::io(&self.folder, "list this folder", source);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A name that is not Unicode is not one of ours.
            if let Ok(name) = entry.file_name().into_string() {
                entries.push((name, entry.path()));
            }
        }
        Ok(entries)
    }
}

/// Writes the file of tensors, and notes the length and hash of each.
fn write_tensors(
    writer: &mut dyn Write,
    path: &Path,
    tensors: Vec<LazyTensor<'_>>,
    entries: &mut BTreeMap<String, TensorEntry>,
) -> Result<(), CheckpointError> {
    let (infos, makers): (Vec<TensorInfo>, Vec<_>) = tensors.into_iter().map(LazyTensor::into_parts).unzip();
    let mut makers: Vec<_> = makers.into_iter().map(Some).collect();
    let data = |index: usize| {
        let info = &infos[index];
        let make = makers[index].take().expect("each tensor is asked for once");
        let data = make();
        let bytes = data.as_ref();
        if info.dtype == Dtype::F32 && !lazy::all_finite(bytes) {
            return Err(CheckpointError::NotFinite { tensor: info.name.clone() });
        }
        entries.insert(info.name.clone(), TensorEntry::new(info, bytes));
        Ok(data)
    };
    write_streamed(writer, path, &infos, &BTreeMap::new(), data).map_err(|error| match error {
        CheckpointError::Tensors(error) => CheckpointError::from_tensors(error),
        other => other,
    })
}

/// The folder of a training checkpoint that a path means: its own, or the newest one of a run. `finished`: also of a finished run
/// that has its model. None for other paths.
///
/// # Errors
/// [`CheckpointError::AllDamaged`] if the run has checkpoints and all are damaged; [`CheckpointError::Io`] if they cannot be listed.
pub fn training_folder(path: &Path, finished: bool) -> Result<Option<PathBuf>, CheckpointError> {
    if [MANIFEST, STATE, TENSORS].iter().all(|name| path.join(name).is_file()) {
        return Ok(Some(path.to_owned()));
    }
    let checkpoints = path.join(crate::trainer::CHECKPOINTS);
    // The model of a run that was extended is that of its former end.
    let has_model = || path.join(crate::stages::MODEL).is_dir() && path.join(crate::stages::RESULT).is_file();
    if !checkpoints.is_dir() || (!finished && has_model()) {
        return Ok(None);
    }
    let found = listed_in(&checkpoints)?;
    refuse_all_damaged(&checkpoints, &found)?;
    Ok(whole_of(found).pop().map(|(_, newest)| newest))
}

/// The complete checkpoints of a folder (judged by manifest and file lengths) with their samples, oldest first. Needs no
/// write permission.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn saved_in(folder: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    listed_in(folder).map(whole_of)
}

/// A checkpoint in a folder of them, and what is wrong with it as far as its manifest and the lengths of its files tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Samples seen, by the folder's name.
    pub(crate) samples: u64,
    /// Its folder.
    pub(crate) path: PathBuf,
    /// Which file is damaged, and how; none if it is whole.
    pub(crate) damage: Option<String>,
}

impl Listed {
    /// The damage as an error, if there is any.
    fn error(&self) -> Option<CheckpointError> {
        let reason = self.damage.clone()?;
        Some(CheckpointError::Damaged { folder: self.path.clone(), reason })
    }
}

/// The checkpoints of a folder with their samples, oldest first, and whether they are whole (judged by manifest and file lengths).
/// Needs no write permission. A folder of another name is one only if it is whole.
///
/// # Errors
/// [`CheckpointError::Io`].
pub(crate) fn listed_in(folder: &Path) -> Result<Vec<Listed>, CheckpointError> {
    let failed = |source| CheckpointError::io(folder, "list this folder", source);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // What begins with a dot was never completed.
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
        let Some((name, prefix, digits)) = name.and_then(|name| name.rsplit_once('-').map(|(a, b)| (name, a, b)))
        else {
            continue;
        };
        let Ok(samples) = digits.parse::<u64>() else { continue };
        let damage = damage_of(&path);
        if damage.is_none() || (name == folder_name(prefix, samples) && path.is_dir()) {
            found.push(Listed { samples, path, damage });
        }
    }
    found.sort_by(|a, b| (a.samples, &a.path).cmp(&(b.samples, &b.path)));
    Ok(found)
}

/// [`listed_in`] of a run's folder; none if it has no folder of checkpoints.
///
/// # Errors
/// [`CheckpointError::Io`].
pub(crate) fn listed_of(run: &Path) -> Result<Vec<Listed>, CheckpointError> {
    let folder = run.join(crate::trainer::CHECKPOINTS);
    if folder.is_dir() { listed_in(&folder) } else { Ok(Vec::new()) }
}

/// Those that are whole.
fn whole_of(found: Vec<Listed>) -> Vec<(u64, PathBuf)> {
    let whole = found.into_iter().filter(|listed| listed.damage.is_none());
    whole.map(|listed| (listed.samples, listed.path)).collect()
}

/// Refuses checkpoints of a folder of which none is whole, though there are some.
///
/// # Errors
/// [`CheckpointError::AllDamaged`].
pub(crate) fn refuse_all_damaged(folder: &Path, found: &[Listed]) -> Result<(), CheckpointError> {
    match found.last().and_then(Listed::error) {
        Some(newest) if found.iter().all(|listed| listed.damage.is_some()) => Err(CheckpointError::AllDamaged {
            folder: folder.to_owned(),
            count: found.len(),
            newest: newest.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Refuses a run's folder that has checkpoints of which none is whole. Nothing is said of other folders.
///
/// # Errors
/// [`CheckpointError::AllDamaged`]; [`CheckpointError::Io`].
pub fn refuse_damaged_run(run: &Path) -> Result<(), CheckpointError> {
    refuse_all_damaged(&run.join(crate::trainer::CHECKPOINTS), &listed_of(run)?)
}

/// Warns of a run's damaged checkpoints that are newer than its newest one that is whole, which is taken instead.
///
/// # Errors
/// [`CheckpointError::Io`].
pub(crate) fn warn_of_skipped(run: &Path) -> Result<(), CheckpointError> {
    for error in listed_of(run)?.iter().rev().map_while(Listed::error) {
        tracing::warn!("skipping a checkpoint: {error}");
    }
    Ok(())
}

/// The newest of a folder's checkpoints, which come oldest first, whose every hash is right. Damaged ones are skipped with a warning.
///
/// # Errors
/// [`CheckpointError::AllDamaged`] if there are checkpoints and none is right.
pub(crate) fn newest_right(folder: &Path, all: &[(u64, PathBuf)]) -> Result<Option<Checkpoint>, CheckpointError> {
    let mut newest_error = None;
    for (samples, path) in all.iter().rev() {
        match load_as(path, *samples) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(error) => {
                tracing::warn!("skipping a checkpoint: {error}");
                newest_error.get_or_insert(error.to_string());
            }
        }
    }
    match newest_error {
        None => Ok(None),
        Some(newest) => Err(CheckpointError::AllDamaged { folder: folder.to_owned(), count: all.len(), newest }),
    }
}

fn load_as(path: &Path, samples: u64) -> Result<Checkpoint, CheckpointError> {
    let checkpoint = Checkpoint::load(path)?;
    if checkpoint.samples != samples {
        let reason = format!("{MANIFEST} says {} samples, the folder's name {samples}", checkpoint.samples);
        return Err(CheckpointError::Damaged { folder: path.to_owned(), reason });
    }
    Ok(checkpoint)
}

/// Name of the folder of a checkpoint behind some samples.
pub(crate) fn folder_name(prefix: &str, samples: u64) -> String {
    format!("{prefix}-{samples:012}")
}

/// Creates a folder for work of many hours, proves that it can be written to and that the disk has room for `bytes`.
///
/// # Errors
/// [`CheckpointError::NotWritable`], [`CheckpointError::TooLittleSpace`], [`CheckpointError::DiskFull`],
/// [`CheckpointError::Io`].
pub fn prepare_folder(folder: &Path, bytes: u64) -> Result<(), CheckpointError> {
    probe(folder)?;
    require_space(folder, bytes)
}

/// Checks that the disk of a folder that is there has room for `bytes`.
pub(crate) fn require_space(folder: &Path, bytes: u64) -> Result<(), CheckpointError> {
    let status = nix::sys::statvfs::statvfs(folder)
        .map_err(|errno| CheckpointError::io(folder, "find out the free space", errno.into()))?;
    // The types of both fields differ between systems.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    let free = (status.blocks_available() as u64).saturating_mul(status.fragment_size() as u64);
    let needed = bytes.saturating_add(SPACE_MARGIN);
    if free < needed {
        return Err(CheckpointError::TooLittleSpace { folder: folder.to_owned(), needed, free });
    }
    Ok(())
}

/// Checks, without writing, what the system says of writing to `folder`, which is, or will lie in, `place`.
pub(crate) fn require_access(place: &Path, folder: &Path) -> Result<(), CheckpointError> {
    use nix::unistd::{AccessFlags, access};
    let allowed = match place.is_dir() {
        true => access(place, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from),
        false => Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is not a folder", place.display()))),
    };
    allowed.map_err(|source| CheckpointError::NotWritable { folder: folder.to_owned(), source })
}

/// Creates the folder and proves with a real file that it can be written to: permission bits do not tell about
/// read-only mounts, quotas and network file systems.
fn probe(folder: &Path) -> Result<(), CheckpointError> {
    let refused = |source: io::Error| match durable::is_disk_full(&source) {
        true => CheckpointError::DiskFull { path: folder.to_owned(), source },
        false => CheckpointError::NotWritable { folder: folder.to_owned(), source },
    };
    fs::create_dir_all(folder).map_err(refused)?;
    let trial = folder.join(".writable");
    durable::replace_file(&trial, |writer| writer.write_all(b"trial")).map_err(refused)?;
    match fs::remove_file(&trial) {
        // Another process opened the folder at the same moment and removed the trial file of both.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(refused),
    }
}

/// Locks an unfinished folder for this process; `None` where the file system has no locks.
fn lock_folder(path: &Path) -> Result<Option<File>, CheckpointError> {
    let Ok(folder) = File::open(path) else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(CheckpointError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Whether no live process writes the folder. The system releases a dead process's lock, on whatever machine it ran;
/// process ids would tell neither across machines nor in containers, where each run has the same.
fn is_abandoned(path: &Path) -> bool {
    let Ok(folder) = File::open(path) else { return false };
    match folder.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => untouched_for(path, ABANDONED_AFTER),
    }
}

fn untouched_for(path: &Path, time: Duration) -> bool {
    let files = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let modified = |path: PathBuf| fs::metadata(path).and_then(|status| status.modified()).ok();
    let newest = files.chain([path.to_owned()]).filter_map(modified).max();
    newest.is_some_and(|newest| SystemTime::now().duration_since(newest).is_ok_and(|age| age >= time))
}

fn looks_complete(folder: &Path) -> bool {
    damage_of(folder).is_none()
}

/// What is wrong with a checkpoint, by its manifest and the lengths of its files.
fn damage_of(folder: &Path) -> Option<String> {
    let check = |manifest: &Manifest| {
        [TENSORS, STATE].iter().try_for_each(|name| {
            let status = fs::metadata(folder.join(name)).map_err(|error| format!("{name} cannot be read ({error})"))?;
            check_length(name, entry(manifest, name)?, status.len())
        })
    };
    read_manifest(folder).and_then(|manifest| check(&manifest)).err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_weights::NamedTensor;
    use serde_json::json;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

    /// What every system call costs of a fault's budget; a written byte costs 1.
    const CALL: i64 = 7;

    /// A disk that works until its budget is used up. Then it is full, or the process is dead: nothing works any more.
    #[derive(Clone, Debug)]
    struct Faulty {
        budget: Arc<AtomicI64>,
        kills: bool,
        dead: Arc<AtomicBool>,
    }

    impl Faulty {
        fn new(budget: i64, kills: bool) -> Self {
            Self { budget: Arc::new(AtomicI64::new(budget)), kills, dead: Arc::default() }
        }

        fn spend(&self, cost: i64) -> io::Result<i64> {
            let left = self.budget.fetch_sub(cost, Ordering::SeqCst);
            if left >= cost && !self.dead.load(Ordering::SeqCst) {
                return Ok(cost);
            }
            self.dead.store(true, Ordering::SeqCst);
            if left > 0 && cost != CALL { Ok(left) } else { Err(io::Error::from(io::ErrorKind::StorageFull)) }
        }
    }

    struct FaultyFile(Faulty, File);

    impl Write for FaultyFile {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.dead.load(Ordering::SeqCst) {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            let left = self.0.spend(bytes.len() as i64)?;
            self.1.write_all(&bytes[..left as usize])?;
            Ok(left as usize)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl DurableFile for FaultyFile {
        fn sync(&mut self) -> io::Result<()> {
            self.0.spend(CALL).map(drop)
        }
    }

    impl Storage for Faulty {
        fn create_folder(&self, path: &Path) -> io::Result<()> {
            self.spend(CALL)?;
            Disk.create_folder(path)
        }

        fn create_file(&self, path: &Path) -> io::Result<Box<dyn DurableFile>> {
            self.spend(CALL)?;
            Ok(Box::new(FaultyFile(self.clone(), File::create_new(path)?)))
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.spend(CALL)?;
            Disk.rename(from, to)
        }

        fn sync_folder(&self, _: &Path) -> io::Result<()> {
            self.spend(CALL).map(drop)
        }

        fn remove_folder(&self, path: &Path) -> io::Result<()> {
            // A full disk still removes; a dead process does not.
            if self.kills {
                self.spend(CALL)?;
            }
            Disk.remove_folder(path)
        }
    }

    fn values(samples: u64) -> Vec<f32> {
        (0..64).map(|index| (samples as f32).sin() * 1e3 + index as f32 / 7.0).collect()
    }

    fn state(samples: u64) -> serde_json::Value {
        json!({ "samples": samples, "lr": 0.1 + samples as f64 / 3.0, "nested": [u64::MAX, "x"] })
    }

    fn save(store: &CheckpointStore, samples: u64) -> Result<PathBuf, CheckpointError> {
        let values = values(samples);
        let ids = [samples as i64];
        let tensors = [
            NamedTensor::from_f32("unet.weight", [8, 8], &values),
            NamedTensor::from_f32("unet.bias", [16], &values[..16]),
            NamedTensor::from_i64("ids", [1], &ids),
        ];
        store.save(samples, tensors.map(LazyTensor::from), &state(samples))
    }

    fn assert_is(checkpoint: &Checkpoint, samples: u64) {
        assert_eq!(checkpoint.samples, samples);
        assert_eq!(checkpoint.state, state(samples));
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let weight = checkpoint.tensors.get_shaped("unet.weight", &[8, 8]).unwrap().to_f32_vec().unwrap();
        assert_eq!(bits(&weight), bits(&values(samples)));
        let bias = checkpoint.tensors.get("unet.bias").unwrap().to_f32_vec().unwrap();
        assert_eq!(bits(&bias), bits(&values(samples)[..16]));
        assert_eq!(checkpoint.tensors.get("ids").unwrap().to_i64_vec().unwrap(), [samples as i64]);
    }

    fn hidden(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.')).collect()
    }

    fn flip_bit(path: &Path, needle: &[u8]) {
        let mut bytes = fs::read(path).unwrap();
        let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn what_is_saved_comes_back_and_the_newest_wins() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path().join("a/b"), "checkpoint").unwrap();
        assert!(store.newest().unwrap().is_none());
        save(&store, 1_000_000_000_000_000).unwrap();
        let path = save(&store, 200).unwrap();
        assert!(path.ends_with("checkpoint-000000000200"));
        assert_is(&store.newest().unwrap().unwrap(), 1_000_000_000_000_000);
        assert_is(&Checkpoint::load(&path).unwrap(), 200);
        assert!(hidden(store.folder()).is_empty());
        let other = CheckpointStore::open(store.folder(), "checkpoint-ema").unwrap();
        assert!(other.newest().unwrap().is_none());
    }

    /// Ends a save of sample 200 after every 7th unit of budget (system calls cost 7, so between any two of them too).
    fn end_saves(kills: bool, before: u64, same: bool) {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), "checkpoint").unwrap();
        save(&store, before).unwrap();
        if same {
            flip_bit(&folder.path().join("checkpoint-000000000100").join(STATE), b"nested");
            save(&store, 50).unwrap();
        }
        let target = if same { before } else { 200 };
        for budget in (0..).step_by(CALL as usize) {
            let faulty = CheckpointStore {
                folder: folder.path().to_owned(),
                prefix: "checkpoint".into(),
                storage: Box::new(Faulty::new(budget, kills)),
            };
            let outcome = save(&faulty, target);
            if let Err(error) = &outcome {
                let text = error.to_string();
                assert!(text.contains("no space left") && text.contains("checkpoint-"), "{text}");
                if !kills && !same {
                    assert!(hidden(folder.path()).is_empty(), "at {budget}");
                }
            }
            let store = CheckpointStore::open(folder.path(), "checkpoint").unwrap();
            assert!(hidden(folder.path()).is_empty(), "at {budget}: {:?}", hidden(folder.path()));
            let newest = store.newest().unwrap().unwrap();
            if outcome.is_ok() {
                assert!(budget > 1000, "the budget {budget} was not used");
                assert_is(&newest, target);
                return;
            }
            // Only the very last call, which synchronises the folder, comes after the rename.
            assert_is(
                &newest,
                if newest.samples == target {
                    target
                } else if same {
                    50
                } else {
                    before
                },
            );
            if newest.samples == target && !same {
                fs::remove_dir_all(&newest.path).unwrap();
            }
        }
    }

    #[test]
    fn killed_anywhere_the_previous_checkpoint_is_the_newest() {
        end_saves(true, 100, false);
    }

    #[test]
    fn with_the_disk_full_anywhere_the_previous_checkpoint_is_the_newest() {
        end_saves(false, 100, false);
    }

    #[test]
    fn killed_while_replacing_a_damaged_one_the_older_checkpoint_or_the_new_one_is_there() {
        end_saves(true, 100, true);
    }

    #[test]
    fn a_flipped_bit_is_found_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), "checkpoint").unwrap();
        for (file, needle, parts) in [
            (TENSORS, values(2)[40].to_le_bytes().to_vec(), vec![TENSORS, "tensor `unet.weight` differs"]),
            (TENSORS, 2i64.to_le_bytes().to_vec(), vec![TENSORS, "tensor `ids` differs"]),
            (TENSORS, b"unet.bias".to_vec(), vec![TENSORS, "`tnet.bias` differs"]),
            (TENSORS, b"dtype".to_vec(), vec![TENSORS, "not a valid safetensors file"]),
            (STATE, b"nested".to_vec(), vec![STATE, "differs"]),
            (MANIFEST, b"\"samples\": 2".to_vec(), vec![MANIFEST]),
            (MANIFEST, b"2,".to_vec(), vec![MANIFEST, "says 3 samples"]),
        ] {
            save(&store, 1).unwrap();
            let path = save(&store, 2).unwrap();
            flip_bit(&path.join(file), &needle);
            assert_is(&store.newest().unwrap().unwrap(), 1);
            let error = load_as(&path, 2).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{error}");
            }
            fs::remove_dir_all(path).unwrap();
        }
    }

    #[test]
    fn any_shortened_or_missing_file_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), "checkpoint").unwrap();
        for file in [TENSORS, STATE, MANIFEST] {
            let path = save(&store, 1).unwrap();
            let bytes = fs::read(path.join(file)).unwrap();
            for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                fs::write(path.join(file), &bytes[..length]).unwrap();
                assert!(matches!(Checkpoint::load(&path), Err(CheckpointError::Damaged { .. })), "{file} {length}");
            }
            fs::remove_file(path.join(file)).unwrap();
            let error = store.newest().unwrap_err().to_string();
            assert!(error.contains("all 1 checkpoints are damaged") && error.contains(file), "{error}");
            // Saving again repairs it.
            save(&store, 1).unwrap();
            assert_is(&store.newest().unwrap().unwrap(), 1);
        }
    }

    #[test]
    fn checkpoints_are_listed_with_whether_they_are_whole() {
        let run = tempfile::tempdir().unwrap();
        let folder = run.path().join(crate::trainer::CHECKPOINTS);
        assert!(listed_of(run.path()).unwrap().is_empty());
        let store = CheckpointStore::open(&folder, "checkpoint").unwrap();
        let paths = [1, 2].map(|samples| save(&store, samples).unwrap());
        fs::create_dir(folder.join("notes-3")).unwrap();
        fs::create_dir(folder.join(".partial-checkpoint-000000000004-77")).unwrap();
        let whole = |run: &Path| -> Vec<(u64, bool)> {
            listed_of(run).unwrap().into_iter().map(|listed| (listed.samples, listed.damage.is_none())).collect()
        };
        assert_eq!(whole(run.path()), [(1, true), (2, true)]);
        fs::write(paths[1].join(TENSORS), "x").unwrap();
        assert_eq!(whole(run.path()), [(1, true), (2, false)]);
        refuse_damaged_run(run.path()).unwrap();
        assert_eq!(training_folder(run.path(), true).unwrap().as_ref(), Some(&paths[0]));
        fs::remove_file(paths[0].join(MANIFEST)).unwrap();
        for error in [refuse_damaged_run(run.path()).unwrap_err(), training_folder(run.path(), true).unwrap_err()] {
            let error = error.to_string();
            assert!(
                error.contains("all 2 checkpoints are damaged") && error.contains("has 1 bytes instead of"),
                "{error}"
            );
        }
        assert!(saved_in(&folder).unwrap().is_empty());
    }

    #[test]
    fn pruning_keeps_the_newest_complete_ones() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), "checkpoint").unwrap();
        for samples in 1..=5 {
            save(&store, samples).unwrap();
        }
        fs::remove_file(folder.path().join("checkpoint-000000000004").join(MANIFEST)).unwrap();
        let removed = store.prune(2, |_| false).unwrap();
        assert_eq!(removed.len(), 2);
        let left: Vec<_> = store.list().unwrap().into_iter().map(|(samples, _)| samples).collect();
        assert_eq!(left, [3, 4, 5]);
        store.prune(0, |_| false).unwrap();
        assert_is(&store.newest().unwrap().unwrap(), 5);
        assert!(hidden(folder.path()).is_empty());
    }

    #[test]
    fn folders_that_will_not_do_are_refused_early() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = CheckpointStore::open(file.join("sub"), "c").unwrap_err();
        assert!(matches!(error, CheckpointError::NotWritable { .. }), "{error}");
        assert!(matches!(CheckpointStore::open(folder.path(), "../x"), Err(CheckpointError::BadPrefix { .. })));
        let store = CheckpointStore::open(folder.path(), "c").unwrap();
        store.preflight(1).unwrap();
        let error = store.preflight(1 << 60).unwrap_err().to_string();
        assert!(error.contains("1.0 EiB are needed and the disk has "), "{error}");
    }

    #[test]
    fn a_live_unfinished_checkpoint_is_left_alone_and_a_dead_one_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (live, dead) =
            (folder.path().join(".partial-c-000000000001-1"), folder.path().join(".partial-c-000000000002-1"));
        fs::create_dir(&live).unwrap();
        fs::create_dir(&dead).unwrap();
        let lock = lock_folder(&live).unwrap();
        CheckpointStore::open(folder.path(), "c").unwrap();
        assert!(live.exists() && !dead.exists());
        drop(lock);
        CheckpointStore::open(folder.path(), "c").unwrap();
        assert!(!live.exists());
        assert!(!untouched_for(folder.path(), Duration::from_secs(60)));
        assert!(untouched_for(folder.path(), Duration::ZERO));
    }

    #[test]
    fn tensors_that_cannot_be_written_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), "c").unwrap();
        let tensor = NamedTensor::from_f32("w", [3], &[1.0]);
        let error = store.save(1, [LazyTensor::from(tensor)], &json!({})).unwrap_err().to_string();
        assert!(error.contains("tensor `w`"), "{error}");
        assert!(hidden(folder.path()).is_empty() && store.newest().unwrap().is_none());
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused_and_earlier_checkpoints_stay() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), "checkpoint").unwrap();
        save(&store, 1).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let tensors = [("a", 1.0), ("b", bad), ("c", 1.0)];
            let tensors = tensors.map(|(name, value)| LazyTensor::f32(name, [3], move || vec![0.0, value, f32::MAX]));
            let error = store.save(2, tensors, &json!({})).unwrap_err();
            assert!(matches!(&error, CheckpointError::NotFinite { tensor } if tensor == "b"), "{error}");
            assert!(hidden(folder.path()).is_empty());
            assert_is(&store.newest().unwrap().unwrap(), 1);
        }
    }

    /// Bytes of a tensor that know how many of them there are.
    struct Counted(Vec<u8>, Arc<AtomicI64>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(self.0.len() as i64, Ordering::SeqCst);
        }
    }

    #[test]
    fn no_two_tensors_are_in_memory_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), "checkpoint").unwrap();
        let (held, most) = (Arc::<AtomicI64>::default(), Arc::<AtomicI64>::default());
        let tensors = (0..20).map(|index: usize| {
            let (held, most) = (held.clone(), most.clone());
            LazyTensor::new(format!("t{index}"), Dtype::F32, [100 + index], move || {
                let bytes = 4 * (100 + index);
                most.fetch_max(held.fetch_add(bytes as i64, Ordering::SeqCst) + bytes as i64, Ordering::SeqCst);
                Counted(vec![0; bytes], held)
            })
        });
        store.save(1, tensors, &json!({})).unwrap();
        assert_eq!((held.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (0, 4 * 119));
        assert_eq!(store.newest().unwrap().unwrap().tensors.len(), 20);
    }

    const CHILD: &str = "CALOTYPE_CHECKPOINT_TEST_CHILD";

    /// The body of the child process of the next test: saves and prunes until it is killed.
    #[test]
    fn child_that_saves_until_killed() {
        let Ok(folder) = std::env::var(CHILD) else { return };
        let store = CheckpointStore::open(folder, "checkpoint").unwrap();
        let start = store.newest().unwrap().map_or(0, |checkpoint| checkpoint.samples);
        for samples in start + 1.. {
            save(&store, samples).unwrap();
            store.prune(2, |_| false).unwrap();
        }
    }

    #[test]
    fn a_process_killed_by_sigkill_always_resumes_from_a_right_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), "checkpoint").unwrap();
        save(&store, 1).unwrap();
        let mut last = 1;
        for round in 0..12u64 {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "checkpoint::tests::child_that_saves_until_killed"])
                .env(CHILD, folder.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(40_000 + 7_919 * round));
            child.kill().unwrap();
            child.wait().unwrap();
            let newest = CheckpointStore::open(folder.path(), "checkpoint").unwrap().newest().unwrap().unwrap();
            assert!(newest.samples >= last);
            assert_is(&newest, newest.samples);
            last = newest.samples;
        }
        assert!(last > 1, "no child got to save anything");
    }
}
