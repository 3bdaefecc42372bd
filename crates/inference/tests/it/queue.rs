//! The queue without LoadGen and without networks: who takes, answers, fails or disappears is played here.

use calotype_core::StopFlag;
use calotype_inference::{Answers, Job, Queue};
use calotype_loadgen::Responder;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NOW: Duration = Duration::ZERO;

/// Answers by id: the number of bytes, in the order in which they came.
type Taken = Arc<Mutex<Vec<(u64, usize)>>>;

struct Played {
    queue: Arc<Queue>,
    responder: Arc<Responder>,
    taken: Taken,
}

fn played() -> Played {
    let taken = Taken::default();
    let kept = Arc::clone(&taken);
    let responder = Responder::to(move |id, data| kept.lock().unwrap().push((id, data.len())));
    Played { queue: Arc::new(Queue::new(&StopFlag::new_unhooked())), responder, taken }
}

impl Played {
    fn issue(&self, ids: std::ops::Range<u64>) {
        self.responder.issued(ids.clone());
        let answers: Arc<dyn Answers> = Arc::<Responder>::clone(&self.responder);
        self.queue.put(ids.map(|id| Job { id, sample: id as usize }), &answers);
    }

    fn take(&self, most: usize) -> Vec<u64> {
        self.jobs(most).iter().map(|job| job.id).collect()
    }

    fn jobs(&self, most: usize) -> Vec<Job> {
        self.queue.take(most, NOW, &|| true)
    }

    fn answers(&self) -> Vec<(u64, usize)> {
        self.responder.close();
        let mut all = self.taken.lock().unwrap().clone();
        all.sort_unstable();
        all
    }
}

#[test]
fn samples_are_taken_in_order_and_in_batches() {
    let all = played();
    all.issue(0..5);
    assert_eq!((all.take(2), all.take(2), all.take(2)), (vec![0, 1], vec![2, 3], vec![4]));
    all.queue.end();
    assert!(all.take(2).is_empty());
}

#[test]
fn a_batch_waits_for_more_while_more_may_come() {
    let all = played();
    let wait = Duration::from_millis(400);
    all.issue(0..1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            all.issue(1..2);
        });
        let begun = Instant::now();
        // Full before the time is over.
        assert_eq!(all.queue.take(2, wait, &|| true).len(), 2);
        assert!(begun.elapsed() < wait);
    });
    all.issue(2..3);
    let begun = Instant::now();
    assert_eq!(all.queue.take(2, wait, &|| true).len(), 1);
    assert!(begun.elapsed() >= wait);
    // Nothing more comes: nobody waits.
    all.issue(3..4);
    all.queue.flush();
    let begun = Instant::now();
    assert_eq!(all.queue.take(2, Duration::from_secs(60), &|| true).len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn who_is_not_wanted_stops_waiting() {
    let all = played();
    let begun = Instant::now();
    assert!(all.queue.take(1, NOW, &|| begun.elapsed() < Duration::from_millis(50)).is_empty());
}

#[test]
fn a_slow_sample_holds_up_nobody_else() {
    let all = played();
    all.issue(0..4);
    let slow = all.jobs(1);
    for job in all.jobs(3) {
        assert!(all.queue.answer(job, vec![1]));
    }
    assert_eq!(all.responder.outstanding(), 1);
    assert!(all.queue.answer(slow[0], vec![1, 2]));
    assert_eq!(all.answers(), [(0, 2), (1, 1), (2, 1), (3, 1)]);
}

#[test]
fn a_second_answer_never_gets_through() {
    let all = played();
    all.issue(0..2);
    let jobs = all.jobs(2);
    assert!(all.queue.answer(jobs[0], vec![1]));
    assert!(!all.queue.answer(jobs[0], vec![1, 2]));
    assert!(!all.queue.answer(Job { id: 9, sample: 9 }, vec![]));
    assert!(all.queue.answer(jobs[1], vec![1]));
    assert_eq!((all.responder.answered(), all.responder.refused()), (2, 2));
    assert_eq!(all.answers(), [(0, 1), (1, 1)]);
}

#[test]
fn a_failing_sample_ends_the_run_with_one_message() {
    let all = played();
    all.issue(0..4);
    let jobs = all.jobs(2);
    assert!(all.queue.answer(jobs[0], vec![1]));
    all.queue.fail("drawing of sample 1 failed: 3 of 12 pixels are not finite");
    all.queue.fail("another one");
    // Nobody draws on, and what is late is refused without a word.
    assert!(all.jobs(1).is_empty() && !all.queue.goes_on());
    assert!(!all.queue.answer(jobs[1], vec![1]));
    all.issue(4..6);
    assert_eq!((all.responder.outstanding(), all.responder.refused()), (0, 0));
    let told = "drawing of sample 1 failed: 3 of 12 pixels are not finite";
    assert_eq!((all.queue.failure().as_deref(), all.responder.failure().as_deref()), (Some(told), Some(told)));
    assert_eq!(all.answers(), [(0, 1), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]);
}

#[test]
fn what_is_given_back_comes_next() {
    let all = played();
    all.issue(0..4);
    let lost = all.jobs(2);
    all.queue.give_back(lost.into_iter().rev());
    assert_eq!(all.queue.resent(), 2);
    assert_eq!((all.take(2), all.take(2)), (vec![0, 1], vec![2, 3]));
}

#[test]
fn with_nobody_left_the_run_fails() {
    let all = played();
    all.queue.join();
    all.queue.join();
    all.issue(0..2);
    all.queue.leave("worker 1 is lost");
    assert_eq!(all.queue.failure(), None);
    all.queue.leave("worker 2 is lost");
    assert_eq!(all.queue.failure().as_deref(), Some("worker 2 is lost; nobody is left who draws"));
    assert_eq!(all.answers(), [(0, 0), (1, 0)]);
    // At the end everybody leaves.
    let all = played();
    all.queue.join();
    all.queue.end();
    all.queue.leave("the run has ended");
    assert_eq!(all.queue.failure(), None);
}

#[test]
fn many_hands_answer_each_sample_once() {
    let all = played();
    all.issue(0..500);
    all.queue.flush();
    std::thread::scope(|scope| {
        for hand in 0..4 {
            let all = &all;
            scope.spawn(move || {
                let mut batches = 0;
                loop {
                    let jobs = all.queue.take(3, NOW, &|| all.responder.outstanding() > 0);
                    if jobs.is_empty() {
                        return;
                    }
                    batches += 1;
                    // One of them loses every fifth batch.
                    if hand == 0 && batches % 5 == 0 {
                        all.queue.give_back(jobs);
                    } else {
                        jobs.into_iter().for_each(|job| assert!(all.queue.answer(job, vec![0])));
                    }
                }
            });
        }
    });
    assert_eq!(all.answers(), (0..500).map(|id| (id, 1)).collect::<Vec<_>>());
}
