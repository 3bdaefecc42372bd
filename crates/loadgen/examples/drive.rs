//! Runs LoadGen against a system that only waits, and says what came of it; for `scripts/mlperf-inference.sh`.
//!
//!     drive OUT SCENARIO MODE USER_CONF HOW [SECONDS]
//!
//! HOW: `good`; `fail` (the third sample fails); `fail-first` (the first one does); `twice` (each sample is answered
//! twice); `reverse` (the last sample of a query first); `panic` (the system panics). SECONDS is the time that a sample takes.

use calotype_loadgen::{
    Library, LoadgenError, Mode, Responder, Sample, Scenario, Settings, System, leave, run, version,
};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SAMPLES: usize = 24;

struct Waits {
    how: String,
    queue: Mutex<Sender<(Vec<Sample>, Arc<Responder>)>>,
}

impl Waits {
    fn new(how: &str, seconds: f64) -> Self {
        let (queue, samples) = channel::<(Vec<Sample>, Arc<Responder>)>();
        let kept = how.to_owned();
        std::thread::spawn(move || {
            let mut done = 0;
            for (mut samples, responder) in samples {
                if kept == "reverse" {
                    samples.reverse();
                }
                for sample in samples {
                    std::thread::sleep(Duration::from_secs_f64(seconds));
                    done += 1;
                    if (kept == "fail" && done == 3) || (kept == "fail-first" && done == 1) {
                        responder.fail(format!("sample {} failed", sample.index));
                    }
                    for _ in 0..if kept == "twice" { 2 } else { 1 } {
                        let refused = responder.complete(sample.id, vec![0xab, 0xcd, sample.index as u8]);
                        refused.err().inspect(|error| println!("refused: {error}"));
                    }
                }
            }
        });
        Self { how: how.to_owned(), queue: Mutex::new(queue) }
    }
}

impl System for Waits {
    fn name(&self) -> &str {
        "drive"
    }

    fn issue(&self, samples: &[Sample], responder: &Arc<Responder>) {
        assert!(self.how != "panic", "as it was asked for");
        let queue = self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if queue.send((samples.to_vec(), Arc::clone(responder))).is_err() {
            responder.fail("the worker is gone");
        }
    }

    fn flush(&self) {
        println!("flushed");
    }
}

struct Numbers;

impl Library for Numbers {
    fn name(&self) -> &str {
        "numbers"
    }

    fn total(&self) -> usize {
        SAMPLES
    }

    fn performance(&self) -> usize {
        SAMPLES
    }

    fn load(&self, samples: &[u64]) {
        println!("loaded {}", samples.len());
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, scenario, mode, user_conf, how, rest @ ..] = &arguments[..] else {
        eprintln!("usage: drive OUT SCENARIO MODE USER_CONF HOW [SECONDS]");
        return ExitCode::from(2);
    };
    let (Ok(scenario), Ok(mode)) = (scenario.parse::<Scenario>(), mode.parse::<Mode>()) else {
        eprintln!("no such scenario or mode");
        return ExitCode::from(2);
    };
    let settings = Settings {
        scenario,
        mode,
        user_conf: PathBuf::from(user_conf),
        audit_conf: None,
        seeds: None,
        out: PathBuf::from(out),
        trace: false,
        grace: Duration::from_secs(2),
    };
    let seconds = rest.first().and_then(|text| text.parse().ok()).unwrap_or(0.001);
    let system: Arc<dyn System> = Arc::new(Waits::new(how, seconds));
    let library: Arc<dyn Library> = Arc::new(Numbers);
    println!("LoadGen {}", version().unwrap_or_default());
    match run(&settings, &system, &library) {
        Ok(ended) => {
            println!("answered {}, refused {}", ended.answered, ended.refused);
            // One process runs LoadGen once.
            let again = run(&settings, &system, &library);
            println!("again: {}", matches!(again, Err(LoadgenError::Again)));
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("error: {error}");
            if error.must_leave() {
                leave(1);
            }
            ExitCode::FAILURE
        }
    }
}
