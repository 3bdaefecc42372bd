//! Files that people name: what would be waited for or read without end is refused before it is opened.

use crate::durable::parent_folder;
use crate::names::nearest;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Opens a file to read it.
///
/// Regular files are opened, and so are pipes without a name, which a shell's `<(command)` and standard input lead to: their
/// writer is there already.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a named pipe, for which opening would wait until somebody writes, a socket, and a device,
/// which may never end; any error of the file system.
pub fn open_input(path: &Path) -> io::Result<File> {
    match special(path) {
        None => File::open(path),
        Some(what) => {
            let problem = format!("it is {what}, and no file: name a regular file, or copy what it gives into one");
            Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
        }
    }
}

/// The bytes of a file.
///
/// # Errors
/// As of [`open_input`].
pub fn read_input(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open_input(path)?;
    let mut bytes = Vec::with_capacity(file.metadata().map_or(0, |found| found.len() as usize));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether what stands at a path is neither a file nor a folder, nor a pipe whose writer is there.
pub fn is_special(path: &Path) -> bool {
    special(path).is_some()
}

/// What to say behind the message that nothing is at a path: where a link there leads, or what beside it was probably meant; nothing if
/// there is neither.
pub fn absence(path: &Path) -> String {
    if let Ok(target) = fs::read_link(path) {
        return format!(" (it is a link to {}, where nothing is)", target.display());
    }
    match neighbour(path) {
        Some(meant) => format!(" (did you mean {}?)", meant.display()),
        None => String::new(),
    }
}

/// What lies beside a path, is not hidden, and has a name that is alike.
fn neighbour(path: &Path) -> Option<PathBuf> {
    let wrong = path.file_name()?.to_str()?;
    let entries = fs::read_dir(parent_folder(path)).ok()?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort_unstable();
    Some(path.with_file_name(nearest(wrong, names.iter().map(String::as_str))?))
}

/// What stands at a path, if it must not be opened.
#[cfg(unix)]
fn special(path: &Path) -> Option<&'static str> {
    use std::os::unix::fs::FileTypeExt;
    // What is not there, or cannot be looked at, is told by whoever opens it.
    let kind = fs::metadata(path).ok()?.file_type();
    if kind.is_file() || kind.is_dir() {
        return None;
    }
    // A link to a pipe without a name leads to no place in the file system.
    let place = path.canonicalize().ok();
    let name = place.as_deref().and_then(Path::to_str).unwrap_or_default();
    match () {
        () if kind.is_fifo() => place.is_some().then_some("a named pipe"),
        () if kind.is_socket() => Some("a socket"),
        () if kind.is_block_device() => Some("a disk"),
        // Nothing, and what a person types.
        () if ["/dev/null", "/dev/tty"].contains(&name) || name.starts_with("/dev/pts/") => None,
        () => Some("a device"),
    }
}

#[cfg(not(unix))]
fn special(_: &Path) -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_what_is_missing_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert_eq!(read_input(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "text").unwrap();
        assert_eq!(read_input(&path).unwrap(), b"text");
        assert!(!is_special(&path) && !is_special(folder.path()) && !is_special(&folder.path().join("none")));
    }

    #[test]
    fn what_lies_beside_an_absent_path_is_proposed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("unet")).unwrap();
        fs::write(at(".unta"), "").unwrap();
        assert_eq!(absence(&at("unte")), format!(" (did you mean {}?)", at("unet").display()));
        assert_eq!(absence(&at("clip")), "");
        assert_eq!(absence(&at("none/unte")), "");
        assert_eq!(absence(Path::new("/")), "");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_never_ends_is_refused_and_a_shells_pipe_is_read() {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        std::os::unix::fs::symlink(at("pipe"), at("link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("lost")).unwrap();
        assert_eq!(absence(&at("lost")), " (it is a link to nowhere, where nothing is)");
        assert_eq!(absence(&at("abc")), "");
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, what) in
            [("pipe", "a named pipe"), ("link", "a named pipe"), ("zero", "a device"), ("socket", "a socket")]
        {
            let error = open_input(&at(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
            assert!(error.to_string().contains(what) && is_special(&at(name)), "{name}: {error}");
        }
        assert_eq!(read_input(Path::new("/dev/null")).unwrap(), b"");
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"from a command").unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        assert_eq!(read_input(Path::new(&path)).unwrap(), b"from a command");
    }
}
