//! One of several threads fails.

use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use calotype_collective::{Cause, Collective, Payload, Reporter};

use crate::support::{as_ranks, groups, text};

#[test]
fn abort_reaches_all_with_its_message() {
    let all_listen = Barrier::new(4);
    let failures = as_ranks(4, Payload::F32, |group| {
        let (told, hears) = channel();
        group.on_failure(Box::new(move |failure, reporter| told.send((failure.clone(), reporter)).unwrap()));
        all_listen.wait();
        if group.rank() == 2 {
            group.abort("the loss is not finite");
        }
        let error = text(group.barrier());
        assert!(error.contains("rank 2 on thread 2 gave up: the loss is not finite"), "{error}");
        // The hook was called before.
        let (failure, reporter) = hears.try_recv().unwrap();
        assert_eq!(group.failure().unwrap(), failure);
        let (late, hears_late) = channel();
        group.on_failure(Box::new(move |failure, _| late.send(failure.clone()).unwrap()));
        assert_eq!(hears_late.try_recv().unwrap(), failure);
        (failure, reporter)
    });
    for (rank, (failure, reporter)) in failures.into_iter().enumerate() {
        assert_eq!((failure.rank, failure.cause), (2, Cause::Aborted));
        assert_eq!(reporter == Reporter::Here, rank == 0, "one process tells the user");
    }
}

#[test]
fn who_leaves_is_missed_only_by_those_who_wait() {
    let errors = as_ranks(3, Payload::F32, |group| {
        group.barrier().unwrap();
        match group.rank() {
            1 => String::new(),
            _ => text(group.all_gather(&[1.0])),
        }
    });
    assert!(errors[0].contains("rank 1 on thread 1 ended too early: its thread has ended"), "{errors:?}");
    // Nobody waits any more: no failure.
    as_ranks(3, Payload::F32, |group| {
        group.barrier().unwrap();
        std::thread::sleep(Duration::from_millis(20 * group.rank() as u64));
        assert!(group.failure().is_none());
    });
}

#[test]
fn a_panic_ends_the_run() {
    let mut members = groups(2, Payload::F32, Duration::from_secs(30));
    let (second, first) = (members.pop().unwrap(), members.pop().unwrap());
    let thread = std::thread::spawn(move || {
        let _group = second;
        panic!("as the test wants");
    });
    assert!(thread.join().is_err());
    assert!(text(first.barrier()).ends_with("rank 1 on thread 1 gave up: it panicked"));
}

#[test]
fn who_lives_but_does_not_call_is_not_waited_for_for_ever() {
    let members = groups(2, Payload::F32, Duration::from_millis(300));
    let started = Instant::now();
    let error = text(members[0].barrier());
    assert!(
        error.ends_with("rank 1 on thread 1 does not take part: it lives, but its message did not come within 0.3 s"),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(10));
}
