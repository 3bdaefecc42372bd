//! Workers in other processes, played by threads that speak as they do: one that is good, dies, falls silent, fails, or answers twice.

use calotype_core::StopFlag;
use calotype_inference::remote::{Message, connect_to, gather, read_message, tend, write_message};
use calotype_inference::{Answers, InferenceError, Job, LostWorker, ProcessSettings, Queue, Recipe, Samples};
use calotype_loadgen::Responder;
use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Good,
    /// Breaks the connection behind its second answer.
    Dies,
    /// Says nothing behind its first answer, and keeps the connection.
    Silent,
    /// Cannot draw its second sample.
    Fails,
    /// Answers its first sample twice.
    Twice,
    /// Takes its time, and says that it lives.
    Slow,
}

fn worker(mut stream: TcpStream, digest: &str, how: How) -> Option<bool> {
    let hello =
        Message::Hello { version: 1, digest: digest.to_owned(), name: "worker".to_owned(), batch: 2, capacity: 2 };
    write_message(&mut stream, &hello).ok()?;
    if !matches!(read_message(&mut stream).ok()?, Message::Welcome) {
        return None;
    }
    write_message(&mut stream, &Message::Ready).ok()?;
    let mut answered = 0;
    loop {
        match read_message(&mut stream).ok()? {
            Message::Work(all) => {
                for work in all {
                    if how == How::Slow {
                        for _ in 0..4 {
                            sleep(Duration::from_millis(100));
                            write_message(&mut stream, &Message::Alive).ok()?;
                        }
                    }
                    if how == How::Fails && answered == 1 {
                        write_message(
                            &mut stream,
                            &Message::Failed("drawing of sample 5 failed: not finite".to_owned()),
                        )
                        .ok()?;
                        continue;
                    }
                    let done = Message::Done { id: work.id, pixels: work.caption.into_bytes() };
                    write_message(&mut stream, &done).ok()?;
                    if how == How::Twice {
                        write_message(&mut stream, &done).ok()?;
                    }
                    answered += 1;
                    if how == How::Dies && answered == 2 {
                        return None;
                    }
                    if how == How::Silent {
                        sleep(Duration::from_secs(20));
                        return None;
                    }
                }
            }
            Message::End { failed } => return Some(failed),
            _ => {}
        }
    }
}

fn samples() -> Arc<Samples> {
    let recipe: Recipe = toml_recipe();
    Arc::new(Samples::read(&recipe).unwrap())
}

fn toml_recipe() -> Recipe {
    toml::from_str(
        "kind = 'mlperf_inference'\nvariant = 'custom'\nwidth = 8\nheight = 8\nsteps = 1\nguidance = 8.0\nnegative = ''\n\
         [captions]\nmade_up = true\ncount = 12\n",
    )
    .unwrap()
}

fn settings(lost_worker: LostWorker) -> ProcessSettings {
    ProcessSettings { lost_worker, silence_seconds: 1.0, start_seconds: 5.0, ..ProcessSettings::default() }
}

/// Answers, by id; the failure; the samples that were sent again; what the workers heard of the end.
struct Ended {
    answers: BTreeMap<u64, Vec<String>>,
    failure: Option<String>,
    resent: u64,
    heard: Vec<Option<bool>>,
}

/// Twelve samples drawn by these workers alone, none by this process.
fn run(workers: &[How], lost_worker: LostWorker) -> Ended {
    let (listener, stop) = (TcpListener::bind("127.0.0.1:0").unwrap(), StopFlag::new_unhooked());
    let at = listener.local_addr().unwrap();
    let threads: Vec<JoinHandle<Option<bool>>> = workers
        .iter()
        .map(|how| (*how, TcpStream::connect(at).unwrap()))
        .map(|(how, stream)| spawn(move || worker(stream, "d", how)))
        .collect();
    let settings = settings(lost_worker);
    let peers = gather(&listener, workers.len(), "d", &settings, &stop).unwrap();
    peers.iter().for_each(|peer| peer.wait_ready().unwrap());
    let taken: Arc<Mutex<BTreeMap<u64, Vec<String>>>> = Arc::default();
    let kept = Arc::clone(&taken);
    let responder = Responder::to(move |id, data| {
        kept.lock().unwrap().entry(id).or_default().push(String::from_utf8_lossy(data).into_owned());
    });
    let queue = Arc::new(Queue::new(&stop));
    let (samples, wait) = (samples(), Duration::ZERO);
    let tended: Vec<_> = peers.into_iter().map(|peer| tend(peer, &queue, &samples, &settings, wait).unwrap()).collect();
    responder.issued(0..12);
    let answers: Arc<dyn Answers> = Arc::<Responder>::clone(&responder);
    queue.put((0..12).map(|id| Job { id, sample: id as usize }), &answers);
    queue.flush();
    let begun = Instant::now();
    while responder.outstanding() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it hangs");
        sleep(Duration::from_millis(5));
    }
    queue.end();
    tended.into_iter().for_each(|thread| thread.join().unwrap());
    responder.close();
    let heard = threads
        .into_iter()
        .zip(workers)
        .filter(|(_, how)| **how != How::Silent)
        .map(|(thread, _)| thread.join().unwrap())
        .collect();
    let answers = taken.lock().unwrap().clone();
    Ended { answers, failure: queue.failure(), resent: queue.resent(), heard }
}

/// Every sample has one answer, its own.
fn good(ended: &Ended) {
    assert_eq!(ended.failure, None);
    let samples = samples();
    let expected: BTreeMap<u64, Vec<String>> =
        (0..12).map(|id| (id, vec![samples.caption(id as usize).unwrap().to_owned()])).collect();
    assert_eq!(ended.answers, expected);
}

#[test]
fn workers_share_the_samples_and_hear_of_the_end() {
    let ended = run(&[How::Good, How::Slow], LostWorker::Fail);
    good(&ended);
    assert_eq!((ended.resent, ended.heard), (0, vec![Some(false), Some(false)]));
}

#[test]
fn samples_of_a_worker_that_is_lost_are_drawn_by_others() {
    for how in [How::Dies, How::Silent, How::Twice] {
        // The other one is slow, so that the first one is not without work.
        let ended = run(&[how, How::Slow], LostWorker::Resend);
        good(&ended);
        // One that dies may have answered all that it was given.
        assert!(how != How::Silent || ended.resent > 0);
    }
}

#[test]
fn a_lost_worker_fails_the_run_if_that_is_asked_for() {
    let ended = run(&[How::Silent, How::Slow], LostWorker::Fail);
    let failure = ended.failure.clone().unwrap();
    assert!(failure.starts_with("worker is lost: nothing was heard of it for too long"), "{failure}");
    assert_eq!(
        (ended.answers.len(), ended.heard),
        (12, vec![Some(true)]),
        "all are answered, and the other one is told"
    );
    assert!(ended.answers.values().all(|answers| answers.len() == 1));
}

#[test]
fn with_all_workers_lost_the_run_fails() {
    let ended = run(&[How::Dies, How::Dies], LostWorker::Resend);
    assert!(ended.failure.clone().unwrap().contains("nobody is left who draws"), "{:?}", ended.failure);
    assert!(ended.answers.len() == 12 && ended.answers.values().all(|answers| answers.len() == 1));
}

#[test]
fn a_sample_that_cannot_be_drawn_fails_the_run() {
    let ended = run(&[How::Fails, How::Slow], LostWorker::Resend);
    assert_eq!(ended.failure.as_deref(), Some("worker: drawing of sample 5 failed: not finite"));
    assert!(ended.answers.values().all(|answers| answers.len() == 1));
}

#[test]
fn only_those_of_this_run_are_taken_in() {
    let (listener, stop) = (TcpListener::bind("127.0.0.1:0").unwrap(), StopFlag::new_unhooked());
    let at = listener.local_addr().unwrap();
    // Strangers hold nothing up.
    let mut stranger = TcpStream::connect(at).unwrap();
    write_message(&mut stranger, &Message::Alive).unwrap();
    let good = TcpStream::connect(at).unwrap();
    let thread = spawn(move || worker(good, "d", How::Good));
    let peers = gather(&listener, 1, "d", &settings(LostWorker::Fail), &stop).unwrap();
    assert_eq!(peers.len(), 1);
    drop(peers);
    assert_eq!(thread.join().unwrap(), None);
    let other = TcpStream::connect(at).unwrap();
    let thread = spawn(move || worker(other, "another model", How::Good));
    let error = gather(&listener, 1, "d", &settings(LostWorker::Fail), &stop).unwrap_err();
    assert!(error.to_string().contains("worker is no part of this run: it draws with something else"), "{error}");
    assert_eq!(thread.join().unwrap(), None);
}

#[test]
fn who_does_not_come_is_named() {
    let (listener, stop) = (TcpListener::bind("127.0.0.1:0").unwrap(), StopFlag::new_unhooked());
    let short = ProcessSettings { start_seconds: 0.2, ..settings(LostWorker::Fail) };
    let error = gather(&listener, 2, "d", &short, &stop).unwrap_err().to_string();
    assert!(error.starts_with("2 of 2 other processes did not come within 0.2 s"), "{error}");
    drop(listener);
    let error = connect_to(&["127.0.0.1:9".to_owned()], "d", &short, &stop).unwrap_err().to_string();
    assert!(error.starts_with("the worker at 127.0.0.1:9 does not answer"), "{error}");
    let error = connect_to(&["no port".to_owned()], "d", &short, &stop).unwrap_err().to_string();
    assert!(error.contains("no port"), "{error}");
    stop.request();
    let error = connect_to(&["127.0.0.1:9".to_owned()], "d", &short, &stop).unwrap_err();
    assert!(matches!(&error, InferenceError::Stopped(_)) && error.is_stopped(), "{error}");
}
