//! Answers, without LoadGen: each sample has one, whoever gives it and whatever fails.

use calotype_loadgen::{AnswerError, Responder};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Taken = Arc<Mutex<Vec<(u64, usize)>>>;

fn responder() -> (Arc<Responder>, Taken) {
    let taken = Taken::default();
    let kept = Arc::clone(&taken);
    (Responder::to(move |id, data| kept.lock().unwrap().push((id, data.len()))), taken)
}

/// What was handed over, by id.
fn handed(responder: &Responder, taken: &Taken) -> Vec<(u64, usize)> {
    responder.close();
    let mut all = taken.lock().unwrap().clone();
    all.sort_unstable();
    all
}

#[test]
fn a_sample_has_one_answer() {
    let (responder, taken) = responder();
    responder.issued([1, 2, 3]);
    assert_eq!(responder.complete(2, vec![0; 5]), Ok(()));
    assert_eq!(responder.complete(2, vec![0; 9]), Err(AnswerError::NotOutstanding { id: 2 }));
    assert_eq!(responder.complete(7, vec![]), Err(AnswerError::NotOutstanding { id: 7 }));
    responder.complete(1, vec![0; 4]).unwrap();
    assert_eq!((responder.outstanding(), responder.answered(), responder.refused()), (1, 2, 2));
    // LoadGen may use an id again once it is answered.
    responder.issued([2]);
    responder.complete(2, vec![]).unwrap();
    responder.complete(3, vec![0; 6]).unwrap();
    assert_eq!(handed(&responder, &taken), [(1, 4), (2, 0), (2, 5), (3, 6)]);
}

#[test]
fn a_failure_answers_everything_once() {
    let (responder, taken) = responder();
    responder.issued(0..4);
    responder.complete(1, vec![0; 3]).unwrap();
    responder.fail("sample 2 is not finite");
    responder.fail("and then some");
    assert_eq!(responder.failure().as_deref(), Some("sample 2 is not finite"));
    // A slow answer is late, and no second one.
    assert!(responder.complete(3, vec![0; 3]).is_err());
    responder.issued([9]);
    assert_eq!((responder.outstanding(), responder.answered(), responder.refused()), (0, 1, 0));
    assert_eq!(handed(&responder, &taken), [(0, 0), (1, 3), (2, 0), (3, 0), (9, 0)]);
}

#[test]
fn nothing_is_handed_over_behind_the_end() {
    let taken = Taken::default();
    let kept = Arc::clone(&taken);
    let responder = Responder::to(move |id, data| {
        std::thread::sleep(Duration::from_millis(20));
        kept.lock().unwrap().push((id, data.len()));
    });
    responder.issued(0..4);
    responder.complete(0, vec![]).unwrap();
    responder.complete(1, vec![]).unwrap();
    responder.close();
    assert_eq!(taken.lock().unwrap().len(), 2, "closing waits for what is on its way");
    responder.complete(2, vec![]).unwrap();
    responder.fail("late");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(taken.lock().unwrap().len(), 2);
}

#[test]
fn many_threads_answer_each_sample_once() {
    let (responder, taken) = responder();
    responder.issued(0..1000);
    let good: usize = std::thread::scope(|scope| {
        let work = || (0..1000).filter(|id| responder.complete(*id, vec![0]).is_ok()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((good, responder.refused()), (1000, 3000));
    let all = handed(&responder, &taken);
    assert_eq!(all, (0..1000).map(|id| (id, 1)).collect::<Vec<_>>());
}
