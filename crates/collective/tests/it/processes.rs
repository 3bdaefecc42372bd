//! Processes that are connected by TCP, as a launcher starts them: the example `ranks`.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The program, which `cargo test` builds.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().parent().unwrap().join("examples/ranks");
    assert!(program.is_file(), "{} is missing: run `cargo test -p calotype-collective`", program.display());
    program
}

/// A port for one run.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts one process of a run.
fn start(rank: usize, world: usize, port: u16, job: &str, arguments: &[&str], more: &[(&str, &str)]) -> Child {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars() {
        let launchers = ["SLURM", "OMPI_", "PMI", "CALOTYPE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"];
        if launchers.iter().any(|start| name.starts_with(start)) {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .env("CALOTYPE_RANK", rank.to_string())
        .env("CALOTYPE_WORLD_SIZE", world.to_string())
        .env("CALOTYPE_LOCAL_RANK", rank.to_string())
        .env("CALOTYPE_LOCAL_SIZE", world.to_string())
        .env("CALOTYPE_RENDEZVOUS", format!("127.0.0.1:{port}"))
        .env("CALOTYPE_HOST", format!("host{rank}"))
        .env("CALOTYPE_JOB", job)
        .env("RANKS_TRANSPORT", "tcp")
        .envs(more.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A run whose processes are ended with the test.
struct Run(Vec<Child>);

impl Run {
    fn start(world: usize, arguments: &[&str], more: &[(&str, &str)]) -> Self {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let job = format!("test {} {}", std::process::id(), RUNS.fetch_add(1, Ordering::SeqCst));
        let port = port();
        Self((0..world).map(|rank| start(rank, world, port, &job, arguments, more)).collect())
    }

    /// Code and messages of every process but those that are stopped, and the seconds until the last has ended.
    fn end(mut self, but: &[usize]) -> (Vec<(Option<i32>, String)>, Duration) {
        let started = Instant::now();
        let mut ends = Vec::new();
        for (rank, child) in self.0.iter_mut().enumerate() {
            if but.contains(&rank) {
                ends.push((None, String::new()));
                continue;
            }
            while child.try_wait().unwrap().is_none() {
                assert!(started.elapsed() < Duration::from_secs(60), "rank {rank} hangs");
                std::thread::sleep(Duration::from_millis(10));
            }
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            ends.push((child.wait().unwrap().code(), text));
        }
        (ends, started.elapsed())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The line of rank 0 that says what was summed.
fn hash(world: usize, more: &[(&str, &str)]) -> String {
    let (ends, _) = Run::start(world, &["check"], more).end(&[]);
    for (rank, (code, text)) in ends.iter().enumerate() {
        assert_eq!(*code, Some(0), "rank {rank} of {world}: {text}");
    }
    ends[0].1.lines().find(|line| line.starts_with("sums of")).unwrap().to_owned()
}

#[test]
fn processes_have_the_bits_of_one() {
    let alone = hash(1, &[]);
    assert_eq!([hash(2, &[]), hash(3, &[]), hash(4, &[])], [alone.clone(), alone.clone(), alone]);
}

/// What a run says of a process that fails, and how long the others took.
fn failing(rank: &str, how: &str, but: &[usize]) -> (Vec<(Option<i32>, String)>, String, Duration) {
    let (ends, time) = Run::start(3, &["fail", rank, how], &[]).end(but);
    let said: String = ends.iter().map(|(_, text)| text.as_str()).filter(|text| text.contains("error after")).collect();
    assert_eq!(said.matches("error after").count(), 1, "{how}: one message, not: {ends:?}");
    (ends, said, time)
}

#[test]
fn a_process_that_fails_ends_all_with_one_message_that_names_it() {
    let table = [
        ("2", "kill", "rank 2 on host2 died: its connection to rank 0 broke (its connection was closed)"),
        ("2", "busy", "rank 2 on host2 died: its connection to rank 0 broke (its connection was closed)"),
        ("2", "exit", "rank 2 on host2 died: its connection to rank 0 broke (its connection was closed)"),
        ("1", "abort", "rank 1 on host1 gave up: the loss is not finite"),
        ("1", "panic", "rank 1 on host1 gave up: it panicked"),
        ("2", "drop", "rank 2 on host2 gave up: a reduction was dropped before its end"),
    ];
    for (rank, how, expected) in table {
        let (ends, said, time) = failing(rank, how, &[]);
        assert!(said.contains(expected), "{how}: {said}");
        assert!(time < Duration::from_secs(10), "{how}: {time:?}");
        for other in (0..3).filter(|other| other.to_string() != rank) {
            assert_eq!(ends[other].0, Some(1), "{how}: {ends:?}");
        }
    }
}

#[test]
fn without_rank_0_the_first_of_each_host_says_so() {
    let (ends, time) = Run::start(3, &["fail", "0", "kill"], &[("CALOTYPE_HOST", "here")]).end(&[]);
    assert!(time < Duration::from_secs(10), "{time:?}");
    assert!(ends[1].1.contains("rank 0 on here died: its connection to rank 1 broke"), "{ends:?}");
    assert_eq!((ends[1].0, ends[2].clone()), (Some(1), (Some(1), String::new())));
}

#[test]
fn a_silent_process_ends_all_within_ten_seconds() {
    let (_, said, time) = failing("1", "stop", &[1]);
    assert!(said.contains("rank 1 on host1 is silent: no sign of life for 6 s"), "{said}");
    assert!(time < Duration::from_secs(10), "{time:?}");
}

#[test]
fn processes_that_do_not_fit_say_what_does_not() {
    let output = |children: [Child; 2]| children.map(|child| child.wait_with_output().unwrap());
    let text = |output: &Output| String::from_utf8(output.stderr.clone()).unwrap();
    let place = port();
    let soon = [("RANKS_MEETING", "4")];
    let [first, second] =
        output([start(0, 2, place, "a", &["check"], &soon), start(1, 3, place, "a", &["check"], &soon)]);
    let expected = "error: the processes of this run do not fit together: rank 0 on host0 has 2 processes, rank 1 on host1 has 3\n";
    assert_eq!([text(&first), text(&second)], [expected, expected]);
    assert_eq!(first.status.code(), Some(2));
    let place = port();
    let [first, second] =
        output([start(0, 2, place, "a", &["check"], &soon), start(1, 2, place, "b", &["check"], &soon)]);
    assert!(text(&first).contains("of 2 processes these did not come: rank 1"), "{}", text(&first));
    assert!(text(&second).starts_with(&format!("error: rank 1 did not find rank 0 at 127.0.0.1:{place} within 4 s")));
    let mixed = start(0, 2, place, "a", &["check"], &[("RANK", "1"), ("WORLD_SIZE", "2")]).wait_with_output().unwrap();
    assert!(text(&mixed).starts_with("error: CALOTYPE_RANK=0 but RANK=1: Calotype and torchrun disagree"));
}
