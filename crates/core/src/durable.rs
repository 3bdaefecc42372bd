//! Replacing a file completely or not at all, whatever the moment the process or the machine stops; small JSON files.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::text::read_text;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes `path` through `fill`: into a sibling temporary file, which is synchronised to disk and renamed over `path`;
/// then the folder entry is synchronised too. A reader sees the old content or the new one, never a mixture.
///
/// Of a symbolic link, what it leads to is written, and the link stays. What is there and is no regular file (a device, a named
/// pipe) is written to as it is, and not replaced.
///
/// # Errors
/// [`io::ErrorKind::IsADirectory`] for a folder. Any error of `fill` or of the file system; a regular file is then as it was and
/// the temporary file is gone.
pub fn replace_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let path = &end_of_links(path)?;
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "a folder is there; name a file"));
        }
        Ok(found) if !found.is_file() => return write_through(path, fill),
        _ => {}
    }
    let temporary = temporary_sibling(path)?;
    let outcome = write_and_rename(&temporary, path, fill);
    if outcome.is_err() {
        // The first error is the one to report; a left-over temporary file is only a nuisance.
        let _ = fs::remove_file(&temporary);
    }
    outcome
}

/// Makes a new file of `bytes`, whole or not at all; never in place of another one.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if there is such a file, which stays as it is; any other error of the file system.
pub fn create_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_sibling(path)?;
    let outcome = write_synchronised(&temporary, bytes).and_then(|()| link_or_reserve(&temporary, path));
    let _ = fs::remove_file(&temporary);
    outcome?;
    sync_folder(parent_folder(path))
}

/// Where writing to `path` ends: the last of the symbolic links that begin there, whether anything is at its end or not.
///
/// # Errors
/// Links that lead around in a circle; any error of reading one.
pub fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    // As many as Linux follows.
    const MOST: usize = 40;
    let mut end = path.to_owned();
    for _ in 0..MOST {
        if !end.is_symlink() {
            return Ok(end);
        }
        // A relative link is meant from its own folder; an absolute one replaces it.
        end = parent_folder(&end).join(fs::read_link(&end)?);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "its symbolic links lead around in a circle"))
}

/// Writes to what is no file that could be replaced.
fn write_through(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 20, OpenOptions::new().write(true).open(path)?);
    fill(&mut writer)?;
    writer.flush()
}

fn write_synchronised(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Gives a file a second name that must be new. File systems without links first take the name with an empty file, which a
/// kill at that moment leaves behind.
fn link_or_reserve(temporary: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            File::create_new(path)?;
            fs::rename(temporary, path)
        }
        outcome => outcome,
    }
}

/// Replaces `path` with `bytes`, as [`replace_file`] does.
///
/// # Errors
/// Any error of the file system; `path` is then as it was.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_file(path, |writer| writer.write_all(bytes))
}

/// Replaces `path` with `value` as indented JSON and a line break, as [`replace_file`] does.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if `value` has no JSON form (a map whose keys are no strings); any error of the file
/// system. `path` is then as it was.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(invalid)?;
    text.push(b'\n');
    write_bytes(path, &text)
}

/// Reads a JSON file; `None` if there is no such file.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if the content is not JSON or not a `T`; any error of the file system but a file
/// that is missing.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match read_text(path) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(invalid),
        // Below a regular file there is nothing either; whoever writes there says what is wrong.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What to do about a file that cannot be read, to go behind the reason: nothing but for one whose content is wrong.
pub fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::InvalidData { "; the file is damaged: copy it back" } else { "" }
}

/// Not serde_json's own conversion: that makes text that ends too early another kind of error.
fn invalid(error: serde_json::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Synchronises `file`, which was written as `temporary`, renames it to `path` in the same file system, and synchronises
/// the folder entry: the last steps of [`replace_file`], for files that are written bit by bit.
///
/// # Errors
/// Any error of the file system; what was written may then still be there as `temporary`.
pub fn publish(file: &File, temporary: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(temporary, path)?;
    sync_folder(parent_folder(path))
}

/// Synchronises a folder's entries (names of files created, renamed or removed in it) to disk.
///
/// # Errors
/// The folder cannot be opened or synchronised.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // Windows cannot open folders as files and makes renames durable by itself.
    if cfg!(windows) { Ok(()) } else { File::open(folder)?.sync_all() }
}

/// The folder that holds `path`; `.` for a bare file name.
pub fn parent_folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// True if the disk, or the user's share of it, is full.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn write_and_rename(
    temporary: &Path,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 20, File::create_new(temporary)?);
    fill(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    publish(&file, temporary, path)
}

/// Removes the temporary files that killed processes of this machine left beside `path`. Files that stay do no harm.
pub fn remove_leftovers(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    remove_dead(parent_folder(path), |target| target == name);
}

/// As [`remove_leftovers`], of all files in `folder`.
pub fn remove_leftovers_in(folder: &Path) {
    remove_dead(folder, |_| true);
}

fn remove_dead(folder: &Path, concerns: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let found = entry.file_name();
        let Some((target, process)) = found.to_str().and_then(written_here) else { continue };
        let lives = || process == std::process::id() || Path::new("/proc").join(process.to_string()).exists();
        if concerns(target) && !lives() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Of a temporary file's name: the file that it was to become, and the process, if that is one that we would see.
fn written_here(name: &str) -> Option<(&str, u32)> {
    let (target, writer) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (process, _) = writer.strip_prefix(place())?.strip_prefix('-')?.split_once('-')?;
    Some((target, process.parse().ok()?))
}

/// Where numbers of processes mean ours: this machine since its start, and of it our container. Processes of other machines
/// write into the same folders.
fn place() -> &'static str {
    static PLACE: LazyLock<String> = LazyLock::new(|| {
        let mut hasher = DefaultHasher::new();
        fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().hash(&mut hasher);
        fs::read_link("/proc/self/ns/pid").ok().hash(&mut hasher);
        nix::unistd::gethostname().ok().hash(&mut hasher);
        format!("{:08x}", hasher.finish() as u32)
    });
    &PLACE
}

/// A hidden name next to `path`, unique over machines, processes (by id) and within this one (by counter).
fn temporary_sibling(path: &Path) -> io::Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name to write to"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    let (process, number) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    hidden.push(format!(".{}-{process}-{number}.tmp", place()));
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        replace_file(&path, |w| w.write_all(b"old")).unwrap();
        let error = replace_file(&path, |w| {
            w.write_all(b"ne")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(is_disk_full(&error));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        replace_file(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_new_file_never_takes_the_place_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        create_file(&path, b"old").unwrap();
        assert_eq!(create_file(&path, b"new").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let other = folder.path().join("b.txt");
        let temporary = folder.path().join("c.txt");
        fs::write(&temporary, b"c").unwrap();
        assert!(link_or_reserve(&temporary, &path).is_err());
        link_or_reserve(&temporary, &other).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"c");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_what_they_lead_to_is_written() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("far")).unwrap();
        fs::write(at("far/old"), "old").unwrap();
        symlink("far/old", at("link")).unwrap();
        symlink(at("link"), at("second")).unwrap();
        symlink("far/new", at("dangling")).unwrap();
        write_bytes(&at("second"), b"new").unwrap();
        write_bytes(&at("dangling"), b"made").unwrap();
        assert_eq!(fs::read(at("far/old")).unwrap(), b"new");
        assert_eq!(fs::read(at("far/new")).unwrap(), b"made");
        assert!(["link", "second", "dangling"].iter().all(|name| at(name).is_symlink()));
        assert_eq!(fs::read_dir(at("far")).unwrap().count(), 2);
        symlink("round", at("about")).unwrap();
        symlink("about", at("round")).unwrap();
        assert!(write_bytes(&at("round"), b"").unwrap_err().to_string().contains("circle"));
        symlink("far", at("folder")).unwrap();
        for path in [at("far"), at("folder")] {
            assert_eq!(write_bytes(&path, b"").unwrap_err().kind(), io::ErrorKind::IsADirectory);
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_written_to_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("pipe", &link).unwrap();
        for path in [&pipe, &link] {
            let reader = {
                let pipe = pipe.clone();
                std::thread::spawn(move || fs::read(pipe).unwrap())
            };
            write_bytes(path, b"through").unwrap();
            assert_eq!(reader.join().unwrap(), b"through");
        }
        let kind = fs::symlink_metadata(&pipe).unwrap().file_type();
        assert!(std::os::unix::fs::FileTypeExt::is_fifo(&kind));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file");
    }

    #[test]
    fn json_comes_back_and_what_is_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), None);
        write_json(&path, &[1, 2]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  1,\n  2\n]\n");
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), Some(vec![1, 2]));
        for text in ["", "[1", "{}"] {
            write_bytes(&path, text.as_bytes()).unwrap();
            let error = read_json::<Vec<u32>>(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn leftovers_of_dead_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let name = |target: &str, place: &str, process: u32| format!(".{target}.{place}-{process}-0.tmp");
        let (dead, other) = (name("a.json", place(), u32::MAX), name("b.json", place(), u32::MAX));
        let kept = [
            name("a.json", place(), std::process::id()),
            name("a.json", "elsewhere", u32::MAX),
            ".a.json.x.tmp".to_owned(),
        ];
        for name in kept.iter().chain([&dead, &other]) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove_leftovers(&path);
        assert!(!folder.path().join(&dead).exists() && folder.path().join(&other).exists());
        remove_leftovers_in(folder.path());
        assert!(!folder.path().join(other).exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), kept.len());
        let temporary = temporary_sibling(&path).unwrap();
        let temporary = temporary.file_name().and_then(|name| name.to_str()).and_then(written_here);
        assert_eq!(temporary, Some(("a.json", std::process::id())));
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        assert!(replace_file(Path::new("/"), |_| Ok(())).is_err());
    }
}
