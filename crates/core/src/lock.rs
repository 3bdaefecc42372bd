//! One process at a time in a folder, also on a file system that several machines share.
//!
//! The file `.lock` of the folder is locked by the system for as long as the process lives, and says who that is. A lock that
//! the system gives away is free, whatever the file says: its process is dead. Where a file system has no locks, or keeps those of
//! another machine to itself, what the file says decides: a process of this machine is looked for, and one that has ended is dead,
//! whether its parent has asked for its end or not; one of another machine counts as alive for as long as it renews the file's time,
//! which a thread does.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Name of the file.
pub const LOCK_FILE: &str = ".lock";
/// A process of another machine that has not renewed its lock for so long is taken to be dead.
const DEAD_AFTER: Duration = Duration::from_secs(300);
/// Pause between two renewals.
const RENEW_EVERY: Duration = Duration::from_secs(30);

/// The process that has a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Name of its machine.
    pub host: String,
    /// Its number there.
    pub pid: u32,
    /// When it took the folder, in seconds since 1970.
    pub since: u64,
    /// When the system started it, in clock ticks since the machine's start: numbers of processes are used again. 0 where
    /// that is not known.
    pub started: u64,
}

impl Holder {
    /// Whether it is a process of another machine, of which nobody here knows if it lives.
    pub fn is_elsewhere(&self) -> bool {
        self.host != host()
    }

    /// Whether it is known to have ended without giving the folder back: a process of this machine that is not there any more.
    pub fn is_gone(&self) -> bool {
        // Where the system tells nothing of this process, it tells nothing of others either.
        !self.is_elsewhere() && start_of("self") != 0 && !is_alive(self)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ago = seconds_since_1970().saturating_sub(self.since);
        let ago = crate::system::format_duration(Duration::from_secs(ago));
        write!(f, "process {} on {}, for {ago}", self.pid, self.host)
    }
}

/// Why a folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{} is in use by {holder}; wait until it ends, or use another folder{}", folder.display(),
        if *elsewhere { format!(" (if that process is dead, remove {})", folder.join(LOCK_FILE).display()) } else { String::new() }
    )]
    Busy {
        /// The folder.
        folder: PathBuf,
        /// Who has it.
        holder: Box<Holder>,
        /// Whether it is on another machine, so that nobody here knows whether it lives.
        elsewhere: bool,
    },
    /// The file cannot be written or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A folder that this process has, until the value is dropped.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
    path: PathBuf,
    before: Option<Holder>,
    /// Shows processes of other machines that this one lives, until its sender is dropped.
    renewal: Option<(Sender<()>, JoinHandle<()>)>,
}

impl FolderLock {
    /// Takes a folder, which must be there.
    ///
    /// # Errors
    /// [`LockError::Busy`] if another process has it; [`LockError::Io`].
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(LOCK_FILE);
        let io = |source: io::Error| {
            let source = match source.kind() {
                io::ErrorKind::IsADirectory => {
                    io::Error::new(source.kind(), "a folder is at the place of the lock, which is a file; move it away")
                }
                _ => source,
            };
            LockError::Io { path: path.clone(), source }
        };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let locked = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            // Without locks on this file system, only the text decides.
            Err(TryLockError::Error(_)) => true,
        };
        let said = read(&mut file);
        let age = file.metadata().and_then(|status| status.modified()).ok().and_then(|time| time.elapsed().ok());
        let elsewhere = said.as_ref().is_some_and(Holder::is_elsewhere);
        let alive = match &said {
            Some(_) if elsewhere => age.is_some_and(|age| age < DEAD_AFTER),
            Some(holder) => holder.pid != std::process::id() && is_alive(holder),
            None => false,
        };
        if !locked || alive {
            let unknown =
                || Holder { host: "this machine".to_owned(), pid: 0, since: seconds_since_1970(), started: 0 };
            let holder = Box::new(said.unwrap_or_else(unknown));
            return Err(LockError::Busy { folder: folder.to_owned(), holder, elsewhere: elsewhere && locked });
        }
        let own =
            Holder { host: host(), pid: std::process::id(), since: seconds_since_1970(), started: start_of("self") };
        write(&mut file, &serde_json::to_string(&own).unwrap_or_default()).map_err(io)?;
        let renewal = file.try_clone().ok().and_then(renewal);
        Ok(Self { file, path, before: said, renewal })
    }

    /// The process that had the folder before and ended without giving it back: it was killed.
    pub fn taken_over_from(&self) -> Option<&Holder> {
        self.before.as_ref()
    }
}

/// Sets the file's time again and again.
fn renewal(file: File) -> Option<(Sender<()>, JoinHandle<()>)> {
    let (sender, ended) = channel::<()>();
    let renew = move || {
        while ended.recv_timeout(RENEW_EVERY) == Err(RecvTimeoutError::Timeout) {
            // One that fails only makes other machines believe too early that this process is dead.
            let _ = file.set_modified(SystemTime::now());
        }
    };
    let thread = std::thread::Builder::new().name("lock".to_owned()).spawn(renew).ok()?;
    Some((sender, thread))
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.renewal.take() {
            drop(sender);
            // It only waits for the sender.
            let _ = thread.join();
        }
        // An empty file names nobody. It stays: another process may have opened it and wait for the lock.
        if let Err(error) = write(&mut self.file, "") {
            eprintln!("warning: {}: {error}", self.path.display());
        }
    }
}

fn read(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    // A file that is damaged, or half written by a process that was killed, names nobody.
    file.rewind().and_then(|()| file.take(4096).read_to_string(&mut text)).ok()?;
    serde_json::from_str(&text).ok()
}

fn write(file: &mut File, text: &str) -> io::Result<()> {
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()
}

fn host() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "this machine".to_owned())
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Whether a process of this machine lives and is the one that took the lock.
fn is_alive(holder: &Holder) -> bool {
    let started = start_of(&holder.pid.to_string());
    started != 0 && (holder.started == 0 || holder.started == started)
}

/// States of a process that has ended (field 3 of `/proc/PID/stat`): a zombie, which stays for as long as its parent does not ask for
/// its end, and one that is about to go.
const ENDED: [&str; 3] = ["Z", "X", "x"];

/// When a process was started, as Linux tells it (field 22 of `/proc/PID/stat`); 0 if there is none, if it has ended, or nobody tells.
fn start_of(process: &str) -> u64 {
    let told = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The second field is a name in parentheses, which may hold spaces.
    let behind_name = told.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = behind_name.split_whitespace();
    match fields.next() {
        Some(state) if !ENDED.contains(&state) => fields.nth(18).and_then(|field| field.parse().ok()).unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said_by(folder: &Path, holder: &Holder, age: Duration) {
        let path = folder.join(LOCK_FILE);
        std::fs::write(&path, serde_json::to_string(holder).unwrap()).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn a_second_taker_is_told_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::take(folder.path()).unwrap();
        assert!(first.taken_over_from().is_none());
        let error = FolderLock::take(folder.path()).unwrap_err().to_string();
        let own = format!("in use by process {} on {}", std::process::id(), host());
        assert!(error.contains(&own) && error.contains(&folder.path().display().to_string()), "{error}");
        drop(first);
        assert!(FolderLock::take(folder.path()).unwrap().taken_over_from().is_none());
    }

    #[test]
    fn locks_of_the_dead_are_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let old = Duration::from_secs(3600);
        // No machine has so many processes.
        let dead = Holder { host: host(), pid: u32::MAX - 1, since: 5, started: 7 };
        said_by(folder.path(), &dead, Duration::ZERO);
        assert_eq!(FolderLock::take(folder.path()).unwrap().taken_over_from(), Some(&dead));
        // A process with that number lives, but it is another one.
        let again = Holder { pid: std::os::unix::process::parent_id(), started: 1, ..dead.clone() };
        said_by(folder.path(), &again, Duration::ZERO);
        assert_eq!(FolderLock::take(folder.path()).unwrap().taken_over_from(), Some(&again));
        let elsewhere = Holder { host: "another-machine".to_owned(), ..dead };
        said_by(folder.path(), &elsewhere, old);
        assert_eq!(FolderLock::take(folder.path()).unwrap().taken_over_from(), Some(&elsewhere));
        for damaged in ["", "{", "{\"host\": 3}", "\0\0"] {
            std::fs::write(folder.path().join(LOCK_FILE), damaged).unwrap();
            assert!(FolderLock::take(folder.path()).unwrap().taken_over_from().is_none(), "{damaged}");
        }
        let blocked = tempfile::tempdir().unwrap();
        std::fs::create_dir(blocked.path().join(LOCK_FILE)).unwrap();
        let error = FolderLock::take(blocked.path()).unwrap_err().to_string();
        assert!(error.contains("a folder is at the place of the lock"), "{error}");
    }

    /// In a container without an init process, nobody asks for the end of what a shell has left.
    #[test]
    fn a_process_that_has_ended_is_dead_before_its_parent_asks() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        let is_zombie = || std::fs::read_to_string(&stat).is_ok_and(|told| told.contains(") Z "));
        let begun = std::time::Instant::now();
        while start_of("self") != 0 && !is_zombie() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let folder = tempfile::tempdir().unwrap();
        let ended = Holder { host: host(), pid: child.id(), since: 5, started: 0 };
        said_by(folder.path(), &ended, Duration::ZERO);
        assert_eq!(ended.is_gone(), start_of("self") != 0);
        assert_eq!(FolderLock::take(folder.path()).unwrap().taken_over_from(), Some(&ended));
        child.wait().unwrap();
    }

    #[test]
    fn whether_a_holder_is_gone_is_said_of_this_machine_alone() {
        let own = Holder { host: host(), pid: std::process::id(), since: 5, started: start_of("self") };
        assert!(!own.is_gone());
        let dead = Holder { pid: u32::MAX - 1, ..own.clone() };
        assert_eq!(dead.is_gone(), own.started != 0);
        let elsewhere = Holder { host: "another-machine".to_owned(), ..dead };
        assert!(elsewhere.is_elsewhere() && !elsewhere.is_gone() && !own.is_elsewhere());
    }

    #[test]
    fn the_living_keep_theirs_where_the_system_has_no_locks() {
        let folder = tempfile::tempdir().unwrap();
        let parent = std::os::unix::process::parent_id();
        let living = Holder { host: host(), pid: parent, since: 5, started: start_of(&parent.to_string()) };
        said_by(folder.path(), &living, Duration::from_secs(3600));
        assert!(FolderLock::take(folder.path()).unwrap_err().to_string().contains(&format!("process {parent}")));
        let elsewhere = Holder { host: "another-machine".to_owned(), ..living };
        said_by(folder.path(), &elsewhere, Duration::from_secs(20));
        let error = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains("another-machine") && error.contains("if that process is dead, remove "), "{error}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = FolderLock::take(&folder.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none/.lock"), "{error}");
    }
}
