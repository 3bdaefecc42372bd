//! Orderly stops: the first SIGTERM or SIGINT asks, the second one ends the process at once.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What the first signal is answered with.
const ASKED: &str = "stopping, and saving first; again (Ctrl-C) to stop at once, losing what is not saved yet";

/// Tells long work to finish what it is doing, save and return. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct StopFlag {
    signalled: Arc<AtomicBool>,
    requested: Arc<AtomicBool>,
}

impl StopFlag {
    /// The flag of this process: SIGTERM (Slurm's, Kubernetes') and SIGINT (Ctrl-C) set it. The first one is answered with
    /// a line on standard error, for the work may go on for a while. A second signal exits at once with the shell's code for
    /// it (143 or 130). Every call gives the same flag.
    ///
    /// # Errors
    /// The system refuses the signal handlers or the thread that waits for them.
    pub fn install() -> io::Result<Self> {
        Self::install_with(true)
    }

    /// [`StopFlag::install`] for a process that another one speaks for, or that ends soon: no line answers the first signal.
    ///
    /// # Errors
    /// As [`StopFlag::install`].
    pub fn install_mute() -> io::Result<Self> {
        Self::install_with(false)
    }

    fn install_with(answers: bool) -> io::Result<Self> {
        static INSTALLED: Mutex<Option<StopFlag>> = Mutex::new(None);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flag) = installed.as_ref() {
            return Ok(flag.clone());
        }
        let flag = Self::new_unhooked();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the exit must not see the flag that its own signal sets.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag.signalled))?;
            signal_hook::flag::register(signal, Arc::clone(&flag.signalled))?;
        }
        if answers {
            let mut signals = Signals::new([SIGINT, SIGTERM])?;
            std::thread::Builder::new().name("stop".to_owned()).spawn(move || answer(&mut signals))?;
        }
        *installed = Some(flag.clone());
        Ok(flag)
    }

    /// A flag that no signal sets, for tests and for work inside a server.
    pub fn new_unhooked() -> Self {
        Self::default()
    }

    /// Asks for a stop from inside the program. A first signal after it still only asks.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// Whether a stop was asked for.
    pub fn is_set(&self) -> bool {
        self.signalled.load(Ordering::SeqCst) || self.requested.load(Ordering::SeqCst)
    }
}

/// Waits for the first signal and answers it; a handler itself must not write.
fn answer(signals: &mut Signals) {
    if signals.forever().next().is_some() {
        // A closed standard error must not keep anybody from stopping.
        let _ = writeln!(io::stderr(), "{ASKED}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    const CHILD: &str = "CALOTYPE_STOP_TEST_CHILD";

    #[test]
    fn a_request_reaches_all_clones() {
        let flag = StopFlag::new_unhooked();
        let clone = flag.clone();
        assert!(!clone.is_set());
        flag.request();
        assert!(clone.is_set());
        assert!(!StopFlag::new_unhooked().is_set());
    }

    /// The body of the child process of the next test: says "ready", then "asked" at the first signal, and waits.
    #[test]
    fn child_that_waits_for_signals() {
        let Ok(folder) = std::env::var(CHILD) else { return };
        let folder = std::path::PathBuf::from(folder);
        let flag = StopFlag::install().unwrap();
        let same = StopFlag::install().unwrap();
        std::fs::write(folder.join("ready"), "").unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if flag.is_set() && same.is_set() {
                std::fs::write(folder.join("asked"), "").unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for(path: &std::path::Path) {
        let start = Instant::now();
        while !path.exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "{} did not appear", path.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_first_signal_asks_and_says_so_and_the_second_exits_with_the_shells_code() {
        for (name, code) in [("-TERM", 143), ("-INT", 130)] {
            let folder = tempfile::tempdir().unwrap();
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "stop::tests::child_that_waits_for_signals"])
                .env(CHILD, folder.path())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let signal =
                |id: u32| assert!(Command::new("kill").arg(name).arg(id.to_string()).status().unwrap().success());
            wait_for(&folder.path().join("ready"));
            signal(child.id());
            wait_for(&folder.path().join("asked"));
            let said = BufReader::new(child.stderr.take().unwrap())
                .lines()
                .map_while(Result::ok)
                .find(|line| line.contains("again"));
            assert_eq!(said.as_deref(), Some(ASKED));
            assert!(child.try_wait().unwrap().is_none());
            signal(child.id());
            assert_eq!(child.wait().unwrap().code(), Some(code));
        }
    }
}
